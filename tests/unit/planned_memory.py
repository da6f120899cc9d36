"""Sizes that the tests of the memory plan share, and what real modules and runs hold."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from liveavatar.config import SamplingConfig, TransformerConfig
from liveavatar.model.quantised_cache import Int8KeyValue
from liveavatar.plan.precision import BFLOAT16, FLOAT32
from liveavatar.plan.shapes import Network, SpeechEncoderShape, TextEncoderShape, VAEShape
from liveavatar.random_checkpoint import TINY

WAN = TransformerConfig()
BALANCED = SamplingConfig(num_clip=50)
PORTRAIT_HW = (640, 384)
DTYPES = {BFLOAT16: torch.bfloat16, FLOAT32: torch.float32}
TINY_VAE_SHAPE = VAEShape(dim=4, num_res_blocks=1)
TINY_TEXT_SHAPE = TextEncoderShape(256, 32, 32, 4, 48, 2)
TINY_SPEECH_SHAPE = SpeechEncoderShape(32, 64, 2, (24,) * 7, position_kernel=16, position_groups=4)
TINY_NETWORK = Network(TINY, TINY_VAE_SHAPE, TINY_TEXT_SHAPE, TINY_SPEECH_SHAPE)


def parameter_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def storage_bytes(*tensors: Tensor) -> int:
    """Bytes of the distinct storages behind tensors."""
    return sum({id(s): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


def int8_bytes(*held: Int8KeyValue) -> int:
    """Bytes of keys and values in 8 bits with their scales."""
    vectors = [int8 for kv in held for int8 in (kv.key, kv.value)]
    return storage_bytes(*(t for int8 in vectors for t in (int8.values, int8.scale)))


class PeakMemory(TorchDispatchMode):
    """Notes the most bytes of tensors alive at once that were made while it was on."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        held = {t.untyped_storage()._cdata for t in given} - self._known.keys()
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage(), held)
        return result

    def _note(self, storage: torch.UntypedStorage, held: set[int]) -> None:
        key = storage._cdata
        if key in held or key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self._known.pop(key)
