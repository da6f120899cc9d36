"""What a group does for a job to be resumable: where its points lie, how often, which one counts.

Rings of the published model are many GiB, so points are written only up to a limit. A job without a
point is made again from block 0, without being decoded twice into its file: every block is a pure
function of the request, so both ways give the same latents, bit for bit on the CPU.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass

from torch import Tensor

from liveavatar.config import FRAMES_PER_BLOCK, SamplingConfig, TransformerConfig
from liveavatar.engine.messages import GroupSpec, RenderJob
from liveavatar.errors import CheckpointError
from liveavatar.parallel.ring_keeper import part_of_rank
from liveavatar.parallel.wavefront import Pipeline
from liveavatar.plan.precision import Precision
from liveavatar.plan.transformer_memory import SPARE_BLOCKS, count_tokens, ring_values
from liveavatar.resume_points import PointPlan, read_part, whole_points

RING_LIMIT_BYTES = 2**30
"""Largest rings, of all layers together, that are written to disk: those of the demo are 50 to 200
MB, those of the published model 20 GiB and more."""

_ENCODER_LAG_BLOCKS = 3
_FIRST_LATENT = "first_latent"
_DECODER = "decoder."


@dataclass(frozen=True)
class MediaPoint:
    """The media rank's part of a point, and where it lies.

    Attributes:
        block: the first block that is still to be made.
        first_latent_CFHW: first latent frame of block 0, the reference of the refresh.
        decoder: snapshot of the decoder.
    """

    block: int
    first_latent_CFHW: Tensor
    decoder: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """As they are written."""
        decoder = {f"{_DECODER}{name}": tensor for name, tensor in self.decoder.items()}
        return {_FIRST_LATENT: self.first_latent_CFHW.cpu(), **decoder}

    @classmethod
    def of(cls, block: int, tensors: dict[str, Tensor]) -> MediaPoint:
        """From what was written; CheckpointError when it is something else."""
        if _FIRST_LATENT not in tensors:
            raise CheckpointError("the resume point holds no first latent")
        decoder = {
            name.removeprefix(_DECODER): tensor
            for name, tensor in tensors.items()
            if name.startswith(_DECODER)
        }
        return cls(block, tensors[_FIRST_LATENT], decoder)


class JobPoints:
    """The points of one job in one layout of ranks.

    Args:
        plan: where and how often.
        parts: names of all parts of a point; the last one is the media rank's.
    """

    def __init__(self, plan: PointPlan, parts: tuple[str, ...]) -> None:
        self.plan = plan
        self._parts = parts

    @property
    def media_part(self) -> str:
        """Name of the media rank's part."""
        return self._parts[-1]

    def newest(self, num_frames: int) -> MediaPoint | None:
        """The newest whole point whose frames are all among the first `num_frames`."""
        for block in whole_points(self.plan.folder, self._parts):
            if block * FRAMES_PER_BLOCK <= num_frames:
                return MediaPoint.of(block, read_part(self.plan.folder, self.media_part, block))
        return None


def points_of(job: RenderJob, spec: GroupSpec, config: TransformerConfig) -> JobPoints | None:
    """Where a job's points lie; None where it has no folder for them or its rings are too large.

    Points of other layouts of ranks are removed: they fit none of these ranks.
    """
    height, width = job.portrait_HWC.shape[:2]
    rings = ring_bytes(config, (height, width), job.sampling, spec.precision)
    if job.resume_folder is None or rings > RING_LIMIT_BYTES:
        return None
    folder = job.resume_folder / _layout_key(spec)
    try:
        for other in job.resume_folder.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    plan = PointPlan(folder, blocks_between_points(job, len(spec.stages)))
    return JobPoints(plan, tuple(part_of_rank(rank) for rank in range(spec.world_size)))


def ring_bytes(
    config: TransformerConfig,
    size_hw: tuple[int, int],
    sampling: SamplingConfig,
    precision: Precision,
) -> int:
    """Bytes of the rings of all layers."""
    values = ring_values(config, count_tokens(config, size_hw, sampling), sampling)
    return config.num_layers * precision.cache_bytes(values, config.head_dim)


def blocks_between_points(job: RenderJob, num_stages: int) -> int:
    """Blocks from one point to the next: whole clips, and so many that two points are enough.

    The stages may be ahead of the file by the blocks in flight, those whose speech was sent ahead,
    a clip that waits to be decoded, and the encoder's queue.
    """
    window = job.timeline.window_blocks
    in_flight = Pipeline(num_stages, job.sampling.num_steps).blocks_in_flight
    lag = in_flight + SPARE_BLOCKS + window + _ENCODER_LAG_BLOCKS
    return -(-lag // window) * window


def _layout_key(spec: GroupSpec) -> str:
    """Names what the rings of each rank depend on, beside the request."""
    stages = [(layers.start, layers.stop) for layers in spec.stages]
    kinds = [device.split(":")[0] for device in spec.devices]
    shape = (spec.tp_degree, spec.sp_degree, spec.sharded, spec.precision, spec.checkpoint)
    return hashlib.sha256(repr((stages, kinds, shape, spec.adapter)).encode()).hexdigest()[:16]
