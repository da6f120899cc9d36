"""The processes of a worker group's ranks; no torch in the process that owns them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, spawn
from multiprocessing.connection import Connection, wait
from pathlib import Path

from liveavatar.engine.messages import GroupSpec
from liveavatar.engine.owner import Owner

STOP_S = 10.0
"""Seconds until a killed process has to be gone."""

START_S = 120.0
"""Seconds until the first word of a rank: libraries are read, from a cold disk at worst."""

_STOPPED = "T"
"""State of a process, in `/proc`, that was sent SIGSTOP; one that is traced has another."""

_ROOT = Path(__file__).resolve().parents[2]


class RankProcesses:
    """One process per rank and a pipe to each.

    They are forked from a process that has read torch and the engine, and that this process starts
    for its first group and keeps for later ones. Making this returns at once: a thread starts the
    ranks. A pipe breaks when its rank has ended, or could not be started.

    Args:
        spec: of the group, its folder made.

    Attributes:
        pipes: this side's end, by rank.
    """

    def __init__(self, spec: GroupSpec) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["liveavatar.engine.preload"])
        pairs = [self._context.Pipe() for _ in range(spec.world_size)]
        self.pipes = [ours for ours, _ in pairs]
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._trouble = ""
        self._is_unwanted = threading.Event()
        theirs = [pipe for _, pipe in pairs]
        self._starter = threading.Thread(
            target=self._start, args=(spec, theirs), name="rank starter", daemon=True
        )
        self._starter.start()

    def pids(self) -> list[int]:
        """Process of each rank, once all are started; waits for that."""
        self._starter.join(START_S)
        return [process.pid for process in self._processes if process.pid is not None]

    def end_of(self, rank: int, deadline: float) -> str | None:
        """How a rank ended, as words behind its name; None if it has not by `deadline`.

        Args:
            rank: whose pipe is broken.
            deadline: on the clock of `time.monotonic`.
        """
        self._starter.join(max(0.0, deadline - time.monotonic()))
        if rank >= len(self._processes):
            return None if self._starter.is_alive() else f"could not start: {self._trouble}"
        code = self._exit_code(rank, deadline)
        if code is None:
            return None
        return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"

    def was_killed(self, rank: int, deadline: float) -> bool:
        """Whether a rank whose pipe is broken was ended by a signal."""
        return rank < len(self._processes) and (self._exit_code(rank, deadline) or 0) < 0

    def is_stopped(self, rank: int) -> bool:
        """Whether a signal keeps a rank from running, or from being started."""
        if rank < len(self._processes):
            return _is_stopped(self._processes[rank].pid)
        # One that was forked and has not told its number yet holds up all after it.
        return any(map(_is_stopped, [_origin(), *_forked()]))

    def join(self, deadline: float) -> None:
        """Wait until all have ended, until `deadline` at most."""
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """End them all now and close the pipes."""
        self._is_unwanted.set()
        self._starter.join(STOP_S)
        if self._starter.is_alive():  # it waits for a process that hangs, or reads for too long
            _end_origin(time.monotonic() + STOP_S)
            self._starter.join(STOP_S)
        for process in self._processes:
            if process.is_alive():
                process.kill()
        self.join(time.monotonic() + STOP_S)
        for pipe in self.pipes:
            pipe.close()

    def _exit_code(self, rank: int, deadline: float) -> int | None:
        process = self._processes[rank]
        process.join(max(0.0, deadline - time.monotonic()))
        return process.exitcode

    def _start(self, spec: GroupSpec, pipes: list[Connection]) -> None:
        try:
            with _importable():
                forkserver.ensure_running()
            for rank, pipe in enumerate(pipes):
                if self._is_unwanted.is_set():
                    return
                process = self._context.Process(
                    target=_run_rank, args=(rank, spec, pipe), name=f"rank {rank}", daemon=True
                )
                process.start()
                self._processes.append(process)
                pipe.close()  # so that the other end breaks when the rank ends
        except (OSError, EOFError) as error:
            self._trouble = str(error) or repr(error)
        finally:
            for pipe in pipes:
                pipe.close()


def _origin() -> int | None:
    """Process that all ranks are forked from, if there is one."""
    pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


def _forked() -> list[int]:
    """Numbers of the processes forked from it, also of such as have not told theirs yet."""
    pid = _origin()
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    except OSError:
        return []
    return [int(child) for child in children.split()]


def _is_stopped(pid: int | None) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == _STOPPED


def _end_origin(deadline: float) -> None:
    """Kill that process and all ranks, so that the next group begins with another one."""
    if (pid := _origin()) is None:
        return
    for child in _forked():  # first: without their origin all of them seem to have ended
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        # Ended, but not yet heard of: that is for the library, which then starts another.
        has_ended = os.WEXITED | os.WNOWAIT | os.WNOHANG
        while os.waitid(os.P_PID, pid, has_ended) is None and time.monotonic() < deadline:
            time.sleep(0.01)


def refuse_while_importing() -> None:
    """Raise RuntimeError where a rank imports the program that started it: that one lacks a guard.

    Started from there, ranks would start ranks.
    """
    spawn._check_not_importing_main()  # type: ignore[attr-defined]


def with_news(pipes: list[Connection], timeout_s: float) -> list[Connection]:
    """The pipes that hold a message or are broken, once there is one."""
    ready = wait(pipes, timeout=timeout_s)
    return [pipe for pipe in pipes if pipe in ready]


@contextmanager
def _importable() -> Iterator[None]:
    """This package can be imported by a process started now, whatever its folder and program."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _run_rank(rank: int, spec: GroupSpec, pipe: Connection) -> None:
    """Run a rank; here, so that the owner's process needs no torch to name it."""
    # Signals from a terminal or a service manager reach every process; what they mean is for the
    # owner to say, and for the media rank, which lets the jobs at hand finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    owner = Owner(pipe)  # before torch is read, should this process not have it yet
    from liveavatar.engine.worker import worker_main

    worker_main(rank, spec, owner)
