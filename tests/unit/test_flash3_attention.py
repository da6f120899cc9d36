"""FlashAttention-3: where it is found, how queries are shared out, what it is given and gives.

The package's operator needs a Hopper GPU. Without one a stand-in does what the operator is
documented to do, so that the layouts, the calls and the scales can be followed.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from liveavatar.model import attention_backend
from liveavatar.model.attention import KeyValue, attend
from liveavatar.model.attention_backend import (
    AttentionShape,
    attend_window,
    candidates,
    fastest_backend,
    measured_ms,
    preferring,
    time_each,
)
from liveavatar.model.flash3_attention import Flash3, cut_queries, flash3_on
from liveavatar.model.fp8 import ATTENDED_SCALE
from liveavatar.model.fp8 import DTYPE as E4M3
from tests.unit.tiny import seeded

CUDA = torch.device("cuda")
HOPPER, BLACKWELL = (9, 0), (10, 0)
PROCESSORS = 132


def reference(query_LNH: Tensor, kv: KeyValue) -> Tensor:
    """Attention in float32, (L, N*H)."""
    query, key, value = (
        tokens.float().transpose(0, 1)[None] for tokens in (query_LNH, kv.key_KNH, kv.value_KNH)
    )
    return F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)


def off_by(result: Tensor, right: Tensor) -> float:
    return float((result.float() - right).norm() / right.norm())


@dataclass
class Operator:
    """Does what `torch.ops.fa3_fwd.fwd` does with these arguments, and remembers its calls."""

    calls: list[tuple[Tensor, Tensor, Tensor, int]] = field(default_factory=list)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        out: Tensor,
        v_descale: Tensor | None,
        softmax_scale: float,
        num_splits: int,
    ) -> tuple[Tensor, ...]:
        assert out.shape == q.shape
        assert out.dtype == torch.bfloat16
        assert softmax_scale == q.shape[-1] ** -0.5
        self.calls.append((q, k, v, num_splits))
        attended = reference(q[0], KeyValue(k[0], v[0])).view(q.shape)
        if v_descale is not None:
            assert v_descale.shape == (1, k.shape[2])
            attended = attended * v_descale[..., None]
        out.copy_(attended)
        return (out,)


def flash3(processors: int = PROCESSORS) -> tuple[Flash3, Operator]:
    operator = Operator()
    return Flash3(operator, processors), operator


# --- How queries are shared out ------------------------------------------------------------------


def test_the_nearly_empty_last_tiles_of_the_literal_size_share_out_the_keys() -> None:
    calls = cut_queries(2967, 40, PROCESSORS)
    assert [(c.queries.start, c.queries.stop, c.parts) for c in calls] == [
        (0, 2944, 1), (2944, 2967, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("queries", [2880, 1152])
def test_sizes_whose_rounds_are_full_are_one_call(queries: int) -> None:
    assert len(cut_queries(queries, 40, PROCESSORS)) == 1


@pytest.mark.parametrize("heads", [1, 5, 10, 20, 40])
def test_every_query_is_in_one_call_and_the_first_takes_whole_tiles(heads: int) -> None:
    cut = 0
    for queries in range(1, 3200, 37):
        calls = cut_queries(queries, heads, PROCESSORS)
        rows = [row for c in calls for row in range(c.queries.start, c.queries.stop)]
        assert rows == list(range(queries))
        assert calls[0].parts == 1
        if len(calls) == 2:
            cut += 1
            assert calls[0].queries.stop % 128 == 0
            tiles = -(-queries // 128)
            front, parts = calls[0].queries.stop // 128, calls[1].parts
            rounds = -(-front * heads // PROCESSORS)
            rounds += -(-(tiles - front) * heads * parts // PROCESSORS) / parts
            assert rounds < -(-tiles * heads // PROCESSORS)
        else:
            assert len(calls) == 1
    assert cut or heads < 20


# --- What the operator is given, and what comes back ---------------------------------------------


@pytest.mark.parametrize("cut", [False, True])
def test_tokens_are_read_where_the_cache_has_them(cut: bool) -> None:
    kernel, operator = flash3(processors=8)
    rings = seeded(2, 50, 6, 16).bfloat16()
    key, value = rings[1, :40, :4], rings[0, :40, :4]
    query = seeded(300, 4, 16, seed=1).bfloat16()
    result = kernel.attend(query, key, value, cut=cut)
    assert len(operator.calls) == (2 if cut else 1)
    seen = 0
    for given, keys, values, parts in operator.calls:
        assert parts == (1 if seen == 0 else kernel.calls(300, 4, cut=True)[1].parts)
        assert given.data_ptr() == query[seen:].data_ptr()
        assert (keys.data_ptr(), values.data_ptr()) == (key.data_ptr(), value.data_ptr())
        assert keys.shape == (1, 40, 4, 16)
        seen += given.shape[1]
    assert seen == 300
    assert (result.shape, result.dtype) == ((300, 64), torch.bfloat16)
    assert off_by(result, reference(query, KeyValue(key, value))) < 2**-8


def test_what_comes_from_e4m3_is_scaled_and_rounded_like_the_other_kernel() -> None:
    kernel, _ = flash3()
    query, key, value = (seeded(30, 4, 16, seed=seed).to(E4M3) for seed in range(3))
    result = kernel.attend(query, key, value, cut=False)
    right = attend(query, KeyValue(key, value))
    assert result.dtype == right.dtype == E4M3
    assert result.shape == right.shape
    # Rounding to bfloat16 first moves what lies near the middle between two values of e4m3.
    same = (result.float() == right.float()).float().mean()
    assert same > 0.9
    assert off_by(result, ATTENDED_SCALE * reference(query, KeyValue(key, value))) < 0.04


# --- Where it is found ---------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The code of an installed package's extension, to be written, beside a GPU like Hopper's."""
    (tmp_path / "fa3_fwd").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("fa3_fwd", "fa3_fwd._C"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    a_card(monkeypatch, HOPPER)
    flash3_on.cache_clear()
    yield tmp_path / "fa3_fwd" / "_C.py"
    flash3_on.cache_clear()
    for name in ("fa3_fwd", "fa3_fwd._C"):
        sys.modules.pop(name, None)


def a_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    properties = SimpleNamespace(multi_processor_count=PROCESSORS)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_installed_package_is_a_candidate_on_hopper(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.write_text("loaded = True\n")
    operator = Operator()
    monkeypatch.setattr(torch.ops, "fa3_fwd", SimpleNamespace(fwd=operator), raising=False)
    assert flash3_on(CUDA) == Flash3(operator, PROCESSORS)
    of_torch = ["cudnn", "flash", "efficient"]
    literal, even = (AttentionShape(queries, 1000, 40, 128) for queries in (2967, 2880))
    assert candidates(CUDA, torch.bfloat16, literal) == [*of_torch, "flash3", "flash3-cut"]
    assert candidates(CUDA, torch.bfloat16, even) == [*of_torch, "flash3"]
    assert candidates(CUDA, torch.float16, even) == of_torch
    assert candidates(torch.device("cpu"), torch.bfloat16, even) == []


def test_it_is_a_candidate_for_e4m3_where_cudnn_has_none(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.write_text("loaded = True\n")
    monkeypatch.setattr(torch.ops, "fa3_fwd", SimpleNamespace(fwd=Operator()), raising=False)
    monkeypatch.setitem(sys.modules, "cudnn", None)
    assert candidates(CUDA, E4M3, AttentionShape(7, 11, 3, 16)) == ["flash3"]


def test_without_the_package_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a_card(monkeypatch, HOPPER)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    flash3_on.cache_clear()
    assert flash3_on(CUDA) is None
    flash3_on.cache_clear()
    assert warnings_in(caplog) == []


def test_on_another_kind_of_card_the_package_is_not_even_imported(
    package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package.write_text("raise SystemExit('no code for this card')\n")
    a_card(monkeypatch, BLACKWELL)
    assert flash3_on(CUDA) is None
    assert warnings_in(caplog) == []


def test_a_package_that_cannot_be_loaded_is_left_out_with_one_line(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package.write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    for _ in range(3):
        assert flash3_on(CUDA) is None
    assert warnings_in(caplog) == [
        "FlashAttention-3 is installed but left out: "
        "libcudart.so.13: cannot open shared object file"
    ]


def test_a_refusal_leaves_the_others_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def milliseconds_of(name: str) -> float:
        if name in ("flash3", "flash"):
            raise RuntimeError(f"{name} does not take this width\nand a long trace")
        return {"cudnn": 2.0, "efficient": 4.0}[name]

    assert time_each(["cudnn", "flash", "efficient", "flash3"], milliseconds_of) == {
        "cudnn": 2.0, "efficient": 4.0
    }  # fmt: skip
    assert warnings_in(caplog) == [
        "attention by flash3 is left out: flash3 does not take this width"
    ]


def test_where_e4m3_is_refused_the_fastest_in_bfloat16_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def milliseconds_of(query: Tensor, _: KeyValue, name: str) -> float:
        if query.dtype == E4M3:
            raise RuntimeError(f"{name} does not take this width")
        return {"cudnn": 2.0, "flash": 1.0}[name]

    def names_for(_: torch.device, dtype: torch.dtype, __: AttentionShape) -> list[str]:
        return ["flash3"] if dtype == E4M3 else ["cudnn", "flash"]

    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *sizes, device: randn(*sizes))  # noqa: ARG005
    monkeypatch.setattr(attention_backend, "candidates", names_for)
    monkeypatch.setattr(attention_backend, "attention_ms", milliseconds_of)
    measured_ms.cache_clear()
    assert fastest_backend(CUDA, E4M3, AttentionShape(7, 11, 3, 16)) == "flash"
    measured_ms.cache_clear()


def test_a_name_that_cannot_be_had_falls_back_to_torch() -> None:
    query, key, value = (seeded(9, 2, 16, seed=seed).bfloat16() for seed in range(3))
    with preferring("flash3-cut"):
        result = attend_window(query, KeyValue(key, value))
    assert torch.equal(result, attend(query, KeyValue(key, value)))


# --- On a Hopper GPU -----------------------------------------------------------------------------

_installed = importlib.util.find_spec("fa3_fwd") is not None
on_hopper = pytest.mark.skipif(
    not (torch.cuda.is_available() or os.environ.get("REQUIRE_GPUS")), reason="no CUDA device"
)
with_package = pytest.mark.skipif(not _installed, reason="the optional package fa3-fwd is missing")


def in_caches(heads: int, dtype: torch.dtype) -> tuple[Tensor, KeyValue]:
    """Queries, and keys and values as views of wider buffers, as caches have them."""
    query = seeded(2967, heads, 128).to(CUDA, dtype)
    rings = seeded(2, 5000, heads + 2, 128, seed=1).to(CUDA, dtype)
    return query, KeyValue(rings[0, :4321, :heads], rings[1, :4321, :heads])


@torch.no_grad()
@pytest.mark.gpu
@on_hopper
@with_package
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.006), (E4M3, 0.06)])
def test_on_hopper_attention_is_near_float32(dtype: torch.dtype, most: float, cut: bool) -> None:
    found = flash3_on(CUDA)
    assert found is not None
    heads = 8
    query, kv = in_caches(heads, dtype)
    kernel = replace(found, num_processors=62) if cut else found
    assert len(kernel.calls(len(query), heads, cut=cut)) == (2 if cut else 1)
    result = kernel.attend(query, kv.key_KNH, kv.value_KNH, cut=cut).float()
    if dtype == E4M3:
        result = result / ATTENDED_SCALE
    right = reference(query, kv)
    assert off_by(result, right) < most
    # The last rows are the second call's.
    assert off_by(result[-23:], right[-23:]) < most


@torch.no_grad()
@pytest.mark.gpu
@on_hopper
@with_package
@pytest.mark.parametrize("name", ["flash3", "flash3-cut"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, E4M3])
def test_on_hopper_a_replayed_attention_has_the_bits_of_one_by_hand(
    name: str, dtype: torch.dtype
) -> None:
    query, kv = in_caches(40, dtype)
    other = query.flip(0).contiguous()
    with preferring(name):
        by_hand = [attend_window(one, kv).float() for one in (query, other)]
        given, recording = query.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(recording):
            result = attend_window(given, kv)
    for one, right in zip((query, other), by_hand, strict=True):
        given.copy_(one)
        recording.replay()
        assert torch.equal(result.float(), right)
    assert not torch.equal(by_hand[0], by_hand[1])


@pytest.mark.gpu
@on_hopper
@with_package
def test_on_hopper_what_needs_gradients_is_left_to_torch() -> None:
    query, kv = in_caches(2, torch.bfloat16)
    query.requires_grad_()
    with preferring("flash3"):
        attend_window(query, kv).float().square().mean().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()
    assert query.grad.any()
