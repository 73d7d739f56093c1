"""What is written where: names, owners, links, two runs at once, room, and pictures that players can keep up with."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mlx_ltx2.errors import MediaError, RequestError, ResourceError
from mlx_ltx2.media import claims
from mlx_ltx2.media.audio import write_wav
from mlx_ltx2.media.claims import Claim
from mlx_ltx2.media.estimate import clip_bytes
from mlx_ltx2.media.files import check_place
from mlx_ltx2.media.images import save_image
from mlx_ltx2.media.metadata import made_here, pack
from mlx_ltx2.media.outputs import check_apart, check_replaceable, check_writable, replacing, replacing_files
from mlx_ltx2.media.video import probe
from mlx_ltx2.media.writer import ClipWriter, read_metadata, save_frames
from mlx_ltx2.states import Waveform
from tests.fixtures.media_files import counting_clip, sine, write_plain_video, write_sound

KINDS = (".mp4", ".mov", ".gif", ".webp", ".png", ".jpg", ".wav")
SOUND = Waveform(sine(0.1, 16000), 16000)


def write(path: Path, frames: int = 2, metadata: dict[str, str] | None = None, **more: object) -> Path:
    """A small file of this program."""
    if path.suffix == ".wav":
        write_wav(path, SOUND, metadata)
        return path
    with ClipWriter(path, fps=24, metadata=metadata, **more) as writer:
        writer.write(counting_clip(1 if path.suffix in (".png", ".jpg") else frames, 32, 32))
    return path


def foreign(path: Path) -> Path:
    """A small file of the same kind by others."""
    if path.suffix in (".mp4", ".mov"):
        return write_plain_video(path, counting_clip(2, 32, 32), 24)
    if path.suffix == ".wav":
        return write_sound(path, sine(0.1, 16000), 16000, "s16")
    Image.new("RGB", (32, 32)).save(path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Whose file it is


@pytest.mark.parametrize("suffix", KINDS)
def test_own_files_are_known_and_replaced_and_those_of_others_are_not(tmp_path, suffix) -> None:
    own, other = tmp_path / f"own{suffix}", foreign(tmp_path / f"other{suffix}")
    for metadata in (None, {"seed": "7"}):
        assert made_here(write(own, metadata=metadata))
    assert not made_here(other)
    before = other.read_bytes()
    with pytest.raises(RequestError, match=r"other.* exists and is no file of this program.*--overwrite"):
        write(other)
    with pytest.raises(RequestError, match="--overwrite"):
        check_replaceable(other)
    assert other.read_bytes() == before and names(tmp_path) == [other.name, own.name]
    if suffix != ".wav":
        write(other, overwrite=True)
    else:
        with replacing(other, overwrite=True) as partial:
            write_wav(partial, SOUND)
    assert made_here(other)


def test_what_says_nothing_of_its_maker_is_not_ours(tmp_path) -> None:
    for name, content in (
        ("text.mp4", b"my holiday"), ("cut.mp4", write(tmp_path / "a.mp4").read_bytes()[:200]), ("zero.png", bytes(999)),
        ("quote.png", pack({"seed": "1"}).encode()), ("half.gif", b"GIF89a\1"), ("song.wav", b"RIFF\xff\xff\xff\xffWAVE"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        assert not made_here(tmp_path / name), name
        with pytest.raises(RequestError, match="--overwrite"):
            check_replaceable(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content


def test_a_copy_that_another_program_wrote_anew_is_not_ours_though_it_keeps_the_comment(tmp_path) -> None:
    own = write(tmp_path / "own.mp4", metadata={"seed": "7"})
    with av.open(str(own)) as source, av.open(str(tmp_path / "edited.mp4"), "w") as target:
        target.metadata.update(source.metadata)
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    assert read_metadata(tmp_path / "edited.mp4") == {"seed": "7"}
    assert not made_here(tmp_path / "edited.mp4")


def test_the_look_at_a_file_is_quick_whatever_it_is(tmp_path) -> None:
    with (tmp_path / "huge.mp4").open("wb") as file:
        file.truncate(1 << 36)
    bomb = bytearray(write(tmp_path / "own.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 300_000, 300_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    (tmp_path / "bomb.png").write_bytes(bomb)
    os.mkfifo(tmp_path / "pipe.mp4")
    begun = time.monotonic()
    for path in (tmp_path / "huge.mp4", tmp_path / "bomb.png", tmp_path / "pipe.mp4", Path("/dev/zero"), tmp_path):
        assert not made_here(path)
    assert time.monotonic() - begun < 2


def test_folders_pipes_and_devices_are_refused_with_overwrite_too(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "null.mp4").symlink_to("/dev/null")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    for name, words in (("pipe", "pipe"), ("folder", "folder"), ("null", "device"), ("loop", "symbolic links")):
        for overwrite in (False, True):
            with pytest.raises(MediaError, match=words):
                check_writable(tmp_path / f"{name}.mp4", overwrite=overwrite)


def test_an_empty_file_holds_nothing_that_could_be_lost(tmp_path) -> None:
    (tmp_path / "a.mp4").touch()  # as tempfile makes them
    assert made_here(write(tmp_path / "a.mp4"))


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_write_protected_clip_is_asked_about(tmp_path) -> None:
    write(tmp_path / "a.mp4").chmod(0o400)
    with pytest.raises(RequestError, match="write-protected"):
        check_writable(tmp_path / "a.mp4")


def test_a_file_that_comes_while_a_clip_is_made_is_not_lost(tmp_path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(RequestError, match="no file of this program"), ClipWriter(path, fps=24) as writer:
        writer.write(counting_clip(2, 32, 32))
        path.write_bytes(b"saved here meanwhile")
    assert names(tmp_path) == ["a.mp4"] and path.read_bytes() == b"saved here meanwhile"


# Links


def test_a_link_stays_and_its_file_is_written(tmp_path) -> None:
    (tmp_path / "disk").mkdir()
    for name in ("new", "old"):
        (tmp_path / f"{name}.mp4").symlink_to(Path("disk") / name)
    write(tmp_path / "disk" / "old.mp4").rename(tmp_path / "disk" / "old")
    for name in ("new", "old"):
        write(tmp_path / f"{name}.mp4", 5)
        assert (tmp_path / f"{name}.mp4").is_symlink() and probe(tmp_path / "disk" / name, count=True).frames == 5
    assert names(tmp_path / "disk") == ["new", "old"]


def test_a_link_to_a_file_of_others_is_refused_and_replaced_on_demand(tmp_path) -> None:
    photo = foreign(tmp_path / "photo.png")
    before = photo.read_bytes()
    (tmp_path / "link.png").symlink_to("photo.png")
    with pytest.raises(RequestError, match="--overwrite"):
        save_image(tmp_path / "link.png", counting_clip(1)[0])
    assert photo.read_bytes() == before
    write(tmp_path / "link.png", overwrite=True)
    assert (tmp_path / "link.png").is_symlink() and made_here(photo)


# Inputs and outputs


def test_an_input_is_known_by_what_it_is(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    photo = foreign(tmp_path / "in" / "photo.png")
    os.link(photo, "hard.png")
    Path("soft.png").symlink_to(photo)
    Path("inn").symlink_to("in")
    for output in ("in/photo.png", photo, "in/../in/photo.png", "hard.png", "soft.png", "inn/photo.png"):
        with pytest.raises(RequestError, match="is an input of this run"):
            check_apart([output], ["missing.png", "in/photo.png"])
        with pytest.raises(RequestError, match="is an input of this run"):
            check_apart(["other.mp4", output], ["soft.png"])
    check_apart(["new.mp4", "new.wav"], ["in/photo.png", "Lightricks/LTX-2.3"])


def test_files_of_a_folder_are_inputs_and_clips_in_it_are_not(tmp_path) -> None:
    (tmp_path / "model" / "vae").mkdir(parents=True)
    weights = tmp_path / "model" / "vae" / "weights.safetensors"
    weights.write_bytes(b"weights")
    os.link(weights, tmp_path / "x.wav")
    write(tmp_path / "model" / "clip.mp4")
    with pytest.raises(RequestError, match=r"weights\.safetensors, the same file as .*x\.wav, is an input"):
        check_apart([tmp_path / "x.wav"], [tmp_path / "model"])
    check_apart([tmp_path / "model" / "clip.mp4"], [tmp_path / "model"])


def test_two_outputs_are_two_files(tmp_path) -> None:
    write(tmp_path / "a.wav")
    os.link(tmp_path / "a.wav", tmp_path / "b.wav")
    (tmp_path / "c.wav").symlink_to("new.wav")
    for one, two in (("a.wav", "b.wav"), ("c.wav", "new.wav"), ("x.wav", "x.wav"), ("x.wav", "X.wav")):
        with pytest.raises(RequestError, match="both to be written"):
            check_apart([tmp_path / one, tmp_path / two], [])


# Folders of frames


def test_frames_of_others_stay(tmp_path) -> None:
    folder = tmp_path / "kite_frames"
    with replacing_files(folder) as stills:
        save_frames(stills, counting_clip(9, 16, 16))
    cover, notes = foreign(folder / "frame_cover.png"), folder / "notes.txt"
    notes.write_text("mine")
    with replacing_files(folder) as stills:
        save_frames(stills, counting_clip(3, 16, 16))
    assert names(folder) == [f"frame_0000{n}.png" for n in range(3)] + [cover.name, notes.name]
    mine = foreign(folder / "frame_00007.png")
    before = mine.read_bytes()
    words = r"holds frame_00007\.png, no frames of this program.*--overwrite"
    with pytest.raises(RequestError, match=words), replacing_files(folder):
        pytest.fail("it was let in")
    with replacing_files(folder, overwrite=True) as stills:
        save_frames(stills, counting_clip(1, 16, 16))
    assert names(folder) == ["frame_00000.png", "frame_00007.png", cover.name, notes.name]
    assert mine.read_bytes() == before


def test_links_among_frames_are_never_followed(tmp_path) -> None:
    folder = tmp_path / "kite_frames"
    folder.mkdir()
    photo = write(tmp_path / "photo.png")
    (folder / "frame_00000.png").symlink_to(photo)
    (folder / "frame_00001.png").symlink_to(tmp_path)
    with pytest.raises(RequestError, match=r"frame_00000\.png and 1 more"), replacing_files(folder):
        pytest.fail("it was let in")
    before = photo.read_bytes()
    with replacing_files(folder, overwrite=True) as stills:
        save_frames(stills, counting_clip(1, 16, 16))
    assert photo.read_bytes() == before and not (folder / "frame_00000.png").is_symlink()
    assert (folder / "frame_00001.png").is_symlink()


def test_a_frame_may_not_be_input_and_output(tmp_path) -> None:
    folder = tmp_path / "kite_frames"
    with replacing_files(folder) as stills:
        save_frames(stills, counting_clip(3, 16, 16))
    (tmp_path / "last.png").symlink_to(folder / "frame_00002.png")
    for given in (folder / "frame_00002.png", tmp_path / "last.png"):
        with pytest.raises(RequestError, match="is an input of this run"):
            check_apart([tmp_path / "kite.mp4"], [given], frames_folder=folder)
    (tmp_path / "file_frames").write_text("")
    with pytest.raises(MediaError, match="is no folder"), replacing_files(tmp_path / "file_frames"):
        pytest.fail("it was let in")


# Two runs


def test_a_name_is_held_by_one_run_and_let_go(tmp_path) -> None:
    path, refused = tmp_path / "kite.mp4", []

    def other() -> None:
        try:
            write(path)
        except RequestError as error:
            refused.append(str(error))

    with Claim(path), Claim(path) as again:  # the same thread may: a run's parts write under its name
        worker = threading.Thread(target=other)
        worker.start()
        worker.join()
        assert again.partial(".mp4").exists()
    assert "another run is writing" in refused[0] and "kite.mp4" in refused[0] and names(tmp_path) == []
    assert made_here(write(path)) and names(tmp_path) == ["kite.mp4"]


HOLD = """
import sys, numpy as np
from mlx_ltx2.media.writer import ClipWriter
with ClipWriter(sys.argv[1], fps=24) as writer:
    writer.write(np.zeros((2, 32, 32, 3), np.uint8))
    print("writing", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other_run():
    """other_run(path): a process that has begun to write a clip of two frames, and ends it for a line on its stdin."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_process_is_refused_at_the_start(tmp_path, other_run) -> None:
    first = other_run(tmp_path / "kite.mp4")
    with pytest.raises(RequestError, match=r"another run is writing .*kite\.mp4 now"):
        check_writable(tmp_path / "kite.mp4")
    (tmp_path / "link.mp4").symlink_to("kite.mp4")
    with pytest.raises(RequestError, match="another run is writing"):
        write(tmp_path / "link.mp4")
    write(tmp_path / "kite.mov")
    write(tmp_path / "kite.gif")
    first.communicate("\n")
    assert first.returncode == 0 and probe(tmp_path / "kite.mp4", count=True).frames == 2
    assert names(tmp_path) == ["kite.gif", "kite.mov", "kite.mp4", "link.mp4"]


def test_what_a_killed_run_left_goes_with_the_next_one_and_nothing_else(tmp_path, other_run) -> None:
    users = (".kite.partial.mp4", ".mlx-ltx2-0123456789ab.partial.mp4", "kite.partial.mp4")
    for name in users:
        (tmp_path / name).write_bytes(b"mine")
    first = other_run(tmp_path / "kite.mp4")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert len(names(tmp_path)) == len(users) + 2, "a lock and a partial file"
    write(tmp_path / "kite.mp4")
    assert names(tmp_path) == sorted([*users, "kite.mp4"])
    assert all((tmp_path / name).read_bytes() == b"mine" for name in users)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch, code) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "kite_frames").mkdir()
    assert made_here(write(tmp_path / "kite.mp4"))
    with replacing_files(tmp_path / "kite_frames") as stills:
        save_frames(stills, counting_clip(2, 16, 16))
    assert names(tmp_path) == ["kite.mp4", "kite_frames"]


def test_macs_do_not_tell_cases_and_accents_apart(monkeypatch) -> None:
    assert claims._fingerprint("Kite.mp4") != claims._fingerprint("kite.mp4")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert claims._fingerprint("\u00c9t\u00e9.mp4") == claims._fingerprint("e\u0301te\u0301.mp4")


def test_a_folder_that_vanishes_meanwhile_is_made_again(tmp_path) -> None:
    path = tmp_path / "new" / "a.mp4"
    with ClipWriter(path, fps=24) as writer:
        for leftover in (tmp_path / "new").iterdir() if (tmp_path / "new").exists() else ():
            leftover.unlink()
        writer.write(counting_clip(2, 32, 32))
    assert names(tmp_path / "new") == ["a.mp4"]


# Names


NAMES = (
    b"12:30:05", b"file:a", b"concat:a|b", b"http://x".replace(b"/", b":"), b"100%", b"%d%05d", b"-x", b"--crf", b"a\\b",
    b"\"it's\"", b"two\nlines", b"tab\t ", b" ", b".hidden", "kite \U0001fa81 été".encode(), "e\u0301".encode(), b"\xff\xfe",
    b"n" * 251, "é".encode() * 125,
)  # fmt: skip


@pytest.mark.parametrize("raw", NAMES, ids=lambda raw: repr(raw)[:20])
def test_every_name_that_a_disk_takes_is_written(tmp_path, monkeypatch, raw) -> None:
    monkeypatch.chdir(tmp_path)
    for suffix in (".mp4", ".mov", ".gif", ".webp", ".wav"):
        name = os.fsdecode(raw[: 251 if suffix[1:] in ("mp4", "mov", "gif", "wav") else 250]) + suffix
        check_writable(name, sound_only=suffix == ".wav")
        assert names(tmp_path) == []
        write(Path(name))
        assert os.listdir(tmp_path) == [name] and made_here(name)
        os.unlink(name)


def test_names_that_no_disk_takes_are_refused_before_anything_is_made(tmp_path) -> None:
    for name in ("n" * 252 + ".mp4", "d" * 300 + "/a.mp4", "new/" + "n" * 252 + ".mp4"):
        with pytest.raises(MediaError, match="File name too long"):
            check_writable(tmp_path / name)
    with pytest.raises(RequestError, match="no name of a file"):
        check_writable(tmp_path / "a\0.mp4")
    assert names(tmp_path) == []


def test_a_name_that_the_file_system_refuses_is_tried(tmp_path, monkeypatch) -> None:
    """An exFAT stick takes no colon: the system's answer is put in its mouth."""
    real = os.open

    def exfat(path: object, *more: object, **options: object) -> int:
        if ":" in os.path.basename(os.fspath(path)):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, *more, **options)

    monkeypatch.setattr(os, "open", exfat)
    with pytest.raises(MediaError, match=r"12:30\.mp4 is a name that the file system refuses"):
        check_place(tmp_path / "12:30.mp4")
    check_place(tmp_path / "12.30.mp4")
    assert names(tmp_path) == []


