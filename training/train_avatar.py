"""Train transformer and speech encoder on latents of drawn clips.

Flow matching at the noise levels of the 4-step and the 3-step schedule, one level per clip; in the
last part of a run the levels are reached by the network's own steps from noise, so that it learns
to put right what it does wrong. The text encoder keeps its random weights: its rows tell words
apart, and what reads them is trained.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from liveavatar.sampling import MAX_RELATIVE_DISTANCE, MIN_RELATIVE_DISTANCE, make_schedule
from training.avatar import Avatar, Place, Position, Scene
from training.captured import Captured
from training.checkpoint_writer import (
    write_speech_encoder,
    write_text_encoder,
    write_transformer,
)
from training.demo_config import SPEECH
from training.muon import Adam, Average, Muon
from training.performance import MOODS, set_cues
from training.pool import Batch, roughened
from training.prompts import random_prompt

_LOG = logging.getLogger("avatar")
SCHEDULES = (make_schedule(4), make_schedule(3))
# Share of clips at each level; the last one, 0.009, hardly moves the picture.
LEVELS = ((1.0, 0.24), (0.8576923, 0.18), (0.6021506, 0.29), (0.7511211, 0.24), (0.0089286, 0.05))
_SAVE_EVERY_S = 45.0
_MOUTH_LOSS, _LONGEST_BLOCKS = 0.3, 1500
_PROMPTS_PER_MOOD = 250
_EMPHASIS, _HALF_OPEN = 5.0, 0.3


@dataclass(frozen=True)
class Run:
    """How long and how to train.

    Attributes:
        seconds: of training.
        batch: clips per step at the smallest size; so many fewer of larger ones that the tokens
            of a step stay as many.
        rollout_from: share of the run after which the network's own states are trained on.
        rate: factor on the learning rates.
        finish: let the rates fall from the first steps on and average over a few steps, to end a
            run that was cut off.
        max_steps: for trials.
    """

    seconds: float
    batch: int = 32
    rollout_from: float = 0.6
    rate: float = 1.0
    finish: bool = False
    max_steps: int = 10**9

    def size(self, number: int, share: float) -> float:
        """Factor on the learning rates at step `number`, when `share` of the run is over."""
        warm_up, flat = (15, 0.0) if self.finish else (60, 0.4)
        return min(1.0, (number + 1) / warm_up) * min(1.0, (1 - share) / (1 - flat)) * self.rate


class AvatarTrainer:
    """The avatar, its optimisers, its average and its data.

    Args:
        avatar: on the training device.
        pools: encoded clips, one pool for each size of picture, the smallest first.
        run: how to train.
        seed: of what is drawn for each step.
    """

    def __init__(self, avatar: Avatar, pools: Sequence[Batch], run: Run, seed: int) -> None:
        self.avatar, self.pools, self.plan = avatar, pools, run
        pool = pools[0]
        self.device = pool.latents.device
        self.random = np.random.default_rng((seed, 2))
        trained = {n: p for n, p in avatar.named_parameters() if p.requires_grad}
        matrices = [p for name, p in trained.items() if p.ndim > 1 and _is_hidden(name)]
        known = {id(p) for p in matrices}
        self.parameters = list(trained.values())
        self.muon = Muon(matrices, lr=0.012)
        self.adam = Adam([p for p in self.parameters if id(p) not in known], lr=1e-3)
        self.average = Average(self.parameters, 0.97 if run.finish else 0.995)
        self.frames_TS = avatar.frame_matrix(pool.sound.shape[1], pool.targets.shape[1])
        self.frames_TS = self.frames_TS.to(self.device)
        self.prompts_PLD = self._read_prompts()
        self.errors: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def _read_prompts(self) -> Tensor:
        """Encode prompts of every mood, in the order of the moods."""
        moods = [mood for mood in MOODS for _ in range(_PROMPTS_PER_MOOD)]
        texts = [random_prompt(self.random, mood) for mood in moods]
        starts = range(0, len(texts), 100)
        return torch.cat([self.avatar.read(texts[i : i + 100], self.device) for i in starts])

    def step(self, *inputs: Tensor) -> Tensor:
        """Make one update; the inputs are those of `draw`. Returns the error of every clip."""
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
            velocity, mouth_loss = self._forward(inputs, with_mouth=True)
        sample, latents, sigma, weights, size = inputs[:5]
        wanted = (sample - latents) / sigma[:, None, None, None, None]
        squares = (velocity - wanted).square() * weights[:, None]
        per_clip = squares.mean((1, 2, 3, 4))
        for parameter in self.parameters:
            parameter.grad = None
        (per_clip.mean() + _MOUTH_LOSS * mouth_loss).backward()
        self.muon.step(size)
        self.adam.step(size)
        return per_clip.detach()

    @torch.no_grad()
    def look(self, *inputs: Tensor) -> Tensor:
        """Velocity for the same inputs, nothing learned."""
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
            return self._forward(inputs, with_mouth=False)[0]

    def _forward(self, inputs: tuple[Tensor, ...], *, with_mouth: bool) -> tuple[Tensor, Tensor]:
        sample, targets, sound, reference, first, motion, text = (inputs[0], *inputs[5:11])
        audio = self.avatar.hear(sound, self.frames_TS)
        mouth_loss = torch.zeros((), device=self.device)
        if with_mouth:
            guess = self.avatar.read_mouth(audio, len(targets))
            mouth_loss = (guess.float() - targets).square().mean()
        scene = Scene(reference, first, motion, text, audio)
        place = Place.from_tensors(inputs[11:])
        return self.avatar.velocity(sample, scene, place), mouth_loss

    def draw(self, pool: Batch, size: float) -> tuple[tuple[Tensor, ...], Position]:
        """Draw the inputs of a step, mixed with noise at a random level each.

        Args:
            pool: where the clips come from.
            size: factor on the learning rates.

        Returns:
            sample, latents, sigma, weights, size, targets, sound, reference, first, motion, text
            and the tensors of a `Place`; and the position, for other levels.
        """
        count = self._count(pool)
        chosen = self.random.integers(len(pool.moods), size=count)
        batch = pool.pick(self._sent(chosen))
        noise = set_cues(torch.randn_like(batch.latents), batch.cues)
        values, shares = zip(*LEVELS, strict=True)
        levels = self.random.choice(values, size=count, p=shares)
        sigma = self._sent(levels.astype(np.float32))
        wide = sigma[:, None, None, None, None]
        sample = (1 - wide) * batch.latents + wide * noise
        rough = 0.08 * torch.rand(count, 1, 1, 1, 1, device=self.device)
        first = batch.latents[:, :, :1]
        words = self.random.integers(_PROMPTS_PER_MOOD, size=count)
        lines = batch.moods * _PROMPTS_PER_MOOD + self._sent(words)
        position = self._position(batch.latents.shape[2] // 3)
        inputs = (
            sample, batch.latents, sigma, emphasised(batch),
            torch.full((), size, device=self.device), batch.targets,
            roughened(batch.sound), batch.reference, first + rough * torch.randn_like(first),
            batch.motion, self.prompts_PLD[lines],
        )  # fmt: skip
        self.noise = noise
        grid = _grid(batch.latents)
        return (*inputs, *self._place(position, grid, levels * 1000)), position

    def _count(self, pool: Batch) -> int:
        """Clips of a step out of a pool."""
        smallest, own = (math.prod(p.latents.shape[-2:]) for p in (self.pools[0], pool))
        return max(1, self.plan.batch * smallest // own)

    def _sent(self, numbers: np.ndarray) -> Tensor:
        """Numbers on the device; the device is not waited for."""
        return self._copied(torch.from_numpy(numbers))

    def _copied(self, host: Tensor) -> Tensor:
        """A copy on the device; memory that is not pinned would make the host wait for it."""
        if self.device.type != "cuda":
            return host.to(self.device)
        return host.pin_memory().to(self.device, non_blocking=True)

    def _position(self, blocks: int) -> Position:
        """Half of the clips begin a video; the others lie anywhere in the first 12 minutes."""
        first = 0
        if self.random.random() < 0.5:
            first = int(np.exp(self.random.uniform(np.log(4), np.log(_LONGEST_BLOCKS))))
        window = 2 if self.random.random() < 0.45 else 4
        return Position(first, window, self._distances(blocks))

    def _distances(self, blocks: int) -> list[int]:
        bounds = (MIN_RELATIVE_DISTANCE, MAX_RELATIVE_DISTANCE + 1)
        return [int(number) for number in self.random.integers(*bounds, size=blocks)]

    def _place(
        self, position: Position, grid: tuple[int, int], timesteps: np.ndarray
    ) -> tuple[Tensor, ...]:
        place = position.place(self.avatar.config, grid, timesteps.tolist(), torch.device("cpu"))
        return tuple(self._copied(part) for part in place.tensors())

    def roll_out(
        self, inputs: tuple[Tensor, ...], position: Position, look: Callable[..., Tensor]
    ) -> tuple[Tensor, ...]:
        """Put in the place of mixed samples what the network itself makes of noise."""
        schedule = SCHEDULES[int(self.random.integers(len(SCHEDULES)))]
        last = int(self.random.integers(1, schedule.num_steps - 1))
        sample, others = self.noise, inputs[1:11]
        count, place = len(sample), inputs[11:]
        for step in range(last + 1):
            here = replace(position, distances=self._distances(len(position.distances)))
            timesteps = np.full(count, schedule.timesteps[step])
            place = self._place(here, _grid(sample), timesteps)
            if step < last:
                velocity = look(sample, *others, *place)
                sample = sample + (schedule.sigmas[step + 1] - schedule.sigmas[step]) * velocity
        sigma = torch.full((count,), schedule.sigmas[last], device=self.device)
        return (sample, inputs[1], sigma, *inputs[3:11], *place)

    def train(self, out: Path) -> None:
        """Train within the plan, saving now and then and at the end to `out`."""
        plan = self.plan
        started = saved = time.monotonic()
        examples = [self.draw(pool, 0.0)[0] for pool in self.pools]
        # One after the other they run, so that all of them may work in the same memory.
        memory = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        learn = [Captured(self.step, example, memory) for example in examples]
        look = [Captured(self.look, example, memory) for example in examples]
        sizes = np.array([len(pool.moods) for pool in self.pools])
        _LOG.info("ready to learn after %.0f s", time.monotonic() - started)
        number = 0
        while (spent := time.monotonic() - started) < plan.seconds and number < plan.max_steps:
            share = max(spent / plan.seconds, number / plan.max_steps)
            which = int(self.random.choice(len(sizes), p=sizes / sizes.sum()))
            inputs, position = self.draw(self.pools[which], max(plan.size(number, share), 0.01))
            if share > plan.rollout_from and self.random.random() < 0.6:
                inputs = self.roll_out(inputs, position, look[which])
            self.errors.append((inputs[2], learn[which](*inputs).clone()))
            self.average.update()
            if number % 100 == 0:
                _LOG.info("step %d %.0f s %s", number, spent, self.summary())
            if time.monotonic() - saved > _SAVE_EVERY_S:
                self.save(out)
                saved = time.monotonic()
            number += 1
        _LOG.info("%d steps in %.0f s %s", number, time.monotonic() - started, self.summary())
        self.save(out)

    def summary(self) -> str:
        """Mean error per level since the last call; nothing where no step was made since."""
        if not self.errors:
            return ""
        sigma, error = (torch.cat(parts) for parts in zip(*self.errors, strict=True))
        self.errors = []
        means = ((level, error[(sigma - level).abs() < 1e-4].mean().item()) for level, _ in LEVELS)
        return " ".join(f"{level:.3f}:{mean:.4f}" for level, mean in means)

    def save(self, out: Path) -> None:
        """Write the averaged weights in the layout of the release."""
        avatar = self.avatar
        self.average.swap()
        write_transformer(out, avatar.config, avatar.transformer, avatar.embedder)
        write_speech_encoder(out, SPEECH, avatar.speech)
        write_text_encoder(out, avatar.text, avatar.tokenizer)
        self.average.swap()


def emphasised(batch: Batch) -> Tensor:
    """Weights (B, F, H, W), mean 1 per clip: mouths far from half open count more.

    An error counts its square, so that a network in doubt draws every mouth half open; what is
    wide open or shut is what a viewer sees.
    """
    opening_BF = batch.targets[..., 0].unflatten(1, (-1, 4)).mean(-1)
    far_BF = 1 + _EMPHASIS * (opening_BF - _HALF_OPEN).abs()
    return (far_BF / far_BF.mean(1, keepdim=True))[..., None, None] * batch.weights[:, None]


def _grid(latents: Tensor) -> tuple[int, int]:
    """Token rows and columns of a frame."""
    return latents.shape[-2] // 2, latents.shape[-1] // 2


def _is_hidden(name: str) -> bool:
    """Whether a matrix belongs to a hidden layer; heads and tables learn with Adam."""
    outer = ("head.", "mouth_reader", "token_kind", "modulation", "weight_g", "original0")
    return not any(part in name for part in outer)
