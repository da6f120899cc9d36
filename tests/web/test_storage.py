"""Machines that share no folder: what one of them makes, others go on with and show."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from liveavatar.engine.fake import FakeGroup, Pace
from liveavatar.engine.identity import Identity
from liveavatar.engine.supervisor import Supervisor
from liveavatar.engine.supervisor_settings import SupervisorSettings
from liveavatar.errors import ConfigError, SpoolUnavailableError
from liveavatar.jobs.job import Job, JobState
from liveavatar.jobs.mirror import Mirror, open_mirror
from liveavatar.jobs.spool import Spool
from liveavatar.jobs.storage import Storage
from liveavatar.jobs.store import JobStore, sqlite_url
from liveavatar.media.live_file import measure_live_file
from tests.unit.mp4_material import decode_video
from tests.web.live_server import PICTURE, READER, SETTINGS, SUPERVISOR, wait_until
from tests.web.s3_server import BUCKET, S3Server, s3_server
from tests.web.test_supervisor import submit_to
from tests.web.test_takeover import let_the_lease_run_out
from webui.live import LiveStreams
from webui.service import Service

UNAWARE = SupervisorSettings(lease_s=3600, progress_s=3600)  # it asks the store for nothing
LONG = 129  # frames of the whole speech


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path / 'mounted'}"
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{tmp_path.name}"


@dataclass
class Site:
    """A database, a storage, and machines with folders of their own."""

    folder: Path
    url: str
    groups: list[Supervisor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = JobStore(sqlite_url(self.folder / "jobs.db"))
        self.web = self.server("web")

    def server(self, name: str) -> Service:
        """What a web server on a machine of its own does."""
        spool = Spool(self.folder / name, mirror=open_mirror(self.url))
        return Service(self.store, spool, SETTINGS, PICTURE, READER)

    def group(
        self,
        pace: Pace,
        settings: SupervisorSettings = SUPERVISOR,
        drawn: Callable[[int], None] = lambda _block: None,
    ) -> Supervisor:
        number = len(self.groups) + 1
        spool = Spool(self.folder / f"machine {number}", mirror=open_mirror(self.url))
        identity = Identity(f"group {number}", number, f"machine {number}", shares=True)
        made = Supervisor(
            self.store, spool, lambda: FakeGroup(pace, drawn), settings, identity=identity
        )
        self.groups.append(made)
        return made

    def folder_at(self, number: int, job: Job) -> Path:
        return self.folder / f"machine {number}" / "jobs" / job.id

    def state(self, job: Job) -> JobState:
        return self.store.get(job.id).state

    def wait_done(self, job: Job) -> Job:
        wait_until(lambda: self.state(job).has_ended, "it ends", timeout_s=60)
        return self.store.get(job.id)

    def close(self) -> None:
        for group in self.groups:
            group.stop()
        self.store.close()


@pytest.fixture
def here(tmp_path: Path, url: str) -> Iterator[Site]:
    with closing(Site(tmp_path, url)) as made:
        yield made


@pytest.fixture
def s3_site(s3: S3Server, tmp_path: Path) -> Iterator[Site]:  # noqa: ARG001
    with closing(Site(tmp_path, f"s3://{BUCKET}/{tmp_path.name}")) as made:
        yield made


def watch(service: Service, job: Job) -> tuple[threading.Thread, list[bytes]]:
    """Follow a job's growing video as a viewer does, in a thread."""
    seen: list[bytes] = []

    async def follow() -> None:
        streams = LiveStreams(service.store, service.spool, service.copies)
        async for chunk in streams.follow(job.id, 1, 0):
            seen.append(chunk)

    thread = threading.Thread(target=lambda: asyncio.run(follow()))
    thread.start()
    return thread, seen


def frames_in(seen: list[bytes], path: Path) -> int:
    path.write_bytes(b"".join(seen))
    return measure_live_file(path).num_frames if seen else 0


def test_another_machine_goes_on_and_all_web_servers_show_one_video(s3_site: Site) -> None:
    """The first machine is cut off, not gone: it writes on, and nobody sees that."""
    here = s3_site
    found: list[set[str]] = []
    storage, taken, written_on = Storage(here.url), threading.Event(), threading.Event()

    def leave_a_point(block: int) -> None:
        folder = here.folder_at(1, job) / "resume" / "layout"
        folder.mkdir(exist_ok=True)
        (folder / f"{block}.part").write_bytes(b"point")
        assert block < 5 or taken.wait(60)
        assert block < 7 or written_on.wait(60)

    def look_for_points(_block: int) -> None:
        folder = here.folder_at(2, job) / "resume" / "layout"
        found.append({path.name for path in folder.glob("*")})
        taken.set()

    def has_written_on() -> bool:
        began = Mirror(storage).begun(job.id, 2)
        return began is not None and len(storage.sizes(live)) > began.goes_on[0][1]

    job = submit_to(here.web, num_clip=3)
    live = f"jobs/{job.id}/1/live"
    loser = here.group(Pace(0.05, 0.02, fps=200), UNAWARE, leave_a_point)
    winner = here.group(Pace(0.05, 0.02, fps=200), SUPERVISOR, look_for_points)
    loser.start()
    viewer, seen = watch(here.web, job)
    wait_until(lambda: frames_in(seen, here.folder / "seen.mp4") >= 36, "it is seen elsewhere")
    assert here.web.job_view(here.store.get(job.id)).video_url is None
    wait_until(lambda: storage.sizes(f"points/{job.id}") != {}, "points are stored")
    loser.drain()
    let_the_lease_run_out(here.folder, here.store)
    winner.start()
    done = here.wait_done(job)
    assert (done.state, done.attempt, done.take, done.frames) == (JobState.DONE, 2, 1, LONG)
    assert found[0], "the other machine's points"
    viewer.join(20)
    assert frames_in(seen, here.folder / "seen.mp4") == LONG

    late = here.server("another web server")
    later, seen_later = watch(late, job)
    later.join(20)
    assert b"".join(seen_later) == b"".join(seen)
    video = late.video(done)
    assert len(decode_video(video)) == LONG
    assert late.thumbnail(done).read_bytes().startswith(b"\xff\xd8")
    assert late.job_view(done).thumbnail_url is not None
    assert late.poster(done).read_bytes().startswith(b"\xff\xd8")

    wait_until(has_written_on, "the loser writes on")
    written_on.set()
    wait_until(lambda: not loser.is_alive, "the loser gives up what it made")
    assert not here.folder_at(1, job).exists()
    assert not here.folder_at(2, job).exists()
    assert here.web.copies is not None
    here.web.copies.sweep()
    assert storage.sizes("points") == {}


