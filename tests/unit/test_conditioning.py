"""Portraits on their way to conditions: what is computed once, and in whose turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from liveavatar.conditioning import Conditions, Encoders, encode_conditions, encode_portrait
from liveavatar.config import SamplingConfig
from liveavatar.encoded_inputs import EncodedInputs
from liveavatar.engine.autoencoder_turn import AutoencoderTurn
from liveavatar.model.checkpoint import Checkpoint, Placement, open_checkpoint
from liveavatar.model.vae_encoding import encode_still
from liveavatar.random_checkpoint import write_checkpoint
from liveavatar.sampling import make_schedule
from liveavatar.single_device import Models, generate_latents, seeded_draws
from liveavatar.timeline import make_timeline

CPU = torch.device("cpu")
WHERE = Placement(CPU, torch.float32)
PORTRAIT = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
SPEECH = np.random.default_rng(1).standard_normal(12 * 640).astype(np.float32)


def loaded(checkpoint: Checkpoint, **more: Any) -> Encoders:
    return Encoders(
        checkpoint.load_text_encoder(WHERE),
        checkpoint.load_tokenizer(),
        checkpoint.load_audio_encoder(WHERE),
        checkpoint.load_vae_encoder(WHERE),
        **more,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder)
    return open_checkpoint(folder)


def test_the_reference_is_the_portrait_encoded_alone(checkpoint: Checkpoint) -> None:
    encoder = checkpoint.load_vae_encoder(WHERE)
    motion = encode_portrait(encoder, PORTRAIT)
    reference = motion[:, :1]
    assert motion.shape[1] == 19
    picture = torch.tensor(PORTRAIT).permute(2, 0, 1) / 255 * 2 - 1
    alone = encode_still(encoder, picture, 1)
    # Convolutions over another number of frames may add in another order.
    assert torch.allclose(reference, alone, rtol=0, atol=1e-5 * float(alone.abs().max()))
    assert not torch.allclose(motion[:, 5:6], alone, atol=1e-2), "later latents are other ones"


def test_a_portrait_waits_while_somebody_else_has_the_turn(checkpoint: Checkpoint) -> None:
    turn = AutoencoderTurn(CPU)
    encoders = loaded(checkpoint, image_turn=turn.taken)
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


@contextmanager
def watched(encoders: Encoders) -> Iterator[set[str]]:
    """Which of the networks ran."""
    ran: set[str] = set()
    networks = {"text": encoders.text, "speech": encoders.speech, "image": encoders.image}
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
        for name, network in networks.items()
        for part in network.modules()
    ]
    yield ran
    for handle in handles:
        handle.remove()


def latents(checkpoint: Checkpoint, conditions: Conditions) -> Tensor:
    """The first block of the video."""
    models = Models(
        checkpoint.load_transformer(WHERE),
        checkpoint.load_condition_embedder(WHERE),
        checkpoint.load_vae_decoder(WHERE),
    )
    timeline = make_timeline(SamplingConfig(num_steps=2, infer_frames=12), len(SPEECH))
    draws = seeded_draws(7, conditions.reference_CFHW)
    made = generate_latents(models, conditions, timeline, make_schedule(2), draws)
    return next(iter(made))


def test_what_was_encoded_lately_costs_nothing_and_gives_the_same_bits(
    checkpoint: Checkpoint,
) -> None:
    encoders = loaded(checkpoint, lately=EncodedInputs(2**20))
    embedder = checkpoint.load_condition_embedder(WHERE)
    other_portrait, other_speech = 255 - PORTRAIT, SPEECH[::-1].copy()
    # What changes against everything that came before, and the networks that have to run for it.
    asked: list[tuple[Any, Any, str, set[str]]] = [
        (PORTRAIT, SPEECH, "a face", {"text", "speech", "image"}),
        (PORTRAIT, SPEECH, "a face", set()),
        (PORTRAIT, SPEECH, "  a\tface ", set()),
        (PORTRAIT, SPEECH, "another face", {"text"}),
        (PORTRAIT, other_speech, "another face", {"speech"}),
        (other_portrait, SPEECH, "a face", {"image"}),
        (PORTRAIT.reshape(32, 128, 3), SPEECH, "a face", {"image"}),
        (other_portrait, other_speech, "another face", set()),
        (PORTRAIT, SPEECH[:-1], "", {"text", "speech"}),
        (PORTRAIT, SPEECH, "", set()),
    ]
    forgetful = loaded(checkpoint)
    for portrait, speech, prompt, running in asked:
        inputs = (portrait, speech, prompt)
        with watched(encoders) as ran:
            found = encode_conditions(encoders, *inputs, embedder=embedder, num_blocks=1)
        assert ran == running, inputs
        fresh = encode_conditions(forgetful, *inputs, embedder=embedder, num_blocks=1)
        for part in fields(Conditions):
            assert torch.equal(getattr(found, part.name), getattr(fresh, part.name)), part.name
    assert torch.equal(latents(checkpoint, found), latents(checkpoint, fresh))
    # A longer video of the same sound.
    with watched(encoders) as ran:
        longer = encode_conditions(encoders, *inputs, embedder=embedder, num_blocks=3)
    assert ran == set()
    assert longer.speech_AV.shape[1] == 36
    assert torch.equal(longer.speech_AV[:, :12], found.speech_AV)
    assert 0 < encoders.lately.num_bytes <= 2**20
    assert forgetful.lately.num_bytes == 0


def test_other_weights_of_the_mix_are_another_input(checkpoint: Checkpoint) -> None:
    encoders = loaded(checkpoint, lately=EncodedInputs(2**20))
    embedder = checkpoint.load_condition_embedder(WHERE)
    encode_conditions(encoders, PORTRAIT, SPEECH, "", embedder=embedder, num_blocks=1)
    embedder.audio_encoder.mix_weights[0] += 1
    with watched(encoders) as ran:
        encode_conditions(encoders, PORTRAIT, SPEECH, "", embedder=embedder, num_blocks=1)
    assert ran == {"speech"}
