"""How long does one denoise forward of the transformer take, and how near is it to the bound?

    python -m benchmarks.dit_step --precision bfloat16,fp8+8-bit --size 688*368,384*256
    python -m benchmarks.dit_step --shelf both --size 688*368
    python -m benchmarks.dit_step --attention cudnn --size 688*368
    python -m benchmarks.dit_step --shape tiny --size 64*64 --device cpu

A forward is a block at one denoise step through all layers, speech included, with a full ring:
embedding, layers, head. They are timed in a row, and those of one block alone: with the device idle
before. Weights and inputs are random, at the shape of the 14B model unless said. Sizes are taken
literally. The bound adds up what the matrix products, attention and, with 8-bit
caches, bringing back the windows would take at the rates measured in the same run. With --shelf
layers, rings or both come from host memory; the rate of these copies is told, all the time of a
forward given to them.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.environment import describe_environment
from benchmarks.group_run import first_layers
from benchmarks.kernel_times import kernel_times
from benchmarks.printing import print_reports
from liveavatar.config import SamplingConfig, TransformerConfig
from liveavatar.errors import ConfigError
from liveavatar.model.attention_backend import BACKENDS
from liveavatar.model.audio_injection import BlockAudio
from liveavatar.model.checkpoint import Placement
from liveavatar.model.denoiser import Denoiser, Item, TokenGrid
from liveavatar.model.fp8 import quantise_linears
from liveavatar.model.layer_shelf import LayerShelf, run_from_shelf
from liveavatar.model.transformer import Layer, TimeTable, Transformer
from liveavatar.parallel.recorded import RecordedDenoiser
from liveavatar.plan import transformer_memory as stage
from liveavatar.plan.alone import Shelf, copied
from liveavatar.plan.layout import GIB, Machine, estimate_layout
from liveavatar.plan.precision import Precision, parse_precision
from liveavatar.plan.shapes import Network
from liveavatar.random_checkpoint import TINY
from liveavatar.request import parse_size

SHAPES = {"14b": TransformerConfig(), "tiny": TINY}
ALL_RESIDENT = Shelf()
SHELVES = {
    "none": ALL_RESIDENT,
    "layers": Shelf(layers=True),
    "rings": Shelf(rings=True),
    "both": Shelf(layers=True, rings=True),
}
PIXELS_PER_LATENT = 8
TFLOP = 1e12


@dataclass(frozen=True)
class Setting:
    """One measurement.

    Attributes:
        config: shape of the transformer.
        size_hw: height and width in pixels.
        sampling: denoise steps and window.
        precision: of weights, keys and values.
        device: where.
        compiled: whether work between matrix products is fused.
        recorded: whether forwards are replayed as CUDA graphs.
        forwards: timed ones, rounded up to whole blocks; those of the first block alone.
        profiled: whether the kernels of one more forward are listed.
        shelf: what comes from host memory for every forward.
        attention: backend of a block's attention to its window; None for the fastest.
    """

    config: TransformerConfig
    size_hw: tuple[int, int]
    sampling: SamplingConfig
    precision: Precision
    device: torch.device
    compiled: bool
    recorded: bool
    forwards: int
    profiled: bool = False
    shelf: Shelf = ALL_RESIDENT
    attention: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        return Placement.planned(self.device, self.precision).dtype


def random_transformer(
    config: TransformerConfig, where: Placement, shelf: LayerShelf | None = None
) -> Transformer:
    """Build a transformer with random weights, quantised layer by layer; layers go to a shelf."""
    torch.manual_seed(0)
    with torch.device("meta"):
        transformer = Transformer(
            config,
            None,
            where.dtype,
            cache_kind=where.cache_kind,
            rings_on_shelf=where.rings_on_shelf,
        )
    for _, part in transformer.parts():
        part.to_empty(device=where.device)
        for name, parameter in part.named_parameters():
            wide = parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 10.0
            parameter.data.normal_().div_(wide)
            if "norm" in name and name.endswith("weight"):
                parameter.data.add_(1.0)
        if where.quantised_weights and isinstance(part, Layer):
            quantise_linears(part)
        if shelf is not None and isinstance(part, Layer):
            shelf.put(part)
    if shelf is not None:
        run_from_shelf(transformer, shelf)
    return transformer.requires_grad_(False).eval()


class Forwards:
    """A job whose blocks are run one denoise step at a time, with random inputs.

    Args:
        transformer: all layers.
        setting: what is measured.
    """

    def __init__(self, transformer: Transformer, setting: Setting) -> None:
        config, device, steps = setting.config, setting.device, setting.sampling.num_steps
        self.transformer = transformer
        self.num_steps = steps
        self.dtype = setting.dtype
        height, width = (side // PIXELS_PER_LATENT for side in setting.size_hw)
        self.latent_CFHW = torch.randn(config.in_dim, 3, height, width, device=device).to(
            self.dtype
        )
        grid = TokenGrid.of_latent(self.latent_CFHW)
        time_table = TimeTable(
            torch.randn(steps + 1, config.dim, device=device),
            torch.randn(steps + 1, 6, config.dim, device=device) / 10,
        )
        text_LD = torch.randn(config.text_len, config.dim, device=device).to(self.dtype)
        recorded = setting.recorded and device.type == "cuda"
        self.denoiser = (RecordedDenoiser if recorded else Denoiser)(
            transformer, time_table, text_LD, grid, setting.sampling.window_blocks
        )
        if setting.attention is not None:
            self._attend_by(setting.attention)
        motion_CFHW = torch.randn(config.in_dim, 19, height, width, device=device).to(self.dtype)
        condition_CD = transformer.embed_condition(self.latent_CFHW[:, :1], motion_CFHW)
        for version in range(2):
            self.denoiser.prefill(condition_CD, version)
        self.audio = BlockAudio(
            torch.randn(3, config.num_audio_token + 1, config.dim, device=device),
            torch.randn(3, config.dim, device=device),
        )

    def _attend_by(self, name: str) -> None:
        """Have the backend `name`.

        Raises:
            ConfigError: it cannot do this attention on this device.
        """
        possible = self.denoiser.attention_ms()
        if name not in possible:
            known = ", ".join(possible) or "none to choose from"
            raise ConfigError(f"attention {name}: expected one that works here ({known})")
        self.denoiser.backend = name

    def hear(self, block: int) -> None:
        """Take a block's speech, and forget the block before."""
        self.denoiser.finish_block(block - 1)
        self.denoiser.hear(block, self.audio)

    def run(self, block: int, step: int) -> Tensor:
        """One denoise forward: latent in, velocity out."""
        hidden_LD = self.transformer.embed_block(self.latent_CFHW)
        hidden_LD = self.denoiser.forward(hidden_LD, Item(block, step, 1, 12))
        return self.denoiser.head(hidden_LD, step)


