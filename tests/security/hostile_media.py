"""Files that name other files or addresses, or claim more than they hold, made by code."""

from __future__ import annotations

import struct


def naming(address: str, neighbour: str) -> dict[str, bytes]:
    """Files by name that lead FFmpeg to an address, or to a file beside them."""
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    key = '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{}"\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n'
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        '<AdaptationSet mimeType="audio/mp4"><Representation id="1"><BaseURL>{}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 50124 RTP/AVP 0\n"
    texts = {
        "address.m3u8": hls.format(f"{address}/segment.ts"),
        "address.wav": hls.format(f"{address}/segment.ts"),
        "address.mp4": hls.format(f"{address}/segment.ts"),
        "key.m3u8": key.format(f"{address}/key", f"{address}/segment.ts"),
        "file.m3u8": hls.format(f"file://{neighbour}"),
        "concat.wav": f"ffconcat version 1.0\nfile {neighbour.rpartition('/')[2]}\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{neighbour}'\n",
        "concat-address.wav": f"ffconcat version 1.0\nfile {address}/x.wav\n",
        "dash.mpd": dash.format(f"{address}/dash.mp4"),
        "session.sdp": sdp,
        "session.wav": sdp,
        "playlist.pls": f"[playlist]\nFile1={address}/x.wav\nNumberOfEntries=1\n",
        "playlist.asx": f'<asx version="3.0"><entry><ref href="{address}/x"/></entry></asx>',
        "rtsp.wav": "[Reference]\nRef1=http://127.0.0.1/x\n",
    }
    files = {name: text.encode() for name, text in texts.items()}
    files["elsewhere.mp4"] = mov_file(1, data_in=f"file://{neighbour}\0".encode())
    return files


def mov_file(claimed_packets: int, num_tracks: int = 1, data_in: bytes = b"") -> bytes:
    """A few kilobytes of QuickTime that claim any number of packets of MP3.

    Args:
        claimed_packets: in each track; FFmpeg makes an index of them, about 32 bytes each.
        num_tracks: how many tracks do so.
        data_in: address of the file that holds the sound; empty for this one.
    """
    header = _full(b"mvhd", bytes(8), _u32(1000, 1000, 0x10000), bytes(76), _u32(9))
    tracks = [_track(claimed_packets, number + 1, data_in) for number in range(num_tracks)]
    return (
        _box(b"ftyp", b"qt  ", bytes(4))
        + _box(b"moov", header, *tracks)
        + _box(b"mdat", bytes(4000))
    )


def _track(claimed_packets: int, number: int, data_in: bytes) -> bytes:
    where = _full(b"url ", data_in, flags=0 if data_in else 1)
    kind = struct.pack(">H8x4H", 1, 1, 16, 0, 0)
    sound = _box(b".mp3", bytes(6), kind, _u32(2**30))
    table = _box(
        b"stbl",
        _full(b"stsd", _u32(1), sound),
        _full(b"stts", _u32(1, claimed_packets, 1152)),
        _full(b"stsc", _u32(1, 1, claimed_packets, 1)),
        _full(b"stsz", _u32(1, claimed_packets)),
        _full(b"stco", _u32(1, 40)),
    )
    source = _box(b"dinf", _full(b"dref", _u32(1), where))
    media = _box(
        b"mdia",
        _full(b"mdhd", bytes(8), _u32(16_000, 16_000), bytes(4)),
        _full(b"hdlr", bytes(4), b"soun", bytes(14)),
        _box(b"minf", _full(b"smhd", bytes(4)), source, table),
    )
    return _box(b"trak", _full(b"tkhd", bytes(8), _u32(number, 0, 1000), bytes(60)), media)


def _box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def _full(name: bytes, *parts: bytes, flags: int = 0) -> bytes:
    return _box(name, _u32(flags), *parts)


def _u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)
