"""The spool: folders by job id, uploads that become jobs in one step, names no user chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveavatar.errors import JobError, UnknownJobError
from liveavatar.jobs.spool import Spool, settled_name
from liveavatar.jobs.store import new_job_id

ROOT = Path(__file__).resolve().parents[2]


def test_an_upload_becomes_a_job_and_goes_with_it(tmp_path: Path) -> None:
    spool, job_id = Spool(tmp_path / "data"), new_job_id()
    upload = spool.new_upload()
    (upload / "portrait.png").write_bytes(b"x")
    folder = spool.adopt(upload, job_id)
    assert not upload.exists()
    assert folder.file("portrait.png").read_bytes() == b"x"
    assert spool.job(job_id) == folder
    for path in (folder.live, folder.video, folder.thumbnail):
        path.write_bytes(b"y")
    folder.clear_results()
    assert [path.name for path in folder.path.iterdir()] == ["portrait.png"]
    spool.remove(job_id)
    spool.remove(job_id)
    assert not folder.path.exists()


def test_only_job_ids_name_folders(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for wrong in ("", "..", "../x", "A" * 32, "0" * 31, "0" * 33, "0" * 31 + "/"):
        with pytest.raises(UnknownJobError):
            spool.job(wrong)


def test_uploads_that_were_left_are_swept(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (spool.new_upload() / "part").write_bytes(b"x")
    (tmp_path / "uploads" / "file").write_bytes(b"x")
    kept = spool.new_upload()
    spool.discard(kept)
    spool.discard(kept)
    assert spool.sweep_uploads() == 2
    assert list((tmp_path / "uploads").iterdir()) == []


def test_only_the_owner_may_look_into_the_data_folder(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "data")
    for folder in (spool.root, spool.root / "jobs", spool.new_upload()):
        assert folder.stat().st_mode & 0o077 == 0


def test_a_data_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JobError, match=r"^data folder '.*file' cannot be used: .*--data-dir$"):
        Spool(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\x89PNG\r\n\x1a\n", "portrait.png"),
        (b"\xff\xd8\xff\xe0", "portrait.jpeg"),
        (b"\x1aE\xdf\xa3", "portrait.matroska"),
        (b"RIFF....WAVE", "portrait.wav"),
        (b"\x00\x01\x02", "portrait.bin"),
        (b"", "portrait.bin"),
    ],
)
def test_an_input_is_named_for_what_it_is(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / "evil.html"
    path.write_bytes(content)
    assert settled_name("portrait", path) == name
