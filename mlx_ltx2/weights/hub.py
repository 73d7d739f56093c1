"""The Hugging Face hub: which files of a repo are needed, what they cost, how they get here."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlx_ltx2.errors import RequestError, ResourceError, WeightsError
from mlx_ltx2.weights.index import INDEX, SHARD_INDEX, index_kind, is_model_folder, read_json
from mlx_ltx2.weights.recognise import recognise_listing

TEXT_ENCODER_REPO = "google/gemma-3-12b-it-qat-q4_0-unquantized"
"""The text encoder of LTX-2 and LTX-2.3. Gated: its licence must be accepted once on its page."""

_CHECKPOINT = re.compile(
    r"ltx-(?P<generation>\d+(?:\.\d+)*)-\d+b-(?P<variant>dev|distilled)(?P<tail>(?:-fp8|-\d+(?:\.\d+)+)*)"
)
_LORA = re.compile(r"ltx-(?P<generation>\d+(?:\.\d+)*)-\d+b-distilled-lora-\d+(?P<tail>(?:-\d+(?:\.\d+)+)?)")
_UPSCALER = re.compile(
    r"ltx-(?P<generation>\d+(?:\.\d+)*)-(?P<variant>(?:spatial|temporal)-up(?:scaler|sampler)-x\d+(?:\.\d+)?)(?P<tail>-\d+(?:\.\d+)+)?"
)
_KINDS = (("lora", _LORA), ("checkpoint", _CHECKPOINT), ("upsampler", _UPSCALER))

_HTTP_CLIENTS = ("httpx", "httpcore", "requests", "urllib3")
"""Modules whose exceptions huggingface_hub lets through; which one it uses depends on its version."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class FileName:
    """What an official file name says. variant: "dev", "distilled", or which upscaler. revision: (1, 1) for `-1.1`."""

    name: str
    kind: str
    generation: str | None = None
    variant: str | None = None
    revision: tuple[int, ...] = ()
    fp8: bool = False

    @classmethod
    def parse(cls, name: str) -> FileName | None:
        """None if the name is not one of the official ones."""
        stem = name.removesuffix(".safetensors")
        if stem == name:
            return None
        for kind, pattern in _KINDS:
            match = pattern.fullmatch(stem)
            if match:
                groups = match.groupdict()
                tail = groups["tail"] or ""
                number = re.search(r"\d+(?:\.\d+)+", tail.replace("fp8", ""))
                revision = tuple(map(int, number.group().split("."))) if number else ()
                return cls(name, kind, groups["generation"], groups.get("variant"), revision, "fp8" in tail)
        return None

    @classmethod
    def unknown(cls, name: str) -> FileName:
        return cls(name, "other")


@dataclass(frozen=True)
class HubFile:
    """A file of a repo; bytes as the hub states them."""

    name: str
    nbytes: int


