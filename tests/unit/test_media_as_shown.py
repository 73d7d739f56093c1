"""Videos are read as a player shows them: times, pixels, orientation and colours, and what changed is said."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from mlx_ltx2.errors import MediaError, ResourceError
from mlx_ltx2.media import as_shown, video
from mlx_ltx2.media.as_shown import squared
from mlx_ltx2.media.frame_times import FrameTimes
from mlx_ltx2.media.video import iter_frames, probe, read_frames
from mlx_ltx2.media.writer import ClipWriter
from tests.fixtures.media_files import colour_clip, corners, counting_clip, turn_clockwise, write_plain_video
from tests.fixtures.odd_videos import (
    MATRICES,
    coded,
    cut_by_edit_list,
    pq,
    set_matrix,
    shown,
    write_coded_video,
    write_shaped_video,
    write_timed_video,
)


def numbers(frames: np.ndarray) -> list[int]:
    return [round((float(f.mean()) - 10) / 8) for f in frames]


def times(seconds, tick=Fraction(1, 1000), hints=()) -> FrameTimes:
    ticks = np.rint(np.array(seconds) / float(tick)).astype(np.int64)
    return FrameTimes(ticks, tick, 0, tuple(hints))


# -- time ---------------------------------------------------------------------------------------------------------


def test_a_rate_that_falls_is_read_at_the_higher_one(tmp_path):
    at = [k / 30 for k in range(13)] + [0.4 + k / 10 for k in range(1, 13)]
    path = write_timed_video(tmp_path / "a.mp4", counting_clip(25), at)
    info = probe(path, count=True)
    assert (info.fps, info.frames, info.as_is) == (30, 51, False)
    assert info.notes[-1] == f"{path}: read as 30 fps; its rate varies between 10 and 30 fps"
    found = numbers(read_frames(path))
    assert found[:13] == list(range(13)) and found[12:22] == [12] * 3 + [13] * 3 + [14] * 3 + [15]
    # 0.1 to 0.4 s are what a player shows then.
    assert numbers(read_frames(path, start_seconds=0.4, max_frames=4, by="pts")) == [12, 12, 12, 13]


@pytest.mark.parametrize(
    ("at", "fps", "first"),
    [
        ([0, 0.1, 0.2, 0.5, 0.6], 10, [0, 1, 2, 2, 2, 3, 4]),  # a hole
        ([0, 0.04, 0.08, 0.28, 0.32], 25, [0, 1, 2, 2, 2, 2, 2, 3, 4]),
        ([0, 1, 3], 1, [0, 1, 1, 2]),  # a slide show
        ([0, 1 / 60, 2 / 60, 4 / 60, 8 / 60], 60, [0, 1, 2, 2, 3, 3, 3, 3, 4]),
    ],
)
def test_variable_rates_become_the_one_on_whose_grid_they_lie(at, fps, first):
    found = times(at)
    assert not found.near_rate and found.rate == fps
    assert found.shown(Fraction(fps))[: len(first)].tolist() == first


def test_stamps_that_stray_or_are_rounded_keep_every_picture_once():
    for fps in (Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)):
        rounded = times([round(k / float(fps), 3) for k in range(200)])
        assert rounded.steady_rate == fps and rounded.shown(fps).tolist() == list(range(200))
    phone = times([0, *(k / 30 + 0.004 * (-1) ** (k // 2) for k in range(1, 60))])
    assert phone.steady_rate is None and phone.near_rate == 30
    assert phone.shown(Fraction(30)).tolist() == list(range(60))


@pytest.mark.parametrize(
    ("own", "fps", "expected"),
    [
        (60, 24, [0, 2, 5, 7, 10, 12]),
        (50, 25, [0, 2, 4, 6, 8, 10]),
        (24, 60, [0, 0, 0, 1, 1, 2]),
        (12, 24, [0, 0, 1, 1, 2, 2]),
        (25, 24, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_another_rate_is_reached_by_time(tmp_path, own, fps, expected):
    path = write_plain_video(tmp_path / "a.mp4", counting_clip(30), own)
    assert numbers(read_frames(path, max_frames=6, fps=Fraction(fps))) == expected
    info = probe(path, fps=Fraction(fps), frames=6)
    assert info.frames == 6
    said = f"{path}: its {own} fps were read as {fps} fps, by time"
    assert (said in info.notes) == (expected != list(range(6)))
    # How long it is, is judged by time.
    assert abs(probe(path, fps=Fraction(fps), frames=1000).frames - 30 * fps / own) < 1


def test_the_broadcast_rate_beside_a_whole_one_is_taken_for_it():
    clip = times([k * 1001 / 30000 for k in range(120)], Fraction(1, 90000))
    assert clip.shown(Fraction(30))[:120].tolist() == list(range(120))


@pytest.mark.parametrize("suffix", ["gif", "ts", "mkv", "avi", "mov"])
def test_containers_of_every_kind_give_every_picture_once(tmp_path, suffix):
    path, frames = tmp_path / f"a.{suffix}", counting_clip(12)
    if suffix == "gif":
        with ClipWriter(path, fps=10) as writer:
            writer.write(frames)
    else:
        write_plain_video(path, frames, 10)
    info = probe(path, count=True)
    assert (info.fps, info.frames) == (10, 12) and info.seconds == pytest.approx(1.2, abs=0.01)
    assert numbers(read_frames(path)) == list(range(12))


def test_pictures_that_an_edit_list_hides_are_not_read(tmp_path):
    path = cut_by_edit_list(write_plain_video(tmp_path / "a.mp4", counting_clip(30), 10), 5, 12)
    info = probe(path, count=True)
    assert (info.frames, info.fps, info.as_is) == (12, 10, False)
    assert any("its header counts 30 pictures; a player shows 12" in note for note in info.notes)
    assert numbers(read_frames(path)) == list(range(5, 17))
    assert numbers(read_frames(path, start_seconds=0.5, max_frames=2, by="pts")) == [10, 11]


def test_a_stream_without_any_time_stamps_is_read_at_its_rate(tmp_path):
    path = write_plain_video(tmp_path / "a.h264", counting_clip(8), 25)
    assert probe(path, count=True).frames == 8
    assert numbers(read_frames(path)) == list(range(8))


def test_a_file_whose_end_is_missing_is_read_as_far_as_it_goes_and_that_is_said(tmp_path):
    path = write_plain_video(tmp_path / "a.ts", counting_clip(40), 25)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3 // 188 * 188])
    assert 10 < probe(path, count=True).frames < 40


# -- pixels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aspect", "width"),
    [(Fraction(4, 3), 96), (Fraction(16, 15), 76), (Fraction(8, 9), 64), (Fraction(2), 144), (Fraction(1), 72)],
)
def test_pixels_become_square(tmp_path, aspect, width):
    path = write_shaped_video(tmp_path / "a.mp4", np.stack([corners(48, 72)] * 3), aspect)
    info = probe(path, count=True)
    assert (info.width, info.height) == (width, 48)
    assert any(f"72x48 became {width}x48" in note for note in info.notes) == (width != 72)
    frame = read_frames(path)[0]
    assert frame.shape == (48, width, 3)
    assert np.abs(frame[12, width // 4].astype(int) - (255, 0, 0)).max() <= 6
    assert np.abs(frame[36, 3 * width // 4].astype(int) - (0, 0, 255)).max() <= 6


def test_pixels_are_squared_before_the_picture_is_turned(tmp_path):
    path = write_shaped_video(tmp_path / "a.mp4", np.stack([corners(48, 72)] * 2), Fraction(4, 3))
    turn_clockwise(path, 48)
    assert (probe(path).width, probe(path).height) == (48, 96)
    frame = read_frames(path)[0].astype(int)
    assert np.abs(frame[24, 12] - (255, 255, 255)).max() <= 6 and np.abs(frame[24, 36] - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize("name", MATRICES)
def test_all_eight_orientations(tmp_path, name):
    path = write_plain_video(tmp_path / "a.mp4", np.stack([corners(32, 48)] * 2), 10)
    set_matrix(path, MATRICES[name])
    expected = shown(corners(32, 48), MATRICES[name]).astype(int)
    info, frame = probe(path), read_frames(path)[0].astype(int)
    assert (info.height, info.width) == frame.shape[:2] == expected.shape[:2]
    assert info.as_is == (name == "upright")
    for y in (frame.shape[0] // 4, 3 * frame.shape[0] // 4):
        for x in (frame.shape[1] // 4, 3 * frame.shape[1] // 4):
            assert np.abs(frame[y, x] - expected[y, x]).max() <= 6


def test_a_matrix_in_between_is_rounded_and_that_is_said(tmp_path):
    path = write_plain_video(tmp_path / "a.mp4", np.stack([corners(32, 48)] * 2), 10)
    set_matrix(path, (0.985, 0.17, -0.17, 0.985))
    assert probe(path).rotation == 0
    assert any("no quarter turn" in note for note in probe(path).notes)


def test_pictures_that_are_too_large_are_refused_before_they_are_decoded():
    with pytest.raises(ResourceError, match="too large"):
        squared((40000, 40000), None)
    with pytest.raises(ResourceError, match="too large"):
        squared((1920, 1080), Fraction(1000))


def test_clips_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    path = write_plain_video(tmp_path / "a.mp4", counting_clip(30), 10)
    monkeypatch.setattr(video, "_most_bytes", lambda: 20 * 64 * 48 * 3)
    for read in (lambda p: probe(p, count=True), read_frames):
        with pytest.raises(ResourceError, match="half of this machine's memory"):
            read(path)
    assert probe(path, fps=Fraction(10), frames=5).frames == 5 and len(read_frames(path, max_frames=5)) == 5
    monkeypatch.setattr(video, "MOST_FRAMES", 15)
    video._scan.cache_clear()
    video._WHOLE.clear()
    with pytest.raises(ResourceError, match="more than 15 frames"):
        list(iter_frames(path))


def test_no_more_is_decoded_than_is_asked_for(tmp_path, monkeypatch):
    path = write_plain_video(tmp_path / "a.mp4", counting_clip(60), 10)
    monkeypatch.setattr(video, "MOST_FRAMES", 30)
    assert probe(path, fps=Fraction(10), frames=9).frames == 9
    assert len(read_frames(path, max_frames=9, fps=Fraction(10))) == 9


# -- colours ------------------------------------------------------------------------------------------------------

PATCHES = [(255, 255, 255), (200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128), (20, 20, 20), (230, 230, 230)]


def patches(colours) -> np.ndarray:
    return np.repeat(np.repeat(np.array(colours)[None], 16, 1), 16, 0)


@pytest.mark.parametrize("curve", ["hlg", pytest.param("pq", marks=pytest.mark.slow)])
def test_hdr_is_tone_mapped_and_its_gamut_mapped(tmp_path, curve):
    bright = np.stack([64 + 876 * pq([300, 600, 1000]), *[np.full(3, 512)] * 2], -1)
    picture = coded(patches(PATCHES), curve)
    if curve == "pq":
        picture = np.concatenate([picture, patches(np.rint(bright).astype(np.uint16))], 1)
    codes = {"hlg": 18, "pq": 16}
    path = write_coded_video(tmp_path / "a.mkv", picture, matrix=9, primaries=9, transfer=codes[curve])
    row = read_frames(path, max_frames=1)[0, 8, 8::16].astype(int)
    assert (row[0] >= 235).all() and (row[0] < 250).all()
    assert np.abs(row[1:7] - PATCHES[1:]).max() <= (12 if curve == "hlg" else 4), row
    if curve == "pq":
        assert (np.diff(row[[0, 7, 8, 9], 1]) > 0).all(), row
    assert f"{path}: its {curve.upper()} was tone-mapped and its BT.2020 colours mapped to BT.709" in probe(path).notes


def test_wide_gamut_sdr_is_mapped(tmp_path):
    path = write_coded_video(
        tmp_path / "a.mkv", coded(patches(PATCHES), "bt709"), matrix=9, primaries=9, transfer=14, count=1
    )
    row = read_frames(path)[0, 8, 8::16].astype(int)
    assert np.abs(row - PATCHES).max() <= 6, row
    assert f"{path}: its BT.2020 colours were mapped to BT.709" in probe(path).notes


def y_cb_cr(rgb, kr, kb, full=False) -> np.ndarray:
    """8-bit RGB -> 8-bit Y'CbCr."""
    red, green, blue = np.moveaxis(np.asarray(rgb) / 255, -1, 0)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    scale = (0, 255, 255) if full else (16, 219, 224)
    return np.rint(
        np.stack([scale[0] + scale[1] * luma, *(128 + scale[2] * c for c in chroma)], -1).clip(0, 255)
    ).astype(np.uint8)


