"""Small checkpoints, inputs and requests of the trajectory tests, without torch.

The config is one that the official code can build too: its pipelines know only 128 latent channels, its video encoder
starts as wide as the latents, and its audio statistics are as many as the audio autoencoder is wide. Weights are drawn
by name, so a checkpoint is the same whether our networks or the official modules say which tensors there are.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from mlx_ltx2.demo.tiny import tiny_config, upsampler_configs
from mlx_ltx2.generate import LTX2Pipeline
from mlx_ltx2.media.audio import write_wav
from mlx_ltx2.models.registry import COMPONENTS
from mlx_ltx2.pipelines.run import Run, Session
from mlx_ltx2.states import TextContext, Waveform
from mlx_ltx2.weights.layout import official_shape
from mlx_ltx2.weights.quantize import is_quantizable
from mlx_ltx2_convert import convert
from tests.cases import Arrays, as_numpy, random_tensor, relative_error

PROMPT = "a red kite over a beach, waves breaking"
NEGATIVE = "blurry, noisy, a voice that stutters"
LATENT_CHANNELS, TEXT_WIDTH, TEXT_LAYERS = 128, 64, 7
LORA_RANK = 4
Shapes = Mapping[str, tuple[int, ...]]


def config(generation: str, variant: str) -> dict[str, Any]:
    """The demo's config at the widths that the official code needs, every width said here."""
    sections = copy.deepcopy(tiny_config(generation, variant))
    heads = {"num_attention_heads": 4, "audio_num_attention_heads": 4, "connector_num_attention_heads": 4}
    widths = {"attention_head_dim": 16, "audio_attention_head_dim": 8, "connector_attention_head_dim": 16}
    sections["transformer"] |= {
        **heads,
        **widths,
        "num_layers": 2,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "audio_out_channels": 128,
        "cross_attention_dim": 64,
        "audio_cross_attention_dim": 32,
        "caption_channels": TEXT_WIDTH,
        "text_encoder_num_layers": TEXT_LAYERS,
    }
    sections["transformer"].pop("recommended", None)
    vae = sections["vae"]
    vae.pop("encoder_base_channels", None)
    vae |= {"latent_channels": LATENT_CHANNELS, "decoder_base_channels": 8, "norm_layer": "pixel_norm"}
    vae["timestep_conditioning"] = (generation, variant) == ("2.0", "distilled")
    sides = ("compress_space_res", "compress_time_res", "compress_all_res", "compress_all_res")
    blocks = [[["res_x", {"num_layers": 1}], [side, {"multiplier": 1}]] for side in sides]
    vae["encoder_blocks"] = [*(block for pair in blocks for block in pair), ["res_x", {"num_layers": 1}]]
    audio = sections["audio_vae"]["model"]["params"]["ddconfig"]
    audio |= {"ch": 128, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "z_channels": 8}
    return sections


def upsampler(generation: str) -> tuple[str, dict[str, Any]]:
    """File name and flat config of the spatial x2 upsampler."""
    name, flat = next((n, c) for n, c in upsampler_configs(generation).items() if "spatial-upscaler-x2" in n)
    return name, {**flat, "in_channels": LATENT_CHANNELS, "mid_channels": 32, "num_blocks_per_stage": 1}


def file_name(generation: str, what: str) -> str:
    return f"ltx-{'2.3-22b' if generation == '2.3' else '2-19b'}-{what}.safetensors"


def drawn(shapes: Shapes, seed: int = 0) -> Arrays:
    return {name: np.array(random_tensor(name, shape, seed), order="C") for name, shape in shapes.items()}


def lora_shapes(shapes: Shapes) -> Shapes:
    """Low-rank changes of every projection of every block, named as the official LoRAs are."""
    factors = {}
    for name, shape in shapes.items():
        path = name.removeprefix("model.").removesuffix(".weight")
        if ".transformer_blocks." in name and name.endswith(".weight") and is_quantizable(path):
            factors[f"{path}.lora_A.weight"] = (LORA_RANK, shape[1])
            factors[f"{path}.lora_B.weight"] = (shape[0], LORA_RANK)
    return factors


def network_shapes(name: str, section: Mapping[str, Any]) -> Shapes:
    """Official name -> official shape of every tensor of one of our networks."""
    component = COMPONENTS[name]
    back = sorted(((o, t) for t, o in component.sources.items()), key=lambda pair: -len(pair[0]))
    shapes = {}
    for ours, array in tree_flatten(component.build(section).parameters()):
        start, prefix = next(pair for pair in back if ours.startswith(pair[0]))
        shapes[prefix + ours.removeprefix(start)] = official_shape(ours, tuple(array.shape))
    return shapes


