"""How well the demo speaks: `python -m benchmarks.quality CKPT HELD_OUT_CORPUS`.

People the demo never saw say what it never heard. Mouth and lids are read off the generated frames
by `benchmarks.mouth_reader` and compared with drawings of the same person saying the same in the
same mood; beside the demo stand a still picture and the same network with random weights. The
corpus is one of `training.speech_corpus --held-out`, or any recording; it is said again and again
where more is asked for. `--drift` compares every minute with the second second instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.mouth_reader import Frames, Reader, Track, drawn_frames
from examples.cartoon.cast import CAST
from examples.cartoon.character import Character
from examples.cartoon.scene import draw_portrait
from liveavatar.conditioning import Encoders, encode_conditions
from liveavatar.config import FPS, FRAMES_PER_BLOCK, SPEECH_RATE_HZ, SamplingConfig
from liveavatar.encoded_inputs import EncodedInputs
from liveavatar.errors import RequestError
from liveavatar.model.checkpoint import Placement, open_checkpoint
from liveavatar.plan.media_memory import ENCODED_INPUTS_BYTES
from liveavatar.request import parse_size
from liveavatar.sampling import make_schedule
from liveavatar.single_device import Models, RenderOptions, render, seeded_draws
from liveavatar.timeline import make_timeline
from training.mouth_targets import mouth_targets
from training.people import random_person
from training.performance import MOOD_LOOKS, MOODS, NUM_CUES, act

Samples = npt.NDArray[np.float32]

PEOPLE_SEED = 90_000
MOOD_PROMPTS = ("a calm person", "a smiling person", "a surprised person", "a serious person")
_LARGEST_LAG = 4


class Demo:
    """A checkpoint, loaded on one device in float32."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        where = Placement(torch.device(device), torch.float32)
        checkpoint = open_checkpoint(folder)
        self.embedder = checkpoint.load_condition_embedder(where)
        self.models = Models(
            checkpoint.load_transformer(where), self.embedder, checkpoint.load_vae_decoder(where)
        )
        self.encoders = Encoders(
            checkpoint.load_text_encoder(where),
            checkpoint.load_tokenizer(),
            checkpoint.load_audio_encoder(where),
            checkpoint.load_vae_encoder(where),
            lately=EncodedInputs(ENCODED_INPUTS_BYTES),
        )

    @torch.no_grad()
    def forget(self) -> None:
        """Put random weights of the same spread in the place of the transformer's."""
        generator = torch.Generator().manual_seed(0)
        for parameter in (*self.models.transformer.parameters(), *self.embedder.parameters()):
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            if parameter.numel() > 1:
                parameter.copy_(parameter.mean() + parameter.std() * drawn)

    def speak(self, portrait: Frames, speech: Samples, prompt: str, num_steps: int = 3) -> Frames:
        """Render speech (16 kHz) said by a portrait, (T, H, W, 3) uint8."""
        sampling = SamplingConfig(num_steps=num_steps, num_clip=10_000)
        timeline = make_timeline(sampling, len(speech))
        conditions = encode_conditions(
            self.encoders, portrait, speech, prompt,
            embedder=self.embedder, num_blocks=timeline.num_blocks,
        )  # fmt: skip
        draws = seeded_draws(sampling.seed, conditions.reference_CFHW)
        options = RenderOptions(make_schedule(num_steps), draws)
        still = torch.from_numpy(portrait)
        parts = render(self.models, conditions, still, timeline, options)
        return torch.cat(list(parts)).numpy()


@dataclass(frozen=True)
class Speech:
    """How one clip speaks.

    Attributes:
        correlation: of read and wanted mouth opening at the best lag.
        lag: frames by which the mouth is late, at which it is best.
        amplitude: deviation of the read opening against that read off drawings of the wanted one.
        ceiling: correlation of the reader on those drawings.
        blinks_per_minute: dips of the lids.
        mood: whose look smile, brows and lids come nearest to.
    """

    correlation: float
    lag: int
    amplitude: float
    ceiling: float
    blinks_per_minute: float
    mood: str


