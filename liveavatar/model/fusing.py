"""Run the work between matrix products in as few kernels as possible.

A decorated function is compiled by torch when it is first given large tensors on a GPU; on the CPU,
for small networks and where there is no C compiler it runs as written. It can be switched off with
`torch.compiler.set_stance("force_eager")` or TORCH_COMPILE_DISABLE=1. What was compiled lies in
torch's cache on disk, so that a second start is quick.
"""

import functools
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

LEAST_VALUES = 2**20
"""Values of a tensor from which compiling pays; smaller networks never wait for it."""

Result = TypeVar("Result")


def fused(function: Callable[..., Result]) -> Callable[..., Result]:
    """Compile `function` for large tensors on a GPU while no gradients are wanted.

    The first tensor among the arguments decides. The first size seen is compiled for itself, all
    others share one version of any size.
    """

    @functools.cache
    def compiled() -> Callable[..., Result]:
        return torch.compile(function)  # not before it is needed: the compiler is slow to import

    @functools.wraps(function)
    def run(*args: Any) -> Result:
        first = next(arg for arg in args if isinstance(arg, Tensor))
        large = first.is_cuda and first.numel() >= LEAST_VALUES
        if not large or torch.is_grad_enabled() or not _can_compile():
            return function(*args)
        # Without its history a slice of a cache is like any other tensor; with it every slice would
        # be compiled for.
        return compiled()(*(arg.data if isinstance(arg, Tensor) else arg for arg in args))

    return run


@functools.cache
def _can_compile() -> bool:
    """Whether the compiler that launches kernels is there."""
    return any(shutil.which(name) for name in ("cc", "gcc", "clang"))
