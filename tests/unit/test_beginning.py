"""What is told of the way to a video's first frame, and of which videos nothing is."""

from __future__ import annotations

from liveavatar.engine.beginning import Beginning


def test_the_parts_are_those_between_the_groups_reports() -> None:
    beginning = Beginning(10.0)
    beginning.note_handed_over(10.25)
    assert beginning.note_progress(0, "preparing", 10.3) == ""
    assert beginning.note_progress(0, "rendering", 10.75) == ""
    assert beginning.note_progress(0, "rendering", 12.0) == ""
    assert beginning.note_progress(4, "rendering", 12.5) == (
        "first frame 2.50 s after the claim: files read 0.25 s, inputs encoded 0.50 s, "
        "first block 1.25 s, decoded and written 0.50 s"
    )
    assert beginning.note_progress(8, "rendering", 13.0) == ""


def test_further_blocks_before_the_first_frame_belong_to_decoding() -> None:
    beginning = Beginning(0.0)
    beginning.note_handed_over(1.0)
    for now in (2.0, 3.0, 4.0, 5.0):  # a whole clip is made before it is decoded
        assert beginning.note_progress(0, "rendering", now) == ""
    told = beginning.note_progress(48, "rendering", 7.0)
    assert told.endswith("first block 1.00 s, decoded and written 4.00 s")


def test_a_video_that_goes_on_in_its_file_has_no_beginning() -> None:
    beginning = Beginning(0.0)
    beginning.note_handed_over(1.0)
    told = [beginning.note_progress(frames, "rendering", 2.0) for frames in (24, 24, 24, 36, 48)]
    assert told == [""] * 5
