"""The layers of the video autoencoder, and what they remember between two calls of one stream.

Every layer maps frames and the stream's `History` to frames. Frames are the batch, TCHW in
channels-last memory: the remembered frames and the new ones lie side by side, and time is a slice.

Shape suffixes: C channels, T frames at whatever rate the layer runs at, H height, W width, L the
pixels of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from liveavatar.errors import ConfigError
from liveavatar.model.fusing import fused_by_rows

# A GPU's matrix units take channels by 64. With 96, cuDNN's 3-D convolution of 12 frames of 688x368
# takes 7.3 ms (H100, bfloat16), the 2-D one of 288 channels 3.9 ms and the stacking of them 1.6 ms;
# with 192 and 384 there is little between the two.
_GPU_TILE = 64

# Up to this many channels x frames x rows, torch on a CPU computes a 3-D convolution of one sample
# by im2col, 3.8x slower than three accumulated 2-D ones (64 channels, 6 frames of 32x32, float32,
# AVX2, torch 2.13). Above it oneDNN's 3-D kernel takes over, 1.05x to 1.1x faster than the three.
_CPU_IM2COL_MAX_SIZE = 20480


@dataclass(frozen=True)
class HistorySpec:
    """Size of what one layer remembers; its frames have one value per `stride` pixels of video."""

    num_frames: int
    channels: int
    stride: int


class HistoryPlan:
    """Filled while a network is built: gives each layer that looks back its slot in a `History`."""

    def __init__(self, stride: int) -> None:
        self.stride = stride  # of the layer being built, in pixels; the builder keeps it up to date
        self.specs: list[HistorySpec] = []

    def reserve(self, channels: int, num_frames: int) -> int:
        """Add a slot for this many frames of a layer's input; returns its index."""
        self.specs.append(HistorySpec(num_frames, channels, self.stride))
        return len(self.specs) - 1


@dataclass
class History:
    """What a network remembers between two calls of one stream; advanced in place by each call.

    Attributes:
        frames: per slot, the last input frames of one layer, (num_frames, C, H, W), channels last.
            Before the first call they are zero, which is the zero padding of a causal convolution.
        started: whether a call was made; the first frame of a stream is treated apart by the layers
            that change the frame rate.
    """

    frames: list[Tensor]
    started: bool = False


def new_history(specs: Sequence[HistorySpec], height: int, width: int, weight: Tensor) -> History:
    """Make the history of a new stream.

    Args:
        specs: what the layers of the network remember.
        height: of the video, in pixels, a multiple of every spec's stride.
        width: likewise.
        weight: any of the network's; gives dtype and device.

    Raises:
        ConfigError: a side is not a positive multiple of the strides.
    """
    stride = max(spec.stride for spec in specs)
    if min(height, width) < 1 or height % stride or width % stride:
        raise ConfigError(
            f"a video of {width}x{height} does not fit the VAE; "
            f"make both sides a positive multiple of {stride}"
        )
    shapes = [
        (spec.num_frames, spec.channels, height // spec.stride, width // spec.stride)
        for spec in specs
    ]
    return History(
        [
            torch.zeros(shape, dtype=weight.dtype, device=weight.device).to(
                memory_format=torch.channels_last
            )
            for shape in shapes
        ]
    )


class RMSNorm(nn.Module):
    """Scale every pixel's channels to length sqrt(C), then by `gamma`; statistics in float32.

    `num_dims` is the rank of `gamma`: the checkpoint has (C, 1, 1, 1), and (C, 1, 1) in attention.
    """

    def __init__(self, channels: int, num_dims: int = 4) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * (num_dims - 1)))

    def forward(self, frames_TCHW: Tensor) -> Tensor:
        """Normalise; same shape and dtype."""
        out_TCHW = torch.empty_like(frames_TCHW, memory_format=torch.channels_last)
        _normalise_into(_pixels(out_TCHW), _pixels(frames_TCHW), self._factors())
        return out_TCHW

    def activate_into(self, out_TCHW: Tensor, frames_TCHW: Tensor) -> None:
        """Write silu(norm(frames)) to `out_TCHW`, channels last."""
        _activate_into(_pixels(out_TCHW), _pixels(frames_TCHW), self._factors())

    def _factors(self) -> Tensor:
        return self.gamma.flatten() * self.gamma.shape[0] ** 0.5


