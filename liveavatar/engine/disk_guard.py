"""A data folder that cannot be written, or soon cannot, seen before a job is begun."""

from __future__ import annotations

import logging
import shutil

from liveavatar.jobs.spool import Spool

logger = logging.getLogger(__name__)


class DiskGuard:
    """Judges the disk that the jobs' files lie on.

    Args:
        spool: the files.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._said = ""

    def complaint(self, free_bytes: int) -> str:
        """What is wrong, one line; empty when nothing is. What changed is logged, once.

        Args:
            free_bytes: what has to be free.
        """
        found = self._look(free_bytes)
        if found and not self._said:
            logger.error(found)
        elif self._said and not found:
            logger.info("the data folder can be written again")
        self._said = found
        return found

    def _look(self, free_bytes: int) -> str:
        if (cause := self._spool.complaint()) is not None:
            return f"files cannot be written: {cause}; videos wait until they can"
        free = shutil.disk_usage(self._spool.root).free
        if free < free_bytes:
            return f"the disk has {free // 2**20} MB left; videos wait until there is room"
        return ""
