"""The S2V diffusion transformer: embed, a range of layers, head.

Any contiguous range of layers can be built alone, as a pipeline stage. Modules hold weights and
nothing else: what a job needs beyond its tokens is passed in, made once per job or block:

    JobConstants   per layer: modulation of every timestep, keys and values of the text
    InjectedAudio  per injection layer: a block's speech
    LayerCache     per layer: condition and ring

Shapes: L tokens, D model width, N heads, H head width, C condition tokens, S denoise steps (row S
of a table is timestep 0, used by condition tokens), latents (C, F, H, W).

Source: Alibaba-Quark/LiveAvatar at 9c2c38d, causal S2V model; Wan-Video/Wan2.2 at 42bf4cf.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liveavatar.config import TransformerConfig
from liveavatar.model.attention import (
    CrossAttention,
    KeyValue,
    SelfAttention,
    apply_to_attended,
    attend,
)
from liveavatar.model.attention_backend import attend_window
from liveavatar.model.audio_injection import (
    AudioEncoder,
    AudioInjection,
    BlockAudio,
    InjectedAudio,
)
from liveavatar.model.fp8_attention import rounded_to
from liveavatar.model.fusing import fused
from liveavatar.model.kv_cache import CacheKind, CacheView
from liveavatar.model.motion import FramePacker, PatchEmbedding, unpatch
from liveavatar.model.norms import layer_norm
from liveavatar.model.rope import Rotation, rotate

NOISY, REFERENCE, MOTION = range(3)


@dataclass(frozen=True)
class TimeTable:
    """Time embeddings of the S denoise steps, then of timestep 0; float32.

    Attributes:
        head_SD: (S+1, D), for the head.
        layers_S6D: (S+1, 6, D), added to each layer's own modulation.
    """

    head_SD: Tensor
    layers_S6D: Tensor


@dataclass(frozen=True)
class LayerConstants:
    """What one layer needs all through a job.

    Attributes:
        modulation_S6D: shift, scale, gate of attention, then of the feed-forward, per timestep.
        text: keys and values of the prompt, (text_len, N, H).
    """

    modulation_S6D: Tensor
    text: KeyValue


@dataclass(frozen=True)
class JobConstants:
    """Constants of a range of layers, and of the head where the range ends with it."""

    layers: tuple[LayerConstants, ...]
    head_S2D: Tensor | None


class Embedder(nn.Module):
    """Latents to tokens: noisy blocks, and the condition tokens in front of the video."""

    def __init__(self, config: TransformerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config.in_dim, config.dim, config.patch_size, dtype)
        self.cond_encoder = PatchEmbedding(config.cond_dim, config.dim, config.patch_size, dtype)
        self.frame_packer = FramePacker(config, dtype)
        self.token_kind = nn.Parameter(torch.empty(3, config.dim, dtype=dtype))

    def embed_block(self, latent_CFHW: Tensor, pose_CFHW: Tensor | None = None) -> Tensor:
        """Embed a noisy block (C, F, H, W); without a pose its encoder adds only its bias."""
        hidden_LD = self.patch_embedding(latent_CFHW)
        pose = self.cond_encoder.bias if pose_CFHW is None else self.cond_encoder(pose_CFHW)
        return hidden_LD + (pose + self.token_kind[NOISY])

    def embed_condition(self, reference_CFHW: Tensor, motion_CFHW: Tensor) -> Tensor:
        """Embed reference (C, 1, H, W) and motion (C, F, H, W): order ref, near, 2x, 4x."""
        reference_LD = self.patch_embedding(reference_CFHW) + self.token_kind[REFERENCE]
        motion_LD = self.frame_packer(motion_CFHW) + self.token_kind[MOTION]
        return torch.cat([reference_LD, motion_LD])


class Layer(nn.Module):
    """Self-attention over condition and window, text attention, feed-forward, speech."""

    def __init__(self, config: TransformerConfig, dtype: torch.dtype, *, injects: bool) -> None:
        super().__init__()
        dim, heads, eps = config.dim, config.num_heads, config.eps
        self.eps = eps
        self.modulation = nn.Parameter(torch.empty(6, dim))
        self.self_attn = SelfAttention(dim, heads, eps, dtype)
        self.norm3 = nn.LayerNorm(dim, eps=eps, dtype=dtype)
        self.cross_attn = CrossAttention(dim, heads, eps, dtype)
        self.ffn_in = nn.Linear(dim, config.ffn_dim, dtype=dtype)
        self.ffn_out = nn.Linear(config.ffn_dim, dim, dtype=dtype)
        self.audio = AudioInjection(dim, heads, eps, dtype) if injects else None

    def constants(self, time: TimeTable, text_LD: Tensor) -> LayerConstants:
        """Make what this layer needs all through a job from the time table and text tokens."""
        return LayerConstants(
            self.modulation + time.layers_S6D, self.cross_attn.project_context(text_LD)
        )

    def forward(
        self,
        hidden_LD: Tensor,
        modulation_6D: Tensor,
        text: KeyValue,
        rotation: Rotation,
        cache: CacheView,
        audio: InjectedAudio | None,
    ) -> Tensor:
        """Denoise a block: write its keys and values, attend to condition and window.

        Args:
            hidden_LD: residual stream (L, D).
            modulation_6D: this timestep's row, (6, D) float32.
            text: prompt keys and values.
            rotation: positions of the block's tokens.
            cache: keeps the block's keys and values, and gives what it attends to.
            audio: the block's speech; None for layers without injection.

        Returns:
            (L, D), dtype of `hidden_LD`.
        """
        query_LNH = self._begin(hidden_LD, modulation_6D, rotation, cache)
        attended_LD = attend_window(query_LNH, cache.window)
        hidden_LD = self._finish_fused(hidden_LD, attended_LD, modulation_6D, text)
        if self.audio is None or audio is None:
            return hidden_LD
        return self.audio(hidden_LD, audio)

    def prefill(
        self, hidden_CD: Tensor, modulation_6D: Tensor, text: KeyValue, rotation: Rotation
    ) -> tuple[Tensor, KeyValue]:
        """Run condition tokens (C, D): full attention among themselves, no speech.

        Returns:
            Residual stream (C, D), and the un-rotated keys and values (C, N, H) for the cache.
        """
        query_CNH, key_CNH, value_CNH, turned_CNH = self._begin_condition(
            hidden_CD, modulation_6D, rotation
        )
        attended_CD = attend(query_CNH, KeyValue(turned_CNH, value_CNH))
        finished_CD = self._finish_fused(hidden_CD, attended_CD, modulation_6D, text)
        return finished_CD, KeyValue(key_CNH, value_CNH)

    @fused
    def _begin_condition(
        self, hidden_CD: Tensor, modulation_6D: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Everything in front of a condition's attention: queries, keys, values, turned keys."""
        query_CNH, own = self._project(hidden_CD, modulation_6D, rotation)
        return query_CNH, own.key_KNH, own.value_KNH, rotate(own.key_KNH, rotation)

    @fused
    def _begin(
        self, hidden_LD: Tensor, modulation_6D: Tensor, rotation: Rotation, cache: CacheView
    ) -> Tensor:
        """Everything in front of the attention: write keys and values, return the queries."""
        query_LNH, own = self._project(hidden_LD, modulation_6D, rotation)
        cache.write(KeyValue(rotate(own.key_KNH, rotation), own.value_KNH))
        return rounded_to(query_LNH, cache.window.key_KNH.dtype)

    def _project(
        self, hidden_LD: Tensor, modulation_6D: Tensor, rotation: Rotation
    ) -> tuple[Tensor, KeyValue]:
        shift, scale = modulation_6D[0], modulation_6D[1]
        modulated = _modulate(hidden_LD, shift, scale, self.eps).to(hidden_LD.dtype)
        return self.self_attn.project(modulated, rotation)

    def _finish(
        self, hidden_LD: Tensor, attended_LD: Tensor, modulation_6D: Tensor, text: KeyValue
    ) -> Tensor:
        """Everything behind the attention; float32 between the gated adds."""
        dtype = hidden_LD.dtype
        gate1, shift2, scale2, gate2 = modulation_6D[2:]
        wide_LD = hidden_LD + apply_to_attended(self.self_attn.o, attended_LD) * gate1
        wide_LD = wide_LD + self.cross_attn(self._norm3(wide_LD.to(dtype)), text)
        modulated = _modulate(wide_LD, shift2, scale2, self.eps).to(dtype)
        return (wide_LD + self.ffn_out(self._widen(modulated)) * gate2).to(dtype)

    def _norm3(self, narrow_LD: Tensor) -> Tensor:
        """`norm3`, see `layer_norm`."""
        if not torch.compiler.is_compiling():
            return cast(Tensor, self.norm3(narrow_LD))
        normed = layer_norm(narrow_LD, self.eps) * self.norm3.weight.float()
        return (normed + self.norm3.bias.float()).to(narrow_LD.dtype)

    def _widen(self, modulated_LD: Tensor) -> Tensor:
        """The first matrix of the feed-forward, and its activation."""
        rows = modulated_LD.ndim == 2  # training has clips of rows, and weights of another dtype
        if type(self.ffn_in) is nn.Linear and modulated_LD.is_cuda and rows:
            # The GPU's library applies this function to a product before it is written.
            weight, bias = self.ffn_in.weight, self.ffn_in.bias
            return torch._addmm_activation(bias, modulated_LD, weight.t(), use_gelu=True)
        return _gelu(self.ffn_in(modulated_LD))

    # For the condition's size as well: nobody sees a frame before it was run.
    _finish_fused = fused(_finish)


