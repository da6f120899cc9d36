"""One pipeline stage: take work, run this rank's layers, pass it on.

Stage 0 conducts: it follows the wavefront, holds the samples, and sends each piece of work down the
line with the tensors it acts on. The other stages do what comes. The last stage sends velocities
back to stage 0, which finishes the denoise step; finished latents go to the media rank. What a
stage needs of a job besides (embedded prompt, time table, speech of each block) comes from the
media rank.

    media ──JobOpen, BlockSpeech──▶ every stage
    stage k ──PrefillWork, StepWork, JobEnd──▶ stage k+1
    last stage ──Velocity──▶ stage 0 ──FinishedBlock, JobEnd──▶ media

Shapes: L block tokens, C condition tokens, D model width; latents (C, F, H, W).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from liveavatar.errors import DeadlineError, EngineError
from liveavatar.model.audio_injection import BlockAudio
from liveavatar.model.denoiser import Denoiser, Item, TokenGrid
from liveavatar.model.transformer import TimeTable, Transformer
from liveavatar.parallel.transfer import Link, Packet, Receiver, Sender
from liveavatar.parallel.wavefront import BlockStep, Pipeline, Prefill, Slot, schedule_video
from liveavatar.sampling import Schedule, block_noise, euler_step, relative_distance
from liveavatar.timeline import Timeline


@dataclass(frozen=True)
class JobOpen:
    """A job begins; with it come text (text_len, D), time tables, and for stage 0 the condition."""

    job: int
    timeline: Timeline
    schedule: Schedule
    grid: TokenGrid
    seed: int


@dataclass(frozen=True)
class BlockSpeech:
    """Encoded speech of a block; with it come the local and global vectors."""

    job: int
    block: int


@dataclass(frozen=True)
class PrefillWork:
    """Run the condition; with it comes the residual stream (C, D)."""

    job: int
    version: int


@dataclass(frozen=True)
class StepWork:
    """Run an item; with it comes the residual stream (L, D)."""

    job: int
    item: Item


@dataclass(frozen=True)
class Velocity:
    """Head output of an item; with it comes the velocity."""

    job: int
    block: int
    step: int


@dataclass(frozen=True)
class FinishedBlock:
    """A block's final latent comes with it."""

    job: int
    block: int


@dataclass(frozen=True)
class JobEnd:
    """No more work of this job follows."""

    job: int


@dataclass(frozen=True)
class JobCancel:
    """The media rank asks stage 0 to stop this job at once; blocks under way are dropped."""

    job: int


@dataclass(frozen=True)
class Shutdown:
    """No more jobs follow."""


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
class StageLinks:
    """A stage's ends of the links; what the stage does not have is None."""

    media: Receiver
    previous: Receiver | None = None
    following: Sender | None = None
    velocities: Receiver | Sender | None = None
    latents: Sender | None = None


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
        self.samples: dict[int, Tensor] = {}
        self.steps_done: dict[int, int] = {}
        self.first_latent: Tensor | None = None
        self.begun = False  # by the conductor
        self.under_way = 0  # items issued whose velocity has not come back
        self.all_issued = False
        self.cancelled = False


def stage_links(num_stages: int, media_rank: int) -> list[Link]:
    """All links of a pipeline whose stage k is rank k."""
    links = [Link(f"media-{k}", media_rank, k, depth=16) for k in range(num_stages)]
    links += [Link(f"{k}-{k + 1}", k, k + 1) for k in range(num_stages - 1)]
    if num_stages > 1:
        links.append(Link("velocities", num_stages - 1, 0, depth=8))
    links.append(Link("latents", 0, media_rank, depth=8))
    return links


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

    @torch.no_grad()
    def serve(self) -> None:
        """Work until Shutdown.

        Raises:
            WorkerDiedError: a neighbour is gone.
            DeadlineError: a neighbour kept this stage waiting too long while work was under way.
        """
        if self.plan.index == 0:
            Conductor(self).run()
        else:
            self._follow()

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

    def _follow(self) -> None:
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


@dataclass(order=True)
class _Due:
    """A job's next piece of work, ordered by tick, then by age of the job."""

    tick: int
    job: int
    slot: Slot = field(compare=False)
    rest: Iterator[Slot] = field(compare=False)


