"""Which files inputs name: what of a folder is read, what is left out and counted, and what cannot
be read and is named. Permissions are denied by a stand-in: tests may run as root, who may all."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from clara_cli.config import DocumentOptions
from clara_cli.documents.documents import read_documents
from clara_cli.documents.listing import describe_left_out, list_inputs
from clara_cli.errors import DataError

SKIP = DocumentOptions(skip_bad=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one document, `good.txt`."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "good.txt").write_text("good")
    return tmp_path / "notes"


def read(folder: Path | str, skip: bool) -> tuple[list[str], list[str]]:
    bad: list[str] = []
    reading = read_documents([str(folder)], DocumentOptions(skip_bad=skip), bad.append, print)
    return [document.text for document in reading], bad


def assert_named(folder: Path, line: str) -> None:
    """It is refused with this line, and with --skip-bad reported with it, the rest being read."""
    with pytest.raises(DataError) as caught:
        read(folder, skip=False)
    assert caught.value.message == line
    assert "--skip-bad" in caught.value.hint
    assert read(folder, skip=True) == (["good"], [line])


def test_a_named_pipe_a_socket_and_a_broken_link_are_named(folder, monkeypatch):
    monkeypatch.chdir(folder)  # a socket's path is short
    for name, make in {
        "pipe.txt": lambda path: os.mkfifo(path),
        "pipe": lambda path: os.mkfifo(path),
        "socket": lambda path: socket.socket(socket.AF_UNIX).bind(path),
        "gone.md": lambda path: os.symlink("nowhere", path),
        "loop.csv": lambda path: os.symlink("loop.csv", path),
    }.items():
        make(name)
        reason = {"pipe": "a named pipe, not a file", "sock": "a socket, not a file"}
        reason |= {"gone": "a link to nothing", "loop": os.strerror(errno.ELOOP)}
        assert_named(folder, f"{folder / name}: {reason[name[:4]]}")
        os.remove(name)


def test_a_device_behind_a_link_is_named(folder):
    (folder / "zero.txt").symlink_to("/dev/zero")
    assert_named(folder, f"{folder / 'zero.txt'}: a device, not a file")


def test_a_folder_behind_a_link_is_named_and_one_given_as_input_is_followed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "more.txt").write_text("more")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert_named(folder, f"{folder / 'linked'}: a link to a folder, not followed")
    assert read(folder / "linked", skip=False) == (["more"], [])


def test_names_that_are_not_utf8_are_named(folder):
    raw = os.fsencode(folder) + b"/caf\xe9.txt"
    with open(raw, "w") as stream:
        stream.write("text")
    assert_named(folder, rf"{folder}/caf\xe9.txt: its name is not UTF-8")
    os.rename(raw, raw.replace(b".txt", b".bin"))
    assert list_inputs([str(folder)]).left_out == {".bin": 1}
    os.remove(raw.replace(b".txt", b".bin"))
    os.mkdir(os.fsencode(folder) + b"/d\xff")
    assert_named(folder, rf"{folder}/d\xff: its name is not UTF-8")


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    (folder / "secret.txt").write_text("no")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "secret.txt")
    assert_named(folder, f"{folder / 'secret.txt'}: Permission denied")


def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch):
    (folder / "locked").mkdir()
    scandir = os.scandir

    def deny(path):
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert_named(folder, f"{folder / 'locked'}: cannot be listed: Permission denied")


def test_a_file_that_fails_when_it_is_read_is_named(folder, monkeypatch):
    (folder / "failing.txt").write_text("no")
    opened = Path.open

    def fail(self, *args, **options):
        if self.name == "failing.txt":
            raise OSError(errno.EIO, os.strerror(errno.EIO), self)
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", fail)
    assert_named(folder, f"{folder / 'failing.txt'}: {os.strerror(errno.EIO)}")


def test_all_that_cannot_be_read_is_named_at_once(folder):
    for number in range(30):
        (folder / f"{number:02}.txt").symlink_to("nowhere")
    with pytest.raises(DataError) as caught:
        read(folder, skip=False)
    assert caught.value.message.count("a link to nothing") == 20
    assert caught.value.message.endswith("; and 10 more")


def test_a_pipe_that_was_handed_over_open_is_read():
    """`clara compress <(command)` names one."""
    reading_end, writing_end = os.pipe()
    os.write(writing_end, b'{"text": "piped"}\n')
    os.close(writing_end)
    try:
        assert read(f"/dev/fd/{reading_end}", skip=False) == (["piped"], [])
    finally:
        os.close(reading_end)


def test_what_is_left_out_is_counted_by_kind(folder):
    names = ["a.mov", "b.MOV", "c.mov", "d.bin", "Makefile", ".hidden.txt", "e.f g h", "x.tar.gz"]
    for name in names:
        (folder / name).write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git" / "config.txt").write_text("x")
    (folder / "old.clara" / "shards").mkdir(parents=True)
    (folder / "old.clara" / "manifest.json").write_text("{}")
    reading = read_documents([str(folder)], SKIP, print, print)
    assert [document.text for document in reading] == ["good"]
    assert reading.left_out == {
        **{".mov": 3, ".bin": 1, ".gz": 1, "other": 1},
        **{"hidden": 2, "compressed corpus": 1, "without suffix": 1},
    }
    assert describe_left_out(reading.left_out).startswith("3 .mov, 2 hidden, 1 .bin")


def test_a_folder_of_nothing_to_read_says_what_it_holds(tmp_path):
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(DataError, match=r"no documents in .* \(left out: 1 \.xyz\)"):
        read(tmp_path, skip=False)
