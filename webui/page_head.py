"""The head of Gradio's page made our own: our style and modules at once, and nothing foreign.

Gradio puts what it is given into the head only after it has started, and asks two other sites for
fonts and a script. So its document is changed on the way out.
"""

from __future__ import annotations

import json
import re
import secrets
from http.cookies import SimpleCookie
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webui.content_policy import content_policy
from webui.routes import BROWSER_COOKIE, set_browser_cookie
from webui.static_files import static_url

STYLES = ("tokens", "layout", "gradio", "stage", "panels", "share")

_FOREIGN = re.compile(
    r'<link rel="preconnect"[^>]*>|<link\s[^>]*fonts\.g[^>]*>'
    r"|<script\s[^>]*cdnjs\.cloudflare\.com[^>]*>\s*</script>"
    r'|<meta (?:property|name)="(?:og|twitter):[^>]*>',
    re.DOTALL,
)
_FONT_SHEETS = re.compile(r'"stylesheets":\s*\[[^\]]*\]')


def head(static: Path, module: str, root: str) -> str:
    """Markup for a document's head.

    Args:
        static: the folder with `css`, `js` and `images`.
        module: name of the module that drives the page.
        root: relative address of the application's root, "./" or "../".
    """
    names = sorted(path.name for path in (static / "js").glob("*.js"))
    # Modules name each other plainly; the map turns each name into its address with a hash.
    imports = {f"{root}static/js/{name}": _url(static, f"js/{name}", root) for name in names}
    # An address in a property counts from the sheet that uses it, in static/css.
    drawings = "".join(
        f"--la-image-{path.stem}:url({_url(static, f'images/{path.name}', '../../')});"
        for path in sorted((static / "images").iterdir())
    )
    lines = [
        f"<style>:root{{{drawings}}}</style>",
        f'<script type="importmap">{json.dumps({"imports": imports})}</script>',
        f'<link rel="icon" type="image/svg+xml" href="{_url(static, "images/icon.svg", root)}">',
        *(
            f'<link rel="stylesheet" href="{_url(static, f"css/{name}.css", root)}">'
            for name in STYLES
        ),
        f'<script type="module" src="{_url(static, f"js/{module}.js", root)}"></script>',
    ]
    return "\n".join(lines)


def _url(static: Path, name: str, root: str) -> str:
    return root + static_url(static, name).removeprefix("/")


class OwnHead:
    """ASGI: changes the document at "/" and lets a new browser have its cookie.

    Args:
        app: the application with Gradio's page at "/".
        static: the folder with `css`, `js` and `images`.
    """

    def __init__(self, app: ASGIApp, static: Path) -> None:
        self._app = app
        self._static = static

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; hold back the document until it is whole."""
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()

        async def take(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body.extend(message.get("body", b""))
            if not message.get("more_body", False):
                await self._send(scope, start, bytes(body), send)

        await self._app(scope, receive, take)

    async def _send(self, scope: Scope, start: Message, body: bytes, send: Send) -> None:
        headers = MutableHeaders(raw=list(start["headers"]))
        if headers.get("content-type", "").startswith("text/html"):
            body = self._changed(body.decode("utf-8")).encode("utf-8")
            headers["content-length"] = str(len(body))
            headers["cache-control"] = "no-store"
            headers["content-security-policy"] = content_policy(body.decode("utf-8"))
            if BROWSER_COOKIE not in _cookies(scope):
                _add_cookie(headers, secure=scope.get("scheme") == "https")
        await send({**start, "headers": headers.raw})
        await send({"type": "http.response.body", "body": body})

    def _changed(self, document: str) -> str:
        document = _FONT_SHEETS.sub('"stylesheets": []', _FOREIGN.sub("", document))
        # In front of Gradio's own modules: a map counts only before the first module is loaded.
        return document.replace(
            '<meta charset="utf-8" />', f'<meta charset="utf-8" />\n{self._head()}', 1
        )

    def _head(self) -> str:
        return f"<title>LiveAvatar</title>\n{head(self._static, 'page', './')}"


def _cookies(scope: Scope) -> SimpleCookie:
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie"]
    return SimpleCookie("; ".join(values))


def _add_cookie(headers: MutableHeaders, *, secure: bool) -> None:
    answer = Response()
    set_browser_cookie(answer, secrets.token_urlsafe(32), secure=secure)
    headers.append("set-cookie", answer.headers["set-cookie"])
