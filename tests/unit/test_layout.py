"""Where ranks go: one card each, the media rank beside the last stage if it must, cores shared."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from liveavatar.config import SamplingConfig, visible_gpus
from liveavatar.engine.fake import FakeGroup
from liveavatar.engine.layout import choose_layout, group_spec
from liveavatar.engine.machine import detect_machine, narrowed
from liveavatar.engine.messages import Transport
from liveavatar.engine.served_model import Served, _plan_for
from liveavatar.errors import ConfigError
from liveavatar.jobs.ability import EVERYTHING, Ability
from liveavatar.media.portrait import fit_size
from liveavatar.plan.layout import CUDA_CONTEXT_BYTES, GIB, Machine, plan_layout
from liveavatar.plan.several import Video, largest_plan
from liveavatar.plan.shapes import Network
from liveavatar.plan.tiers import TIERS
from liveavatar.plan.transport_memory import transport_bytes

DEMO = Path(__file__).resolve().parents[2] / "ckpt/demo"
CARD = int(22.15 * GIB)
BALANCED = Video((640, 384), SamplingConfig(num_clip=50))
SMALL = Video((256, 384), SamplingConfig(num_clip=10))
TIER_VIDEOS = [(fit_size((1920, 1080), tier.size.area), tier.sampling) for tier in TIERS]


def test_three_stages_and_a_media_rank_take_a_card_each() -> None:
    spec = group_spec(Path(), None, largest_plan(Network(), [BALANCED], Machine(4, CARD)))
    assert spec.devices == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    assert [len(layers) for layers in spec.stages] == [13, 14, 13]
    assert spec.warm_up_hw == (640, 384)
    assert all(bytes_ > 9 * GIB for bytes_ in spec.weight_bytes)
    stage = CARD - CUDA_CONTEXT_BYTES - transport_bytes(1, 1)
    assert spec.memory_limits == (stage, stage, stage, CARD - CUDA_CONTEXT_BYTES)


def test_ranks_that_share_a_card_share_its_memory_by_what_they_need() -> None:
    large = Machine(1, 100 * GIB)
    spec = group_spec(Path(), None, largest_plan(Network(), [BALANCED], large))
    assert spec.devices == ("cuda:0", "cuda:0")
    assert sum(spec.memory_limits) <= 100 * GIB - 2 * CUDA_CONTEXT_BYTES
    assert spec.memory_limits[0] > spec.memory_limits[1]


def test_a_second_job_waits_where_its_caches_would_not_fit() -> None:
    tight = group_spec(Path(), None, largest_plan(Network(), [BALANCED], Machine(4, CARD)))
    roomy = group_spec(Path(), None, largest_plan(Network(), [BALANCED], Machine(4, 80 * GIB)))
    assert (tight.jobs_at_once, roomy.jobs_at_once) == (1, 2)


def test_the_largest_video_that_fits_sets_the_layout() -> None:
    assert largest_plan(Network(), [SMALL, BALANCED], Machine(4, CARD)).size_hw == (640, 384)


@pytest.mark.parametrize(
    "machine",
    [
        Machine(gpus, int(gib * GIB))
        for gpus, gib in ((1, 40), (1, 94), (2, 24), (2, 48), (2, 80), (3, 24), (4, 24), (5, 22.15))
    ],
    ids=lambda machine: f"{machine.num_gpus} x {machine.memory_bytes // GIB} GiB",
)
def test_a_group_runs_in_a_precision_in_which_all_that_fits_at_all_fits(machine: Machine) -> None:
    """A small video may fit in more bits, and then take more bytes than a large one in fewer."""
    plan = served_on(machine).planner(TIERS)
    assert plan is not None
    alone = [plan_layout(Network(), *video, machine) for video in TIER_VIDEOS]
    together = [plan(*video) for video in TIER_VIDEOS]
    assert [each.fits for each in together] == [each.fits for each in alone]
    group = largest_plan(Network(), [Video(*video) for video in TIER_VIDEOS], machine)
    assert {group.precision} == {each.precision for each in together}
    assert group.chosen.largest == max(each.chosen.largest for each in together if each.fits)
    assert group.jobs_at_once == min(each.jobs_at_once for each in together if each.fits)


def test_a_tier_is_told_to_take_what_it_takes_in_the_group_of_all_tiers() -> None:
    machine = Machine(4, CARD)
    plan, (fast, *_) = served_on(machine).planner(TIERS), TIER_VIDEOS
    assert plan is not None
    assert str(plan_layout(Network(), *fast, machine).precision) == "bfloat16 weights and K/V"
    assert "with bfloat16 weights, 8-bit K/V" in plan(*fast).verdict


@pytest.mark.parametrize(
    ("machine", "size_hw"), [(Machine(0, CARD), (64, 128)), (Machine(2, CARD), (192, 192))]
)
def test_a_cpu_warms_up_with_the_quickest_video_and_cards_with_the_largest(
    machine: Machine, size_hw: tuple[int, int]
) -> None:
    videos = [Video(size_hw, SamplingConfig()) for size_hw in ((128, 128), (64, 128), (192, 192))]
    assert choose_layout(DEMO, None, videos, machine).warm_up_hw == size_hw


def served_on(machine: Machine) -> Served:
    plan_for = partial(_plan_for, Network(), machine)
    return Served("14B", False, False, lambda _: FakeGroup(), plan_for)


def test_a_machine_takes_the_tiers_that_fit_it() -> None:
    def ability(machine: Machine) -> Ability:
        return served_on(machine).ability(TIERS)

    assert ability(Machine(4, CARD)) == EVERYTHING
    assert ability(Machine(4, 17 * GIB)) == Ability(frozenset({"fast"}))


def test_a_video_that_does_not_fit_is_refused_with_what_is_short() -> None:
    with pytest.raises(ConfigError, match=r"^384\*640 does not fit: .*rank"):
        largest_plan(Network(), [BALANCED], Machine(1, CARD))


@pytest.mark.parametrize(
    ("stages", "own_media", "num_gpus", "devices"),
    [(3, True, 4, (0, 1, 2, 3)), (3, False, 3, (0, 1, 2, 2)), (1, False, 1, (0, 0))],
)
def test_a_command_takes_as_many_cards_as_it_says(
    stages: int, own_media: bool, num_gpus: int, devices: tuple[int, ...]
) -> None:
    taken = narrowed(Machine(4, CARD), stages, own_media=own_media)
    assert (taken.num_gpus, taken.num_stages, taken.devices) == (num_gpus, stages, devices)


def test_more_ranks_than_cards_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 ranks need as many GPUs, 4 are visible"):
        narrowed(Machine(4, CARD), 4, own_media=True)


def test_any_number_of_ranks_share_a_cpu() -> None:
    assert narrowed(Machine(0, CARD), 3, own_media=True).devices == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("devices", "transport", "directly"),
    [
        ("cuda:0,cuda:1,cuda:2,cuda:3", "auto", True),
        ("cuda:0,cuda:1,cuda:1", "auto", True),  # the media rank beside a stage is no stage
        ("cuda:0,cuda:0,cuda:1", "auto", False),
        ("cuda:0,cuda:1,cuda:2", "sockets", False),
        ("cpu,cpu,cpu", "auto", False),
        ("cpu,cpu,cpu", "direct", True),
        ("cuda:0,cuda:1", "auto", False),  # one stage has nothing to send to
    ],
)
def test_stages_send_directly_where_each_has_a_card_of_its_own(
    devices: str, transport: Transport, directly: bool
) -> None:
    names = tuple(devices.split(","))
    spec = group_spec(Path(), None, largest_plan(Network(), [SMALL], Machine(4, CARD)))
    stages = tuple(range(k, k + 1) for k in range(len(names) - 1))
    spec = replace(spec, devices=names, stages=stages, transport=transport)
    assert spec.sends_directly is directly


@pytest.mark.parametrize(
    ("transport", "said"),
    [
        ("direct", '"direct" needs a GPU of its own for every stage rank, got cuda:0, cuda:0'),
        ("nccl", "expected auto, direct, sockets, got 'nccl'"),
    ],
)
def test_a_transport_that_cannot_be_is_refused(transport: str, said: str) -> None:
    spec = group_spec(Path(), None, largest_plan(Network(), [SMALL], Machine(3, CARD)))
    shared = ("cuda:0", "cuda:0", "cuda:1")
    with pytest.raises(ConfigError, match=said):
        replace(spec, devices=shared, transport=transport)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("listed", "names"),
    [(None, None), ("", ()), ("0,1", ("0", "1")), ("2,-1,3", ("2",)), ("GPU-a", ("GPU-a",))],
)
def test_visible_devices_are_read_as_cuda_reads_them(
    listed: str | None, names: tuple[str, ...] | None
) -> None:
    assert visible_gpus({} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}) == names


def test_a_machine_without_visible_cards_is_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    machine = detect_machine()
    assert machine.num_gpus == 0
    assert machine.memory_bytes > GIB
