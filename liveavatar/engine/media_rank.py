"""The media rank: conditions out to the stages, latents in, frames to the growing file.

Several things go on at once. The next job is prepared in a thread while this one renders, its
portrait in turns with the decoding of this one's blocks; the main thread receives finished latents,
decodes them and paces the speech; frames are encoded and written in a thread per file; the links
have threads of their own. Speech of a block is sent when an earlier block is finished, so that what
waits at the stages does not grow with the video.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from liveavatar.conditioning import Conditions, Encoders
from liveavatar.config import FRAMES_PER_BLOCK
from liveavatar.engine.autoencoder_turn import AutoencoderTurn
from liveavatar.engine.live_video import LiveVideo
from liveavatar.engine.messages import Refused, RenderJob
from liveavatar.engine.preparation import Preparation, Prepared
from liveavatar.engine.resume import JobPoints, MediaPoint
from liveavatar.errors import CheckpointError, EngineError, MediaError
from liveavatar.model.denoiser import TokenGrid
from liveavatar.model.transformer import ConditionEmbedder
from liveavatar.model.vae import Decoder
from liveavatar.parallel.activity import Activity
from liveavatar.parallel.blame import work_of
from liveavatar.parallel.messages import (
    BlockSpeech,
    FinishedBlock,
    JobCancel,
    JobEnd,
    JobOpen,
    Shutdown,
)
from liveavatar.parallel.transfer import Packet, Receiver, Sender
from liveavatar.parallel.wavefront import Pipeline
from liveavatar.plan.transformer_memory import SPARE_BLOCKS
from liveavatar.resume_points import write_part
from liveavatar.sampling import make_schedule
from liveavatar.single_device import VideoDecoder

logger = logging.getLogger(__name__)

_POLL_S = 0.05
_IDLE_POLL_S = 0.01
"""While no job is open: no latents come, and the next prepared job is not to wait."""


@dataclass(frozen=True)
class MediaNetworks:
    """Networks of the media rank."""

    encoders: Encoders
    embedder: ConditionEmbedder
    decoder: Decoder


@dataclass(frozen=True)
class MediaPlan:
    """How the media rank works.

    Attributes:
        num_stages: pipeline stages.
        jobs_at_once: jobs that may be open at the stages.
        timeout_s: longest wait for a stage to take a message, or for a file to take frames.
        points_of: where a job's resume points lie; None where none are kept.
    """

    num_stages: int
    jobs_at_once: int
    timeout_s: float
    points_of: Callable[[RenderJob], JobPoints | None]


@dataclass(frozen=True)
class MediaLinks:
    """Links to each transformer rank, and from the one that conducts, which is the first."""

    to_stages: list[Sender]
    latents: Receiver


@dataclass
class _OpenJob:
    """A job whose work is in the stages."""

    job: RenderJob
    conditions: Conditions
    decoder: VideoDecoder
    video: LiveVideo
    points: JobPoints | None
    first_block: int
    first_latent_CFHW: Tensor | None
    waiting: list[Tensor] = field(default_factory=list)
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.speech_sent = self.blocks_done = self.first_block


class MediaRank:
    """Serves jobs one after another.

    Args:
        networks: encoders and decoder.
        links: to the stages and from them.
        plan: how it works.
        activity: what it does and where its time goes.
    """

    def __init__(
        self,
        networks: MediaNetworks,
        links: MediaLinks,
        plan: MediaPlan,
        activity: Activity,
    ) -> None:
        self.networks = networks
        self._links = links
        self._plan = plan
        self._activity = activity
        self._turn = AutoencoderTurn(networks.decoder.conv2.weight.device)
        self._report: Callable[[object], None] = lambda _: None
        self._open: dict[int, _OpenJob] = {}
        self._closing: list[LiveVideo] = []

    @torch.no_grad()
    def serve(self, jobs: Preparation, report: Callable[[object], None]) -> None:
        """Work until `jobs` is stopped and all of them are done.

        Args:
            jobs: where they come from.
            report: tells how they go on.

        Raises:
            WorkerDiedError: a stage is gone.
            DeadlineError: a stage took nothing in time.
        """
        self._report = report
        encoders = replace(self.networks.encoders, image_turn=self._turn.taken)
        jobs.start(encoders, self.networks.embedder)
        more = True
        while more or self._open or self._closing:
            if more and len(self._open) < self._plan.jobs_at_once:
                more = self._open_next(jobs)
            self._pass_on_cancels(jobs)
            with self._activity.waiting():
                packet = self._links.latents.poll(_POLL_S if self._open else _IDLE_POLL_S)
            if packet is not None:
                self._take(packet)
            self._forget_the_closed(jobs)

    def shut_down(self) -> None:
        """Tell the stages that no more jobs follow."""
        for sender in self._links.to_stages:
            sender.send(Shutdown(), timeout_s=self._plan.timeout_s)

    def _open_next(self, jobs: Preparation) -> bool:
        """Open the next prepared job if there is one; False when no more will come."""
        try:
            prepared = jobs.next_job()
        except StopIteration:
            return False
        if prepared is not None:
            try:
                points = self._plan.points_of(prepared.job)
                video = LiveVideo(prepared.job, self._report, _point_writer(points))
            except MediaError as error:
                jobs.forget(prepared.job.number)
                self._report(Refused(prepared.job.number, str(error)))
            else:
                with work_of(prepared.job.number):
                    self._begin(prepared, video, points)
        return True

    def _begin(self, prepared: Prepared, video: LiveVideo, points: JobPoints | None) -> None:
        job, conditions = prepared.job, prepared.conditions
        video.tell_progress()
        if video.num_frames >= job.timeline.num_frames:  # killed between the last block and the end
            video.finish(cut_short=False, timeout_s=self._plan.timeout_s)
            self._closing.append(video)
            return
        with self._activity.computing(f"job {job.number} opening"):
            decoder = VideoDecoder(
                self.networks.decoder,
                conditions.motion_CFHW,
                torch.tensor(job.portrait_HWC),
                job.timeline.num_frames,
            )
            point = _resumed_at(decoder, points, video.num_frames) if job.resumes else None
        first_block = 0 if point is None else point.block
        video.skip(video.num_frames - first_block * FRAMES_PER_BLOCK)
        first_latent = None if point is None else point.first_latent_CFHW
        opened = _OpenJob(job, conditions, decoder, video, points, first_block, first_latent)
        self._open[job.number] = opened
        self._send_opening(opened)
        with self._turn.taken(), self._activity.computing(f"job {job.number} beginning"):
            decoder.begin()  # while the stages work on the first block

    def _send_opening(self, opened: _OpenJob) -> None:
        job, conditions, embedder = opened.job, opened.conditions, self.networks.embedder
        schedule = make_schedule(job.sampling.num_steps, job.sampling.shift)
        time = embedder.embed_time(schedule.timesteps)
        message = JobOpen(
            job.number,
            job.timeline,
            schedule,
            TokenGrid.of_latent(conditions.reference_CFHW),
            job.sampling.seed,
            opened.first_block,
            None if opened.points is None else opened.points.plan,
        )
        everyone = (embedder.embed_text(conditions.text_LD), time.head_SD, time.layers_S6D)
        for rank, sender in enumerate(self._links.to_stages):
            first: tuple[Tensor, ...] = ()
            if rank == 0:
                first = (conditions.reference_CFHW, conditions.motion_CFHW)
                if opened.first_latent_CFHW is not None:
                    first += (opened.first_latent_CFHW.to(conditions.reference_CFHW.device),)
            sender.send(message, *everyone, *first, timeout_s=self._plan.timeout_s)
        pipeline = Pipeline(self._plan.num_stages, job.sampling.num_steps)
        for _ in range(pipeline.blocks_in_flight + SPARE_BLOCKS):
            self._send_speech(opened)

    def _send_speech(self, opened: _OpenJob) -> None:
        block = opened.speech_sent
        if block >= opened.job.timeline.num_blocks:
            return
        heard = slice(block * FRAMES_PER_BLOCK, (block + 1) * FRAMES_PER_BLOCK)
        speech_AV = opened.conditions.speech_AV[:, heard]
        audio = self.networks.embedder.audio_encoder.encode_block(speech_AV)
        for sender in self._links.to_stages:
            sender.send(
                BlockSpeech(opened.job.number, block),
                audio.local_FKD,
                audio.global_FD,
                timeout_s=self._plan.timeout_s,
            )
        opened.speech_sent += 1

    def _pass_on_cancels(self, jobs: Preparation) -> None:
        for number, opened in self._open.items():
            if not opened.cancelled and (jobs.is_cancelled(number) or opened.video.refused):
                opened.cancelled = True
                self._links.to_stages[0].send(JobCancel(number), timeout_s=self._plan.timeout_s)

    def _take(self, packet: Packet) -> None:
        message = packet.message
        opened = self._open[message.job]
        with work_of(message.job):
            self._do(message, packet, opened)

    def _do(self, message: object, packet: Packet, opened: _OpenJob) -> None:
        if isinstance(message, JobEnd):
            self._end(opened)
        elif isinstance(message, FinishedBlock):
            opened.blocks_done += 1
            opened.video.tell_progress()
            self._send_speech(opened)
            opened.waiting.append(packet.tensors[0])
            if message.block == 0:
                opened.first_latent_CFHW = packet.tensors[0][:, :1].clone()
            if opened.job.sampling.online_decode or (
                len(opened.waiting) == opened.job.timeline.window_blocks
            ):
                self._decode(opened)
        else:
            raise EngineError(f"unexpected message from stage 0: {message!r}")

    def _decode(self, opened: _OpenJob) -> None:
        """Decode what waits and hand the frames over."""
        if not opened.waiting:
            return
        pieces = opened.decoder.pieces(torch.cat(opened.waiting, dim=1))
        opened.waiting = []
        while True:
            doing = f"job {opened.job.number} block {opened.blocks_done - 1}"
            with self._turn.taken(), self._activity.computing(doing):
                frames_THWC = next(pieces, None)
            if frames_THWC is None:
                break
            if len(frames_THWC):
                opened.video.append(frames_THWC.numpy(), self._plan.timeout_s)
        self._keep_point(opened)

    def _keep_point(self, opened: _OpenJob) -> None:
        block, points = opened.blocks_done, opened.points
        ends = opened.cancelled or block == opened.job.timeline.num_blocks
        if points is None or ends or not points.plan.is_due(block):
            return
        assert opened.first_latent_CFHW is not None
        point = MediaPoint(block, opened.first_latent_CFHW, opened.decoder.snapshot())
        opened.video.keep(block, point.tensors(), self._plan.timeout_s)

    def _end(self, opened: _OpenJob) -> None:
        """Hand over what is left of a job that the stages have finished."""
        self._decode(opened)
        cut_short = opened.cancelled and opened.blocks_done < opened.job.timeline.num_blocks
        opened.video.finish(cut_short=cut_short, timeout_s=self._plan.timeout_s)
        del self._open[opened.job.number]
        self._closing.append(opened.video)

    def _forget_the_closed(self, jobs: Preparation) -> None:
        for video in [video for video in self._closing if video.is_done]:
            self._closing.remove(video)
            jobs.forget(video.number)


def _resumed_at(
    decoder: VideoDecoder, points: JobPoints | None, num_frames: int
) -> MediaPoint | None:
    """Bring the decoder to the newest point within the file; None to begin with block 0."""
    try:
        point = None if points is None else points.newest(num_frames)
        if point is not None:
            decoder.restore(point.decoder, point.block * FRAMES_PER_BLOCK)
    except CheckpointError as error:
        logger.warning("%s; every block is made again", error)
        return None
    return point


def _point_writer(points: JobPoints | None) -> Callable[[int, Mapping[str, Tensor]], object]:
    """Writes the media rank's part of each point; never called where there are no points."""
    if points is None:
        return lambda _block, _tensors: None
    return partial(write_part, points.plan.folder, points.media_part)
