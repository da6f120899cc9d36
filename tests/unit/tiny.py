"""Small models in memory with weights that make every part matter, shared by the unit tests.

Shapes: latents (C, F, H, W) of 8 x 8, that is 4 x 4 tokens per latent frame.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from liveavatar.conditioning import Conditions
from liveavatar.config import FRAMES_PER_BLOCK, SamplingConfig, TransformerConfig
from liveavatar.model.checkpoint_files import Part, TensorEntry, TensorFiles
from liveavatar.model.denoiser import Denoiser, TokenGrid
from liveavatar.model.transformer import ConditionEmbedder, Transformer
from liveavatar.model.vae import Decoder, VAEConfig
from liveavatar.model.weights import stored_names, stored_shapes
from liveavatar.random_checkpoint import TINY
from liveavatar.sampling import Schedule, make_schedule
from liveavatar.single_device import Draws, Models, generate_latents, seeded_draws
from liveavatar.timeline import Timeline

# Tensors this small are slower on several threads, by far so when the cores are busy elsewhere.
torch.set_num_threads(1)

VAE = VAEConfig(dim=4, num_res_blocks=1)
LATENT_SIDE = 8
PIXEL_SIDE = LATENT_SIDE * 8

Network = TypeVar("Network", bound=nn.Module)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float32 numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomised(network: Network, seed: int = 0) -> Network:
    """Fill every parameter so that a swapped name, sign or gate would show.

    Gates and shifts are about 0.5, so that each layer changes the stream; all numbers are exact in
    bfloat16, so that a bfloat16 copy holds the same weights.
    """
    for index, (name, parameter) in enumerate(network.named_parameters()):
        value = seeded(*parameter.shape, seed=1000 * seed + index)
        if "norm" in name and name.endswith("weight"):
            value = 1 + value / 4
        elif name.endswith(("modulation", "token_kind", "mix_weights", "padding_token")):
            value = (value + name.endswith("mix_weights")) / 2
        elif name.endswith("gamma"):
            value = 1 + value / 4
        elif parameter.ndim > 1:
            value = value / parameter[0].numel() ** 0.5
        else:
            value = value / 10
        parameter.data.copy_(value.bfloat16())
    return network.requires_grad_(False).eval()


@cache
def transformer(
    config: TransformerConfig = TINY, dtype: torch.dtype = torch.float32
) -> Transformer:
    """All four layers."""
    return randomised(Transformer(config, dtype=dtype), seed=1)


@cache
def embedder(dtype: torch.dtype = torch.float32) -> ConditionEmbedder:
    """Time, text and speech of the same network."""
    return randomised(ConditionEmbedder(TINY, dtype), seed=2)


@cache
def models(config: TransformerConfig = TINY, dtype: torch.dtype = torch.float32) -> Models:
    """The networks of a whole generation."""
    decoder = randomised(Decoder(VAE), seed=3)
    return Models(transformer(config, dtype), embedder(dtype), decoder)


def stage(
    layers: range, config: TransformerConfig = TINY, dtype: torch.dtype = torch.float32
) -> Transformer:
    """A range of the layers of `transformer()`, built alone, with weights of its own."""
    part = Transformer(config, layers, dtype)
    whole = transformer(config, dtype).state_dict()
    part.load_state_dict({name: whole[name].clone() for name in part.state_dict()})
    return part.requires_grad_(False).eval()


def conditions(num_blocks: int, seed: int = 0) -> Conditions:
    """A job's inputs, random."""
    side = LATENT_SIDE
    return Conditions(
        reference_CFHW=seeded(16, 1, side, side, seed=seed + 1),
        motion_CFHW=seeded(16, 19, side, side, seed=seed + 2),
        text_LD=seeded(5, TINY.text_dim, seed=seed + 3),
        speech_AV=seeded(TINY.audio_dim, num_blocks * FRAMES_PER_BLOCK, seed=seed + 4),
    )


@dataclass(frozen=True)
class Job:
    """One video: inputs, layout, noise levels, random numbers."""

    conditions: Conditions
    timeline: Timeline
    schedule: Schedule
    draws: Draws


def job(num_blocks: int, *, window: int = 2, steps: int = 2, seed: int = 0) -> Job:
    """A job of `num_blocks` whole blocks; it has a refresh when it is longer than the window."""
    sampling = SamplingConfig(num_steps=steps, infer_frames=window * FRAMES_PER_BLOCK)
    inputs = conditions(num_blocks, seed)
    timeline = Timeline(
        num_frames=num_blocks * FRAMES_PER_BLOCK,
        num_blocks=num_blocks,
        window_blocks=sampling.window_blocks,
        refresh_block=window if num_blocks > window else None,
        clip_frames=sampling.infer_frames,
    )
    draws = seeded_draws(seed, inputs.reference_CFHW)
    return Job(inputs, timeline, make_schedule(steps), draws)


def latents(work: Job) -> Iterator[Tensor]:
    """Run a job on one device; yields the latent of each block."""
    return generate_latents(models(), work.conditions, work.timeline, work.schedule, work.draws)


def denoiser(work: Job, part: Transformer | None = None) -> Denoiser:
    """State of a job on a range of layers, all by default."""
    return Denoiser(
        transformer() if part is None else part,
        embedder().embed_time(work.schedule.timesteps),
        embedder().embed_text(work.conditions.text_LD),
        TokenGrid.of_latent(work.conditions.reference_CFHW),
        work.timeline.window_blocks,
    )


class MemoryFiles(TensorFiles):
    """Stored tensors that lie in memory; counts how often each is read."""

    def __init__(self, tensors: Mapping[str, Tensor], path: Path = Path("memory")) -> None:
        entries = {n: TensorEntry(path, tuple(t.shape), t.dtype) for n, t in tensors.items()}
        super().__init__(path, entries)
        self.tensors = dict(tensors)
        self.reads: list[str] = []

    def read(
        self,
        name: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        part: Part | None = None,
    ) -> Tensor:
        """Copy one tensor, as `TensorFiles.read` does."""
        self.shape(name)
        self.reads.append(name)
        value = self.tensors[name] if part is None else self.tensors[name][part]
        return value.to(device, dtype, copy=True)


def stored_tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Random tensors of the whole transformer under their published names and shapes."""
    with torch.device("meta"):
        parts = (Transformer(TINY), ConditionEmbedder(TINY))
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        shapes |= stored_shapes(part, partial(stored_names, config=TINY))
    return {n: seeded(*s, seed=i).to(dtype) / 8 for i, (n, s) in enumerate(shapes.items())}
