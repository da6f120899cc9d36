"""Make the speech that the demo is trained on, by synthesisers: `python -m training.speech_corpus`.

Needs the commands `espeak-ng` and `flite` (Debian packages of the same names). The texts are made
up of common words per language; nobody's recordings are used for training. Writes one compressed
file of 16-bit samples, and with `--held-out` the voices that training never hears. With `--also`
the file of `training.natural_speech` follows.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from liveavatar.config import SPEECH_RATE_HZ

Samples = npt.NDArray[np.float32]

WORDS: dict[str, str] = json.loads(
    (Path(__file__).with_name("words.json")).read_text(encoding="utf-8")
)
VARIANTS = (
    "", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m8", "+f1", "+f2", "+f4", "+klatt", "+klatt2",
    "+klatt4", "+croak", "+whisperf", "+steph", "+linda", "+adam", "+robosoft",
)  # fmt: skip
HELD_OUT_VARIANTS = ("+m7", "+f5", "+klatt3", "+f3", "+steph2")
FLITE = ("awb", "kal16")
HELD_OUT_FLITE = ("slt", "rms")
ACTIVE_RMS = 0.1


def speak_espeak(text: str, voice: str, speed: int, pitch: int) -> Samples:
    """Return espeak-ng saying `text`, 16 kHz mono."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    return _read(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def speak_flite(text: str, voice: str, stretch: float) -> Samples:
    """Return flite saying `text`, 16 kHz mono."""
    options = ["-voice", voice, "--setf", f"duration_stretch={stretch:.2f}"]
    command = ["flite", *options, "-t", text, "-o", "/dev/stdout"]
    return _read(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def _read(data: bytes) -> Samples:
    with wave.open(io.BytesIO(data)) as file:
        rate, raw = file.getframerate(), file.readframes(file.getnframes())
    sound = np.frombuffer(raw[: len(raw) // 2 * 2], "<i2").astype(np.float32) / 32768
    length = int(len(sound) * SPEECH_RATE_HZ / rate)
    if rate != SPEECH_RATE_HZ:
        sound = _resampled(sound, rate, length)
    return sound


def _resampled(sound: Samples, rate: int, length: int) -> Samples:
    """Cut the spectrum off at 7.8 kHz, then interpolate."""
    spectrum = np.fft.rfft(sound)
    spectrum[int(len(spectrum) * 7800 / (rate / 2)) :] = 0
    smooth = np.fft.irfft(spectrum, len(sound))
    places = np.arange(length) * (rate / SPEECH_RATE_HZ)
    return np.interp(places, np.arange(len(sound)), smooth).astype(np.float32)


def levelled(sound: Samples) -> Samples:
    """Bring the loud frames of one utterance to a common level."""
    frames = sound[: len(sound) // 320 * 320].reshape(-1, 320)
    power = (frames**2).mean(1)
    active = power[power > power.max() * 10 ** (-35 / 10)].mean()
    scaled = sound * np.float32(ACTIVE_RMS / np.sqrt(active + 1e-12))
    return np.asarray(np.clip(scaled, -0.99, 0.99), np.float32)


def utterance(random: np.random.Generator, *, held_out: bool) -> Samples:
    """Speak one made-up sentence with pauses behind it."""
    language = str(random.choice(list(WORDS)))
    words = WORDS[language].split()
    chosen = random.choice(words, int(random.integers(3, 10)))
    if random.random() < 0.3:
        language = "en-us"
        chosen = random.choice(WORDS["en-us"].split(), len(chosen))
        names = HELD_OUT_FLITE if held_out else FLITE
        sound = speak_flite(" ".join(chosen), str(random.choice(names)), random.uniform(0.8, 1.25))
    else:
        variants = HELD_OUT_VARIANTS if held_out else VARIANTS
        voice = language + str(random.choice(variants))
        speed, pitch = int(random.integers(120, 210)), int(random.integers(15, 85))
        sound = speak_espeak(" ".join(chosen), voice, speed, pitch)
    pause = np.zeros(int(random.uniform(0.1, 1.4) * SPEECH_RATE_HZ), np.float32)
    return np.concatenate([levelled(sound), pause])


def make_corpus(minutes: float, seed: int, *, held_out: bool) -> Samples:
    """Speak until `minutes` of speech are made; one seed makes the same corpus."""

    def speak(number: int) -> Samples:
        return utterance(np.random.default_rng((seed, number)), held_out=held_out)

    parts: list[Samples] = []
    wanted = int(minutes * 60 * SPEECH_RATE_HZ)
    with ThreadPoolExecutor(2) as pool:
        while sum(map(len, parts)) < wanted:
            start = len(parts)
            parts += pool.map(speak, range(start, start + 32))
    return np.concatenate(parts)[:wanted]


def main() -> int:
    """Write the corpus; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="corpus to write, .npz")
    parser.add_argument("--minutes", type=float, default=16.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true", help="the voices kept from training")
    parser.add_argument("--also", type=Path, help="more speech, of training.natural_speech")
    options = parser.parse_args()
    sound = make_corpus(options.minutes, options.seed, held_out=options.held_out)
    if options.also is not None:
        more = np.load(options.also)["samples"].astype(np.float32) / 32768
        sound = np.concatenate([sound, more])
    options.file.parent.mkdir(parents=True, exist_ok=True)
    samples = np.round(sound * 32767).astype(np.int16)
    np.savez_compressed(options.file, samples=samples)
    sys.stdout.write(f"{options.file}: {len(sound) / SPEECH_RATE_HZ / 60:.1f} min\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
