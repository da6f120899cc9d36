"""The page to log in with; it needs nothing that lies behind the login."""

from __future__ import annotations

import html
from pathlib import Path
from string import Template

_TEMPLATE = Path(__file__).resolve().parent / "templates" / "login.html"
_TEXTS = {
    "en": {
        "name": "Name",
        "password": "Password",
        "log_in": "Log in",
        "wrong": "The name or the password is wrong.",
    },
    "zh": {
        "name": "用户名",
        "password": "密码",
        "log_in": "登录",
        "wrong": "用户名或密码不正确。",
    },
}


def login_page(target: str, accepted_languages: str, *, is_wrong: bool = False) -> str:
    """The page as HTML.

    Args:
        target: path on this server to go to afterwards.
        accepted_languages: what the browser sends as Accept-Language.
        is_wrong: whether name and password were refused just now.
    """
    language = "zh" if accepted_languages.lower().startswith("zh") else "en"
    texts = _TEXTS[language]
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        texts,
        language=language,
        message=texts["wrong"] if is_wrong else "",
        target=html.escape(target),
    )
