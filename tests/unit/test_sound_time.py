"""One time line for pictures and sound: late and early tracks, gaps, overlaps, clocks that begin anew."""

from __future__ import annotations

import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from mlx_ltx2.errors import MediaError
from mlx_ltx2.media import copied_sound, track_reader
from mlx_ltx2.media.audio import read_audio
from mlx_ltx2.media.time_line import Block, placed
from mlx_ltx2.media.writer import ClipWriter, remux_audio
from mlx_ltx2.shapes import VideoShape
from mlx_ltx2.stages.encode_media import read_recording
from mlx_ltx2.stages.plan import SourceUse
from mlx_ltx2.stages.source import Source
from tests.fixtures.media_files import counting_clip
from tests.fixtures.sound_files import Track, bursts, onsets, write_media

EXACT = ("pcm_s16le", "flac", "mp2")
PLACES = [
    ("a.ts", "aac"), ("a.ts", "mp2"), ("a.mkv", "pcm_s16le"), ("a.mkv", "libopus"), ("a.mkv", "flac"), ("a.mp4", "aac"),
    ("a.mov", "pcm_s16le"), ("a.mpg", "mp2"), ("a.mkv", "libmp3lame"),
]  # fmt: skip


def heard(path, **window) -> list[float]:
    sound = read_audio(path, **window)
    return onsets(sound.samples, sound.rate_hz)


def near(times: list[float], tolerance: float = 0.0015):
    """A millisecond for containers that round to it, and half of one for lossy onsets."""
    return pytest.approx(times, abs=tolerance)


@pytest.mark.parametrize(("name", "codec"), PLACES)
@pytest.mark.parametrize(
    ("sound", "picture", "times"),
    [
        (0.25, 0.0, [0.25, 0.75, 1.25]),
        (0.0, 0.75, [0.25, 0.65]),
        (0.5, 0.5, [0.0, 0.5, 1.0, 1.4]),
        (1.75, 1.5, [0.25, 0.75, 1.25]),
    ],
)
def test_a_track_lies_where_it_is_heard_beside_the_picture(tmp_path, name, codec, sound, picture, times):
    track = Track(bursts(1.6, 0, 0.5, 1.0, 1.4), codec=codec, start=sound)
    path = write_media(tmp_path / name, track, pictures=38, picture_start=picture)
    begins = heard(path)
    assert begins[: len(times)] == near(times)
    late, early = "after the picture; there is silence", "before the picture; that part is left out"
    notes = "".join(read_audio(path).notes)
    assert (late in notes, early in notes) == (sound > picture, sound < picture)
    part = heard(path, start_seconds=0.2, max_seconds=0.3)
    assert part == near([t - 0.2 for t in begins if 0.2 <= t < 0.5])


def test_a_late_sound_of_an_avi(tmp_path):
    path = write_media(tmp_path / "a.avi", Track(bursts(0.5, 0.1)), pictures=24)
    data = bytearray(path.read_bytes())
    field = data.index(b"auds") + 28  # dwStart of its stream header, in samples
    assert struct.unpack("<I", data[field : field + 4]) == (0,)
    data[field : field + 4] = struct.pack("<I", 12000)
    path.write_bytes(data)
    assert heard(path) == near([0.35])


def test_sound_alone_starts_with_its_first_sample(tmp_path):
    for name, codec in (("a.mka", "pcm_s16le"), ("a.ts", "mp2"), ("a.ogg", "libopus")):
        path = write_media(tmp_path / name, Track(bursts(0.5, 0.1), codec=codec, start=0.3))
        assert heard(path) == near([0.1], 0.011)
        assert not read_audio(path).notes


def test_a_cover_picture_is_no_picture(tmp_path):
    track = Track(bursts(0.5, 0.1), codec="flac", start=0.25)
    path = write_media(tmp_path / "a.mp4", track, pictures=1, picture_codec="mjpeg", cover=True)
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition & Disposition.attached_pic
    assert heard(path) == near([0.1])


