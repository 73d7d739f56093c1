"""What a name means, what a folder is, what the shelf and the hub's cache already have. No network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_ltx2 import library
from mlx_ltx2.errors import LTX2Error, RequestError, ResourceError, WeightsError
from mlx_ltx2.progress import SilentProgress
from mlx_ltx2.weights import hub
from mlx_ltx2.weights.header import read_header
from mlx_ltx2.weights.index import ModelFolder, is_model_folder
from mlx_ltx2.weights.location import Repo, locate
from mlx_ltx2.weights.lora import resolve_lora
from mlx_ltx2.weights.recognise import recognise_folder, recognise_listing
from mlx_ltx2_convert import convert
from tests.fixtures.hub_cache import fill_cache, unreachable

DIFFUSERS = json.dumps({"_class_name": "LTX2Pipeline", "_diffusers_version": "0.36.0", "vae": ["diffusers", "X"]})


class Notes(SilentProgress):
    """Keeps the remarks."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf and a hub cache of the test's own, and a current folder that is empty."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("MLX_LTX2_CACHE", str(tmp_path / "shelf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "shelf"


def offline() -> Exception:
    from huggingface_hub import errors

    return errors.OfflineModeIsEnabled("offline")


# what a name means


def test_what_exists_is_a_path_and_what_looks_like_one_is_asked_about(shelf: Path) -> None:
    Path("models").mkdir()
    Path("Lightricks/LTX-2").mkdir(parents=True)
    assert locate("Lightricks/LTX-2") == Path("Lightricks/LTX-2")
    assert locate("Lightricks/LTX-2/") == Path("Lightricks/LTX-2")
    assert locate("someone/LTX-2.3") == Repo("someone/LTX-2.3")
    assert locate("hf:models/LTX-2.3") == Repo("models/LTX-2.3")
    for text in ("models/LTX-2.3", "Lightricks/LTX-2.3", "checkpoints/x", "someone/x.safetensors", "a/b.gguf"):
        with pytest.raises(WeightsError, match=f"no such .* here.*write hf:{text}"):
            locate(text)


@pytest.mark.parametrize(
    "text",
    ["./x", "~/nothing-here", "someone/name/", "C:\\models\\LTX", "a/b/c", "/nowhere", "x.safetensors", "../up/x"],
)
def test_a_path_that_does_not_exist_is_never_fetched(shelf: Path, monkeypatch, text: str) -> None:
    asked = unreachable(monkeypatch, AssertionError("asked"))
    for opened in (library.open_model, library.open_text_encoder):
        with pytest.raises(WeightsError, match="there is no such"):
            opened(text, progress=SilentProgress())
    with pytest.raises(WeightsError, match="there is no such"):
        resolve_lora(text)
    with pytest.raises(WeightsError, match="there is no such"):
        convert(text, "out")
    assert not asked


def test_odd_names_get_a_sentence(shelf: Path) -> None:
    Path("LTX-2.3-distilled").mkdir()
    Path("gone").symlink_to("nowhere")
    for text, says in {
        "LTX-2.3-distiled": "but there is LTX-2.3-distilled",
        "gone": "is a link to nowhere",
        "hf:models": "write hf:OWNER/NAME",
        "https://example.org/someone/thing/tree/main": "write hf:someone/thing",
        "~nobody-of-this-name/x": "there is no such",
        "x" * 300: "there is no such",
    }.items():
        with pytest.raises(WeightsError, match=says):
            locate(text)


def test_the_source_is_settled_before_anything_is_fetched(shelf: Path, monkeypatch) -> None:
    asked = unreachable(monkeypatch, offline())
    for options in ({"text_encoder": None}, {"text_encoder": "google/gemma"}):
        with pytest.raises(WeightsError, match=r"write hf:models/LTX-2\.3"):
            convert("models/LTX-2.3", "out", **options)
    assert not asked
    with pytest.raises(WeightsError, match="someone/nothing"):
        convert("someone/nothing", "out")
    assert asked == ["someone/nothing"]  # and not the text encoder


def test_a_single_file_as_text_encoder_says_what_it_is(shelf: Path, tiny_sources, tmp_path: Path) -> None:
    lora = next(tiny_sources("2.3", "dev").glob("*lora*"))
    gguf = tmp_path / "gemma.gguf"
    gguf.write_bytes(b"GGUF" + bytes(60))
    for file, says in ((lora, "is a single file .*LoRA"), (gguf, "GGUF"), (tmp_path / "no", "no such folder")):
        with pytest.raises(WeightsError, match=says):
            library.open_text_encoder(file, SilentProgress())
        with pytest.raises(WeightsError, match=says):
            convert(tiny_sources(), "out", text_encoder=file)


# what a file is


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"GGUF\x03" + bytes(40), "GGUF"),
        (b"PK\x03\x04" + bytes(40), "PyTorch"),
        (b"\x80\x02}q\x00." + bytes(40), "pickle"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n  <html lang='en'>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"Invalid username or password.", "Invalid username"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(20), "video"),
        (b"\x1f\x8b" + bytes(30), "gzip"),
        (b"", "is empty"),
    ],
)
def test_files_are_told_by_their_first_bytes(shelf: Path, tmp_path: Path, run_cli, start: bytes, says: str) -> None:
    file = tmp_path / "ltx-2.3-22b-distilled.safetensors"
    file.write_bytes(start)
    with pytest.raises(WeightsError, match=says):
        read_header(file)
    for arguments in (["info", file], ["convert", "--source", file, "--output", "m"]):
        code, out, err = run_cli(*arguments)
        assert code == 3 and says in err and "official checkpoint;" not in out + err
    code, out, err = run_cli("plan", "--model", file, "-p", "x")
    assert code == 3 and says in err and "is an official checkpoint" not in out + err
    assert not shelf.exists()


