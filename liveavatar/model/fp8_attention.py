"""Attention over queries, keys and values in e4m3, by a kernel of cuDNN where that has one.

Tensors have no scales of their own: queries and keys are normalised, and e4m3 is a floating-point
format. On one H100 a block against a full window takes 1.18 ms, in bfloat16 1.67 (688*368, 40
heads, cuDNN 9.19), and the result goes into the next matrix product without being rounded again.

The kernel needs the optional package nvidia-cudnn-frontend and a Hopper or later GPU;
`flash3_attention.py` has another one. Elsewhere the same numbers are attended to in a wider format.

Shapes: L query tokens, K keys, N heads, H head width.
"""

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from liveavatar.model.fp8 import ATTENDED_SCALE, DTYPE, MAX

_WEIGHT_SCALE = 256.0  # of softmax weights, which are 1 at most
_FIRST_CAPABILITY = (9, 0)


def rounded_to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in e4m3 if that is `dtype`, what is too large for it at its end; else as it is."""
    return tensor.clamp(-MAX, MAX).to(DTYPE) if dtype == DTYPE else tensor


def attend_e4m3(query_LNH: Tensor, key_KNH: Tensor, value_KNH: Tensor) -> Tensor:
    """Full softmax attention, scale 1/sqrt(H), no mask.

    Args:
        query_LNH: (L, N, H) e4m3.
        key_KNH: (K, N, H) e4m3.
        value_KNH: likewise.

    Returns:
        ATTENDED_SCALE times the result, (L, N*H) e4m3.
    """
    if query_LNH.is_cuda:
        shape = (*query_LNH.shape, key_KNH.shape[0])
        kernel = _kernel(query_LNH.device, *shape)
        if kernel is not None:
            return kernel(query_LNH, key_KNH, value_KNH)
    wide = torch.bfloat16 if query_LNH.is_cuda else torch.float32
    query, key, value = (
        tokens.to(wide).transpose(0, 1)[None] for tokens in (query_LNH, key_KNH, value_KNH)
    )
    out_LNH = F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1)
    return rounded_to(out_LNH.flatten(1) * ATTENDED_SCALE, DTYPE)


def has_kernel(
    device: torch.device, num_queries: int, num_heads: int, width: int, num_keys: int
) -> bool:
    """Whether there is a kernel of cuDNN for these sizes L, N, H and K."""
    return _kernel(device, num_queries, num_heads, width, num_keys) is not None


@dataclass(frozen=True)
class _Kernel:
    """An execution plan of cuDNN for one shape.

    Attributes:
        library: nvidia-cudnn-frontend.
        graph: the plan's.
        handle: of the library.
        query, key, value, out: the graph's tensors.
        fixed: the other ones, with their memory.
        workspace: of the kernel.
    """

    library: Any
    graph: Any
    handle: Any
    query: Any
    key: Any
    value: Any
    out: Any
    fixed: dict[Any, Tensor]
    workspace: Tensor

    def __call__(self, query_LNH: Tensor, key_KNH: Tensor, value_KNH: Tensor) -> Tensor:
        query_LNH = query_LNH.contiguous()
        out_LNH = torch.empty_like(query_LNH)
        stream = torch.cuda.current_stream(query_LNH.device).cuda_stream
        self.library.set_stream(handle=self.handle, stream=stream)
        given = {self.query: query_LNH, self.key: key_KNH, self.value: value_KNH}
        memory = {**given, self.out: out_LNH, **self.fixed}
        self.graph.execute(memory, self.workspace, handle=self.handle)
        return out_LNH.flatten(1)


@functools.cache
def _kernel(
    device: torch.device, num_queries: int, num_heads: int, width: int, num_keys: int
) -> _Kernel | None:
    """Build the kernel for a shape; None where the library or the card has none."""
    if torch.cuda.get_device_capability(device) < _FIRST_CAPABILITY:
        return None
    try:
        cudnn = importlib.import_module("cudnn")
    except ImportError:
        return None
    kinds, handle = cudnn.data_type, cudnn.create_handle()
    graph = cudnn.pygraph(
        io_data_type=kinds.FP8_E4M3,
        intermediate_data_type=kinds.FLOAT,
        compute_data_type=kinds.FLOAT,
        handle=handle,
    )

    def layout(num_tokens: int) -> dict[str, Any]:
        inner = num_heads * width
        stride = (num_tokens * inner, width, inner, 1)
        return {"dim": (1, num_heads, num_tokens, width), "stride": stride}

    query = graph.tensor(**layout(num_queries), data_type=kinds.FP8_E4M3)
    key, value = (graph.tensor(**layout(num_keys), data_type=kinds.FP8_E4M3) for _ in range(2))
    single = {"dim": (1, 1, 1, 1), "stride": (1, 1, 1, 1)}
    factors = {
        "descale_q": 1.0,
        "descale_k": 1.0,
        "descale_v": 1.0,
        "scale_s": _WEIGHT_SCALE,
        "descale_s": 1 / _WEIGHT_SCALE,
        "scale_o": ATTENDED_SCALE,
    }
    scales = {name: graph.tensor(**single, data_type=kinds.FLOAT) for name in factors}
    out, _, *largest = graph.sdpa_fp8(
        q=query, k=key, v=value, **scales, is_inference=True, attn_scale=width**-0.5,
        use_causal_mask=False,
    )  # fmt: skip
    sizes = layout(num_queries)
    out.set_output(True).set_dim(sizes["dim"]).set_stride(sizes["stride"])
    out.set_data_type(kinds.FP8_E4M3)
    for one in largest:
        one.set_output(True).set_dim(single["dim"]).set_stride(single["stride"])
        one.set_data_type(kinds.FLOAT)
    try:
        graph.build([cudnn.heur_mode.A])
    except cudnn.cudnnGraphNotSupportedError:
        return None
    fixed = {
        scales[name]: torch.full((1, 1, 1, 1), factors[name], device=device) for name in scales
    }
    fixed |= {one: torch.empty((1, 1, 1, 1), device=device) for one in largest}
    workspace = torch.empty(max(1, graph.get_workspace_size()), dtype=torch.uint8, device=device)
    return _Kernel(cudnn, graph, handle, query, key, value, out, fixed, workspace)