@pytest.mark.parametrize(
    ("matrix", "weights", "full"),
    [
        (1, (0.2126, 0.0722), False), (1, (0.2126, 0.0722), True), (6, (0.299, 0.114), False),
        (5, (0.299, 0.114), True), (7, (0.212, 0.087), False),
    ],
)  # fmt: skip
def test_matrix_and_range_are_read(tmp_path, matrix, weights, full):
    picture = y_cb_cr(patches(PATCHES), *weights, full)
    path = write_coded_video(tmp_path / "a.mkv", picture, matrix=matrix, primaries=1, transfer=1, full=full)
    assert np.abs(read_frames(path)[0, 8, 8::16].astype(int) - PATCHES).max() <= 3
    assert probe(path).notes == () and probe(path).as_is


def test_colours_without_a_name_are_those_of_their_size(tmp_path):
    for name, size, weights in (("BT.601", (64, 112), (0.299, 0.114)), ("BT.709", (580, 112), (0.2126, 0.0722))):
        picture = np.resize(y_cb_cr(patches(PATCHES), *weights), (*size, 3))
        path = write_coded_video(tmp_path / f"{name}.mkv", picture, matrix=2, primaries=2, transfer=2, count=1)
        assert np.abs(read_frames(path)[0, 8, 8::16].astype(int) - PATCHES).max() <= 3
        assert any(f"not named; read as {name}" in note for note in probe(path).notes)


