"""The page on the application."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI, Response

from webui.service import Service


def mount_page(app: FastAPI, service: Service) -> FastAPI:
    """Mount the page at "/", behind all routes that the application has already."""
    folder = gradio_folder(service)
    # Both are read when Gradio is imported and when its components are made.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    import gradio as gr

    from webui.gradio_locks import lock_gradio
    from webui.page import build_page
    from webui.page_head import OwnHead

    lock_gradio(folder)
    page = build_page(service).queue(max_size=64)
    app.add_api_route("/heartbeat/{session}", _no_heartbeat, include_in_schema=False)
    app.add_middleware(OwnHead, static=app.state.static)
    mounted: FastAPI = gr.mount_gradio_app(app, page, path="/", show_error=False)
    return mounted


def _no_heartbeat(session: str) -> Response:  # noqa: ARG001
    """Hold no connection open for a tab: a browser has only six for all tabs of a server."""
    return Response(status_code=204)


def gradio_folder(service: Service) -> Path:
    """Where Gradio keeps uploads and what it serves; the guard knows it, too."""
    return (service.spool.root / "gradio").resolve()
