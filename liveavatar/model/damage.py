"""What is wrong with a file of a checkpoint, as one line that names it."""

import json
from pathlib import Path
from typing import Any, NoReturn

from liveavatar.errors import CheckpointError

JSON_LIMIT_BYTES = 64 * 2**20


def one_line(text: str) -> str:
    """Return text from elsewhere on one line of bounded length."""
    words = " ".join(text.split())
    return words if len(words) <= 160 else words[:157] + "..."


def reason(error: BaseException) -> str:
    """Return what an error says, on one line."""
    return one_line(f"{type(error).__name__}: {error}")


def damaged(path: Path, error: BaseException) -> NoReturn:
    """Raise CheckpointError: the file cannot be understood."""
    raise CheckpointError(
        f"{path} is damaged or incomplete ({reason(error)}): fetch it again"
    ) from error


def first_bytes(path: Path) -> bytes:
    """Return the start of a file, after refusing what cannot be part of a checkpoint.

    Raises:
        CheckpointError: missing, a folder, unreadable, empty, a git-lfs pointer, a web page.
    """
    try:
        if not path.exists():
            raise CheckpointError(f"{path} is missing: fetch it")
        if not path.is_file():  # a folder, or something whose reading may never end
            raise CheckpointError(f"{path} is a folder or a device, expected a file")
        with path.open("rb") as file:
            start = file.read(512)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from error
    if not start:
        raise CheckpointError(f"{path} has zero bytes: fetch it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a git-lfs pointer, not the file it stands for: fetch the real file, "
            "for example with 'git lfs pull'"
        )
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        raise CheckpointError(f"{path} is a web page saved under that name: fetch the real file")
    return start


def read_json_table(path: Path) -> dict[str, Any]:
    """Read a JSON file of a checkpoint, such as `config.json`, whose top level is a table.

    Raises:
        CheckpointError: missing, damaged, not JSON, not a table or implausibly large.
    """
    first_bytes(path)
    try:
        if path.stat().st_size > JSON_LIMIT_BYTES:
            raise CheckpointError(f"{path} is larger than 64 MiB: it is not the file expected here")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({reason(error)}): fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON table of names and values: fetch it again")
    return content


def changed_since(path: Path, name: str, error: BaseException) -> NoReturn:
    """Raise CheckpointError: a tensor that was there is there no more."""
    raise CheckpointError(
        f"tensor '{name}' cannot be read from {path} ({reason(error)}): "
        "the file was removed, replaced or cut since it was opened"
    ) from error
