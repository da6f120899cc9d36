"""Training runs the product's networks: what it sees is what a video is made with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.quality import Demo, stranger
from examples.cartoon.scene import draw_portrait
from liveavatar.conditioning import Conditions, encode_speech
from liveavatar.model.audio_encoder import features_per_video_frame, normalise_waveform
from liveavatar.model.vae import Decoder, Encoder, VAEConfig
from liveavatar.model.vae_encoding import encode
from liveavatar.model.vae_stream import decode
from liveavatar.sampling import make_schedule
from liveavatar.single_device import Draws, Models, generate_latents
from liveavatar.timeline import Timeline
from training.amplify_speech import amplify
from training.avatar import Avatar, Position, Scene
from training.checkpoint_writer import load_autoencoder, load_for_training, write_autoencoder
from training.clips import Corpus, draw_clip
from training.demo_config import TRIAL
from training.differentiable_vae import decode_clips, encode_clips, moments, reconstruct
from training.drawing import Order
from training.mouth_targets import mouth_targets
from training.performance import (
    BLINK,
    BLINK_THRESHOLD,
    NUM_CUES,
    PHRASE_BLINK_THRESHOLD,
    act,
    read_cues,
    set_cues,
)
from training.pool import Batch
from training.prompts import make_tokenizer
from training.train_avatar import AvatarTrainer, Run

CPU = torch.device("cpu")
DEMO_FOLDER = Path(__file__).parents[2] / "ckpt" / "demo"
BLOCKS, SIDE = 3, 8


def hum(seconds: float) -> np.ndarray:
    """A voice-like buzz that comes and goes."""
    time = np.arange(int(seconds * 16000)) / 16000
    buzz = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12))
    return (0.1 * buzz * (np.sin(2 * np.pi * 1.5 * time) > 0)).astype(np.float32)


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    torch.manual_seed(0)
    made = Avatar(TRIAL)
    with torch.no_grad():
        for parameter in made.transformer.parameters():
            if not parameter.abs().sum():
                parameter.normal_(0, 0.2)
    return made


@torch.no_grad()
def test_whole_clips_pass_the_autoencoder_as_they_stream_through_the_product():
    torch.manual_seed(1)
    config = VAEConfig(dim=4, num_res_blocks=1)
    encoder, decoder = Encoder(config), Decoder(config)
    video = torch.rand(2, 9, 16, 16, 3) * 2 - 1
    latents = encode_clips(encoder, video)
    streamed = torch.stack([encode(encoder, clip.permute(3, 0, 1, 2)) for clip in video])
    assert torch.allclose(latents, streamed, atol=1e-5)
    frames = decode_clips(decoder, streamed)
    whole = torch.stack([decode(decoder, latent).permute(1, 2, 3, 0) for latent in streamed])
    assert torch.allclose(frames, whole, atol=1e-4)


@torch.no_grad()
def test_written_latents_have_zero_mean_and_unit_deviation(tmp_path: Path):
    torch.manual_seed(2)
    config = VAEConfig(dim=4, num_res_blocks=1)
    encoder, decoder = Encoder(config), Decoder(config)
    video = torch.rand(2, 5, 16, 16, 3) * 2 - 1
    means = moments(encoder, video)[..., :16].flatten(0, 3)
    write_autoencoder(tmp_path, encoder, decoder, means)
    stored = load_autoencoder(tmp_path, CPU)
    assert stored is not None
    latents = encode_clips(stored[0], video).transpose(0, 1).flatten(1)
    assert torch.allclose(latents.mean(1), torch.zeros(16), atol=0.05)
    assert torch.allclose(latents.std(1), torch.ones(16), atol=0.05)


@torch.no_grad()
def test_an_autoencoder_is_taken_up_again_with_unit_latents(tmp_path: Path):
    torch.manual_seed(7)
    config = VAEConfig(dim=4, num_res_blocks=1)
    encoder, decoder = Encoder(config), Decoder(config)
    video = torch.rand(2, 5, 16, 16, 3) * 2 - 1
    means = moments(encoder, video)[..., :16]
    write_autoencoder(tmp_path, encoder, decoder, means.flatten(0, 3))
    resumed = load_for_training(tmp_path, CPU)
    assert resumed is not None
    again = moments(resumed[0], video)[..., :16]
    assert torch.allclose(again.flatten(0, 3).std(0), torch.ones(16), atol=0.05)
    expected, found = reconstruct(decoder, means), reconstruct(resumed[1], again)
    assert torch.allclose(expected, found, atol=0.02)


@torch.no_grad()
def test_blocks_side_by_side_make_the_video_of_one_device(avatar: Avatar):
    torch.manual_seed(3)
    sound = normalise_waveform(hum(BLOCKS * 0.48 + 0.4))
    matrix = avatar.frame_matrix(len(sound), BLOCKS * 12)
    audio = avatar.hear(sound[None], matrix)
    text = avatar.read(["a smiling man"], CPU)
    reference, motion = torch.randn(1, 16, 1, SIDE, SIDE), torch.randn(1, 16, 19, SIDE, SIDE)
    noise, schedule = torch.randn(1, 16, 3 * BLOCKS, SIDE, SIDE), make_schedule(3)

    def distance(block: int, step: int) -> int:
        return 4 + (7 * block + 3 * step) % 27

    weights = avatar.embedder.audio_encoder.mixing_weights()
    heard_TA = encode_speech(avatar.speech, sound.numpy(), weights)
    speech = features_per_video_frame(heard_TA, BLOCKS * 12).T.contiguous()
    conditions = Conditions(reference[0], motion[0], text[0], speech)
    timeline = Timeline(BLOCKS * 12, BLOCKS, 2, 2, 24)  # the third block is refreshed and rolls
    draws = Draws(lambda block: noise[0][:, 3 * block : 3 * block + 3], distance)
    models = Models(avatar.transformer, avatar.embedder, None)  # type: ignore[arg-type]
    made = torch.cat(list(generate_latents(models, conditions, timeline, schedule, draws)), dim=1)
    scene = Scene(reference, made[None, :, :1], motion, text, audio)
    sample = noise
    for step, timestep in enumerate(schedule.timesteps):
        position = Position(0, 2, [distance(block, step) for block in range(BLOCKS)])
        place = position.place(TRIAL, (SIDE // 2, SIDE // 2), [timestep], CPU)
        change = schedule.sigmas[step + 1] - schedule.sigmas[step]
        sample = sample + change * avatar.velocity(sample, scene, place)
    assert (made - noise[0]).abs().max() > 1
    assert torch.allclose(sample[0], made, atol=2e-4)


def random_pool(count: int, side: int) -> Batch:
    """Clips of one block that show nothing."""
    sound = torch.from_numpy(hum(0.92))[None].repeat(count, 1)
    return Batch(
        torch.randn(count, 16, 1, side, side), torch.randn(count, 16, 10, side, side),
        torch.randn(count, 16, 3, side, side), sound, torch.rand(count, 12, 3),
        torch.randn(count, 3, NUM_CUES), torch.arange(count) % 2, torch.ones(count, side, side),
    )  # fmt: skip


def test_an_update_lowers_the_loss(avatar: Avatar):
    torch.manual_seed(4)
    pool = random_pool(2, SIDE)
    trainer = AvatarTrainer(avatar, [pool], Run(1.0, batch=2, max_steps=1), 0)
    inputs, _ = trainer.draw(pool, 0.3)
    assert trainer.summary() == ""  # a run may end right behind a line of its log
    losses = [trainer.step(*inputs).mean().item() for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]


def test_sizes_take_turns_and_their_clips_lie_without_gaps():
    small, large = (32, 32), (48, 48)
    order = Order(Path("none"), 5, 12, [small, small, large], 0, 1, 0)
    places = [order.place(number) for number in range(5)]
    assert places == [(small, 0), (small, 1), (large, 0), (small, 2), (small, 3)]
    assert {size: len(drawn.moods) for size, drawn in order.empty().items()} == {small: 4, large: 2}


def test_a_run_learns_from_every_size_and_saves(avatar: Avatar, tmp_path: Path):
    torch.manual_seed(8)
    pools = [random_pool(2, side) for side in (SIDE, 2 * SIDE)]
    trainer = AvatarTrainer(avatar, pools, Run(60.0, batch=4, rollout_from=0.4, max_steps=6), 0)
    assert [len(trainer.draw(pool, 0.0)[0][0]) for pool in pools] == [4, 1]
    trainer.train(tmp_path)
    assert (tmp_path / "config.json").exists()


def test_cues_are_written_into_noise_that_stays_normal():
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(4, 16, 6, SIDE, SIDE, generator=generator)
    cues = torch.randn(4, 6, NUM_CUES, generator=generator)
    marked = set_cues(noise, cues)
    assert torch.allclose(read_cues(marked), cues, atol=1e-4)
    assert torch.equal(marked[:, NUM_CUES:], noise[:, NUM_CUES:])
    assert abs(marked.std().item() - 1) < 0.02


def test_a_blink_cue_shuts_the_eyes_and_the_first_frames_rest():
    cues = torch.zeros(6, NUM_CUES)
    cues[3, BLINK] = BLINK_THRESHOLD + 0.1
    acting = act(mouth_targets(torch.from_numpy(hum(0.96))), cues, "plain", 0.3)
    assert acting.lids[12:18].min() < 0.1
    assert acting.open[:3].abs().max() == 0
    assert acting.yaw[:3].abs().max() == 0


def test_a_phrase_ends_with_a_blink_where_its_cue_says_so():
    mouth = mouth_targets(torch.from_numpy(hum(4.0)))
    cues = torch.zeros(25, NUM_CUES)
    assert act(mouth, cues, "plain", 0.3).lids.min() == 1.0
    cues[:, BLINK] = (PHRASE_BLINK_THRESHOLD + BLINK_THRESHOLD) / 2
    lids = act(mouth, cues, "plain", 0.3).lids.flatten()
    shut = (lids < 0.1).nonzero().flatten()
    assert len(shut)
    assert (mouth.loud[shut] < 0.35).all()


def test_the_rate_of_a_finishing_run_falls_from_the_start():
    run, finishing = Run(100.0), Run(100.0, finish=True)
    assert run.size(200, 0.3) == 1.0
    assert [finishing.size(200, share) for share in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]


def test_what_speech_adds_is_multiplied_and_nothing_else(tmp_path: Path):
    stored = {
        "audio_injector.injector.0.o.weight": torch.ones(2, 2, dtype=torch.float16),
        "audio_injector.injector.0.v.weight": torch.ones(2, 2, dtype=torch.float16),
    }
    path = tmp_path / "diffusion_pytorch_model-00001-of-00001.safetensors"
    save_file(stored, path)
    assert amplify(tmp_path, 1.5) == 1
    made = load_file(path)
    assert torch.equal(made["audio_injector.injector.0.o.weight"], torch.full((2, 2), 1.5).half())
    assert torch.equal(made["audio_injector.injector.0.v.weight"], torch.ones(2, 2).half())


def test_a_seed_draws_the_same_clip(tmp_path: Path):
    path = tmp_path / "corpus.npz"
    np.savez_compressed(path, samples=(hum(8) * 32767).astype(np.int16))
    corpus = Corpus(path, CPU)
    clips = [draw_clip(np.random.default_rng(6), corpus, 8, (64, 64), CPU) for _ in range(2)]
    assert torch.equal(clips[0].frames_THWC, clips[1].frames_THWC)
    assert torch.equal(clips[0].sound_N, clips[1].sound_N)
    assert clips[0].frames_THWC.float().std() > 10


def test_moods_are_words_of_the_tokenizer():
    tokenizer = make_tokenizer()
    ids = {word: tokenizer.encode(word, add_special_tokens=False).ids for word in ("happy", "sad")}
    assert all(len(found) == 1 for found in ids.values())
    assert ids["happy"] != ids["sad"]


def test_the_demo_speaks_and_is_silent_with_its_sound():
    demo = Demo(DEMO_FOLDER)
    person = stranger(0, (128, 128))
    portrait = draw_portrait(person)
    frames = demo.speak(portrait, hum(0.96), "a calm person", 3)
    assert frames.shape == (24, 128, 128, 3)
    row, column = (int(64 + 64 * v) for v in (
        person.at[1] + person.scale * person.face.mouth_y, person.at[0],
    ))  # fmt: skip
    mouth = frames[:, row - 6 : row + 10, column - 12 : column + 12].astype(float)
    apart = abs(mouth - mouth[0]).mean((1, 2, 3))
    sounding = np.sin(2 * np.pi * 1.5 * (np.arange(24) + 0.5) / 25) > 0
    assert apart[6:][sounding[6:]].mean() > 1.3 * apart[6:][~sounding[6:]].mean()
    assert abs(frames[-1].astype(float) - portrait).mean() < 20
