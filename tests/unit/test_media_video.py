"""Reading videos: facts, index and time stamp access, rotation, bad input."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.audio import write_wav
from mlx_ltx2.media.video import iter_frames, probe, read_frames
from mlx_ltx2.media.writer import ClipWriter
from mlx_ltx2.states import Waveform
from tests.fixtures.media_files import (
    colour_clip,
    corners,
    counting_clip,
    sine,
    turn_clockwise,
    write_plain_video,
)


def numbers(frames: np.ndarray) -> list[int]:
    return [round((float(f.mean()) - 10) / 8) for f in frames]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_plain_video(tmp_path_factory.mktemp("clip") / "count.mp4", counting_clip(20), 10)


def test_probe_states_size_rate_length_and_sound(tmp_path, clip):
    info = probe(clip)
    assert (info.width, info.height, info.fps, info.frames) == (64, 48, Fraction(10), 20)
    assert info.seconds == pytest.approx(2.0) and not info.has_audio and info.audio_rate_hz is None
    with ClipWriter(tmp_path / "a.mp4", fps=29.97, audio=Waveform(sine(1, 32000), 32000)) as writer:
        writer.write(colour_clip(3, 16, 32, (1, 2, 3)))
    info = probe(tmp_path / "a.mp4")
    assert info.fps == Fraction(30000, 1001) and info.has_audio and info.audio_rate_hz == 32000
    assert info.seconds == pytest.approx(3 * 1001 / 30000, abs=1e-6)


def test_frames_are_counted_when_the_container_does_not_say(tmp_path):
    path = write_plain_video(tmp_path / "count.mkv", counting_clip(7), 10)
    assert probe(path).frames is None
    assert probe(path, count=True).frames == 7
    assert probe(path).seconds == pytest.approx(0.7, abs=0.05)


def test_read_frames_by_index_and_by_time_stamp(clip):
    assert numbers(read_frames(clip)) == list(range(20))
    assert numbers(read_frames(clip, max_frames=3)) == [0, 1, 2]
    for by in ("index", "pts"):
        assert numbers(read_frames(clip, start_seconds=0.5, max_frames=4, by=by)) == [5, 6, 7, 8]
        assert numbers(read_frames(clip, start_seconds=1.9, by=by)) == [19]
    assert numbers(read_frames(clip, start_seconds=0.51, max_frames=1, by="pts")) == [6]
    assert numbers(read_frames(clip, start_seconds=0.51, max_frames=1, by="index")) == [5]


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25, 2)])
def test_frame_times_meet_their_frames_though_mkv_rounds_them(tmp_path, fps):
    path = write_plain_video(tmp_path / "a.mkv", counting_clip(12), fps)
    for k in range(12):
        assert numbers(read_frames(path, start_seconds=float(k / fps), max_frames=1, by="pts")) == [k]


def test_iter_frames_streams(clip):
    stream = iter_frames(clip)
    frame = next(stream)
    assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
    stream.close()


def test_a_rotated_video_is_shown_upright(tmp_path):
    path = tmp_path / "phone.mp4"
    with ClipWriter(path, fps=24) as writer:
        writer.write(np.stack([corners(32, 64)] * 2))
    turn_clockwise(path, 32)
    info = probe(path)
    assert (info.width, info.height, info.rotation) == (32, 64, 270)
    frame = read_frames(path)[0].astype(int)
    upright = np.rot90(corners(32, 64), -1).astype(int)
    for y, x in ((8, 4), (8, 28), (56, 4), (56, 28)):
        assert np.abs(frame[y, x] - upright[y, x]).max() <= 6


def test_bad_videos_and_bad_ranges_are_refused(tmp_path, clip):
    write_wav(tmp_path / "sound.wav", Waveform(sine(0.1, 8000, 1), 8000))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:200])
    cases = {"sound.wav": "no video stream", "text.mp4": "cannot be read", "cut.mp4": "cannot be read"}
    for name, words in (cases | {"missing.mp4": "does not exist"}).items():
        for read in (probe, read_frames):
            with pytest.raises(MediaError, match=words):
                read(tmp_path / name)
    with pytest.raises(MediaError, match=r"no frame at or after 2\.5"):
        read_frames(clip, start_seconds=2.5)
    for arguments in ({"start_seconds": -0.1}, {"max_frames": 0}, {"by": "name"}):
        with pytest.raises(RequestError):
            iter_frames(clip, **arguments)
