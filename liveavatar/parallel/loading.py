"""A rank's part of the transformer out of a checkpoint, without ever holding much more than it."""

from __future__ import annotations

from liveavatar.model.checkpoint import Checkpoint, Placement
from liveavatar.model.transformer import Layer, Transformer
from liveavatar.parallel.group import StageGroups
from liveavatar.parallel.sequence_parallel import apply_sequence_parallel
from liveavatar.parallel.tensor_parallel import apply_tensor_parallel


def load_part(
    checkpoint: Checkpoint,
    where: Placement,
    layers: range,
    groups: StageGroups,
    *,
    sharded: bool = False,
) -> Transformer:
    """Read a range of layers and share them out over the groups.

    Args:
        checkpoint: the weights.
        where: device and precision.
        layers: of this rank's stage.
        groups: that it computes in.
        sharded: keep only a part of each layer's weights on every rank that shares tokens.

    Raises:
        CheckpointError: a weight cannot be read.
        ConfigError: the heads cannot be shared out over the groups.
    """

    def cut(layer: Layer) -> None:
        apply_tensor_parallel(layer, groups.tensor)
        if sharded:
            # Here, since the library takes seconds to import, which a stage need not wait.
            from liveavatar.parallel.fsdp import shard_weights

            shard_weights(layer, groups.sequence)

    transformer = checkpoint.load_transformer(where, layers, cut)
    apply_sequence_parallel(transformer, groups.sequence)
    return transformer
