"""The three inputs together: prompt rules, how much speech the clips cover, all notes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from liveavatar.errors import MediaError, RequestError
from liveavatar.media.ingest import check_prompt, coverage_notes, ingest, prompt_notes
from liveavatar.media.notes import Note
from liveavatar.media.upload import shown_name
from tests.patience import PATIENCE_S
from tests.unit.picture_material import picture_bytes
from tests.unit.sound_material import sound_bytes

PROMPT = "A blacksmith with a red beard talks and laughs beside his forge, sparks behind him."


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    path = tmp_path / "portrait.png"
    path.write_bytes(picture_bytes("PNG"))
    return path


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    path = tmp_path / "speech.wav"
    path.write_bytes(sound_bytes("wav", "pcm_s16le"))
    return path


def test_a_good_prompt_comes_back_unchanged_and_without_notes() -> None:
    assert check_prompt(PROMPT) == PROMPT
    assert prompt_notes(PROMPT) == ()


def test_a_prompt_is_put_on_one_line() -> None:
    assert check_prompt("  A man\n\n\tspeaks \r\n softly. ") == "A man speaks softly."


@pytest.mark.parametrize(
    "prompt", ["一位老人在火炉旁微笑着说话。", "Eine Frau spricht über Köln. 👩‍🔧", "é" * 2000]
)
def test_prompts_of_any_language_are_accepted(prompt: str) -> None:
    assert check_prompt(prompt) == prompt


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "is empty"),
        (" \n\t ", "is empty"),
        (None, "expected text, got NoneType"),
        (b"bytes", "expected text, got bytes"),
        (7, "expected text, got int"),
        ("a" * 2001, "has 2001 characters"),
        ("nul\0byte", "U+0000"),
        ("bell\x07", "U+0007"),
        ("escape \x1b[31m", "U+001B"),
        ("half \ud800", "U+D800"),
        ("delete\x7f", "character 7 is a control character"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused_with_one_line(prompt: object, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_prompt(prompt)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("prompt")


def test_only_prompts_over_120_characters_get_a_note() -> None:
    assert prompt_notes("a" * 120) == ()
    (note,) = prompt_notes("a" * 121)
    assert (note.field, note.code) == ("prompt", "long_prompt")
    assert "121 characters" in note.message
    assert "60 to 90" in note.message


@pytest.mark.parametrize(
    ("duration_s", "num_clip", "infer_frames", "needed"),
    [
        (1.92, 1, 48, None),
        (1.9199999, 1, 48, None),
        (1.95, 1, 48, None),  # not one more whole frame
        (1.96, 1, 48, 2),
        (3.84, 2, 48, None),
        (60.0, 10, 32, 47),
        (19.0, 10, 48, None),
        (20.0, 10, 48, 11),
        (3600.0, 1, 48, 1875),
    ],
)
def test_speech_longer_than_the_clips_gets_a_note_with_the_number_needed(
    duration_s: float, num_clip: int, infer_frames: int, needed: int | None
) -> None:
    notes = coverage_notes(duration_s, num_clip, infer_frames)
    if needed is None:
        assert notes == ()
    else:
        (note,) = notes
        assert (note.field, note.code) == ("speech", "speech_cut")
        assert f"num_clip to {needed} " in note.message
        assert coverage_notes(duration_s, needed, infer_frames) == ()
        assert coverage_notes(duration_s, needed - 1, infer_frames) != ()


@pytest.mark.parametrize(
    ("num_clip", "infer_frames"), [(0, 48), (-1, 48), (1, 0), (1.5, 48), (True, 48)]
)
def test_a_count_that_is_no_positive_number_is_refused(num_clip: int, infer_frames: int) -> None:
    with pytest.raises(RequestError, match="expected a whole number"):
        coverage_notes(1.0, num_clip, infer_frames)


def test_all_inputs_and_all_notes_come_together(portrait: Path, speech: Path) -> None:
    inputs = ingest(portrait, str(speech), " " + "long " * 30, num_clip=1, infer_frames=24)
    assert inputs.portrait.rgb.shape == (120, 160, 3)
    assert inputs.speech.duration_s == 2.0
    assert inputs.prompt == ("long " * 30).strip()
    assert all(isinstance(note, Note) for note in inputs.notes)
    codes = [(note.field, note.code) for note in inputs.notes]
    assert codes[0] == ("prompt", "long_prompt")
    assert ("portrait", "small_portrait") in codes
    assert codes[-1] == ("speech", "speech_cut")


def test_every_note_is_one_sentence_for_a_person(portrait: Path, speech: Path) -> None:
    for note in ingest(portrait, speech, "x" * 200, num_clip=1, infer_frames=24).notes:
        assert note.message.isprintable()
        assert note.message.endswith(".")
        assert note.message[0].isupper()
        assert note.code.replace("_", "").isalpha()


def test_inputs_given_the_wrong_way_round_are_named(portrait: Path, speech: Path) -> None:
    with pytest.raises(MediaError, match=r"portrait 'speech\.wav' is a WAV sound"):
        ingest(speech, portrait, PROMPT, num_clip=1, infer_frames=48)
    with pytest.raises(MediaError, match=r"speech 'portrait\.png' is a PNG picture"):
        ingest(portrait, portrait, PROMPT, num_clip=1, infer_frames=48)


def test_the_prompt_is_checked_before_any_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="prompt"):
        ingest(tmp_path / "none", tmp_path / "none", "", num_clip=1, infer_frames=48)
    with pytest.raises(RequestError, match="num_clip"):
        ingest(tmp_path / "none", tmp_path / "none", PROMPT, num_clip=0, infer_frames=48)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/srv/a/b.png", "b.png"),
        ("b.png", "b.png"),
        ("/a/b/", "b"),
        ("/", "/"),
        ("x\ny\x1b[31m.png", "x?y?[31m.png"),
        (os.fsdecode(b"caf\xe9.png"), "caf?.png"),
        ("a" * 100 + ".flac", "a" * 44 + "..." + "a" * 8 + ".flac"),
    ],
)
def test_a_name_in_a_message_is_short_and_printable(path: str, shown: str) -> None:
    assert shown_name(path) == shown


def test_reading_inputs_never_loads_torch_or_opencv_at_import() -> None:
    code = (
        "import sys, liveavatar.media.ingest;"
        "print([name for name in ('torch', 'cv2') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert result.stdout.strip() == "[]"
