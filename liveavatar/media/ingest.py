"""The three inputs of a video, read and checked together.

Errors stop the work and are raised; everything a user could do better comes back as notes.
"""

from __future__ import annotations

import math
import os
import unicodedata
from dataclasses import dataclass

from liveavatar.errors import RequestError
from liveavatar.media.notes import Note
from liveavatar.media.portrait import Portrait, load_portrait
from liveavatar.media.speech import Speech, load_speech

MAX_PROMPT_CHARACTERS = 2000
LONG_PROMPT_CHARACTERS = 120


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a video is made from.

    Attributes:
        portrait: the decoded portrait.
        speech: the decoded speech.
        prompt: the sentence about the scene, on one line, without outer spaces.
        notes: all findings: on the prompt, the portrait, the speech and its length.
    """

    portrait: Portrait
    speech: Speech
    prompt: str
    notes: tuple[Note, ...]


def check_prompt(prompt: object) -> str:
    """Return a prompt on one line, without outer spaces; line breaks and tabs become spaces.

    Raises:
        RequestError: not text, empty, too long, or with characters that are no text.
    """
    if not isinstance(prompt, str):
        raise RequestError(f"prompt: expected text, got {type(prompt).__name__}")
    # Measured before anything else, so that a huge text costs nothing.
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise RequestError(
            f"prompt: has {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are accepted, "
            "and 60 to 90 work best"
        )
    text = " ".join(prompt.split())
    if not text:
        raise RequestError(
            "prompt: it is empty; describe the person, the action and the surroundings"
        )
    for position, char in enumerate(text):
        # Cc are control characters, Cs halves of characters, which no tokenizer can encode.
        if unicodedata.category(char) in ("Cc", "Cs"):
            raise RequestError(
                f"prompt: character {position + 1} is a control character (U+{ord(char):04X}); "
                "remove it"
            )
    return text


def prompt_notes(prompt: str) -> tuple[Note, ...]:
    """Findings about a checked prompt: the code "long_prompt"."""
    if len(prompt) <= LONG_PROMPT_CHARACTERS:
        return ()
    message = (
        f"The prompt has {len(prompt)} characters; best are 60 to 90: "
        "the person, the action and the surroundings."
    )
    return (Note("prompt", "long_prompt", message),)


def coverage_notes(
    duration_s: float, num_clip: int, infer_frames: int, fps: int = 25
) -> tuple[Note, ...]:
    """Say whether the clips asked for are fewer than the speech needs: the code "speech_cut".

    Args:
        duration_s: length of the speech, seconds.
        num_clip: clips asked for.
        infer_frames: frames per clip.
        fps: frames per second of the video.

    Raises:
        RequestError: a count is not a whole number of at least 1.
    """
    for name, value in (("num_clip", num_clip), ("infer_frames", infer_frames), ("fps", fps)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RequestError(f"{name}: expected a whole number of at least 1, got {value!r}")
    # A frame needs its whole time of speech; the small sum absorbs rounding such as 1.9199999 s.
    frames = math.floor(duration_s * fps + 1e-6)
    needed = math.ceil(frames / infer_frames)
    if needed <= num_clip:
        return ()
    message = (
        f"The speech lasts {duration_s:.1f} s but num_clip {num_clip} covers only "
        f"{num_clip * infer_frames / fps:.1f} s; set num_clip to {needed} to hear all of it."
    )
    return (Note("speech", "speech_cut", message),)


def ingest(
    portrait_path: str | os.PathLike[str],
    speech_path: str | os.PathLike[str],
    prompt: object,
    *,
    num_clip: int,
    infer_frames: int,
) -> Inputs:
    """Read and check the three inputs of a video, the cheapest check first.

    Args:
        portrait_path: picture file, see `load_portrait`.
        speech_path: sound or video file, see `load_speech`.
        prompt: sentence about the scene.
        num_clip: clips asked for.
        infer_frames: frames per clip.

    Raises:
        MediaError: a file cannot be used.
        RequestError: the prompt or a count cannot be used.
    """
    text = check_prompt(prompt)
    coverage_notes(0.0, num_clip, infer_frames)
    portrait = load_portrait(portrait_path)
    speech = load_speech(speech_path)
    notes = (*prompt_notes(text), *portrait.notes, *speech.notes)
    coverage = coverage_notes(speech.duration_s, num_clip, infer_frames)
    return Inputs(portrait, speech, text, (*notes, *coverage))
