"""The Hugging Face hub: which files of a repo are needed, what they cost, how they get here."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlx_ltx2.errors import RequestError, ResourceError, WeightsError
from mlx_ltx2.weights.index import INDEX

TEXT_ENCODER_REPO = "google/gemma-3-12b-it-qat-q4_0-unquantized"
"""The text encoder of LTX-2 and LTX-2.3. Gated: its licence must be accepted once on its page."""

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
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


def is_repo_id(text: str) -> bool:
    return bool(_REPO_ID.fullmatch(text)) and "--" not in text and ".." not in text


def list_files(repo: str, revision: str | None = None) -> list[HubFile]:
    """Files of a repo with their sizes.

    Raises: WeightsError if the repo does not exist, is gated, or the network is missing.
    """
    from huggingface_hub import HfApi

    with _explained(repo):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    return [HubFile(s.rfilename, s.size or 0) for s in info.siblings or ()]


def choose_files(files: Sequence[HubFile], repo: str, variant: str | None, *, fp8: bool = False) -> list[HubFile]:
    """What of an official repo is needed: one checkpoint, its upscalers, and for "dev" the distilled LoRA.

    Of several revisions the newest is taken. variant None stands for "distilled" if the repo has it.
    Raises: WeightsError if the repo has no official checkpoint, RequestError if not of this variant.
    """
    known = [(parsed, file) for file in files if (parsed := FileName.parse(file.name))]
    checkpoints = [(p, f) for p, f in known if p.kind == "checkpoint"]
    if not checkpoints:
        raise WeightsError(f"{repo}: holds no official LTX-2 checkpoint. Give Lightricks/LTX-2.3 or Lightricks/LTX-2.")
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


def download_model(repo: str, variant: str | None, revision: str | None = None, *, say: Say) -> list[Path]:
    """Download what is needed of an official repo into the hub cache; unfinished downloads go on where they stopped.

    Raises: WeightsError, RequestError or ResourceError that says what to do.
    """
    files = choose_files(list_files(repo, revision), repo, variant)
    return download_files(repo, files, revision, say=say)


def download_text_encoder(repo: str = TEXT_ENCODER_REPO, *, say: Say) -> Path:
    """Download a Gemma 3 folder: its weights, config and tokenizer."""
    files = [f for f in list_files(repo) if "/" not in f.name and _of_text_encoder(f.name)]
    if not any(f.name.endswith(".safetensors") for f in files):
        raise WeightsError(
            f"{repo}: holds no safetensors weights. Give a Gemma 3 repo, for example {TEXT_ENCODER_REPO}."
        )
    return download_files(repo, files, None, say=say)[0].parent


def download_converted(repo: str, revision: str | None = None, *, say: Say) -> Path | None:
    """Download a repo that holds a converted model; None if it holds none."""
    files = list_files(repo, revision)
    if not any(f.name == INDEX for f in files):
        return None
    paths = download_files(repo, [f for f in files if not f.name.startswith(".")], revision, say=say)
    return next(p.parent for p in paths if p.name == INDEX)


def download_files(repo: str, files: Sequence[HubFile], revision: str | None = None, *, say: Say) -> list[Path]:
    """Show the sizes, check the disk, then download one by one."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    here = {f.name for f in files if isinstance(try_to_load_from_cache(repo, f.name, revision=revision), str)}
    missing = [f for f in files if f.name not in here]
    total = sum(f.nbytes for f in missing)
    if missing:
        say(f"{repo}: {len(missing)} files to download, {total / 1e9:.1f} GB")
        for file in missing:
            if file.nbytes >= 1e7:
                say(f"  {file.nbytes / 1e9:6.2f} GB  {file.name}")
        _check_disk(Path(constants.HF_HUB_CACHE), total, repo)
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
    except (errors.OfflineModeIsEnabled, errors.HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise _no_network(repo, error) from None
    except OSError as error:
        if error.errno is None:  # the hub's client wraps its network faults in OSErrors without a number
            raise _no_network(repo, error) from None
        raise ResourceError(f"{repo}: the download cannot be written ({error.strerror}).") from None
    except Exception as error:
        if type(error).__module__.startswith(_HTTP_CLIENTS):
            raise _no_network(repo, error) from None
        raise


def _no_network(repo: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"{repo}: the hub cannot be reached ({_first_line(error)}). Check the network and try again, what is "
        "downloaded is kept; or give a local file or folder."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
