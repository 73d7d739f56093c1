"""Official answers to the questions of tests/cases/diffusion_answers.py, from release 1.0.0 or 1.2.0."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from ltx_core.components import diffusion_steps, guiders, schedulers
from ltx_core.conditioning.types import (
    attention_strength_wrapper,
    keyframe_cond,
    latent_cond,
    reference_video_cond,
)
from ltx_core.model.video_vae import video_vae

from tests.cases import Arrays
from tests.cases import diffusion_answers as ask
from tests.cases.diffusion import AUDIO_CHANNELS, BINS, FPS
from tests.parity.official_loops import (
    RELEASE,
    Injected,
    audio_tools,
    channels_first,
    get_res2s_coefficients,
    video_tools,
)

NEW = RELEASE == "1.2.0"


def all_answers() -> Arrays:
    out = schedule_answers() | guidance_answers() | position_answers() | item_answers() | step_answers()
    out |= axis_answers()
    return out | new_answers() if NEW else out


def schedule_answers() -> Arrays:
    ltx2, quadratic = schedulers.LTX2Scheduler(), schedulers.LinearQuadraticScheduler()
    out = {f"ltx2 {n}": ltx2.execute(n) for n in (2, 8, 15, 30, 40)}
    for n, t in ((15, 8160), (20, 640)):
        out[f"ltx2 {n} tokens {t}"] = ltx2.execute(n, latent=torch.zeros(1, 1, 1, t, 1))
    out["ltx2 unstretched"] = ltx2.execute(7, stretch=False)
    out |= {f"quadratic {n}": quadratic.execute(n) for n in (1, 5, 8, 20)}
    out |= {f"beta {n}": schedulers.BetaScheduler().execute(n) for n in (1, 8, 20)}
    return {name: value.numpy() for name, value in out.items()}


def guidance_answers() -> Arrays:
    cond, uncond, perturbed, isolated = map(torch.from_numpy, ask.guide_inputs())
    out = {}
    for i, (cfg, stg, modality, rescale) in enumerate(ask.GUIDES):
        params = guiders.MultiModalGuiderParams(
            cfg_scale=cfg, stg_scale=stg, stg_blocks=[1], modality_scale=modality, rescale_scale=rescale
        )
        guider = guiders.MultiModalGuider(params=params)
        out[f"guide {i}"] = guider.calculate(cond, uncond, perturbed, isolated)
    out["apg"] = guiders.LtxAPGGuider(4.0, eta=0.3).delta(cond, uncond)
    out["apg bounded"] = guiders.LtxAPGGuider(4.0, eta=1.2, norm_threshold=2.5).delta(cond, uncond)
    out["cfg star"] = guiders.CFGStarRescalingGuider(4.0).delta(cond, uncond)
    return {name: value.numpy() for name, value in out.items()}


def position_answers() -> Arrays:
    cpu = torch.device("cpu")
    out = {}
    for i, (shape, fps) in enumerate(ask.POSITIONS):
        tools = video_tools(fps, shape)
        out[f"positions {i}"] = tools.create_initial_state(cpu, torch.float32).positions.numpy()
    return out | {"audio positions": audio_tools().create_initial_state(cpu, torch.float32).positions.numpy()}


def chained(tools, items, start=None):
    state = tools.create_initial_state(torch.device("cpu"), torch.float32, start)
    for item in items:
        state = item.apply_to(latent_state=state, latent_tools=tools)
    return state


def described(name: str, state) -> Arrays:
    got = SimpleNamespace(
        clean_latent=state.clean_latent.numpy(),
        denoise_mask=state.denoise_mask.numpy()[..., 0],
        positions=state.positions.numpy(),
        attention_mask=None if state.attention_mask is None else state.attention_mask.numpy(),
    )
    return ask.described(name, got)


def given() -> dict[str, torch.Tensor]:
    return {k: channels_first(v) if v.ndim == 5 else torch.from_numpy(v) for k, v in ask.cond_inputs().items()}


def reference(strength: float = 1.0, downscale: int = 1, **options):
    return reference_video_cond.VideoConditionByReferenceLatent(
        given()["reference"], downscale_factor=downscale, strength=strength, **options
    )


def item_answers() -> Arrays:
    data, wrap = given(), attention_strength_wrapper.ConditioningItemAttentionStrengthWrapper
    scaled = reference(0.8, 2)
    image = latent_cond.VideoConditionByLatentIndex(data["frame"], 1.0, 0)
    chains = {
        "latent at 1": [latent_cond.VideoConditionByLatentIndex(data["two"], 0.7, 1)],
        "keyframe span": [keyframe(data["two"], 8, 0.75, 9)],
        "reference": [scaled],
        "reference then image": [scaled, image],
        "weighted reference": [wrap(scaled, 0.4)],
        "weighted, weighted": [wrap(scaled, data["weights"]), wrap(reference(), data["weights"][0])],
    }
    out: Arrays = {}
    for name, chain in chains.items():
        out |= described(name, chained(video_tools(), chain, data["start"]))
    return out


def keyframe(latent: torch.Tensor, frame: int, strength: float, pixel_frames: int = 1):
    options = {"num_pixel_frames": pixel_frames} if NEW else {}
    return keyframe_cond.VideoConditionByKeyframeIndex(latent, frame_idx=frame, strength=strength, **options)


def step_answers() -> Arrays:
    x, x0, noise, _ = map(torch.from_numpy, ask.guide_inputs())
    out = {f"res2s {h}": np.array(get_res2s_coefficients(h, {}), np.float32) for h in ask.HS}
    for sigma, following in ask.STEPS:
        sigmas = torch.tensor([sigma, following])
        euler = diffusion_steps.EulerDiffusionStep().step(x, x0, sigmas, 0)
        sde = diffusion_steps.Res2sDiffusionStep()
        out[f"euler {sigma}"] = euler.numpy()
        exact = [v.double() for v in (x, x0)]
        for name, options in (("sde", {}), ("new/sde 0.2", {"eta": 0.2})):
            double = torch.tensor([sigma, following], dtype=torch.float64)
            if NEW or not options:
                out[f"{name} {sigma}"] = sde.step(*exact, double, 0, noise.double(), **options).float().numpy()
    return out


def axis_answers() -> Arrays:
    """Pixel bounds and weights along one axis. The release normalises later where three tiles meet."""
    if NEW:
        from ltx_core import tiling

        causal, plain = tiling.split_temporal_causal, tiling.split_by_size
        to_frames, to_pixels = video_vae.map_temporal_slice, video_vae.map_spatial_slice
    else:
        causal, plain = video_vae.split_temporal_latents, video_vae.split_with_symmetric_overlaps
        to_frames, to_pixels = (
            video_vae.map_temporal_interval_to_frame,
            video_vae.map_spatial_interval_to_pixel,
        )

    def axis(intervals, mapping, scale: int) -> np.ndarray:
        if NEW:
            parts = [(i.start, i.end, i.left_ramp, i.right_ramp) for i in intervals.intervals]
        else:
            parts = zip(intervals.starts, intervals.ends, intervals.left_ramps, intervals.right_ramps, strict=True)
        spans = [mapping(*part, scale) for part in parts]
        total = np.zeros(max(s.stop for s, _ in spans))
        for s, w in spans:
            total[s] += w.numpy()
        return ask.flat([(s, w.numpy() / total[s]) for s, w in spans])

    def split(splitter, length: int, size: int, overlap: int):
        # Release 1.0.0 leaves short axes to its caller.
        return splitter(size, overlap)(length)

    out = {}
    for length, size, overlap in ask.SPATIAL:
        out[f"rows {length} {size} {overlap}"] = axis(split(plain, length, size, overlap), to_pixels, 32)
    for length, size, overlap in ask.TEMPORAL:
        out[f"frames {length} {size} {overlap}"] = axis(split(causal, length, size, overlap), to_frames, 8)
    return out


def new_answers() -> Arrays:
    """Rules of release 1.2.0 only."""
    from ltx_core.conditioning.types import mask_cond, noise_mask_cond, reference_audio_cond

    data, wrap = given(), attention_strength_wrapper.ConditioningItemAttentionStrengthWrapper
    frame = keyframe(data["frame"], 8, 0.75)
    scaled = reference(0.8, 2)
    region = noise_mask_cond.TemporalRegionMask
    image = latent_cond.VideoConditionByLatentIndex(data["frame"], 1.0, 0)
    chains = {
        "new/keyframe 0": [keyframe(data["frame"], 0, 1.0)],
        "new/keyframe 8": [frame],
        "new/weighted then keyframe": [wrap(scaled, 0.4), frame],
        "new/keyframe then weighted": [frame, wrap(scaled, data["weights"])],
        "new/slow reference": [reference(1.0, 2, temporal_scale_factor=4)],
        "new/mask": [mask_cond.VideoConditionByMask(data["start"], data["held"], 0.6)],
        "new/region": [region(9 / FPS, 17 / FPS, FPS)],
        "new/region of one frame": [region(0.0, 0.5 / FPS, FPS)],
    }
    out: Arrays = {}
    for name, chain in chains.items():
        out |= described(name, chained(video_tools(), chain, data["start"]))
    out |= described("new/audio region", chained(audio_tools(), [region(0.05, 0.13, FPS)]))
    sound = ask.cond_inputs()["sound"]
    tokens = torch.from_numpy(sound.transpose(0, 1, 3, 2).reshape(1, 4, AUDIO_CHANNELS * BINS).copy())
    times = audio_tools(4).create_initial_state(torch.device("cpu"), torch.float32).positions - (4 / 25 + 0.04)
    item = reference_audio_cond.AudioConditionByReferenceLatent(tokens, times, 0.9)
    out |= described("new/reference audio", chained(audio_tools(), [item]))
    state = chained(video_tools(), [scaled, image], data["start"])
    out["new/noised"] = Injected(ask.cond_inputs()["noise"])(state, 0.7).latent.numpy()
    return out | new_tile_answers()


def new_tile_answers() -> Arrays:
    from ltx_core import tiling
    from ltx_core.types import VIDEO_SCALE_FACTORS

    size = tiling.DimensionSizeConfig
    out = {}
    for i, (shape, (height, width, overlap, frames, frame_overlap)) in enumerate(ask.TILED):
        config = tiling.TileSizeConfig(size(frames, frame_overlap), size(height, overlap), size(width, overlap))
        pixels = shape.pixels()
        video = torch.zeros(1, 1, 1, 1, 1).expand(1, 3, pixels.frames, pixels.height, pixels.width)
        planned = video_vae.prepare_tiles_for_encoding(video, config)
        for axis, name in ((2, "frames"), (3, "rows"), (4, "columns")):
            spans = {
                t.in_coords[axis].start: (t.in_coords[axis], t.out_coords[axis], t.masks_1d[axis].numpy())
                for t in planned
            }
            total = np.zeros((shape.frames, shape.height, shape.width)[axis - 2])
            for _, target, weights in spans.values():
                total[target] += weights
            out[f"new/encode {i} {name}"] = ask.flat(
                [(source, weights / total[target]) for source, target, weights in spans.values()]
            )
    for height, width in ask.SHAPES:
        config = tiling.TileSizeConfig.from_long_side(
            long_side=size(768, 64),
            height=height,
            width=width,
            scale_factors=VIDEO_SCALE_FACTORS,
            frames=size(80, 24),
        )
        out[f"new/auto {height} {width}"] = np.array(
            [
                config.frames.tile_size,
                config.frames.overlap,
                config.height.tile_size,
                config.width.tile_size,
                config.width.overlap,
            ],
            np.float32,
        )
    return out
