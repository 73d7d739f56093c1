"""A toy joint network and small scenes for the samplers, in numpy so that every side computes the same."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_ltx2.diffusion import conditioning, state
from mlx_ltx2.diffusion.denoisers import Evaluator, GuidedDenoiser
from mlx_ltx2.diffusion.guidance import OFF, GuidanceParams
from mlx_ltx2.diffusion.loop import denoise
from mlx_ltx2.diffusion.noise import NoiseSource
from mlx_ltx2.diffusion.steppers import make_stepper
from mlx_ltx2.shapes import LatentShape
from mlx_ltx2.states import LatentState, Modality, Perturbation, TextContext

VIDEO = LatentShape(3, 2, 3)
CHANNELS = 12
AUDIO_FRAMES, BINS, AUDIO_CHANNELS = 7, 4, 3
FPS = 25.0
STG_BLOCK = 1


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


@dataclass
class Stream:
    """What the toy sees of one stream: latent (B, N, C), levels (B, N), positions, context (B, S, D)."""

    latent: np.ndarray
    levels: np.ndarray
    sigma: np.ndarray
    positions: np.ndarray
    context: np.ndarray


@dataclass
class Skips:
    """Per stream: skip own mixing, skip the other stream."""

    own: bool = False
    cross: bool = False


class Toy:
    """Bounded smooth velocities that depend on everything a real network sees."""

    def __init__(self, seed: int = 0) -> None:
        draw = rng(seed + 77)
        c, d = CHANNELS, 5
        self.weights = {
            name: {
                "own": draw.standard_normal((c, c)) * 0.4,
                "mix": draw.standard_normal((c, c)) * 0.6,
                "cross": draw.standard_normal((c, c)) * 0.5,
                "text": draw.standard_normal((d, c)),
                "place": draw.standard_normal((3 if name == "video" else 1, c)),
                "level": draw.standard_normal((1, c)),
            }
            for name in ("video", "audio")
        }

    def stream(self, name: str, x: Stream, other: Stream | None, skips: Skips) -> np.ndarray:
        w = self.weights[name]
        latent = x.latent.astype(np.float64)
        place = x.positions.astype(np.float64).mean(-1).transpose(0, 2, 1) @ w["place"]
        out = latent @ w["own"] + (x.context.astype(np.float64).mean(1) @ w["text"])[:, None]
        out = out + np.sin(place) + np.cos(3 * x.levels.astype(np.float64))[..., None] * w["level"]
        out = out + 0.3 * np.asarray(x.sigma, np.float64).reshape(-1, 1, 1)
        mixed = latent if skips.own else np.broadcast_to(latent.mean(1, keepdims=True), latent.shape)
        out = out + np.tanh(mixed @ w["mix"])
        if other is not None and not skips.cross:
            out = out + np.tanh(other.latent.astype(np.float64).mean(1, keepdims=True) @ w["cross"])
        return np.tanh(out).astype(np.float32)


def expanded(modality: Modality) -> np.ndarray:
    """Noise level of every token, (B, N)."""
    batch, count, _ = modality.latent.shape
    if modality.runs is not None:
        return np.repeat(modality.timesteps, modality.runs, axis=1)
    return np.broadcast_to(modality.timesteps, (batch, count))


class ToyModel:
    """The toy with the transformer's signature."""

    def __init__(self, seed: int = 0) -> None:
        self.toy = Toy(seed)
        self.calls: list[list[Perturbation]] = []

    def __call__(self, video, audio, *, rope=None, perturbations=None):
        def seen(modality: Modality | None) -> Stream | None:
            if modality is None:
                return None
            return Stream(
                np.array(modality.latent.astype(mx.float32)),
                expanded(modality),
                modality.sigma,
                modality.positions,
                np.array(modality.context),
            )

        streams = {"video": seen(video), "audio": seen(audio)}
        batch = len(next(s for s in streams.values() if s is not None).latent)
        samples = list(perturbations) if perturbations is not None else [Perturbation()] * batch
        self.calls.append(samples)
        out = {}
        for name, other, arrow in (
            ("video", "audio", "audio_to_video"),
            ("audio", "video", "video_to_audio"),
        ):
            if streams[name] is None:
                out[name] = None
                continue
            rows = []
            for i, sample in enumerate(samples):
                skips = Skips(sample.skips(f"{name}_self", STG_BLOCK), sample.skips(arrow, STG_BLOCK))
                mine, theirs = row(streams[name], i), row(streams[other], i)
                rows.append(self.toy.stream(name, mine, theirs, skips))
            out[name] = mx.array(np.concatenate(rows))
        return out["video"], out["audio"]


