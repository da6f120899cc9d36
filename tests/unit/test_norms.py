"""The form of a layer norm that a compiler gets is the same norm."""

import pytest
import torch
import torch.nn.functional as F

from liveavatar.model.norms import layer_norm
from liveavatar.model.transformer import Layer
from liveavatar.random_checkpoint import TINY
from tests.unit.tiny import randomised, seeded


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.parametrize("mean", [0.0, 1.0, 30.0])
@pytest.mark.usefixtures("compiling")
def test_the_variance_from_one_pass_is_that_of_two(mean: float) -> None:
    tokens = seeded(6, 5120) + mean
    expected = F.layer_norm(tokens.double(), (5120,), eps=1e-6)
    # Squares of 30 in float32 leave 900 * 2^-24 of a variance of 1.
    assert torch.allclose(layer_norm(tokens, 1e-6).double(), expected, atol=1e-5 + 1e-6 * mean**2)


@pytest.mark.usefixtures("compiling")
def test_rows_without_spread_stay_finite() -> None:
    assert layer_norm(torch.full((2, 5120), 3.7), 1e-6).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_come_in_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = seeded(4, 64).to(dtype)
    plain = layer_norm(tokens, 1e-6)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert plain.dtype == layer_norm(tokens, 1e-6).dtype == torch.float32
    assert torch.allclose(plain, layer_norm(tokens, 1e-6), atol=1e-5)


def test_the_norm_before_the_text_is_the_same_in_both_forms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, tokens = randomised(Layer(TINY, torch.float32, injects=False)), seeded(5, TINY.dim)
    plain = layer._norm3(tokens)
    assert torch.equal(plain, layer.norm3(tokens))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(layer._norm3(tokens), plain, atol=1e-5)
