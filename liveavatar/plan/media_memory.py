"""Bytes of the media rank: encoders, autoencoder, the decoder's state, and peaks while they run.

Weights and decoder state are exact. Peaks count the tensors alive at once in the eager code of
`model/vae_layers.py` on a GPU (checked against the tensors of a run), and roughly for the text and
speech encoders. On a GPU a convolution may take a workspace besides; `docs/benchmarks.md` compares.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from liveavatar.config import FPS, LATENT_FRAMES_PER_BLOCK, SamplingConfig
from liveavatar.plan.precision import FLOAT32_BYTES
from liveavatar.plan.shapes import SpeechEncoderShape, TextEncoderShape, VAEShape

_GPU_TILE = 64

MOTION_FRAMES = 73
"""Frames of the still portrait that are encoded as motion."""

SPEECH_RATE_HZ = 16_000
SPEECH_CHUNK_S = 5.0
SPEECH_STATE_RATE_HZ = 50

ENCODED_INPUTS_BYTES = 128 * 2**20
"""Of host memory, for what inputs were encoded to lately: at the 14B shape 15 minutes of speech and
several portraits and prompts."""


# --- Autoencoder ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """A layer of a trunk.

    Attributes:
        kind: "conv", "residual", "attention", "down", "up" or "head".
        inputs: channels in.
        outputs: channels out.
        stride: pixels per value of its input.
        temporal: whether it changes the frame rate.
    """

    kind: str
    inputs: int
    outputs: int
    stride: int
    temporal: bool = False


def encoder_layers(vae: VAEShape) -> Iterator[_Layer]:
    """Layers of the encoder's trunk in order."""
    yield _Layer("conv", 3, vae.dim, 1)
    channels, stride = vae.dim, 1
    for level, width in enumerate(vae.widths):
        for _ in range(vae.num_res_blocks):
            yield _Layer("residual", channels, width, stride)
            channels = width
        if level < len(vae.temporal_downsample):
            yield _Layer("down", channels, channels, stride, vae.temporal_downsample[level])
            stride *= 2
    yield from _middle(channels, stride)
    yield _Layer("head", channels, 2 * vae.z_dim, stride)