def row(x: Stream | None, i: int) -> Stream | None:
    if x is None:
        return None
    part = slice(i, i + 1)
    return Stream(x.latent[part], x.levels[part], x.sigma[part], x.positions[part], x.context[part])


@dataclass(frozen=True)
class Scene:
    """Inputs of one run in numpy, channels last."""

    name: str
    sampler: str = "euler"
    sigmas: tuple[float, ...] = (1.0, 0.99, 0.9, 0.7, 0.4, 0.0)
    video: GuidanceParams = OFF
    audio: GuidanceParams = OFF
    image: bool = False
    keyframe: bool = False
    strength: float = 1.0
    noise_scale: float = 1.0
    start_latents: bool = False
    freeze_audio: bool = False
    seed: int = 0
    batch_size: int = 1

    def arrays(self) -> dict[str, np.ndarray]:
        draw = rng(self.seed)
        h, w = VIDEO.height, VIDEO.width
        shapes = {
            "video_latent": (1, VIDEO.frames, h, w, CHANNELS),
            "audio_latent": (1, AUDIO_FRAMES, BINS, AUDIO_CHANNELS),
            "image": (1, 1, h, w, CHANNELS),
            "keyframe": (1, 1, h, w, CHANNELS),
            "video_text": (1, 4, 5),
            "audio_text": (1, 4, 5),
            "video_negative": (1, 4, 5),
            "audio_negative": (1, 4, 5),
            "video_noise": (1, self.video_tokens, CHANNELS),
            "audio_noise": (1, AUDIO_FRAMES, CHANNELS),
        }
        return {name: draw.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}

    @property
    def video_tokens(self) -> int:
        return VIDEO.tokens + (VIDEO.height * VIDEO.width if self.keyframe else 0)

    def fresh_noise(self, modality: str, stream: str, step: int) -> np.ndarray:
        """Sampler noise (1, N, C): arbitrary but reproducible on every side."""
        key = [
            self.seed + 5,
            {"video": 0, "audio": 1}[modality] * 2000 + {"step": 0, "substep": 1}[stream] * 1000 + step,
        ]
        count = self.video_tokens if modality == "video" else AUDIO_FRAMES
        draw = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
        return draw.standard_normal((1, count, CHANNELS), dtype=np.float32)

    def contexts(self) -> tuple[TextContext, TextContext]:
        given = self.arrays()
        video, audio, no_video, no_audio = (
            mx.array(given[k]) for k in ("video_text", "audio_text", "video_negative", "audio_negative")
        )
        return TextContext(video, audio), TextContext(no_video, no_audio)

    def states(self) -> tuple[LatentState, LatentState]:
        """Noised states of both streams by this package, float32."""
        given = self.arrays()
        start = {k: mx.array(given[k]) if self.start_latents else None for k in ("video_latent", "audio_latent")}
        video = state.video_state(VIDEO, CHANNELS, FPS, latent=start["video_latent"], dtype=mx.float32)
        items: list[state.ConditioningItem] = []
        if self.image:
            items.append(conditioning.LatentAt(mx.array(given["image"]), 0, self.strength))
        if self.keyframe:
            items.append(conditioning.Keyframe(mx.array(given["keyframe"]), 9, FPS, self.strength))
        video = state.add_noise(state.conditioned(video, items), given["video_noise"], self.noise_scale)
        latent = mx.array(given["audio_latent"]) if self.freeze_audio else start["audio_latent"]
        audio = state.audio_state(AUDIO_FRAMES, latent=latent, bins=BINS, channels=AUDIO_CHANNELS, dtype=mx.float32)
        if self.freeze_audio:
            return video, state.freeze(audio)
        return video, state.add_noise(audio, given["audio_noise"], self.noise_scale)


