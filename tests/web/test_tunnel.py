"""The public link, with a program that speaks as Gradio's tunnel does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveavatar.errors import ConfigError
from tests.web.live_server import wait_until
from webui.tunnel import host_of, public_link

pytestmark = pytest.mark.filterwarnings("ignore")  # Gradio uses what is deprecated

WORKS = """#!/bin/sh
echo "$@" > "$(dirname "$0")/arguments"
echo $$ > "$(dirname "$0")/pid"
echo "[I] login to server success"
echo "[I] start proxy success: https://abc.example.live"
exec sleep 60
"""
FAILS = "#!/bin/sh\necho 'login to server failed: dial tcp: refused'\nexec sleep 60\n"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    from gradio import tunneling

    path = tmp_path / "frpc"
    monkeypatch.setattr(tunneling, "BINARY_PATH", str(path))
    yield path
    assert all(tunnel.proc is None for tunnel in tunneling.CURRENT_TUNNELS)


def write(program: Path, text: str) -> None:
    program.write_text(text)
    program.chmod(0o755)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[:1]


def test_the_link_is_there_and_ends_with_the_block(program: Path) -> None:
    write(program, WORKS)
    with public_link(7860, "frps.example:7000") as address:
        assert address == "https://abc.example.live"
        assert host_of(address) == "abc.example.live"
        asked = (program.parent / "arguments").read_text()
        assert "-l 7860 -i 127.0.0.1" in asked
        assert "--server_addr frps.example:7000" in asked
        pid = int((program.parent / "pid").read_text())
        assert is_running(pid)
    wait_until(lambda: not is_running(pid), "the program has ended")


def test_an_error_in_the_block_ends_the_tunnel_too(program: Path) -> None:
    write(program, WORKS)
    with pytest.raises(ZeroDivisionError), public_link(7860, "frps.example:7000"):
        raise ZeroDivisionError
    assert not is_running(int((program.parent / "pid").read_text()))


def test_a_tunnel_that_cannot_be_opened_says_why(program: Path) -> None:
    write(program, FAILS)
    with (
        pytest.raises(ConfigError, match=r"^share: no link .* frps\.example:7000: .*refused"),
        public_link(7860, "frps.example:7000"),
    ):
        pytest.fail("there is no link")


def test_a_missing_program_is_told_with_its_cure(program: Path) -> None:
    with pytest.raises(ConfigError) as caught, public_link(7860, "frps.example:7000"):
        pytest.fail("there is no link")
    text = str(caught.value)
    assert text.startswith("share: the tunnel program is missing; fetch https://")
    assert str(program) in text
    assert "chmod +x" in text
    program.write_text(WORKS)
    program.chmod(0o644)
    with pytest.raises(ConfigError, match="cannot be executed"), public_link(1, "a.example:1"):
        pytest.fail("there is no link")


@pytest.mark.parametrize("server", ["frps.example", "frps.example:x", "a b:1", "http://x:1"])
def test_a_server_is_a_host_and_a_port(program: Path, server: str) -> None:
    write(program, WORKS)
    with (
        pytest.raises(ConfigError, match="share_server: expected HOST:PORT"),
        public_link(1, server),
    ):
        pytest.fail("there is no link")
