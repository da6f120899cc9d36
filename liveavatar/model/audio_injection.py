"""Speech into the transformer: the causal audio encoder, and its injection after chosen layers.

Shapes: A audio feature width, V video frames, F latent frames (V/4), L tokens of a block, P tokens
of one latent frame (L = F*P), K speech tokens of one, D model width, N heads, H head width,
X = N*K, Y wav2vec hidden states.

Source: Wan-Video/Wan2.2 wan/modules/s2v at 42bf4cf, `CausalAudioEncoder` and `AudioInjector_WAN`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liveavatar.model.attention import CrossAttention
from liveavatar.model.fusing import fused
from liveavatar.model.norms import layer_norm

# An output frame sees 9 video frames: two stride-2 convolutions over one of stride 1, kernel 3
# each. Five copies of the first frame in front and the first two outputs dropped give the same
# numbers as the 73 copies of the reference.
HISTORY_FRAMES = 5
HISTORY_LATENT_FRAMES = 2
STREAM_EPS = 1e-6
ADAIN_EPS = 1e-5


@dataclass(frozen=True)
class BlockAudio:
    """Encoded speech of one block.

    Attributes:
        local_FKD: tokens of each latent frame, the learned padding token last, (F, 5, D) float32.
        global_FD: one vector per latent frame, (F, D) float32.
    """

    local_FKD: Tensor
    global_FD: Tensor


@dataclass(frozen=True)
class InjectedAudio:
    """What one injection layer needs of a block's speech, computed once for all denoise steps.

    Attributes:
        shift_F1D, scale_F1D: adaptive norm per latent frame.
        key_FKNH: keys of the speech tokens.
        told_FXD: what each head adds to the residual stream for each token, (F, N*K, D): its value,
            taken through the head's part of the output matrix.
        frame_tokens: how many of the tokens at hand are of each latent frame; None when they are
            all there, as many of every frame.
    """

    shift_F1D: Tensor
    scale_F1D: Tensor
    key_FKNH: Tensor
    told_FXD: Tensor
    frame_tokens: tuple[int, ...] | None = None

    def copy(self) -> "InjectedAudio":
        """The same numbers in memory of their own."""
        shift, scale, key, told = (tensor.clone() for tensor in self.tensors)
        return InjectedAudio(shift, scale, key, told, self.frame_tokens)

    @property
    def tensors(self) -> list[Tensor]:
        """All numbers of it."""
        return [self.shift_F1D, self.scale_F1D, self.key_FKNH, self.told_FXD]

    def of_frame(self, frame: int) -> "InjectedAudio":
        """What one latent frame of the block hears."""
        one = slice(frame, frame + 1)
        shift, scale, key, told = (tensor[one] for tensor in self.tensors)
        return InjectedAudio(shift, scale, key, told)


def fill_audio(kept: Sequence[InjectedAudio | None], heard: Sequence[InjectedAudio | None]) -> None:
    """Copy a block's speech for every layer over that of another block."""
    targets = [tensor for one in kept if one is not None for tensor in one.tensors]
    sources = [tensor for one in heard if one is not None for tensor in one.tensors]
    if targets:
        torch._foreach_copy_(targets, sources)