@dataclass(frozen=True)
class Steadiness:
    """How one clip keeps up.

    Attributes:
        sharpness: of the last second against the second one.
        likeness_db: mean picture of the last second against that of the second one.
        grey: saturation of the last second against the second one.
        flicker: mean change from frame to frame, levels of 255.
        jump: largest change between two neighbouring frames against the median one.
    """

    sharpness: float
    likeness_db: float
    grey: float
    flicker: float
    jump: float


def judge_speech(frames: Frames, person: Character, speech: Samples, mood: str) -> Speech:
    """Judge generated frames of a person whose parameters are known, asked to be in a mood."""
    size = (frames.shape[2], frames.shape[1])
    reader, smile = Reader(person, size), float(person.mouth.smile)
    whole = len(frames) // 4 * 4
    targets = mouth_targets(torch.from_numpy(speech[: whole * SPEECH_RATE_HZ // FPS]))
    shown = act(targets, torch.zeros(whole // 4, NUM_CUES), mood, smile)
    wanted = shown.open.flatten().numpy().astype(np.float64)
    read = reader.read(frames[:whole], "open")
    best = np.concatenate([  # a minute of drawings at once is large
        reader.read(drawn_frames(person, shown.part(first, first + 100), size), "open")
        for first in range(0, whole, 100)
    ])  # fmt: skip
    lags = range(-_LARGEST_LAG, _LARGEST_LAG + 1)
    correlations = {lag: _correlation(read, wanted, lag) for lag in lags}
    lag = max(correlations, key=lambda key: correlations[key])
    lids = reader.read(frames, "lids")
    look = [float(np.median(reader.read(frames[FPS:], name))) for name in ("smile", "brow", "lids")]
    return Speech(
        round(correlations[lag], 3),
        lag,
        round(float(read[3:].std() / best[3:].std()), 3),
        round(_correlation(best, wanted, 0), 3),
        round(_blinks(lids) * 60 * FPS / len(frames), 1),
        _nearest_mood(look, smile),
    )


def _nearest_mood(read: Sequence[float], rest_smile: float) -> str:
    """The mood whose smile, brows and lids are nearest to those read; lids count double."""

    def distance(mood: str) -> float:
        smile, *others, _ = MOOD_LOOKS[mood]
        look = (rest_smile if smile is None else smile, *others)
        return float(np.square(np.subtract(read, look) * (1, 1, 2)).sum())

    return min(MOODS, key=distance)


def judge_steadiness(frames: Frames, early: Frames | None = None) -> Steadiness:
    """Compare the last second of a clip with `early`, its second one, and neighbouring frames."""
    early, late = frames[FPS : 2 * FPS] if early is None else early, frames[-FPS:]
    error = ((early.mean(0) - late.mean(0)) ** 2).mean()
    changes = [float(abs(np.diff(pair.astype(np.int16), axis=0)).mean()) for pair in _pairs(frames)]
    return Steadiness(
        round(_sharpness(late) / _sharpness(early), 3),
        round(float(10 * np.log10(255**2 / max(error, 1e-9))), 1),
        round(_saturation(late) / _saturation(early), 3),
        round(float(np.mean(changes)), 3),
        round(max(changes[3:]) / max(float(np.median(changes)), 1e-9), 1),
    )


def _pairs(frames: Frames) -> list[Frames]:
    return [frames[first : first + 2] for first in range(len(frames) - 1)]


def _correlation(read: Track, wanted: Track, lag: int) -> float:
    length = min(len(read), len(wanted))
    late, early = max(0, lag), max(0, -lag)
    first = read[late : length - early]
    second = wanted[early : length - late]
    if first.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _blinks(lids: Track) -> int:
    shut = lids < 0.5 * np.median(lids)
    return int((shut[1:] & ~shut[:-1]).sum())


def _sharpness(frames: Frames) -> float:
    grey = frames.astype(np.float64).mean(-1)
    across, down = np.diff(grey, axis=2), np.diff(grey, axis=1)
    return float(abs(across).mean() + abs(down).mean())


def _saturation(frames: Frames) -> float:
    wide = frames.astype(np.int16)
    return float((wide.max(-1) - wide.min(-1)).mean())


def stranger(number: int, size: tuple[int, int]) -> Character:
    """A person of whom training has drawn nothing, for a picture of so many pixels."""
    return random_person(np.random.default_rng(PEOPLE_SEED + number), size)


def read_speech(path: Path) -> Samples:
    """Samples at 16 kHz of a corpus (.npz) or of a recording."""
    if path.suffix == ".npz":
        return np.asarray(np.load(path)["samples"], np.float32) / 32768
    from liveavatar.media.speech import load_speech  # needs a decoder that a corpus does not

    return load_speech(path).samples


def save_sheet(videos: Sequence[Frames], path: Path, columns: int = 9) -> None:
    """Write evenly spaced frames of every video, one row each."""
    rows = []
    for frames in videos:
        chosen = np.linspace(0, len(frames) - 1, columns).astype(int)
        rows.append(np.concatenate(list(frames[chosen]), axis=1))
    Image.fromarray(np.concatenate(rows)).save(path, quality=88)


def judge_minutes(frames: Frames) -> list[Steadiness]:
    """Compare the end of every minute, and of the video, with the second second of it all."""
    minute = 60 * FPS
    ends = [*range(minute, len(frames) - FPS, minute), len(frames)]
    early = frames[FPS : 2 * FPS]
    return [judge_steadiness(frames[max(0, end - minute) : end], early) for end in ends]


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("speech", type=Path, help="corpus (--held-out), or a recording")
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="number of the first person")
    parser.add_argument("--cast", action="store_true", help="the people of examples/ instead")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--size", default="128*128", help="of the picture, W*H, pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--baselines", action="store_true", help="a still, and random weights")
    parser.add_argument("--moods", action="store_true", help="every person in every mood")
    parser.add_argument("--drift", action="store_true", help="one person, minute by minute")
    parser.add_argument("--sheet", type=Path, help="picture of frames to write")
    return parser


def _say_drift(demo: Demo, portrait: Frames, speech: Samples, steps: int) -> Frames:
    """Render one long video, print one line per minute; returns the frames."""
    frames = demo.speak(portrait, speech, MOOD_PROMPTS[0], steps)
    for minute, steadiness in enumerate(judge_minutes(frames), start=1):
        _say({"minute": minute} | asdict(steadiness))
    return frames


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge people and print one line of JSON each; returns the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        asked = parse_size(options.size)
    except RequestError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    size = (asked.width, asked.height)
    demo, corpus = Demo(options.checkpoint, options.device), read_speech(options.speech)
    blocks = int(options.seconds * FPS) // FRAMES_PER_BLOCK
    length = blocks * FRAMES_PER_BLOCK * SPEECH_RATE_HZ // FPS
    corpus = np.tile(corpus, -(-length // len(corpus)))
    shown: list[Frames] = []
    lost = Demo(options.checkpoint, options.device) if options.baselines else None
    if lost is not None:
        lost.forget()
    for number in range(options.first, options.first + options.people):
        person = CAST[number] if options.cast else stranger(number, size)
        start = min(number * len(corpus) // (options.people + 1), len(corpus) - length)
        speech = corpus[start : start + length]
        portrait = draw_portrait(person, size)
        if options.drift:
            shown.append(_say_drift(demo, portrait, speech, options.steps))
            continue
        wanted = MOODS if options.moods else MOODS[:1]
        videos = {
            mood: demo.speak(portrait, speech, prompt, options.steps)
            for mood, prompt in zip(wanted, MOOD_PROMPTS, strict=False)
        }
        shown += list(videos.values())
        if lost is not None:
            videos["still"] = np.repeat(portrait[None], len(shown[-1]), axis=0)
            videos["random weights"] = lost.speak(portrait, speech, MOOD_PROMPTS[0], options.steps)
        for name, video in videos.items():
            mood = name if name in MOODS else MOODS[0]
            judged = asdict(judge_speech(video, person, speech, mood))
            _say({"who": number, "what": name, **judged, **asdict(judge_steadiness(video))})
    if options.sheet is not None:
        save_sheet(shown, options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
