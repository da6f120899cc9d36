"""The page on the application."""

from __future__ import annotations

import os

from fastapi import FastAPI

from webui.service import Service


def mount_page(app: FastAPI, service: Service) -> FastAPI:
    """Mount the page at "/", behind all routes that the application has already."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    import gradio as gr

    from webui.page import build_page

    mounted: FastAPI = gr.mount_gradio_app(app, build_page(service), path="/")
    return mounted