def write_checkpoint(folder: Path, generation: str, variant: str) -> Path:
    """A checkpoint with the upsampler and the LoRA, but no text encoder; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = config(generation, variant)
    shapes: dict[str, tuple[int, ...]] = {}
    for component in COMPONENTS.values():
        if component.section is not None:
            shapes |= network_shapes(component.name, sections[component.section])
    metadata = {"config": json.dumps(sections), "model_version": f"{generation}.0"}
    checkpoint = folder / file_name(generation, variant)
    save_file(drawn(shapes), str(checkpoint), metadata=metadata)
    name, flat = upsampler(generation)
    weights = drawn(network_shapes("spatial_upsampler", flat))
    save_file(weights, str(folder / f"{name}.safetensors"), metadata={"config": json.dumps(flat)})
    save_file(drawn(lora_shapes(shapes)), str(folder / file_name(generation, f"distilled-lora-{LORA_RANK}")))
    return checkpoint


RECORDING = Path(__file__).parent.parent / "recorded" / "trajectories_120.safetensors"


def recorded_model(folder: Path, generation: str, variant: str) -> LTX2Pipeline:
    """The checkpoint of the recorded runs, converted and opened."""
    source = write_checkpoint(folder / "official", generation, variant)
    convert(source, folder / "converted", dtype=None, variant=variant, text_encoder=False)
    return LTX2Pipeline.from_pretrained(folder / "converted")


def recorded_errors(case: Recorded, runner: LTX2Pipeline, folder: Path) -> dict[str, float]:
    """Relative error of the latents that ship, by stream, against the recorded run."""
    downscale = case.reference[0] if case.reference else 1
    *_, shipped = run_stages(runner, PROMPT, case.options(folder), case.contexts(), downscale=downscale)
    with safe_open(str(RECORDING), framework="numpy") as recorded:
        names = [n for n in recorded.keys() if n.rpartition("/")[0] == case.name]  # noqa: SIM118
        return {
            n: relative_error(as_numpy(getattr(shipped, n.rpartition("/")[2])), recorded.get_tensor(n)) for n in names
        }


def picture(path: Path, seed: int, height: int = 70, width: int = 90) -> str:
    """A smooth random picture; neither its size nor its shape is the clip's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return str(path)


def reference_clip(path: Path, frames: int, height: int = 70, width: int = 130, *, sound_seconds: float = 0) -> str:
    """A clip whose codecs lose nothing, so that every reader sees the same pixels and samples."""
    rng = np.random.default_rng(7)
    codec, pixels = ("png", "rgb24") if path.suffix == ".mov" else ("ffv1", "bgr0")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        track = container.add_stream("pcm_s16le", rate=16000, layout="stereo") if sound_seconds else None
        for _ in range(frames):
            coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(smooth, format="rgb24")))
        container.mux(stream.encode())
        if track is not None:
            samples = rng.integers(-6000, 6000, (1, 2 * round(16000 * sound_seconds))).astype(np.int16)
            block = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
            block.sample_rate = 16000
            container.mux(track.encode(block))
            container.mux(track.encode())
    return str(path)


def sound(path: Path, seconds: float = 1.0) -> str:
    samples = 0.2 * np.random.default_rng(5).standard_normal((round(16000 * seconds), 2))
    write_wav(path, Waveform(samples.astype(np.float32), 16000))
    return str(path)


VIDEO_GUIDANCE = {"cfg": 3.0, "stg": 1.0, "modality": 3.0, "rescale": 0.7, "blocks": [1], "skip": 0}
AUDIO_GUIDANCE = {**VIDEO_GUIDANCE, "cfg": 7.0, "blocks": [0]}
NO_STG = {"stg": 0.0, "blocks": []}


def guidance_options(video: Mapping[str, Any], audio: Mapping[str, Any]) -> dict[str, Any]:
    """Guidance of both streams as options of a request."""
    names = {"cfg_scale": "cfg", "cfg_rescale": "rescale", "stg_scale": "stg", "modality_scale": "modality"}
    names |= {"stg_blocks": "blocks", "skip_step": "skip"}
    pairs = (("", video), ("audio_", audio))
    return {f"{prefix}{name}": values[key] for prefix, values in pairs for name, key in names.items()}


