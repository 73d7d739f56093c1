"""Judge the trained parts in PyTorch, on held-out captions, with the detectors of tests/semantic."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from tests.semantic import detectors
from training import lora
from training.audio import log_mel, unpack, waves
from training.dit import (
    FULL_SLOTS,
    Context,
    Denoiser,
    Stream,
    audio_positions,
    denormalise,
    normalise,
    to_latent,
    to_tokens,
    video_positions,
)
from training.latents import AUDIO_TOKENS, encode_pixels, encode_sound, load_codecs
from training.models import LATENT, autocast, upsampler, vocoder
from training.world import FPS, Scene, caption, make_shape, render, sample_scene, sound

RATE_HZ = 48000
FRAMES = (7, 49)


def dev_sigmas(steps: int, shift: float = 2.05, terminal: float = 0.1) -> list[float]:
    """The reference's schedule for its fixed token count: shifted, stretched to end at `terminal`, then zero."""
    s = np.linspace(1, 0, steps + 1)[:-1]
    s = math.exp(shift) / (math.exp(shift) + 1 / s - 1)
    s = 1 - (1 - s) * (1 - terminal) / (1 - s[-1])
    return [*map(float, s), 0.0]


@dataclass
class Given:
    """What a clip is made from besides its prompt: clean tokens and which of them are kept (mask 0)."""

    video: torch.Tensor | None = None
    video_mask: torch.Tensor | None = None
    audio: torch.Tensor | None = None
    audio_mask: torch.Tensor | None = None
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    frozen_audio: bool = False


