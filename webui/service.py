"""What can be done here, as plain functions, for the routes, the page and the named endpoints.

They read files and the database, so the event loop calls them in threads; nothing in here waits
for a video.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from liveavatar.config import SamplingConfig
from liveavatar.errors import LiveAvatarError, RequestError
from liveavatar.jobs.ceiling import one_lower
from liveavatar.jobs.copies import Copies
from liveavatar.jobs.forecast import Forecast
from liveavatar.jobs.job import Job, JobSpec, JobState
from liveavatar.jobs.spool import JobFolder, Made, Spool, settled_name, writable
from liveavatar.jobs.store import JobStore, new_job_id
from liveavatar.media.ingest import check_prompt, coverage_notes, prompt_notes
from liveavatar.media.notes import Note
from liveavatar.media.portrait import fit_size
from liveavatar.media.reader_process import MediaReader
from liveavatar.media.reader_process import PortraitFacts as Portrait
from liveavatar.media.reader_process import SpeechFacts as Speech
from liveavatar.plan.tiers import Tier
from liveavatar.timeline import make_timeline
from webui.group_status import group_view
from webui.offers import Offers, ServedModel
from webui.schemas import (
    ConfigView,
    GroupView,
    InspectView,
    JobView,
    ModelView,
    NoteView,
    PortraitFacts,
    RefusalError,
    SharedJobView,
    SpeechFacts,
    describe,
)
from webui.settings import ServerSettings
from webui.submission import Submission
from webui.views import job_view, shared_view

VERSION = "0.1.0"

_INGESTS_AT_ONCE = 2
_INGEST_WAIT_S = 60.0
_MAX_TITLE = 80
_MAX_SEED = 2**31


class Service:
    """The application behind the web pages.

    Args:
        store: the jobs.
        spool: their files.
        settings: what is offered.
        model: what runs here.
        reader: reads users' files; stays the caller's.
    """

    def __init__(
        self,
        store: JobStore,
        spool: Spool,
        settings: ServerSettings,
        model: ServedModel,
        reader: MediaReader,
    ) -> None:
        self.store = store
        self.spool = spool
        self.settings = settings
        self.copies = Copies(store, spool, spool.mirror) if spool.mirror else None
        self.offers = Offers(settings, model)
        self.taking_jobs = True
        self._forecast = Forecast(store)
        self._reader = reader
        self._ingesting = threading.BoundedSemaphore(_INGESTS_AT_ONCE)

    def config_view(self, *, admin: bool = False, auth: bool = False) -> ConfigView:
        """What this server offers.

        Args:
            admin: whether the reader is the operator.
            auth: whether logging in is asked for.
        """
        model = self.offers.model
        features = self.settings.features
        return ConfigView(
            version=VERSION,
            model=ModelView(name=model.name, is_demo=model.is_demo, is_random=model.is_random),
            tiers=self.offers.views(self.store),
            limits=asdict(self.settings.limits),
            features={
                "share": features.share,
                "download": features.download,
                "auth": auth,
                "admin": admin,
                "custom_tier": features.custom_tier,
            },
            languages=["en", "zh"],
        )

    def inspect(self, form: Submission) -> InspectView:
        """Say what is to be said about the inputs that are there; nothing is kept."""
        view = InspectView(notes=[], errors=[])
        tier: Tier | None = None
        with _collected(view):
            tier = self.offers.resolve(form.choice())
            view.cost = self.offers.cost(tier)
        if form.prompt:
            with _collected(view):
                view.notes += _views(prompt_notes(self._prompt(form.prompt)))
        with self._room_for_ingest():
            if form.portrait is not None:
                with _collected(view):
                    self._inspect_portrait(view, form.portrait, tier)
            if form.speech is not None:
                with _collected(view):
                    self._inspect_speech(view, form.speech, tier)
        return view

    def submit(self, form: Submission, owner: str) -> Job:
        """Check the inputs, keep their original bytes and queue the job.

        The files are copied; they stay the caller's.

        Args:
            form: what was filled in.
            owner: digest of the browser's cookie.

        Raises:
            LiveAvatarError: it is refused, nothing is left of it.
        """
        key = form.idempotency_key
        if key and (known := self.store.find_submitted(owner, key)) is not None:
            return known
        self._require_service(owner)
        tier = self.offers.resolve(form.choice())
        portrait_path, speech_path = form.files()
        prompt = self._prompt(form.prompt)
        limits = self.settings.limits
        with self._room_for_ingest():
            portrait = self._reader.portrait(portrait_path, limits.portrait, poster=True)
            speech = self._reader.speech(speech_path, limits.speech)
        folder = self.spool.new_upload()
        try:
            names = settled_name("portrait", portrait_path), settled_name("speech", speech_path)
            inputs = _Inputs(prompt, portrait, speech)
            spec = self._spec(form, owner, tier, inputs, names)
            with writable():
                shutil.copyfile(portrait_path, folder / spec.portrait_name)
                shutil.copyfile(speech_path, folder / spec.speech_name)
                JobFolder(folder).poster.write_bytes(portrait.poster)
            return self._queue(spec, folder)
        finally:
            self.spool.discard(folder)

    def job(self, job_id: str) -> Job:
        """Return a job; UnknownJobError when there is none."""
        return self.store.get(self._known_form(job_id))

    def job_view(self, job: Job) -> JobView:
        """A job for its owner."""
        return job_view(job, self._made(job), self._forecast.outlook(job), self.settings.features)

    def shared_view(self, job: Job) -> SharedJobView:
        """A job for whoever has its link."""
        outlook, features = self._forecast.outlook(job), self.settings.features
        waits = job.state is JobState.QUEUED
        group = group_view(self.store, admin=False) if waits else None
        return shared_view(job, self._made(job), outlook, features, group)

    def video(self, job: Job) -> Path:
        """Where a job's finished video is, if there is one; SpoolUnavailableError."""
        path = self.spool.job(job.id).video
        return self.copies.fetch(job, path) if self.copies else path

    def thumbnail(self, job: Job) -> Path:
        """Where a job's thumbnail is, if there is one; SpoolUnavailableError."""
        path = self.spool.job(job.id).thumbnail
        return self.copies.fetch(job, path) if self.copies else path

    def poster(self, job: Job) -> Path:
        """Where the small picture of a job's portrait is; SpoolUnavailableError."""
        path = self.spool.job(job.id).poster
        return self.copies.fetch_poster(job, path) if self.copies else path

    def jobs_of(self, owner: str) -> list[JobView]:
        """An owner's jobs, newest first."""
        return [self.job_view(job) for job in self.store.list_jobs(owner)]

    def shared_job(self, token: str) -> Job:
        """The job behind a share link; UnknownJobError when there is none, or none are shared."""
        if not self.settings.features.share:
            raise RefusalError(404, "videos are not shared on this server")
        if not token.isascii():
            raise RefusalError(404, "this link leads to no video")
        return self.store.find_shared(token)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; an ended one stays as it is. UnknownJobError when there is none."""
        return self.store.request_cancel(self._known_form(job_id))

    def delete(self, job_id: str) -> None:
        """Forget an ended job and remove its files; UnknownJobError, JobError."""
        self.store.delete(self._known_form(job_id))
        self.spool.remove(job_id)

    def remove_old_jobs(self) -> int:
        """Remove ended jobs that are kept no longer, by age and by size; returns how many.

        Raises:
            SpoolUnavailableError: the storage is away.
        """
        limits, removed = self.settings.limits, 0
        if limits.keep_days:
            for job_id in self.store.ended_before(time.time() - limits.keep_days * 86_400):
                self.delete(job_id)
                removed += 1
        if limits.spool_bytes:
            sizes = self.spool.job_bytes()
            excess = sum(sizes.values()) - limits.spool_bytes
            for job_id in self.store.ended_before(time.time()):  # the oldest first
                if excess <= 0:
                    break
                excess -= sizes.get(job_id, 0)
                self.delete(job_id)
                removed += 1
        if self.copies is not None:
            self.copies.sweep()
        return removed

    def group_view(self, *, admin: bool) -> GroupView:
        """The worker group: all of it for the operator, else its state."""
        view = group_view(self.store, admin=admin)
        if (cause := self.spool.complaint()) is not None:
            view.message = f"files cannot be written now: {cause}"
        if admin:
            open_jobs = [job for job in self.store.list_jobs(limit=500) if not job.state.has_ended]
            view.jobs = [self.job_view(job) for job in reversed(open_jobs)]
        return view

    def lower(self, tier: str | None, reason: str) -> None:
        """Make no tier larger than this from the next job on; None for one below what is made now.

        Raises:
            RequestError: the tier is not offered.
        """
        tiers = self.settings.tiers
        names = [known.name for known in tiers]
        if tier is not None and tier not in names:
            raise RequestError(f"tier: expected {' or '.join(names)}, got {tier[:40]!r}")
        self.store.set_ceiling(
            tier or one_lower(tiers, self.store.ceiling()), " ".join(reason.split())
        )

    def lift(self) -> None:
        """Make every tier again."""
        self.store.set_ceiling(None, "")

    def _made(self, job: Job) -> Made:
        folder = self.spool.job(job.id)
        return self.copies.made(job, folder) if self.copies else folder.made()

    def _known_form(self, job_id: str) -> str:
        """An id as we give them out; no database sees another, nor halves of characters in it."""
        self.spool.job(job_id)
        return job_id

    def _require_service(self, owner: str) -> None:
        """Refuse early what would be refused anyway, before files are decoded."""
        if not self.taking_jobs:
            raise RefusalError(503, "the server is being stopped; submit again when it is back")
        self.spool.require_writable()
        self.store.check_room(owner, self.settings.limits.queue)
        if shutil.disk_usage(self.spool.root).free < self.settings.limits.free_disk_bytes:
            raise RefusalError(507, "the server's disk is nearly full; no videos are taken now")

    def _prompt(self, text: str) -> str:
        most = self.settings.limits.prompt_characters
        prompt = check_prompt(text)
        if len(prompt) > most:
            raise RequestError(f"prompt: has {len(prompt)} characters; at most {most} are accepted")
        return prompt

    def _inspect_portrait(self, view: InspectView, path: Path, tier: Tier | None) -> None:
        portrait = self._reader.portrait(path, self.settings.limits.portrait)
        height, width = portrait.size_hw
        view.portrait = PortraitFacts(width=width, height=height)
        view.notes += _views(portrait.notes)
        if tier is not None:
            view.cost = self.offers.cost(tier, (height, width))
            self.offers.require_fit(tier, fit_size((height, width), tier.size.area))

    def _inspect_speech(self, view: InspectView, path: Path, tier: Tier | None) -> None:
        speech = self._reader.speech(path, self.settings.limits.speech)
        view.speech = SpeechFacts(duration_s=speech.duration_s)
        view.notes += _views(speech.notes)
        if tier is not None:
            clips, frames = tier.sampling.num_clip, tier.sampling.infer_frames
            view.notes += _views(coverage_notes(speech.duration_s, clips, frames))

    def _spec(
        self, form: Submission, owner: str, tier: Tier, inputs: _Inputs, names: tuple[str, str]
    ) -> JobSpec:
        height, width = fit_size(inputs.portrait.size_hw, tier.size.area)
        self.offers.require_fit(tier, (height, width))
        sampling = tier.sampling
        if form.choice().seed is None:
            sampling = replace(sampling, seed=secrets.randbelow(_MAX_SEED))
        return JobSpec(
            owner=owner,
            title=_title(form.title, inputs.prompt),
            prompt=inputs.prompt,
            tier=tier.name,
            width=width,
            height=height,
            sampling=sampling,
            total_frames=make_timeline(sampling, inputs.speech.num_samples).num_frames,
            portrait_name=names[0],
            speech_name=names[1],
            notes=inputs.notes(sampling),
            idempotency_key=form.idempotency_key or None,
        )

    def _queue(self, spec: JobSpec, folder: Path) -> Job:
        """Lay the files down first, so that whoever claims the job finds them."""
        job_id = new_job_id()
        self.spool.adopt(folder, job_id)
        try:
            job = self.store.submit(spec, self.settings.limits.queue, job_id)
        except BaseException:
            self.spool.remove(job_id)
            raise
        if job.id != job_id:  # submitted before under the same key
            self.spool.remove(job_id)
        return job

    @contextmanager
    def _room_for_ingest(self) -> Iterator[None]:
        if not self._ingesting.acquire(timeout=_INGEST_WAIT_S):
            raise RefusalError(503, "the server is busy reading other uploads; try again")
        try:
            yield
        finally:
            self._ingesting.release()


@dataclass(frozen=True)
class _Inputs:
    """What is known about the inputs of a video."""

    prompt: str
    portrait: Portrait
    speech: Speech

    def notes(self, sampling: SamplingConfig) -> tuple[Note, ...]:
        """All findings, in the order of the form."""
        clips, frames = sampling.num_clip, sampling.infer_frames
        coverage = coverage_notes(self.speech.duration_s, clips, frames)
        return (*prompt_notes(self.prompt), *self.portrait.notes, *self.speech.notes, *coverage)


@contextmanager
def _collected(view: InspectView) -> Iterator[None]:
    try:
        yield
    except LiveAvatarError as error:
        view.errors.append(describe(error))


def _views(notes: Iterable[Note]) -> list[NoteView]:
    return [NoteView(**asdict(note)) for note in notes]


def _title(text: str, prompt: str) -> str:
    """A title on one line; the beginning of the prompt where none was given."""
    title = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    title = title or prompt
    return title if len(title) <= _MAX_TITLE else f"{title[: _MAX_TITLE - 1]}…"
