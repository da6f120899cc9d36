"""The visible page: layout and event wiring only.

Gradio gives the input fields. Everything that moves, the player, the state of the job, the
history, is plain markup of `templates/` that the modules in `static/js` fill; they follow jobs by
themselves, so every handler here returns at once. What a handler has to tell the modules it writes
into a hidden `answer`, which they watch: Gradio's own way to call a script would need `eval`, which
the content policy forbids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from webui.api import add_endpoints
from webui.page_handlers import EXAMPLES, PageHandlers, read_original_files
from webui.service import Service
from webui.tier_texts import LANGUAGES

_TEMPLATES = Path(__file__).parent / "templates"
_FONTS = ("system-ui", "sans-serif")  # the style sheet has the whole list
# A call is one request and its answer, past Gradio's queue. A queued one is answered over an event
# stream that all calls of a tab share, and Gradio 4.25 loses the answer to a call that joins while
# the stream closes: a click on Generate came to nothing.
_ONCE: dict[str, Any] = {
    "api_name": False,
    "show_progress": "hidden",
    "queue": False,
    "trigger_mode": "multiple",
}


def build_page(service: Service) -> gr.Blocks:
    """Build the page on the functions of the service."""
    read_original_files()
    theme = gr.themes.Base(font=list(_FONTS), font_mono=["ui-monospace", "monospace"])
    with gr.Blocks(title="LiveAvatar", theme=theme, analytics_enabled=False) as page:
        _template("header")
        with gr.Row(elem_id="la-work"):
            with gr.Column(elem_id="la-form"):
                _build_form(page, PageHandlers(service))
            with gr.Column(elem_id="la-view"):
                _template("stage")
                _template("panels")
        add_endpoints(service)
    return page


def _build_form(page: gr.Blocks, handlers: PageHandlers) -> None:
    _markup('<p class="la-label" data-text="examples">Start from an example</p>')
    with gr.Row(elem_id="la-examples"):
        examples = [gr.Button(name, elem_id=f"la-example-{name}") for name in EXAMPLES]
    with _field("portrait"):
        portrait = gr.Image(
            label="Portrait", type="filepath", sources=["upload"], elem_id="la-portrait", height=180
        )
    with _field("speech"):
        speech = gr.Audio(
            label="Speech", type="filepath", sources=["upload", "microphone"], elem_id="la-speech"
        )
    with _field("prompt"):
        prompt = gr.Textbox(label="Scene", lines=2, max_lines=6, elem_id="la-prompt")
        _markup('<p class="la-count" id="la-count" role="status"></p>')
    with _field("tier"):
        tiers = handlers.tier_choices(LANGUAGES[0])
        tier = gr.Dropdown(
            label="Quality", choices=tiers, value=tiers[0][1], elem_id="la-tier", filterable=False
        )
        _markup('<div class="la-cost" id="la-cost"></div>')
    with gr.Group(elem_id="la-advanced", elem_classes="la-field"):
        # Not an Accordion: that one closes at every answer of a handler.
        _template("fold")
        texts, online = _build_advanced(online_decode=handlers.choose(tiers[0][1])[1])
    with _field("form"), gr.Row(elem_id="la-buttons"):
        generate = gr.Button("Generate", variant="primary", elem_id="la-generate")
        gr.Button("Cancel", elem_id="la-cancel")
    key = gr.Textbox(elem_id="la-key", elem_classes="la-hidden", show_label=False)
    fields = [portrait, speech, prompt, tier, *texts[:4], online, *texts[4:]]
    generate.click(handlers.submit, [*fields, key], _answer("submitted"), **_ONCE)
    chosen = [_answer("chosen"), online]
    for tell in (page.load, tier.change):  # the modules take the first call for: Gradio listens
        tell(handlers.choose, tier, chosen, **_ONCE)
    changes = [portrait.change, speech.change, tier.change, online.input]
    inspected = _answer("inspected")
    for tell in (*changes, *(text.blur for text in texts)):
        tell(handlers.inspect, fields, inspected, **_ONCE)
    filled = [portrait, speech, prompt, _answer("filled")]
    for example, name in zip(examples, EXAMPLES, strict=True):
        example.click(handlers.example(name), None, filled, **_ONCE)
    for language in LANGUAGES:  # pressed by the modules
        gr.Button(elem_id=f"la-tell-{language}", elem_classes="la-hidden").click(
            handlers.tiers(language), None, tier, **_ONCE
        )


def _build_advanced(*, online_decode: bool) -> tuple[list[gr.Textbox], gr.Checkbox]:
    """Fields whose emptiness means: as the tier has it; and when to decode."""
    with gr.Column(elem_id="la-advanced-fields"):
        clips = gr.Textbox(label="Clips", elem_id="la-num_clip", max_lines=1)
        frames = gr.Textbox(label="Frames per clip", elem_id="la-infer_frames", max_lines=1)
        steps = gr.Textbox(label="Denoise steps", elem_id="la-sample_steps", max_lines=1)
        seed = gr.Textbox(label="Seed", elem_id="la-seed", max_lines=1)
        size = gr.Textbox(label="Size", elem_id="la-size", max_lines=1)
        online = gr.Checkbox(
            online_decode, label="Decode while generating", elem_id="la-online_decode"
        )
        _notes("advanced")
    return [clips, frames, steps, seed, size], online


def _template(name: str) -> None:
    gr.HTML((_TEMPLATES / f"{name}.html").read_text(encoding="utf-8"), elem_classes="la-plain")


def _markup(text: str) -> None:
    gr.HTML(text, elem_classes="la-plain")


@contextmanager
def _field(name: str) -> Iterator[None]:
    """A card with fields and, below them, room for what is to be said about them."""
    with gr.Group(elem_classes=f"la-field la-field-{name}"):
        yield
        _notes(name)


def _notes(name: str) -> None:
    _markup(f'<ul class="la-notes" data-field="{name}" aria-live="polite"></ul>')


def _answer(name: str) -> gr.HTML:
    """Where a handler writes what the modules are to know."""
    return gr.HTML(elem_id=f"la-{name}", elem_classes="la-hidden")