def test_a_matrix_that_cannot_be_converted_is_refused(tmp_path):
    path = write_coded_video(
        tmp_path / "a.mkv", coded(patches(PATCHES), "pq"), matrix=14, primaries=9, transfer=16, count=1
    )
    with pytest.raises(MediaError, match="colour matrix number 14"):
        probe(path)


def test_transparent_pictures_stand_on_a_neutral_ground(tmp_path):
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, :8] = 250, 10, 10, 255
    rgba[:, 8:] = 0, 255, 0, 0
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "rgba"
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")), *stream.encode()]:
            container.mux(packet)
    frame = read_frames(path)[0]
    assert frame[0, 0].tolist() == [250, 10, 10] and frame[0, 15].tolist() == [as_shown._GROUND] * 3
    assert any("transparent" in note for note in probe(path, count=True).notes)


def test_fields_become_whole_pictures(tmp_path):
    woven = np.zeros((6, 48, 64, 3), np.uint8)
    woven[:, ::2] = 200
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1", "x264-params": "tff=1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        packets = [p for f in woven for p in stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24"))]
        for packet in [*packets, *stream.encode()]:
            container.mux(packet)
    info = probe(path, count=True)
    assert info.frames == 6 and any("interlaced" in note for note in info.notes)
    assert len(read_frames(path)) == 6


def test_plain_clips_are_read_as_they_are_and_nothing_is_said(tmp_path):
    with ClipWriter(tmp_path / "a.mp4", fps=24) as writer:
        writer.write(colour_clip(5, 32, 48, (200, 40, 40)))
    info = probe(tmp_path / "a.mp4", count=True)
    assert info.notes == () and info.as_is and info.frames == 5


def test_a_counted_clip_is_decoded_once_more_and_reads_the_same(tmp_path, monkeypatch):
    at = [k / 30 for k in range(10)] + [1 + k / 10 for k in range(10)]
    path = write_timed_video(tmp_path / "a.mp4", counting_clip(20), at)
    before = read_frames(path, max_frames=15, fps=Fraction(30))
    decoded = []
    plain = video.shown_frames

    def counted(*given):
        decoded.append(given)
        return plain(*given)

    monkeypatch.setattr(video, "shown_frames", counted)
    probe(path, count=True)
    looks = len(decoded)
    assert np.array_equal(read_frames(path, max_frames=15, fps=Fraction(30)), before)
    assert (looks, len(decoded) - looks) == (2, 1)  # its first picture, its times; its pictures


def test_pictures_of_another_size_midway_fill_the_first_size_or_are_refused(tmp_path):
    for name, later, kept in (("same", (96, 128), True), ("other", (48, 128), False)):
        parts = [write_plain_video(tmp_path / f"{name}{n}.h264", colour_clip(4, *size, (200, 40, 40)), 10)
                 for n, size in enumerate(((48, 64), later))]  # fmt: skip
        raw = tmp_path / f"{name}.h264"
        raw.write_bytes(b"".join(part.read_bytes() for part in parts))
        if kept:
            assert read_frames(raw).shape == (8, 48, 64, 3)
            assert any("change from 64x48 to 128x96" in note for note in probe(raw, count=True).notes)
        else:
            with pytest.raises(MediaError, match="change from 64x48 to 128x48"):
                probe(raw, count=True)


def test_an_mp4_that_was_cut_short_is_read_as_far_as_it_goes_or_refused(tmp_path):
    path = tmp_path / "a.mp4"
    with ClipWriter(path, fps=24) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    try:
        info = probe(path, count=True)
    except MediaError as error:
        assert "damaged" in str(error)
    else:
        assert info.frames < 24 and any("its header counts 24" in note for note in info.notes)


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_animations_with_their_own_delays_are_read_by_time(tmp_path, suffix):
    first, *others = [Image.fromarray(frame) for frame in counting_clip(6, 32, 32)]
    path = tmp_path / f"a.{suffix}"
    first.save(path, save_all=True, append_images=others, duration=[100, 100, 50, 200, 50, 100])
    info = probe(path, count=True)
    assert (info.fps, info.frames, info.seconds) == (20, 12, pytest.approx(0.6))
    assert numbers(read_frames(path)) == [0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5, 5]
    assert any("varies between 5 and 20" in note for note in info.notes)
