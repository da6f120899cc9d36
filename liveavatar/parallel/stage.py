"""One pipeline stage: take work, run this rank's layers, pass it on.

Stage 0 conducts (see `conductor`); the stages behind it do what comes down the line. The last stage
sends velocities back to stage 0. What a stage needs of a job besides (embedded prompt, time table,
speech of each block) comes from the media rank.

Shapes: L block tokens, C condition tokens, D model width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from liveavatar.errors import DeadlineError, EngineError
from liveavatar.model.audio_injection import BlockAudio
from liveavatar.model.denoiser import Denoiser
from liveavatar.model.transformer import TimeTable, Transformer
from liveavatar.parallel.activity import Activity
from liveavatar.parallel.blame import work_of
from liveavatar.parallel.denoisers import Denoisers, JobSizes
from liveavatar.parallel.links import StageLinks
from liveavatar.parallel.mesh import Mesh, Place, shares
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
from liveavatar.parallel.ring_keeper import RingKeeper
from liveavatar.parallel.transfer import Packet, Sender


@dataclass(frozen=True)
class StagePlan:
    """Where a stage stands.

    Attributes:
        mesh: shape of the worker group.
        rank: of this process.
        timeout_s: longest wait for a neighbour while work is under way.
    """

    mesh: Mesh
    rank: int
    timeout_s: float = 120.0

    @property
    def place(self) -> Place:
        """Where in the mesh this rank is."""
        place = self.mesh.place(self.rank)
        assert place is not None
        return place

    @property
    def conducts(self) -> bool:
        """Whether this rank decides what is done when."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether the head is here."""
        return self.place.stage == self.mesh.num_stages - 1

    def records(self, transformer: Transformer) -> bool:
        """Whether forwards may be recorded: on a GPU, and no rank waits for another inside one."""
        alone = self.mesh.tp_degree == self.mesh.sp_degree == 1
        return alone and next(transformer.parameters()).is_cuda

    def tokens(self, count: int, place: Place | None = None) -> range:
        """Which of `count` tokens the rank at `place` has, this one by default."""
        return shares(count, self.mesh.sp_degree)[(place or self.place).sp_rank]


@dataclass
class StageJob:
    """A job as one rank holds it.

    What arrives from the media rank is only kept; it is computed with when the work comes that
    needs it, so that all ranks of a stage do so at the same point.

    Attributes:
        opened: as the media rank described it.
        tensors: that came with it.
        denoiser: constants and caches, from the first condition on.
        speech: of blocks that are not begun.
        cancelled: whether the media rank asked to stop it.
        keeper: of resume points; None where none are kept.
    """

    opened: JobOpen
    tensors: tuple[Tensor, ...]
    denoiser: Denoiser | None = None
    speech: dict[int, BlockAudio] = field(default_factory=dict)
    cancelled: bool = False
    keeper: RingKeeper | None = None

    def begin(self, denoisers: Denoisers, tokens: range) -> Denoiser:
        """Take constants and caches, for some tokens of each block; only once.

        The caches are empty, or those of the resume point that the job goes on from.
        """
        if self.denoiser is None:
            opened = self.opened
            text_LD, head_SD, layers_S6D = self.tensors[:3]
            sizes = JobSizes(
                opened.schedule.num_steps,
                opened.grid,
                opened.timeline.window_blocks,
                tokens if len(tokens) < opened.grid.block_tokens else None,
            )
            self.denoiser = denoisers.take(sizes, TimeTable(head_SD, layers_S6D), text_LD)
            if self.keeper is not None and self.opened.first_block:
                self.keeper.restore(self.denoiser, self.opened.first_block)
        return self.denoiser

    def end(self) -> None:
        """No more work of this job follows."""
        if self.keeper is not None:
            self.keeper.close()