def _pixels(frames_TCHW: Tensor) -> Tensor:
    """The channels of each pixel, (T * H * W, C), a view of frames in channels-last memory."""
    frames_TCHW = frames_TCHW.contiguous(memory_format=torch.channels_last)
    return frames_TCHW.permute(0, 2, 3, 1).view(-1, frames_TCHW.shape[1])


def _normalise_into(out_PC: Tensor, pixels_PC: Tensor, factors_C: Tensor) -> None:
    length_P1 = torch.linalg.vector_norm(
        pixels_PC,
        dim=-1,
        keepdim=True,
        dtype=torch.promote_types(pixels_PC.dtype, torch.float32),
    ).clamp_(min=1e-12)
    torch.mul(pixels_PC, length_P1.reciprocal_(), out=out_PC)
    out_PC.mul_(factors_C)


@fused_by_rows
def _activate_into(out_PC: Tensor, pixels_PC: Tensor, factors_C: Tensor) -> None:
    _normalise_into(out_PC, pixels_PC, factors_C)
    functional.silu(out_PC, inplace=True)


class CausalConv3d(nn.Conv3d):
    """Convolution over (time, height, width) that sees the present frame and those before it.

    In space the input is padded by zeros on all sides; in time by what the stream remembers.
    """

    def __init__(
        self, plan: HistoryPlan, in_channels: int, out_channels: int, kernel: tuple[int, int, int]
    ) -> None:
        super().__init__(in_channels, out_channels, kernel)
        _keep_channels_last(self)
        self.num_past = kernel[0] - 1
        self.slot = plan.reserve(in_channels, self.num_past)

    def forward(  # type: ignore[override]
        self, frames_TCHW: Tensor, history: History, norm: RMSNorm | None = None
    ) -> Tensor:
        """Convolve the frames, or silu(norm(frames)), after the remembered ones; T stays."""
        return convolve(self.gather(frames_TCHW, history, norm), self)

    def gather(self, frames_TCHW: Tensor, history: History, norm: RMSNorm | None = None) -> Tensor:
        """Put the remembered frames and the frames, or silu(norm(frames)), behind each other."""
        past_TCHW = history.frames[self.slot]
        num_frames, channels, height, width = frames_TCHW.shape
        # One buffer holds past and new frames, so nothing is concatenated or padded afterwards.
        input_TCHW = torch.empty(
            (self.num_past + num_frames, channels, height, width),
            dtype=frames_TCHW.dtype,
            device=frames_TCHW.device,
            memory_format=torch.channels_last,
        )
        new_TCHW = input_TCHW[self.num_past :]
        input_TCHW[: self.num_past] = past_TCHW
        if norm is None:
            new_TCHW.copy_(frames_TCHW)
        else:
            norm.activate_into(new_TCHW, frames_TCHW)
        past_TCHW.copy_(input_TCHW[-self.num_past :])
        return input_TCHW


def _keep_channels_last(conv: nn.Conv3d) -> None:
    """Store the weight in the memory order its inputs have; loading values keeps the order."""
    conv.weight.data = conv.weight.data.to(memory_format=torch.channels_last_3d)


