"""Uploads that cannot be used: refused in one line that names the field; nothing is left."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.patience import PATIENCE_S
from tests.unit.sound_material import pcm, tone
from tests.web.live_server import (
    PORTRAIT,
    PROMPT,
    SETTINGS,
    SPEECH,
    Installation,
    serve,
    submit,
    wait_for_state,
    wait_until,
)
from webui.settings import Limits

LIMITS = Limits(
    portrait_bytes=2_000_000,
    portrait_pixels=2_000_000,
    speech_bytes=1_000_000,
    speech_seconds=20,
    jobs_per_owner=2,
    jobs_in_all=3,
)


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    settings = replace(SETTINGS, limits=LIMITS)
    installation = Installation(tmp_path_factory.mktemp("data"), settings=settings)
    with serve(installation):
        yield installation


@pytest.fixture
def client(strict: Installation) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=strict.address, timeout=PATIENCE_S) as client:
        yield client


def leftovers(installation: Installation) -> list[Path]:
    return [
        *(installation.data / "uploads").iterdir(),
        *(folder for folder in (installation.data / "jobs").iterdir()),
    ]


REFUSED: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({"portrait": None}, 422, "portrait", "no file was given"),
    ({"speech": None}, 422, "speech", "no file was given"),
    ({"prompt": None}, 422, "prompt", "is empty"),
    ({"prompt": "x" * 2001}, 422, "prompt", "at most 2000"),
    ({"prompt": "a\x00b"}, 422, "prompt", "control character"),
    ({"tier": None}, 422, "tier", "expected fast or balanced or high"),
    ({"tier": "huge"}, 422, "tier", "got 'huge'"),
    ({"tier": "custom", "size": "64*64"}, 422, "tier", "expected fast"),
    ({"size": "704x384"}, 422, "size", "704*384"),
    ({"size": "704*384"}, 422, "size", "the tier fast has 128*128"),
    ({"num_clip": "many"}, 422, "num_clip", "whole number"),
    ({"num_clip": 0}, 422, "num_clip", "from 1"),
    ({"infer_frames": 50}, 422, "infer_frames", "48 and 52"),
    ({"sample_steps": 51}, 422, "sample_steps", "from 1 to 50"),
    ({"seed": -1}, 422, "seed", "from 0"),
    ({"online_decode": "maybe"}, 422, "online_decode", "true or false"),
    ({"idempotency_key": "k" * 201}, 422, "idempotency_key", "at most 200"),
    ({"title": "t" * 20_000}, 413, "title", "too long"),
    ({"portrait": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, 415, "portrait", "an SVG drawing"),
    ({"portrait": b"<html><script>alert(1)</script>"}, 415, "portrait", "a web page"),
    ({"portrait": SPEECH}, 415, "portrait", "a WAV sound"),
    ({"portrait": PORTRAIT.read_bytes()[:9000]}, 422, "portrait", "cut off"),
    ({"portrait": picture(2000, 1500)}, 422, "portrait", "pixels"),
    ({"portrait": b"\x89PNG\r\n\x1a\n" + bytes(2_000_000)}, 413, "portrait", "2 MB"),
    ({"speech": PORTRAIT}, 415, "speech", "a PNG picture"),
    ({"speech": b"MZ" + bytes(600)}, 415, "speech", "a Windows program"),
    ({"speech": bytes(range(256)) * 8}, 422, "speech", "speech"),
    ({"speech": pcm(tone(8000 * 25), 8000)}, 422, "speech", "20 s"),
    ({"speech": b"RIFF" + bytes(4) + b"WAVE" + bytes(1_000_000)}, 413, "speech", "1 MB"),
]


@pytest.mark.parametrize(("changed", "status", "field", "words"), REFUSED)
def test_what_cannot_be_used_is_refused_at_its_field_and_leaves_nothing(
    client: httpx.Client,
    strict: Installation,
    changed: dict[str, Any],
    status: int,
    field: str | None,
    words: str,
) -> None:
    before = leftovers(strict)
    answer = submit(client, **changed)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (status, field), error
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in answer.text
    assert leftovers(strict) == before


FORM = "multipart/form-data; boundary=b"


def part(header: str, content: bytes, end: bytes = b"\r\n--b--\r\n") -> bytes:
    return f"--b\r\nContent-Disposition: form-data{header}\r\n\r\n".encode() + content + end


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", FORM, 400),
        (b"--b\r\n", FORM, 400),
        (b"garbage" * 99, FORM, 400),
        (part('; name="prompt"', b"hi", end=b""), FORM, 400),
        (part("", b"x"), FORM, 400),
        (part('; name="../x"', b"x"), FORM, 400),
        (part('; name="prompt"', b"\xff"), FORM, 400),
        (b"{}", "application/json", 415),
        (b"x", "multipart/form-data", 415),
        (b"x", f"multipart/form-data; boundary={'b' * 300}", 415),
    ],
)
def test_what_is_no_form_is_refused(
    client: httpx.Client, strict: Installation, body: bytes, kind: str, status: int
) -> None:
    before = leftovers(strict)
    answer = client.post("/api/jobs", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert leftovers(strict) == before


def test_a_body_larger_than_all_limits_is_refused_unread(client: httpx.Client) -> None:
    host, port = client.base_url.host, client.base_url.port
    with socket.create_connection((host, port), timeout=PATIENCE_S) as connection:
        head = f"POST /api/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Length: "
        connection.sendall(f"{head}{LIMITS.body_bytes + 1}\r\n\r\n".encode())
        answer = connection.recv(65536)  # it comes although no byte of the body was sent
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_of_unknown_length_is_refused(client: httpx.Client) -> None:
    answer = client.post(
        "/api/jobs", content=iter([b"x"]), headers={"Content-Type": "multipart/form-data"}
    )
    assert answer.status_code == 411
    assert "content-length" in answer.json()["error"]["message"]


def test_a_sender_that_goes_away_leaves_nothing(strict: Installation, client: httpx.Client) -> None:
    before = leftovers(strict)

    def half() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="portrait"\r\n\r\n' + bytes(9000)
        wait_until(lambda: leftovers(strict) != before, "the upload has begun")
        raise ConnectionAbortedError

    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": "100000"}
    with pytest.raises(ConnectionAbortedError):
        client.post("/api/jobs", content=half(), headers=headers)
    wait_until(lambda: leftovers(strict) == before, "nothing is left")


def test_limits_of_the_queue_hold_for_one_and_for_all(tmp_path: Path) -> None:
    settings = replace(SETTINGS, limits=LIMITS)
    installation = Installation(tmp_path, settings=settings)
    installation.supervisor.drain()  # nothing is claimed, so that all wait
    with serve(installation) as address:
        with httpx.Client(base_url=address, timeout=PATIENCE_S) as ann:
            assert [submit(ann).status_code for _ in range(3)] == [202, 202, 429]
            refused = submit(ann)
            assert refused.headers["retry-after"] == "30"
            assert "you have 2 videos" in refused.json()["error"]["message"]
        with httpx.Client(base_url=address, timeout=PATIENCE_S) as bob:
            assert [submit(bob).status_code for _ in range(2)] == [202, 429]
            assert "the queue is full" in submit(bob).json()["error"]["message"]
    assert len(list((tmp_path / "jobs").iterdir())) == 3


def test_inspecting_says_everything_at_once_and_keeps_nothing(
    client: httpx.Client, strict: Installation
) -> None:
    before = leftovers(strict)
    whole = client.post(
        "/api/inspect",
        data={"prompt": "word " * 30, "tier": "fast", "num_clip": "1"},
        files={"portrait": ("a", PORTRAIT.read_bytes()), "speech": ("b", SPEECH.read_bytes())},
    ).json()
    assert whole["errors"] == []
    assert whole["portrait"] == {"width": 768, "height": 768}
    assert whole["speech"]["duration_s"] == pytest.approx(8.2, abs=4)
    codes = {(note["field"], note["code"]) for note in whole["notes"]}
    assert {("prompt", "long_prompt"), ("speech", "speech_cut")} <= codes
    wrong = client.post(
        "/api/inspect",
        data={"prompt": "x" * 3000, "tier": "huge"},
        files={"portrait": ("a", PORTRAIT.read_bytes()[:5000]), "speech": ("b", bytes(2000))},
    ).json()
    assert {error["field"] for error in wrong["errors"]} == {"prompt", "tier", "portrait", "speech"}
    assert leftovers(strict) == before


def test_many_senders_at_once_are_all_served(tmp_path: Path) -> None:
    limits = replace(LIMITS, jobs_per_owner=20, jobs_in_all=20)
    installation = Installation(tmp_path, settings=replace(SETTINGS, limits=limits))
    answers: list[httpx.Response] = []
    with serve(installation) as address:

        def send() -> None:
            with httpx.Client(base_url=address, timeout=PATIENCE_S) as one:
                answers.append(submit(one, prompt=PROMPT))

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        with httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
            assert [answer.status_code for answer in answers] == [202] * 8
            for answer in answers:
                wait_for_state(client, answer.json()["id"], "done")
