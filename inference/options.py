"""The options of the command line, and what can be said of them without reading a file.

No torch here: a wrong option is refused, and the help shown, at once.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from liveavatar.config import (
    ParallelConfig,
    SamplingConfig,
    check_visible_devices,
    launched_ranks,
)
from liveavatar.engine.machine import detect_machine, narrowed
from liveavatar.errors import ConfigError
from liveavatar.plan.layout import Machine
from liveavatar.plan.sharing import ALONE, Sharing
from liveavatar.request import SizeOption, parse_size

ANY_NUMBER_OF_CLIPS = 100_000

_OF_A_VIDEO = ("image", "audio", "prompt", "save_file")


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
    add("--lora_path_dmd", "--lora", type=Path, help="LiveAvatar adapter: file, or its folder")
    add("--image", type=Path, help="portrait")
    add("--audio", type=Path, help="speech, or a video with sound")
    add("--prompt", help="person, action and surroundings in 60 to 90 characters")
    add("--size", default="688*368", help='area as "W*H"; the portrait sets the shape')
    add("--num_clip", type=int, help="clips at most; as many as the speech needs by default")
    add("--infer_frames", type=int, default=48, help="frames per clip, a multiple of 4 from 12")
    add("--sample_steps", type=int, default=4, help="denoise steps per block")
    add("--base_seed", type=int, default=420, help="the same seed makes the same video")
    add("--num_gpus_dit", type=int, default=1, help="ranks that hold transformer layers")
    add("--ulysses_size", type=int, help="width of that group; must equal num_gpus_dit")
    add("--enable_vae_parallel", action="store_true", help="give the VAE a rank of its own")
    add("--enable_online_decode", action="store_true", help="decode every block, not every clip")
    add("--offload_model", type=_switch, default=True, help="little stays on the GPU")
    add("--tpp_mode", type=_switch, default=True, help="split layers; False: shard weights, FSDP")
    add("--mesh", help='"STAGESxTPxSP" ranks, product num_gpus_dit; all are stages by default')
    add("--save_file", type=Path, help="MP4 to write")
    add("--batch", type=Path, help="JSONL file: a video a line, in place of the options above")
    add("--resume", action="store_true", help="go on with what a killed run left, not Ctrl-C")
    return parser


@dataclass(frozen=True)
class Settings:
    """Checked options.

    Attributes:
        options: as they were given.
        size: sets the area of the video.
        sampling: steps, frames and clips.
        machine: the part of this machine that the ranks take.
    """

    options: argparse.Namespace
    size: SizeOption
    sampling: SamplingConfig
    machine: Machine


def read_settings(options: argparse.Namespace) -> Settings:
    """Check the options.

    Raises:
        ConfigError, RequestError: the first that cannot be used, in one line.
    """
    if missing := [name for name in _OF_A_VIDEO if getattr(options, name) is None]:
        listed = ", ".join(f"--{name}" for name in missing)
        raise ConfigError(
            f"the following arguments are required: {listed}; --help lists the options"
        )
    size = parse_size(options.size)
    machine = read_machine(options)
    sampling = SamplingConfig(
        num_steps=options.sample_steps,
        infer_frames=options.infer_frames,
        num_clip=ANY_NUMBER_OF_CLIPS if options.num_clip is None else options.num_clip,
        seed=options.base_seed,
        online_decode=options.enable_online_decode,
    )
    check_output(options.save_file)
    return Settings(options, size, sampling, machine)


def read_machine(options: argparse.Namespace) -> Machine:
    """The part of this machine that the ranks take; ConfigError when there are too many."""
    width = options.num_gpus_dit if options.ulysses_size is None else options.ulysses_size
    parallel = ParallelConfig(options.num_gpus_dit, width)
    check_visible_devices()
    ranks, own_media = parallel.num_gpus_dit, options.enable_vae_parallel
    launched = launched_ranks()
    if launched not in (1, ranks + own_media):
        raise ConfigError(
            f"torchrun: expected --nproc_per_node {ranks + own_media}, num_gpus_dit and one more "
            f"with --enable_vae_parallel, got {launched}"
        )
    sharing = _sharing(ranks, options)
    return narrowed(detect_machine(), ranks, own_media=own_media, sharing=sharing)


def _sharing(num_ranks: int, options: argparse.Namespace) -> Sharing:
    """How many ranks have a stage together."""
    mesh = options.mesh
    if not options.tpp_mode:
        if mesh is not None:
            raise ConfigError("mesh: expected with --tpp_mode True; False has no stages to share")
        return Sharing(sp_degree=num_ranks, sharded=num_ranks > 1)
    if mesh is None:
        return ALONE
    parts = mesh.split("x")
    if len(parts) != 3 or not all(re.fullmatch("[1-9][0-9]?", part) for part in parts):
        raise ConfigError(f'mesh: expected three numbers as in "3x1x1", got {mesh[:40]!r}')
    stages, tp_degree, sp_degree = map(int, parts)
    if stages * tp_degree * sp_degree != num_ranks:
        raise ConfigError(
            f"mesh: expected a product of {num_ranks}, which is num_gpus_dit, got {mesh} = "
            f"{stages * tp_degree * sp_degree}"
        )
    return Sharing(tp_degree, sp_degree)


def check_output(path: Path) -> None:
    """Raise ConfigError unless a video can be written under this name."""
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"save_file: expected a name that ends in .mp4, got '{path.name}'")
    if path.is_dir():
        raise ConfigError(f"save_file: '{path}' is a folder; name a file in it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"save_file: folder '{path.parent}' is not there or cannot be written")
