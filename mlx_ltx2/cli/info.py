"""mlx-ltx2 info"""

from __future__ import annotations

import json
from pathlib import Path

import click

from mlx_ltx2.cli import options as opts
from mlx_ltx2.errors import RequestError, WeightsError

MEDIA = {".mp4", ".mov", ".gif", ".webp", ".png", ".jpg", ".jpeg", ".wav"}


@click.command("info", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--verify", is_flag=True, help="Read a model's weights and compare them with their hashes.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(path: str, as_json: bool, verify: bool, quiet: bool) -> None:
    """Show what PATH is: a converted model, an official checkpoint, or a finished clip and how it was made."""
    facts = _facts(path)
    if verify:
        facts["verified"] = f"{_verified(path, facts, quiet) / 1e6:.1f} MB agree with their hashes"
    if as_json:
        click.echo(opts.json_text(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{name}")
            for key, item in value.items():
                click.echo(f"  {key:<23} {item}")
        else:
            click.echo(f"{name:<26}{value}")


def _facts(path: str) -> dict[str, object]:
    from mlx_ltx2.library import DEMO
    from mlx_ltx2.weights.location import expanded
    from mlx_ltx2.weights.recognise import recognise_folder

    if path == DEMO:
        return _model(path)
    place = expanded(path)
    if place.suffix.lower() in MEDIA and not place.is_dir():
        return _clip(place)
    if place.is_file():
        return _file(place)
    if place.is_dir() and recognise_folder(place).kind != "model":
        return _folder(place)
    return _model(str(place))


def _folder(path: Path) -> dict[str, object]:
    """A folder that is no model of ours: what it is, and its files of weights. Nothing is converted."""
    from mlx_ltx2.weights.header import read_header
    from mlx_ltx2.weights.recognise import kind_of, recognise_folder

    found = recognise_folder(path)
    files = sorted(p for p in path.glob("*.safetensors") if not p.is_dir())
    if not files:
        raise WeightsError(f"{path}: {found.says}; it is no converted model and holds no official checkpoint.")
    listed: dict[str, object] = {}
    for file in files:
        try:
            listed[file.name] = f"{file.stat().st_size / 1e6:10.1f} MB  {kind_of(read_header(file))}"
        except (WeightsError, OSError) as error:
            listed[file.name] = str(error)
    return {"folder": str(path), "is": found.says, "files": listed}


def _verified(path: str, facts: dict[str, object], quiet: bool) -> int:
    from mlx_ltx2.library import verify_with_progress
    from mlx_ltx2.progress import make_progress

    if "model" not in facts or "components" not in facts:
        raise RequestError(f"{path}: --verify compares a converted model with its hashes; this is none.")
    return verify_with_progress(str(facts["model"]), make_progress(opts.progress_style(None, quiet)))


def _clip(path: Path) -> dict[str, object]:
    from mlx_ltx2.media.metadata import read_metadata

    stored = dict(read_metadata(path))
    if not stored:
        raise RequestError(f"{path} does not say how it was made; it is no clip of this program, or was re-encoded.")
    parsed: dict[str, object] = {name: json.loads(stored.pop(name)) for name in ("loras", "plan") if name in stored}
    return {**stored, **parsed}


def _file(path: Path) -> dict[str, object]:
    from mlx_ltx2.weights.header import read_header

    header = read_header(path)
    facts: dict[str, object] = {
        "file": str(path),
        "tensors": len(header.tensors),
        "bytes": path.stat().st_size,
        "types": ", ".join(sorted({t.dtype for t in header.tensors.values()})),
    }
    if "transformer" in header.metadata.get("config", ""):
        from mlx_ltx2.traits import Traits

        facts |= _traits(Traits.from_header(header.metadata, header.tensors, path.name))
    return facts


def _traits(traits: object) -> dict[str, object]:
    names = ("title", "variant", "num_blocks", "stg_block", "text_width", "latent_channels", "video_scale")
    return {name: getattr(traits, name) for name in names}


def _model(path: str) -> dict[str, object]:
    from mlx_ltx2.demo import styles
    from mlx_ltx2.library import DEMO, open_model
    from mlx_ltx2.progress import SilentProgress

    if path != DEMO and not Path(path).exists():
        raise WeightsError(f"{path}: there is no such file or folder.")
    model = open_model(path, progress=SilentProgress())
    loras = [p.name for p in model.loras] + (list(styles()) if path == DEMO else [])
    sizes = {
        name: f"{sum(f.stat().st_size for f in model.folder(name).rglob('*') if f.is_file()) / 1e6:10.1f} MB"
        for name in model.components
    }
    quantized = "full precision"
    if model.quantization:
        q = model.quantization
        quantized = f"{q.bits} bits in groups of {q.group_size}, {q.mode}"
    return {
        "model": str(model.path),
        **_traits(model.traits),
        "weights": quantized,
        "components": sizes,
        "loras": ", ".join(loras) or "none",
        "made from": ", ".join(str(s.get("file")) for s in model.sources),
    }
