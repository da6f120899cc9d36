"""Every malformed file ends in one clear line, quickly and in bounded memory."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from liveavatar.errors import MediaError
from liveavatar.media.portrait import load_portrait
from liveavatar.media.speech import load_speech
from tests.unit.malformed_inputs import CATALOGUE, MalformedInput

LOADERS = {"portrait": load_portrait, "speech": load_speech}


def assert_one_clear_line(error: BaseException, path: Path, field: str) -> None:
    message = str(error)
    assert message.isprintable(), "one line without control characters"
    assert 20 < len(message) < 300
    assert path.name in message
    assert message.startswith(field)


def test_the_catalogue_is_large_and_names_are_unique() -> None:
    names = [entry.name for entry in CATALOGUE]
    assert len(names) >= 150
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_a_malformed_file_is_refused_with_one_clear_line(
    entry: MalformedInput, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = entry.make(tmp_path)
    started = time.process_time()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MediaError) as caught:
        LOADERS[entry.field](path)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert_one_clear_line(caught.value, path, entry.field)
    assert time.process_time() - started < 5
    assert grown_kib < 300 * 1024
    assert capfd.readouterr() == ("", ""), "nothing is printed"


@pytest.mark.parametrize("field", ["portrait", "speech"])
@pytest.mark.parametrize(
    "path", ["", None, 3, b"bytes.png", "nul\0byte.png", "a" * 5000, "x\ny.png"]
)
def test_a_path_that_is_none_is_refused_with_one_clear_line(field: str, path: object) -> None:
    with pytest.raises(MediaError) as caught:
        LOADERS[field](path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
@pytest.mark.parametrize("field", ["portrait", "speech"])
def test_a_file_that_may_not_be_read_is_refused(field: str, tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(MediaError, match="may not be read"):
        LOADERS[field](path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("portrait-paper.pdf", "PDF document"),
        ("portrait-photo.heic", "HEIC picture"),
        ("portrait-folder", "is a folder"),
        ("portrait-pipe", "pipe or a device"),
        ("portrait-link-to-nothing", "link to nothing"),
        ("portrait-missing", "does not exist"),
        ("portrait-empty", "is empty"),
        ("wav-as-portrait", "is a WAV sound"),
        ("png-as-speech", "is a PNG picture"),
        ("video-as-portrait", "is an MP4 video"),
        ("video-without-sound", "holds no sound"),
        ("bomb.png", "far too many pixels"),
        ("bomb-real-9000x9000.png", "9000x9000 pixels"),
        ("63x200.png", "63x200 pixels"),
        ("wav-nan", "not numbers"),
        ("wav-short", "lasts 0.10 s"),
        ("wav-many-channels", "200 channels"),
        ("wav-two-hours", "more than 3600 s"),
        ("wav-cut-at-40%", "only 0.8 of 2.0 s"),
        ("nan.tiff", "not numbers"),
        ("bomb.gif", "far too many pixels"),
        ("bomb.webp", "far too many pixels"),
        ("bomb.tiff", "far too many pixels"),
        ("wav-claims-1-gigabyte", "only 1.0 of"),
        ("huge-file.png", "at most 30 MB"),
    ],
)
def test_the_line_says_what_is_wrong(name: str, words: str, tmp_path: Path) -> None:
    entry = next(entry for entry in CATALOGUE if entry.name == name)
    with pytest.raises(MediaError) as caught:
        LOADERS[entry.field](entry.make(tmp_path))
    assert words in str(caught.value)
