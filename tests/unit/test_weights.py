"""Headers, model folders, strict loading, quantization, verification and the hub, without network."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace
from typing import ClassVar

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_ltx2.demo.tiny import write_tiny_checkpoint
from mlx_ltx2.errors import RequestError, ResourceError, WeightsError
from mlx_ltx2.models.registry import COMPONENTS
from mlx_ltx2.weights import hub
from mlx_ltx2.weights.header import header_bytes, read_header
from mlx_ltx2.weights.index import ModelFolder
from mlx_ltx2.weights.load import load_component, load_statistics
from mlx_ltx2.weights.quantize import Quantization, is_quantizable
from mlx_ltx2.weights.verify import verify
from mlx_ltx2_convert import convert


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A converted tiny model; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("weights")
    source = write_tiny_checkpoint(folder / "source")
    return convert(source.folder, folder / "model").output


@pytest.fixture
def copy(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "model")


# --- headers


def written(path, entries, data=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_a_header_tells_names_places_and_metadata(tmp_path):
    path = written(
        tmp_path / "a.safetensors",
        {"b": entry(8, 12, (2,), "BF16"), "a": entry(0, 8), "__metadata__": {"config": "{}"}},
        bytes(12),
    )
    header = read_header(path)
    assert list(header.tensors) == ["a", "b"]
    assert header.tensors["b"].begin == header.data_begin + 8
    assert header.metadata == {"config": "{}"}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2", "U8", "I64", "BOOL"])
def test_every_dtype_is_known(tmp_path, dtype):
    from mlx_ltx2.weights.header import ITEM_BYTES

    size = 3 * ITEM_BYTES[dtype]
    path = written(tmp_path / "a.safetensors", {"a": entry(0, size, (3,), dtype)}, bytes(size))
    assert read_header(path).tensors["a"].nbytes == size


def test_header_bytes_are_read_back(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(header_bytes([("x", "F32", (2, 3)), ("y", "U8", ())], {"k": "v"}) + bytes(25))
    header = read_header(path)
    assert header.tensors["x"].shape == (2, 3) and header.tensors["y"].nbytes == 1
    assert header.data_begin % 8 == 0


@pytest.mark.parametrize(
    ("entries", "data", "length", "says"),
    [
        (b"", b"", 0, "absurd"),
        (b"{}", b"", 2**40, "absurd"),
        (b"{}", b"", 1000, "truncated"),
        (b"{nonsense", b"", None, "no JSON"),
        (b"\xff\xfe", b"", None, "no JSON"),
        (b"[" * 200_000, b"", None, "no JSON|deep"),
        (b"[1]", b"", None, "no JSON object"),
        ({"a": entry(0, 8)}, bytes(4), None, "claims .* truncated"),
        ({"a": entry(0, 8)}, bytes(12), None, "4 bytes more"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), None, "overlaps"),
        ({"a": entry(0, 8), "b": entry(16, 24)}, bytes(24), None, "gap"),
        ({"a": entry(4, 12)}, bytes(12), None, "gap"),
        ({"a": entry(0, 8, (3,))}, bytes(8), None, "cannot fill"),
        ({"a": entry(0, 8, (-2,))}, bytes(8), None, "malformed"),
        ({"a": entry(8, 0)}, bytes(8), None, "cannot fill"),
        ({"a": entry(0, 8, (2,), "F7")}, bytes(8), None, "dtype 'F7'"),
        ({"a": [1, 2]}, bytes(8), None, "malformed"),
        ({"a": entry(0, 8), "__metadata__": {"n": 1}}, bytes(8), None, "metadata"),
        (b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},' * 2 + b'"c":0}', bytes(4), None, "no JSON"),
        (
            b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}',
            bytes(4),
            None,
            "twice",
        ),
    ],
)
def test_a_damaged_header_is_refused_by_name(tmp_path, entries, data, length, says):
    path = written(tmp_path / "broken.safetensors", entries, data, length)
    with pytest.raises(WeightsError, match=says) as error:
        read_header(path)
    assert "broken.safetensors" in str(error.value)


def test_any_truncation_of_a_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    whole = header_bytes([("x", "F32", (2, 3))], {}) + bytes(24)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError):
            read_header(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_header(tmp_path)


# --- model folders


def test_a_model_folder_tells_what_it_is(converted):
    model = ModelFolder.open(converted)
    assert model.traits.generation == "2.3" and model.traits.variant == "distilled"
    assert set(model.components) == {*COMPONENTS, "text_encoder"}
    assert model.quantization is None
    assert model.sources[0]["file"].startswith("ltx-2.3-22b-distilled")
    assert len(model.sources[0]["sha256"]) == 64
    assert model.traits.config["transformer"]["num_layers"] == 2
    assert set(model.traits.config) == {"transformer", "vae", "audio_vae", "vocoder"}


def test_folders_that_are_no_model_are_refused(tmp_path, converted):
    with pytest.raises(WeightsError, match="no such folder"):
        ModelFolder.open(tmp_path / "none")
    with pytest.raises(WeightsError, match=r"no converted model.*model_index\.json"):
        ModelFolder.open(tmp_path)
    with pytest.raises(WeightsError, match="is a file"):
        ModelFolder.open(converted / "model_index.json")
    (tmp_path / "half.partial").mkdir()
    with pytest.raises(WeightsError, match="interrupted"):
        ModelFolder.open(tmp_path / "half")
    with pytest.raises(WeightsError, match="interrupted"):
        ModelFolder.open(tmp_path / "half.partial")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda index: index.update(format=2), "format 2"),
        (lambda index: index.pop("components"), "components"),
        (lambda index: index.pop("version"), "version"),
        (lambda index: index["components"].update(vocoder="../x"), "inside the model"),
        (lambda index: index["components"].update(vocoder="nowhere"), "incomplete"),
        (lambda index: index["components"].pop("transformer"), "transformer"),
        (lambda index: index.update(quantization={"bits": 17}), "quantization"),
    ],
)
def test_a_wrong_index_is_refused(copy, change, says):
    index = json.loads((copy / "model_index.json").read_text())
    change(index)
    if "transformer" not in index.get("components", {}):
        index.get("components", {}).pop("text_projections", None)
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=says):
        ModelFolder.open(copy)


def test_a_missing_component_is_named_with_advice(copy):
    index = json.loads((copy / "model_index.json").read_text())
    del index["components"]["spatial_upsampler"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="no spatial_upsampler; two-stage"):
        load_component(copy, "spatial_upsampler")
    with pytest.raises(WeightsError, match="no component 'unet'"):
        load_component(copy, "unet")


# --- loading


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_loads_lazily_and_keeps_its_dtype(converted, name):
    module = load_component(converted, name)
    dtypes = {a.dtype for _, a in tree_flatten(module.parameters())}
    assert dtypes == {mx.bfloat16}
    assert not module.training
    cast = {a.dtype for _, a in tree_flatten(load_component(converted, name, dtype=mx.float32).parameters())}
    assert cast == ({mx.bfloat16} if name == "vocoder" else {mx.float32})


def test_one_stream_is_built_without_the_other(converted, monkeypatch):
    read = []
    original = mx.load

    def load(path):
        arrays = original(path)
        return type("Spy", (), {"items": lambda self: ((read.append(k), (k, v))[1] for k, v in arrays.items())})()

    monkeypatch.setattr(mx, "load", load)
    both = parameter_names(load_component(converted, "transformer"))
    video = parameter_names(load_component(converted, "transformer", audio=False))
    audio = parameter_names(load_component(converted, "transformer", video=False))
    assert video < both and audio < both and not video & audio
    assert not any("audio" in name for name in video)


def parameter_names(module):
    return {name for name, _ in tree_flatten(module.parameters())}


def test_statistics_load_by_themselves(converted):
    alone = load_statistics(converted)
    encoder = load_component(converted, "video_encoder").per_channel_statistics
    for (_, a), (_, b) in zip(tree_flatten(alone.parameters()), tree_flatten(encoder.parameters()), strict=True):
        assert mx.array_equal(a, b)


def rewritten(folder, change):
    """Rewrite a component's single shard with changed tensors, index included."""
    path = folder / "model.safetensors"
    tensors = mx.load(str(path))
    change(tensors)
    mx.eval(tensors)
    mx.save_safetensors(str(path), tensors)
    index = {"weight_map": dict.fromkeys(tensors, path.name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(copy):
    def change(tensors):
        del tensors["proj_out.bias"]
        tensors["foreign.weight"] = mx.zeros((2,))
        tensors["patchify_proj.bias"] = mx.zeros((3,))
        for i in range(30):
            tensors[f"more.{i}"] = mx.zeros((1,))

    rewritten(copy / "transformer", change)
    with pytest.raises(WeightsError) as error:
        load_component(copy, "transformer")
    text = str(error.value)
    assert "1 missing: proj_out.bias" in text
    assert "31 unexpected: foreign.weight" in text and "and 19 more" in text
    assert "patchify_proj.bias is (3,), needs (64,)" in text


def test_a_video_only_build_still_refuses_what_no_build_knows(copy):
    rewritten(copy / "transformer", lambda tensors: tensors.update({"foreign.weight": mx.zeros((2,))}))
    with pytest.raises(WeightsError, match=r"1 unexpected: foreign\.weight"):
        load_component(copy, "transformer", audio=False)


def test_truncated_shards_and_wrong_indices_are_refused(copy):
    shard = copy / "vocoder" / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="truncated"):
        load_component(copy, "vocoder")
    index = copy / "transformer" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["invented"] = "model.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="invented"):
        load_component(copy, "transformer")
    index.write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    with pytest.raises(WeightsError, match="no file name"):
        load_component(copy, "transformer")
    index.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        load_component(copy, "transformer")


def test_a_bit_flip_is_found_by_verify(copy):
    assert verify(copy) > 0
    shard = copy / "vae" / "decoder" / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 4
    shard.write_bytes(data)
    (copy / "vocoder" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"vae/decoder/model\.safetensors has changed") as error:
        verify(copy)
    assert "vocoder/model.safetensors is missing" in str(error.value)


# --- quantization


def test_only_linear_layers_of_blocks_are_quantized():
    for path in (
        "transformer_blocks.3.attn1.to_q",
        "transformer_blocks.3.audio_to_video_attn.to_out.0",
        "transformer_blocks.47.audio_ff.net.0.proj",
        "transformer_blocks.47.ff.net.2",
        "video_embeddings_connector.transformer_1d_blocks.1.attn1.to_v",
        "language_model.model.layers.5.mlp.down_proj",
        "model.layers.5.self_attn.o_proj",
    ):
        assert is_quantizable(path), path
    for path in (
        "transformer_blocks.3.attn1.to_gate_logits",
        "transformer_blocks.3.attn1.q_norm",
        "adaln_single.linear",
        "adaln_single.emb.timestep_embedder.linear_1",
        "caption_projection.linear_1",
        "patchify_proj",
        "proj_out",
        "text_embedding_projection.video_aggregate_embed",
        "language_model.model.embed_tokens",
        "lm_head",
        "vision_tower.vision_model.encoder.layers.1.mlp.up_proj",
        "up_blocks.0.res_blocks.0.conv1.conv",
    ):
        assert not is_quantizable(path), path


@pytest.mark.parametrize(
    ("mode", "bits", "group", "says"),
    [
        ("affine", 7, None, "7 bits"),
        ("affine", None, 48, "group size 48"),
        ("mxfp4", 8, None, "always has 4 bits"),
        ("int4", None, None, "'int4' is not known"),
    ],
)
def test_impossible_quantizations_are_refused(mode, bits, group, says):
    with pytest.raises(RequestError, match=says):
        Quantization.from_options(mode, bits, group)


# --- the hub


class FakeApi:
    """Stands for HfApi: one repo, or the error it answers with."""

    files: ClassVar[dict[str, int]] = {}
    error: Exception | None = None

    def model_info(self, repo, revision=None, files_metadata=False):
        if self.error:
            raise self.error
        sibling = type("Sibling", (), {})
        found = []
        for name, size in self.files.items():
            found.append(sibling())
            found[-1].rfilename, found[-1].size = name, size
        return type("Info", (), {"siblings": found})()


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(FakeApi, "files", {})
    monkeypatch.setattr(FakeApi, "error", None)
    fetched = []

    def download(repo, name, revision=None):
        fetched.append(name)
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    return fetched


OFFICIAL_23 = {
    "README.md": 10,
    "ltx-2.3-22b-dev.safetensors": 46_140_000_000,
    "ltx-2.3-22b-distilled.safetensors": 46_140_000_000,
    "ltx-2.3-22b-distilled-1.1.safetensors": 46_150_000_000,
    "ltx-2.3-22b-distilled-fp8.safetensors": 29_000_000_000,
    "ltx-2.3-22b-distilled-lora-384.safetensors": 7_600_000_000,
    "ltx-2.3-22b-distilled-lora-384-1.1.safetensors": 7_600_000_000,
    "ltx-2.3-spatial-upscaler-x2-1.0.safetensors": 1_000_000_000,
    "ltx-2.3-spatial-upscaler-x2-1.1.safetensors": 1_000_000_000,
    "ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors": 1_090_000_000,
    "ltx-2.3-temporal-upscaler-x2-1.0.safetensors": 262_000_000,
}


def test_only_what_is_needed_is_chosen():
    files = [hub.HubFile(n, s) for n, s in OFFICIAL_23.items()]
    upscalers = {
        "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        "ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors",
        "ltx-2.3-temporal-upscaler-x2-1.0.safetensors",
    }
    distilled = {f.name for f in hub.choose_files(files, "r", None)}
    assert distilled == {"ltx-2.3-22b-distilled-1.1.safetensors", *upscalers}
    dev = {f.name for f in hub.choose_files(files, "r", "dev")}
    assert dev == {
        "ltx-2.3-22b-dev.safetensors",
        "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
        *upscalers,
    }
    fp8 = {f.name for f in hub.choose_files(files, "r", "distilled", fp8=True)}
    assert "ltx-2.3-22b-distilled-fp8.safetensors" in fp8


def test_a_repo_without_the_model_or_the_variant_is_refused():
    with pytest.raises(WeightsError, match="no official LTX-2 checkpoint"):
        hub.choose_files([hub.HubFile("model.safetensors", 1)], "a/b", None)
    with pytest.raises(RequestError, match="no variant 'dev'"):
        hub.choose_files([hub.HubFile("ltx-2-19b-distilled.safetensors", 1)], "a/b", "dev")


def test_a_download_tells_its_cost_first(fake_hub, monkeypatch):
    FakeApi.files = dict(OFFICIAL_23)
    monkeypatch.setattr(hub, "_check_disk", lambda *a: None)
    said = []
    paths = hub.download_model("Lightricks/LTX-2.3", "distilled", say=said.append)
    assert paths[0].name == "ltx-2.3-22b-distilled-1.1.safetensors"
    assert len(fake_hub) == 4
    assert "4 files to download, 48.5 GB" in said[0]
    assert any("46.15 GB  ltx-2.3-22b-distilled-1.1" in line for line in said)


def test_a_download_that_does_not_fit_is_refused_first(fake_hub, monkeypatch):
    FakeApi.files = {"ltx-2-19b-dev.safetensors": 10**18}
    with pytest.raises(ResourceError, match="needs 1000000000"):
        hub.download_model("Lightricks/LTX-2", "dev", say=lambda line: None)
    assert not fake_hub


def hub_error(kind):
    from huggingface_hub import errors

    response = SimpleNamespace(headers={}, request=None)
    if kind in ("GatedRepoError", "RepositoryNotFoundError", "HfHubHTTPError"):
        return getattr(errors, kind)("refused", response=response)
    client = sys.modules[errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]
    return {
        "offline": errors.OfflineModeIsEnabled("offline"),
        "not here": errors.LocalEntryNotFoundError("not in the cache"),
        "connect": client.ConnectError("no route"),
        "os": ConnectionError("refused"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("GatedRepoError", r"accept a licence first.*huggingface\.co/google/gemma.*auth login"),
        ("RepositoryNotFoundError", "no such repo"),
        ("HfHubHTTPError", "cannot be reached"),
        ("offline", "cannot be reached"),
        ("not here", "cannot be reached"),
        ("connect", "cannot be reached.*kept"),
        ("os", "cannot be reached"),
    ],
)
def test_faults_of_the_hub_are_explained(fake_hub, kind, says):
    FakeApi.error = hub_error(kind)
    with pytest.raises(WeightsError, match=says):
        hub.download_text_encoder(say=lambda line: None)


@pytest.mark.parametrize(
    ("name", "kind", "revision", "fp8"),
    [
        ("ltx-2-19b-dev.safetensors", "checkpoint", (), False),
        ("ltx-2-19b-distilled-fp8.safetensors", "checkpoint", (), True),
        ("ltx-2.3-22b-distilled-1.1.safetensors", "checkpoint", (1, 1), False),
        ("ltx-2.3-22b-distilled-lora-384-1.1.safetensors", "lora", (1, 1), False),
        ("ltx-2-spatial-upscaler-x2-1.0.safetensors", "upsampler", (1, 0), False),
        ("ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors", "upsampler", (1, 0), False),
    ],
)
def test_official_names_are_understood(name, kind, revision, fp8):
    parsed = hub.FileName.parse(name)
    assert (parsed.kind, parsed.revision, parsed.fp8) == (kind, revision, fp8)
    assert hub.FileName.parse("ltx-video-2b-v0.9.safetensors") is None


def test_arrays_of_two_loads_are_equal(converted):
    first, second = (dict(tree_flatten(load_component(converted, "audio_encoder").parameters())) for _ in "ab")
    assert first.keys() == second.keys() and all(mx.array_equal(first[k], second[k]) for k in first)
