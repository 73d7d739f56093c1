"""The converter on tiny checkpoints in the official layout: values, strictness, resuming, refusals."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_ltx2.demo.tiny import random_values, tiny_config, write_tiny_checkpoint
from mlx_ltx2.errors import LTX2Error, RequestError, ResourceError, WeightsError
from mlx_ltx2.models.registry import COMPONENTS
from mlx_ltx2.weights.header import header_bytes, read_header
from mlx_ltx2.weights.index import ModelFolder
from mlx_ltx2.weights.layout import to_mlx_layout
from mlx_ltx2.weights.load import load_component
from mlx_ltx2_convert import convert, stream
from mlx_ltx2_convert.tensors import E4M3, cast, from_float32, to_float32


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Tiny sources by (generation, variant, dtype), each written once."""
    made = {}

    def get(generation="2.3", variant="distilled", dtype="BF16"):
        key = (generation, variant, dtype)
        if key not in made:
            folder = tmp_path_factory.mktemp("source")
            made[key] = write_tiny_checkpoint(folder, generation=generation, variant=variant, dtype=dtype)
        return made[key]

    return get


@pytest.fixture
def source(tiny, tmp_path):
    """A checkpoint of its own, to be damaged."""
    return shutil.copytree(tiny().folder, tmp_path / "source")


def checkpoint_in(folder):
    return next(p for p in folder.glob("*.safetensors") if "22b-distilled-1.1" in p.name)


def values(module):
    return {n: np.array(a.astype(mx.float32)) for n, a in tree_flatten(module.parameters())}


# --- numbers


def test_e4m3_agrees_with_mlx():
    codes = np.arange(256, dtype=np.uint8)
    theirs = np.array(mx.from_fp8(mx.array(codes), mx.float32))
    numbers = ~np.isnan(E4M3)
    assert numbers.sum() == 254 and np.array_equal(E4M3[numbers], theirs[numbers])


def test_bf16_rounds_as_mlx_does():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(4096).astype(np.float32) * np.exp(rng.uniform(-80, 80, 4096)).astype(np.float32)
    x = np.concatenate([x, np.array([0, -0.0, np.inf, -np.inf, 1.00390625, 1.01171875, 3.4e38], np.float32)])
    theirs = np.array(mx.array(x).astype(mx.bfloat16).view(mx.uint16))
    assert np.array_equal(from_float32(x, "BF16"), theirs)
    assert np.isnan(to_float32(from_float32(np.array([np.nan], np.float32), "BF16"), "BF16")).all()
    assert np.array_equal(cast(theirs, "BF16", "BF16"), theirs)


