"""A rank's part of the transformer out of a checkpoint, without ever holding much more than it."""

from __future__ import annotations

from functools import partial

from liveavatar.model.checkpoint import Checkpoint, Placement
from liveavatar.model.transformer import Transformer
from liveavatar.parallel.group import StageGroups
from liveavatar.parallel.sequence_parallel import apply_sequence_parallel
from liveavatar.parallel.tensor_parallel import apply_tensor_parallel


def load_part(
    checkpoint: Checkpoint, where: Placement, layers: range, groups: StageGroups
) -> Transformer:
    """Read a range of layers and share them out over the groups.

    Raises:
        CheckpointError: a weight cannot be read.
        ConfigError: the heads cannot be shared out over the groups.
    """
    cut = partial(apply_tensor_parallel, group=groups.tensor)
    transformer = checkpoint.load_transformer(where, layers, cut)
    apply_sequence_parallel(transformer, groups.sequence)
    return transformer
