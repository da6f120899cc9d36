"""The data folder becomes read-only under the server: a mount, not a change of permissions.

Skipped where mounting is not allowed, as in most containers.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.application import Application
from tests.faults.suite import END_S, Outcome, record

pytestmark = pytest.mark.timeout(900)

CONFIG = """
[limits]
free_disk_bytes = 0

[tiers.fast]
size = "64*64"
infer_frames = 48
"""
CLIPS = 3


def mount(*words: str | Path) -> bool:
    command = [shutil.which("mount") or "/bin/mount", *words]
    return subprocess.run(command, capture_output=True, timeout=20).returncode == 0


def unmount(folder: Path) -> None:
    # Lazily: what is being read goes on being read.
    subprocess.run(["umount", "--lazy", folder], check=True, timeout=20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    probe = tmp_path / "probe"
    probe.mkdir()
    if not mount("--bind", probe, probe):
        pytest.skip("mounting is not allowed here")
    unmount(probe)
    return tmp_path / "application"


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing below a folder can be written by its path; files that are open still can."""
    assert mount("--bind", folder, folder)
    try:
        assert mount("-o", "remount,bind,ro", folder)
        yield
    finally:
        unmount(folder)


def test_a_server_does_not_start_on_a_folder_it_cannot_write(folder: Path) -> None:
    with Application(folder, CONFIG, ("--test-picture",)) as application:
        application.data.mkdir()
        with read_only(application.data):
            expected = r"error: data folder '.*' cannot be used: read-only file system; choose"
            with pytest.raises(RuntimeError, match=expected):
                application.start()
        assert application.process is not None
        assert application.process.wait(10) == 2
        assert len((folder / "log").read_text().splitlines()) == 1


def test_a_folder_that_becomes_read_only_loses_no_video(
    folder: Path, record_property: Callable[[str, object], None]
) -> None:
    with Application(folder, CONFIG, ("--test-picture",)) as application:
        application.start()
        jobs = [application.submit(num_clip=str(CLIPS), seed=str(seed)) for seed in range(3)]
        application.wait(lambda: application.job(jobs[0])["frames"] > 0, "frames", END_S)
        began = time.monotonic()
        with read_only(application.data):
            refused = application.client.get("/healthz")
            assert (refused.status_code, refused.json()["status"]) == (503, "degraded")
            message = _refusal(application)
            assert "cannot write its files now (read-only file system)" in message
            group = application.client.get("/api/group").json()
            assert group["message"] == "files cannot be written now: read-only file system"
            # What runs needs new files at its end, and waits for them.
            waits = lambda: application.job(jobs[0])["state"] == "queued"  # noqa: E731
            application.wait(waits, "the first job waits", END_S)
        ends = [application.wait_for_end(job_id, END_S) for job_id in jobs]
        seconds = round(time.monotonic() - began, 1)
        assert [job["state"] for job in ends] == ["done"] * 3
        lost = sum(job["total_frames"] - job["frames"] for job in ends)
        assert all((application.data / "jobs" / job / "video.mp4").exists() for job in jobs)
        said = (folder / "log").read_text().count("files cannot be written: read-only")
        assert said == 1
        assert application.wait_for_end(application.submit(), END_S)["state"] == "done"
        assert application.stop() == 0
    record(record_property, Outcome("read-only data folder", not lost, seconds, 0, lost))
    assert lost == 0


def _refusal(application: Application) -> str:
    files = {"portrait": ("a.png", b"\x89PNG"), "speech": ("a.wav", b"RIFF")}
    answer = application.client.post("/api/jobs", data={"prompt": "A"}, files=files)
    assert answer.status_code == 507, answer.text
    return str(answer.json()["error"]["message"])
