"""What happens at a click: each handler calls one function of the service and returns at once."""

from __future__ import annotations

import html
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import BaseModel

from liveavatar.errors import LiveAvatarError
from webui.api import caller
from webui.schemas import ErrorAnswer, InspectView, describe
from webui.service import Service
from webui.submission import Submission
from webui.tier_texts import tier_choices

EXAMPLE_FOLDER = Path(__file__).resolve().parents[1] / "examples"
EXAMPLES: dict[str, dict[str, str]] = {
    example["name"]: example
    for example in json.loads((EXAMPLE_FOLDER / "examples.json").read_text(encoding="utf-8"))
}


def read_original_files() -> None:
    """Let Gradio hand over pictures and sounds as they were uploaded.

    By itself it encodes them anew: JPEG at quality 75, sound as 16 bit. The classes are changed,
    not derived from: Gradio writes a file beside every module that derives a component.
    """
    gr.Image.preprocess = _path_of
    gr.Audio.preprocess = _path_of


def _path_of(_self: object, payload: Any) -> str | None:
    return None if payload is None else payload.path


class PageHandlers:
    """The handlers of one page. An answer is JSON, in markup that the modules of the page read."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def submit(  # noqa: PLR0913  one parameter for every field of the form
        self,
        request: gr.Request,
        portrait: str | None,
        speech: str | None,
        prompt: str,
        tier: str,
        num_clip: str,
        infer_frames: str,
        sample_steps: str,
        seed: str,
        online_decode: bool,
        size: str,
    ) -> str:
        """Queue a job; answers with the job, or with the refusal."""
        form = Submission(
            portrait=_path(portrait),
            speech=_path(speech),
            prompt=prompt or "",
            tier=tier or "",
            num_clip=num_clip,
            infer_frames=infer_frames,
            sample_steps=sample_steps,
            seed=seed,
            online_decode=online_decode,
            size=size or "",
        )
        try:
            job = self._service.submit(form, caller(request))
        except LiveAvatarError as error:
            return _answer(ErrorAnswer(error=describe(error)))
        return _answer(self._service.job_view(job))

    def inspect(
        self,
        portrait: str | None,
        speech: str | None,
        prompt: str,
        tier: str,
        num_clip: str,
        infer_frames: str,
    ) -> str:
        """Answer with what is to be said about the inputs so far."""
        form = Submission(
            portrait=_path(portrait),
            speech=_path(speech),
            prompt=prompt or "",
            tier=tier or "",
            num_clip=num_clip,
            infer_frames=infer_frames,
        )
        try:
            return _answer(self._service.inspect(form), tier=tier)
        except LiveAvatarError as error:
            return _answer(InspectView(notes=[], errors=[describe(error)]), tier=tier)

    def example(self, name: str) -> Callable[[], tuple[str, str, str]]:
        """A handler that fills portrait, speech and prompt."""
        chosen = EXAMPLES[name]
        filled = (
            str(EXAMPLE_FOLDER / chosen["portrait"]),
            str(EXAMPLE_FOLDER / chosen["speech"]),
            chosen["prompt"],
        )
        return lambda: filled

    def tiers(self, language: str) -> Callable[[], Any]:
        """A handler that says the tiers in a language, with what was measured lately."""
        offered = self._service.config_view
        return lambda: gr.Dropdown(choices=tier_choices(offered().tiers, language))


def _answer(view: BaseModel, **more: str) -> str:
    """A view in markup; never twice the same, so that the page notices each."""
    text = json.dumps({**view.model_dump(), **more})
    return f'<data value="{html.escape(text)}" data-serial="{secrets.token_hex(4)}"></data>'


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None
