"""A checkpoint directory: what is missing or does not fit is named; each part is built alone."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from liveavatar.errors import CheckpointError, ConfigError, LiveAvatarError
from liveavatar.model.checkpoint import (
    CONFIG,
    SPEECH_ENCODER,
    TEXT_ENCODER,
    TOKENIZER,
    TRANSFORMER_INDEX,
    TRANSFORMER_SINGLE,
    VAE,
    Placement,
    open_checkpoint,
)
from liveavatar.model.fp8 import Fp8Linear, quantise_rows
from liveavatar.model.lora import merge
from liveavatar.model.transformer import Layer, Transformer
from liveavatar.plan.precision import Precision
from liveavatar.random_checkpoint import TINY, TINY_VAE, write_adapter, write_checkpoint
from tests.unit import tiny
from tests.unit.tiny import seeded

CPU32 = Placement(torch.device("cpu"), torch.float32)
CPU16 = Placement(torch.device("cpu"), torch.bfloat16)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("good")
    write_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(good, tmp_path / "broken"))


def refusal(directory: Path, kind: type[LiveAvatarError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        open_checkpoint(directory)
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message
    return message


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensor(directory: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    shard = directory / json.loads((directory / TRANSFORMER_INDEX).read_text())["weight_map"][name]
    tensors = load_file(shard)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, shard)


def network_bytes(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.state_dict())


def test_sizes_that_no_config_states_are_read_off_the_tensors(broken: Path) -> None:
    path = broken / CONFIG
    stated = json.loads(path.read_text())
    del stated["text_dim"], stated["num_audio_states"]
    path.write_text(json.dumps(stated))
    checkpoint = open_checkpoint(broken)
    assert checkpoint.config == TINY
    assert checkpoint.vae_config.dim == TINY_VAE.dim


@pytest.mark.parametrize("part", [CONFIG, TEXT_ENCODER, TOKENIZER, SPEECH_ENCODER, VAE])
def test_a_missing_part_is_named(broken: Path, part: str) -> None:
    path = broken / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    message = refusal(broken)
    assert f"{part} missing" in message


def test_all_missing_parts_are_named_together(broken: Path) -> None:
    (broken / VAE).unlink()
    (broken / TEXT_ENCODER).unlink()
    message = refusal(broken)
    assert f"{TEXT_ENCODER}, {VAE} missing" in message


def test_a_missing_transformer_is_named(broken: Path) -> None:
    (broken / TRANSFORMER_INDEX).unlink()
    message = refusal(broken)
    assert TRANSFORMER_INDEX in message
    assert TRANSFORMER_SINGLE in message


def test_a_missing_shard_is_named(broken: Path) -> None:
    shard = sorted(broken.glob("diffusion_pytorch_model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(broken)


def test_no_folder_is_one_line_that_names_it(tmp_path: Path) -> None:
    refusal(tmp_path / "absent")
    file = tmp_path / "file"
    file.write_bytes(b"x")
    refusal(file)


@pytest.mark.parametrize(
    ("key", "value"), [("enable_motioner", True), ("enable_tsm", True), ("model_type", "t2v")]
)
def test_a_config_of_another_network_is_refused(broken: Path, key: str, value: Any) -> None:
    change_config(broken, **{key: value})
    with pytest.raises(ConfigError, match=rf"\A[^\n]*{CONFIG}: {key}: [^\n]*\Z"):
        open_checkpoint(broken)


def test_a_damaged_config_is_named(broken: Path) -> None:
    (broken / CONFIG).write_text("{")
    refusal(broken, ConfigError)


def test_latents_of_other_channels_than_the_transformer_reads_are_refused(broken: Path) -> None:
    change_config(broken, in_dim=8, out_dim=8)
    message = refusal(broken)
    assert "latents of 16 channels" in message
    assert "the transformer needs 8" in message


@pytest.mark.parametrize("name", [VAE, "diffusion_pytorch_model-00001-of-00002.safetensors"])
def test_a_part_cut_short_is_named(broken: Path, name: str) -> None:
    content = (broken / name).read_bytes()
    (broken / name).write_bytes(content[: len(content) // 3])
    assert name in refusal(broken)


def test_a_stage_loaded_alone_is_that_part_of_the_whole(good: Path) -> None:
    checkpoint = open_checkpoint(good)
    whole = network_bytes(checkpoint.load_transformer(CPU32))
    seen: set[str] = set()
    for layers in (range(1), range(1, 3), range(3, 4)):
        stage = checkpoint.load_transformer(CPU32, layers)
        own = network_bytes(stage)
        assert all(torch.equal(whole[name], tensor) for name, tensor in own.items())
        assert seen.isdisjoint(own)
        seen |= set(own)
        assert set(stage.layers) == {str(layer) for layer in layers}
    assert seen == set(whole)


def test_loaded_parts_have_the_precision_asked_for(good: Path) -> None:
    checkpoint = open_checkpoint(good)
    transformer = checkpoint.load_transformer(CPU16)
    assert transformer.stack[0].ffn_in.weight.dtype == torch.bfloat16
    assert transformer.stack[0].modulation.dtype == torch.float32
    embedder = checkpoint.load_condition_embedder(CPU16)
    assert embedder.text_in.weight.dtype == torch.bfloat16
    assert embedder.time_in.weight.dtype == torch.float32
    for network in (
        checkpoint.load_vae_encoder(CPU16),
        checkpoint.load_vae_decoder(CPU16),
        checkpoint.load_text_encoder(CPU16),
    ):
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
        assert not network.training


def test_all_parts_are_built_on_the_device_asked_for(good: Path) -> None:
    checkpoint = open_checkpoint(good)
    for network in (
        checkpoint.load_transformer(CPU32),
        checkpoint.load_condition_embedder(CPU32),
        checkpoint.load_vae_encoder(CPU32),
        checkpoint.load_vae_decoder(CPU32),
        checkpoint.load_text_encoder(CPU32),
        checkpoint.load_audio_encoder(CPU32),
    ):
        assert {p.device.type for p in network.parameters()} == {"cpu"}
        assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    assert checkpoint.load_tokenizer().encode("a b").ids[-1] == 1


def test_a_single_file_serves_as_well_as_shards(broken: Path) -> None:
    expected = network_bytes(open_checkpoint(broken).load_transformer(CPU32))
    shards = sorted(broken.glob("diffusion_pytorch_model-*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for path in (*shards, broken / TRANSFORMER_INDEX):
        path.unlink()
    save_file(tensors, broken / TRANSFORMER_SINGLE)
    ours = network_bytes(open_checkpoint(broken).load_transformer(CPU32))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


ADAPTED = re.compile(
    r"layers\.\d+\.(self_attn\.(qkv|o)|cross_attn\.(q|kv|o)|ffn_in|ffn_out"
    r"|audio\.attention\.(q|kv|o))\.weight"
)


def test_the_adapter_changes_exactly_its_targets(good: Path, adapter_file: Path) -> None:
    plain, adapted = open_checkpoint(good), open_checkpoint(good, adapter_file)
    before = network_bytes(plain.load_transformer(CPU16))
    after = network_bytes(adapted.load_transformer(CPU16))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ADAPTED.fullmatch(name)}
    unchanged = network_bytes(adapted.load_condition_embedder(CPU16))
    for name, tensor in network_bytes(plain.load_condition_embedder(CPU16)).items():
        assert torch.equal(tensor, unchanged[name])


def test_each_row_block_of_a_fused_matrix_gets_its_own_pair(good: Path, adapter_file: Path) -> None:
    adapted = open_checkpoint(good, adapter_file).load_transformer(CPU16).stack[3].self_attn.qkv
    plain = open_checkpoint(good).load_transformer(CPU16).stack[3].self_attn.qkv
    pairs = load_file(adapter_file)
    rows = zip("qkv", plain.weight.chunk(3), adapted.weight.chunk(3), strict=True)
    for part, before, after in rows:
        stem = f"blocks.3.self_attn.{part}"
        down, up = (pairs[f"{stem}.lora_{side}.default.weight"] for side in "AB")
        assert torch.equal(after, merge(before, down, up))


def test_a_stage_with_the_adapter_is_that_part_of_the_whole(good: Path, adapter_file: Path) -> None:
    checkpoint = open_checkpoint(good, adapter_file)
    whole = network_bytes(checkpoint.load_transformer(CPU16))
    stage = network_bytes(checkpoint.load_transformer(CPU16, range(2, 4)))
    assert all(torch.equal(whole[name], tensor) for name, tensor in stage.items())


def test_a_loaded_network_runs(good: Path) -> None:
    checkpoint = open_checkpoint(good)
    transformer = checkpoint.load_transformer(CPU32)
    assert isinstance(transformer, Transformer)
    job = tiny.job(1)
    state = tiny.denoiser(job, transformer)
    inputs = job.conditions
    with torch.no_grad():
        hidden = transformer.embed_condition(inputs.reference_CFHW, inputs.motion_CFHW)
        assert state.prefill(hidden, 0).isfinite().all()


# What does not fit, and is found out too late.


def a_wider_text_encoder(directory: Path) -> None:
    name = "text_embedding.0.weight"
    change_tensor(directory, name, lambda weight: seeded(len(weight), 48).to(weight.dtype))


def a_narrower_speech_encoder(directory: Path) -> None:
    change_config(directory, audio_dim=24)
    for part in ("local", "global"):
        name = f"casual_audio_encoder.encoder.conv1_{part}.conv.weight"
        change_tensor(directory, name, lambda weight: weight[:, :24])


def a_deeper_speech_encoder(directory: Path) -> None:
    change_tensor(directory, "casual_audio_encoder.weights", lambda _: torch.ones(1, 5, 1, 1))


def more_layers_than_stored(directory: Path) -> None:
    change_config(directory, num_layers=6)


def fewer_layers_than_stored(directory: Path) -> None:
    change_config(directory, num_layers=3)


def flat_audio_weights(directory: Path) -> None:
    change_tensor(directory, "casual_audio_encoder.weights", lambda weight: weight.flatten())


@pytest.mark.parametrize(
    "misfit",
    [
        a_wider_text_encoder,
        a_narrower_speech_encoder,
        a_deeper_speech_encoder,
        more_layers_than_stored,
        fewer_layers_than_stored,
        flat_audio_weights,
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused_when_the_checkpoint_is_opened(
    broken: Path, misfit: Callable[[Path], None]
) -> None:
    misfit(broken)
    with pytest.raises(CheckpointError, match=r"\A[^\n]+\Z"):
        open_checkpoint(broken)


def test_a_name_too_long_for_the_file_system_is_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"\A[^\n]+\Z"):
        open_checkpoint(Path("a" * 300))


def test_matrices_are_quantised_with_the_adapter_in_them_and_layer_by_layer(
    good: Path, adapter_file: Path
) -> None:
    checkpoint = open_checkpoint(good, adapter_file)
    where = Placement.planned(torch.device("cpu"), Precision("fp8", "8-bit"))
    whole: list[Layer] = []

    def cut(layer: Layer) -> None:
        assert type(layer.ffn_in) is nn.Linear, "cut before it is quantised"
        assert all(isinstance(earlier.ffn_in, Fp8Linear) for earlier in whole)
        whole.append(layer)

    transformer = checkpoint.load_transformer(where, range(1, 4), cut)
    assert whole == list(transformer.stack)
    assert transformer.cache_kind == "8-bit"
    plain = checkpoint.load_transformer(CPU16, range(1, 4))
    for layer, wide in zip(transformer.stack, plain.stack, strict=True):
        quantised = layer.self_attn.qkv
        assert isinstance(quantised, Fp8Linear)
        expected = quantise_rows(wide.self_attn.qkv.weight)
        assert torch.equal(quantised.weight.float(), expected.values.float())
        assert torch.equal(quantised.weight_scale, expected.scale)
        left = [type(part) for part in layer.modules() if isinstance(part, nn.Linear)]
        assert not left, "every matrix of a layer is quantised"
    assert transformer.head is not None
    assert type(transformer.head.linear) is nn.Linear


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        (Precision("float32", "float32"), torch.float32),
        (Precision("bfloat16", "8-bit"), torch.bfloat16),
        (Precision("fp8", "bfloat16"), torch.bfloat16),
    ],
)
def test_a_placement_is_in_the_planned_precision(precision: Precision, dtype: torch.dtype) -> None:
    where = Placement.planned(torch.device("cpu"), precision)
    assert where.dtype == dtype
    assert where.quantised_weights == (precision.weights == "fp8")
    assert (where.cache_kind == "8-bit") == (precision.cache == "8-bit")
