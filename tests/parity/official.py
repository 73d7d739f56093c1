"""Whole runs of the official pipelines, release 1.0.0, on small checkpoints that the official modules lay out.

The pipeline classes run as they are: they load the checkpoint file by their own ledger, encode the prompt, denoise,
upsample and decode. Four things are exchanged around them: bfloat16, which they hard-wire, becomes float32; CUDA calls
do nothing; the Gemma folder is read by transformers, since the release describes only the 12B model; and every draw of
noise is taken from this package's `NoiseSource`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from ltx_core.model.audio_vae import AudioDecoderConfigurator, AudioEncoderConfigurator, VocoderConfigurator
from ltx_core.model.transformer import LTXModelConfigurator
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from ltx_core.model.video_vae import VideoDecoderConfigurator, VideoEncoderConfigurator
from ltx_core.text_encoders.gemma import EmbeddingsProcessorConfigurator, GemmaTextEncoder
from ltx_core.text_encoders.gemma.encoders import encoder_configurator
from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer
from ltx_pipelines.utils import model_ledger, samplers
from safetensors.numpy import save_file

import tests.parity.conftest  # noqa: F401  (stands in for torchaudio)
from mlx_ltx2.demo.tiny_gemma import write_tiny_gemma
from tests.cases.trajectories import (
    LORA_RANK,
    TEXT_LAYERS,
    TEXT_WIDTH,
    Shapes,
    config,
    drawn,
    file_name,
    lora_shapes,
    upsampler,
)
from tests.parity.official_noise import Noise, channels_last

ORACLE = "ltx-pipelines 1.0.0"
CPU = torch.device("cpu")

_COMPONENTS: dict[Any, dict[str, str]] = {
    LTXModelConfigurator: {"": "model.diffusion_model."},
    VideoEncoderConfigurator: {"per_channel_statistics.": "vae.per_channel_statistics.", "": "vae.encoder."},
    VideoDecoderConfigurator: {"per_channel_statistics.": "vae.per_channel_statistics.", "": "vae.decoder."},
    AudioEncoderConfigurator: {
        "per_channel_statistics.": "audio_vae.per_channel_statistics.",
        "": "audio_vae.encoder.",
    },
    AudioDecoderConfigurator: {
        "per_channel_statistics.": "audio_vae.per_channel_statistics.",
        "": "audio_vae.decoder.",
    },
    VocoderConfigurator: {"": "vocoder."},
    EmbeddingsProcessorConfigurator: {
        "feature_extractor.": "text_embedding_projection.",
        "video_connector.": "model.diffusion_model.video_embeddings_connector.",
        "audio_connector.": "model.diffusion_model.audio_embeddings_connector.",
    },
}
"""Configurator -> how the official files prefix its module's names; the first prefix that fits counts."""


@dataclass(frozen=True)
class Files:
    """A checkpoint in the official layout and what belongs to it, all float32."""

    folder: Path
    checkpoint: Path
    upsampler: Path
    gemma: Path
    lora: Path


def tiny_gemma_shape() -> Any:
    """What the embeddings processor reads of the text encoder's shape, in place of the 12B model's."""
    return SimpleNamespace(text_config=SimpleNamespace(hidden_size=TEXT_WIDTH, num_hidden_layers=TEXT_LAYERS))


