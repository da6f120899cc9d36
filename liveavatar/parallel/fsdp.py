"""Fully sharded weights: the baseline that pipeline stages are compared with.

Every rank keeps a part of each layer's weights and gathers the rest just before the layer runs, to
drop it behind. So every rank runs all layers, and between two of them nothing but a part is held;
while one runs, all of it is, on every rank. The tokens are shared out as usual, see
`sequence_parallel`. Embedder and head are small and stay whole.

The work is done by torch's FSDP2; here stands what is one unit of it, and which methods gather.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from liveavatar.model.transformer import Layer
from liveavatar.parallel.group import Group


def shard_weights(layer: Layer, group: Group) -> None:
    """Keep this rank's part of a layer's weights, in place; they lie on the device they stay on."""
    if group.handle is None:
        return
    device = next(layer.parameters()).device
    mesh = DeviceMesh.from_group(group.handle, device.type)
    if layer.audio is not None:  # its speech is prepared once a block, when no layer runs
        fully_shard(layer.audio, mesh=mesh, reshard_after_forward=True)
        register_fsdp_forward_method(layer.audio, "prepare")
    fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    for method in ("constants", "prefill"):
        register_fsdp_forward_method(layer, method)
