"""Checks of what the web application needs: its static files, a port, a video encoder."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from liveavatar.doctor.finding import Finding, fail, ok
from liveavatar.errors import LiveAvatarError
from liveavatar.media.live_file import measure_live_file

STATIC_FOLDERS = ("css", "js", "images")
FRAMES, SAMPLE_RATE_HZ, FPS = 12, 16_000, 25


def check_static(root: Path) -> Finding:
    """Whether the page's style sheets, scripts and pictures are there."""
    empty = [name for name in STATIC_FOLDERS if not _has_files(root / "static" / name)]
    if empty:
        shown = ", ".join(f"static/{name}" for name in empty)
        return fail(
            "static files",
            f"missing or empty: {shown}; the page would stay blank",
            "git checkout -- static, or copy static/ of the release to the folder of app.py",
        )
    return ok("static files", "static/css, static/js and static/images are there")


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(
        path.is_file() and not path.name.startswith(".") for path in folder.iterdir()
    )


def is_free(host: str, port: int) -> bool | str:
    """Whether a server could listen there; the system's own words where it may not."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return True


def check_port(host: str, port: int, *, is_ours: bool) -> Finding:
    """Whether the page can be served at host and port.

    Args:
        host: address to listen on.
        port: to listen on.
        is_ours: whether this application answers there already.
    """
    if is_ours:
        return ok("port", f"{port}: this application runs there")
    free = is_free(host, port)
    if free is True:
        return ok("port", f"{port} is free on {host}")
    return fail(
        "port",
        f"{port} on {host}: {free}",
        f"start with another one (--port {port + 1}), or end the program that "
        f"'ss -ltnp sport = :{port}' names",
    )


def check_encoder() -> Finding:
    """Encode a few frames with sound, as every video is, and count them in the file."""
    cure = "pip install --force-reinstall av==17.1.0, which brings the encoders of ffmpeg along"
    try:  # the doctor itself must run where packages are missing
        import numpy as np

        from liveavatar.media.live_writer import LiveVideoWriter
    except ImportError as error:
        return fail("video encoder", str(error), "pip install -r requirements.txt")
    frames = np.linspace(0, 255, FRAMES * 64 * 64 * 3).reshape(FRAMES, 64, 64, 3).astype(np.uint8)
    sound = np.zeros(FRAMES * SAMPLE_RATE_HZ // FPS, np.float32)
    try:
        with tempfile.TemporaryDirectory(prefix="liveavatar-doctor-") as folder:
            path = Path(folder) / "encoded.mp4"
            with LiveVideoWriter(path, width=64, height=64, fps=FPS) as writer:
                writer.append(frames, sound)
            extent = measure_live_file(path)
            size = path.stat().st_size
    except (LiveAvatarError, OSError) as error:
        return fail("video encoder", str(error), cure)
    if extent.num_frames != FRAMES:
        return fail("video encoder", f"{extent.num_frames} of {FRAMES} frames came out", cure)
    return ok("video encoder", f"{FRAMES} frames with sound in {size} bytes of H.264 and AAC")


def check_files(root: Path) -> Iterator[Finding]:
    """All checks that need no port."""
    yield check_static(root)
    yield check_encoder()
