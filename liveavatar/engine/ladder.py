"""Which smaller video to make when one takes more memory than there is, or fails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from liveavatar.errors import MediaError
from liveavatar.jobs.job import JobSpec
from liveavatar.media.notes import Note
from liveavatar.media.portrait import fit_size
from liveavatar.plan.tiers import Tier


class Ladder:
    """The tiers, as steps down.

    Args:
        tiers: what is offered, in any order.
    """

    def __init__(self, tiers: Sequence[Tier] = ()) -> None:
        self._tiers = sorted(tiers, key=lambda tier: tier.size.area, reverse=True)

    def below(self, spec: JobSpec, reason: str) -> JobSpec | None:
        """The same video at the next tier that makes it smaller; None when there is none.

        It has the same frames and seed, and a note for whoever watches.

        Args:
            spec: what was asked for.
            reason: for the note, a few words.
        """
        for tier in self._tiers:
            try:
                height, width = fit_size((spec.height, spec.width), tier.size.area)
            except MediaError:
                continue
            if height * width < spec.height * spec.width:
                return _made_at(tier, (height, width), spec, reason)
        return None

    def under(self, spec: JobSpec, tier: str, reason: str) -> JobSpec | None:
        """The same video at `tier` if that makes it smaller; else, or with no such tier, None."""
        return Ladder([known for known in self._tiers if known.name == tier]).below(spec, reason)


def _made_at(tier: Tier, size_hw: tuple[int, int], spec: JobSpec, reason: str) -> JobSpec:
    height, width = size_hw
    clips = math.ceil(spec.total_frames / tier.sampling.infer_frames)
    message = (
        f"Made smaller than asked for, at tier {tier.name} with {width}*{height} pixels instead of "
        f"{spec.width}*{spec.height}: {reason}."
    )
    return replace(
        spec,
        tier=tier.name,
        height=height,
        width=width,
        sampling=replace(tier.sampling, num_clip=clips, seed=spec.sampling.seed),
        notes=(*spec.notes, Note("tier", "tier_lowered", message)),
    )
