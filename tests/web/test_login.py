"""With a login asked for, no route answers a stranger; share links only when they are opened."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from liveavatar.errors import ConfigError
from liveavatar.plan.tiers import TIERS
from tests.patience import PATIENCE_S
from tests.web.live_server import SETTINGS, Installation, serve, submit, wait_for_state
from webui.auth import Accounts, installation_key, read_accounts
from webui.operator import operator_token
from webui.server import Access
from webui.settings import Features

pytestmark = pytest.mark.filterwarnings("ignore")  # Gradio uses what is deprecated
KEY = b"k" * 32


def accounts() -> Accounts:
    return read_accounts("ann:secret\nbob:täglich", "test", KEY)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(
        tmp_path_factory.mktemp("data"), access=Access(accounts()), with_page=True
    )
    with serve(installation):
        yield installation


@pytest.fixture
def stranger(installation: Installation) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=installation.address, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
def ann(installation: Installation) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=installation.address, timeout=PATIENCE_S, auth=("ann", "secret")
    ) as client:
        yield client


def test_a_browser_logs_in_by_the_page_and_out_again(stranger: httpx.Client) -> None:
    page = stranger.get("/login", params={"next": "/docs"})
    assert 'value="/docs"' in page.text
    html = {"Accept": "text/html"}
    form = {"username": "ann", "password": "wrong", "next": "/docs"}
    wrong = stranger.post("/login", data=form, headers=html)
    assert (wrong.status_code, "is wrong" in wrong.text) == (401, True)
    assert stranger.get("/api/config").status_code == 401
    form["password"] = "secret"
    right = stranger.post("/login", data=form, headers=html)
    assert (right.status_code, right.headers["location"]) == (303, "/docs")
    assert "HttpOnly" in right.headers["set-cookie"]
    config = stranger.get("/api/config").json()
    assert (config["features"]["auth"], config["features"]["admin"]) == (True, True)
    assert stranger.post("/logout").status_code == 303
    assert stranger.get("/api/config").status_code == 401


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil", "", "x"])
def test_logging_in_leads_to_no_other_site(stranger: httpx.Client, target: str) -> None:
    form = {"username": "bob", "password": "täglich", "next": target}
    answer = stranger.post("/login", data=form, headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_a_program_sends_its_password_along(ann: httpx.Client, installation: Installation) -> None:
    job = submit(ann).json()
    wait_for_state(ann, job["id"], "done")
    group = ann.get("/api/group").json()
    assert [rank["role"] for rank in group["ranks"]] == ["stage 0", "stage 1", "stage 2", "media"]
    assert group["errors"] == []
    for auth in (("ann", "x"), ("eve", "secret"), ("", "")):
        assert httpx.get(f"{installation.address}/api/config", auth=auth).status_code == 401
    broken = {"Authorization": "Basic ###"}
    assert httpx.get(f"{installation.address}/api/config", headers=broken).status_code == 401


def test_only_a_session_signed_here_counts(stranger: httpx.Client) -> None:
    own = accounts().new_session("ann")
    name, until, signature = own.split(".")
    later = f"{name}.{int(until) + 1}.{signature}"
    other = base64.urlsafe_b64encode(b"bob").decode()
    strange = Accounts({"ann": "secret"}, b"another key").new_session("ann")
    gone = Accounts({"eve": "x"}, KEY).new_session("eve")
    for session in ("", ".", "x", "a.b.c", later, f"{other}.{until}.{signature}", strange, gone):
        answer = stranger.get("/api/config", headers={"Cookie": f"la_session={session}"})
        assert answer.status_code == 401, session
    answer = stranger.get("/api/config", headers={"Cookie": f"la_session={own}"})
    assert answer.status_code == 200


def test_passwords_cannot_be_tried_out(tmp_path: Path) -> None:
    with serve(Installation(tmp_path, access=Access(accounts()))) as address:
        tried = [httpx.get(f"{address}/api/config", auth=("ann", str(n))) for n in range(12)]
        codes = [answer.status_code for answer in tried]
        assert codes == [401] * 10 + [429] * 2


@pytest.mark.parametrize("is_open", [False, True])
def test_share_links_need_a_login_unless_they_are_opened(tmp_path: Path, is_open: bool) -> None:
    settings = replace(SETTINGS, features=Features(open_share_links=is_open))
    installation = Installation(tmp_path, settings=settings, access=Access(accounts()))
    with serve(installation) as address:
        with httpx.Client(base_url=address, timeout=PATIENCE_S, auth=("ann", "secret")) as ann:
            job = submit(ann).json()
            wait_for_state(ann, job["id"], "done")
        expected = 200 if is_open else 401
        for path in ("", "/job", "/live.mp4", "/video.mp4", "/thumbnail.jpg", "/poster.jpg"):
            assert httpx.get(address + job["share_url"] + path).status_code == expected, path
        assert httpx.get(address + job["live_url"]).status_code == 401


def test_without_a_login_nobody_is_the_operator(tmp_path: Path) -> None:
    with serve(Installation(tmp_path)) as address:
        group = httpx.get(f"{address}/api/group").json()
        assert (group["ranks"], group["jobs"], group["errors"]) == (None, None, None)
        assert httpx.get(f"{address}/api/config").json()["features"]["admin"] is False


@pytest.mark.parametrize("text", ["", "\n", "ann", "ann:", ":secret"])
def test_accounts_that_are_none_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^auth: expected USER:PASSWORD") as caught:
        read_accounts(text, "auth", KEY)
    assert "secret" not in str(caught.value)


def test_the_key_of_an_installation_stays_and_is_private(tmp_path: Path) -> None:
    key = installation_key(tmp_path)
    assert len(key) == 32
    assert installation_key(tmp_path) == key
    assert (tmp_path / "secret.key").stat().st_mode & 0o077 == 0


# --- the operator's token ------------------------------------------------------------------------


@pytest.mark.parametrize("known", [None, accounts()], ids=["open", "login"])
def test_the_operator_lowers_the_tier_and_lifts_it_again(
    tmp_path: Path, known: Accounts | None
) -> None:
    token = operator_token(tmp_path)
    assert token == operator_token(tmp_path)
    assert (tmp_path / "operator.token").stat().st_mode & 0o077 == 0
    settings = replace(SETTINGS, tiers=TIERS)
    installation = Installation(tmp_path, settings=settings, access=Access(known, token=token))
    with (
        serve(installation) as address,
        httpx.Client(base_url=address, timeout=PATIENCE_S) as client,
    ):
        path, right = "/api/group/ceiling", {"Authorization": f"Bearer {token}"}
        for headers in ({}, {"Authorization": f"Bearer {token}x"}, {"Authorization": "Bearer é"}):
            encoded = {name: value.encode() for name, value in headers.items()}
            refused = client.post(path, json={}, headers=encoded)
            assert refused.status_code == (403 if known is None else 401)
            assert client.delete(path, headers=encoded).status_code == refused.status_code
        steps = [client.post(path, json={"reason": "a\ntest"}, headers=right) for _ in range(3)]
        ceilings = [answer.json()["ceiling"] for answer in steps]
        assert [ceiling["tier"] for ceiling in ceilings] == ["balanced", "fast", "fast"]
        assert ceilings[0]["reason"] == "a test"
        named = client.post(path, json={"tier": "high"}, headers=right).json()["ceiling"]
        assert named["tier"] == "high"
        wrong = client.post(path, json={"tier": "huge"}, headers=right)
        assert wrong.json()["error"]["message"] == (
            "tier: expected fast or balanced or high, got 'huge'"
        )
        assert client.get("/api/group", headers=right).json()["ceiling"] == named
        assert client.delete(path, headers=right).json()["ceiling"] is None
