"""Speech that sounds like people: `python -m training.natural_speech VOICES FILE`.

Speaks made-up sentences with Kokoro-82M, in every voice of the folder but those of the examples.
Needs the packages that `examples/README.md` names, in an environment of their own. The file is
handed to `training.speech_corpus --also`, for what simple synthesisers say is not all that people
will upload.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from examples.make_speech import LINES, SAMPLE_RATE_HZ, Line, Speaker, finished
from training.speech_corpus import WORDS

Samples = npt.NDArray[np.float32]

_KEPT_FOR_EXAMPLES = frozenset(line.voice for line in LINES)


def training_voices(folder: Path) -> list[str]:
    """Names of the voices in a folder that no example speaks with, sorted."""
    return sorted({path.stem for path in folder.glob("*.bin")} - _KEPT_FOR_EXAMPLES)


def random_line(random: np.random.Generator, voices: Sequence[str]) -> Line:
    """Make up one or two sentences; Chinese voices speak Chinese, all others English."""
    voice = str(random.choice(voices))
    language: Literal["en-us", "en-gb", "zh"] = "zh" if voice.startswith("z") else "en-us"
    if voice.startswith("b"):
        language = "en-gb"
    words = WORDS["cmn" if language == "zh" else "en-us"].split()
    sentences = tuple(
        ("" if language == "zh" else " ").join(random.choice(words, int(random.integers(4, 13))))
        + str(random.choice((".", "!", "?")))
        for _ in range(int(random.integers(1, 3)))
    )
    return Line(voice, language, voice, float(random.uniform(0.85, 1.2)), sentences)


def make_speech(
    speaker: Speaker, voices: Sequence[str], minutes: float, seed: int, most_s: float
) -> Samples:
    """Speak until `minutes` are made or `most_s` seconds have passed, 16 kHz mono."""
    random, started = np.random.default_rng((seed, 3)), time.monotonic()
    parts: list[Samples] = []
    wanted = int(minutes * 60 * SAMPLE_RATE_HZ)
    while sum(map(len, parts)) < wanted and time.monotonic() - started < most_s:
        parts.append(finished(speaker.say(random_line(random, voices))))
        parts.append(np.zeros(int(random.uniform(0.0, 0.8) * SAMPLE_RATE_HZ), np.float32))
    return np.concatenate(parts)[:wanted]


def main() -> int:
    """Write the speech; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("voices", type=Path, help="folder with NAME.bin voices")
    parser.add_argument("file", type=Path, help="to write, .npz")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--most-seconds", type=float, default=3600.0, help="end earlier than that")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    voices = training_voices(options.voices)
    sound = make_speech(
        Speaker(options.voices), voices, options.minutes, options.seed, options.most_seconds
    )
    np.savez_compressed(options.file, samples=np.round(sound * 32767).astype(np.int16))
    spoken = len(sound) / SAMPLE_RATE_HZ / 60
    sys.stdout.write(f"{options.file}: {spoken:.1f} min in {len(voices)} voices\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
