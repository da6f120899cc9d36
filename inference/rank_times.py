"""Where the time of each rank goes while a video is made: from what ranks say of themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from liveavatar.engine.messages import RankStatus


@dataclass
class _Sums:
    """Of the reports of one rank; each is about one second."""

    last: RankStatus
    reports: int = 0
    busy: float = 0.0
    waiting: float = 0.0
    sending: float = 0.0


class RankTimes:
    """Mean shares of the reports since the last `clear`."""

    def __init__(self) -> None:
        self._sums: dict[int, _Sums] = {}

    def clear(self) -> None:
        """Begin anew, for another video."""
        self._sums = {}

    def take(self, status: RankStatus) -> None:
        """Add a report."""
        sums = self._sums.setdefault(status.rank, _Sums(status))
        sums.last = status
        sums.reports += 1
        sums.busy += status.busy_share
        sums.waiting += status.waiting_share
        sums.sending += status.sending_share

    def record(self) -> list[dict[str, Any]]:
        """The ranks in order: the fields of `RankStatus`, shares over all reports."""
        return [
            asdict(sums.last)
            | {
                "busy_share": round(sums.busy / sums.reports, 4),
                "waiting_share": round(sums.waiting / sums.reports, 4),
                "sending_share": round(sums.sending / sums.reports, 4),
                "reports": sums.reports,
            }
            for _, sums in sorted(self._sums.items())
        ]

    def line(self) -> str:
        """One line for people; empty where no rank has reported."""
        parts = [
            f"{sums.last.role} {100 * sums.busy / sums.reports:.0f} %"
            for _, sums in sorted(self._sums.items())
        ]
        return f"busy: {', '.join(parts)}" if parts else ""
