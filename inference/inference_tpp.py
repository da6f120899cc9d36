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
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

# The script is run by its path; the packages lie one folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from inference.rendering import Progress, render_here, render_in_group
from inference.video_job import VideoJob, prepare
from liveavatar.config import FPS
from liveavatar.errors import ConfigError, EngineError, LiveAvatarError, MediaError
from liveavatar.media.remux import count_frames, remux_to_progressive

EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_STOPPED = 130


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


def run(options: argparse.Namespace) -> int:
    """Make the video that `options` ask for; returns the exit status."""
    started = time.monotonic()
    job = prepare(options)
    if options.resume and count_frames(options.save_file) == job.timeline.num_frames:
        _say(f"{options.save_file} is complete; nothing to do")
        return 0
    for note in job.notes:
        _say(f"note ({note.field}): {note.message}")
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


def _finish(job: VideoJob, progress: Progress, started: float) -> int:
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
    except torch.OutOfMemoryError:
        _say("error: out of GPU memory; use a smaller size or more ranks")
        return EXIT_FAILED
    except LiveAvatarError as error:
        _say(f"error: {error}")
        return EXIT_REFUSED
    except KeyboardInterrupt:
        _say("stopped before the first frame; nothing written")
        return EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main())
