"""Audio latents -> waveform: the audio VAE's decoder, then the vocoder in float32."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ltx2.memory import PeakReport, phase, resident
from mlx_ltx2.models.audio_vae import AudioDecoder
from mlx_ltx2.progress import Progress
from mlx_ltx2.stages.sanity import refuse_non_finite
from mlx_ltx2.states import Waveform


def decode_audio(
    latent: mx.array,
    load_decoder: Callable[[], AudioDecoder],
    load_vocoder: Callable[[], nn.Module],
    progress: Progress,
    report: PeakReport,
) -> Waveform:
    """(1, T, mel, C) latents -> stereo samples at the vocoder's own rate, 24 kHz (LTX-2) or 48 kHz (LTX-2.3).

    Raises: LTX2Error if either network computes no numbers.
    """
    with phase("decode audio", report), progress.phase("decode audio", 2) as advance:
        with resident(load_decoder) as decoder:
            mel = decoder(latent)
            refuse_non_finite(mel, "the audio decoder")
            advance(1)
            del decoder
        with resident(load_vocoder) as vocoder:
            sound = vocoder(mel)[0].astype(mx.float32)
            refuse_non_finite(sound, "the vocoder")
            samples = np.array(sound)
            rate_hz = vocoder.rate_hz
            advance(1)
            del vocoder, sound
    return Waveform(samples, rate_hz)
