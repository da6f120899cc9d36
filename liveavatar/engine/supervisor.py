"""Claim jobs, feed the worker group two deep, record what it does, start it again when it dies.

No torch here: a supervisor is a thread of the web server's process, and the ranks are processes. It
speaks with the web server only through the job store and the spool. What becomes of the jobs of a
group that dies is said in `held_jobs.py`.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from liveavatar.engine.chores import Chores
from liveavatar.engine.disk_guard import DiskGuard
from liveavatar.engine.group import Group
from liveavatar.engine.group_state import GroupState, GroupWord
from liveavatar.engine.held_jobs import HeldJobs
from liveavatar.engine.identity import Identity, alone_with, hold_folder
from liveavatar.engine.job_files import JobFiles, remove_stale_points
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
from liveavatar.engine.mirrored_files import MirroredFiles
from liveavatar.engine.restarts import Restarts
from liveavatar.engine.running_job import RunningJob
from liveavatar.engine.supervisor_settings import DEFAULT_SETTINGS, SupervisorSettings
from liveavatar.errors import (
    LiveAvatarError,
    SpoolUnavailableError,
    StoreUnavailableError,
)
from liveavatar.jobs.job import JobState
from liveavatar.jobs.spool import Spool
from liveavatar.jobs.store import JobStore

logger = logging.getLogger(__name__)

_EVENT_WAIT_S = 0.05
_FILES_WAIT_S = 0.01
"""While files are being read or finished in another thread."""
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
        shares = self._identity.shares
        self._files = (
            MirroredFiles(spool, spool.mirror) if spool.mirror else JobFiles(spool, shares=shares)
        )
        self._jobs = HeldJobs(store, self._ledger, spool, self._files, self._ladder)
        self._restarts = Restarts(settings, self.state)
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
        return len(self._jobs)

    def _run(self) -> None:
        try:
            self._ledger.do(partial(self._store.requeue_of, self.name, "the server was restarted"))
            while not self._draining.is_set():
                self._restarts.begin()
                self._publish()
                try:
                    self._serve_with_a_group()
                except Exception as error:  # noqa: BLE001 - the border: the service goes on
                    self._wait_before_another(self._restarts.note(error))
        finally:
            self._worker.shutdown(wait=False, cancel_futures=True)
            self._remove_stale_points()
            self.state.word, self.state.message = "stopped", ""
            self._ledger.do(self._ledger.nothing)
            self._publish()
            os.close(self._lock)

    def _wait_before_another(self, wait_s: float) -> None:
        self._publish()
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and not self._draining.wait(0.1):
            if self._chores.is_due("status", self._settings.status_s):
                self._publish()

    def _serve_with_a_group(self) -> None:
        self._memory.forget()
        group = self._make_group()
        try:
            self._serve(group)
            group.close(_STOP_S)
        except BaseException as error:
            group.kill()
            self._jobs.take_back_after(error)
            raise
        finally:
            group.kill()
            self._jobs.give_back("the server was stopped", counts=False)

    def _serve(self, group: Group) -> None:
        while not self._stopping.is_set():
            at_files = any(running.work is not None for running in self._jobs)
            event = group.next_event(_FILES_WAIT_S if at_files else _EVENT_WAIT_S)
            if event is not None:
                self._take(event)
            if group.is_ready:
                if self.state.word not in ("ready", "draining"):
                    self.state.serve()
                    self._publish()
                self._claim()
            self._pass_on(group)
            self._keep_house(group)
            if self._draining.is_set():
                if not self._jobs:
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
        running.work = self._worker.submit(self._files.prepare, running.number, running.job)
        self._jobs.add(running)
        logger.info("job %s: attempt %d begins", job.id, job.attempt)
        self._chores.hurry("claim")

    def _wants_another(self) -> bool:
        """Whether the group soon has nothing to render, and memory for another job till then."""
        if self._jobs and self._memory.complaint is not None:
            return False
        left_s = sum(running.left_s for running in self._jobs)
        return (
            len(self._jobs) < self._settings.jobs_at_once
            and left_s <= self._settings.prepare_ahead_s
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
        running = self._jobs.get(getattr(event, "number", -1))
        if running is None:
            return
        if isinstance(event, Progress):
            if event.frames and not running.frames:
                self._worker.submit(self._files.show_first_frames, running.job)
            if told := running.note_progress(event.frames, event.stage):
                logger.info("job %s: %s", running.job.id, told)
        elif isinstance(event, Refused):
            self._jobs.fail(running, event.reason)
        elif isinstance(event, Finished):
            running.note_progress(event.frames, "finishing")
            running.phase, running.cut_short = "rendered", event.cancelled

    def _pass_on(self, group: Group) -> None:
        """Hand over what other threads have done."""
        for running in self._jobs:
            work = running.work
            may_finish = running.phase == "rendered" and time.monotonic() >= running.finish_at
            waits = may_finish or (work is not None and work.done())
            if not waits or (running.phase != "ended" and not self._is_ours(running, group)):
                continue
            running.work = None
            if work is not None:
                self._take_result(running, work, group)
                continue
            running.phase = "ended"
            running.work = self._worker.submit(self._files.finish, running.job, running.frames)

    def _take_result(self, running: RunningJob, work: Future[Any], group: Group) -> None:
        error = work.exception()
        if isinstance(error, SpoolUnavailableError):
            if running.phase != "ended" or not running.finish_later():
                self._jobs.put_back(running, str(error))
        elif isinstance(error, LiveAvatarError):
            # All frames are there: a disk that is full for a moment must not cost the video.
            disk = running.phase == "ended" and isinstance(error.__cause__, OSError)
            if disk and running.finish_later():
                logger.warning("job %s: %s; trying again", running.job.id, error)
            else:
                self._jobs.fail(running, str(error))
        elif error is not None:
            logger.error("job %s", running.job.id, exc_info=error)
            self._jobs.fail(running, f"its files could not be used: {error!r}")
        elif running.phase == "ended":
            self._jobs.end_rendered(running)
        elif running.cancel_wanted:
            self._jobs.end(running, JobState.CANCELLED)
        else:
            self._hand_over(running, work.result(), group)

    def _is_ours(self, running: RunningJob, group: Group) -> bool:
        """Whether a job's files may be written; drops one that another group has taken."""
        if not self._identity.shares:
            return True
        with self._jobs.unless_lost(running, group):
            self._store.renew(running.claim, self._settings.lease_s)
            return True
        return False

    def _hand_over(self, running: RunningJob, job: RenderJob, group: Group) -> None:
        if job.resumes:
            running.go_on(job.kept_frames)
        else:
            self._ledger.do(partial(self._store.begin_take, running.claim))
        running.phase = "in group"
        running.beginning.note_handed_over(time.monotonic())
        group.submit(job)

    def _keep_house(self, group: Group) -> None:
        if self._jobs and self._chores.is_due("progress", self._settings.progress_s):
            self._record_progress(group)
        if self._jobs and self._chores.is_due("cancel", 0.2):
            self._pass_on_cancels(group)
        if self._chores.is_due("renew", self._settings.lease_s / 4):
            for running in self._jobs:
                with self._jobs.unless_lost(running, group):
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
        for running in self._jobs:
            if not running.changed:
                continue
            with self._jobs.unless_lost(running, group):
                running.record_progress(self._store)
                running.changed = False

    def _pass_on_cancels(self, group: Group) -> None:
        claims = [running.claim for running in self._jobs]
        wanted = self._ledger.ask(lambda: self._store.cancels_wanted(claims)) or set()
        for running in self._jobs:
            if running.job.id in wanted and not running.cancel_wanted:
                running.cancel_wanted = True
                if running.phase == "in group":
                    group.cancel(running.number)

    def _say(self, word: GroupWord) -> None:
        if self.state.word != word:
            self.state.word = word
            self._publish()

    def _publish(self) -> None:
        ids = [running.job.id for running in self._jobs]
        document = {
            **self.state.document(ids),
            **self._identity.document(),
            "leaves": self._draining.is_set(),
            "ability": self._settings.ability.document(),
        }
        self._ledger.ask(lambda: self._store.write_worker(self.name, document))
