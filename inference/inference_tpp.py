"""Make one talking video from the shell.

    python inference/inference_tpp.py --ckpt_dir DIR --image P --audio S --prompt "..." \
        --size "688*368" --save_file out.mp4

While it is made, the video grows beside the output as `out.live.mp4`, which a player can follow.
Exit status: 0 done; 1 when a rank failed; 2 for input that cannot be used: one line says why and
nothing is written; 130 when stopped: what was made until then is left as a playable file.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

# The script is run by its path; the packages lie one folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tqdm import tqdm

from inference.interrupt import StopRequest
from liveavatar.conditioning import Conditions, Encoders, encode_conditions
from liveavatar.config import (
    FPS,
    ParallelConfig,
    SamplingConfig,
    check_visible_devices,
)
from liveavatar.engine.messages import Finished, GroupSpec, Refused, RenderJob
from liveavatar.engine.messages import Progress as Progressed
from liveavatar.engine.supervisor import WorkerGroup
from liveavatar.errors import ConfigError, EngineError, LiveAvatarError, MediaError
from liveavatar.host_memory import release_freed_memory
from liveavatar.media.ingest import Inputs, ingest
from liveavatar.media.portrait import UInt8Array, crop_to_size, fit_size
from liveavatar.media.remux import remux_to_progressive
from liveavatar.media.sound_mix import Mix
from liveavatar.media.soundtrack import open_soundtrack
from liveavatar.media.spoken_video import SpokenVideo
from liveavatar.model.checkpoint import Checkpoint, Placement, open_checkpoint
from liveavatar.plan.layout import split_stages
from liveavatar.request import SizeOption, parse_size
from liveavatar.sampling import make_schedule
from liveavatar.single_device import Models, RenderOptions, render, seeded_draws
from liveavatar.timeline import Timeline, make_timeline

logger = logging.getLogger("liveavatar")

EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_STOPPED = 130
ANY_NUMBER_OF_CLIPS = 100_000
JOB_NUMBER = 1


class _OneLineParser(argparse.ArgumentParser):
    """A parser that refuses in one line, as every other refusal of this command."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the options")


