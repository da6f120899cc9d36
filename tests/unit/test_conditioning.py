"""Portraits on their way to conditions: what is computed once, and in whose turn."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from liveavatar.conditioning import Conditions, Encoders, encode_conditions, encode_portrait
from liveavatar.engine.autoencoder_turn import AutoencoderTurn
from liveavatar.model.checkpoint import Checkpoint, Placement, open_checkpoint
from liveavatar.model.vae import encode_still
from liveavatar.random_checkpoint import write_checkpoint

CPU = torch.device("cpu")
WHERE = Placement(CPU, torch.float32)
PORTRAIT = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
SPEECH = np.random.default_rng(1).standard_normal(12 * 640).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder)
    return open_checkpoint(folder)


def test_the_reference_is_the_portrait_encoded_alone(checkpoint: Checkpoint) -> None:
    encoder = checkpoint.load_vae_encoder(WHERE)
    reference, motion = encode_portrait(encoder, PORTRAIT)
    assert (reference.shape[1], motion.shape[1]) == (1, 19)
    picture = torch.tensor(PORTRAIT).permute(2, 0, 1) / 255 * 2 - 1
    alone = encode_still(encoder, picture, 1)
    # Convolutions over another number of frames may add in another order.
    assert torch.allclose(reference, alone, rtol=0, atol=1e-5 * float(alone.abs().max()))
    assert not torch.allclose(motion[:, 5:6], alone, atol=1e-2), "later latents are other ones"


def test_a_portrait_waits_while_somebody_else_has_the_turn(checkpoint: Checkpoint) -> None:
    turn = AutoencoderTurn(CPU)
    encoders = Encoders(
        checkpoint.load_text_encoder(WHERE),
        checkpoint.load_tokenizer(),
        checkpoint.load_audio_encoder(WHERE),
        checkpoint.load_vae_encoder(WHERE),
        image_turn=turn.taken,
    )
    embedder = checkpoint.load_condition_embedder(WHERE)
    made: list[Conditions] = []

    def encode() -> None:
        made.append(
            encode_conditions(encoders, PORTRAIT, SPEECH, "a face", embedder=embedder, num_blocks=1)
        )

    encode()  # so that what follows would take no time without the turn
    thread = threading.Thread(target=encode, daemon=True)
    with turn.taken():
        thread.start()
        thread.join(1.0)
        assert len(made) == 1
    thread.join(60)
    assert len(made) == 2
    assert torch.equal(made[0].motion_CFHW, made[1].motion_CFHW)