# Room


NOISE = np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), dtype=np.uint8)


@pytest.mark.parametrize("crf", [0, 0.5, 1, 10, 19, 30, 51])
def test_the_estimate_lies_above_noise_and_not_far(tmp_path, crf) -> None:
    """Noise is the most that there is; up to crf 30 the bound is less than twice as much, and real clips take a tenth."""
    with ClipWriter(tmp_path / "a.mp4", fps=24, crf=crf, audio=SOUND) as writer:
        writer.write(NOISE)
    written, bound = (tmp_path / "a.mp4").stat().st_size, clip_bytes(".mp4", 4, 256, 256, 24, crf)
    assert written <= bound
    assert bound - 50_000 < 2 * written or crf > 30


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".jpg", ".wav"])
def test_the_estimate_of_other_kinds(tmp_path, suffix) -> None:
    path, frames = tmp_path / f"a{suffix}", NOISE if suffix in (".gif", ".webp") else NOISE[:1]
    if suffix == ".wav":
        write_wav(path, Waveform(sine(1.0, 48000), 48000))
        bound = clip_bytes(suffix, 24, 256, 256, 24)
    else:
        write_frames = ClipWriter(path, fps=24)
        with write_frames as writer:
            writer.write(frames)
        bound = clip_bytes(suffix, len(frames), 256, 256, 24)
    assert path.stat().st_size <= bound < 2.1 * path.stat().st_size + 60_000


