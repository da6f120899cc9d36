"""The video autoencoder: pixels to latents and back, causal in time.

One latent frame stands for 4 pixel frames and 8x8 pixels; the very first latent frame stands for
one pixel frame alone, so 1 + 4k frames make 1 + k latents. Every convolution looks back in time,
never ahead. What it looks back at is a `History` that the caller owns: nothing is kept on a module,
and a video may be fed in pieces of any length with the result of feeding it whole.

Parameters carry the names of the public Wan2.1 checkpoint, so `load_state_dict` takes its tensors
as they are: `encoder.*` and `conv1.*` for `Encoder`, `decoder.*` and `conv2.*` for `Decoder`.
This is for inference; layers overwrite memory and keep nothing for a backward pass.

Shape suffixes: C channels, F latent frames, T frames at whatever rate the layer runs at, H height,
W width. Inside the networks frames are the batch, TCHW in channels-last memory.

Source: "Wan: Open and Advanced Large-Scale Video Generative Models", section 4.1, and
Wan-Video/Wan2.2 wan/modules/vae2_1.py at 42bf4cf.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from liveavatar.errors import CheckpointError, ConfigError
from liveavatar.model.vae_layers import (
    CausalConv3d,
    Downsample,
    Head,
    History,
    HistoryPlan,
    ResidualBlock,
    Upsample,
    convolve,
    middle_layers,
    num_past,
)

PUBLIC_LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
PUBLIC_LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)

# A width beyond this in a checkpoint is damage, not a model.
_MAX_CHANNELS = 65536


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder and scale of its latents; the defaults are the public Wan2.1 model.

    Attributes:
        dim: channels at full resolution.
        z_dim: channels of the latent.
        dim_mult: width of each level as a multiple of `dim`, full resolution first.
        num_res_blocks: residual blocks per encoder level; a decoder level has one more.
        temporal_downsample: for each step between two levels, whether it halves time as well.
        latent_mean: per latent channel, subtracted when encoding.
        latent_std: per latent channel, divided by when encoding.
    """

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latent_mean: tuple[float, ...] = PUBLIC_LATENT_MEAN
    latent_std: tuple[float, ...] = PUBLIC_LATENT_STD

    def __post_init__(self) -> None:
        """Raise ConfigError if the fields contradict each other."""
        if not self.dim_mult or min(self.dim, self.z_dim, self.num_res_blocks, *self.dim_mult) < 1:
            raise ConfigError(
                f"dim {self.dim}, z_dim {self.z_dim}, num_res_blocks {self.num_res_blocks} and "
                f"each of dim_mult {self.dim_mult} should be at least 1"
            )
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ConfigError(
                f"temporal_downsample has {len(self.temporal_downsample)} entries; "
                f"give {len(self.dim_mult) - 1}, one per step between the levels of dim_mult"
            )
        if any(self.dim * multiple % 2 for multiple in self.dim_mult[1:]):
            raise ConfigError(f"up-sampling halves the channels; dim {self.dim} gives an odd width")
        if not len(self.latent_mean) == len(self.latent_std) == self.z_dim:
            raise ConfigError(
                f"latent_mean and latent_std have {len(self.latent_mean)} and "
                f"{len(self.latent_std)} values; give z_dim = {self.z_dim} of each"
            )
        if not all(map(math.isfinite, self.latent_mean)) or not all(
            math.isfinite(std) and std > 0 for std in self.latent_std
        ):
            raise ConfigError("latent_mean must be finite and latent_std finite and above zero")

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent pixel along each side."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_stride(self) -> int:
        """Frames per latent frame, after the first."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.dim * multiple for multiple in self.dim_mult)

    @classmethod
    def from_shapes(
        cls,
        shapes: Mapping[str, Sequence[int]],
        latent_mean: tuple[float, ...] = PUBLIC_LATENT_MEAN,
        latent_std: tuple[float, ...] = PUBLIC_LATENT_STD,
    ) -> VAEConfig:
        """Read the configuration off a checkpoint's tensor names and shapes; it has no other file.

        Args:
            shapes: name to shape of every tensor in the checkpoint.
            latent_mean: see `VAEConfig`; not in the checkpoint.
            latent_std: see `VAEConfig`; not in the checkpoint.

        Raises:
            CheckpointError: the tensors are not those of one such autoencoder.
        """
        levels: list[list[int]] = [[]]  # output width of each decoder block, by level, latent first
        doubles_time: list[bool] = []
        while True:
            name = f"decoder.upsamples.{sum(map(len, levels)) + len(doubles_time)}"
            if f"{name}.residual.2.weight" in shapes:
                levels[-1].append(_num_outputs(shapes, f"{name}.residual.2.weight"))
            elif f"{name}.resample.1.weight" in shapes:
                doubles_time.append(f"{name}.time_conv.weight" in shapes)
                levels.append([])
            else:
                break
        if not all(levels):
            raise CheckpointError(
                f"VAE checkpoint: expected decoder.upsamples.N.* of residual blocks, found none "
                f"before {name}; give the Wan2.1 VAE with its original tensor names"
            )
        widths = [level[-1] for level in reversed(levels)]
        if any(width % widths[0] for width in widths):
            raise CheckpointError(
                f"VAE checkpoint: decoder levels are {widths} channels wide, expected multiples of "
                "the first; the file is damaged or of another model"
            )
        try:
            config = cls(
                dim=widths[0],
                z_dim=_num_outputs(shapes, "conv2.weight"),
                dim_mult=tuple(width // widths[0] for width in widths),
                num_res_blocks=len(levels[0]) - 1,
                temporal_downsample=tuple(reversed(doubles_time)),
                latent_mean=latent_mean,
                latent_std=latent_std,
            )
        except ConfigError as error:
            raise CheckpointError(f"VAE checkpoint: {error}") from error
        _require_same_shapes(checkpoint_shapes(config), shapes)
        return config


def _num_outputs(shapes: Mapping[str, Sequence[int]], name: str) -> int:
    shape = tuple(shapes.get(name, ()))
    if not shape or not 1 <= shape[0] <= _MAX_CHANNELS:
        raise CheckpointError(
            f"VAE checkpoint: {name} should have 1 to {_MAX_CHANNELS} output channels first, "
            f"found shape {shape}; give the Wan2.1 VAE with its original tensor names"
        )
    return shape[0]


def _require_same_shapes(
    expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]
) -> None:
    for name in sorted(expected.keys() | found.keys()):
        want, have = expected.get(name), found.get(name)
        if want is None or have is None or tuple(want) != tuple(have):
            raise CheckpointError(
                f"VAE checkpoint: {name} should be {'absent' if want is None else tuple(want)} "
                f"but is {'absent' if have is None else tuple(have)}; "
                "the file is damaged or of another model"
            )


def checkpoint_shapes(config: VAEConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a whole checkpoint; allocates nothing."""
    with torch.device("meta"):
        halves = (Encoder(config), Decoder(config))
    return {name: tuple(p.shape) for half in halves for name, p in half.named_parameters()}


