"""Resume points of a video that one process makes alone."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from liveavatar.config import FRAMES_PER_BLOCK
from liveavatar.errors import CheckpointError
from liveavatar.model.denoiser import Denoiser
from liveavatar.parallel.ring_keeper import copied_rings, restore_rings
from liveavatar.resume_points import PointPlan, PointWriter, read_part, whole_points
from liveavatar.single_device import VideoDecoder

_PART = "alone"
_LEAST_BLOCKS = 8
_FIRST_LATENT, _DECODER, _RING = "first_latent", "decoder.", "ring."


class LonePoints:
    """The resume points of a video that this process makes alone.

    Args:
        folder: of the request.
        num_frames: frames in its file.
        window_blocks: blocks of a ring.
    """

    def __init__(self, folder: Path, num_frames: int, window_blocks: int) -> None:
        every = -(-_LEAST_BLOCKS // window_blocks) * window_blocks
        self._plan = PointPlan(folder, every)
        self._tensors: dict[str, Tensor] = {}
        self._decoder: VideoDecoder | None = None
        self.first_block = 0
        for block in whole_points(folder, [_PART]):
            if block * FRAMES_PER_BLOCK <= num_frames:
                self._tensors, self.first_block = read_part(folder, _PART, block), block
                break
        self._writer = PointWriter(self._plan, _PART)

    def restore_decoder(self, decoder: VideoDecoder) -> None:
        """Bring a new decoder to the first block; CheckpointError when it is another one's."""
        self._decoder = decoder
        if self.first_block:
            decoder.restore(self._taken(_DECODER), self.first_block * FRAMES_PER_BLOCK)

    def restore_rings(self, denoiser: Denoiser) -> Tensor:
        """Bring empty rings to the first block, which is not 0; returns the first latent frame."""
        restore_rings(denoiser, self._taken(_RING))
        if _FIRST_LATENT not in self._tensors:
            raise CheckpointError("the resume point holds no first latent")
        return self._tensors.pop(_FIRST_LATENT)

    def block_is_done(self, block: int, denoiser: Denoiser, first_latent_CFHW: Tensor) -> None:
        """Keep a point if one lies behind `block`; its frames are in the file."""
        if self._decoder is None or not self._plan.is_due(block + 1):
            return
        tensors = {_FIRST_LATENT: first_latent_CFHW.to("cpu", copy=True)}
        tensors |= {f"{_DECODER}{k}": tensor for k, tensor in self._decoder.snapshot().items()}
        for step in range(denoiser.num_steps):
            tensors |= {f"{_RING}{k}": ring for k, ring in copied_rings(denoiser, step).items()}
        self._writer.offer(block + 1, tensors)

    def close(self) -> None:
        """No more points follow."""
        self._writer.close()

    def _taken(self, prefix: str) -> dict[str, Tensor]:
        names = [name for name in self._tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._tensors.pop(name) for name in names}
