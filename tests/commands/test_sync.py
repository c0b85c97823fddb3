"""compress --into: a corpus brought to the state of its documents, searched like a rebuilt one."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_world

from clara_cli.answering.retriever import Retriever
from clara_cli.commands import compress, index
from clara_cli.config import CompressConfig
from clara_cli.corpus.documents_table import Documents
from clara_cli.corpus.store import Corpus, verify
from clara_cli.errors import ArtefactError, DataError, UsageError
from clara_cli.records import SyncResult

KEYS = [field.name for field in dataclasses.fields(SyncResult)]


def into(corpus: Path, *inputs: Path | str, **changes: Any) -> CompressConfig:
    named = tuple(map(str, inputs))
    return CompressConfig(**{**tiny_world.MACHINE, "inputs": named, "into": corpus, **changes})


def texts(corpus: Path) -> dict[str, str]:
    """The text of each document, of its passages in order."""
    found: dict[str, str] = {}
    for passage in Corpus.open(corpus).passages():
        found[passage.document_id] = found.get(passage.document_id, "") + str(passage.text)
    return found


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def sentences(count: int, first: int = 0) -> dict[str, str]:
    return {
        f"{n:03}.txt": tiny_world.sentence(f"Town {n}", f"Mayor {n * n}")
        for n in range(first, count)
    }


def built(works, heard, folder: Path, out: Path, **changes: Any) -> Path:
    compress.run(
        tiny_world.compress(folder, works.e2e, out, **{"shard_size": 3, **changes}), heard()
    )
    return out


def assert_searched_alike(one: Path, other: Path) -> None:
    """Exact scan and BM25 give the same ids in the same order, scores within 1e-6, ties apart."""
    left, right = Retriever.open(one), Retriever.open(other)
    assert texts(one) == texts(other)
    assert left.corpus.manifest.counts == right.corpus.manifest.counts | {
        "skipped": left.corpus.manifest.counts["skipped"]
    }
    generator = torch.Generator().manual_seed(0)
    identity = left.corpus.manifest.identity
    everything = len(left.corpus)
    for question in ("mayor of Town 3", "Elmgate", "Mayor 49 is"):
        query_MD = torch.randn(identity.memory_tokens, identity.hidden, generator=generator)
        for stage in ("latent", "bm25"):
            found = []
            for retriever in (left, right):
                ranked = retriever.search(question, query_MD, everything, stage)
                passages = retriever.corpus.passages_at([row for _, row in ranked])
                ids = [passage.passage_id for passage in passages]
                found.append(dict(zip(ids, [score for score, _ in ranked], strict=True)))
            assert found[0].keys() == found[1].keys()
            assert list(found[0].values()) == pytest.approx(list(found[1].values()), abs=1e-6)
            for passage_id, score in found[0].items():
                assert score == pytest.approx(found[1][passage_id], abs=1e-6)


def test_new_changed_and_unchanged_documents(works, heard, tmp_path):
    folder = write(tmp_path / "notes", sentences(8))
    corpus = built(works, heard, folder, tmp_path / "c.clara", store_dtype="float32")
    before = tiny_world.files(corpus)
    same = compress.run(into(corpus, folder), heard())
    assert list(dataclasses.asdict(same)) == KEYS
    assert (same.unchanged, same.computed, same.bytes_written) == (8, 0, 0)
    assert tiny_world.files(corpus) == before

    write(folder, {"003.txt": "The mayor of Town 3 is new.", "new/a.txt": "Elmgate has a mayor."})
    result = compress.run(into(corpus, folder), heard())
    assert (result.added, result.replaced, result.unchanged, result.deleted) == (1, 1, 7, 0)
    assert result.computed == 2 and (result.documents, result.passages) == (9, 9)
    after = tiny_world.files(corpus)
    shards = {name for name in before if name.startswith(("shards", "passages"))}
    assert all(after[name] == before[name] for name in shards)
    assert result.bytes_written == sum(
        len(data) for name, data in after.items() if name not in before
    )
    assert verify(corpus) == []
    rebuilt = built(works, heard, folder, tmp_path / "again.clara", store_dtype="float32")
    assert_searched_alike(corpus, rebuilt)


def test_a_run_that_changes_nothing_loads_no_checkpoint(works, heard, tmp_path, monkeypatch):
    folder = write(tmp_path / "notes", sentences(3))
    corpus = built(works, heard, folder, tmp_path / "c.clara")
    loaded: list[Any] = []
    from clara_cli.commands import compress_pipeline

    monkeypatch.setattr(compress_pipeline, "load", lambda *_: loaded.append(1))
    assert compress.run(into(corpus, folder), heard()).unchanged == 3
    assert compress.run(into(corpus, delete=("001.txt",)), heard()).deleted == 1
    assert not loaded
    with pytest.raises(ArtefactError, match="made with ratio = 4, this command has 16"):
        compress.run(into(corpus, folder, ratio=16), heard())


def test_a_deleted_document_is_gone_and_comes_back_from_what_is_stored(works, heard, tmp_path):
    folder = write(tmp_path / "notes", sentences(6))
    corpus = built(works, heard, folder, tmp_path / "c.clara")
    memory = Corpus.open(corpus).memory(range(6))
    (tmp_path / "ids").write_text("001.txt\n\n004.txt\n")
    result = compress.run(into(corpus, delete_from=tmp_path / "ids"), heard())
    assert (result.deleted, result.documents, result.computed) == (2, 4, 0)
    assert sorted(texts(corpus)) == ["000.txt", "002.txt", "003.txt", "005.txt"]
    opened = Corpus.open(corpus)
    assert torch.equal(opened.memory(range(4)), memory[[0, 2, 3, 5]])
    assert torch.equal(torch.cat([m for _, m in opened.memory_chunks(2)]), memory[[0, 2, 3, 5]])
    with pytest.raises(UsageError, match=r"no document '004.txt'") as caught:
        compress.run(into(corpus, delete=("004.txt", "000.txt")), heard())
    assert "nothing was deleted" in caught.value.hint and len(texts(corpus)) == 4
    (folder / "moved").mkdir()
    (folder / "001.txt").rename(folder / "moved/001.txt")
    result = compress.run(into(corpus, folder), heard())
    assert (result.added, result.moved, result.computed) == (2, 2, 0)
    assert set(texts(corpus)) == {*sentences(6), "moved/001.txt"} - {"001.txt"}
    rows = [p.document_id for p in Corpus.open(corpus).passages()]
    moved = Corpus.open(corpus).memory([rows.index("moved/001.txt")])
    assert torch.equal(moved, memory[[1]])


def test_what_is_gone_is_pruned_once_the_user_agrees(works, heard, tmp_path):
    folder = write(tmp_path / "notes", sentences(5))
    other = write(tmp_path / "other", {"o.txt": "Another input."})
    corpus = built(works, heard, folder, tmp_path / "c.clara")
    compress.run(into(corpus, other), heard())
    (other / "o.txt").unlink()  # not among the inputs given: kept
    for name in ("001.txt", "002.txt"):
        (folder / name).unlink()
    assert compress.run(into(corpus, folder), heard()).deleted == 0

    class Asked(heard):
        answer: bool | None = None

        def confirm(self, question: str) -> bool | None:
            self.notes.append(question)
            return self.answer

    report, before = Asked(), (corpus / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="2 documents are no longer there") as caught:
        compress.run(into(corpus, folder, prune=True), report)
    assert "--yes" in caught.value.hint
    assert (corpus / "manifest.json").read_bytes() == before
    assert report.notes[-2:] == ["no longer there: 001.txt, 002.txt", "delete 2 documents?"]
    report.answer = False
    assert compress.run(into(corpus, folder, prune=True), report).deleted == 0
    report.answer = True
    assert compress.run(into(corpus, folder, prune=True), report).deleted == 2
    assert set(texts(corpus)) == {"000.txt", "003.txt", "004.txt", "o.txt"}
    (folder / "000.txt").unlink()
    assert compress.run(into(corpus, folder, prune=True, yes=True), heard()).deleted == 1


def test_what_cannot_be_read_or_is_not_mounted_is_not_pruned(works, heard, tmp_path, monkeypatch):
    files = {**sentences(2), "disk/a.txt": "On a disk.", "bad/b.txt": "Fine for now."}
    folder = write(tmp_path / "notes", {**files, "lines.jsonl": '{"id": "x", "text": "a line"}\n'})
    corpus = built(works, heard, folder, tmp_path / "c.clara")
    (folder / "disk/a.txt").unlink()
    (folder / "000.txt").unlink()
    (folder / "bad/b.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "lines.jsonl").write_text("not JSON\n")
    prune = {"prune": True, "skip_bad": True}

    class Agrees(heard):
        def confirm(self, question: str) -> bool:
            return True

    result = compress.run(into(corpus, folder, **prune), Agrees())
    assert (result.deleted, result.skipped) == (1, 2)
    assert set(texts(corpus)) == {"001.txt", "disk/a.txt", "bad/b.txt", "x"}
    result = compress.run(into(corpus, folder, **prune, yes=True), heard())  # the empty folder too
    assert result.deleted == 1 and "disk/a.txt" not in texts(corpus)
    for name in ("001.txt", "bad/b.txt", "lines.jsonl"):
        (folder / name).unlink()
    (folder / "bad").rmdir()
    (folder / "disk").rmdir()
    assert compress.run(into(corpus, folder, **prune), Agrees()).deleted == 0  # perhaps unmounted
    assert compress.run(into(corpus, folder, **prune, yes=True), heard()).deleted == 3
    assert texts(corpus) == {} and len(Corpus.open(corpus)) == 0


def test_a_file_of_another_input_with_the_same_name_is_refused(works, heard, tmp_path):
    one = write(tmp_path / "one", {"a.txt": "The one."})
    other = write(tmp_path / "other", {"a.txt": "The other."})
    corpus = built(works, heard, one, tmp_path / "c.clara")
    with pytest.raises(DataError, match=r"its id, 'a.txt', is that of .*one/a.txt already"):
        compress.run(into(corpus, other), heard())
    assert compress.run(into(corpus, other, skip_bad=True), heard()).skipped == 1
    (one / "a.txt").unlink()  # it moved
    result = compress.run(into(corpus, other), heard())
    assert (result.replaced, texts(corpus)) == (1, {"a.txt": "The other."})


def test_records_by_id_and_by_content(works, heard, tmp_path):
    data = tmp_path / "data.jsonl"
    lines = [{"id": "a", "text": "One mayor."}, {"text": "Two mayors."}, {"text": "Three."}]
    tiny_world.write_jsonl(data, lines)
    corpus = built(works, heard, data, tmp_path / "c.clara")
    tiny_world.write_jsonl(data, [{"text": "Zero."}, *lines, {"id": "b", "text": "Four."}])
    result = compress.run(into(corpus, data), heard())
    assert (result.added, result.unchanged, result.computed) == (2, 3, 2)
    tiny_world.write_jsonl(data, [{"id": "a", "text": "One mayor less."}])
    result = compress.run(into(corpus, data, prune=True, yes=True), heard())
    assert (result.replaced, result.deleted) == (1, 4)
    assert texts(corpus) == {"a": "One mayor less."}


def test_a_corpus_of_version_1_follows_without_computing_again(works, heard, tmp_path):
    folder = write(tmp_path / "notes", {**sentences(5), "long.txt": "A mayor went. " * 30})
    corpus = built(works, heard, folder, tmp_path / "c.clara")
    path = corpus / "manifest.json"
    older = {**json.loads(path.read_text()), "version": 1}
    for part in older["parts"]:
        (corpus / part.pop("documents")["file"]).unlink()
        del part["origins"]
    del older["edits"], older["needs"]
    path.write_text(json.dumps(older))
    write(folder, {"001.txt": "Changed."})
    result = compress.run(into(corpus, folder), heard())
    assert (result.replaced, result.unchanged, result.computed) == (1, 5, 1)
    known = {one.id: bool(one.content and one.file) for one in Documents(Corpus.open(corpus))}
    assert known == dict.fromkeys([*sentences(5), "long.txt"], True)
    again = compress.run(into(corpus, folder), heard())
    assert (again.unchanged, again.bytes_written) == (6, 0)
    assert json.loads(path.read_text())["version"] == 2


@pytest.mark.parametrize("dtype", ["fp8", "int8", "nf4"])
def test_a_vacuum_takes_deleted_rows_out_and_search_stays(works, heard, tmp_path, dtype):
    folder = write(tmp_path / "notes", sentences(11))
    corpus = built(works, heard, folder, tmp_path / "c.clara", store_dtype=dtype)
    index.run(tiny_world.index(corpus, engine="hnsw"), heard())
    kept = Corpus.open(corpus)
    memory = kept.memory(range(11))
    write(folder, {"002.txt": "New words."})
    compress.run(into(corpus, folder), heard())
    compress.run(into(corpus, delete=("005.txt", "007.txt", "008.txt")), heard())
    size = Corpus.open(corpus).manifest.bytes
    result = compress.run(into(corpus, vacuum=True), heard())
    opened = Corpus.open(corpus)
    assert opened.manifest.edits.deleted is None and opened.manifest.bytes < size
    assert [shard.rows for shard in opened.manifest.shards] == [3, 3, 2]
    rows = {p.document_id: row for row, p in enumerate(opened.passages())}
    assert torch.equal(opened.memory([rows["000.txt"], rows["010.txt"]]), memory[[0, 10]])
    assert result.documents == 8 and verify(corpus) == []
    assert Retriever.open(corpus).index is not None  # it followed
    assert torch.equal(kept.memory(range(11)), memory)  # a reader keeps what it has open
    assert len(list((corpus / "shards").iterdir())) > 3
    del kept, opened
    compress.run(into(corpus, delete=("000.txt",)), heard())
    compress.run(into(corpus, vacuum=True), heard())
    assert len(list((corpus / "shards").iterdir())) == 3  # what nobody reads is gone
    again = compress.run(into(corpus, folder), heard())
    assert again.added == 4 and again.computed == 4
    assert compress.run(into(corpus, vacuum=True), heard()).documents == 11


def test_without_into_or_documents_options_are_refused(tmp_path):
    for options, words in (
        ({"inputs": ("x",), "prune": True}, "--prune without --into"),
        ({"inputs": ("x",), "into": tmp_path, "yes": True}, "--yes without --prune"),
        ({"into": tmp_path}, "no documents"),
        ({"inputs": ("x",), "into": tmp_path, "delete": ("a",)}, "documents and --delete"),
        ({"inputs": ("x",), "into": tmp_path, "append": True, "prune": True}, "--append only adds"),
        ({"inputs": ("-",), "into": tmp_path, "watch": True}, "--watch needs files"),
    ):
        with pytest.raises(UsageError, match=words):
            CompressConfig(**options)


def test_the_command_a_corpus_was_made_with_names_into_once_it_was_edited(works, heard, tmp_path):
    folder = write(tmp_path / "notes", sentences(3))
    corpus = built(works, heard, folder, tmp_path / "c.clara")
    compress.run(into(corpus, delete=("001.txt",)), heard())
    with pytest.raises(ArtefactError, match="brought to the state of other documents") as caught:
        built(works, heard, folder, corpus)
    assert f"--into {corpus}" in caught.value.hint
    assert os.path.exists(corpus / "manifest.json")


def test_a_dry_run_says_what_would_change_and_writes_nothing(works, heard, tmp_path):
    folder = write(tmp_path / "notes", sentences(4))
    corpus = built(works, heard, folder, tmp_path / "c.clara")
    write(folder, {"000.txt": "Changed.", "new.txt": "New."})
    (folder / "003.txt").unlink()
    before, report = tiny_world.files(corpus), heard()
    result = compress.run(into(corpus, folder, dry_run=True, prune=True), report)
    assert (result.added, result.replaced, result.unchanged, result.deleted) == (1, 1, 2, 1)
    assert result.computed == result.bytes_written == 0 and result.documents == 4
    assert report.notes == ["no longer there: 003.txt"] and tiny_world.files(corpus) == before
    done = compress.run(into(corpus, folder, prune=True, yes=True), heard())
    assert (done.added, done.replaced, done.unchanged, done.deleted) == (1, 1, 2, 1)


def test_damage_of_an_edited_corpus_and_of_its_lists_is_named(works, heard, tmp_path):
    folder = write(tmp_path / "notes", sentences(4))
    corpus = built(works, heard, folder, tmp_path / "c.clara")
    (table,) = (corpus / "documents").iterdir()
    whole = tiny_world.files(corpus)
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match=r"documents/\w+\.jsonl\.gz: .* bytes") as caught:
        index.run(tiny_world.index(corpus, check=True), heard())
    assert f"--out {corpus}" in caught.value.hint
    built(works, heard, folder, corpus)  # the command that made it
    assert tiny_world.files(corpus) == whole
    compress.run(into(corpus, delete=("001.txt",)), heard())
    (rows,) = (corpus / "documents").glob("*.rows")
    index.run(tiny_world.index(corpus, check=True), heard())
    shard = next((corpus / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1] + bytes([shard.read_bytes()[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="its SHA-256") as caught:
        index.run(tiny_world.index(corpus, check=True), heard())
    assert "made of notes" in caught.value.hint
    rows.write_bytes(rows.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtefactError, match=r"\.rows: damaged"):
        Corpus.open(corpus)


# --- watching ---


def test_a_watched_folder_is_followed_once_its_files_are_at_rest(works, heard, tmp_path):
    from clara_cli.commands.watch import watch
    from clara_cli.config.documents import DocumentOptions

    folder = write(tmp_path / "notes", sentences(2))
    corpus = built(works, heard, folder, tmp_path / "c.clara")
    seen: list[dict[str, str]] = []
    steps = iter([
        None,  # nothing happens
        {"new.txt": "half"},
        {"new.txt": "half and"},  # still being written
        {"new.txt": "half and whole"},
        None,
        None,
        {"000.txt": "changed"},
        None,
    ])  # fmt: skip

    def sleep(seconds: float) -> None:
        try:
            files = next(steps)
        except StopIteration:
            raise KeyboardInterrupt from None
        for name, text in (files or {}).items():
            (folder / name).write_text(text)

    def change() -> None:
        compress.run(into(corpus, folder), heard())
        seen.append(texts(corpus))

    with pytest.raises(KeyboardInterrupt):
        watch([str(folder)], DocumentOptions(), change, sleep)
    assert [found.get("new.txt") for found in seen] == [None, "half and whole", "half and whole"]
    assert seen[-1]["000.txt"] == "changed"


def test_ctrl_c_ends_watching_and_a_bad_file_does_not(works, heard, tmp_path, monkeypatch):
    from clara_cli.commands import watch
    from clara_cli.errors import ExitCode, Interrupted

    folder = write(tmp_path / "notes", sentences(2))
    corpus = built(works, heard, folder, tmp_path / "c.clara")
    report, loads = heard(), []
    from clara_cli.commands import compress_pipeline

    load = compress_pipeline.load
    monkeypatch.setattr(
        compress_pipeline, "load", lambda *options: loads.append(1) or load(*options)
    )
    steps = iter(
        [{"bad.txt": b"\x00\xff\xfe"}, {}, {"bad.txt": b"now good"}, {}, {"c.txt": b"c"}, {}]
    )

    def sleep(seconds: float) -> None:
        try:
            files = next(steps)
        except StopIteration:
            raise KeyboardInterrupt from None
        for name, data in files.items():
            (folder / name).write_bytes(data)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    monkeypatch.setattr(watch.watch, "__defaults__", (sleep,))
    with pytest.raises(Interrupted) as caught:
        compress.run(into(corpus, folder, watch=True), report)
    assert caught.value.code == ExitCode.INTERRUPTED and int(caught.value.code) == 130
    assert len(report.warnings) == 1 and "bad.txt" in report.warnings[0]
    assert set(texts(corpus)) == {*sentences(2), "bad.txt", "c.txt"}
    assert [note for note in report.notes if "1 added" in note] and len(loads) == 1


# --- seeing ---


def test_the_documents_of_a_corpus_are_listed_and_shown(works, heard, tmp_path):
    long = {"long.md": "# A long one\n" + "A mayor went to Elmgate. " * 12}
    folder = write(tmp_path / "notes", {**sentences(2), **long})
    corpus = built(works, heard, folder, tmp_path / "c.clara")
    compress.run(into(corpus, delete=("001.txt",)), heard())
    listed = index.run(tiny_world.index(corpus, list=True), heard())
    assert [(row.id, row.source) for row in listed.documents] == [
        ("000.txt", "notes/000.txt"), ("long.md", "notes/long.md")
    ]  # fmt: skip
    passages = [p for p in Corpus.open(corpus).passages() if p.document_id == "long.md"]
    row = listed.documents[1]
    assert (row.passages, row.tokens) == (len(passages), sum(p.tokens for p in passages))
    assert len(passages) > 1 and listed.passages == len(passages) + 1
    shown = index.run(tiny_world.index(corpus, show="long.md"), heard())
    assert [one.text for one in shown.texts] == [p.text for p in passages]
    assert (shown.title, shown.model) == ("A long one", str(works.e2e))
    assert shown.bytes == row.bytes == len(passages) * 16 * 32 * 4  # float32
    with pytest.raises(UsageError, match="no document '001.txt'"):
        index.run(tiny_world.index(corpus, show="001.txt"), heard())
    with pytest.raises(UsageError, match="--list and --show do not go together"):
        tiny_world.index(corpus, list=True, show="x")
    parts = "# Rivers\n\n" + "\n".join(f"## {n}\n\n" + "The Ord is long. " * 9 for n in "ab")
    write(tmp_path / "notes", {"parts.md": parts})
    compress.run(into(corpus, folder), heard())
    shown = index.run(tiny_world.index(corpus, show="parts.md"), heard())
    titles = {p.title for p in Corpus.open(corpus).passages() if p.document_id == "parts.md"}
    assert shown.title == "Rivers" and titles == {"Rivers > a", "Rivers > b"}


def test_cached_corpora_are_listed_and_forgotten(works, heard, tmp_path, monkeypatch):
    from clara_cli.corpus import cache
    from clara_cli.documents.listing import list_sources

    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    assert cache.cached_corpora() == []
    folder = write(tmp_path / "notes", sentences(2))
    place = cache.cached_corpus(list_sources([str(folder)]), ["maker"])
    with cache.in_use(place):
        built(works, heard, folder, place)
        with pytest.raises(ArtefactError, match="is in use"):
            cache.forget(place.stem)
    (row,) = cache.cached_corpora()
    assert (row.name, row.documents, row.passages) == (place.stem, 2, 2)
    assert row.inputs == (str(folder),) and row.model == str(works.e2e)
    assert row.bytes == sum(len(data) for data in tiny_world.files(place).values())
    with pytest.raises(UsageError, match="no cached corpus 'x'"):
        cache.forget("x")
    assert cache.forget(place.stem) == [place.stem]
    assert cache.cached_corpora() == [] and not place.exists()
    assert cache.forget("all") == []
