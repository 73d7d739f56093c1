"""Sound: sample formats, containers, exact trimming, bad input, stereo and WAV output."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.audio import fit_length, read_audio, to_stereo, write_wav
from mlx_ltx2.media.metadata import read_metadata
from mlx_ltx2.media.writer import ClipWriter
from mlx_ltx2.states import Waveform
from tests.fixtures.media_files import colour_clip, counting_clip, sine, write_plain_video, write_sound


def spectrum_peak(samples: np.ndarray, rate_hz: int) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate_hz / len(samples))


@pytest.mark.parametrize(
    ("kind", "step"),
    [("u8", 2**-7), ("s16", 2**-15), ("s24", 2**-23), ("s32", 2**-23), ("f32", 0), ("f64", 0)],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_of_every_sample_format_keeps_its_samples(tmp_path, kind, step, channels):
    tone = sine(0.3, 22050, channels)
    loaded = read_audio(write_sound(tmp_path / "a.wav", tone, 22050, kind))
    assert loaded.rate_hz == 22050 and loaded.samples.dtype == np.float32 and loaded.samples.shape == tone.shape
    assert np.abs(loaded.samples - tone).max() <= step / 2 + 1e-7
    assert abs(loaded.samples.mean()) < max(step, 1e-3)


@pytest.mark.parametrize(
    ("name", "kind", "rate_hz"),
    [("a.flac", "flac", 44100), ("a.mp3", "mp3", 44100), ("a.ogg", "ogg", 32000), ("o.ogg", "opus", 48000)],
)
def test_other_containers_are_read_at_their_own_rate(tmp_path, name, kind, rate_hz):
    tone = sine(1.0, rate_hz)
    loaded = read_audio(write_sound(tmp_path / name, tone, rate_hz, kind))
    assert loaded.rate_hz == rate_hz and loaded.samples.shape[1] == 2
    assert abs(len(loaded.samples) - rate_hz) < 2400
    assert spectrum_peak(loaded.samples[:, 0], rate_hz) == pytest.approx(440, abs=3)
    assert spectrum_peak(loaded.samples[:, 1], rate_hz) == pytest.approx(880, abs=3)
    if kind == "flac":
        assert np.abs(loaded.samples - tone).max() <= 2**-15


def test_m4a_ends_where_its_header_says_and_not_where_its_last_block_does(tmp_path):
    tone = sine(0.5, 48000)
    loaded = read_audio(write_sound(tmp_path / "a.m4a", tone, 48000, "m4a"))
    assert abs(len(loaded.samples) - 24000) <= 48  # the file counts in milliseconds
    assert np.abs(loaded.samples - tone[: len(loaded.samples)]).mean() < 0.05


@pytest.mark.parametrize(("name", "kind"), [("a.wav", "s16"), ("a.flac", "flac"), ("a.mp3", "mp3"), ("a.m4a", "m4a")])
def test_trimming_is_exact_to_the_sample(tmp_path, name, kind):
    path = write_sound(tmp_path / name, sine(1.0, 44100), 44100, kind)
    whole = read_audio(path).samples
    part = read_audio(path, start_seconds=0.2501, max_seconds=0.3333).samples
    first, length = round(0.2501 * 44100), round(0.3333 * 44100)
    np.testing.assert_array_equal(part, whole[first : first + length])
    np.testing.assert_array_equal(read_audio(path, start_seconds=0.9).samples, whole[round(0.9 * 44100) :])
    np.testing.assert_array_equal(read_audio(path, max_seconds=100).samples, whole)


def test_the_sound_track_of_a_video_is_read_with_its_delay(tmp_path):
    path = write_plain_video(tmp_path / "late.mkv", counting_clip(12), 12, late_sound=0.25)
    loaded = read_audio(path)
    assert loaded.rate_hz == 16000
    assert np.abs(loaded.samples[:3990]).max() == 0
    np.testing.assert_array_equal(loaded.samples[4010:12000], 0.5)
    np.testing.assert_array_equal(read_audio(path, start_seconds=0.3, max_seconds=0.1).samples, 0.5)


def test_files_without_usable_sound_say_so(tmp_path):
    with ClipWriter(tmp_path / "mute.mp4", fps=24) as writer:
        writer.write(colour_clip(2, 16, 16, (9, 9, 9)))
    broken = sine(0.1, 8000, 1)
    broken[50] = np.nan
    (tmp_path / "text.wav").write_text("no sound")
    write_sound(tmp_path / "cut.flac", sine(1.0, 44100), 44100, "flac")
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:30])
    cases = {
        tmp_path / "mute.mp4": "no sound track",
        write_sound(tmp_path / "nan.wav", broken, 8000, "f32"): "NaN",
        write_sound(tmp_path / "empty.wav", broken[:0], 8000, "s16"): "empty",
        tmp_path / "text.wav": "cannot be read",
        tmp_path / "cut.flac": "cut.flac",
        tmp_path / "missing.wav": "does not exist",
        tmp_path: "folder",
    }
    for path, words in cases.items():
        with pytest.raises(MediaError, match=words):
            read_audio(path)


def test_impossible_times_are_refused(tmp_path):
    path = write_sound(tmp_path / "a.wav", sine(0.5, 8000, 1), 8000, "s16")
    with pytest.raises(MediaError, match=r"beyond the end.*0\.500 s"):
        read_audio(path, start_seconds=0.5)
    for arguments in ({"start_seconds": -1}, {"start_seconds": float("nan")}, {"max_seconds": 0}):
        with pytest.raises(RequestError, match="not possible"):
            read_audio(path, **arguments)


def test_to_stereo():
    mono = sine(0.01, 8000, 1)
    np.testing.assert_array_equal(to_stereo(mono), np.hstack([mono, mono]))
    stereo = sine(0.01, 8000, 2)
    assert to_stereo(stereo) is stereo
    surround = np.zeros((4, 6), np.float32)
    surround[0, 0], surround[1, 1], surround[2, 2], surround[3] = 1, 1, 1, 1
    mixed = to_stereo(surround, "5.1")
    assert mixed[0, 0] > 0 and mixed[0, 1] == 0 and mixed[1, 1] > 0 and mixed[1, 0] == 0
    assert mixed[2, 0] == mixed[2, 1] > 0
    np.testing.assert_allclose(mixed[3], 1.0, rtol=1e-6)
    for channels in (3, 6, 7):  # a number does not say where they belong
        with pytest.raises(MediaError, match=f"{channels} channels that do not say where they belong"):
            to_stereo(np.zeros((3, channels), np.float32))


def test_fit_length_cuts_and_pads_the_end():
    tone = sine(0.01, 8000, 2)
    np.testing.assert_array_equal(fit_length(tone, 30), tone[:30])
    padded = fit_length(tone, 100)
    np.testing.assert_array_equal(padded[:80], tone)
    assert padded.shape == (100, 2) and padded.dtype == tone.dtype and not padded[80:].any()


def test_sixteen_bit_sound_survives_write_and_read_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).integers(-32768, 32768, (999, 2)) / 32768
    waveform = Waveform(values.astype(np.float32), 24000)
    text = {"prompt": "Wind 風", "plan": "x" * 100001}
    write_wav(tmp_path / "deep" / "a.wav", waveform, text)
    loaded = read_audio(tmp_path / "deep" / "a.wav")
    np.testing.assert_array_equal(loaded.samples, waveform.samples)
    assert loaded.rate_hz == 24000 and read_metadata(tmp_path / "deep" / "a.wav") == text
    first = (tmp_path / "deep" / "a.wav").read_bytes()
    write_wav(tmp_path / "deep" / "a.wav", waveform, text)
    assert (tmp_path / "deep" / "a.wav").read_bytes() == first
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.wav"]


def test_loud_samples_are_clipped_and_broken_ones_refused(tmp_path):
    write_wav(tmp_path / "a.wav", Waveform(np.array([[2.0], [-2.0]], np.float32), 8000))
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav").samples[:, 0], [32767 / 32768, -1])
    with pytest.raises(MediaError, match="NaN"):
        write_wav(tmp_path / "b.wav", Waveform(np.full((4, 2), np.nan, np.float32), 8000))
    assert not (tmp_path / "b.wav").exists()
