"""The text encoder reads umT5 checkpoints under their published names and never needs padding."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from liveavatar.errors import CheckpointError
from liveavatar.model.checkpoint_files import open_tensor_files
from liveavatar.model.text_encoder import (
    clean_prompt,
    encode_ids,
    encoder_config,
    load_text_encoder,
    load_tokenizer,
    stored_name,
    token_ids,
)

WORDS = ["<pad>", "</s>", "<unk>", "a", "man", "speaks", "slowly"]


def small_encoder() -> UMT5EncoderModel:
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=11, d_model=16, d_kv=6, d_ff=20, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    encoder = UMT5EncoderModel(config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder


def stored_tensors(encoder: UMT5EncoderModel) -> dict[str, Tensor]:
    return {
        stored_name(name): parameter.detach().clone()
        for name, parameter in encoder.named_parameters()
    }


def write_tokenizer(folder: Path, words: list[str] = WORDS) -> Path:
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    end = ("</s>", vocabulary["</s>"])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A $B </s>", [end])
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_loaded_encoder_gives_the_numbers_of_the_saved_one(tmp_path: Path, kind: str) -> None:
    encoder = small_encoder()
    path = tmp_path / f"models_t5.{kind}"
    (save_file if kind == "safetensors" else torch.save)(stored_tensors(encoder), path)
    loaded = load_text_encoder(path)
    assert not loaded.training
    assert torch.equal(encode_ids(loaded, [3, 9, 4, 1]), encode_ids(encoder, [3, 9, 4, 1]))
    assert loaded.shared.weight is loaded.encoder.embed_tokens.weight


def test_the_size_is_read_off_the_shapes(tmp_path: Path) -> None:
    save_file(stored_tensors(small_encoder()), tmp_path / "t5.safetensors")
    config = encoder_config(open_tensor_files(tmp_path))
    sizes = (config.vocab_size, config.d_model, config.d_kv, config.d_ff)
    assert sizes == (11, 16, 6, 20)
    assert (config.num_layers, config.num_heads) == (2, 4)
    assert config.relative_attention_num_buckets == 32
    assert config.relative_attention_max_distance == 128
    assert (config.dense_act_fn, config.is_gated_act) == ("gelu_new", True)


def test_names_follow_the_published_checkpoint() -> None:
    layer = "encoder.block.7"
    assert stored_name("shared.weight") == "token_embedding.weight"
    assert stored_name("encoder.embed_tokens.weight") == "token_embedding.weight"
    assert stored_name("encoder.final_layer_norm.weight") == "norm.weight"
    assert stored_name(f"{layer}.layer.0.layer_norm.weight") == "blocks.7.norm1.weight"
    assert stored_name(f"{layer}.layer.1.layer_norm.weight") == "blocks.7.norm2.weight"
    for part in "qkvo":
        name = f"{layer}.layer.0.SelfAttention.{part}.weight"
        assert stored_name(name) == f"blocks.7.attn.{part}.weight"
    bias = f"{layer}.layer.0.SelfAttention.relative_attention_bias.weight"
    assert stored_name(bias) == "blocks.7.pos_embedding.embedding.weight"
    feed_forward = {"wi_0": "gate.0", "wi_1": "fc1", "wo": "fc2"}
    for part, stored in feed_forward.items():
        name = f"{layer}.layer.1.DenseReluDense.{part}.weight"
        assert stored_name(name) == f"blocks.7.ffn.{stored}.weight"


def test_rows_without_padding_are_those_of_a_padded_run() -> None:
    encoder = small_encoder()
    ids = [3, 4, 9, 5, 6, 1]
    padded = torch.zeros(1, 40, dtype=torch.long)
    padded[0, : len(ids)] = torch.tensor(ids)
    mask = (torch.arange(40) < len(ids)).long()[None]
    with torch.no_grad():
        whole = encoder(input_ids=padded, attention_mask=mask).last_hidden_state[0]
    # Padded keys weigh exactly zero; only the order of the sums may differ.
    torch.testing.assert_close(encode_ids(encoder, ids), whole[: len(ids)], rtol=1e-5, atol=1e-5)


def test_a_prompt_becomes_one_row_per_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    ids = token_ids(tokenizer, " A&amp;lt; man  speaks\n", 512)
    rows = encode_ids(small_encoder().bfloat16(), ids)
    assert rows.dtype == torch.bfloat16
    assert not rows.requires_grad
    assert rows.shape == (len(token_ids(tokenizer, "A< man speaks", 512)), 16)


def test_ids_always_close_with_the_end_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path).parent)
    assert token_ids(tokenizer, "a man speaks", 512) == [3, 4, 5, 1]
    assert token_ids(tokenizer, "a man speaks slowly", 3) == [3, 4, 1]
    assert token_ids(tokenizer, "a man speaks", 4) == [3, 4, 5, 1]
    assert token_ids(tokenizer, "", 512) == [1]
    assert token_ids(tokenizer, "man " * 700, 512) == [4] * 511 + [1]
    with pytest.raises(ValueError, match="text_len"):
        token_ids(tokenizer, "a", 0)


def test_the_prompt_is_repaired_and_its_blanks_are_joined() -> None:
    assert clean_prompt("  a\t man\n\nspeaks ") == "a man speaks"
    assert clean_prompt("Tom &amp;amp; Ann") == "Tom & Ann"
    assert clean_prompt("schÃ¶n") == "schön"
    assert clean_prompt("a&nbsp;&nbsp;b") == "a b"
    assert clean_prompt("\n") == ""


def test_a_tokenizer_larger_than_the_encoder_is_refused(tmp_path: Path) -> None:
    words = [*WORDS, *(f"w{i}" for i in range(20))]
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, words))
    with pytest.raises(CheckpointError, match="token id 26 but the text encoder has 11 tokens"):
        encode_ids(small_encoder(), token_ids(tokenizer, "a w19", 512))


def write_nothing(_: Path) -> None:
    pass


def write_only_spiece(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(b"\n\x0e")


def write_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")


def write_empty(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b"")


def write_cut(folder: Path) -> None:
    path = write_tokenizer(folder)
    path.write_bytes(path.read_bytes()[:300])


def write_other_json(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "Nothing"}}')


def write_noise(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(bytes(range(256)))


def write_other_vocabulary(folder: Path) -> None:
    write_tokenizer(folder, ["<pad>", "<unk>", "</s>"])


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (write_nothing, "tokenizer.json is missing"),
        (write_only_spiece, "has only spiece.model; fetch tokenizer.json"),
        (write_pointer, "tokenizer.json is a git-lfs pointer"),
        (write_empty, "tokenizer.json has zero bytes"),
        (write_cut, "tokenizer.json is not a tokenizer"),
        (write_other_json, "tokenizer.json is not a tokenizer"),
        (write_noise, "tokenizer.json is not a tokenizer"),
        (write_other_vocabulary, "tokenizer.json is another tokenizer: expected the end token"),
    ],
)
def test_a_bad_tokenizer_is_one_line(tmp_path: Path, write: object, expected: str) -> None:
    assert callable(write)
    write(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"token_embedding.weight": None}, "has no tensor 'token_embedding.weight'"),
        ({"blocks.1.norm2.weight": None}, "lacks tensor 'blocks.1.norm2.weight'"),
        ({"norm.weight": (17,)}, r"tensor 'norm.weight' has shape [17], expected [16]"),
        ({"blocks.0.attn.q.weight": (24,)}, "shape [24], expected a matrix"),
        ({"blocks.0.attn.q.weight": (23, 16)}, "attention width 23 is not a multiple of the 4"),
        ({"blocks.0.ffn.fc1.weight": (0, 16)}, "shape [0, 16], expected a matrix"),
        ({"blocks.999999999.norm1.weight": (16,)}, "lacks tensor 'blocks.2."),
    ],
)
def test_a_checkpoint_of_another_kind_is_one_line(
    tmp_path: Path, change: dict[str, tuple[int, ...] | None], expected: str
) -> None:
    stored = stored_tensors(small_encoder())
    for name, shape in change.items():
        stored.pop(name, None)
        if shape is not None:
            stored[name] = torch.zeros(shape)
    save_file(stored, tmp_path / "t5.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_text_encoder(tmp_path / "t5.safetensors")
    assert expected in str(caught.value)
    assert "t5.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
