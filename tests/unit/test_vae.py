"""The video autoencoder: streamed equals whole, causal, one state per stream, checkpoint shapes.

Tolerances: the same sums in another order differ by float32 rounding, 1e-5 at most here (values are
about 1, some 40 layers deep); what keeps the order of sums is compared exactly.
"""

import json
import re

import pytest
import torch

from benchmarks import vae as benchmark
from liveavatar.errors import CheckpointError, ConfigError, StreamClosedError
from liveavatar.model.vae import Decoder, Encoder, VAEConfig
from liveavatar.model.vae_encoding import encode, encode_still
from liveavatar.model.vae_layers import CausalConv3d, HistoryPlan, convolve, new_history
from liveavatar.model.vae_stream import (
    DecoderState,
    decode,
    decode_step,
    new_decoder_state,
    pass_over,
    to_uint8,
)
from tests.unit.plain_vae import TINY, plain_decode, plain_encode

HEIGHT, WIDTH = 16, 24
ROUNDING = 1e-5


def seeded(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter, gains and biases too, values that a swapped name or sign would show."""
    for index, (name, parameter) in enumerate(network.named_parameters()):
        value = seeded(tuple(parameter.shape), 100 + index)
        if name.endswith("gamma"):
            value = 1 + value / 4
        elif name.endswith("weight"):
            value = value / (parameter[0].numel() ** 0.5)
        else:
            value = value / 10
        parameter.data.copy_(value)
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return randomised(Decoder(TINY))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return randomised(Encoder(TINY))


@pytest.fixture(scope="module")
def latent_CFHW() -> torch.Tensor:
    return seeded((16, 7, HEIGHT // 8, WIDTH // 8))


def stream(
    decoder: Decoder, latent_CFHW: torch.Tensor, lengths: list[int], state: DecoderState
) -> torch.Tensor:
    parts = latent_CFHW.split(lengths, dim=1)
    return torch.cat([decode_step(decoder, part, state) for part in parts], dim=1)


def test_decoder_follows_the_published_formulas(decoder, latent_CFHW):
    expected = plain_decode(decoder, latent_CFHW)
    assert expected.shape == (3, 25, HEIGHT, WIDTH)
    torch.testing.assert_close(decode(decoder, latent_CFHW), expected, atol=ROUNDING, rtol=0)


def test_encoder_follows_the_published_formulas(encoder):
    video = seeded((3, 21, HEIGHT, WIDTH))
    expected = plain_encode(encoder, video)
    assert expected.shape == (16, 6, HEIGHT // 8, WIDTH // 8)
    torch.testing.assert_close(encode(encoder, video), expected, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("lengths", [[1] * 7, [7], [3, 3, 1], [1, 6], [2, 5], [1, 1, 2, 3], [6, 1]])
def test_streamed_equals_whole_in_any_chunking(decoder, latent_CFHW, lengths):
    state = new_decoder_state(decoder, HEIGHT, WIDTH)
    frames = [decode_step(decoder, part, state) for part in latent_CFHW.split(lengths, dim=1)]
    assert [part.shape[1] for part in frames] == [
        4 * length - 3 * (index == 0) for index, length in enumerate(lengths)
    ]
    assert state.num_latent_frames == 7
    # Kernels are chosen by size, so another chunking sums in another order.
    torch.testing.assert_close(
        torch.cat(frames, dim=1), decode(decoder, latent_CFHW), atol=ROUNDING, rtol=0
    )


def test_later_latents_never_change_earlier_frames(decoder, latent_CFHW):
    other = latent_CFHW.clone()
    other[:, 4:] = 9.0
    before, after = decode(decoder, latent_CFHW), decode(decoder, other)
    assert torch.equal(before[:, :13], after[:, :13])
    assert not torch.equal(before[:, 13:], after[:, 13:])


def test_later_frames_never_change_earlier_latents(encoder):
    video = seeded((3, 17, HEIGHT, WIDTH))
    other = video.clone()
    other[:, 9:] = 0.0
    before, after = encode(encoder, video), encode(encoder, other)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("seen_before", [0, 2])
@pytest.mark.parametrize("num_unseen", [1, 4, 7])
def test_a_stream_goes_on_behind_latents_that_were_passed_over(
    decoder, latent_CFHW, seen_before, num_unseen
):
    latents = torch.cat([latent_CFHW, latent_CFHW.flip(1)], dim=1)
    unseen = latents[:, seen_before : seen_before + num_unseen]
    following = latents[:, seen_before + num_unseen :]
    states = [new_decoder_state(decoder, HEIGHT, WIDTH) for _ in range(2)]
    for state in states[: 2 if seen_before else 0]:
        decode_step(decoder, latents[:, :seen_before], state)
    decode_step(decoder, unseen, states[0])
    pass_over(decoder, unseen, states[1])
    assert states[0].num_latent_frames == states[1].num_latent_frames
    for whole, passed in zip(states[0].history.frames, states[1].history.frames, strict=True):
        torch.testing.assert_close(passed, whole, atol=ROUNDING, rtol=0)
    expected = decode_step(decoder, following, states[0])
    actual = decode_step(decoder, following, states[1])
    torch.testing.assert_close(actual, expected, atol=ROUNDING, rtol=0)


def test_passing_over_leaves_out_what_is_forgotten_again(decoder, latent_CFHW):
    computed: dict[int, int] = {}

    def note(index):
        return lambda _module, inputs, _result: computed.update(
            {index: computed.get(index, 0) + len(inputs[0])}
        )

    layers = decoder.decoder.layers
    hooks = [layer.register_forward_hook(note(index)) for index, layer in enumerate(layers)]
    pass_over(decoder, latent_CFHW, new_decoder_state(decoder, HEIGHT, WIDTH))
    for hook in hooks:
        hook.remove()
    # Of 25 frames; a block of two convolutions looks four back, the head two. From the end: head,
    # two blocks at full size, enlarging, two blocks at half of it.
    assert list(computed.values())[-6:] == [18, 14, 10, 10, 6, 2]
    assert computed[0] == 7


def test_two_interleaved_streams_do_not_disturb_each_other(decoder, latent_CFHW):
    second = seeded((16, 7, 1, 2), seed=7)
    states = new_decoder_state(decoder, HEIGHT, WIDTH), new_decoder_state(decoder, 8, 16)
    frames: tuple[list[torch.Tensor], ...] = ([], [])
    for first_part, second_part in zip(
        latent_CFHW.split(3, dim=1), second.split(3, dim=1), strict=True
    ):
        frames[0].append(decode_step(decoder, first_part, states[0]))
        frames[1].append(decode_step(decoder, second_part, states[1]))
    assert torch.equal(torch.cat(frames[0], dim=1), decode(decoder, latent_CFHW))
    assert torch.equal(torch.cat(frames[1], dim=1), decode(decoder, second))


def test_state_memory_is_allocated_once_and_never_grows(decoder, latent_CFHW):
    state = new_decoder_state(decoder, HEIGHT, WIDTH)
    addresses = [frames.data_ptr() for frames in state.open_history().frames]
    nbytes = state.nbytes
    stream(decoder, latent_CFHW, [1, 3, 3], state)
    assert [frames.data_ptr() for frames in state.open_history().frames] == addresses
    assert state.nbytes == nbytes


def test_state_of_the_public_model_has_its_known_size():
    with torch.device("meta"):
        public = Decoder(VAEConfig()).to(torch.bfloat16)
    assert new_decoder_state(public, 640, 384).nbytes == 2 * 581_099_520


def test_a_restored_snapshot_continues_exactly(decoder, latent_CFHW):
    original = new_decoder_state(decoder, HEIGHT, WIDTH)
    stream(decoder, latent_CFHW[:, :3], [3], original)
    snapshot = original.snapshot()
    expected = stream(decoder, latent_CFHW[:, 3:], [3, 1], original)
    resumed = new_decoder_state(decoder, HEIGHT, WIDTH)
    stream(decoder, seeded((16, 2, 2, 3), seed=5), [2], resumed)
    resumed.restore(snapshot)
    assert resumed.num_latent_frames == 3
    assert torch.equal(stream(decoder, latent_CFHW[:, 3:], [3, 1], resumed), expected)


def test_a_snapshot_of_a_new_stream_restores_a_new_stream(decoder, latent_CFHW):
    state = new_decoder_state(decoder, HEIGHT, WIDTH)
    fresh = state.snapshot()
    expected = stream(decoder, latent_CFHW, [3, 3, 1], state)
    state.restore(fresh)
    assert torch.equal(stream(decoder, latent_CFHW, [3, 3, 1], state), expected)


def test_a_foreign_snapshot_is_refused_and_changes_nothing(decoder, latent_CFHW):
    state = new_decoder_state(decoder, HEIGHT, WIDTH)
    stream(decoder, latent_CFHW, [7], state)
    before = state.snapshot()
    with pytest.raises(CheckpointError, match="same size"):
        state.restore(new_decoder_state(decoder, 8, 8).snapshot())
    with pytest.raises(CheckpointError, match="same VAE"):
        state.restore({"history.0": before["history.0"]})
    assert all(torch.equal(value, before[name]) for name, value in state.snapshot().items())


def test_a_reset_state_decodes_like_a_new_one(decoder, latent_CFHW):
    state = new_decoder_state(decoder, HEIGHT, WIDTH)
    first = stream(decoder, latent_CFHW, [3, 3, 1], state)
    state.reset()
    assert torch.equal(stream(decoder, latent_CFHW, [3, 3, 1], state), first)


def test_a_closed_state_refuses_every_use(decoder, latent_CFHW):
    state = new_decoder_state(decoder, HEIGHT, WIDTH)
    snapshot = state.snapshot()
    state.close()
    state.close()
    assert state.nbytes == 0
    for use in (
        lambda: decode_step(decoder, latent_CFHW, state),
        state.reset,
        state.snapshot,
        lambda: state.restore(snapshot),
    ):
        with pytest.raises(StreamClosedError, match="closed"):
            use()


def test_a_step_that_fails_half_way_closes_its_stream(latent_CFHW):
    broken = randomised(Decoder(TINY))
    state = new_decoder_state(broken, HEIGHT, WIDTH)
    broken.decoder.head["2"].weight.data = torch.zeros(3, 5, 3, 3, 3)
    with pytest.raises(RuntimeError):
        decode_step(broken, latent_CFHW, state)
    with pytest.raises(StreamClosedError):
        decode_step(broken, latent_CFHW, state)


@pytest.mark.parametrize("shape", [(16, 0, 2, 3), (15, 3, 2, 3), (16, 3, 3, 2), (16, 2, 3)])
def test_latents_of_another_shape_are_refused_and_change_nothing(decoder, latent_CFHW, shape):
    state = new_decoder_state(decoder, HEIGHT, WIDTH)
    with pytest.raises(ConfigError, match=re.escape(str(shape))):
        decode_step(decoder, torch.zeros(shape), state)
    assert torch.equal(stream(decoder, latent_CFHW, [3, 3, 1], state), decode(decoder, latent_CFHW))


@pytest.mark.parametrize("shape", [(16, 0, 2, 3), (16, 2, 3), (15, 3, 2, 3), (16, 3, 0, 3)])
def test_a_clip_of_impossible_shape_is_refused(decoder, shape):
    with pytest.raises(ConfigError):
        decode(decoder, torch.zeros(shape))


def test_sides_that_are_no_multiple_of_the_stride_are_refused(decoder):
    for height, width in ((12, 16), (16, 12), (0, 16), (-8, 16)):
        with pytest.raises(ConfigError, match="multiple of 8"):
            new_decoder_state(decoder, height, width)


@pytest.mark.parametrize(
    "shape", [(3, 0, 16, 16), (3, 4, 16, 16), (1, 5, 16, 16), (3, 16, 16), (3, 5, 12, 16)]
)
def test_a_video_of_impossible_shape_is_refused(encoder, shape):
    with pytest.raises(ConfigError):
        encode(encoder, torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "num_frames"),
    [((3, 16, 16), 0), ((3, 16, 16), 8), ((3, 16, 16), -3), ((1, 16, 16), 5), ((3, 12, 16), 5)],
)
def test_an_impossible_still_is_refused(encoder, shape, num_frames):
    with pytest.raises(ConfigError):
        encode_still(encoder, torch.zeros(shape), num_frames)


@pytest.mark.parametrize("num_frames", [1, 5, 13, 41, 97])
def test_a_still_encodes_as_its_repetition_does(encoder, num_frames):
    image = seeded((3, HEIGHT, WIDTH))
    repeated = image[:, None].expand(-1, num_frames, -1, -1)
    torch.testing.assert_close(
        encode_still(encoder, image, num_frames),
        encode(encoder, repeated),
        atol=ROUNDING,
        rtol=0,
    )


def test_a_still_leaves_most_full_resolution_frames_uncomputed(encoder):
    seen = []
    last_full_size_block = encoder.encoder.downsamples[0]
    hook = last_full_size_block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encode_still(encoder, seeded((3, HEIGHT, WIDTH)), 73)
    hook.remove()
    assert [len(frames) for frames in seen] == [7]  # 3 after the first convolution, 4 more here


def test_encoding_runs_in_chunks_of_bounded_length(encoder):
    lengths = []
    hook = encoder.encoder.register_forward_pre_hook(
        lambda _, inputs: lengths.append(len(inputs[0]))
    )
    encode(encoder, torch.zeros(3, 29, 8, 8))
    hook.remove()
    assert lengths == [1, 8, 8, 8, 4]


def test_both_ways_of_convolving_on_a_cpu_agree():
    # 8 x 9 x 16 is computed tap by tap, 8 x 9 x 300 by the 3-D kernel.
    conv = randomised(CausalConv3d(HistoryPlan(stride=1), 8, 6, (3, 3, 3)))
    for height in (16, 300):
        video = seeded((8, 9, height, 8))
        frames_TCHW = video.transpose(0, 1).contiguous(memory_format=torch.channels_last)
        expected = torch.nn.functional.conv3d(
            video[None], conv.weight, conv.bias, padding=(0, 1, 1)
        )[0]
        torch.testing.assert_close(
            convolve(frames_TCHW, conv).transpose(0, 1), expected, atol=ROUNDING, rtol=0
        )


def test_bfloat16_stays_near_float32(latent_CFHW):
    exact = decode(randomised(Decoder(TINY)), latent_CFHW)
    rounded = decode(randomised(Decoder(TINY)).to(torch.bfloat16), latent_CFHW)
    assert rounded.dtype == torch.bfloat16
    assert torch.isfinite(rounded).all()
    # bfloat16 has 8 bits: 0.4 % per rounding, some 40 roundings that add up like noise.
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


def test_bfloat16_encoding_stays_near_float32(encoder):
    video = seeded((3, 9, HEIGHT, WIDTH))
    exact = encode(encoder, video)
    rounded = encode(randomised(Encoder(TINY)).to(torch.bfloat16), video)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


def test_black_and_zero_inputs_stay_finite(encoder, decoder):
    silent = Encoder(TINY)
    for parameter in silent.parameters():
        parameter.data.zero_()
    assert torch.isfinite(encode(silent, torch.zeros(3, 5, 8, 8))).all()
    assert torch.isfinite(decode(decoder, torch.zeros(16, 3, 1, 1))).all()
    assert torch.isfinite(encode(encoder, torch.full((3, 5, 8, 8), -1.0))).all()


def test_a_half_built_on_the_meta_device_loads_its_tensors(decoder, latent_CFHW):
    with torch.device("meta"):
        loaded = Decoder(TINY)
    loaded.to_empty(device="cpu").load_state_dict(decoder.state_dict())
    assert torch.equal(decode(loaded, latent_CFHW), decode(decoder, latent_CFHW))


def test_networks_keep_nothing_but_parameters(encoder, decoder):
    for network in (encoder, decoder):
        assert list(network.buffers()) == []
        before = {name: set(vars(module)) for name, module in network.named_modules()}
        if network is encoder:
            encode(encoder, torch.zeros(3, 5, 8, 8))
        else:
            decode(decoder, torch.zeros(16, 2, 1, 1))
        assert {name: set(vars(module)) for name, module in network.named_modules()} == before


def test_bytes_are_clamped_and_rounded():
    frames = torch.tensor([-3.0, -1.0, -0.998, 0.0, 0.9999, 1.0, 7.0])
    frames_CTHW = frames.view(1, 1, 1, 7).expand(3, 2, 4, 7)
    result = to_uint8(frames_CTHW)
    assert result.shape == (2, 4, 7, 3)
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    assert result[0, 0, :, 0].tolist() == [0, 0, 0, 128, 255, 255, 255]


def test_history_is_in_the_networks_dtype(decoder):
    weight = decoder.conv2.weight.to(torch.bfloat16)
    history = new_history(decoder.decoder.history_specs, 8, 8, weight)
    assert {frames.dtype for frames in history.frames} == {torch.bfloat16}


def test_benchmark_reports_its_settings_and_results(capsys):
    threads = torch.get_num_threads()
    arguments = ["--dim", "4", "--size", "16*8", "--blocks", "2", "--threads", "1", "--json"]
    try:
        assert benchmark.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["width"] == 16
    assert report["state_bytes"] > 0
    assert report["results"]["ours"]["median_ms"] > 0
    assert report["environment"].keys() == {"commit", "device", "torch", "cuda"}


@pytest.mark.parametrize(
    "arguments",
    [["--size", "16x8"], ["--size", "12*8"], ["--blocks", "0"], ["--device", "nowhere"]],
)
def test_benchmark_refuses_bad_settings_with_one_line(capsys, arguments):
    threads = torch.get_num_threads()
    try:
        assert benchmark.main(["--dim", "4", *arguments]) == 2
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().err.count("\n") == 1
