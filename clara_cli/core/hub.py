"""Checkpoints on the Hugging Face Hub: which files a name means, and fetching just those.

`HF_HOME`, `HF_HUB_OFFLINE` and interrupted downloads are the Hub client's business and work as its
users know them. Nothing that was fetched is ever run. Knows nothing of tensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara_cli.errors import ArtefactError, UsageError, first_line

NATIVE = ("clara.json", "memory.safetensors", "*/adapter_*", "backbone/*")
CONFIGS = ("clara.json", "config.json", "backbone/config.json")
RELEASED = ("config.json", "adapters.pth", "decoder_first_last_layers.pth")
BACKBONE = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
TOKENIZER = ("*.json", "*.model", "*.jinja", "*.txt")
NOT_BACKBONE = ("*/*", "consolidated*")  # other formats of the same weights
BARE = "a backbone goes with --backbone, a checkpoint with --model or --init"
SUBFOLDER = re.compile(r"^(.*\bcompression-(\d+))/adapters\.pth$")


def is_hub_id(name: str) -> bool:
    """Whether a name is owner/name or owner/name/sub/folder, and no such folder is here."""
    shape = re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w./-]+)?", name)
    return shape is not None and not name.startswith(".") and not Path(name).exists()


def fetch(name: str, ratio: int | None, configs_only: bool = False) -> Path:
    """The local folder of a checkpoint named by Hub id, downloaded if it is not there yet.

    `owner/name` may hold a native checkpoint, or released ones in `compression-N/`: then `ratio`
    picks one. `owner/name/sub/folder` names the folder itself.

    Raises:
        ArtefactError: when it cannot be had; the message says why.
        UsageError: when the ratio is not there, or has to be named.
    """
    owner, repo, *rest = name.split("/")
    repository, folder = f"{owner}/{repo}", "/".join(rest)
    files = list_files(repository)
    if not folder:
        folder = choose_folder(repository, files, ratio)
    prefix = f"{folder}/" if folder else ""
    native = f"{prefix}clara.json" in files
    patterns = NATIVE if native else RELEASED
    wanted = [prefix + pattern for pattern in (CONFIGS if configs_only else patterns)]
    if not native and f"{prefix}adapters.pth" not in files:
        served = ", ".join(sorted(released_folders(files).values()))
        raise ArtefactError(
            f"{name}: no checkpoint there (neither clara.json nor adapters.pth)",
            f"folders with one: {served}" if served else BARE,
        )
    return download(repository, wanted) / folder


def origin(path: Path) -> tuple[str, str] | None:
    """(owner/name/sub-folder, commit) of a folder in the Hub client's cache; None elsewhere."""
    match = re.search(
        r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(/.*)?$", path.as_posix()
    )
    return (f"{match[1]}/{match[2]}{match[4] or ''}", match[3]) if match else None


def released_folders(files: list[str]) -> dict[int, str]:
    """Ratio -> sub-folder of the released checkpoints among a repository's files."""
    matches = (SUBFOLDER.match(file) for file in files)
    return {int(match[2]): match[1] for match in matches if match}


def choose_folder(repository: str, files: list[str], ratio: int | None) -> str:
    """The sub-folder a ratio means; the root where the checkpoint lies there, or no part of one."""
    ratios = released_folders(files)
    if not ratios or "clara.json" in files or "adapters.pth" in files:
        return ""
    served = ", ".join(map(str, sorted(ratios)))
    if ratio is None and len(ratios) == 1:
        return next(iter(ratios.values()))
    if ratio is None:
        number, part = next(iter(ratios.items()))
        raise UsageError(
            f"{repository} has checkpoints for several ratios",
            f"give --ratio: {served} (to train: --set ratios=[{number}]), or name "
            f"{repository}/{part}",
        )
    if ratio not in ratios:
        raise UsageError(f"--ratio {ratio}: not in {repository}", f"it serves {served}")
    return ratios[ratio]


