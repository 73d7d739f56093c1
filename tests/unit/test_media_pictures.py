"""Pictures that people have: number types, transparency, colours, sizes, files that are something else."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from mlx_ltx2.errors import MediaError
from mlx_ltx2.media.images import MAX_ENCODED_SIDE, crf_degrade, encodable, load_image, prepare_image, resize_and_crop
from mlx_ltx2.media.pictures import GROUND, MAX_SIDE, read_picture
from tests.fixtures.media_files import corners
from tests.fixtures.picture_files import ramp, write_empty_png, write_png, write_tiff


def said(path) -> str:
    return " ".join(read_picture(path).notes)


def grey(path) -> np.ndarray:
    pixels = load_image(path)
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0].astype(int)


# numbers


@pytest.mark.parametrize(
    ("samples", "note"),
    [
        (ramp(1).astype("<f4"), ""),
        (ramp(0.5).astype("<f4") * 2, ""),
        (ramp(4.7).astype("<f4"), "range 0 to 4.7"),
        (np.rint(ramp(255)).astype("<f4"), "range 0 to 255"),
        (np.rint(ramp(65535)).astype(">f4"), "range 0 to 65535"),
        ((ramp(3) - 1.5).astype("<f4"), "range -1.5 to 1.5"),
        (ramp(2**32 - 1).astype("<u4"), "32-bit integer"),
        (ramp(2**31 - 1).astype("<i4"), "32-bit integer"),
        (ramp(65535).astype("<i4"), "range 0 to 65535"),
        (ramp(255).astype(">i4"), "range 0 to 255"),
        (ramp(65535).astype("<u2"), ""),
        (ramp(65535).astype(">u2"), ""),
        ((ramp(65535) - 32768).astype("<i2"), ""),
        ((ramp(255) - 128).astype("i1"), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype.str}-{value.max():.3g}",
)
def test_every_kind_of_number_spans_black_to_white(tmp_path, samples, note):
    path = write_tiff(tmp_path / "a.tif", samples)
    assert np.abs(grey(path) - ramp()).max() <= 1.5
    assert (note in said(path)) if note else not said(path)


def test_twelve_bits_white_is_zero_and_what_is_no_number(tmp_path):
    bits = np.unpackbits(ramp(4095).astype(">u2").view("u1").reshape(64, 2), axis=1)[:, 4:]
    path = write_tiff(tmp_path / "twelve.tif", np.packbits(bits).reshape(8, 12))
    data = bytearray(path.read_bytes())
    for tag, value in ((256, 8), (258, 12)):
        at = data.index(struct.pack("<HHI", tag, 3, 1))
        data[at + 8 : at + 10] = struct.pack("<H", value)
    path.write_bytes(bytes(data))
    assert np.abs(grey(path) - ramp()).max() <= 1
    path = write_tiff(tmp_path / "inverted.tif", ramp(65535).astype("<u2"), 0)
    assert np.abs(grey(path) - ramp()[::-1, ::-1]).max() <= 1
    holes = ramp(1).astype("<f4")
    holes[0, 1], holes[0, 2] = np.nan, np.inf
    path = write_tiff(tmp_path / "holes.tif", holes)
    assert grey(path)[0, 1] == grey(path)[0, 2] == 0 and grey(path).max() == 255
    assert "2 pixels that are no finite numbers" in said(path)
    assert (grey(write_tiff(tmp_path / "black.tif", np.zeros((8, 8), "<f4"))) == 0).all()
    # 16 bits of a dark PNG are no 8 bits
    assert grey(write_png(tmp_path / "dark.png", ramp(255).astype(np.uint16))).max() == 1


def test_colours_of_sixteen_bits_planes_lab_and_what_cannot_be_read(tmp_path):
    eight = np.dstack([ramp(), ramp()[::-1], ramp().T])
    for samples in ((eight * 257).astype("<u2"), (eight * 257).astype(">u2")):
        assert np.abs(load_image(write_tiff(tmp_path / "a.tif", samples, 2)) - eight).max() <= 1
    assert np.abs(load_image(write_png(tmp_path / "a.png", (eight * 257).astype(np.uint16))) - eight).max() <= 1
    planes = write_tiff(tmp_path / "planes.tif", eight.astype("u1"), 2, planar=2)
    np.testing.assert_array_equal(load_image(planes), eight.astype("u1"))
    lab = np.dstack([ramp(), 0 * ramp(), 0 * ramp()]).astype("u1")
    assert np.abs(np.ptp(load_image(write_tiff(tmp_path / "lab.tif", lab, 8)), axis=2)).max() <= 2
    with pytest.raises(MediaError, match="separate planes"):
        load_image(write_tiff(tmp_path / "b.tif", (eight * 257).astype("<u2"), 2, planar=2))
    for samples in (eight.astype("<f4"), eight.astype("<f8")):
        with pytest.raises(MediaError, match=r"b\.tif.*TIFF of a kind"):
            load_image(write_tiff(tmp_path / "b.tif", samples, 2))


# transparency


def test_transparent_parts_are_put_on_grey_and_that_is_said(tmp_path):
    colours = np.full((8, 8, 3), 200, np.uint8)
    colours[:4] = 255, 0, 0
    clear = np.full((8, 8), 255, np.uint8)
    clear[:4], clear[4] = 0, 51
    image = Image.fromarray(np.dstack([colours, clear]))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.tif")
    image.save(tmp_path / "a.webp", lossless=True, exact=True)
    write_png(tmp_path / "b.png", np.dstack([colours, clear]).astype(np.uint16) * 257)
    for name in ("a.png", "a.tif", "a.webp", "b.png"):
        pixels = load_image(tmp_path / name)
        assert (pixels[:4] == GROUND).all() and (pixels[5:] == 200).all(), name
        assert abs(int(pixels[4, 0, 0]) - (0.2 * 200 + 0.8 * 128)) <= 1, name
        assert f"{name}: transparent parts were put on grey." in said(tmp_path / name)


def test_palettes_grey_marked_colours_and_multiplied_alpha(tmp_path):
    half = np.zeros((8, 8), np.uint8)
    half[:, 4:] = 1
    palette = Image.fromarray(half).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    write_png(tmp_path / "marked.png", np.dstack([half * 90] * 3), [(b"tRNS", bytes(6))])
    write_png(tmp_path / "marked16.png", np.dstack([half.astype(np.uint16) * 9000] * 3), [(b"tRNS", bytes(6))])
    write_png(tmp_path / "grey.png", half * 90, [(b"tRNS", bytes(2))])
    write_png(tmp_path / "grey16.png", half.astype(np.uint16) * 9000, [(b"tRNS", bytes(2))])
    write_png(tmp_path / "la.png", np.dstack([half * 90, half * 255]))
    write_png(tmp_path / "la16.png", np.dstack([half, half]).astype(np.uint16) * 65535)
    write_tiff(tmp_path / "la.tif", np.dstack([half * 90, half * 255]), 1, extra=2)
    write_tiff(tmp_path / "multiplied.tif", np.dstack([half * 90] * 3 + [half * 255]), 2, extra=1)
    for path in sorted(tmp_path.iterdir()):
        pixels = load_image(path)
        assert (pixels[:, :4] == GROUND).all(), path.name
        assert not (pixels[:, 4:] == GROUND).all(axis=-1).any(), path.name
        assert "put on grey" in said(path), path.name
    half_clear = np.dstack([np.full((8, 8, 3), 100, "u1"), np.full((8, 8), 128, "u1")])  # light 199, half of it
    path = write_tiff(tmp_path / "multiplied.tif", half_clear, 2, extra=1)
    assert abs(int(load_image(path)[0, 0, 0]) - (100 + 0.5 * 128)) <= 2


def test_opaque_alpha_changes_nothing_and_says_nothing(tmp_path):
    solid = np.dstack([corners(8, 8), np.full((8, 8), 255, np.uint8)])
    Image.fromarray(solid).save(tmp_path / "a.png")
    write_tiff(tmp_path / "b.tif", solid, 2, extra=1)
    Image.fromarray(solid).save(tmp_path / "c.webp", lossless=True)
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(load_image(path), corners(8, 8))
        assert not said(path)


# what files say beside their pixels


def test_profiles_are_named_and_broken_ones_too(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(corners(8, 8)).save(tmp_path / "a.png", icc_profile=srgb)
    assert not said(tmp_path / "a.png")
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for broken in (b"not a profile", lab):
        Image.fromarray(corners(8, 8)).save(tmp_path / "b.png", icc_profile=broken)
        assert "profile cannot be used" in said(tmp_path / "b.png")
        np.testing.assert_array_equal(load_image(tmp_path / "b.png"), corners(8, 8))
    exchanged = srgb.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    other = exchanged.replace(b"s\0R\0G\0B", b"P\0R\0G\0B").replace(b"sRGB", b"PRGB")
    clear = np.dstack([corners(8, 8), np.full((8, 8), 255, np.uint8)])
    clear[0, 0, 3] = 0
    Image.fromarray(clear).save(tmp_path / "c.png", icc_profile=other)
    pixels = load_image(tmp_path / "c.png")
    assert (pixels[0, 0] == GROUND).all(), "the ground was converted with the colours"
    assert np.abs(pixels[1:].astype(int) - corners(8, 8)[1:, :, [1, 0, 2]]).max() <= 3
    assert "converted from PRGB" in said(tmp_path / "c.png")


def test_cmyk_gamma_hdr_and_shape_of_pixels(tmp_path):
    Image.fromarray(corners(8, 8)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert "CMYK without a colour profile" in said(tmp_path / "cmyk.jpg")
    half = np.full((8, 8, 3), 64, np.uint8)
    linear = write_png(tmp_path / "linear.png", half, [(b"gAMA", struct.pack(">I", 100000))])
    assert abs(int(load_image(linear)[0, 0, 0]) - 255 * (64 / 255) ** (1 / 2.2)) <= 1 and "gamma of 1" in said(linear)
    for chunks in ([(b"gAMA", struct.pack(">I", 45455))], [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))]):
        assert (load_image(write_png(tmp_path / "plain.png", half, chunks)) == 64).all()
        assert not said(tmp_path / "plain.png")
    for codes, words in (((9, 16), "BT.2020, PQ"), ((9, 18), "HLG"), ((12, 13), "Display P3"), ((1, 13), "")):
        path = write_png(tmp_path / "codes.png", half, [(b"cICP", bytes([*codes, 0, 1]))])
        assert (words in said(path)) if words else not said(path)
    wide = write_png(tmp_path / "wide.png", half, [(b"pHYs", struct.pack(">IIB", 1, 2, 0))])
    assert "pixels 2 times as wide as high were read as square" in said(wide)
    Image.fromarray(half).save(tmp_path / "wide.jpg", dpi=(300, 150))
    Image.fromarray(half).save(tmp_path / "wide.tif", dpi=(100, 200))
    Image.fromarray(half).save(tmp_path / "square.jpg", dpi=(300, 300))
    assert "pixels 0.5 times" in said(tmp_path / "wide.jpg") and "pixels 2 times" in said(tmp_path / "wide.tif")
    assert not said(tmp_path / "square.jpg") and load_image(wide).shape == (8, 8, 3)


def test_of_several_pictures_the_first_is_used_and_counted(tmp_path):
    pages = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (10, 130, 250)]
    for name, word in (("a.gif", "frames"), ("a.webp", "frames"), ("a.png", "frames"), ("a.tif", "pages")):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], duration=100)
        assert f"the first of 3 {word} is used" in said(tmp_path / name)
        assert np.abs(load_image(tmp_path / name).astype(int) - 10).max() <= 3
    pages[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pages[1:])
    assert "a gain map" in said(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_orientation_in_other_files_than_png(tmp_path, suffix, orientation):
    from tests.unit.test_media_images import _STORED

    exif = Image.Exif()
    exif[0x0112] = orientation
    upright, path = corners(32, 64), tmp_path / f"a.{suffix}"
    options = {"quality": 100} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(np.ascontiguousarray(_STORED[orientation](upright))).save(path, exif=exif, **options)
    assert load_image(path).shape == upright.shape
    assert np.abs(load_image(path)[4:-4:8, 4:-4:8].astype(int) - upright[4:-4:8, 4:-4:8]).max() <= 8


# what is opened


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "PostScript"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\xd7\xcd\xc6\x9a" + bytes(60), "metafile"),
        (b"SIMPLE  =                    T" + b" " * 60, "FITS"),
        (b"8BPS\0\1" + bytes(60), "Photoshop"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "SVG"),
        (b"\0\0\0\x18ftypheic" + bytes(30), "HEIC"),
        (b"\0\0\0\x18ftypisom" + bytes(30), "a video"),
        (b"#EXTM3U\n/etc/passwd\n", "play-list"),
        (b"v/1\x01" + bytes(30), "OpenEXR"),
    ],
)
@pytest.mark.parametrize("name", ["photo.png", "photo.eps", "photo"])
def test_what_is_no_picture_is_refused_by_content(tmp_path, data, kind, name):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MediaError, match=kind):
        load_image(tmp_path / name)


def test_a_postscript_file_starts_no_program(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(subprocess, "check_call", None)
    with pytest.raises(MediaError, match="PostScript"):
        load_image(path)


def test_the_name_does_not_count(tmp_path):
    Image.fromarray(corners(8, 8)).save(tmp_path / "a.png")
    for name in ("a.eps", "a", "a.mp4", "12:30:05.png", "%d.png", "-a.png"):
        os.replace(next(tmp_path.iterdir()), tmp_path / name)
        np.testing.assert_array_equal(load_image(tmp_path / name), corners(8, 8))


def test_pipes_devices_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(MediaError, match=r"pipe or a device|folder"):
            load_image(path)


@pytest.mark.parametrize(
    ("width", "height"), [(8_000_000, 1), (1, 8_000_000), (MAX_SIDE + 1, 8), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]
)
def test_sizes_are_bounded_before_memory_is_taken(tmp_path, width, height):
    path = write_empty_png(tmp_path / "a.png", width, height)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MediaError, match=r"a\.png.*too many pixels"):
        load_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000 * (
        1024 if sys.platform == "darwin" else 1
    )


def test_compressed_texts_and_profiles_do_not_swell(tmp_path):
    bomb = zlib.compress(bytes(80_000_000), 9)
    for chunk in ((b"zTXt", b"k\0\0" + bomb), (b"iTXt", b"k\0\1\0\0\0" + bomb), (b"iCCP", b"k\0\0" + bomb)):
        path = write_png(tmp_path / "a.png", corners(8, 8), [chunk])
        try:
            np.testing.assert_array_equal(load_image(path), corners(8, 8))
        except MediaError as error:
            assert "a.png" in str(error)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif", "bmp", "ppm", "avif"])
def test_cut_files_are_damaged(tmp_path, suffix):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    Image.fromarray(noise).save(whole, kind)
    for share in (0.2, 0.7):
        (tmp_path / f"a.{suffix}").write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
        with pytest.raises(MediaError, match=rf"a\.{suffix}"):
            load_image(tmp_path / f"a.{suffix}")


# large and small pictures on their way to the encoder


@pytest.mark.parametrize(
    ("height", "width"), [(5, 20000), (20000, 8), (16384, 2), (2, 16384), (16386, 64), (64, 16385), (1, 65535), (1, 1)]
)
def test_a_picture_of_any_shape_comes_through(tmp_path, height, width):
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(tmp_path / "a.png")
    prepared = prepare_image(tmp_path / "a.png", 64, 96, 33)
    assert prepared.shape == (1, 64, 96, 3)
    np.testing.assert_allclose(prepared, 90 / 127.5 - 1, atol=0.03)


def test_what_the_encoder_takes_is_compressed_whole_as_officially():
    at_border = np.zeros((4, MAX_ENCODED_SIDE, 3), np.uint8)
    assert encodable(at_border, 64, 96) is at_border
    assert crf_degrade(at_border, 33).shape == at_border.shape
    beyond = np.random.default_rng(0).integers(0, 256, (40, MAX_ENCODED_SIDE + 2, 3), dtype=np.uint8)
    centre = encodable(beyond, 64, 96)
    assert centre.shape == (40, 60, 3)
    shown = resize_and_crop(beyond, 64, 96)
    np.testing.assert_allclose(resize_and_crop(centre, 64, 96)[:, 1:-1], shown[:, 1:-1], atol=1)
    still_long = encodable(np.full((20, 40000, 3), 7, np.uint8), 32, 32 * 1500)
    assert max(still_long.shape[:2]) <= MAX_ENCODED_SIDE and (still_long == 7).all()


def test_resizing_a_wide_picture_takes_memory_for_the_result_alone():
    wide = np.broadcast_to(np.uint8(77), (2, 1_000_000, 3))  # 12 GB if every column were mixed
    np.testing.assert_array_equal(resize_and_crop(wide, 1024, 1024), np.full((1024, 1024, 3), 77, np.float32))
