"""Keeps the rings of one rank for a job's resume points, and brings them back.

Steps reach a block at different times. The ring of a step is copied when that step is done with
the last block of a point and has not begun the next one; when the last step is, the point is
complete. So all ranks keep the same point, whatever their place, and nothing has to drain.
"""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

from liveavatar.errors import CheckpointError
from liveavatar.model.denoiser import Denoiser
from liveavatar.resume_points import PointPlan, PointWriter, read_part


def part_of_rank(rank: int) -> str:
    """Name of a rank's part of a point."""
    return f"rank-{rank}"


class RingKeeper:
    """Of one job on one rank.

    Args:
        plan: where and how often.
        rank: whose rings.
    """

    def __init__(self, plan: PointPlan, rank: int) -> None:
        self._plan = plan
        self._part = part_of_rank(rank)
        self._writer = PointWriter(plan, self._part)
        self._kept: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)

    def restore(self, denoiser: Denoiser, block: int) -> None:
        """Bring back all rings as they were behind `block` blocks.

        Raises:
            CheckpointError: the point is not of these rings, or damaged.
        """
        restore_rings(denoiser, read_part(self._plan.folder, self._part, block))

    def step_is_done(self, denoiser: Denoiser, block: int, step: int, *, last: bool) -> None:
        """Keep the ring of `step` if a point lies behind `block`; write the point at the `last`."""
        if not self._plan.is_due(block + 1):
            return
        self._kept[block] |= copied_rings(denoiser, step)
        if last:
            self._writer.offer(block + 1, self._kept.pop(block))

    def close(self) -> None:
        """No more points follow."""
        self._writer.close()


def copied_rings(denoiser: Denoiser, step: int) -> dict[str, Tensor]:
    """Copies of a step's rings on the CPU, by names that hold step and place."""
    rings = enumerate(denoiser.rings(step))
    return {f"{step}.{place}": ring.detach().to("cpu", copy=True) for place, ring in rings}


def restore_rings(denoiser: Denoiser, kept: dict[str, Tensor]) -> None:
    """Write kept rings back; CheckpointError when they are of another video."""
    steps = {int(name.split(".")[0]) for name in kept}
    places = {
        f"{step}.{place}": ring for step in steps for place, ring in enumerate(denoiser.rings(step))
    }
    fits = places.keys() == kept.keys() and all(
        ring.shape == kept[name].shape and ring.dtype == kept[name].dtype
        for name, ring in places.items()
    )
    if not kept or not fits:
        raise CheckpointError("the resume point is of another video; remove it to begin anew")
    for name, ring in places.items():
        ring.copy_(kept[name])