# --- Networks ------------------------------------------------------------------------------------


class EncoderTrunk(nn.Module):
    """RGB frames to the mean and log-variance of latents, before the last 1x1x1 convolution."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        plan = HistoryPlan(stride=1)
        self.conv1 = CausalConv3d(plan, 3, config.dim, (3, 3, 3))
        self.downsamples = nn.ModuleList()
        channels = config.dim
        for level, width in enumerate(config.widths):
            for _ in range(config.num_res_blocks):
                self.downsamples.append(ResidualBlock(plan, channels, width))
                channels = width
            if level < len(config.temporal_downsample):
                temporal = config.temporal_downsample[level]
                self.downsamples.append(Downsample(plan, channels, temporal=temporal))
        self.middle = middle_layers(plan, channels)
        self.head = Head(plan, channels, 2 * config.z_dim)
        self.history_specs = tuple(plan.specs)

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The layers in the order they are applied."""
        return (self.conv1, *self.downsamples, *self.middle, self.head)

    def forward(self, frames_TCHW: Tensor, history: History) -> Tensor:
        """Map 1 + 4k RGB frames first, then any 4k, to (1 + k or k, 2 z_dim, H/8, W/8)."""
        for layer in self.layers:
            frames_TCHW = layer(frames_TCHW, history)
        history.started = True
        return frames_TCHW


