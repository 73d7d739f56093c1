"""Writing clips: exact lengths at any rate, true colours, the same bytes twice, and never half a file."""

from __future__ import annotations

import errno
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_ltx2.errors import LTX2Error, MediaError, RequestError, ResourceError, ShapeError
from mlx_ltx2.media import writer as writer_module
from mlx_ltx2.media.audio import read_audio, write_wav
from mlx_ltx2.media.color import yuv420_from_rgb
from mlx_ltx2.media.files import holds_audio
from mlx_ltx2.media.frame_rate import exact_fps, samples_for_frames
from mlx_ltx2.media.images import load_image
from mlx_ltx2.media.metadata import read_metadata
from mlx_ltx2.media.outputs import check_writable
from mlx_ltx2.media.video import probe, read_frames
from mlx_ltx2.media.writer import ClipWriter, remux_audio, save_frames
from mlx_ltx2.states import Waveform
from tests.fixtures.media_files import colour_clip, corners, counting_clip, sine


def write(path, frames, fps=24, **arguments) -> ClipWriter:
    with ClipWriter(path, fps=fps, **arguments) as writer:
        writer.write(frames)
    return writer


def left_behind(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Rates and lengths


@pytest.mark.parametrize(
    ("given_fps", "exact"),
    [
        (24, Fraction(24)),
        (25.0, Fraction(25)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
        ("30000/1001", Fraction(30000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        (Fraction(2997, 100), Fraction(2997, 100)),
        (12.5, Fraction(25, 2)),
        (14.4, Fraction(72, 5)),
        (0.5, Fraction(1, 2)),
        (60, Fraction(60)),
    ],
)
def test_frame_rates_are_exact(given_fps, exact):
    assert exact_fps(given_fps) == exact


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "fast", "1/0", None, 1e6])
def test_impossible_frame_rates_are_refused(fps):
    with pytest.raises(RequestError, match="not a frame rate"):
        exact_fps(fps)


@given(st.fractions(min_value=Fraction(1, 10), max_value=240, max_denominator=1001), st.integers(1, 5000))
@settings(max_examples=50, deadline=None)
def test_any_fraction_survives_and_sound_is_within_half_a_sample(fps, num_frames):
    assert exact_fps(fps) == fps
    samples = samples_for_frames(num_frames, fps, 48000)
    assert abs(Fraction(samples, 48000) - num_frames / fps) <= Fraction(1, 96000)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("fps", [24, 25, 29.97, 30, 12.5])
@pytest.mark.parametrize("sound", ["long", "short", "mono", "exact"])
def test_picture_and_sound_last_equally_long(tmp_path, fps, suffix, sound):
    rate_hz, num_frames, exact = 48000, 17, exact_fps(fps)
    wanted = samples_for_frames(num_frames, exact, rate_hz)
    seconds = {"long": 3.0, "short": 0.2, "mono": 1.0, "exact": wanted / rate_hz}[sound]
    audio = Waveform(sine(seconds, rate_hz, 1 if sound == "mono" else 2), rate_hz)
    path = tmp_path / f"clip{suffix}"
    writer = write(path, counting_clip(num_frames, 32, 32), fps, audio=audio)
    assert bool(writer.notes) == (sound != "exact")
    with av.open(str(path)) as container:
        video, track = container.streams.video[0], container.streams.audio[0]
        assert video.average_rate == exact and track.rate == rate_hz and track.channels == 2
        assert video.duration * video.time_base == num_frames / exact
        assert track.duration * track.time_base == Fraction(wanted, rate_hz)
        assert abs(container.duration / 1e6 - float(num_frames / exact)) < 1e-3
        assert sum(1 for _ in container.decode(video)) == num_frames
        container.seek(0)
        decoded = sum(f.samples for f in container.decode(track))
        assert abs(Fraction(decoded, rate_hz) - num_frames / exact) < 1 / exact
    samples = read_audio(path).samples
    assert samples.shape == (wanted, 2)
    if sound == "short":
        assert np.abs(samples[12000:]).max() < 1e-3
    if sound == "mono":
        np.testing.assert_allclose(samples[:, 0], samples[:, 1], atol=0.03)


@pytest.mark.parametrize("rate_hz", [16000, 24000, 44100])
def test_sound_keeps_its_own_rate_and_its_place_in_time(tmp_path, rate_hz):
    tone = sine(2.0, rate_hz)
    tone[: rate_hz // 2] = 0
    write(tmp_path / "a.mp4", counting_clip(24, 32, 32), audio=Waveform(tone, rate_hz))
    loaded = read_audio(tmp_path / "a.mp4")
    assert loaded.rate_hz == rate_hz and len(loaded.samples) == rate_hz
    assert np.abs(loaded.samples - tone[:rate_hz]).mean() < 0.02
    assert np.abs(loaded.samples[: rate_hz // 2 - 1100]).max() < 0.02


def test_sound_at_a_rate_that_aac_lacks_is_resampled(tmp_path):
    write(tmp_path / "a.mp4", counting_clip(12, 32, 32), audio=Waveform(sine(0.5, 20000), 20000))
    loaded = read_audio(tmp_path / "a.mp4")
    assert loaded.rate_hz == 48000 and len(loaded.samples) == 24000


def test_sound_may_arrive_after_the_frames_and_one_frame_is_a_clip(tmp_path):
    with ClipWriter(tmp_path / "a.mp4", fps=10) as writer:
        writer.write(colour_clip(1, 16, 16, (5, 5, 5))[0])
        writer.audio = Waveform(sine(1.0, 48000), 48000)
        writer.close()
        with pytest.raises(MediaError, match="finished already"):
            writer.write(colour_clip(1, 16, 16, (5, 5, 5)))
    assert probe(tmp_path / "a.mp4").frames == 1
    assert len(read_audio(tmp_path / "a.mp4").samples) == 4800


def test_broken_sound_is_refused_and_nothing_stays(tmp_path):
    with pytest.raises(MediaError, match="NaN"):
        write(tmp_path / "a.mp4", counting_clip(2), audio=Waveform(np.full((9, 2), np.nan, np.float32), 48000))
    assert left_behind(tmp_path) == []


# Colours


@pytest.mark.parametrize(
    "colour",
    [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
        (0, 0, 0),
        (200, 120, 40),
        (30, 60, 90),
        (128, 128, 128),
    ],
)
def test_solid_colours_come_back(tmp_path, colour):
    write(tmp_path / "a.mp4", colour_clip(3, 64, 64, colour))
    frames = read_frames(tmp_path / "a.mp4").astype(int)
    assert np.abs(frames - np.array(colour)).max() <= 3


def test_the_stream_is_tagged_bt709_limited_range(tmp_path):
    write(tmp_path / "a.mp4", colour_clip(2, 32, 32, (10, 200, 30)))
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range) == (1, 1, 1, 1)
        assert codec.name == "h264" and codec.pix_fmt == "yuv420p"
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_bt709_conversion_against_its_definition():
    rgb = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    rgb[0, :6] = [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    red, green, blue = (rgb[..., c] / 255 for c in range(3))
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    blue_difference, red_difference = (blue - luma) / 1.8556, (red - luma) / 1.5748

    def halved(plane):
        return plane.reshape(16, 2, 24, 2).mean((1, 3))

    out = yuv420_from_rgb(rgb).astype(float)
    assert np.abs(out[:32] - (16 + 219 * luma)).max() < 0.51
    planes = out[32:].reshape(2, 16, 24)
    assert np.abs(planes[0] - (128 + 224 * halved(blue_difference))).max() < 0.51
    assert np.abs(planes[1] - (128 + 224 * halved(red_difference))).max() < 0.51


# The file


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".gif", ".webp", ".png", ".jpg"])
def test_the_same_frames_give_the_same_bytes(tmp_path, suffix):
    count = 1 if suffix in (".png", ".jpg") else 12
    frames = np.random.default_rng(3).integers(0, 256, (count, 64, 96, 3), dtype=np.uint8)
    audio = Waveform(sine(1.0, 24000), 24000) if holds_audio(f"a{suffix}") else None
    files = []
    for chunks in (1, 3):
        with ClipWriter(tmp_path / f"{chunks}{suffix}", fps=24, audio=audio, metadata={"seed": "7"}) as writer:
            for chunk in np.array_split(frames, min(chunks, count)):
                writer.write(chunk)
        files.append((tmp_path / f"{chunks}{suffix}").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".gif", ".webp", ".png", ".jpg"])
def test_metadata_comes_back(tmp_path, suffix):
    text = {
        "prompt": 'a "kite" — été 風',
        "title": "Kite",
        "plan": "p" * (9000 if suffix == ".jpg" else 90000),
    }
    write(tmp_path / f"a{suffix}", colour_clip(1, 32, 32, (9, 99, 199)), metadata=text)
    assert read_metadata(tmp_path / f"a{suffix}") == text
    write(tmp_path / f"b{suffix}", colour_clip(1, 32, 32, (9, 99, 199)))
    assert "prompt" not in read_metadata(tmp_path / f"b{suffix}")


def test_metadata_of_a_broken_file_and_of_the_wrong_type(tmp_path):
    (tmp_path / "a.mp4").write_text("nothing")
    with pytest.raises(MediaError, match="cannot be read"):
        read_metadata(tmp_path / "a.mp4")
    with pytest.raises(TypeError, match="seed"):
        ClipWriter(tmp_path / "b.mp4", fps=24, metadata={"seed": 7})


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_have_every_frame_and_the_right_length(tmp_path, suffix):
    audio = Waveform(sine(1.0, 24000), 24000)
    writer = write(tmp_path / f"a{suffix}", counting_clip(24, 32, 40), 23.976, audio=audio)
    assert "hold no sound" in writer.notes[0]
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.n_frames == 24 and image.size == (40, 32) and image.info.get("loop") == 0
        total = 0
        for index in range(24):
            image.seek(index)
            image.load()
            total += image.info["duration"]
            assert abs(np.asarray(image.convert("RGB")).mean() - (10 + 8 * index)) < 3
        assert total == pytest.approx(1001, abs=5)


def test_stills_hold_one_frame(tmp_path):
    write(tmp_path / "a.png", corners(15, 17))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), corners(15, 17))
    for name in ("b.png", "b.jpg"):
        with pytest.raises(RequestError, match=r"one frame.*\.mp4"):
            write(tmp_path / name, counting_clip(2))
        with pytest.raises(RequestError, match="2 frames"):
            check_writable(tmp_path / name, num_frames=2)
    assert left_behind(tmp_path) == ["a.png"]