def _switch(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return text == "True"


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the fixed set of options."""
    parser = _OneLineParser(
        prog="inference_tpp.py", description="Make one talking video.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--ckpt_dir", type=Path, required=True, help="checkpoint folder")
    add("--lora_path_dmd", type=Path, help="LiveAvatar adapter: file, or folder that holds it")
    add("--image", type=Path, required=True, help="portrait")
    add("--audio", type=Path, required=True, help="speech, or a video with sound")
    add("--prompt", required=True, help="person, action and surroundings in 60 to 90 characters")
    add("--size", default="688*368", help='area as "W*H"; the portrait sets the shape')
    add("--num_clip", type=int, help="clips at most; as many as the speech needs by default")
    add("--infer_frames", type=int, default=48, help="frames per clip, a multiple of 4 from 12")
    add("--sample_steps", type=int, default=4, help="denoise steps per block")
    add("--base_seed", type=int, default=420, help="the same seed makes the same video")
    add("--num_gpus_dit", type=int, default=1, help="ranks that hold transformer layers")
    add("--ulysses_size", type=int, help="width of that group; must equal num_gpus_dit")
    add("--enable_vae_parallel", action="store_true", help="give the VAE a rank of its own")
    add("--enable_online_decode", action="store_true", help="decode every block, not every clip")
    add("--offload_model", type=_switch, default=True, help="free the encoders before rendering")
    add("--tpp_mode", type=_switch, default=True, help="split the layers over the ranks")
    add("--save_file", type=Path, required=True, help="MP4 to write")
    add("--resume", action="store_true", help="leave a save_file that is complete as it is")
    return parser


@dataclass
class Plan:
    """Everything that is settled before a weight is read.

    `inputs` is None once the conditions are made of them: an hour of speech is not kept.
    """

    options: argparse.Namespace
    inputs: Inputs | None
    mix: Mix
    sampling: SamplingConfig
    timeline: Timeline
    portrait_HWC: UInt8Array
    checkpoint: Checkpoint
    stages: tuple[range, ...]

    @property
    def live_path(self) -> Path:
        """File that grows while the video is made."""
        path: Path = self.options.save_file
        return path.with_suffix(".live.mp4")

    @property
    def alone(self) -> bool:
        """Whether this process does all of it, without a worker group."""
        return len(self.stages) == 1 and not self.options.enable_vae_parallel

    def take_inputs(self) -> Inputs:
        """Hand over the inputs; they are not kept here."""
        inputs, self.inputs = self.inputs, None
        if inputs is None:
            raise EngineError("the inputs of this video were taken before")
        return inputs


def plan(options: argparse.Namespace) -> Plan:
    """Check options and inputs and open the checkpoint; reads no weights and writes nothing.

    Raises:
        LiveAvatarError: the first thing that cannot be used.
    """
    size = parse_size(options.size)
    width = options.num_gpus_dit if options.ulysses_size is None else options.ulysses_size
    parallel = ParallelConfig(options.num_gpus_dit, width)
    _check_ranks(parallel, options)
    check_visible_devices()
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
    height, width = portrait.shape[:2]
    stages = split_stages(checkpoint.config, (height, width), sampling, parallel.num_gpus_dit)
    mix = inputs.speech.mix
    release_freed_memory()  # what decoding a long recording took
    for note in inputs.notes:
        _say(f"note ({note.field}): {note.message}")
    return Plan(options, inputs, mix, sampling, timeline, portrait, checkpoint, stages)


def _check_ranks(parallel: ParallelConfig, options: argparse.Namespace) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("torchrun: this command starts its own ranks; run it without torchrun")
    if not options.tpp_mode and parallel.num_gpus_dit > 1:
        raise ConfigError("tpp_mode: expected True with several ranks; False runs on one only")
    ranks = parallel.num_gpus_dit + options.enable_vae_parallel
    if torch.cuda.is_available() and ranks > torch.cuda.device_count():
        raise ConfigError(
            f"num_gpus_dit: {ranks} ranks need as many GPUs, {torch.cuda.device_count()} are "
            "visible; use fewer ranks or widen CUDA_VISIBLE_DEVICES"
        )


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


@dataclass(frozen=True)
class Loaded:
    """Networks and encoded inputs, ready to render."""

    models: Models
    conditions: Conditions


def load(job: Plan, where: Placement) -> Loaded:
    """Encode the inputs and load the networks.

    With `offload_model` the encoders are gone before the transformer comes, so that the peak is the
    larger of the two and not their sum.
    """
    checkpoint = job.checkpoint
    embedder = checkpoint.load_condition_embedder(where)
    encoders = Encoders(
        checkpoint.load_text_encoder(where),
        checkpoint.load_tokenizer(),
        checkpoint.load_audio_encoder(where),
        checkpoint.load_vae_encoder(where),
    )
    early = None if job.options.offload_model else checkpoint.load_transformer(where)
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
    transformer = early or checkpoint.load_transformer(where)
    decoder = checkpoint.load_vae_decoder(where)
    return Loaded(Models(transformer, embedder, decoder), conditions)


@dataclass
class Progress:
    """What was written so far.

    Attributes:
        frames: frames in the file.
        first_frame_s: seconds from the start of the command to the first frame.
        stopped: whether the user stopped it.
    """

    frames: int = 0
    first_frame_s: float = math.nan
    stopped: bool = False

    def update(self, frames: int, bar: tqdm[NoReturn], started: float) -> None:
        """Note that the file now has `frames` frames."""
        if math.isnan(self.first_frame_s):
            self.first_frame_s = time.monotonic() - started
        bar.update(frames - self.frames)
        self.frames = frames


def render_here(job: Plan, started: float) -> Progress:
    """Render in this process, block by block, until done or stopped."""
    on_gpu = torch.cuda.is_available()
    loaded = load(
        job,
        Placement(torch.device("cuda"), torch.bfloat16)
        if on_gpu
        else Placement(torch.device("cpu"), torch.float32),
    )
    frames_iterator = render(
        loaded.models,
        loaded.conditions,
        torch.tensor(job.portrait_HWC),
        job.timeline,
        RenderOptions(
            make_schedule(job.sampling.num_steps, job.sampling.shift),
            seeded_draws(job.sampling.seed, loaded.conditions.reference_CFHW),
            online_decode=job.sampling.online_decode,
        ),
    )
    progress = Progress()
    height, width = job.portrait_HWC.shape[:2]
    sound = open_soundtrack(job.options.audio, mix=job.mix)
    with (
        SpokenVideo(job.live_path, sound, width, height) as video,
        _progress_bar(job) as bar,
        StopRequest() as stop,
    ):
        for frames_THWC in frames_iterator:
            video.append(frames_THWC.numpy())
            progress.update(video.num_frames, bar, started)
            if stop.asked and video.num_frames < job.timeline.num_frames:
                progress.stopped = True
                break
    return progress


def render_in_group(job: Plan, started: float) -> Progress:
    """Render in a worker group of this command's own: pipeline stages and a media rank."""
    progress = Progress()
    with WorkerGroup(_group_spec(job)) as group, _progress_bar(job) as bar, StopRequest() as stop:
        group.submit(_render_job(job))
        while True:
            event = group.next_event(timeout_s=0.2)
            if isinstance(event, Progressed):
                progress.update(event.frames, bar, started)
            elif isinstance(event, Finished):
                progress.stopped = event.cancelled
                return progress
            elif isinstance(event, Refused):
                raise MediaError(event.reason)
            if stop.asked and not progress.stopped:
                progress.stopped = True
                group.cancel(JOB_NUMBER)


def _render_job(job: Plan) -> RenderJob:
    inputs = job.take_inputs()
    return RenderJob(
        number=JOB_NUMBER,
        portrait_HWC=job.portrait_HWC,
        speech_N=inputs.speech.samples,
        soundtrack=job.options.audio,
        mix=job.mix,
        prompt=inputs.prompt,
        timeline=job.timeline,
        sampling=job.sampling,
        live_path=job.live_path,
    )


def _group_spec(job: Plan) -> GroupSpec:
    """Lay out the group: one rank per stage and the media rank.

    On GPUs the media rank has a card of its own with `enable_vae_parallel`, else it shares the last
    stage's. On the CPU the cores are shared out evenly.
    """
    num_stages = len(job.stages)
    devices = ["cpu"] * (num_stages + 1)
    if torch.cuda.is_available():
        media = num_stages if job.options.enable_vae_parallel else num_stages - 1
        devices = [f"cuda:{index}" for index in [*range(num_stages), media]]
    return GroupSpec(
        checkpoint=job.options.ckpt_dir,
        adapter=job.options.lora_path_dmd,
        stages=job.stages,
        devices=tuple(devices),
        dtype="bfloat16" if torch.cuda.is_available() else "float32",
        threads=max(1, (os.cpu_count() or 1) // (num_stages + 1)),
        folder=Path(),
    )


def _progress_bar(job: Plan) -> tqdm[NoReturn]:
    return tqdm(total=job.timeline.num_frames, unit="frame", desc="frames", smoothing=0.1)


def run(options: argparse.Namespace) -> int:
    """Make the video that `options` ask for; returns the exit status."""
    started = time.monotonic()
    if options.resume and options.save_file.is_file():
        _say(f"{options.save_file} is complete; nothing to do")
        return 0
    job = plan(options)
    height, width = job.portrait_HWC.shape[:2]
    _say(
        f"{job.timeline.num_frames} frames of {width}*{height} in {job.timeline.num_blocks} blocks "
        f"(size {options.size} sets the area, the portrait the shape)"
    )
    try:
        progress = (render_here if job.alone else render_in_group)(job, started)
    except KeyboardInterrupt:
        progress = Progress(stopped=True)
    except MediaError:
        job.live_path.unlink(missing_ok=True)
        raise
    return _finish(job, progress, started)


def _finish(job: Plan, progress: Progress, started: float) -> int:
    output, live_path = job.options.save_file, job.live_path
    try:
        frames = remux_to_progressive(live_path, output)
    except MediaError:
        if not progress.stopped:
            raise
        frames = 0
    live_path.unlink(missing_ok=True)
    took = time.monotonic() - started
    if progress.stopped:
        left = f"{output} holds the first {frames} of {job.timeline.num_frames} frames and plays"
        _say(f"stopped: {left}" if frames else "stopped before the first frame; nothing written")
        return EXIT_STOPPED
    _say(
        f"{output}: {frames} frames, {frames / FPS:.2f} s; made in {took:.1f} s "
        f"({frames / took:.2f} fps), first frame after {progress.first_frame_s:.1f} s; "
        f"peak memory {_peak_memory(alone=job.alone)}"
    )
    return 0


def _peak_memory(*, alone: bool) -> str:
    """Peak memory of this process, or of the largest rank of a group, which has ended by now."""
    if not alone:
        ranks_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        return f"{ranks_mib:.0f} MiB host in the largest rank"
    host_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if not torch.cuda.is_available():
        return f"{host_mib:.0f} MiB"
    return f"{host_mib:.0f} MiB host, {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB GPU"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return run(build_parser().parse_args(arguments))
    except EngineError as error:
        _say(f"error: {error}")
        return EXIT_FAILED
    except LiveAvatarError as error:
        _say(f"error: {error}")
        return EXIT_REFUSED
    except KeyboardInterrupt:
        _say("stopped before the first frame; nothing written")
        return EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main())
