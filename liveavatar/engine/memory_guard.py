"""Memory that comes too near to its end, seen before a rank runs out of it."""

from __future__ import annotations

from liveavatar.engine.messages import RankStatus

CARD_BYTES = 24 * 2**30
THRESHOLD_BYTES = 21_000 * 2**20
"""On a card of 24 GB; on others the same share of what they have."""


class MemoryGuard:
    """Judges the ranks by what they say of themselves.

    On a GPU the driver's figure for the whole card counts, which includes other programs, and the
    allocator's of the rank; on the CPU the resident memory of the rank.

    Args:
        threshold_bytes: what a card, or on the CPU a rank, may hold; 0 for the share above of each
            card, and for no limit on the CPU.
    """

    def __init__(self, threshold_bytes: int = 0) -> None:
        self._threshold_bytes = threshold_bytes
        self._over: dict[int, str] = {}

    def heard(self, status: RankStatus) -> None:
        """Take a rank's report."""
        threshold = self._threshold_bytes or status.card_bytes * THRESHOLD_BYTES // CARD_BYTES
        held = max(status.memory_bytes, status.card_used_bytes)
        if threshold and held > threshold:
            where = "rank" if status.device == "cpu" else status.device
            self._over[status.rank] = (
                f"memory is short, {where} ({status.role}) holds {held // 2**20} MB, "
                f"{threshold // 2**20} MB are the threshold"
            )
        else:
            self._over.pop(status.rank, None)

    def forget(self) -> None:
        """The ranks are gone."""
        self._over.clear()

    @property
    def complaint(self) -> str | None:
        """What is wrong, one line without a full stop; None if nothing is."""
        return next((self._over[rank] for rank in sorted(self._over)), None)
