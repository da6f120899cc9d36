"""What `gradio_client` 0.15.0 needs so that it neither hammers the server nor waits for ever.

It takes note of a call only some time after `/queue/join` has answered (client.py, `_predict`). The
outcome of a call that ends before that breaks its stream of messages, and the program waits without
end. And it opens its heartbeat anew, with no pause, as often as that ends (`_stream_heartbeat`).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Message, Send

_NOTED_AFTER_S = 0.5
_FORGOTTEN_AFTER_S = 600.0
_BEAT_EVERY_S = 15.0  # the client gives up after 20

_EVENT = re.compile(rb'"event_id":\s*"([0-9a-f]{32})"')
_OUTCOME = re.compile(rb'"msg":\s*"process_completed"')


class CallPace:
    """Holds back the outcomes of calls that end at once, until who called knows of the call."""

    def __init__(self) -> None:
        self._joined: dict[bytes, float] = {}

    def noting(self, send: Send) -> Send:
        """Send the answer of `/queue/join`, and remember when the call in it began."""

        async def noting(message: Message) -> None:
            await send(message)
            if event := _EVENT.search(message.get("body", b"")):
                self._forget_old()
                self._joined[event[1]] = time.monotonic()

        return noting

    def holding(self, send: Send) -> Send:
        """Send `/queue/data`, each outcome half a second after its call began at the earliest."""

        async def holding(message: Message) -> None:
            body: bytes = message.get("body", b"")
            if _OUTCOME.search(body) and (event := _EVENT.search(body)):
                now = time.monotonic()
                await asyncio.sleep(self._joined.pop(event[1], now) + _NOTED_AFTER_S - now)
            await send(message)

        return holding

    def _forget_old(self) -> None:
        """Calls whose outcome nobody fetched; they lie in the order of their beginning."""
        oldest = time.monotonic() - _FORGOTTEN_AFTER_S
        while self._joined and next(iter(self._joined.values())) < oldest:
            del self._joined[next(iter(self._joined))]


def heartbeat(session: str, request: Request) -> Response:
    """Keep a program's heartbeat open; a browser, which has six connections for all its tabs, not.

    A browser's EventSource does not come back after 204.
    """
    del session
    if "text/event-stream" in request.headers.get("accept", ""):
        return Response(status_code=204)
    return StreamingResponse(_beats(), media_type="text/event-stream")


async def _beats() -> AsyncIterator[str]:
    while True:
        yield "data: ALIVE\n\n"
        await asyncio.sleep(_BEAT_EVERY_S)
