"""The container: what is written can be read again, by ours and by any other reader."""

import io
import struct
import threading
from pathlib import Path

from liveavatar.media.fmp4 import SampleRun, fragment
from liveavatar.media.live_file import complete_length, iter_fragments
from liveavatar.media.live_writer import LiveVideoWriter
from tests.unit.mp4_material import (
    QUICK,
    find,
    moving,
    parse,
    tone,
    write,
)


def test_file_begins_with_an_init_segment_that_says_all_a_player_needs() -> None:
    file = io.BytesIO()
    writer = LiveVideoWriter(file, width=64, height=48, settings=QUICK)
    head = file.getvalue()
    assert head == writer.init_segment
    assert [kind for kind, _ in parse(head)] == ["ftyp", "moov"]
    assert [kind for kind, _ in parse(find(head, "moov"))] == ["mvhd", "trak", "trak", "mvex"]
    video = find(head, "moov/trak/mdia/minf/stbl/stsd")[8:]
    (kind, entry), *rest = parse(video)
    assert (kind, rest) == ("avc1", [])
    assert struct.unpack_from(">2H", entry, 24) == (64, 48)
    inside = dict(parse(entry[78:]))
    assert inside["colr"] == b"nclx" + bytes([0, 1, 0, 1, 0, 1, 0])  # BT.709 thrice, limited range
    profile = inside["avcC"][1:4].hex()
    assert writer.codecs == f"avc1.{profile}, mp4a.40.2"
    sound = dict(parse(find(head, "moov/trak/mdia/minf/stbl/stsd", 1)[8:]))["mp4a"]
    assert struct.unpack_from(">H", sound, 16) == (1,)  # mono
    assert struct.unpack_from(">I", sound, 24) == (48_000 << 16,)
    assert find(head, "moov/trak/edts/elst", 1)[8:16] == struct.pack(">II", 0, 1024)
    writer.abort()


def test_every_append_adds_one_whole_fragment_and_nothing_else() -> None:
    file = io.BytesIO()
    writer = LiveVideoWriter(file, width=64, height=48, settings=QUICK)
    expected_times = {1: 0, 2: 0}
    for sequence, num_frames in enumerate([9, 12, 12, 1, 30], 1):
        before = len(file.getvalue())
        samples = tone(num_frames * 640, first=writer.num_samples)
        writer.append(moving(num_frames, first=writer.num_frames), samples)
        added = file.getvalue()[before:]
        (moof_kind, moof), (mdat_kind, payload) = parse(added)
        assert (moof_kind, mdat_kind) == ("moof", "mdat")
        assert struct.unpack_from(">I", find(moof, "mfhd"), 4) == (sequence,)
        offset = len(moof) + 16
        for kind, traf in parse(moof):
            if kind != "traf":
                continue
            (track,) = struct.unpack_from(">I", find(traf, "tfhd"), 4)
            (time,) = struct.unpack_from(">Q", find(traf, "tfdt"), 4)
            count, data_offset = struct.unpack_from(">2I", find(traf, "trun"), 4)
            rows = struct.unpack_from(f">{2 * count}I", find(traf, "trun"), 12)
            assert time == expected_times[track]
            assert data_offset == offset
            expected_times[track] += count * {1: 512, 2: 1024}[track]
            offset += sum(rows[::2])
            if track == 1:
                assert count == num_frames
        assert offset == len(added) == len(moof) + 16 + len(payload)
    writer.abort()


def test_decode_times_beyond_32_bits_are_kept() -> None:
    file = io.BytesIO()
    for hours in (13, 30):
        time = hours * 3600 * 48_000
        file.write(fragment(hours, {2: SampleRun(time, (3, 4), (True, True))}, b"abcdefg"))
    thirteen, thirty = iter_fragments(file, 0)
    assert thirteen.runs[2].decode_time == 2_246_400_000
    assert thirty.runs[2].decode_time == 5_184_000_000
    assert thirty.runs[2].sizes == (3, 4)


def test_reader_that_follows_the_file_only_ever_sees_whole_fragments(tmp_path: Path) -> None:
    live = tmp_path / "live.mp4"
    write(live, [12] * 12)
    data = live.read_bytes()
    ends = {0, len(parse(data)[0][1]) + len(parse(data)[1][1]) + 16}
    with live.open("rb") as file:
        ends |= {found.end for found in iter_fragments(file, max(ends))}
    grown = tmp_path / "grown.mp4"
    grown.touch()
    done = threading.Event()

    def drip() -> None:
        with grown.open("ab", buffering=0) as file:
            for at in range(0, len(data), 101):
                file.write(data[at : at + 101])
        done.set()

    thread = threading.Thread(target=drip)
    thread.start()
    seen = 0
    steps = set()
    while seen < len(data):
        was_done = done.is_set()
        seen = complete_length(grown, seen)
        steps.add(seen)
        assert not was_done or seen == len(data)
    thread.join()
    assert steps <= ends
