"""Files and folders that are whole or not there, and links that are never followed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.storage import files
from clara_cli.storage.history import History
from clara_cli.storage.lock import locked


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """A folder whose entries are links out of it: to a folder of somebody's, and to a file."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (tmp_path / "artefact").mkdir()
    (tmp_path / "artefact" / "folder").symlink_to(tmp_path / "mine")
    (tmp_path / "artefact" / "file").symlink_to(tmp_path / "mine" / "letter.txt")
    (tmp_path / "artefact" / "nowhere").symlink_to(tmp_path / "mine" / "new.txt")
    return tmp_path / "artefact"


def lock(folder: Path, name: str) -> None:
    with locked(folder, name):
        pass


def fill(folder: Path, name: str) -> None:
    with files.new_folder(folder, name):
        pass


CHANGES = {
    "write": lambda folder, name: files.write_atomic(folder, name, b"x"),
    "append": lambda folder, name: files.append(folder, name, b"x"),
    "truncate": lambda folder, name: files.truncate(folder, name, 0),
    "make": lambda folder, name: files.make_folder(folder, name),
    "remove": files.remove,
    "remove tree": files.remove_tree,
    "remove temporaries": files.remove_temporaries,
    "rename": lambda folder, name: files.rename(folder, name, "other"),
    "rename to": lambda folder, name: files.rename(folder, "file", name),
    "copy": lambda folder, name: files.copy_tree(folder, folder, name),
    "new folder": fill,
    "lock": lock,
    "history": lambda folder, name: History(folder, name, "").append([{}]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["folder", "file", "nowhere", "folder/letter.txt", "folder/new"])
def test_a_link_inside_an_artefact_is_never_followed(artefact: Path, change: str, name: str):
    with pytest.raises(ArtefactError, match=r"artefact/(folder|file|nowhere) is a link"):
        CHANGES[change](artefact, name)
    assert [p.name for p in (artefact.parent / "mine").iterdir()] == ["letter.txt"]
    assert (artefact.parent / "mine" / "letter.txt").read_text() == "dear"
    assert all((artefact / link).is_symlink() for link in ("folder", "file", "nowhere"))


def test_an_artefact_that_is_a_link_itself_is_followed(tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    files.write_atomic(tmp_path / "link", "f", b"x")
    with files.new_folder(tmp_path / "link", "whole") as work:
        files.write_atomic(work, "g", b"y")
    assert (tmp_path / "there" / "f").read_bytes() == b"x"
    assert (tmp_path / "there" / "whole" / "g").read_bytes() == b"y"


def test_removing_a_folder_removes_the_links_in_it_alone(artefact: Path):
    files.remove_tree(artefact)
    assert not artefact.exists()
    assert (artefact.parent / "mine" / "letter.txt").read_text() == "dear"


def test_a_new_folder_is_whole_or_as_it_was(tmp_path: Path):
    with files.new_folder(tmp_path, "f") as work:
        (work / "a").write_text("1")
    with pytest.raises(ClaraError, match=r"f: no space left: 77 bytes needed"):
        with files.new_folder(tmp_path, "f", 77) as work:
            (work / "a").write_text("2")
            raise OSError(errno.ENOSPC, "no space left on device")
    with pytest.raises(KeyboardInterrupt), files.new_folder(tmp_path, "f"):
        raise KeyboardInterrupt
    assert {p.name for p in tmp_path.iterdir()} == {"f"}
    assert (tmp_path / "f" / "a").read_text() == "1"
    with files.new_folder(tmp_path, "f") as work:
        (work / "b").write_text("3")
    assert {p.name for p in tmp_path.iterdir()} == {"f"}
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["b"]


def test_a_pipe_is_neither_written_to_nor_read(tmp_path: Path):
    """Both would wait for somebody at its other end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtefactError, match="pipe is a named pipe, not a file"):
        files.append(tmp_path, "pipe", b"x")
    with pytest.raises(ArtefactError, match="pipe: not readable: not a file"):
        list(History(tmp_path, "pipe", "").lines())
