"""Submit, follow, cancel, list and delete, as a browser does."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from liveavatar.media.live_file import measure_live_file
from tests.patience import PATIENCE_S
from tests.unit.mp4_material import decode_audio, decode_video
from tests.web.live_server import (
    PORTRAIT,
    SPEECH,
    Installation,
    serve,
    submit,
    wait_for_state,
    wait_until,
)


def test_a_video_goes_from_upload_to_download(client: httpx.Client, tmp_path: Path) -> None:
    answer = submit(client, title="Maya says hello")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["state"], job["total_frames"], job["frames"]) == ("queued", 48, 0)
    assert (job["width"], job["height"]) == (128, 128)
    live = client.get(job["live_url"])
    (tmp_path / "live.mp4").write_bytes(live.content)
    assert measure_live_file(tmp_path / "live.mp4").num_frames == 48
    done = wait_for_state(client, job["id"], "done")
    assert (done["frames"], done["error"], done["can_cancel"]) == (48, None, False)
    assert done["fps_measured"] > 25
    assert done["realtime_factor"] == pytest.approx(done["fps_measured"] / 25)
    assert done["created_at"] <= done["started_at"] <= done["finished_at"] <= time.time()
    video = client.get(done["download_url"])
    assert video.headers["content-disposition"] == 'attachment; filename="Maya-says-hello.mp4"'
    (tmp_path / "video.mp4").write_bytes(video.content)
    assert len(decode_video(tmp_path / "video.mp4")) == 48
    assert abs(decode_audio(tmp_path / "video.mp4")).max() > 0.05
    assert client.get(done["thumbnail_url"]).content.startswith(b"\xff\xd8\xff")


def test_the_original_bytes_of_an_upload_are_kept(
    client: httpx.Client, installation: Installation
) -> None:
    job = submit(client).json()
    folder = installation.spool.job(job["id"])
    assert (folder.path / "portrait.png").read_bytes() == PORTRAIT.read_bytes()
    assert (folder.path / "speech.wav").read_bytes() == SPEECH.read_bytes()
    wait_for_state(client, job["id"], "done")


def test_a_browser_sees_its_own_jobs_newest_first(client: httpx.Client) -> None:
    assert client.get("/api/jobs").json() == []
    ids = []
    for title in ("first", "second"):
        ids.append(submit(client, title=title).json()["id"])
        wait_for_state(client, ids[-1], "done")
    assert [job["title"] for job in client.get("/api/jobs").json()] == ["second", "first"]
    cookie = next(cookie for cookie in client.cookies.jar if cookie.name == "la_browser")
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.expires is not None
    assert cookie.expires > time.time() + 300 * 24 * 3600
    with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as other:
        assert other.get("/api/jobs").json() == []


def test_the_same_key_makes_one_job(client: httpx.Client) -> None:
    first = submit(client, idempotency_key="k1").json()
    again = submit(client, idempotency_key="k1")
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    assert submit(client, idempotency_key="k2").json()["id"] != first["id"]
    for job in client.get("/api/jobs").json():
        wait_for_state(client, job["id"], "done")


def test_what_was_asked_for_is_what_is_made(client: httpx.Client) -> None:
    answer = submit(
        client, tier="balanced", num_clip=2, infer_frames=12, sample_steps=3, seed=7, title=" a\tb "
    )
    job = wait_for_state(client, answer.json()["id"], "done")
    assert (job["total_frames"], job["width"], job["seed"]) == (24, 192, 7)
    assert job["title"] == "a b"
    codes = [(note["field"], note["code"]) for note in job["notes"]]
    assert ("speech", "speech_cut") in codes
    seeds = {submit(client).json()["seed"] for _ in range(2)}
    assert len(seeds) == 2
    for job in client.get("/api/jobs").json():
        wait_for_state(client, job["id"], "done")


def test_a_job_is_deleted_only_when_it_has_ended(
    client: httpx.Client, installation: Installation
) -> None:
    job = submit(client).json()
    wait_for_state(client, job["id"], "done")
    folder = installation.spool.job(job["id"]).path
    assert folder.exists()
    assert client.delete(f"/api/jobs/{job['id']}").status_code == 204
    assert not folder.exists()
    for path in (f"/api/jobs/{job['id']}", job["live_url"], f"/media/{job['id']}.mp4"):
        assert client.get(path).status_code == 404
    assert client.delete(f"/api/jobs/{job['id']}").status_code == 404


def test_unknown_jobs_and_paths_answer_in_one_form(client: httpx.Client) -> None:
    for path in ("/api/jobs/none", f"/live/{'0' * 32}.mp4", "/media/..%2f..%2fx.mp4", "/s/x/job"):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert set(answer.json()) == {"error"}, path


def test_cancelling(tmp_path: Path) -> None:
    from liveavatar.engine.fake import Pace

    slow = Installation(tmp_path, pace=Pace(load_s=0.05, prepare_s=0.02, fps=50))
    with serve(slow) as address, httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
        # Two are handed to the group, the third one waits in the queue.
        first, second, third = (submit(client, num_clip=3).json()["id"] for _ in range(3))
        view = wait_for_state(client, first, "running")
        wait_until(lambda: client.get(f"/api/jobs/{first}").json()["frames"] >= 12, "frames")
        assert client.get(f"/api/jobs/{third}").json()["position"] == 1
        assert client.post(f"/api/jobs/{third}/cancel").json()["state"] == "cancelled"
        assert client.delete(f"/api/jobs/{first}").status_code == 409
        view = client.post(f"/api/jobs/{first}/cancel").json()
        assert (view["state"], view["can_cancel"]) == ("running", False)
        stream = client.get(f"/live/{first}.mp4")
        view = wait_for_state(client, first, "cancelled")
        assert 12 <= view["frames"] < view["total_frames"]
        (tmp_path / "stream.mp4").write_bytes(stream.content)
        assert measure_live_file(tmp_path / "stream.mp4").num_frames == view["frames"]
        # What there is of it can be watched and saved.
        (tmp_path / "rest.mp4").write_bytes(client.get(view["video_url"]).content)
        assert len(decode_video(tmp_path / "rest.mp4")) == view["frames"]
        wait_for_state(client, second, "done")
        assert client.post(f"/api/jobs/{second}/cancel").json()["state"] == "done"
