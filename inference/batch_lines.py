"""The lines of a batch: one JSON object each, read and checked one by one.

    {"portrait": "a.png", "audio": "a.wav", "prompt": "A woman talks ...", "tier": "fast"}

Optional keys: seed, clips (as many as the speech needs by default), output. Paths are relative to
the folder of the file. Empty lines, and lines that begin with #, are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liveavatar.errors import ConfigError, RequestError

_TEXTS = ("portrait", "audio", "prompt", "tier")
_OPTIONAL: dict[str, type] = {"seed": int, "clips": int, "output": str}
_MOST_BYTES = 50_000_000


@dataclass(frozen=True)
class Line:
    """What one line asks for.

    Attributes:
        number: in the file, from 1.
        portrait, audio: input files.
        prompt: not yet checked.
        tier: name, not yet checked.
        seed, clips: None where the line says nothing.
        output: MP4 to write.
    """

    number: int
    portrait: Path
    audio: Path
    prompt: str
    tier: str
    seed: int | None
    clips: int | None
    output: Path


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers.

    Raises:
        ConfigError: the file cannot be read, or holds no line.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"batch: '{path}' is larger than {_MOST_BYTES / 1e6:g} MB; split it")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"batch: '{path}' cannot be read: {error}") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise ConfigError(f"batch: '{path}' is empty; expected a JSON object a line")
    yield from lines


def parse_line(number: int, text: str, batch: Path) -> Line:
    """Read one line of the file `batch`.

    Raises:
        RequestError: it is no such object; says which key and what was expected.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"expected a JSON object on one line: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(f"expected a JSON object, got {type(value).__name__}")
    _check_keys(value)
    folder = batch.parent
    output = value.get("output", f"{batch.stem}-{number:03d}.mp4")
    return Line(
        number,
        folder / value["portrait"],
        folder / value["audio"],
        value["prompt"],
        value["tier"],
        value.get("seed"),
        value.get("clips"),
        folder / output,
    )


def _check_keys(value: dict[str, Any]) -> None:
    kinds: dict[str, type] = {**dict.fromkeys(_TEXTS, str), **_OPTIONAL}
    if missing := [name for name in _TEXTS if name not in value]:
        raise RequestError(f"expected the keys {', '.join(_TEXTS)}; missing: {', '.join(missing)}")
    for name, given in value.items():
        if name not in kinds:
            raise RequestError(f"{name[:40]}: is not known; expected {', '.join(kinds)}")
        if type(given) is not kinds[name]:
            expected = "a whole number" if kinds[name] is int else "text"
            raise RequestError(f"{name}: expected {expected}, got {json.dumps(given)[:40]}")
        if isinstance(given, str) and "\0" in given:
            raise RequestError(f"{name}: has a null character; remove it")