def test_a_track_after_the_window_is_silence_and_one_after_the_file_is_refused(tmp_path):
    path = write_media(tmp_path / "a.mkv", Track(bursts(0.2, 0), start=1.0), pictures=48)
    quiet = read_audio(path, max_seconds=0.5)
    assert quiet.samples.shape == (24000, 1) and not quiet.samples.any()
    assert read_audio(path, start_seconds=0.5, max_seconds=0.7).samples[:24000].any() == np.False_
    assert "starts 1.000 s after the picture" in quiet.notes[0]
    with pytest.raises(MediaError, match=r"beyond the end.*1\.200 s"):
        read_audio(path, start_seconds=1.3)
    early = write_media(tmp_path / "b.mkv", Track(bursts(0.2, 0)), pictures=24, picture_start=1.0)
    with pytest.raises(MediaError, match="beyond the end"):
        read_audio(early)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "pcm_s16le"), ("a.mkv", "flac"), ("a.mp4", "aac"), ("a.ts", "aac"), ("a.m4a", "aac"), ("a.mka", "libopus")],
)  # fmt: skip
def test_what_follows_a_gap_keeps_its_time(tmp_path, name, codec):
    track = Track(bursts(2.0, 0, 0.4, 1.2, 1.6), codec=codec, lost=[(0.6, 1.099), (1.4, 1.499)])
    path = write_media(tmp_path / name, track, pictures=0 if name[-1] == "a" else 48)
    assert heard(path) == near([0, 0.4, 1.2, 1.6])
    (note,) = read_audio(path).notes
    assert "2 gaps are silence, 0." in note and "the first at 0.6" in note
    assert heard(path, start_seconds=1.15, max_seconds=0.2) == near([0.05])
    assert not read_audio(path, start_seconds=1.15, max_seconds=0.2).notes  # both gaps lie outside
    if codec in EXACT:
        sound = read_audio(path)
        assert not sound.samples[round(0.61 * 48000) : round(1.099 * 48000) - 500].any()


def test_a_gap_is_exact_to_the_sample_and_said(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, (48000, 1)).astype(np.float32)
    for lost in (0.5, 0.02):  # of one packet of 20 ms, too
        path = write_media(tmp_path / "a.mkv", Track(samples, block=960, lost=[(0.1999, 0.1999 + lost)]))
        sound = read_audio(path)
        expected = samples.copy()
        expected[9600 : 9600 + round(lost * 48000)] = 0
        assert np.abs(sound.samples - expected).max() <= 2**-15
        assert bool(sound.notes) == (lost == 0.5)
    write_media(tmp_path / "b.mkv", Track(samples, block=960, lost=[(0.1999, 0.4999)]))
    assert read_audio(tmp_path / "b.mkv").notes == (f"{tmp_path / 'b.mkv'}: a gap of 0.300 s at 0.200 s is silence",)


def test_files_joined_end_to_end(tmp_path):
    """What a second file lays over the first is left out; where its clock begins anew it follows."""
    first = write_media(tmp_path / "1.ts", Track(bursts(2.0, 0, 0.5), codec="mp2"), pictures=48)
    for start, times in ((1.9, [0, 0.5, 2.2]), (2.3, [0, 0.5, 2.6]), (0.0, [0, 0.5, 2.306])):
        track = Track(bursts(1.0, 0.3), codec="mp2", start=start)
        second = write_media(tmp_path / "2.ts", track, pictures=24, picture_start=start)
        path = tmp_path / "joined.ts"
        path.write_bytes(first.read_bytes() + second.read_bytes())
        assert heard(path) == near(times, 0.012)
        notes = " ".join(read_audio(path).notes)
        assert ("is silence" in notes, "lie over sound before them" in notes) == (start == 2.3, start == 1.9)


def test_a_chain_of_ogg_files_is_one_after_the_other_whatever_its_rates(tmp_path):
    for codec, rate_hz in (("libopus", 48000), ("flac", 44100)):
        first = write_media(tmp_path / "1.ogg", Track(bursts(0.6, 0, 0.4), codec=codec))
        track = Track(bursts(1.0, 0.2, 0.5, rate_hz=rate_hz), rate_hz, codec)
        second = write_media(tmp_path / "2.ogg", track)
        path = tmp_path / "chain.ogg"
        path.write_bytes(first.read_bytes() + second.read_bytes())
        assert heard(path) == near([0, 0.4, 0.8, 1.1], 0.003)
        sound = read_audio(path)
        assert sound.rate_hz == 48000
        assert any("rate changes to 44100 Hz" in note for note in sound.notes) == (rate_hz == 44100)


def positions(stamps, length=480, tick=Fraction(1, 48000), **options) -> list[int]:
    blocks = [Block(at, length, None) for at in stamps]
    return [position for position, _ in placed(blocks, 48000, tick, **options)]


def test_jitter_of_time_stamps_makes_no_clicks() -> None:
    exact = [480 * k for k in range(200)]
    rounded = [round(at / 48) * 48 + 480 for at in range(0, 200 * 441, 441)]  # a clock of milliseconds
    assert positions(rounded, 441, Fraction(1, 1000)) == [480 + 441 * k for k in range(200)]
    assert positions(rounded, 441) == [480 + 441 * k for k in range(200)]  # copied into a container with a finer one
    loose = np.random.default_rng(0).integers(-200, 201, 200)
    loose[0] = 0
    assert positions((np.array(exact) + loose).tolist()) == exact
    one_wrong = [*exact[:50], 10**6, *exact[51:]]
    assert positions(one_wrong) == exact
    assert positions([-(10**6) if k == 60 else at for k, at in enumerate(exact)]) == exact
    assert positions([None if k % 3 else at for k, at in enumerate(exact)]) == exact


