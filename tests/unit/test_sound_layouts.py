"""Which channels and which track of a file are heard."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.audio import read_audio, to_stereo
from mlx_ltx2.media.channels import stays, stereo_matrix
from mlx_ltx2.media.sound_track import probe_sound
from mlx_ltx2.media.writer import remux_audio
from tests.fixtures.media_files import sine
from tests.fixtures.sound_files import Track, bursts, onsets, write_media

SIDE, BACK = 0.5**0.5, 0.5
WEIGHTS = {
    "FL": (1, 0), "FR": (0, 1), "FC": (SIDE, SIDE), "LFE": (0, 0), "BC": (BACK, BACK), "BL": (SIDE, 0), "BR": (0, SIDE),
    "SL": (SIDE, 0), "SR": (0, SIDE), "FLC": (1, 0), "FRC": (0, 1), "TFL": (SIDE, 0), "TFR": (0, SIDE),
    "TBL": (SIDE, 0), "TBR": (0, SIDE),
}  # fmt: skip
LAYOUTS = {
    "2.1": "FL FR LFE", "3.0": "FL FR FC", "3.0(back)": "FL FR BC", "4.0": "FL FR FC BC", "quad": "FL FR BL BR",
    "quad(side)": "FL FR SL SR", "3.1": "FL FR FC LFE", "4.1": "FL FR FC LFE BC", "5.0": "FL FR FC BL BR",
    "5.0(side)": "FL FR FC SL SR", "5.1": "FL FR FC LFE BL BR", "5.1(side)": "FL FR FC LFE SL SR",
    "6.0": "FL FR FC BC SL SR", "6.0(front)": "FL FR FLC FRC SL SR", "hexagonal": "FL FR FC BL BR BC",
    "6.1": "FL FR FC LFE BC SL SR", "7.0": "FL FR FC BL BR SL SR", "7.1": "FL FR FC LFE BL BR SL SR",
    "7.1(wide)": "FL FR FC LFE BL BR FLC FRC", "octagonal": "FL FR FC BL BR BC SL SR",
    "5.1.4": "FL FR FC LFE SL SR TFL TFR TBL TBR",
}  # fmt: skip


@pytest.mark.parametrize(("layout", "names"), LAYOUTS.items())
def test_each_channel_is_heard_where_its_name_says(tmp_path, layout, names):
    names = names.split()
    weights = np.array([WEIGHTS[name] for name in names])
    weights = weights / max(1, weights.sum(axis=0).max())
    samples = np.repeat(np.eye(len(names), dtype=np.float32), 100, axis=0)  # one channel after the other, full scale
    path = write_media(tmp_path / "a.wav", Track(samples, 48000, "pcm_f32le", layout))
    sound = read_audio(path)
    np.testing.assert_allclose(sound.samples[50::100], weights, atol=1e-6)
    left_out = ", low effects are left out" if "LFE" in names else ""
    assert sound.notes == (f"{path}: {layout} sound is mixed to stereo{left_out}",)
    np.testing.assert_array_equal(to_stereo(samples, layout), sound.samples)
    np.testing.assert_allclose(np.abs(to_stereo(np.ones((4, len(names)), np.float32), layout)).max(), 1, atol=1e-6)


@pytest.mark.parametrize(("name", "codec"), [("a.mka", "aac"), ("a.flac", "flac"), ("a.mka", "libopus")])
def test_eight_channels_of_a_codec_with_planes(tmp_path, name, codec):
    """PyAV reads beyond the planes of such frames."""
    samples = np.concatenate([bursts(0.2, 0.05) * (number == k) for k in range(8) for number in [np.arange(8)]])
    sound = read_audio(write_media(tmp_path / name, Track(samples.astype(np.float32), codec=codec, layout="7.1")))
    loud = [np.abs(sound.samples[round(48000 * 0.2 * k) :][:9600]).max(axis=0) > 0.05 for k in range(8)]
    assert np.array(loud).tolist() == [[w > 0 for w in WEIGHTS[n]] for n in LAYOUTS["7.1"].split()]


def test_no_channel_of_a_large_room_is_lost():
    """FFmpeg's mixer drops what it has no rule for, and most of 22.2."""
    for layout in ("22.2", "7.2.3", "9.1.6", "cube", "hexadecagonal"):
        import av

        names = [channel.name for channel in av.AudioLayout(layout).channels]
        weights = dict(zip(names, stereo_matrix(layout), strict=True))
        for name, (left, right) in weights.items():
            assert (left + right > 0) == (not name.startswith("LFE")), name
            if name.endswith("L"):
                assert left > right == 0
            if name.endswith("R"):
                assert right > left == 0
        assert stereo_matrix(layout).sum(axis=0).max() == pytest.approx(1)


def test_one_and_two_channels_stay_what_they_are(tmp_path):
    for layout, channels in (("mono", 1), ("stereo", 2), ("downmix", 2)):
        tone = sine(0.1, 48000, channels)
        sound = read_audio(write_media(tmp_path / "a.wav", Track(tone, 48000, "pcm_f32le", layout)))
        np.testing.assert_array_equal(sound.samples, tone)
        assert not sound.notes
    same = np.repeat(sine(0.1, 48000, 1), 2, axis=1)  # two equal channels are two
    assert read_audio(write_media(tmp_path / "a.wav", Track(same, layout="stereo"))).samples.shape[1] == 2
    assert stays("2 channels") and stays("binaural") and not stays("2 channels (FC+LFE)")


