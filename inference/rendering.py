"""A checked job to a growing file: in this process, or in a worker group of the command's own."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch
from tqdm import tqdm

from inference.interrupt import StopRequest
from inference.leftovers import Leftovers
from inference.rank_times import RankTimes
from inference.resuming import LonePoints
from inference.video_job import VideoJob
from liveavatar.conditioning import Conditions, Encoders, encode_conditions
from liveavatar.config import FRAMES_PER_BLOCK
from liveavatar.engine.group import WorkerGroup
from liveavatar.engine.machine import detect_machine, free_host_bytes
from liveavatar.engine.messages import Finished, RankStatus, Refused
from liveavatar.engine.messages import Progress as Progressed
from liveavatar.engine.resume import RING_LIMIT_BYTES, ring_bytes
from liveavatar.errors import ConfigError, MediaError, MemoryShortError
from liveavatar.host_memory import release_freed_memory
from liveavatar.media.soundtrack import open_soundtrack
from liveavatar.media.spoken_video import SpokenVideo
from liveavatar.model.checkpoint import Placement
from liveavatar.model.layer_shelf import LayerShelf
from liveavatar.plan.alone import LonePlan, Shelf, plan_alone
from liveavatar.plan.precision import Precision
from liveavatar.plan.shapes import read_network
from liveavatar.sampling import make_schedule
from liveavatar.single_device import Models, RenderOptions, render, seeded_draws

JOB_NUMBER = 1


@dataclass(frozen=True)
class Loaded:
    """Networks and encoded inputs, ready to render."""

    models: Models
    conditions: Conditions


def load(job: VideoJob, where: Placement, *, layers_on_shelf: bool = False) -> Loaded:
    """Encode the inputs and load the networks.

    With `offload_model` the encoders are gone before the transformer comes, so that the peak is the
    larger of the two and not their sum; `layers_on_shelf` then keeps its layers in host memory.
    """
    checkpoint = job.checkpoint
    assert checkpoint is not None
    embedder = checkpoint.load_condition_embedder(where)
    encoders = Encoders(
        checkpoint.load_text_encoder(where),
        checkpoint.load_tokenizer(),
        checkpoint.load_audio_encoder(where),
        checkpoint.load_vae_encoder(where),
    )
    early = None if job.options.offload_model else checkpoint.load_transformer(where)
    shelf = LayerShelf(where.device) if layers_on_shelf else None
    inputs = job.take_inputs()
    conditions = encode_conditions(
        encoders,
        job.portrait_HWC,
        inputs.speech.samples,
        inputs.prompt,
        embedder=embedder,
        num_blocks=job.timeline.num_blocks,
    )
    del inputs
    if early is None:
        del encoders
    release_freed_memory()
    transformer = early or checkpoint.load_transformer(where, shelf=shelf)
    decoder = checkpoint.load_vae_decoder(where)
    return Loaded(Models(transformer, embedder, decoder), conditions)


@dataclass
class Progress:
    """What was written so far.

    Attributes:
        frames: frames in the file.
        first_frame_s: seconds from the start of the command to the first frame.
        stopped: whether the user stopped it.
        times: where the time of each rank of a group went.
    """

    frames: int = 0
    first_frame_s: float = math.nan
    stopped: bool = False
    times: RankTimes = field(default_factory=RankTimes)

    def update(self, frames: int, bar: tqdm[NoReturn], started: float) -> None:
        """Note that the file now has `frames` frames."""
        if math.isnan(self.first_frame_s):
            self.first_frame_s = time.monotonic() - started
        bar.update(frames - self.frames)
        self.frames = frames


def render_here(job: VideoJob, leftovers: Leftovers, started: float) -> Progress:
    """Render in this process, block by block, until done or stopped.

    Raises:
        MemoryShortError: the GPU is too small.
    """
    try:
        return _render_here(job, leftovers, started)
    except torch.OutOfMemoryError as error:
        raise MemoryShortError("out of GPU memory; use a smaller size or more ranks") from error


def _render_here(job: VideoJob, leftovers: Leftovers, started: float) -> Progress:
    plan = _plan(job)
    if plan.shelf != Shelf():
        sys.stderr.write(f"{plan.verdict}: {plan.copied}\n")
    where = replace(_placement(plan.precision), rings_on_shelf=plan.shelf.rings)
    loaded = load(job, where, layers_on_shelf=plan.shelf.layers)
    with _points(job, leftovers, plan.precision) as points:
        return _render_loaded(job, loaded, points, leftovers.frames, started)


def _render_loaded(
    job: VideoJob, loaded: Loaded, points: LonePoints | None, frames_there: int, started: float
) -> Progress:
    """Make the frames behind those that are there."""
    first = 0 if points is None else points.first_block * FRAMES_PER_BLOCK
    frames_iterator = render(
        loaded.models,
        loaded.conditions,
        torch.tensor(job.portrait_HWC),
        job.timeline,
        RenderOptions(
            make_schedule(job.sampling.num_steps, job.sampling.shift),
            seeded_draws(job.sampling.seed, loaded.conditions.reference_CFHW),
            online_decode=job.sampling.online_decode,
            points=points,
        ),
    )
    progress = Progress(frames_there)
    height, width = job.portrait_HWC.shape[:2]
    sound = open_soundtrack(job.options.audio, mix=job.mix)
    open_video = SpokenVideo.resume if frames_there else SpokenVideo
    with (
        open_video(job.live_path, sound, width, height) as video,
        _progress_bar(job, frames_there) as bar,
        StopRequest() as stop,
    ):
        for frames_THWC in frames_iterator:
            there = min(video.num_frames - first, len(frames_THWC))  # of a killed render
            first += len(frames_THWC)
            if there == len(frames_THWC):
                continue
            video.append(frames_THWC[there:].numpy())
            progress.update(video.num_frames, bar, started)
            if stop.asked and video.num_frames < job.timeline.num_frames:
                progress.stopped = True
                break
    return progress


@contextmanager
def _points(
    job: VideoJob, leftovers: Leftovers, precision: Precision
) -> Iterator[LonePoints | None]:
    """Resume points, unless the rings are too large to be written."""
    config = read_network(job.options.ckpt_dir).transformer
    height, width = job.portrait_HWC.shape[:2]
    if ring_bytes(config, (height, width), job.sampling, precision) > RING_LIMIT_BYTES:
        yield None
        return
    points = LonePoints(leftovers.folder, leftovers.frames, job.timeline.window_blocks)
    try:
        yield points
    finally:
        points.close()


def peak_memory(*, alone: bool) -> str:
    """Peak memory of this process, or of the largest rank of a group, which has ended by now."""
    if not alone:
        ranks_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        return f"{ranks_mib:.0f} MiB host in the largest rank"
    host_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if not torch.cuda.is_available():
        return f"{host_mib:.0f} MiB"
    return f"{host_mib:.0f} MiB host, {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB GPU"


def _placement(precision: Precision) -> Placement:
    if not torch.cuda.is_available():
        return Placement(torch.device("cpu"), torch.float32)
    return Placement.planned(torch.device("cuda"), precision)


def _plan(job: VideoJob) -> LonePlan:
    """The first way that fits; ConfigError where none fits a GPU."""
    height, width = job.portrait_HWC.shape[:2]
    clips = math.ceil(job.timeline.num_frames / job.sampling.infer_frames)
    plan = plan_alone(
        read_network(job.options.ckpt_dir),
        (height, width),
        replace(job.sampling, num_clip=clips),
        detect_machine(),
        offload=job.options.offload_model,
        host_bytes=free_host_bytes(),
    )
    if torch.cuda.is_available() and not plan.fits:
        raise ConfigError(f"{width}*{height} {plan.verdict}; use a smaller size or more ranks")
    return plan


def render_in_group(job: VideoJob, leftovers: Leftovers, started: float) -> Progress:
    """Render in a worker group of this command's own: pipeline stages and a media rank."""
    assert job.group is not None
    progress = Progress(leftovers.frames)
    with (
        WorkerGroup(job.group) as group,
        _progress_bar(job, leftovers.frames) as bar,
        StopRequest() as stop,
    ):
        group.wait_until_ready()
        group.submit(job.render_job(JOB_NUMBER, leftovers.folder, resumes=leftovers.frames > 0))
        while True:
            event = group.next_event(timeout_s=0.2)
            if isinstance(event, RankStatus):
                progress.times.take(event)
            elif isinstance(event, Progressed) and event.frames > progress.frames:
                progress.update(event.frames, bar, started)
            elif isinstance(event, Finished):
                progress.stopped = event.cancelled
                return progress
            elif isinstance(event, Refused):
                raise MediaError(event.reason)
            if stop.asked and not progress.stopped:
                progress.stopped = True
                group.cancel(JOB_NUMBER)


def _progress_bar(job: VideoJob, initial: int) -> tqdm[NoReturn]:
    return tqdm(
        total=job.timeline.num_frames, initial=initial, unit="frame", desc="frames", smoothing=0.1
    )