class Head(nn.Module):
    """Tokens to a velocity; float32 inside."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.patch = config.patch_size
        self.modulation = nn.Parameter(torch.empty(2, config.dim))
        self.linear = nn.Linear(config.dim, math.prod(config.patch_size) * config.out_dim)

    def constants(self, time: TimeTable) -> Tensor:
        """Shift and scale per timestep, (S+1, 2, D)."""
        return self.modulation + time.head_SD[:, None]

    def forward(self, hidden_LD: Tensor, modulation_2D: Tensor, grid: Sequence[int]) -> Tensor:
        """Predict the velocity (C, F, H, W), in the dtype of `hidden_LD`, of a token grid."""
        patches_LX = self.patches(hidden_LD, modulation_2D)
        return unpatch(patches_LX, grid, self.patch).to(hidden_LD.dtype)

    def patches(self, hidden_LD: Tensor, modulation_2D: Tensor) -> Tensor:
        """Predict the velocity of tokens (L, D) one by one, (L, patch volume * C) float32."""
        return self.linear(_modulate(hidden_LD, modulation_2D[0], modulation_2D[1], self.eps))


class Transformer(nn.Module):
    """A contiguous range of layers; the embedder in front of layer 0, the head behind the last.

    Args:
        config: shape of the whole network.
        layers: layer numbers to build, in a row; all by default. ValueError for others.
        dtype: of the large matrices; modulation and head stay float32.
        cache_kind: how jobs keep their keys and values.
        rings_on_shelf: whether these wait in host memory, see `ring_shelf.py`; not in e4m3.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layers: range | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        cache_kind: CacheKind = "exact",
        rings_on_shelf: bool = False,
    ) -> None:
        super().__init__()
        if rings_on_shelf and cache_kind == "e4m3":
            raise ValueError("rings on a shelf: expected exact or 8-bit caches, got e4m3")
        self.config = config
        self.cache_kind = cache_kind
        self.rings_on_shelf = rings_on_shelf
        whole = range(config.num_layers)
        self.layer_range = whole if layers is None else layers
        if not self.layer_range or self.layer_range != whole[slice(*_ends(self.layer_range))]:
            raise ValueError(f"expected some of the {config.num_layers} layers, in a row")
        self.embedder = Embedder(config, dtype) if 0 in self.layer_range else None
        self.layers = nn.ModuleDict(
            {
                str(index): Layer(config, dtype, injects=index in config.audio_inject_layers)
                for index in self.layer_range
            }
        )
        self.head = Head(config) if config.num_layers - 1 in self.layer_range else None

    @property
    def stack(self) -> tuple[Layer, ...]:
        """The built layers in order."""
        return tuple(cast(Layer, layer) for layer in self.layers.values())

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of the embedder, each layer and the head, as far as they are built."""
        ends = (("embedder", self.embedder), ("head", self.head))
        layers = ((f"layers.{index}", layer) for index, layer in self.layers.items())
        yield from ((name, part) for name, part in (ends[0], *layers, ends[1]) if part is not None)

    def embed_block(self, latent_CFHW: Tensor, pose_CFHW: Tensor | None = None) -> Tensor:
        """See `Embedder.embed_block`; ValueError where the range does not begin with layer 0."""
        return self._first().embed_block(latent_CFHW, pose_CFHW)

    def embed_condition(self, reference_CFHW: Tensor, motion_CFHW: Tensor) -> Tensor:
        """See `Embedder.embed_condition`; ValueError as for `embed_block`."""
        return self._first().embed_condition(reference_CFHW, motion_CFHW)

    def _first(self) -> Embedder:
        if self.embedder is None:
            raise ValueError("this range of layers does not begin with the embedder")
        return self.embedder

    def constants(self, time: TimeTable, text_LD: Tensor) -> JobConstants:
        """Make the constants of this range from the time table and text tokens (text_len, D)."""
        return JobConstants(
            tuple(layer.constants(time, text_LD) for layer in self.stack),
            None if self.head is None else self.head.constants(time),
        )

    def refill(self, constants: JobConstants, time: TimeTable, text_LD: Tensor) -> None:
        """Turn the constants of a job into those of another one, in place, layer by layer."""
        for layer, kept in zip(self.stack, constants.layers, strict=True):
            new = layer.constants(time, text_LD)
            kept.modulation_S6D.copy_(new.modulation_S6D)
            kept.text.key_KNH.copy_(new.text.key_KNH)
            kept.text.value_KNH.copy_(new.text.value_KNH)
        if self.head is not None and constants.head_S2D is not None:
            constants.head_S2D.copy_(self.head.constants(time))

    def prepare_audio(
        self, audio: BlockAudio, frame_tokens: tuple[int, ...] | None = None
    ) -> tuple[InjectedAudio | None, ...]:
        """Project a block's speech for every layer of this range, None where none is injected.

        See `AudioInjection.prepare`.
        """
        return tuple(
            None if layer.audio is None else layer.audio.prepare(audio, frame_tokens)
            for layer in self.stack
        )

    def forward(
        self,
        hidden_LD: Tensor,
        step: int,
        constants: JobConstants,
        rotation: Rotation,
        caches: Iterable[CacheView],
        audio: Sequence[InjectedAudio | None],
    ) -> Tensor:
        """Run this range on a block's residual stream (L, D) at denoise step `step`.

        The view of a layer's cache is taken right before the layer runs: caches that share a
        workspace are opened one at a time.
        """
        for layer, constant, cache, heard in zip(
            self.stack, constants.layers, caches, audio, strict=True
        ):
            hidden_LD = layer(
                hidden_LD, constant.modulation_S6D[step], constant.text, rotation, cache, heard
            )
        return hidden_LD

    def prefill(
        self,
        hidden_CD: Tensor,
        constants: JobConstants,
        rotation: Rotation,
        store: Callable[[int, KeyValue], None],
    ) -> Tensor:
        """Run this range on condition tokens (C, D) at timestep 0.

        Args:
            hidden_CD: embedded condition, or the previous stage's output.
            constants: of this range.
            rotation: positions of the condition tokens.
            store: takes each layer's place in the range and its un-rotated keys and values
                (C, N, H), as they are made; they are views, to be copied.

        Returns:
            The residual stream (C, D).
        """
        for place, (layer, constant) in enumerate(zip(self.stack, constants.layers, strict=True)):
            hidden_CD, own = layer.prefill(
                hidden_CD, constant.modulation_S6D[-1], constant.text, rotation
            )
            store(place, own)
        return hidden_CD


class ConditionEmbedder(nn.Module):
    """Timesteps, prompt and speech to what the layers read; run once per job or block.

    Time and speech are float32, text has the given dtype.
    """

    def __init__(self, config: TransformerConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.time_in = nn.Linear(config.freq_dim, dim)
        self.time_out = nn.Linear(dim, dim)
        self.time_projection = nn.Linear(dim, 6 * dim)
        self.text_in = nn.Linear(config.text_dim, dim, dtype=dtype)
        self.text_out = nn.Linear(dim, dim, dtype=dtype)
        self.audio_encoder = AudioEncoder(
            config.num_audio_states, config.audio_dim, dim, config.num_audio_token
        )

    def embed_time(self, timesteps: Sequence[float]) -> TimeTable:
        """Embed the timesteps (0..1000) of the denoise steps, and timestep 0 behind them."""
        half = self.config.freq_dim // 2
        frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.tensor([*timesteps, 0.0], dtype=torch.float64)[:, None] * frequency
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).float()
        head_SD = self.time_out(F.silu(self.time_in(waves.to(self.time_in.weight.device))))
        layers = self.time_projection(F.silu(head_SD))
        return TimeTable(head_SD, layers.unflatten(-1, (6, -1)))

    def embed_text(self, text_LD: Tensor) -> Tensor:
        """Embed prompt rows (l, text_dim), l <= text_len, padded with zero rows to text_len.

        The zero rows become constant vectors which the layers do attend to.
        """
        missing = self.config.text_len - text_LD.shape[0]
        padded = F.pad(text_LD.to(self.text_in.weight.dtype), (0, 0, 0, missing))
        return self.text_out(F.gelu(self.text_in(padded), approximate="tanh"))


def _ends(layers: range) -> tuple[int, int]:
    return layers.start, layers.stop


def _gelu(wide_LD: Tensor) -> Tensor:
    """The tanh form of GELU, x * logistic(2 u) where a compiler makes the kernel.

    Its tanh takes a GPU longer than all the rest of the pass; (1 + tanh u) / 2 is logistic(2 u).
    """
    if not torch.compiler.is_compiling():
        return F.gelu(wide_LD, approximate="tanh")
    value = wide_LD.float()
    slope = 2 * math.sqrt(2 / math.pi)
    return (value * torch.sigmoid(slope * (value + 0.044715 * value**3))).to(wide_LD.dtype)


def _modulate(hidden: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Layer norm without parameters, then scale and shift; float32.

    The reference rounds the first norm of a layer to bfloat16 before the shift; here nothing is
    rounded before the matrix that reads it.
    """
    return layer_norm(hidden, eps) * (1 + scale) + shift
