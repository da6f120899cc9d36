"""Growing videos: many viewers, late and slow ones, broken connections; one file, one encoding."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from liveavatar.engine.fake import Pace
from liveavatar.media.live_file import complete_length, measure_live_file
from tests.patience import PATIENCE_S
from tests.unit.mp4_material import decode_video
from tests.web.live_server import Installation, serve, submit, wait_for_state, wait_until

# Three seconds of video in one and a half, so that there is time to watch.
STEADY = Pace(load_s=0.05, prepare_s=0.02, fps=60.0)
LEISURELY = Pace(load_s=0.05, prepare_s=0.02, fps=12.0)  # for what is broken off on its way
CLIPS = {"num_clip": 2}


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("data"), pace=STEADY)
    with serve(installation):
        yield installation


@pytest.fixture
def client(steady: Installation) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=steady.address, timeout=PATIENCE_S) as client:
        yield client


def test_many_viewers_early_and_late_get_the_same_bytes(
    steady: Installation, client: httpx.Client
) -> None:
    job = submit(client, **CLIPS).json()
    got: dict[int, bytes] = {}

    def watch(number: int) -> None:
        time.sleep(0.1 * number)
        with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as viewer:
            got[number] = viewer.get(job["live_url"]).content

    threads = [threading.Thread(target=watch, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    whole = steady.spool.job(job["id"]).live.read_bytes()
    assert sorted(got) == list(range(12))
    assert set(map(len, got.values())) == {len(whole)}
    assert set(got.values()) == {whole}
    wait_for_state(client, job["id"], "done")


def test_pictures_arrive_while_the_video_is_made_in_whole_segments(
    client: httpx.Client, tmp_path: Path
) -> None:
    job = submit(client, **CLIPS).json()
    received, part = b"", tmp_path / "part.mp4"
    early = None
    with client.stream("GET", job["live_url"]) as stream:
        assert stream.headers["content-type"] == "video/mp4"
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["x-job-state"] in ("queued", "running")
        assert "content-encoding" not in stream.headers
        for chunk in stream.iter_raw():
            received += chunk
            if early is None and len(received) > 2000:
                early = client.get(f"/api/jobs/{job['id']}").json()
                part.write_bytes(received)
                assert complete_length(part) == len(received)
    assert early is not None
    assert early["state"] == "running"
    assert early["frames"] < 96
    part.write_bytes(received)
    assert measure_live_file(part).num_frames == 96
    wait_for_state(client, job["id"], "done")


def test_a_broken_connection_goes_on_at_its_byte(client: httpx.Client) -> None:
    job = submit(client, **CLIPS).json()
    received = b""
    with client.stream("GET", job["live_url"]) as stream:
        for chunk in stream.iter_raw():
            received += chunk
            if len(received) > 3000:
                break  # and the connection is closed
    received += client.get(job["live_url"], params={"from": len(received)}).content
    assert received == client.get(job["live_url"]).content
    size = len(received)
    assert client.get(job["live_url"], params={"from": size}).content == b""
    assert client.get(job["live_url"], params={"from": size + 99}).content == b""
    for wrong in ("-1", "x"):
        assert client.get(job["live_url"], params={"from": wrong}).status_code == 422
    head = client.head(job["live_url"])
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["x-job-attempt"] == "1"
    assert client.get(job["live_url"], params={"attempt": 2}).status_code == 409
    wait_for_state(client, job["id"], "done")


def test_a_viewer_that_does_not_read_holds_up_nobody(
    steady: Installation, client: httpx.Client
) -> None:
    alone = submit(client, **CLIPS).json()
    usual = wait_for_state(client, alone["id"], "done")
    job = submit(client, **CLIPS).json()
    host, port = client.base_url.host, client.base_url.port
    idle = []
    for _ in range(5):
        connection = socket.create_connection((host, port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET {job['live_url']} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        idle.append(connection)
    assert len(client.get(job["live_url"]).content) > 0
    done = wait_for_state(client, job["id"], "done")
    taken, before = (view["finished_at"] - view["started_at"] for view in (done, usual))
    assert taken < before + 1.0
    for connection in idle:
        connection.close()
    wait_until(lambda: steady.app.state.streams.num_viewers == 0, "who is gone is forgotten")


def test_watchers_of_a_waiting_job_see_it_from_its_first_byte(client: httpx.Client) -> None:
    jobs = [submit(client, num_clip=1).json() for _ in range(3)]
    assert len(client.get(jobs[2]["live_url"]).content) > 2000
    for job in jobs:
        wait_for_state(client, job["id"], "done")


def test_what_there_is_now_comes_at_once_and_pieces_of_it_make_the_whole(
    steady: Installation, client: httpx.Client
) -> None:
    job = submit(client, **CLIPS).json()
    url, got, state, pieces = job["live_url"], b"", "queued", 0
    while True:
        answer = client.get(url, params={"from": len(got), "attempt": 1, "follow": False})
        state, before = answer.headers["x-job-state"], len(got)
        got += answer.content
        pieces += bool(answer.content)
        if state == "done" and len(got) == before:
            break
        time.sleep(0.1)
    assert pieces > 2  # none of them waited for the end
    assert got == steady.spool.job(job["id"]).live.read_bytes()


class Viewer(threading.Thread):
    """Somebody who watches from the beginning."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.received = bytearray()
        self._url = url
        self.start()

    def run(self) -> None:
        with httpx.stream("GET", self._url, timeout=PATIENCE_S) as answer:
            for chunk in answer.iter_bytes():
                self.received += chunk

    def at_the_end(self) -> bytes:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return bytes(self.received)


