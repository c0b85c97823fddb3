"""Text and Markdown: encodings, titles, front matter, and the lines passages come from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from clara_cli.config import DocumentOptions
from clara_cli.corpus.documents_table import content_of
from clara_cli.documents.chunk import split_document
from clara_cli.documents.documents import read_documents
from clara_cli.documents.places import place_of
from clara_cli.errors import DataError, UsageError
from clara_cli.records import Document

GERMAN = "Der Bürgermeister heißt Jürgen Groß und wohnt in der „Alten Mühle“. " * 3
FRENCH = "L’été dernier, le maire d’Orée a été réélu à la mairie ; c’est un événement. " * 3
RUSSIAN = "Мэр города живёт в старом доме у реки и каждое утро ходит на рынок за хлебом. " * 8
JAPANESE = "市長は川のそばの古い家に住んでいて、毎朝パンを買いに市場へ行きます。" * 8


def read(path: Path, **options: object) -> tuple[list[Document], list[str]]:
    notes: list[str] = []
    how = DocumentOptions(**options)  # type: ignore[arg-type]
    return list(read_documents([str(path)], how, print, notes.append)), notes


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "cp1252"),
        (FRENCH, "cp1252"),
        (GERMAN.replace("„", "").replace("“", ""), "latin-1"),
        (RUSSIAN, "cp1251"),
        (JAPANESE, "shift_jis"),
        (RUSSIAN, "utf-16"),
        (JAPANESE, "utf-16"),
    ],
)
def test_a_text_of_another_encoding_is_read_and_told(tmp_path, text: str, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    (document,), notes = read(path)
    assert document.text == text
    (note,) = notes
    assert note.startswith(f"{path}: not UTF-8, read as ") and "--encoding" in note
    assert read(path, encoding=encoding)[0][0].text == text


@pytest.mark.parametrize("form", ["txt", "csv", "jsonl"])
def test_an_encoding_that_is_named_holds_for_every_form(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    record = json.dumps({"text": GERMAN}, ensure_ascii=False)
    content = {"txt": GERMAN, "csv": f"text\n{GERMAN}\n", "jsonl": record}[form]
    path.write_bytes(content.encode("cp1252"))
    (document,), notes = read(path, encoding="cp1252")
    assert document.text == GERMAN and notes == []
    with pytest.raises(DataError, match=r"a\.\w+: not ascii"):
        read(path, encoding="ascii")
    with pytest.raises(UsageError, match="--encoding nonsense: unknown encoding"):
        read(path, encoding="nonsense")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4)
    with pytest.raises(DataError, match=r"a\.txt: line 1: not UTF-8: byte 0x89 at 0"):
        read(tmp_path / "a.txt")


def letters(text: str) -> list[tuple[int, int]]:
    return [(n, n + 1) for n in range(len(text))]


MARKDOWN = """---
title: The coast
date: 2024-05-12
tags: [towns, rivers]
draft: false
---
# Towns

Elmgate lies by the sea.

## Mayors

Ann Lee is mayor.
"""


def test_front_matter_is_metadata_and_lines_are_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(MARKDOWN)
    (document,), notes = read(path)
    assert document.title == "The coast" and notes == []
    wanted = {"date": "2024-05-12", "tags": ["towns", "rivers"], "draft": False}
    assert document.metadata == wanted
    assert document.text == MARKDOWN.split("---\n", 2)[2]
    lines = MARKDOWN.splitlines()
    for passage in split_document(document, 30, letters, "sentences", False):
        line = place_of(passage.source).line
        assert (passage.text or "").split("\n")[0] in lines[line - 1]


def test_headings_give_cuts_and_the_titles_and_places_of_passages(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(MARKDOWN)
    (document,), _ = read(path)
    passages = split_document(document, 40, letters, "sentences", False)
    assert [(p.title, p.source, p.text) for p in passages] == [
        ("The coast > Towns", f"{path}:7#section=Towns", "# Towns\n\nElmgate lies by the sea."),
        (
            "The coast > Towns > Mayors",
            f"{path}:11#section=Mayors",
            "## Mayors\n\nAnn Lee is mayor.",
        ),
    ]
    (tmp_path / "a.txt").write_text(document.text)
    plain = read(tmp_path / "a.txt")[0][0]
    assert plain.headings == () and plain.text == document.text
    named_alike = dataclasses.replace(plain, title=document.title, metadata=document.metadata)
    assert content_of(named_alike) != content_of(dataclasses.replace(document, first_line=1))


def test_a_heading_is_the_title_where_no_front_matter_is(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("```sh\n# a remark\n```\n\n# The rivers #\n\nThe Ord.\n")
    assert read(path)[0][0].title == "The rivers"
    path.write_text("no heading\n")
    assert read(path)[0][0].title == "a"


@pytest.mark.parametrize(
    ("matter", "told"),
    [
        ("a: &x [1]\nb: *x", True),  # a reference: thousands of them would take gigabytes
        ("a: [1", True),
        ("a: !!python/object/apply:os.getcwd []", True),
        ("just words", False),
    ],
)
def test_front_matter_that_is_no_plain_yaml_is_text(
    tmp_path: Path, matter: str, told: bool
) -> None:
    path = tmp_path / "a.md"
    path.write_text(f"---\n{matter}\n---\ntext\n")
    (document,), notes = read(path)
    assert document.text == path.read_text() and document.metadata == {}
    assert bool(notes) == told
