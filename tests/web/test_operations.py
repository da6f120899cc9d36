"""What an operator relies on: health, metrics, documentation, hashed files, clean ends."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from liveavatar.engine.fake import Pace
from liveavatar.engine.group_state import GroupState
from liveavatar.engine.messages import RankStatus
from liveavatar.errors import ConfigError
from liveavatar.jobs.ability import Ability
from liveavatar.media.live_file import complete_length
from tests.patience import PATIENCE_S
from tests.web.live_server import Installation, serve, submit, wait_for_state, wait_until
from webui.running import DrainingServer, listen
from webui.server import STATIC, Access, create_app
from webui.static_files import content_hash, static_url


def samples(client: httpx.Client) -> dict[tuple[str, ...], float]:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_health_and_metrics_tell_what_goes_on(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=Pace(load_s=0.05, prepare_s=0.02, fps=50))
    with (
        serve(installation) as address,
        httpx.Client(base_url=address, timeout=PATIENCE_S) as client,
    ):
        jobs = [submit(client).json() for _ in range(3)]
        wait_until(lambda: client.get(f"/api/jobs/{jobs[0]['id']}").json()["frames"], "frames")
        watching = threading.Thread(target=lambda: httpx.get(address + jobs[0]["live_url"]))
        watching.start()
        wait_until(lambda: samples(client)["liveavatar_live_viewers",] == 1, "a viewer")
        now = samples(client)
        assert now["liveavatar_group_ready",] == 1
        assert now["liveavatar_queue_length",] == 1
        assert now["liveavatar_jobs", "running"] == 2
        assert now["liveavatar_rank_memory_bytes", "cpu", "1", "3", "media"] == 2**30
        health = client.get("/healthz").json()
        assert (health["status"], health["group"], health["queue_length"]) == ("ok", "ready", 1)
        assert len(health["ranks"]) == 4
        assert client.get("/api/group").json()["queue_length"] == 1
        client.post(f"/api/jobs/{jobs[2]['id']}/cancel")
        for job in jobs[:2]:
            wait_for_state(client, job["id"], "done")
        watching.join(PATIENCE_S)
        now = samples(client)
        assert now["liveavatar_jobs", "done"] == 2
        assert now["liveavatar_jobs", "cancelled"] == 1
        assert 30 < now["liveavatar_fps", "fast"] < 80
        assert 0 < now["liveavatar_first_frame_seconds", "fast"] < 10
        (tier, *_) = client.get("/api/config").json()["tiers"]
        assert tier["fps"] == pytest.approx(now["liveavatar_fps", "fast"])
        assert tier["fits"]


def test_what_cards_tell_is_shown_and_what_they_do_not_tell_is_left_out(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    with serve(installation) as address, httpx.Client(base_url=address) as client:
        installation.supervisor.stop()
        hot = RankStatus(0, "stage 0", "cuda:0", (0, 39), 1, 1, 2, 0.5, "", 0, 0, 1, 71, 0.25)
        cold = RankStatus(1, "media", "cpu", None, 1, 1, 2, 0.5, "")
        state = GroupState()
        state.take(hot)
        state.take(cold)
        installation.store.write_worker("machine", state.document([]))
        now = samples(client)
        assert now["liveavatar_rank_temperature_celsius", "cuda:0", "1", "0", "stage 0"] == 71
        assert now["liveavatar_rank_gpu_busy_share", "cuda:0", "1", "0", "stage 0"] == 0.25
        assert ("liveavatar_rank_temperature_celsius", "cpu", "1", "1", "media") not in now
        ranks = client.get("/healthz").json()["ranks"]
        assert [rank.get("temperature_c") for rank in ranks] == [71, None]


def test_a_server_without_a_group_says_so(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    with serve(installation) as address, httpx.Client(base_url=address) as client:
        installation.supervisor.stop()
        answer = client.get("/healthz")
        assert (answer.status_code, answer.json()["status"]) == (503, "degraded")
        assert client.get("/api/group").json()["state"] == "stopped"
        job = submit(client).json()
        assert (job["state"], job["position"]) == ("queued", 1)


def test_old_jobs_are_removed_with_their_files(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    with (
        serve(installation) as address,
        httpx.Client(base_url=address, timeout=PATIENCE_S) as client,
    ):
        job = submit(client).json()
        wait_for_state(client, job["id"], "done")
        assert installation.service.remove_old_jobs() == 0
        assert installation.store.ended_before(time.time() + 1) == [job["id"]]
        installation.service.delete(job["id"])
        assert list((tmp_path / "jobs").iterdir()) == []


def test_the_documentation_lists_every_route_and_needs_no_network(client: httpx.Client) -> None:
    page = client.get("/docs").text
    schema = client.get("/openapi.json").json()
    assert "/api/jobs/{job_id}/cancel" in page
    assert all(path in page for path in schema["paths"])
    assert {"/api/config", "/api/inspect", "/live/{job_id}.mp4", "/healthz"} <= set(schema["paths"])
    assert "idempotency_key" in page
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", page)
    assert "<script" not in page


def test_static_files_are_kept_for_long_only_under_their_hash(tmp_path: Path) -> None:
    for name in ("css", "js", "images"):
        (tmp_path / "static" / name).mkdir(parents=True)
    script = tmp_path / "static" / "js" / "player.js"
    script.write_text("first")
    installation = Installation(tmp_path / "data")
    app = create_app(installation.service, static=tmp_path / "static")
    first = static_url(tmp_path / "static", "js/player.js")
    transport = httpx.ASGITransport(app)

    async def ask(url: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(url)

    def cache_of(url: str) -> str:
        # In a thread of its own: Gradio does not build pages where an event loop has ended.
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(anyio.run, ask, url).result()
        assert answer.status_code == 200
        kept: str = answer.headers["cache-control"]
        return kept

    assert "immutable" in cache_of(first)
    script.write_text("second version")
    assert content_hash(script) not in first
    assert cache_of(first) == "no-cache"
    assert cache_of("/static/js/player.js") == "no-cache"
    assert "immutable" in cache_of(static_url(tmp_path / "static", "js/player.js"))
    installation.store.close()


@pytest.mark.parametrize("missing", ["css", "js", "images"])
def test_without_its_static_files_the_app_does_not_start(tmp_path: Path, missing: str) -> None:
    for name in {"css", "js", "images"} - {missing}:
        (tmp_path / "static" / name).mkdir(parents=True)
    installation = Installation(tmp_path / "data")
    with pytest.raises(ConfigError, match=f"^static/{missing}: the folder is missing"):
        create_app(installation.service, static=tmp_path / "static")
    installation.store.close()
    assert STATIC.is_dir()


def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    with listen("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^port: 127\.0\.0\.1:{port} cannot be listened at"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("twice", [False, True])
def test_a_signal_lets_the_running_job_end_a_second_one_does_not(
    tmp_path: Path, twice: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    installation = Installation(tmp_path, pace=Pace(load_s=0.05, prepare_s=0.02, fps=40))
    supervisor = installation.supervisor
    server = DrainingServer(
        installation.application(),
        supervisor.drain,
        is_drained=lambda: not supervisor.is_alive,
        drain_s=30,
        end_streams=installation.app.state.streams.close,
    )
    listener = listen("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    supervisor.start()
    thread.start()
    wait_until(lambda: server.started, "it listens")
    with httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
        job = submit(client).json()
        wait_until(lambda: client.get(f"/api/jobs/{job['id']}").json()["frames"], "frames")
        viewers = ThreadPoolExecutor(1)
        seen = viewers.submit(
            lambda: httpx.get(address + job["live_url"], timeout=PATIENCE_S).content
        )
        stuck = socket.create_connection(listener.getsockname())  # asks and never reads
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(f"GET {job['live_url']} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        streams = installation.app.state.streams
        wait_until(lambda: streams.num_viewers == 2, "both watch")
        server.handle_exit(signal.SIGTERM, None)
        if twice:
            server.handle_exit(signal.SIGTERM, None)
        else:  # everything is still served
            wait_until(lambda: client.get("/healthz").json()["group"] == "draining", "draining")
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    stuck.close()
    (tmp_path / "seen.mp4").write_bytes(seen.result(10))
    assert complete_length(tmp_path / "seen.mp4") == len(seen.result()) > 0
    viewers.shutdown()
    assert "Traceback" not in capsys.readouterr().err
    supervisor.stop()
    state = installation.store.get(job["id"]).state.value
    assert state == ("queued" if twice else "done")
    installation.store.close()
    listener.close()


def test_several_groups_and_machines_are_told_of_as_one(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    token = Access(token="t" * 32)
    installation.access = token
    with serve(installation) as address, httpx.Client(base_url=address) as client:
        installation.supervisor.stop()
        for number, word in ((1, "ready"), (2, "restarting")):
            state = GroupState()
            state.word, state.restarts = word, number  # type: ignore[assignment]
            said = {**state.document(["a"]), "group": number, "node": f"node-{number}"}
            installation.store.write_worker(f"group {number}", said)
        cluster = {
            "state": "cluster",
            "nodes": [{"name": "node-1", "alive": True, "cpus": 8, "gpus": 4}],
            "placements": [
                {"number": 1, "state": "placed", "node": "node-1"},
                {"number": 3, "state": "waiting", "node": ""},
            ],
        }
        installation.store.write_worker("cluster", cluster)
        view = client.get("/api/group").json()
        assert (view["state"], view["num_groups"], view["groups"]) == ("ready", 3, None)
        client.headers["authorization"] = f"Bearer {token.token}"
        view = client.get("/api/group").json()
        assert [(group["number"], group["node"], group["state"]) for group in view["groups"]] == [
            (1, "node-1", "ready"),
            (2, "node-2", "restarting"),
            (3, "", "waiting"),
        ]
        assert view["restarts"] == 3
        assert view["nodes"] == cluster["nodes"]
        now = samples(client)
        assert (now["liveavatar_groups", "ready"], now["liveavatar_groups", "waiting"]) == (1, 1)


def test_a_video_that_no_group_can_make_says_so_until_one_can(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    with serve(installation) as address, httpx.Client(base_url=address) as client:
        installation.supervisor.stop()
        ability = Ability(frozenset({"high"})).document()
        installation.store.write_worker("high only", {"state": "ready", "ability": ability})
        job_id = submit(client).json()["id"]
        asked = f"/api/jobs/{job_id}"
        wait_until(lambda: client.get(asked).json()["stage"] == "no group", "no group")
        assert client.get(asked).json()["eta_s"] is None
        installation.store.write_worker("all", {"state": "ready"})
        wait_until(lambda: client.get(asked).json()["stage"] == "", "a group")
