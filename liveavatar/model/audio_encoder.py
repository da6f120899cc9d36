"""wav2vec 2.0 speech encoder: waveform to the hidden states of all its layers, per video frame.

The network is the `Wav2Vec2Model` of transformers, driven through its public sub-modules so that
one hidden state exists at a time and the convolutional front end runs in chunks: an hour of speech
needs memory for one layer, not for 25.

Letters: N samples at 16 kHz, T frames (50 Hz, 30 Hz or 25 Hz), D width. Three dots are any leading
dimensions, such as the layers.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from liveavatar.errors import CheckpointError, RequestError
from liveavatar.model.checkpoint_files import TensorFiles, load_into, open_tensor_files
from liveavatar.model.damage import read_json_table
from liveavatar.model.upload import upload

SAMPLE_RATE_HZ = 16_000
STATE_RATE_HZ = 50
RESAMPLED_RATE_HZ = 30
VIDEO_RATE_HZ = 25
CHUNK_SECONDS = 5.0

_WEIGHT_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")

# Settings that only one value of is supported, and the sizes that may differ.
_FIXED: dict[str, Any] = {
    "model_type": "wav2vec2",
    "do_stable_layer_norm": True,
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "add_adapter": False,
    "adapter_attn_dim": None,
}
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
)
_CONVOLUTIONS = ("conv_dim", "conv_kernel", "conv_stride")
_LARGEST_SIZE = 2**16


def load_audio_encoder(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Wav2Vec2Model:
    """Load a wav2vec 2.0 model, tensor by tensor, in evaluation mode.

    Args:
        folder: holds `config.json` and `model.safetensors` or `pytorch_model.bin`
            (`wav2vec2-large-xlsr-53-english`). A head on top and the mask embedding are ignored.
        device: where it runs.
        dtype: of weights and arithmetic; None keeps what is stored. The reference uses bfloat16.

    Raises:
        CheckpointError: a file is missing or damaged, or the model is not of the stable
            layer-norm kind.
    """
    folder = Path(folder)
    config = read_config(folder / "config.json")
    return build_audio_encoder(config, open_tensor_files(_weight_file(folder)), device, dtype)


def build_audio_encoder(
    config: Wav2Vec2Config,
    files: TensorFiles,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Wav2Vec2Model:
    """Build the model of a configuration from tensors; the rest as `load_audio_encoder`."""
    with torch.device("meta"):
        model = Wav2Vec2Model(config)
    load_into(model, files, lambda name: stored_name(name, files), device, dtype)
    return model.eval()


def stored_name(name: str, files: TensorFiles) -> str:
    """Return the name under which a checkpoint holds a parameter of `Wav2Vec2Model`.

    Files saved with a head prefix every name; files saved before torch had parametrizations call
    the two factors of the positional convolution's weight `weight_g` and `weight_v`.
    """
    published = published_name(name)
    candidates = (published, f"wav2vec2.{name}", published.removeprefix("wav2vec2."), name)
    return next((candidate for candidate in candidates if candidate in files), published)


def published_name(name: str) -> str:
    """Return the name of a parameter of `Wav2Vec2Model` in the release's speech encoder."""
    old = name.replace("parametrizations.weight.original0", "weight_g")
    return "wav2vec2." + old.replace("parametrizations.weight.original1", "weight_v")


def read_config(path: Path) -> Wav2Vec2Config:
    """Read and check the `config.json` of a wav2vec 2.0 model.

    Only what shapes the network is taken; dropout, layer dropping and masking are switched off. A
    setting that is absent has the library's default, which is how the library saves it.

    Raises:
        CheckpointError: missing, not JSON, or a kind of model that is not supported.
    """
    defaults = Wav2Vec2Config()
    stored = read_json_table(path)
    keys = (*_FIXED, *_SIZES, *_CONVOLUTIONS, "conv_bias", "feat_extract_norm", "layer_norm_eps")
    settings = {key: stored.get(key, getattr(defaults, key)) for key in keys}
    _check_settings(path, settings)
    return encoder_config(settings)


def encoder_config(settings: Mapping[str, Any]) -> Wav2Vec2Config:
    """A configuration for inference: no dropout, no layer dropping, no masking."""
    settings = {key: value for key, value in settings.items() if key != "model_type"}
    return Wav2Vec2Config(
        **settings,
        num_feat_extract_layers=len(settings["conv_dim"]),
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
        attn_implementation="sdpa",
    )


