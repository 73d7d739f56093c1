"""Cases of the diffusion transformer: small geometries of both generations, scenes with every input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_ltx2.models.transformer import Transformer, TransformerConfig
from mlx_ltx2.states import Modality, Perturbation
from tests.cases import Arrays, Case, as_numpy

FIXED: dict[str, Any] = {
    "dropout": 0.0,
    "attention_bias": True,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
    "use_middle_indices_grid": True,
    "norm_eps": 1e-6,
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "audio_positional_embedding_max_pos": [20],
    "timestep_scale_multiplier": 1000,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "frequencies_precision": "float64",
    "rope_type": "split",
}
"""Keys that have the same value in the real checkpoints of both generations."""

GENERATION_KEYS: dict[str, dict[str, Any]] = {
    "19B": {},
    "22B": {
        "apply_gated_attention": True,
        "cross_attention_adaln": True,
        "caption_proj_before_connector": True,
    },
}

REAL: dict[str, Any] = {
    **FIXED,
    "num_layers": 48,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "in_channels": 128,
    "out_channels": 128,
    "audio_out_channels": 128,
    "cross_attention_dim": 4096,
    "audio_cross_attention_dim": 2048,
    "caption_channels": 3840,
}
"""Geometry of the real checkpoints."""


def section(
    generation: str,
    *,
    layers: int = 2,
    heads: int = 2,
    head_dim: int = 16,
    audio_head_dim: int = 8,
    **changes: Any,
) -> dict[str, Any]:
    """A small `transformer` section of a checkpoint."""
    return {
        **FIXED,
        **GENERATION_KEYS[generation],
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "audio_num_attention_heads": heads,
        "audio_attention_head_dim": audio_head_dim,
        "in_channels": 6,
        "out_channels": 6,
        "audio_in_channels": 5,
        "audio_out_channels": 5,
        "cross_attention_dim": heads * head_dim,
        "audio_cross_attention_dim": heads * audio_head_dim,
        "caption_channels": 12,
        **changes,
    }


@dataclass(frozen=True)
class Scene:
    """What a case feeds.

    levels: all tokens at sigma, the first frame and the last third kept, or every token at its own level.
    sigmas: of video and audio; None draws them. skips: perturbations per sample.
    """

    batch: int = 1
    grid: tuple[int, int, int] = (3, 2, 4)
    fps: float = 24.0
    audio_tokens: int = 7
    text_tokens: int = 5
    video: bool = True
    audio: bool = True
    levels: Literal["uniform", "runs", "tokens"] = "uniform"
    sigmas: tuple[float, float] | None = (0.7, 0.7)
    video_mask: bool = False
    audio_mask: bool = False
    context_mask: bool = False
    video_enabled: bool = True
    audio_enabled: bool = True
    skips: tuple[Perturbation, ...] | None = None


def video_positions(grid: tuple[int, int, int], fps: float) -> np.ndarray:
    """(1, 3, N, 2) bounds in seconds and pixels."""
    frames, height, width = grid
    start = np.maximum(np.arange(frames) * 8.0 - 7, 0)
    time = np.stack([start, np.arange(frames) * 8.0 + 1], -1) / fps
    rows, columns = (np.stack([np.arange(n) * 32.0, np.arange(n) * 32.0 + 32], -1) for n in (height, width))
    f, h, w = (i.ravel() for i in np.meshgrid(range(frames), range(height), range(width), indexing="ij"))
    return np.stack([time[f], rows[h], columns[w]])[None].astype(np.float32)


def audio_positions(tokens: int) -> np.ndarray:
    """(1, 1, N, 2) bounds in seconds."""
    end = np.arange(tokens) * 4.0 + 1
    return (np.stack([np.maximum(end - 4, 0), end], -1) * 0.01)[None, None].astype(np.float32)


def _levels(scene: Scene, rng: np.random.Generator, sigma: np.ndarray, tokens: int, first: int) -> np.ndarray:
    """(B, N) noise levels of the tokens."""
    mask = np.ones((scene.batch, tokens), np.float32)
    if scene.levels == "runs":
        mask[:, :first] = 0.0
        mask[:, tokens - tokens // 3 :] = 0.25
    if scene.levels == "tokens":
        mask = rng.uniform(0, 1, mask.shape).astype(np.float32)
    return mask * sigma[:, None]


def _stream(scene: Scene, rng: np.random.Generator, name: str, sizes: tuple[int, int, int, int]) -> Arrays:
    tokens, first, channels, context = sizes
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    sigma = rng.uniform(0.1, 1, scene.batch).astype(np.float32)
    if scene.sigmas is not None:
        sigma = np.full(scene.batch, scene.sigmas[name == "audio"], np.float32)
    arrays = {
        "latent": draw(scene.batch, tokens, channels),
        "context": draw(scene.batch, scene.text_tokens, context),
        "sigma": sigma,
        "timesteps": _levels(scene, rng, sigma, tokens, first),
    }
    if scene.video_mask if name == "video" else scene.audio_mask:
        mask = rng.uniform(0, 1.2, (scene.batch, tokens, tokens)).clip(0, 1).astype(np.float32)
        mask[:, :, tokens // 2] = 0
        arrays["mask"] = mask
    if scene.context_mask:
        keep = rng.integers(0, 2, (scene.batch, scene.text_tokens))
        keep[:, 0] = 1
        arrays["context_mask"] = keep.astype(np.int32)
    return {f"{name}_{k}": v for k, v in arrays.items()}


def inputs(config: dict[str, Any], scene: Scene, rng: np.random.Generator) -> Arrays:
    s, arrays = config["transformer"], {}
    captions = None if s.get("caption_proj_before_connector") else s["caption_channels"]
    if scene.video:
        frame = scene.grid[1] * scene.grid[2]
        sizes = (scene.grid[0] * frame, frame, s["in_channels"], captions or s["cross_attention_dim"])
        arrays |= _stream(scene, rng, "video", sizes)
        positions = video_positions(scene.grid, scene.fps)
        arrays["video_positions"] = np.repeat(positions, scene.batch, 0)
    if scene.audio:
        sizes = (scene.audio_tokens, 2, s["audio_in_channels"], captions or s["audio_cross_attention_dim"])
        arrays |= _stream(scene, rng, "audio", sizes)
        arrays["audio_positions"] = np.repeat(audio_positions(scene.audio_tokens), scene.batch, 0)
    return arrays


def modality(arrays: Arrays, scene: Scene, name: str) -> Modality | None:
    """The stream's input with levels as the scene gives them: one, one per run, or one per token."""
    if f"{name}_latent" not in arrays:
        return None
    timesteps, runs = arrays[f"{name}_timesteps"], None
    if scene.levels == "uniform":
        timesteps = timesteps[:, :1]
    if scene.levels == "runs":
        starts = np.flatnonzero(np.append(True, (timesteps[:, 1:] != timesteps[:, :-1]).any(0)))
        runs = tuple(np.diff(np.append(starts, timesteps.shape[1])).tolist())
        timesteps = timesteps[:, starts]
    mask, context_mask = arrays.get(f"{name}_mask"), arrays.get(f"{name}_context_mask")
    return Modality(
        latent=mx.array(arrays[f"{name}_latent"]),
        sigma=arrays[f"{name}_sigma"],
        timesteps=timesteps,
        runs=runs,
        positions=arrays[f"{name}_positions"],
        context=mx.array(arrays[f"{name}_context"]),
        attention_mask=None if mask is None else mx.array(mask),
        context_mask=None if context_mask is None else mx.array(context_mask),
        enabled=scene.video_enabled if name == "video" else scene.audio_enabled,
    )