def test_viewers_go_on_where_they_are_when_the_worker_group_dies(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=LEISURELY)
    with (
        serve(installation) as address,
        httpx.Client(base_url=address, timeout=PATIENCE_S) as client,
    ):
        job = submit(client, **CLIPS).json()
        wait_until(lambda: client.get(f"/api/jobs/{job['id']}").json()["frames"] > 12, "frames")
        viewer = Viewer(address + job["live_url"])
        wait_until(lambda: viewer.received, "something to see")
        installation.pace = STEADY
        installation.groups[0].die("rank 0 was killed by signal 9")
        done = wait_for_state(client, job["id"], "done")
        assert (done["attempt"], done["frames"]) == (1, 96)
        seen = viewer.at_the_end()
        assert seen == client.get(job["live_url"]).content
        (tmp_path / "whole.mp4").write_bytes(seen)
        assert len(decode_video(tmp_path / "whole.mp4")) == 96


def test_viewers_of_a_file_that_was_begun_anew_are_let_go(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=LEISURELY)
    with (
        serve(installation) as address,
        httpx.Client(base_url=address, timeout=PATIENCE_S) as client,
    ):
        job = submit(client, **CLIPS).json()
        wait_until(lambda: client.get(f"/api/jobs/{job['id']}").json()["frames"] > 12, "frames")
        viewer = Viewer(address + job["live_url"])
        wait_until(lambda: viewer.received, "something to see")
        installation.pace = STEADY
        folder = installation.spool.job(job["id"])
        folder.live.unlink()  # what is lost cannot be gone on with
        installation.groups[0].die("rank 0 was killed by signal 9")
        (tmp_path / "first.mp4").write_bytes(viewer.at_the_end())
        assert 12 < measure_live_file(tmp_path / "first.mp4").num_frames < 96
        done = wait_for_state(client, job["id"], "done")
        assert (done["attempt"], done["frames"]) == (2, 96)
        assert client.get(job["live_url"], params={"attempt": 1}).status_code == 409


def test_ranges_of_a_finished_video(client: httpx.Client) -> None:
    job = submit(client, num_clip=1).json()
    video = wait_for_state(client, job["id"], "done")["video_url"]
    whole = client.get(video)
    assert whole.headers["accept-ranges"] == "bytes"
    size = len(whole.content)
    for first, last in itertools.product((0, 1000), (1999, size + 5000)):
        part = client.get(video, headers={"Range": f"bytes={first}-{last}"})
        assert part.status_code == 206
        assert part.content == whole.content[first : last + 1]
        assert part.headers["content-range"] == f"bytes {first}-{min(last, size - 1)}/{size}"
    tail = client.get(video, headers={"Range": "bytes=-500"})
    assert tail.content == whole.content[-500:]
    assert client.get(video, headers={"Range": f"bytes={size}-"}).status_code == 416
    head = client.head(video)
    assert int(head.headers["content-length"]) == size
