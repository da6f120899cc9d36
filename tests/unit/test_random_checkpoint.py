"""The tiny checkpoint with random weights: complete, the same for a seed, and it makes a video."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from liveavatar.conditioning import Encoders, encode_conditions
from liveavatar.config import SamplingConfig, TransformerConfig
from liveavatar.model.checkpoint import CONFIG, Checkpoint, Placement, open_checkpoint
from liveavatar.model.weights import network_shapes
from liveavatar.random_checkpoint import (
    TINY,
    main,
    write_adapter,
    write_checkpoint,
)
from liveavatar.sampling import make_schedule
from liveavatar.single_device import Models, RenderOptions, render, seeded_draws
from liveavatar.timeline import make_timeline

CPU32 = Placement(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("written") / "new" / "folder"
    write_checkpoint(directory)
    write_adapter(directory.parent / "adapter")
    return directory


@pytest.fixture(scope="module")
def checkpoint(written: Path) -> Checkpoint:
    return open_checkpoint(written, written.parent / "adapter")


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def tensor_digests(checkpoint: Checkpoint) -> dict[str, bytes]:
    networks = (
        checkpoint.load_transformer(CPU32),
        checkpoint.load_condition_embedder(CPU32),
        checkpoint.load_vae_encoder(CPU32),
        checkpoint.load_text_encoder(CPU32),
        checkpoint.load_audio_encoder(CPU32),
    )
    return {
        f"{index}.{name}": tensor.numpy().tobytes()
        for index, network in enumerate(networks)
        for name, tensor in network.state_dict().items()
    }


def test_the_same_seed_writes_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    assert digests(tmp_path) == digests(written)


def test_another_seed_writes_other_weights(written: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, seed=1)
    ours, other = (
        tensor_digests(open_checkpoint(written)),
        tensor_digests(open_checkpoint(tmp_path)),
    )
    assert ours.keys() == other.keys()
    assert all(ours[name] != other[name] for name in ours)


def test_writing_again_replaces_what_is_there(written: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, seed=1)
    write_checkpoint(tmp_path)
    assert digests(tmp_path) == digests(written)


def test_it_has_every_tensor_of_the_layout_and_no_other(checkpoint: Checkpoint) -> None:
    assert checkpoint.config == TINY
    assert checkpoint.transformer_files.shapes() == network_shapes(TINY)
    assert checkpoint.adapter is not None


def test_its_config_file_is_read_back_as_it_was(written: Path) -> None:
    assert TransformerConfig.from_file(written / CONFIG) == TINY


def test_the_command_writes_a_checkpoint(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "x"), "--seed", "0"]) == 0
    assert str(tmp_path / "x") in capsys.readouterr().out
    assert digests(tmp_path / "x") == digests(written)


def test_it_makes_a_video_from_portrait_speech_and_prompt(checkpoint: Checkpoint) -> None:
    generator = np.random.default_rng(0)
    portrait = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    speech = generator.standard_normal(20 * 640).astype(np.float32)
    sampling = SamplingConfig(num_steps=2, infer_frames=12, num_clip=2)
    timeline = make_timeline(sampling, len(speech))
    embedder = checkpoint.load_condition_embedder(CPU32)
    encoders = Encoders(
        checkpoint.load_text_encoder(CPU32),
        checkpoint.load_tokenizer(),
        checkpoint.load_audio_encoder(CPU32),
        checkpoint.load_vae_encoder(CPU32),
    )
    conditions = encode_conditions(
        encoders, portrait, speech, "a face", embedder=embedder, num_blocks=timeline.num_blocks
    )
    models = Models(
        checkpoint.load_transformer(CPU32), embedder, checkpoint.load_vae_decoder(CPU32)
    )
    draws = seeded_draws(sampling.seed, conditions.reference_CFHW)
    options = RenderOptions(make_schedule(sampling.num_steps), draws)
    frames = torch.cat([*render(models, conditions, torch.tensor(portrait), timeline, options)])
    assert frames.shape == (20, 64, 64, 3)
    assert timeline.refresh_block == 1
    # Noise, but a picture of some contrast that moves: nothing has collapsed or overflowed.
    assert frames[3:].float().std() > 5
    assert (frames[4].float() - frames[12].float()).abs().mean() > 1
