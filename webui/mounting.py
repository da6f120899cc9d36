"""The page on the application."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI
from starlette.routing import Mount

from webui.client_pace import heartbeat
from webui.gradio_gate import GradioGate
from webui.gradio_uploads import upload_route
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
    from webui.page_handlers import EXAMPLE_FOLDER
    from webui.page_head import OwnHead

    lock_gradio(folder, (service.spool.root / "jobs", EXAMPLE_FOLDER))
    page = build_page(service).queue(max_size=64)
    app.add_api_route("/heartbeat/{session}", heartbeat, include_in_schema=False)
    app.include_router(upload_route(folder, service.settings.limits))
    app.add_middleware(OwnHead, static=app.state.static)
    mounted: FastAPI = gr.mount_gradio_app(app, page, path="/", show_error=False)
    mount = mounted.routes[-1]
    assert isinstance(mount, Mount)
    mount.app = GradioGate(mount.app, folder, page)
    return mounted


def gradio_folder(service: Service) -> Path:
    """Where Gradio keeps uploads and what it serves; the guard knows it, too."""
    return (service.spool.root / "gradio").resolve()
