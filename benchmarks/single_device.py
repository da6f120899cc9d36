"""What does one process on one device spend its time on, without a worker group?

    python -m benchmarks.single_device --out DIR [--ckpt_dir DIR | --random tiny|14b]
        [--size 128*128] [--devices cpu] [--threads 2] [--clips 2] [--sample_steps 4] [--json]

A video is made block by block, one thing after the other, as `liveavatar/single_device.py` does it:
transformer, decoder, then picture and sound into the file. One video that does not count comes
first. Told are the way until the first block is in the file, and the medians of the blocks behind.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from benchmarks.environment import describe_environment
from benchmarks.group_run import Setup, add_arguments, make_jobs, read_setup
from liveavatar.conditioning import Encoders, encode_conditions
from liveavatar.config import FRAMES_PER_BLOCK
from liveavatar.engine.messages import RandomWeights, RenderJob
from liveavatar.errors import LiveAvatarError
from liveavatar.media.soundtrack import open_soundtrack
from liveavatar.media.spoken_video import SpokenVideo
from liveavatar.model.checkpoint import Checkpoint, Placement, open_checkpoint
from liveavatar.random_networks import random_checkpoint
from liveavatar.sampling import make_schedule
from liveavatar.single_device import Models, VideoDecoder, generate_latents, seeded_draws

_Result = TypeVar("_Result")


class Clock:
    """Seconds of each part, a list per part, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, list[float]] = {}

    def time(self, part: str, work: Callable[[], _Result]) -> _Result:
        """Do some work of a part."""
        began = time.perf_counter()
        result = work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds.setdefault(part, []).append(time.perf_counter() - began)
        return result


class Studio:
    """All networks of a checkpoint on one device."""

    def __init__(self, checkpoint: Checkpoint, where: Placement) -> None:
        self.device = where.device
        embedder = checkpoint.load_condition_embedder(where)
        decoder = checkpoint.load_vae_decoder(where)
        self.models = Models(checkpoint.load_transformer(where), embedder, decoder)
        self.encoders = Encoders(
            checkpoint.load_text_encoder(where),
            checkpoint.load_tokenizer(),
            checkpoint.load_audio_encoder(where),
            checkpoint.load_vae_encoder(where),
        )

    @torch.no_grad()
    def make(self, job: RenderJob) -> dict[str, list[float]]:
        """Make a video; seconds of its inputs' encoding, and of each block's parts."""
        clock = Clock(self.device)
        models, timeline, steps = self.models, job.timeline, job.sampling.num_steps
        conditions = clock.time(
            "encode_inputs",
            lambda: encode_conditions(
                self.encoders, job.portrait_HWC, job.speech_N, job.prompt,
                embedder=models.embedder, num_blocks=timeline.num_blocks,
            ),
        )  # fmt: skip
        draws = seeded_draws(job.sampling.seed, conditions.reference_CFHW)
        schedule = make_schedule(steps, job.sampling.shift)
        latents = generate_latents(models, conditions, timeline, schedule, draws)
        portrait = torch.tensor(job.portrait_HWC)
        decoder = VideoDecoder(
            models.decoder, conditions.motion_CFHW, portrait, timeline.num_frames
        )
        height, width = job.portrait_HWC.shape[:2]
        sound = open_soundtrack(job.soundtrack, mix=job.mix)
        with SpokenVideo(job.live_path, sound, width, height) as video:
            clock.time("still_beginning", decoder.begin)
            for _ in range(timeline.num_blocks):
                latent_CFHW = clock.time("transformer", lambda: next(latents))
                frames = clock.time("decoder", lambda at=latent_CFHW: decoder.frames(at))  # type: ignore[misc]
                clock.time("video_encoder", lambda at=frames: video.append(at.numpy()))  # type: ignore[misc]
        return clock.seconds


def measure(setup: Setup, threads: int | None) -> dict[str, Any]:
    """Run the benchmark: seconds until the first block, milliseconds of the others."""
    if threads is not None:
        torch.set_num_threads(threads)
    device, plan = torch.device(setup.devices[0]), setup.plan()
    weights = setup.weights
    checkpoint = (
        random_checkpoint(weights.network)
        if isinstance(weights, RandomWeights)
        else open_checkpoint(weights)
    )
    studio = Studio(checkpoint, Placement.planned(device, plan.precision))
    unseen, job = make_jobs(setup, 2)
    studio.make(unseen)
    seconds = studio.make(job)
    firsts = {part: round(times[0], 3) for part, times in seconds.items()}
    blocks = {
        f"{part}_ms": round(1000 * statistics.median(seconds[part][1:]), 1)
        for part in ("transformer", "decoder", "video_encoder")
    }
    return {
        "benchmark": "single_device",
        "environment": describe_environment(device),
        "size": f"{setup.size_hw[1]}*{setup.size_hw[0]}",
        "precision": str(plan.precision),
        "threads": torch.get_num_threads(),
        "sample_steps": setup.sampling.num_steps,
        "first_block_s": round(sum(firsts.values()), 3),
        "until_first_block_s": firsts,
        "blocks": blocks,
        "fps": round(1000 * FRAMES_PER_BLOCK / sum(blocks.values()), 1),
    }


def text(report: dict[str, Any]) -> str:
    """Say the result in words."""
    firsts = ", ".join(f"{part} {value}" for part, value in report["until_first_block_s"].items())
    blocks = ", ".join(f"{part} {value}" for part, value in report["blocks"].items())
    return (
        f"single device {report['size']}, {report['precision']}, {report['sample_steps']} steps, "
        f"{report['threads']} threads, {report['environment']}\n"
        f"  first block after {report['first_block_s']} s: {firsts}\n"
        f"  a block: {blocks}: {report['fps']} frames/s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.single_device", description=__doc__)
    add_arguments(parser)
    parser.set_defaults(devices="cpu,cpu")
    parser.add_argument("--size", default="128*128", metavar="W*H", help="of the video, pixels")
    parser.add_argument("--threads", type=int, help="of torch; its own choice by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    device = options.devices.partition(",")[0]
    options.devices = f"{device},{device}"  # as a stage and a media rank on one device are planned
    try:
        report = measure(read_setup(options, options.size), options.threads)
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    (options.out / "single_device.json").write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write((json.dumps(report) if options.json else text(report)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
