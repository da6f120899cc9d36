"""Programs of the doctor that need torch, run in processes of their own with a deadline.

Torch takes seconds to import and a broken installation can take its process down; neither may
happen to the doctor itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        answer: the JSON object in its last line of output; None if it failed.
        errors: what it wrote to stderr.
        timed_out: whether it was killed at the deadline.
    """

    answer: dict[str, Any] | None
    errors: str
    timed_out: bool = False

    @property
    def last_error(self) -> str:
        """The last line it wrote to stderr, at most 200 characters."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it said nothing"


def run_child(
    module: str,
    arguments: Sequence[str],
    deadline_s: float,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run `python -m module` and everything it starts, for `deadline_s` at most.

    Args:
        module: dotted name; prints one JSON object as its last line.
        arguments: of its command line.
        deadline_s: seconds after which it and its children are killed.
        environment: variables on top of this process's.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        return Outcome(None, errors, timed_out=True)
    return Outcome(_last_object(output) if process.returncode == 0 else None, errors)


def _last_object(output: str) -> dict[str, Any] | None:
    try:
        found = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return found if isinstance(found, dict) else None
