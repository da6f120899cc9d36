"""Who may reach the server: safe unless somebody says otherwise in so many words."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveavatar.errors import ConfigError
from webui.options import accounts_of, read_options


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_this_machine_nobody_logs_in(host: str) -> None:
    assert accounts_of(read_options(["--host", host]), b"k", {}) is None


@pytest.mark.parametrize(
    ("arguments", "reach"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0"),
        (["--host", "::"], "--host ::"),
        (["--host", "192.168.1.7"], "--host 192.168.1.7"),
        (["--host", "example.org"], "--host example.org"),
        (["--share"], "--share"),
    ],
)
def test_others_are_let_in_only_when_that_is_said(arguments: list[str], reach: str) -> None:
    with pytest.raises(ConfigError) as caught:
        accounts_of(read_options(arguments), b"k", {})
    assert str(caught.value).startswith(f"auth: {reach} lets others in; add --auth-file")
    assert accounts_of(read_options([*arguments, "--allow-open"]), b"k", {}) is None
    accounts = accounts_of(read_options([*arguments, "--auth", "ann:secret"]), b"k", {})
    assert accounts is not None
    assert accounts.check("ann", "secret")


def test_accounts_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_text("ann:a:b\n\nbob:c\n")
    from_file = accounts_of(read_options(["--auth-file", str(path)]), b"k", {})
    assert from_file is not None
    assert from_file.check("ann", "a:b")
    assert from_file.check("bob", "c")
    assert not from_file.check("bob", "a:b")
    from_variable = accounts_of(read_options([]), b"k", {"LIVEAVATAR_AUTH": "cat:d"})
    assert from_variable is not None
    assert from_variable.check("cat", "d")
    both = read_options(["--auth", "ann:secret", "--auth-file", str(path)])
    with pytest.raises(ConfigError, match=r"^auth: expected once, got auth and auth_file$"):
        accounts_of(both, b"k", {})
    with pytest.raises(ConfigError, match=r"^auth_file: '.*none' cannot be read"):
        accounts_of(read_options(["--auth-file", str(tmp_path / "none")]), b"k", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "x"], "invalid int value"),
        (["--port", "70000"], "port: expected 0 to 65535"),
        (["--nonsense"], "unrecognized arguments"),
        (["--mod", "demo"], "unrecognized arguments"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_options(arguments)
    assert "\n" not in str(caught.value)
