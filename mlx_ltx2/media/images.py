"""Pictures: files -> pixels as the model was trained to see them, and back."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageCms, ImageOps

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.animation import write_still
from mlx_ltx2.media.files import STILL_SUFFIXES, reading, replacing
from mlx_ltx2.media.h264 import THREADS, encoder_options
from mlx_ltx2.media.metadata import still_arguments


def load_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a picture as uint8 (H, W, 3) sRGB, the way a viewer shows it.

    EXIF orientation is applied (mirrored ones too), an embedded colour profile is converted to sRGB, alpha is
    dropped, 16-bit, grey, palette and CMYK pictures become 8-bit RGB; of an animation the first frame counts.
    Raises MediaError if the file is missing, damaged or no picture.
    Source: ltx-pipelines 1.2.0, media_io/decode.py, `decode_image` (which ignores mirrored orientations).
    """
    with reading(path, "image"):
        try:
            with Image.open(path) as opened:
                opened.load()
                profile = opened.info.get("icc_profile")
                upright = ImageOps.exif_transpose(opened)
        except Image.DecompressionBombError as error:
            raise MediaError(f"{path} has too many pixels to be opened safely ({error}); shrink it first.") from error
        return np.array(_to_srgb(_to_8_bit(upright), profile), dtype=np.uint8)


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        span = 1.0 if image.mode == "F" and values.max() <= 1.0 else 65535.0
        return Image.fromarray(np.clip(np.rint(values * (255.0 / span)), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "RGBX"):
        return image.convert("RGBA").convert("RGB")
    if image.mode in ("LA", "La", "1"):
        return image.convert("L")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")
    return image


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            # A broken profile, or one for another kind of pixels, says nothing about these pixels.
            pass
    return image.convert("RGB")


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
    mixed = frame[low].astype(np.float32) * (1 - weight) + frame[high].astype(np.float32) * weight
    low, high, weight = columns
    weight = weight[None, :, None]
    return mixed[:, low] * (1 - weight) + mixed[:, high] * weight


def normalize_pixels(frames: np.ndarray) -> np.ndarray:
    """Pixels in [0, 255] -> float32 in [-1, 1]."""
    return np.asarray(frames, dtype=np.float32) / np.float32(127.5) - np.float32(1.0)


def prepare_image(path: str | os.PathLike[str], height: int, width: int, crf: float) -> np.ndarray:
    """A conditioning picture for the video encoder: load, degrade, resize and crop, scale.

    crf: 33 for LTX-2 and 2.3, 18 from 2.4 on, 0 for none. Returns float32 (1, height, width, 3) in [-1, 1].
    """
    degraded = crf_degrade(load_image(path), crf)
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