FULL = GuidanceParams(cfg=3.0, stg=1.0, stg_blocks=(STG_BLOCK,), modality=3.0, rescale=0.7)
STRONG = GuidanceParams(cfg=7.0, stg=0.5, stg_blocks=(STG_BLOCK,), modality=2.0, rescale=0.4)
SHORT = (1.0, 0.95, 0.9, 0.7, 0.4, 0.0)

SCENES = [
    Scene("euler"),
    Scene("euler image", image=True, seed=1),
    Scene("euler guided", video=FULL, audio=STRONG, image=True, seed=2),
    Scene("euler guided in batches", video=FULL, audio=STRONG, seed=3, batch_size=4),
    Scene("euler cfg of audio only", audio=GuidanceParams(cfg=4.0), seed=4),
    Scene("gradient estimating", sampler="euler-ge", image=True, seed=5),
    Scene("gradient estimating guided", sampler="euler-ge", video=FULL, audio=FULL, seed=6),
    Scene("res2s", sampler="res2s", sigmas=SHORT, seed=7),
    Scene("res2s image guided", sampler="res2s", sigmas=SHORT, video=FULL, audio=STRONG, image=True, seed=8),
    Scene(
        "skip step",
        video=GuidanceParams(cfg=3.0, skip_step=1),
        audio=GuidanceParams(cfg=2.0, skip_step=1),
        seed=9,
    ),
    Scene(
        "stage two",
        sigmas=(0.909375, 0.725, 0.421875, 0.0),
        noise_scale=0.909375,
        start_latents=True,
        seed=10,
    ),
    Scene(
        "stage two res2s",
        sampler="res2s",
        sigmas=(0.909375, 0.725, 0.421875, 0.0),
        noise_scale=0.909375,
        start_latents=True,
        image=True,
        seed=11,
    ),
]
"""Scenes whose rules releases 1.0.0 and 1.2.0 share."""

NEW_SCENES = [
    Scene(
        "partial strength",
        image=True,
        strength=0.6,
        noise_scale=0.8,
        start_latents=True,
        sigmas=(0.8, 0.5, 0.2, 0.0),
        seed=21,
    ),
    Scene("keyframe", keyframe=True, strength=0.9, seed=22),
    Scene("keyframe and image, guided", keyframe=True, image=True, video=FULL, audio=STRONG, seed=23),
    Scene("res2s keyframe", sampler="res2s", sigmas=SHORT, keyframe=True, image=True, strength=0.7, seed=24),
    Scene("ancestral", sampler="euler-ancestral", image=True, seed=25),
    Scene("ancestral guided", sampler="euler-ancestral", video=FULL, audio=FULL, seed=26),
    Scene("frozen audio", freeze_audio=True, video=FULL, image=True, seed=27),
    Scene("one stream skips", video=GuidanceParams(cfg=3.0, modality=2.0, skip_step=2), audio=STRONG, seed=28),
    Scene("batched passes", video=FULL, audio=STRONG, batch_size=3, seed=29),
]
"""Scenes for rules that only release 1.2.0 has; its results are recorded."""


class SceneNoise(NoiseSource):
    """The scene's sampler noise in place of drawn noise."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(seed=0)
        object.__setattr__(self, "scene", scene)

    def normal(self, modality, shape, stream="initial", step=0):
        noise = self.scene.fresh_noise(modality, stream, step)
        assert noise.shape == tuple(shape)
        return noise

    def normalized(self, modality, shape, stream, step):
        return self.normal(modality, shape, stream, step)


def run_scene(scene: Scene) -> tuple[np.ndarray, np.ndarray, int]:
    """Final tokens of both streams by this package and the number of forward passes."""
    video, audio = scene.states()
    positive, negative = scene.contexts()
    evaluator = Evaluator(ToyModel(), max_batch_size=scene.batch_size)
    denoiser = GuidedDenoiser(evaluator, positive, negative, video=scene.video, audio=scene.audio)
    stepper = make_stepper(scene.sampler, SceneNoise(scene))
    after = denoise(denoiser, video, audio, scene.sigmas, stepper)
    return np.array(after.video.latent), np.array(after.audio.latent), evaluator.evaluations


def video_state_of(scene: Scene) -> LatentState:
    """The noised video stream of a scene."""
    return scene.states()[0]