class Conductor:
    """Stage 0: decides what is done when, for as many jobs as are open.

    The next job's first blocks take the ticks that the last blocks of the job before leave free, so
    that the pipe does not drain between jobs.

    Args:
        stage: stage 0.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        stage.meanwhile = self._take_what_is_back
        self._due: list[_Due] = []
        self._next_start = 0
        self._tick = 0

    def run(self) -> None:
        """Work until the media rank sends Shutdown and all jobs are done."""
        stage = self.stage
        while True:
            while stage.take_from_media():
                pass
            self._take_what_is_back()
            self._begin_jobs()
            if self._due:
                self._do(heapq.heappop(self._due))
            elif any(job.under_way for job in stage.jobs.values()):
                self._take_velocity()
            elif stage.shutting_down:
                if stage.links.following is not None:
                    stage.pass_on(Shutdown())
                return
            else:
                stage.take_from_media(wait_s=0.2)

    def _begin_jobs(self) -> None:
        for number, job in sorted(self.stage.jobs.items()):
            if job.begun:
                continue
            job.begun = True
            opened = job.opened
            pipeline = Pipeline(self.stage.plan.num_stages, opened.schedule.num_steps)
            timeline = opened.timeline
            start = max(self._tick + 1, self._next_start)
            slots = schedule_video(pipeline, timeline.num_blocks, timeline.refresh_block)
            self._push(number, start, slots)
            self._next_start = start + pipeline.num_steps * timeline.num_blocks

    def _push(self, number: int, start: int, slots: Iterator[Slot]) -> None:
        job = self.stage.jobs[number]
        slot = None if job.cancelled else next(slots, None)
        if slot is not None:
            heapq.heappush(self._due, _Due(start + slot.tick, number, slot, slots))
            return
        job.all_issued = True
        if self.stage.links.following is not None:
            self.stage.pass_on(JobEnd(number))
        self._end_if_done(number)

    def _do(self, due: _Due) -> None:
        self._tick = due.tick
        job, work = self.stage.jobs[due.job], due.slot.work
        if isinstance(work, Prefill):
            self._prefill(due.job, job, work)
        else:
            self._step(due.job, job, work)
        self._push(due.job, due.tick - due.slot.tick, due.rest)

    def _prefill(self, number: int, job: StageJob, work: Prefill) -> None:
        reference, motion = job.condition
        if work.version == 1:
            self._take_velocities(lambda: job.first_latent is not None)
            assert job.first_latent is not None
            reference = job.first_latent
        started = time.perf_counter()
        hidden = self.stage.transformer.embed_condition(reference, motion)
        hidden = self.stage.run_prefill(PrefillWork(number, work.version), hidden)
        self.stage.busy.computing += time.perf_counter() - started
        if self.stage.links.following is not None:
            self.stage.pass_on(PrefillWork(number, work.version), hidden)

    def _step(self, number: int, job: StageJob, work: BlockStep) -> None:
        opened, reference = job.opened, job.condition[0]
        if work.step == 0:
            shape = (reference.shape[0], 3, *reference.shape[2:])
            job.samples[work.block] = block_noise(
                opened.seed, work.block, shape, dtype=reference.dtype, device=reference.device
            )
            job.steps_done[work.block] = 0
        self._take_velocities(lambda: job.steps_done[work.block] == work.step)
        distance = relative_distance(opened.seed, work.block, work.step)
        step = StepWork(number, Item(work.block, work.step, work.version, distance))
        started = time.perf_counter()
        job.under_way += 1
        hidden = self.stage.transformer.embed_block(job.samples[work.block])
        result = self.stage.run_step(step, hidden)
        self.stage.busy.computing += time.perf_counter() - started
        if self.stage.links.following is None:
            self._advance(Velocity(number, work.block, work.step), result)
        else:
            self.stage.pass_on(step, result)

    def _take_velocities(self, ready: Callable[[], bool]) -> None:
        """Take velocities as they come back, until `ready()`."""
        while not ready():
            self._take_velocity()

    def _take_what_is_back(self) -> None:
        """Take the velocities that are here, so that a finished block leaves at once.

        The media rank sends the speech of later blocks only when earlier ones are finished: a wait
        for speech must not keep them here.
        """
        if isinstance(self.stage.links.velocities, Receiver):
            while (packet := self.stage.links.velocities.poll()) is not None:
                self._advance(packet.message, packet.tensors[0])

    def _take_velocity(self) -> None:
        assert isinstance(self.stage.links.velocities, Receiver)
        started = time.perf_counter()
        packet = self.stage.links.velocities.receive(self.stage.plan.timeout_s)
        self.stage.busy.waiting += time.perf_counter() - started
        self._advance(packet.message, packet.tensors[0])

    def _advance(self, done: Velocity, velocity: Tensor) -> None:
        job = self.stage.jobs[done.job]
        job.under_way -= 1
        schedule = job.opened.schedule
        sample = euler_step(job.samples[done.block], velocity, schedule, done.step)
        job.samples[done.block] = sample
        job.steps_done[done.block] = done.step + 1
        if done.step + 1 == schedule.num_steps:
            if done.block == 0:
                job.first_latent = sample[:, :1]
            self._to_media(FinishedBlock(done.job, done.block), sample)
            del job.samples[done.block], job.steps_done[done.block]
        self._end_if_done(done.job)

    def _end_if_done(self, number: int) -> None:
        job = self.stage.jobs[number]
        if job.all_issued and not job.under_way:
            del self.stage.jobs[number]
            self._to_media(JobEnd(number))

    def _to_media(self, message: Any, *tensors: Tensor) -> None:
        assert self.stage.links.latents is not None
        self.stage.links.latents.send(message, *tensors, timeout_s=self.stage.plan.timeout_s)
