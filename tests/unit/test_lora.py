"""The adapter: names it may have, what is refused, what the merge is, which weights it changes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from liveavatar.config import TransformerConfig
from liveavatar.errors import CheckpointError
from liveavatar.model.lora import (
    FILE_NAME,
    PREFIX,
    SCALE,
    Adapter,
    adapter_targets,
    merge,
    open_adapter,
)
from liveavatar.model.weights import network_shapes
from liveavatar.random_checkpoint import TINY
from tests.unit.tiny import MemoryFiles, seeded

TARGETS = ("blocks.0.self_attn.q", "blocks.0.ffn.0")
SHAPES = {"blocks.0.self_attn.q": (24, 16), "blocks.0.ffn.0": (40, 16)}
RANK = 4


def pairs() -> dict[str, Tensor]:
    tensors = {}
    for index, target in enumerate(TARGETS):
        rows, columns = SHAPES[target]
        tensors[f"{target}.lora_A.default.weight"] = seeded(RANK, columns, seed=2 * index)
        tensors[f"{target}.lora_B.default.weight"] = seeded(rows, RANK, seed=2 * index + 1)
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def plain(name: str) -> str:
    return name.replace(".default.", ".")


def prefixed(name: str) -> str:
    return PREFIX + name


def refusal(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(CheckpointError) as caught:
        Adapter(MemoryFiles(tensors, Path("some.safetensors")), TARGETS)
    message = str(caught.value)
    assert "\n" not in message
    assert "some.safetensors" in message
    return message


@pytest.mark.parametrize(
    "spell",
    [
        lambda _, name: name,
        lambda _, name: plain(name),
        lambda _, name: prefixed(name),
        lambda _, name: prefixed(plain(name)),
        lambda index, name: (str, plain, prefixed, lambda n: prefixed(plain(n)))[index](name),
    ],
    ids=["default", "plain", "prefix+default", "prefix+plain", "mixed"],
)
def test_names_may_have_the_prefix_and_the_default_part_or_not(spell: object) -> None:
    assert callable(spell)
    expected = Adapter(MemoryFiles(pairs()), TARGETS)
    renamed = {spell(index, name): tensor for index, (name, tensor) in enumerate(pairs().items())}
    adapter = Adapter(MemoryFiles(renamed), TARGETS)
    for target in TARGETS:
        weight = seeded(*SHAPES[target], seed=9)
        merged = adapter.apply(f"{target}.weight", weight)
        assert torch.equal(merged, expected.apply(f"{target}.weight", weight))
        assert not torch.equal(merged, weight)


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_missing_half_of_a_pair_is_named(side: str) -> None:
    tensors = pairs()
    del tensors[f"{TARGETS[1]}.lora_{side}.default.weight"]
    message = refusal(tensors)
    assert f"1 keys are missing (first: {TARGETS[1]}.lora_{side}.weight)" in message
    assert "0 are unexpected (first: none)" in message


def test_the_first_of_several_missing_and_unexpected_keys_is_named_as_it_is_stored() -> None:
    tensors = {f"other.{name}": tensor for name, tensor in pairs().items()}
    message = refusal(tensors)
    assert f"4 keys are missing (first: {TARGETS[0]}.lora_A.weight)" in message
    assert f"4 are unexpected (first: other.{TARGETS[1]}.lora_A.default.weight)" in message


def test_an_extra_key_is_named() -> None:
    message = refusal({**pairs(), "blocks.0.norm3.weight": seeded(16)})
    assert "0 keys are missing (first: none)" in message
    assert "1 are unexpected (first: blocks.0.norm3.weight)" in message


@pytest.mark.parametrize(
    ("side", "shape"),
    [("A", (RANK, 15)), ("A", (RANK + 1, 16)), ("B", (23, RANK)), ("B", (24, RANK + 2))],
)
def test_factors_that_do_not_fit_the_weight_are_one_line_that_names_them(
    side: str, shape: tuple[int, int]
) -> None:
    name = f"{TARGETS[0]}.lora_{side}.default.weight"
    adapter = Adapter(MemoryFiles({**pairs(), name: torch.zeros(shape)}), TARGETS)
    with pytest.raises(CheckpointError, match=r"\A[^\n]*do not fit[^\n]*\Z") as caught:
        adapter.apply(f"{TARGETS[0]}.weight", torch.zeros(24, 16))
    for part in (name, str(list(shape)), f"{TARGETS[0]}.weight", "[24, 16]"):
        assert part in str(caught.value)


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_factor_that_is_no_matrix_is_one_line(side: str) -> None:
    name = f"{TARGETS[0]}.lora_{side}.default.weight"
    adapter = Adapter(MemoryFiles({**pairs(), name: torch.zeros(RANK)}), TARGETS)
    with pytest.raises(CheckpointError, match=r"\A[^\n]+\Z"):
        adapter.apply(f"{TARGETS[0]}.weight", torch.zeros(24, 16))


def test_a_pair_stored_under_two_spellings_is_refused() -> None:
    name = f"{TARGETS[0]}.lora_A.default.weight"
    assert name in refusal({**pairs(), prefixed(name): torch.zeros(RANK, 16)})


def test_only_weights_of_targets_are_changed() -> None:
    adapter = Adapter(MemoryFiles(pairs()), TARGETS)
    for name in (f"{TARGETS[0]}.bias", "blocks.0.self_attn.k.weight", "head.head.weight", "x"):
        weight = seeded(24, 16)
        assert adapter.apply(name, weight) is weight


def test_an_adapter_merges_its_own_pair_at_its_own_scale() -> None:
    weight, tensors = seeded(24, 16, seed=9), pairs()
    down, up = (tensors[f"{TARGETS[0]}.lora_{side}.default.weight"].float() for side in "AB")
    released = Adapter(MemoryFiles(tensors), TARGETS)
    assert torch.equal(released.apply(f"{TARGETS[0]}.weight", weight), merge(weight, down, up, 0.5))
    other = Adapter(MemoryFiles(tensors), TARGETS, scale=0.25)
    assert torch.equal(other.apply(f"{TARGETS[0]}.weight", weight), merge(weight, down, up, 0.25))


def test_nothing_is_read_before_it_is_asked_for() -> None:
    files = MemoryFiles(pairs())
    adapter = Adapter(files, TARGETS)
    assert files.reads == []
    adapter.apply(f"{TARGETS[0]}.weight", seeded(24, 16))
    assert sorted(files.reads) == sorted(n for n in files.tensors if n.startswith(TARGETS[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_merge_is_the_formula_within_one_rounding(dtype: torch.dtype) -> None:
    weight = seeded(48, 32).to(dtype)
    down, up = seeded(RANK, 32, seed=1).bfloat16(), seeded(48, RANK, seed=2).bfloat16()
    exact = weight.double() + 0.5 * up.double() @ down.double()
    merged = merge(weight, down, up)
    assert merged.dtype == dtype
    # Half a unit in the last place is the final rounding; the float32 sum of five numbers below 20
    # adds 1e-6 absolute at most.
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 5e-6
    assert ((merged.double() - exact).abs() <= bound).all()


def test_the_scale_of_the_release_is_one_half() -> None:
    assert SCALE == 0.5
    merged = merge(torch.zeros(1, 1), torch.tensor([[2.0]]), torch.tensor([[3.0]]))
    assert merged == 3.0


def test_the_14b_network_has_448_targets_all_of_them_linear() -> None:
    config = TransformerConfig()
    targets = adapter_targets(config)
    assert len(targets) == len(set(targets)) == 448
    shapes = network_shapes(config)
    leaves = {target.rpartition(".")[2] for target in targets}
    assert leaves == {"q", "k", "v", "o", "0", "2"}
    expected = {
        name.removesuffix(".weight")
        for name in shapes
        if name.endswith((".q.weight", ".k.weight", ".v.weight", ".o.weight"))
        or name.endswith((".ffn.0.weight", ".ffn.2.weight"))
    }
    assert set(targets) == expected


def test_the_adapter_file_or_its_folder_is_opened(tmp_path: Path) -> None:
    tensors = {}
    shapes = network_shapes(TINY)
    for target in adapter_targets(TINY):
        rows, columns = shapes[f"{target}.weight"]
        tensors[f"{target}.lora_A.weight"] = torch.zeros(1, columns)
        tensors[f"{target}.lora_B.weight"] = torch.zeros(rows, 1)
    save_file(tensors, tmp_path / FILE_NAME)
    save_file({"x": torch.zeros(1)}, tmp_path / "another.safetensors")
    for path in (tmp_path, tmp_path / FILE_NAME):
        assert open_adapter(path, TINY).files.path == tmp_path / FILE_NAME


def test_no_adapter_is_one_line_that_names_the_path_and_the_option(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\A[^\n]*absent[^\n]*lora_path_dmd[^\n]*\Z"):
        open_adapter(tmp_path / "absent", TINY)
    with pytest.raises(CheckpointError, match=r"\A[^\n]+\Z"):
        open_adapter(tmp_path, TINY)


def test_an_adapter_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file({k: v.float() for k, v in pairs().items()}, tmp_path / FILE_NAME)
    with pytest.raises(CheckpointError, match=r"expected 48 adapter pairs"):
        open_adapter(tmp_path, TINY)
