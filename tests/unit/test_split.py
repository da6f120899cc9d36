"""Layers to stages: whole, in order, and never worse than the best of all cuts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest

from liveavatar.config import TransformerConfig
from liveavatar.errors import ConfigError
from liveavatar.parallel.split import layer_costs, split_layers


def stage_costs(
    costs: Sequence[float], stages: Sequence[range], first: float = 0.0, last: float = 0.0
) -> list[float]:
    totals = [float(sum(costs[layer] for layer in stage)) for stage in stages]
    totals[0] += first
    totals[-1] += last
    return totals


def all_cuts(num_layers: int, num_stages: int) -> Iterator[list[range]]:
    for ends in itertools.combinations(range(1, num_layers), num_stages - 1):
        bounds = (0, *ends, num_layers)
        yield [range(*pair) for pair in itertools.pairwise(bounds)]


def random_case(seed: int) -> tuple[list[float], int, float, float]:
    """Whole costs, so that sums are exact in any order."""
    draw = random.Random(seed)
    costs = [float(draw.randint(1, 9)) for _ in range(draw.randint(1, 9))]
    return costs, draw.randint(1, len(costs)), float(draw.randint(0, 9)), float(draw.randint(0, 9))


@pytest.mark.parametrize("num_stages", range(1, 9))
def test_stages_are_contiguous_and_hold_every_layer_once(num_stages: int) -> None:
    for num_layers in range(num_stages, 41):
        stages = split_layers([1.0 + layer % 3 for layer in range(num_layers)], num_stages)
        assert len(stages) == num_stages
        assert all(len(stage) > 0 for stage in stages)
        assert list(itertools.chain(*stages)) == list(range(num_layers))


@pytest.mark.parametrize("seed", [*range(60), 161, 1423, 2362, 2427])
def test_no_other_cut_has_a_smaller_largest_stage_or_at_the_same_size_is_more_even(
    seed: int,
) -> None:
    costs, num_stages, first, last = random_case(seed)

    def badness(stages: Sequence[range]) -> tuple[float, float]:
        totals = stage_costs(costs, stages, first, last)
        return max(totals), sum(total**2 for total in totals)

    ours = split_layers(costs, num_stages, first, last)
    assert badness(ours) == min(map(badness, all_cuts(len(costs), num_stages)))


@pytest.mark.parametrize(("height", "width"), [(384, 640), (384, 704), (368, 688)])
def test_forty_layers_on_three_stages_are_cut_as_the_specification_says(
    height: int, width: int
) -> None:
    tokens = 3 * (height // 16) * (width // 16)
    costs = layer_costs(TransformerConfig(), tokens, 5 * tokens)
    stages = split_layers(costs, 3)
    assert stages == [range(13), range(13, 27), range(27, 40)]
    totals = stage_costs(costs, stages)
    assert max(totals) < 1.05 * sum(totals) / 3


def test_layers_with_an_audio_injection_cost_more_and_all_others_the_same() -> None:
    config = TransformerConfig()
    costs = layer_costs(config, 2880, 14400)
    plain = {cost for layer, cost in enumerate(costs) if layer not in config.audio_inject_layers}
    injected = {costs[layer] for layer in config.audio_inject_layers}
    assert len(plain) == len(injected) == 1
    assert min(injected) > max(plain)


def test_work_besides_the_layers_moves_layers_away_from_its_stage() -> None:
    costs = [1.0] * 8
    assert split_layers(costs, 2) == [range(4), range(4, 8)]
    assert split_layers(costs, 2, first_cost=2.0) == [range(3), range(3, 8)]
    assert split_layers(costs, 2, last_cost=2.0) == [range(5), range(5, 8)]


def test_the_largest_network_accepted_is_split_in_little_time() -> None:
    stages = split_layers([1.0] * 200, 8)
    assert {len(stage) for stage in stages} == {25}


@pytest.mark.parametrize("num_stages", [-1, 0, 5, 1000])
def test_a_number_of_stages_that_cannot_be_is_refused_in_one_line(num_stages: int) -> None:
    with pytest.raises(ConfigError, match=f"expected 1 to 4, .* got {num_stages}$"):
        split_layers([1.0] * 4, num_stages)
