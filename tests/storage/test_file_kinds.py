"""What stands in a file's place and is none: it is told of at once, by every reader of one file."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clara_cli.core import digests, gguf, loading, placement
from clara_cli.corpus.passage_lines import passage_lines
from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.evaluation.data.beir import read_qrels
from clara_cli.evaluation.rivals import weights
from clara_cli.search.hnsw_file import check_graph
from clara_cli.storage import artefact, files
from clara_cli.storage.file_kinds import open_file, read_file, read_user_file
from clara_cli.storage.history import History
from clara_cli.storage.lock import locked
from clara_cli.storage.toml_files import read_toml

pytestmark = pytest.mark.usefixtures("no_waiting")


def sockets(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, sockets, lambda p: p.symlink_to("/dev/zero")]
)
def test_what_is_no_file_is_not_opened(tmp_path: Path, monkeypatch, make) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may be a hundred bytes long
    make(Path("thing"))
    for read in (open_file, read_file):
        with pytest.raises(OSError):
            read(Path("thing"))
    with pytest.raises(ArtefactError, match="thing: not readable"):
        artefact.read_bytes(Path("thing"), "mend it")


def test_a_user_may_name_a_pipe_that_was_handed_over_open(tmp_path: Path) -> None:
    end, other = os.pipe()
    os.write(other, b"key = 1\n")
    os.close(other)
    assert read_toml(Path(f"/dev/fd/{end}")) == {"key": 1}
    os.close(end)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a named pipe, not a file"):
        read_user_file(tmp_path / "pipe")


READERS: dict[str, Callable[[Path], Any]] = {
    "history": lambda pipe: list(History(pipe.parent, pipe.name, "").lines()),
    "history cut": lambda pipe: History(pipe.parent, pipe.name, "").keep(1),
    "history written": lambda pipe: History(pipe.parent, pipe.name, "").append([{}]),
    "appended": lambda pipe: files.append(pipe.parent, pipe.name, b"x"),
    "lock": lambda pipe: locked(pipe.parent, pipe.name).__enter__(),
    "passages": lambda pipe: list(passage_lines(pipe)),
    "graph": lambda pipe: check_graph(pipe, 4, 4, 2, 10),
    "tensors": digests.read_header,
    "index of tensors": digests.indexed_files,
    "sum": files.sha256_file,
    "GGUF": gguf.check_header,
    "settings": lambda pipe: loading.read_settings(pipe, "backbone x"),
    "device map": lambda pipe: placement.read_map(str(pipe)),
    "judgements": lambda pipe: read_qrels(pipe, "mend it"),
}


@pytest.mark.parametrize("name", READERS)
def test_nobody_waits_for_a_pipe(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((ClaraError, OSError), match="not a file"):
        READERS[name](tmp_path / "pipe")


@pytest.mark.parametrize("name", ["history written", "appended", "lock"])
def test_nothing_is_written_to_a_pipe_that_somebody_reads(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(ArtefactError, match="pipe is a named pipe, not a file"):
        READERS[name](tmp_path / "pipe")
    assert os.read(reader, 10) == b""
    os.close(reader)


@pytest.mark.parametrize("text", ["[]", '{"base_model_name_or_path": 3}', "[" * 10_000, "{"])
def test_a_rivals_adapter_that_names_no_backbone_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / loading.ADAPTER).write_text(text)
    with pytest.raises(ArtefactError, match=loading.ADAPTER):
        weights._adapted(tmp_path, "rival", None)