def plain_wav(path, channels: int):
    """16-bit PCM that says how many channels it has and not which."""
    data = np.ones((100, channels), "<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, channels, 8000, 16000 * channels, 2 * channels, 16)
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    return path


@pytest.mark.parametrize("channels", [3, 4, 6, 8, 9, 64])
def test_channels_without_names_are_refused(tmp_path, channels):
    path = plain_wav(tmp_path / "a.wav", channels)
    for read in (read_audio, probe_sound):
        with pytest.raises(MediaError, match=rf"{channels} channels that do not say where.*-channel_layout 5\.1"):
            read(path)


def test_two_channels_need_no_names_and_ambisonics_has_none(tmp_path):
    assert read_audio(plain_wav(tmp_path / "a.wav", 2)).samples.shape == (100, 2)
    with pytest.raises(MediaError, match=r"4 channels that do not say where they belong \(ambisonic 1\)"):
        to_stereo(np.zeros((3, 4), np.float32), "ambisonic 1")


def test_channels_that_change_on_the_way(tmp_path):
    """As broadcasts do between programmes: the whole is stereo."""
    parts = [("mono", 1), ("5.1(side)", 6), ("stereo", 2)]
    path = tmp_path / "a.ac3"
    path.write_bytes(
        b"".join(
            write_media(
                tmp_path / "part.ac3", Track(bursts(0.48, 0.1, channels=n), codec="ac3", layout=layout)
            ).read_bytes()
            for layout, n in parts
        )
    )
    sound = read_audio(path)
    assert sound.samples.shape[1] == 2
    assert len(onsets(sound.samples, 48000)) == 3
    assert any("5.1(side) sound is mixed to stereo" in note for note in sound.notes)


def tracks(path, *described: Track, **options):
    """Track n sounds at n / 10 s."""
    for number, track in enumerate(described, 1):
        track.samples = bursts(0.6, number / 10)
    return write_media(path, *described, pictures=14, **options)


def which(path, **options) -> int:
    sound = read_audio(path, **options)
    return round(onsets(sound.samples, sound.rate_hz)[0] * 10)


EMPTY = np.zeros((0, 1), np.float32)


def track(*flags: str, **metadata: str) -> Track:
    return Track(EMPTY, flags=flags, metadata=metadata)


CHOICES = [
    ([track(), track("default", language="eng", title="Director")], 2, "sound track 2 of 2 (eng, Director) is read"),
    ([track("default"), track()], 1, "sound track 1 of 2 is read"),
    ([track(), track(), track("default", language="ger")], 3, "sound track 3 of 3 (ger) is read"),
    ([track("comment"), track("original", language="fre")], 2, "sound track 2 of 2 (fre) is read"),
    ([track("visual_impaired"), track("comment"), track("original")], 3, "sound track 3 of 3 is read"),
    ([track("comment"), track("comment")], 1, "sound track 1 of 2 (commentary) is read"),
    ([track("default", "comment"), track("default")], 1, "sound track 1 of 2 (commentary) is read"),
]


@pytest.mark.parametrize(("described", "expected", "words"), CHOICES)
def test_the_track_that_players_choose_is_read_and_said(tmp_path, described, expected, words):
    options = {"options": {"default_mode": "passthrough"}}
    path = tracks(tmp_path / "a.mkv", *described, **options)
    assert which(path) == expected
    note = f"{path}: {words}; --audio-track N takes another"
    assert read_audio(path).notes == probe_sound(path).notes == (note,)
    for number in range(1, len(described) + 1):
        assert which(path, track=number) == number
        assert probe_sound(path, number).track == number and not read_audio(path, track=number).notes


def test_the_default_track_of_an_mp4_is_copied_and_so_is_another(tmp_path):
    path = tracks(tmp_path / "a.mp4", Track(EMPTY, codec="aac"), Track(EMPTY, codec="aac", flags=["default"]))
    assert which(path) == 2
    for number, expected in ((None, 2), (1, 1), (2, 2)):
        both = tmp_path / f"both-{number}.mp4"
        remux_audio(path, path, both, track=number)
        assert which(both) == expected
        assert probe_sound(both).tracks == 1


@pytest.mark.parametrize("number", [0, 3, -1, 1.0, True, "1"])
def test_a_track_that_is_not_there_is_refused(tmp_path, number):
    path = tracks(tmp_path / "a.mkv", track(), track())
    for read in (read_audio, probe_sound):
        with pytest.raises(RequestError, match="2 sound tracks; 1 is the first"):
            read(path, track=number)


def test_a_track_that_cannot_be_decoded_is_passed_over(tmp_path):
    path = tracks(tmp_path / "a.mkv", Track(EMPTY, codec="flac", flags=["default"]), track())
    path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_QXYZ"))
    assert which(path) == 2
    assert "sound track 2 of 2 is read; 1 cannot be decoded" in read_audio(path).notes[0]
    with pytest.raises(MediaError, match=r"sound track 1 of .* cannot be decoded; choose another"):
        read_audio(path, track=1)
    alone = tracks(tmp_path / "b.mkv", Track(EMPTY, codec="flac"))
    alone.write_bytes(alone.read_bytes().replace(b"A_FLAC", b"A_QXYZ"))
    with pytest.raises(MediaError, match="is of a kind that cannot be decoded"):
        read_audio(alone)
