"""The network against its formulas in float64, its stages against the whole, bfloat16 near float32.

The naive network below keeps no cache and precomputes nothing: for every forward it projects the
text, embeds the timestep and encodes the speech again, and it concatenates the keys it attends to.
"""

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liveavatar.model.attention import KeyValue
from liveavatar.model.denoiser import Denoiser, Item
from liveavatar.model.kv_cache import ExactCache
from liveavatar.model.rope import (
    block_positions,
    condition_positions,
    grid_positions,
    reference_frame,
    rotation_at,
)
from liveavatar.model.transformer import ConditionEmbedder, Layer, Transformer
from liveavatar.random_checkpoint import TINY
from liveavatar.sampling import euler_step
from tests.unit import tiny
from tests.unit.tiny import Job, embedder, seeded, transformer

ROWS = COLUMNS = tiny.LATENT_SIDE // 2
FRAME_TOKENS = ROWS * COLUMNS


def linear(layer: nn.Linear, tokens: Tensor) -> Tensor:
    return F.linear(tokens, layer.weight.double(), layer.bias.double())


def layer_norm(tokens: Tensor, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=eps)


def rms(tokens: Tensor, weight: Tensor) -> Tensor:
    return tokens * (tokens.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()


def heads(tokens: Tensor) -> Tensor:
    return tokens.reshape(len(tokens), TINY.num_heads, TINY.head_dim)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = torch.einsum("lnh,knh->nlk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("nlk,knh->lnh", scores.softmax(-1), value).flatten(1)


def turned(vectors: Tensor, positions: npt.NDArray[np.int64]) -> Tensor:
    table = rotation_at(positions, TINY.head_dim)
    unit = torch.complex(table.cos_LR.double(), table.sin_LR.double())[:, None]
    pairs = torch.view_as_complex(vectors.reshape(*vectors.shape[:2], -1, 2))
    return torch.view_as_real(pairs * unit).flatten(-2)


class NaiveNetwork:
    """Sections of the network in float64 over the same weights, nothing kept but past keys."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.past: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self.conditions: dict[int, tuple[Tensor, Tensor]] = {}

    def text(self) -> Tensor:
        rows = self.job.conditions.text_LD.double()
        padded = F.pad(rows, (0, 0, 0, TINY.text_len - len(rows)))
        hidden = F.gelu(linear(embedder().text_in, padded), approximate="tanh")
        return linear(embedder().text_out, hidden)

    def time(self, timestep: float) -> tuple[Tensor, Tensor]:
        half = TINY.freq_dim // 2
        angles = timestep * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        waves = torch.cat([angles.cos(), angles.sin()])
        head = linear(embedder().time_out, F.silu(linear(embedder().time_in, waves)))
        return head, linear(embedder().time_projection, F.silu(head)).reshape(6, -1)

    def project(self, layer: Layer, tokens: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = linear(layer.self_attn.qkv, layer_norm(tokens) * (1 + m[1]) + m[0]).chunk(3, -1)
        attention = layer.self_attn
        q, k = rms(q, attention.norm_q.weight), rms(k, attention.norm_k.weight)
        return heads(q), heads(k), heads(v)

    def finish(self, layer: Layer, tokens: Tensor, attended: Tensor, m: Tensor) -> Tensor:
        tokens = tokens + linear(layer.self_attn.o, attended) * m[2]
        cross, norm3 = layer.cross_attn, layer.norm3
        k, v = linear(cross.kv, self.text()).chunk(2, -1)
        normed = layer_norm(tokens) * norm3.weight.double() + norm3.bias.double()
        q = rms(linear(cross.q, normed), cross.norm_q.weight)
        heard = softmax_attention(heads(q), heads(rms(k, cross.norm_k.weight)), heads(v))
        tokens = tokens + linear(cross.o, heard)
        inner = linear(layer.ffn_in, layer_norm(tokens) * (1 + m[4]) + m[3])
        return tokens + linear(layer.ffn_out, F.gelu(inner, approximate="tanh")) * m[5]

    def prefill(self, reference: Tensor) -> None:
        motion = self.job.conditions.motion_CFHW
        tokens = transformer().embed_condition(reference, motion).double()
        positions = condition_positions(30, ROWS, COLUMNS)
        for index, layer in enumerate(transformer().stack):
            m = layer.modulation.double() + self.time(0.0)[1]
            q, k, v = self.project(layer, tokens, m)
            self.conditions[index] = k, v
            attended = softmax_attention(turned(q, positions), turned(k, positions), v)
            tokens = self.finish(layer, tokens, attended, m)

    def velocity(self, sample: Tensor, item: Item) -> Tensor:
        first = 3 * item.block_index
        own_positions = block_positions(first, 3, ROWS, COLUMNS)
        stand = reference_frame(first, item.relative_distance)
        positions = condition_positions(stand, ROWS, COLUMNS)
        head_time, time = self.time(self.job.schedule.timesteps[item.step])
        tokens = transformer().embed_block(sample).double()
        for index, layer in enumerate(transformer().stack):
            m = layer.modulation.double() + time
            q, k, v = self.project(layer, tokens, m)
            past = self.past.setdefault((item.step, index), [])
            past.append((turned(k, own_positions), v))
            seen = past[-self.job.timeline.window_blocks :]
            condition_key, condition_value = self.conditions[index]
            key = torch.cat([turned(condition_key, positions), *(k for k, _ in seen)])
            value = torch.cat([condition_value, *(v for _, v in seen)])
            attended = softmax_attention(turned(q, own_positions), key, value)
            tokens = self.finish(layer, tokens, attended, m)
            tokens = self.inject(layer, tokens, item.block_index)
        head = transformer().head
        assert head is not None
        shift, scale = head.modulation.double() + head_time
        patches = linear(head.linear, layer_norm(tokens) * (1 + scale) + shift)
        cells = patches.reshape(3, ROWS, COLUMNS, 2, 2, 16)
        return cells.permute(5, 0, 1, 3, 2, 4).reshape(16, 3, 2 * ROWS, 2 * COLUMNS)

    def inject(self, layer: Layer, tokens: Tensor, block: int) -> Tensor:
        if layer.audio is None:
            return tokens
        speech = self.job.conditions.speech_AV[:, 12 * block : 12 * block + 12]
        audio = embedder().audio_encoder.encode_block(speech)
        attention, frames = layer.audio.attention, []
        for frame in range(3):
            own = tokens[frame * FRAME_TOKENS : (frame + 1) * FRAME_TOKENS]
            vector = F.silu(audio.global_FD[frame].double())
            shift, scale = linear(layer.audio.adain, vector).chunk(2)
            adapted = layer_norm(own, 1e-5) * (1 + scale) + shift
            k, v = linear(attention.kv, audio.local_FKD[frame].double()).chunk(2, -1)
            q = rms(linear(attention.q, adapted), attention.norm_q.weight)
            heard = softmax_attention(heads(q), heads(rms(k, attention.norm_k.weight)), heads(v))
            frames.append(own + linear(attention.o, heard))
        return torch.cat(frames)


def run_items(job: Job, state: Denoiser | None = None) -> Iterator[tuple[Item, Tensor]]:
    """Items of a job in order, each with its sample; advances samples with the cached network."""
    state, whole = state or tiny.denoiser(job), transformer()
    inputs = job.conditions
    state.prefill(whole.embed_condition(inputs.reference_CFHW, inputs.motion_CFHW), 0)
    for block in range(job.timeline.num_blocks):
        heard = inputs.speech_AV[:, 12 * block : 12 * block + 12]
        state.hear(block, embedder().audio_encoder.encode_block(heard))
        sample = job.draws.noise(block)
        for step in range(job.schedule.num_steps):
            item = Item(block, step, 0, job.draws.distance(block, step))
            velocity = state.head(state.forward(whole.embed_block(sample), item), step)
            yield item, torch.stack([sample, velocity])
            sample = euler_step(sample, velocity, job.schedule, step)


@torch.no_grad()
def test_caches_and_constants_change_nothing_against_recomputing_everything() -> None:
    job = tiny.job(5, window=2, steps=3)
    naive = NaiveNetwork(job)
    naive.prefill(job.conditions.reference_CFHW)
    compared = 0
    for item, (sample, velocity) in run_items(job):
        expected = naive.velocity(sample, item)
        # float32 against float64 through four layers: relative error of a few roundings (6e-8)
        # each of some forty operations.
        assert (velocity - expected).norm() < 1e-5 * expected.norm()
        compared += 1
    assert compared == 15


@torch.no_grad()
def test_the_state_of_one_job_serves_the_next_and_nothing_is_left_of_the_first() -> None:
    first, second = tiny.job(3, seed=1), tiny.job(4, seed=2)
    state = tiny.denoiser(first)
    for _ in run_items(first, state):
        pass
    kept = [cache.key_SKNH.data_ptr() for cache in state.caches if isinstance(cache, ExactCache)]
    state.renew(
        embedder().embed_time(second.schedule.timesteps),
        embedder().embed_text(second.conditions.text_LD),
    )
    for (_, ours), (_, expected) in zip(run_items(second, state), run_items(second), strict=True):
        assert torch.equal(ours, expected)
    assert kept == [c.key_SKNH.data_ptr() for c in state.caches if isinstance(c, ExactCache)]


def test_a_dropped_state_is_freed_at_once() -> None:
    """Its caches are gigabytes: they cannot wait for the collector of cycles."""
    state = tiny.denoiser(tiny.job(1))
    cache = weakref.ref(state.caches[0])
    gc.disable()
    try:
        del state
        assert cache() is None
    finally:
        gc.enable()


@torch.no_grad()
def test_text_and_speech_and_timesteps_made_again_per_forward_are_bitwise_the_same() -> None:
    """The same operations on the same numbers, so that there is nothing to round otherwise."""
    job = tiny.job(3)
    text, times = job.conditions.text_LD, job.schedule.timesteps
    kept = tiny.denoiser(job)
    fresh = tiny.denoiser(job)
    condition = transformer().embed_condition(
        job.conditions.reference_CFHW, job.conditions.motion_CFHW
    )
    kept.prefill(condition, 0)
    fresh.prefill(condition, 0)
    for block, step in itertools.product(range(3), range(2)):
        speech = job.conditions.speech_AV[:, 12 * block : 12 * block + 12]
        if step == 0:
            kept.hear(block, embedder().audio_encoder.encode_block(speech))
        fresh.hear(block, embedder().audio_encoder.encode_block(speech))
        fresh.constants = transformer().constants(
            embedder().embed_time(times), embedder().embed_text(text)
        )
        item = Item(block, step, 0, 17)
        hidden = transformer().embed_block(job.draws.noise(block))
        ours, again = kept.forward(hidden, item), fresh.forward(hidden, item)
        assert torch.equal(ours, again)
        assert torch.equal(kept.head(ours, step), fresh.head(again, step))


def splits() -> list[tuple[range, ...]]:
    """Every way to cut four layers into one to four stages."""
    found = []
    for count in range(4):
        for cuts in itertools.combinations(range(1, 4), count):
            edges = (0, *cuts, 4)
            found.append(tuple(range(a, b) for a, b in itertools.pairwise(edges)))
    return found


def test_every_split_is_tried() -> None:
    assert len(splits()) == 8
    assert {len(split) for split in splits()} == {1, 2, 3, 4}


@torch.no_grad()
@pytest.mark.parametrize("split", splits(), ids=lambda split: "-".join(str(len(r)) for r in split))
def test_chained_stages_are_bitwise_the_whole(split: tuple[range, ...]) -> None:
    job = tiny.job(3)
    whole = tiny.denoiser(job)
    stages = [tiny.denoiser(job, tiny.stage(layers)) for layers in split]
    inputs = job.conditions
    hidden = stages[0].transformer.embed_condition(inputs.reference_CFHW, inputs.motion_CFHW)
    expected = whole.prefill(hidden, 0)
    for stage in stages:
        hidden = stage.prefill(hidden, 0)
    assert torch.equal(hidden, expected)
    for block, step in itertools.product(range(3), range(2)):
        heard = inputs.speech_AV[:, 12 * block : 12 * block + 12]
        audio = embedder().audio_encoder.encode_block(heard)
        item = Item(block, step, 0, job.draws.distance(block, step))
        sample = job.draws.noise(block)
        hidden = stages[0].transformer.embed_block(sample)
        whole.hear(block, audio)
        expected = whole.forward(transformer().embed_block(sample), item)
        for stage in stages:
            stage.hear(block, audio)
            hidden = stage.forward(hidden, item)
        assert torch.equal(hidden, expected)
        assert torch.equal(stages[-1].head(hidden, step), whole.head(expected, step))


@pytest.mark.parametrize("split", splits(), ids=lambda split: "-".join(str(len(r)) for r in split))
def test_stages_share_out_the_parameters_of_the_whole(split: tuple[range, ...]) -> None:
    names = [name for layers in split for name in Transformer(TINY, layers).state_dict()]
    assert sorted(names) == sorted(transformer().state_dict())


def test_a_stage_has_an_embedder_only_in_front_and_a_head_only_behind() -> None:
    first, middle, last = (tiny.stage(layers) for layers in (range(1), range(1, 3), range(3, 4)))
    assert first.embedder is not None
    assert first.head is None
    assert (middle.embedder, middle.head) == (None, None)
    assert last.embedder is None
    assert last.head is not None
    latent = torch.zeros(16, 3, 8, 8)
    for embed in (middle.embed_block, partial(middle.embed_condition, torch.zeros(16, 1, 8, 8))):
        with pytest.raises(ValueError, match="does not begin with the embedder"):
            embed(latent)
    with pytest.raises(ValueError, match="does not end with the head"):
        tiny.denoiser(tiny.job(1), middle).head(torch.zeros(48, TINY.dim), 0)


@torch.no_grad()
def test_noisy_reference_and_motion_tokens_are_marked_as_such() -> None:
    inputs, front = tiny.conditions(1), transformer().embedder
    assert front is not None
    noisy, reference, motion = front.token_kind.double()
    pose = front.cond_encoder.bias.double()
    expected = front.patch_embedding(inputs.motion_CFHW[:, :3]).double() + pose + noisy
    ours = transformer().embed_block(inputs.motion_CFHW[:, :3])
    # Two float32 additions of numbers about 1.
    assert torch.allclose(ours.double(), expected, atol=1e-6)
    packed = front.frame_packer(inputs.motion_CFHW).double() + motion
    still = front.patch_embedding(inputs.reference_CFHW).double() + reference
    condition = transformer().embed_condition(inputs.reference_CFHW, inputs.motion_CFHW)
    assert torch.allclose(condition.double(), torch.cat([still, packed]), atol=1e-6)


@torch.no_grad()
def test_a_pose_of_zeros_is_no_pose() -> None:
    latent = seeded(16, 3, 8, 8)
    with_pose = transformer().embed_block(latent, torch.zeros(16, 3, 8, 8))
    # The bias is added to a sum of zero products: the same number.
    assert torch.equal(with_pose, transformer().embed_block(latent))
    assert not torch.equal(transformer().embed_block(latent, latent), with_pose)


@torch.no_grad()
def test_the_prompt_is_padded_with_zero_rows_that_are_attended() -> None:
    rows = seeded(5, TINY.text_dim)
    text = embedder().embed_text(rows)
    assert text.shape == (TINY.text_len, TINY.dim)
    zeros = torch.zeros(TINY.text_len - 5, TINY.text_dim)
    assert torch.equal(text, embedder().embed_text(torch.cat([rows, zeros])))
    assert text[5:].any()
    assert torch.allclose(text[5:], text[5].expand_as(text[5:]), atol=1e-6)


@torch.no_grad()
def test_an_empty_prompt_is_all_padding() -> None:
    text = embedder().embed_text(torch.zeros(0, TINY.text_dim))
    assert text.shape == (TINY.text_len, TINY.dim)
    assert text.isfinite().all()


@torch.no_grad()
def test_the_last_row_of_the_time_table_is_timestep_zero() -> None:
    table = embedder().embed_time([900.0, 10.0])
    assert table.head_SD.shape == (3, TINY.dim)
    assert table.layers_S6D.shape == (3, 6, TINY.dim)
    zero = embedder().embed_time([0.0])
    assert torch.allclose(table.head_SD[2], zero.head_SD[0], atol=1e-6)
    assert not torch.allclose(table.head_SD[0], table.head_SD[1], atol=1e-2)


def in_bfloat16(network: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    copy = build()
    copy.load_state_dict(network.state_dict())
    return copy.requires_grad_(False).eval()


@torch.no_grad()
def test_a_bfloat16_network_stays_close_to_float32_of_the_same_weights() -> None:
    job = tiny.job(3)
    half = in_bfloat16(transformer(), lambda: Transformer(TINY, None, torch.bfloat16))
    conditions = in_bfloat16(embedder(), lambda: ConditionEmbedder(TINY, torch.bfloat16))
    assert isinstance(half, Transformer)
    assert isinstance(conditions, ConditionEmbedder)
    inputs, full = job.conditions, tiny.denoiser(job)
    short = Denoiser(
        half,
        conditions.embed_time(job.schedule.timesteps),
        conditions.embed_text(inputs.text_LD),
        full.grid,
        job.timeline.window_blocks,
    )
    for state, network in ((full, transformer()), (short, half)):
        state.prefill(network.embed_condition(inputs.reference_CFHW, inputs.motion_CFHW), 0)
    assert {cast(ExactCache, c).key_SKNH.dtype for c in short.caches} == {torch.bfloat16}
    for block, step in itertools.product(range(3), range(2)):
        heard = inputs.speech_AV[:, 12 * block : 12 * block + 12]
        item, sample = Item(block, step, 0, 12), job.draws.noise(block)
        velocities = []
        for state, network in ((full, transformer()), (short, half)):
            state.hear(block, embedder().audio_encoder.encode_block(heard))
            hidden = state.forward(network.embed_block(sample), item)
            velocities.append(state.head(hidden, step))
        exact, rounded = velocities
        assert hidden.dtype == rounded.dtype == torch.bfloat16
        # bfloat16 rounds by 2^-9 = 0.2 %; a few dozen roundings on the way add up as a random sum.
        assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


@torch.no_grad()
def test_the_stream_is_float32_between_the_gated_adds_of_a_bfloat16_layer() -> None:
    """The three parts that a layer adds are rounded once, so parts below a bfloat16 step count."""
    layer = transformer().stack[1]
    half = Layer(TINY, torch.bfloat16, injects=False)
    half.load_state_dict(layer.state_dict())
    # Nothing but output biases is added: 2^-9, 2^-8 and 2^-9, at most half a step of the stream.
    for linear_layer in (half.cross_attn.o, half.ffn_out, half.self_attn.o):
        linear_layer.weight.data.zero_()
        linear_layer.bias.data.fill_(2.0**-8)
    modulation = torch.zeros(6, TINY.dim)
    modulation[2] = modulation[5] = 0.5
    hidden = torch.ones(4, TINY.dim, dtype=torch.bfloat16)
    text = KeyValue(*(torch.ones(3, 2, 32, dtype=torch.bfloat16) for _ in range(2)))
    rotation = rotation_at(grid_positions([0], [0], range(4)), TINY.head_dim)
    out, _ = half.prefill(hidden, modulation, text, rotation)
    # 1 + 2^-9 + 2^-8 + 2^-9 = 1 + 2^-7: a whole bfloat16 step, which none of the parts is.
    assert torch.equal(out, torch.full_like(out, 1 + 2.0**-7))
