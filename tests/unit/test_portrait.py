"""Portraits of every common kind decode right; artefacts and missing faces are noticed."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageFilter

from liveavatar.errors import MediaError
from liveavatar.media.portrait import (
    BACKGROUND_RGB,
    PortraitLimits,
    crop_to_size,
    fit_size,
    has_face,
    has_jpeg_artefacts,
    load_portrait,
)


def smooth_pixels(height: int = 96, width: int = 128) -> np.ndarray:
    """A picture with a different colour in each corner, so that a turn or flip shows."""
    y, x = np.mgrid[:height, :width]
    red, green = 20 + 200 * x / width, 30 + 190 * y / height
    return np.stack([red, green, np.full_like(red, 90)], -1).astype(np.uint8)


def photograph(seed: int = 0, side: int = 400) -> Image.Image:
    """Noise with the spectrum of photographs, in colour."""
    noise = np.random.default_rng(seed).normal(size=(side, side, 3))
    frequency = np.fft.fftfreq(side)
    radius = np.hypot(frequency[:, None], frequency[None])[..., None]
    shaped = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) / (radius + 0.002) ** 1.2, axes=(0, 1))
    values = shaped.real
    values = (values - values.min()) / np.ptp(values) * 255
    return Image.fromarray(values.astype(np.uint8))


def as_jpeg(image: Image.Image, quality: int, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def drawn_face(skin: tuple[int, int, int], size: tuple[int, int] = (384, 640)) -> np.ndarray:
    """A plain cartoon portrait."""
    image = Image.new("RGB", (384, 640), (190, 210, 235))
    draw = ImageDraw.Draw(image)
    draw.rectangle((64, 460, 320, 640), fill=(40, 60, 120))
    draw.ellipse((75, 120, 309, 400), fill=(60, 40, 20))
    draw.ellipse((92, 160, 292, 430), fill=skin)
    draw.pieslice((85, 130, 299, 340), 180, 360, fill=(60, 40, 20))
    for x in (150, 234):
        draw.ellipse((x - 24, 268, x + 24, 302), fill="white")
        draw.ellipse((x - 12, 272, x + 12, 298), fill=(50, 80, 60))
        draw.ellipse((x - 6, 278, x + 6, 292), fill="black")
        draw.arc((x - 32, 238, x + 32, 280), 200, 340, fill=(60, 40, 20), width=8)
    draw.line((192, 300, 184, 345, 200, 348), fill=tuple(c * 7 // 10 for c in skin), width=4)
    draw.chord((152, 362, 232, 402), 0, 180, fill=(150, 40, 40))
    return np.array(image.resize(size))


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def codes(path: Path, limits: PortraitLimits | None = None) -> set[str]:
    return {note.code for note in load_portrait(path, limits).notes}


LOSSLESS = {
    "png": {},
    "webp": {"lossless": True},
    "tiff": {},
    "bmp": {},
    "lzw.tiff": {"compression": "tiff_lzw"},
    "deflate.tiff": {"compression": "tiff_adobe_deflate"},
    "packed.tiff": {"compression": "packbits"},
    "interlaced.png": {},
}


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_kinds_keep_every_pixel(suffix: str, tmp_path: Path) -> None:
    pixels = smooth_pixels()
    path = save(tmp_path / f"x.{suffix}", Image.fromarray(pixels), **LOSSLESS[suffix])
    portrait = load_portrait(path)
    assert portrait.rgb.dtype == np.uint8
    assert np.array_equal(portrait.rgb, pixels)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("jpg", {"quality": 95}),
        ("jpg", {"quality": 95, "progressive": True}),
        ("webp", {"quality": 95}),
        ("tiff", {"compression": "jpeg", "quality": 95}),
    ],
)
def test_lossy_kinds_come_close(suffix: str, options: dict, tmp_path: Path) -> None:
    path = save(tmp_path / f"x.{suffix}", Image.fromarray(smooth_pixels()), **options)
    error = load_portrait(path).rgb.astype(int) - smooth_pixels()
    assert np.abs(error).mean() < 2  # half a quantisation step of quality 95


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.fromarray(smooth_pixels()))
    renamed = path.rename(tmp_path / "portrait.jpg")
    assert np.array_equal(load_portrait(renamed).rgb, smooth_pixels())


@pytest.mark.parametrize(
    ("orientation", "suffix"),
    [*((turn, "jpg") for turn in range(1, 9)), (6, "png"), (6, "tiff"), (6, "webp"), (5, "tiff")],
)
def test_the_orientation_tag_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    upright = smooth_pixels()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    rgb = load_portrait(path).rgb
    assert rgb.shape == upright.shape
    assert np.abs(rgb.astype(int) - upright).mean() < 3


def test_a_damaged_orientation_tag_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(smooth_pixels()).save(
        path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken", quality=95
    )
    assert load_portrait(path).rgb.shape == smooth_pixels().shape


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_is_converted_and_not_inverted(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(smooth_pixels()).convert("CMYK").save(path, quality=95)
    error = load_portrait(path).rgb.astype(int) - smooth_pixels()
    assert np.abs(error).mean() < 3


def test_lab_is_converted(tmp_path: Path) -> None:
    # CIE: L 53.2, a 80.1, b 67.2 is sRGB red under D65; under the D50 of files it comes near.
    bands = [Image.new("L", (80, 80), value) for value in (136, 128 + 80, 128 + 67)]
    path = save(tmp_path / "x.tiff", Image.merge("LAB", bands))
    red, green, blue = load_portrait(path).rgb[40, 40].astype(int)
    assert red > 240
    assert green < 60
    assert blue < 60


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 128).astype(np.uint16)
    grey = np.repeat(ramp[None], 96, 0)
    expected = np.rint(ramp / 257)
    for suffix in ("png", "tiff"):
        path = save(tmp_path / f"x.{suffix}", Image.fromarray(grey))
        rgb = load_portrait(path).rgb
        assert rgb.shape == (96, 128, 3)
        assert np.abs(rgb[50, :, 1] - expected).max() <= 1


def test_sixteen_bit_colour_is_scaled(tmp_path: Path) -> None:
    import cv2

    wide = smooth_pixels().astype(np.uint16) * 257
    path = tmp_path / "x.png"
    assert cv2.imwrite(str(path), wide[..., ::-1])
    assert np.abs(load_portrait(path).rgb.astype(int) - smooth_pixels()).max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 4e6])
def test_float_grey_is_scaled_by_its_range(top: float, tmp_path: Path) -> None:
    ramp = np.linspace(0, top, 128, dtype=np.float32)
    path = save(tmp_path / "x.tiff", Image.fromarray(np.repeat(ramp[None], 96, 0)))
    row = load_portrait(path).rgb[0, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 255, 128)).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_mode_gives_three_channels(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(smooth_pixels()).convert("RGB").convert(mode)
    path = save(tmp_path / "x.png", image)
    rgb = load_portrait(path).rgb
    assert rgb.shape == (96, 128, 3)
    grey = Image.fromarray(smooth_pixels()).convert("L")
    assert abs(float(rgb.mean()) - float(np.asarray(grey).mean())) < 25


def test_transparent_parts_become_light_grey_with_a_note(tmp_path: Path) -> None:
    pixels = np.dstack([smooth_pixels(), np.full((96, 128), 255, np.uint8)])
    pixels[:40, :, 3] = 0
    pixels[40:50, :, 3] = 128
    for suffix, options in (("png", {}), ("webp", {"lossless": True}), ("tiff", {})):
        path = save(tmp_path / f"x.{suffix}", Image.fromarray(pixels), **options)
        rgb = load_portrait(path).rgb
        assert (rgb[:40] == BACKGROUND_RGB).all()
        half = (smooth_pixels()[45] * 128.0 + np.array(BACKGROUND_RGB) * 127) / 255
        assert np.abs(rgb[45] - half).max() <= 1
        assert np.array_equal(rgb[50:], smooth_pixels()[50:])
        assert "transparent" in codes(path)


def test_an_opaque_alpha_channel_gets_no_note(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.fromarray(smooth_pixels()).convert("RGBA"))
    assert "transparent" not in codes(path)


def test_transparent_palettes_and_single_colours_are_filled(tmp_path: Path) -> None:
    palette = Image.new("P", (80, 80), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(1, (0, 0, 80, 40))
    path = save(tmp_path / "x.png", palette, transparency=1)
    rgb = load_portrait(path).rgb
    assert tuple(rgb[10, 10]) == BACKGROUND_RGB
    assert tuple(rgb[70, 10]) == (255, 0, 0)
    wide = np.full((80, 80), 40_000, np.uint16)
    wide[:40] = 7
    path = save(tmp_path / "y.png", Image.fromarray(wide), transparency=7)
    rgb = load_portrait(path).rgb
    assert tuple(rgb[10, 10]) == BACKGROUND_RGB
    assert tuple(rgb[70, 10]) == (156, 156, 156)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation_is_used_with_a_note(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"x.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert tuple(load_portrait(path).rgb[40, 40]) == (255, 0, 0)
    assert "animated" in codes(path)


def test_a_wide_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    # A profile whose red and green are exchanged against sRGB cannot be missed.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for first, second in ((b"rXYZ", b"tmp_"), (b"gXYZ", b"rXYZ"), (b"tmp_", b"gXYZ")):
        start = profile.index(first, 128)
        profile[start : start + 4] = second
    wide = bytes(profile).replace(b"s\0R\0G\0B", b"o\0d\0d\0 ").replace(b"sRGB", b"odd ")
    path = save(tmp_path / "x.png", Image.new("RGB", (80, 80), (250, 5, 5)), icc_profile=wide)
    red, green, _ = load_portrait(path).rgb[0, 0]
    assert green > 200
    assert red < 60


def test_a_broken_colour_profile_costs_nothing(tmp_path: Path) -> None:
    path = save(
        tmp_path / "x.png", Image.fromarray(smooth_pixels()), icc_profile=b"not a profile" * 20
    )
    assert np.array_equal(load_portrait(path).rgb, smooth_pixels())


def test_limits_are_values_the_caller_chooses(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.fromarray(smooth_pixels()))
    with pytest.raises(MediaError, match="128x96 pixels"):
        load_portrait(path, PortraitLimits(max_pixels=128 * 96 - 1))
    with pytest.raises(MediaError, match="at least 97"):
        load_portrait(path, PortraitLimits(min_side=97))
    with pytest.raises(MediaError, match="MB"):
        load_portrait(path, PortraitLimits(max_bytes=100))
    load_portrait(path, PortraitLimits(max_pixels=128 * 96, min_side=96))


def test_a_small_portrait_gets_a_note(tmp_path: Path) -> None:
    assert "small_portrait" in codes(save(tmp_path / "a.png", Image.new("RGB", (255, 400))))
    assert "small_portrait" not in codes(save(tmp_path / "b.png", Image.new("RGB", (256, 400))))


@pytest.mark.parametrize("quality", [20, 40, 60, 75])
@pytest.mark.parametrize("seed", [0, 1])
def test_jpeg_blocks_are_noticed_in_the_pixels_of_any_kind_of_file(
    quality: int, seed: int, tmp_path: Path
) -> None:
    path = save(tmp_path / "x.png", as_jpeg(photograph(seed), quality))
    assert "jpeg_artefacts" in codes(path)


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


@pytest.mark.parametrize(
    ("image_hw", "area", "size_hw"),
    [
        ((1280, 720), 688 * 368, (640, 384)),
        ((720, 1280), 688 * 368, (384, 640)),
        ((1024, 1024), 688 * 368, (448, 448)),
        ((1024, 768), 688 * 368, (512, 384)),
        ((1280, 720), 704 * 384, (704, 384)),
        ((1280, 720), 720 * 400, (704, 384)),
        ((1024, 1024), 704 * 384, (512, 512)),
        ((150, 90), 8192, (128, 64)),
        ((130, 130), 8192, (64, 64)),
    ],
)
def test_the_video_size_follows_the_area_and_the_aspect(
    image_hw: tuple[int, int], area: int, size_hw: tuple[int, int]
) -> None:
    assert fit_size(image_hw, area) == size_hw


def test_a_video_size_is_always_whole_patches_within_the_area() -> None:
    rng = np.random.default_rng(0)
    for height, width, area in rng.integers(
        (64, 64, 64 * 64 * 6), (4000, 4000, 500_000), (3000, 3)
    ):
        if max(height, width) > 6 * min(height, width):
            continue
        fit_h, fit_w = fit_size((int(height), int(width)), int(area))
        assert fit_h % 64 == fit_w % 64 == 0
        assert 0 < fit_h * fit_w <= area


def test_an_aspect_that_fits_no_size_is_refused() -> None:
    with pytest.raises(MediaError, match="no video size"):
        fit_size((64, 4000), 64 * 64)


def test_the_crop_keeps_the_middle_and_pads_with_black() -> None:
    # 9:16 at 704x384: 682 rows after scaling, so 11 black rows above and below.
    cropped = crop_to_size(np.full((1280, 720, 3), 200, np.uint8), (704, 384))
    assert cropped.shape == (704, 384, 3)
    assert cropped.dtype == np.uint8
    assert not cropped[:11].any()
    assert not cropped[-11:].any()
    assert (cropped[11:-11] == 200).all()
    wide = smooth_pixels(100, 400)
    assert np.array_equal(crop_to_size(wide, (100, 100)), wide[:, 150:250])
    assert np.array_equal(crop_to_size(wide, (100, 101)), wide[:, 150:251])


def test_a_large_portrait_takes_little_more_memory_than_its_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.new("RGB", (4000, 4000), "gray"), compress_level=1)
    code = (
        "import resource, cv2; from liveavatar.media.portrait import load_portrait;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        f"load_portrait({str(path)!r});"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    # 48 MB of pixels as pillow and as numpy hold them, and the middle 2048x2048 in float32.
    assert int(result.stdout) < 400
