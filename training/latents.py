"""What the denoiser learns from: video codes at both sizes, key frames, and audio tokens, computed once."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training import audio as sounds
from training.code import normalised, scene_code
from training.models import audio_vae
from training.world import FRAMES, Scene, train_pool

AUDIO_TOKENS = 51
KEYFRAMES = (24, 48)


def load_audio(out: Path) -> torch.nn.Module:
    """The trained audio VAE, frozen."""
    audio = audio_vae()
    audio.load_state_dict(torch.load(out / "audio_vae.pt"))
    return audio.eval().requires_grad_(False)


@torch.no_grad()
def encode_sound(vae: torch.nn.Module, wave: torch.Tensor) -> torch.Tensor:
    """(B, 2, N) at 16 kHz to normalised tokens (B, 51, 32)."""
    tokens = sounds.pack(sounds.encode(vae, sounds.log_mel(wave)))[:, :AUDIO_TOKENS]
    return (tokens - vae.latents_mean) / vae.latents_std


def code(scene: Scene, size: int, outline: bool = False, frame: int | None = None) -> torch.Tensor:
    """Normalised latents of a clip, exact: (C, F', h, w); or of one frame alone."""
    one = {} if frame is None else {"start": frame, "frames": 1}
    return torch.from_numpy(normalised(scene_code(scene, size, outline=outline, **one))).permute(3, 0, 1, 2)


def build(out: Path, pool: list[Scene], size: int, name: str, audio: torch.Tensor, outline: bool = False) -> None:
    """Codes of scenes in `name`.pt: video (N, C, 7, h, w), keys (N, K, C, h, w), audio (N, 51, 32)."""
    video = torch.stack([code(scene, size, outline).half() for scene in pool])
    keys = torch.stack([torch.stack([code(s, size, outline, k)[:, 0] for k in KEYFRAMES]).half() for s in pool])
    torch.save({"video": video, "keys": keys, "audio": audio[: len(pool)].clone()}, out / f"{name}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--count", type=int, default=8192)
    parser.add_argument("--large", type=int, default=8192)
    parser.add_argument("--outlines", type=int, default=2048)
    a = parser.parse_args()
    assert KEYFRAMES[-1] + 1 == FRAMES
    ordered = train_pool(a.count)  # every set begins with the same scenes, so their sounds are encoded once
    vae = load_audio(a.out)
    audio = torch.cat([encode_sound(vae, sounds.waves(ordered[i : i + 16])).half() for i in range(0, a.count, 16)])
    build(a.out, ordered, 64, "latents_64", audio)
    build(a.out, ordered[: a.large], 128, "latents_128", audio)
    build(a.out, ordered[: a.outlines], 64, "outlines_64", audio, outline=True)
    build(a.out, ordered[: a.outlines // 2], 128, "outlines_128", audio, outline=True)