@pytest.mark.parametrize("step", [24000, 480, 100, -100, -480, -24000])
def test_a_lasting_step_is_kept_to_the_sample(step) -> None:
    stamps = [480 * k + (step if k >= 20 else 0) for k in range(100)]
    assert positions(stamps) == stamps


def test_a_clock_that_begins_anew_goes_on() -> None:
    stamps = [10**7 + 480 * k for k in range(300)] + [480 * k for k in range(20)]
    assert positions(stamps) == [10**7 + 480 * k for k in range(320)]
    assert positions([480 * k for k in range(50)] * 2, restarts=True) == [480 * k for k in range(100)]
    assert positions([]) == []


def test_a_clock_that_runs_slow_is_followed_in_small_steps() -> None:
    stamps = [round(480 * k * 1.001) for k in range(2000)]
    found = positions(stamps)
    assert max(abs(a - b) for a, b in zip(found, stamps, strict=True)) <= 480


def test_wrong_and_missing_lengths_in_headers(tmp_path):
    path = write_media(tmp_path / "a.wav", Track(bursts(0.5, 0.1, 0.3)))
    data = bytearray(path.read_bytes())
    size = data.index(b"data") + 4
    for claimed in (b"\xff" * 4, b"\0" * 4):  # as programs write that cannot go back
        data[size : size + 4], data[4:8] = claimed, claimed
        path.write_bytes(data)
        assert heard(path) == near([0.1, 0.3]) and len(read_audio(path).samples) == 24000
    for options in ({"write_xing": "1"}, {"write_xing": "0"}):
        write_media(tmp_path / "a.mp3", Track(bursts(0.5, 0.1, 0.3), codec="libmp3lame"), options=options)
        delay = 0 if options["write_xing"] == "1" else 1105 / 48000  # without the header nobody knows it
        assert heard(tmp_path / "a.mp3") == near([0.1 + delay, 0.3 + delay])


def test_rates_from_telephones_to_studios(tmp_path):
    for rate_hz in (8000, 192000):
        sound = read_audio(write_media(tmp_path / "a.wav", Track(bursts(0.3, 0.1, rate_hz=rate_hz), rate_hz)))
        assert sound.rate_hz == rate_hz and onsets(sound.samples, rate_hz) == near([0.1])


def test_float_samples_may_exceed_full_scale(tmp_path):
    loud = np.array([[2.5], [-3.0], [0.1]], np.float32)
    for codec in ("pcm_f32le", "pcm_f64le"):
        np.testing.assert_array_equal(
            read_audio(write_media(tmp_path / "a.wav", Track(loud, codec=codec))).samples, loud
        )


