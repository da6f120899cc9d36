"""One pipeline stage: take work, run this rank's layers, pass it on.

Stage 0 conducts (see `conductor`); the stages behind it do what comes down the line. The last stage
sends velocities back to stage 0. What a stage needs of a job besides (embedded prompt, time table,
speech of each block) comes from the media rank.

Shapes: L block tokens, C condition tokens, D model width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from liveavatar.errors import DeadlineError, EngineError
from liveavatar.model.audio_injection import BlockAudio
from liveavatar.model.denoiser import Denoiser
from liveavatar.model.transformer import TimeTable, Transformer
from liveavatar.parallel.links import StageLinks
from liveavatar.parallel.messages import (
    BlockSpeech,
    JobCancel,
    JobEnd,
    JobOpen,
    PrefillWork,
    Shutdown,
    StepWork,
    Velocity,
)
from liveavatar.parallel.transfer import Packet, Sender


@dataclass(frozen=True)
class StagePlan:
    """Where a stage stands.

    Attributes:
        index: stage number.
        num_stages: K.
        timeout_s: longest wait for a neighbour while work is under way.
    """

    index: int
    num_stages: int
    timeout_s: float = 120.0


@dataclass
class BusyTime:
    """Where the time of a stage went, seconds."""

    computing: float = 0.0
    waiting: float = 0.0
    sending: float = 0.0
    items: int = 0


class StageJob:
    """A job as one stage holds it: caches and the speech that has arrived."""

    def __init__(self, opened: JobOpen, tensors: tuple[Tensor, ...], transformer: Transformer):
        text_LD, head_SD, layers_S6D, *condition = tensors
        self.opened = opened
        self.condition = condition
        self.denoiser = Denoiser(
            transformer,
            TimeTable(head_SD, layers_S6D),
            text_LD,
            opened.grid,
            opened.timeline.window_blocks,
        )
        self.heard_blocks: set[int] = set()
        self.cancelled = False


class Stage:
    """Runs one range of layers for one job after another.

    Args:
        transformer: this stage's layers.
        plan: its place in the line.
        links: its ends of the links.
    """

    def __init__(self, transformer: Transformer, plan: StagePlan, links: StageLinks) -> None:
        self.transformer = transformer
        self.plan = plan
        self.links = links
        self.jobs: dict[int, StageJob] = {}
        self.busy = BusyTime()
        self.shutting_down = False
        self.meanwhile: Callable[[], None] = lambda: None  # what else to do in a wait

    def take_from_media(self, wait_s: float = 0.0) -> bool:
        """Take one message of the media rank if there is one; tells whether there was."""
        if self.shutting_down:
            return False  # it was the last one, and the link may be closed already
        packet = self.links.media.poll(wait_s)
        if packet is None:
            return False
        message = packet.message
        if isinstance(message, JobOpen):
            self.jobs[message.job] = StageJob(message, packet.tensors, self.transformer)
        elif isinstance(message, BlockSpeech):
            job = self.jobs.get(message.job)
            if job is not None:  # a cancelled job's speech may still be on its way
                job.denoiser.hear(message.block, BlockAudio(*packet.tensors))
                job.heard_blocks.add(message.block)
        elif isinstance(message, JobCancel):
            if message.job in self.jobs:
                self.jobs[message.job].cancelled = True
        elif isinstance(message, Shutdown):
            self.shutting_down = True
        else:
            raise EngineError(f"unexpected message from the media rank: {message!r}")
        return True

    def job(self, number: int) -> StageJob:
        """The job `number`, waiting for it to be opened by the media rank."""
        self.wait_for(lambda: number in self.jobs, f"job {number} to be opened")
        return self.jobs[number]

    def wait_for(self, ready: Callable[[], bool], what: str) -> None:
        """Take messages of the media rank until `ready()`; DeadlineError when time runs out."""
        deadline = time.monotonic() + self.plan.timeout_s
        while not ready():
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"stage {self.plan.index} waited {self.plan.timeout_s:.0f} s for {what}"
                )
            self.take_from_media(wait_s=0.05)
            self.meanwhile()

    def run_prefill(self, work: PrefillWork, hidden_CD: Tensor) -> Tensor:
        """Run this stage's layers on the condition."""
        return self.job(work.job).denoiser.prefill(hidden_CD, work.version)

    def run_step(self, work: StepWork, hidden_LD: Tensor) -> Tensor:
        """Run this stage's layers on an item; the last stage goes on to the velocity."""
        job, item = self.job(work.job), work.item
        self.wait_for(
            lambda: item.block_index in job.heard_blocks, f"speech of block {item.block_index}"
        )
        hidden_LD = job.denoiser.forward(hidden_LD, item)
        if item.step == job.opened.schedule.num_steps - 1:
            job.denoiser.finish_block(item.block_index)
            job.heard_blocks.discard(item.block_index)
        self.busy.items += 1
        if self.plan.index == self.plan.num_stages - 1:
            return job.denoiser.head(hidden_LD, item.step)
        return hidden_LD

    def pass_on(self, message: Any, *tensors: Tensor) -> None:
        """Send to the next stage."""
        started = time.perf_counter()
        assert self.links.following is not None
        self.links.following.send(message, *tensors, timeout_s=self.plan.timeout_s)
        self.busy.sending += time.perf_counter() - started

    def follow(self) -> None:
        """Do what the previous stage sends, until Shutdown."""
        assert self.links.previous is not None
        last = self.plan.index == self.plan.num_stages - 1
        while True:
            started = time.perf_counter()
            packet = self._next_work()
            self.busy.waiting += time.perf_counter() - started
            message = packet.message
            if isinstance(message, Shutdown):
                if not last:
                    self.pass_on(message)
                return
            started = time.perf_counter()
            if isinstance(message, JobEnd):
                self.job(message.job)  # one that ends before it began is still to be opened here
                del self.jobs[message.job]
                if not last:
                    self.pass_on(message)
                continue
            if isinstance(message, PrefillWork):
                hidden = self.run_prefill(message, packet.tensors[0])
                self.busy.computing += time.perf_counter() - started
                if not last:
                    self.pass_on(message, hidden)
                continue
            assert isinstance(message, StepWork)
            hidden = self.run_step(message, packet.tensors[0])
            self.busy.computing += time.perf_counter() - started
            if last:
                assert isinstance(self.links.velocities, Sender)
                velocity = Velocity(message.job, message.item.block_index, message.item.step)
                self.links.velocities.send(velocity, hidden, timeout_s=self.plan.timeout_s)
            else:
                self.pass_on(message, hidden)

    def _next_work(self) -> Packet:
        """The next message of the previous stage; between jobs there is no deadline."""
        assert self.links.previous is not None
        while True:
            packet = self.links.previous.poll(wait_s=0.2)
            if packet is not None:
                return packet
            self.take_from_media()  # notices a media rank that is gone, and opens jobs early