class DecoderTrunk(nn.Module):
    """Latents, after the first 1x1x1 convolution, to RGB frames."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        plan = HistoryPlan(stride=config.spatial_stride)
        channels = config.widths[-1]
        self.conv1 = CausalConv3d(plan, config.z_dim, channels, (3, 3, 3))
        self.middle = middle_layers(plan, channels)
        self.upsamples = nn.ModuleList()
        for level, width in reversed(list(enumerate(config.widths))):
            for _ in range(config.num_res_blocks + 1):
                self.upsamples.append(ResidualBlock(plan, channels, width))
                channels = width
            if level > 0:
                temporal = config.temporal_downsample[level - 1]
                self.upsamples.append(Upsample(plan, channels, temporal=temporal))
                channels //= 2
        self.head = Head(plan, channels, 3)
        self.history_specs = tuple(plan.specs)
        doubling = [
            index
            for index, layer in enumerate(self.layers)
            if isinstance(layer, Upsample) and layer.time_conv is not None
        ]
        self.reaches = {
            index: sum(map(num_past, self.layers[index:]))
            for index in range(doubling[-1] + 1 if doubling else 0, len(self.layers))
        }

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The layers in the order they are applied.

        Behind the last one that doubles the frame rate, what layer i and those behind it remember
        of a stream comes from its last `reaches[i]` frames.
        """
        return (self.conv1, *self.middle, *self.upsamples, self.head)

    def forward(
        self, latent_TCHW: Tensor, history: History, num_unseen: int | None = None
    ) -> Tensor:
        """Map F latent frames to (4F - 3 first, then 4F, 3, 8H, 8W).

        Args:
            latent_TCHW: of the stream's next frames.
            history: of the stream.
            num_unseen: for frames that nobody sees, the number of those that follow and are not
                seen either: what is forgotten again is not computed, and the result is good for
                nothing.
        """
        for index, layer in enumerate(self.layers):
            if num_unseen is not None and index in self.reaches:
                # The first frames that a layer is given are made of a wrong past. As many are
                # given that no layer behind it keeps anything of that.
                num_needed = max(0, self.reaches[index] - num_unseen)
                latent_TCHW = latent_TCHW[max(0, latent_TCHW.shape[0] - num_needed) :]
                if not num_needed:
                    break
            latent_TCHW = layer(latent_TCHW, history)
        history.started = True
        return latent_TCHW


class Encoder(nn.Module):
    """The encoding half of the autoencoder: parameters `encoder.*` and `conv1.*`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EncoderTrunk(config)
        self.conv1 = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)

    def forward(self, frames_TCHW: Tensor, history: History) -> Tensor:
        """Encode the next frames of a stream to normalised latents, (F, z_dim, H/8, W/8)."""
        return self.normalise(self.encoder(frames_TCHW, history))

    def normalise(self, moments_FCHW: Tensor) -> Tensor:
        """Turn the trunk's output to latents of zero mean and unit variance; nothing is sampled."""
        mean_FCHW = convolve(moments_FCHW, self.conv1)[:, : self.config.z_dim]
        latent_mean_C11, latent_std_C11 = latent_scale(self.config, mean_FCHW.device)
        return ((mean_FCHW - latent_mean_C11) / latent_std_C11).to(mean_FCHW.dtype)


class Decoder(nn.Module):
    """The decoding half of the autoencoder: parameters `decoder.*` and `conv2.*`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = DecoderTrunk(config)
        self.conv2 = nn.Conv3d(config.z_dim, config.z_dim, 1)

    def forward(
        self, latent_FCHW: Tensor, history: History, num_unseen: int | None = None
    ) -> Tensor:
        """Decode the next latents of a stream, in the autoencoder's own scale, to RGB frames.

        `num_unseen` as for `DecoderTrunk`.
        """
        return self.decoder(convolve(latent_FCHW, self.conv2), history, num_unseen)


def latent_scale(config: VAEConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents, (z_dim, 1, 1) each, float32."""
    mean = torch.tensor(config.latent_mean, dtype=torch.float32, device=device)
    std = torch.tensor(config.latent_std, dtype=torch.float32, device=device)
    return mean[:, None, None], std[:, None, None]