def test_odd_sizes_changing_sizes_and_wrong_arrays_are_refused(tmp_path):
    with pytest.raises(ShapeError, match=r"33x32; crop to 32x32"):
        write(tmp_path / "a.mp4", colour_clip(1, 32, 33, (1, 1, 1)))
    with pytest.raises(ShapeError, match=r"\(16, 32\)"), ClipWriter(tmp_path / "a.mp4", fps=24) as writer:
        writer.write(colour_clip(2, 32, 32, (1, 1, 1)))
        writer.write(colour_clip(2, 16, 32, (1, 1, 1)))
    for frames in (np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 32, 32, 4), np.uint8)):
        with pytest.raises(MediaError, match="uint8"):
            write(tmp_path / "a.mp4", frames)
    with pytest.raises(RequestError, match="crf 99"):
        ClipWriter(tmp_path / "a.mp4", fps=24, crf=99)
    with pytest.raises(MediaError, match="no frame"), ClipWriter(tmp_path / "a.mp4", fps=24):
        pass
    assert left_behind(tmp_path) == []


# Whole or not at all


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MediaError])
@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_an_interrupted_clip_leaves_the_old_file_and_no_other(tmp_path, error, suffix):
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"the clip of yesterday")
    with pytest.raises(error), ClipWriter(path, fps=24, overwrite=True) as writer:
        writer.write(counting_clip(30))
        raise error("stop")
    assert left_behind(tmp_path) == [path.name] and path.read_bytes() == b"the clip of yesterday"


