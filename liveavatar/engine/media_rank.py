"""The media rank: conditions out to the stages, latents in, frames to the growing file.

Several things go on at once. A thread encodes the next job while this one renders; the main thread
receives finished latents, decodes them and paces the speech; the links have threads of their own.
Speech of a block is sent when an earlier block is finished, so that what waits at the stages does
not grow with the video.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from liveavatar.conditioning import Conditions, Encoders, encode_conditions
from liveavatar.config import FRAMES_PER_BLOCK
from liveavatar.engine.messages import Finished, Progress, Refused, RenderJob
from liveavatar.errors import EngineError, LiveAvatarError, MediaError
from liveavatar.media.soundtrack import open_soundtrack
from liveavatar.media.spoken_video import SpokenVideo
from liveavatar.model.denoiser import TokenGrid
from liveavatar.model.transformer import ConditionEmbedder
from liveavatar.model.vae import Decoder
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
from liveavatar.sampling import make_schedule
from liveavatar.single_device import VideoDecoder

SPARE_BLOCKS = 2
"""Blocks whose speech waits at the stages beyond those that are in flight."""

_POLL_S = 0.05


@dataclass(frozen=True)
class MediaNetworks:
    """Networks of the media rank."""

    encoders: Encoders
    embedder: ConditionEmbedder
    decoder: Decoder


@dataclass
class _OpenJob:
    """A job whose work is in the stages."""

    job: RenderJob
    conditions: Conditions
    decoder: VideoDecoder
    video: SpokenVideo
    waiting: list[Tensor]
    speech_sent: int = 0
    blocks_done: int = 0
    cancelled: bool = False
    refused: bool = False


def _begin_video(job: RenderJob) -> SpokenVideo:
    height, width = job.portrait_HWC.shape[:2]
    sound = open_soundtrack(job.soundtrack, mix=job.mix)
    return SpokenVideo(job.live_path, sound, width, height)


class MediaRank:
    """Serves jobs one after another.

    Args:
        networks: encoders and decoder.
        to_stages: link to each pipeline stage.
        latents: link from stage 0.
        report: tells the supervisor.
        timeout_s: longest wait for a stage to take a message.
    """

    def __init__(
        self,
        networks: MediaNetworks,
        to_stages: list[Sender],
        latents: Receiver,
        report: Callable[[object], None],
        timeout_s: float,
    ) -> None:
        self.networks = networks
        self._to_stages = to_stages
        self._latents = latents
        self._report = report
        self._timeout_s = timeout_s
        self._submitted: queue.Queue[RenderJob | None] = queue.Queue()
        self._encoded: queue.Queue[tuple[RenderJob, Conditions] | BaseException | None] = (
            queue.Queue(maxsize=1)
        )
        self._cancelled: set[int] = set()
        self._open: dict[int, _OpenJob] = {}

    def submit(self, job: RenderJob) -> None:
        """Take a job; from any thread."""
        self._submitted.put(job)

    def cancel(self, number: int) -> None:
        """Stop a job at once, keeping its finished blocks; from any thread."""
        self._cancelled.add(number)

    def stop(self) -> None:
        """End when all jobs are done; from any thread."""
        self._submitted.put(None)

    @torch.no_grad()
    def serve(self) -> None:
        """Work until stopped.

        Raises:
            WorkerDiedError: a stage is gone.
            DeadlineError: a stage took nothing in time.
        """
        threading.Thread(target=self._encode_jobs, name="encode", daemon=True).start()
        stopping = False
        while not (stopping and not self._open):
            stopping = self._open_next_job() or stopping
            self._pass_on_cancels()
            packet = self._latents.poll(_POLL_S)
            if packet is not None:
                self._take(packet)
        for sender in self._to_stages:
            sender.send(Shutdown(), timeout_s=self._timeout_s)

    @torch.no_grad()
    def _encode_jobs(self) -> None:
        while (job := self._submitted.get()) is not None:
            self._report(Progress(job.number, 0, "preparing"))
            try:
                conditions = encode_conditions(
                    self.networks.encoders,
                    job.portrait_HWC,
                    job.speech_N,
                    job.prompt,
                    embedder=self.networks.embedder,
                    num_blocks=job.timeline.num_blocks,
                )
            except LiveAvatarError as error:
                self._report(Refused(job.number, str(error)))
                continue
            except BaseException as error:  # noqa: BLE001 - raised again in the main thread
                self._encoded.put(error)
                return
            self._encoded.put((job, conditions))
        self._encoded.put(None)

    def _open_next_job(self) -> bool:
        """Open the next encoded job if there is one; tells whether no more will come."""
        if len(self._open) > 1:
            return False
        try:
            encoded = self._encoded.get_nowait()
        except queue.Empty:
            return False
        if encoded is None:
            return True
        if isinstance(encoded, BaseException):
            raise encoded
        job, conditions = encoded
        try:
            video = _begin_video(job)
        except LiveAvatarError as error:
            self._report(Refused(job.number, str(error)))
            return False
        decoder = VideoDecoder(
            self.networks.decoder,
            conditions.motion_CFHW,
            torch.tensor(job.portrait_HWC),
            job.timeline.num_frames,
        )
        self._open[job.number] = _OpenJob(job, conditions, decoder, video, [])
        self._send_opening(self._open[job.number])
        return False

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
        )
        everyone = (embedder.embed_text(conditions.text_LD), time.head_SD, time.layers_S6D)
        for stage, sender in enumerate(self._to_stages):
            first = (conditions.reference_CFHW, conditions.motion_CFHW) if stage == 0 else ()
            sender.send(message, *everyone, *first, timeout_s=self._timeout_s)
        pipeline = Pipeline(len(self._to_stages), job.sampling.num_steps)
        for _ in range(pipeline.blocks_in_flight + SPARE_BLOCKS):
            self._send_speech(opened)

    def _send_speech(self, opened: _OpenJob) -> None:
        block = opened.speech_sent
        if block >= opened.job.timeline.num_blocks:
            return
        heard = slice(block * FRAMES_PER_BLOCK, (block + 1) * FRAMES_PER_BLOCK)
        speech_AV = opened.conditions.speech_AV[:, heard]
        audio = self.networks.embedder.audio_encoder.encode_block(speech_AV)
        for sender in self._to_stages:
            sender.send(
                BlockSpeech(opened.job.number, block),
                audio.local_FKD,
                audio.global_FD,
                timeout_s=self._timeout_s,
            )
        opened.speech_sent += 1

    def _pass_on_cancels(self) -> None:
        for number in self._cancelled & self._open.keys():
            self._cancelled.discard(number)
            self._open[number].cancelled = True
            self._to_stages[0].send(JobCancel(number), timeout_s=self._timeout_s)

    def _take(self, packet: Packet) -> None:
        message = packet.message
        opened = self._open[message.job]
        if isinstance(message, JobEnd):
            self._end(opened)
        elif isinstance(message, FinishedBlock):
            opened.blocks_done += 1
            self._send_speech(opened)
            if opened.refused:
                return
            opened.waiting.append(packet.tensors[0])
            if opened.job.sampling.online_decode or (
                len(opened.waiting) == opened.job.timeline.window_blocks
            ):
                self._write_frames(opened)
        else:
            raise EngineError(f"unexpected message from stage 0: {message!r}")

    def _write_frames(self, opened: _OpenJob) -> None:
        if not opened.waiting or opened.refused:
            return
        frames_THWC = opened.decoder.frames(torch.cat(opened.waiting, dim=1))
        opened.waiting = []
        try:
            if len(frames_THWC):
                opened.video.append(frames_THWC.numpy())
        except MediaError as error:
            self._give_up(opened, error)
            return
        self._report(Progress(opened.job.number, opened.video.num_frames, "rendering"))

    def _give_up(self, opened: _OpenJob, error: MediaError) -> None:
        """Refuse a job whose file cannot be written, as on a full disk; others may have room."""
        opened.refused = True
        self.cancel(opened.job.number)
        self._report(Refused(opened.job.number, str(error)))

    def _end(self, opened: _OpenJob) -> None:
        self._write_frames(opened)
        self._report(Progress(opened.job.number, opened.video.num_frames, "finishing"))
        try:
            opened.video.close()
        except MediaError as error:
            self._give_up(opened, error)
        del self._open[opened.job.number]
        self._cancelled.discard(opened.job.number)
        if opened.refused:
            return
        cut_short = opened.cancelled and opened.blocks_done < opened.job.timeline.num_blocks
        self._report(Finished(opened.job.number, opened.video.num_frames, cut_short))
