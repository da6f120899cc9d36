"""Logging in: one gate in front of every route, for browsers by a page, for programs by Basic."""

from __future__ import annotations

from fastapi import Request


def is_admin(request: Request) -> bool:
    """Whether the reader is the operator: logged in, where logging in is asked for."""
    return bool(request.scope.get("liveavatar.user"))
