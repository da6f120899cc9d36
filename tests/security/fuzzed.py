"""Requests that nobody sends by mistake, from a seed; and a way to send them without a socket."""

from __future__ import annotations

import asyncio
import io
import json
import random
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from starlette.types import ASGIApp, Message

ANSWER_S = 20.0


@dataclass
class Request:
    """What is sent: header values and path as they come over the wire.

    Attributes:
        cut: break off after so many bytes of the body; None sends it whole.
    """

    method: str
    path: str
    headers: dict[str, bytes] = field(default_factory=dict)
    body: bytes = b""
    query: bytes = b""
    cut: int | None = None


@dataclass
class Answer:
    """What came back; status 0 where nothing did, as after a body that was cut."""

    status: int
    body: bytes


async def send(app: ASGIApp, request: Request, pieces: int = 1) -> Answer:
    """Hand a request to an application; TimeoutError when the answer does not come."""
    headers = {"host": b"localhost", "content-length": str(len(request.body)).encode()}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode("utf-8", "replace"),
        "query_string": request.query,
        "root_path": "",
        "headers": [(n.encode(), v) for n, v in {**headers, **request.headers}.items()],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }
    body = request.body if request.cut is None else request.body[: request.cut]
    size = max(1, -(-len(body) // pieces))
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    answer = Answer(0, b"")

    async def receive() -> Message:
        if not parts:
            return {"type": "http.disconnect"}
        part = parts.pop(0)
        more = bool(parts) or request.cut is not None
        return {"type": "http.request", "body": part, "more_body": more}

    async def take(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
        answer.body += message.get("body", b"")

    await asyncio.wait_for(app(scope, receive, take), ANSWER_S)
    return answer


def requests(seed: int, count: int) -> Iterator[Request]:
    """So many requests, the same for the same seed."""
    chance = random.Random(seed)
    makers: tuple[Callable[[random.Random], Request], ...] = (_form, _form, _call, _call, _address)
    for _ in range(count):
        yield chance.choice(makers)(chance)


# --- Forms ---------------------------------------------------------------------------------------


def small_picture() -> bytes:
    """A PNG that is just large enough."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 120, 80)).save(file, "PNG")
    return file.getvalue()


def small_sound() -> bytes:
    """A WAV that is just long enough."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(range(256)) * 16)
    return file.getvalue()


_PICTURE, _SOUND = small_picture(), small_sound()
_NAMES = ("portrait", "speech", "prompt", "tier", "num_clip", "seed", "size", "title", "files", "x")
_TEXTS = (
    b"", b"fast", b"1", b"-1", b"1e9", b"9" * 30, b"NaN", b"\x00", b"\xff\xfe",
    "\u202e\u0000é".encode(), b"../../etc/passwd", b"<svg/onload=alert(1)>", b"a" * 17_000, b"{}",
    b"true", b"704x384",
)  # fmt: skip


def _form(chance: random.Random) -> Request:
    path = chance.choice(("/api/jobs", "/api/inspect", "/upload"))
    boundary = chance.choice((b"b", b"x" * 70, b"--", b"a b", b'"', b"\xc3\xa9"))
    parts = []
    if path == "/upload":
        parts = [_part(chance, "files", content) for content in (_PICTURE, _SOUND)]
    else:
        given = {"portrait": _PICTURE, "speech": _SOUND, "prompt": b"A woman", "tier": b"fast"}
        parts = [_part(chance, name, content) for name, content in given.items()]
    for _ in range(chance.randrange(3)):
        parts.append(_part(chance, chance.choice(_NAMES), chance.choice(_TEXTS)))
    if chance.random() < 0.2:
        parts *= chance.randrange(2, 12)
    chance.shuffle(parts)
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
    body = _damaged(chance, body + b"--" + boundary + b"--\r\n")
    kind = b"multipart/form-data; boundary=" + boundary
    if chance.random() < 0.1:
        kind = chance.choice((b"", b"text/html", b"multipart/form-data", kind * 9, b"\xff"))
    cut = chance.randrange(len(body) + 1) if chance.random() < 0.15 else None
    return Request("POST", path, {"content-type": kind}, body, cut=cut)


def _part(chance: random.Random, name: str, content: bytes) -> bytes:
    shown = name.encode() if chance.random() < 0.95 else chance.choice((b"", b"\xff", b"a" * 300))
    head = b'Content-Disposition: form-data; name="' + shown + b'"'
    if content in (_PICTURE, _SOUND) or chance.random() < 0.1:
        file_name = chance.choice((b"a.png", b"../../x.html", b"\x00", b"", b"a" * 500, b"\xff"))
        head += b'; filename="' + file_name + b'"'
    if chance.random() < 0.05:
        head += b"\r\n" + chance.choice(
            (b"X: " + b"y" * 9000, b": ", b"\x01", b"Content-Type: \xff")
        )
    if content in (_PICTURE, _SOUND) and chance.random() < 0.7:
        content = _damaged(chance, content)
    return head + b"\r\n\r\n" + content


def _damaged(chance: random.Random, data: bytes) -> bytes:
    """Some bytes changed, lost, doubled or cut off; often none."""
    changed = bytearray(data)
    for _ in range(chance.choice((0, 0, 1, 1, 3, 20))):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            changed[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del changed[at : at + chance.randrange(40)]
        elif kind == 2:
            changed[at:at] = changed[at : at + chance.randrange(200)]
        elif chance.random() < 0.3:
            del changed[at:]
    return bytes(changed)


# --- Calls of Gradio's functions -----------------------------------------------------------------


def _call(chance: random.Random) -> Request:
    path = chance.choice(
        ("/queue/join", "/run/predict", "/call/submit", "/call/status", "/call/cancel", "/login")
    )
    body: Any = {"data": [_value(chance, 4) for _ in range(chance.randrange(13))]}
    body |= {"fn_index": chance.choice((0, 3, 20, 21, 22, 23)), "session_hash": "fuzz"}
    if chance.random() < 0.5:
        name = chance.choice(
            ("data", "fn_index", "session_hash", "event_data", "trigger_id", "batched")
        )
        body[name] = _value(chance, 2)
    if chance.random() < 0.1:
        body = _value(chance, 5)
    text = json.dumps(body).encode()
    if chance.random() < 0.3:
        text = _damaged(chance, text)
    if chance.random() < 0.05:
        text = chance.choice(
            (b"[" * 60_000, b'{"data":' * 9000, b"\xff\xfe", b"", b"NaN", b"1" * 9000)
        )
    cut = chance.randrange(len(text) + 1) if chance.random() < 0.05 else None
    return Request("POST", path, {"content-type": b"application/json"}, text, cut=cut)


def _value(chance: random.Random, depth: int) -> Any:
    if depth and chance.random() < 0.4:
        if chance.random() < 0.5:
            return [_value(chance, depth - 1) for _ in range(chance.randrange(4))]
        keys = ("path", "url", "meta", "__type__", "orig_name", "is_stream", "", "\ud800")
        return {chance.choice(keys): _value(chance, depth - 1) for _ in range(3)}
    simple: tuple[Any, ...] = (
        None, True, 0, -1, 10**30, 1e308, float("nan"), "", "x" * 5000, "\ud800", "\x00",
        "/etc/passwd", "http://127.0.0.1:1/", '{"path": "/etc/passwd"}', "fast", "0" * 32,
    )  # fmt: skip
    return chance.choice(simple)


# --- Addresses and headers -----------------------------------------------------------------------


def _address(chance: random.Random) -> Request:
    junk = chance.choice(
        ("x", "0" * 32, "../..", "\x00", "é\u202e", "a" * 3000, "%2e%2e", "{}", "", "con")
    )
    path = chance.choice(
        (
            f"/api/jobs/{junk}", f"/live/{junk}.mp4", f"/media/{junk}.mp4",
            f"/thumbnails/{junk}.jpg", f"/posters/{junk}.jpg",
            f"/s/{junk}", f"/s/{junk}/job", f"/s/{junk}/video.mp4",
            f"/file={junk}", f"/static/{junk}", f"/static/js/{junk}", f"/assets/{junk}",
            f"/call/status/{junk}", f"/{junk}", "/queue/data",
            "/upload_progress", "/login", "/healthz", "/metrics", "/docs", "/", "/config",
        )
    )  # fmt: skip
    name = chance.choice(("from", "attempt", "download", "session_hash", "upload_id", "next", "x"))
    value = chance.choice(("-1", "1" * 40, "nan", "", "%00", "%ff", "//evil", "a" * 3000))
    headers: dict[str, bytes] = {}
    for _ in range(chance.randrange(3)):
        header = chance.choice(
            ("cookie", "range", "origin", "host", "authorization", "accept", "x-forwarded-for",
             "if-none-match", "if-modified-since", "sec-fetch-site")
        )  # fmt: skip
        headers[header] = chance.choice(
            (b"", b"\xff\xfe", b"[::1", b"[", b"localhost:x", b"bytes=-0", b"bytes=9-1,5-",
             b"Basic //", b"Basic " + b"A" * 4000, b"la_browser=" + b"\xff" * 40,
             b"la_session=a.b.c", b"=;=,\x01", b"http://[", b"a" * 5000,
             b"bytes=0-99999999999999999999")
        )  # fmt: skip
    method = chance.choice(
        ("GET", "GET", "GET", "HEAD", "POST", "DELETE", "PUT", "OPTIONS", "BREW")
    )
    return Request(method, path, headers, query=f"{name}={value}".encode())
