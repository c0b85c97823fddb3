"""The command that installs an extra follows how this package was installed itself."""

from __future__ import annotations

import json
import shlex
import sys
from importlib import metadata
from pathlib import Path

import pytest

from clara_cli import extras


class Installed:
    """A distribution with these records."""

    def __init__(self, source: dict | None, installer: str = "pip") -> None:
        self.records = {"INSTALLER": installer}
        if source is not None:
            self.records["direct_url.json"] = json.dumps(source)

    def read_text(self, name: str) -> str | None:
        return self.records.get(name)


def command(monkeypatch, distribution: Installed, prefix: str = "/venv") -> str:
    monkeypatch.setattr(metadata, "distribution", lambda name: distribution)
    monkeypatch.setattr(sys, "prefix", prefix)
    return extras.install_command("documents")


@pytest.mark.parametrize("editable", [True, False])
def test_from_a_folder_it_names_the_folder(monkeypatch, tmp_path, editable):
    folder = tmp_path / "my clone"
    folder.mkdir()
    source = {"url": folder.as_uri(), "dir_info": {"editable": editable}}
    words = shlex.split(command(monkeypatch, Installed(source)))
    assert words == ["pip", "install", *["-e"] * editable, f"{folder}[documents]"]


def test_from_an_index_or_a_folder_that_is_gone_it_names_the_distribution(monkeypatch):
    gone = {"url": "file:///no/such/folder", "dir_info": {}}
    for source in (None, gone):
        assert command(monkeypatch, Installed(source)) == "pip install 'clara-cli[documents]'"


def test_from_a_repository_it_names_the_commit(monkeypatch):
    vcs = {"vcs": "git", "commit_id": "abc"}
    source = {"url": "https://example.org/clara.git", "vcs_info": vcs}
    named = "clara-cli[documents] @ git+https://example.org/clara.git@abc"
    assert shlex.split(command(monkeypatch, Installed(source)))[-1] == named


@pytest.mark.parametrize(
    ("installer", "prefix", "expected"),
    [
        ("uv", "/srv/app/.venv", "uv pip install"),
        ("uv", "/home/u/.local/share/uv/tools/clara-cli", "uv tool install --force"),
        ("pip", "/home/u/.local/pipx/venvs/clara-cli", "pipx install --force"),
    ],
)
def test_the_installer_is_the_one_that_was_used(monkeypatch, installer, prefix, expected):
    line = command(monkeypatch, Installed(None, installer), prefix)
    assert line == f"{expected} 'clara-cli[documents]'"


def test_a_checkout_on_the_path_alone_is_installed(monkeypatch):
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    (folder,) = shlex.split(extras.install_command("plot"))[3:]
    assert (Path(folder.removesuffix("[plot]")) / "pyproject.toml").is_file()