def test_a_disk_that_is_too_small_is_named_with_both_numbers(tmp_path) -> None:
    with pytest.raises(ResourceError, match=r"no space left.*may need 1000\d+\.\d MB, \d+\.\d MB are free; make room"):
        check_writable(tmp_path / "a.mp4", bytes_needed=10**16 + 10**12)


# Lossless H.264


@pytest.mark.parametrize(("crf", "lossless"), [(0, True), (0.0, True), (0.9, True), (1, False), (19.5, False)])
def test_a_lossless_file_says_who_cannot_show_it(tmp_path, crf, lossless) -> None:
    with ClipWriter(tmp_path / "a.mp4", fps=24, crf=crf) as writer:
        writer.write(counting_clip(2, 32, 32))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert ("4:4:4" in container.streams.video[0].codec_context.profile) == lossless
    assert any("QuickTime" in note for note in writer.notes) == lossless
    with ClipWriter(tmp_path / "a.gif", fps=24, crf=crf) as writer:  # crf is of H.264 alone
        writer.write(counting_clip(2, 32, 32))
    assert writer.notes == []


def test_a_fraction_of_a_rate_factor_counts(tmp_path) -> None:
    sizes = []
    for crf in (19, 19.7, 20.4):
        with ClipWriter(tmp_path / "a.mp4", fps=24, crf=crf) as writer:
            writer.write(NOISE)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
    assert len(set(sizes)) == 3, sizes


