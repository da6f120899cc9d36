"""Stage 0's part beyond its layers: it decides what is done when, and holds the samples.

It follows the wavefront, sends each piece of work down the line with the tensors it acts on, and
finishes a denoise step when the last stage's velocity is back. Finished latents go to the media
rank.

Shapes: latents (C, F, H, W).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from liveavatar.config import LATENT_FRAMES_PER_BLOCK
from liveavatar.model.denoiser import Item
from liveavatar.parallel.blame import work_of
from liveavatar.parallel.messages import (
    FinishedBlock,
    JobEnd,
    PrefillWork,
    Shutdown,
    StepWork,
    Velocity,
)
from liveavatar.parallel.stage import Stage, StageJob
from liveavatar.parallel.transfer import Receiver
from liveavatar.parallel.wavefront import BlockStep, Pipeline, Prefill, Slot, schedule_video
from liveavatar.sampling import block_noise, euler_step, relative_distance


@torch.no_grad()
def serve(stage: Stage) -> None:
    """Work until Shutdown: the lead of stage 0 conducts, the others do what comes down the line.

    Raises:
        WorkerDiedError: a neighbour is gone.
        DeadlineError: a neighbour kept this stage waiting too long while work was under way.
    """
    if stage.plan.conducts:
        Conductor(stage).run()
    else:
        stage.follow()


@dataclass(order=True)
class _Due:
    """A job's next piece of work, ordered by tick, then by age of the job."""

    tick: int
    job: int
    slot: Slot = field(compare=False)
    rest: Iterator[Slot] = field(compare=False)


@dataclass
class _Video:
    """A job as it is conducted.

    Attributes:
        job: as the stage holds it.
        condition: latents of reference and motion.
        samples: of each block that is begun and not finished.
        steps_done: of each of them.
        first_latent: first latent frame of the finished block 0, the reference of the refresh.
        under_way: items issued whose velocity has not come back.
        all_issued: whether no more items follow.
    """

    job: StageJob
    condition: tuple[Tensor, ...]
    samples: dict[int, Tensor] = field(default_factory=dict)
    steps_done: dict[int, int] = field(default_factory=dict)
    first_latent: Tensor | None = None
    under_way: int = 0
    all_issued: bool = False