def build(config: dict[str, Any]) -> Transformer:
    streams = {k: config[k] for k in ("video", "audio", "cross_modulation") if k in config}
    return Transformer(TransformerConfig.from_dict(config["transformer"], **streams))


def case(generation: str, name: str, scene: Scene, *, seed: int = 0, record: bool = False, **config: Any) -> Case:
    """config: keys of `section`, or video, audio, cross_modulation of `TransformerConfig.from_dict`."""
    build_keys = {k: config.pop(k) for k in ("video", "audio", "cross_modulation") if k in config}
    full = {"transformer": section(generation, **config), **build_keys}

    def run(module: Any, arrays: Arrays) -> Arrays:
        video, audio = module(
            modality(arrays, scene, "video"), modality(arrays, scene, "audio"), perturbations=scene.skips
        )
        return {n: as_numpy(x) for n, x in (("video", video), ("audio", audio)) if x is not None}

    return Case(
        network="transformer",
        generation=generation,
        name=f"transformer {generation} {name}",
        config=full,
        build=build,
        inputs=lambda rng: inputs(full, scene, rng),
        run=run,
        seed=seed,
        record=record,
        options={"scene": scene},
    )


STG = Perturbation(skip_video_self=frozenset({1}), skip_audio_self=frozenset({1}))
ISOLATED = Perturbation(skip_audio_to_video="all", skip_video_to_audio="all")
PERTURBATIONS: dict[str, tuple[Perturbation, ...]] = {
    "stg": (STG,),
    "stg, video only": (replace(STG, skip_audio_self=frozenset()),),
    "stg, all blocks": (Perturbation(skip_audio_self="all"),),
    "isolated": (ISOLATED,),
    "a2v off in one block": (Perturbation(skip_audio_to_video=frozenset({0})),),
    "four passes in one batch": (
        Perturbation(),
        STG,
        ISOLATED,
        Perturbation(skip_video_to_audio=frozenset({1})),
    ),
}


