"""What the plan gives to each of several ranks of a stage."""

from __future__ import annotations

import pytest
import torch

from liveavatar.config import SamplingConfig
from liveavatar.errors import ConfigError
from liveavatar.model.transformer import Layer
from liveavatar.parallel.group import Group
from liveavatar.parallel.tensor_parallel import apply_tensor_parallel
from liveavatar.plan import transformer_memory as stage
from liveavatar.plan.layout import GIB, Machine, RankMemory, plan_layout
from liveavatar.plan.precision import BFLOAT16
from liveavatar.plan.shapes import Network
from liveavatar.plan.sharing import Sharing
from liveavatar.random_checkpoint import TINY

BALANCED = SamplingConfig(num_clip=50)
PORTRAIT_HW = (640, 384)


def test_weights_of_a_tensor_parallel_rank_are_those_of_the_cut_layer() -> None:
    class Half(Group):
        """One of two ranks that never meet: cutting a layer sends nothing."""

        size = 2

    built = Layer(TINY, torch.bfloat16, injects=True)
    apply_tensor_parallel(built, Half([0], 0))
    planned = stage.layer_weights(TINY, BFLOAT16, injects=True, tp_degree=2)
    assert planned == sum(weight.nbytes for weight in built.parameters())


def test_ranks_that_share_a_stage_hold_less_each() -> None:
    def first(num_gpus: int, sharing: Sharing) -> RankMemory:
        machine = Machine(num_gpus, 80 * GIB, sharing=sharing)
        return plan_layout(Network(), PORTRAIT_HW, BALANCED, machine).ranks[0]

    alone = first(2, Sharing())
    tensor, sequence = first(3, Sharing(tp_degree=2)), first(3, Sharing(sp_degree=2))
    sharded = first(3, Sharing(sp_degree=2, sharded=True))
    assert tensor.weights < 0.51 * alone.weights
    assert sequence.weights == alone.weights
    assert 0.5 * alone.weights < sharded.weights < 0.6 * alone.weights
    assert tensor.rings == sequence.rings == sharded.rings == alone.rings // 2
    assert sequence.activations < 0.51 * alone.activations


def test_heads_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ConfigError, match="tp_degree: expected a number that divides the 40 heads"):
        plan_layout(Network(), PORTRAIT_HW, BALANCED, Machine(4, GIB, sharing=Sharing(tp_degree=3)))