class AudioEncoder(nn.Module):
    """Mixed wav2vec features to local tokens and a global vector per latent frame; float32.

    Args:
        num_states: wav2vec hidden states Y that are mixed.
        audio_dim: feature width A.
        dim: model width D.
        num_tokens: local tokens per latent frame, the padding token not counted.
    """

    def __init__(self, num_states: int, audio_dim: int, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.mix_weights = nn.Parameter(torch.empty(num_states))
        self.padding_token = nn.Parameter(torch.empty(dim))
        self.conv1_local = nn.Conv1d(audio_dim, dim // 4 * num_tokens, 3)
        self.conv1_global = nn.Conv1d(audio_dim, dim // 4, 3)
        self.conv2 = nn.Conv1d(dim // 4, dim // 2, 3, stride=2)
        self.conv3 = nn.Conv1d(dim // 2, dim, 3, stride=2)
        self.final_linear = nn.Linear(dim, dim)

    def mixing_weights(self) -> Tensor:
        """Weight of each wav2vec hidden state, (Y,), sum 1.

        Mixing is linear and without history, so it is done while the states appear, and the stack
        of all of them never exists.
        """
        weights = F.silu(self.mix_weights)
        return weights / weights.sum()

    def forward(self, mixed_AV: Tensor) -> BlockAudio:
        """Encode a stretch of mixed features (A, V) from its first frame on; F = ceil(V/4)."""
        local = self.conv1_local(_replicate_left(mixed_AV.float()))
        streams = local.unflatten(0, (self.num_tokens, -1))
        whole = self.conv1_global(_replicate_left(mixed_AV.float()))
        streams = torch.cat([streams, whole[None]])
        for conv in (None, self.conv2, self.conv3):
            if conv is not None:
                streams = conv(_replicate_left(streams))
            normed = F.layer_norm(streams.transpose(1, 2), streams.shape[1:2], eps=STREAM_EPS)
            streams = F.silu(normed).transpose(1, 2)
        tokens_KFD = streams.transpose(1, 2)
        padding_1FD = self.padding_token.expand(1, tokens_KFD.shape[1], -1)
        # Contiguous, as it is behind a link between ranks: in bfloat16 a product of a transposed
        # view is rounded otherwise, and a group would not make the video of one device.
        local_FKD = torch.cat([tokens_KFD[:-1], padding_1FD]).transpose(0, 1).contiguous()
        return BlockAudio(local_FKD, self.final_linear(tokens_KFD[-1]).contiguous())

    def encode_block(self, mixed_AV: Tensor) -> BlockAudio:
        """Encode the mixed features (A, V) of one block; earlier speech is not seen."""
        history = mixed_AV[:, :1].expand(-1, HISTORY_FRAMES)
        encoded = self(torch.cat([history, mixed_AV], dim=1))
        return BlockAudio(
            encoded.local_FKD[HISTORY_LATENT_FRAMES:], encoded.global_FD[HISTORY_LATENT_FRAMES:]
        )


class AudioInjection(nn.Module):
    """Cross-attention of each latent frame to its own speech tokens, after a transformer layer.

    A block has few speech tokens and many of its own, and runs once per denoise step. So the output
    matrix meets the values of the speech, once a block, and not their averages in every forward: a
    head's weights then add up what it makes of each token, which is the same sum in another order.

    Attributes:
        total: adds up what is told over ranks that share the heads out.
    """

    def __init__(self, dim: int, num_heads: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = CrossAttention(dim, num_heads, eps, dtype)
        self.adain = nn.Linear(dim, 2 * dim, dtype=dtype)
        self.total: Callable[[Tensor], Tensor] = _all_here

    def prepare(
        self, audio: BlockAudio, frame_tokens: tuple[int, ...] | None = None
    ) -> InjectedAudio:
        """Project a block's speech for this layer; the same for every denoise step.

        Args:
            audio: the block's speech.
            frame_tokens: tokens of each latent frame where only some are at hand, in a row.
        """
        dtype = self.attention.norm_q.weight.dtype
        shift, scale = self.adain(F.silu(audio.global_FD).to(dtype))[:, None].chunk(2, dim=-1)
        tokens = self.attention.project_context(audio.local_FKD)
        told_FXD = self.attention.tell(tokens.value_KNH)
        return InjectedAudio(shift, scale, tokens.key_KNH, told_FXD, frame_tokens)

    @fused
    def forward(self, hidden_LD: Tensor, audio: InjectedAudio) -> Tensor:
        """Add what the tokens of each latent frame hear; (L, D) in and out, same dtype."""
        if audio.frame_tokens is None:
            return self._add(hidden_LD, audio)
        frames = enumerate(hidden_LD.split(audio.frame_tokens))
        return torch.cat([self._add(part, audio.of_frame(f)) for f, part in frames if len(part)])

    def _add(self, hidden_LD: Tensor, audio: InjectedAudio) -> Tensor:
        hidden_FPD = hidden_LD.unflatten(0, (audio.shift_F1D.shape[0], -1))
        normed = layer_norm(hidden_FPD, ADAIN_EPS)
        adapted = (normed * (1 + audio.scale_F1D) + audio.shift_F1D).to(hidden_LD.dtype)
        weights_FPX = self.attention.weigh(adapted, audio.key_FKNH)
        told_LD = self.total(torch.bmm(weights_FPX, audio.told_FXD).flatten(0, 1))
        return hidden_LD + (told_LD + self.attention.o.bias)


def _all_here(told_LD: Tensor) -> Tensor:
    return told_LD


def _replicate_left(signal: Tensor) -> Tensor:
    """Two copies of the first sample in front of (..., C, T), which makes kernel 3 causal."""
    return torch.cat([signal[..., :1], signal[..., :1], signal], dim=-1)
