"""The conversion itself: plan, check, stream file after file, describe, rename."""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_ltx2.errors import ResourceError, WeightsError
from mlx_ltx2.weights.index import FOLDERS, INDEX, MANIFEST, SHARD_INDEX, index_content, write_json
from mlx_ltx2.weights.location import expanded
from mlx_ltx2.weights.quantize import Quantization
from mlx_ltx2.weights.verify import verify as verify_files
from mlx_ltx2_convert.card import model_card
from mlx_ltx2_convert.folder import WorkFolder, check_disk, check_output, check_places, conversion_key
from mlx_ltx2_convert.options import SHARD_BYTES, Options, Progress, Say, dtype_name, ignore
from mlx_ltx2_convert.plan import Plan, make_plan
from mlx_ltx2_convert.report import Report, parts_of, precision
from mlx_ltx2_convert.shards import FileWriter, Shard, weight_map, write_error
from mlx_ltx2_convert.sources import find_sources
from mlx_ltx2_convert.stream import CHUNK_BYTES, ShardWriter, stream


def convert(
    source: str | Path,
    output: str | Path,
    *,
    variant: str | None = None,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str = "affine",
    dtype: str | None = "bfloat16",
    text_encoder: str | Path | bool | None = None,
    components: list[str] | None = None,
    revision: str | None = None,
    verify: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = ignore,
    say: Say = ignore,
) -> Report:
    """Convert an official LTX-2 checkpoint into a model folder of format 1.

    source: the monolithic file, a folder with it, or a hub repo id. Upsamplers, the distilled LoRA (for "dev") and
    a Gemma folder beside it come along. output: a new folder; interrupted, the same call goes on from the finished
    shards.
    quantize (or any of q_bits, q_group_size, q_mode): affine with 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128,
    or mxfp4, mxfp8, nvfp4. dtype: of the other floating weights, None keeps what the source stores.
    text_encoder: a Gemma 3 folder or repo id; None looks beside the checkpoint, False leaves it out.
    verify: read everything again and compare hashes. overwrite: replace another converted model in `output`.
    progress: called with (bytes done, bytes in all, file). say: called with lines for the user.

    Raises: RequestError, WeightsError or ResourceError that says what to do.
    """
    quantized = quantize or q_bits is not None or q_group_size is not None or q_mode != "affine"
    options = Options(
        variant=variant,
        quantization=Quantization.from_options(q_mode, q_bits, q_group_size) if quantized else None,
        dtype=dtype_name(dtype),
        text_encoder=text_encoder,
        components=components,
        revision=revision,
        verify=verify,
        overwrite=overwrite,
        shard_bytes=shard_bytes,
        progress=progress,
        say=say,
    )
    return run(source, expanded(output), options)


def conversion_of(
    source: str | Path,
    *,
    variant: str | None = None,
    q_bits: int | None = None,
    text_encoder: str | Path | bool | None = None,
) -> tuple[dict[str, Any], int]:
    """What tells a conversion from others, by the content of its sources; and the bytes that it writes.

    Arguments and errors as of `convert`; reads headers and samples, and writes nothing.
    """
    quantization = None if q_bits is None else Quantization.from_options("affine", q_bits)
    options = Options(variant=variant, quantization=quantization, text_encoder=text_encoder)
    plan = make_plan(find_sources(source, options), options)
    return json.loads(json.dumps(conversion_key(plan, options))), plan.output_bytes


def run(source: str | Path, output: Path, options: Options) -> Report:
    """`convert` with its options gathered."""
    start = time.perf_counter()
    if output.is_symlink():
        output = Path(os.path.realpath(output))  # the model lies where the link points, and the link stays
    plan = make_plan(find_sources(source, options), options)
    check_places(output, (*(h.path for h in plan.headers), *plan.loras, *plan.copies.values()))
    report = Report(
        output=output,
        source=plan.headers[0].path,
        generation=plan.traits.generation,
        variant=plan.traits.variant,
        precision=precision(options),
        components=parts_of(plan),
        ignored=plan.ignored,
        left=plan.left,
        loras=tuple(f"lora/{p.name}" for p in plan.loras),
    )
    key = conversion_key(plan, options)
    if check_output(output, key, options.overwrite):
        if options.verify:
            verify_files(output, options.progress)
        return replace(report, up_to_date=True, verified=options.verify)
    with WorkFolder.open(output, key, options.overwrite, _names(plan)) as work:
        report = _fill(plan, work, options, report)
    seconds = time.perf_counter() - start
    return replace(report, bytes_written=plan.output_bytes, verified=options.verify, seconds=seconds)


