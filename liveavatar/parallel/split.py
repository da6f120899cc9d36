"""Layers to pipeline stages by cost: plain arithmetic, no tensors.

The slowest stage sets the pace of all, so the largest stage cost is what is made small.
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

from liveavatar.config import TransformerConfig
from liveavatar.errors import ConfigError


def layer_costs(config: TransformerConfig, block_tokens: int, window_tokens: int) -> list[float]:
    """Multiply-adds of each layer's forward on one block, by arithmetic.

    Args:
        config: shape of the network.
        block_tokens: tokens of a block.
        window_tokens: keys each of them attends to, condition and full ring.

    Returns:
        One number per layer; those with an audio injection cost more.
    """
    dim, tokens = config.dim, block_tokens
    projections = tokens * dim * (6 * dim + 2 * config.ffn_dim)  # q k v o, text q o, feed-forward
    attention = 2 * tokens * dim * (window_tokens + config.text_len)
    speech = config.num_audio_token + 1
    injection = tokens * dim * (dim + speech + speech * config.num_heads)  # q, weights, sum
    return [
        float(projections + attention + injection * (layer in config.audio_inject_layers))
        for layer in range(config.num_layers)
    ]


def split_layers(
    costs: Sequence[float], num_stages: int, first_cost: float = 0.0, last_cost: float = 0.0
) -> list[range]:
    """Cut the layers into contiguous stages whose largest cost is as small as can be.

    Among equally good cuts the one with the smallest sum of squares is taken.

    Args:
        costs: cost of each layer.
        num_stages: stages wanted, each with at least one layer.
        first_cost: what stage 0 has to do besides its layers (embedding).
        last_cost: what the last stage has to do besides its layers (head).

    Raises:
        ConfigError: there are fewer layers than stages.
    """
    if not 1 <= num_stages <= len(costs):
        raise ConfigError(
            f"stages: expected 1 to {len(costs)}, as many as there are layers, got {num_stages}"
        )
    sums = [0.0, *accumulate(costs)]

    def stage_cost(start: int, end: int) -> float:
        extra = first_cost * (start == 0) + last_cost * (end == len(costs))
        return sums[end] - sums[start] + extra

    @cache
    def best(start: int, stages: int, floor: float) -> tuple[float, float, tuple[int, ...]]:
        """Largest cost, at least `floor`, sum of squares and ends of the best cut from `start`."""
        if stages == 1:
            cost = stage_cost(start, len(costs))
            return max(cost, floor), cost**2, (len(costs),)
        candidates = []
        for end in range(start + 1, len(costs) - stages + 2):
            cost = stage_cost(start, end)
            rest_largest, rest_squares, rest_ends = best(end, stages - 1, floor)
            candidates.append((max(cost, rest_largest), cost**2 + rest_squares, (end, *rest_ends)))
        return min(candidates)

    largest = best(0, num_stages, 0.0)[0]
    ends = best(0, num_stages, largest)[2]  # below the largest, only evenness counts
    return [range(start, end) for start, end in zip((0, *ends), ends, strict=False)]
