"""Conditioning pictures, frames and sound against the official reader, from files to arrays."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ltx_pipelines.utils import media_io
from PIL import Image

from mlx_ltx2.media.audio import read_audio
from mlx_ltx2.media.images import (
    crf_degrade,
    load_image,
    normalize_pixels,
    prepare_image,
    resize_and_crop,
    save_image,
)
from mlx_ltx2.media.video import probe, read_frames
from mlx_ltx2.media.writer import ClipWriter
from mlx_ltx2.states import Waveform
from tests.fixtures.media_files import sine, write_plain_video, write_sound

ORACLE = "ltx-pipelines 1.0.0"
SIZES = [
    ((7, 13), (64, 96)),
    ((480, 640), (256, 384)),
    ((640, 480), (256, 384)),
    ((1, 1), (32, 64)),
    ((333, 517), (320, 512)),
    ((64, 64), (64, 64)),
    ((1024, 1536), (64, 32)),
    ((97, 1000), (96, 128)),
]


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-12))


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    return tensor[0].permute(1, 2, 3, 0).numpy()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_resize_and_crop(table, source, target, seed):
    frames = noise(seed, 2, *source, 3)
    theirs = channels_last(media_io.resize_and_center_crop(torch.from_numpy(frames).float(), *target))
    ours = resize_and_crop(frames, *target)
    assert np.abs(ours - theirs).max() <= 255 * 1e-6
    table("resize and crop", "all", ORACLE, relative(ours, theirs), 1e-6)
    theirs = media_io.normalize_latent(torch.from_numpy(theirs), "cpu", torch.float32).numpy()
    table("resize, crop, normalise", "all", ORACLE, relative(normalize_pixels(ours), theirs), 1e-6)


def test_resize_ratios_that_do_not_come_out_even(table):
    pairs = np.random.default_rng(0).integers(2, 400, (60, 4))
    for height, width, new_height, new_width in pairs.tolist():
        frame = noise(height, 1, height, width, 1)
        theirs = media_io.resize_and_center_crop(torch.from_numpy(frame).float(), new_height, new_width)
        ours = resize_and_crop(frame, new_height, new_width)
        table("resize and crop", "all", ORACLE, relative(ours, channels_last(theirs)), 1e-6)


@pytest.fixture
def one_core():
    """x264 cuts as many slices as there are cores, so official pixels differ; ours are those of one core."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot confine a process to one core")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def nearest(ours: np.ndarray, reference: Callable[[], np.ndarray]) -> float:
    """The smallest error of a few runs: with AVX-512, x264 is not quite repeatable."""
    return min(relative(ours, reference()) for _ in range(3))


@pytest.mark.parametrize("crf", [0, 18, 29.5, 33, 51])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (2, 2), (240, 135), (333, 517)])
def test_crf_degradation_gives_the_same_pixels(table, one_core, crf, size):
    image = noise(int(crf), *size, 3) // 2 + 60
    error = nearest(crf_degrade(image, crf), lambda: media_io.preprocess(image, crf))
    table("image through H.264", "all", ORACLE, error, 0)


@pytest.mark.parametrize("crf", [0, 18, 33])
def test_a_conditioning_picture_from_file_to_array(table, one_core, tmp_path, crf):
    save_image(tmp_path / "a.png", noise(4, 151, 203, 3))
    Image.fromarray(noise(5, 90, 60, 3)).save(tmp_path / "b.jpg", quality=80)
    for name in ("a.png", "b.jpg"):
        path = str(tmp_path / name)
        ours = prepare_image(path, 96, 128, crf)

        def reference(path=path):
            return channels_last(media_io.load_image_conditioning(path, 96, 128, torch.float32, "cpu", crf))

        table("conditioning picture", "all", ORACLE, nearest(ours, reference), 1e-6)
        np.testing.assert_array_equal(load_image(path), media_io.decode_image(path))


@pytest.mark.parametrize("tagged", [True, False])
def test_frames_of_a_video(table, tmp_path, tagged):
    path, frames = tmp_path / "a.mp4", noise(6, 9, 48, 80, 3)
    if tagged:
        with ClipWriter(path, fps=24) as writer:
            writer.write(frames)
    else:
        write_plain_video(path, frames, 24)
    theirs = torch.cat(list(media_io.decode_video_from_file(str(path), 7, "cpu"))).numpy()
    ours = read_frames(path, max_frames=7)
    table("frames of a video", "all", ORACLE, relative(ours, theirs), 0)
    info = probe(path)
    assert media_io.get_videostream_metadata(str(path)) == (
        float(info.fps),
        info.frames,
        info.width,
        info.height,
    )


WINDOWS = ((0.0, None), (0.0, 0.37), (0.5, 0.25))
# The official reader seeks, and decodes an MP3 differently after a seek: no late window of it.
SOUNDS = [(k, w) for k in ("s16", "s32", "f32", "flac", "mp3") for w in WINDOWS if k != "mp3" or not w[0]]


@pytest.mark.parametrize(("kind", "window"), SOUNDS)
def test_samples_of_a_sound(table, tmp_path, kind, window):
    suffix = kind if kind in ("flac", "mp3") else "wav"
    path = write_sound(tmp_path / f"a.{suffix}", sine(1.0, 32000), 32000, kind)
    theirs = media_io.decode_audio_from_file(str(path), "cpu", *window)
    ours = read_audio(path, *window)
    assert ours.rate_hz == theirs.sampling_rate
    theirs = theirs.waveform[0].numpy().T
    if kind == "mp3":  # whose encoder delay the official reader counts as time
        length = min(len(theirs), len(ours.samples))
        table("samples of a sound", "all", ORACLE, relative(ours.samples[:length], theirs[:length]), 1e-6)
    else:
        table("samples of a sound", "all", ORACLE, relative(ours.samples, theirs), 1e-6)


def test_a_written_clip_is_read_by_the_official_reader(table, tmp_path):
    tone = Waveform(sine(1.0, 48000), 48000)
    with ClipWriter(tmp_path / "a.mp4", fps=24, audio=tone) as writer:
        writer.write(noise(7, 24, 32, 32, 3))
    theirs = media_io.decode_audio_from_file(str(tmp_path / "a.mp4"), "cpu", 0.0, 1.0).waveform[0].numpy().T
    ours = read_audio(tmp_path / "a.mp4").samples
    assert ours.shape == theirs.shape
    # The official reader seeks first: its decoder lacks the block before the first one, and its generator of
    # substituted noise is one block behind ever after.
    table("sound of a written clip", "all", ORACLE, relative(ours[2048:], theirs[2048:]), 1e-3)
