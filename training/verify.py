"""Load the unpacked demo files into ltx-core 1.0.0, strictly, and compare its outputs with diffusers' in float32."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from mlx_ltx2.demo.trained import settings, write_trained_checkpoint
from training import text
from training.audio import encode, pack, unpack
from training.dit import FULL_SLOTS, Context, Denoiser, denormalise, normalise
from training.export import WEIGHTS
from training.models import AUDIO_FEATURES, LATENT, audio_vae, upsampler, video_vae, vocoder

State = dict[str, torch.Tensor]


def stand_in_for_torchaudio() -> None:
    """ltx-core imports torchaudio at the top of its audio front end; only its mel filters are used there."""
    from tests.fixtures import torchaudio_stand_in as stand_in

    try:
        import torchaudio  # noqa: F401
    except ImportError:
        module = types.ModuleType("torchaudio")
        module.transforms = types.SimpleNamespace(MelSpectrogram=stand_in.MelSpectrogram)  # type: ignore[attr-defined]
        module.functional = types.SimpleNamespace(resample=getattr(stand_in, "resample", None))  # type: ignore[attr-defined]
        sys.modules["torchaudio"] = module


def stripped(state: State, *prefixes: tuple[str, str]) -> State:
    """Tensors under any of the prefixes, each replaced by what stands beside it."""
    found = {}
    for name, value in state.items():
        for prefix, new in prefixes:
            if name.startswith(prefix):
                found[new + name.removeprefix(prefix)] = value
                break
    return found


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


class Pair:
    """What both implementations are built from: official tensors and config for ltx-core, parts for diffusers."""

    def __init__(self, parts: Path, weights: Path):
        folder = Path(tempfile.mkdtemp(prefix="demo-verify-"))
        made = write_trained_checkpoint(folder, variant="dev", weights=weights)
        self.parts = parts
        self.state = load_file(str(made.checkpoint))
        self.upsampler_state = load_file(str(made.upsamplers[0]))
        self.settings = settings(weights)

    def official(self, configurator: Any, state: State, config: dict | None = None) -> torch.nn.Module:
        module = configurator.from_config(config or self.settings["config"])
        module = module.float()  # one parameter of the reference is made in bfloat16
        module.load_state_dict(state, strict=True)
        return module.eval()

    def tensors(self, *prefixes: tuple[str, str]) -> State:
        return stripped(self.state, *prefixes)

    def trained(self, module: torch.nn.Module, name: str) -> torch.nn.Module:
        module.load_state_dict(torch.load(self.parts / f"{name}.pt"))
        return module.eval()


def video_distances(pair: Pair) -> dict[str, float]:
    from ltx_core.model.video_vae.model_configurator import VideoDecoderConfigurator, VideoEncoderConfigurator

    vae = pair.trained(video_vae(), "video_vae")
    statistics = ("vae.per_channel_statistics.", "per_channel_statistics.")
    encoder = pair.official(VideoEncoderConfigurator, pair.tensors(("vae.encoder.", ""), statistics))
    decoder = pair.official(VideoDecoderConfigurator, pair.tensors(("vae.decoder.", ""), statistics))
    x = torch.rand(1, 3, 17, 64, 96) * 2 - 1
    z = normalise(vae.encoder(x)[:, :LATENT], vae)
    return {
        "video encoder": distance(encoder(x), z),
        "video decoder": distance(decoder(z), vae.decoder(denormalise(z, vae))),
    }


def sound_distances(pair: Pair) -> dict[str, float]:
    from ltx_core.model.audio_vae.model_configurator import (
        AudioDecoderConfigurator,
        AudioEncoderConfigurator,
        VocoderConfigurator,
    )

    vae = pair.trained(audio_vae(), "audio_vae")
    statistics = ("audio_vae.per_channel_statistics.", "per_channel_statistics.")
    encoder = pair.official(AudioEncoderConfigurator, pair.tensors(("audio_vae.encoder.", ""), statistics))
    decoder = pair.official(AudioDecoderConfigurator, pair.tensors(("audio_vae.decoder.", ""), statistics))
    mel = torch.randn(1, 2, 41, 64) - 6
    mean = encode(vae, mel)
    z = unpack((pack(mean) - vae.latents_mean) / vae.latents_std)
    voice = pair.trained(vocoder(), "vocoder")
    theirs = pair.official(VocoderConfigurator, pair.tensors(("vocoder.", "")))
    return {
        "audio encoder": distance(encoder(mel), z),
        "audio decoder": distance(decoder(z), vae.decoder(mean)),
        "vocoder": distance(theirs(mel), voice(mel)),
    }


def text_distances(pair: Pair, model: Denoiser, prompt: str) -> tuple[dict[str, float], Context]:
    """Also the contexts of the prompt."""
    from ltx_core.text_encoders.gemma.embeddings_connector import (
        AudioEmbeddings1DConnectorConfigurator,
        Embeddings1DConnectorConfigurator,
    )

    hidden, mask = model.states([prompt])
    rows = torch.zeros(1, FULL_SLOTS, *hidden.shape[2:])
    rows[:, FULL_SLOTS - hidden.shape[1] :] = hidden
    full_mask = torch.zeros(1, FULL_SLOTS, dtype=torch.long)
    full_mask[:, FULL_SLOTS - hidden.shape[1] :] = mask
    video_context, audio_context, _ = model.connectors(rows, full_mask)
    own = model.context([prompt])
    found = {"context in training": max(distance(own.video, video_context), distance(own.audio, audio_context))}
    for name, configurator, project, context in (
        ("video", Embeddings1DConnectorConfigurator, model.connectors.video_text_proj_in, video_context),
        ("audio", AudioEmbeddings1DConnectorConfigurator, model.connectors.audio_text_proj_in, audio_context),
    ):
        weights = pair.tensors((f"model.diffusion_model.{name}_embeddings_connector.", ""))
        flat = (rows * torch.rsqrt(rows.square().mean(2, keepdim=True) + 1e-6)).flatten(2)
        features = project(flat * (project.out_features / text.CONFIG["hidden_size"]) ** 0.5)
        additive = (full_mask[:, None, None] - 1).float() * torch.finfo(torch.float32).max
        found[f"{name} connector"] = distance(pair.official(configurator, weights)(features, additive)[0], context)
    return found, Context(video_context, audio_context, None)


def transformer_distances(pair: Pair, model: Denoiser, context: Context) -> dict[str, float]:
    from ltx_core.model.transformer.modality import Modality
    from ltx_core.model.transformer.model_configurator import LTXModelConfigurator

    names = {n: v for n, v in pair.state.items() if "embeddings_connector" not in n}
    theirs = pair.official(LTXModelConfigurator, stripped(names, ("model.diffusion_model.", "")))
    x, y, sigma = torch.randn(1, 28, LATENT), torch.randn(1, 51, AUDIO_FEATURES), torch.tensor([0.7])
    steps, audio_steps = sigma[:, None].expand(1, 28), sigma[:, None].expand(1, 51)
    ours = model.transformer(
        hidden_states=x,
        audio_hidden_states=y,
        encoder_hidden_states=context.video,
        audio_encoder_hidden_states=context.audio,
        timestep=1000 * steps,
        audio_timestep=1000 * audio_steps,
        sigma=1000 * sigma,
        num_frames=7,
        height=2,
        width=2,
        fps=24.0,
        audio_num_frames=51,
        use_cross_timestep=True,
        return_dict=False,
    )
    rope = model.transformer.rope.prepare_video_coords(1, 7, 2, 2, x.device, fps=24.0)
    audio_rope = model.transformer.audio_rope.prepare_audio_coords(1, 51, x.device)
    both = theirs(
        Modality(x, sigma, steps, rope, context.video),
        Modality(y, sigma, audio_steps, audio_rope, context.audio),
        None,
    )
    return {f"transformer, {n}": distance(a, b) for n, a, b in zip(("video", "audio"), both, ours, strict=True)}


def upsampler_distances(pair: Pair) -> dict[str, float]:
    from ltx_core.model.upsampler.model_configurator import LatentUpsamplerConfigurator

    ours = pair.trained(upsampler(), "upsampler")
    theirs = pair.official(LatentUpsamplerConfigurator, pair.upsampler_state, pair.settings["upsampler"])
    z = torch.randn(1, LATENT, 3, 2, 2)
    return {"upsampler": distance(theirs(z), ours(z))}


@torch.no_grad()
def verify(parts: Path, weights: Path = WEIGHTS) -> dict[str, float]:
    """Relative L2 distance of ltx-core to diffusers, per network. `parts` holds the parts as packed."""
    stand_in_for_torchaudio()
    torch.manual_seed(0)
    pair = Pair(parts, weights)
    model = pair.trained(Denoiser(parts), "denoiser")
    text_found, context = text_distances(pair, model, "a red circle moving right")
    return (
        video_distances(pair)
        | sound_distances(pair)
        | text_found
        | transformer_distances(pair, model, context)
        | upsampler_distances(pair)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path, help="folder written by training.export --restore")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    a = parser.parse_args()
    result = verify(a.parts, a.weights)
    print(json.dumps({k: float(np.float32(v)) for k, v in result.items()}, indent=2))
    assert max(result.values()) < 1e-4
