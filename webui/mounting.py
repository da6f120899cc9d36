"""The page on the application."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI

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

    lock_gradio(folder)
    page = build_page(service).queue(max_size=64)
    mounted: FastAPI = gr.mount_gradio_app(app, page, path="/", show_error=False)
    return mounted


def gradio_folder(service: Service) -> Path:
    """Where Gradio keeps uploads and what it serves; the guard knows it, too."""
    return (service.spool.root / "gradio").resolve()
