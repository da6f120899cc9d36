"""Import torch once and run programs that need it side by side, as forks: a program.

    python -m liveavatar.doctor.torch_programs '{"NAME": {"module": ..., "arguments": ..., ...}}'

The fields are those of `Program`. CUDA is not touched here, so that forks may. Prints one JSON
object: how each program ended, by name.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path

from liveavatar.doctor.child import IMPORT_DEADLINE_S, Outcome, Program, ended


class Fork:
    """A program that runs, and writes into files of a folder.

    Args:
        program: to run, in a copy of this process.
        folder: that is there and empty.
    """

    def __init__(self, program: Program, folder: Path) -> None:
        self._output, self._errors = folder / "output", folder / "errors"
        self.ends_at = time.monotonic() + program.deadline_s
        context = multiprocessing.get_context("fork")
        self._process: BaseProcess = context.Process(target=self._run, args=(program,))
        self._process.start()

    def _run(self, program: Program) -> None:
        for number, path in ((1, self._output), (2, self._errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.exit(importlib.import_module(program.module).main(program.arguments))

    def outcome(self) -> Outcome:
        """Wait for its end, its deadline at most; what it started is left to the caller."""
        self._process.join(max(0.0, self.ends_at - time.monotonic()))
        status = self._process.exitcode
        if status is None:
            self._process.kill()
            self._process.join()
            return Outcome(None, _text(self._errors), timed_out=True)
        return ended(status, _text(self._output), _text(self._errors))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def main(arguments: Sequence[str]) -> int:
    """Run the programs; returns the exit status."""
    wanted = {name: Program(**given) for name, given in json.loads(arguments[0]).items()}
    signal.alarm(IMPORT_DEADLINE_S)  # ends this process
    importlib.import_module("torch.distributed")
    signal.alarm(0)
    with tempfile.TemporaryDirectory(prefix="liveavatar-doctor-") as folder:
        forks = {}
        for number, (name, program) in enumerate(wanted.items()):
            place = Path(folder) / str(number)
            place.mkdir()
            forks[name] = Fork(program, place)
        # The first to be killed is waited for first, so that all are killed in time.
        in_order = sorted(forks.items(), key=lambda named: named[1].ends_at)
        outcomes = {name: asdict(fork.outcome()) for name, fork in in_order}
    sys.stdout.write(json.dumps(outcomes) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