def decoder_layers(vae: VAEShape) -> Iterator[_Layer]:
    """Layers of the decoder's trunk in order."""
    channels, stride = vae.widths[-1], vae.spatial_stride
    yield _Layer("conv", vae.z_dim, channels, stride)
    yield from _middle(channels, stride)
    for level, width in reversed(list(enumerate(vae.widths))):
        for _ in range(vae.num_res_blocks + 1):
            yield _Layer("residual", channels, width, stride)
            channels = width
        if level > 0:
            temporal = vae.temporal_downsample[level - 1]
            yield _Layer("up", channels, channels // 2, stride, temporal)
            channels, stride = channels // 2, stride // 2
    yield _Layer("head", channels, 3, stride)


def _middle(channels: int, stride: int) -> Iterator[_Layer]:
    yield _Layer("residual", channels, channels, stride)
    yield _Layer("attention", channels, channels, stride)
    yield _Layer("residual", channels, channels, stride)


def _convolution(inputs: int, outputs: int, taps: int) -> int:
    return (inputs * taps + 1) * outputs


def _parameters(layer: _Layer) -> int:
    inputs, outputs = layer.inputs, layer.outputs
    if layer.kind == "conv":
        return _convolution(inputs, outputs, 27)
    if layer.kind == "head":
        return inputs + _convolution(inputs, outputs, 27)
    if layer.kind == "attention":
        return inputs + _convolution(inputs, 3 * inputs, 1) + _convolution(inputs, inputs, 1)
    if layer.kind == "down":
        time = _convolution(inputs, inputs, 3) if layer.temporal else 0
        return time + _convolution(inputs, inputs, 9)
    if layer.kind == "up":
        time = _convolution(inputs, 2 * inputs, 3) if layer.temporal else 0
        return time + _convolution(inputs, outputs, 9)
    shortcut = _convolution(inputs, outputs, 1) if inputs != outputs else 0
    convolutions = _convolution(inputs, outputs, 27) + _convolution(outputs, outputs, 27)
    return inputs + outputs + convolutions + shortcut


def _remembered(layer: _Layer, height: int, width: int) -> int:
    """Values a layer keeps between two calls of a stream."""
    pixels = (height // layer.stride) * (width // layer.stride)
    if layer.kind == "residual":
        return 2 * (layer.inputs + layer.outputs) * pixels
    if layer.kind == "down":
        return layer.inputs * (pixels // 4) * layer.temporal
    if layer.kind == "up":
        return 2 * layer.inputs * pixels * layer.temporal
    return 0 if layer.kind == "attention" else 2 * layer.inputs * pixels


def encoder_weights(vae: VAEShape, value_bytes: int) -> int:
    """Bytes of the encoding half."""
    moments = _convolution(2 * vae.z_dim, 2 * vae.z_dim, 1)
    return (sum(map(_parameters, encoder_layers(vae))) + moments) * value_bytes


def decoder_weights(vae: VAEShape, value_bytes: int) -> int:
    """Bytes of the decoding half."""
    latent = _convolution(vae.z_dim, vae.z_dim, 1)
    return (sum(map(_parameters, decoder_layers(vae))) + latent) * value_bytes


def _state(layers: Iterable[_Layer], size_hw: tuple[int, int], value_bytes: int) -> int:
    return sum(_remembered(layer, *size_hw) for layer in layers) * value_bytes


def decoder_state(vae: VAEShape, size_hw: tuple[int, int], value_bytes: int) -> int:
    """Bytes one video stream remembers between two decodes."""
    return _state(decoder_layers(vae), size_hw, value_bytes)


def _working_set(layer: _Layer, frames: int, out_frames: int, pixels: int) -> int:
    """Values alive at once in a layer, its input included.

    Args:
        layer: which one.
        frames: frames of its input.
        out_frames: frames of its output.
        pixels: of a frame of its input.
    """
    inputs, outputs = layer.inputs * pixels, layer.outputs * pixels
    given = frames * inputs
    if layer.kind == "residual":
        first = _convolved(layer.inputs, layer.outputs, frames)
        second = _convolved(layer.outputs, layer.outputs, frames)
        return given + max(first, second) * pixels
    if layer.kind == "attention":
        return 7 * given  # norm, query, key, value, mixed, result
    if layer.kind == "down":
        return given + given + given // 4  # a padded copy, half of it in each direction
    if layer.kind == "up":
        doubled = out_frames * inputs
        enlarged = 4 * (doubled + out_frames * outputs)
        return given + enlarged + (doubled if layer.temporal else 0)
    return given + _convolved(layer.inputs, layer.outputs, frames) * pixels


def _convolved(inputs: int, outputs: int, frames: int) -> int:
    """Values per pixel of a convolution over time: its input with two past frames, its result.

    On a GPU channels that do not fill its matrix units are stacked, a ninth of the frames at a
    time, three in place of one. See `model/vae_layers.py`.
    """
    stacked = -(-frames // 9) * (3 * inputs + outputs) if inputs % _GPU_TILE else 0
    return (frames + 2) * inputs + frames * outputs + stacked


def decode_peak(
    vae: VAEShape, size_hw: tuple[int, int], latent_frames: int, value_bytes: int
) -> int:
    """Peak bytes while the next so many latent frames of a stream are decoded in one call.

    The first call of a stream makes three frames fewer of as many, and takes less.
    """
    frames, peak = latent_frames, 0
    for layer in decoder_layers(vae):
        pixels = (size_hw[0] // layer.stride) * (size_hw[1] // layer.stride)
        out_frames = 2 * frames if layer.temporal else frames
        peak = max(peak, _working_set(layer, frames, out_frames, pixels))
        frames = out_frames
    return peak * value_bytes


def encode_peak(vae: VAEShape, size_hw: tuple[int, int], value_bytes: int) -> int:
    """Peak bytes while the still portrait is encoded, the stream's history included.

    Layers are fed only the frames after which everything repeats; see `encode_still`.
    """
    settling, total, peak, made = 0, MOTION_FRAMES, 0, 1
    for layer in encoder_layers(vae):
        settling += {"residual": 4, "conv": 2, "head": 2}.get(layer.kind, 0)
        if layer.temporal:
            settling = 2 * math.ceil(settling / 2) + 2
        frames = min(settling + 1, total)
        pixels = (size_hw[0] // layer.stride) * (size_hw[1] // layer.stride)
        before = made * layer.inputs * pixels if frames > made else 0  # what was repeated
        made = (frames + 1) // 2 if layer.temporal else frames
        peak = max(peak, before + _working_set(layer, frames, made, pixels))
        if layer.temporal:
            settling, total = settling // 2, (total + 1) // 2
    return peak * value_bytes + _state(encoder_layers(vae), size_hw, value_bytes)


def decoded_latent_frames(sampling: SamplingConfig) -> int:
    """Most latent frames that are decoded in one call; the warm-up comes in blocks too."""
    blocks = 1 if sampling.online_decode else sampling.window_blocks
    return blocks * LATENT_FRAMES_PER_BLOCK


# --- Text and speech -----------------------------------------------------------------------------


def text_encoder_weights(text: TextEncoderShape, value_bytes: int) -> int:
    """Bytes of the umT5 encoder."""
    width, inner = text.width, text.attention_width
    layer = 4 * width * inner + 3 * width * text.ffn_width + 2 * width
    layer += text.num_buckets * text.num_heads
    return (text.vocabulary * width + text.num_layers * layer + width) * value_bytes


def text_peak(text: TextEncoderShape, num_tokens: int, value_bytes: int) -> int:
    """Bytes while a prompt is encoded, about: scores of all heads, and one feed-forward."""
    scores = text.num_heads * num_tokens**2 * (3 * value_bytes + 2 * FLOAT32_BYTES)
    rows = num_tokens * (3 * text.ffn_width + 6 * text.width) * value_bytes
    return scores + rows


def speech_encoder_weights(speech: SpeechEncoderShape, value_bytes: int) -> int:
    """Bytes of the wav2vec 2.0 encoder."""
    width, total, inputs = speech.width, 0, 1
    for index, outputs in enumerate(speech.conv_widths):
        total += inputs * outputs * speech.conv_kernels[index] + outputs * speech.conv_bias
        total += 2 * outputs * (speech.norm_each_conv or index == 0)
        inputs = outputs
    total += 2 * inputs + _convolution(inputs, width, 1)
    # The positional convolution's weight is stored as a direction and a length for each tap.
    total += width * (width // speech.position_groups) * speech.position_kernel
    total += speech.position_kernel + width
    layer = 4 * _convolution(width, width, 1) + 4 * width
    layer += _convolution(width, speech.ffn_width, 1) + _convolution(speech.ffn_width, width, 1)
    return (total + 2 * width + speech.num_layers * layer) * value_bytes


def speech_seconds(sampling: SamplingConfig) -> float:
    """Most seconds of speech a job has: as many as its clips can hold."""
    return sampling.num_clip * sampling.infer_frames / FPS


def speech_peak(speech: SpeechEncoderShape, seconds: float, value_bytes: int) -> int:
    """Bytes while speech is encoded, about: a chunk in the first convolutions, or one layer."""
    chunk = min(seconds, SPEECH_CHUNK_S) * SPEECH_RATE_HZ
    front = 3 * chunk / speech.conv_strides[0] * speech.conv_widths[0] * value_bytes
    rows = seconds * SPEECH_STATE_RATE_HZ
    layer = rows * value_bytes * (6 * speech.width + 2 * speech.ffn_width)
    mixing = rows * speech.width * 2 * FLOAT32_BYTES
    return math.ceil(max(front, layer) + mixing)
