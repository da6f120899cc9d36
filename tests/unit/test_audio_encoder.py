"""The speech encoder gives the library's hidden states, one at a time, and times them for video."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2Model

from liveavatar.errors import CheckpointError, RequestError
from liveavatar.model.audio_encoder import (
    features_per_video_frame,
    hidden_states,
    load_audio_encoder,
    normalise_waveform,
    num_clips,
    num_resampled,
    num_states,
    receptive_field,
    resample_to_30hz,
    video_frame_rows,
)

KERNELS, STRIDES = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]
CONFIG = {
    "model_type": "wav2vec2",
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": [8] * 7,
    "conv_kernel": KERNELS,
    "conv_stride": STRIDES,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 33,
    "architectures": ["Wav2Vec2ForCTC"],
    "hidden_dropout": 0.3,
    "layerdrop": 0.5,
}


def library_model(**changes: object) -> Wav2Vec2Model:
    torch.manual_seed(0)
    settings = {**CONFIG, "mask_time_prob": 0.05, **changes}
    settings.pop("model_type")
    model = Wav2Vec2Model(Wav2Vec2Config(**settings)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def published_tensors(model: Wav2Vec2Model) -> dict[str, Tensor]:
    stored = {"lm_head.weight": torch.zeros(33, 24), "lm_head.bias": torch.zeros(33)}
    for name, tensor in model.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        stored[f"wav2vec2.{name}"] = tensor.clone()
    return stored


def write_model(folder: Path, config: dict[str, object] | None = None, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(config or {**CONFIG, **changes}))
    save_file(published_tensors(library_model()), folder / "model.safetensors")


def speech(num_samples: int = 6000) -> Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(3)) * 0.1 + 0.02


def library_states(model: Wav2Vec2Model, waveform: Tensor) -> list[Tensor]:
    with torch.no_grad():
        output = model(waveform[None], output_hidden_states=True)
    # transformers 4 normalises the last entry, transformers 5 does not; the result is the same.
    return [state[0] for state in (*output.hidden_states[:-1], output.last_hidden_state)]


def close(found: Tensor, expected: Tensor) -> None:
    # The attention kernel and the size of the convolution decide the order of the sums.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_published_names_load_and_give_the_states_of_the_library(tmp_path: Path, kind: str) -> None:
    write_model(tmp_path)
    if kind == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(published_tensors(library_model()), tmp_path / "pytorch_model.bin")
    waveform = normalise_waveform(speech().numpy())
    expected = library_states(library_model(), waveform)
    found = list(hidden_states(load_audio_encoder(tmp_path), waveform))
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    assert not found[0].requires_grad


def test_names_without_prefix_and_with_parametrizations_load(tmp_path: Path) -> None:
    model = library_model()
    write_model(tmp_path)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = load_audio_encoder(tmp_path)
    name = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    assert torch.equal(loaded.get_parameter(name), model.get_parameter(name))


def test_a_saved_library_folder_loads(tmp_path: Path) -> None:
    model = library_model()
    model.save_pretrained(tmp_path)
    waveform = normalise_waveform(speech().numpy())
    for one, other in zip(
        hidden_states(load_audio_encoder(tmp_path), waveform),
        library_states(model, waveform),
        strict=True,
    ):
        close(one, other)


@pytest.mark.parametrize("chunk_seconds", [0.02, 0.06, 0.1, 0.375])
def test_frames_do_not_depend_on_the_chunks(tmp_path: Path, chunk_seconds: float) -> None:
    write_model(tmp_path)
    model = load_audio_encoder(tmp_path)
    waveform = normalise_waveform(speech().numpy())
    sizes: list[int] = []
    model.feature_extractor.register_forward_pre_hook(
        lambda _, inputs: sizes.append(inputs[0].shape[1])
    )
    whole = list(hidden_states(model, waveform))
    assert sizes == [6000 - (6000 - 400) % 320]
    chunked = list(hidden_states(model, waveform, chunk_seconds))
    assert max(sizes[1:]) <= chunk_seconds * 16000 + 80  # 80: 400 samples seen, 320 stepped
    for one, other in zip(chunked, whole, strict=True):
        close(one, other)


def test_a_front_end_with_group_norm_runs_whole(tmp_path: Path) -> None:
    group = library_model(feat_extract_norm="group")
    group.save_pretrained(tmp_path)
    waveform = normalise_waveform(speech().numpy())
    states = hidden_states(load_audio_encoder(tmp_path), waveform, chunk_seconds=0.1)
    for one, other in zip(states, library_states(group, waveform), strict=True):
        close(one, other)


def test_weights_and_states_take_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    write_model(tmp_path)
    model = load_audio_encoder(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {state.dtype for state in hidden_states(model, speech())} == {torch.bfloat16}


def test_states_of_a_loaded_model_are_the_same_twice(tmp_path: Path) -> None:
    write_model(tmp_path)  # with dropout and layer dropping in its config
    model = load_audio_encoder(tmp_path)
    for one, other in zip(
        hidden_states(model, speech()), hidden_states(model, speech()), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_samples", [0, 1, 399])
def test_speech_shorter_than_one_frame_is_a_request_error(tmp_path: Path, num_samples: int) -> None:
    write_model(tmp_path)
    with pytest.raises(RequestError, match=r"expected at least 0\.025 s"):
        hidden_states(load_audio_encoder(tmp_path), torch.zeros(num_samples))


@pytest.mark.parametrize("num_samples", [400, 719, 720, 16000, 23456])
def test_the_number_of_states_is_that_of_the_network(tmp_path: Path, num_samples: int) -> None:
    write_model(tmp_path)
    model = load_audio_encoder(tmp_path)
    first = next(iter(hidden_states(model, torch.zeros(num_samples))))
    assert first.shape == (num_states(num_samples, KERNELS, STRIDES), 24)


def test_one_frame_of_wav2vec_sees_400_samples() -> None:
    assert receptive_field(KERNELS, STRIDES) == 400
    assert num_states(399, KERNELS, STRIDES) == 0
    assert num_states(16000, KERNELS, STRIDES) == 49


def test_a_normalised_waveform_has_mean_0_and_variance_1() -> None:
    samples = speech().double()
    found = normalise_waveform(samples.numpy())
    assert found.dtype == torch.float32
    expected = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_silence_stays_silent() -> None:
    assert torch.equal(normalise_waveform(np.full(500, 0.25, np.float32)), torch.zeros(500))


# Files.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "hubert"}, '\'model_type\' is "hubert", expected only "wav2vec2"'),
        ({"do_stable_layer_norm": False}, "'do_stable_layer_norm' is false, expected only true"),
        ({"hidden_act": "relu"}, "'hidden_act' is \"relu\""),
        ({"feat_extract_activation": "relu"}, "'feat_extract_activation' is"),
        ({"add_adapter": True}, "'add_adapter' is true"),
        ({"adapter_attn_dim": 16}, "'adapter_attn_dim' is 16"),
        ({"hidden_size": "24"}, "'hidden_size' is \"24\", expected a positive whole number"),
        ({"num_hidden_layers": 10**12}, "'num_hidden_layers' is"),
        ({"num_hidden_layers": -1}, "'num_hidden_layers' is"),
        ({"num_attention_heads": 5}, "'num_attention_heads' is 5, expected a divisor of 24"),
        ({"num_conv_pos_embedding_groups": 7}, "'num_conv_pos_embedding_groups' is 7"),
        ({"conv_dim": 8}, "'conv_dim' is 8, expected a list"),
        ({"conv_kernel": [10, 3]}, "'conv_kernel' is [10, 3], expected a list"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 0]}, "'conv_stride' is"),
        ({"conv_bias": "yes"}, "'conv_bias' is \"yes\", expected true or false"),
        ({"feat_extract_norm": "batch"}, "'feat_extract_norm' is \"batch\""),
        ({"layer_norm_eps": None}, "'layer_norm_eps' is null"),
        ({"vocab_size": None, "do_stable_layer_norm": None}, "'do_stable_layer_norm' is null"),
    ],
)
def test_a_config_that_is_not_supported_is_one_line(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    write_model(tmp_path, **changes)
    with pytest.raises(CheckpointError) as caught:
        load_audio_encoder(tmp_path)
    assert expected in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_setting_has_the_default_of_the_library(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "do_stable_layer_norm"}
    write_model(tmp_path, config)
    with pytest.raises(CheckpointError, match="'do_stable_layer_norm' is false"):
        load_audio_encoder(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]"])
def test_a_damaged_config_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        load_audio_encoder(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_one_line(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        load_audio_encoder(tmp_path)


def test_weights_of_another_size_name_tensor_and_shapes(tmp_path: Path) -> None:
    write_model(tmp_path, intermediate_size=44)
    with pytest.raises(
        CheckpointError,
        match=r"'wav2vec2\.encoder\.layers\.0\.feed_forward\.intermediate_dense\.weight' "
        r"has shape \[40, 24\], expected \[44, 24\]",
    ):
        load_audio_encoder(tmp_path)


def test_weights_of_fewer_layers_name_the_missing_tensor(tmp_path: Path) -> None:
    write_model(tmp_path, num_hidden_layers=4)
    with pytest.raises(CheckpointError, match=r"lacks tensor 'wav2vec2\.encoder\.layers\.3\."):
        load_audio_encoder(tmp_path)


# Timing. The counts were recorded from Alibaba-Quark/LiveAvatar at 9c2c38d.

COUNTS = [
    # frames at 50 Hz, at 30 Hz, clips of 48, video frames with speech
    (10, 6, 1, 5),
    (79, 47, 1, 39),
    (80, 48, 1, 40),
    (81, 48, 1, 40),
    (96, 57, 1, 48),
    (97, 58, 2, 48),
    (160, 96, 2, 80),
    (239, 143, 3, 119),
    (241, 144, 3, 120),
    (249, 149, 3, 124),
    (250, 150, 3, 125),
    (499, 299, 6, 249),
    (1499, 899, 16, 749),
    (14999, 8999, 157, 7499),
]


@pytest.mark.parametrize(("states50", "frames30", "clips", "spoken"), COUNTS)
def test_counts_are_those_of_the_reference(
    states50: int, frames30: int, clips: int, spoken: int
) -> None:
    assert num_resampled(states50) == frames30
    assert num_clips(frames30) == clips
    features = features_per_video_frame(torch.ones(frames30, 1), 48 * clips)
    assert features.shape == (48 * clips, 1)
    assert int(features.sum()) == spoken


def test_speech_that_fills_its_clips_exactly_gets_one_more() -> None:
    assert num_clips(287) == 5
    assert num_clips(288) == 6  # 288 / 57.6 is 5
    assert num_clips(0) == 1
    assert num_clips(43, clip_frames=36) == 1
    assert num_clips(44, clip_frames=36) == 2


def test_video_frames_take_the_rows_of_the_reference() -> None:
    rows = video_frame_rows(144)
    assert rows[:14].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16]
    assert rows[-4:].tolist() == [168, 169, 170, 172]
    assert rows.dtype == torch.int64


@pytest.mark.parametrize("length", [2, 3, 4, 5, 97, 1499, 4001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resampling_is_linear_interpolation_with_aligned_ends(
    length: int, dtype: torch.dtype
) -> None:
    states = torch.randn(3, length, 4, generator=torch.Generator().manual_seed(1))
    found = resample_to_30hz(states.to(dtype))
    assert found.dtype == dtype
    expected = functional.interpolate(
        states.transpose(1, 2), size=num_resampled(length), mode="linear", align_corners=True
    ).transpose(1, 2)
    # The same float32 positions; only the last bit of the weighted sum may differ.
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-6)
    assert torch.equal(found[:, 0], states[:, 0].to(dtype))


@pytest.mark.parametrize("length", [0, 1])
def test_speech_too_short_for_one_30_hz_frame_gives_silent_video(length: int) -> None:
    resampled = resample_to_30hz(torch.ones(2, length, 3))
    assert resampled.shape == (2, 0, 3)
    assert torch.equal(features_per_video_frame(resampled, 12), torch.zeros(2, 12, 3))


def test_mixing_the_layers_commutes_with_the_timing() -> None:
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(25, 97, 4, generator=generator, dtype=torch.float64)
    mix = torch.softmax(torch.randn(25, generator=generator, dtype=torch.float64), 0)
    after = features_per_video_frame(resample_to_30hz(states), 96)
    first = torch.einsum("l,ltd->td", mix, states)
    before = features_per_video_frame(resample_to_30hz(first), 96)
    torch.testing.assert_close(before, torch.einsum("l,ltd->td", mix, after))


def test_frames_past_the_speech_are_zeros_not_repeats() -> None:
    features = features_per_video_frame(torch.arange(1.0, 7.0)[:, None], 12)
    assert features[:, 0].tolist() == [1, 2, 3, 5, 6, 0, 0, 0, 0, 0, 0, 0]


def test_half_precision_is_interpolated_in_float32_and_rounded_once() -> None:
    states = torch.randn(97, 4, generator=torch.Generator().manual_seed(4)).bfloat16()
    expected = resample_to_30hz(states.float()).bfloat16()
    assert torch.equal(resample_to_30hz(states), expected)
