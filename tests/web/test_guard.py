"""What Gradio 4.25.0 leaves open is shut; the named attacks work on plain Gradio in this run."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from tests.web.live_server import PORTRAIT, Installation, free_port, serve, submit, wait_until

pytestmark = pytest.mark.filterwarnings("ignore")  # Gradio uses what is deprecated


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    installation = Installation(tmp_path_factory.mktemp("data"), with_page=True)
    with serve(installation) as address:
        yield address


@pytest.fixture(scope="module")
def plain(guarded: str) -> Iterator[str]:
    """Gradio as it comes, with one function that gives back what it gets."""
    import gradio as gr
    from gradio import processing_utils

    assert guarded  # made first: its locks are lifted again for this one
    locked = processing_utils.save_url_to_cache
    with gr.Blocks(analytics_enabled=False) as blocks:
        given, answer = gr.Textbox(), gr.JSON()
        gr.Button().click(json.loads, given, answer, api_name="echo")
    app = gr.mount_gradio_app(FastAPI(), blocks, path="/")
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    server.config.timeout_graceful_shutdown = 1
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "plain Gradio listens")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
    assert processing_utils.save_url_to_cache is locked


def both(plain: str, guarded: str, method: str, path: str, **options: Any) -> list[httpx.Response]:
    options.setdefault("timeout", 20)
    return [httpx.request(method, address + path, **options) for address in (plain, guarded)]


def test_a_strange_host_name_leads_nowhere(plain: str, guarded: str) -> None:
    open_one, shut = both(plain, guarded, "GET", "/config", headers={"Host": "evil.example"})
    assert (open_one.status_code, shut.status_code) == (200, 421)
    for host in (
        "localhost:1",
        "127.0.0.1",
        "192.168.1.7:7860",
        "[::1]:7860",
        socket.gethostname(),
    ):
        assert httpx.get(f"{guarded}/api/config", headers={"Host": host}).status_code == 200, host
    for host in ("", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert httpx.get(f"{guarded}/api/config", headers={"Host": host}).status_code == 421, host


def test_other_sites_can_neither_send_nor_read(plain: str, guarded: str) -> None:
    files = {"files": ("x.txt", b"hello")}
    origin = {"Origin": "https://evil.example"}
    open_one, shut = both(plain, guarded, "POST", "/upload", files=files, headers=origin)
    assert (open_one.status_code, shut.status_code) == (200, 403)
    for headers in (origin, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert submit(httpx.Client(base_url=guarded, headers=headers)).status_code == 403
    reading = both(plain, guarded, "GET", "/config", headers={"Origin": "http://localhost:1"})
    leaves = [
        [name for name in answer.headers if name.startswith("access-control")] for answer in reading
    ]
    assert leaves[0]
    assert not leaves[1]
    own = httpx.post(f"{guarded}/upload", files=files, headers={"Origin": guarded})
    assert own.status_code == 200


def test_headers_of_a_proxy_do_not_change_the_page(plain: str, guarded: str) -> None:
    forged = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    open_one, shut = both(plain, guarded, "GET", "/config", headers=forged)
    assert "evil.example" in open_one.text
    assert "evil.example" not in shut.text


def test_the_server_fetches_no_address_and_sends_nobody_on(plain: str, guarded: str) -> None:
    path = "/file=https://evil.example/x"
    open_one, shut = both(plain, guarded, "GET", path, follow_redirects=False)
    assert (open_one.status_code, shut.status_code) == (302, 403)
    assert httpx.get(f"{guarded}/proxy=https://evil.example/x").status_code == 404


def test_uploaded_pages_do_not_run(plain: str, guarded: str) -> None:
    files = {"files": ("x.html", b"<script>alert(1)</script>")}
    answers = []
    for address in (plain, guarded):
        (stored,) = httpx.post(f"{address}/upload", files=files).json()
        answers.append(httpx.get(f"{address}/file={stored}"))
    open_one, shut = answers
    assert open_one.headers["content-type"].startswith("text/html")
    assert "content-security-policy" not in open_one.headers
    assert shut.headers["content-security-policy"].startswith("sandbox")
    assert shut.headers["x-content-type-options"] == "nosniff"


def joined(address: str, path: str) -> httpx.Response:
    """Call a function with a file of our choosing."""
    data = [json.dumps({"path": path})]
    config = httpx.get(f"{address}/config").json()
    number = next(
        i for i, made in enumerate(config["dependencies"]) if made["api_name"] in ("echo", "status")
    )
    body = {"data": data, "fn_index": number, "session_hash": "s"}
    return httpx.post(f"{address}/queue/join", json=body)


def test_no_file_of_the_machine_can_be_named(plain: str, guarded: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("for nobody")
    open_one, shut = joined(plain, str(secret)), joined(guarded, str(secret))
    assert (open_one.status_code, shut.status_code) == (200, 403)
    served: dict[str, Any] = {}
    with httpx.stream("GET", f"{plain}/queue/data", params={"session_hash": "s"}) as events:
        for line in events.iter_lines():
            if "process_completed" in line:
                served = json.loads(line.removeprefix("data: "))
                break
    leaked = served["output"]["data"][0]["path"]
    assert httpx.get(f"{plain}/file={leaked}").text == "for nobody"
    for path in ("http://169.254.169.254/x", "/etc/passwd", str(secret)):
        for data in ([{"path": path}], [[{"x": {"path": path}}]], [json.dumps({"path": path})]):
            body = {"data": data, "fn_index": 0, "session_hash": "s"}
            for route in ("/queue/join", "/call/status", "/api/predict"):
                assert httpx.post(guarded + route, json=body).status_code == 403, (route, data)


@pytest.mark.parametrize(
    "path",
    [
        "/custom_component/x/component/%2e%2e/x",
        "/component_server",
        "/file//etc/passwd",
        "/file=/etc/passwd",
        "/file=../../etc/passwd",
        "/run/predict",
        "/reset",
        "/dev/reload",
        "/static/../app.py",
        "/static/css/%2e%2e/%2e%2e/app.py",
    ],
)
def test_what_the_page_does_not_need_is_shut(guarded: str, path: str) -> None:
    for method in ("GET", "POST"):
        assert httpx.request(method, guarded + path).status_code in (403, 404), method


def test_large_calls_are_refused(guarded: str) -> None:
    body = json.dumps({"data": ["x" * 1_100_000]}).encode()
    assert httpx.post(f"{guarded}/queue/join", content=body).status_code == 413
    assert httpx.post(f"{guarded}/queue/join", content=b"{").status_code == 400
    assert httpx.post(f"{guarded}/queue/join", content=b"[" * 900_000).status_code == 400


def test_every_answer_carries_the_headers(guarded: str) -> None:
    for path in ("/", "/config", "/api/config", "/docs", "/healthz", "/nothing/here"):
        headers = httpx.get(guarded + path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert "default-src 'self'" in headers["content-security-policy"], path
        assert "unsafe-eval" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "same-origin"


def test_uploads_that_break_off_stay_in_our_folder(guarded: str) -> None:
    (stored,) = httpx.post(f"{guarded}/upload", files={"files": PORTRAIT.read_bytes()}).json()
    assert Path(stored).parent.parent.name == "gradio"
