"""What the time between a job's claim and its first frame goes into, as far as the owner hears."""

from __future__ import annotations

from itertools import pairwise

_PARTS = ("files read", "inputs encoded", "first block", "decoded and written")


class Beginning:
    """When a video that begins anew came how far on its way to its first frame.

    Times are seconds of a clock that only rises.

    Args:
        claimed_at: when the job was claimed.
    """

    def __init__(self, claimed_at: float) -> None:
        self._times = [claimed_at]

    def note_handed_over(self, now: float) -> None:
        """Its files are read and the group has it."""
        self._times.append(now)

    def note_progress(self, frames: int, stage: str, now: float) -> str:
        """Take what the group reports; at the first frame says what the time went into, else "".

        A group says "rendering" when inputs are encoded, once more when the first block is made,
        and then with the frames that are in the file. One that says less is told nothing of.
        """
        is_told = len(self._times) > len(_PARTS)
        if stage != "rendering" or is_told:
            return ""
        wants_frames = len(self._times) == len(_PARTS)
        if wants_frames == bool(frames):
            self._times.append(now)
        return self._text() if wants_frames and frames else ""

    def _text(self) -> str:
        times = [later - earlier for earlier, later in pairwise(self._times)]
        parts = (f"{part} {took_s:.2f} s" for part, took_s in zip(_PARTS, times, strict=True))
        whole_s = self._times[-1] - self._times[0]
        return f"first frame {whole_s:.2f} s after the claim: {', '.join(parts)}"