def _cases(generation: str) -> list[Case]:
    scene, made = Scene(), []

    def add(name: str, scene: Scene, **rest: Any) -> None:
        made.append(case(generation, name, scene, seed=len(made), **rest))

    add("plain", scene, record=True)
    add("one frame, batch 2, 25 fps", replace(scene, batch=2, grid=(1, 3, 5), fps=25.0))
    add("odd grid, 30 fps, 3 layers", replace(scene, grid=(4, 3, 1), fps=30.0, audio_tokens=9), layers=3)
    add("one token each", replace(scene, grid=(1, 1, 1), audio_tokens=1, text_tokens=1))
    # 2 x 20 over three axes leaves two unrotated pairs in front, as 4096 does.
    add("head size 20", scene, head_dim=20, audio_head_dim=6)
    add("4 heads of 32 and 16", scene, heads=4, head_dim=32, audio_head_dim=16, layers=1)
    add("interleaved", scene, rope_type="interleaved")
    add("float32 frequencies", scene, frequencies_precision="float32")
    limits = {"positional_embedding_max_pos": [8, 512, 512], "audio_positional_embedding_max_pos": [9]}
    add("other rope limits", scene, **limits)
    add("gates at their own timestep scale", scene, av_ca_timestep_scale_multiplier=1)
    for name, skips in PERTURBATIONS.items():
        add(name, replace(scene, batch=len(skips), skips=skips, sigmas=(0.4, 0.4)), record=len(skips) > 1)
    add("self masks", replace(scene, batch=2, video_mask=True, audio_mask=True))
    add("context masks", replace(scene, batch=2, context_mask=True))
    add("video frozen", replace(scene, video_enabled=False))
    add("audio disabled", replace(scene, audio_enabled=False))
    add("video stream alone in the full model", replace(scene, audio=False))
    add("audio stream alone in the full model", replace(scene, video=False))
    add("video-only build", replace(scene, audio=False, levels="tokens"), audio=False)
    add("audio-only build", replace(scene, video=False, levels="runs"), video=False)
    return made


def _conditioned(generation: str, rule: str) -> list[Case]:
    """Scenes in which the rule for the audio-video modulation matters."""
    scenes = {
        "image kept": Scene(levels="runs"),
        "image kept, batch 2": Scene(batch=2, levels="runs", sigmas=None),
        "level per token": Scene(levels="tokens", sigmas=None),
        "level per token, batch 2": Scene(batch=2, levels="tokens", sigmas=(0.9, 0.9)),
        "audio given": Scene(sigmas=(0.8, 0.0)),
        "streams apart, batch 2": Scene(batch=2, sigmas=None),
        "image kept and stg": Scene(levels="runs", sigmas=None, skips=(STG,)),
    }
    return [
        case(generation, f"{name}, rule {rule}", scene, seed=50 + i, cross_modulation=rule)
        for i, (name, scene) in enumerate(scenes.items())
    ]


CASES = [c for generation in GENERATION_KEYS for c in _cases(generation)]
CASES += [c for generation in GENERATION_KEYS for c in _conditioned(generation, "1.0.0")]

CASES_120 = [c for generation in GENERATION_KEYS for c in _conditioned(generation, "1.2.0")]
"""Judged by outputs of the official 1.2.0 code, stored in tests/recorded/transformer_120.safetensors."""

CASES_OWN = [c for generation in GENERATION_KEYS for c in _conditioned(generation, "own")]
"""The rule of the first release, which diffusers still has."""
