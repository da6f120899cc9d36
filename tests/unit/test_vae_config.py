"""Shapes and settings of the video autoencoder, and what contradicts them."""

import re

import pytest
import torch

from liveavatar.errors import CheckpointError, ConfigError
from liveavatar.model.vae import (
    VAEConfig,
    checkpoint_shapes,
)
from tests.unit.plain_vae import TINY


def test_the_public_checkpoint_has_194_tensors_and_127_million_parameters():
    shapes = checkpoint_shapes(VAEConfig())
    assert len(shapes) == 194
    assert round(sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e5) == 1269
    assert shapes["decoder.upsamples.3.time_conv.weight"] == (768, 384, 3, 1, 1)
    assert shapes["decoder.upsamples.4.shortcut.weight"] == (384, 192, 1, 1, 1)
    assert shapes["encoder.downsamples.10.residual.6.weight"] == (384, 384, 3, 3, 3)
    assert shapes["encoder.middle.1.norm.gamma"] == (384, 1, 1)


@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(),
        TINY,
        VAEConfig(dim=8, dim_mult=(1, 2), temporal_downsample=(True,)),
        VAEConfig(dim=6, dim_mult=(1,), temporal_downsample=(), num_res_blocks=3),
        VAEConfig(dim=4, z_dim=3, latent_mean=(0.0, 0.1, 0.2), latent_std=(1.0, 2.0, 3.0)),
    ],
)
def test_a_config_is_read_off_its_checkpoints_shapes(config):
    shapes = checkpoint_shapes(config)
    assert VAEConfig.from_shapes(shapes, config.latent_mean, config.latent_std) == config


def edited(name: str, shape: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    shapes = checkpoint_shapes(TINY)
    shapes.pop(name, None)
    return shapes if shape is None else {**shapes, name: shape}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "decoder.upsamples.0"),
        (edited("conv2.weight", None), "conv2.weight"),
        (edited("conv2.weight", ()), "conv2.weight"),
        (edited("conv2.weight", (4, 4, 1, 1, 1)), "z_dim = 4"),
        (edited("encoder.conv1.bias", None), "encoder.conv1.bias should be"),
        (edited("encoder.conv1.bias", (5,)), "encoder.conv1.bias should be"),
        (edited("encoder.extra", (5,)), "encoder.extra should be absent"),
        (edited("decoder.upsamples.0.residual.2.weight", (10**20, 4)), "output channels"),
        (edited("decoder.upsamples.0.residual.2.weight", None), "found none before"),
        (edited("decoder.upsamples.10.residual.2.weight", None), "but is absent"),
        (edited("decoder.upsamples.4.residual.2.weight", (3, 8, 3, 3, 3)), "expected multiples"),
        (edited("decoder.upsamples.4.residual.2.weight", (12, 8, 3, 3, 3)), "should be"),
        (edited("decoder.upsamples.5.resample.1.weight", (3, 8, 3, 3)), "should be"),
    ],
)
def test_contradicting_shapes_are_one_clear_error(shapes, message):
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        VAEConfig.from_shapes(shapes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 0}, "at least 1"),
        ({"dim_mult": ()}, "at least 1"),
        ({"temporal_downsample": (True,)}, "temporal_downsample"),
        ({"dim": 3, "dim_mult": (1, 1, 2, 2)}, "odd width"),
        ({"z_dim": 8}, "z_dim = 8"),
        ({"latent_std": (0.0,) * 16}, "above zero"),
        ({"latent_mean": (float("nan"),) * 16}, "finite"),
    ],
)
def test_contradicting_settings_are_one_clear_error(fields, message):
    with pytest.raises(ConfigError, match=message):
        VAEConfig(**fields)


def test_strides_follow_from_the_levels():
    assert (TINY.spatial_stride, TINY.temporal_stride) == (8, 4)
    flat = VAEConfig(dim_mult=(1, 2), temporal_downsample=(False,))
    assert (flat.spatial_stride, flat.temporal_stride) == (2, 1)
