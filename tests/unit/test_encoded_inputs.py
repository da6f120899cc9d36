"""What is kept of encoded inputs, what leaves first, and when two inputs are one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from liveavatar.encoded_inputs import EncodedInputs, digest_of

CPU = "cpu"


def values(number: int, count: int = 25) -> Tensor:
    """100 bytes by default."""
    return torch.full((count,), float(number))


def test_what_was_used_longest_ago_leaves_first() -> None:
    lately = EncodedInputs(300)
    for number in range(3):
        lately.keep(bytes([number]), values(number))
    assert lately.recall(b"\0", CPU) is not None
    lately.keep(b"\3", values(3))
    assert [bytes([number]) in lately for number in range(4)] == [True, False, True, True]
    assert lately.recall(b"\1", CPU) is None
    found = lately.recall(b"\3", CPU)
    assert found is not None
    assert torch.equal(found, values(3))
    assert lately.num_bytes == 300


def test_an_entry_larger_than_the_limit_drives_nothing_out() -> None:
    lately = EncodedInputs(300)
    lately.keep(b"small", values(1))
    lately.keep(b"large", values(2, 76))
    assert (b"small" in lately, b"large" in lately) == (True, False)
    lately.keep(b"just", values(2, 75))
    assert (b"small" in lately, b"just" in lately) == (False, True)
    assert lately.num_bytes == 300


def test_keeping_twice_counts_once() -> None:
    lately = EncodedInputs(300)
    lately.keep(b"a", values(1))
    lately.keep(b"a", values(1))
    assert lately.num_bytes == 100


def test_without_a_limit_nothing_is_kept() -> None:
    lately = EncodedInputs()
    lately.keep(b"a", values(1))
    assert b"a" not in lately


@pytest.mark.parametrize(
    "other",
    [
        digest_of("picture", np.zeros((2, 3), np.uint8)),
        digest_of("sound", np.zeros((3, 2), np.uint8)),
        digest_of("sound", np.zeros((2, 3), np.int8)),
        digest_of("sound", np.zeros((2, 3), np.uint8), np.zeros(0, np.uint8)),
        digest_of("sound", np.eye(2, 3, dtype=np.uint8)),
    ],
    ids=["kind", "shape", "dtype", "parts", "values"],
)
def test_inputs_that_differ_have_other_digests(other: bytes) -> None:
    assert digest_of("sound", np.zeros((2, 3), np.uint8)) != other


def test_the_order_in_memory_makes_no_difference() -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest_of("sound", numbers) == digest_of("sound", np.asfortranarray(numbers))