# Animations that players can keep up with


def delays(path: Path) -> list[int]:
    """Milliseconds of each picture."""
    with Image.open(path) as image:
        found = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            found.append(image.info["duration"])
        return found


@pytest.mark.parametrize(
    ("suffix", "fps", "frames", "least", "left_out"),
    [
        (".gif", 24, 25, 20, False), (".gif", 50, 25, 20, False), (".gif", 60, 25, 20, True), (".gif", 59.94, 26, 20, True),
        (".gif", 100, 25, 20, True), (".gif", 120, 2, 20, True), (".gif", 240, 50, 20, True), (".gif", 60, 1, 0, False),
        (".webp", 60, 25, 11, False), (".webp", 90, 25, 11, False), (".webp", 120, 25, 11, True), (".webp", 240, 7, 11, True),
    ],
)  # fmt: skip
def test_no_picture_is_too_short_and_the_whole_is_as_long_as_it_should(
    tmp_path, suffix, fps, frames, least, left_out
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)
    with ClipWriter(tmp_path / f"a{suffix}", fps=fps) as writer:
        writer.write(noise)
    found = delays(tmp_path / f"a{suffix}")
    assert min(found) >= least
    if frames > 1:
        assert sum(found) == pytest.approx(1000 * frames / fps, abs=5)
    assert any("left out" in note and "keeps its length" in note for note in writer.notes) == left_out
    assert (len(found) < frames) == left_out
