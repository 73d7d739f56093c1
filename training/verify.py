"""Load the unpacked demo files into ltx-core 1.0.0, strictly, and compare its outputs with diffusers' in float32."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from training import text
from training.dit import FULL_SLOTS, Denoiser
from training.export import WEIGHTS
from training.models import AUDIO_FEATURES, AUDIO_LATENT, LATENT, audio_vae, upsampler, video_vae, vocoder


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


def stripped(state: dict[str, torch.Tensor], *prefixes: tuple[str, str]) -> dict[str, torch.Tensor]:
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


@torch.no_grad()
def verify(parts: Path, weights: Path = WEIGHTS) -> dict[str, float]:
    """Relative L2 distance of ltx-core to diffusers, per network. `parts` holds the parts as packed."""
    stand_in_for_torchaudio()
    from ltx_core.model.audio_vae.model_configurator import (
        AudioDecoderConfigurator,
        AudioEncoderConfigurator,
        VocoderConfigurator,
    )
    from ltx_core.model.transformer.modality import Modality
    from ltx_core.model.transformer.model_configurator import LTXModelConfigurator
    from ltx_core.model.upsampler.model_configurator import LatentUpsamplerConfigurator
    from ltx_core.model.video_vae.model_configurator import VideoDecoderConfigurator, VideoEncoderConfigurator
    from ltx_core.text_encoders.gemma.embeddings_connector import (
        AudioEmbeddings1DConnectorConfigurator,
        Embeddings1DConnectorConfigurator,
    )

    from mlx_ltx2.demo.trained import settings, write_trained_checkpoint

    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp(prefix="demo-verify-"))
    made = write_trained_checkpoint(folder, variant="dev", weights=weights)
    state = load_file(str(made.checkpoint))
    config = settings(weights)["config"]
    found: dict[str, float] = {}

    def build(configurator, section_state: dict[str, torch.Tensor], full: dict = config) -> torch.nn.Module:
        module = configurator.from_config(full).float()  # one parameter of the reference is made in bfloat16
        module.load_state_dict(section_state, strict=True)
        return module.eval()

    vae = video_vae()
    vae.load_state_dict(torch.load(parts / "video_vae.pt"))
    statistics = ("vae.per_channel_statistics.", "per_channel_statistics.")
    encoder = build(VideoEncoderConfigurator, stripped(state, ("vae.encoder.", ""), statistics))
    decoder = build(VideoDecoderConfigurator, stripped(state, ("vae.decoder.", ""), statistics))
    x = torch.rand(1, 3, 17, 64, 96) * 2 - 1
    shape = (1, LATENT, 1, 1, 1)
    z = (vae.encoder(x)[:, :LATENT] - vae.latents_mean.view(shape)) / vae.latents_std.view(shape)
    found["video encoder"] = distance(encoder(x), z)
    found["video decoder"] = distance(
        decoder(z), vae.decoder(z * vae.latents_std.view(shape) + vae.latents_mean.view(shape))
    )

    sound = audio_vae()
    sound.load_state_dict(torch.load(parts / "audio_vae.pt"))
    statistics = ("audio_vae.per_channel_statistics.", "per_channel_statistics.")
    encoder = build(AudioEncoderConfigurator, stripped(state, ("audio_vae.encoder.", ""), statistics))
    decoder = build(AudioDecoderConfigurator, stripped(state, ("audio_vae.decoder.", ""), statistics))
    mel = torch.randn(1, 2, 41, 64) - 6
    mean = sound.encoder(mel)[:, :AUDIO_LATENT]
    tokens = (mean.permute(0, 2, 1, 3).flatten(2) - sound.latents_mean) / sound.latents_std
    z = tokens.unflatten(2, (AUDIO_LATENT, 16)).permute(0, 2, 1, 3)
    found["audio encoder"] = distance(encoder(mel), z)
    found["audio decoder"] = distance(decoder(z), sound.decoder(mean))

    voice = vocoder()
    voice.load_state_dict(torch.load(parts / "vocoder.pt"))
    theirs = build(VocoderConfigurator, stripped(state, ("vocoder.", "")))
    found["vocoder"] = distance(theirs(mel), voice(mel))

    model = Denoiser(parts)
    model.load_state_dict(torch.load(parts / "denoiser.pt"))
    hidden, mask = model.states(["a red circle moving right"])
    rows = torch.zeros(1, FULL_SLOTS, *hidden.shape[2:])
    rows[:, FULL_SLOTS - hidden.shape[1] :] = hidden
    full_mask = torch.zeros(1, FULL_SLOTS, dtype=torch.long)
    full_mask[:, FULL_SLOTS - hidden.shape[1] :] = mask
    video_context, audio_context, _ = model.connectors(rows, full_mask)
    own = model.context(["a red circle moving right"])
    found["context in training"] = max(distance(own.video, video_context), distance(own.audio, audio_context))
    for name, configurator, projected, theirs_context in (
        ("video", Embeddings1DConnectorConfigurator, model.connectors.video_text_proj_in, video_context),
        ("audio", AudioEmbeddings1DConnectorConfigurator, model.connectors.audio_text_proj_in, audio_context),
    ):
        connector = build(configurator, stripped(state, (f"model.diffusion_model.{name}_embeddings_connector.", "")))
        flat = (rows * torch.rsqrt(rows.square().mean(2, keepdim=True) + 1e-6)).flatten(2)
        features = projected(flat * (projected.out_features / text.CONFIG["hidden_size"]) ** 0.5)
        additive = (full_mask[:, None, None] - 1).float() * torch.finfo(torch.float32).max
        found[f"{name} connector"] = distance(connector(features, additive)[0], theirs_context)

    names = {n: v for n, v in state.items() if "embeddings_connector" not in n}
    theirs = build(LTXModelConfigurator, stripped(names, ("model.diffusion_model.", "")))
    x, y, sigma = torch.randn(1, 28, LATENT), torch.randn(1, 51, AUDIO_FEATURES), torch.tensor([0.7])
    ours = model.transformer(
        hidden_states=x,
        audio_hidden_states=y,
        encoder_hidden_states=video_context,
        audio_encoder_hidden_states=audio_context,
        timestep=1000 * sigma[:, None].expand(1, 28),
        audio_timestep=1000 * sigma[:, None].expand(1, 51),
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
        Modality(x, sigma, sigma[:, None].expand(1, 28), rope, video_context),
        Modality(y, sigma, sigma[:, None].expand(1, 51), audio_rope, audio_context),
        None,
    )
    found["transformer, video"], found["transformer, audio"] = (distance(a, b) for a, b in zip(both, ours, strict=True))

    up = upsampler()
    up.load_state_dict(torch.load(parts / "upsampler.pt"))
    theirs = build(LatentUpsamplerConfigurator, load_file(str(made.upsamplers[0])), settings(weights)["upsampler"])
    z = torch.randn(1, LATENT, 3, 2, 2)
    found["upsampler"] = distance(theirs(z), up(z))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path, help="folder written by training.export --restore")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    a = parser.parse_args()
    result = verify(a.parts, a.weights)
    print(json.dumps({k: float(np.float32(v)) for k, v in result.items()}, indent=2))
    assert max(result.values()) < 1e-4
