"""The product's transformer and encoders, run on whole batches of clips with gradients.

The modules are the product's own. A clip's blocks are denoised side by side: in each layer every
block attends to the condition and to the window of blocks behind it, which is what the rings of the
product hold when the blocks come one after another. All blocks of a clip are at one noise level.

Shapes: B clips, n blocks, F = 3n latent frames, T = 4F video frames, L tokens of a clip, C
condition tokens, N heads, H head width, D width; latents (B, C, F, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from liveavatar.config import LATENT_FRAMES_PER_BLOCK, TransformerConfig
from liveavatar.model.attention import KeyValue, attend
from liveavatar.model.audio_encoder import features_per_video_frame, num_states, resample_to_30hz
from liveavatar.model.audio_injection import BlockAudio, InjectedAudio
from liveavatar.model.checkpoint import Placement, open_checkpoint
from liveavatar.model.motion import PatchEmbedding, unpatch
from liveavatar.model.rope import (
    PREFILL_REFERENCE_FRAME,
    Rotation,
    block_positions,
    condition_positions,
    reference_frame,
    rotate,
    rotation_at,
)
from liveavatar.model.transformer import (
    MOTION,
    REFERENCE,
    ConditionEmbedder,
    Layer,
    TimeTable,
    Transformer,
    _modulate,
)
from training.demo_config import SPEECH, text_config
from training.prompts import make_tokenizer

MOTION_LATENTS = 19


WINDOW_BLOCKS = 4
"""Most blocks that attention looks back over, the current one included."""


@dataclass(frozen=True)
class Scene:
    """What a batch of clips is conditioned on.

    Attributes:
        reference_BCFHW: portrait, one latent frame.
        first_BCFHW: first latent frame of the video: the reference after the first window.
        motion_BCFHW: portrait held still, any number of latent frames, the last one repeating.
        text_BLD: text encoder rows, zeros behind each prompt.
        audio: speech tokens of all latent frames, (B*F, ...).
    """

    reference_BCFHW: Tensor
    first_BCFHW: Tensor
    motion_BCFHW: Tensor
    text_BLD: Tensor
    audio: BlockAudio


@dataclass(frozen=True)
class Place:
    """Where a batch of clips stands in time, and at what noise level; on the device.

    Attributes:
        waves_SW: sinusoids of each clip's timestep, then of timestep 0, (B+1, freq_dim).
        own: rotation of the clips' tokens.
        still: rotation of the condition tokens among themselves.
        moved: rotation of the condition as each block sees it, (n*C, R).
        refreshed_n: whether a block's reference is the first latent frame of the video.
        bias_nK: added to attention scores: minus infinity for blocks outside the window.
    """

    waves_SW: Tensor
    own: Rotation
    still: Rotation
    moved: Rotation
    refreshed_n: Tensor
    bias_nK: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors in the order in which `from_tensors` takes them."""
        rotations = (self.own, self.still, self.moved)
        turned = [part for r in rotations for part in (r.cos_LR, r.sin_LR)]
        return self.waves_SW, *turned, self.refreshed_n, self.bias_nK

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> Place:
        """Undo `tensors`."""
        waves, *turned, refreshed, bias = tensors
        own, still, moved = (Rotation(*turned[i : i + 2]) for i in (0, 2, 4))
        return cls(waves, own, still, moved, refreshed, bias)


@dataclass(frozen=True)
class Position:
    """Where a batch of clips stands in time.

    Attributes:
        first_block: number of its first block; those of the first window use the portrait.
        window_blocks: blocks a ring holds, at most `WINDOW_BLOCKS`.
        distances: relative distance of the reference per block.
    """

    first_block: int
    window_blocks: int
    distances: Sequence[int]

    def place(
        self, config: TransformerConfig, grid: tuple[int, int], timesteps: Sequence[float],
        device: torch.device,
    ) -> Place:  # fmt: skip
        """Make the tables of clips whose frames have `grid` token rows and columns."""
        blocks, buckets = len(self.distances), config.zip_frame_buckets
        first = self.first_block * LATENT_FRAMES_PER_BLOCK
        frames = blocks * LATENT_FRAMES_PER_BLOCK
        own = rotation_at(block_positions(first, frames, *grid), config.head_dim)
        seen = []
        for block, distance in enumerate(self.distances):
            frame = reference_frame(first + block * LATENT_FRAMES_PER_BLOCK, distance)
            seen.append(condition_positions(frame, *grid, buckets))
        still = condition_positions(PREFILL_REFERENCE_FRAME, *grid, buckets)
        numbers = torch.arange(blocks)
        refreshed = numbers + self.first_block >= self.window_blocks
        back = torch.arange(WINDOW_BLOCKS - 1, -1, -1)
        unseen = (back >= self.window_blocks) | (back > numbers[:, None])
        block_tokens = LATENT_FRAMES_PER_BLOCK * grid[0] * grid[1]
        bias = torch.zeros(blocks, len(still) + WINDOW_BLOCKS * block_tokens)
        bias[:, len(still) :] = unseen.float().repeat_interleave(block_tokens, dim=1) * -1e9
        made = Place(
            _waves(timesteps, config.freq_dim),
            own,
            rotation_at(still, config.head_dim),
            rotation_at(np.concatenate(seen), config.head_dim),
            refreshed.float(),
            bias,
        )
        return Place.from_tensors([part.to(device) for part in made.tensors()])


