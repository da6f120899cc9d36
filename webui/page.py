"""The visible page: layout and event wiring only."""

from __future__ import annotations

import gradio as gr

from webui.api import add_endpoints
from webui.service import Service


def build_page(service: Service) -> gr.Blocks:
    """Build the page."""
    with gr.Blocks(title="LiveAvatar", analytics_enabled=False) as page:
        gr.Markdown(f"LiveAvatar {service.config_view().version}")
        add_endpoints(service)
    return page
