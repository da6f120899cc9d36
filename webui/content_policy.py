"""What a page may load and run: the Content-Security-Policy of an answer."""

from __future__ import annotations

import base64
import hashlib
import re

INERT = "sandbox; default-src 'none'"
"""For bytes that came from users: nothing in them runs or loads."""

_INLINE = re.compile(r"<script\b(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)


def content_policy(document: str = "") -> str:
    """The policy of a page; `eval` and scripts of other sites are forbidden everywhere.

    Args:
        document: HTML whose own inline scripts may run: just these, known by their hashes. A
            script that somebody manages to put into the page later does not run.
    """
    scripts = "".join(f" '{_hash_of(text)}'" for text in _INLINE.findall(document))
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src 'self'{scripts}",
            "style-src 'self' 'unsafe-inline'",  # Gradio's components carry their style inline
            "img-src 'self' data: blob:",
            "media-src 'self' blob:",
            "font-src 'self' data:",
            "connect-src 'self' blob:",  # a recording is read from the browser's own memory
            "worker-src 'self' blob:",
            "frame-ancestors 'self'",
            "base-uri 'self'",
            "form-action 'self'",
            "object-src 'none'",
        )
    )


def _hash_of(script: str) -> str:
    # A browser turns all line ends into \n before it computes the hash.
    text = script.replace("\r\n", "\n").replace("\r", "\n")
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
