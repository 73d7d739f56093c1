"""The networks of one model as loaders: nothing is read until a stage asks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_ltx2.errors import WeightsError
from mlx_ltx2.models.text.projections import CONTEXT_TOKENS
from mlx_ltx2.models.video_vae import PerChannelStatistics
from mlx_ltx2.traits import Traits
from mlx_ltx2.weights.embedding_cache import EmbeddingCache, identity_of
from mlx_ltx2.weights.hub import FileName
from mlx_ltx2.weights.index import MANIFEST, TEXT_ENCODER, ModelFolder, read_json
from mlx_ltx2.weights.load import lazy_component as load_component
from mlx_ltx2.weights.load import load_statistics, read_shards
from mlx_ltx2.weights.lora import (
    Say,
    Shape,
    apply_loras,
    lora_hash,
    match_lora,
    resolve_lora,
    silent,
    stored_shapes,
)
from mlx_ltx2.weights.lora_keys import read_lora
from mlx_ltx2.weights.streaming import stream_transformer
from mlx_ltx2.weights.text_encoder import TextEncoder, TextEncoderInfo, check_text_encoder
from mlx_ltx2.weights.text_encoder import lazy_text_encoder as load_text_encoder
from mlx_ltx2.weights.upsampler_file import load_upsampler_file

UPSAMPLERS = {
    "spatial-x2": "spatial_upsampler",
    "spatial-x1.5": "spatial_upsampler_x1.5",
    "temporal-x2": "temporal_upsampler",
}
"""Kind of a latent upsampler -> component name."""


@dataclass(frozen=True)
class Networks:
    """model: a converted folder. text_encoder: a Gemma folder that replaces the model's own.

    dtype: of the weights to compute in, None for the stored one; the vocoder always computes in float32.
    say: takes remarks, such as those on downloads.
    """

    model: ModelFolder
    text_encoder: Path | None = None
    dtype: mx.Dtype | None = None
    say: Say = field(default=silent, compare=False)

    @property
    def traits(self) -> Traits:
        return self.model.traits

    def check(self, *names: str) -> None:
        """Raise WeightsError unless every named component is there with sound files; reads headers, no weights."""
        for name in names:
            if name == TEXT_ENCODER:
                self.check_text_encoder()
            else:
                read_shards(self.model.folder(name))

    def check_text_encoder(self) -> TextEncoderInfo:
        return check_text_encoder(self.text_folder(), self.traits.text_width, self.traits.text_layers)

    def load_text_encoder(self, resident_layers: int | None = None) -> TextEncoder:
        """resident_layers: keep so many layers and read the others at every use; None keeps all."""
        traits = self.traits
        return load_text_encoder(
            self.text_folder(), traits.text_width, traits.text_layers, resident_layers=resident_layers
        )

    def has_text_encoder(self) -> bool:
        return self.text_encoder is not None or self.model.has(TEXT_ENCODER)

    def text_folder(self) -> Path:
        return self.text_encoder or self.model.folder(TEXT_ENCODER)

    def embedding_cache(self, folder: Path, say: Say | None = None) -> EmbeddingCache:
        """Text contexts of this text encoder and these projections, kept in `folder`."""
        parts = (self.text_folder(), self.model.folder("text_projections"))
        identity = identity_of(*parts, dtype=self.dtype, length=CONTEXT_TOKENS)
        return EmbeddingCache(folder, identity, say=say or self.say)

    def load(self, name: str) -> Any:
        """Any component but the transformer and the text encoder."""
        return load_component(self.model, name, dtype=self.dtype)

    def load_transformer(
        self,
        *,
        video: bool,
        audio: bool,
        loras: Iterable[tuple[str, float]] = (),
        say: Say | None = None,
        resident_blocks: int | None = None,
    ) -> Any:
        """The transformer, with only the streams asked for; the other stream's weights are never read.

        loras: (file, folder or hub id, strength), applied to the weights as stored. say: is told what each did.
        resident_blocks: keep so many blocks and read the others at every use; None keeps all.
        """
        say = say or self.say
        files = self.lora_files(loras, say)
        absent = self.linear_shapes() if files else ()
        streams: dict[str, Any] = {"dtype": self.dtype, "video": video, "audio": audio}
        if resident_blocks is None:
            network: Any = load_component(self.model, "transformer", **streams)
            reports = apply_loras(network, files, absent=absent)
        else:
            network, reports = stream_transformer(
                self.model, resident_blocks=resident_blocks, loras=files, absent=absent, **streams
            )
        for report in reports:
            say(report.text())
        return network

    def check_loras(self, loras: Iterable[str]) -> None:
        """Raise WeightsError unless every LoRA is there, of a supported kind and made for this transformer.

        Reads headers only, so that a wrong LoRA is said before anything is loaded.
        """
        shapes: dict[str, Shape] = {}
        for path in dict.fromkeys(loras):
            shapes = shapes or self.linear_shapes()
            match_lora(read_lora(self._lora(path, self.say)), 1.0, shapes)

    def lora_hashes(self, loras: Iterable[str]) -> dict[str, str]:
        """SHA-256 of LoRA files, by path as given; the model's own have theirs in its index, others are read once."""
        recorded = {str(source.get("file")): str(source.get("sha256")) for source in self.model.sources}
        own = {path: recorded[path.name] for path in self.model.loras if path.name in recorded}
        files = {path: resolve_lora(path, self.say) for path in loras}
        return {path: own.get(file) or lora_hash(file) for path, file in files.items()}

    def check_lora_hashes(self, recorded: Mapping[str, str]) -> None:
        """Raise WeightsError if a LoRA, by path as it was given, is no longer the file that was recorded."""
        for path, now in self.lora_hashes(recorded).items():
            if now != recorded[path]:
                raise WeightsError(
                    f"LoRA {path}: is another file than the one that was recorded (SHA-256 {now[:12]}... instead of "
                    f"{recorded[path][:12]}...). Put the recorded file back, or name the LoRAs that you want."
                )

    def _lora(self, path: str, say: Say) -> Path:
        """The LoRA's file. Raises: WeightsError if its official name says that it is of another generation."""
        file = resolve_lora(path, say)
        name = FileName.parse(file.name)
        generation = name.generation if name else None
        if generation and _release(generation) != _release(self.traits.generation):
            raise WeightsError(
                f"LoRA {file.name}: is made for LTX-{generation}, and this model is LTX-{self.traits.generation}. "
                "Use the LoRA of the model's own generation."
            )
        return file

    def lora_files(self, loras: Iterable[tuple[str, float]], say: Say | None = None) -> list[tuple[Path, float]]:
        """Files of (file, folder or hub id, strength); one of strength 0 is not looked for.

        Raises: WeightsError if one is not there, or is of another generation by its name.
        """
        named = list(loras)
        return [(self._lora(p, say or self.say) if s else Path(p), s) for p, s in named]

    def linear_shapes(self) -> dict[str, Shape]:
        """(outputs, inputs) of the stored transformer's Linear layers, those of both streams."""
        tensors = {n: info.shape for n, (_, info) in read_shards(self.model.folder("transformer")).items()}
        stored = self.model.config("transformer").get("quantization") or {}
        return stored_shapes(tensors, stored.get("group_size"))

    def load_upsampler(self, kind: str, path: str | None = None) -> Any:
        """path: an official file to use instead of the model's own upsampler."""
        return self.load(UPSAMPLERS[kind]) if path is None else load_upsampler_file(path, kind, self.dtype)

    def latent_space(self) -> str:
        """A hash of both encoders' files: equal where latents of one model mean the same to the other."""
        files = read_json(self.model.path / MANIFEST).get("files", {})
        encoders = [n for n in ("video_encoder", "audio_encoder") if self.model.has(n)]
        folders = tuple(f"{self.model.components[name]}/" for name in encoders)
        mine = {name: entry["sha256"] for name, entry in sorted(files.items()) if name.startswith(folders)}
        return hashlib.sha256(json.dumps(mine).encode()).hexdigest()

    def load_statistics(self) -> PerChannelStatistics:
        """The video VAE's channel statistics by themselves."""
        return load_statistics(self.model)

    def lora_metadata(self, paths: Sequence[str]) -> dict[str, dict[str, str]]:
        """Metadata of LoRA files, by path as given; what lies on the hub is downloaded.

        Raises: WeightsError if one is missing or of a kind that is not supported.
        """
        return {path: dict(read_lora(resolve_lora(path, self.say)).metadata) for path in paths}


def _release(generation: str) -> tuple[int, ...]:
    """Numbers of a generation: "2" and "2.0" -> (2,); "2.3" -> (2, 3)."""
    return tuple(map(int, generation.removesuffix(".0").split(".")))
