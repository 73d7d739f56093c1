"""Sound: files -> float samples, channels last, and back."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.files import replacing
from mlx_ltx2.media.metadata import pack
from mlx_ltx2.media.opening import opened
from mlx_ltx2.states import Waveform

_FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}

_SIDE = 0.7071067811865476
_DOWNMIX = {
    3: ((1, 0, _SIDE), (0, 1, _SIDE)),
    4: ((1, 0, _SIDE, 0), (0, 1, 0, _SIDE)),
    5: ((1, 0, _SIDE, _SIDE, 0), (0, 1, _SIDE, 0, _SIDE)),
    6: ((1, 0, _SIDE, 0, _SIDE, 0), (0, 1, _SIDE, 0, 0, _SIDE)),
    8: ((1, 0, _SIDE, 0, _SIDE, 0, _SIDE, 0), (0, 1, _SIDE, 0, 0, _SIDE, 0, _SIDE)),
}
"""Left and right from 3.0, quad, 5.0, 5.1 and 7.1 in ffmpeg's order (ITU-R BS.775, low effects left out)."""


def read_audio(path: str | os.PathLike[str], start_seconds: float = 0.0, max_seconds: float | None = None) -> Waveform:
    """Read a WAV, FLAC, MP3, OGG, M4A, or a video's sound track, at its own rate, with its own channels.

    start_seconds: first instant to keep, >= 0, counted from the beginning of the file (of the picture, in a
    video: a track that starts later begins with silence). max_seconds: at most so much, > 0; None to the end.
    Both are exact to the sample. Returns float32 (N, channels), full scale = [-1, 1].

    Raises RequestError for impossible times, MediaError for a file without a sound track, an empty or damaged
    one, a start beyond the end, and samples that are not finite.
    Source: ltx-pipelines 1.2.0, media_io/decode.py, `decode_audio_from_file`; unlike it, unsigned 8-bit
    samples are centred.
    """
    if not (np.isfinite(start_seconds) and start_seconds >= 0):
        raise RequestError(f"audio start {start_seconds} s is not possible; use 0 or more.")
    if max_seconds is not None and not (np.isfinite(max_seconds) and max_seconds > 0):
        raise RequestError(f"audio length {max_seconds} s is not possible; use more than 0, or leave it out.")
    with opened(path, "audio") as container:
        if not container.streams.audio:
            raise MediaError(f"{path} has no sound track; give a sound file or a video with sound.")
        samples, rate_hz, total = _decode(container, start_seconds, max_seconds)
    if total == 0:
        raise MediaError(f"the sound track of {path} is empty; it holds not one sample.")
    if len(samples) == 0:
        raise MediaError(f"audio start {start_seconds} s lies beyond the end of {path} ({total / rate_hz:.3f} s).")
    if not np.isfinite(samples).all():
        raise MediaError(f"{path} holds samples that are no finite numbers (NaN or infinity); repair the file.")
    return Waveform(samples, rate_hz)


def _decode(container: Any, start_seconds: float, max_seconds: float | None) -> tuple[np.ndarray, int, int]:
    """Samples of the window, their rate, and how many samples were passed in all.

    Everything before the window is decoded too: seeking is not exact in MP3, OGG and AAC.
    """
    stream = container.streams.audio[0]
    rate_hz, channels = stream.rate, max(1, stream.codec_context.layout.nb_channels)
    first = round(start_seconds * rate_hz)
    last = _stated_length(container, stream)
    if max_seconds is not None:
        last = min(first + round(max_seconds * rate_hz), last)
    blocks: list[np.ndarray] = []
    position = 0
    for index, frame in enumerate(container.decode(stream)):
        block = _to_float(frame)
        if index == 0:
            silence = np.zeros((_offset(container, stream, frame), block.shape[1]), np.float32)
            block = np.concatenate([silence, block])
        kept = block[max(0, first - position) : max(0, last - position)]
        if len(kept):
            blocks.append(kept)
        position += len(block)
        if position >= last:
            position = last
            break
    empty = np.zeros((0, channels), np.float32)
    return (np.concatenate(blocks) if blocks else empty), rate_hz, position