def test_a_folder_named_like_a_file_is_no_weights(shelf: Path, tiny_sources, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(WeightsError, match="it is a folder"):
        read_header(tmp_path / "x.safetensors")
    source = shutil.copytree(tiny_sources(), tmp_path / "source")
    (source / "ltx-2.3-22b-dev.safetensors").mkdir()
    assert convert(source, tmp_path / "out", components=["vocoder"]).variant == "distilled"


# what a folder is


@pytest.fixture
def mixed(tiny_sources, tmp_path: Path) -> Path:
    """A copy of a repo like Lightricks/LTX-2: the official file beside diffusers' folders and their index."""
    folder = shutil.copytree(tiny_sources(), tmp_path / "LTX-2")
    (folder / "model_index.json").write_text(DIFFUSERS)
    for name in ("transformer", "vae", "scheduler"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"_class_name": "LTX2VideoTransformer3DModel"}))
        save_file({"x": np.zeros(4, np.float32)}, str(folder / name / "diffusion_pytorch_model.safetensors"))
    gemma = next(p for p in folder.iterdir() if p.name.startswith("gemma")).rename(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    for file in gemma.glob("tokenizer*"):
        file.rename(folder / "tokenizer" / file.name)
    whole = next(gemma.glob("*.safetensors"))
    shutil.copy(whole, gemma / "diffusion_pytorch_model-00001-of-00001.safetensors")
    return folder


def test_an_official_repo_with_diffusers_folders_works_from_a_local_copy(shelf: Path, mixed: Path, run_cli) -> None:
    assert not is_model_folder(mixed) and recognise_folder(mixed).kind == "official"
    code, out, err = run_cli("info", mixed)
    assert code == 0 and "official" in out and not shelf.exists(), err
    code, out, err = run_cli("plan", "--model", f"{mixed}/", "-p", "x", "--quiet")
    assert code == 0 and "reads" in out, err
    model = library.open_model(mixed, progress=SilentProgress())
    assert model.has("text_encoder") and (model.folder("text_encoder") / "tokenizer.json").is_file()
    assert len(list(shelf.glob("LTX-2-*"))) == 1
    code, _, err = run_cli("convert", "--source", mixed, "--output", mixed.parent / "out", "--quiet")
    assert code == 0, err


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        else:
            save_file(content, f"{path}.safetensors")
    return folder


def test_folders_that_are_something_else_are_named(shelf: Path, tmp_path: Path, run_cli) -> None:
    numbers = np.zeros((2, 2), np.float32)
    lora = {"diffusion_model.x.lora_A.weight": numbers, "diffusion_model.x.lora_B.weight": numbers}
    for number, (files, says) in enumerate(
        [
            ({"model_index_json": DIFFUSERS}, "diffusers"),
            ({"transformer__config_json": '{"_class_name": "LTX2VideoTransformer3DModel"}'}, "diffusers"),
            ({"README.md": "soon"}, "holds no weights"),
            ({"style": lora}, "--lora"),
            ({"diffusion_models__ltx": {"x": numbers}}, "ComfyUI"),
            ({"transformer": {"transformer.transformer_blocks.0.x": numbers}, "split_model_json": "{}"}, "MLX tool"),
            ({"config_json": '{"model_type": "gemma3"}', "model": {"x": numbers}}, "--text-encoder"),
            ({"model_index_json": "{"}, "is no JSON"),
            ({"ltx.gguf": "GGUF"}, "GGUF"),
            ({"pytorch_model.bin": "PK"}, "pickled"),
        ]
    ):
        folder = write(tmp_path / f"f{number}", **files)
        code, out, err = run_cli("plan", "--model", folder, "-p", "x")
        assert code == 3 and says in err and str(folder) in err, (files, out, err)


def test_a_damaged_index_beside_the_official_file_is_no_obstacle(shelf: Path, mixed: Path) -> None:
    for content in ("{", "[]", "{}"):
        (mixed / "model_index.json").write_text(content)
        assert recognise_folder(mixed).kind == "official"


# the hub


GB = 10**9
LTX2 = {
    "ltx-2-19b-dev.safetensors": 43.3,
    "ltx-2-19b-dev-fp4.safetensors": 20.0,
    "ltx-2-19b-dev-fp8.safetensors": 27.1,
    "ltx-2-19b-distilled.safetensors": 43.3,
    "ltx-2-19b-distilled-fp8.safetensors": 27.1,
    "ltx-2-19b-distilled-lora-384.safetensors": 7.7,
    "ltx-2-spatial-upscaler-x2-1.0.safetensors": 1.0,
    "ltx-2-temporal-upscaler-x2-1.0.safetensors": 0.26,
    "model_index.json": 1e-6,
    "transformer/diffusion_pytorch_model-00001-of-00008.safetensors": 37.8,
    "text_encoder/model-00001-of-00011.safetensors": 49.0,
    "vae/diffusion_pytorch_model.safetensors": 2.4,
}


@pytest.fixture
def online(shelf: Path, tmp_path: Path, monkeypatch):
    """online(files, contents): a hub with one repo; returns the names that are fetched from it."""
    import huggingface_hub

    def serve(files: dict[str, float], contents: dict[str, str] | None = None) -> list[str]:
        fetched: list[str] = []
        siblings = [SimpleNamespace(rfilename=n, size=round(s * GB)) for n, s in files.items()]

        class Api:
            def model_info(self, repo, revision=None, files_metadata=False):
                return SimpleNamespace(siblings=siblings)

        def download(repo, name, revision=None):
            fetched.append(name)
            path = tmp_path / "fetched" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text((contents or {}).get(name, ""))
            return str(path)

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr(hub, "_check_disk", lambda *a: None)
        return fetched

    return serve


@pytest.mark.parametrize(("variant", "most"), [(None, 44.6), ("distilled", 44.6), ("dev", 52.3)])
def test_of_a_repo_with_everything_the_official_file_is_taken(online, variant, most) -> None:
    fetched, said = online(LTX2, {"model_index.json": DIFFUSERS}), []
    assert hub.download_converted("Lightricks/LTX-2", say=said.append) is None
    hub.download_model("Lightricks/LTX-2", variant, say=said.append)
    assert sum(LTX2[name] for name in fetched) <= most
    assert not [name for name in fetched if "/" in name or "fp" in name]
    assert "files to download" in said[0]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"README.md": 1e-6}, "holds no weights"),
        ({"a-lora.safetensors": 0.1, "README.md": 1e-6}, "--lora"),
        ({"split_files/diffusion_models/ltx.safetensors": 30}, "ComfyUI"),
        ({"transformer-distilled.safetensors": 20, "split_model.json": 1e-6}, "MLX tool"),
        ({"model_index.json": 1e-6, "transformer/diffusion_pytorch_model.safetensors": 30}, "diffusers"),
        ({"x-Q4_K_M.gguf": 12}, "GGUF"),
    ],
)
def test_repos_that_are_something_else_are_named(online, files, says) -> None:
    fetched = online(files, {"model_index.json": DIFFUSERS})
    with pytest.raises(WeightsError, match=f"someone/thing.*{says}"):
        library.open_model("someone/thing", progress=SilentProgress())
    assert fetched in ([], ["model_index.json"])
    assert says in recognise_listing(list(files)).says


