"""Start the ranks, hand them jobs, notice at once when one of them ends.

No torch here: the supervisor lives in the web server's process or in the command line's.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import threading
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
        self._sending = threading.Lock()
        try:
            self._spawn()
            self._wait_until_ready(start_timeout_s)
        except BaseException:
            self.kill()
            raise
        shutil.rmtree(self._folder)  # all sockets are connected; nothing stays if we are killed

    def submit(self, job: RenderJob) -> None:
        """Queue a job behind those submitted before it; from any thread."""
        self._send(self.spec.media_rank, Submit(job))

    def cancel(self, number: int) -> None:
        """Stop a job; its file keeps the blocks that are finished. From any thread."""
        self._send(self.spec.media_rank, Cancel(number))

    def events(self, timeout_s: float) -> Iterator[object]:
        """Yield what the ranks report, until nothing came for `timeout_s`.

        Raises:
            WorkerDiedError: a rank failed or ended; names it and says why.
        """
        while (message := self.next_event(timeout_s)) is not None:
            yield message

    def next_event(self, timeout_s: float) -> object | None:
        """Wait for the next report; None when none came in time. WorkerDiedError as `events`.

        Ranks wait when too many reports are left lying; call it again and again.
        """
        if not self._pipes:
            raise WorkerDiedError("the worker group has ended; start another")
        broken = []
        for pipe in _with_news(self._pipes, timeout_s):
            try:
                message: object = pipe.recv()
            except (EOFError, OSError):
                broken.append(self._pipes.index(pipe))
                continue
            if isinstance(message, Failed):
                raise self._first_cause(message)
            return message
        if broken:
            raise self._death_of(broken[0])
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
            with self._sending:
                self._pipes[rank].send(message)
        except (OSError, IndexError) as error:
            raise WorkerDiedError(f"rank {rank} is gone: {error}") from error

    def _first_cause(self, failure: Failed) -> EngineError:
        """The error to raise for a failed rank; a rank that only lost its neighbour is not it."""
        deadline = time.monotonic() + _LAST_WORDS_S
        failures, pipes = [failure], list(self._pipes)
        while pipes and (left := deadline - time.monotonic()) > 0:
            for pipe in _with_news(pipes, left):
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    pipes.remove(pipe)
                    rank = self._pipes.index(pipe)
                    if (self._exit_code(rank, deadline) or 0) < 0:
                        return self._death_of(rank)
                    continue
                if isinstance(message, Failed):
                    failures.append(message)
        cause = next((f for f in failures if " is gone" not in f.reason), failures[0])
        return WorkerDiedError(f"rank {cause.rank} failed: {cause.reason}")

    def _death_of(self, rank: int) -> EngineError:
        code = self._exit_code(rank, time.monotonic() + _STOP_S)
        if code is None:
            return WorkerDiedError(f"rank {rank} broke its pipe, yet does not end")
        if code < 0:
            return WorkerDiedError(f"rank {rank} was killed by signal {-code}")
        return WorkerDiedError(f"rank {rank} ended with status {code}")

    def _exit_code(self, rank: int, deadline: float) -> int | None:
        """Exit status of a rank whose pipe broke, or minus the signal; None if it is not gone."""
        self._processes[rank].join(max(0.0, deadline - time.monotonic()))
        code: int | None = self._processes[rank].exitcode
        return code


def _with_news(pipes: list[Connection], timeout_s: float) -> list[Connection]:
    """The pipes that hold a message or are broken, once there is one."""
    ready = wait(pipes, timeout=timeout_s)
    return [pipe for pipe in pipes if pipe in ready]
