"""Small questions about schedules, guidance, conditioning and tiles, and this package's answers to them.

tests/parity/official_answers.py answers the same from the official code. Names under "new/" concern rules
that only release 1.2.0 has; its answers are recorded.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_ltx2.diffusion import conditioning, guidance, schedules, state, steppers, tiles
from mlx_ltx2.diffusion.positions import audio_positions, video_positions
from mlx_ltx2.shapes import LatentShape
from mlx_ltx2.states import LatentState
from tests.cases import Arrays
from tests.cases.diffusion import AUDIO_CHANNELS, AUDIO_FRAMES, BINS, CHANNELS, FPS, VIDEO, rng

POSITIONS = [(LatentShape(3, 2, 3), 24.0), (LatentShape(1, 1, 1), 25.0), (LatentShape(16, 2, 2), 29.97)]
GUIDES = [(3.0, 1.0, 3.0, 0.7), (7.0, 0.0, 1.0, 0.0), (1.0, 2.0, 1.0, 1.0), (0.5, -1.0, 2.0, 0.3)]
STEPS = [(1.0, 0.99375), (0.909375, 0.725), (0.725, 0.421875), (0.1, 0.0011)]
HS = [0.00627, 0.1, 0.5, 1.0, 4.5]
SPATIAL = [(24, 24, 2), (48, 16, 2), (32, 24, 2), (17, 8, 3), (40, 8, 2), (9, 4, 1), (30, 40, 8), (5, 3, 2)]
TEMPORAL = [(16, 10, 3), (31, 10, 3), (13, 8, 3), (5, 4, 1), (20, 4, 2), (3, 8, 3)]
TILED = [(LatentShape(16, 32, 48), (512, 768, 64, 80, 24)), (LatentShape(31, 9, 5), (128, 96, 64, 48, 16))]
SHAPES = [(1024, 1536), (512, 768), (1088, 1920), (704, 704), (1920, 1088), (64, 2048)]


def cond_inputs() -> Arrays:
    """Latents in channels-last layout, masks and weights for the conditioning questions."""
    draw = rng(404)
    h, w = VIDEO.height, VIDEO.width
    reference = (1, 2, h, w, CHANNELS)
    return {
        "start": draw.standard_normal((1, VIDEO.frames, h, w, CHANNELS), dtype=np.float32),
        "frame": draw.standard_normal((1, 1, h, w, CHANNELS), dtype=np.float32),
        "two": draw.standard_normal((1, 2, h, w, CHANNELS), dtype=np.float32),
        "reference": draw.standard_normal(reference, dtype=np.float32),
        "weights": draw.random((1, 2 * h * w), dtype=np.float32),
        "held": (draw.random((1, VIDEO.frames, h, w)) < 0.5).astype(np.float32),
        "sound": draw.standard_normal((1, 4, BINS, AUDIO_CHANNELS), dtype=np.float32),
        "noise": draw.standard_normal((1, VIDEO.tokens + 2 * h * w, CHANNELS), dtype=np.float32),
    }


def guide_inputs(shape: tuple[int, ...] = (1, 11, 6)) -> list[np.ndarray]:
    draw = rng(405)
    return [draw.standard_normal(shape, dtype=np.float32) for _ in range(4)]


def described(name: str, got: LatentState) -> Arrays:
    """What both releases agree on; `latent` is compared after noising only."""
    answer = {
        f"{name}/clean": np.array(got.clean_latent),
        f"{name}/mask": got.denoise_mask,
        f"{name}/positions": got.positions,
    }
    if got.attention_mask is not None:
        answer[f"{name}/attention"] = np.array(got.attention_mask)
    return answer


def all_answers() -> Arrays:
    return (
        schedule_answers() | guidance_answers() | position_answers() | item_answers() | step_answers() | tile_answers()
    )


def schedule_answers() -> Arrays:
    out = {f"ltx2 {n}": schedules.ltx2_schedule(n) for n in (2, 8, 15, 30, 40)}
    out |= {f"ltx2 {n} tokens {t}": schedules.ltx2_schedule(n, t) for n, t in ((15, 8160), (20, 640))}
    out["ltx2 unstretched"] = schedules.ltx2_schedule(7, terminal=None)
    out |= {f"quadratic {n}": schedules.linear_quadratic_schedule(n) for n in (1, 5, 8, 20)}
    out |= {f"beta {n}": schedules.beta_schedule(n) for n in (1, 8, 20)}
    return out


def guidance_answers() -> Arrays:
    cond, uncond, perturbed, isolated = map(mx.array, guide_inputs())
    out = {}
    for i, (cfg, stg, modality, rescale) in enumerate(GUIDES):
        params = guidance.GuidanceParams(cfg=cfg, stg=stg, stg_blocks=(1,), modality=modality, rescale=rescale)
        out[f"guide {i}"] = np.array(guidance.guide(cond, uncond, perturbed, isolated, params))
    deltas = {
        "apg": guidance.GuidanceParams(cfg=4.0, apg=True, apg_eta=0.3),
        "apg bounded": guidance.GuidanceParams(cfg=4.0, apg=True, apg_eta=1.2, apg_norm_threshold=2.5),
        "cfg star": guidance.GuidanceParams(cfg=4.0, cfg_star=True),
    }
    return out | {name: np.array(guidance.cfg_delta(cond, uncond, p)) for name, p in deltas.items()}


def position_answers() -> Arrays:
    out = {f"positions {i}": video_positions(shape, fps) for i, (shape, fps) in enumerate(POSITIONS)}
    return out | {"audio positions": audio_positions(AUDIO_FRAMES)}


def _video(given: Arrays, start: bool = False) -> LatentState:
    latent = mx.array(given["start"]) if start else None
    return state.video_state(VIDEO, CHANNELS, FPS, latent=latent, dtype=mx.float32)


def item_answers() -> Arrays:
    given = {k: mx.array(v) for k, v in cond_inputs().items() if k not in ("weights", "held", "noise")}
    raw = cond_inputs()
    ref = given["reference"]
    reference = conditioning.ReferenceVideo(ref, FPS, downscale=2, strength=0.8)
    keyframe = conditioning.Keyframe(given["frame"], 8, FPS, strength=0.75)
    items: dict[str, list[state.ConditioningItem]] = {
        "latent at 1": [conditioning.LatentAt(given["two"], 1, 0.7)],
        "keyframe span": [conditioning.Keyframe(given["two"], 8, FPS, 0.75, pixel_frames=9)],
        "reference": [reference],
        "reference then image": [reference, conditioning.LatentAt(given["frame"], 0, 1.0)],
        "weighted reference": [conditioning.WithAttention(reference, 0.4)],
        "weighted, weighted": [
            conditioning.WithAttention(reference, raw["weights"]),
            conditioning.WithAttention(conditioning.ReferenceVideo(ref, FPS), raw["weights"][0]),
        ],
        "new/keyframe 0": [conditioning.Keyframe(given["frame"], 0, FPS)],
        "new/keyframe 8": [keyframe],
        "new/weighted then keyframe": [conditioning.WithAttention(reference, 0.4), keyframe],
        "new/keyframe then weighted": [keyframe, conditioning.WithAttention(reference, raw["weights"])],
        "new/slow reference": [conditioning.ReferenceVideo(ref, FPS, downscale=2, temporal_scale=4)],
        "new/mask": [conditioning.LatentMask(given["start"], raw["held"], 0.6)],
        "new/region": [conditioning.TemporalRegion(9 / FPS, 17 / FPS)],
        "new/region of one frame": [conditioning.TemporalRegion(0.0, 0.5 / FPS)],
    }
    out: Arrays = {}
    for name, chain in items.items():
        out |= described(name, state.conditioned(_video(given, start=True), chain))
    audio = state.audio_state(AUDIO_FRAMES, bins=BINS, channels=AUDIO_CHANNELS, dtype=mx.float32)
    out |= described("new/audio region", conditioning.TemporalRegion(0.05, 0.13).apply(audio))
    out |= described("new/reference audio", conditioning.ReferenceAudio(given["sound"], strength=0.9).apply(audio))
    mixed = state.conditioned(_video(given, start=True), items["reference then image"])
    noised = state.add_noise(mixed, raw["noise"], 0.7)
    return out | {"new/noised": np.array(noised.latent)}


def step_answers() -> Arrays:
    x, x0, noise, _ = map(mx.array, guide_inputs())
    out = {f"res2s {h}": np.array(steppers.res2s_coefficients(h), np.float32) for h in HS}
    for sigma, following in STEPS:
        out[f"euler {sigma}"] = np.array(steppers.euler_step(x, x0, sigma, following))
        out[f"sde {sigma}"] = np.array(steppers.sde_step(x, x0, sigma, following, noise))
        out[f"new/sde 0.2 {sigma}"] = np.array(steppers.sde_step(x, x0, sigma, following, noise, 0.2))
    return out


def flat(spans: list[tuple[slice, np.ndarray]]) -> np.ndarray:
    """Bounds and weights of one axis as one row of numbers."""
    return np.concatenate([np.concatenate([[s.start, s.stop], w]) for s, w in spans]).astype(np.float32)


def tile_answers() -> Arrays:
    out = {}
    for length, size, overlap in SPATIAL:
        plan = tiles.decode_plan(LatentShape(1, length, 2), tiles.TileSize(height=size * 32, overlap=overlap * 32))
        out[f"rows {length} {size} {overlap}"] = flat([(s.target, s.weights) for s in plan.rows])
    for length, size, overlap in TEMPORAL:
        plan = tiles.decode_plan(LatentShape(length, 2, 2), tiles.TileSize(frames=size * 8, frame_overlap=overlap * 8))
        out[f"frames {length} {size} {overlap}"] = flat([(s.target, s.weights) for s in plan.frames])
    for i, (shape, sizes) in enumerate(TILED):
        plan = tiles.encode_plan(shape, tiles.TileSize(*sizes))
        for axis, spans in (("frames", plan.frames), ("rows", plan.rows), ("columns", plan.columns)):
            out[f"new/encode {i} {axis}"] = flat([(s.source, s.weights) for s in spans])
    for height, width in SHAPES:
        size = tiles.automatic_tiles(LatentShape(1, height // 32, width // 32).pixels())
        out[f"new/auto {height} {width}"] = np.array(
            [size.frames, size.frame_overlap, size.height, size.width, size.overlap], np.float32
        )
    return out