def test_a_cancelled_video_is_what_was_made_and_deleting_it_leaves_nothing(here: Site) -> None:
    here.group(Pace(0.05, 0.02, fps=60)).start()
    job = submit_to(here.web, num_clip=3)
    wait_until(lambda: here.store.get(job.id).frames >= 24, "frames")
    here.web.cancel(job.id)
    done = here.wait_done(job)
    assert done.state is JobState.CANCELLED
    other = here.server("another web server")
    assert other.job_view(done).video_url is not None
    assert len(decode_video(other.video(done))) == done.frames < LONG
    assert sum(other.spool.job_bytes().values()) > 10_000
    other.delete(job.id)
    storage = Storage(here.url)
    assert storage.sizes("jobs") == {}
    assert storage.sizes("points") == {}


def test_a_storage_that_is_away_costs_nobody_a_video(s3: S3Server, s3_site: Site) -> None:
    here = s3_site
    here.group(Pace(0.05, 0.02, fps=60)).start()
    job = submit_to(here.web, num_clip=3)
    viewer, seen = watch(here.web, job)
    wait_until(lambda: len(seen) > 1, "it is seen")
    s3.go()
    wait_until(lambda: here.web.spool.complaint() is not None, "the web server notices")
    with pytest.raises(SpoolUnavailableError, match=r"^the server cannot write its files now"):
        submit_to(here.web)
    assert here.web.group_view(admin=False).message == (
        "files cannot be written now: the storage of the videos cannot be reached"
    )
    wait_until(lambda: here.store.get(job.id).frames == LONG, "it renders on")
    assert here.web.job_view(here.store.get(job.id)).video_url is None
    s3.come()
    done = here.wait_done(job)
    assert (done.state, done.attempt, done.frames) == (JobState.DONE, 1, LONG)
    viewer.join(20)
    assert frames_in(seen, here.folder / "seen.mp4") == LONG
    assert len(decode_video(here.web.video(done))) == LONG
    wait_until(lambda: here.web.spool.complaint() is None, "the web server notices")


def test_what_is_left_of_no_job_is_removed_an_hour_later(tmp_path: Path) -> None:
    with closing(Site(tmp_path, f"file://{tmp_path / 'mounted'}")) as here:
        kept, ended = submit_to(here.web), submit_to(here.web)
        here.web.cancel(ended.id)
        storage, copies = Storage(here.url), here.web.copies
        assert copies is not None
        storage.put(f"jobs/{'0' * 32}/1/live/000000", b"late")
        for job in (kept, ended):
            storage.put(f"points/{job.id}/1/layout/1.part", b"point")
        for _ in range(2):
            copies.sweep()
            copies._swept_at -= 3601
        assert storage.folders("jobs") == {kept.id, ended.id}
        assert storage.folders("points") == {kept.id}


def test_copies_go_when_nobody_used_them_for_an_hour(tmp_path: Path) -> None:
    with closing(Site(tmp_path, f"file://{tmp_path / 'mounted'}")) as here:
        watched, left = submit_to(here.web), submit_to(here.web)
        copies, spool = here.web.copies, here.web.spool
        assert copies is not None
        copy = copies.live(watched.id, 1)
        copies.live(left.id, 1).used_at -= 3601
        copies.sweep()
        assert {path.name for path in spool.job_folders()} == {watched.id, left.id}
        copies._used = {watched.id: copy.used_at - 3601, left.id: copy.used_at - 3601}
        copy.advance()
        copies.sweep()
        assert [path.name for path in spool.job_folders()] == [watched.id]
        assert copies.live(watched.id, 1) is copy
        assert Storage(here.url).folders("jobs") == {watched.id, left.id}


@pytest.mark.usefixtures("s3")
def test_a_storage_that_cannot_be_used_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^storage: 's3://no-such-bucket' cannot be used: .*\w"):
        open_mirror("s3://no-such-bucket")
    with pytest.raises(ConfigError, match=r"^storage: expected a URL such as s3://bucket/prefix"):
        open_mirror("nonsense://x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"cannot be used: .*127\.0\.0\.1:1"):
        open_mirror(f"s3://{BUCKET}")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements-s3\.txt"):
        Storage("s3a://videos")


def test_objects_appear_whole_under_their_keys(url: str) -> None:
    storage = Storage(url)
    storage.put("a/b/1", b"one")
    storage.put("a/b/1", b"two")
    storage.put("a/c", b"three")
    assert storage.get(["a/c", "a/none", "a/b/1"]) == [b"three", None, b"two"]
    assert storage.sizes("a") == {"b/1": 3, "c": 5}
    assert storage.folders("a") == {"b"}
    assert storage.folders("none") == set()
    assert storage.exist(["a/c", "a/d"]) == [True, False]
    storage.remove("a/b")
    storage.remove("a/b")
    assert storage.sizes("a") == {"c": 5}
    assert storage.sizes("none") == {}
