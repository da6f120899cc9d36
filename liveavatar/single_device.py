"""The whole path on one device, top to bottom: the oracle every faster path is measured against.

Blocks are made one after another, each through all denoise steps. One condition is prefilled before
block 0; when the first clip is done, the first generated latent frame becomes the reference and the
condition is prefilled again, while the rings go on. Memory does not depend on the length: frames
leave as they are decoded.

Shapes: latents (C, F, H, W), frames (T, H, W, C) uint8.

Source: Alibaba-Quark/LiveAvatar at 9c2c38d, the pipelined variant.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from liveavatar.conditioning import Conditions
from liveavatar.config import FRAMES_PER_BLOCK, LATENT_FRAMES_PER_BLOCK
from liveavatar.model.denoiser import Denoiser, Item, TokenGrid
from liveavatar.model.transformer import ConditionEmbedder, Transformer
from liveavatar.model.vae import Decoder
from liveavatar.model.vae_stream import decode_step, new_decoder_state, pass_over, to_uint8
from liveavatar.sampling import Schedule, block_noise, euler_step, relative_distance
from liveavatar.timeline import HELD_FRAMES, Timeline

WARM_UP_LATENT_FRAMES = 7
"""Motion latents the decoder is fed before the first block; their frames are not shown."""


@dataclass(frozen=True)
class Models:
    """The networks that make frames out of conditions."""

    transformer: Transformer
    embedder: ConditionEmbedder
    decoder: Decoder


@dataclass(frozen=True)
class Draws:
    """The random numbers of a video.

    Attributes:
        noise: starting sample (C, 3, H, W) of a block.
        distance: relative distance of the reference, 4..30, at a block and denoise step.
    """

    noise: Callable[[int], Tensor]
    distance: Callable[[int, int], int]


def seeded_draws(seed: int, like: Tensor) -> Draws:
    """Draws of a seed, for latents of the size, dtype and device of `like` (C, F, H, W)."""
    shape = (like.shape[0], LATENT_FRAMES_PER_BLOCK, *like.shape[2:])
    return Draws(
        lambda block: block_noise(seed, block, shape, dtype=like.dtype, device=like.device),
        lambda block, step: relative_distance(seed, block, step),
    )


class Points(Protocol):
    """Where a video goes on, and what is kept for it to go on once more.

    Attributes:
        first_block: the first block that is still to be made.
    """

    first_block: int

    def restore_decoder(self, decoder: "VideoDecoder") -> None:
        """Bring a new decoder to the first block."""
        ...

    def restore_rings(self, denoiser: Denoiser) -> Tensor:
        """Bring empty rings to the first block, which is not 0; returns the first latent frame."""
        ...

    def block_is_done(self, block: int, denoiser: Denoiser, first_latent_CFHW: Tensor) -> None:
        """A block was made, and whoever took its latent is done with it."""
        ...


@torch.no_grad()
def generate_latents(
    models: Models,
    conditions: Conditions,
    timeline: Timeline,
    schedule: Schedule,
    draws: Draws,
    points: Points | None = None,
) -> Iterator[Tensor]:
    """Yield the final latent (C, 3, H, W) of each block that is still to be made."""
    transformer, embedder = models.transformer, models.embedder
    denoiser = Denoiser(
        transformer,
        embedder.embed_time(schedule.timesteps),
        embedder.embed_text(conditions.text_LD),
        TokenGrid.of_latent(conditions.reference_CFHW),
        timeline.window_blocks,
    )
    first_block, first_latent_CFHW = 0, conditions.reference_CFHW
    if points is not None and points.first_block:
        first_block, first_latent_CFHW = points.first_block, points.restore_rings(denoiser)
        first_latent_CFHW = first_latent_CFHW.to(conditions.reference_CFHW)
    for block in range(first_block, timeline.num_blocks):
        version = timeline.condition_version(block)
        if block in (first_block, timeline.refresh_block):
            reference = conditions.reference_CFHW if version == 0 else first_latent_CFHW
            denoiser.prefill(
                transformer.embed_condition(reference, conditions.motion_CFHW), version
            )
        heard = slice(block * FRAMES_PER_BLOCK, (block + 1) * FRAMES_PER_BLOCK)
        denoiser.hear(block, embedder.audio_encoder.encode_block(conditions.speech_AV[:, heard]))
        sample_CFHW = draws.noise(block)
        for step in range(schedule.num_steps):
            item = Item(block, step, version, draws.distance(block, step))
            hidden_LD = denoiser.forward(transformer.embed_block(sample_CFHW), item)
            velocity_CFHW = denoiser.head(hidden_LD, step)
            sample_CFHW = euler_step(sample_CFHW, velocity_CFHW, schedule, step)
        denoiser.finish_block(block)
        if block == 0:
            first_latent_CFHW = sample_CFHW[:, :1]
        yield sample_CFHW
        if points is not None:
            points.block_is_done(block, denoiser, first_latent_CFHW)


class VideoDecoder:
    """Latents of one video to its frames, as they come.

    The decoder is fed the start of the motion latents first. The first three frames behind them
    belong to that still beginning; in the video the portrait is held in their place.

    Args:
        decoder: on the device where decoding happens.
        motion_CFHW: motion latents, at least 7 latent frames.
        portrait_HWC: uint8, of the video's size.
        num_frames: frames of the whole video.
    """

    def __init__(
        self, decoder: Decoder, motion_CFHW: Tensor, portrait_HWC: Tensor, num_frames: int
    ) -> None:
        self.decoder = decoder
        self.remaining = num_frames
        self._held_THWC = portrait_HWC.cpu().expand(HELD_FRAMES, -1, -1, -1)
        self._state = new_decoder_state(decoder, *portrait_HWC.shape[:2])
        self._beginning_CFHW = motion_CFHW[:, :WARM_UP_LATENT_FRAMES]
        self._skipped = HELD_FRAMES
        self._num_frames = num_frames

    def begin(self) -> None:
        """Decode the still beginning, unless that is done; the first latents would wait for it."""
        pass_over(self.decoder, self._beginning_CFHW, self._state)
        self._beginning_CFHW = self._beginning_CFHW[:, :0]

    def snapshot(self) -> dict[str, Tensor]:
        """Copy what the decoder remembers to host memory, for a resume point."""
        self.begin()
        return self._state.snapshot()

    def restore(self, tensors: dict[str, Tensor], frames_done: int) -> None:
        """Go on from a snapshot behind the first `frames_done` frames, at least one block.

        Raises:
            CheckpointError: the snapshot is of another decoder or another size.
        """
        self._state.restore(tensors)
        self._beginning_CFHW = self._beginning_CFHW[:, :0]
        self._held_THWC = self._held_THWC[:0]
        self._skipped = 0
        self.remaining = self._num_frames - frames_done

    def pixels(self, latent_CFHW: Tensor) -> Tensor:
        """Decode the next latents (C, F, H, W) to (3, T, H, W), about [-1, 1], not clamped.

        T is 4F, less 3 at the first call.
        """
        self.begin()
        decoded = decode_step(self.decoder, latent_CFHW, self._state)[:, self._skipped :]
        self._skipped = 0
        return decoded

    def pieces(self, latent_CFHW: Tensor) -> Iterator[Tensor]:
        """Decode the next latents, and yield their frames as they come; see `frames`.

        The first block of a video is decoded latent by latent: its first picture comes early.
        """
        singly = LATENT_FRAMES_PER_BLOCK if self._skipped else 0
        for single_CFHW in latent_CFHW[:, :singly].split(1, dim=1) if singly else ():  # type: ignore[no-untyped-call]
            yield self.frames(single_CFHW)
        if latent_CFHW.shape[1] > singly:
            yield self.frames(latent_CFHW[:, singly:])

    def frames(self, latent_CFHW: Tensor) -> Tensor:
        """Decode the next latents to the video's next frames, (T, H, W, 3) uint8 on the CPU.

        The portrait stands in front of the first, and the last ones are cut to the video's length.
        """
        decoded_THWC = to_uint8(self.pixels(latent_CFHW)).cpu()
        frames_THWC = torch.cat([self._held_THWC, decoded_THWC])[: self.remaining]
        self._held_THWC = self._held_THWC[:0]
        self.remaining -= len(frames_THWC)
        return frames_THWC


@dataclass(frozen=True)
class RenderOptions:
    """How a video is sampled and decoded.

    Attributes:
        schedule: noise levels.
        draws: random numbers.
        online_decode: decode every block when it is done; else every clip. The frames are the same.
        points: where to go on, and what to keep; None to begin with block 0 and keep nothing.
    """

    schedule: Schedule
    draws: Draws
    online_decode: bool = True
    points: Points | None = None


def render(
    models: Models,
    conditions: Conditions,
    portrait_HWC: Tensor,
    timeline: Timeline,
    options: RenderOptions,
) -> Iterator[Tensor]:
    """Yield the video's frames as they are made: of the first latents one by one, then of blocks.

    Frame i is the one made for the speech at i/25 s: the video begins with the portrait held for
    the three frames that the model does not make.

    Args:
        models: the networks.
        conditions: the encoded job.
        portrait_HWC: uint8, of the video's size.
        timeline: how many blocks and frames.
        options: schedule, random numbers, when to decode.

    Yields:
        Frames (T, H, W, 3) uint8 on the CPU; `timeline.num_frames` in all when begun with block 0.
    """
    latents = generate_latents(
        models, conditions, timeline, options.schedule, options.draws, options.points
    )
    if not options.online_decode:
        latents = _joined(latents, timeline.window_blocks)
    decoder = VideoDecoder(
        models.decoder, conditions.motion_CFHW, portrait_HWC, timeline.num_frames
    )
    if options.points is not None:
        options.points.restore_decoder(decoder)
    for latent_CFHW in latents:
        yield from decoder.pieces(latent_CFHW)


def _joined(latents: Iterable[Tensor], num_blocks: int) -> Iterator[Tensor]:
    """Join every `num_blocks` latents along time."""
    waiting: list[Tensor] = []
    for latent_CFHW in latents:
        waiting.append(latent_CFHW)
        if len(waiting) == num_blocks:
            yield torch.cat(waiting, dim=1)
            waiting = []
    if waiting:
        yield torch.cat(waiting, dim=1)