def cache_folder() -> Path:
    """Where the hub's client keeps what it downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_snapshot(repo: str, revision: str | None = None) -> Path | None:
    """The folder of a repo's cached revision, complete or not; None if nothing is cached.

    Layout of the cache: models--OWNER--NAME/{refs,snapshots,blobs}; a snapshot holds links to blobs.
    """
    place = cache_folder() / f"models--{repo.replace('/', '--')}"
    snapshots = place / "snapshots"
    if revision is not None and (snapshots / revision).is_dir():
        return snapshots / revision
    ref = place / "refs" / (revision or "main")
    if ref.is_file():
        folder = snapshots / ref.read_text("utf-8").strip()
        return folder if folder.is_dir() else None
    there = [p for p in snapshots.glob("*") if p.is_dir()]
    return there[0] if revision is None and len(there) == 1 else None


def cached_files(repo: str, revision: str | None = None) -> list[HubFile]:
    """Files of a repo that are completely in the cache."""
    snapshot = cached_snapshot(repo, revision)
    if snapshot is None:
        return []
    files = sorted(p for p in snapshot.rglob("*") if p.is_file())
    return [HubFile(p.relative_to(snapshot).as_posix(), p.stat().st_size) for p in files]


def list_files(repo: str, revision: str | None = None) -> list[HubFile]:
    """Files of a repo with their sizes; where the hub cannot be reached, those in the cache.

    Raises: WeightsError if the repo does not exist, is gated, or the network is missing and nothing is cached.
    """
    from huggingface_hub import HfApi

    with _explained(repo):
        try:
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        except Exception as error:
            cached = cached_files(repo, revision) if _is_network_fault(error) else []
            if not cached:
                raise
            return cached
    return [HubFile(s.rfilename, s.size or 0) for s in info.siblings or ()]


def choose_files(files: Sequence[HubFile], repo: str, variant: str | None, *, fp8: bool = False) -> list[HubFile]:
    """What of an official repo is needed: one checkpoint, its upscalers, and for "dev" the distilled LoRA.

    Of several revisions the newest is taken. variant None stands for "distilled" if the repo has it.
    Raises: WeightsError if the repo has no official checkpoint, RequestError if not of this variant.
    """
    known = [(parsed, file) for file in files if (parsed := FileName.parse(file.name))]
    checkpoints = [(p, f) for p, f in known if p.kind == "checkpoint"]
    if not checkpoints:
        what = recognise_listing([f.name for f in files]).says
        raise WeightsError(
            f"{repo}: holds no official LTX-2 checkpoint; it {what}. Give Lightricks/LTX-2.3 or Lightricks/LTX-2."
        )
    there = {p.variant for p, _ in checkpoints}
    variant = variant or ("distilled" if "distilled" in there else "dev")
    fitting = [(p, f) for p, f in checkpoints if p.variant == variant]
    if not fitting:
        raise RequestError(f"{repo}: has no variant {variant!r}, only {', '.join(sorted(map(str, there)))}.")
    best = max(fitting, key=lambda item: (item[0].generation or "", item[0].fp8 == fp8, item[0].revision))
    newest: dict[tuple[str, str | None], tuple[FileName, HubFile]] = {}
    for parsed, file in known:
        wanted = parsed.kind == "upsampler" or (parsed.kind == "lora" and variant == "dev")
        if wanted and parsed.generation == best[0].generation:
            key = (parsed.kind, parsed.variant)
            if key not in newest or parsed.revision > newest[key][0].revision:
                newest[key] = (parsed, file)
    return [best[1], *(file for _, file in newest.values())]


def find_model(repo: str, variant: str | None, revision: str | None = None) -> list[HubFile]:
    """What is needed of an official repo, without downloading any of it: from the cache where all of it is there.

    Raises: as `list_files` and `choose_files`; WeightsError that names what is missing where the hub cannot be
        reached and the cache holds a part.
    """
    cached = cached_files(repo, revision)
    if _is_whole(_chosen(cached, repo, variant), variant):
        return _chosen(cached, repo, variant)
    files = list_files(repo, revision)
    if cached and files == cached:  # all that there is, or the hub could not be reached
        missing = _missing_of_model(cached, variant)
        if missing:
            raise WeightsError(
                f"{repo}: the hub's cache holds a part of it, and the hub cannot be reached or has no more; missing: "
                f"{', '.join(missing)}. Go online and run the command again, it fetches only these."
            )
    return choose_files(files, repo, variant)


def _chosen(files: Sequence[HubFile], repo: str, variant: str | None) -> list[HubFile]:
    known = [parsed for file in files if (parsed := FileName.parse(file.name)) and parsed.kind == "checkpoint"]
    there = {parsed.variant for parsed in known}
    return choose_files(files, repo, variant) if (variant in there if variant else there) else []


def _is_whole(files: Sequence[HubFile], variant: str | None) -> bool:
    return bool(files) and not _missing_of_model(files, variant, temporal=True)


def _missing_of_model(files: Sequence[HubFile], variant: str | None, *, temporal: bool = False) -> list[str]:
    """Names, with * for what differs by revision, of the files that a model cannot do without.

    temporal: count the temporal upscaler, which only `upscale --temporal` needs.
    """
    known = [parsed for file in files if (parsed := FileName.parse(file.name))]
    checkpoints = {p.variant for p in known if p.kind == "checkpoint"}
    variant = variant or ("distilled" if "distilled" in checkpoints or not checkpoints else "dev")
    there = {(p.kind, "" if p.kind == "lora" else str(p.variant).replace("sampler", "scaler")) for p in known}
    wanted = {("checkpoint", variant): f"ltx-*-{variant}*.safetensors"}
    wanted["upsampler", "spatial-upscaler-x2"] = "ltx-*-spatial-upscaler-x2-*.safetensors"
    if variant == "dev":
        wanted["lora", ""] = "ltx-*-distilled-lora-*.safetensors"
    if temporal:
        wanted["upsampler", "temporal-upscaler-x2"] = "ltx-*-temporal-upscaler-x2-*.safetensors"
    return [name for key, name in wanted.items() if key not in there]


def download_model(repo: str, variant: str | None, revision: str | None = None, *, say: Say) -> list[Path]:
    """Download what is needed of an official repo into the hub cache; unfinished downloads go on where they stopped.

    Raises: WeightsError, RequestError or ResourceError that says what to do.
    """
    return download_files(repo, find_model(repo, variant, revision), revision, say=say)


def find_text_encoder(repo: str = TEXT_ENCODER_REPO) -> list[HubFile]:
    """Files of a Gemma 3 repo that a text encoder needs, the small ones first; none of them is downloaded.

    Raises: as `list_files`; WeightsError if there are no weights.
    """
    cached = cached_snapshot(repo)
    files = list_files(repo) if cached is None or missing_of_text_encoder(cached) else cached_files(repo)
    needed = [f for f in files if "/" not in f.name and _of_text_encoder(f.name)]
    if not any(f.name.endswith(".safetensors") for f in needed):
        what = recognise_listing([f.name for f in files]).says
        raise WeightsError(
            f"{repo}: holds no safetensors weights of a text encoder; it {what}. Give a Gemma 3 repo, for example "
            f"{TEXT_ENCODER_REPO}."
        )
    return sorted(needed, key=lambda f: f.nbytes)  # a licence that was not accepted shows at the first file


def download_text_encoder(repo: str = TEXT_ENCODER_REPO, *, say: Say) -> Path:
    """Download a Gemma 3 folder: its weights, config and tokenizer."""
    folder = download_files(repo, find_text_encoder(repo), None, say=say)[0].parent
    missing = missing_of_text_encoder(folder)
    if missing:
        raise WeightsError(
            f"{repo}: the hub's cache holds a part of it, and the hub cannot be reached or has no more; missing: "
            f"{', '.join(missing)}. Go online and run the command again, it fetches only these."
        )
    return folder


def missing_of_text_encoder(folder: Path) -> list[str]:
    """Names of the files that a Gemma 3 folder lacks."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        missing.append("tokenizer.json")
    if (folder / SHARD_INDEX).is_file():
        names = set(_weight_map(folder / SHARD_INDEX).values())
        return [*missing, *sorted(n for n in names if not (folder / n).is_file())]
    return missing if any(folder.glob("*.safetensors")) else [*missing, "*.safetensors"]


