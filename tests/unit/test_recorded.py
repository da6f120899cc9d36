"""A forward can be replayed for another block: it touches nothing but tensors that stay in place.

A CUDA graph holds addresses. What a forward reads or writes beside what it makes itself is followed
here by address, on the CPU, for blocks and jobs that a recording would be replayed for.
"""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from liveavatar.model.audio_injection import BlockAudio
from liveavatar.model.denoiser import Denoiser, Item, TokenGrid
from liveavatar.model.fp8 import quantise_linears
from liveavatar.model.kv_cache import CacheKind
from liveavatar.model.transformer import TimeTable
from liveavatar.parallel.recorded import RecordedDenoiser
from liveavatar.random_checkpoint import TINY
from tests.unit import tiny
from tests.unit.tiny import Job, seeded

WINDOW, STEPS = 2, 2
GRID = TokenGrid(tiny.LATENT_SIDE // 2, tiny.LATENT_SIDE // 2)


class Touched(TorchDispatchMode):
    """Addresses of data that was there before and that operations are given."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[int] = set()
        self._made: set[int] = set()
        self._alive: list[Tensor] = []  # so that no address is used twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        storages = {t.untyped_storage().data_ptr() for t in given}
        self.addresses |= {
            t.data_ptr() for t in given if t.untyped_storage().data_ptr() not in self._made
        }
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self._alive += made
        self._made |= {t.untyped_storage().data_ptr() for t in made} - storages
        return out


def begin(state: Denoiser, job: Job) -> None:
    whole, inputs = state.transformer, job.conditions
    for version in (0, 1):
        condition = whole.embed_condition(inputs.reference_CFHW, inputs.motion_CFHW)
        state.prefill(condition, version)


def touched(state: Denoiser, hidden_LD: Tensor, item: Item) -> set[int]:
    """What `run` touches for an item, its input and the weights included."""
    speech = seeded(TINY.audio_dim, 12, seed=item.block_index)
    state.hear(item.block_index, tiny.embedder().audio_encoder.encode_block(speech))
    phase = state.prepare(item)
    with Touched() as mode:
        state.run(hidden_LD, phase)
    state.finish_block(item.block_index)
    return mode.addresses


@torch.no_grad()
@pytest.mark.parametrize("kind", ["exact", "8-bit", "e4m3"])
def test_later_blocks_and_jobs_touch_what_the_recorded_one_did(kind: CacheKind) -> None:
    job = tiny.job(8, window=WINDOW, steps=STEPS)
    dtype = torch.bfloat16 if kind == "e4m3" else torch.float32
    embedder = tiny.embedder(dtype)
    network = tiny.stage(range(4), dtype=dtype)
    if kind == "e4m3":
        for layer in network.stack:
            quantise_linears(layer)
    network.cache_kind = kind
    times = embedder.embed_time(job.schedule.timesteps)
    text_LD = embedder.embed_text(job.conditions.text_LD)
    state = Denoiser(network, times, text_LD, GRID, WINDOW)
    begin(state, job)
    hidden_LD = seeded(GRID.block_tokens, TINY.dim).to(dtype)
    for block in range(WINDOW):
        touched(state, hidden_LD, Item(block, 1, 0, 30))
    recorded = touched(state, hidden_LD, Item(WINDOW, 1, 1, 30))
    assert len(recorded) > 20
    for block, distance in ((WINDOW + 1, 4), (WINDOW + 2, 17)):
        assert touched(state, hidden_LD, Item(block, 1, 1, distance)) == recorded
    assert touched(state, hidden_LD, Item(WINDOW + 3, 0, 1, 30)) != recorded, "a phase of its own"
    state.renew(embedder.embed_time([900.0, 300.0]), text_LD + 1)
    begin(state, job)
    for block in range(WINDOW):
        touched(state, hidden_LD, Item(block, 1, 0, 30))
    assert touched(state, hidden_LD, Item(WINDOW, 1, 1, 30)) == recorded


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["exact", "8-bit", "e4m3"])
def test_replayed_forwards_have_the_bits_of_forwards_by_hand(kind: CacheKind) -> None:
    device = torch.device("cuda")
    job = tiny.job(6, window=WINDOW, steps=STEPS)
    network = tiny.stage(range(4), dtype=torch.bfloat16)
    for layer in network.stack:
        layer.modulation.data = layer.modulation.data.float()
    network.to(device).cache_kind = kind
    if kind == "e4m3":
        for layer in network.stack:
            quantise_linears(layer)
    embedder = tiny.embedder(torch.bfloat16)
    times = embedder.embed_time(job.schedule.timesteps)
    times = TimeTable(times.head_SD.to(device), times.layers_S6D.to(device))
    text_LD = embedder.embed_text(job.conditions.text_LD).to(device)
    states = [kept(network, times, text_LD, GRID, WINDOW) for kept in (Denoiser, RecordedDenoiser)]
    condition = seeded(states[0].cache_shape.condition_tokens, TINY.dim).bfloat16().to(device)
    speech = tiny.embedder().audio_encoder.encode_block(seeded(TINY.audio_dim, 12))
    heard = BlockAudio(speech.local_FKD.to(device), speech.global_FD.to(device))
    for state in states:
        for version in (0, 1):
            state.prefill(condition + version, version)
    for block in range(6):
        for state in states:
            state.hear(block, heard)
        for step in range(STEPS):
            hidden_LD = seeded(GRID.block_tokens, TINY.dim, seed=block).bfloat16().to(device)
            item = Item(block, step, int(block >= WINDOW), 4 + block)
            by_hand, replayed = (state.forward(hidden_LD, item) for state in states)
            assert torch.equal(by_hand, replayed)