class Conductor:
    """The lead of stage 0: decides what is done when, for as many jobs as are open.

    The next job's first blocks take the ticks that the last blocks of the job before leave free, so
    that the pipe does not drain between jobs.

    Args:
        stage: stage 0.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        stage.meanwhile = self._take_what_is_back
        self._videos: dict[int, _Video] = {}
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
            elif any(video.under_way for video in self._videos.values()):
                self._take_velocity()
            elif stage.shutting_down:
                self._hand_out(Shutdown())
                stage.pass_on(Shutdown())
                return
            else:
                stage.take_from_media(wait_s=0.2)

    def _begin_jobs(self) -> None:
        for number, job in sorted(self.stage.jobs.items()):
            if number in self._videos:
                continue
            opened, condition = job.opened, job.tensors[3:5]
            first_latent = job.tensors[5] if opened.first_block else None
            self._videos[number] = _Video(job, condition, first_latent=first_latent)
            pipeline = Pipeline(self.stage.plan.mesh.num_stages, opened.schedule.num_steps)
            timeline = opened.timeline
            start = max(self._tick + 1, self._next_start)
            slots = schedule_video(
                pipeline, timeline.num_blocks, timeline.refresh_block, opened.first_block
            )
            self._push(number, start, slots)
            blocks = timeline.num_blocks - opened.first_block
            self._next_start = start + pipeline.num_steps * blocks

    def _push(self, number: int, start: int, slots: Iterator[Slot]) -> None:
        video = self._videos[number]
        slot = None if video.job.cancelled else next(slots, None)
        if slot is not None:
            heapq.heappush(self._due, _Due(start + slot.tick, number, slot, slots))
            return
        video.all_issued = True
        self._hand_out(JobEnd(number))
        self.stage.pass_on(JobEnd(number))
        self._end_if_done(number)

    def _do(self, due: _Due) -> None:
        self._tick = due.tick
        video, work = self._videos[due.job], due.slot.work
        with work_of(due.job):
            if isinstance(work, Prefill):
                self._prefill(due.job, video, work)
            else:
                self._step(due.job, video, work)
        self._push(due.job, due.tick - due.slot.tick, due.rest)

    def _prefill(self, number: int, video: _Video, work: Prefill) -> None:
        reference, motion = video.condition
        if work.version == 1:
            self._take_velocities(lambda: video.first_latent is not None)
            assert video.first_latent is not None
            reference = video.first_latent
        prefill = PrefillWork(number, work.version)
        hidden = self.stage.transformer.embed_condition(reference, motion)
        hidden = self.stage.run_prefill(prefill, self._hand_out_tokens(prefill, hidden))
        self.stage.pass_on(prefill, hidden)

    def _step(self, number: int, video: _Video, work: BlockStep) -> None:
        opened, reference = video.job.opened, video.condition[0]
        if work.step == 0:
            shape = (reference.shape[0], LATENT_FRAMES_PER_BLOCK, *reference.shape[2:])
            video.samples[work.block] = block_noise(
                opened.seed, work.block, shape, dtype=reference.dtype, device=reference.device
            )
            video.steps_done[work.block] = 0
        self._take_velocities(lambda: video.steps_done[work.block] == work.step)
        distance = relative_distance(opened.seed, work.block, work.step)
        step = StepWork(number, Item(work.block, work.step, work.version, distance))
        video.under_way += 1
        hidden = self.stage.transformer.embed_block(video.samples[work.block])
        result = self.stage.run_step(step, self._hand_out_tokens(step, hidden))
        if self.stage.plan.is_last:
            self._advance(Velocity(number, work.block, work.step), result)
        else:
            self.stage.pass_on(step, result)

    def _hand_out(self, message: Any) -> None:
        """Tell the other ranks of stage 0."""
        for sender in self.stage.links.peers.values():
            sender.send(message, timeout_s=self.stage.plan.timeout_s)

    def _hand_out_tokens(self, work: Any, hidden_TD: Tensor) -> Tensor:
        """Give each of the other ranks of stage 0 its tokens of some work; returns those kept."""
        plan, count = self.stage.plan, len(hidden_TD)
        for place, sender in self.stage.links.peers.items():
            part = plan.tokens(count, place)
            sender.send(work, hidden_TD[part.start : part.stop], timeout_s=plan.timeout_s)
        own = plan.tokens(count)
        return hidden_TD[own.start : own.stop]

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
        with self.stage.activity.waiting():
            packet = self.stage.links.velocities.receive(self.stage.plan.timeout_s)
        self._advance(packet.message, packet.tensors[0])

    def _advance(self, done: Velocity, velocity: Tensor) -> None:
        video = self._videos[done.job]
        video.under_way -= 1
        schedule = video.job.opened.schedule
        with work_of(done.job):
            sample = euler_step(video.samples[done.block], velocity, schedule, done.step)
        video.samples[done.block] = sample
        video.steps_done[done.block] = done.step + 1
        if done.step + 1 == schedule.num_steps:
            if done.block == 0:
                video.first_latent = sample[:, :1]
            self._to_media(FinishedBlock(done.job, done.block), sample)
            del video.samples[done.block], video.steps_done[done.block]
        self._end_if_done(done.job)

    def _end_if_done(self, number: int) -> None:
        video = self._videos[number]
        if video.all_issued and not video.under_way:
            del self._videos[number]
            self.stage.end_job(number)
            self._to_media(JobEnd(number))

    def _to_media(self, message: Any, *tensors: Tensor) -> None:
        assert self.stage.links.latents is not None
        self.stage.links.latents.send(message, *tensors, timeout_s=self.stage.plan.timeout_s)
