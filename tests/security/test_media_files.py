"""Uploaded sounds and pictures open nothing else and take no more than they may."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import pytest

from liveavatar.errors import MediaError
from liveavatar.media import reader_process
from liveavatar.media.portrait import PortraitLimits, load_portrait
from liveavatar.media.reader_process import MediaReader
from liveavatar.media.sound_reader import SpeechLimits
from liveavatar.media.speech import load_speech
from tests.patience import PATIENCE_S
from tests.security.hostile_media import mov_file, naming
from tests.security.servers import InternalServer, Target
from tests.web.live_server import PORTRAIT, ROOT, SPEECH, Installation, submit, wait_until

LIMITS = SpeechLimits()


@pytest.fixture(scope="module")
def reader() -> Iterator[MediaReader]:
    reader = MediaReader()
    yield reader
    reader.close()


def children() -> set[int]:
    """Processes of ours that read files."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"liveavatar.media.reader_child" in words and str(os.getpid()).encode() in words:
                found.add(int(folder.name))
    return found


# --- Files that name others ----------------------------------------------------------------------


def test_plain_ffmpeg_follows_what_a_file_names(tmp_path: Path, internal: InternalServer) -> None:
    """The proof that these files work."""
    neighbour = tmp_path / "neighbour.wav"
    shutil.copy(SPEECH, neighbour)
    for name, content in naming(internal.address, str(neighbour)).items():
        (tmp_path / name).write_bytes(content)
    internal.asked.clear()
    with contextlib.suppress(av.FFmpegError), (tmp_path / "address.m3u8").open("rb") as file:
        av.open(file)
    assert internal.asked == ["/segment.ts"]
    internal.asked.clear()
    with (tmp_path / "concat.wav").open("rb") as file, av.open(file) as container:
        assert container.format.name == "concat"
        assert next(container.decode(audio=0)).samples  # of the neighbour
    with (tmp_path / "session.wav").open("rb") as file, av.open(file, timeout=1) as container:
        assert container.format.name == "sdp"  # it listens on a port


def test_no_file_leads_to_another_or_to_an_address(
    tmp_path: Path, internal: InternalServer, reader: MediaReader
) -> None:
    neighbour = tmp_path / "neighbour.wav"
    shutil.copy(SPEECH, neighbour)
    internal.asked.clear()
    for name, content in naming(internal.address, str(neighbour)).items():
        path = tmp_path / name
        path.write_bytes(content)
        for read in (load_speech, load_portrait):
            with pytest.raises(MediaError):
                read(path)
        with pytest.raises(MediaError):
            reader.speech(path, LIMITS)
    assert internal.asked == []


@pytest.mark.filterwarnings("ignore")  # Gradio uses what is deprecated
def test_no_upload_leads_to_another_file_or_to_an_address(
    ours: Target, installation: Installation, internal: InternalServer
) -> None:
    neighbour = str(installation.spool.root / "jobs.db")
    internal.asked.clear()
    with httpx.Client(base_url=ours.address, timeout=PATIENCE_S) as client:
        for name, content in naming(internal.address, neighbour).items():
            assert submit(client, speech=content).status_code in (415, 422), name
            # By the page: what is no sound is not even kept.
            answer = ours.upload(name, content)
            assert answer.status_code == (200 if name == "elsewhere.mp4" else 415), name
    assert internal.asked == []


# --- Files that take too much --------------------------------------------------------------------


def test_a_small_file_takes_gigabytes_where_nothing_limits_it(tmp_path: Path) -> None:
    """The proof that this one works, with a tenth of what it could claim."""
    path = tmp_path / "bomb.m4a"
    path.write_bytes(mov_file(10_000_000))
    program = (
        "import resource, sys, contextlib\n"
        "from liveavatar.media.speech import load_speech\n"
        "from liveavatar.errors import MediaError\n"
        "with contextlib.suppress(MediaError): load_speech(sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", program, str(path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=True)
    assert path.stat().st_size < 6000
    assert int(said.stdout) > 300_000  # KiB


def test_a_file_that_takes_too_much_memory_is_refused_and_the_reader_goes_on(
    tmp_path: Path, reader: MediaReader
) -> None:
    path = tmp_path / "bomb.m4a"
    path.write_bytes(mov_file(80_000_000, num_tracks=8))  # 20 GB of index
    with pytest.raises(MediaError):
        reader.speech(path, LIMITS)
    for child in children():
        status = Path(f"/proc/{child}/status").read_text()
        peak_kib = int(status.split("VmHWM:")[1].split()[0])
        assert peak_kib < 2_000_000
    assert reader.speech(SPEECH, LIMITS).num_samples == len(load_speech(SPEECH).samples)


def test_a_file_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_process, "_PER_MEGABYTE_S", 0.0)
    hasty = MediaReader(base_s=0.0)  # not even time to begin
    before = children()
    with pytest.raises(MediaError, match=r"^speech: takes too much time or memory"):
        hasty.speech(SPEECH, LIMITS)
    wait_until(lambda: children() <= before, "its process is ended")
    hasty.close()


def test_a_reader_that_dies_is_replaced(reader: MediaReader) -> None:
    facts = reader.portrait(PORTRAIT, PortraitLimits())
    assert facts.size_hw == load_portrait(PORTRAIT).rgb.shape[:2]
    for child in reader._idle:
        os.kill(child._process.pid, signal.SIGKILL)
        child._process.wait(10)
    assert reader.portrait(PORTRAIT, PortraitLimits()) == facts


def test_a_reader_that_is_ready_starts_no_process_for_its_first_file() -> None:
    before = children()
    early = MediaReader()
    early.get_ready()
    wait_until(lambda: len(early._idle) == 1, "a process waits", timeout_s=60)
    (waiting,) = children() - before
    early.portrait(PORTRAIT, PortraitLimits())
    assert children() - before == {waiting}
    early.close()


def test_readers_work_side_by_side_and_only_few_stay(reader: MediaReader) -> None:
    read: list[int] = []
    threads = [
        threading.Thread(target=lambda: read.append(reader.speech(SPEECH, LIMITS).num_samples))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert read == [len(load_speech(SPEECH).samples)] * 4
    reader.close()
    again = MediaReader()
    again.speech(SPEECH, LIMITS)
    again.close()


def test_the_reader_has_no_secrets_writes_nothing_and_ends_with_its_server() -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from liveavatar.media.reader_process import MediaReader, SpeechLimits\n"
        "reader = MediaReader()\n"
        "reader.speech(Path(sys.argv[1]), SpeechLimits())\n"
        "print(reader._idle[0]._process.pid, flush=True)\n"
        "time.sleep(600)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(SPEECH)],
        cwd=ROOT,
        env={**os.environ, "LIVEAVATAR_AUTH": "ann:secret"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        child = Path(f"/proc/{int(server.stdout.readline())}")
        assert b"secret" not in (child / "environ").read_bytes()
        limits = (child / "limits").read_text()
        assert "Max file size             0 " in limits
        assert "NoNewPrivs:\t1" in (child / "status").read_text()
    finally:
        server.kill()
        server.communicate(timeout=PATIENCE_S)
    wait_until(lambda: not is_running(child), "it ends with its server")


def is_running(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
