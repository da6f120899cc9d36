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

_MOST_SIZES = 32  # that one function is compiled for, and runs as written beyond

Result = TypeVar("Result")


def fused(function: Callable[..., Result]) -> Callable[..., Result]:
    """Compile `function` for large tensors on a GPU while no gradients are wanted.

    The first tensor among the arguments decides. Every size is compiled for itself.
    """
    return _fused(function, by_rows=False)


def fused_by_rows(function: Callable[..., Result]) -> Callable[..., Result]:
    """As `fused`, with one version for any number of rows, but one for each width of a row."""
    return _fused(function, by_rows=True)


def _fused(function: Callable[..., Result], *, by_rows: bool) -> Callable[..., Result]:
    @functools.cache
    def compiled() -> Callable[..., Result]:
        # Not before it is needed: the compiler is slow to import.
        torch._dynamo.config.recompile_limit = _MOST_SIZES
        return torch.compile(function, dynamic=None if by_rows else False)

    def plain(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        # Without its history a slice of a cache is like any other tensor; with it every slice would
        # be compiled for.
        data = argument.data
        if by_rows:
            _vary_rows(data)
        return data

    @functools.wraps(function)
    def run(*args: Any) -> Result:
        first = next(arg for arg in args if isinstance(arg, Tensor))
        large = first.is_cuda and first.numel() >= LEAST_VALUES
        if not large or torch.is_grad_enabled() or not _can_compile():
            return function(*args)
        return compiled()(*map(plain, args))

    return run


def _vary_rows(tensor: Tensor) -> None:
    """Tell the compiler that the first axis of a matrix has any size, and the others this one."""
    if tensor.ndim > 1:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
        torch._dynamo.mark_static(tensor, list(range(1, tensor.ndim)))


@functools.cache
def _can_compile() -> bool:
    """Whether the compiler that launches kernels is there."""
    return any(shutil.which(name) for name in ("cc", "gcc", "clang"))
