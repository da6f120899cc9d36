"""Claim jobs, feed the worker group two deep, record what it does, start it again when it dies.

No torch here: a supervisor is a thread of the web server's process, and the ranks are processes. It
speaks with the web server only through the job store and the spool.

Why a group died decides what becomes of its jobs. A rank that was killed or hangs: they go on in
their files, in a new group. A rank whose own work failed: the job it worked on is made once more,
smaller if there is a smaller tier, and fails the second time; the others go on.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from liveavatar.engine.chores import Chores
from liveavatar.engine.disk_guard import DiskGuard
from liveavatar.engine.group import Group
from liveavatar.engine.group_state import GroupState
from liveavatar.engine.identity import Identity, alone_with, hold_folder
from liveavatar.engine.job_files import (
    finish_video,
    prepare_render_job,
    remove_stale_points,
    show_first_frames,
)
from liveavatar.engine.ladder import Ladder
from liveavatar.engine.ledger import Ledger
from liveavatar.engine.memory_guard import MemoryGuard
from liveavatar.engine.messages import (
    Event,
    Finished,
    Progress,
    RankStatus,
    Refused,
    RenderJob,
)
from liveavatar.engine.running_job import RunningJob
from liveavatar.engine.supervisor_settings import DEFAULT_SETTINGS, SupervisorSettings
from liveavatar.errors import (
    DeadlineError,
    LeaseLostError,
    LiveAvatarError,
    StoreUnavailableError,
    WorkerDiedError,
)
from liveavatar.jobs.job import JobState
from liveavatar.jobs.spool import Spool
from liveavatar.jobs.store import JobStore

logger = logging.getLogger(__name__)

_EVENT_WAIT_S = 0.05
_STOP_S = 10.0


class Supervisor:
    """Serves the jobs of a store with a worker group, until it is stopped.

    Args:
        store: the jobs.
        spool: their files.
        make_group: starts a group and returns at once.
        settings: times and limits.
        ladder: smaller videos to make where memory is short or a job fails.
        identity: who it is; by default the only one of its data folder.
    """

    def __init__(
        self,
        store: JobStore,
        spool: Spool,
        make_group: Callable[[], Group],
        settings: SupervisorSettings = DEFAULT_SETTINGS,
        ladder: Ladder | None = None,
        identity: Identity | None = None,
    ) -> None:
        self._identity = identity or alone_with(spool)
        self.name = self._identity.worker
        self.state = GroupState()
        self._store = store
        self._ledger = Ledger(store, self.name)
        self._spool = spool
        self._make_group = make_group
        self._settings = settings
        self._ladder = ladder or Ladder()
        self._disk = DiskGuard(spool)
        self._memory = MemoryGuard(settings.memory_threshold_bytes)
        self._draining = threading.Event()
        self._stopping = threading.Event()
        self._running: dict[int, RunningJob] = {}
        self._numbers = itertools.count(1)
        self._chores = Chores()
        self._worker = ThreadPoolExecutor(max_workers=2, thread_name_prefix="job files")
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Begin; returns at once.

        Raises:
            ConfigError: another supervisor serves this data folder.
        """
        self._lock = hold_folder(self._spool, shares=self._identity.shares)
        self._thread.start()

    def drain(self) -> None:
        """Take no more jobs, finish those at hand, then end; returns at once."""
        self._draining.set()

    def stop(self, timeout_s: float = 0.0) -> None:
        """Drain for so long at most, give back what is not finished, end the group."""
        self.drain()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            self._stopping.set()
            self._thread.join(_STOP_S + self._settings.status_s)

    @property
    def is_alive(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    @property
    def num_jobs(self) -> int:
        """Jobs at hand: in the group, before it or after it."""
        return len(self._running)

    def _run(self) -> None:
        try:
            self._ledger.do(partial(self._store.requeue_of, self.name, "the server was restarted"))
            failures = 0
            while not self._draining.is_set():
                began = time.monotonic()
                self.state.begin()
                self._publish()
                try:
                    self._serve_with_a_group()
                except Exception as error:  # noqa: BLE001 - the border: the service goes on
                    if time.monotonic() - began > self._settings.healthy_after_s:
                        failures = 0
                    # A job that failed by itself says nothing about the group.
                    failures += not (isinstance(error, WorkerDiedError) and error.by_its_work)
                    self._note_failure(error, failures)
        finally:
            self._worker.shutdown(wait=False, cancel_futures=True)
            self._remove_stale_points()
            self.state.word, self.state.message = "stopped", ""
            self._ledger.do(self._ledger.nothing)
            self._publish()
            os.close(self._lock)

    def _serve_with_a_group(self) -> None:
        self._memory.forget()
        group = self._make_group()
        try:
            self._serve(group)
            group.close(_STOP_S)
        except BaseException as error:
            group.kill()
            self._take_back_after(error)
            raise
        finally:
            group.kill()
            self._give_back("the server was stopped", counts=False)

    def _serve(self, group: Group) -> None:
        deadline = time.monotonic() + self._settings.start_timeout_s
        while not self._stopping.is_set():
            event = group.next_event(_EVENT_WAIT_S)
            if event is not None:
                self._take(event)
            if group.is_ready:
                if self.state.word not in ("ready", "draining"):
                    self._say("ready")
                self._claim()
            elif time.monotonic() > deadline:
                raise DeadlineError(
                    f"the worker group was not ready in {self._settings.start_timeout_s:.0f} s"
                )
            self._pass_on(group)
            self._keep_house(group)
            if self._draining.is_set():
                if not self._running:
                    return
                self._say("draining")

    def _claim(self) -> None:
        if self._draining.is_set() or not self._wants_another():
            return
        if not self._chores.is_due("claim", 0.1) or not self._has_room():
            return
        settings = self._settings
        claimed = self._ledger.ask(
            lambda: self._store.claim(self.name, settings.lease_s, settings.ability)
        )
        if claimed is None:
            return
        claim, job = claimed
        running = RunningJob(next(self._numbers), job, claim)
        self._spare_memory(running)
        folder = self._spool.job(job.id)
        attempt = job.attempt if self._identity.shares else None
        prepare = partial(prepare_render_job, running.number, running.job.spec, folder, attempt)
        running.work = self._worker.submit(prepare)
        self._running[running.number] = running
        logger.info("job %s: attempt %d begins", job.id, job.attempt)
        self._chores.hurry("claim")

    def _wants_another(self) -> bool:
        """Whether the group soon has nothing to render, and memory for another job till then."""
        at_hand = self._running.values()
        if at_hand and self._memory.complaint is not None:
            return False
        left_s = sum(running.left_s for running in at_hand)
        return (
            len(at_hand) < self._settings.jobs_at_once and left_s <= self._settings.prepare_ahead_s
        )

    def _has_room(self) -> bool:
        """Whether a job may begin: what runs may need the rest of the disk."""
        self.state.message = self._disk.complaint(self._settings.free_disk_bytes)
        return not self.state.message

    def _spare_memory(self, running: RunningJob) -> None:
        """Make a video that has not begun smaller: under a ceiling, or while memory is short."""
        spec, ceiling = None, self._ledger.ask(self._store.ceiling)
        if running.job.frames:
            return
        if ceiling is not None:
            spec = self._ladder.under(running.job.spec, ceiling.tier, ceiling.reason)
        if (reason := self._memory.complaint) is not None:
            spec = self._ladder.below(spec or running.job.spec, reason) or spec
        if spec is not None:
            logger.warning("job %s: %s", running.job.id, spec.notes[-1].message)
            running.change_spec(spec)
            self._ledger.do(partial(self._store.change_spec, running.claim, spec))

    def _take(self, event: Event) -> None:
        self.state.take(event)
        if isinstance(event, RankStatus):
            self._memory.heard(event)
        running = self._running.get(getattr(event, "number", -1))
        if running is None:
            return
        if isinstance(event, Progress):
            if event.frames and not running.frames:
                self._worker.submit(show_first_frames, self._spool.job(running.job.id))
            running.note_progress(event.frames, event.stage)
        elif isinstance(event, Refused):
            self._fail(running, event.reason)
        elif isinstance(event, Finished):
            running.note_progress(event.frames, "finishing")
            running.phase, running.cut_short = "rendered", event.cancelled

    def _pass_on(self, group: Group) -> None:
        """Hand over what other threads have done."""
        for running in list(self._running.values()):
            work = running.work
            may_finish = running.phase == "rendered" and time.monotonic() >= running.finish_at
            waits = may_finish or (work is not None and work.done())
            if not waits or (running.phase != "ended" and not self._is_ours(running, group)):
                continue
            running.work = None
            if work is not None:
                self._take_result(running, work, group)
                continue
            running.phase, folder = "ended", self._spool.job(running.job.id)
            running.work = self._worker.submit(finish_video, folder, running.frames)

    def _take_result(self, running: RunningJob, work: Future[Any], group: Group) -> None:
        error = work.exception()
        if isinstance(error, LiveAvatarError):
            # All frames are there: a disk that is full for a moment must not cost the video.
            disk = running.phase == "ended" and isinstance(error.__cause__, OSError)
            if disk and running.finish_later():
                logger.warning("job %s: %s; trying again", running.job.id, error)
            else:
                self._fail(running, str(error))
        elif error is not None:
            logger.error("job %s", running.job.id, exc_info=error)
            self._fail(running, f"its files could not be used: {error!r}")
        elif running.phase == "ended":
            state = JobState.CANCELLED if running.cut_short else JobState.DONE
            self._end(running, state)
        elif running.cancel_wanted:
            self._end(running, JobState.CANCELLED)
        else:
            self._hand_over(running, work.result(), group)

    def _is_ours(self, running: RunningJob, group: Group) -> bool:
        """Whether a job's files may be written; drops one that another group has taken."""
        if not self._identity.shares:
            return True
        with self._unless_lost(running, group):
            self._store.renew(running.claim, self._settings.lease_s)
            return True
        return False

    def _hand_over(self, running: RunningJob, job: RenderJob, group: Group) -> None:
        if job.resumes:
            running.go_on()
        else:
            self._ledger.do(partial(self._store.begin_take, running.claim))
        running.phase = "in group"
        group.submit(job)

    def _keep_house(self, group: Group) -> None:
        if self._running and self._chores.is_due("progress", self._settings.progress_s):
            self._record_progress(group)
        if self._running and self._chores.is_due("cancel", 0.2):
            self._pass_on_cancels(group)
        if self._chores.is_due("renew", self._settings.lease_s / 4):
            for running in list(self._running.values()):
                with self._unless_lost(running, group):
                    self._store.renew(running.claim, self._settings.lease_s)
            with suppress(StoreUnavailableError):
                self._store.requeue_expired("the lease of its worker ran out")
        if self._chores.is_due("stale points", 60.0):
            self._remove_stale_points()
        if self._chores.is_due("status", self._settings.status_s):
            self._ledger.do(self._ledger.nothing)
            self._has_room()
            self._publish()

    def _remove_stale_points(self) -> None:
        self._ledger.ask(lambda: remove_stale_points(self._store, self._spool))

    def _record_progress(self, group: Group) -> None:
        for running in list(self._running.values()):
            if not running.changed:
                continue
            with self._unless_lost(running, group):
                running.record_progress(self._store)
                running.changed = False

    def _pass_on_cancels(self, group: Group) -> None:
        claims = [running.claim for running in self._running.values()]
        wanted = self._ledger.ask(lambda: self._store.cancels_wanted(claims)) or set()
        for running in self._running.values():
            if running.job.id in wanted and not running.cancel_wanted:
                running.cancel_wanted = True
                if running.phase == "in group":
                    group.cancel(running.number)

    def _end(self, running: RunningJob, state: JobState, error: str | None = None) -> None:
        del self._running[running.number]
        self._ledger.do(partial(running.record_progress, self._store))
        self._ledger.do(partial(self._store.finish, running.claim, state, error))
        logger.info("job %s: %s %s", running.job.id, state.value, error or "")

    def _fail(self, running: RunningJob, error: str) -> None:
        """End a job that cannot be made; while nothing at all can be written it waits instead."""
        if (cause := self._spool.complaint()) is None:
            self._end(running, JobState.FAILED, error)
            return
        del self._running[running.number]
        note = f"the data folder could not be written: {cause}"
        self._ledger.do(partial(self._store.requeue, running.claim, note, counts=False))
        logger.warning("job %s: %s; %s", running.job.id, note, error)

    def _take_back_after(self, error: BaseException) -> None:
        """Decide what becomes of the jobs of a group that died."""
        at_fault = self._at_fault(error)
        if at_fault is not None and isinstance(error, WorkerDiedError):
            self._retry_or_fail(at_fault, error)
        self._give_back(_one_line(error))

    def _at_fault(self, error: BaseException) -> RunningJob | None:
        """The job whose work ended the group: the one that was named, or the one that rendered."""
        if not isinstance(error, WorkerDiedError) or not error.by_its_work:
            return None
        if self._spool.complaint() is not None:  # that is no fault of a job
            return None
        if error.job is not None:
            return self._running.get(error.job)
        return next((job for job in self._running.values() if job.phase == "in group"), None)

    def _retry_or_fail(self, running: RunningJob, error: WorkerDiedError) -> None:
        reason, job = _one_line(error), running.job
        folder = self._spool.job(job.id)
        with suppress(OSError):
            folder.failure_log.write_text(f"{reason}\n{error.log}", encoding="utf-8")
            shutil.rmtree(folder.resume, ignore_errors=True)  # it may be what is wrong
        if job.faults:
            self._end(running, JobState.FAILED, f"{reason}; it failed twice")
            return
        del self._running[running.number]
        spec = self._ladder.below(job.spec, reason) or job.spec
        self._ledger.do(partial(self._store.retry, running.claim, reason, spec))
        logger.warning("job %s: once more, at tier %s: %s", job.id, spec.tier, reason)

    def _give_back(self, reason: str, *, counts: bool = True) -> None:
        """Requeue what the group held; jobs whose files are being finished end as they would."""
        for running in list(self._running.values()):
            if running.phase == "ended" and running.work is not None:
                with suppress(Exception):
                    running.work.result(_STOP_S)
                    state = JobState.CANCELLED if running.cut_short else JobState.DONE
                    self._end(running, state)
                    continue
            del self._running[running.number]
            if running.work is not None:
                running.work.cancel()
            self._ledger.do(partial(running.record_progress, self._store))
            self._ledger.do(partial(self._store.requeue, running.claim, reason, counts=counts))

    def _note_failure(self, error: Exception, failures: int) -> None:
        log = error.log if isinstance(error, WorkerDiedError) else ""
        if isinstance(error, LiveAvatarError):
            logger.error("the worker group failed: %s", error)
        else:
            logger.error("the worker group failed", exc_info=error)
        self.state.restarts += 1
        self.state.note_error(_one_line(error), log)
        settings = self._settings
        wait_s = min(
            settings.first_backoff_s * 2 ** (max(1, failures) - 1), settings.longest_backoff_s
        )
        lasting = failures >= settings.failures_until_failed
        self.state.word = "failed" if lasting else "restarting"
        self.state.message = f"{_one_line(error)}; starting again in {wait_s:.0f} s"
        self._publish()
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and not self._draining.wait(0.1):
            if self._chores.is_due("status", settings.status_s):
                self._publish()

    def _say(self, word: str) -> None:
        if self.state.word != word:
            self.state.word = word  # type: ignore[assignment]
            self._publish()

    def _publish(self) -> None:
        ids = [running.job.id for running in self._running.values()]
        document = {
            **self.state.document(ids),
            **self._identity.document(),
            "leaves": self._draining.is_set(),
            "ability": self._settings.ability.document(),
        }
        self._ledger.ask(lambda: self._store.write_worker(self.name, document))

    @contextmanager
    def _unless_lost(self, running: RunningJob, group: Group) -> Iterator[None]:
        """Drop a job that another worker has taken meanwhile; wait for a database that is away."""
        try:
            yield
        except StoreUnavailableError as error:
            logger.warning("%s", error)
        except LeaseLostError as error:
            logger.warning("%s", error)
            del self._running[running.number]
            if running.phase == "in group":
                group.cancel(running.number)


def _one_line(error: BaseException) -> str:
    text = str(error) if isinstance(error, LiveAvatarError) else repr(error)
    return " ".join(text.split())[:500]
