"""Gradio 4.25.0 as it comes, with the kinds of functions people write: what the attacks work on.

    python -m tests.security.plain_gradio PORT

A process of its own, so that nothing our application locks in Gradio's classes is locked here.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI


def _build() -> gr.Blocks:
    with gr.Blocks(analytics_enabled=False) as blocks:
        text, answer = gr.Textbox(), gr.JSON()
        choice = gr.Dropdown(["small", "large"])
        gr.Button().click(lambda given: given, text, answer, api_name="echo")
        gr.Button().click(json.loads, text, answer, api_name="parse")
        gr.Button().click(lambda given: {"got": given}, choice, answer, api_name="choose")
        gr.Button().click(lambda: {"got": "for operators"}, None, answer, api_name=False)
        gr.Button().click(lambda: time.sleep(0.5), None, None, api_name="wait")
    return blocks.queue()


def main() -> None:
    app = FastAPI()
    with gr.Blocks(analytics_enabled=False) as locked:
        gr.Textbox()
    gr.mount_gradio_app(app, locked, path="/locked", auth=("ann", "secret"))
    gr.mount_gradio_app(app, _build(), path="/")
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical")


if __name__ == "__main__":
    main()
