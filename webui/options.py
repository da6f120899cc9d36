"""The options of the application, and who may reach it with them."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from liveavatar.errors import ConfigError
from webui.auth import Accounts, read_accounts

AUTH_VARIABLE = "LIVEAVATAR_AUTH"


class _OneLineParser(argparse.ArgumentParser):
    """A parser that refuses in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the options")


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ConfigError for what is not understood or not safe."""
    options = _build_parser().parse_args(arguments)
    _check_backend(options)
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"port: expected 0 to 65535, got {options.port}")
    return options


def _build_parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="app.py",
        description="Upload a portrait and a speech, watch it talk while it is made.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", default="demo", help="checkpoint folder, or demo: the small one that is bundled")
    add("--lora_path_dmd", "--lora", dest="lora", type=Path, help="adapter file or folder")
    add("--host", default="127.0.0.1", help="address to listen at; default only this machine")
    add("--port", type=int, default=7860, help="default 7860; 0 for any free one")
    add("--share", action="store_true", help="a public link through Gradio's tunnel")
    add("--share-server", metavar="HOST:PORT", help="tunnel server of your own, with --share")
    add("--auth", metavar="USER:PASSWORD", help=f"ask to log in; better: --auth-file, or "
        f"the variable {AUTH_VARIABLE}")  # fmt: skip
    add("--auth-file", type=Path, help="file with a line USER:PASSWORD for each who may log in")
    add("--allow-open", action="store_true", help="let everybody in who can reach --host or a link")
    add("--allow-host", action="append", default=[], metavar="NAME",
        help="name under which a proxy asks for this server")  # fmt: skip
    add("--behind-proxy", action="store_true", help="believe X-Forwarded-* headers of a proxy")
    add("--data-dir", type=Path, default=Path("data"), help="where jobs are kept; default data")
    add("--database", metavar="URL", help="job database; default SQLite in --data-dir")
    add("--storage", metavar="URL", help="with --backend ray, for machines that share no folder: "
        "where jobs are kept, such as s3://bucket/prefix")  # fmt: skip
    add("--config", type=Path, metavar="FILE", help="TOML file: tiers, limits, features")
    add("--test-picture", action="store_true", help="a moving test picture in place of a model")
    add("--backend", choices=("local", "ray"), default="local", help="worker group: one in this "
        "program, or on the machines of a Ray cluster; default local")  # fmt: skip
    add("--groups", type=int, metavar="N", help="with --backend ray: make sure of so many worker "
        "groups; without it, only the pages are served")  # fmt: skip
    add("--ray-address", metavar="HOST:PORT", help="cluster for --groups; default: one of this "
        "machine, which ends with this program")  # fmt: skip
    add("--group-gpus", type=int, metavar="N", help="cards of each group; default 4, and 0 for "
        "the demo")  # fmt: skip
    add("--group-cpus", type=int, metavar="N", help="cores that Ray sets aside for each group; "
        "default 4, and 1 without cards")  # fmt: skip
    return parser


def _check_backend(options: argparse.Namespace) -> None:
    names = ("groups", "ray_address", "group_gpus", "group_cpus")
    given = [name for name in names if getattr(options, name) is not None]
    if given and options.backend != "ray":
        raise ConfigError(f"{given[0]}: only with --backend ray")
    if options.storage is not None and options.backend != "ray":
        raise ConfigError("storage: only with --backend ray")
    if options.storage is not None and options.database is None:
        raise ConfigError("storage: needs --database URL, a database that all machines reach")
    if given and options.groups is None:
        raise ConfigError(f"{given[0]}: only with --groups N")
    if given and not 1 <= options.groups <= 10_000:
        raise ConfigError(f"groups: expected 1 to 10000, got {options.groups}")


def accounts_of(
    options: argparse.Namespace, key: bytes, environment: Mapping[str, str] = os.environ
) -> Accounts | None:
    """Who may log in; None when everybody is let in.

    Raises:
        ConfigError: the accounts cannot be read; or others than this machine reach the server,
            nobody has to log in, and that was not asked for in so many words.
    """
    given = [
        (options.auth, "auth"),
        (_text_of(options.auth_file), "auth_file"),
        (environment.get(AUTH_VARIABLE), AUTH_VARIABLE),
    ]
    stated = [(text, source) for text, source in given if text is not None]
    if len(stated) > 1:
        raise ConfigError(f"auth: expected once, got {' and '.join(name for _, name in stated)}")
    if stated:
        return read_accounts(*stated[0], key)
    if not options.allow_open and (options.share or not _is_local(options.host)):
        reach = "--share" if options.share else f"--host {options.host}"
        raise ConfigError(
            f"auth: {reach} lets others in; add --auth-file FILE so that they log in, or "
            "--allow-open if everybody may use this server"
        )
    return None


def _text_of(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"auth_file: '{path}' cannot be read: {error}") from None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
