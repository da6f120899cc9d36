"""Portraits of every common kind decode right, and fit the video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from liveavatar.errors import MediaError
from liveavatar.media.portrait import (
    BACKGROUND_RGB,
    Portrait,
    PortraitLimits,
    crop_to_size,
    fit_size,
    load_portrait,
)
from tests.unit.fresh_process import memory_growth_mib
from tests.unit.picture_material import smooth_pixels


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def codes(portrait: Portrait) -> set[str]:
    return {note.code for note in portrait.notes}


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
    ramp = np.linspace(0, 65535, 320).astype(np.uint16)
    grey = np.repeat(ramp[None], 64, 0)
    expected = np.rint(ramp / 257)
    for suffix in ("png", "tiff"):
        path = save(tmp_path / f"x.{suffix}", Image.fromarray(grey))
        rgb = load_portrait(path).rgb
        assert rgb.shape == (64, 320, 3)
        assert np.abs(rgb[50, :, 1] - expected).max() <= 1


def test_sixteen_bit_colour_is_scaled(tmp_path: Path) -> None:
    import cv2

    wide = smooth_pixels().astype(np.uint16) * 257
    path = tmp_path / "x.png"
    assert cv2.imwrite(str(path), wide[..., ::-1])
    assert np.abs(load_portrait(path).rgb.astype(int) - smooth_pixels()).max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 4e6])
def test_float_grey_is_scaled_by_its_range(top: float, tmp_path: Path) -> None:
    ramp = np.linspace(0, top, 320, dtype=np.float32)
    path = save(tmp_path / "x.tiff", Image.fromarray(np.repeat(ramp[None], 64, 0)))
    row = load_portrait(path).rgb[0, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 255, 320)).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_mode_gives_three_channels(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(smooth_pixels()).convert("RGB").convert(mode)
    path = save(tmp_path / "x.png", image)
    rgb = load_portrait(path).rgb
    assert rgb.shape == (64, 320, 3)
    grey = Image.fromarray(smooth_pixels()).convert("L")
    assert abs(float(rgb.mean()) - float(np.asarray(grey).mean())) < 25


def test_transparent_parts_become_light_grey_with_a_note(tmp_path: Path) -> None:
    pixels = np.dstack([smooth_pixels(), np.full((64, 320), 255, np.uint8)])
    pixels[:40, :, 3] = 0
    pixels[40:50, :, 3] = 128
    for suffix, options in (("png", {}), ("webp", {"lossless": True}), ("tiff", {})):
        path = save(tmp_path / f"x.{suffix}", Image.fromarray(pixels), **options)
        portrait = load_portrait(path)
        rgb = portrait.rgb
        assert (rgb[:40] == BACKGROUND_RGB).all()
        half = (smooth_pixels()[45] * 128.0 + np.array(BACKGROUND_RGB) * 127) / 255
        assert np.abs(rgb[45] - half).max() <= 1
        assert np.array_equal(rgb[50:], smooth_pixels()[50:])
        assert "transparent" in codes(portrait)


def test_an_opaque_alpha_channel_gets_no_note(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.fromarray(smooth_pixels()).convert("RGBA"))
    assert "transparent" not in codes(load_portrait(path))


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
    portrait = load_portrait(path)
    assert tuple(portrait.rgb[40, 40]) == (255, 0, 0)
    assert "animated" in codes(portrait)


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
    with pytest.raises(MediaError, match="320x64 pixels"):
        load_portrait(path, PortraitLimits(max_pixels=320 * 64 - 1))
    with pytest.raises(MediaError, match="at least 65"):
        load_portrait(path, PortraitLimits(min_side=65))
    with pytest.raises(MediaError, match="MB"):
        load_portrait(path, PortraitLimits(max_bytes=100))
    load_portrait(path, PortraitLimits(max_pixels=320 * 64, min_side=64))


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
    path = save(tmp_path / "x.png", Image.new("RGB", (2400, 2400), "gray"), compress_level=1)
    grown_mib = memory_growth_mib(
        "import cv2; from liveavatar.media.portrait import load_portrait",
        f"load_portrait({str(path)!r})",
    )
    # 17 MB of pixels as pillow and as numpy hold them, and some copies of the middle 2048x2048 in
    # float32, which do not grow with the picture.
    assert grown_mib < 240


def test_a_portrait_is_searched_for_findings_when_somebody_asks(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.new("RGB", (80, 80)).save(path)
    portrait = load_portrait(path)
    assert "notes" not in vars(portrait)
    assert "small_portrait" in {note.code for note in portrait.notes}
    assert portrait.notes is portrait.notes
