"""umT5 text encoder: prompt to embeddings.

The network is the `UMT5EncoderModel` of transformers; its size is read off the checkpoint, and its
weights are read one by one under the names that the Wan2.2 release gives them. The tokenizer is
the `tokenizer.json` of google/umt5-xxl, read by the `tokenizers` library directly, so that no
release of transformers can change the ids.

Letters: L tokens, D embedding width.
"""

import html
import re
from pathlib import Path

import ftfy
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from liveavatar.errors import CheckpointError
from liveavatar.model.checkpoint_files import TensorFiles, load_into, open_tensor_files
from liveavatar.model.damage import first_bytes
from liveavatar.model.upload import upload

PAD_TOKEN_ID = 0
END_TOKEN_ID = 1
END_TOKEN = "</s>"
MAX_DISTANCE = 128

# Name of a part of one layer in transformers, to its name in the checkpoint.
_LAYER_NAMES = {
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.q": "attn.q",
    "layer.0.SelfAttention.k": "attn.k",
    "layer.0.SelfAttention.v": "attn.v",
    "layer.0.SelfAttention.o": "attn.o",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}
_OTHER_NAMES = {
    "shared.weight": "token_embedding.weight",
    "encoder.embed_tokens.weight": "token_embedding.weight",
    "encoder.final_layer_norm.weight": "norm.weight",
}


def stored_name(name: str) -> str:
    """Return the checkpoint's name of a parameter of `UMT5EncoderModel`.

    Source: names in Wan-Video/Wan2.2 wan/modules/t5.py at 42bf4cf.
    """
    layer = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)\.weight", name)
    if layer and layer[2] in _LAYER_NAMES:
        return f"blocks.{layer[1]}.{_LAYER_NAMES[layer[2]]}.weight"
    return _OTHER_NAMES.get(name, name)


def encoder_config(files: TensorFiles) -> UMT5Config:
    """Derive the size of the text encoder from the shapes in its checkpoint.

    Raises:
        CheckpointError: a tensor is missing or its shape cannot belong to a umT5 encoder.
    """
    vocabulary_size, width = _matrix_shape(files, "token_embedding.weight")
    attention_width, _ = _matrix_shape(files, "blocks.0.attn.q.weight")
    num_buckets, num_heads = _matrix_shape(files, "blocks.0.pos_embedding.embedding.weight")
    hidden_width, _ = _matrix_shape(files, "blocks.0.ffn.fc1.weight")
    if attention_width % num_heads:
        raise CheckpointError(
            f"{files.path}: attention width {attention_width} is not a multiple of the "
            f"{num_heads} heads of 'blocks.0.pos_embedding.embedding.weight'"
        )
    return UMT5Config(
        vocab_size=vocabulary_size,
        d_model=width,
        d_kv=attention_width // num_heads,
        d_ff=hidden_width,
        num_layers=_num_layers(files),
        num_heads=num_heads,
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=MAX_DISTANCE,
        dropout_rate=0.0,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
        pad_token_id=PAD_TOKEN_ID,
        eos_token_id=END_TOKEN_ID,
    )


def load_text_encoder(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> UMT5EncoderModel:
    """Load the umT5 encoder, tensor by tensor, in evaluation mode.

    Args:
        path: `models_t5_umt5-xxl-enc-bf16.pth`, or the same tensors in safetensors files.
        device: where it runs.
        dtype: of weights and arithmetic; None keeps what is stored (bfloat16 in the release).

    Raises:
        CheckpointError: the file is missing, damaged or not a umT5 encoder.
    """
    return build_text_encoder(open_tensor_files(path), device, dtype)


def build_text_encoder(
    files: TensorFiles,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> UMT5EncoderModel:
    """Build the encoder whose size the tensors tell; the rest as `load_text_encoder`."""
    with torch.device("meta"):
        encoder = UMT5EncoderModel(encoder_config(files))
    load_into(encoder, files, stored_name, device, dtype)
    return encoder.eval()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the umT5 tokenizer.

    Args:
        path: `tokenizer.json`, or the folder that holds it (`google/umt5-xxl`).

    Raises:
        CheckpointError: the file is missing, damaged or of another vocabulary.
    """
    path = Path(path)
    if path.is_dir() or path.name == "spiece.model":
        folder = path if path.is_dir() else path.parent
        path = folder / "tokenizer.json"
        if not path.exists() and (folder / "spiece.model").exists():
            raise CheckpointError(
                f"{path} is missing: {folder} has only spiece.model; fetch tokenizer.json of "
                "google/umt5-xxl into that folder"
            )
    first_bytes(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a bad file
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path} is not a tokenizer ({reason}): fetch tokenizer.json of google/umt5-xxl again"
        ) from error
    _check_end_token(path, tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def clean_prompt(prompt: str) -> str:
    """Repair mojibake, undo HTML escapes twice, strip, and turn runs of blanks into one.

    Source: Wan-Video/Wan2.2 wan/modules/tokenizers.py at 42bf4cf.
    """
    repaired = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(repaired.split())


def token_ids(tokenizer: Tokenizer, prompt: str, text_len: int) -> list[int]:
    """Return the ids of a prompt, always closed by the end token.

    Args:
        tokenizer: from `load_tokenizer`.
        prompt: as the user wrote it; cleaned here.
        text_len: most ids to return, the end token included; at least 1.

    Returns:
        Between 1 and `text_len` ids, without padding.
    """
    if text_len < 1:
        raise ValueError(f"text_len must be at least 1 for the end token, got {text_len}")
    ids = tokenizer.encode(clean_prompt(prompt), add_special_tokens=False).ids
    return [*ids[: text_len - 1], END_TOKEN_ID]


@torch.no_grad()
def encode_ids(encoder: UMT5EncoderModel, ids: list[int]) -> Tensor:
    """Encode one prompt.

    The tokens run without padding: padded keys would get a softmax weight of exactly zero, so the
    rows are those of a padded run, at the cost of the real tokens only.

    Args:
        encoder: from `load_text_encoder`.
        ids: from `token_ids`.

    Returns:
        embeddings_LD: one row per id, in the dtype and on the device of the encoder.

    Raises:
        CheckpointError: the tokenizer knows more tokens than the encoder.
    """
    embedding = encoder.get_input_embeddings().weight
    if max(ids) >= embedding.shape[0]:
        raise CheckpointError(
            f"the tokenizer gave token id {max(ids)} but the text encoder has "
            f"{embedding.shape[0]} tokens: tokenizer.json and the encoder do not belong together"
        )
    ids_BL = upload(torch.tensor([ids]), embedding.device)
    return encoder(input_ids=ids_BL).last_hidden_state[0]


def _matrix_shape(files: TensorFiles, name: str) -> tuple[int, int]:
    shape = files.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(
            f"{files.where(name)}: tensor '{name}' has shape {list(shape)}, expected a matrix"
        )
    return shape[0], shape[1]


def _num_layers(files: TensorFiles) -> int:
    found = {match[1] for name in files.names() if (match := re.match(r"blocks\.(\d+)\.", name))}
    # A gap in the numbers shows up as a missing tensor when the weights are read.
    return len(found)


def _check_end_token(path: Path, tokenizer: Tokenizer) -> None:
    known = tokenizer.token_to_id(END_TOKEN)
    if tokenizer.id_to_token(END_TOKEN_ID) is None or known not in (None, END_TOKEN_ID):
        raise CheckpointError(
            f"{path} is another tokenizer: expected the end token {END_TOKEN} at id "
            f"{END_TOKEN_ID}, found {'none' if known is None else f'id {known}'}"
        )
