"""The process behind `MediaReader`: reads the files it is asked for, within limits of its own.

python -m liveavatar.media.reader_child PARENT_PID
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import resource
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from liveavatar.errors import MediaError
from liveavatar.media.portrait import PortraitLimits, load_portrait
from liveavatar.media.portrait_findings import has_face
from liveavatar.media.sound_reader import SpeechLimits
from liveavatar.media.speech import load_speech
from liveavatar.media.thumbnail import poster_of

# Measured: 0.3 GB to begin with and 27 bytes a pixel for a TIFF with transparency, 4 bytes a sample
# and its copies for speech.
_BASE_BYTES = 1 << 30
_BYTES_PER_PIXEL = 40
_BYTES_PER_SECOND = 16 * 16_000

_OPEN_FILES = 64
_LOOKS_EVERY_S = 0.5
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS of prctl(2)


def main() -> None:
    """Answer lines of JSON until there are no more."""
    _give_up_rights()
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    try:
        if question["field"] == "nothing":
            return _nothing()
        if question["field"] == "portrait":
            limits = PortraitLimits(**question["limits"])
            return _portrait(question["path"], limits, poster=question.get("poster", False))
        return _speech(question["path"], SpeechLimits(**question["limits"]))
    except MediaError as error:
        return {"refused": str(error)}
    except Exception as error:  # noqa: BLE001  a border: the server logs it
        return {"failure": f"{type(error).__name__}: {error}"}


def _nothing() -> dict[str, Any]:
    """Read the libraries that the first portrait would wait for."""
    has_face(np.zeros((64, 64, 3), np.uint8))
    return {}


def _portrait(path: str, limits: PortraitLimits, *, poster: bool) -> dict[str, Any]:
    _limit_memory(_BASE_BYTES + _BYTES_PER_PIXEL * limits.max_pixels)
    portrait = load_portrait(path, limits)
    notes = [asdict(note) for note in portrait.notes]
    picture = base64.b64encode(poster_of(portrait.rgb)).decode() if poster else ""
    return {"size_hw": portrait.rgb.shape[:2], "notes": notes, "poster": picture}


def _speech(path: str, limits: SpeechLimits) -> dict[str, Any]:
    _limit_memory(_BASE_BYTES + round(_BYTES_PER_SECOND * limits.max_seconds))
    speech = load_speech(path, limits)
    return {"num_samples": len(speech.samples), "notes": [asdict(note) for note in speech.notes]}


def _give_up_rights() -> None:
    """No files are written, few are opened, no program gets more rights, nothing is dumped."""
    for kind, most in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # where less is allowed already
            resource.setrlimit(kind, (most, most))
    with contextlib.suppress(OSError, AttributeError):  # Linux has it
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _limit_memory(num_bytes: int) -> None:
    """Let an allocation fail that leads beyond; what is refused then is the file."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _end_with(parent: int) -> None:
    """End when the server is gone, also in the middle of a file."""
    while os.getppid() == parent:
        time.sleep(_LOOKS_EVERY_S)
    os._exit(0)


if __name__ == "__main__":
    main()
