"""Checkpoint, static files, port, encoder, page: broken in turn; and the doctor as a command."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from liveavatar.doctor import app, model, page
from liveavatar.doctor.child import Outcome
from liveavatar.doctor.finding import Finding
from liveavatar.doctor.open_model import open_model
from liveavatar.random_checkpoint import write_adapter, write_checkpoint
from tests.patience import PATIENCE_S
from tests.web.live_server import Installation, serve

ROOT = Path(__file__).resolve().parents[2]


# --- Checkpoint ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("doctor") / "tiny"
    write_checkpoint(directory)
    return directory


def judge(directory: Path, adapter: Path | None = None) -> list[Finding]:
    """Findings about a checkpoint, opened in this process to save the start of another."""
    return list(model.judge(Outcome(open_model(directory, adapter), ""), directory, adapter))


def test_a_complete_checkpoint_with_its_adapter(tiny: Path, tmp_path: Path) -> None:
    found, adapter = judge(tiny, write_adapter(tmp_path / "adapter"))
    assert (found.status, adapter.status) == ("ok", "ok")
    assert "4 layers of width 64" in found.found
    assert judge(tiny)[1].status == "skip"


@pytest.mark.parametrize(
    ("name", "content", "found", "cure"),
    [
        ("config.json", None, "config.json missing", "fetch the file"),
        ("Wan2.1_VAE.pth", None, "Wan2.1_VAE.pth missing", "fetch the file"),
        ("Wan2.1_VAE.pth", b"PK\x03\x04 cut off", "damaged", "--hashes"),
        ("models_t5_umt5-xxl-enc-bf16.pth", b"", "zero bytes", "fetch the file"),
        (
            "diffusion_pytorch_model-00001-of-00002.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            "git-lfs pointer",
            "git lfs pull",
        ),
        ("diffusion_pytorch_model-00002-of-00002.safetensors", None, "00002", "fetch the file"),
    ],
)
def test_a_checkpoint_with_a_broken_part(
    tiny: Path, tmp_path: Path, name: str, content: bytes | None, found: str, cure: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / name).unlink()
    if content is not None:
        (broken / name).write_bytes(content)
    (finding,) = judge(broken)
    assert finding.status == "fail"
    assert found in finding.found
    assert cure in finding.cure


def test_an_adapter_of_another_network(tiny: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path)
    adapter.write_bytes((tiny / "wav2vec2-large-xlsr-53-english/model.safetensors").read_bytes())
    finding = judge(tiny, adapter)[1]
    assert (finding.name, finding.status) == ("adapter", "fail")
    assert "expected 48 adapter pairs" in finding.found
    assert "made for this checkpoint" in finding.cure


def test_the_large_network_without_its_adapter_is_warned_of() -> None:
    facts = {"problem": "", "layers": 40, "dim": 5120, "tensors": 1, "adapter_problem": ""}
    warning = list(model.judge(Outcome(facts, ""), Path("wan"), None))[1]
    assert (warning.name, warning.status) == ("adapter", "warn")
    assert "python -m liveavatar.download --only adapter" in warning.cure


def test_a_reader_that_dies_is_said() -> None:
    (finding,) = model.judge(Outcome(None, "Killed"), Path("wan"), None)
    assert finding.status == "fail"
    assert "Killed" in finding.found


def test_no_checkpoint_half_of_one_and_no_such_folder(tmp_path: Path) -> None:
    (none,) = model.check_folder(None)
    assert none.status == "warn"
    assert "Wan-AI/Wan2.2-S2V-14B" in none.cure
    (tmp_path / "weights.safetensors.part").write_text("")
    (half,) = model.check_folder(tmp_path)
    assert (half.status, "half downloaded" in half.found) == ("fail", True)
    (finding,) = judge(tmp_path / "nowhere")
    assert "expected a checkpoint folder" in finding.found
    assert "--model" in finding.cure


def test_the_largest_checkpoint_that_is_there_is_meant(tmp_path: Path) -> None:
    assert model.find_model(None, tmp_path) is None
    (tmp_path / model.DEMO).mkdir(parents=True)
    assert model.find_model(None, tmp_path) == tmp_path / model.DEMO
    published = tmp_path / model.PUBLISHED
    published.mkdir()
    assert model.find_model(None, tmp_path) == published
    assert model.find_model("demo", tmp_path) == tmp_path / model.DEMO
    assert model.find_model("other", tmp_path) == Path("other")
    assert model.find_adapter(None, published, tmp_path) is None
    (tmp_path / model.ADAPTER).mkdir()
    assert model.find_adapter(None, published, tmp_path) == tmp_path / model.ADAPTER
    assert model.find_adapter(None, tmp_path / model.DEMO, tmp_path) is None


def test_hashes_find_the_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 3_000_000)
    (tmp_path / "b").write_bytes(b"b")
    listed = tmp_path / "SHA256SUMS"
    lines = [f"{hashlib.sha256((tmp_path / n).read_bytes()).hexdigest()}  {n}\n" for n in "ab"]
    listed.write_text("".join(lines))
    assert [f.status for f in model.check_hashes(tmp_path, listed)] == ["ok"]
    (tmp_path / "b").write_bytes(b"c")
    (finding,) = model.check_hashes(tmp_path, listed)
    assert finding.found == "1 of 2 files are missing or damaged: b"
    assert list(model.check_hashes(tmp_path, None)) == []
    assert [f.status for f in model.check_hashes(None, listed)] == ["skip"]
    assert [f.status for f in model.check_hashes(tmp_path, tmp_path / "b")] == ["fail"]
    assert [f.status for f in model.check_hashes(tmp_path, tmp_path / "none")] == ["fail"]


# --- Application ---------------------------------------------------------------------------------


def test_static_folders(tmp_path: Path) -> None:
    for name in app.STATIC_FOLDERS:
        (tmp_path / "static" / name).mkdir(parents=True)
        (tmp_path / "static" / name / ".gitkeep").write_text("")
    for name in ("css", "images"):
        (tmp_path / "static" / name / "file").write_text("x")
    finding = app.check_static(tmp_path)
    assert (finding.status, "static/js;" in finding.found) == ("fail", True)
    assert "git checkout -- static" in finding.cure
    (tmp_path / "static/js/page.js").write_text("x")
    assert app.check_static(tmp_path).status == "ok"


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        finding = app.check_port("127.0.0.1", port, is_ours=False)
        assert app.check_port("127.0.0.1", port, is_ours=True).status == "ok"
    assert finding.status == "fail"
    assert f"--port {port + 1}" in finding.cure
    assert app.check_port("127.0.0.1", port, is_ours=False).status == "ok"
    assert app.check_port("256.0.0.1", 7860, is_ours=False).status == "fail"


def test_the_encoder_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "12 frames" in app.check_encoder().found
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    refused = app.check_encoder()
    assert refused.status == "fail"
    assert "av==17.1.0" in refused.cure


Pages = dict[str, tuple[int, str, bytes]]
HEALTH = json.dumps({"status": "ok", "group": "ready"}).encode()
WHOLE: Pages = {
    "/healthz": (200, "application/json", HEALTH),
    "/": (
        200,
        "text/html",
        b'gradio_config <link href="/static/css/page.css?v=0a"> /static/js/p.js',
    ),
    "/?__theme=dark": (200, "text/html", b"gradio"),
    "/config": (200, "application/json", b"{}"),
    "/info": (200, "application/json", b"{}"),
    "/theme.css": (200, "text/css", b":root {}"),
    "/static/css/page.css?v=0a": (200, "text/css; charset=utf-8", b"x"),
    "/static/js/p.js": (200, "text/javascript", b"x"),
}


@contextlib.contextmanager
def server_of(pages: Pages) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = pages.get(self.path, (404, "text/plain", b""))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def bad(base: str) -> list[Finding]:
    return [finding for finding in page.check_page(base) if finding.status != "ok"]


def test_a_page_that_is_whole() -> None:
    with server_of(WHOLE) as base:
        assert page.is_ours(base)
        assert bad(base) == []
    assert not page.is_ours(base)  # nobody answers any more


@pytest.mark.parametrize(
    ("path", "answer", "name", "found", "cure"),
    [
        ("/", (500, "text/html", b""), "page", "answered 500", "log of app.py"),
        ("/", (200, "text/html", b"nginx"), "page", "no Gradio page", "log of app.py"),
        ("/info", (500, "text/html", b""), "page", "no button works", "pydantic"),
        ("/config", (404, "text/html", b""), "page", "cannot build itself", "proxy"),
        ("/theme.css", (404, "text/css", b""), "theme", "answered 404", "Ctrl+Shift+R"),
        ("/static/js/p.js", (404, "", b""), "assets", "/static/js/p.js (404", "proxy"),
        ("/static/js/p.js", (200, "text/html", b""), "assets", "200 text/html", "proxy"),
        ("/", (200, "text/html", b"gradio"), "assets", "names none", "Ctrl+Shift+R"),
    ],
)
def test_a_page_that_stays_blank(
    path: str, answer: tuple[int, str, bytes], name: str, found: str, cure: str
) -> None:
    with server_of(WHOLE | {path: answer}) as base:
        (finding,) = bad(base)
    assert finding.name == name
    assert found in finding.found
    assert cure in finding.cure


def test_a_page_behind_a_login() -> None:
    error = json.dumps({"error": {"field": None, "message": "log in"}}).encode()
    login = (401, "application/json", error)
    health = (200, "application/json", b'{"status": "ok"}')
    with server_of({"/healthz": health, "/": login}) as base:
        assert page.is_ours(base)
        assert [finding.status for finding in bad(base)] == ["skip"]
    with server_of({"/healthz": (200, "text/html", b"another program")}) as base:
        assert not page.is_ours(base)


@pytest.mark.filterwarnings("ignore")  # Gradio uses what is deprecated
def test_the_page_of_the_application_itself(tmp_path: Path) -> None:
    with serve(Installation(tmp_path, with_page=True)) as base:
        assert page.is_ours(base)
        findings = list(page.check_page(base))
    assert [finding for finding in findings if finding.status == "fail"] == []
    assert {"page", "theme", "assets"} <= {finding.name for finding in findings}


# --- The command ---------------------------------------------------------------------------------


def doctor(*options: str, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "liveavatar.doctor", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_the_whole_examination_as_a_command(tiny: Path, tmp_path: Path) -> None:
    """One run for all that needs every program: JSON, status, that nothing is left running."""
    adapter = write_adapter(tmp_path / "adapter")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        options = ["--model", str(tiny), "--lora_path_dmd", str(adapter), "--port", str(port)]
        started = time.monotonic()
        done = doctor(*options, "--data-dir", str(tmp_path), "--json")
    report = json.loads(done.stdout)
    assert report["seconds"] <= time.monotonic() - started
    by_name = {finding["name"]: finding for finding in report["findings"]}
    assert (done.returncode, report["status"]) == (1, "fail"), done.stderr
    assert by_name["port"]["status"] == "fail"
    for name in ("python", "packages", "torch", "checkpoint", "adapter", "video encoder"):
        assert by_name[name]["status"] == "ok", by_name[name]
    groups = [finding["group"] for finding in report["findings"]]
    wanted = ["hardware", "software", "network", "model", "application"]
    assert list(dict.fromkeys(groups)) == wanted
    for finding in report["findings"]:
        assert bool(finding["cure"]) == (finding["status"] in ("warn", "fail"))


def test_the_doctor_speaks_where_no_package_is_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-m", "liveavatar.doctor", "--json", "--data-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1, done.stderr
    by_name = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert by_name["python"]["status"] == "ok"
    for name in ("gpus", "packages", "video encoder"):
        assert by_name[name]["status"] == "fail", by_name[name]
        assert "pip install -r requirements.txt" in by_name[name]["cure"]


def test_the_doctor_itself_loads_no_torch() -> None:
    code = "import liveavatar.doctor.__main__, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\n", done.stderr


def test_options_that_are_not_known_are_refused() -> None:
    assert doctor("--nonsense").returncode == 2
