"""From a live file, finished or broken off, to the video a person downloads."""

import random
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from liveavatar.errors import MediaError
from liveavatar.media.live_file import complete_length, iter_fragments, measure_live_file
from liveavatar.media.remux import remux_to_progressive
from tests.unit.mp4_material import (
    decode_audio,
    decode_video,
    find,
    frame_numbers,
    parse,
    write,
)


def test_killed_writer_leaves_a_file_that_remuxes_to_its_whole_fragments(tmp_path: Path) -> None:
    live = tmp_path / "live.mp4"
    writer = write(live, [12] * 5)
    data = live.read_bytes()
    with live.open("rb") as file:
        start = len(writer.init_segment)
        ends = [(f.end, 12 if 1 in f.runs else 0) for f in iter_fragments(file, start)]
    cut_file, final = tmp_path / "cut.mp4", tmp_path / "final.mp4"
    chance = random.Random(3)
    edges = [0, 7, start - 1, start, ends[0][0] - 1, ends[0][0], ends[0][0] + 1, len(data)]
    for cut in edges + [chance.randrange(len(data)) for _ in range(60)]:
        cut_file.write_bytes(data[:cut])
        final.unlink(missing_ok=True)
        expected = sum(num_frames for end, num_frames in ends if end <= cut)
        whole = [0, *([start] if start <= cut else []), *(end for end, _ in ends if end <= cut)]
        assert complete_length(cut_file) == whole[-1]
        if expected:
            assert remux_to_progressive(cut_file, final) == expected
            assert frame_numbers(decode_video(final)) == [i % 24 for i in range(expected)]
            assert len(decode_audio(final)) <= expected * 1920 + 1024
        else:
            with pytest.raises(MediaError, match=r"init segment|at least one whole fragment"):
                remux_to_progressive(cut_file, final)
            assert not final.exists()


def test_files_that_are_no_live_video_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.mp4"
    for junk in (b"", b"RIFF....WAVE", bytes(4096), random.Random(1).randbytes(4096)):
        path.write_bytes(junk)
        assert complete_length(path) == 0
        with pytest.raises(MediaError, match="init segment"):
            remux_to_progressive(path, tmp_path / "final.mp4")
    with pytest.raises(MediaError, match="cannot read live video none"):
        complete_length(tmp_path / "none")
    with pytest.raises(MediaError, match="cannot read live video none"):
        measure_live_file(tmp_path / "none")


def test_damaged_boxes_end_in_a_media_error_only(tmp_path: Path) -> None:
    live, hurt = tmp_path / "live.mp4", tmp_path / "hurt.mp4"
    write(live, [6, 6])
    data = live.read_bytes()
    chance = random.Random(5)
    messages = []
    for _ in range(500):
        broken = bytearray(data)
        broken[chance.randrange(1800)] ^= 1 << chance.randrange(8)
        hurt.write_bytes(broken)
        try:  # any other exception fails the test
            remux_to_progressive(hurt, tmp_path / "final.mp4")
        except MediaError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)


def test_remux_puts_the_index_first_and_keeps_every_sample_byte(tmp_path: Path) -> None:
    live, final = tmp_path / "live.mp4", tmp_path / "final.mp4"
    write(live, [9, 12, 12, 5])
    assert remux_to_progressive(live, final) == 38
    boxes = parse(final.read_bytes())
    assert [kind for kind, _ in boxes] == ["ftyp", "moov", "mdat"]
    payloads = [payload for kind, payload in parse(live.read_bytes()) if kind == "mdat"]
    assert boxes[2][1] == b"".join(payloads)
    for which in (0, 1):
        path = "moov/trak/mdia/minf/stbl/stsd"
        assert find(final.read_bytes(), path, which) == find(live.read_bytes(), path, which)
    frames = decode_video(final)
    assert frame_numbers(frames) == [i % 24 for i in range(38)]
    keys = [i + 1 for i, frame in enumerate(frames) if frame.key_frame]
    table = find(final.read_bytes(), "moov/trak/mdia/minf/stbl/stss")
    assert list(struct.unpack(f">{len(keys)}I", table[8:])) == keys
    shorter = min(len(decode_audio(live)), len(decode_audio(final)))
    assert shorter >= 38 * 1920
    np.testing.assert_array_equal(decode_audio(live)[:shorter], decode_audio(final)[:shorter])


def test_seeking_in_the_remuxed_file_lands_on_the_right_frame(tmp_path: Path) -> None:
    write(tmp_path / "live.mp4", [12] * 6)
    remux_to_progressive(tmp_path / "live.mp4", tmp_path / "final.mp4")
    with av.open(str(tmp_path / "final.mp4")) as container:
        stream = container.streams.video[0]
        container.seek(round(2.0 / stream.time_base), stream=stream)
        frame = next(container.decode(stream))
    assert frame.time == 48 / 25
    assert frame_numbers([frame]) == [0]


def test_failed_remux_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    live, final = tmp_path / "live.mp4", tmp_path / "final.mp4"
    write(live, [12])
    final.mkdir()
    with pytest.raises(MediaError, match=r"cannot remux live\.mp4 to final\.mp4"):
        remux_to_progressive(live, final)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final.mp4", "live.mp4"]
    with pytest.raises(MediaError, match="No such file"):
        remux_to_progressive(live, tmp_path / "missing" / "final.mp4")
