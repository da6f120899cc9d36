"""How well the demo speaks: `python -m benchmarks.quality CKPT HELD_OUT_CORPUS`.

People the demo never saw say what it never heard. A linear reader is fitted to drawings of each
person, whose mouth and lids are known, and read off the generated frames; beside it stands what a
still picture would get. The corpus is one of `training.speech_corpus --held-out`.
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

from examples.cartoon.acting import Acting
from examples.cartoon.character import Character
from examples.cartoon.scene import draw_frames, draw_portrait
from liveavatar.conditioning import Encoders, encode_conditions
from liveavatar.config import FPS, FRAMES_PER_BLOCK, SPEECH_RATE_HZ, SamplingConfig
from liveavatar.model.checkpoint import Placement, open_checkpoint
from liveavatar.sampling import make_schedule
from liveavatar.single_device import Models, RenderOptions, render, seeded_draws
from liveavatar.timeline import make_timeline
from training.clips import focus_points
from training.mouth_targets import mouth_targets
from training.people import random_person
from training.performance import NUM_CUES, act

Frames = npt.NDArray[np.uint8]
Track = npt.NDArray[np.float64]

SIZE = (128, 128)
PEOPLE_SEED = 90_000
_FITTED_FRAMES, _RIDGE, _LARGEST_LAG = 240, 30.0, 4


class Demo:
    """A checkpoint, loaded on the CPU."""

    def __init__(self, folder: Path) -> None:
        where = Placement(torch.device("cpu"), torch.float32)
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
        )

    def speak(
        self, portrait: Frames, speech: npt.NDArray[np.float32], prompt: str, num_steps: int = 4
    ) -> Frames:
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


class Reader:
    """Reads mouth opening and lids off frames of one person; fitted to drawings."""

    def __init__(self, person: Character) -> None:
        random = np.random.default_rng(PEOPLE_SEED)
        cues = torch.from_numpy(random.standard_normal((_FITTED_FRAMES // 4, NUM_CUES))).float()
        noise = torch.from_numpy(random.random((4, _FITTED_FRAMES // 6 + 1))).float()
        tracks = [track.repeat_interleave(6)[:_FITTED_FRAMES] for track in noise]
        targets = mouth_targets(torch.zeros(_FITTED_FRAMES * 640))
        acting = act(targets, cues, "plain", float(person.mouth.smile))
        shown = [track[:, None, None] for track in tracks]
        moved = Acting(
            **{
                **{name: getattr(acting, name) for name in Acting.__annotations__},
                "open": shown[0] * (shown[2] > 0.3),
                "wide": shown[1] * 1.4 - 0.7,
                "lids": (shown[3] * 1.5).clamp(0, 1),
            }
        )
        points = focus_points(person, SIZE)
        mouth, eyes = points[0], (points[1] + points[2]) / 2
        self.boxes = {"open": _box(mouth, 24, 18), "lids": _box(eyes, 30, 12)}
        drawn = (draw_frames(person, moved, SIZE) * 255).to(torch.uint8).numpy()
        self.fits = {
            name: self._fit(drawn, getattr(moved, name).flatten().numpy(), name)
            for name in self.boxes
        }

    def _features(self, frames: Frames, name: str) -> Track:
        rows, columns = self.boxes[name]
        pixels = frames[:, rows, columns].reshape(len(frames), -1) / 255.0
        return np.concatenate([pixels, np.ones((len(frames), 1))], axis=1)

    def _fit(self, frames: Frames, values: npt.NDArray[np.float32], name: str) -> Track:
        features = self._features(frames, name)
        gram = features @ features.T + _RIDGE / 10 * np.eye(len(features))
        return np.asarray(features.T @ np.linalg.solve(gram, values))

    def read(self, frames: Frames, name: str) -> Track:
        """Values of every frame, "open" or "lids"."""
        return np.asarray(self._features(frames, name) @ self.fits[name])


@dataclass(frozen=True)
class Score:
    """Quality of one clip.

    Attributes:
        correlation: of read and wanted mouth opening at the best lag.
        lag: frames by which the mouth is late, at which it is best.
        amplitude: deviation of the read opening against the wanted one's as drawn.
        ceiling: correlation of the reader on drawings of the wanted opening.
        blinks_per_minute: dips of the lids.
        sharpness: of the last second against the second one.
        likeness_db: mean picture of the last second against that of the second one.
        flicker: mean change from frame to frame, levels of 255.
    """

    correlation: float
    lag: int
    amplitude: float
    ceiling: float
    blinks_per_minute: float
    sharpness: float
    likeness_db: float
    flicker: float


def score(frames: Frames, person: Character, speech: npt.NDArray[np.float32]) -> Score:
    """Judge generated frames of a person whose parameters are known."""
    reader = Reader(person)
    targets = mouth_targets(torch.from_numpy(speech))
    wanted = targets.open.numpy()[: len(frames)].astype(np.float64)
    quiet = torch.zeros(len(wanted) // 4 + 1, NUM_CUES)
    shown = act(targets, quiet[: targets.open.shape[0] // 4], "plain", float(person.mouth.smile))
    drawn = (draw_frames(person, shown, SIZE) * 255).to(torch.uint8).numpy()[: len(frames)]
    read, best = reader.read(frames, "open"), reader.read(drawn, "open")
    lags = range(-_LARGEST_LAG, _LARGEST_LAG + 1)
    correlations = {lag: _correlation(read, wanted, lag) for lag in lags}
    lag = max(correlations, key=lambda key: correlations[key])
    early, late = frames[FPS : 2 * FPS], frames[-FPS:]
    error = ((early.mean(0) - late.mean(0)) ** 2).mean()
    return Score(
        round(correlations[lag], 3),
        lag,
        round(float(read[3:].std() / best[3:].std()), 3),
        round(_correlation(best, wanted, 0), 3),
        round(_blinks(reader.read(frames, "lids")) * 60 * FPS / len(frames), 1),
        round(_sharpness(late) / _sharpness(early), 3),
        round(float(10 * np.log10(255**2 / max(error, 1e-9))), 1),
        round(float(abs(np.diff(frames.astype(np.int16), axis=0)).mean()), 3),
    )


def _box(centre: torch.Tensor, half_width: int, half_height: int) -> tuple[slice, slice]:
    x, y = int(centre[0]), int(centre[1])
    rows = slice(max(0, y - half_height), y + half_height)
    return rows, slice(max(0, x - half_width), x + half_width)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge people of the given seed and print one line of JSON each; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("speech", type=Path, help="file of training.speech_corpus --held-out")
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args(arguments)
    demo, corpus = Demo(options.checkpoint), np.load(options.speech)["samples"]
    blocks = int(options.seconds * FPS) // FRAMES_PER_BLOCK
    length = blocks * FRAMES_PER_BLOCK * SPEECH_RATE_HZ // FPS
    for number in range(options.people):
        person = random_person(np.random.default_rng(PEOPLE_SEED + number), SIZE)
        start = number * len(corpus) // (options.people + 1)
        speech = corpus[start : start + length].astype(np.float32) / 32768
        portrait = draw_portrait(person)
        frames = demo.speak(portrait, speech, "a calm person", options.steps)
        still = np.repeat(portrait[None], len(frames), axis=0)
        for name, video in (("demo", frames), ("still", still)):
            line = {"who": number, "what": name, **asdict(score(video, person, speech))}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
