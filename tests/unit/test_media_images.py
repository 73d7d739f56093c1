"""Pictures: every way a file can describe its pixels, the official resize rule, and degradation by H.264."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.images import (
    crf_degrade,
    load_image,
    normalize_pixels,
    prepare_image,
    resize_and_crop,
    save_image,
)
from mlx_ltx2.media.metadata import read_metadata
from tests.fixtures.media_files import corners

# What must be done to the upright picture to get the stored one (EXIF 2.3, orientation tag).
_STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_shown_upright(tmp_path, orientation):
    upright = corners(20, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(_STORED[orientation](upright))).save(path, exif=exif)
    np.testing.assert_array_equal(load_image(path), upright)


def test_a_colour_profile_is_converted_to_srgb(tmp_path):
    """A profile whose red is sRGB's green and the other way round: converting exchanges both."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    Image.fromarray(corners(8, 8)).save(tmp_path / "exchanged.png", icc_profile=exchanged)
    loaded = load_image(tmp_path / "exchanged.png")
    assert np.abs(loaded.astype(int) - corners(8, 8)[..., [1, 0, 2]]).max() <= 3


def test_an_srgb_profile_changes_nothing_and_a_broken_one_is_ignored(tmp_path):
    for name, profile in (
        ("srgb.png", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        ("broken.png", b"not a profile"),
    ):
        Image.fromarray(corners(8, 8)).save(tmp_path / name, icc_profile=profile)
        assert np.abs(load_image(tmp_path / name).astype(int) - corners(8, 8)).max() <= 1


def test_grey_palette_bilevel_sixteen_bit_float_and_cmyk_become_rgb(tmp_path):
    ramp = np.linspace(0, 255, 64).reshape(8, 8).round().astype(np.uint8)
    grey = np.repeat(ramp[..., None], 3, 2)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(ramp.astype(np.float32) / 255).save(tmp_path / "float.tif")
    Image.fromarray(grey).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    for name in ("grey.png", "sixteen.png", "float.tif", "palette.png"):
        loaded = load_image(tmp_path / name)
        assert loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, grey, err_msg=name)
    Image.fromarray(ramp > 127).save(tmp_path / "bilevel.png")
    assert set(np.unique(load_image(tmp_path / "bilevel.png"))) == {0, 255}
    Image.fromarray(grey).convert("CMYK").save(tmp_path / "cmyk.tif")
    assert load_image(tmp_path / "cmyk.tif").shape == (8, 8, 3)


def test_unreadable_pictures_say_which_file_and_why(tmp_path, monkeypatch):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:600])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.png", "text.png", "empty.png", "missing.png", "."):
        with pytest.raises(MediaError, match=r"png|folder"):
            load_image(tmp_path / name)
    save_image(tmp_path / "big.png", corners(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(MediaError, match="too many pixels"):
        load_image(tmp_path / "big.png")


def test_crf_degrade_crops_to_even_sides_and_gets_worse_with_crf():
    noise = np.random.default_rng(1).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    errors = []
    for crf in (5, 33, 50):
        degraded = crf_degrade(noise, crf)
        assert degraded.shape == (32, 46, 3) and degraded.dtype == np.uint8
        errors.append(np.abs(degraded.astype(int) - noise[:32, :46]).mean())
    assert errors[0] < errors[1] < errors[2]


def test_crf_degrade_leaves_alone_what_cannot_be_encoded():
    noise = np.random.default_rng(2).integers(0, 256, (5, 1, 3), dtype=np.uint8)
    assert crf_degrade(noise, 33) is noise
    assert crf_degrade(corners(5, 5), 0).shape == (5, 5, 3)
    with pytest.raises(RequestError, match="CRF 60"):
        crf_degrade(corners(4, 4), 60)


def test_resize_keeps_ramps_and_crops_the_centre():
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[None, None, :, None], (2, 4, 8, 3))
    doubled = resize_and_crop(ramp, 8, 16)
    assert doubled.shape == (2, 8, 16, 3) and doubled.dtype == np.float32
    np.testing.assert_allclose(doubled[0, 0, 1:-1, 0], np.arange(14) / 2 + 0.25)
    np.testing.assert_array_equal(resize_and_crop(ramp, 4, 5)[0, 0, :, 0], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(resize_and_crop(ramp[0], 4, 8), ramp[0])


@pytest.mark.parametrize(("source", "target"), [((7, 13), (64, 96)), ((1, 1), (32, 64)), ((999, 37), (33, 31))])
def test_resize_always_fills_the_target(source, target):
    image = np.full((*source, 3), 77, np.uint8)
    np.testing.assert_allclose(resize_and_crop(image, *target), np.full((*target, 3), 77.0), rtol=1e-6)


def test_prepare_image_is_one_frame_in_minus_one_to_one(tmp_path):
    save_image(tmp_path / "new" / "corners.png", corners(50, 70))
    prepared = prepare_image(tmp_path / "new" / "corners.png", 32, 64, crf=33)
    assert prepared.shape == (1, 32, 64, 3) and prepared.dtype == np.float32
    assert prepared.min() >= -1 and prepared.max() <= 1
    assert prepared[0, 4, 4, 0] > 0.9 and prepared[0, 4, 4, 1] < -0.85
    np.testing.assert_array_equal(normalize_pixels(np.array([0, 255], np.uint8)), [-1, 1])


def test_save_image_is_exact_in_png_close_in_jpeg_and_carries_text(tmp_path):
    text = {"prompt": "a kite, été", "seed": "7"}
    for name, tolerance in (("a.png", 0), ("a.jpg", 12)):
        save_image(tmp_path / name, corners(16, 16), text)
        assert np.abs(load_image(tmp_path / name).astype(int) - corners(16, 16)).max() <= tolerance
        assert read_metadata(tmp_path / name) == text
    with pytest.raises(RequestError, match="does not fit a JPEG"):
        save_image(tmp_path / "b.jpg", corners(4, 4), {"plan": "x" * 70000})
    with pytest.raises(RequestError, match="bmp"):
        save_image(tmp_path / "b.bmp", corners(4, 4))
    with pytest.raises(MediaError, match="float32"):
        save_image(tmp_path / "b.png", corners(4, 4).astype(np.float32))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "a.png"]
