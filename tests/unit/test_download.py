"""The download against a hub on this machine that breaks off, lies, or is not there."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from liveavatar import download
from liveavatar.download import SOURCES, main
from liveavatar.model import checkpoint

COMMIT = "a" * 40
LARGE = "diffusion_pytorch_model-00001-of-00002.safetensors"
FILES = {
    "Wan-AI/Wan2.2-S2V-14B": {
        "config.json": b"{}",
        LARGE: bytes(range(256)) * 100_000,  # the client writes pieces of 10 MB
        "diffusion_pytorch_model.safetensors.index.json": b'{"weight_map": {}}',
        "models_t5_umt5-xxl-enc-bf16.pth": b"t5" * 500,
        "google/umt5-xxl/tokenizer.json": b"{}",
        "google/umt5-xxl/spiece.model": b"not read here",
        "wav2vec2-large-xlsr-53-english/config.json": b"{}",
        "wav2vec2-large-xlsr-53-english/model.safetensors": b"speech" * 100,
        "wav2vec2-large-xlsr-53-english/flax_model.msgpack": b"not read here",
        "Wan2.1_VAE.pth": b"vae" * 100,
        "assets/logo.png": b"not read here",
    },
    "Quark-Vision/Live-Avatar": {"liveavatar.safetensors": b"adapter" * 100, "README.md": b"-"},
}


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that is used, with faults."""

    state: SimpleNamespace

    def log_message(self, *_words: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        listing = re.match(r"/api/models/([^/]+/[^/?]+)(?:\?|$)", self.path)
        resolved = re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        if listing:
            self._send(json.dumps(self._listing(listing[1])).encode(), {}, with_body=with_body)
        elif resolved:
            content = FILES[resolved[1]][resolved[2]]
            if with_body:
                self.state.fetched.append((resolved[2], self.headers.get("Range")))
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            self._send(content, headers, with_body=with_body, name=resolved[2])

    def _listing(self, repository: str) -> dict[str, object]:
        siblings = []
        for name, content in FILES[repository].items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content)}
            if name.endswith((".safetensors", ".pth")):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": repository, "sha": COMMIT, "siblings": siblings}

    def _send(
        self, content: bytes, headers: dict[str, str], *, with_body: bool, name: str = ""
    ) -> None:
        start = 0
        if span := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(span[1])
        body = content[start:]
        if name and name == self.state.damaged:
            body = bytes(len(body))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body:
            return
        if name == LARGE and self.state.breaks:
            self.state.breaks -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.shutdown(2)
            return
        self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[SimpleNamespace]:
    state = SimpleNamespace(fetched=[], breaks=0, damaged="")
    handler = type("HubOfThisTest", (Hub,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join(10)


def options(hub: SimpleNamespace, folder: Path, *more: str) -> list[str]:
    return ["--to", str(folder), "--endpoint", hub.address, *more]


def there(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def test_a_dry_run_lists_sizes_and_room_and_fetches_nothing(
    hub: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(hub, tmp_path / "ckpt", "--dry-run")) == 0
    said = capsys.readouterr().out
    assert said.count("missing") == 9
    assert "9 files" in said
    assert "GiB free at" in said
    assert "flax" not in said
    assert not hub.fetched
    assert not (tmp_path / "ckpt").exists()


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(
    hub: SimpleNamespace, tmp_path: Path
) -> None:
    hub.breaks = 1
    assert main(options(hub, tmp_path)) == 0
    spans = [span for name, span in hub.fetched if name == LARGE]
    assert len(spans) == 2
    assert re.fullmatch(r"bytes=[1-9]\d*-.*", spans[1])  # not from the start
    base = tmp_path / "Wan2.2-S2V-14B"
    assert (base / LARGE).read_bytes() == FILES["Wan-AI/Wan2.2-S2V-14B"][LARGE]
    assert "LiveAvatar/liveavatar.safetensors" in there(tmp_path)
    assert not [name for name in there(tmp_path) if "flax" in name or "logo" in name]
    hub.fetched.clear()
    assert main(options(hub, tmp_path, "--verify")) == 0
    assert not hub.fetched  # nothing is fetched twice


def test_a_damaged_file_is_named_and_fetched_again(
    hub: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.damaged = "liveavatar.safetensors"
    assert main(options(hub, tmp_path, "--only", "adapter")) == 1
    assert "liveavatar.safetensors: is damaged" in capsys.readouterr().err
    assert there(tmp_path) == set()
    hub.damaged = ""
    assert main(options(hub, tmp_path, "--only", "adapter")) == 0
    adapter = tmp_path / "LiveAvatar/liveavatar.safetensors"
    adapter.write_bytes(bytes(adapter.stat().st_size))
    assert main(options(hub, tmp_path, "--only", "adapter", "--verify")) == 1
    assert main(options(hub, tmp_path, "--only", "adapter", "--verify")) == 0


def test_what_cannot_work_is_one_line(
    hub: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "_SPARE_BYTES", 2**60)
    assert main(options(hub, tmp_path)) == 2
    assert "name another folder with --to" in capsys.readouterr().err
    assert main(["--to", str(tmp_path), "--endpoint", "http://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: the hub cannot be reached (")
    assert "run the command again" in error


def test_every_file_that_a_checkpoint_is_read_from_is_fetched() -> None:
    patterns = SOURCES[0].patterns
    for name in (checkpoint.TRANSFORMER_INDEX, checkpoint.TEXT_ENCODER, checkpoint.VAE):
        assert name in patterns
    for folder in (checkpoint.TOKENIZER, checkpoint.SPEECH_ENCODER):
        assert any(pattern.startswith(f"{folder}/") for pattern in patterns)