def test_a_model_of_ours_in_a_subfolder_of_a_repo(online, tiny_model, tmp_path: Path, monkeypatch) -> None:
    model = tiny_model()
    repo = tmp_path / "repo"
    shutil.copytree(model, repo / "q8")
    (repo / "other.safetensors").write_bytes(b"")
    fetched = online({p.relative_to(repo).as_posix(): 0 for p in repo.rglob("*") if p.is_file()})

    def download(name_of_repo, name, revision=None):
        fetched.append(name)
        return str(repo / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = library.open_model("someone/models", progress=SilentProgress())
    assert found.path == repo / "q8" and "other.safetensors" not in fetched


# the cache of the hub, without a hub


def no_route() -> Exception:
    return ConnectionError("no route")


@pytest.mark.parametrize("error", [offline, no_route, lambda: TimeoutError("timed out"), lambda: OSError("we could")])
def test_without_a_network_what_is_cached_is_taken(
    error, shelf: Path, tiny_sources, tiny_model, tmp_path: Path, monkeypatch, run_cli
) -> None:
    cache, dev = tmp_path / "hub", tiny_sources("2.3", "dev")
    fill_cache(cache, "someone/converted", tiny_model())
    gemma = fill_cache(cache, "someone/gemma", next(p for p in tiny_sources().iterdir() if p.is_dir()))
    lora = fill_cache(cache, "someone/lora", write(tmp_path / "lora", style={"x.lora_A.weight": np.zeros((1, 1))}))
    unreachable(monkeypatch, error())
    assert library.open_model("someone/converted", progress=SilentProgress()).has("vocoder")
    assert library.open_text_encoder("someone/gemma", SilentProgress()) == gemma
    assert resolve_lora("someone/lora") == lora / "style.safetensors"
    assert resolve_lora("someone/lora::style.safetensors") == lora / "style.safetensors"
    code, out, err = run_cli("generate", "--list-lora-files", "someone/lora")
    assert code == 0 and "style.safetensors" in out, err
    fill_cache(cache, "Lightricks/LTX-2.3", dev)
    assert convert("Lightricks/LTX-2.3", tmp_path / "out", components=["vocoder"]).variant == "dev"
    with pytest.raises(WeightsError, match="cannot be reached"):
        library.open_text_encoder("someone/else", SilentProgress())


def test_a_part_of_the_cache_says_what_is_missing(
    shelf: Path, tiny_sources, tiny_model, tmp_path: Path, monkeypatch
) -> None:
    cache = tmp_path / "hub"
    gemma = next(p for p in tiny_sources().iterdir() if p.is_dir())
    fill_cache(cache, "someone/gemma", gemma, without=["tokenizer.json", "config.json"])
    fill_cache(cache, "someone/model", tiny_model(), without=["vocoder/model.safetensors", "transformer/config.json"])
    names = [p.name for p in tiny_sources().glob("*spatial*x2*")]
    fill_cache(cache, "someone/official", tiny_sources(), without=names)
    unreachable(monkeypatch, offline())
    with pytest.raises(WeightsError, match=r"missing: config\.json, tokenizer\.json"):
        library.open_text_encoder("someone/gemma", SilentProgress())
    with pytest.raises(WeightsError, match=r"transformer/config\.json.*vocoder/model\.safetensors"):
        library.open_model("someone/model", progress=SilentProgress())
    with pytest.raises(WeightsError, match=r"missing: ltx-\*-spatial-upscaler-x2"):
        convert("someone/official", tmp_path / "out", text_encoder=False)


def test_with_a_conversion_on_the_shelf_the_hub_is_not_asked(
    shelf: Path, tiny_model, tmp_path: Path, monkeypatch
) -> None:
    asked = unreachable(monkeypatch, AssertionError("asked"))
    shutil.copytree(tiny_model(), shelf / "Lightricks--LTX-2.3-distilled")  # as release 0.1 named it
    for variant in (None, "distilled"):
        model = library.open_model("Lightricks/LTX-2.3", progress=SilentProgress(), variant=variant)
        assert model.path == shelf / "Lightricks--LTX-2.3-distilled"
    library.open_model("Lightricks/LTX-2.3", progress=SilentProgress(), text_encoder=False)
    assert not asked
    shutil.copytree(tiny_model("2.3", "dev"), shelf / "someone--dev")  # the variant that was the only one
    assert library.open_model("someone/dev", progress=SilentProgress()).traits.variant == "dev"
    with pytest.raises(AssertionError, match="asked"):
        library.open_model("someone/dev", progress=SilentProgress(), variant="distilled")


def test_a_snapshot_folder_of_the_cache_is_a_source(shelf: Path, tiny_sources, tmp_path: Path) -> None:
    snapshot = fill_cache(tmp_path / "hub", "Lightricks/LTX-2.3", tiny_sources())
    assert recognise_folder(snapshot).kind == "official"
    report = convert(snapshot, tmp_path / "out", components=["vocoder", "transformer"])
    assert report.variant == "distilled" and ModelFolder.open(tmp_path / "out").has("vocoder")
    with pytest.raises(RequestError, match="hub's own cache"):
        convert(tiny_sources(), tmp_path / "hub" / "models--x--y", components=["vocoder"])
    with pytest.raises(RequestError):
        convert(tiny_sources(), tmp_path / "hub", components=["vocoder"])


# the shelf


def test_equal_names_on_the_shelf_are_told_by_content(shelf: Path, tiny_sources, tmp_path: Path) -> None:
    folders = {"a/LTX": "2.3", "b/LTX": "2.0", "c/LTX-2": "2.0", "d/LTX-2.3": "2.3"}
    for name, generation in folders.items():
        shutil.copytree(tiny_sources(generation), tmp_path / name)
    opened = {
        name: library.open_model(tmp_path / name, progress=SilentProgress(), text_encoder=False) for name in folders
    }
    assert {n: m.traits.generation for n, m in opened.items()} == folders
    assert opened["a/LTX"].path == opened["d/LTX-2.3"].path  # the same content is converted once
    assert len(list(shelf.iterdir())) == 2
    single = next((tmp_path / "a/LTX").glob("*distilled-1.1*"))
    again = library.open_model(single, progress=SilentProgress(), text_encoder=False)
    assert again.traits.generation == "2.3"


def test_a_shelf_folder_of_release_0_1_is_found(shelf: Path, tiny_sources, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_sources(), tmp_path / "LTX-2.3")
    convert(source, shelf / "LTX-2")  # Path("LTX-2.3").stem
    notes = Notes()
    assert library.open_model(source, progress=notes).path == shelf / "LTX-2"
    assert library.open_model(source, progress=notes, text_encoder=False).path == shelf / "LTX-2"
    assert not notes.lines


def test_of_dev_and_distilled_the_rule_of_hub_ids_holds(shelf: Path, tiny_sources, tmp_path: Path) -> None:
    both = shutil.copytree(tiny_sources("2.3", "dev"), tmp_path / "both")
    shutil.copy(next(tiny_sources().glob("*distilled-1.1*")), both)
    variants = [
        library.open_model(both, progress=SilentProgress(), variant=v, text_encoder=False).traits.variant
        for v in (None, "dev", "distilled")
    ]
    assert variants == ["distilled", "dev", "distilled"]
    shutil.copy(next(tiny_sources("2.0").glob("ltx-2-19b*")), both)
    with pytest.raises(RequestError, match="give one of the files") as error:
        library.open_model(both, progress=SilentProgress())
    assert "ltx-2-19b" in str(error.value)


@pytest.mark.parametrize(
    ("value", "where"),
    [("~/x", "{home}/x"), ("~", "{home}"), ("models", "{here}/models"), ("", "{home}/.cache/mlx-ltx2"), (" ", None)],
)
def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch, value: str, where: str | None) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_LTX2_CACHE", value)
    expected = (where or "{home}/.cache/mlx-ltx2").format(home=tmp_path / "home", here=tmp_path)
    assert str(library.cache_folder()) == expected
    monkeypatch.delenv("MLX_LTX2_CACHE")
    for xdg, base in {
        "~/c": tmp_path / "home/c",
        "rel": tmp_path / "home/.cache",
        "": tmp_path / "home/.cache",
    }.items():
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert library.cache_folder() == base / "mlx-ltx2"
    assert not (tmp_path / "~").exists()


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch, run_cli, tiny_sources) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "x", tmp_path / "file", Path("/proc/nothing")):
        monkeypatch.setenv("MLX_LTX2_CACHE", str(folder))
        code, _, err = run_cli("plan", "--model", "demo", "-p", "x")
        assert code == 4 and str(folder) in err and "MLX_LTX2_CACHE" in err, err
        with pytest.raises(ResourceError, match="MLX_LTX2_CACHE"):
            library.open_model(tiny_sources(), progress=SilentProgress())


def test_convert_ends_with_sentences(shelf: Path, tiny_sources, tmp_path: Path, run_cli) -> None:
    arguments = ["convert", "--source", tiny_sources(), "--output", tmp_path / "out", "--quiet", "--no-text-encoder"]
    code, out, err = run_cli(*arguments)
    assert code == 0 and "Report(" not in out and f"-> {tmp_path / 'out'}" in out, err
    code, out, _ = run_cli(*arguments)
    assert code == 0 and "is up to date" in out


def test_every_error_is_typed(shelf: Path, tmp_path: Path) -> None:
    for text in ("\0", "a\0/b", "...", "hf:", "hf:a/b/c", "::", "x::y"):
        for call in (lambda t: library.open_model(t, progress=SilentProgress()), resolve_lora):
            with pytest.raises(LTX2Error):
                call(text)
