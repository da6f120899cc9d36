"""Linear layers in e4m3: scales per row or one per tensor, as the reference; close to bfloat16."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from liveavatar.config import TransformerConfig
from liveavatar.model.attention import KeyValue
from liveavatar.model.fp8 import (
    DTYPE,
    MAX,
    Fp8Linear,
    Quantised,
    quantise,
    quantise_linears,
    quantise_rows,
)
from liveavatar.model.kv_cache import CacheKind
from liveavatar.model.rope import grid_positions, rotation_at
from liveavatar.model.transformer import ConditionEmbedder, Layer
from liveavatar.random_checkpoint import TINY
from liveavatar.single_device import Models, generate_latents
from tests.unit import tiny
from tests.unit.tiny import randomised, seeded

# e4m3 has three bits behind the point: a value is off by at most 1/16 of itself, or, below its
# smallest normal number 2^-6, by half of 2^-9.
RELATIVE, ABSOLUTE = 1 / 16, 2.0**-10


Rule = Callable[[Tensor], Quantised]


def restored(tensor: Tensor) -> Tensor:
    quantised = quantise(tensor)
    assert quantised.values.dtype == DTYPE
    assert quantised.values.shape == tensor.shape
    assert quantised.scale.shape == (1,)
    return quantised.values.float() * quantised.scale


@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0, 30.0, 1e4])
def test_values_come_back_within_the_steps_of_e4m3(size: float) -> None:
    tensor = seeded(64, 32) * size
    off = (restored(tensor) - tensor).abs()
    assert (off <= RELATIVE * tensor.abs() + ABSOLUTE * quantise(tensor).scale).all()


def test_the_multiplier_fills_the_range_and_is_capped_at_448() -> None:
    assert quantise(torch.tensor([[-3.5, 1.0]])).scale == 3.5 / MAX
    assert quantise(torch.tensor([[7.0, -896.0]])).scale == 2.0
    # Below a largest magnitude of 1 the cap holds.
    assert quantise(torch.tensor([[0.5, -0.25]])).scale == 1 / MAX
    assert quantise(torch.tensor([[-3.5, 1.0]])).values.float().abs().max() == MAX


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_stay_zeros_and_nothing_overflows(dtype: torch.dtype) -> None:
    assert not restored(torch.zeros(3, 4, dtype=dtype)).any()
    for largest in (1e-30, 1.0, 449.0, 3e38):
        tensor = torch.tensor([[largest, -largest, 0.0]], dtype=dtype)
        assert restored(tensor).isfinite().all()


def test_the_product_in_bfloat16_is_rounded_to_bfloat16_on_the_way() -> None:
    tensor = (seeded(32, 32) * 3).bfloat16()
    multiplier = min(MAX, MAX / float(tensor.float().abs().max()))
    expected = (tensor.float() * multiplier).bfloat16().clamp(-MAX, MAX).to(DTYPE)
    assert torch.equal(quantise(tensor).values.float(), expected.float())


@pytest.mark.parametrize("rule", [quantise, quantise_rows])
@pytest.mark.parametrize("bias", [True, False])
def test_a_quantised_layer_is_close_to_the_layer(bias: bool, rule: Rule) -> None:
    linear = randomised(nn.Linear(128, 96, bias=bias, dtype=torch.bfloat16))
    tokens = seeded(50, 128).bfloat16()
    ours = Fp8Linear(linear, rule)(tokens)
    exact = tokens.double() @ linear.weight.double().T
    if linear.bias is not None:
        exact = exact + linear.bias.double()
    assert ours.dtype == torch.bfloat16
    # Both factors are off by 1/16 at most, about 2.5 % in the mean square; errors of a sum of 128
    # products are unrelated, so the relative error of the sum is that of one product.
    assert (ours.double() - exact).norm() < 0.06 * exact.norm()


def test_a_quantised_layer_multiplies_the_quantised_numbers() -> None:
    linear = randomised(nn.Linear(32, 16, dtype=torch.bfloat16))
    tokens = seeded(6, 32).bfloat16()
    exact = restored(tokens).double() @ restored(linear.weight).double().T + linear.bias.double()
    ours = Fp8Linear(linear, quantise)(tokens).double()
    # One rounding to bfloat16, and the scales' float32 product.
    assert ((ours - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_fills_the_range_and_zeros_stay_zeros(dtype: torch.dtype) -> None:
    rows = seeded(5, 64).to(dtype) * torch.tensor([[1e-8], [1e-2], [1.0], [1e30], [0.0]])
    quantised = quantise_rows(rows)
    assert quantised.scale.shape == (5, 1)
    assert torch.equal(
        quantised.values.float().abs().amax(1), torch.tensor([MAX, MAX, MAX, MAX, 0.0])
    )
    off = (quantised.values.float() * quantised.scale - rows).abs()
    assert (off <= RELATIVE * rows.abs() + ABSOLUTE * quantised.scale).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_row_rounds_beyond_the_largest_value(dtype: torch.dtype) -> None:
    rows = (seeded(20_000, 4) * torch.logspace(-9, 9, 20_000)[:, None]).to(dtype)
    assert (quantise_rows(rows).values.float().abs().amax(1) == MAX).all()


def test_a_small_row_beside_a_large_one_is_rounded_as_if_it_were_alone() -> None:
    linear = randomised(nn.Linear(64, 32, bias=False, dtype=torch.bfloat16))
    tokens = seeded(2, 64).bfloat16() * torch.tensor([[1e-4], [1e4]], dtype=torch.bfloat16)
    layer = Fp8Linear(linear)
    assert torch.equal(layer(tokens)[:1], layer(tokens[:1]))
    exact = tokens.double() @ linear.weight.double().T
    small = slice(0, 1)
    by_row, by_tensor = (
        float((ours.double() - exact)[small].norm() / exact[small].norm())
        for ours in (layer(tokens), Fp8Linear(linear, quantise)(tokens))
    )
    assert by_row < 0.06 < by_tensor


def test_leading_axes_are_kept_and_share_one_scale() -> None:
    layer = Fp8Linear(randomised(nn.Linear(32, 16, dtype=torch.bfloat16)), quantise)
    tokens = seeded(3, 5, 32).bfloat16()
    ours = layer(tokens)
    assert ours.shape == (3, 5, 16)
    assert torch.equal(ours.flatten(0, 1), layer(tokens.flatten(0, 1)))


def test_a_quantised_weight_takes_one_byte_per_number() -> None:
    layer = Fp8Linear(randomised(nn.Linear(32, 16, dtype=torch.bfloat16)))
    assert layer.weight.dtype == DTYPE
    assert layer.weight.element_size() == 1
    assert dict(layer.named_buffers()).keys() == {"weight", "weight_scale"}


# --- Error budgets -------------------------------------------------------------------------------


def added(layer: Layer, hidden: Tensor, text: KeyValue) -> Tensor:
    """What a layer adds to condition tokens, float32."""
    modulation = 0.5 * seeded(6, hidden.shape[1], seed=5)
    rotation = rotation_at(grid_positions([3], [0], range(len(hidden))), 128)
    out, _ = layer.prefill(hidden, modulation, text, rotation)
    return out.float() - hidden.float()


@torch.no_grad()
def test_a_wide_layer_stays_within_its_budget() -> None:
    """Half the published width, random; each budget is of what the layer adds, against float32."""
    torch.manual_seed(0)
    config = TransformerConfig(dim=2560, ffn_dim=6912, num_heads=20)
    with torch.device("meta"):
        exact = Layer(config, torch.float32, injects=False)
        rounded = Layer(config, torch.bfloat16, injects=False)
    exact, rounded = exact.to_empty(device="cpu"), rounded.to_empty(device="cpu")
    for name, parameter in exact.named_parameters():
        if name.endswith("norm3.weight") or ".norm_" in name:
            parameter.data.fill_(1.0)
        elif parameter.ndim > 1:
            parameter.data.uniform_(-1, 1).mul_((3 / parameter.shape[1]) ** 0.5)
        else:
            parameter.data.zero_()
    rounded.load_state_dict(exact.state_dict())
    hidden, text = seeded(16, config.dim), tuple(seeded(8, 20, 128, seed=s) for s in (1, 2))
    wanted = added(exact, hidden, KeyValue(*text))
    del exact
    half = KeyValue(*(part.bfloat16() for part in text))
    off = added(rounded, hidden.bfloat16(), half) - wanted
    assert off.norm() < 0.01 * wanted.norm()
    quantise_linears(rounded)
    off = added(rounded, hidden.bfloat16(), half) - wanted
    assert 0.01 * wanted.norm() < off.norm() < 0.06 * wanted.norm()


def test_a_whole_video_in_fp8_and_8_bits_stays_within_its_budget() -> None:
    """Four random layers of width 64, three steps, over wrapping rings and the refresh."""
    work = tiny.job(6, window=2, steps=3)

    def latents(*, fp8: bool, cache_kind: CacheKind) -> Tensor:
        network = tiny.stage(range(4)).bfloat16()
        for layer in network.stack:
            layer.modulation.data = layer.modulation.data.float()
            if fp8:
                quantise_linears(layer)
        assert network.head is not None
        network.head.float()
        network.cache_kind = cache_kind
        embedder = ConditionEmbedder(TINY, torch.bfloat16)
        embedder.load_state_dict(tiny.embedder().state_dict())
        models = Models(network, embedder.requires_grad_(False), tiny.models().decoder)
        made = generate_latents(models, work.conditions, work.timeline, work.schedule, work.draws)
        return torch.cat(list(made), dim=1).float()

    exact = torch.cat(list(tiny.latents(work)), dim=1)
    cases: tuple[tuple[bool, CacheKind], ...] = (
        (False, "exact"), (False, "8-bit"), (False, "e4m3"),
        (True, "exact"), (True, "8-bit"), (True, "e4m3"),
    )  # fmt: skip
    errors = [
        float((latents(fp8=fp8, cache_kind=cache) - exact).norm() / exact.norm())
        for fp8, cache in cases
    ]
    budgets = (0.01, 0.01, 0.02, 0.06, 0.06, 0.08)
    assert all(error < budget for error, budget in zip(errors, budgets, strict=True)), errors
    assert min(errors[2:]) > max(errors[:2]), "e4m3 is coarser than bfloat16 and int8"


def test_a_product_is_the_layer_without_its_bias() -> None:
    linear = randomised(nn.Linear(32, 16))
    layer, tokens = Fp8Linear(linear), seeded(2, 5, 32)
    expected = layer(tokens).float() - linear.bias
    # Both are rounded to bfloat16, one of them with the bias in it.
    assert torch.allclose(layer.product(tokens).float(), expected, atol=0.04, rtol=0.01)
    assert not torch.allclose(layer.product(tokens).float(), layer(tokens).float(), atol=0.04)
