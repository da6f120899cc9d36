"""Linear layers in e4m3: one scale per tensor, capped; close to bfloat16."""

import pytest
import torch
from torch import Tensor, nn

from liveavatar.model.fp8 import DTYPE, MAX, Fp8Linear, quantise
from tests.unit.tiny import randomised, seeded

# e4m3 has three bits behind the point: a value is off by at most 1/16 of itself, or, below its
# smallest normal number 2^-6, by half of 2^-9.
RELATIVE, ABSOLUTE = 1 / 16, 2.0**-10


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


@pytest.mark.parametrize("bias", [True, False])
def test_a_quantised_layer_is_close_to_the_layer(bias: bool) -> None:
    linear = randomised(nn.Linear(128, 96, bias=bias, dtype=torch.bfloat16))
    tokens = seeded(50, 128).bfloat16()
    ours = Fp8Linear(linear)(tokens)
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
    ours = Fp8Linear(linear)(tokens).double()
    # One rounding to bfloat16, and the scales' float32 product.
    assert ((ours - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5).all()


def test_leading_axes_are_kept_and_share_one_scale() -> None:
    layer = Fp8Linear(randomised(nn.Linear(32, 16, dtype=torch.bfloat16)))
    tokens = seeded(3, 5, 32).bfloat16()
    ours = layer(tokens)
    assert ours.shape == (3, 5, 16)
    assert torch.equal(ours.flatten(0, 1), layer(tokens.flatten(0, 1)))


def test_a_quantised_weight_takes_one_byte_per_number() -> None:
    layer = Fp8Linear(randomised(nn.Linear(32, 16, dtype=torch.bfloat16)))
    assert layer.weight.dtype == DTYPE
    assert layer.weight.element_size() == 1
    assert dict(layer.named_buffers()).keys() == {"weight", "weight_scale"}
