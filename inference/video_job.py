"""One video as it was asked for on the command line, checked before a weight is read."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inference.options import Settings
from liveavatar.config import SamplingConfig
from liveavatar.engine.layout import choose_layout
from liveavatar.engine.messages import GroupSpec, RenderJob
from liveavatar.errors import EngineError
from liveavatar.host_memory import release_freed_memory
from liveavatar.media.ingest import Inputs, ingest
from liveavatar.media.notes import Note
from liveavatar.media.portrait import UInt8Array, crop_to_size, fit_size
from liveavatar.media.sound_mix import Mix
from liveavatar.plan.several import Video
from liveavatar.request import SizeOption
from liveavatar.timeline import Timeline, make_timeline

if TYPE_CHECKING:
    from liveavatar.model.checkpoint import Checkpoint


@dataclass
class VideoJob:
    """Everything that is settled before a weight is read.

    `inputs` is None once the conditions are made of them: an hour of speech is not kept.
    `checkpoint` is open where this process makes the video alone; else `group` describes the worker
    group that does.
    """

    options: argparse.Namespace
    inputs: Inputs | None
    notes: tuple[Note, ...]
    mix: Mix
    sampling: SamplingConfig
    timeline: Timeline
    portrait_HWC: UInt8Array
    checkpoint: Checkpoint | None = None
    group: GroupSpec | None = None

    @property
    def live_path(self) -> Path:
        """File that grows while the video is made."""
        path: Path = self.options.save_file
        return path.with_suffix(".live.mp4")

    @property
    def alone(self) -> bool:
        """Whether this process does all of it."""
        return self.group is None

    def take_inputs(self) -> Inputs:
        """Hand over the inputs; they are not kept here."""
        inputs, self.inputs = self.inputs, None
        if inputs is None:
            raise EngineError("the inputs of this video were taken before")
        return inputs

    def render_job(self, number: int, resume_folder: Path, *, resumes: bool) -> RenderJob:
        """What a worker group makes; takes the inputs.

        Args:
            number: the group's for it.
            resume_folder: where its resume points go.
            resumes: whether the growing file is gone on with.
        """
        inputs = self.take_inputs()
        return RenderJob(
            number=number,
            portrait_HWC=self.portrait_HWC,
            speech_N=inputs.speech.samples,
            soundtrack=self.options.audio,
            mix=self.mix,
            prompt=inputs.prompt,
            timeline=self.timeline,
            sampling=self.sampling,
            live_path=self.live_path,
            resume_folder=resume_folder,
            resumes=resumes,
        )


def prepare(settings: Settings) -> VideoJob:
    """Open the checkpoint and read the inputs; reads no weights and writes nothing.

    Raises:
        LiveAvatarError: the first thing that cannot be used.
    """
    from liveavatar.model.checkpoint import open_checkpoint  # takes seconds to import

    checkpoint = open_checkpoint(settings.options.ckpt_dir, settings.options.lora_path_dmd)
    job = read_video(settings)
    release_freed_memory()  # what decoding a long recording took
    height, width = job.portrait_HWC.shape[:2]
    group = _group(settings, job.timeline, (height, width))
    return replace(job, checkpoint=checkpoint, group=group)


def read_video(settings: Settings) -> VideoJob:
    """Read the inputs; opens no checkpoint and chooses no group.

    Raises:
        LiveAvatarError: the first thing that cannot be used.
    """
    options, sampling = settings.options, settings.sampling
    inputs = ingest(
        options.image,
        options.audio,
        options.prompt,
        num_clip=sampling.num_clip,
        infer_frames=sampling.infer_frames,
    )
    timeline = make_timeline(sampling, len(inputs.speech.samples))
    portrait = _fit(inputs.portrait.rgb, settings.size)
    return VideoJob(
        options=options,
        inputs=inputs,
        notes=inputs.notes,
        mix=inputs.speech.mix,
        sampling=sampling,
        timeline=timeline,
        portrait_HWC=portrait,
    )


def _group(settings: Settings, timeline: Timeline, size_hw: tuple[int, int]) -> GroupSpec | None:
    """Lay out the ranks; ConfigError when the video does not fit them."""
    options, sampling = settings.options, settings.sampling
    if options.num_gpus_dit == 1 and not options.enable_vae_parallel:
        return None
    clips = math.ceil(timeline.num_frames / sampling.infer_frames)
    video = Video(size_hw, replace(sampling, num_clip=clips))
    return choose_layout(options.ckpt_dir, options.lora_path_dmd, [video], settings.machine)


def _fit(rgb: UInt8Array, size: SizeOption) -> UInt8Array:
    height, width = rgb.shape[:2]
    return crop_to_size(rgb, fit_size((height, width), size.area))