def test_an_error_while_the_file_is_finished_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer_module.os, "replace", full)
    with pytest.raises(ResourceError, match="no space left"):
        write(tmp_path / "a.mp4", counting_clip(2))
    assert left_behind(tmp_path) == []


def test_the_clip_has_its_name_only_when_whole_and_new_folders_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "a.mp4"
    check_writable(path)
    assert left_behind(tmp_path) == []
    with ClipWriter(path, fps=24) as writer:
        writer.write(counting_clip(2))
        assert not path.exists()
    assert left_behind(path.parent) == ["a.mp4"]


def test_places_that_cannot_be_written_to_are_found_early(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    for path, words in (
        (tmp_path / "file" / "a.mp4", "not a folder"),
        (tmp_path / "folder.mp4", "is a folder"),
    ):
        for check in (check_writable, lambda p: ClipWriter(p, fps=24)):
            with pytest.raises(MediaError, match=words):
                check(path)
    for name in ("a.avi", "a"):
        with pytest.raises(RequestError, match=r"use one of \.mp4"):
            check_writable(tmp_path / name)
    with pytest.raises(RequestError, match=r"\.wav"):
        check_writable(tmp_path / "a.mp4", sound_only=True)
    check_writable(tmp_path / "a.wav", sound_only=True)
    with pytest.raises(ResourceError, match="make room"):
        check_writable(tmp_path / "a.mp4", bytes_needed=1 << 60)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_folder_is_found_early(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MediaError, match="cannot be written to"):
        check_writable(tmp_path / "a.mp4")


@pytest.fixture
def tiny_disk(small_disk):
    return small_disk(200_000)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".gif", ".webp", ".png", ".jpg", ".wav"])
