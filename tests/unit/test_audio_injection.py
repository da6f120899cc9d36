"""Speech into the transformer: causal encoder, mixing, injection frame by frame."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from liveavatar.model.audio_injection import AudioEncoder, AudioInjection, BlockAudio
from liveavatar.model.denoiser import TokenGrid
from tests.unit.tiny import randomised, seeded

STATES, WIDTH, DIM, TOKENS, HEADS = 3, 20, 32, 4, 2
REFERENCE_HISTORY = 73
# float32 convolutions and norms of numbers about 1, in sums of another grouping.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    return randomised(AudioEncoder(STATES, WIDTH, DIM, TOKENS))


@pytest.fixture(scope="module")
def injection() -> AudioInjection:
    return randomised(AudioInjection(DIM, HEADS, 1e-6, torch.float32), seed=1)


def block_audio(seed: int = 0) -> BlockAudio:
    return BlockAudio(seeded(3, TOKENS + 1, DIM, seed=seed), seeded(3, DIM, seed=seed + 1))


def encoded_as_released(encoder: AudioEncoder, mixed_AV: Tensor) -> BlockAudio:
    """73 copies of the first frame in front, the last three outputs kept."""
    history = mixed_AV[:, :1].expand(-1, REFERENCE_HISTORY)
    audio = encoder(torch.cat([history, mixed_AV], dim=1))
    assert len(audio.global_FD) == 22
    return BlockAudio(audio.local_FKD[19:], audio.global_FD[19:])


def test_a_short_history_gives_the_numbers_of_the_long_one(encoder: AudioEncoder) -> None:
    mixed = seeded(WIDTH, 12)
    ours, released = encoder.encode_block(mixed), encoded_as_released(encoder, mixed)
    assert ours.local_FKD.shape == (3, TOKENS + 1, DIM)
    assert ours.global_FD.shape == (3, DIM)
    assert torch.allclose(ours.local_FKD, released.local_FKD, atol=ROUNDING)
    assert torch.allclose(ours.global_FD, released.global_FD, atol=ROUNDING)


def test_the_encoder_is_causal_convolutions_with_shared_upper_layers(encoder: AudioEncoder) -> None:
    mixed = seeded(WIDTH, 17)

    def causal(signal: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        assert bias is not None
        padded = F.pad(signal, (2, 0), mode="replicate")
        return F.conv1d(padded, weight.double(), bias.double(), stride=stride)

    def normed(signal: Tensor) -> Tensor:
        rows = signal.transpose(1, 2)
        return F.silu(F.layer_norm(rows, rows.shape[2:], eps=1e-6)).transpose(1, 2)

    def stream(weight: Tensor, bias: Tensor | None) -> Tensor:
        signal = causal(mixed.double()[None], weight, bias, 1)
        for conv in (encoder.conv2, encoder.conv3):
            signal = causal(normed(signal), conv.weight, conv.bias, 2)
        return normed(signal)[0].T

    quarter = DIM // 4
    weights, biases = encoder.conv1_local.weight, encoder.conv1_local.bias
    assert biases is not None
    audio = encoder(mixed)
    for token in range(TOKENS):
        rows = slice(token * quarter, (token + 1) * quarter)
        expected = stream(weights[rows], biases[rows])
        assert torch.allclose(audio.local_FKD[:, token].double(), expected, atol=ROUNDING)
    whole = stream(encoder.conv1_global.weight, encoder.conv1_global.bias)
    linear = encoder.final_linear
    expected = whole @ linear.weight.double().T + linear.bias.double()
    assert torch.allclose(audio.global_FD.double(), expected, atol=ROUNDING)


def test_the_last_token_of_every_frame_is_the_padding_token(encoder: AudioEncoder) -> None:
    audio = encoder.encode_block(seeded(WIDTH, 12))
    assert torch.equal(audio.local_FKD[:, -1], encoder.padding_token.expand(3, -1))


@pytest.mark.parametrize("first_changed", range(12))
def test_later_speech_never_changes_an_earlier_latent_frame(
    encoder: AudioEncoder, first_changed: int
) -> None:
    speech = seeded(WIDTH, 12)
    changed = speech.clone()
    changed[:, first_changed:] += 1
    ours, other = encoder.encode_block(speech), encoder.encode_block(changed)
    for frame in range(3):
        # Latent frame f hears video frames 4f+3 and before at most.
        same = torch.equal(ours.global_FD[frame], other.global_FD[frame])
        assert same == (4 * frame + 3 < first_changed)


def test_mixing_weights_sum_to_one_and_follow_silu(encoder: AudioEncoder) -> None:
    weights = encoder.mixing_weights()
    gates = encoder.mix_weights.double() * encoder.mix_weights.double().sigmoid()
    assert weights.shape == (STATES,)
    assert torch.allclose(weights.double(), gates / gates.sum(), atol=1e-6)
    assert abs(weights.sum() - 1) < 1e-6


def test_the_encoder_answers_in_float32_to_any_input(encoder: AudioEncoder) -> None:
    mixed = seeded(WIDTH, 12).bfloat16()
    ours, wide = encoder.encode_block(mixed), encoder.encode_block(mixed.float())
    assert ours.global_FD.dtype == ours.local_FKD.dtype == torch.float32
    assert torch.equal(ours.global_FD, wide.global_FD)


def test_injection_is_an_adaptive_norm_then_cross_attention(injection: AudioInjection) -> None:
    hidden, audio = seeded(12, DIM, seed=5), block_audio()
    ours = injection(hidden, injection.prepare(audio))
    adain = injection.adain
    for frame in range(3):
        own = hidden[4 * frame : 4 * frame + 4].double()
        vector = F.silu(audio.global_FD[frame].double())
        shift, scale = (adain.weight.double() @ vector + adain.bias.double()).chunk(2)
        normed = (own - own.mean(-1, keepdim=True)) / (
            own.var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        adapted = (normed * (1 + scale) + shift).float()
        context = injection.attention.project_context(audio.local_FKD[frame])
        expected = own + injection.attention(adapted, context).double()
        assert torch.allclose(ours[4 * frame : 4 * frame + 4].double(), expected, atol=ROUNDING)


def test_the_adaptive_norm_has_the_wider_epsilon(injection: AudioInjection) -> None:
    # Tokens so small that 1e-5 and 1e-6 in the root differ by a factor of three.
    hidden, audio = seeded(12, DIM, seed=5) * 1e-4, block_audio()
    prepared = injection.prepare(audio)
    frames = hidden.double().reshape(3, 4, DIM)
    centred = frames - frames.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    adapted = normed * (1 + prepared.scale_F1D) + prepared.shift_F1D
    context = injection.attention.project_context(audio.local_FKD)
    expected = hidden + injection.attention(adapted.float(), context).flatten(0, 1)
    assert torch.allclose(injection(hidden, prepared), expected, atol=1e-5)


@pytest.mark.parametrize("frame", range(3))
def test_a_latent_frame_hears_its_own_speech_only(injection: AudioInjection, frame: int) -> None:
    hidden, audio = seeded(12, DIM, seed=5), block_audio()
    local, whole = audio.local_FKD.clone(), audio.global_FD.clone()
    local[frame] += 1
    whole[frame] -= 1
    ours = injection(hidden, injection.prepare(audio))
    for other in (BlockAudio(local, audio.global_FD), BlockAudio(audio.local_FKD, whole)):
        changed = (injection(hidden, injection.prepare(other)) != ours).any(dim=1)
        assert changed.tolist() == [index // 4 == frame for index in range(12)]


@pytest.mark.parametrize("tokens", [range(0, 5), range(3, 12), range(5, 7), range(8, 12)], ids=str)
def test_some_tokens_of_a_block_hear_what_they_hear_among_all(
    injection: AudioInjection, tokens: range
) -> None:
    hidden, audio = seeded(12, DIM, seed=5), block_audio()
    everyone = injection(hidden, injection.prepare(audio))
    frame_tokens = TokenGrid(2, 2).frame_tokens_in(tokens)
    assert sum(frame_tokens) == len(tokens)
    some = slice(tokens.start, tokens.stop)
    ours = injection(hidden[some], injection.prepare(audio, frame_tokens))
    assert torch.allclose(ours, everyone[some], atol=ROUNDING)


def test_encoded_speech_lies_in_memory_as_it_does_behind_a_link() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(3, 8, 16, 4)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        audio = encoder.encode_block(torch.randn(8, 12))
    # Products of bfloat16 round by memory layout: both sides of a link must have the same.
    for tensor in (audio.local_FKD, audio.global_FD):
        assert tensor.is_contiguous()