@pytest.mark.parametrize("generation", ["2.3", "2.0"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_tensor_arrives_with_its_value(tiny, tmp_path, generation, dtype):
    given = tiny(generation, "distilled", dtype)
    convert(given.folder, tmp_path / "out", dtype=None, text_encoder=False)
    config, model = tiny_config(generation, "distilled"), ModelFolder.open(tmp_path / "out")
    tensors = read_header(given.checkpoint).tensors
    tolerance = {"BF16": 2**-8, "F16": 2**-10, "F32": 0}[dtype]
    for component in COMPONENTS.values():
        if component.section is None:
            continue
        prefixes = sorted(((ours, p) for p, ours in component.sources.items()), key=lambda x: -len(x[0]))
        for name, got in values(load_component(model, component.name)).items():
            start, prefix = next((o, p) for o, p in prefixes if name.startswith(o))
            official = prefix + name.removeprefix(start)
            want = to_mlx_layout(name, random_values(official, tensors[official].shape, 0))
            assert got.shape == want.shape and np.allclose(got, want, rtol=tolerance, atol=1e-7), official
        assert config[component.section].items() <= model.config(component.name).items()


def test_float32_becomes_bf16_but_the_vocoder_and_the_statistics_stay(tiny, tmp_path):
    convert(tiny("2.0", "distilled", "F32").folder, tmp_path / "out")
    model = ModelFolder.open(tmp_path / "out")
    for name in model.components.keys() & COMPONENTS.keys():
        for key, array in tree_flatten(load_component(model, name).parameters()):
            stays = name == "vocoder" or key.startswith("per_channel_statistics") or array.ndim == 0
            assert array.dtype == (mx.float32 if stays else mx.bfloat16), (name, key)


def test_fp8_weights_are_multiplied_by_their_scales(tiny, tmp_path):
    given = tiny("2.3", "dev", "F8_E4M3")
    report = convert(given.checkpoint, tmp_path / "out", text_encoder=False)
    assert set(report.ignored.values()) >= {"scale of fp8 activations; only weights are read"}
    name = "transformer_blocks.1.audio_ff.net.2.weight"
    got = values(load_component(tmp_path / "out", "transformer"))[name]
    want = random_values(f"model.diffusion_model.{name}", got.shape, 0)
    assert np.abs(got - want).max() < 2**-4 * np.abs(want).max()
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    "options",
    [
        {"q_bits": 8, "q_group_size": 32},
        {"q_bits": 4, "q_group_size": 32},
        {"q_mode": "mxfp4"},
        {"q_mode": "mxfp8"},
        {"q_mode": "nvfp4"},
    ],
)
def test_quantized_layers_dequantize_to_what_mlx_makes(tiny, tmp_path, options, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1024)  # many chunks per tensor
    given = tiny()
    report = convert(given.folder, tmp_path / "out", **options)
    assert not report.left and report.components["transformer"].quantized == 2 * (6 * 4 + 4)
    assert report.components["text_encoder"].quantized == 7 * 7
    model = ModelFolder.open(tmp_path / "out")
    q = model.quantization
    module = load_component(model, "transformer")
    layer = module.transformer_blocks[1].attn1.to_q
    name = "model.diffusion_model.transformer_blocks.1.attn1.to_q.weight"
    original = mx.array(random_values(name, (64, 64), 0)).astype(mx.bfloat16)
    expected = mx.quantize(original, group_size=q.group_size, bits=q.bits, mode=q.mode)
    assert mx.array_equal(layer.weight, expected[0]) and mx.array_equal(layer.scales, expected[1])
    assert not hasattr(module.proj_out, "scales")
    assert not hasattr(module.transformer_blocks[0].attn1.to_gate_logits, "scales")
    load_component(model, "text_encoder")
    load_component(model, "transformer", audio=False)


def test_layers_too_narrow_for_the_group_stay_and_are_reported(tiny, tmp_path):
    # groups of 64, and the audio stream is 32 wide
    report = convert(tiny().folder, tmp_path / "out", quantize=True, text_encoder=False)
    assert any(name.startswith("transformer.transformer_blocks.0.audio_attn1.to_q") for name in report.left)
    assert "too narrow" in "\n".join(report.lines())
    transformer = load_component(tmp_path / "out", "transformer")
    assert hasattr(transformer.transformer_blocks[0].attn1.to_q, "scales")
    assert not hasattr(transformer.transformer_blocks[0].audio_attn1.to_q, "scales")


# --- what comes along, what is written


def test_upsamplers_lora_and_text_encoder_come_along(tiny, tmp_path):
    dev = convert(tiny("2.3", "dev").checkpoint, tmp_path / "dev")
    upsamplers = {"spatial_upsampler", "spatial_upsampler_x1.5", "temporal_upsampler"}
    assert {*upsamplers, "text_encoder"} <= set(dev.components)
    model = ModelFolder.open(tmp_path / "dev")
    assert [p.name for p in model.loras] == ["ltx-2.3-22b-distilled-lora-4.safetensors"]
    assert model.loras[0].read_bytes() == tiny("2.3", "dev").lora.read_bytes()
    assert (tmp_path / "dev" / "text_encoder" / "tokenizer.json").is_file()
    assert not ModelFolder.open(convert(tiny().folder, tmp_path / "distilled").output).loras


def test_the_folder_describes_itself(tiny, tmp_path):
    given = tiny()
    report = convert(given.folder, tmp_path / "out", verify=True)
    assert report.verified
    sha = hashlib.sha256(given.checkpoint.read_bytes()).hexdigest()
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["format"] == 1 and index["generation"] == "2.3" and index["variant"] == "distilled"
    size = given.checkpoint.stat().st_size
    assert {"file": given.checkpoint.name, "bytes": size, "sha256": sha} in index["sources"]
    assert report.sha256 == sha
    card = (tmp_path / "out" / "README.md").read_text()
    assert sha in card and "| transformer |" in card and "license" in card
    unread = ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means")
    assert set(report.ignored) == {f"vae.per_channel_statistics.{n}" for n in unread}
    assert not (tmp_path / "out.partial").exists()
    assert not list((tmp_path / "out").rglob("*.new"))


def test_shards_are_cut_and_indexed(tiny, tmp_path):
    convert(tiny().folder, tmp_path / "out", shard_bytes=200_000, components=["transformer"])
    shards = sorted((tmp_path / "out" / "transformer").glob("*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    whole = convert(tiny().folder, tmp_path / "whole", components=["transformer"])
    assert whole.components.keys() == {"transformer"}
    one, many = (
        values(load_component(tmp_path / "whole", "transformer")),
        values(load_component(tmp_path / "out", "transformer")),
    )
    assert one.keys() == many.keys() and all(np.array_equal(one[k], many[k]) for k in one)


def test_progress_ends_at_the_total(tiny, tmp_path):
    seen = []
    convert(tiny("2.3", "dev").folder, tmp_path / "out", progress=lambda *a: seen.append(a))
    done, total, _ = seen[-1]
    assert done == total and [s[0] for s in seen] == sorted(s[0] for s in seen)


# --- strictness


def resaved(path, change):
    """Write the file again with changed (dtype, shape, bytes) entries and metadata."""
    header = read_header(path)
    data = path.read_bytes()
    entries = {n: (i.dtype, i.shape, data[i.begin : i.end]) for n, i in header.tensors.items()}
    metadata = dict(header.metadata)
    change(entries, metadata)
    head = header_bytes(((n, d, s) for n, (d, s, _) in entries.items()), metadata)
    path.write_bytes(head + b"".join(raw for _, _, raw in entries.values()))


def test_missing_foreign_and_misshapen_tensors_are_all_named(source, tmp_path):
    def change(entries, metadata):
        del entries["vae.encoder.conv_in.conv.bias"]
        entries["model.diffusion_model.duration_head.weight"] = ("F32", (1,), bytes(4))
        dtype, shape, raw = entries["model.diffusion_model.patchify_proj.weight"]
        entries["model.diffusion_model.patchify_proj.weight"] = (dtype, shape[::-1], raw)

    resaved(checkpoint_in(source), change)
    with pytest.raises(WeightsError) as error:
        convert(source, tmp_path / "out")
    text = str(error.value)
    assert "missing: conv_in.conv.bias" in text and "duration_head" in text
    assert "patchify_proj.weight is (128, 64), needs (64, 128)" in text
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def drop_config(entries, metadata):
    metadata.pop("config")


def newer(entries, metadata):
    metadata["model_version"] = "2.5.0"


def no_json(entries, metadata):
    metadata["config"] = "{"


def other_class(entries, metadata):
    config = json.loads(metadata["config"])
    config["vae"]["_class_name"] = "DiffusionVideoAutoencoder"
    metadata["config"] = json.dumps(config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_config, "no config JSON"),
        (no_json, "cannot be read"),
        (newer, "2.5.0|2.5 is not supported"),
        (other_class, "not supported"),
    ],
)
def test_a_config_that_is_missing_or_unknown_is_refused(source, tmp_path, change, says):
    resaved(checkpoint_in(source), change)
    with pytest.raises(WeightsError, match=says):
        convert(source, tmp_path / "out")


def test_a_truncated_source_is_refused(source, tmp_path):
    path = checkpoint_in(source)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="truncated"):
        convert(source, tmp_path / "out")