def test_a_full_disk_is_an_error_of_resources_and_leaves_nothing(tiny_disk, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (24, 256, 256, 3), dtype=np.uint8)
    with pytest.raises(ResourceError, match="no space left"):
        if suffix == ".wav":
            write_wav(tiny_disk / "a.wav", Waveform(sine(10.0, 48000), 48000))
        elif suffix in (".png", ".jpg"):
            write(tiny_disk / f"a{suffix}", np.tile(noise[:1], (1, 8, 8, 1)))
        else:
            write(tiny_disk / f"a{suffix}", noise)
    assert left_behind(tiny_disk) == []


def test_a_disk_that_is_full_already_is_found_early(tiny_disk):
    with pytest.raises(OSError):
        (tiny_disk / "filler").write_bytes(bytes(1 << 20))
    with pytest.raises(ResourceError, match="no space left"):
        check_writable(tiny_disk / "a.mp4")


def test_any_other_failure_of_the_encoder_is_a_media_error(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise av.error.InvalidDataError(1094995529, "Invalid data", "muxer")

    monkeypatch.setattr(writer_module.av, "open", fails)
    with pytest.raises(LTX2Error, match="cannot be written"):
        write(tmp_path / "a.mp4", counting_clip(2))


# Frames and foreign sound


def test_save_frames_numbers_its_files(tmp_path):
    frames = counting_clip(3)
    paths = save_frames(tmp_path / "new", iter(frames), first=8)
    assert [p.name for p in paths] == ["frame_00008.png", "frame_00009.png", "frame_00010.png"]
    for path, frame in zip(paths, frames, strict=True):
        np.testing.assert_array_equal(load_image(path), frame)


def coded(path, kind: str) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(getattr(container.streams, kind)[0]) if p.dts is not None]


def test_remux_joins_streams_packet_by_packet(tmp_path):
    write(tmp_path / "new.mp4", counting_clip(24, 32, 32), metadata={"seed": "7"})
    write(tmp_path / "old.mp4", counting_clip(24, 16, 16), audio=Waveform(sine(1.0, 48000), 48000))
    remux_audio(tmp_path / "new.mp4", tmp_path / "old.mp4", tmp_path / "both.mp4")
    assert coded(tmp_path / "both.mp4", "video") == coded(tmp_path / "new.mp4", "video")
    assert coded(tmp_path / "both.mp4", "audio") == coded(tmp_path / "old.mp4", "audio")
    assert read_metadata(tmp_path / "both.mp4") == {"seed": "7"}
    old, both = read_audio(tmp_path / "old.mp4").samples, read_audio(tmp_path / "both.mp4").samples
    assert abs(len(old) - len(both)) <= 48
    np.testing.assert_array_equal(both[:47000], old[:47000])
    with pytest.raises(MediaError, match="no sound track"):
        remux_audio(tmp_path / "new.mp4", tmp_path / "new.mp4", tmp_path / "c.mp4")
    assert left_behind(tmp_path) == ["both.mp4", "new.mp4", "old.mp4"]


def test_a_full_disk_is_not_called_a_damaged_source(tmp_path, monkeypatch):
    write(tmp_path / "new.mp4", counting_clip(2), audio=Waveform(sine(0.1, 48000), 48000))

    def full(*_queues, key):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mlx_ltx2.media.writer.heapq.merge", full)
    with pytest.raises(ResourceError, match=r"no space left .*both\.mp4"):
        remux_audio(tmp_path / "new.mp4", tmp_path / "new.mp4", tmp_path / "both.mp4")
    assert left_behind(tmp_path) == ["new.mp4"]


def test_remux_says_where_a_source_is_damaged(tmp_path):
    write(tmp_path / "new.mp4", counting_clip(24, 32, 32))
    write(tmp_path / "old.mp4", counting_clip(24), audio=Waveform(sine(1.0, 48000), 48000))
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "old.mp4").read_bytes()[:900])
    with pytest.raises(MediaError, match=r"bad\.mp4 cannot be read as sound"):
        remux_audio(tmp_path / "new.mp4", tmp_path / "bad.mp4", tmp_path / "both.mp4")
    assert not (tmp_path / "both.mp4").exists()