def timed(device: torch.device, runs: Sequence[Callable[[], object]]) -> list[float]:
    """Milliseconds of each of some calls, by the device's clock where it has one.

    Nothing waits between them, as nothing does between the items of a pipeline stage: the host is
    ahead of the device, but for the first call.
    """
    if device.type != "cuda":
        times = []
        for run in runs:
            started = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - started))
        return times
    events = [torch.cuda.Event(enable_timing=True) for _ in range(1 + len(runs))]  # type: ignore[no-untyped-call]
    events[0].record()
    for run, event in zip(runs, events[1:], strict=True):
        run()
        event.record()
    events[-1].synchronize()
    return [float(start.elapsed_time(end)) for start, end in pairwise(events)]


@contextlib.contextmanager
def _compiling(*, allowed: bool) -> Iterator[None]:
    if allowed:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@torch.no_grad()
def measure(setting: Setting, transformer: Transformer, ceilings: Ceilings) -> dict[str, Any]:
    """Fill the rings, then time forwards of further blocks."""
    on_gpu = setting.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with _compiling(allowed=setting.compiled):
        forwards = Forwards(transformer, setting)
        started = time.perf_counter()
        window, steps = setting.sampling.window_blocks, setting.sampling.num_steps
        for block in range(window + 1):
            forwards.hear(block)
            for step in range(steps):
                velocity = forwards.run(block, step)
        finite = bool(velocity.isfinite().all())
        warm_up_s = time.perf_counter() - started
        held: set[int] = set()

        def run(block: int, step: int) -> None:
            if step == 0:
                forwards.hear(block)
            forwards.run(block, step)
            if on_gpu and step == steps - 1:
                held.add(torch.cuda.memory_allocated())

        blocks = range(window + 1, window + 1 + -(-setting.forwards // steps))
        items = [partial(run, block, step) for block in blocks for step in range(steps)]
        alone = [timed(setting.device, [item])[0] for item in items[:steps]]
        in_a_row = timed(setting.device, items[steps:] or items)
        block, kernels = blocks[-1], {}
        if setting.profiled and on_gpu:
            kernels = {"profile": kernel_times(partial(forwards.run, block, steps - 1))}
    return {
        **kernels,
        "size": f"{setting.size_hw[1]}*{setting.size_hw[0]}",
        "tokens": forwards.denoiser.grid.block_tokens,
        "precision": str(setting.precision),
        "compiled": setting.compiled,
        "recorded": setting.recorded,
        "from_host": str(setting.shelf),
        "steps": steps,
        "backend": forwards.denoiser.backend,
        "attention_ms": {
            name: round(ms, 3) for name, ms in forwards.denoiser.attention_ms().items()
        },
        "warm_up_s": round(warm_up_s, 1),
        "finite": finite,
        **_speed(setting, in_a_row, ceilings),
        **(_copies(setting, in_a_row) if setting.shelf != ALL_RESIDENT else {}),
        "alone_ms": round(statistics.median(alone), 2),
        **(_memory(setting, held) if on_gpu else {}),
    }


def _speed(setting: Setting, times: Sequence[float], ceilings: Ceilings) -> dict[str, Any]:
    median = statistics.median(times)
    products, attention, restored = work(setting)
    fp8 = setting.precision.quantises_weights
    rate = ceilings.fp8_flops if fp8 and ceilings.fp8_flops else ceilings.product_flops
    bound_s = products / rate + attention / ceilings.attention_flops
    bound_s += restored / ceilings.copy_bytes
    return {
        "forwards": len(times),
        "median_ms": round(median, 2),
        "p95_ms": round(sorted(times)[int(0.95 * (len(times) - 1))], 2),
        "tflop": round((products + attention) / TFLOP, 2),
        "tflop_per_s": round((products + attention) / TFLOP / median * 1000, 1),
        "bound_ms": round(1000 * bound_s, 1),
        "share_of_bound": round(1000 * bound_s / median, 3),
    }


def _copies(setting: Setting, times: Sequence[float]) -> dict[str, Any]:
    """Bytes that each forward copies to the device, and at what rate."""
    tokens = stage.count_tokens(setting.config, setting.size_hw, setting.sampling)
    moved = copied(setting.config, tokens, setting.sampling, setting.shelf, setting.precision)
    forward_s = statistics.median(times) / 1000
    return {
        "copied_gb": round(moved.to_device / 1e9, 3),
        "copied_gb_per_s": round(moved.to_device / 1e9 / forward_s, 2),
    }


def work(setting: Setting) -> tuple[float, float, float]:
    """Operations of a forward in matrix products and in attention, and bytes that 8 bits move."""
    config, dim = setting.config, setting.config.dim
    tokens = stage.count_tokens(config, setting.size_hw, setting.sampling)
    keys = tokens.condition + tokens.ring
    products = config.num_layers * (6 * dim * dim + 2 * dim * config.ffn_dim)
    told = config.num_heads * (config.num_audio_token + 1)
    products += len(config.audio_inject_layers) * (dim + told) * dim
    attention = config.num_layers * 4 * dim * (keys + config.text_len)
    restored = 0.0
    if setting.precision.quantises_cache:
        restored = config.num_layers * 2 * dim * keys * (1 + setting.precision.value_bytes)
    return 2.0 * tokens.block * products, float(tokens.block * attention), restored


def _memory(setting: Setting, held: set[int]) -> dict[str, Any]:
    """Peak against what the planner says of a stage with all layers."""
    network = Network(transformer=setting.config)
    sampling = replace(setting.sampling, num_clip=2)
    machine = Machine(2, 2**40)
    planned = estimate_layout(network, setting.size_hw, sampling, machine, setting.precision)
    rank = planned.ranks[0]
    if setting.shelf.layers:
        rooms = stage.shelf_weights(setting.config, setting.precision)
        rank = replace(rank, weights=rooms)
    if setting.shelf.rings:
        tokens = stage.count_tokens(setting.config, setting.size_hw, setting.sampling)
        windows = stage.ring_rooms(setting.config, tokens, setting.precision)
        rank = replace(rank, rings=windows, condition=0)
    free, total = torch.cuda.mem_get_info()
    peak = torch.cuda.max_memory_allocated()
    return {
        "peak_gib": round(peak / GIB, 3),
        "planned_gib": round((rank.total - rank.beside_torch) / GIB, 3),
        "peak_over_planned": round(peak / (rank.total - rank.beside_torch), 4),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 3),
        "beside_torch_gib": round((total - free - torch.cuda.memory_reserved()) / GIB, 3),
        "held_varies_bytes": max(held) - min(held),
    }


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dit_step", description=__doc__)
    add = parser.add_argument
    add("--shape", choices=sorted(SHAPES), default="14b")
    add("--layers", type=int, help="only so many layers, all by default")
    add("--size", default="688*368", metavar="W*H,...", help="pixels, taken literally")
    add("--precision", default="bfloat16", metavar="P,...", help="such as bfloat16,fp8+8-bit")
    add("--infer_frames", type=int, default=48)
    add("--sample_steps", type=int, default=4, help="rings that are held; each forward is one step")
    add("--compile", action=argparse.BooleanOptionalAction, default=True)
    add("--record", action=argparse.BooleanOptionalAction, default=True, help="CUDA graphs")
    add("--shelf", choices=SHELVES, default="none", help="wait in host memory; not recorded")
    add("--forwards", type=int, default=20)
    add("--profile", action="store_true", help="list the kernels of one more forward, with --json")
    add("--attention", choices=("auto", *BACKENDS), default="auto", help="of a block to its window")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--json", action="store_true", help="print one JSON object per measurement")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every precision at every size; weights are made once per precision."""
    config = SHAPES[options.shape]
    if options.layers is not None:
        config = first_layers(config, options.layers)
    sampling = SamplingConfig(num_steps=options.sample_steps, infer_frames=options.infer_frames)
    device = torch.device(options.device)
    sizes = [parse_size(size) for size in options.size.split(",")]
    for precision in map(parse_precision, options.precision.split(",")):
        shelf = SHELVES[options.shelf]
        where = replace(Placement.planned(device, precision), rings_on_shelf=shelf.rings)
        layers = LayerShelf(device) if shelf.layers else None
        transformer = random_transformer(config, where, layers)
        for size in sizes:
            size_hw = (size.height, size.width)
            setting = Setting(
                config=config,
                size_hw=size_hw,
                sampling=sampling,
                precision=precision,
                device=device,
                compiled=options.compile,
                recorded=options.record and shelf == ALL_RESIDENT,
                shelf=shelf,
                forwards=options.forwards,
                profiled=options.profile,
                attention=None if options.attention == "auto" else options.attention,
            )
            tokens = stage.count_tokens(config, size_hw, sampling)
            ceilings = measure_ceilings(config, tokens, device)
            yield {
                "benchmark": "dit_step",
                "environment": describe_environment(device),
                "layers": config.num_layers,
                "ceilings": ceilings.described(),
                **measure(setting, transformer, ceilings),
            }
        del transformer


def one_line(report: dict[str, Any]) -> str:
    """Say a result in words."""
    line = (
        f"dit_step {report['size']} {report['precision']}, {report['layers']} layers, "
        f"{'compiled' if report['compiled'] else 'eager'}, "
        f"{'recorded' if report['recorded'] else 'by hand'}"
        f"{', ' + report['from_host'] + ' from the host' if report['from_host'] else ''}, "
        f"{report['environment']['device']}: "
        f"{report['median_ms']} ms (p95 {report['p95_ms']}), alone {report['alone_ms']}, "
        f"{report['tflop_per_s']} TFLOP/s, "
        f"bound {report['bound_ms']} ms, {100 * report['share_of_bound']:.0f} % of it reached"
    )
    if "copied_gb" in report:
        line += f"; {report['copied_gb']} GB copied, {report['copied_gb_per_s']} GB/s"
    if report["backend"] is not None:
        timed = ", ".join(f"{name} {ms}" for name, ms in report["attention_ms"].items())
        line += f"; attention by {report['backend']} ({timed} ms)"
    if "peak_gib" in report:
        line += f"; peak {report['peak_gib']} GiB of {report['planned_gib']} planned"
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    options = parse_arguments(arguments)
    return print_reports(run(options), one_line, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
