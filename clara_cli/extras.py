"""The command that installs an extra, by the way this package was installed itself.

Knows the standard records of an installation (`direct_url.json`, `INSTALLER`) and asks nobody.
"""

from __future__ import annotations

import json
import shlex
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

DISTRIBUTION = "clara-cli"


def install_command(extra: str) -> str:
    """A line for a shell that brings the libraries of an extra: `pip install 'clara-cli[plot]'`
    where this came from an index, the folder or the repository where it came from there."""
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # run from a checkout that is only on the path
        return f"pip install -e {shlex.quote(f'{Path(__file__).parent.parent}[{extra}]')}"
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    options, target = _target(source, extra)
    return " ".join([_installer(distribution), *options, shlex.quote(target)])


def _target(source: dict[str, object], extra: str) -> tuple[list[str], str]:
    """The options and the requirement that name where this package came from."""
    url, named = str(source.get("url", "")), f"{DISTRIBUTION}[{extra}]"
    folder, version_control = source.get("dir_info"), source.get("vcs_info")
    if isinstance(folder, dict):
        path = url2pathname(urlparse(url).path)
        if Path(path).is_dir():
            return ["-e"] if folder.get("editable") else [], f"{path}[{extra}]"
    if isinstance(version_control, dict):
        commit = version_control.get("commit_id", "")
        return [], f"{named} @ {version_control.get('vcs', 'git')}+{url}@{commit}"
    if url.startswith("http"):
        return [], f"{named} @ {url}"
    return [], named


def _installer(distribution: metadata.Distribution) -> str:
    """How the environment of this program is added to."""
    where = Path(sys.prefix).parts
    if "pipx" in where:
        return "pipx install --force"
    if (distribution.read_text("INSTALLER") or "").strip() != "uv":
        return "pip install"
    return "uv tool install --force" if "tools" in where else "uv pip install"
