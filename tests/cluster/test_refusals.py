"""What command and application say where there is no cluster, or what is asked for is not sound."""

from __future__ import annotations

import re

import pytest

from liveavatar.cluster.__main__ import main
from liveavatar.cluster.order import Share
from liveavatar.errors import ConfigError
from webui.options import read_options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "--ray-address", "127.0.0.1:1"], "answers at '127.0.0.1:1': .*refused"),
        (["status", "--ray-address", "nowhere"], "answers at 'nowhere': Invalid address"),
        (["grow", "-1"], "number: expected 0 to 10000, got -1"),
    ],
)
def test_the_command_ends_at_once_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)


def test_the_command_names_what_to_install_where_ray_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert main(["status"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Ray is not installed; ")
    assert "requirements-ray.txt" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "2"], "groups: only with --backend ray"),
        (["--ray-address", "a:1", "--backend", "ray"], "ray_address: only with --groups N"),
        (["--backend", "ray", "--groups", "0"], "groups: expected 1 to 10000, got 0"),
        (["--storage", "s3://videos"], "storage: only with --backend ray"),
        (["--storage", "s3://videos", "--backend", "ray"], "storage: needs --database URL"),
    ],
)
def test_the_application_refuses_options_that_do_not_go_together(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        read_options(arguments)


def test_a_group_takes_cards_and_cores_of_one_machine() -> None:
    assert Share().bundle == {"GPU": 4.0, "CPU": 4.0}
    assert Share(gpus=0, cpus=1).bundle == {"CPU": 1.0}
    with pytest.raises(ConfigError, match=r"^group_gpus: expected 0 or more, got -1"):
        Share(gpus=-1)
