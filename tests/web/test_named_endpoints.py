"""`gradio_client` submits, follows, cancels and downloads, through guard and login."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, file

from tests.patience import PATIENCE_S
from tests.unit.mp4_material import decode_video
from tests.web.live_server import PORTRAIT, PROMPT, SPEECH, Installation, serve
from webui.auth import read_accounts
from webui.server import Access

pytestmark = pytest.mark.filterwarnings("ignore")  # the client and Gradio use what is deprecated


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    accounts = read_accounts("ann:secret", "test", b"key")
    data = tmp_path_factory.mktemp("data")
    installation = Installation(data, access=Access(accounts), with_page=True)
    with serve(installation) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(
        address,
        auth=("ann", "secret"),
        verbose=False,
        output_dir=str(tmp_path_factory.mktemp("output")),
    )
    yield client
    client.close()


def submitted(client: Client, **changed: object) -> str:
    job_id: str = answer(
        client,
        file(str(PORTRAIT)),
        file(str(SPEECH)),
        changed.get("prompt", PROMPT),
        changed.get("tier", "fast"),
        changed.get("num_clip", 1),
        None,
        None,
        7,
        None,
        "By client",
        "",
        api_name="/submit",
    )
    return job_id


def answer(client: Client, *inputs: object, api_name: str) -> Any:
    """What `predict` gives, within a deadline: the client itself has none."""
    return client.submit(*inputs, api_name=api_name).result(timeout=60)


def test_a_client_submits_follows_and_downloads(client: Client) -> None:
    job_id = submitted(client)
    deadline = time.monotonic() + 20
    while (view := answer(client, job_id, api_name="/status"))["state"] != "done":
        assert time.monotonic() < deadline, view
    assert (view["title"], view["seed"], view["total_frames"]) == ("By client", 7, 48)
    video = Path(answer(client, job_id, api_name="/result"))
    assert len(decode_video(video)) == 48


def test_a_client_hears_what_is_wrong(client: Client) -> None:
    with pytest.raises(ValueError, match=r"tier: expected fast or balanced or high, got 'huge'"):
        submitted(client, tier="huge")
    with pytest.raises(ValueError, match="there is no job 'nonsense'"):
        answer(client, "nonsense", api_name="/status")


def test_a_call_ends_no_sooner_than_its_caller_knows_of_it(address: str) -> None:
    """The client forgets a call that ends while it still reads that the call was taken."""
    with httpx.Client(base_url=address, timeout=PATIENCE_S) as program:
        program.post("/login", data={"username": "ann", "password": "secret"})
        made = program.get("/config").json()["dependencies"]
        status = [one["api_name"] for one in made].index("status")
        call = {"data": ["nonsense"], "fn_index": status, "session_hash": "hasty"}
        event = program.post("/queue/join", json=call).json()["event_id"]
        began = time.monotonic()
        with program.stream("GET", "/queue/data", params={"session_hash": "hasty"}) as messages:
            outcome = next(m for m in messages.iter_lines() if "process_completed" in m)
        assert event in outcome
        assert time.monotonic() - began > 0.4


def test_a_programs_heartbeat_stays_open_and_a_browsers_does_not(address: str) -> None:
    """The client opens it anew without a pause; browsers have six connections for all tabs."""
    with httpx.Client(base_url=address, timeout=PATIENCE_S) as caller:
        caller.post("/login", data={"username": "ann", "password": "secret"})
        with caller.stream("GET", "/heartbeat/s") as beats:
            received = beats.iter_text()
            assert next(received).startswith("data:")
            following = ThreadPoolExecutor(1).submit(next, received, None)
            time.sleep(0.5)
            assert not following.done()
        eventsource = {"Accept": "text/event-stream"}
        assert caller.get("/heartbeat/s", headers=eventsource).status_code == 204


def test_cancelling_and_asking_too_early(client: Client) -> None:
    job_id = submitted(client, num_clip=50)
    view = answer(client, job_id, api_name="/cancel")
    assert view["id"] == job_id
    deadline = time.monotonic() + 20
    while view["state"] not in ("cancelled", "done"):
        assert time.monotonic() < deadline, view
        view = answer(client, job_id, api_name="/status")


def test_the_endpoints_are_described_and_named(client: Client) -> None:
    described = client.view_api(return_format="dict")
    assert {"/submit", "/status", "/cancel", "/result"} <= set(described["named_endpoints"])
    names = [p["label"] for p in described["named_endpoints"]["/submit"]["parameters"]]
    assert names[:4] == ["portrait", "speech", "prompt", "tier"]


def test_without_login_there_is_no_client(address: str) -> None:
    with pytest.raises(Exception, match=r"401|log in|Could not"):
        Client(address, verbose=False)
    assert httpx.get(f"{address}/config").status_code == 401