def missing_of_model_folder(folder: Path) -> list[str]:
    """Names of the files that a converted model's index names and the folder lacks."""
    index = read_json(folder / INDEX)
    missing = [name for name in index.get("loras", ()) if not (folder / name).is_file()]
    for component in dict.fromkeys((index.get("components") or {}).values()):
        for name in ("config.json", SHARD_INDEX):
            if not (folder / component / name).is_file():
                missing.append(f"{component}/{name}")
        if (folder / component / SHARD_INDEX).is_file():
            shards = set(_weight_map(folder / component / SHARD_INDEX).values())
            missing += sorted(f"{component}/{s}" for s in shards if not (folder / component / s).is_file())
    return missing


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    return weight_map if isinstance(weight_map, dict) else {}


def download_converted(repo: str, revision: str | None = None, *, say: Say) -> Path | None:
    """Download a repo that holds a converted model of ours; None if it holds none.

    What it is says the content of its `model_index.json`, since diffusers' repos have one too.
    """
    cached = cached_snapshot(repo, revision)
    if cached is not None and is_model_folder(cached) and not missing_of_model_folder(cached):
        return cached
    if cached is not None and index_kind(cached) is None and _chosen(cached_files(repo, revision), repo, None):
        return None  # an official repo, and the hub need not be asked for that
    files = list_files(repo, revision)
    indices = [f for f in files if f.name == INDEX or f.name.endswith(f"/{INDEX}")]
    folders = {f.name: download_files(repo, [f], revision, say=say)[0].parent for f in indices}
    ours = [name for name, folder in folders.items() if is_model_folder(folder)]
    if not ours:
        if folders and not _chosen(files, repo, None):
            kinds = [index_kind(folder) for folder in folders.values()]
            what = recognise_listing([f.name for f in files], "diffusers" if "diffusers" in kinds else None).says
            raise WeightsError(f"{repo}: {what}. Give Lightricks/LTX-2.3, or a converted model.")
        return None
    if len(ours) > 1 and INDEX not in ours:
        raise WeightsError(
            f"{repo}: holds several models ({', '.join(Path(n).parent.as_posix() for n in ours)}). Download the one "
            "that you want and give its folder."
        )
    name = INDEX if INDEX in ours else ours[0]
    download_files(repo, _of_model(files, folders[name], name.removesuffix(INDEX)), revision, say=say)
    missing = missing_of_model_folder(folders[name])
    if missing:
        raise WeightsError(
            f"{repo}: the converted model is incomplete, and the hub cannot be reached or has no more; missing: "
            f"{', '.join(missing)}. Go online and run the command again, it fetches only these."
        )
    return folders[name]


