"""Decoding a video while its latents are still being made.

A `DecoderState` is all that one stream remembers. Its tensors are allocated once and overwritten in
place by every step, so their addresses and shapes stay fixed: memory is constant, a resume point is
a copy of them, and a step of fixed length can be captured in a graph.

Shape suffixes: C channels, F latent frames, T frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from liveavatar.errors import CheckpointError, ConfigError, StreamClosedError
from liveavatar.model.vae import Decoder, latent_scale
from liveavatar.model.vae_layers import History, new_history

# Latent frames per step when a whole clip is at hand: one block of the generator.
_CLIP_STEP_FRAMES = 3
_NUM_DECODED = "num_latent_frames"


@dataclass
class DecoderState:
    """The caches of one stream; made by `new_decoder_state`, advanced by `decode_step`.

    Attributes:
        history: last inputs of the decoder's causal convolutions; None once closed.
        latent_mean_C11: added to latents times their deviation, float32.
        latent_std_C11: deviation of the autoencoder's own latents, float32.
        latent_shape: channels, height and width of a latent frame.
        num_latent_frames: latent frames decoded so far.
    """

    history: History | None
    latent_mean_C11: Tensor
    latent_std_C11: Tensor
    latent_shape: tuple[int, int, int]
    num_latent_frames: int = 0

    def open_history(self) -> History:
        """Return the history; raises StreamClosedError after `close`."""
        if self.history is None:
            raise StreamClosedError(
                "this video stream was closed or a step of it failed; start or restore another"
            )
        return self.history

    @property
    def nbytes(self) -> int:
        """Bytes of device memory held; 0 once closed."""
        return sum(frames.nbytes for frames in self.history.frames) if self.history else 0

    def close(self) -> None:
        """Give the memory back; any later use raises StreamClosedError. May be called twice."""
        self.history = None

    def reset(self) -> None:
        """Make the state new again, for another video of the same size, in the same memory."""
        history = self.open_history()
        for frames in history.frames:
            frames.zero_()
        history.started = False
        self.num_latent_frames = 0

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the state to host memory, as named tensors that a resume point can store."""
        tensors = {
            f"history.{slot}": frames.detach().to("cpu", copy=True).contiguous()
            for slot, frames in enumerate(self.open_history().frames)
        }
        tensors[_NUM_DECODED] = torch.tensor(self.num_latent_frames, dtype=torch.int64)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a `snapshot` of a stream of the same decoder, size and dtype.

        Raises:
            CheckpointError: the tensors are not such a snapshot; the state is unchanged.
        """
        history = self.open_history()
        expected = {f"history.{slot}": frames for slot, frames in enumerate(history.frames)}
        if tensors.keys() != {*expected, _NUM_DECODED}:
            raise CheckpointError(
                f"a decoder snapshot holds {len(expected)} histories and {_NUM_DECODED}, "
                f"got {len(tensors)} tensors of other names; resume with the same VAE"
            )
        for name, frames in expected.items():
            saved = tensors[name]
            if saved.shape != frames.shape or saved.dtype != frames.dtype:
                raise CheckpointError(
                    f"decoder snapshot: {name} should be {tuple(frames.shape)} {frames.dtype} but "
                    f"is {tuple(saved.shape)} {saved.dtype}; resume with the same size and dtype"
                )
        for name, frames in expected.items():
            frames.copy_(tensors[name])
        self.num_latent_frames = int(tensors[_NUM_DECODED])
        history.started = self.num_latent_frames > 0


def new_decoder_state(decoder: Decoder, height: int, width: int) -> DecoderState:
    """Allocate the state of a new stream, in the decoder's dtype and on its device.

    Args:
        decoder: the decoder that will run the stream; on the meta device nothing is allocated and
            `nbytes` tells what would be.
        height: of the video, in pixels, a multiple of the spatial stride (8).
        width: likewise.

    Raises:
        ConfigError: a side is not a positive multiple of the spatial stride.
    """
    weight = decoder.conv2.weight
    history = new_history(decoder.decoder.history_specs, height, width, weight)
    mean_C11, std_C11 = latent_scale(decoder.config, weight.device)
    stride = decoder.config.spatial_stride
    shape = (decoder.config.z_dim, height // stride, width // stride)
    return DecoderState(history, mean_C11, std_C11, shape)


@torch.no_grad()
def decode_step(decoder: Decoder, latent_CFHW: Tensor, state: DecoderState) -> Tensor:
    """Decode the next latent frames of one stream.

    Any number of latent frames may come per call; together the frames are those of the whole clip.

    Args:
        decoder: causal VAE decoder.
        latent_CFHW: normalised latents, (z_dim, F >= 1, height/8, width/8); moved to the decoder's
            device and dtype.
        state: this stream's caches; advanced in place by F latent frames. If the step fails half
            way (out of memory), it is closed, because it is then neither before nor after.

    Returns:
        RGB, about [-1, 1] but not clamped, (3, T, height, width); T is 4F - 3 on a stream's first
        call, then 4F. In memory the order is THWC.

    Raises:
        StreamClosedError: `state` was closed.
        ConfigError: the latents do not fit the state.
    """
    return _advance(decoder, latent_CFHW, state).transpose(0, 1)


@torch.no_grad()
def pass_over(decoder: Decoder, latent_CFHW: Tensor, state: DecoderState) -> None:
    """Advance a stream by latents whose frames nobody sees; it goes on as after `decode_step`.

    The layers behind the last doubling of the frame rate do most of the work and remember little:
    frames that leave no trace in them are left out there.

    Args:
        decoder: causal VAE decoder.
        latent_CFHW: as for `decode_step`.
        state: this stream's caches.

    Raises:
        StreamClosedError: `state` was closed.
        ConfigError: the latents do not fit the state.
    """
    num_latents, stride = latent_CFHW.shape[1], decoder.config.temporal_stride
    for start in range(0, num_latents, _CLIP_STEP_FRAMES):
        step_CFHW = latent_CFHW[:, start : start + _CLIP_STEP_FRAMES]
        num_following = max(0, num_latents - start - _CLIP_STEP_FRAMES)
        _advance(decoder, step_CFHW, state, num_unseen=num_following * stride)


def _advance(
    decoder: Decoder, latent_CFHW: Tensor, state: DecoderState, num_unseen: int | None = None
) -> Tensor:
    history = state.open_history()
    channels, height, width = state.latent_shape
    if (
        latent_CFHW.ndim != 4
        or latent_CFHW.shape[1] < 1
        or ((latent_CFHW.shape[0], *latent_CFHW.shape[2:]) != state.latent_shape)
    ):
        raise ConfigError(
            f"this stream decodes latents of ({channels}, F >= 1, {height}, {width}), "
            f"got {tuple(latent_CFHW.shape)}"
        )
    weight = decoder.conv2.weight
    latent_FCHW = latent_CFHW.transpose(0, 1).to(weight.device)
    latent_FCHW = latent_FCHW * state.latent_std_C11 + state.latent_mean_C11
    try:
        frames_TCHW: Tensor = decoder(
            latent_FCHW.to(weight.dtype).contiguous(memory_format=torch.channels_last),
            history,
            num_unseen,
        )
    except BaseException:
        state.close()
        raise
    state.num_latent_frames += latent_CFHW.shape[1]
    return frames_TCHW


def decode(decoder: Decoder, latent_CFHW: Tensor) -> Tensor:
    """Decode a whole clip; what `decode_step` gives for a new stream, all in one tensor.

    Args:
        decoder: causal VAE decoder.
        latent_CFHW: normalised latents, (z_dim, F >= 1, height/8, width/8).

    Returns:
        RGB, about [-1, 1] but not clamped, (3, 4F - 3, height, width).

    Raises:
        ConfigError: the latents have another shape.
    """
    if latent_CFHW.ndim != 4 or latent_CFHW.shape[1] < 1:
        raise ConfigError(
            f"a clip of latents is ({decoder.config.z_dim}, F >= 1, height/8, width/8), "
            f"got {tuple(latent_CFHW.shape)}"
        )
    stride = decoder.config.spatial_stride
    state = new_decoder_state(decoder, latent_CFHW.shape[2] * stride, latent_CFHW.shape[3] * stride)
    steps_CFHW = latent_CFHW.split(_CLIP_STEP_FRAMES, dim=1)
    return torch.cat([decode_step(decoder, step_CFHW, state) for step_CFHW in steps_CFHW], dim=1)


def to_uint8(frames_CTHW: Tensor) -> Tensor:
    """Turn RGB in [-1, 1] to bytes, rounding; what lies outside is clamped.

    Args:
        frames_CTHW: (3, T, height, width), any float dtype, any device.

    Returns:
        (T, height, width, 3) uint8, contiguous, same device.
    """
    frames_THWC = frames_CTHW.permute(1, 2, 3, 0).to(torch.float32)
    return (frames_THWC.clamp(-1.0, 1.0) + 1.0).mul_(127.5).round_().to(torch.uint8).contiguous()
