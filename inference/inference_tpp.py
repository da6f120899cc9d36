"""Make one talking video from the shell.

    python inference/inference_tpp.py --ckpt_dir DIR --image P --audio S --prompt "..." \
        --size "688*368" --save_file out.mp4

Many videos through one group: --batch jobs.jsonl, see `inference/batch.py`.

While it is made, the video grows beside the output as `out.live.mp4`, which a player can follow.
A command that was killed is gone on with by running it again with --resume.
Exit status: 0 done; 1 when a rank failed; 2 for input that cannot be used: one line says why and
nothing is written; 130 when stopped: what was made until then is left as a playable file.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# The script is run by its path; the packages lie one folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inference.options import build_parser, read_settings
from inference.torchrun import run_launched
from liveavatar.config import FPS
from liveavatar.errors import EngineError, LiveAvatarError, MediaError

if TYPE_CHECKING:
    from inference.leftovers import Leftovers
    from inference.rendering import Progress
    from inference.video_job import VideoJob

EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_STOPPED = 130


def run(options: argparse.Namespace) -> int:
    """Make the video that `options` ask for; returns the exit status."""
    started = time.monotonic()
    if options.batch is not None:
        from inference.batch import run_batch
        from liveavatar.model.checkpoint import open_checkpoint

        open_checkpoint(options.ckpt_dir, options.lora_path_dmd)  # refused before a rank is started
        return run_batch(options)
    settings = read_settings(options)
    # Not before the options are checked: these take seconds to import.
    from inference.leftovers import Leftovers
    from inference.rendering import Progress, render_here, render_in_group
    from inference.video_job import prepare
    from liveavatar.media.remux import count_frames

    job = prepare(settings)
    if options.resume and count_frames(options.save_file) == job.timeline.num_frames:
        _say(f"{options.save_file} is complete; nothing to do")
        return 0
    leftovers = Leftovers(job)
    for note in job.notes:
        _say(f"note ({note.field}): {note.message}")
    height, width = job.portrait_HWC.shape[:2]
    _say(
        f"{job.timeline.num_frames} frames of {width}*{height} in {job.timeline.num_blocks} blocks "
        f"(size {options.size} sets the area, the portrait the shape)"
    )
    if leftovers.frames:
        _say(f"{leftovers.frames} frames are there already; going on behind them")
    leftovers.begin()
    try:
        progress = (render_here if job.alone else render_in_group)(job, leftovers, started)
    except KeyboardInterrupt:
        progress = Progress(stopped=True)
    except LiveAvatarError as error:
        if isinstance(error, MediaError) or not job.live_path.exists():
            leftovers.remove()
        raise
    return _finish(job, leftovers, progress, started)


def _finish(job: VideoJob, leftovers: Leftovers, progress: Progress, started: float) -> int:
    from inference.rendering import peak_memory
    from liveavatar.media.remux import remux_to_progressive

    output, live_path = job.options.save_file, job.live_path
    try:
        frames = remux_to_progressive(live_path, output)
    except MediaError:
        if not progress.stopped:
            raise
        frames = 0
    leftovers.remove()
    took = time.monotonic() - started
    if progress.stopped:
        left = f"{output} holds the first {frames} of {job.timeline.num_frames} frames and plays"
        _say(f"stopped: {left}" if frames else "stopped before the first frame; nothing written")
        return EXIT_STOPPED
    if busy := progress.times.line():
        _say(busy)
    _say(
        f"{output}: {frames} frames, {frames / FPS:.2f} s; made in {took:.1f} s "
        f"({(frames - leftovers.frames) / took:.2f} fps), "
        f"first frame after {progress.first_frame_s:.1f} s; "
        f"peak memory {peak_memory(alone=job.alone)}"
    )
    return 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return run_launched(lambda: run(build_parser().parse_args(arguments)))
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