def _of_model(files: Sequence[HubFile], folder: Path, prefix: str) -> list[HubFile]:
    """Files of a converted model: what lies beside its index but other weights, and in its components' folders."""
    index = read_json(folder / INDEX)
    parts = tuple(f"{prefix}{name}/" for name in (*(index.get("components") or {}).values(), "lora"))
    beside = {f.name for f in files if f.name.rpartition("/")[0] == prefix.rstrip("/")}
    small = {n for n in beside if not n.endswith(".safetensors") and not n.removeprefix(prefix).startswith(".")}
    return [f for f in files if f.name in small or f.name.startswith(parts)]


def download_files(repo: str, files: Sequence[HubFile], revision: str | None = None, *, say: Say) -> list[Path]:
    """Show the sizes, check the disk, then download one by one; what is in the cache is taken without asking."""
    from huggingface_hub import hf_hub_download

    snapshot = cached_snapshot(repo, revision)
    missing = [f for f in files if snapshot is None or not (snapshot / f.name).is_file()]
    total = sum(f.nbytes for f in missing)
    if missing and total >= 1e6:
        say(f"{repo}: {len(missing)} files to download, {total / 1e9:.1f} GB")
        for file in missing:
            if file.nbytes >= 1e7:
                say(f"  {file.nbytes / 1e9:6.2f} GB  {file.name}")
        _check_disk(cache_folder(), total, repo)
    if snapshot is not None and not missing:
        return [snapshot / f.name for f in files]
    with _explained(repo):
        return [Path(hf_hub_download(repo, f.name, revision=revision)) for f in files]


def _of_text_encoder(name: str) -> bool:
    return name.endswith((".safetensors", ".json", ".jinja")) or name == "tokenizer.model"


def _check_disk(cache: Path, needed: int, repo: str) -> None:
    folder = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{repo}: the download needs {needed / 1e9:.1f} GB and the disk of {cache} has {free / 1e9:.1f} GB free. "
            "Free some space or set HF_HOME to a folder on a larger disk."
        )


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn the hub's exceptions into ours."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    try:
        yield
    except errors.GatedRepoError:
        raise WeightsError(
            f"{repo}: its owner asks you to accept a licence first. Open {page}, log in and accept it, then run "
            "`hf auth login` once (or set HF_TOKEN) and try again. A folder that you have already can be given instead."
        ) from None
    except errors.RepositoryNotFoundError:
        raise WeightsError(
            f"{repo}: the hub has no such repo, or it is private and you are not logged in. "
            "Check the name or run `hf auth login`."
        ) from None
    except errors.LocalEntryNotFoundError as error:  # not in the cache, and no way to the hub
        raise _no_network(repo, error) from None
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise WeightsError(f"{repo}: the hub does not have this file or revision ({_first_line(error)}).") from None
    except Exception as error:
        if _is_network_fault(error):
            raise _no_network(repo, error) from None
        if isinstance(error, OSError):
            raise ResourceError(f"{repo}: the download cannot be written ({error.strerror}).") from None
        raise


def _is_network_fault(error: Exception) -> bool:
    """Whether the hub could not be asked, rather than having said no."""
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return False
    if isinstance(error, errors.OfflineModeIsEnabled | errors.HfHubHTTPError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError):  # the hub's client wraps its network faults in OSErrors without a number
        return error.errno is None
    return type(error).__module__.startswith(_HTTP_CLIENTS)


def _no_network(repo: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"{repo}: the hub cannot be reached ({_first_line(error)}). Check the network and try again, what is "
        "downloaded is kept; or give a local file or folder."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
