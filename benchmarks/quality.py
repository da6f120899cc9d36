"""How well the demo speaks: `python -m benchmarks.quality CKPT HELD_OUT_CORPUS`.

People the demo never saw say what it never heard. Mouth and lids are read off the generated frames
by `benchmarks.mouth_reader` and compared with drawings of the same person saying the same; beside
the demo stand a still picture and the same network with random weights. The corpus is one of
`training.speech_corpus --held-out`, or any recording.
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
from liveavatar.model.checkpoint import Placement, open_checkpoint
from liveavatar.sampling import make_schedule
from liveavatar.single_device import Models, RenderOptions, render, seeded_draws
from liveavatar.timeline import make_timeline
from training.mouth_targets import mouth_targets
from training.people import random_person
from training.performance import NUM_CUES, act

Samples = npt.NDArray[np.float32]

SIZE = (128, 128)
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
class Score:
    """Quality of one clip.

    Attributes:
        correlation: of read and wanted mouth opening at the best lag.
        lag: frames by which the mouth is late, at which it is best.
        amplitude: deviation of the read opening against that read off drawings of the wanted one.
        ceiling: correlation of the reader on those drawings.
        blinks_per_minute: dips of the lids.
        sharpness: of the last second against the second one.
        likeness_db: mean picture of the last second against that of the second one.
        grey: saturation of the last second against the second one.
        flicker: mean change from frame to frame, levels of 255.
        jump: largest change between two neighbouring frames against the median one.
    """

    correlation: float
    lag: int
    amplitude: float
    ceiling: float
    blinks_per_minute: float
    sharpness: float
    likeness_db: float
    grey: float
    flicker: float
    jump: float


def score(frames: Frames, person: Character, speech: Samples) -> Score:
    """Judge generated frames of a person whose parameters are known."""
    reader = Reader(person, SIZE)
    whole = len(frames) // 4 * 4
    targets = mouth_targets(torch.from_numpy(speech[: whole * SPEECH_RATE_HZ // FPS]))
    wanted = targets.open.numpy().astype(np.float64)
    shown = act(targets, torch.zeros(whole // 4, NUM_CUES), "plain", float(person.mouth.smile))
    read = reader.read(frames[:whole], "open")
    best = np.concatenate([  # a minute of drawings at once is large
        reader.read(drawn_frames(person, shown.part(first, first + 100), SIZE), "open")
        for first in range(0, whole, 100)
    ])  # fmt: skip
    lags = range(-_LARGEST_LAG, _LARGEST_LAG + 1)
    correlations = {lag: _correlation(read, wanted, lag) for lag in lags}
    lag = max(correlations, key=lambda key: correlations[key])
    early, late = frames[FPS : 2 * FPS], frames[-FPS:]
    error = ((early.mean(0) - late.mean(0)) ** 2).mean()
    changes = [float(abs(np.diff(pair.astype(np.int16), axis=0)).mean()) for pair in _pairs(frames)]
    return Score(
        round(correlations[lag], 3),
        lag,
        round(float(read[3:].std() / best[3:].std()), 3),
        round(_correlation(best, wanted, 0), 3),
        round(_blinks(reader.read(frames, "lids")) * 60 * FPS / len(frames), 1),
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


def stranger(number: int) -> Character:
    """A person of whom training has drawn nothing."""
    return random_person(np.random.default_rng(PEOPLE_SEED + number), SIZE)


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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--baselines", action="store_true", help="a still, and random weights")
    parser.add_argument("--moods", action="store_true", help="every person in every mood")
    parser.add_argument("--sheet", type=Path, help="picture of frames to write")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge people and print one line of JSON each; returns the exit status."""
    options = build_parser().parse_args(arguments)
    demo, corpus = Demo(options.checkpoint, options.device), read_speech(options.speech)
    blocks = int(options.seconds * FPS) // FRAMES_PER_BLOCK
    length = min(blocks * FRAMES_PER_BLOCK * SPEECH_RATE_HZ // FPS, len(corpus))
    shown = []
    lost = Demo(options.checkpoint, options.device) if options.baselines else None
    if lost is not None:
        lost.forget()
    for number in range(options.first, options.first + options.people):
        person = CAST[number] if options.cast else stranger(number)
        start = min(number * len(corpus) // (options.people + 1), len(corpus) - length)
        speech = corpus[start : start + length]
        portrait = draw_portrait(person, SIZE)
        prompts = MOOD_PROMPTS if options.moods else MOOD_PROMPTS[:1]
        videos = {prompt: demo.speak(portrait, speech, prompt, options.steps) for prompt in prompts}
        shown += list(videos.values())
        if lost is not None:
            videos["still"] = np.repeat(portrait[None], len(shown[-1]), axis=0)
            videos["random weights"] = lost.speak(portrait, speech, prompts[0], options.steps)
        for name, video in videos.items():
            line = {"who": number, "what": name, **asdict(score(video, person, speech))}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    if options.sheet is not None:
        save_sheet(shown, options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
