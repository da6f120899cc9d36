"""Static files whose addresses carry a hash of their content, so that no browser shows old ones."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_FOREVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


@lru_cache(maxsize=512)
def _hash_of(path: Path, _modified_ns: int, _size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def content_hash(path: Path) -> str:
    """Hash of a file's content; read again only when the file changed."""
    status = path.stat()
    return _hash_of(path, status.st_mtime_ns, status.st_size)


def static_url(static: Path, name: str) -> str:
    """Address of a file with its hash, such as "/static/js/player.js?v=0123456789ab".

    Args:
        static: the folder with `css`, `js` and `images`.
        name: path in it, such as "js/player.js".
    """
    return f"/static/{name}?v={content_hash(static / name)}"


class HashedFiles(StaticFiles):
    """A folder of static files; kept for long only under their present hash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        super().__init__(directory=folder)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Serve a file, and say how long it may be kept."""
        response = await super().get_response(path, scope)
        if response.status_code in (200, 304):
            asked = scope["query_string"].decode("latin-1")
            current = f"v={content_hash(self._folder / path)}"
            response.headers["Cache-Control"] = _FOREVER if asked == current else _ASK_AGAIN
        return response
