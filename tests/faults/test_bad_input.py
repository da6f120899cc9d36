"""Data that is wrong, clocks that jump, clients that are slow: each costs itself at most."""

from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from benchmarks.application import PORTRAIT, PROMPT, SPEECH
from tests.faults.suite import END_S, Installation, Outcome, record

pytestmark = pytest.mark.timeout(900)

Note = Callable[[str, object], None]


def change_database(installation: Installation, change: str, *values: object) -> int:
    """Change rows behind the application's back; returns how many."""
    with closing(sqlite3.connect(installation.data / "jobs.db", timeout=30)) as connection:
        changed = connection.execute(change, values).rowcount
        connection.commit()
    return changed


@pytest.mark.long_faults
def test_a_job_that_raises_inside_a_block_is_made_smaller_and_the_others_are_untouched(
    installation: Installation, record_property: Note
) -> None:
    whole = installation.undisturbed
    installation.wait(installation.is_ready, "the group is ready", END_S)
    os.kill(installation.ranks()[0], signal.SIGKILL)  # so that they wait for another group
    first, second, bad = (installation.submit_one() for _ in range(3))
    # No form lets such a width through: its latents do not fit the grid of tokens.
    change = (
        "UPDATE jobs SET spec = json_set(spec, '$.width', 72) WHERE id = ? AND state = 'queued'"
    )
    assert change_database(installation, change, bad) == 1
    began = time.monotonic()
    again = installation.wait_for_end(bad, END_S)
    seconds = round(time.monotonic() - began, 1)
    assert again["state"] == "done", again
    assert (again["width"], again["notes"][-1]["code"]) == (64, "tier_lowered")
    ends = [installation.wait_for_end(job_id, END_S) for job_id in (first, second)]
    assert [job["state"] for job in ends] == ["done", "done"]
    lost = sum(len(whole) - job["frames"] for job in ends)
    assert (installation.data / "jobs" / bad / "failure.log").read_text().count("Traceback")
    record(record_property, Outcome("exception inside a block", not lost, seconds, 0, lost))
    assert lost == 0


@pytest.mark.long_faults
def test_the_clock_jumps_and_all_leases_run_out(
    installation: Installation, record_property: Note
) -> None:
    def hurt() -> None:
        for when in (time.time() - 86_400, time.time() + 86_400):
            change_database(
                installation, "UPDATE jobs SET lease_until = ? WHERE state = 'running'", when
            )
            time.sleep(1)

    record(record_property, installation.survive("clock jumps by a day, both ways", hurt, 12))


@pytest.mark.long_faults
def test_clients_that_do_not_read_hold_up_nothing(
    installation: Installation, record_property: Note
) -> None:
    address = installation.client.base_url
    idle: list[socket.socket] = []

    def hurt() -> None:
        for view in installation.client.get("/api/jobs").json()[:1] * 20:
            connection = socket.create_connection((address.host, address.port))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            request = f"GET {view['live_url']} HTTP/1.1\r\nHost: {address.host}\r\n\r\n"
            connection.sendall(request.encode())
            idle.append(connection)

    try:
        record(record_property, installation.survive("20 viewers that do not read", hurt, 12))
    finally:
        for connection in idle:
            connection.close()


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Some bytes of a file changed, doubled, dropped or cut off."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 20)):
        at = draw.randrange(max(1, min(len(changed), draw.choice((64, 4096, 10**7)))))
        what = draw.randrange(4)
        if what == 0:
            changed[at : at + 1] = bytes([draw.randrange(256)])
        elif what == 1:
            changed[at:at] = draw.randbytes(draw.randrange(40))
        elif what == 2:
            del changed[at : at + draw.randrange(40)]
        else:
            del changed[at:]
            changed += draw.randbytes(draw.randrange(100))
    return bytes(changed)


def fuzz(installation: Installation, count: int, seed: int) -> set[int]:
    """Send malformed forms and bodies; returns the statuses of the answers."""
    draw, statuses = random.Random(seed), set()
    portrait, speech = PORTRAIT.read_bytes(), SPEECH.read_bytes()[:40_000]
    words = ["", "fast", "\0", "../../etc/passwd", "9" * 400, "-1", "NaN", "ü" * 3000, "<svg/>"]
    for _ in range(count):
        texts = {
            name: draw.choice([good, *words])
            for name, good in {
                "prompt": PROMPT,
                "tier": "fast",
                "num_clip": "1",
                "seed": "1",
            }.items()
        }
        files = {
            "portrait": (draw.choice(["a.png", "../x", ""]) or "b", mutated(portrait, draw)),
            "speech": ("s.wav", mutated(speech, draw)),
        }
        path = draw.choice(["/api/jobs", "/api/inspect"])
        if draw.random() < 0.3:
            body = mutated(
                b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--', draw
            )
            kind = draw.choice(["multipart/form-data; boundary=x", "application/json", "x" * 500])
            answer = installation.client.post(path, content=body, headers={"Content-Type": kind})
        else:
            answer = installation.client.post(path, data=texts, files=files)
        statuses.add(answer.status_code)
        if answer.status_code == 202:  # the damage was too small to matter
            installation.client.post(f"/api/jobs/{answer.json()['id']}/cancel")
    return statuses


@pytest.mark.parametrize(
    "count", [25, pytest.param(1000, marks=pytest.mark.long_faults)], ids=["some", "1000"]
)
def test_malformed_forms_and_bodies_are_refused_and_the_next_job_is_made(
    installation: Installation, record_property: Note, count: int
) -> None:
    began = time.monotonic()
    statuses = fuzz(installation, count, seed=count)
    assert all(status < 500 or status == 503 for status in statuses), statuses
    assert statuses & {400, 413, 415, 422}
    job = installation.wait_for_end(installation.submit(), END_S)
    seconds = round(time.monotonic() - began, 1)
    lost = job["total_frames"] - job["frames"]
    record(record_property, Outcome(f"{count} malformed forms", not lost, seconds, 0, lost))
    assert (job["state"], lost) == ("done", 0)
    assert not list((installation.data / "uploads").iterdir())
