"""The gates by themselves: whose request it is, how long is waited, how much is let through."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.security.servers import run_apart
from webui.guard import Guard, GuardSettings, client_of
from webui.throttle import Rates, Throttle

MUCH = Rates(per_second=10_000, at_once=10_000)


async def tell(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what the guard found out."""
    request = Request(scope, receive)
    told = {
        "client": client_of(scope),
        "scheme": request.url.scheme,
        "forwarded": [name for name in request.headers if "forwarded" in name],
    }
    await JSONResponse(told)(scope, receive, send)


class Asked:
    """One request and its answer.

    Args:
        app: who is asked.
        headers: beside Host.
        peer: address of the connection.
        method: of HTTP.
    """

    def __init__(
        self, app: ASGIApp, headers: dict[str, str], peer: str = "127.0.0.1", method: str = "GET"
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.app = app
        self.scope: Scope = {
            "type": "http",
            "method": method,
            "path": "/",
            "query_string": b"",
            "scheme": "http",
            "headers": [
                (name.encode(), value.encode())
                for name, value in {"host": "localhost", **headers}.items()
            ],
            "client": (peer, 1),
            "server": ("localhost", 80),
        }

    async def answer(self, *messages: Message) -> Asked:
        """Send the messages, then nothing more, and take what comes back."""
        waiting = list(messages) or [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            if not waiting:
                await asyncio.sleep(60)
            return waiting.pop(0)

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {n.decode(): v.decode() for n, v in message["headers"]}
            self.body += message.get("body", b"")

        await asyncio.wait_for(self.app(self.scope, receive, send), 10)
        return self


def ask(app: ASGIApp, headers: dict[str, str], peer: str = "127.0.0.1") -> Any:
    return json.loads(run_apart(Asked(app, headers, peer).answer()).body)


FORWARDED = {"x-forwarded-for": "6.6.6.6, 192.0.2.7", "x-forwarded-proto": "https"}


def test_what_a_proxy_says_counts_only_where_it_is_trusted() -> None:
    said = ask(Guard(tell, GuardSettings()), FORWARDED)
    assert said == {"client": "127.0.0.1", "scheme": "http", "forwarded": []}
    said = ask(Guard(tell, GuardSettings(trusts_proxy=True)), FORWARDED)
    # The last address is the one that the proxy saw; what stands before it anybody can claim.
    assert (said["client"], said["scheme"]) == ("192.0.2.7", "https")
    public = Guard(tell, GuardSettings(public_hosts={"abc.example.live"}))
    said = ask(public, {**FORWARDED, "host": "abc.example.live"})
    assert said == {"client": "192.0.2.7", "scheme": "https", "forwarded": []}
    assert ask(public, FORWARDED)["client"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:9::", "2001:db8:1:2::/64"),
        ("nonsense", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_sender_is_an_address_and_of_ipv6_a_network(peer: str, client: str) -> None:
    assert ask(Guard(tell, GuardSettings()), {}, peer)["client"] == client


def test_a_sender_that_pauses_counts_as_gone() -> None:
    seen: list[Message] = []

    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        while not seen or seen[-1].get("more_body"):
            seen.append(await receive())
        await PlainTextResponse("")(scope, receive, send)

    guard = Guard(read, GuardSettings(body_pause_s=0.05))
    asked = Asked(guard, {"content-length": "9"}, method="POST")
    run_apart(asked.answer({"type": "http.request", "body": b"x", "more_body": True}))
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]


def statuses(app: ASGIApp, peers: list[str], method: str) -> list[int]:
    async def all_of_them() -> list[int]:
        asked = [await Asked(app, {"content-length": "0"}, peer, method).answer() for peer in peers]
        assert all(int(one.headers["retry-after"]) > 0 for one in asked if one.status == 429)
        return [one.status for one in asked]

    return run_apart(all_of_them())


def test_each_sender_has_an_allowance_of_its_own_and_all_share_one() -> None:
    one = Rates(per_second=4, at_once=9)  # 80 requests of a quiet sender, or 2 changes
    app = Guard(Throttle(tell, one, MUCH), GuardSettings())
    assert statuses(app, ["192.0.2.1"] * 4 + ["192.0.2.2"], "POST") == [200, 200, 429, 429, 200]
    app = Guard(Throttle(tell, one, MUCH), GuardSettings())
    assert statuses(app, ["192.0.2.1"] * 82, "GET") == [200] * 80 + [429] * 2
    app = Guard(Throttle(tell, MUCH, one), GuardSettings())
    peers = [f"192.0.2.{number}" for number in range(4)]
    assert statuses(app, peers, "POST") == [200, 200, 429, 429]


def test_only_so_many_answers_are_given_at_once() -> None:
    async def hold() -> list[int]:
        release = asyncio.Event()

        async def wait(scope: Scope, receive: Receive, send: Send) -> None:
            await release.wait()
            await PlainTextResponse("")(scope, receive, send)

        each, together = Rates(1000, at_once=2), Rates(1000, at_once=3)
        app = Guard(Throttle(wait, each, together), GuardSettings())
        peers = ["192.0.2.1"] * 3 + ["192.0.2.2"] * 2
        tasks = [asyncio.create_task(Asked(app, {}, peer).answer()) for peer in peers]
        await asyncio.sleep(0.05)
        release.set()
        held = [(await task).status for task in tasks]
        return [*held, (await Asked(app, {}, "192.0.2.1").answer()).status]

    assert run_apart(hold()) == [200, 200, 429, 200, 429, 200]
