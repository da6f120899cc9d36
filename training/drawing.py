"""Many clips drawn at once, by several processes: one of them only waits to launch kernels.

A clip depends on the seed and its number alone, not on which process draws it.

Shapes: M clips, T frames, H, W, N samples, K cues.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as processes
from torch import Tensor

from training.clips import MARGIN_S, SAMPLES_PER_FRAME, Corpus, draw_clip
from training.performance import NUM_CUES

_LOG = logging.getLogger("drawing")
_JOIN_S = 60.0


@dataclass(frozen=True)
class Drawn:
    """Clips in host memory that processes share.

    Attributes:
        frames: (M, T, H, W, 3) uint8; frame 0 is the portrait at rest.
        sound: (M, N) float32.
        targets: (M, T, 3) mouth opening, width, hiss.
        cues: (M, F, K).
        moods: (M,) int64.
        focus: (M, 4, 2) places of mouth, eyes and face in pixels.
        done: (M,) uint8, 1 where a clip was drawn.
    """

    frames: Tensor
    sound: Tensor
    targets: Tensor
    cues: Tensor
    moods: Tensor
    focus: Tensor
    done: Tensor

    @classmethod
    def empty(cls, count: int, num_frames: int, size: tuple[int, int]) -> Drawn:
        """Make shared memory for `count` clips."""
        samples = num_frames * SAMPLES_PER_FRAME + int(MARGIN_S * 16000)
        made = cls(
            torch.empty(count, num_frames, size[1], size[0], 3, dtype=torch.uint8),
            torch.empty(count, samples),
            torch.empty(count, num_frames, 3),
            torch.empty(count, num_frames // 4, NUM_CUES),
            torch.empty(count, dtype=torch.int64),
            torch.empty(count, 4, 2),
            torch.zeros(count, dtype=torch.uint8),
        )
        for part in made.parts():
            part.share_memory_()
        return made

    def parts(self) -> tuple[Tensor, ...]:
        """All tensors in the order of the fields."""
        return (
            self.frames, self.sound, self.targets, self.cues, self.moods, self.focus, self.done,
        )  # fmt: skip

    def finished(self) -> Drawn:
        """Only the clips that were drawn."""
        chosen = torch.nonzero(self.done).flatten()
        return Drawn(*(part[chosen] for part in self.parts()))


@dataclass(frozen=True)
class Order:
    """What to draw.

    Attributes:
        corpus: file of the speech corpus.
        count: clips wanted.
        num_frames: of a clip.
        size: width and height in pixels.
        seed: of everything.
        seconds: after which fewer clips are fine.
        workers: processes.
    """

    corpus: Path
    count: int
    num_frames: int
    size: tuple[int, int]
    seed: int
    seconds: float
    workers: int


def draw_many(order: Order) -> Drawn:
    """Draw the clips of an order."""
    started = time.monotonic()
    drawn = Drawn.empty(order.count, order.num_frames, order.size)
    if order.workers <= 1:
        _draw_some(order, 0, drawn, started + order.seconds)
    else:
        context = processes.get_context("spawn")
        deadline = time.time() + order.seconds
        workers = [
            context.Process(target=_work, args=(order, number, drawn, deadline), daemon=True)
            for number in range(order.workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, deadline + _JOIN_S - time.time()))
            if worker.is_alive():
                worker.kill()
    drawn = drawn.finished()
    _LOG.info("%d clips in %.0f s", len(drawn.moods), time.monotonic() - started)
    return drawn


def _work(order: Order, worker: int, drawn: Drawn, deadline: float) -> None:
    _draw_some(order, worker, drawn, time.monotonic() + deadline - time.time())


@torch.no_grad()
def _draw_some(order: Order, worker: int, drawn: Drawn, deadline: float) -> None:
    torch.set_num_threads(1 if order.workers > 1 else torch.get_num_threads())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = Corpus(order.corpus, device)
    for number in range(worker, order.count, order.workers):
        random = np.random.default_rng((order.seed, *order.size, number))
        clip = draw_clip(random, corpus, order.num_frames, order.size, device)
        drawn.frames[number] = clip.frames_THWC.cpu()
        drawn.sound[number], drawn.targets[number] = clip.sound_N, clip.targets_T3
        drawn.cues[number], drawn.moods[number] = clip.cues_FK, clip.mood
        drawn.focus[number] = clip.focus_42
        drawn.done[number] = 1
        if time.monotonic() > deadline:
            return
