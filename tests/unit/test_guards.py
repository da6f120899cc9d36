"""What is done before memory ends, which video is made instead, and what waits for a store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from liveavatar.config import SamplingConfig
from liveavatar.engine.ladder import Ladder
from liveavatar.engine.memory_guard import MemoryGuard
from liveavatar.engine.messages import RankStatus
from liveavatar.plan.tiers import TIERS
from tests.unit.job_material import spec

MIB = 2**20
GIB = 2**30


def status(rank: int = 0, held: int = 0, used: int = 0, card: int = 0) -> RankStatus:
    device = f"cuda:{rank}" if card else "cpu"
    return RankStatus(
        rank=rank,
        role=f"stage {rank}",
        device=device,
        layers=(0, 1),
        memory_bytes=held,
        peak_bytes=held,
        memory_limit_bytes=0,
        busy_share=0.5,
        item="",
        card_used_bytes=used,
        card_bytes=card,
    )


@pytest.mark.parametrize(
    ("held", "used", "card", "short"),
    [
        (20_000 * MIB, 20_900 * MIB, 24 * GIB, False),
        (20_000 * MIB, 21_001 * MIB, 24 * GIB, True),
        (21_001 * MIB, 0, 24 * GIB, True),
        (60 * GIB, 68 * GIB, 80 * GIB, False),
        (60 * GIB, 69 * GIB, 80 * GIB, True),
        (60 * GIB, 0, 0, False),  # nothing limits a CPU unless it is set
    ],
)
def test_a_card_is_short_of_memory_above_its_share(
    held: int, used: int, card: int, short: bool
) -> None:
    guard = MemoryGuard()
    guard.heard(status(held=held, used=used, card=card))
    assert (guard.complaint is not None) == short


def test_a_threshold_can_be_set_and_the_complaint_ends_with_the_shortage() -> None:
    guard = MemoryGuard(100 * MIB)
    guard.heard(status(0, held=99 * MIB))
    assert guard.complaint is None
    guard.heard(status(1, held=101 * MIB))
    assert guard.complaint == (
        "memory is short, rank (stage 1) holds 101 MB, 100 MB are the threshold"
    )
    guard.heard(status(1, held=50 * MIB))
    assert guard.complaint is None
    guard.heard(status(1, held=101 * MIB))
    guard.forget()
    assert guard.complaint is None


def test_the_ladder_goes_down_one_step_at_a_time_and_keeps_length_and_seed() -> None:
    ladder = Ladder(TIERS)
    asked = replace(
        spec(),
        tier="high",
        width=384,
        height=704,
        total_frames=900,
        sampling=SamplingConfig(num_clip=20, seed=77),
    )
    seen = [asked]
    while (lower := ladder.below(seen[-1], "out of memory")) is not None:
        assert lower.width * lower.height < seen[-1].width * seen[-1].height
        assert (lower.total_frames, lower.sampling.seed) == (900, 77)
        assert lower.sampling.num_clip * lower.sampling.infer_frames >= 900
        assert lower.notes[-1].code == "tier_lowered"
        assert lower.notes[-1].message.endswith(": out of memory.")
        seen.append(lower)
    assert [step.tier for step in seen] == ["high", "balanced", "fast"]
    assert Ladder().below(asked, "out of memory") is None
