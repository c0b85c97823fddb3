"""The comparison of libraries that read documents: its scores, and the rows of its page."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / "recipes" / "documents"
spec = importlib.util.spec_from_file_location("compare_readers", FOLDER / "compare_readers.py")
assert spec is not None and spec.loader is not None
compare_readers = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = compare_readers
spec.loader.exec_module(compare_readers)
SampleFile, Score = compare_readers.SampleFile, compare_readers.Score


def test_phrases_order_and_what_is_no_text_are_counted():
    file = SampleFile("html", "a", ("One two", "three", "four", "five"), ("menu", "foot"))
    text = "**One**\ntwo | four\nthr-\nee menu"
    assert compare_readers.score(text, file) == Score(3, 4, 1, 2, 1, 2)
    assert compare_readers.score("", file) == Score(0, 4, 0, 0, 0, 2)
    total = compare_readers.score(text, file) + compare_readers.score("five", file)
    assert total == Score(4, 8, 1, 2, 1, 4)


def test_the_page_has_a_row_for_each_library_and_kind():
    rows = [
        line.split(" | ") for line in (FOLDER / "README.md").read_text().splitlines()
        if line.count("|") == 9 and line[2].islower() and " ms " not in line
    ]  # fmt: skip
    readers = [
        (kind, reader.name)
        for kind, others in compare_readers.READERS.items()
        for reader in (compare_readers.OURS[kind], *others)
    ]
    assert [(row[0].strip("| "), row[1].rpartition(" ")[0]) for row in rows] == readers
    assert len(readers) > 20


def test_about_twenty_files_of_every_kind_with_phrases_that_occur_once():
    files = compare_readers.FILES
    assert {file.kind for file in files} == compare_readers.READERS.keys()
    assert len(files) == len({file.path for file in files}) == 22
    for file in files:
        phrases = [compare_readers.plain(phrase) for phrase in file.phrases]
        assert len(set(phrases)) == len(phrases) >= 3 and all(phrases)
        packages = [name.partition("==")[0].replace("-", "_") for name in compare_readers.SOURCES]
        assert any(file.path.startswith(name) for name in packages)
