"""What `scripts/audit` makes of advisories: those with a reason pass, the others are shown."""

from __future__ import annotations

import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reported(name: str, number: str, *aliases: str) -> dict[str, Any]:
    """A dependency as pip-audit 2 reports it."""
    found = {"id": number, "aliases": list(aliases), "fix_versions": ["9.9"], "description": "x"}
    return {"name": name, "version": "1.0", "vulns": [found]}


def judged(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], *reports: dict[str, Any]
) -> tuple[int, str]:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"dependencies": list(reports), "fixes": []}))
    return audit.main(["judge", str(path)]), capsys.readouterr().out


def test_what_has_a_reason_passes(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = judged(
        audit,
        tmp_path,
        capsys,
        reported("gradio", "PYSEC-2024-1", "CVE-2024-4325", "GHSA-x"),
        reported("Pillow", "CVE-2026-25990"),
        {"name": "anyio", "version": "4", "vulns": []},
        {"name": "ours", "skip_reason": "not found"},
    )
    assert status == 0
    assert said.splitlines() == [
        "audit: nothing is known about ours",
        "audit: 3 packages, 0 advisories without a reason in advisories.toml",
    ]


def test_what_has_none_is_shown_and_fails(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The reason of one package counts for no other one.
    status, said = judged(audit, tmp_path, capsys, reported("anyio", "CVE-2026-25990", "GHSA-y"))
    assert status == 1
    assert said.startswith("audit: anyio 1.0: CVE-2026-25990 GHSA-y (fixed in 9.9)\n")


def test_a_tool_that_said_nothing_is_not_taken_for_a_clean_answer(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text("")
    assert audit.main(["judge", str(tmp_path / "report.json")]) == 0
    assert "could not be asked" in capsys.readouterr().out


@pytest.fixture
def index(request: pytest.FixtureRequest) -> Iterator[str]:
    """An index that answers with the parameter."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(request.param)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test output clean."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize(
    ("index", "answers"),
    [(b'{"vulnerabilities": [{"id": "x"}]}', True), (b'{"vulnerabilities": []}', False),
     (b"{}", False), (b"no JSON", False)],
    indirect=["index"],
)  # fmt: skip
def test_an_index_without_advisories_is_not_asked(
    audit: ModuleType, index: str, answers: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.is_reachable(index) is answers
    assert ("nothing is known" in capsys.readouterr().out) is not answers


def test_nobody_there_is_said_so(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert not audit.is_reachable("http://127.0.0.1:1/")
    assert "could not be asked" in capsys.readouterr().out


def test_every_reason_is_about_a_package_that_is_pinned(audit: ModuleType) -> None:
    known = audit.reasons(ROOT / "constraints" / "advisories.toml")
    pinned = (ROOT / "constraints" / "python3.11.txt").read_text().lower()
    assert known.keys() == {"gradio", "pillow", "starlette", "transformers"}
    assert all(f"\n{package}==" in pinned for package in known)
    assert len(known["gradio"]) > 20