def _waves(timesteps: Sequence[float], freq_dim: int) -> Tensor:
    """Sinusoids as in `ConditionEmbedder.embed_time`."""
    half = freq_dim // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.tensor([*timesteps, 0.0], dtype=torch.float64)[:, None] * frequency
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


class Avatar(nn.Module):
    """All networks that are trained together, under the names of the product.

    Args:
        config: shape of the transformer.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = make_tokenizer()
        self.transformer = Transformer(config)
        self.embedder = ConditionEmbedder(config)
        self.speech = Wav2Vec2Model(
            Wav2Vec2Config(**SPEECH, mask_time_prob=0.0, hidden_dropout=0.0, activation_dropout=0.0,
                           attention_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0)
        )  # fmt: skip
        self.text = UMT5EncoderModel(text_config(self.tokenizer.get_vocab_size()))
        self.mouth_reader = nn.Linear(config.dim * (config.num_audio_token + 1), 12)
        _initialise(self)

    def load(self, folder: Path) -> None:
        """Take the weights of a checkpoint folder; the mouth reader is not kept in it."""
        checkpoint = open_checkpoint(folder)
        where = Placement(torch.device("cpu"), torch.float32)
        for mine, stored in (
            (self.transformer, checkpoint.load_transformer(where)),
            (self.embedder, checkpoint.load_condition_embedder(where)),
            (self.speech, checkpoint.load_audio_encoder(where)),
            (self.text, checkpoint.load_text_encoder(where)),
        ):
            mine.load_state_dict(stored.state_dict())

    def frame_matrix(self, num_samples: int, num_frames: int) -> Tensor:
        """Weights (T, T50) that turn speech features at 50 Hz to those of the video frames.

        Resampling is linear: the product's functions are applied to the unit vectors.
        """
        config = self.speech.config
        count = num_states(num_samples, config.conv_kernel, config.conv_stride)
        return features_per_video_frame(resample_to_30hz(torch.eye(count)), num_frames)

    def hear(self, sound_BN: Tensor, frames_TS: Tensor) -> BlockAudio:
        """Encode speech (B, N), of unit variance, to the tokens of all latent frames.

        Args:
            sound_BN: normalised speech.
            frames_TS: from `frame_matrix`.

        Self-attention in the speech encoder stays zero, so its features do not depend on how long
        an utterance is; what is near comes in through the positional convolution.
        """
        features = self.speech.feature_extractor(sound_BN).transpose(1, 2)
        hidden = self.speech.feature_projection(features)[0]
        encoder = self.speech.encoder
        hidden = hidden + encoder.pos_conv_embed(hidden)
        states = [hidden]
        for layer in encoder.layers:
            hidden = hidden + layer.feed_forward(layer.final_layer_norm(hidden))
            states.append(hidden)
        states[-1] = encoder.layer_norm(states[-1])
        weights = self.embedder.audio_encoder.mixing_weights()
        mixed = sum(weight * state.float() for weight, state in zip(weights, states, strict=True))
        per_frame_BTA = frames_TS @ mixed
        blocks = per_frame_BTA.unflatten(1, (-1, 4 * LATENT_FRAMES_PER_BLOCK)).flatten(0, 1)
        encode = self.embedder.audio_encoder.encode_block

        def tokens(mixed_VA: Tensor) -> tuple[Tensor, Tensor]:
            audio = encode(mixed_VA.T)
            return audio.local_FKD, audio.global_FD

        local, whole = torch.vmap(tokens)(blocks)
        return BlockAudio(local.flatten(0, 1), whole.flatten(0, 1))

    def read_mouth(self, audio: BlockAudio, num_clips: int) -> Tensor:
        """Guess mouth targets (B, T, 3) from the speech tokens alone."""
        tokens = torch.cat([audio.local_FKD[:, :-1].flatten(1), audio.global_FD], dim=1)
        return self.mouth_reader(tokens).reshape(num_clips, -1, 3)

    def read(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Encode prompts to (B, text_len, text_dim), zeros behind each."""
        ids = [
            [*self.tokenizer.encode(prompt, add_special_tokens=False).ids, 1] for prompt in prompts
        ]
        length = min(self.config.text_len, max(map(len, ids)))
        padded = torch.tensor([(row + [0] * length)[:length] for row in ids], device=device)
        mask = (padded != 0).long()
        rows = self.text(input_ids=padded, attention_mask=mask).last_hidden_state * mask[..., None]
        return F.pad(rows, (0, 0, 0, self.config.text_len - length))

    def velocity(self, sample_BCFHW: Tensor, scene: Scene, place: Place) -> Tensor:
        """Predict the velocity of every block of the clips.

        Args:
            sample_BCFHW: noisy latents, all blocks of a clip at one level.
            scene: conditions.
            place: position in time, and the level.

        Returns:
            (B, C, F, H, W) float32.
        """
        return _Run(self, sample_BCFHW, scene, place).velocity()


