"""What comes out: the clip, and the file it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ltx2.errors import MediaError, RequestError
from mlx_ltx2.media.audio import write_wav
from mlx_ltx2.media.outputs import check_apart, replacing, replacing_files
from mlx_ltx2.media.writer import ClipWriter, remux_audio, save_frames
from mlx_ltx2.states import Waveform


@dataclass
class Clip:
    """A finished clip.

    frames: uint8 (F, H, W, 3), or None if they were streamed to a file or not decoded. audio: the sound, or None.
    latents: (1, F, H, W, C) and audio_latents (1, T, mel, C) after the last stage. plan: the record of the run.
    peaks: allocator peak in bytes by phase. path: the file, if one was written. inputs: files that it was made from.
    notes: what the last `save` had to change, in words.
    """

    fps: float
    plan: Any
    frames: np.ndarray | None = None
    audio: Waveform | None = None
    latents: mx.array | None = None
    audio_latents: mx.array | None = None
    peaks: Mapping[str, int] = field(default_factory=dict)
    path: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[Path] = ()
    notes: Sequence[str] = ()

    @property
    def seconds(self) -> float:
        return float(self.plan.shape.seconds)

    def save(self, path: str | Path, *, crf: float = 19, overwrite: bool = False) -> Path:
        """Write the clip; the suffix decides the kind of file (.mp4 .mov .gif .webp .png .jpg .wav).

        crf: H.264 quality, 0 (lossless) to 51. overwrite: replace a file that this program did not make; without it
        only its own earlier outputs and empty files are replaced. An input of the clip never is.

        Raises: RequestError if the clip has no frames in memory or the file is not to be replaced, MediaError or
        ResourceError if it cannot be written.
        """
        path = Path(path)
        check_apart([path], self.inputs)
        self.notes = ()
        if path.suffix.lower() == ".wav":
            if self.audio is None:
                raise RequestError("this clip has no sound to write into a .wav file.")
            with replacing(path, overwrite=overwrite) as partial:
                write_wav(partial, self.audio, metadata=self.metadata)
        elif self.frames is None:
            raise RequestError(
                "this clip holds no frames; generate it without output_type='latent' and keep_frames=False."
            )
        else:
            with ClipWriter(
                path, fps=self.fps, crf=crf, audio=self.audio, metadata=self.metadata, overwrite=overwrite
            ) as writer:
                writer.write(self.frames)
            self.notes = tuple(writer.notes)
        self.path = path
        return path

    def save_frames(self, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write every frame as a numbered PNG, in place of those of an earlier clip in this folder.

        Raises: RequestError if the clip has no frames in memory, if a frame there is an input of the clip, or if frames
        there are no files of this program and overwrite is False.
        """
        if self.frames is None:
            raise RequestError("this clip holds no frames.")
        check_apart([], self.inputs, frames_folder=folder)
        with replacing_files(folder, overwrite=overwrite) as stills:
            names = [path.name for path in save_frames(stills, self.frames)]
        return [Path(folder) / name for name in names]


def stream_clip(
    chunks: Iterable[np.ndarray],
    path: Path,
    *,
    fps: float,
    crf: float,
    audio: Waveform | None,
    metadata: Mapping[str, str],
    frames_folder: Path | None = None,
    picture: Path | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Encode uint8 (F, H, W, 3) chunks as they come; returns the writer's notes.

    overwrite: replace files that this program did not make. picture: a video that holds these very frames, whose
    compressed pictures are copied instead where that is possible.
    """
    done = 0
    with (
        nullcontext() if frames_folder is None else replacing_files(frames_folder, overwrite=overwrite) as stills,
        ClipWriter(
            path, fps=fps, crf=crf, audio=audio, metadata=metadata, picture=picture, overwrite=overwrite
        ) as writer,
    ):
        for chunk in chunks:
            writer.write(chunk)
            if stills is not None:
                save_frames(stills, chunk, first=done)
            done += len(chunk)
    return writer.notes


def copy_track(path: Path, source: str | Path, track: int | None = None) -> str | None:
    """Put the sound track of `source` into a finished video as it is, packet by packet, in place of the encoded one.

    It lies beside the picture as it does in the source. track: as for `read_audio`.
    Returns what is to be said if the container does not take it; the encoded sound stays then.
    """
    try:
        remux_audio(path, source, path, track=track)
    except MediaError as error:
        return f"the sound was encoded anew, since its track could not be copied: {error}"
    return None
