"""The resolution tiers that the page offers."""

from dataclasses import dataclass

from liveavatar.config import SamplingConfig
from liveavatar.request import SizeOption


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
