"""The networks of a rank, read part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from liveavatar.engine.messages import GroupSpec, RandomWeights
from liveavatar.model.checkpoint import Checkpoint, Placement, open_checkpoint
from liveavatar.model.transformer import Transformer
from liveavatar.parallel.group import StageGroups
from liveavatar.parallel.loading import load_part
from liveavatar.plan.media_memory import ENCODED_INPUTS_BYTES

if TYPE_CHECKING:
    from liveavatar.engine.media_rank import MediaNetworks


def load_stage(spec: GroupSpec, stage: int, where: Placement, groups: StageGroups) -> Transformer:
    """Read this rank's part of the layers of a pipeline stage."""
    checkpoint = _open(spec, with_encoders=False)
    return load_part(checkpoint, where, spec.stages[stage], groups, sharded=spec.sharded)


def load_media_networks(spec: GroupSpec, where: Placement) -> MediaNetworks:
    """Read encoders, condition embedder and decoder."""
    # Here, since the library of the encoders takes seconds to import, which a stage need not wait.
    from liveavatar.conditioning import Encoders
    from liveavatar.encoded_inputs import EncodedInputs
    from liveavatar.engine.media_rank import MediaNetworks

    checkpoint = _open(spec, with_encoders=True)
    return MediaNetworks(
        Encoders(
            checkpoint.load_text_encoder(where),
            checkpoint.load_tokenizer(),
            checkpoint.load_audio_encoder(where),
            checkpoint.load_vae_encoder(where),
            lately=EncodedInputs(ENCODED_INPUTS_BYTES),
        ),
        checkpoint.load_condition_embedder(where),
        checkpoint.load_vae_decoder(where),
    )


def _open(spec: GroupSpec, *, with_encoders: bool) -> Checkpoint:
    if isinstance(spec.checkpoint, RandomWeights):
        from liveavatar.random_networks import random_checkpoint

        return random_checkpoint(spec.checkpoint.network)
    return open_checkpoint(spec.checkpoint, spec.adapter, with_encoders=with_encoders)
