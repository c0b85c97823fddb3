"""compress --into in several processes: the corpus of one process, file by file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import processes, tiny_world

from clara_cli.commands import compress, index
from clara_cli.config import CompressConfig
from clara_cli.corpus.store import Corpus, verify
from clara_cli.records import NullReport, SyncResult


def into(corpus: Path, *inputs: Path, **changes: Any) -> CompressConfig:
    named = tuple(map(str, inputs))
    return CompressConfig(**{**tiny_world.MACHINE, "inputs": named, "into": corpus, **changes})


def write(folder: Path, files: dict[str, str | None]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text, encoding="utf-8")


def sentence(number: int) -> str:
    return tiny_world.sentence(f"Town {number}", f"Mayor {number * number}")


@pytest.fixture
def corpora(works, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A folder of documents, and two equal corpora of it beside each other, indexed."""
    folder = tmp_path / "notes"
    write(folder, {f"{n:02}.txt": sentence(n) for n in range(14)})
    one, two = tmp_path / "one.clara", tmp_path / "two.clara"
    compress.run(tiny_world.compress(folder, works.e2e, one, shard_size=3), NullReport())
    index.run(tiny_world.index(one, engine="hnsw"), NullReport())
    shutil.copytree(one, two)
    return folder, one, two


def edit(folder: Path) -> None:
    """New, changed, moved and removed documents, one of them twice, for several shards."""
    write(folder, {f"{n:02}.txt": sentence(n) for n in range(14, 24)})
    write(folder, {"03.txt": "The mayor of Town 3 is new.", "05.txt": None, "06.txt": None})
    write(folder, {"moved.txt": sentence(6), "twin.txt": sentence(20)})
    write(folder, {"long.md": "# Towns\n\n" + " ".join(map(sentence, range(40, 49)))})


def in_two(config: CompressConfig) -> list[SyncResult]:
    return processes.ranks(lambda rank: compress.run(config, NullReport()))


def test_two_processes_bring_a_corpus_to_the_state_that_one_does(corpora):
    folder, one, two = corpora
    edit(folder)
    alone = compress.run(into(one, folder, prune=True, yes=True), NullReport())
    first, second = in_two(into(two, folder, prune=True, yes=True))
    assert verify(two) == []
    ours, theirs = tiny_world.files(one), tiny_world.files(two)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    counts = ("added", "replaced", "deleted", "unchanged", "computed", "documents", "passages")
    assert [getattr(first, n) for n in counts] == [getattr(alone, n) for n in counts]
    assert first.computed > 12 and first.deleted == 2 and first.bytes_written > 0
    assert second.documents == 14  # it wrote its shards, and the first one made the change
    assert {p.document_id for p in Corpus.open(two).passages()} >= {"moved.txt", "long.md"}


def test_nothing_to_do_deleting_and_a_vacuum_by_two_processes(corpora):
    folder, one, two = corpora
    before = tiny_world.files(two)
    assert [result.computed for result in in_two(into(two, folder))] == [0, 0]
    assert tiny_world.files(two) == before
    for settings in ({"delete": ("02.txt", "11.txt")}, {"vacuum": True}):
        compress.run(into(one, **settings), NullReport())
        in_two(into(two, **settings))
        # old files stay while somebody has the corpus open, in this process too
        assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
        assert verify(two) == []
    before = tiny_world.files(two)
    (result, _) = in_two(into(two, folder, dry_run=True))
    assert result.added == 2 and tiny_world.files(two) == before


def test_what_one_process_refuses_no_process_does(corpora):
    folder, _, two = corpora
    before = tiny_world.files(two)
    write(folder, {"bad.jsonl": '{"text": 7}\n', "new.txt": "A new one."})
    kinds = {kind for kind, *_ in in_two(into(two, folder))}
    assert "DataError" in kinds and Corpus.open(two).manifest.counts["documents"] == 14
    kept = {name: data for name, data in tiny_world.files(two).items() if name in before}
    assert kept == before
    os.remove(folder / "bad.jsonl")
    assert in_two(into(two, folder))[0].added == 1
