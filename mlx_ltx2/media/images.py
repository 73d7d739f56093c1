"""Pictures: files -> pixels as the model was trained to see them, and back."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
from PIL import Image

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.animation import write_still
from mlx_ltx2.media.files import STILL_SUFFIXES
from mlx_ltx2.media.h264 import THREADS, encoder_options
from mlx_ltx2.media.metadata import still_arguments
from mlx_ltx2.media.outputs import replacing
from mlx_ltx2.media.pictures import read_picture

MAX_ENCODED_SIDE = 16384
"""The longest side that x264 takes."""


def load_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a picture as uint8 (H, W, 3) sRGB, the way a viewer shows it; see `read_picture`, which also says how.

    Raises MediaError if the file is missing, damaged, too large or no picture.
    """
    return read_picture(path).pixels


def crf_degrade(image: np.ndarray, crf: float) -> np.ndarray:
    """Send a picture through H.264 once, so that it looks like a frame of the training videos.

    image: uint8 (H, W, 3), cropped to even sides. crf: 0 to 51; 0 returns the picture as it is, and so does
    a side under 2 pixels. Returns uint8 (H', W', 3).
    Source: ltx-pipelines 1.2.0, media_io/decode.py, `preprocess` (libx264 veryfast, yuv420p, one frame);
    there the pixels depend on the number of cores, here they do not.
    """
    if not 0 <= crf <= 51:
        raise RequestError(f"image CRF {crf} is outside 0 (no re-encoding) to 51 (worst).")
    if crf == 0 or min(image.shape[:2]) < 2:
        return image
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    encoded = io.BytesIO()
    with av.open(encoded, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1, options=encoder_options(crf))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = THREADS
        pixels = np.ascontiguousarray(image[:height, :width])
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    encoded.seek(0)
    with av.open(encoded, "r") as decoded:
        return next(decoded.decode(video=0)).to_ndarray(format="rgb24")


def encodable(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture that x264 takes: itself, or of one with a side over MAX_ENCODED_SIDE what `resize_and_crop` will show.

    The official order compresses the whole picture and crops afterwards, and its pixels are kept wherever that works;
    where it does not, the centre is cut out first. What is too long even then is reduced by a whole factor.
    image: uint8 (h, w, 3). height, width: the size that it is prepared for. Returns uint8 (h', w', 3).
    """
    rows, columns = image.shape[:2]
    if max(rows, columns) <= MAX_ENCODED_SIDE:
        return image
    scale = max(height / rows, width / columns)
    kept_rows, kept_columns = min(rows, math.ceil(height / scale)), min(columns, math.ceil(width / scale))
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    shown = image[top : top + kept_rows, left : left + kept_columns]
    factor = math.ceil(max(shown.shape[:2]) / MAX_ENCODED_SIDE)
    if factor == 1:
        return shown
    return np.asarray(Image.fromarray(np.ascontiguousarray(shown)).reduce(factor))


def resize_and_crop(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fill height x width: scale by the larger ratio, bilinear without antialiasing, and crop the centre.

    frames: (F, h, w, C) or (h, w, C), any real dtype, any range. Returns float32, same rank and range.
    Source: ltx-pipelines 1.0.0, media_io.py, `resize_and_center_crop`: torch's bilinear interpolation with
    align_corners false, sizes rounded up, crop offsets rounded down.
    """
    source_height, source_width = frames.shape[-3:-1]
    scale = max(height / source_height, width / source_width)
    rows = _taps(source_height, math.ceil(source_height * scale), height)
    columns = _taps(source_width, math.ceil(source_width * scale), width)
    stack = frames[None] if frames.ndim == 3 else frames
    out = np.empty((len(stack), height, width, stack.shape[-1]), dtype=np.float32)
    for index, frame in enumerate(stack):
        out[index] = _bilinear(frame, rows, columns)
    return out[0] if frames.ndim == 3 else out


def _taps(size: int, scaled: int, cropped: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First neighbour, second neighbour and the second one's weight for each of the central positions."""
    start = (scaled - cropped) // 2
    at = np.arange(start, start + cropped, dtype=np.float64) + 0.5
    ratio = np.float64(np.float32(size) / np.float32(scaled))
    # One rounding to float32, as of the fused multiply-add in torch's kernel.
    position = np.maximum(at * ratio - 0.5, 0.0).astype(np.float32)
    low = np.minimum(position.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weight = np.clip(position - low.astype(np.float32), 0.0, 1.0).astype(np.float32)
    return low, high, weight


def _bilinear(
    frame: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    low, high, weight = rows
    weight = weight[:, None, None]
    needed = np.unique(np.concatenate(columns[:2]))
    if len(needed) < frame.shape[1]:  # of a panorama most columns are cut off or skipped
        frame = frame[:, needed]
        columns = (np.searchsorted(needed, columns[0]), np.searchsorted(needed, columns[1]), columns[2])
    mixed = frame[low].astype(np.float32) * (1 - weight) + frame[high].astype(np.float32) * weight
    low, high, weight = columns
    weight = weight[None, :, None]
    return np.asarray(mixed[:, low] * (1 - weight) + mixed[:, high] * weight)


def normalize_pixels(frames: np.ndarray) -> np.ndarray:
    """Pixels in [0, 255] -> float32 in [-1, 1]."""
    return np.asarray(frames, dtype=np.float32) / np.float32(127.5) - np.float32(1.0)


def prepare_image(path: str | os.PathLike[str], height: int, width: int, crf: float) -> np.ndarray:
    """A conditioning picture for the video encoder: load, degrade, resize and crop, scale.

    crf: 33 for LTX-2 and 2.3, 18 from 2.4 on, 0 for none. Returns float32 (1, height, width, 3) in [-1, 1].
    """
    degraded = crf_degrade(encodable(load_image(path), height, width), crf)
    return normalize_pixels(resize_and_crop(degraded[None], height, width))


def save_image(path: str | os.PathLike[str], image: np.ndarray, metadata: Mapping[str, str] | None = None) -> None:
    """Write uint8 (H, W, 3) as .png or .jpg, atomically; the folder is created."""
    suffix = Path(path).suffix.lower()
    if suffix not in STILL_SUFFIXES:
        raise RequestError(f"picture {path} ends in {suffix!r}; use one of {', '.join(STILL_SUFFIXES)}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise MediaError(f"a picture is uint8 (height, width, 3), not {image.dtype} {image.shape}.")
    with replacing(path) as partial:
        write_still(Image.fromarray(image), partial, still_arguments(suffix, metadata))