class Studio:
    """All trained parts and the pipelines that put them together."""

    def __init__(self, parts: Path, adapter: str | None = None):
        self.video, self.audio = load_codecs(parts)
        self.voice = vocoder()
        self.voice.load_state_dict(torch.load(parts / "vocoder.pt"))
        self.up = upsampler()
        self.up.load_state_dict(torch.load(parts / "upsampler.pt"))
        self.model = Denoiser(parts)
        self.model.load_state_dict(torch.load(parts / "denoiser.pt"))
        self.adapters = lora.load(self.model, parts / f"{adapter}.pt") if adapter else {}

    @torch.no_grad()
    def denoise(
        self,
        prompts: list[str],
        size: int,
        sigmas: list[float],
        guidance: float = 1.0,
        seed: int = 0,
        given: Given | None = None,
        start: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Euler steps down `sigmas`; normalised latents (B, C, 7, h, w) and audio tokens (B, 51, C)."""
        given = given or Given()
        b, side = len(prompts), size // 32
        generator = torch.Generator().manual_seed(seed)
        count = FRAMES[0] * side * side
        clean = [
            torch.zeros(b, count, LATENT),
            torch.zeros(b, AUDIO_TOKENS, self.model.transformer.config.audio_in_channels),
        ]
        masks = [torch.ones(b, count), torch.ones(b, AUDIO_TOKENS)]
        for i, (value, mask) in enumerate(((given.video, given.video_mask), (given.audio, given.audio_mask))):
            if value is not None and mask is not None:
                clean[i], masks[i] = value, mask
        noise = [torch.randn(c.shape, generator=generator) for c in clean]
        base = list(start) if start else [torch.zeros_like(c) for c in clean]
        x = [
            m[..., None] * (s + sigmas[0] * (n - s)) + (1 - m[..., None]) * c
            for n, s, m, c in zip(noise, base, masks, clean, strict=True)
        ]
        if given.keys:
            x[0] = torch.cat([x[0], *given.keys.values()], dim=1)
            masks[0] = torch.cat([masks[0], torch.zeros(b, x[0].shape[1] - count)], dim=1)
        where = video_positions(FRAMES[0], side, side, tuple(given.keys))
        context = self.model.context(prompts, FULL_SLOTS)
        both = context
        if guidance != 1.0:
            empty = self.model.context([""], FULL_SLOTS).repeat(b)
            both = Context(torch.cat([context.video, empty.video]), torch.cat([context.audio, empty.audio]), None)
        for sigma, following in pairwise(sigmas):
            s = torch.full((b,), sigma)
            audio_sigma = torch.zeros(b) if given.frozen_audio else s
            video = Stream(x[0], masks[0] * s[:, None], s, where)
            audio = Stream(x[1], masks[1] * audio_sigma[:, None], audio_sigma, audio_positions(AUDIO_TOKENS))
            if guidance == 1.0:
                v = self.model(video, audio, context)
            else:
                v = lora.guided(self.model, video, audio, both, guidance)
            x = [t - m[..., None] * (sigma - following) * d for t, m, d in zip(x, masks, v, strict=True)]
        return to_latent(x[0][:, :count], FRAMES[0], side, side), x[1]

    @torch.no_grad()
    def decode(self, z: torch.Tensor) -> np.ndarray:
        """Normalised latents to uint8 clips (B, F, H, W, 3)."""
        with autocast():
            y = torch.cat([self.video.decoder(denormalise(row[None], self.video)) for row in z]).float()
        return ((y.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()

    @torch.no_grad()
    def hear(self, tokens: torch.Tensor) -> np.ndarray:
        """Normalised audio tokens to samples (B, N, 2) at 48 kHz."""
        mel = self.audio.decoder(unpack(tokens * self.audio.latents_std + self.audio.latents_mean))
        return self.voice(mel).transpose(1, 2).numpy()

    @torch.no_grad()
    def upsample(self, z: torch.Tensor) -> torch.Tensor:
        return normalise(self.up(denormalise(z, self.video)), self.video)

    def two_stages(self, prompts: list[str], seed: int, given: tuple[Given, Given] = (Given(), Given())):
        """The distilled pipeline: 8 steps at 64, upsampling, 3 steps at 128. Adapters must be on."""
        small, audio = self.denoise(prompts, 64, list(lora.DISTILLED_SIGMAS), seed=seed, given=given[0])
        large = self.upsample(small)
        z, audio = self.denoise(
            prompts,
            128,
            list(lora.STAGE_2_SIGMAS),
            seed=seed + 1,
            given=given[1],
            start=(to_tokens(large), audio),
        )
        return z, audio


def judge(scene: Scene, clip: np.ndarray, samples: np.ndarray) -> dict[str, bool]:
    """What the detectors say of a one-shape clip against its scene."""
    shape = scene.shapes[0]
    mask = detectors.foreground(clip)
    path = detectors.track(mask)
    found = {
        "colour": detectors.colour(clip, mask) == shape.colour,
        "motion": detectors.motion(path) == shape.motion,
        "shape": detectors.kind(mask) == shape.kind,
        "silence": detectors.silent(samples, RATE_HZ) == (shape.motion == "still"),
    }
    if shape.motion in ("up", "down", "left", "right"):
        heard = detectors.pitch(samples, RATE_HZ)[: len(path.y)]
        height = 100 * np.clip(np.round(3 + 9 * (1 - path.y[: len(heard)])), 3, 12)
        found["pitch follows"] = bool(np.nanmean(np.abs(heard - height) <= 110) > 0.7)
    return found


def matches(heard: list[float], seen: list[float], within: float = 2 / FPS + 1e-6) -> tuple[int, int]:
    return sum(any(abs(h - s) <= within for s in seen) for h in heard), len(heard)


def share(rows: list[dict[str, bool]]) -> dict[str, float]:
    keys = dict.fromkeys(k for row in rows for k in row)
    return {k: round(float(np.mean([row[k] for row in rows if k in row])), 3) for k in keys}


def evaluate(parts: Path, count: int, out: Path) -> dict:
    """The table of the model card; also writes a contact sheet."""
    rng = np.random.default_rng(2024)
    pool = [sample_scene(rng, "held", two=0.0) for _ in range(count)]
    prompts = [caption(s, rng) for s in pool]
    table: dict[str, dict[str, float]] = {}
    table["codec, 128x128x49"] = codec_figures(Studio(parts), pool[:8])

    def batches(studio: Studio, make) -> tuple[list[np.ndarray], list[np.ndarray]]:
        clips, sounds = [], []
        for i in range(0, count, 8):
            z, audio = make(studio, prompts[i : i + 8], i)
            clips.extend(studio.decode(z))
            sounds.extend(studio.hear(audio))
        return clips, sounds

    studio = Studio(parts, "distilled")
    clips, heard = batches(studio, lambda s, p, i: s.two_stages(p, i))
    table["distilled, 8 + 3 steps, 64 -> 128"] = share([judge(*row) for row in zip(pool, clips, heard, strict=True)])
    sheet(clips[:12], out / "contact_sheet.png")
    (out / "contact_sheet.txt").write_text("\n".join(prompts[:12]) + "\n")
    clips, heard = batches(studio, lambda s, p, i: s.denoise(p, 128, list(lora.DISTILLED_SIGMAS), seed=i))
    table["distilled, 8 steps, 128"] = share([judge(*row) for row in zip(pool, clips, heard, strict=True)])
    table["conditioning, distilled"] = conditioning_figures(studio)

    studio = Studio(parts)
    for guidance in (1.0, 3.0):
        clips, heard = batches(studio, lambda s, p, i, g=guidance: s.denoise(p, 64, dev_sigmas(20), g, seed=i))
        table[f"dev, 20 steps, 64, guidance {guidance:g}"] = share(
            [judge(*row) for row in zip(pool, clips, heard, strict=True)]
        )

    studio = Studio(parts, "outlines")
    clips, heard = batches(studio, lambda s, p, i: s.denoise(p, 64, dev_sigmas(20), 3.0, seed=i))
    rows = [judge(*row) for row in zip(pool, clips, heard, strict=True)]
    table["outline style, dev, guidance 3"] = share(
        [{k: r[k] for k in ("colour", "motion")} | {"hollow": hollow(c)} for r, c in zip(rows, clips, strict=True)]
    )
    sheet(clips[:12], out / "contact_sheet_outlines.png")
    return table


def hollow(clip: np.ndarray) -> bool:
    """Whether the middle of the shape is background in most frames."""
    mask = detectors.foreground(clip)
    path = detectors.track(mask)
    size = clip.shape[1]
    holes = [not mask[f, int(path.y[f] * size) % size, int(path.x[f] * size) % size] for f in np.flatnonzero(path.seen)]
    return bool(holes) and float(np.mean(holes)) > 0.5


@torch.no_grad()
def codec_figures(studio: Studio, pool: list[Scene]) -> dict[str, float]:
    """Reconstruction of unseen clips and sounds."""
    video, mels, spectra = [], [], []
    for scene in pool:
        pixels, _ = render(scene, 128)
        back = studio.decode(encode_pixels(studio.video, pixels)[None])[0]
        video.append(detectors.psnr(back, pixels))
        wave = waves([scene])
        tokens = encode_sound(studio.audio, wave)
        mel = studio.audio.decoder(unpack(tokens * studio.audio.latents_std + studio.audio.latents_mean))
        true = log_mel(wave)[:, :, : mel.shape[2]]
        mels.append(float((mel - true).abs().mean()))
        target = torch.from_numpy(sound(scene, RATE_HZ).T)[None, :, : mel.shape[2] * 480]
        heard = studio.voice(mel)
        spectra.append(
            float(10 * torch.log10((target.square().mean() + 1e-6) / ((heard - target).square().mean() + 1e-6)))
        )
    return {
        "video PSNR dB": round(np.mean(video), 2),
        "log-mel error": round(np.mean(mels), 3),
        "waveform SNR dB": round(np.mean(spectra), 2),
    }


def conditioning_figures(studio: Studio, count: int = 8) -> dict[str, float]:
    """Image, sound, last frame and retake, by the distilled adapters on one stage at 128."""
    rng = np.random.default_rng(31)
    sigmas = list(lora.DISTILLED_SIGMAS)
    pool = [sample_scene(rng, "train", two=0.0) for _ in range(count)]
    prompts = [caption(s, rng) for s in pool]
    pixels = [render(s, 128)[0] for s in pool]
    z = torch.stack([encode_pixels(studio.video, p) for p in pixels])
    tokens, side = to_tokens(z), 16
    mask = torch.ones(count, 7, side)
    mask[:, 0] = 0
    clip = studio.decode(studio.denoise(prompts, 128, sigmas, given=Given(tokens, mask.flatten(1)))[0])
    figures = {"first frame PSNR dB": np.mean([detectors.psnr(c[0], p[0]) for c, p in zip(clip, pixels, strict=True)])}
    last = torch.stack([encode_pixels(studio.video, p[48:49]) for p in pixels])
    clip = studio.decode(
        studio.denoise(prompts, 128, sigmas, given=Given(keys={48: last.flatten(2).transpose(1, 2)}))[0]
    )
    figures["last frame PSNR dB"] = np.mean([detectors.psnr(c[48], p[48]) for c, p in zip(clip, pixels, strict=True)])
    shapes = [
        make_shape(rng, "circle", str(rng.choice(["red", "green", "yellow", "cyan"])), "bounce") for _ in range(count)
    ]
    scenes_with_clicks = [Scene((s,), "black") for s in shapes]
    audio = encode_sound(studio.audio, waves(scenes_with_clicks))
    given = Given(audio=audio, audio_mask=torch.zeros(count, AUDIO_TOKENS), frozen_audio=True)
    asked = [f"a {s.colour} circle bouncing" for s in shapes]
    clip = studio.decode(studio.denoise(asked, 128, sigmas, given=given)[0])
    hits = [
        matches(s.bounces(s_.duration), detectors.landings(detectors.track(detectors.foreground(c))))
        for s, s_, c in zip(shapes, scenes_with_clicks, clip, strict=True)
    ]
    figures["given sound: onsets met"] = sum(h for h, _ in hits) / max(1, sum(n for _, n in hits))
    mask = torch.zeros(count, 7, side)
    mask[:, 3:5] = 1
    other = [p for p in prompts[1:] + prompts[:1]]
    region = Given(tokens, mask.flatten(1), encode_sound(studio.audio, waves(pool)), torch.ones(count, AUDIO_TOKENS))
    clip = studio.decode(studio.denoise(other, 128, sigmas, given=region)[0])
    codec = studio.decode(z)
    figures["retake: kept frames PSNR dB"] = np.mean(
        [detectors.psnr(c[:9], p[:9]) for c, p in zip(clip, codec, strict=True)]
    )
    return {k: round(float(v), 3) for k, v in figures.items()}


def sheet(clips: list[np.ndarray], path: Path, columns: int = 7) -> None:
    """A picture with a row of frames per clip."""
    from PIL import Image

    rows = [np.concatenate(list(c[np.linspace(0, len(c) - 1, columns).astype(int)]), axis=1) for c in clips]
    Image.fromarray(np.concatenate(rows)).save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path, help="folder of trained parts, as packed")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    a = parser.parse_args()
    result = evaluate(a.parts, a.count, a.out)
    (a.out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    for row, values in result.items():
        print(f"{row:38s}", "  ".join(f"{k} {v:g}" for k, v in values.items()))