def _stated_length(container: Any, stream: Any) -> int:
    """Samples up to the end that an MP4 states; its last AAC block decodes to more than it holds."""
    if "mp4" not in container.format.name or not stream.duration:
        return 1 << 62
    start = (stream.start_time or 0) * stream.time_base - _start(container)
    return max(0, round((start + stream.duration * stream.time_base) * stream.rate))


def _offset(container: Any, stream: Any, frame: Any) -> int:
    """Samples of silence before a track that starts after the file does."""
    if frame.pts is None or not container.streams.video:
        return 0
    return max(0, round((frame.pts * frame.time_base - _start(container)) * stream.rate))


def _start(container: Any) -> Fraction:
    return Fraction(container.start_time or 0, av.time_base)


def _to_float(frame: Any) -> np.ndarray:
    name = frame.format.name.removesuffix("p")
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    if name == "u8":
        return ((values.astype(np.float32) - 128.0) / 128.0).astype(np.float32)
    if name in _FULL_SCALE:
        return (values.astype(np.float64) / _FULL_SCALE[name]).astype(np.float32)
    return np.ascontiguousarray(values, dtype=np.float32)


def to_stereo(samples: np.ndarray) -> np.ndarray:
    """(N, channels) -> (N, 2): mono is doubled, surround is mixed down and scaled so that it cannot clip.

    Raises MediaError for 7 or more than 8 channels.
    """
    channels = samples.shape[1]
    if channels == 2:
        return samples
    if channels == 1:
        return np.repeat(samples, 2, axis=1)
    if channels not in _DOWNMIX:
        raise MediaError(f"sound with {channels} channels cannot be mixed to stereo; convert it first.")
    matrix = np.asarray(_DOWNMIX[channels], dtype=np.float32)
    return samples @ (matrix / matrix.sum(axis=1, keepdims=True)).T


def fit_length(samples: np.ndarray, length: int) -> np.ndarray:
    """Cut or pad with zeros at the end to exactly `length` samples: (N, channels) -> (length, channels)."""
    if len(samples) >= length:
        return samples[:length]
    return np.concatenate([samples, np.zeros((length - len(samples), samples.shape[1]), samples.dtype)])


def check_samples(waveform: Waveform) -> None:
    """Raise MediaError unless the samples are finite numbers of shape (N, channels)."""
    samples = waveform.samples
    if samples.ndim != 2 or not np.issubdtype(samples.dtype, np.floating):
        raise MediaError(f"sound is {samples.dtype} {samples.shape}; use float32 (N, channels).")
    if not np.isfinite(samples).all():
        raise MediaError("the sound holds samples that are no finite numbers (NaN or infinity); not written.")


def write_wav(path: str | os.PathLike[str], waveform: Waveform, metadata: Mapping[str, str] | None = None) -> None:
    """Write 16-bit PCM, atomically; the folder is created. Samples beyond [-1, 1] are clipped.

    Full scale is 32768, as for reading, so that 16-bit sound survives a round trip bit for bit.
    """
    check_samples(waveform)
    scaled = np.clip(np.rint(waveform.samples.astype(np.float64) * 32768.0), -32768, 32767)
    data = scaled.astype("<i2").tobytes()
    channels = waveform.samples.shape[1]
    block_align = 2 * channels
    form = struct.pack("<HHIIHH", 1, channels, waveform.rate_hz, waveform.rate_hz * block_align, block_align, 16)
    comment = pack(metadata).encode("ascii")
    chunks = _chunk(b"fmt ", form)
    if comment:
        chunks += _chunk(b"LIST", b"INFO" + _chunk(b"ICMT", comment + b"\0"))
    chunks += _chunk(b"data", data)
    if len(chunks) + 4 >= 1 << 32:
        raise RequestError(f"{waveform.seconds:.0f} s of sound do not fit a WAV file (4 GB); cut the sound.")
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(_chunk(b"RIFF", b"WAVE" + chunks))


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
