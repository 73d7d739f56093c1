"""Retake, extend and making over: only what is asked for changes, everything else is the source's own."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ltx2.diffusion.conditioning import TemporalRegion
from mlx_ltx2.diffusion.state import video_state
from mlx_ltx2.errors import MediaError, RequestError, ShapeError
from mlx_ltx2.generate import LTX2Pipeline
from mlx_ltx2.media.audio import read_audio
from mlx_ltx2.media.metadata import read_metadata
from mlx_ltx2.media.video import probe, read_frames
from mlx_ltx2.pipelines.retake import touched_frames
from mlx_ltx2.shapes import LatentShape, VideoScale, VideoShape
from mlx_ltx2.stages.keep_latents import Found, find_latents, keep_latents
from mlx_ltx2.stages.plan import SourceUse
from mlx_ltx2.stages.source import Source, splice_sound
from mlx_ltx2.states import DenoisedPair, Waveform
from mlx_ltx2.weights.array_file import read_arrays
from tests.fixtures.media_files import counting_clip, sine, write_plain_video
from tests.fixtures.odd_videos import cut_by_edit_list

FPS = 24


@pytest.fixture(scope="module")
def pipe(tiny_model) -> LTX2Pipeline:
    return LTX2Pipeline.from_pretrained(tiny_model())


@pytest.fixture(scope="module")
def clip(pipe, tmp_path_factory):
    """A clip of 17 frames with its latents, and its file."""
    path = tmp_path_factory.mktemp("clip") / "source.mp4"
    return pipe("a red circle", height=64, width=64, num_frames=17, seed=1, output=path)


@pytest.fixture(scope="module")
def silent(tmp_path_factory) -> Path:
    return write_plain_video(tmp_path_factory.mktemp("clip") / "silent.mp4", counting_clip(9, 64, 64), FPS)


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.audio[0]) if p.dts is not None]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([24.0, 25.0, 23.976, 30000 / 1001, 50.0]),
    st.integers(0, 5),
    st.integers(0, 400),
    st.integers(1, 400),
)
def test_new_frames_are_those_of_the_touched_latents(fps, k, start, length) -> None:
    """The frames that are decoded belong to exactly the tokens that the official region mask generates, and the
    snapped region of the plan touches the same tokens."""
    frames = 8 * k + 1
    seconds = frames / fps
    begin, end = start / 400 * seconds * 0.999, min(seconds, (start + length) / 400 * seconds)
    first, last = touched_frames(begin, end, fps, frames, VideoScale())
    state = video_state(LatentShape(k + 1, 1, 1), 4, fps)
    mask = TemporalRegion(begin, end).apply(state).denoise_mask[0]
    decoded = np.zeros(k + 1)
    for latent in range(k + 1):
        covered = range(max(0, 8 * latent - 7), 8 * latent + 1)
        inside = [first <= frame < last for frame in covered]
        assert all(inside) or not any(inside)
        decoded[latent] = all(inside)
    snapped = TemporalRegion((first + 0.25) / fps, (last - 0.25) / fps).apply(state).denoise_mask[0]
    assert np.array_equal(snapped, decoded)
    times = state.positions[0, 0]  # a border within rounding of a token's edge may fall to either side
    near = (np.abs(times[:, 1] - begin) < 1e-6) | (np.abs(times[:, 0] - end) < 1e-6)
    assert np.array_equal(mask[~near], decoded[~near])


def test_only_the_retaken_region_changes(pipe, clip) -> None:
    start, end = 0.4, 0.6
    new = pipe("a blue star", video=clip, start_time=start, end_time=end, seed=2)
    assert new.plan.video_input.made == (9, 17)
    changed = (new.frames != clip.frames).any(axis=(1, 2, 3))
    assert changed[9:].all() and not changed[:9].any()
    assert mx.array_equal(new.latents[:, :2], clip.latents[:, :2])
    assert not mx.array_equal(new.latents[:, 2], clip.latents[:, 2])
    rate = clip.audio.rate_hz
    assert new.audio.rate_hz == rate and new.audio.samples.shape == clip.audio.samples.shape
    moved = np.flatnonzero((new.audio.samples != clip.audio.samples).any(axis=1))
    assert moved[0] >= round(start * rate) and moved[-1] < round(end * rate)
    assert len(moved) > 0.9 * (end - start) * rate
    held = (clip.audio_latents == new.audio_latents).all(axis=(0, 2, 3))
    assert np.array(held)[:10].all() and not np.array(held)[11:14].any()


def test_kept_sound_is_copied_packet_by_packet_and_rerun_agrees(pipe, clip, run_cli, tmp_path) -> None:
    out, again = tmp_path / "new.mp4", tmp_path / "again.mp4"
    code, _, err = run_cli(
        "retake", "--model", pipe.networks.model.path, "--video", clip.path, "--start-time", 0, "--end-time", 0.3,
        "--no-retake-audio", "-p", "rain", "-o", out, "--progress", "bar",
    )  # fmt: skip
    assert code == 0, err
    assert "frames 0 to 8 are made anew" in err
    assert packets(out) == packets(clip.path)
    info = probe(out)
    assert (info.frames, info.width, info.height, info.fps) == (17, 64, 64, FPS)
    code, _, err = run_cli("rerun", out, "-o", again)
    assert code == 0, err
    assert again.read_bytes() == out.read_bytes()


def test_sound_alone_leaves_every_frame_and_decodes_none(pipe, clip, monkeypatch) -> None:
    from mlx_ltx2.weights import networks

    load, asked = networks.load_component, []
    monkeypatch.setattr(networks, "load_component", lambda m, name, **kw: asked.append(name) or load(m, name, **kw))
    new = pipe("thunder", video=str(clip.path), start_time=0.3, retake_video=False)
    assert "video_decoder" not in asked and {"video_encoder", "audio_encoder"} <= set(asked)
    assert np.array_equal(new.frames, read_frames(clip.path))
    own = read_audio(clip.path).samples
    border = round(0.3 * new.audio.rate_hz)
    assert np.array_equal(new.audio.samples[:border], own[:border])
    assert not np.array_equal(new.audio.samples[border:], own[border:])


def pictures(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.video[0]) if p.dts is not None]


def test_the_picture_is_copied_packet_by_packet_where_the_sound_alone_is_new(pipe, clip, run_cli, tmp_path) -> None:
    out, again = tmp_path / "new.mp4", tmp_path / "again.mp4"
    code, _, err = run_cli(
        "retake", "--model", pipe.networks.model.path, "--video", clip.path, "--start-time", 0.3, "--no-retake-video",
        "-p", "thunder", "-o", out, "--save-frames", "--progress", "plain",
    )  # fmt: skip
    assert code == 0 and "encoded anew" not in err, err
    assert pictures(out) == pictures(clip.path)
    assert packets(out) != packets(clip.path)
    assert np.array_equal(read_frames(out), read_frames(clip.path))
    assert len(list((tmp_path / "new_frames").glob("*.png"))) == 17
    info, old = probe(out), probe(clip.path)
    assert (info.frames, info.fps, info.seconds) == (old.frames, old.fps, old.seconds)
    with av.open(str(out)) as container:
        track = container.streams.audio[0]
        assert abs(float(track.duration * track.time_base) - 17 / FPS) <= 1 / track.rate
    assert read_metadata(out)["prompt"] == "thunder"
    code, _, err = run_cli("rerun", out, "-o", again)
    assert code == 0, err
    assert again.read_bytes() == out.read_bytes()


def test_a_picture_that_the_container_does_not_take_is_encoded_and_that_is_said(pipe, run_cli, tmp_path) -> None:
    source, out = tmp_path / "source.avi", tmp_path / "new.mp4"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("huffyuv", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv422p"
        for frame in counting_clip(9, 64, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    code, _, err = run_cli(
        "retake", "--model", pipe.networks.model.path, "--video", source, "--start-time", 0, "--no-retake-video",
        "-p", "thunder", "-o", out, "--progress", "plain", "--crf", 1,
    )  # fmt: skip
    assert code == 0 and "could not be copied: .mp4 files hold no huffyuv pictures" in err, err
    assert np.abs(read_frames(out).astype(int) - read_frames(source).astype(int)).max() <= 3
    assert probe(out).has_audio


@pytest.mark.parametrize("tiling", ["auto", "none", "aggressive"])
def test_nothing_is_decoded_after_the_last_new_frame(pipe, clip, tiling, monkeypatch) -> None:
    from mlx_ltx2.stages import decode_video

    convert, seen = decode_video.to_uint8, []
    monkeypatch.setattr(decode_video, "to_uint8", lambda pixels: seen.append(pixels.shape[1]) or convert(pixels))
    new = pipe("a star", video=clip, start_time=0, end_time=0.02, retake_audio=False, tiling=tiling)
    assert new.plan.video_input.made == (0, 1)
    assert sum(seen) < 17 or tiling != "auto"
    assert np.array_equal(new.frames[1:], clip.frames[1:]) and (new.frames[0] != clip.frames[0]).any()


@pytest.mark.parametrize("before", [False, True])
def test_extending_keeps_the_clip_and_encodes_nothing_again(pipe, clip, before, monkeypatch) -> None:
    from mlx_ltx2.weights import networks

    load = networks.load_component
    forbidden = {"video_encoder"} if before else {"video_encoder", "audio_encoder"}

    def guarded(model, name, **options):
        assert name not in forbidden
        return load(model, name, **options)

    monkeypatch.setattr(networks, "load_component", guarded)
    longer = pipe("it moves on", video=clip, extend_frames=8, extend_before=before)
    assert longer.frames.shape == (25, 64, 64, 3)
    kept = longer.frames[8:] if before else longer.frames[:17]
    assert np.array_equal(kept, clip.frames)
    if before:
        assert mx.array_equal(longer.latents[:, 2:], clip.latents[:, 1:])
    else:
        assert mx.array_equal(longer.latents[:, :3], clip.latents)
    rate = clip.audio.rate_hz
    assert len(longer.audio.samples) == round(25 / FPS * rate)
    own = clip.audio.samples[: round(17 / FPS * rate)]
    at = round(8 / FPS * rate) if before else 0
    assert np.array_equal(longer.audio.samples[at : at + len(own)], own)
    seam = at if before else round(17 / FPS * rate)
    step = np.abs(np.diff(longer.audio.samples[seam - 2 : seam + 2], axis=0)).max()
    assert step < 0.1 + np.abs(np.diff(longer.audio.samples, axis=0)).max() / 2


def test_a_clip_that_was_never_decoded_is_extended_before_its_start(pipe, clip) -> None:
    alone = replace(clip, frames=None, audio=None, path=None)
    longer = pipe("it begins", video=alone, extend_frames=8, extend_before=True)
    assert longer.frames.shape == (25, 64, 64, 3)
    at, own = round(8 / FPS * clip.audio.rate_hz), clip.audio.samples
    assert np.array_equal(longer.audio.samples[at : at + len(own)], own)  # its last latent ends before its last frame


def test_latents_that_were_kept_are_taken_up_and_nothing_is_encoded(pipe, run_cli, tmp_path, monkeypatch) -> None:
    from mlx_ltx2.weights import networks

    model, source = pipe.networks.model.path, tmp_path / "a.mp4"
    make = ["generate", "--model", model, "-p", "x", "-H", 64, "-W", 64, "-n", 9, "-o", source, "--progress", "plain"]
    code, _, err = run_cli(*make, "--save-latents")
    assert code == 0 and "latents are kept in" in err, err
    kept, _ = read_arrays(tmp_path / "a.latents.safetensors")
    load, asked = networks.load_component, []
    monkeypatch.setattr(networks, "load_component", lambda m, name, **kw: asked.append(name) or load(m, name, **kw))
    longer = pipe("it moves on", video=str(source), extend_frames=8, output_type="latent")
    assert mx.array_equal(longer.latents[:, :2], kept["video"])
    again = pipe("it moves", video=str(source), start_time=0.2, retake_video=False, output_type="latent")
    assert mx.array_equal(again.latents, kept["video"])
    assert not {"video_encoder", "audio_encoder"} & set(asked)
    retake = ["retake", "--model", model, "--video", source, "-p", "y", "--start-time", 0, "--no-audio"]
    code, _, err = run_cli(*retake, "-o", tmp_path / "b.mp4", "--progress", "plain")
    assert code == 0 and "are taken from a.latents.safetensors" in err, err
    assert "video_encoder" not in asked
    code, _, err = run_cli(*make, "--seed", 11)  # the same name, and no latents beside it
    assert code == 0, err
    code, _, err = run_cli(*retake, "-o", tmp_path / "b.mp4", "--progress", "plain")
    assert code == 0 and "a.latents.safetensors is ignored, it belongs to another file" in err, err
    assert "video_encoder" in asked


def test_only_latents_of_this_very_file_are_taken(tiny_model, tmp_path) -> None:
    file, latents = tmp_path / "a.mp4", DenoisedPair(mx.ones((1, 2, 2, 2, 4), mx.bfloat16), mx.zeros((1, 3, 4, 2)))
    file.write_bytes(b"a clip")
    space, other = (
        LTX2Pipeline.from_pretrained(tiny_model(generation)).networks.latent_space() for generation in ("2.3", "2.0")
    )
    assert find_latents(file, space) == Found()
    path = keep_latents(file, latents, space)
    found = find_latents(file, space)
    assert found.latents.video.dtype == mx.bfloat16 and mx.array_equal(found.latents.video, latents.video)
    assert mx.array_equal(found.latents.audio, latents.audio) and "taken from a.latents.safetensors" in found.note
    assert LTX2Pipeline.from_pretrained(tiny_model(variant="dev")).networks.latent_space() == space != other
    foreign = find_latents(file, other)
    assert foreign.latents is None and "a model with other encoders" in foreign.note
    data = bytearray(path.read_bytes())
    for damaged in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        found = find_latents(file, space)
        assert found.latents is None and "it is damaged" in found.note and "encoded instead" in found.note
    path.write_bytes(data)
    file.write_bytes(b"a clip, cut")
    assert find_latents(file, space).latents is None


def test_extending_a_file_by_the_command(pipe, silent, run_cli, tmp_path) -> None:
    out = tmp_path / "longer.mp4"
    code, _, err = run_cli(
        "generate", "--model", pipe.networks.model.path, "--video", silent, "--extend-frames", 8, "--no-audio",
        "-p", "x", "-o", out, "--crf", "1",
    )  # fmt: skip
    assert code == 0, err
    frames = read_frames(out)
    assert len(frames) == 17 and not probe(out).has_audio
    assert np.abs(frames[:9].astype(int) - read_frames(silent).astype(int)).max() <= 3


def test_made_over_starts_from_the_clip(pipe, silent) -> None:
    plan = pipe.plan("x", video=str(silent), denoising_strength=0.5)
    first = plan.stages[0]
    assert plan.pipeline == "distilled" and plan.shape == VideoShape(9, 64, 64, 24.0)
    assert first.sigmas == tuple(np.float32([0.975, 0.909375, 0.725, 0.421875, 0]).tolist())
    assert first.video.start == first.audio.start == "input"
    assert first.video.noise_scale == first.audio.noise_scale == first.sigmas[0]
    new = pipe("x", video=str(silent), denoising_strength=0.125, output_type="latent")
    assert new.latents.shape[1:4] == (2, 2, 2) and new.audio_latents is not None


def test_a_dev_model_retakes_with_guidance(tiny_model, clip) -> None:
    dev = LTX2Pipeline.from_pretrained(tiny_model(variant="dev"))
    plan = dev.plan("x", video=str(clip.path), start_time=0.2, end_time=0.5, retake_audio=False, steps=3)
    stage = plan.stages[0]
    assert len(stage.sigmas) == 4 and plan.negative_prompt
    assert stage.passes == ("cond", "uncond", "perturbed", "isolated")[: len(stage.passes)]
    assert stage.video.guidance.cfg == 3 and stage.audio.guidance is None
    assert stage.audio.frozen and stage.audio.noise_scale == 0 and plan.audio_from == "source"
    assert stage.video.region is not None


def test_a_silent_source_gets_sound_for_the_whole_clip_and_that_is_said(pipe, silent) -> None:
    plan = pipe.plan("x", video=str(silent), start_time=0.1)
    assert any("sound is made for the whole clip" in note for note in plan.notes)
    assert plan.stages[0].audio.start == "noise" and plan.video_input.sound is None
    assert pipe.plan("x", video=str(silent), start_time=0.1, retake_audio=False).audio_from is None


def test_splicing_changes_no_sample_outside_and_fades_inside() -> None:
    rate = 8000
    kept, new = Waveform(sine(1.0, rate), rate), Waveform(-sine(1.0, 16000), 16000)
    use = SourceUse("x", 25, True, (9, 17), sound=(0.25, 0.5))
    mixed = splice_sound(kept, new, use, VideoShape(25, 64, 64, 25.0)).samples
    assert np.array_equal(mixed[:2000], kept.samples[:2000])
    assert np.array_equal(mixed[4000:], kept.samples[4000:])
    inside = mixed[2000 + 80 : 4000 - 80]
    assert np.allclose(inside, -kept.samples[2080:3920], atol=2e-3)
    assert np.abs(mixed[2000] - kept.samples[2000]).max() < 0.05
    longer = splice_sound(
        kept, new, replace(use, frames=15, sound=(0.6, 1.0), made=(15, 25)), VideoShape(25, 64, 64, 25.0)
    )
    assert len(longer.samples) == 8000 and np.array_equal(longer.samples[:4800], kept.samples[:4800])


BAD = [
    ({"start_time": 0.5, "end_time": 0.5}, RequestError, "empty"),
    ({"start_time": 0.5, "end_time": 0.2}, RequestError, "empty"),
    ({"start_time": 9.0}, RequestError, "lies outside the clip, which lasts 0.708 s"),
    ({"start_time": 0.1, "end_time": 9.0}, RequestError, "lies outside"),
    ({"start_time": -1.0}, RequestError, "start_time"),
    ({"start_time": float("nan")}, RequestError, "start_time"),
    ({"pipeline": "retake"}, RequestError, "--start-time"),
    ({"start_time": 0.1, "retake_video": False, "retake_audio": False}, RequestError, "nothing would be made anew"),
    ({"start_time": 0.1, "retake_video": False, "audio": False}, RequestError, "nothing would be made anew"),
    ({"start_time": 0.1, "fps": 30}, RequestError, "the source decides"),
    ({"start_time": 0.1, "height": 128}, RequestError, "the source decides"),
    ({"start_time": 0.1, "num_frames": 9}, RequestError, "the source decides"),
    ({"start_time": 0.1, "extend_frames": 8}, RequestError, "extend_frames belongs to pipeline extend"),
    ({"start_time": 0.5, "images": [("x.png", 0)]}, RequestError, "that frame is kept"),
    ({"extend_frames": 7}, ShapeError, "use 8 or 16"),
    ({"extend_frames": 0}, ShapeError, "multiple of 8"),
    ({"pipeline": "extend"}, RequestError, "--extend-frames"),
    ({"extend_frames": 8, "denoising_strength": 0.5}, RequestError, "denoising_strength"),
    ({}, RequestError, "nothing says what becomes of it"),
    ({"denoising_strength": 1.5}, RequestError, "denoising_strength"),
    ({"denoising_strength": 0.0}, RequestError, "denoising strength"),
    ({"denoising_strength": 0.5, "num_frames": 33}, RequestError, "17 frames and 33 are wanted"),
    ({"pipeline": "text-to-audio"}, RequestError, "takes no --video"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_impossible_wishes_are_refused(pipe, clip, options, kind, message) -> None:
    with pytest.raises(kind, match=message):
        pipe.plan("x", video=str(clip.path), **options)


@pytest.mark.parametrize(
    "options", [{"pipeline": "retake"}, {"start_time": 1.0}, {"extend_frames": 8}, {"denoising_strength": 0.5}]
)
def test_without_a_clip_there_is_nothing_to_retake(pipe, options) -> None:
    with pytest.raises(RequestError, match="needs a clip; give --video"):
        pipe.plan("x", **options)


@pytest.mark.parametrize(
    ("size", "message"),
    [((10, 64, 64), "cut it to its first 9 frames"), ((9, 48, 64), "multiple of 32; crop or scale it to 32 or 64")],
)
def test_a_source_off_the_grid_is_refused(pipe, run_cli, tmp_path, size, message) -> None:
    odd, out = tmp_path / "odd.mp4", tmp_path / "out.mp4"
    write_plain_video(odd, counting_clip(*size), Fraction(24))
    code, _, err = run_cli(
        "retake", "--model", pipe.networks.model.path, "--video", odd, "--start-time", 0, "-p", "x", "-o", out
    )
    assert code == 2 and message in err
    assert not out.exists()


def test_unreadable_sources_and_the_source_as_output(pipe, clip, run_cli, tmp_path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for path in (broken, tmp_path / "missing.mp4"):
        with pytest.raises(MediaError):
            pipe.plan("x", video=path, start_time=0)
    before = clip.path.read_bytes()
    code, _, err = run_cli(
        "retake", "--model", pipe.networks.model.path, "--video", clip.path, "--start-time", 0, "-p", "x",
        "-o", clip.path,
    )  # fmt: skip
    assert code == 2 and "is an input of this run" in err
    assert clip.path.read_bytes() == before


def test_the_plan_says_what_is_kept(pipe, clip, run_cli) -> None:
    code, out, err = run_cli(
        "plan", "--model", pipe.networks.model.path, "--video", clip.path, "--start-time", 0.4, "-p", "x", "--json"
    )
    assert code == 0, err
    plan = json.loads(out)
    assert plan["pipeline"] == "retake" and plan["video_input"]["made"] == [9, 17]
    assert plan["origin"]["height"] == "source clip"


def test_what_reading_changes_is_said_once_and_the_changed_pictures_are_encoded(pipe, run_cli, tmp_path) -> None:
    source = tmp_path / "cut.mp4"
    cut_by_edit_list(write_plain_video(source, counting_clip(30, 64, 64), 24), 5, 17)
    model, out = pipe.networks.model.path, tmp_path / "out.mp4"
    said = "its header counts 30 pictures; a player shows 17"
    given = ("--model", model, "--video", source, "--start-time", 0.1, "-p", "x", "--progress", "plain")
    code, shown, err = run_cli("plan", *given[:-2])
    assert code == 0 and shown.count(said) == 1, err
    code, _, err = run_cli("retake", *given, "--no-retake-video", "-o", out, "--crf", 1)
    assert code == 0 and err.count(said) == 1 and "not shown as it is stored" in err, err
    assert probe(out, count=True).frames == 17
    assert np.abs(read_frames(out).astype(int) - read_frames(source).astype(int)).max() <= 3


def test_a_clip_is_made_over_at_the_rate_of_the_result(pipe, tmp_path) -> None:
    source = write_plain_video(tmp_path / "fast.mp4", counting_clip(30, 64, 64), 60)
    plan = pipe.plan("x", video=source, denoising_strength=0.5, num_frames=9, fps=24)
    assert f"{source}: its 60 fps are read as 24 fps, by time" in plan.notes
    means = [f.mean() for f in Source(plan.video_input).frames()]
    assert [round((m - 10) / 8) for m in means] == [0, 2, 5, 7, 10, 12, 15, 17, 20]
    with pytest.raises(RequestError, match="12 frames at 24 fps and 17 are wanted"):
        pipe.plan("x", video=source, denoising_strength=0.5, num_frames=17, fps=24)