class _Run:
    """One forward over a batch; holds what all layers share."""

    def __init__(self, avatar: Avatar, sample: Tensor, scene: Scene, place: Place) -> None:
        self.avatar, self.sample, self.scene, self.place = avatar, sample, scene, place
        self.batch, self.frames = sample.shape[0], sample.shape[2]
        self.rows, self.columns = sample.shape[-2] // 2, sample.shape[-1] // 2
        self.num_blocks = self.frames // LATENT_FRAMES_PER_BLOCK
        embedder = avatar.embedder
        head_SD = embedder.time_out(F.silu(embedder.time_in(place.waves_SW)))
        layers_SD = embedder.time_projection(F.silu(head_SD))
        self.time = TimeTable(head_SD.float(), layers_SD.float().unflatten(-1, (6, -1)))
        # Every prompt is padded already, so `embed_text`, which pads one, is not called.
        inner = F.gelu(embedder.text_in(scene.text_BLD), approximate="tanh")
        self.text_BLD = embedder.text_out(inner)

    def velocity(self) -> Tensor:
        transformer = self.avatar.transformer
        hidden_BLD, conditions_VBCD = self._embed()
        for layer in transformer.stack:
            hidden_BLD, conditions_VBCD = self._layer(layer, hidden_BLD, conditions_VBCD)
        head = transformer.head
        assert head is not None
        modulation_B2D = head.constants(self.time)[:-1]
        modulated = _modulate(hidden_BLD, modulation_B2D[:, :1], modulation_B2D[:, 1:], head.eps)
        patches = head.linear(modulated).float().flatten(0, 1)
        grid = (self.batch * self.frames, self.rows, self.columns)
        return _unfolded(unpatch(patches, grid, head.patch), self.batch)

    def _embed(self) -> tuple[Tensor, Tensor]:
        """Tokens of the clips, (B, L, D), and of both versions of the condition, (2B, C, D)."""
        embedder = self.avatar.transformer.embedder
        assert embedder is not None
        hidden = embedder.embed_block(_folded(self.sample)).unflatten(0, (self.batch, -1))
        packer, still = embedder.frame_packer, self.scene.motion_BCFHW
        missing = max(0, MOTION_LATENTS - still.shape[2])
        motion = torch.cat([still, still[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
        fourfold, double, near = motion.split(packer.buckets[::-1], dim=2)
        parts = ((packer.proj, near), (packer.proj_2x, double), (packer.proj_4x, fourfold))
        packed = torch.cat([self._tokens(proj, latents) for proj, latents in parts], dim=1)
        packed = packed + embedder.token_kind[MOTION]
        conditions = []
        for latent in (self.scene.reference_BCFHW, self.scene.first_BCFHW):
            reference = self._tokens(embedder.patch_embedding, latent)
            reference = reference + embedder.token_kind[REFERENCE]
            conditions.append(torch.cat([reference, packed], dim=1))
        return hidden.to(_stream(hidden)), torch.cat(conditions).to(_stream(hidden))

    def _tokens(self, embedding: PatchEmbedding, latents_BCFHW: Tensor) -> Tensor:
        return embedding(_folded(latents_BCFHW)).unflatten(0, (self.batch, -1))

    def _layer(self, layer: Layer, hidden_BLD: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
        constants = layer.constants(self.time, self.text_BLD)
        at_zero, still = constants.modulation_S6D[-1], self.place.still
        text = constants.text
        twice = KeyValue(torch.cat([text.key_KNH] * 2), torch.cat([text.value_KNH] * 2))
        query, condition = layer._project(both, at_zero, still)
        turned = KeyValue(rotate(condition.key_KNH, still), condition.value_KNH)
        both = layer._finish(both, attend(query, turned), at_zero, twice)
        modulation_6BD = constants.modulation_S6D[:-1].transpose(0, 1)[:, :, None]
        query, own = layer._project(hidden_BLD, modulation_6BD, self.place.own)
        own = KeyValue(rotate(own.key_KNH, self.place.own), own.value_KNH)
        attended = self._attend(query, own, condition)
        hidden_BLD = layer._finish(hidden_BLD, attended, modulation_6BD, text)
        if layer.audio is not None:
            heard: InjectedAudio = layer.audio.prepare(self.scene.audio)
            flat = layer.audio(hidden_BLD.flatten(0, 1), heard)
            hidden_BLD = flat.unflatten(0, (self.batch, -1)).to(hidden_BLD.dtype)
        return hidden_BLD, both

    def _attend(self, query: Tensor, own: KeyValue, condition: KeyValue) -> Tensor:
        """Attend from every block to its version of the condition and to its window."""
        key_BnCNH = self._seen(condition.key_KNH)
        key_BnCNH = rotate(key_BnCNH.flatten(1, 2), self.place.moved).unflatten(
            1, (self.num_blocks, -1)
        )
        keys = torch.cat([key_BnCNH, self._window(own.key_KNH)], dim=2)
        values = torch.cat([self._seen(condition.value_KNH), self._window(own.value_KNH)], dim=2)
        queries = query.unflatten(1, (self.num_blocks, -1)).flatten(0, 1)
        bias = self.place.bias_nK.to(queries.dtype).repeat(self.batch, 1)[:, None, None]
        out = F.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys.flatten(0, 1).transpose(1, 2),
            values.flatten(0, 1).transpose(1, 2),
            attn_mask=bias.expand(-1, query.shape[2], queries.shape[1], -1),
        )
        return out.transpose(1, 2).flatten(-2).unflatten(0, (self.batch, -1)).flatten(1, 2)

    def _seen(self, both: Tensor) -> Tensor:
        """The version each block sees, (B, n, C, N, H), of (2B, C, N, H)."""
        portrait, refreshed = both[:, None].chunk(2)
        share = self.place.refreshed_n[:, None, None, None].to(both.dtype)
        return portrait * (1 - share) + refreshed * share

    def _window(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, N, H) of each block and the three before it, zeros in front."""
        blocks = tokens.unflatten(1, (self.num_blocks, -1))
        padded = F.pad(blocks, (0, 0, 0, 0, 0, 0, WINDOW_BLOCKS - 1, 0))
        shifted = [padded[:, k : k + self.num_blocks] for k in range(WINDOW_BLOCKS)]
        return torch.cat(shifted, dim=2)


def _stream(hidden: Tensor) -> torch.dtype:
    """Dtype of the residual stream: bfloat16 on a GPU, as in production."""
    return torch.bfloat16 if hidden.is_cuda else torch.float32


def _folded(latents_BCFHW: Tensor) -> Tensor:
    """Clips one behind another in time, (C, B*F, H, W)."""
    return latents_BCFHW.transpose(0, 1).flatten(1, 2)


def _unfolded(latents_CFHW: Tensor, batch: int) -> Tensor:
    return latents_CFHW.unflatten(1, (batch, -1)).transpose(0, 1)


@torch.no_grad()
def _initialise(avatar: Avatar) -> None:
    """Gates open, branches small, velocity zero; speech attention and text encoder are fixed."""
    networks = (avatar.transformer, avatar.embedder)
    for name, parameter in (pair for net in networks for pair in net.named_parameters()):
        leaf = name.rpartition(".")[2]
        if "norm_" in name or name.endswith("norm3.weight") or leaf == "mix_weights":
            parameter.fill_(1.0)
        elif leaf in ("token_kind", "padding_token"):
            parameter.normal_(0, 0.02)
        elif leaf == "modulation" or name.startswith("head.linear."):
            parameter.zero_()
        elif name.endswith((".o.weight", "ffn_out.weight")):
            parameter.mul_(0.3)
        elif name.startswith("time_projection"):
            parameter.mul_(0.1)
    for layer in avatar.transformer.stack:
        layer.modulation[2], layer.modulation[5] = 1.0, 1.0
    for speech_layer in avatar.speech.encoder.layers:
        for parameter in speech_layer.attention.parameters():
            parameter.zero_()
            parameter.requires_grad_(False)
    avatar.text.requires_grad_(False)