class Stage:
    """Runs one range of layers for one job after another.

    Args:
        transformer: this stage's layers.
        plan: its place in the line.
        links: its ends of the links.
        activity: what it does and where its time goes.
    """

    def __init__(
        self, transformer: Transformer, plan: StagePlan, links: StageLinks, activity: Activity
    ) -> None:
        self.transformer = transformer
        self.plan = plan
        self.links = links
        self.activity = activity
        self.denoisers = Denoisers(transformer, recorded=plan.records(transformer))
        self.jobs: dict[int, StageJob] = {}
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
            points = message.points
            keeper = None if points is None else RingKeeper(points, self.plan.rank)
            self.jobs[message.job] = StageJob(message, packet.tensors, keeper=keeper)
        elif isinstance(message, BlockSpeech):
            job = self.jobs.get(message.job)
            if job is not None:  # a cancelled job's speech may still be on its way
                job.speech[message.block] = BlockAudio(*packet.tensors)
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
                    f"stage {self.plan.place.stage} waited {self.plan.timeout_s:.0f} s for {what}"
                )
            self.take_from_media(wait_s=0.05)
            self.meanwhile()

    def run_prefill(self, work: PrefillWork, hidden_CD: Tensor) -> Tensor:
        """Run this stage's layers on the condition."""
        job = self.job(work.job)
        tokens = self.plan.tokens(job.opened.grid.block_tokens)
        with work_of(work.job), self.activity.computing(f"job {work.job} condition"):
            return job.begin(self.denoisers, tokens).prefill(hidden_CD, work.version)

    def run_step(self, work: StepWork, hidden_LD: Tensor) -> Tensor:
        """Run this stage's layers on an item; the last stage goes on to the velocity."""
        job, item = self.job(work.job), work.item
        denoiser, block = job.denoiser, item.block_index
        assert denoiser is not None
        if item.step == 0:
            self.wait_for(lambda: block in job.speech, f"speech of block {block}")
            denoiser.hear(block, job.speech.pop(block))
        doing = f"job {work.job} block {block} step {item.step}"
        with work_of(work.job), self.activity.computing(doing):
            hidden_LD = denoiser.forward(hidden_LD, item)
            if self.plan.is_last:
                hidden_LD = denoiser.head(hidden_LD, item.step)
        last = job.opened.schedule.num_steps - 1
        if job.keeper is not None and block + 1 < job.opened.timeline.num_blocks:
            job.keeper.step_is_done(denoiser, block, item.step, last=item.step == last)
        if item.step == last:
            denoiser.finish_block(block)
        return hidden_LD

    def end_job(self, number: int) -> None:
        """Forget a job; its state is kept for the next."""
        job = self.jobs.pop(number)
        job.end()
        if job.denoiser is not None:
            self.denoisers.rest(job.denoiser)

    def pass_on(self, message: Any, *tensors: Tensor) -> None:
        """Send to the next stage, if there is one."""
        if self.links.following is None:
            return
        with self.activity.sending():
            self.links.following.send(message, *tensors, timeout_s=self.plan.timeout_s)

    def follow(self) -> None:
        """Do what comes down the line, until Shutdown."""
        while True:
            with self.activity.waiting():
                packet = self._next_work()
            message = packet.message
            if isinstance(message, Shutdown):
                self.pass_on(message)
                return
            if isinstance(message, JobEnd):
                self.job(message.job)  # one that ends before it began is still to be opened here
                self.end_job(message.job)
                self.pass_on(message)
                continue
            if isinstance(message, PrefillWork):
                hidden = self.run_prefill(message, packet.tensors[0])
            else:
                hidden = self.run_step(message, packet.tensors[0])
            if isinstance(message, StepWork) and self.plan.is_last:
                self._send_back(message, hidden)
            else:
                self.pass_on(message, hidden)

    def _send_back(self, work: StepWork, velocity: Tensor) -> None:
        if isinstance(self.links.velocities, Sender):
            done = Velocity(work.job, work.item.block_index, work.item.step)
            with self.activity.sending():
                self.links.velocities.send(done, velocity, timeout_s=self.plan.timeout_s)

    def _next_work(self) -> Packet:
        """The next message of the previous stage; between jobs there is no deadline."""
        assert self.links.previous is not None
        while True:
            packet = self.links.previous.poll(wait_s=0.2)
            if packet is not None:
                return packet
            self.take_from_media()  # notices a media rank that is gone, and opens jobs early
