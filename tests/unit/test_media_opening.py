"""One file is opened, by its content, and nothing else with it; names mean nothing but a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mlx_ltx2.errors import MediaError
from mlx_ltx2.media.video import probe, read_frames
from tests.fixtures.media_files import counting_clip, write_plain_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_plain_video(tmp_path_factory.mktemp("clip") / "clip.ts", counting_clip(3), 10)


SCRIPTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '{clip}'\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="1" mimeType="video/mp2t"><BaseURL>{clip}</BaseURL></Representation></AdaptationSet></Period>'
    "</MPD>",
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "list.meta": ";FFMETADATA1\ntitle=x\n",
}


@pytest.mark.parametrize("disguise", ["", ".mp4"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_that_name_other_files_are_refused(tmp_path, clip, name, disguise):
    path = tmp_path / f"{name}{disguise}"
    path.write_text(SCRIPTS[name].format(clip=clip))
    with pytest.raises(MediaError):
        read_frames(path)


@pytest.mark.parametrize("url", ["concat:{}", "file:{}", "subfile,,start,0,end,0,,:{}", "pipe:0", "{}|{}", "data:,x"])
def test_a_protocol_is_no_file(clip, url):
    with pytest.raises(MediaError, match="does not exist"):
        read_frames(url.format(clip, clip))


NAMES = [
    "12:30:05.ts",
    "-i.ts",
    "file:x.ts",
    "concat:a|b.ts",
    "frame_%03d.ts",
    "a b'c\"d.ts",
    "ü\u3042.ts",
    "*?[1].ts",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_the_name_of_a_file(tmp_path, clip, name, monkeypatch):
    shutil.copy(clip, tmp_path / name)
    assert probe(tmp_path / name, count=True).frames == 3
    monkeypatch.chdir(tmp_path)
    assert probe(name, count=True).frames == 3


def test_a_name_that_is_no_utf8_is_read_or_refused_in_words(tmp_path, clip):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.ts")
    try:
        shutil.copy(clip, path)
    except OSError:
        with pytest.raises(MediaError):
            probe(path)
        return
    assert probe(path, count=True).frames == 3


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/stdin"])
def test_devices_are_refused(name):
    with pytest.raises(MediaError, match="pipe or a device"):
        probe(name)


def test_pipes_folders_and_dead_links_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "pipe.mp4")
    (tmp_path / "dead.mp4").symlink_to(tmp_path / "nothing")
    (tmp_path / "empty.mp4").touch()
    for name in ("pipe", "folder", "link", "dead", "empty"):
        with pytest.raises(MediaError):
            read_frames(tmp_path / f"{name}.mp4")


def test_a_picture_series_is_not_followed(tmp_path, clip):
    for number in range(3):
        shutil.copy(clip, tmp_path / f"frame_{number}.png")
    with pytest.raises(MediaError, match="does not exist"):
        read_frames(tmp_path / "frame_%d.png")
    # FFmpeg would take this very file for a series; so it is not read at all.
    shutil.copy(clip, tmp_path / "frame_%d.png")
    with pytest.raises(MediaError, match="cannot be read"):
        read_frames(tmp_path / "frame_%d.png")
