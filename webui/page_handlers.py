"""What happens at a click: each handler calls one function of the service and returns at once."""

from __future__ import annotations

import hashlib
import html
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import BaseModel

from liveavatar.errors import LiveAvatarError
from webui.api import caller
from webui.offers import CUSTOM
from webui.schemas import ErrorsAnswer, InspectView, describe
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

    def submit(self, request: gr.Request, *fields_and_key: Any) -> str:
        """Queue a job; answers with the job, or with everything that is wrong.

        A form that comes twice under one key, by a double click or because the first answer was
        lost, makes one job.

        Args:
            request: of the browser.
            fields_and_key: values of the form in the order of `_form`, then the key, "" for none.
        """
        *fields, key = fields_and_key
        form = _form(*fields)
        if missing := form.missing():
            return _answer(ErrorsAnswer(errors=[describe(error) for error in missing]))
        if key:
            form = replace(form, idempotency_key=_digest(form, key))
        try:
            job = self._service.submit(form, caller(request))
        except LiveAvatarError as error:
            return _answer(ErrorsAnswer(errors=[describe(error)]))
        return _answer(self._service.job_view(job))

    def inspect(self, *fields: Any) -> str:
        """Answer with what is to be said about the inputs so far, in the order of `_form`.

        Inspections run side by side: the page takes no answer to an earlier question than the one
        it had.
        """
        asked_at = time.time()
        form = _form(*fields)
        try:
            view = self._service.inspect(form)
        except LiveAvatarError as error:
            view = InspectView(notes=[], errors=[describe(error)])
        return _answer(view, tier=form.tier, asked_at=asked_at)

    def choose(self, tier: str) -> tuple[str, bool]:
        """Answer with the tier, and when it decodes as long as nobody says otherwise."""
        defaults = {known.name: known.sampling for known in self._service.settings.tiers}
        sampling = defaults.get(tier) or next(iter(defaults.values()))
        return _answer(TierName(tier=tier)), sampling.online_decode

    def example(self, name: str) -> Callable[[], tuple[str, str, str, str]]:
        """A handler that fills portrait, speech and prompt, and answers with the example's name."""
        chosen = EXAMPLES[name]
        portrait, speech = (str(EXAMPLE_FOLDER / chosen[key]) for key in ("portrait", "speech"))
        return lambda: (portrait, speech, chosen["prompt"], _answer(ExampleName(example=name)))

    def tiers(self, language: str) -> Callable[[], Any]:
        """A handler that says the tiers in a language, with what was measured lately."""
        return lambda: gr.Dropdown(choices=self.tier_choices(language))

    def tier_choices(self, language: str) -> list[tuple[str, str]]:
        """Labels and values of the tiers."""
        offered = self._service.config_view()
        return tier_choices(offered.tiers, language, custom=offered.features["custom_tier"])


class ExampleName(BaseModel):
    """Which example the fields hold now."""

    example: str


class TierName(BaseModel):
    """Which tier was chosen."""

    tier: str


def _form(  # noqa: PLR0913  one parameter for every field of the form
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
) -> Submission:
    """What the fields of the page say together, as `page.py` lists them."""
    return Submission(
        portrait=_path(portrait),
        speech=_path(speech),
        prompt=prompt or "",
        tier=tier or "",
        num_clip=num_clip,
        infer_frames=infer_frames,
        sample_steps=sample_steps,
        seed=seed,
        online_decode=online_decode,
        size=_size_of(tier, size),
    )


def _digest(form: Submission, key: str) -> str:
    """A key of this form, so that what was changed before it was sent again is another video."""
    return hashlib.sha256(f"{key} {form}".encode()).hexdigest()


def _answer(view: BaseModel, **more: str | float) -> str:
    """A view in markup; never twice the same, so that the page notices each."""
    text = json.dumps({**view.model_dump(), **more})
    return f'<data value="{html.escape(text)}" data-serial="{secrets.token_hex(4)}"></data>'


def _size_of(tier: str, size: str) -> str:
    """What was typed as a size; the field is in sight only with the tier that it belongs to."""
    return size or "" if tier == CUSTOM else ""


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None
