"""Videos and pictures to latents, in pieces that a GPU has memory for.

Shapes as in `vae.py`: C channels, F latent frames, T frames, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from liveavatar.errors import ConfigError
from liveavatar.model.upload import upload
from liveavatar.model.vae import Encoder
from liveavatar.model.vae_layers import Downsample, new_history, num_past

# Frames encoded per call after the first: enough to keep a GPU busy, few enough for its memory.
_CHUNK_FRAMES = 8


@torch.no_grad()
def encode(encoder: Encoder, video_CTHW: Tensor) -> Tensor:
    """Encode a video; the memory needed beside input and output does not depend on its length.

    Args:
        encoder: any dtype and device; the video is moved there piece by piece.
        video_CTHW: RGB in [-1, 1], (3, 1 + 4k, height, width), sides multiples of 8.

    Returns:
        Normalised latents in the encoder's dtype and device, (z_dim, 1 + k, height/8, width/8).

    Raises:
        ConfigError: the video has another shape.
    """
    stride = encoder.config.temporal_stride
    if (
        video_CTHW.ndim != 4
        or video_CTHW.shape[0] != 3
        or video_CTHW.shape[1] < 1
        or (video_CTHW.shape[1] - 1) % stride
    ):
        raise ConfigError(
            f"the VAE encodes (3, 1 + {stride}k, height, width), got {tuple(video_CTHW.shape)}; "
            "drop or repeat frames to fit"
        )
    height, width = video_CTHW.shape[2:]
    history = new_history(encoder.encoder.history_specs, height, width, encoder.conv1.weight)
    frames_TCHW = video_CTHW.transpose(0, 1)
    latents_FCHW = []
    chunk_frames = max(_CHUNK_FRAMES // stride, 1) * stride
    # The first chunk is the frame that stands alone.
    starts = (0, *range(1, len(frames_TCHW), chunk_frames))
    for start, end in zip(starts, (*starts[1:], len(frames_TCHW)), strict=True):
        chunk_TCHW = _like_parameters(frames_TCHW[start:end], encoder)
        latents_FCHW.append(encoder(chunk_TCHW, history))
    return torch.cat(latents_FCHW).transpose(0, 1)


def _like_parameters(frames_TCHW: Tensor, encoder: Encoder) -> Tensor:
    weight = encoder.conv1.weight
    frames_TCHW = frames_TCHW.to(weight.dtype).contiguous(memory_format=torch.channels_last)
    return upload(frames_TCHW, weight.device)


@torch.no_grad()
def encode_still(encoder: Encoder, image_CHW: Tensor, num_frames: int) -> Tensor:
    """Encode one picture repeated `num_frames` times, without computing what must repeat.

    From some frame on, every layer's output is the same frame again: two frames later than its
    input for each causal convolution passed. Only the frames before that are computed, so the
    layers at full resolution see at most 21 frames, not the 73 of a public motion prefix.

    Args:
        encoder: any dtype and device; the picture is moved there.
        image_CHW: RGB in [-1, 1], (3, height, width), sides multiples of 8.
        num_frames: 1 + 4k.

    Returns:
        What `encode` returns for the repeated picture, up to the order of sums.

    Raises:
        ConfigError: the picture has another shape, or `num_frames` is not 1 + 4k.
    """
    stride = encoder.config.temporal_stride
    if (
        image_CHW.ndim != 3
        or image_CHW.shape[0] != 3
        or num_frames < 1
        or (num_frames - 1) % stride
    ):
        raise ConfigError(
            f"the VAE encodes (3, height, width) repeated 1 + {stride}k times, "
            f"got {tuple(image_CHW.shape)} repeated {num_frames} times"
        )
    height, width = image_CHW.shape[1:]
    history = new_history(encoder.encoder.history_specs, height, width, encoder.conv1.weight)
    frames_TCHW = _like_parameters(image_CHW[None], encoder)
    num_settling = 0  # frames before the one that repeats for ever
    for layer in encoder.encoder.layers:
        num_settling += num_past(layer)
        halves_time = isinstance(layer, Downsample) and layer.time_conv is not None
        if halves_time:  # an output depends on three frames, and their number must be odd
            num_settling = 2 * math.ceil(num_settling / 2) + 2
        num_needed = min(num_settling + 1, num_frames)
        frames_TCHW = layer(_repeat_last(frames_TCHW, num_needed), history)
        if halves_time:
            num_settling, num_frames = num_settling // 2, (num_frames + 1) // 2
    return _repeat_last(encoder.normalise(frames_TCHW), num_frames).transpose(0, 1)


def _repeat_last(frames_TCHW: Tensor, num_frames: int) -> Tensor:
    num_given = frames_TCHW.shape[0]
    if num_given >= num_frames:
        return frames_TCHW
    repeated_TCHW = torch.empty(
        (num_frames, *frames_TCHW.shape[1:]),
        dtype=frames_TCHW.dtype,
        device=frames_TCHW.device,
        memory_format=torch.channels_last,
    )
    repeated_TCHW[:num_given] = frames_TCHW
    repeated_TCHW[num_given:] = frames_TCHW[-1:]
    return repeated_TCHW
