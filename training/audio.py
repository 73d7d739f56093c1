"""Train the audio VAE, then the vocoder and its bandwidth extension, on the sounds of the world."""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import torch

from training.models import AUDIO_BINS, AUDIO_LATENT, audio_vae, vocoder
from training.optim import Average, Clock, Optimiser, orthogonal
from training.world import Scene, sample_scene, scenes, sound

MEL_RATE_HZ, MEL_HOP = 16000, 160
FLOOR = -11.5129254  # log(1e-5), the log-mel of silence


@cache
def mel_filters(rate_hz: int, n_fft: int, bins: int = 64) -> torch.Tensor:
    """Triangular mel filters on the Slaney scale with Slaney's area normalisation: (bins, n_fft // 2 + 1)."""

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    top = 15 + 27 * np.log(rate_hz / 2 / 1000) / np.log(6.4)
    edges = to_hz(np.linspace(0, top, bins + 2))
    hz = np.linspace(0, rate_hz / 2, n_fft // 2 + 1)
    rise = (hz[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hz[None]) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.tensor(filters, dtype=torch.float32)


def log_mel(wave: torch.Tensor) -> torch.Tensor:
    """The reference's front end: (B, 2, N) at 16 kHz to log-mel (B, 2, N // 160 + 1, 64)."""
    b, c, n = wave.shape
    spectrum = torch.stft(
        wave.reshape(b * c, n),
        1024,
        MEL_HOP,
        window=torch.hann_window(1024),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    ).abs()
    mel = mel_filters(MEL_RATE_HZ, 1024) @ spectrum
    return mel.clamp_min(1e-5).log().reshape(b, c, 64, -1).transpose(2, 3)


def waves(pool: list[Scene], rate_hz: int = MEL_RATE_HZ) -> torch.Tensor:
    """The sounds of scenes as (B, 2, N)."""
    return torch.from_numpy(np.stack([sound(s, rate_hz).T for s in pool]))


def encode(vae: torch.nn.Module, mel: torch.Tensor) -> torch.Tensor:
    """Latent means (B, channels, T', 16), not normalised."""
    return vae.encoder(mel)[:, :AUDIO_LATENT]


def pack(z: torch.Tensor) -> torch.Tensor:
    """(B, channels, T, 16) to tokens (B, T, channels * 16), channel-major."""
    return z.permute(0, 2, 1, 3).flatten(2)


def unpack(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (B, T, channels * 16) to (B, channels, T, 16)."""
    return tokens.unflatten(2, (AUDIO_LATENT, AUDIO_BINS)).permute(0, 2, 1, 3)


def train_vae(out: Path, steps: int, seed: int = 0) -> None:
    """Train the audio VAE on whole clips; saves `audio_vae.pt`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = audio_vae()
    orthogonal(vae)
    pool = scenes(2, 4096, two=0.3)
    unseen = log_mel(waves([sample_scene(np.random.default_rng(77 + i), "any", 0.3) for i in range(16)]))
    optimiser = Optimiser(vae.named_parameters(), 2e-3, ends=("conv_in", "conv_out"))
    average = Average(vae)
    clock = Clock("audio_vae", out, steps=steps)

    @torch.no_grad()
    def save(loss: float) -> None:
        average.swap()
        y = vae.decoder(encode(vae, unseen))
        clock.report(loss=loss, mel_error=(y - unseen[:, :, : y.shape[2]]).abs().mean())
        z = pack(encode(vae, log_mel(waves(pool[:128]))))
        vae.latents_mean.copy_(z.mean((0, 1)))
        vae.latents_std.copy_(z.std((0, 1)).clamp_min(1e-2))
        torch.save(vae.state_dict(), out / "audio_vae.pt")
        average.swap()

    while clock.running():
        batch = [pool[i] for i in rng.integers(len(pool), size=6)]
        mel = log_mel(waves(batch))
        z = encode(vae, mel)
        y = vae.decoder(z + 0.05 * torch.randn_like(z))
        x = mel[:, :, : y.shape[2]]
        error = (y - x).abs() + 0.5 * (y - x).square()
        weight = 1 + 2 * ((x - FLOOR) / 4).clamp(0, 2)  # where something sounds
        loss = (error * weight).mean() + 1e-4 * z.square().mean()
        loss.backward()
        optimiser.step(clock.factor())
        average.update()
        if clock.due(200):
            save(float(loss))


def stft_basis(n_fft: int = 512) -> torch.Tensor:
    """Real and imaginary rows of a Hann-windowed Fourier transform: (n_fft + 2, 1, n_fft)."""
    n = np.arange(n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / n_fft)
    phase = 2 * np.pi * np.arange(n_fft // 2 + 1)[:, None] * n[None] / n_fft
    rows = np.concatenate([np.cos(phase), -np.sin(phase)]) * window
    return torch.tensor(rows[:, None], dtype=torch.float32)


def fixed_tables(voice: torch.nn.Module) -> None:
    """Fill the vocoder's stored spectral bases (the reference reads them from the checkpoint)."""
    voice.mel_stft.stft_fn.forward_basis.copy_(stft_basis())
    voice.mel_stft.stft_fn.inverse_basis.zero_()
    voice.mel_stft.mel_basis.copy_(mel_filters(MEL_RATE_HZ, 512))


def spectral_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean distance of log magnitudes at three resolutions."""
    total = torch.zeros(())
    for n in (256, 512, 1024):
        pair = [
            torch.stft(x.flatten(0, 1), n, n // 4, window=torch.hann_window(n), return_complex=True).abs()
            for x in (a, b)
        ]
        total = (
            total + (pair[0].add(1e-3).log() - pair[1].add(1e-3).log()).abs().mean() + (pair[0] - pair[1]).abs().mean()
        )
    return total / 3


def segments(pool: list[Scene], rng: np.random.Generator, batch: int, frames: int, vae: torch.nn.Module | None):
    """Random stretches: log-mel (B, 2, F, 64), wave at 16 kHz (B, 2, 160 F) and at 48 kHz (B, 2, 480 F)."""
    mels, low, high = [], [], []
    chosen = [pool[int(i)] for i in rng.integers(len(pool), size=batch)]
    for scene in chosen:
        wide = torch.from_numpy(sound(scene, 48000).T)
        narrow = torch.from_numpy(sound(scene, MEL_RATE_HZ).T)
        mel = log_mel(narrow[None])
        if vae is not None and rng.random() < 0.5:  # half of the input as the decoder will give it
            with torch.no_grad():
                z = encode(vae, mel)
                mel = vae.decoder(z + 0.05 * torch.randn_like(z))
        count = mel.shape[2] - 5
        start = int(rng.integers(count - frames))
        mels.append(mel[0, :, start : start + frames])
        low.append(narrow[:, start * 160 : (start + frames) * 160])
        high.append(wide[:, start * 480 : (start + frames) * 480])
    return torch.stack(mels), torch.stack(low), torch.stack(high)


@torch.no_grad()
def start_vocoder(part: torch.nn.Module) -> None:
    """Begin almost linear: small activations around the mean log-mel, near-identity residuals, little output."""
    orthogonal(part)
    part.conv_in.weight.mul_(0.05)
    part.conv_in.bias.copy_(9 * part.conv_in.weight.sum((1, 2)))
    for block in part.resnets:
        for layer in block.convs2:
            layer.weight.mul_(0.1)
    part.conv_out.weight.mul_(0.1)


def train_vocoder(out: Path, steps: int, seed: int = 0) -> None:
    """Train core and extension together; saves `vocoder.pt`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    voice = vocoder()
    for part in (voice.vocoder, voice.bwe_generator):
        start_vocoder(part)
    voice.vocoder.final_act_fn = None  # a clamp would stop gradients; it is back when the weights are used
    fixed_tables(voice)
    vae = audio_vae()
    vae.load_state_dict(torch.load(out / "audio_vae.pt"))
    pool = scenes(3, 4096, two=0.3)
    unseen = [sample_scene(np.random.default_rng(55 + i), "any", 0.3) for i in range(12)]
    optimiser = Optimiser(voice.named_parameters(), 2e-3, ends=("conv_in", "conv_out"))
    average = Average(voice)
    clock = Clock("vocoder", out, steps=steps)

    @torch.no_grad()
    def save(loss: float) -> None:
        average.swap()
        mel, low, high = segments(unseen, np.random.default_rng(5), 12, 96, vae)
        y16, y48 = voice.vocoder(mel), voice(mel)
        figures = {
            "snr16": 10 * torch.log10(low.square().mean() / (y16 - low).square().mean()),
            "snr48": 10 * torch.log10(high.square().mean() / (y48 - high).square().mean()),
            "spectral48": spectral_loss(y48, high),
        }
        clock.report(loss=loss, **figures)
        torch.save(voice.state_dict(), out / "vocoder.pt")
        average.swap()

    while clock.running():
        mel, low, high = segments(pool, rng, 6, 32, vae)
        core = voice.vocoder(mel)
        loss = 20 * (core - low).square().mean() + (core - low).abs().mean() + 0.1 * spectral_loss(core, low)
        if clock.progress > 0.4:
            wide = core.detach()
            bands = voice.mel_stft(wide.flatten(0, 1))[0].unflatten(0, (-1, 2)).transpose(2, 3)
            full = voice.bwe_generator(bands) + voice.resampler(wide)
            loss = (
                loss + 20 * (full - high).square().mean() + (full - high).abs().mean() + 0.1 * spectral_loss(full, high)
            )
        loss.backward()
        optimiser.step(clock.factor())
        average.update()
        if clock.due(200):
            save(float(loss))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["vae", "vocoder"])
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--steps", type=int, default=3000)
    a = parser.parse_args()
    {"vae": train_vae, "vocoder": train_vocoder}[a.part](a.out, a.steps)
