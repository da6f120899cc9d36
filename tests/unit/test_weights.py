"""Published weights into our modules: every tensor once, the right one, in the right precision."""

from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from liveavatar.config import TransformerConfig
from liveavatar.errors import CheckpointError
from liveavatar.model.checkpoint_files import open_tensor_files
from liveavatar.model.transformer import ConditionEmbedder, Transformer
from liveavatar.model.weights import fill, network_shapes, stored_names, stored_shapes
from liveavatar.random_checkpoint import TINY
from tests.unit import tiny
from tests.unit.tiny import MemoryFiles

NAMES = partial(stored_names, config=TINY)


def on_meta(
    layers: range | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Transformer, ConditionEmbedder]:
    with torch.device("meta"):
        return Transformer(TINY, layers, dtype), ConditionEmbedder(TINY, dtype)


def published_shapes_14b() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released transformer, written out."""
    dim, ffn, shapes = 5120, 13824, {}

    def linear(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def attention(name: str) -> None:
        for part in "qkvo":
            linear(f"{name}.{part}", dim, dim)
        for part in "qk":
            shapes[f"{name}.norm_{part}.weight"] = (dim,)

    for name in ("patch_embedding", "cond_encoder", "frame_packer.proj"):
        linear(name, dim, 16, 1, 2, 2)
    linear("frame_packer.proj_2x", dim, 16, 2, 4, 4)
    linear("frame_packer.proj_4x", dim, 16, 4, 8, 8)
    linear("text_embedding.0", dim, 4096)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", dim, 256)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", 6 * dim, dim)
    shapes["trainable_cond_mask.weight"] = (3, dim)
    for layer in range(40):
        shapes[f"blocks.{layer}.modulation"] = (1, 6, dim)
        attention(f"blocks.{layer}.self_attn")
        attention(f"blocks.{layer}.cross_attn")
        linear(f"blocks.{layer}.norm3", dim)
        linear(f"blocks.{layer}.ffn.0", ffn, dim)
        linear(f"blocks.{layer}.ffn.2", dim, ffn)
    for index in range(12):
        attention(f"audio_injector.injector.{index}")
        linear(f"audio_injector.injector_adain_layers.{index}.linear", 2 * dim, dim)
    shapes["casual_audio_encoder.weights"] = (1, 25, 1, 1)
    audio = "casual_audio_encoder.encoder"
    linear(f"{audio}.conv1_local.conv", dim, 1024, 3)
    linear(f"{audio}.conv1_global.conv", dim // 4, 1024, 3)
    linear(f"{audio}.conv2.conv", dim // 2, dim // 4, 3)
    linear(f"{audio}.conv3.conv", dim, dim // 2, 3)
    linear(f"{audio}.final_linear", dim, dim)
    shapes[f"{audio}.padding_tokens"] = (1, 1, 1, dim)
    shapes["head.modulation"] = (1, 2, dim)
    linear("head.head", 64, dim)
    return shapes


def test_the_14b_network_needs_the_1260_tensors_of_the_release() -> None:
    ours = network_shapes(TransformerConfig())
    assert len(ours) == 1260
    assert ours == published_shapes_14b()


def test_the_14b_network_has_16_3_billion_parameters() -> None:
    with torch.device("meta"):
        parts = (Transformer(TransformerConfig()), ConditionEmbedder(TransformerConfig()))
    total = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert round(total / 1e9, 3) == 16.296


def test_every_stored_tensor_is_used_exactly_once() -> None:
    files = MemoryFiles(tiny.stored_tensors())
    for part in on_meta():
        fill(part, files, NAMES)
    assert Counter(files.reads) == Counter(files.names())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_stages_read_every_tensor_once_among_them_and_none_of_another_stage(count: int) -> None:
    tensors = tiny.stored_tensors()
    edges = [4 * stage // count for stage in range(count + 1)]
    reads: Counter[str] = Counter()
    for first, last in pairwise(edges):
        files = MemoryFiles(tensors)
        fill(on_meta(range(first, last))[0], files, NAMES)
        layers = {int(n.split(".")[1]) for n in files.reads if n.startswith("blocks.")}
        assert layers == set(range(first, last))
        reads.update(files.reads)
    embedder_files = MemoryFiles(tensors)
    fill(on_meta()[1], embedder_files, NAMES)
    reads.update(embedder_files.reads)
    assert reads == Counter(list(tensors))


def test_fused_rows_are_query_then_key_then_value() -> None:
    tensors = tiny.stored_tensors()
    transformer = on_meta()[0]
    fill(transformer, MemoryFiles(tensors), NAMES)
    layer = transformer.stack[2]
    assert layer.audio is not None
    expected = (
        (layer.self_attn.qkv, "blocks.2.self_attn", "qkv"),
        (layer.cross_attn.kv, "blocks.2.cross_attn", "kv"),
        (layer.audio.attention.kv, "audio_injector.injector.1", "kv"),
    )
    for linear, owner, parts in expected:
        for leaf in ("weight", "bias"):
            stored = torch.cat([tensors[f"{owner}.{part}.{leaf}"] for part in parts])
            assert torch.equal(getattr(linear, leaf), stored.float())


def test_the_injection_of_a_layer_is_the_one_of_its_place_in_the_list() -> None:
    tensors = tiny.stored_tensors()
    transformer = on_meta()[0]
    fill(transformer, MemoryFiles(tensors), NAMES)
    for place, layer in enumerate(TINY.audio_inject_layers):
        audio = transformer.stack[layer].audio
        assert audio is not None
        stored = tensors[f"audio_injector.injector_adain_layers.{place}.linear.weight"]
        assert torch.equal(audio.adain.weight, stored.float())
    assert transformer.stack[1].audio is None
    assert transformer.stack[3].audio is None


def test_the_audio_table_and_the_padding_token_lose_their_axes_of_one() -> None:
    tensors = tiny.stored_tensors()
    embedder = on_meta()[1]
    fill(embedder, MemoryFiles(tensors), NAMES)
    audio = embedder.audio_encoder
    assert torch.equal(audio.mix_weights, tensors["casual_audio_encoder.weights"].flatten().float())
    stored = tensors["casual_audio_encoder.encoder.padding_tokens"]
    assert torch.equal(audio.padding_token, stored.flatten().float())


def float32_names(network: nn.Module) -> set[str]:
    return {n for n, parameter in network.named_parameters() if parameter.dtype == torch.float32}


def test_modulation_head_time_and_speech_stay_float32_in_a_bfloat16_network() -> None:
    parts = on_meta(dtype=torch.bfloat16)
    for part in parts:
        fill(part, MemoryFiles(tiny.stored_tensors()), NAMES)
    transformer, embedder = parts
    assert float32_names(transformer) == {
        "head.modulation",
        "head.linear.weight",
        "head.linear.bias",
        *(f"layers.{layer}.modulation" for layer in range(4)),
    }
    names = {name for name, _ in embedder.named_parameters()}
    assert float32_names(embedder) == {n for n in names if n.startswith(("time", "audio_encoder"))}
    rest = {p.dtype for part in parts for p in part.parameters()}
    assert rest == {torch.float32, torch.bfloat16}


def test_loaded_parameters_need_no_gradient() -> None:
    for part in on_meta():
        fill(part, MemoryFiles(tiny.stored_tensors()), NAMES)
        assert not any(parameter.requires_grad for parameter in part.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "patch_embedding.weight",
        "trainable_cond_mask.weight",
        "blocks.3.ffn.2.bias",
        "blocks.0.cross_attn.v.weight",
        "audio_injector.injector.1.norm_k.weight",
        "head.head.weight",
    ],
)
def test_a_missing_or_misshapen_tensor_is_one_line_that_names_file_and_tensor(
    tmp_path: Path, name: str
) -> None:
    good = tiny.stored_tensors()
    path = tmp_path / "weights.safetensors"
    missing = {n: t for n, t in good.items() if n != name}
    wider = {**good, name: torch.zeros(*good[name].shape[:-1], good[name].shape[-1] + 1)}
    flat = {**good, name: good[name].flatten()[None]}
    for tensors in (missing, wider, flat):
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=r"\A[^\n]+\Z") as caught:
            fill(on_meta()[0], open_tensor_files(path), NAMES)
        assert str(path) in str(caught.value)
        assert f"'{name}'" in str(caught.value)


def test_a_file_cut_short_is_one_line_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tiny.stored_tensors(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"\A[^\n]+\Z") as caught:
        open_tensor_files(path)
    assert str(path) in str(caught.value)


def test_a_file_cut_after_it_was_opened_is_one_line_that_names_file_and_tensor(
    tmp_path: Path,
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tiny.stored_tensors(), path)
    files = open_tensor_files(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"\A[^\n]+\Z") as caught:
        fill(on_meta()[0], files, NAMES)
    assert str(path) in str(caught.value)


def test_stored_shapes_follow_a_part_of_the_network() -> None:
    with torch.device("meta"):
        part = Transformer(TINY, range(1, 3))
    shapes = stored_shapes(part, NAMES)
    everything = network_shapes(TINY)
    assert shapes.items() < everything.items()
    kinds = {name.split(".")[0] for name in shapes}
    assert kinds == {"blocks", "audio_injector"}
