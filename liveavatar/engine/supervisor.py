"""Start the ranks, hand them jobs, notice at once when one of them ends.

No torch here: the supervisor lives in the web server's process or in the command line's.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from liveavatar.engine.messages import Cancel, Failed, GroupSpec, Ready, RenderJob, Stop, Submit
from liveavatar.errors import DeadlineError, EngineError, WorkerDiedError

_STOP_S = 10.0
_LAST_WORDS_S = 1.0


class WorkerGroup:
    """The resident ranks of one machine.

    To be used in a `with` block; leaving it ends every rank, whatever they do.

    Args:
        spec: what to build; its `folder` is replaced by a private one of this group.
        start_timeout_s: deadline for all ranks to be ready.

    Raises:
        WorkerDiedError: a rank ended while starting; the message names it and says why.
        DeadlineError: a rank was not ready in time.
    """

    def __init__(self, spec: GroupSpec, start_timeout_s: float = 600.0) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="liveavatar-"))
        self.spec = replace(spec, folder=self._folder)
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        try:
            self._spawn()
            self._wait_until_ready(start_timeout_s)
        except BaseException:
            self.kill()
            raise

    def submit(self, job: RenderJob) -> None:
        """Queue a job behind those submitted before it."""
        self._send(self.spec.media_rank, Submit(job))

    def cancel(self, number: int) -> None:
        """Stop a job at its next block."""
        self._send(self.spec.media_rank, Cancel(number))

    def events(self, timeout_s: float) -> Iterator[object]:
        """Yield what the ranks report, until nothing came for `timeout_s`.

        Raises:
            WorkerDiedError: a rank failed or ended; names it and says why.
        """
        while (message := self.next_event(timeout_s)) is not None:
            yield message

    def next_event(self, timeout_s: float) -> object | None:
        """Wait for the next report; None when none came in time. WorkerDiedError as `events`."""
        sentinels = {process.sentinel: rank for rank, process in enumerate(self._processes)}
        ready = wait([*self._pipes, *sentinels], timeout=timeout_s)
        for source in ready:
            if isinstance(source, Connection):
                with suppress(EOFError, OSError):
                    message: object = source.recv()
                    if isinstance(message, Failed):
                        raise self._first_cause(message)
                    return message
        for source in ready:
            if not isinstance(source, Connection):
                raise self._death_of(sentinels[source])  # type: ignore[index]
        return None

    def close(self, timeout_s: float = _STOP_S) -> None:
        """Let the jobs at hand finish, then end the ranks; kill those that do not in time."""
        with suppress(WorkerDiedError):
            self._send(self.spec.media_rank, Stop())
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End every rank now and remove the group's folder; does nothing twice."""
        for process in self._processes:
            if process.is_alive():
                process.kill()
        for process in self._processes:
            process.join(_STOP_S)
        for pipe in self._pipes:
            pipe.close()
        self._pipes = []
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> WorkerGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def _spawn(self) -> None:
        from liveavatar.engine.worker import worker_main

        context = multiprocessing.get_context("spawn")
        for rank in range(self.spec.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=worker_main, args=(rank, self.spec, theirs), name=f"rank {rank}", daemon=True
            )
            process.start()
            theirs.close()  # so that the pipe breaks when the rank ends
            self._pipes.append(ours)
            self._processes.append(process)

    def _wait_until_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        missing = set(range(self.spec.world_size))
        while missing:
            message = self.next_event(max(0.0, deadline - time.monotonic()))
            if message is None:
                ranks = ", ".join(map(str, sorted(missing)))
                raise DeadlineError(f"ranks {ranks} were not ready in {timeout_s:.0f} s")
            if isinstance(message, Ready):
                missing.discard(message.rank)

    def _send(self, rank: int, message: object) -> None:
        try:
            self._pipes[rank].send(message)
        except (OSError, IndexError) as error:
            raise WorkerDiedError(f"rank {rank} is gone: {error}") from error

    def _first_cause(self, failure: Failed) -> EngineError:
        """The error to raise for a failed rank; a rank that only lost its neighbour is not it."""
        deadline = time.monotonic() + _LAST_WORDS_S
        failures = [failure]
        while (left := deadline - time.monotonic()) > 0:
            dead = [p for p in self._processes if p.exitcode is not None and p.exitcode < 0]
            if dead:
                return self._death_of(self._processes.index(dead[0]))
            talking = wait(self._pipes, timeout=min(0.1, left))
            for pipe in [pipe for pipe in self._pipes if pipe in talking]:
                with suppress(EOFError, OSError):
                    message = pipe.recv()
                    if isinstance(message, Failed):
                        failures.append(message)
        cause = next((f for f in failures if " is gone" not in f.reason), failures[0])
        return WorkerDiedError(f"rank {cause.rank} failed: {cause.reason}")

    def _death_of(self, rank: int) -> EngineError:
        self._processes[rank].join(_LAST_WORDS_S)
        code = self._processes[rank].exitcode
        if code is not None and code < 0:
            return WorkerDiedError(f"rank {rank} was killed by signal {-code}")
        return WorkerDiedError(f"rank {rank} ended with status {code}")
