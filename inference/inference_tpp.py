"""Make one talking video from the shell.

    python inference/inference_tpp.py --ckpt_dir DIR --image P --audio S --prompt "..." \
        --size "688*368" --save_file out.mp4

While it is made, the video grows beside the output as `out.live.mp4`, which a player can follow.
Exit status: 0 done; 2 for input that cannot be used: one line says why and nothing is written; 130
when stopped: what was made until then is left as a playable file.
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
    SPEECH_RATE_HZ,
    ParallelConfig,
    SamplingConfig,
    check_visible_devices,
)
from liveavatar.errors import ConfigError, LiveAvatarError, MediaError
from liveavatar.media.ingest import Inputs, ingest
from liveavatar.media.live_writer import AUDIO_LEAD_S, LiveVideoWriter
from liveavatar.media.portrait import UInt8Array, crop_to_size, fit_size
from liveavatar.media.remux import remux_to_progressive
from liveavatar.model.checkpoint import Checkpoint, Placement, open_checkpoint
from liveavatar.request import SizeOption, parse_size
from liveavatar.sampling import make_schedule
from liveavatar.single_device import Models, RenderOptions, render, seeded_draws
from liveavatar.timeline import Timeline, make_timeline

logger = logging.getLogger("liveavatar")

EXIT_REFUSED = 2
EXIT_STOPPED = 130
ANY_NUMBER_OF_CLIPS = 100_000


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


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before a weight is read."""

    options: argparse.Namespace
    inputs: Inputs
    sampling: SamplingConfig
    timeline: Timeline
    portrait_HWC: UInt8Array
    checkpoint: Checkpoint


def plan(options: argparse.Namespace) -> Plan:
    """Check options and inputs and open the checkpoint; reads no weights and writes nothing.

    Raises:
        LiveAvatarError: the first thing that cannot be used.
    """
    size = parse_size(options.size)
    width = options.num_gpus_dit if options.ulysses_size is None else options.ulysses_size
    parallel = ParallelConfig(options.num_gpus_dit, width)
    _check_single_process(parallel, options)
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
    return Plan(options, inputs, sampling, timeline, portrait, checkpoint)


def _check_single_process(parallel: ParallelConfig, options: argparse.Namespace) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if parallel.num_gpus_dit > 1 or ranks > 1 or options.enable_vae_parallel:
        asked = (
            "enable_vae_parallel"
            if options.enable_vae_parallel
            else f"num_gpus_dit {parallel.num_gpus_dit} in {ranks} processes"
        )
        raise ConfigError(
            f"{asked}: this version runs in one process; use --num_gpus_dit 1 --ulysses_size 1 "
            "without torchrun and without --enable_vae_parallel"
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
    conditions = encode_conditions(
        encoders,
        job.portrait_HWC,
        job.inputs.speech.samples,
        job.inputs.prompt,
        embedder=embedder,
        num_blocks=job.timeline.num_blocks,
    )
    if early is None:
        del encoders
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


def write_video(job: Plan, loaded: Loaded, live_path: Path, started: float) -> Progress:
    """Render into the growing file, block by block, until done or stopped."""
    height, width = job.portrait_HWC.shape[:2]
    speech = torch.tensor(job.inputs.speech.samples)
    wanted = job.timeline.num_frames * SPEECH_RATE_HZ // FPS
    samples = torch.nn.functional.pad(speech, (0, max(0, wanted - len(speech))))[:wanted].numpy()
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
    writer = LiveVideoWriter(live_path, width=width, height=height, fps=FPS)
    bar = tqdm(total=job.timeline.num_frames, unit="frame", desc="frames", smoothing=0.1)
    with writer, bar, StopRequest() as stop:
        for frames_THWC in frames_iterator:
            progress.frames += len(frames_THWC)
            lead = progress.frames / FPS + AUDIO_LEAD_S
            heard = samples[writer.num_samples : round(lead * SPEECH_RATE_HZ)]
            writer.append(frames_THWC.numpy(), heard)
            if math.isnan(progress.first_frame_s):
                progress.first_frame_s = time.monotonic() - started
            bar.update(len(frames_THWC))
            if stop.asked and progress.frames < job.timeline.num_frames:
                progress.stopped = True
                break
    return progress


def run(options: argparse.Namespace) -> int:
    """Make the video that `options` ask for; returns the exit status."""
    started = time.monotonic()
    if options.resume and options.save_file.is_file():
        _say(f"{options.save_file} is complete; nothing to do")
        return 0
    job = plan(options)
    for note in job.inputs.notes:
        _say(f"note ({note.field}): {note.message}")
    height, width = job.portrait_HWC.shape[:2]
    _say(
        f"{job.timeline.num_frames} frames of {width}*{height} in {job.timeline.num_blocks} blocks "
        f"(size {options.size} sets the area, the portrait the shape)"
    )
    on_gpu = torch.cuda.is_available()
    loaded = load(
        job,
        Placement(torch.device("cuda"), torch.bfloat16)
        if on_gpu
        else Placement(torch.device("cpu"), torch.float32),
    )
    live_path = options.save_file.with_suffix(".live.mp4")
    try:
        progress = write_video(job, loaded, live_path, started)
    except KeyboardInterrupt:
        progress = Progress(stopped=True)
    except MediaError:
        live_path.unlink(missing_ok=True)
        raise
    return _finish(job, live_path, progress, started)


def _finish(job: Plan, live_path: Path, progress: Progress, started: float) -> int:
    output = job.options.save_file
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
        f"peak memory {_peak_memory()}"
    )
    return 0


def _peak_memory() -> str:
    host_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if not torch.cuda.is_available():
        return f"{host_mb:.0f} MiB"
    return f"{host_mb:.0f} MiB host, {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB GPU"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return run(build_parser().parse_args(arguments))
    except LiveAvatarError as error:
        _say(f"error: {error}")
        return EXIT_REFUSED
    except KeyboardInterrupt:
        _say("stopped before the first frame; nothing written")
        return EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main())