def test_only_the_window_is_held_and_more_than_the_bound_is_refused(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.wav", Track(bursts(2.0, 0.1, 1.5)))
    monkeypatch.setattr(track_reader, "MOST_BYTES", 4 * 24000)
    assert heard(path, start_seconds=1.4, max_seconds=0.5) == near([0.1])
    decoded = []
    to_float = track_reader.to_float
    monkeypatch.setattr(track_reader, "to_float", lambda frame: decoded.append(frame.samples) or to_float(frame))
    with pytest.raises(MediaError, match="more sound than is read at once"):
        read_audio(path)
    assert sum(decoded) <= 24000 + 4096
    gap = write_media(tmp_path / "b.mkv", Track(bursts(2.0, 0, 1.9), lost=[(0.1, 1.8)]))
    with pytest.raises(MediaError, match="more sound than is read at once"):  # silence takes as much
        read_audio(gap)


def test_nothing_but_a_file_of_sound_is_opened(tmp_path):
    secret = write_media(tmp_path / "secret.wav", Track(bursts(0.2, 0.1)))
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{secret}\n")
    (tmp_path / "list.wav").write_text(f"ffconcat version 1.0\nfile {secret.name}\n")
    (tmp_path / "list.sdp").write_text("v=0\nm=audio 5004 RTP/AVP 0\n")
    for name in ("list.m3u8", "list.wav", "list.sdp"):
        with pytest.raises(MediaError, match="cannot be read as sound"):
            read_audio(tmp_path / name)
    with pytest.raises(MediaError, match="does not exist"):
        read_audio(f"concat:{secret}|{secret}")
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", "/dev/zero"):
        with pytest.raises(MediaError, match="a pipe or a device"):
            read_audio(path)
    named = tmp_path / "12:30 %d take.wav"
    named.write_bytes(secret.read_bytes())
    assert heard(named) == near([0.1])
    mute = write_media(tmp_path / "mute.mkv", pictures=3)
    with pytest.raises(MediaError, match="has no sound track"):
        read_audio(mute)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("new") / "new.mp4"
    with ClipWriter(path, fps=24) as writer:
        writer.write(counting_clip(38, 64, 64))
    return path


@pytest.mark.parametrize(("name", "codec"), [*PLACES, ("a.avi", "libmp3lame"), ("a.mka", "ac3")])
@pytest.mark.parametrize(("sound", "picture"), [(0.25, 0.0), (0.0, 0.75), (0.0, 0.0), (1.75, 1.5)])
def test_a_copied_track_keeps_its_place(tmp_path, pictures, name, codec, sound, picture):
    track = Track(bursts(1.6, 0, 0.5, 1.0, 1.4), codec=codec, start=sound)
    source = write_media(tmp_path / name, track, pictures=0 if name == "a.mka" else 38, picture_start=picture)
    suffix = ".mp4" if codec in ("libopus", "flac") else ".mov"  # which those two do not go into
    remux_audio(pictures, source, tmp_path / f"both{suffix}")
    assert heard(tmp_path / f"both{suffix}") == near(heard(source))


def test_a_track_with_a_gap_is_copied_with_it(tmp_path, pictures):
    source = write_media(
        tmp_path / "a.ts", Track(bursts(1.5, 0, 0.3, 1.2), codec="aac", lost=[(0.5, 0.99)], start=0.1), pictures=36
    )
    remux_audio(pictures, source, tmp_path / "both.mp4")
    assert heard(source) == near([0.1, 0.4, 1.3]) and heard(tmp_path / "both.mp4") == near(heard(source))


def test_a_place_that_the_container_does_not_keep_is_not_copied(tmp_path, pictures, monkeypatch):
    """As with Vorbis in MP4, which some versions of FFmpeg write 6 or 18 ms early where it is cut."""
    track = Track(bursts(1.6, 0, 0.5, 1.0, channels=2), codec="vorbis", layout="stereo")
    source = write_media(tmp_path / "a.mkv", track, pictures=38, picture_start=0.75)
    try:
        remux_audio(pictures, source, tmp_path / "both.mp4")
    except MediaError as error:
        assert "do not keep its place" in str(error)
    else:
        assert heard(tmp_path / "both.mp4") == near(heard(source))
        (tmp_path / "both.mp4").unlink()
    with pytest.raises(MediaError, match="cannot hold vorbis"):
        remux_audio(pictures, source, tmp_path / "both.mov")
    source = write_media(tmp_path / "a.ts", Track(bursts(1.6, 0, 0.5), codec="mp2"), pictures=38, picture_start=0.2)
    zero = copied_sound._zero
    for off in (Fraction(1, 100), Fraction(-1, 100)):
        monkeypatch.setattr(copied_sound, "_zero", lambda *given, off=off: zero(*given) + off)
        with pytest.raises(MediaError, match="do not keep its place"):
            remux_audio(pictures, source, tmp_path / "both.mp4")
    assert not list(tmp_path.glob("*both*"))


@pytest.mark.parametrize(
    ("sound", "picture", "times"), [(0.25, 0.0, [0.25, 0.75]), (0.0, 0.75, [0.25]), (1.75, 1.5, [0.25, 0.75])]
)
@pytest.mark.parametrize("before", [0, 24])
def test_a_source_clip_is_extended_with_its_sound_in_place(tmp_path, sound, picture, times, before):
    track = Track(bursts(2.0, 0, 0.5, 1.0), codec="aac", start=sound)
    path = write_media(tmp_path / "a.ts", track, pictures=25, picture_start=picture)
    use = SourceUse(str(path), 25, True, (0, before) if before else (25, 49), at=before)
    whole = Source(use).placed_sound(VideoShape(49, 64, 64, 24.0), 48000)
    assert onsets(whole.samples, whole.rate_hz) == near([t + before / 24 for t in times], 0.003)
    assert len(whole.samples) == round(49 / 24 * 48000) and whole.notes


def test_a_recording_out_of_a_video_counts_from_its_picture(tmp_path):
    track = Track(bursts(2.0, 0, 0.5, 1.0), codec="aac", start=0.25)
    path = write_media(tmp_path / "a.mp4", track, pictures=48)
    sound = read_recording({"path": str(path), "start": 0.6, "max_seconds": None, "track": None}, 0.5)
    assert onsets(sound.samples, sound.rate_hz) == near([0.15])