def local_folder(path: Path, ratio: int | None) -> str:
    """The same choice in a copy of such a repository; the folder itself where it has no parts."""
    files = [file.relative_to(path).as_posix() for file in path.glob("compression-*/adapters.pth")]
    whole = any((path / name).is_file() for name in ("clara.json", "adapters.pth"))
    return "" if whole or not files else choose_folder(str(path), files, ratio)


def list_files(repository: str) -> list[str]:
    """A repository's files: asked of the Hub, or, offline, those already here."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        siblings = HfApi().model_info(repository, revision="main").siblings  # tried once
        return [file.rfilename for file in siblings or []]
    except HfHubHTTPError as error:
        raise refused_error(repository, error) from error
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        if here := cached_files(repository):
            return here
        raise not_reached_error(repository, error) from error


def cached_files(repository: str) -> list[str]:
    """The files of a repository's newest snapshot in the local cache; [] where there is none."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    revisions = [r for repo in repositories if repo.repo_id == repository for r in repo.revisions]
    if not revisions:
        return []
    newest = max(revisions, key=lambda revision: revision.last_modified)
    files = (file.file_path.relative_to(newest.snapshot_path) for file in newest.files)
    return sorted(map(str, files))


def fetch_backbone(name: str, revision: str | None, configs_only: bool = False) -> Path:
    """The local folder of a backbone on the Hub: config, tokenizer and safetensors.

    Raises:
        ArtefactError: when it cannot be had; the message says why.
    """
    patterns = ("config.json",) if configs_only else BACKBONE
    return download(name, patterns, revision, f"backbone {name}")


def fetch_file(repository: str, name: str, revision: str | None) -> Path:
    """A file of a repository, named owner/name/file.

    Raises:
        ArtefactError: when it cannot be had; the message says why.
    """
    file = name.removeprefix(f"{repository}/")
    path = download(repository, (file,), revision, f"backbone {name}") / file
    if not path.is_file():
        raise ArtefactError(f"backbone {name}: no such file in {repository}", "check its name")
    return path


def fetch_tokenizer(name: str) -> Path:
    """The local folder of a tokenizer on the Hub, without any weights.

    Raises:
        ArtefactError: when it cannot be had; the message says why.
    """
    return download(name, TOKENIZER, None, f"tokenizer {name}")


def download(
    repository: str, patterns: Sequence[str], revision: str | None = None, label: str = ""
) -> Path:
    """Fetch the files that match, resuming where an earlier download stopped; `label` names the
    repository in messages."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

    label = label or repository
    ignored = list(NOT_BACKBONE) if patterns in (BACKBONE, TOKENIZER) else None
    wanted: dict[str, Any] = {"allow_patterns": list(patterns), "ignore_patterns": ignored}
    try:
        return Path(snapshot_download(repository, revision=revision, **wanted))
    except HfHubHTTPError as error:
        raise refused_error(label, error) from error
    except (LocalEntryNotFoundError, HTTPError, OSError, ValueError) as error:
        if not cached_files(repository):
            raise not_reached_error(label, error) from error
        raise ArtefactError(
            f"{label}: the download stopped: {first_line(error)}",
            "run the same command again: it goes on where it stopped",
        ) from error


def not_reached_error(label: str, error: Exception) -> ArtefactError:
    """The error where nothing is here and the Hub cannot be asked."""
    return ArtefactError(
        f"{label}: not downloaded yet, and the Hub cannot be reached ({first_line(error)})",
        "connect once (unset HF_HUB_OFFLINE), or give a local folder",
    )


def refused_error(repository: str, error: Exception) -> ArtefactError:
    """The Hub's refusal in one sentence."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return ArtefactError(
            f"{repository}: the Hub refuses access ({status})",
            "accept its conditions on its page and log in (hf auth login), "
            + ("or check HF_TOKEN" if os.environ.get("HF_TOKEN") else "or set HF_TOKEN"),
        )
    if status == 404:
        return ArtefactError(f"{repository}: no such repository on the Hub", "check owner and name")
    return ArtefactError(f"{repository}: {first_line(error)}", "try again later")
