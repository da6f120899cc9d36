"""Users' files read in a process of its own: what they do to a decoder, they do not do to a server.

A file of a few kilobytes can make a decoder take gigabytes or minutes, or fail in a way that ends
its process. So a server only asks: here a process with little memory, no secrets in its environment
and no right to write files reads them, and is ended when it takes too long. Question and answer are
lines of JSON.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from liveavatar.config import SPEECH_RATE_HZ
from liveavatar.errors import MediaError
from liveavatar.media.notes import Field, Note
from liveavatar.media.portrait import PortraitLimits
from liveavatar.media.sound_reader import SpeechLimits

# Taken by start and any file, and on top of it for each megabyte; a slow core reads several.
_BASE_S = 30.0
_PER_MEGABYTE_S = 1.0

_MOST_IDLE = 2
_MOST_FILES = 500
_MOST_ANSWER_BYTES = 262_144  # a poster of noise takes half of it
_ENDS_S = 5.0
_ROOT = Path(__file__).resolve().parents[2]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PortraitFacts:
    """What there is to know about a portrait before a video is made of it.

    Attributes:
        size_hw: height and width, pixels, upright.
        notes: findings, for the user.
        poster: a small JPEG of it, empty unless it was asked for.
    """

    size_hw: tuple[int, int]
    notes: tuple[Note, ...]
    poster: bytes = b""


@dataclass(frozen=True)
class SpeechFacts:
    """What there is to know about a speech.

    Attributes:
        num_samples: at `SPEECH_RATE_HZ`.
        notes: findings, for the user.
    """

    num_samples: int
    notes: tuple[Note, ...]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / SPEECH_RATE_HZ


class MediaReader:
    """Reads files in processes of its own; those that are idle stay for the next file.

    May be used from several threads: files that are read at the same time have a process each. They
    end with `close`, or with the process that made them.

    Args:
        base_s: time for the smallest file, seconds.
    """

    def __init__(self, base_s: float = _BASE_S) -> None:
        self._base_s = base_s
        self._idle: list[_Child] = []
        self._lock = threading.Lock()

    def get_ready(self) -> None:
        """Start a process, so that the first file does not wait for one; returns at once."""
        threading.Thread(target=self._wake, name="media reader", daemon=True).start()

    def portrait(
        self, path: Path, limits: PortraitLimits, *, poster: bool = False
    ) -> PortraitFacts:
        """As `load_portrait`, without the picture; MediaError also when it takes too much."""
        facts = self._ask("portrait", path, asdict(limits), poster=poster)
        height, width = facts["size_hw"]
        picture = base64.b64decode(facts["poster"])
        return PortraitFacts((int(height), int(width)), _notes(facts), picture)

    def speech(self, path: Path, limits: SpeechLimits) -> SpeechFacts:
        """As `load_speech`, without the sound; MediaError also when it takes too much."""
        facts = self._ask("speech", path, asdict(limits))
        return SpeechFacts(int(facts["num_samples"]), _notes(facts))

    def close(self) -> None:
        """End the processes that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _wake(self) -> None:
        with self._child() as child:
            child.ask({"field": "nothing"}, self._base_s)

    def _ask(
        self, field: Field, path: Path, limits: dict[str, Any], **more: bool
    ) -> dict[str, Any]:
        question = {"field": field, "path": str(path.resolve()), "limits": limits, **more}
        size = path.stat().st_size if path.is_file() else 0
        deadline_s = self._base_s + min(size, limits["max_bytes"]) / 1e6 * _PER_MEGABYTE_S
        with self._child() as child:
            answer = child.ask(question, deadline_s)
        if answer is None:
            raise MediaError(
                f"{field}: takes too much time or memory to read, as damaged files do; "
                "export it again"
            )
        if "refused" in answer:
            raise MediaError(str(answer["refused"]))
        return answer

    @contextlib.contextmanager
    def _child(self) -> Iterator[_Child]:
        child = self._idle_child() or _Child()
        try:
            yield child
        except BaseException:
            child.end()
            raise
        with self._lock:
            keeps = child.is_usable and len(self._idle) < _MOST_IDLE
            if keeps:
                self._idle.append(child)
        if not keeps:
            child.end()

    def _idle_child(self) -> _Child | None:
        """A process that waits; those that ended meanwhile are taken away."""
        while True:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None or child.is_alive:
                return child
            child.end()


class _Child:
    """A process that reads one file at a time."""

    def __init__(self) -> None:
        # One thread each: more would reserve memory by the number of cores.
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "liveavatar.media.reader_child", str(os.getpid())],
            cwd=_ROOT,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", **threads},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._num_files = 0
        self.is_usable = True

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(self, question: dict[str, Any], deadline_s: float) -> dict[str, Any] | None:
        """The answer; None when there is none in time, after which this is not usable."""
        self._num_files += 1
        self.is_usable = False
        line = self._answer(json.dumps(question).encode() + b"\n", time.monotonic() + deadline_s)
        if line is None:
            return None
        answer: dict[str, Any] = json.loads(line)
        if "failure" in answer:
            logger.error("a %s could not be read: %s", question["field"], answer["failure"])
            return None
        self.is_usable = self._num_files < _MOST_FILES
        return answer

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait(_ENDS_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _answer(self, line: bytes, until: float) -> bytes | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            logger.warning("the process that reads files ended between two of them")
            return None
        pipe, answer = self._process.stdout.fileno(), b""
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            part = os.read(pipe, 4096) if ready else b""
            if not part or len(answer) > _MOST_ANSWER_BYTES:
                why = f"it ended ({self._process.poll()})" if ready else "it took too long"
                logger.warning("a file was given up: %s", why)
                return None
            answer += part
        return answer


def _notes(facts: dict[str, Any]) -> tuple[Note, ...]:
    return tuple(Note(note["field"], note["code"], note["message"]) for note in facts["notes"])