def convolve(frames_TCHW: Tensor, conv: nn.Conv3d) -> Tensor:
    """Apply a 3-D convolution, zero-padded in space only, the fastest way for the device."""
    num_taps, time_stride = conv.kernel_size[0], conv.stride[0]
    padding = (conv.kernel_size[1] // 2, conv.kernel_size[2] // 2)
    on_cpu = frames_TCHW.device.type == "cpu"
    slow_in_3d = on_cpu and frames_TCHW[..., 0].numel() <= _CPU_IM2COL_MAX_SIZE
    if not on_cpu and num_taps > 1 and conv.in_channels % _GPU_TILE:
        return _convolve_stacked(frames_TCHW, conv, padding)
    if num_taps > 1 and not slow_in_3d:
        # The new axis in front gets the largest stride: with another one, the tensor is not taken
        # for channels-last, and neither is the result.
        frames_1CTHW = frames_TCHW.unsqueeze(0).transpose(1, 2)
        result_1CTHW = functional.conv3d(
            frames_1CTHW, conv.weight, conv.bias, conv.stride, (0, *padding)
        )
        return result_1CTHW.transpose(1, 2)[0]
    # Tap by tap: each is a 2-D convolution of a slice of the frames.
    num_outputs = (frames_TCHW.shape[0] - num_taps) // time_stride + 1
    taps_TCHW = [frames_TCHW[tap::time_stride][:num_outputs] for tap in range(num_taps)]
    weights = conv.weight.unbind(2)
    result_TCHW = functional.conv2d(taps_TCHW[0], weights[0], conv.bias, padding=padding)
    for tap_TCHW, weight in zip(taps_TCHW[1:], weights[1:], strict=True):
        result_TCHW += functional.conv2d(tap_TCHW, weight, padding=padding)
    return result_TCHW


def _convolve_stacked(frames_TCHW: Tensor, conv: nn.Conv3d, padding: tuple[int, int]) -> Tensor:
    """The same as a 2-D convolution of frames that stand in each other's channels."""
    num_taps, time_stride = conv.kernel_size[0], conv.stride[0]
    frames_THWC = frames_TCHW.permute(0, 2, 3, 1)
    weight = conv.weight.transpose(1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)
    num_outputs = (frames_TCHW.shape[0] - num_taps) // time_stride + 1
    height, width = frames_TCHW.shape[2:]
    out_TCHW = torch.empty(
        (num_outputs, conv.out_channels, height, width),
        dtype=frames_TCHW.dtype,
        device=frames_TCHW.device,
        memory_format=torch.channels_last,
    )
    at_once = -(-num_outputs // num_taps**2)  # stacked, these take a third of what the frames do
    for first in range(0, num_outputs, at_once):
        count = min(at_once, num_outputs - first)
        starts = range(first * time_stride, first * time_stride + num_taps)
        taps = [frames_THWC[start::time_stride][:count] for start in starts]
        # No names for what is large: it is gone before the next is made.
        out_TCHW[first : first + count] = functional.conv2d(
            torch.stack(taps, dim=3).flatten(3).permute(0, 3, 1, 2),
            weight,
            conv.bias,
            padding=padding,
        )
    return out_TCHW


class ResidualBlock(nn.Module):
    """Two normalised 3x3x3 convolutions beside a shortcut."""

    def __init__(self, plan: HistoryPlan, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # The keys are the checkpoint's: 1, 4 and 5 are activations and dropout there.
        self.residual = nn.ModuleDict(
            {
                "0": RMSNorm(in_channels),
                "2": CausalConv3d(plan, in_channels, out_channels, (3, 3, 3)),
                "3": RMSNorm(out_channels),
                "6": CausalConv3d(plan, out_channels, out_channels, (3, 3, 3)),
            }
        )
        self.shortcut = (
            nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, frames_TCHW: Tensor, history: History) -> Tensor:
        """Map (T, in_channels, H, W) to (T, out_channels, H, W)."""
        norm1, conv1, norm2, conv2 = self.residual.values()
        assert isinstance(conv2, CausalConv3d)
        assert isinstance(norm2, RMSNorm)
        hidden_TCHW = conv1(frames_TCHW, history, norm1)
        input_TCHW = conv2.gather(hidden_TCHW, history, norm2)
        del hidden_TCHW  # at full resolution a large part of what a stream takes
        hidden_TCHW = convolve(input_TCHW, conv2)
        del input_TCHW
        if self.shortcut is not None:
            frames_TCHW = convolve(frames_TCHW, self.shortcut)
        return hidden_TCHW.add_(frames_TCHW)


class FrameAttention(nn.Module):
    """Single-head attention among the pixels of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, num_dims=3)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, frames_TCHW: Tensor, _history: History) -> Tensor:
        """Map (T, C, H, W) to the same shape; frames do not see each other."""
        height = frames_TCHW.shape[2]
        qkv_TLC = self.to_qkv(self.norm(frames_TCHW)).flatten(2).transpose(1, 2)
        query, key, value = qkv_TLC.unsqueeze(1).chunk(3, dim=-1)
        mixed_TLC = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        mixed_TCHW = mixed_TLC.transpose(1, 2).unflatten(2, (height, -1))
        return self.proj(mixed_TCHW).add_(frames_TCHW)


class Downsample(nn.Module):
    """Halve height and width, and the frame rate too if `temporal`."""

    def __init__(self, plan: HistoryPlan, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        plan.stride *= 2
        self.time_conv: nn.Conv3d | None = None
        if temporal:
            self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1))
            _keep_channels_last(self.time_conv)
            self.slot = plan.reserve(channels, 1)

    def forward(self, frames_TCHW: Tensor, history: History) -> Tensor:
        """Map (T, C, H, W) to (T', C, H/2, W/2).

        If temporal, T is odd on a stream's first call and T' = (T + 1) / 2, later even and
        T' = T / 2: the first frame stays, then each output covers two frames and the one before.
        """
        frames_TCHW = self.resample["1"](functional.pad(frames_TCHW, (0, 1, 0, 1)))
        if self.time_conv is None:
            return frames_TCHW
        past_TCHW = history.frames[self.slot]
        if history.started:
            halved_TCHW = convolve(torch.cat([past_TCHW, frames_TCHW]), self.time_conv)
        elif frames_TCHW.shape[0] > 1:
            halved_TCHW = torch.cat([frames_TCHW[:1], convolve(frames_TCHW, self.time_conv)])
        else:
            halved_TCHW = frames_TCHW
        past_TCHW.copy_(frames_TCHW[-1:])
        return halved_TCHW


class Upsample(nn.Module):
    """Double height and width, and the frame rate too if `temporal`; halve the channels."""

    def __init__(self, plan: HistoryPlan, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.time_conv = CausalConv3d(plan, channels, 2 * channels, (3, 1, 1)) if temporal else None
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        plan.stride //= 2

    def forward(self, frames_TCHW: Tensor, history: History) -> Tensor:
        """Map (T, C, H, W) to (T', C/2, 2H, 2W); if temporal, T' is 2T - 1 first and 2T later."""
        if self.time_conv is not None:
            frames_TCHW = self._double_rate(frames_TCHW, history, self.time_conv)
        # Four 2x2 convolutions of the small frames would do the same in 4/9 of the arithmetic; that
        # saves 2 % of a decode and needs weights of its own, so it stays plain.
        return self.resample["1"](_enlarge(frames_TCHW))

    @staticmethod
    def _double_rate(frames_TCHW: Tensor, history: History, time_conv: CausalConv3d) -> Tensor:
        # A stream's first frame is passed on as it is and never remembered: the zeros of a fresh
        # history stand right before the second frame.
        num_still = 0 if history.started else 1
        still_TCHW, moving_TCHW = frames_TCHW[:num_still], frames_TCHW[num_still:]
        if moving_TCHW.shape[0] == 0:
            return still_TCHW
        # The two halves of the channels are two successive frames.
        pairs_THWC = time_conv(moving_TCHW, history).permute(0, 2, 3, 1).unflatten(3, (2, -1))
        doubled_TCHW = pairs_THWC.permute(0, 3, 1, 2, 4).flatten(0, 1).permute(0, 3, 1, 2)
        return torch.cat([still_TCHW, doubled_TCHW]) if num_still else doubled_TCHW


def _enlarge(frames_TCHW: Tensor) -> Tensor:
    """Double height and width, each pixel four times."""
    if frames_TCHW.device.type == "cpu":
        return functional.interpolate(frames_TCHW, scale_factor=2.0, mode="nearest")
    # torch's own kernel for it reaches a seventh of the memory's rate in this order of channels.
    rows_TH1W1C = frames_TCHW.permute(0, 2, 3, 1)[:, :, None, :, None]
    copies = rows_TH1W1C.expand(-1, -1, 2, -1, 2, -1)
    return copies.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class Head(nn.ModuleDict):
    """Last norm, activation and convolution of a network."""

    def __init__(self, plan: HistoryPlan, in_channels: int, out_channels: int) -> None:
        super().__init__(
            {
                "0": RMSNorm(in_channels),
                "2": CausalConv3d(plan, in_channels, out_channels, (3, 3, 3)),
            }
        )

    def forward(self, frames_TCHW: Tensor, history: History) -> Tensor:
        """Map (T, in_channels, H, W) to (T, out_channels, H, W)."""
        return self["2"](frames_TCHW, history, self["0"])


def middle_layers(plan: HistoryPlan, channels: int) -> nn.ModuleList:
    """Make the layers at latent size: the end of an encoder, the beginning of a decoder."""
    return nn.ModuleList(
        [
            ResidualBlock(plan, channels, channels),
            FrameAttention(channels),
            ResidualBlock(plan, channels, channels),
        ]
    )


def num_past(layer: nn.Module) -> int:
    """Frames that the causal convolutions of a layer look back, one behind the other."""
    return sum(part.num_past for part in layer.modules() if isinstance(part, CausalConv3d))
