"""One video as it was asked for on the command line, checked before a weight is read."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from liveavatar.config import (
    ParallelConfig,
    SamplingConfig,
    check_visible_devices,
    launched_ranks,
)
from liveavatar.engine.layout import Video, choose_layout, narrowed
from liveavatar.engine.machine import detect_machine
from liveavatar.engine.messages import GroupSpec
from liveavatar.errors import ConfigError, EngineError
from liveavatar.host_memory import release_freed_memory
from liveavatar.media.ingest import Inputs, ingest
from liveavatar.media.notes import Note
from liveavatar.media.portrait import UInt8Array, crop_to_size, fit_size
from liveavatar.media.sound_mix import Mix
from liveavatar.model.checkpoint import Checkpoint, open_checkpoint
from liveavatar.plan.layout import Machine
from liveavatar.request import SizeOption, parse_size
from liveavatar.timeline import Timeline, make_timeline

ANY_NUMBER_OF_CLIPS = 100_000


@dataclass
class VideoJob:
    """Everything that is settled before a weight is read.

    `inputs` is None once the conditions are made of them: an hour of speech is not kept.
    """

    options: argparse.Namespace
    inputs: Inputs | None
    notes: tuple[Note, ...]
    mix: Mix
    sampling: SamplingConfig
    timeline: Timeline
    portrait_HWC: UInt8Array
    checkpoint: Checkpoint
    machine: Machine

    @property
    def live_path(self) -> Path:
        """File that grows while the video is made."""
        path: Path = self.options.save_file
        return path.with_suffix(".live.mp4")

    @property
    def alone(self) -> bool:
        """Whether this process does all of it, without a worker group."""
        return self.options.num_gpus_dit == 1 and not self.options.enable_vae_parallel

    def group_spec(self) -> GroupSpec:
        """The worker group that makes it; ConfigError when it does not fit the machine."""
        frames, clip = self.timeline.num_frames, self.sampling.infer_frames
        sampling = replace(self.sampling, num_clip=math.ceil(frames / clip))
        video = Video((self.portrait_HWC.shape[0], self.portrait_HWC.shape[1]), sampling)
        adapter = self.options.lora_path_dmd
        return choose_layout(self.options.ckpt_dir, adapter, [video], self.machine)

    def take_inputs(self) -> Inputs:
        """Hand over the inputs; they are not kept here."""
        inputs, self.inputs = self.inputs, None
        if inputs is None:
            raise EngineError("the inputs of this video were taken before")
        return inputs


def prepare(options: argparse.Namespace) -> VideoJob:
    """Check options and inputs and open the checkpoint; reads no weights and writes nothing.

    Raises:
        LiveAvatarError: the first thing that cannot be used.
    """
    size = parse_size(options.size)
    width = options.num_gpus_dit if options.ulysses_size is None else options.ulysses_size
    parallel = ParallelConfig(options.num_gpus_dit, width)
    check_visible_devices()
    machine = _machine(parallel, options)
    sampling = SamplingConfig(
        num_steps=options.sample_steps,
        infer_frames=options.infer_frames,
        num_clip=ANY_NUMBER_OF_CLIPS if options.num_clip is None else options.num_clip,
        seed=options.base_seed,
        online_decode=options.enable_online_decode,
    )
    _check_output(options.save_file)
    checkpoint = open_checkpoint(options.ckpt_dir, options.lora_path_dmd)
    inputs = ingest(
        options.image,
        options.audio,
        options.prompt,
        num_clip=sampling.num_clip,
        infer_frames=sampling.infer_frames,
    )
    timeline = make_timeline(sampling, len(inputs.speech.samples))
    portrait = _fit(inputs.portrait.rgb, size)
    release_freed_memory()  # what decoding a long recording took
    return VideoJob(
        options=options,
        inputs=inputs,
        notes=inputs.notes,
        mix=inputs.speech.mix,
        sampling=sampling,
        timeline=timeline,
        portrait_HWC=portrait,
        checkpoint=checkpoint,
        machine=machine,
    )


def _machine(parallel: ParallelConfig, options: argparse.Namespace) -> Machine:
    """The part of this machine that the ranks take; ConfigError when there are too many."""
    if launched_ranks() > 1:
        raise ConfigError("torchrun: this command starts its own ranks; run it without torchrun")
    if not options.tpp_mode and parallel.num_gpus_dit > 1:
        raise ConfigError("tpp_mode: expected True with several ranks; False runs on one only")
    return narrowed(detect_machine(), parallel.num_gpus_dit, own_media=options.enable_vae_parallel)


def _check_output(path: Path) -> None:
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"save_file: expected a name that ends in .mp4, got '{path.name}'")
    if path.is_dir():
        raise ConfigError(f"save_file: '{path}' is a folder; name a file in it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"save_file: folder '{path.parent}' is not there or cannot be written")


def _fit(rgb: UInt8Array, size: SizeOption) -> UInt8Array:
    height, width = rgb.shape[:2]
    return crop_to_size(rgb, fit_size((height, width), size.area))
