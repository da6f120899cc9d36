"""How long does the streaming VAE decoder take for a block of 3 latent frames (12 video frames)?

    python -m benchmarks.vae --json
    python -m benchmarks.vae --dim 96 --size 384*640 --dtype bfloat16 --device cuda

Weights and latents are random; the time does not depend on them. The physical bound given is the
arithmetic of the convolutions and attention per block.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.environment import describe_environment
from benchmarks.printing import print_reports
from liveavatar.errors import ConfigError
from liveavatar.model.vae import Decoder, VAEConfig
from liveavatar.model.vae_stream import DecoderState, decode_step, new_decoder_state

BLOCK_LATENT_FRAMES = 3
WARM_UP_BLOCKS = 2
VIDEO_FPS = 25
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """What is measured: model width, picture size in pixels, dtype, device, timed blocks."""

    dim: int
    width: int
    height: int
    dtype: str
    device: str
    threads: int
    blocks: int


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vae", description=__doc__)
    parser.add_argument("--dim", type=int, default=16, help="channels at full resolution")
    parser.add_argument("--size", default="128*128", metavar="W*H", help="picture size in pixels")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--blocks", type=int, default=20, help="timed blocks of 3 latent frames")
    parser.add_argument(
        "--compare-diffusers", action="store_true", help="time diffusers' decoder beside ours"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(arguments)


def read_settings(options: argparse.Namespace) -> Settings:
    """Check the options; raises ConfigError with one line."""
    width, separator, height = options.size.partition("*")
    if not separator or not width.isdecimal() or not height.isdecimal():
        raise ConfigError(f"--size takes W*H in pixels, such as 128*128; got {options.size}")
    if min(options.blocks, options.threads, options.dim) < 1:
        raise ConfigError("--blocks, --threads and --dim take numbers from 1 up")
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        raise ConfigError(f"--device takes cpu or cuda; got {options.device}") from error
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and not torch.cuda.is_available()
    ):
        raise ConfigError(f"--device {options.device} is not available here; try --device cpu")
    return Settings(
        dim=options.dim,
        width=int(width),
        height=int(height),
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        blocks=options.blocks,
    )


def build(settings: Settings) -> tuple[Decoder, DecoderState]:
    """Make a decoder with random weights and the state of one stream."""
    torch.manual_seed(0)
    with torch.device(settings.device):
        decoder = Decoder(VAEConfig(dim=settings.dim))
    decoder = decoder.to(DTYPES[settings.dtype]).requires_grad_(False).eval()
    return decoder, new_decoder_state(decoder, settings.height, settings.width)


def diffusers_step(decoder: Decoder, frames_per_call: int) -> Step | None:
    """Wrap diffusers' decoder with the same weights; None if diffusers is not installed.

    Its decoder keeps the stream's state in a list that the caller hands in, and wants the first
    call to be one latent frame.
    """
    try:
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanDecoder3d
    except ImportError:
        return None
    config, weight = decoder.config, decoder.conv2.weight
    network = WanDecoder3d(
        config.dim, config.z_dim, list(config.dim_mult), config.num_res_blocks,
        temperal_upsample=list(reversed(config.temporal_downsample)),
    )  # fmt: skip
    first_conv = WanCausalConv3d(config.z_dim, config.z_dim, 1)
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = convert_wan_vae_to_diffusers
    theirs = convert(dict(decoder.state_dict()))
    network.load_state_dict(
        {name[8:]: value for name, value in theirs.items() if name.startswith("decoder.")}
    )
    first_conv.load_state_dict(
        {name[16:]: value for name, value in theirs.items() if name.startswith("post_quant_conv.")}
    )
    network.to(weight.device, weight.dtype).eval()
    first_conv.to(weight.device, weight.dtype)
    cache: list[Tensor | None] = [None] * sum(
        isinstance(module, WanCausalConv3d) for module in network.modules()
    )
    mean, std = (
        torch.tensor(values, device=weight.device)[:, None, None, None]
        for values in (config.latent_mean, config.latent_std)
    )

    def step(latent_CFHW: Tensor) -> Tensor:
        hidden = first_conv((latent_CFHW * std + mean).to(weight.dtype)[None])
        frames = []
        lengths = [1, hidden.shape[2] - 1] if cache[0] is None else [frames_per_call]
        for part in hidden.split(lengths if len(lengths) > 1 else frames_per_call, dim=2):
            frames.append(network(part, feat_cache=cache, feat_idx=[0]))
        return torch.cat(frames, 2)[0]

    return step


def time_blocks(settings: Settings, steps: dict[str, Step], z_dim: int) -> dict[str, list[float]]:
    """Run every step on the same latents in turn; returns seconds per block and step."""
    device = torch.device(settings.device)
    latent_CFHW = torch.randn(
        (z_dim, BLOCK_LATENT_FRAMES, settings.height // 8, settings.width // 8), device=device
    )
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(WARM_UP_BLOCKS + settings.blocks):
        for name, step in steps.items():
            _synchronise(device)
            start = time.perf_counter()
            with torch.no_grad():
                step(latent_CFHW)
            _synchronise(device)
            if block >= WARM_UP_BLOCKS:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarise(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds per block, and frames per second at the median."""
    ordered = sorted(seconds)
    median_s = statistics.median(ordered)
    return {
        "median_ms": round(median_s * 1e3, 2),
        "p95_ms": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))] * 1e3, 2),
        "fps": round(4 * BLOCK_LATENT_FRAMES / median_s, 2),
        "times_real_time": round(4 * BLOCK_LATENT_FRAMES / median_s / VIDEO_FPS, 2),
    }


