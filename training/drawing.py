"""Many clips drawn at once, by several processes, on a GPU and beside the training on the host.

A clip depends on the seed and its number alone, not on which process draws it.

Shapes: M clips, T frames, H, W, N samples, K cues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        count: most clips wanted.
        num_frames: of a clip.
        sizes: width and height in pixels of one clip after the other, over and over.
        seed: of everything.
        quick: processes that draw on the GPU where there is one, until they are waited for.
        patient: processes that draw on processor cores beside the training, until the end.
    """

    corpus: Path
    count: int
    num_frames: int
    sizes: Sequence[tuple[int, int]]
    seed: int
    quick: int
    patient: int

    def place(self, number: int) -> tuple[tuple[int, int], int]:
        """Size of a clip, and how many clips of this size come before it."""
        rounds, turn = divmod(number, len(self.sizes))
        size = self.sizes[turn]
        return size, rounds * self.sizes.count(size) + self.sizes[:turn].count(size)

    def empty(self) -> dict[tuple[int, int], Drawn]:
        """Make shared memory for the clips of each size."""
        rounds = -(-self.count // len(self.sizes))
        counts = {size: rounds * self.sizes.count(size) for size in dict.fromkeys(self.sizes)}
        return {size: Drawn.empty(n, self.num_frames, size) for size, n in counts.items()}


class Drawing:
    """Processes at work on an order.

    Args:
        order: what to draw.
    """

    def __init__(self, order: Order) -> None:
        self.started = time.monotonic()
        self.drawn = order.empty()
        context = processes.get_context("spawn")
        self._quick_stop, self._stop = context.Event(), context.Event()
        self._taken = context.Value("l", 0)  # kept: it lives as long as this process knows it
        fast = "cuda" if torch.cuda.is_available() else "cpu"
        corpus = Corpus(order.corpus, fast)
        places = [(fast, self._quick_stop)] * order.quick + [("cpu", self._stop)] * order.patient
        self._workers = [
            context.Process(
                target=_work, args=(order, corpus, self.drawn, self._taken, *place), daemon=True
            )
            for place in places
        ]
        self._quick = self._workers[: order.quick]
        for worker in self._workers:
            worker.start()

    def first(self, seconds: float) -> dict[tuple[int, int], Drawn]:
        """End the quick processes so many seconds after the start; the clips up to then by size."""
        deadline = self.started + seconds
        while time.monotonic() < deadline and any(worker.is_alive() for worker in self._quick):
            time.sleep(0.1)
        self._quick_stop.set()
        return self._joined(self._quick)

    def close(self) -> dict[tuple[int, int], Drawn]:
        """End all processes; all clips by size."""
        self._quick_stop.set()
        self._stop.set()
        return self._joined(self._workers)

    def _joined(self, workers: list[Any]) -> dict[tuple[int, int], Drawn]:
        deadline = time.monotonic() + _JOIN_S
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                worker.kill()
        finished = {size: drawn.finished() for size, drawn in self.drawn.items()}
        for (width, height), drawn in finished.items():
            spent = time.monotonic() - self.started
            _LOG.info("%d clips of %dx%d after %.0f s", len(drawn.moods), width, height, spent)
        return finished


@torch.no_grad()
def _work(
    order: Order,
    corpus: Corpus,
    all_drawn: dict[tuple[int, int], Drawn],
    taken: Any,
    device: str,
    stop: Any,
) -> None:
    """Draw one number after another, each taken by one process, until told to stop."""
    torch.set_num_threads(1)
    while not stop.is_set():
        with taken.get_lock():
            number, taken.value = taken.value, taken.value + 1
        if number >= order.count:
            return
        size, row = order.place(number)
        random = np.random.default_rng((order.seed, *size, number))
        clip = draw_clip(random, corpus, order.num_frames, size, torch.device(device))
        drawn = all_drawn[size]
        drawn.frames[row] = clip.frames_THWC.cpu()
        drawn.sound[row], drawn.targets[row] = clip.sound_N, clip.targets_T3
        drawn.cues[row], drawn.moods[row] = clip.cues_FK, clip.mood
        drawn.focus[row] = clip.focus_42
        drawn.done[row] = 1
