"""JPEG blocks, missing faces and small pictures are noticed, and good portraits get no note."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from liveavatar.media.portrait import (
    load_portrait,
)
from liveavatar.media.portrait_findings import has_face, has_jpeg_artefacts
from tests.unit.picture_material import as_jpeg, drawn_face, photograph, smooth_pixels


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def codes(path: Path) -> set[str]:
    return {note.code for note in load_portrait(path).notes}


def test_a_small_portrait_gets_a_note(tmp_path: Path) -> None:
    assert "small_portrait" in codes(save(tmp_path / "a.png", Image.new("RGB", (255, 400))))
    assert "small_portrait" not in codes(save(tmp_path / "b.png", Image.new("RGB", (256, 400))))


@pytest.mark.parametrize("quality", [20, 40, 60, 75])
@pytest.mark.parametrize("seed", [0, 1])
def test_jpeg_blocks_are_noticed_in_the_pixels(quality: int, seed: int) -> None:
    assert has_jpeg_artefacts(np.array(as_jpeg(photograph(seed), quality)))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_jpeg_blocks_are_noticed_in_a_file_that_is_no_jpeg(suffix: str, tmp_path: Path) -> None:
    assert "jpeg_artefacts" in codes(save(tmp_path / f"x.{suffix}", as_jpeg(photograph(), 75)))


def test_jpeg_blocks_are_noticed_after_a_crop_and_without_chroma_subsampling() -> None:
    bad = as_jpeg(photograph(), 50, subsampling=0)
    for left, top in ((0, 0), (3, 5), (7, 1)):
        assert has_jpeg_artefacts(np.array(bad.crop((left, top, 380, 370))))


@pytest.mark.parametrize("quality", [92, 95, 98])
def test_fine_jpeg_gets_no_note(quality: int) -> None:
    for seed in (0, 1):
        assert not has_jpeg_artefacts(np.array(as_jpeg(photograph(seed), quality)))


def test_pictures_never_saved_as_jpeg_get_no_note() -> None:
    rng = np.random.default_rng(5)
    squares = (np.indices((256, 256)) // 8).sum(0) % 2 * 255
    clean = {
        "photograph": np.array(photograph()),
        "soft": np.array(photograph().filter(ImageFilter.GaussianBlur(3))),
        "enlarged": np.array(photograph(side=200).resize((700, 700), Image.Resampling.BICUBIC)),
        "noise": rng.integers(0, 256, (300, 300, 3), dtype=np.uint8),
        "flat": np.full((300, 300, 3), 128, np.uint8),
        "gradient": smooth_pixels(400, 400),
        "drawing": drawn_face((240, 200, 170)),
        "small drawing": drawn_face((240, 200, 170), (192, 320)),
        "chessboard of 8 pixels": np.repeat(squares[..., None], 3, 2).astype(np.uint8),
        "smallest": rng.integers(100, 110, (64, 64, 3), dtype=np.uint8),
    }
    assert [name for name, rgb in clean.items() if has_jpeg_artefacts(rgb)] == []


def test_drawn_faces_of_any_skin_are_found() -> None:
    for skin in ((240, 200, 170), (120, 80, 55), (255, 224, 189)):
        for size in ((384, 640), (192, 320)):
            assert has_face(drawn_face(skin, size)), (skin, size)


def test_no_face_is_found_in_noise_or_a_landscape(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    meadow = np.zeros((360, 480, 3), np.uint8)
    meadow[:220] = (140, 180, 230)
    meadow[220:] = (60, 130, 50)
    image = Image.fromarray(meadow)
    for x, y in rng.integers((0, 200), (460, 320), (30, 2)):
        ImageDraw.Draw(image).rectangle((x, y, x + 8, y + 30), fill=(90, 60, 30))
        ImageDraw.Draw(image).ellipse((x - 10, y - 20, x + 18, y + 8), fill=(30, 90, 30))
    assert has_face(np.array(image)) is False
    assert has_face(rng.integers(0, 256, (480, 360, 3), dtype=np.uint8)) is False
    assert has_face(smooth_pixels(400, 300)) is False
    assert "no_face" in codes(save(tmp_path / "x.png", image))


def test_a_face_too_small_to_animate_is_not_big_enough() -> None:
    canvas = Image.new("RGB", (1200, 1200), (190, 210, 235))
    canvas.paste(Image.fromarray(drawn_face((240, 200, 170), (120, 200))), (500, 500))
    assert has_face(np.array(canvas)) is False


def test_without_opencv_nothing_is_said_about_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without_opencv(name: str, *args: object) -> object:
        if name.startswith("cv2"):
            raise ImportError(name)
        return real_import(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_opencv)
    path = save(tmp_path / "x.png", Image.new("RGB", (300, 300), "gray"))
    assert codes(path) == set()