def test_an_upsampler_is_told_by_its_config(source, tmp_path):
    path = next(source.glob("*x1.5*"))
    resaved(path, drop_config)
    with pytest.raises(WeightsError, match=r"x1\.5.*no config JSON"):
        convert(source, tmp_path / "out")


def test_a_text_encoder_of_another_width_is_refused(tiny, tmp_path):
    from mlx_ltx2.demo.tiny_gemma import write_tiny_gemma

    other = write_tiny_gemma(tmp_path / "gemma", width=32)
    with pytest.raises(WeightsError, match="hidden_size is 32"):
        convert(tiny().folder, tmp_path / "out", text_encoder=other)
    with pytest.raises(WeightsError, match="no such folder"):
        convert(tiny().folder, tmp_path / "out", text_encoder=tmp_path / "nowhere")


# --- what is asked for


def test_wrong_sources_are_refused(tiny, tmp_path):
    with pytest.raises(WeightsError, match="no such file or folder"):
        convert(tmp_path / "none.safetensors", tmp_path / "out")
    with pytest.raises(WeightsError, match="no monolithic"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(WeightsError, match="no monolithic"):
        convert(tiny().upsamplers[0], tmp_path / "out")
    with pytest.raises(RequestError, match="no checkpoint of variant 'dev'"):
        convert(tiny().folder, tmp_path / "out", variant="dev")
    with pytest.raises(RequestError, match="variant 'fast'"):
        convert(tiny().folder, tmp_path / "out", variant="fast")
    with pytest.raises(RequestError, match="dtype 'int8'"):
        convert(tiny().folder, tmp_path / "out", dtype="int8")


@pytest.fixture
def fake_hub(tiny, tmp_path, monkeypatch):
    """A hub with the tiny files as an official repo and a gated Gemma repo; returns the names of fetched files."""
    import huggingface_hub
    from huggingface_hub import errors

    fetched: list[str] = []
    repos = {"Lightricks/LTX-2.3": tiny("2.3", "dev").folder, "google/gemma": tiny().text_encoder}

    class Api:
        def model_info(self, repo, revision=None, files_metadata=False):
            files = [p for p in repos.get(repo, tiny().text_encoder).iterdir() if p.is_file()]
            named = [SimpleNamespace(rfilename=p.name, size=p.stat().st_size) for p in files]
            return SimpleNamespace(siblings=named)

    def download(repo, name, revision=None):
        if repo not in repos:
            raise errors.GatedRepoError("gated", response=SimpleNamespace(headers={}, request=None))
        fetched.append(name)
        target = tmp_path / "cache" / repo.replace("/", "--") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repos[repo] / name, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    return fetched


def test_a_repo_is_converted_with_only_the_files_it_needs(fake_hub, tmp_path):
    said: list[str] = []
    source = "Lightricks/LTX-2.3"
    report = convert(source, tmp_path / "out", variant="dev", text_encoder="google/gemma", say=said.append)
    assert "ltx-2.3-22b-dev.safetensors" in fake_hub and "tokenizer.json" in fake_hub
    assert report.loras and {"text_encoder", "temporal_upsampler"} <= set(report.components)
    assert any("files to download" in line for line in said)


def test_a_gated_text_encoder_is_explained_before_the_checkpoint_is_fetched(fake_hub, tmp_path):
    with pytest.raises(WeightsError, match=r"accept a licence first.*google/gemma-3-12b"):
        convert("Lightricks/LTX-2.3", tmp_path / "out", variant="dev")
    assert not fake_hub


def test_of_several_checkpoints_one_must_be_chosen(tiny, tmp_path):
    folder = shutil.copytree(tiny().folder, tmp_path / "both")
    shutil.copy(tiny("2.3", "dev").checkpoint, folder)
    with pytest.raises(RequestError, match="several checkpoints"):
        convert(folder, tmp_path / "out")
    assert convert(folder, tmp_path / "out", variant="dev", components=["vocoder"]).variant == "dev"


def test_an_output_in_use_is_kept(tiny, tmp_path):
    out = tmp_path / "out"
    first = convert(tiny().folder, out, text_encoder=False)
    stamp = (out / "model_index.json").stat().st_mtime_ns
    again = convert(tiny().folder, out, text_encoder=False, verify=True)
    assert not first.up_to_date and again.up_to_date and "up to date" in again.lines()[0]
    assert (out / "model_index.json").stat().st_mtime_ns == stamp
    with pytest.raises(RequestError, match="another source or with other options"):
        convert(tiny().folder, out, text_encoder=False, quantize=True)
    with pytest.raises(RequestError, match="another source"):
        convert(tiny("2.0").folder, out, text_encoder=False)
    assert ModelFolder.open(out).traits.generation == "2.3"
    convert(tiny("2.0").folder, out, text_encoder=False, overwrite=True)
    assert ModelFolder.open(out).traits.generation == "2.0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    with pytest.raises(RequestError, match="converted model already"):
        convert(out, tmp_path / "more")


def test_foreign_folders_and_files_are_never_touched(tiny, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RequestError, match="not empty"):
            convert(tiny().folder, tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(RequestError, match="is a file"):
        convert(tiny().folder, tmp_path / "mine" / "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    convert(tiny().folder, tmp_path / "empty", components=["vocoder", "transformer"])
    assert ModelFolder.open(tmp_path / "empty").has("vocoder")


def test_an_unwritable_output_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        convert(tiny().folder, tmp_path / "file" / "out")


def test_the_disk_is_checked_before_the_first_byte(tiny, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match="free"):
        convert(tiny().folder, tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_disk_that_fills_up_is_said_and_resumed(tiny, tmp_path, monkeypatch):
    import errno

    from mlx_ltx2_convert import shards

    original = shards.FileWriter.write
    written = 0

    def write(self, data):
        nonlocal written
        written += len(memoryview(data).cast("B")) if not isinstance(data, np.ndarray) else data.nbytes
        if written > 2_000_000:
            raise shards.write_error(self.path, OSError(errno.ENOSPC, "full"))
        original(self, data)

    monkeypatch.setattr(shards.FileWriter, "write", write)
    with pytest.raises(ResourceError, match=r"disk is full.*kept"):
        convert(tiny().folder, tmp_path / "out")
    monkeypatch.undo()
    assert convert(tiny().folder, tmp_path / "out", verify=True).verified


# --- interruptions


class Interrupted(BaseException):
    """Stands for Ctrl-C, or for the process being killed between two bytes."""


def test_an_interrupted_conversion_leaves_no_model_and_goes_on(tiny, tmp_path):
    """Interrupted ever later, at last it is complete, and what it had finished is never written again."""
    given, out = tiny(), tmp_path / "out"
    whole = convert(given.folder, tmp_path / "whole", q_bits=8, q_group_size=32, shard_bytes=300_000)
    total = whole.bytes_read
    reused = []
    for share in (0.05, 0.4, 0.7, 0.95):

        def stop(done, _total, _name, limit=share * total):
            if done > limit:
                raise Interrupted

        with pytest.raises(Interrupted):
            convert(given.folder, out, q_bits=8, q_group_size=32, shard_bytes=300_000, progress=stop)
        assert not out.exists()
        with pytest.raises(WeightsError, match="interrupted"):
            ModelFolder.open(out)
        manifest = json.loads((tmp_path / "out.partial" / "manifest.json").read_text())
        reused.append(len(manifest["files"]))
    partial = tmp_path / "out.partial"
    stamps = {p.relative_to(partial): p.stat().st_mtime_ns for p in partial.rglob("*.safetensors")}
    report = convert(given.folder, out, q_bits=8, q_group_size=32, shard_bytes=300_000, verify=True)
    assert reused == sorted(reused) and report.reused == reused[-1] > reused[0]
    kept = [p for p, stamp in stamps.items() if (out / p).stat().st_mtime_ns == stamp]
    assert len(kept) >= report.reused
    assert same_files(out, tmp_path / "whole")


def same_files(a, b):
    files = {p.relative_to(a) for p in a.rglob("*") if p.is_file() and p.name != "README.md"}
    assert files == {p.relative_to(b) for p in b.rglob("*") if p.is_file() and p.name != "README.md"}
    return all((a / f).read_bytes() == (b / f).read_bytes() for f in files if f.name != "manifest.json")


def test_an_unfinished_conversion_of_other_options_is_not_continued(tiny, tmp_path):
    def stop(done, *_):
        raise Interrupted

    with pytest.raises(Interrupted):
        convert(tiny().folder, tmp_path / "out", progress=stop)
    with pytest.raises(RequestError, match="unfinished conversion of another source"):
        convert(tiny().folder, tmp_path / "out", quantize=True)
    assert convert(tiny().folder, tmp_path / "out", quantize=True, overwrite=True).reused == 0


def test_two_conversions_into_one_folder_do_not_meet(tiny, tmp_path):
    """The second is refused at once, the first ends as if alone, and whoever comes later may go on."""
    given, out, refused = tiny(), tmp_path / "out", []

    def second(*_):
        if not refused:
            with pytest.raises(RequestError, match="another process is converting") as error:
                convert(given.folder, out, overwrite=True)
            refused.append(error)

    convert(given.folder, out, progress=second)
    convert(given.folder, tmp_path / "whole")
    assert refused and same_files(out, tmp_path / "whole")
    assert convert(given.folder, out).up_to_date


def test_a_disk_without_locks_is_no_obstacle(tiny, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert not convert(tiny().folder, tmp_path / "out").up_to_date


def test_a_changed_source_is_not_taken_for_the_same(source, tmp_path):
    convert(source, tmp_path / "out", text_encoder=False)
    path = checkpoint_in(source)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half:] = bytes(b ^ 1 for b in data[half:])
    path.write_bytes(data)
    with pytest.raises(RequestError, match="another source"):
        convert(source, tmp_path / "out", text_encoder=False)


def test_no_conversion_ends_in_another_exception(source, tmp_path):
    """Any byte of the header flipped: either it converts or it says why."""
    path = checkpoint_in(source)
    original = path.read_bytes()
    header = read_header(path)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, header.data_begin, 40):
        data = bytearray(original)
        data[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        try:
            convert(source, tmp_path / "out", text_encoder=False, components=["vocoder"], overwrite=True)
        except LTX2Error:
            continue
