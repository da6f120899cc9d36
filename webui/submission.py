"""A form as it came in, and the reading of its texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from liveavatar.errors import RequestError
from liveavatar.request import parse_size
from webui.offers import Choice

_MAX_KEY = 200


@dataclass(frozen=True)
class Submission:
    """A form as it came in; texts of numbers are read here, so that errors name their field.

    Attributes:
        portrait, speech: uploaded files, or None where none was given.
        prompt, tier, size, title, idempotency_key: texts; empty where not given.
        num_clip, infer_frames, sample_steps, seed: whole numbers or their texts; None or empty
            leaves the tier's value, and draws a seed.
        online_decode: true or false or their texts; None or empty leaves the tier's value.
    """

    portrait: Path | None
    speech: Path | None
    prompt: str
    tier: str
    num_clip: int | str | None = None
    infer_frames: int | str | None = None
    sample_steps: int | str | None = None
    seed: int | str | None = None
    online_decode: bool | str | None = None
    size: str = ""
    title: str = ""
    idempotency_key: str = ""

    def missing(self) -> list[RequestError]:
        """What it lacks, in the order of the page."""
        texts = []
        if self.portrait is None:
            texts.append("portrait: no file was given; choose a picture")
        if self.speech is None:
            texts.append("speech: no file was given; choose a sound file or record one")
        if not self.prompt.strip():
            texts.append(
                "prompt: it is empty; describe the person, the action and the surroundings"
            )
        return [RequestError(text) for text in texts]

    def files(self) -> tuple[Path, Path]:
        """Portrait and speech; RequestError names the first thing that is missing."""
        for error in self.missing():
            raise error
        assert self.portrait is not None
        assert self.speech is not None
        return self.portrait, self.speech

    def choice(self) -> Choice:
        """Read numbers and size; RequestError names the first field that is not understood."""
        if len(self.idempotency_key) > _MAX_KEY:
            raise RequestError(f"idempotency_key: expected at most {_MAX_KEY} characters")
        return Choice(
            tier=self.tier,
            num_clip=_whole("num_clip", self.num_clip),
            infer_frames=_whole("infer_frames", self.infer_frames),
            sample_steps=_whole("sample_steps", self.sample_steps),
            seed=_whole("seed", self.seed),
            online_decode=_truth("online_decode", self.online_decode),
            size=parse_size(self.size) if self.size else None,
        )


def _whole(name: str, value: int | str | None) -> int | None:
    if value is None or value == "":
        return None
    text = str(value).strip()
    if isinstance(value, bool) or not text.lstrip("-").isdecimal() or len(text) > 20:
        raise RequestError(f"{name}: expected a whole number, got {text[:40]!r}")
    return int(text)


def _truth(name: str, value: bool | str | None) -> bool | None:
    if value is None or value == "":
        return None
    known = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
    word = str(value).strip().lower()
    if word not in known:
        raise RequestError(f"{name}: expected true or false, got {word[:40]!r}")
    return known[word]
