"""The worker group as its owner sees it: start the ranks, hand them jobs, hear what happens.

No torch here: the owner is the web server's supervisor or the command line. A rank imports torch in
its own process.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

from liveavatar.engine.messages import (
    Cancel,
    Event,
    Failed,
    GroupSpec,
    Ready,
    RenderJob,
    StagesReady,
    Stop,
    Submit,
)
from liveavatar.engine.processes import (
    START_S,
    STOP_S,
    RankProcesses,
    refuse_while_importing,
    with_news,
)
from liveavatar.engine.sender import Sender
from liveavatar.engine.watchdog import Limits, Watchdog, not_ready
from liveavatar.errors import DeadlineError, EngineError, MemoryShortError, WorkerDiedError

READY_S = 1800.0
"""Seconds until a group has to be ready: all weights from a slow disk, every kernel compiled."""

_LOOK_S = 1.0
_LAST_WORDS_S = 1.0
_LOG_LINES = 30


class Group(Protocol):
    """What renders jobs: a worker group, or one that stands in for it where there is no torch.

    Made without waiting. It takes jobs at once and renders them, in order, when it is ready.
    """

    @property
    def is_ready(self) -> bool:
        """Whether every rank has said Ready, as far as `next_event` was called."""

    def submit(self, job: RenderJob) -> None:
        """Queue a job behind those submitted before it; WorkerDiedError when the group is gone."""

    def cancel(self, number: int) -> None:
        """Stop a job; its file keeps the blocks that are finished. As `submit` when gone."""

    def next_event(self, timeout_s: float) -> Event | None:
        """Wait for the next report; None when none came in time.

        Raises:
            EngineError: a rank failed, ended or hangs; one line names it and says why. The group
                is to be killed then.
        """

    def close(self, timeout_s: float = STOP_S) -> None:
        """Let the jobs at hand finish, for so long at most, then end."""

    def kill(self) -> None:
        """End now; does nothing twice."""


class WorkerGroup:
    """The resident ranks of one machine; a `Group`.

    Making it starts the ranks and returns at once; they load, connect and say Ready. Leaving it as
    a `with` block ends every rank, whatever they do.

    Args:
        spec: what to build; its `folder` is replaced by a private one of this group.

    Raises:
        RuntimeError: the program that makes it lacks `if __name__ == "__main__"`.
    """

    def __init__(self, spec: GroupSpec) -> None:
        refuse_while_importing()
        self._folder = Path(tempfile.mkdtemp(prefix="liveavatar-"))
        self.spec = replace(spec, folder=self._folder)
        self._starting = set(range(spec.world_size))
        start_s = max(START_S, spec.silence_s)
        limits = Limits(start_s, spec.silence_s, spec.timeout_s, READY_S)
        self._processes = RankProcesses(self.spec)
        self._watchdog = Watchdog(spec.world_size, limits, self._processes.is_stopped)
        self._pipes = list(self._processes.pipes)
        self._to_media = Sender(self._pipes[spec.media_rank])
        # Before the handler of multiprocessing, which would wait for ranks that finish their jobs.
        atexit.register(self.kill)

    def pids(self) -> list[int]:
        """Process of each rank; waits until all are started."""
        return self._processes.pids()

    @property
    def is_ready(self) -> bool:
        """Whether every rank has said Ready, as far as `next_event` was called."""
        return not self._starting and bool(self._pipes)

    def wait_until_ready(self, timeout_s: float = READY_S) -> None:
        """Wait until every rank has loaded and is connected; what else they report is dropped.

        Raises:
            WorkerDiedError: a rank ended while starting; names it and says why. The group is ended.
            DeadlineError: a rank was not ready in time. The group is ended.
        """
        deadline = time.monotonic() + timeout_s
        try:
            while not self.is_ready:
                self.next_event(max(0.0, deadline - time.monotonic()))
                if time.monotonic() >= deadline and self._starting:
                    raise DeadlineError(not_ready(self._starting, timeout_s))
        except BaseException:
            self.kill()
            raise

    def submit(self, job: RenderJob) -> None:
        """Queue a job behind those submitted before it; from any thread."""
        self._watchdog.submitted(job)
        self._tell(Submit(job))

    def cancel(self, number: int) -> None:
        """Stop a job; its file keeps the blocks that are finished. From any thread."""
        self._tell(Cancel(number))

    def next_event(self, timeout_s: float) -> Event | None:
        """Wait for the next report; None when none came in time.

        Ranks wait when too many reports are left lying; call it again and again.

        Raises:
            WorkerDiedError: a rank failed or ended; names it and says why.
            DeadlineError: a rank is silent or not ready in time, or an open job makes no progress.
        """
        deadline = time.monotonic() + timeout_s
        while True:  # the watchdog is asked meanwhile, also where no rank says a word
            event = self._look(min(_LOOK_S, max(0.0, deadline - time.monotonic())))
            if event is not None or time.monotonic() >= deadline:
                return event

    def close(self, timeout_s: float = STOP_S) -> None:
        """Let the jobs at hand finish, then end the ranks; kill those that do not in time."""
        with suppress(WorkerDiedError):
            self._tell(Stop())
        deadline = time.monotonic() + timeout_s
        pipes = list(self._pipes)
        while pipes and (left := deadline - time.monotonic()) > 0:
            for pipe in with_news(pipes, left):  # a rank does not end while nobody reads
                try:
                    pipe.recv()
                except (EOFError, OSError):
                    pipes.remove(pipe)
        self._processes.join(deadline)
        self.kill()

    def kill(self) -> None:
        """End every rank now and remove the group's folder; does nothing twice."""
        self._to_media.end()
        self._processes.kill()
        self._pipes = []
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.kill)

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

    def _look(self, timeout_s: float) -> Event | None:
        """Wait for the next report, see `next_event`."""
        if not self._pipes:
            raise WorkerDiedError("the worker group has ended; start another")
        ready = with_news(self._pipes, timeout_s)
        quiet = [rank for rank, pipe in enumerate(self._pipes) if pipe not in ready]
        broken = []
        for pipe in ready:
            rank = self._pipes.index(pipe)
            try:
                message: Event = pipe.recv()
            except (EOFError, OSError):
                broken.append(rank)
                continue
            if isinstance(message, Failed):
                raise self._first_cause(message)
            self._watchdog.heard(rank, message)
            if isinstance(message, Ready):
                self._note_ready(message.rank)
            self._complain(quiet)
            return message
        if broken:
            raise self._death_of(broken[0])
        self._complain(quiet)
        return None

    def _complain(self, quiet: list[int]) -> None:
        complaint = self._watchdog.complaint(quiet)
        if complaint is not None:
            raise DeadlineError(complaint)

    def _note_ready(self, rank: int) -> None:
        self._starting.discard(rank)
        if self._starting == {self.spec.media_rank}:
            self._tell(StagesReady())
        if not self._starting:
            shutil.rmtree(self._folder, ignore_errors=True)  # all sockets are connected

    def _tell(self, message: object) -> None:
        """Say something to the media rank, the only one that is spoken to."""
        if not self._pipes:
            raise WorkerDiedError("the worker group has ended; start another")
        self._to_media.send(message)

    def _first_cause(self, failure: Failed) -> EngineError:
        """The error to raise for a failed rank; a rank that only lost its neighbour is not it."""
        deadline = time.monotonic() + _LAST_WORDS_S
        failures, pipes = [failure], list(self._pipes)
        while pipes and (left := deadline - time.monotonic()) > 0:
            for pipe in with_news(pipes, left):
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    pipes.remove(pipe)
                    rank = self._pipes.index(pipe)
                    if self._processes.was_killed(rank, deadline):
                        return self._death_of(rank)
                    continue
                if isinstance(message, Failed):
                    failures.append(message)
        cause = next((failed for failed in failures if failed.by_its_work), failures[0])
        kind = MemoryShortError if cause.out_of_memory else WorkerDiedError
        return kind(
            f"rank {cause.rank} failed: {cause.reason}",
            by_its_work=cause.by_its_work,
            job=cause.job,
            log="".join(cause.trace.splitlines(keepends=True)[-_LOG_LINES:]),
        )

    def _death_of(self, rank: int) -> EngineError:
        end = self._processes.end_of(rank, time.monotonic() + STOP_S)
        return WorkerDiedError(f"rank {rank} {end or 'broke its pipe, yet does not end'}")