def normalise_waveform(samples_N: npt.NDArray[np.float32]) -> Tensor:
    """Shift and scale a whole utterance to zero mean and unit variance.

    Args:
        samples_N: mono 16 kHz.

    Returns:
        (x - mean) / sqrt(variance + 1e-7), float32 on the CPU, with the population variance. One
        copy is made, whatever the length. The numbers do not depend on how many threads there
        are, so that every process makes the same video of the same speech.
    """
    waveform_N = np.array(samples_N, dtype=np.float32)
    mean = waveform_N.mean(dtype=np.float64)
    waveform_N -= np.float32(mean)
    minutes = np.array_split(waveform_N, waveform_N.size // (60 * SAMPLE_RATE_HZ) + 1)
    power = sum(float(np.square(part, dtype=np.float64).sum()) for part in minutes)
    waveform_N /= np.float32(math.sqrt(power / waveform_N.size + 1e-7))
    return torch.from_numpy(waveform_N)


def hidden_states(
    model: Wav2Vec2Model, waveform_N: Tensor, chunk_seconds: float = CHUNK_SECONDS
) -> Iterator[Tensor]:
    """Yield the hidden states of a whole utterance, one layer at a time.

    Args:
        model: from `load_audio_encoder`, in evaluation mode.
        waveform_N: from `normalise_waveform`, any device.
        chunk_seconds: how much speech the convolutional front end takes at once; frames do not
            depend on it, memory does.

    Returns:
        states_TD: 50 Hz, dtype and device of the model, one per layer and one more. First the
        input of layer 0 (after the positional convolution), then the outputs of all layers but the
        last, then the final layer norm of the last output. Do not write into them.

    Raises:
        RequestError: the waveform is shorter than one frame (25 ms).
    """
    kernels, strides = model.config.conv_kernel, model.config.conv_stride
    if waveform_N.dim() != 1:
        raise ValueError(f"expected a waveform of one dimension, got {list(waveform_N.shape)}")
    if num_states(waveform_N.shape[0], kernels, strides) < 1:
        raise RequestError(
            f"the speech has {waveform_N.shape[0] / SAMPLE_RATE_HZ:.3f} s, expected at least "
            f"{receptive_field(kernels, strides) / SAMPLE_RATE_HZ:.3f} s: use a longer recording"
        )
    return _layer_states(model, _front_end(model, waveform_N, chunk_seconds))


def receptive_field(kernels: list[int], strides: list[int]) -> int:
    """Return how many samples one frame of the front end sees (400 for wav2vec 2.0)."""
    samples = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def num_states(num_samples: int, kernels: list[int], strides: list[int]) -> int:
    """Return how many frames the front end makes of so many samples; 0 if they are too few."""
    field, step = receptive_field(kernels, strides), math.prod(strides)
    return max(0, (num_samples - field) // step + 1)


def num_resampled(num_states50: int) -> int:
    """Return how many 30 Hz frames stand for so many 50 Hz frames."""
    # In floating point, as the reference computes it: this is what decides the video's length.
    return int((num_states50 / 50.0) * 30)


def resample_to_30hz(states_TD: Tensor) -> Tensor:
    """Resample from 50 to 30 Hz by linear interpolation with aligned end points.

    Args:
        states_TD: (..., T, D) at 50 Hz.

    Returns:
        (..., int(T / 50 * 30), D), same dtype and device; the sums are made in float32 or wider.
    """
    num_in = states_TD.shape[-2]
    num_out = num_resampled(num_in)
    # Positions are rounded to float32, as in torch's own interpolation that the reference uses: the
    # rounding grows with the length of the speech and is part of the features it was tuned with.
    step = torch.tensor((num_in - 1) / max(num_out - 1, 1), dtype=torch.float32)
    position = torch.arange(num_out, dtype=torch.float32) * step
    before = position.long().clamp(max=num_in - 1)
    share = upload((position - before).unsqueeze(-1), states_TD.device)
    after = (before + 1).clamp(max=num_in - 1)
    wide = torch.promote_types(states_TD.dtype, torch.float32)
    left = states_TD.index_select(-2, upload(before, states_TD.device)).to(wide)
    right = states_TD.index_select(-2, upload(after, states_TD.device)).to(wide)
    return torch.lerp(left, right, share.to(wide)).to(states_TD.dtype)


def num_clips(num_frames30: int, clip_frames: int = 48) -> int:
    """Return how many clips of `clip_frames` video frames the speech fills.

    The last one is usually partly empty; speech that fills its clips exactly gets one more, empty.
    """
    return num_frames30 * VIDEO_RATE_HZ // (clip_frames * RESAMPLED_RATE_HZ) + 1


def video_frame_rows(num_video_frames: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the 30 Hz row that each 25 Hz video frame takes: floor((12 i + 5) / 10), int64.

    Rows may lie past the end of the speech; `features_per_video_frame` puts zeros there.
    """
    frame = torch.arange(num_video_frames, device=device)
    return (12 * frame + 5) // 10


def features_per_video_frame(states30_TD: Tensor, num_video_frames: int) -> Tensor:
    """Pick the features of each video frame out of 30 Hz features.

    Args:
        states30_TD: (..., T, D) at 30 Hz.
        num_video_frames: how many to return.

    Returns:
        (..., num_video_frames, D), same dtype and device; zeros for frames past the speech.
    """
    rows = video_frame_rows(num_video_frames)
    rows = upload(rows[rows < states30_TD.shape[-2]], states30_TD.device)
    shape = (*states30_TD.shape[:-2], num_video_frames, states30_TD.shape[-1])
    features = states30_TD.new_zeros(shape)
    features[..., : rows.shape[0], :] = states30_TD.index_select(-2, rows)
    return features


@torch.no_grad()
def _front_end(model: Wav2Vec2Model, waveform_N: Tensor, chunk_seconds: float) -> Tensor:
    """Return projected features_TD of a whole waveform, computed chunk by chunk."""
    projected = []
    for samples_N in _chunks(model.config, waveform_N, chunk_seconds):
        samples_BN = upload(samples_N[None].to(model.dtype), model.device)
        features_BDT = model.feature_extractor(samples_BN)
        projected.append(model.feature_projection(features_BDT.transpose(1, 2))[0][0])
    return torch.cat(projected)


def _chunks(config: Wav2Vec2Config, waveform_N: Tensor, chunk_seconds: float) -> Iterator[Tensor]:
    """Yield pieces of a waveform that overlap such that every frame is made exactly once."""
    if config.feat_extract_norm != "layer":
        # Group norm takes its statistics over all of time, so a chunk would change the numbers.
        yield waveform_N
        return
    kernels, strides = config.conv_kernel, config.conv_stride
    field, step = receptive_field(kernels, strides), math.prod(strides)
    num_frames = num_states(waveform_N.shape[0], kernels, strides)
    frames_at_once = max(1, int(chunk_seconds * SAMPLE_RATE_HZ) // step)
    for first in range(0, num_frames, frames_at_once):
        last = min(first + frames_at_once, num_frames) - 1
        yield waveform_N[first * step : last * step + field]


@torch.no_grad()
def _layer_states(model: Wav2Vec2Model, features_TD: Tensor) -> Iterator[Tensor]:
    # Not the library's `output_hidden_states`: it holds all states at once, and transformers 5
    # leaves out the final layer norm that the avatar model's last feature has.
    encoder = model.encoder
    hidden_BTD = features_TD[None]
    del features_TD  # an hour of it is as large as a hidden state
    hidden_BTD = hidden_BTD + encoder.pos_conv_embed(hidden_BTD)
    for layer in encoder.layers:
        yield hidden_BTD[0]
        output = layer(hidden_BTD)
        # transformers 4 wraps the output of a layer in a tuple, transformers 5 does not.
        hidden_BTD = output[0] if isinstance(output, tuple) else output
    yield encoder.layer_norm(hidden_BTD)[0]


def _weight_file(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).exists():
            return folder / name
    raise CheckpointError(
        f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin in it"
    )


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Raise CheckpointError unless the settings describe a network that is supported here."""
    for key, only in _FIXED.items():
        _require(settings[key] == only, path, key, settings[key], f"only {json.dumps(only)}")
    for key in _SIZES:
        _require(_is_size(settings[key]), path, key, settings[key], "a positive whole number")
    length = 0
    for key in _CONVOLUTIONS:
        value = settings[key]
        good = isinstance(value, list | tuple) and 0 < len(value) <= 32
        good = good and all(_is_size(item) for item in value) and length in (0, len(value))
        _require(good, path, key, value, "a list of positive whole numbers, one per convolution")
        length = len(value)
    bias = settings["conv_bias"]
    _require(isinstance(bias, bool), path, "conv_bias", bias, "true or false")
    norm, epsilon = settings["feat_extract_norm"], settings["layer_norm_eps"]
    _require(norm in ("layer", "group"), path, "feat_extract_norm", norm, '"layer" or "group"')
    small = isinstance(epsilon, float) and 0 < epsilon < 1
    _require(small, path, "layer_norm_eps", epsilon, "a number between 0 and 1")
    width = settings["hidden_size"]
    for key in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        _require(width % settings[key] == 0, path, key, settings[key], f"a divisor of {width}")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_SIZE


def _require(good: bool, path: Path, key: str, found: object, expected: str) -> None:
    if not good:
        raise CheckpointError(
            f"{path}: '{key}' is {json.dumps(found)[:80]}, expected {expected}: use a stable "
            "layer-norm model such as wav2vec2-large-xlsr-53-english"
        )