def _names(plan: Plan) -> list[str]:
    """Every file that the conversion writes, relative to the model folder."""
    described = [f"{FOLDERS[name]}/{file}" for name in plan.configs for file in ("config.json", SHARD_INDEX)]
    shards = [shard.file for shard in plan.shards]
    return [*shards, *described, *plan.copies, *(f"lora/{p.name}" for p in plan.loras), "README.md", INDEX, MANIFEST]


def _fill(plan: Plan, work: WorkFolder, options: Options, report: Report) -> Report:
    """Write what is missing in the folder, and give it its name."""
    reused = sum(shard.file in work.files for shard in plan.shards)
    try:
        check_disk(work.output, _bytes_to_write(plan, work))
    except ResourceError:
        work.drop_unless_begun()
        raise
    _write_weights(plan, work, options.progress)
    report = replace(
        report,
        sha256=work.sources[plan.source_names[report.source]],
        reused=reused,
        bytes_read=plan.input_bytes,
    )
    _describe(plan, work, report)
    if options.verify:
        verify_files(work.path, options.progress)
    work.complete(_index(plan, work, options))
    return report


def _tool() -> str:
    try:
        return f"mlx-ltx2 {importlib.metadata.version('mlx-ltx2')}"
    except importlib.metadata.PackageNotFoundError:
        return "mlx-ltx2"


def _bytes_to_write(plan: Plan, work: WorkFolder) -> int:
    done = sum(shard.nbytes for shard in plan.shards if shard.file in work.files)
    done += sum(p.stat().st_size for p in plan.loras if f"lora/{p.name}" in work.files)
    return plan.output_bytes - done


def _write_weights(plan: Plan, work: WorkFolder, progress: Progress) -> None:
    done = 0

    def advance_in(name: str) -> Callable[[int], None]:
        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, plan.input_bytes, name)

        return advance

    def finished(shard: Shard, entry: dict[str, object]) -> None:
        work.add(shard.file, entry)

    todo = [shard for shard in plan.shards if shard.file not in work.files]
    names = plan.source_names
    writer = ShardWriter(work.path, todo, finished)
    try:
        for header in plan.headers:
            tensors = [t for shard in todo for t in shard.tensors if t.source == header.path]
            name = names[header.path]
            if not tensors and name in work.sources:
                advance_in(name)(header.file_bytes)
                continue
            work.sources[name] = stream(header, tensors, writer, advance_in(name))
    finally:
        writer.close()
    for path in plan.loras:
        done_before = work.files.get(f"lora/{path.name}")
        if done_before is None:
            _copy(path, f"lora/{path.name}", work, advance_in(path.name), names[path])
        else:
            work.sources[names[path]] = str(done_before["sha256"])  # a copy has the hash of its source
            advance_in(path.name)(path.stat().st_size)


def _copy(source: Path, name: str, work: WorkFolder, advance: Callable[[int], None], listed: str | None = None) -> None:
    """Copy a file as it is. listed: its name among the sources, if it is one."""
    file = FileWriter(work.path / name)
    try:
        with source.open("rb") as original:
            while data := original.read(CHUNK_BYTES):
                file.write(data)
                advance(len(data))
        work.add(name, file.finish(), listed)
    except OSError as error:
        raise WeightsError(f"{source}: cannot be read ({error.strerror}).") from None
    finally:
        file.close()


def _describe(plan: Plan, work: WorkFolder, report: Report) -> None:
    """Everything but weights: configs, shard indices, tokenizer, model card."""
    for name, path in plan.copies.items():
        _copy(path, name, work, lambda _count: None)
    try:
        for name, config in plan.configs.items():
            folder = work.path / FOLDERS[name]
            write_json(folder / "config.json", config)
            write_json(folder / SHARD_INDEX, weight_map(s for s in plan.shards if s.component == name))
        (work.path / "README.md").write_text(model_card(plan, report, _tool()), "utf-8")
    except OSError as error:
        raise write_error(work.path, error) from None


def _index(plan: Plan, work: WorkFolder, options: Options) -> dict[str, Any]:
    sources = [
        {"file": name, "bytes": path.stat().st_size, "sha256": work.sources[name]}
        for path, name in plan.source_names.items()
    ]
    components = {name: FOLDERS[name] for name in plan.configs}
    loras = [f"lora/{p.name}" for p in plan.loras]
    return index_content(plan.traits, components, options.quantization, sources, loras, _tool())
