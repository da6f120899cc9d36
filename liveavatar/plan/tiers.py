"""The resolution tiers that page and batch offer."""

from dataclasses import dataclass

from liveavatar.config import SamplingConfig
from liveavatar.plan.shapes import Network
from liveavatar.request import SizeOption

_SMALL_WIDTH = 512


@dataclass(frozen=True)
class Tier:
    """A named choice of size and sampling."""

    name: str
    size: SizeOption
    sampling: SamplingConfig


TIERS = (
    Tier(
        "fast",
        SizeOption(384, 256),
        SamplingConfig(num_clip=10, infer_frames=32, num_steps=3, online_decode=False),
    ),
    Tier("balanced", SizeOption(688, 368), SamplingConfig(num_clip=50)),
    Tier("high", SizeOption(704, 384), SamplingConfig(num_clip=20)),
)

DEMO_TIERS = (
    Tier("fast", SizeOption(128, 128), SamplingConfig(num_clip=50, num_steps=4)),
    Tier("balanced", SizeOption(192, 192), SamplingConfig(num_clip=50, num_steps=4)),
    Tier("high", SizeOption(256, 256), SamplingConfig(num_clip=50, num_steps=4)),
)
"""The tiers of a model small enough for a CPU: the same names, sizes that stay quick there."""


def tiers_of(network: Network) -> tuple[Tier, ...]:
    """The tiers of a network, by its size."""
    return DEMO_TIERS if network.transformer.dim <= _SMALL_WIDTH else TIERS
