"""What is fused runs as written where compiling does not pay, and keeps its name."""

import torch
from torch import Tensor

from liveavatar.model.fusing import LEAST_VALUES, fused, fused_by_rows
from liveavatar.model.transformer import _gelu


@fused
def doubled(scale: float, tensor: Tensor) -> Tensor:
    """Say what it does."""
    return tensor * scale


def test_on_the_cpu_a_function_runs_as_written_and_passes_gradients() -> None:
    tensor = torch.ones(LEAST_VALUES, requires_grad=True)
    result = doubled(2.0, tensor)
    assert type(result.grad_fn).__name__ == "MulBackward0"
    assert float(result.detach()[0]) == 2.0


def test_a_fused_function_is_called_what_it_is() -> None:
    assert (doubled.__name__, doubled.__doc__) == ("doubled", "Say what it does.")


def test_functions_of_rows_are_fused_in_the_same_way() -> None:
    @fused_by_rows
    def halve_into(out: Tensor, tensor: Tensor) -> None:
        torch.mul(tensor, 0.5, out=out)

    out = torch.empty(2, 3)
    halve_into(out, torch.ones(2, 3))
    assert (out == 0.5).all()
    assert halve_into.__name__ == "halve_into"


def test_the_activation_a_compiler_is_given_is_the_one_that_runs_as_written() -> None:
    wide = torch.linspace(-30, 30, 60_001)
    compiled = torch.compile(_gelu, backend="eager")(wide)
    assert torch.allclose(compiled, _gelu(wide), rtol=0, atol=1e-6)
    assert not torch.equal(compiled, _gelu(wide)), "another form of it was compiled"
