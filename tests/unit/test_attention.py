"""Attention and its projections against their formulas in float64."""

import pytest
import torch
from torch import Tensor

from liveavatar.model.attention import CrossAttention, KeyValue, RMSNorm, SelfAttention, attend
from tests.unit.tiny import randomised, seeded

DIM, HEADS = 48, 4
# float32 sums of up to 48 products of numbers about 1.
ROUNDING = 1e-5


def softmax_attention(query_LNH: Tensor, key_KNH: Tensor, value_KNH: Tensor) -> Tensor:
    """(L, N*H) in float64, written out."""
    query, key, value = (part.double() for part in (query_LNH, key_KNH, value_KNH))
    scores = torch.einsum("lnh,knh->nlk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("nlk,knh->lnh", scores.softmax(dim=-1), value).flatten(1)


def heads(tokens: Tensor) -> Tensor:
    return tokens.reshape(len(tokens), HEADS, DIM // HEADS)


def rms(tokens: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    wide = tokens.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("num_keys", [1, 5, 70])
def test_attend_is_softmax_attention(num_keys: int) -> None:
    query = seeded(9, HEADS, 12)
    key, value = seeded(num_keys, HEADS, 12, seed=1), seeded(num_keys, HEADS, 12, seed=2)
    ours = attend(query, KeyValue(key, value))
    assert ours.shape == (9, HEADS * 12)
    assert torch.allclose(ours.double(), softmax_attention(query, key, value), atol=ROUNDING)


def test_attend_with_a_frame_axis_keeps_frames_apart() -> None:
    query = seeded(3, 9, HEADS, 12)
    key, value = seeded(3, 5, HEADS, 12, seed=1), seeded(3, 5, HEADS, 12, seed=2)
    ours = attend(query, KeyValue(key, value))
    for frame in range(3):
        expected = softmax_attention(query[frame], key[frame], value[frame])
        assert torch.allclose(ours[frame].double(), expected, atol=ROUNDING)


def test_attend_reads_views_of_a_larger_buffer() -> None:
    buffer = torch.full((20, HEADS, 12), float("nan"))
    buffer[3:10] = seeded(7, HEADS, 12)
    view = KeyValue(buffer[3:10], buffer[3:10])
    query = seeded(9, HEADS, 12, seed=1)
    copy = KeyValue(buffer[3:10].clone(), buffer[3:10].clone())
    assert torch.equal(attend(query, view), attend(query, copy))


def test_the_norm_runs_over_all_heads_together() -> None:
    norm = randomised(RMSNorm(DIM, 1e-6, torch.float32))
    tokens = seeded(7, DIM) * 3
    assert torch.allclose(norm(tokens).double(), rms(tokens, norm.weight), atol=1e-6)
    # A token is scaled by one number: heads with more energy stay larger.
    tokens[:, : DIM // HEADS] *= 10
    energy = heads(norm(tokens) / norm.weight).square().mean(-1)
    assert (energy[:, 0] > 4 * energy[:, 1:].amax(dim=1)).all()


def test_the_norm_keeps_a_zero_token_finite() -> None:
    norm = randomised(RMSNorm(DIM, 1e-6, torch.float32))
    assert torch.equal(norm(torch.zeros(2, DIM)), torch.zeros(2, DIM))


def test_the_norm_in_bfloat16_has_float32_statistics_and_rounds_before_the_weight() -> None:
    norm = randomised(RMSNorm(DIM, 1e-6, torch.bfloat16))
    tokens = seeded(7, DIM).bfloat16()
    wide = tokens.float()
    scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + 1e-6)
    assert norm(tokens).dtype == torch.bfloat16
    assert torch.equal(norm(tokens), scaled.bfloat16() * norm.weight)


def test_one_fused_matrix_gives_the_query_key_and_value_of_three() -> None:
    attention = randomised(SelfAttention(DIM, HEADS, 1e-6, torch.float32))
    tokens = seeded(9, DIM)
    query, kv = attention.split_heads(tokens)
    parts = zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
    q, k, v = (tokens.double() @ weight.double().T + bias.double() for weight, bias in parts)
    expected = rms(q, attention.norm_q.weight), rms(k, attention.norm_k.weight), v
    for ours, wanted in zip((query, kv.key_KNH, kv.value_KNH), expected, strict=True):
        assert ours.shape == (9, HEADS, DIM // HEADS)
        assert torch.allclose(ours.flatten(1).double(), wanted, atol=ROUNDING)


def test_cross_attention_normalises_query_and_key_and_projects_out() -> None:
    attention = randomised(CrossAttention(DIM, HEADS, 1e-6, torch.float32))
    tokens, context = seeded(9, DIM), seeded(6, DIM, seed=1)
    q, k, v = (
        source.double() @ weight.double().T + bias.double()
        for source, weight, bias in (
            (tokens, attention.q.weight, attention.q.bias),
            (context, attention.kv.weight[:DIM], attention.kv.bias[:DIM]),
            (context, attention.kv.weight[DIM:], attention.kv.bias[DIM:]),
        )
    )
    mixed = softmax_attention(
        heads(rms(q, attention.norm_q.weight)), heads(rms(k, attention.norm_k.weight)), heads(v)
    )
    expected = mixed @ attention.o.weight.double().T + attention.o.bias.double()
    ours = attention(tokens, attention.project_context(context))
    assert torch.allclose(ours.double(), expected, atol=ROUNDING)


def test_float32_context_of_a_bfloat16_attention_is_rounded_once() -> None:
    attention = randomised(CrossAttention(DIM, HEADS, 1e-6, torch.bfloat16))
    context = seeded(6, DIM)
    ours, rounded = (attention.project_context(c) for c in (context, context.bfloat16()))
    assert ours.key_KNH.dtype == ours.value_KNH.dtype == torch.bfloat16
    assert torch.equal(ours.key_KNH, rounded.key_KNH)
    assert torch.equal(ours.value_KNH, rounded.value_KNH)


@pytest.mark.parametrize("num_keys", [1, 5, 12])
def test_weights_of_what_keys_tell_are_the_attention_without_the_bias(num_keys: int) -> None:
    attention = randomised(CrossAttention(DIM, HEADS, 1e-6, torch.float32))
    tokens, context = seeded(3, 9, DIM), seeded(3, num_keys, DIM, seed=1)
    kv = attention.project_context(context)
    weights, told = attention.weigh(tokens, kv.key_KNH), attention.tell(kv.value_KNH)
    assert weights.shape == (3, 9, HEADS * num_keys)
    assert told.shape == (3, HEADS * num_keys, DIM)
    sums = weights.unflatten(-1, (HEADS, num_keys)).sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums), atol=ROUNDING)
    expected = attention(tokens, kv) - attention.o.bias
    assert torch.allclose(weights @ told, expected, atol=ROUNDING)


def test_more_keys_than_a_head_is_wide_cannot_be_weighed() -> None:
    attention = randomised(CrossAttention(DIM, HEADS, 1e-6, torch.float32))
    kv = attention.project_context(seeded(3, 13, DIM))
    with pytest.raises(ValueError, match="at most 12 keys, as a head is wide, got 13"):
        attention.weigh(seeded(3, 9, DIM), kv.key_KNH)
