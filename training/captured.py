"""A step recorded once and replayed: small networks spend their time on launching kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LOG = logging.getLogger("captured")
_WARM_UP_CALLS = 2


class Captured:
    """A function of device tensors as a CUDA graph; a plain call where there is no GPU.

    Args:
        function: reads nothing from the device and makes no tensors of host numbers. It is called
            a few times while it is recorded.
        inputs: examples; later ones have the same shapes.
        pool: of `torch.cuda.graph_pool_handle`, memory shared with other recordings that never run
            at the same time. A result is then good until any of them is called. None for its own.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        pool: Any = None,
    ) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None
        if not inputs[0].is_cuda:
            return
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                self.output = function(*self.inputs)
        except RuntimeError as error:
            _LOG.warning("not recorded, goes on step by step: %s", str(error).splitlines()[0])
            return
        self.graph = graph

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run on other inputs; on a GPU the result is overwritten by the next call."""
        if self.graph is None:
            return self.function(*inputs)
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.output
