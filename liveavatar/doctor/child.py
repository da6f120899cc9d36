"""Programs of the doctor that need torch, run in processes of their own with deadlines.

Torch takes seconds to import and a broken installation can take its process down; neither may
happen to the doctor itself. All programs are forks of one process, so it is imported once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOST = "liveavatar.doctor.torch_programs"
IMPORT_DEADLINE_S = 60
"""Seconds that the import of torch may take."""
_MARGIN_S = 10.0  # for the host to end its programs by itself


@dataclass(frozen=True)
class Program:
    """What to run.

    Attributes:
        module: dotted name; its `main(arguments)` prints one JSON object as its last line and
            returns an exit status.
        arguments: of its command line.
        deadline_s: seconds after which it is killed, counted from when torch is imported.
    """

    module: str
    arguments: Sequence[str]
    deadline_s: float


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


def ended(status: int, output: str, errors: str) -> Outcome:
    """What a program that ended by itself left; a negative status is the signal that ended it."""
    if status < 0:
        errors = f"{errors}\nended by {signal.Signals(-status).name}"
    return Outcome(_last_object(output) if status == 0 else None, errors)


def run_programs(
    programs: Mapping[str, Program], environment: Mapping[str, str] | None = None
) -> dict[str, Outcome]:
    """Run programs side by side; without torch, all of them end with what its import said.

    Args:
        programs: by a name of the caller's.
        environment: variables on top of this process's.
    """
    given = json.dumps({name: asdict(program) for name, program in programs.items()})
    slowest_s = max(program.deadline_s for program in programs.values())
    deadline_s = IMPORT_DEADLINE_S + slowest_s + _MARGIN_S
    host = run_child(HOST, [given], deadline_s, environment)
    if host.answer is None:
        errors = host.errors
        if host.timed_out or host.last_error.endswith(signal.SIGALRM.name):
            errors = f"the import of torch takes longer than {IMPORT_DEADLINE_S} s"
        return dict.fromkeys(programs, Outcome(None, errors))
    return {name: Outcome(**host.answer[name]) for name in programs}


def run_child(
    module: str,
    arguments: Sequence[str],
    deadline_s: float,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run `python -m module`; nothing that it started outlives it, nor this call.

    Args:
        module: dotted name; prints one JSON object as its last line.
        arguments: of its command line.
        deadline_s: seconds after which it is killed.
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
        _kill(process)
        _, errors = process.communicate()
        return Outcome(None, errors, timed_out=True)
    finally:
        _kill(process)
    return ended(process.returncode, output, errors)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill what is left of a session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_object(output: str) -> dict[str, Any] | None:
    try:
        found = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return found if isinstance(found, dict) else None
