"""Sound: files -> float samples, channels last, and back."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

import numpy as np

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.channels import check_layout, stays, stereo_matrix
from mlx_ltx2.media.metadata import pack
from mlx_ltx2.media.opening import first_picture_seconds, opened
from mlx_ltx2.media.outputs import replacing
from mlx_ltx2.media.sound_track import chosen_track
from mlx_ltx2.media.track_reader import TrackReader
from mlx_ltx2.states import Waveform


def read_audio(
    path: str | os.PathLike[str],
    start_seconds: float = 0.0,
    max_seconds: float | None = None,
    *,
    track: int | None = None,
) -> Waveform:
    """Read a sound file, or a video's sound track, at its own rate; more than two channels are mixed to stereo.

    start_seconds: first instant to keep, >= 0, counted from the first sample of a sound file (an encoder's delay is
    skipped as FFmpeg skips it), and in a video from the first picture that is shown: what sounds before it is cut, a
    track that starts later begins with silence. max_seconds: at most so much, > 0; None to the end. Both are exact to
    the sample. track: 1 for the first; None for the one that `probe_sound` names.
    Time stamps decide within the track too: a gap is silence, and what follows keeps its time (`time_line.placed`).
    Returns float32 (N, 1 or 2), full scale = [-1, 1], which float formats may exceed; `notes` say what was chosen,
    mixed, cut or filled. Only the window is held in memory.

    Raises RequestError for impossible times and tracks, MediaError for a file without a sound track, an empty or
    damaged one, a start beyond the end, channels that do not say where they belong, samples that are not finite, and
    more of them than `track_reader.MOST_BYTES`.
    Source: ltx-pipelines 1.2.0, media_io/decode.py, `decode_audio_from_file`; unlike it, unsigned 8-bit
    samples are centred.
    """
    if not (np.isfinite(start_seconds) and start_seconds >= 0):
        raise RequestError(f"audio start {start_seconds} s is not possible; use 0 or more.")
    if max_seconds is not None and not (np.isfinite(max_seconds) and max_seconds > 0):
        raise RequestError(f"audio length {max_seconds} s is not possible; use more than 0, or leave it out.")
    with opened(path, "audio") as container:
        stream, notes = chosen_track(container, path, track)
        check_layout(stream.codec_context.layout.name, path)
        reader = TrackReader(path, container, stream, first_picture_seconds(path))
        samples = reader.window(start_seconds, max_seconds)
    if reader.end is None:
        raise MediaError(f"the sound track of {path} is empty; it holds not one sample.")
    if len(samples) == 0:
        ends = reader.end / reader.rate_hz
        raise MediaError(f"audio start {start_seconds} s lies beyond the end of {path} ({ends:.3f} s).")
    if not np.isfinite(samples).all():
        raise MediaError(f"{path} holds samples that are no finite numbers (NaN or infinity); repair the file.")
    return Waveform(samples, reader.rate_hz, (*notes, *(f"{path}: {note}" for note in reader.notes)))


def to_stereo(samples: np.ndarray, layout: str | None = None) -> np.ndarray:
    """(N, channels) -> (N, 2): mono is doubled, more channels are mixed down and scaled so that they cannot clip.

    layout: which channels they are, such as "5.1" or "7.1(wide)"; one or two channels need none.
    Raises MediaError for more than two without one, since their number does not say where they belong.
    """
    channels = samples.shape[1]
    if channels == 2 and layout is None:
        return samples
    if channels == 1:
        return np.repeat(samples, 2, axis=1)
    layout = layout or f"{channels} channels"
    if stays(layout):
        return samples
    return np.asarray(samples @ stereo_matrix(layout))


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