def official_shapes(configurator: Any, sections: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """File name -> shape of every tensor that the official module of a configurator holds."""
    with (
        torch.device("meta"),
        patch.object(encoder_configurator, "GEMMA3_CONFIG_FOR_LTX", tiny_gemma_shape()),
    ):
        module = configurator.from_config(sections)
    prefixes = _COMPONENTS.get(configurator, {"": ""})
    shapes = {}
    for name, tensor in module.state_dict().items():
        start = next(p for p in prefixes if name.startswith(p))
        shapes[prefixes[start] + name.removeprefix(start)] = tuple(tensor.shape)
    return shapes


def write_official(folder: Path, generation: str, variant: str = "distilled") -> Files:
    """A monolithic checkpoint with the names and shapes of the official modules, an upsampler and a Gemma folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = config(generation, variant)
    shapes: dict[str, tuple[int, ...]] = {}
    for configurator in _COMPONENTS:
        shapes |= official_shapes(configurator, sections)
    checkpoint = folder / file_name(generation, variant)
    _save(checkpoint, shapes, {"config": json.dumps(sections), "model_version": f"{generation}.0"})
    name, flat = upsampler(generation)
    larger = folder / f"{name}.safetensors"
    _save(larger, official_shapes(LatentUpsamplerConfigurator, flat), {"config": json.dumps(flat)})
    gemma = write_tiny_gemma(folder / "gemma-3-tiny", width=TEXT_WIDTH, layers=TEXT_LAYERS, dtype="F32")
    lora = folder / file_name(generation, f"distilled-lora-{LORA_RANK}")
    _save(lora, lora_shapes(shapes), {})
    return Files(folder, checkpoint, larger, gemma, lora)


def _save(path: Path, shapes: Shapes, metadata: dict[str, str]) -> None:
    save_file(drawn(shapes), str(path), metadata=metadata)


@dataclass
class Result:
    """What an official run gave, in this package's layouts.

    video: (1, F, H, W, C) after each stage. audio: (1, T, mel, C) after each stage. contexts: (video, audio) text per
    prompt. frames: uint8 (F, H, W, 3). samples: (N, 2), at rate_hz.
    """

    video: list[np.ndarray] = field(default_factory=list)
    audio: list[np.ndarray] = field(default_factory=list)
    contexts: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    frames: np.ndarray | None = None
    samples: np.ndarray | None = None
    rate_hz: int | None = None


def _text_encoder(ledger: Any) -> GemmaTextEncoder:
    from safetensors.torch import load_file
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    root = Path(ledger.gemma_root_path)
    config = Gemma3TextConfig(**json.loads((root / "config.json").read_text())["text_config"])
    model = Gemma3ForCausalLM(config).eval()
    state = {n.removeprefix("language_model."): t for n, t in load_file(root / "model.safetensors").items()}
    # The head is tied to the embedding and not in the file; what is missing is checked by name instead.
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return GemmaTextEncoder(model, LTXVGemmaTokenizer(str(root), 1024), dtype=torch.float32)


@contextlib.contextmanager
def in_float32(noise: Noise) -> Iterator[None]:
    """The four exchanges of this module's docstring."""
    randn = torch.randn

    def drawn(*size: Any, **options: Any) -> torch.Tensor:
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        return noise.decoder(shape) if len(shape) == 5 else randn(*size, **options)

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(patch.object(torch, "bfloat16", torch.float32))
        enter(patch.object(torch.cuda, "synchronize", lambda *_: None))
        enter(patch.object(torch.cuda, "empty_cache", lambda: None))
        enter(patch.object(torch, "randn", drawn))
        enter(patch.object(samplers, "tqdm", lambda items: items))
        enter(patch.object(encoder_configurator, "GEMMA3_CONFIG_FOR_LTX", tiny_gemma_shape()))
        enter(patch.object(model_ledger, "module_ops_from_gemma_root", lambda _root: ()))
        enter(patch.object(model_ledger.ModelLedger, "text_encoder", _text_encoder))
        enter(torch.inference_mode())
        yield


def _recording(module: ModuleType, result: Result, stack: contextlib.ExitStack) -> None:
    """Keep what passes between the parts of a pipeline module."""

    def wrap(name: str, after: Callable[[Any], None]) -> None:
        original = getattr(module, name, None)
        if original is None:
            return

        def called(*args: Any, **kwargs: Any) -> Any:
            value = original(*args, **kwargs)
            after(value)
            return value

        stack.enter_context(patch.object(module, name, called))

    def both(states: Any) -> None:
        result.video.append(channels_last(states[0].latent))
        result.audio.append(channels_last(states[1].latent))

    def contexts(outputs: Any) -> None:
        result.contexts += [(o.video_encoding.numpy(), o.audio_encoding.numpy()) for o in outputs]

    wrap("denoise_audio_video", both)
    wrap("denoise_video_only", lambda state: result.video.append(channels_last(state.latent)))
    wrap("encode_prompts", contexts)


def run_official(
    name: str, build: dict[str, Any], call: dict[str, Any], *, stages: int = 2, decode: bool = False
) -> Result:
    """Run a pipeline of the release.

    name: "module.Class" in ltx_pipelines. build, call: arguments of its constructor and of its call; call["seed"] keys
    the noise. decode: finish frames and sound too.
    """
    module_name, class_name = name.split(".")
    module = importlib.import_module(f"ltx_pipelines.{module_name}")
    noise, result = Noise(call["seed"], stages), Result()
    with in_float32(noise), contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(module, "GaussianNoiser", noise.noiser))
        _recording(module, result, stack)
        loop = getattr(module, "res2s_audio_video_denoising_loop", None)
        if loop is not None:
            stack.enter_context(
                patch.object(
                    module,
                    loop.__name__,
                    lambda **kw: loop(**kw, new_noise_fn=noise.steps(), model_dtype=torch.float32),
                )
            )
        if not decode:
            stack.enter_context(patch.object(module, "vae_decode_video", lambda *_a, **_k: None))
            if hasattr(module, "vae_decode_audio"):
                stack.enter_context(patch.object(module, "vae_decode_audio", lambda *_a, **_k: None))
        video, audio = getattr(module, class_name)(**build, device=CPU)(**call)
        if decode:
            result.frames = torch.cat(list(video)).numpy()
            result.samples = audio.waveform.float().numpy().T
            result.rate_hz = audio.sampling_rate
    return result
