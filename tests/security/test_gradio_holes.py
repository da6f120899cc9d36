"""What Gradio 4.25.0 leaves open is shut: each attack works on plain Gradio and not on ours."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.patience import PATIENCE_S
from tests.security.servers import SECRET, InternalServer, Target
from tests.web.live_server import PORTRAIT, Installation, serve, submit, wait_until
from webui.auth import read_accounts
from webui.server import Access

pytestmark = pytest.mark.filterwarnings("ignore")  # Gradio uses what is deprecated

PAGE = b"<html><script>document.title = document.cookie</script></html>"
DRAWING = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
EVIL = {"Origin": "https://evil.example"}
CALLED = ("/queue/join", "/run/predict")  # where functions are called by their number


def leaves(answer: httpx.Response) -> list[str]:
    """Headers that allow other sites to read an answer."""
    return [name for name in answer.headers if name.startswith("access-control-")]


# --- Addresses and files of the server -----------------------------------------------------------


def fetch_through(target: Target, function: int, address: str) -> str:
    """Let the server fetch an address, and read what it got (CVE-2024-4325, CVE-2024-47167)."""
    target.call(function, [{"path": address}], session=hashlib.sha1(address.encode()).hexdigest())
    kept = hashlib.sha1(address.encode()).hexdigest()
    name = Path(urlsplit(address).path).name
    for folder in (target.folder / "gradio", target.folder):
        answer = target.get(f"/file={folder / kept / name}")
        if answer.status_code == 200:
            return answer.text
    return ""


def test_the_server_fetches_no_address_for_a_stranger(
    plain: Target, ours: Target, internal: InternalServer
) -> None:
    assert fetch_through(plain, plain.functions["echo"], f"{internal.address}/plain") == SECRET
    assert internal.asked == ["/plain"]
    internal.asked.clear()
    for function in range(ours.num_functions):
        assert fetch_through(ours, function, f"{internal.address}/ours") == ""
    hidden = json.dumps({"path": f"{internal.address}/ours"})
    for value in (
        [[{"x": {"path": f"{internal.address}/ours"}}]],
        [hidden],
        [json.dumps([hidden])],
        [hidden.replace("path", "p\\u0061th")],
    ):
        for route in (*CALLED, "/call/status", "/call/submit", "/api/predict", "/api/status"):
            body = {"data": value, "fn_index": ours.functions["status"], "session_hash": "s"}
            assert ours.post(route, json=body).status_code in (403, 404), (route, value)
    assert internal.asked == []


def test_no_file_of_the_machine_can_be_read(plain: Target, ours: Target, tmp_path: Path) -> None:
    """CVE-2024-4941, CVE-2024-47868: a path in what a function gives back."""
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    given = json.dumps({"path": str(secret)})
    (leaked,) = plain.call(plain.functions["parse"], [given], session="file")
    assert plain.get(f"/file={leaked['path']}").text == SECRET
    for function in range(ours.num_functions):
        for value in (given, {"path": str(secret)}, {"path": "/etc/passwd"}, {"path": "app.py"}):
            assert ours.join(function, [value]).status_code == 403
    for name in (
        str(secret),
        "/etc/passwd",
        "app.py",
        f"{ours.folder}/secret.key",
        "\0",
        "a" * 9999,
    ):
        assert ours.get(f"/file={name.replace(chr(0), '%00')}").status_code in (403, 404), name


def test_nothing_in_gradio_takes_a_file_that_was_not_uploaded(ours: Target, tmp_path: Path) -> None:
    """The lock behind the gate, for a function that would give back what it was sent."""
    import gradio as gr
    from gradio.processing_utils import move_files_to_cache

    block = gr.JSON()
    block.GRADIO_CACHE = str(ours.folder / "gradio")
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    link = ours.folder / "gradio" / "link.txt"
    link.symlink_to(secret)
    for path in (secret, link, ours.folder / "secret.key", "http://127.0.0.1:1/x", "../../x"):
        with pytest.raises(Exception, match=r"not uploaded here|address is given"):
            move_files_to_cache({"path": str(path)}, block, postprocess=True)
    assert ours.get(f"/file={link}").status_code == 403
    link.unlink()


def test_an_upload_is_found_only_by_who_was_told_where_it_is(plain: Target, ours: Target) -> None:
    """Gradio files uploads under the hash of their content."""
    content = PORTRAIT.read_bytes()
    known = f"{hashlib.sha1(content).hexdigest()}/portrait.png"
    assert plain.upload("portrait.png", content).status_code == 200
    assert plain.get(f"/file={plain.folder}/gradio/{known}").content == content
    (stored,) = ours.upload("portrait.png", content).json()
    assert ours.get(f"/file={ours.folder}/gradio/{known}").status_code == 404
    assert ours.get(f"/file={stored}").content == content
    assert ours.upload("portrait.png", content).json() != [stored]


# --- What users upload ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "content"), [("x.html", PAGE), ("x.svg", DRAWING)])
def test_uploaded_pages_do_not_run(plain: Target, ours: Target, name: str, content: bytes) -> None:
    """CVE-2024-47872."""
    (stored,) = plain.upload(name, content).json()
    shown = plain.get(f"/file={stored}")
    assert shown.content == content
    assert shown.headers["content-type"].startswith(("text/html", "image/svg"))
    assert "content-security-policy" not in shown.headers
    assert ours.upload(name, content).status_code == 415


def test_what_is_no_page_cannot_be_called_one(ours: Target) -> None:
    """A picture that is a page as well: it keeps the name of a picture, and is inert."""
    disguised = PORTRAIT.read_bytes()[:3000] + PAGE
    (stored,) = ours.upload("../../x.html", disguised).json()
    assert Path(stored).name == "x.png"
    assert Path(stored).parent.parent == ours.folder / "gradio"
    shown = ours.get(f"/file={stored}")
    assert shown.headers["content-type"] == "image/png"
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert shown.headers["content-security-policy"].startswith("sandbox")


def test_uploads_have_limits(plain: Target, ours: Target) -> None:
    large = b"\x89PNG\r\n\x1a\n" + bytes(5_000_000)
    assert plain.upload("x.png", large).status_code == 200
    assert ours.upload("x.png", large).status_code == 413
    assert ours.upload("x.png", large[:1_100_000]).status_code == 413
    many = [("files", (f"{n}.png", PORTRAIT.read_bytes()[:900])) for n in range(20)]
    assert plain.post("/upload", files=many).status_code == 200
    held = set((ours.folder / "gradio").iterdir())
    assert ours.post("/upload", files=many).status_code == 413
    assert set((ours.folder / "gradio").iterdir()) == held


def half_an_upload(target: Target) -> None:
    """Begin to send a picture, and hang up when the server has most of it."""
    parts = urlsplit(target.address)
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    content = head + b"\x89PNG\r\n\x1a\n" + bytes(300_000)
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as connection:
        connection.sendall(
            f"POST /upload HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 900000\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode()
        )
        connection.sendall(content)
        time.sleep(0.3)


def test_an_upload_that_breaks_off_leaves_nothing(plain: Target, ours: Target) -> None:
    before = [set(target.folder.rglob("*")) for target in (plain, ours)]
    for target in (plain, ours):
        half_an_upload(target)
    time.sleep(0.3)
    assert set(plain.folder.rglob("*")) - before[0]
    wait_until(lambda: set(ours.folder.glob("*/*")) <= before[1], "nothing is left")


# --- Other sites ---------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:5320", "null"])
def test_other_sites_cannot_read_with_the_cookies_of_a_user(
    plain: Target, ours: Target, origin: str
) -> None:
    """CVE-2024-47084, CVE-2024-47165."""
    headers = {"Origin": origin, "Cookie": "la_browser=" + "x" * 40}
    allowed = plain.get("/config", headers=headers)
    if origin != "https://evil.example":  # that one is refused for a server on localhost
        assert allowed.headers["access-control-allow-origin"] == origin
        assert allowed.headers["access-control-allow-credentials"] == "true"
    for path in ("/config", "/api/jobs", "/queue/data?session_hash=x", "/healthz"):
        assert not leaves(ours.get(path, headers=headers)), path
    asked = {**headers, "Access-Control-Request-Method": "DELETE"}
    assert not leaves(ours.request("OPTIONS", "/api/jobs", headers=asked))


def test_other_sites_cannot_send(plain: Target, ours: Target) -> None:
    picture = PORTRAIT.read_bytes()
    assert plain.upload("x.png", picture, headers=EVIL).status_code == 200
    for headers in (EVIL, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "//["}):
        assert ours.upload("x.png", picture, headers=headers).status_code == 403
        with httpx.Client(base_url=ours.address, headers=headers) as browser:
            assert submit(browser).status_code == 403
    assert ours.upload("x.png", picture, headers={"Origin": ours.address}).status_code == 200


def test_a_strange_host_name_leads_nowhere(plain: Target, ours: Target) -> None:
    """A name of the attacker's that he lets lead here: his page then is of the same origin."""
    assert plain.get("/config", headers={"Host": "evil.example"}).status_code == 200
    for host in ("evil.example", "", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert ours.get("/api/config", headers={"Host": host}).status_code == 421, host
    for host in (
        "localhost:1",
        "127.0.0.1",
        "192.168.1.7:7860",
        "[::1]:7860",
        socket.gethostname(),
    ):
        assert ours.get("/api/config", headers={"Host": host}).status_code == 200, host


def test_headers_of_a_proxy_do_not_change_the_page(plain: Target, ours: Target) -> None:
    """CVE-2024-47870."""
    forged = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    assert "https://evil.example" in plain.get("/config", headers=forged).text
    for path in ("/config", "/"):
        assert "evil.example" not in ours.get(path, headers=forged).text, path


def test_nobody_is_sent_on_to_another_site(plain: Target, ours: Target) -> None:
    """CVE-2024-4940, CVE-2024-8021."""
    sent = plain.get("/file=https://evil.example/x")
    assert (sent.status_code, sent.headers["location"]) == (302, "https://evil.example/x")
    for address in ("https://evil.example/x", "//evil.example/x", "HTTPS://evil.example"):
        assert ours.get(f"/file={address}").status_code == 403, address
    assert ours.get("//evil.example/%2e%2e").status_code == 404


# --- What is not for users -----------------------------------------------------------------------


def raw_get(target: Target, path: str) -> tuple[int, bytes]:
    """Ask for a path as it is, without what clients tidy up."""
    connection = http.client.HTTPConnection(urlsplit(target.address).netloc, timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_no_source_can_be_read_beside_a_component(plain: Target, ours: Target) -> None:
    """CVE-2024-47166."""
    read = {}
    for target in (plain, ours):
        components = target.get("/config").json()["components"]
        known = next(c["component_class_id"] for c in components if c["type"] == "textbox")
        read[target.address] = raw_get(target, f"/custom_component/{known}/%2e%2e/textbox.py")
    assert read[plain.address][0] == 200
    assert b"class Textbox(" in read[plain.address][1]
    assert read[ours.address][0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/proxy=http://127.0.0.1/x",
        "/component_server",
        "/file//etc/passwd",
        "/file=/etc/passwd",
        "/file=../../etc/passwd",
        "/static/../app.py",
        "/static/css/%2e%2e/%2e%2e/app.py",
        "/assets/%2e%2e/index.html",
        "/run/status",
        "/run/predict/x",
        "/api/predict",
        "/api/submit",
        "/reset",
        "/dev/reload",
        "/stream/a/1/1",
        "/login_check",
        "/token",
        "/startup-events",
        "/queue/status",
    ],
)
def test_what_the_page_does_not_need_is_shut(ours: Target, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        headers = {"Content-Length": "0"}
        answer = ours.request(method, path, headers=headers)
        assert answer.status_code in (403, 404, 405), method


def test_a_choice_is_one_of_those_offered(plain: Target, ours: Target) -> None:
    """GHSA-26jh-r8g2-6fpr."""
    (got,) = plain.call(plain.functions["choose"], ["../../etc"], session="choice")
    assert got == {"got": "../../etc"}
    pictures = [{"path": path} for path in ours.upload("x.png", PORTRAIT.read_bytes()).json()]
    data = [*pictures, None, "A woman", "../../etc", *[None] * 7]
    assert ours.call(ours.functions["submit"], data, session="choice") is None
    with httpx.Client(base_url=ours.address, timeout=PATIENCE_S) as browser:
        refused = submit(browser, tier="../../etc").json()
    assert "expected fast or balanced or high" in refused["error"]["message"]


def test_hidden_functions_give_nothing_that_is_not_for_all(plain: Target, ours: Target) -> None:
    """A function without a name can be called by its number; ours must all be for everybody."""
    hidden = plain.functions[False]
    assert plain.call(hidden, [], session="hidden") == [{"got": "for operators"}]
    made = ours.get("/config").json()["dependencies"]
    for number, function in enumerate(made):
        outcome = json.dumps(ours.call(number, [None] * len(function["inputs"]), f"hidden{number}"))
        assert str(ours.folder) not in outcome.replace(f"{ours.folder}/gradio/", ""), number
    for session in ("", "a b", "x" * 65, "\0", None):
        status = ours.join(ours.functions["status"], ["x"], session).status_code  # type: ignore[arg-type]
        assert status == 422, session
    for number in (len(made), -1, 10**9, "0", 1.5, None, []):
        assert ours.join(number, []).status_code == 422, number  # type: ignore[arg-type]
    for number, function in enumerate(made):
        body = {"data": [None] * len(function["inputs"]), "fn_index": number, "session_hash": "s"}
        other = CALLED[0] if number in ours.direct else CALLED[1]
        refused = ours.post(other, json=body)
        assert (refused.status_code, "other route" in refused.text) == (422, True), number


# --- Floods --------------------------------------------------------------------------------------


def flood(target: Target, function: int, data: list[str], count: int) -> list[httpx.Response]:
    """Ask for a function again and again without looking at the answers."""
    body = {"data": data, "fn_index": function, "session_hash": "flood"}
    with httpx.Client(base_url=target.address, timeout=PATIENCE_S) as client:
        return [client.post("/queue/join", json=body) for _ in range(count)]


def test_the_queue_cannot_be_flooded(plain: Target, tmp_path: Path) -> None:
    assert {a.status_code for a in flood(plain, plain.functions["wait"], [], 150)} == {200}
    installation = Installation(tmp_path, with_page=True)  # with the limits there are by default
    with serve(installation) as address:
        target = Target(address, tmp_path)
        target.learn()
        answers = flood(target, target.functions["status"], ["x"], 150)
        assert {answer.status_code for answer in answers} <= {200, 429, 503}
        taken = sum(answer.status_code == 200 for answer in answers)
        assert 60 < taken < 130
        assert all("retry-after" in a.headers for a in answers if a.status_code == 429)


def test_passwords_cannot_be_tried_out(plain: Target, tmp_path: Path) -> None:
    guesses = [{"username": "ann", "password": f"guess {n}"} for n in range(14)]
    tried = [plain.post("/locked/login", data=guess).status_code for guess in guesses]
    assert tried == [400] * 14
    access = Access(read_accounts("ann:secret", "test", b"k" * 32))
    with serve(Installation(tmp_path, access=access)) as address:
        answers = [httpx.post(f"{address}/login", data=guess) for guess in guesses]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 4
    assert int(answers[-1].headers["retry-after"]) > 0


def test_every_answer_carries_the_headers(ours: Target) -> None:
    for path in ("/", "/config", "/api/config", "/docs", "/healthz", "/nothing/here"):
        headers = ours.get(path).headers
        policy = headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff", path
        assert "default-src 'self'" in policy, path
        script = next(part for part in policy.split("; ") if part.startswith("script-src"))
        assert "unsafe" not in script, path
        assert headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize("path", [*CALLED, "/login", "/call/status", "/api/group/ceiling"])
def test_what_is_no_upload_is_small_before_it_is_read(ours: Target, path: str) -> None:
    parts = urlsplit(ours.address)
    for kind in ("application/json", "multipart/form-data; boundary=b"):
        with socket.create_connection(
            (parts.hostname, parts.port), timeout=PATIENCE_S
        ) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {kind}\r\n"
            connection.sendall(f"{head}Content-Length: 1100000\r\n\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")  # no byte was sent
