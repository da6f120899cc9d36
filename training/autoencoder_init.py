"""A start for the video autoencoder from which minutes of training are enough.

The network begins as a still-picture codec whose layers pass on what they can: shortcuts are
identities, down-sampling keeps means and differences, up-sampling smooths, time is averaged and
copied. Random layers around it start small.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from liveavatar.model.vae import Decoder, Encoder
from liveavatar.model.vae_layers import CausalConv3d, Downsample, ResidualBlock, Upsample

_LOG_VARIANCE = -4.0


@torch.no_grad()
def initialise(encoder: Encoder, decoder: Decoder) -> None:
    """Set the weights of both halves, which come with torch's default ones."""
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, CausalConv3d):
            module.weight[:, :, :-1] = 0
            module.weight[:, :, -1] *= module.kernel_size[0] ** 0.5
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, ResidualBlock):
            cast(CausalConv3d, module.residual["6"]).weight.mul_(0.05)
            if module.shortcut is not None:
                _identity(module.shortcut.weight, module.shortcut.bias)
        elif isinstance(module, Downsample):
            _pack(cast(nn.Conv2d, module.resample["1"]).weight)
            if module.time_conv is not None:
                _average_time(module.time_conv)
        elif isinstance(module, Upsample):
            _smooth(cast(nn.Conv2d, module.resample["1"]).weight)
            if module.time_conv is not None:
                _copy_time(module.time_conv)
    bias = encoder.conv1.bias
    assert bias is not None
    bias[encoder.config.z_dim :] = _LOG_VARIANCE


def _identity(weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    shared = min(weight.shape[:2])
    weight.mul_(0.5)
    weight[:shared] = 0
    weight[range(shared), range(shared)] = 1
    if bias is not None:
        bias.zero_()


def _pack(weight: torch.Tensor) -> None:
    """Half of the channels become means of 2x2 pixels, the others differences."""
    channels = weight.shape[0]
    weight.mul_(0.1)
    half, quarter = channels // 2, channels // 4
    signs = {
        0: torch.tensor([[1.0, 1.0], [1.0, 1.0]]),
        1: torch.tensor([[1.0, -1.0], [1.0, -1.0]]),
        2: torch.tensor([[1.0, 1.0], [-1.0, -1.0]]),
    }
    for out in range(channels):
        kind = 0 if out < half else 1 if out < half + quarter else 2
        source = out if out < half else (out - half) % quarter
        weight[out, source, :2, :2] = signs[kind].to(weight.device) / 4


def _smooth(weight: torch.Tensor) -> None:
    weight.mul_(0.3)
    edge = torch.tensor([1.0, 2.0, 1.0], device=weight.device) / 4
    for out in range(weight.shape[0]):
        weight[out, out] += edge[:, None] * edge


def _average_time(conv: nn.Conv3d) -> None:
    channels = conv.weight.shape[0]
    conv.weight.zero_()
    conv.weight[range(channels), range(channels), 1:] = 0.5
    if conv.bias is not None:
        conv.bias.zero_()


def _copy_time(conv: nn.Conv3d) -> None:
    channels = conv.weight.shape[1]
    conv.weight.zero_()
    for start in (0, channels):
        conv.weight[range(start, start + channels), range(channels), -1] = 1.0
    if conv.bias is not None:
        conv.bias.zero_()
