"""The product's video autoencoder, run on whole batches of clips with gradients.

The modules are those of `liveavatar.model.vae`; only the walk over them is written again here,
because the product streams one clip through them and overwrites memory. Frames are kept in
channels-last order, and a convolution over time is one over space of the neighbouring frames laid
side by side in the channels.

Shapes: B clips, T frames, H, W, C channels; all tensors (B, T, H, W, C).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liveavatar.model.vae import Decoder, Encoder, latent_scale
from liveavatar.model.vae_layers import (
    CausalConv3d,
    Downsample,
    FrameAttention,
    Head,
    ResidualBlock,
    RMSNorm,
    Upsample,
)


def moments(encoder: Encoder, video_BTHWC: Tensor) -> Tensor:
    """Encode RGB in [-1, 1], T = 1 + 4k, to mean and log-variance (B, 1+k, H/8, W/8, 2 z_dim)."""
    hidden = video_BTHWC
    for layer in encoder.encoder.layers:
        hidden = _apply(layer, hidden)
    return _convolve(hidden, encoder.conv1)


def encode_clips(encoder: Encoder, video_BTHWC: Tensor) -> Tensor:
    """Encode as the product does: normalised latents (B, z_dim, 1+k, H/8, W/8)."""
    mean, std = latent_scale(encoder.config, video_BTHWC.device)
    means = moments(encoder, video_BTHWC)[..., : encoder.config.z_dim]
    return ((means - mean.flatten()) / std.flatten()).permute(0, 4, 1, 2, 3)


def reconstruct(decoder: Decoder, latents_BFHWC: Tensor) -> Tensor:
    """Decode latents in the autoencoder's own scale to RGB, (B, 4F - 3, 8H, 8W, 3)."""
    hidden = _convolve(latents_BFHWC, decoder.conv2)
    for layer in decoder.decoder.layers:
        hidden = _apply(layer, hidden)
    return hidden


def decode_clips(decoder: Decoder, latents_BCFHW: Tensor) -> Tensor:
    """Decode normalised latents as the product does, to RGB (B, 4F - 3, 8H, 8W, 3)."""
    mean, std = latent_scale(decoder.config, latents_BCFHW.device)
    scaled = latents_BCFHW.permute(0, 2, 3, 4, 1) * std.flatten() + mean.flatten()
    return reconstruct(decoder, scaled)


def _apply(layer: nn.Module, hidden: Tensor) -> Tensor:
    if isinstance(layer, ResidualBlock):
        norm1, conv1, norm2, conv2 = layer.residual.values()
        inner = _convolve(F.silu(_norm(norm1, hidden)), cast(CausalConv3d, conv1))
        inner = _convolve(F.silu(_norm(norm2, inner)), cast(CausalConv3d, conv2))
        return inner + (hidden if layer.shortcut is None else _convolve(hidden, layer.shortcut))
    if isinstance(layer, FrameAttention):
        return _attend(layer, hidden)
    if isinstance(layer, Downsample):
        return _halve(layer, hidden)
    if isinstance(layer, Upsample):
        return _double(layer, hidden)
    if isinstance(layer, Head):
        return _convolve(F.silu(_norm(layer["0"], hidden)), cast(CausalConv3d, layer["2"]))
    return _convolve(hidden, cast(CausalConv3d, layer))


def _norm(norm: nn.Module, hidden: Tensor) -> Tensor:
    gamma = cast(RMSNorm, norm).gamma.flatten()
    length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
    unit = hidden / length.clamp(min=1e-12).to(hidden.dtype)
    return unit * (gamma * gamma.shape[0] ** 0.5).to(hidden.dtype)


def _convolve(hidden: Tensor, conv: nn.Conv3d, stride: int = 1) -> Tensor:
    """Convolve, zero-padded in front in time and on all sides in space; `stride` is of time."""
    weight, taps = conv.weight, conv.kernel_size[0]
    batch, frames = hidden.shape[:2]
    if frames == 1 or taps == 1:
        flat = weight[:, :, -1]
        beside = hidden
    else:
        flat = weight.transpose(1, 2).flatten(1, 2)
        past = F.pad(hidden, (0, 0, 0, 0, 0, 0, taps - 1, 0))
        beside = torch.cat([past[:, tap : tap + frames] for tap in range(taps)], dim=-1)
    beside = beside[:, ::stride]
    padding = (conv.kernel_size[1] // 2, conv.kernel_size[2] // 2)
    out = F.conv2d(beside.flatten(0, 1).permute(0, 3, 1, 2), flat, conv.bias, padding=padding)
    return out.permute(0, 2, 3, 1).unflatten(0, (batch, -1))


def _attend(layer: FrameAttention, hidden: Tensor) -> Tensor:
    normed = _norm(layer.norm, hidden).flatten(0, 1).permute(0, 3, 1, 2)
    qkv = layer.to_qkv(normed).flatten(2).transpose(1, 2)
    query, key, value = qkv.unsqueeze(1).chunk(3, dim=-1)
    mixed = F.scaled_dot_product_attention(query, key, value).squeeze(1)
    mixed = mixed.transpose(1, 2).unflatten(2, hidden.shape[2:4])
    return layer.proj(mixed).permute(0, 2, 3, 1).unflatten(0, hidden.shape[:2]) + hidden


def _halve(layer: Downsample, hidden: Tensor) -> Tensor:
    spatial = cast(nn.Conv2d, layer.resample["1"])
    padded = F.pad(hidden.flatten(0, 1).permute(0, 3, 1, 2), (0, 1, 0, 1))
    small = F.conv2d(padded, spatial.weight, spatial.bias, stride=2)
    small = small.permute(0, 2, 3, 1).unflatten(0, hidden.shape[:2])
    if layer.time_conv is None or small.shape[1] == 1:
        return small
    # Padded in front by two frames, every second output of the causal convolution looks at frames
    # 2j-2, 2j-1 and 2j; the first, which looks at padding, is replaced by the frame itself.
    return torch.cat([small[:, :1], _convolve(small, layer.time_conv, stride=2)[:, 1:]], dim=1)


def _double(layer: Upsample, hidden: Tensor) -> Tensor:
    if layer.time_conv is not None and hidden.shape[1] > 1:
        batch, frames = hidden.shape[0], hidden.shape[1] - 1
        pairs = _convolve(hidden[:, 1:], layer.time_conv)
        pairs = pairs.unflatten(-1, (2, -1)).permute(0, 1, 4, 2, 3, 5)
        moving = pairs.reshape(batch, 2 * frames, *hidden.shape[2:])
        hidden = torch.cat([hidden[:, :1], moving], dim=1)
    large = F.interpolate(hidden.flatten(0, 1).permute(0, 3, 1, 2), scale_factor=2.0)
    large = cast(nn.Conv2d, layer.resample["1"])(large)
    return large.permute(0, 2, 3, 1).unflatten(0, hidden.shape[:2])