@dataclass(frozen=True)
class Recorded:
    """One run of release 1.2.0. images: (frame, strength). reference: (downscale, strength, attention strength)."""

    name: str
    generation: str
    pipeline: str
    size: tuple[int, int, int, float] = (64, 128, 9, 24.0)
    images: tuple[tuple[int, float], ...] = ()
    reference: tuple[int, float, float] | None = None
    given_sound: bool = False
    steps: int = 3
    seed: int = 10
    video: Mapping[str, Any] = field(default_factory=lambda: VIDEO_GUIDANCE)
    audio: Mapping[str, Any] = field(default_factory=lambda: AUDIO_GUIDANCE)

    @property
    def guided(self) -> bool:
        return self.pipeline not in ("distilled", "ic-lora")

    @property
    def variant(self) -> str:
        return "dev" if self.guided else "distilled"

    def contexts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(video, audio) text of the prompt and, where there is guidance, of the negative prompt."""
        rng = np.random.default_rng(self.seed)
        widths = (64, 32) if self.generation == "2.3" else (TEXT_WIDTH, TEXT_WIDTH)
        return [
            tuple(rng.standard_normal((1, 24, width), dtype=np.float32) for width in widths)
            for _ in range(2 if self.guided else 1)
        ]

    def files(self, folder: Path) -> dict[str, Any]:
        """Pictures, sound and reference clip on disk."""
        uses = [(picture(folder / f"{f}.png", f), f, s, 0) for f, s in self.images]
        given = sound(folder / "sound.wav") if self.given_sound else None
        clip = reference_clip(folder / "clip.mkv", self.size[2]) if self.reference else None
        return {"images": uses, "sound": given, "clip": clip}

    def options(self, folder: Path) -> dict[str, Any]:
        """The run as a request of this package."""
        height, width, frames, fps = self.size
        files = self.files(folder)
        options = {"height": height, "width": width, "num_frames": frames, "fps": fps, "seed": self.seed}
        options |= {"pipeline": self.pipeline, "images": files["images"]}
        if self.pipeline == "text-to-audio":
            del options["images"]
        if self.guided:
            options |= {"steps": self.steps, "negative_prompt": NEGATIVE}
            options |= guidance_options(self.video, self.audio)
        if files["sound"]:
            options["audio_file"] = files["sound"]
        if self.reference:
            options |= {
                "reference": (files["clip"], self.reference[1]),
                "attention_strength": self.reference[2],
            }
        return options


RECORDED = [
    Recorded("image and keyframe 2.0", "2.0", "distilled", images=((0, 1.0), (8, 1.0))),
    Recorded("image and keyframe 2.3", "2.3", "distilled", (64, 128, 17, 25.0), ((0, 1.0), (13, 1.0))),
    Recorded("partial strengths 2.0", "2.0", "distilled", images=((0, 0.6), (5, 0.3))),
    Recorded("partial strengths 2.3", "2.3", "distilled", images=((0, 0.7), (8, 0.5)), seed=11),
    Recorded("one stage, partial", "2.3", "one-stage", (32, 64, 9, 24.0), ((0, 0.8),)),
    Recorded("two stages, partial", "2.3", "two-stage", images=((0, 0.8), (8, 0.9))),
    Recorded(
        "hq, partial",
        "2.3",
        "two-stage-hq",
        (64, 64, 9, 24.0),
        ((0, 0.8),),
        video={**VIDEO_GUIDANCE, **NO_STG},
        audio={**AUDIO_GUIDANCE, **NO_STG},
    ),
    Recorded("keyframes, partial", "2.0", "keyframes", images=((0, 0.9), (8, 1.0))),
    Recorded("given sound 2.0", "2.0", "two-stage", images=((0, 0.9),), given_sound=True),
    Recorded("given sound 2.3", "2.3", "two-stage", images=((0, 0.9),), given_sound=True),
    Recorded("reference, half size", "2.3", "ic-lora", (128, 128, 9, 24.0), ((0, 1.0),), (2, 0.8, 0.5)),
    Recorded("reference", "2.0", "ic-lora", (64, 128, 9, 24.0), ((0, 0.5),), (1, 1.0, 1.0)),
    Recorded("sound alone", "2.3", "text-to-audio", (64, 64, 17, 24.0), audio={**AUDIO_GUIDANCE, "modality": 1.0}),
    Recorded(
        "skipped steps",
        "2.0",
        "one-stage",
        (32, 64, 9, 24.0),
        steps=5,
        video={**VIDEO_GUIDANCE, "skip": 1},
        audio={**AUDIO_GUIDANCE, "skip": 2},
    ),
]


def run_stages(
    runner: LTX2Pipeline,
    prompt: str,
    options: Mapping[str, Any],
    contexts: list[tuple[np.ndarray, np.ndarray]] | None = None,
    *,
    downscale: int = 1,
) -> tuple[list[np.ndarray], list[np.ndarray], Any]:
    """Run a request; latents of video and of audio after every stage, channels last, and the pair that ships.

    contexts: texts to use in place of the prompts. downscale: of the reference, in place of a LoRA's metadata.
    """
    plan = runner.plan(prompt, tiling="none", **options)
    stages = tuple(
        replace(s, references=tuple(replace(r, downscale=downscale) for r in s.references)) for s in plan.stages
    )
    plan = replace(plan, stages=stages)
    video: list[np.ndarray] = []
    audio: list[np.ndarray] = []

    class Keeping(Run):
        def _results(self, states: Any, stage: Any) -> Any:
            results = super()._results(states, stage)
            for kept, latents in zip((video, audio), results, strict=True):
                kept += [] if latents is None else [as_numpy(latents)]
            return results

    texts = None if contexts is None else [TextContext(*map(mx.array, pair)) for pair in contexts]
    shipped = Keeping(plan, runner.networks, Session(contexts=texts)).latents()
    return video, audio, shipped
