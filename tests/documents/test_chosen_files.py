"""Which files of a folder are read: .gitignore files, --include and --exclude."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clara_cli.config import DocumentOptions
from clara_cli.documents.documents import read_documents
from clara_cli.errors import DataError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = ["a.md", "b.txt", "drafts/c.md", "drafts/keep.md", "sub/d.txt", "sub/deep/e.md"]
    for name in [*files, "build/f.txt", "build/g.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def read(folder: Path, **options: object) -> tuple[list[str], dict[str, int]]:
    how = DocumentOptions(**options)  # type: ignore[arg-type]
    reading = read_documents([str(folder)], how, print, print)
    return [document.id for document in reading], reading.left_out


ALL = ["a.md", "b.txt", "build/f.txt", "build/g.txt", "drafts/c.md", "drafts/keep.md"]
ALL += ["sub/d.txt", "sub/deep/e.md"]


def test_all_is_read_where_nothing_says_otherwise(folder: Path) -> None:
    assert read(folder) == (ALL, {})


def test_a_gitignore_is_followed_and_what_it_leaves_out_counted(folder: Path) -> None:
    (folder / ".gitignore").write_text("# a remark\nbuild/\ndrafts/*\n!drafts/keep.md\n")
    (folder / "sub" / ".gitignore").write_text("*.txt\n/deep/none.md\n")
    ids, left_out = read(folder)
    assert ids == ["a.md", "b.txt", "drafts/keep.md", "sub/deep/e.md"]
    assert left_out == {"ignored": 2, "ignored folder": 1, "hidden": 2}
    assert read(folder, ignored=True)[0] == ALL


def test_an_inner_gitignore_may_take_back_what_an_outer_one_left_out(folder: Path) -> None:
    (folder / ".gitignore").write_text("*.txt\n")
    (folder / "sub" / ".gitignore").write_text("!d.txt\n")
    assert read(folder)[0] == [
        "a.md",
        "drafts/c.md",
        "drafts/keep.md",
        "sub/d.txt",
        "sub/deep/e.md",
    ]


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"include": ("*.md",)}, ["a.md", "drafts/c.md", "drafts/keep.md", "sub/deep/e.md"]),
        ({"include": ("sub/**",)}, ["sub/d.txt", "sub/deep/e.md"]),
        ({"include": ("*.md",), "exclude": ("drafts/",)}, ["a.md", "sub/deep/e.md"]),
        ({"exclude": ("build", "*.md")}, ["b.txt", "sub/d.txt"]),
        ({"exclude": ("*.md", "!a.md", "build")}, ["a.md", "b.txt", "sub/d.txt"]),
    ],
)
def test_globs(folder: Path, options: dict, ids: list[str]) -> None:
    read_ids, left_out = read(folder, **options)
    assert read_ids == ids
    assert left_out.get("excluded", 0) >= 1


def test_globs_without_a_folder_and_a_gitignore_that_is_a_pipe(folder: Path) -> None:
    with pytest.raises(UsageError, match="--include chooses among the files of folders"):
        read(folder / "a.md", include=("*.md",))
    os.mkfifo(folder / ".gitignore")
    with pytest.raises(DataError, match=r"\.gitignore: a named pipe"):
        read(folder)
    assert read(folder, ignored=True)[0] == ALL