def block_flops(decoder: Decoder, settings: Settings) -> int:
    """Floating-point operations of one block, counted without computing."""
    with torch.device("meta"):
        shadow = Decoder(decoder.config)
    state = new_decoder_state(shadow, settings.height, settings.width)
    channels, height, width = state.latent_shape
    latent_CFHW = torch.empty((channels, BLOCK_LATENT_FRAMES, height, width), device="meta")
    decode_step(shadow, latent_CFHW, state)
    with FlopCounterMode(display=False) as counter:
        decode_step(shadow, latent_CFHW, state)
    return int(counter.get_total_flops())


def measure(settings: Settings, *, compare_diffusers: bool) -> dict[str, Any]:
    """Run the benchmark; returns settings, environment and results."""
    torch.set_num_threads(settings.threads)
    decoder, state = build(settings)
    state_bytes = state.nbytes
    steps: dict[str, Step] = {"ours": lambda latent_CFHW: decode_step(decoder, latent_CFHW, state)}
    skipped = None
    if compare_diffusers:
        for name, frames_per_call in (("diffusers", 3), ("diffusers_one_latent_per_call", 1)):
            step = diffusers_step(decoder, frames_per_call)
            if step is None:
                skipped = "diffusers is not installed; pip install diffusers to compare with it"
            else:
                steps[name] = step
    results = {
        name: summarise(seconds)
        for name, seconds in time_blocks(settings, steps, decoder.config.z_dim).items()
    }
    flops = block_flops(decoder, settings)
    report: dict[str, Any] = {
        "benchmark": "vae",
        "settings": asdict(settings),
        "environment": describe_environment(torch.device(settings.device)),
        "block_frames": 4 * BLOCK_LATENT_FRAMES,
        "block_gflop": round(flops / 1e9, 2),
        "tflop_per_s": round(flops / results["ours"]["median_ms"] / 1e9, 4),
        "state_bytes": state_bytes,
        "config": asdict(decoder.config),
        "results": results,
    }
    if skipped:
        report["skipped"] = skipped
    for name, result in results.items():
        if name != "ours":
            report[f"{name}_over_ours"] = round(
                result["median_ms"] / results["ours"]["median_ms"], 2
            )
    return report


def one_line(report: dict[str, Any]) -> str:
    """Say the result in words."""
    settings, ours = report["settings"], report["results"]["ours"]
    line = (
        f"vae decode dim {settings['dim']} {settings['width']}x{settings['height']} "
        f"{settings['dtype']} {report['environment']['device']} {settings['threads']} threads: "
        f"{ours['median_ms']} ms per block (p95 {ours['p95_ms']}), {ours['fps']} fps, "
        f"{report['tflop_per_s']} TFLOP/s, state {report['state_bytes'] / 1e6:.1f} MB"
    )
    for name, result in report["results"].items():
        if name != "ours":
            ratio = report[f"{name}_over_ours"]
            line += f"; {name} {result['median_ms']} ms ({ratio} x ours)"
    if "skipped" in report:
        line += f"; {report['skipped']}"
    return line


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure what was asked for."""
    yield measure(read_settings(options), compare_diffusers=options.compare_diffusers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    options = parse_arguments(arguments)
    return print_reports(run(options), one_line, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
