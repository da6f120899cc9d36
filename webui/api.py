"""The named endpoints that `gradio_client` calls: /submit, /status, /cancel, /result.

    client = Client("http://127.0.0.1:7860")
    job = client.predict(file("maya.png"), file("maya.wav"), "A woman talks ...", "fast",
                         api_name="/submit")
    client.predict(job, api_name="/status")["frames"]
    video = client.predict(job, api_name="/result")

Each does what the HTTP route of the same purpose does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from liveavatar.errors import LiveAvatarError
from webui.routes import BROWSER_COOKIE, owner_digest
from webui.service import Service
from webui.submission import Submission

_CALLS_AT_ONCE = 8


class Endpoints:
    """The functions behind the endpoints.

    Args:
        service: what does the work.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def submit(  # noqa: PLR0913 - one parameter for each input, as Gradio calls it
        self,
        portrait: str | None,
        speech: str | None,
        prompt: str,
        tier: str,
        num_clip: float | None,
        infer_frames: float | None,
        sample_steps: float | None,
        seed: float | None,
        online_decode: bool | None,
        title: str,
        idempotency_key: str,
        request: gr.Request,
    ) -> str:
        """Queue a video; returns its job id at once."""
        form = Submission(
            portrait=Path(portrait) if portrait else None,
            speech=Path(speech) if speech else None,
            prompt=prompt or "",
            tier=tier or "",
            num_clip=_whole(num_clip),
            infer_frames=_whole(infer_frames),
            sample_steps=_whole(sample_steps),
            seed=_whole(seed),
            online_decode=online_decode,
            title=title or "",
            idempotency_key=idempotency_key or "",
        )
        try:
            return self._service.submit(form, caller(request)).id
        except LiveAvatarError as error:
            raise gr.Error(str(error)) from None

    def status(self, job_id: str) -> dict[str, Any]:
        """How far a job is: the fields of `GET /api/jobs/{id}`."""
        try:
            return self._service.job_view(self._service.job(job_id)).model_dump()
        except LiveAvatarError as error:
            raise gr.Error(str(error)) from None

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; returns what `status` would."""
        try:
            return self._service.job_view(self._service.cancel(job_id)).model_dump()
        except LiveAvatarError as error:
            raise gr.Error(str(error)) from None

    def result(self, job_id: str) -> str:
        """The finished video; an error says how far a job is that has none."""
        try:
            job = self._service.job(job_id)
            video = self._service.video(job)
        except LiveAvatarError as error:
            raise gr.Error(str(error)) from None
        if not video.exists():
            raise gr.Error(
                f"the job is {job.state.value}: {job.frames} of {job.spec.total_frames} frames"
                + (f"; {job.error}" if job.error else "")
            )
        return str(video)


def caller(request: gr.Request) -> str:
    """Whose call this is: the browser's, or else that of the user or machine that sends it."""
    cookie = request.cookies.get(BROWSER_COOKIE) if request.cookies else None
    sender = request.username or (request.client.host if request.client else "unknown")
    return owner_digest(cookie or f"client {sender}")


def add_endpoints(service: Service) -> None:
    """Add the endpoints, without anything visible, to the Blocks that is being built."""
    endpoints = Endpoints(service)
    with gr.Row(visible=False):
        inputs = [
            gr.File(label="portrait"),
            gr.File(label="speech"),
            gr.Textbox(label="prompt"),
            gr.Textbox(label="tier"),
            gr.Number(label="num_clip", value=None, precision=0),
            gr.Number(label="infer_frames", value=None, precision=0),
            gr.Number(label="sample_steps", value=None, precision=0),
            gr.Number(label="seed", value=None, precision=0),
            gr.Checkbox(label="online_decode", value=None),
            gr.Textbox(label="title", value=""),
            gr.Textbox(label="idempotency_key", value=""),
        ]
        job_id = gr.Textbox(label="job_id")
        view, video = gr.JSON(label="job"), gr.File(label="video")
        trigger = gr.Button()
    options = {"concurrency_limit": _CALLS_AT_ONCE, "show_progress": "hidden"}
    trigger.click(endpoints.submit, inputs, job_id, api_name="submit", **options)
    trigger.click(endpoints.status, job_id, view, api_name="status", **options)
    trigger.click(endpoints.cancel, job_id, view, api_name="cancel", **options)
    trigger.click(endpoints.result, job_id, video, api_name="result", **options)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
