"""A corpus at a URL: asked as the folder is, its files copied as needed, nothing written there."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from helpers import tiny_world

from clara_cli.answering.retriever import Retriever
from clara_cli.commands import ask, compress, index
from clara_cli.config import CompressConfig
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.records import NullReport, SearchResult
from clara_cli.storage import remote_folder
from clara_cli.storage.remote_folder import url_of

QUESTIONS = ["Who is mayor of Pinewick?", "Lia Frost", "Wetter"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "remote"


@pytest.fixture(scope="session")
def indexed(works, tmp_path_factory) -> Path:
    """A corpus of four shards with an index, of which a document was deleted."""
    corpus = tmp_path_factory.mktemp("remote") / "c.clara"
    settings = tiny_world.compress(works.documents, works.e2e, corpus, shard_size=4)
    compress.run(settings, NullReport())
    compress.run(CompressConfig(**tiny_world.MACHINE, into=corpus, delete=("d3",)), NullReport())
    index.run(tiny_world.index(corpus, engine="hnsw"), NullReport())
    return corpus


@pytest.fixture
def url(indexed: Path) -> Iterator[str]:
    """The corpus in a file system in memory."""
    memory, root = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}.clara"
    memory.put(str(indexed), root, recursive=True)
    yield f"memory:/{root}"
    memory.rm(root, recursive=True)


def stored(url: str) -> dict[str, bytes]:
    system, root = fsspec.core.url_to_fs(url)
    return {name: system.cat_file(name) for name in system.find(root)}


def search(corpus: Path, question: str, **changes) -> SearchResult:
    how = {"search": True, "top_k": 3, **changes}
    (result,) = ask.run(tiny_world.ask(question, corpus, **how), NullReport())
    assert isinstance(result, SearchResult)
    return result


def hits(result) -> list[tuple[str, float]]:
    return [(hit.passage.passage_id, round(hit.score, 5)) for hit in result.sources]


def copies(cache: Path, ending: str) -> list[str]:
    return sorted(path.name for path in cache.rglob(f"*{ending}"))


def shard_copies(cache: Path) -> list[Path]:
    files = [path for path in cache.rglob("*") if path.is_file()]
    return [path for path in files if path.parent.name in ("shards", "passages")]


@pytest.mark.parametrize("stage", ["latent", "bm25", "hybrid"])
def test_a_corpus_at_a_url_is_searched_as_the_folder_is(indexed, url, own_cache, stage):
    before = stored(url)
    for question in QUESTIONS:
        here = search(indexed, question, first_stage=stage)
        assert hits(search(Path(url), question, first_stage=stage)) == hits(here)
    assert stored(url) == before  # no lock, nothing
    for path in own_cache.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert "d3" not in {hit.passage.document_id for hit in here.sources}


def test_it_answers_and_says_where_it_is_read_from(indexed, url, own_cache, heard):
    report = heard()
    (there,) = ask.run(tiny_world.ask(QUESTIONS[0], Path(url)), report)
    (here,) = ask.run(tiny_world.ask(QUESTIONS[0], indexed), NullReport())
    assert there.answer == here.answer and hits(there) == hits(here)
    note = next(note for note in report.notes if note.startswith(url))
    assert str(own_cache) in note and "MB" in note
    assert not any("every passage is scanned" in note for note in report.notes)


def test_only_the_files_that_are_needed_are_copied(indexed, url, own_cache):
    result = search(Path(url), "Redwater", first_stage="bm25", top_k=1)
    assert result.sources[0].passage.document_id == "d6"
    assert copies(own_cache, ".jsonl.gz") == ["00001.jsonl.gz"]
    assert copies(own_cache, ".safetensors") == ["bm25.safetensors", "tables.safetensors"]
    shard = next(own_cache.rglob("00001.jsonl.gz"))
    shard.write_bytes(b"x" * shard.stat().st_size)  # it is not copied twice
    with pytest.raises(ArtefactError, match=r"00001\.jsonl\.gz"):
        search(Path(url), "Redwater", first_stage="bm25", top_k=1)


def test_a_filter_copies_the_fields_and_no_passages_besides(indexed, url, own_cache):
    where = {"first_stage": "bm25", "top_k": 1, "where": "document_id=d6"}
    result = search(Path(url), "Redwater", **where)
    assert result.sources[0].passage.document_id == "d6"
    assert copies(own_cache, ".jsonl.gz") == ["00001.jsonl.gz"]
    assert "fields.safetensors" in copies(own_cache, ".safetensors")


def test_a_filter_works_though_the_corpus_was_edited_since_it_was_opened(indexed, url, own_cache):
    retriever = Retriever.open(Path(url))
    system, root = fsspec.core.url_to_fs(f"{url}/index/fields/fields.json")
    described = json.loads(system.cat_file(root))
    system.pipe_file(root, json.dumps({**described, "corpus_sha256": "f" * 64}).encode())
    where = "document_id=d6"
    assert retriever.rows_where(where) == Retriever.open(indexed).rows_where(where) != []


def test_documents_of_a_corpus_at_a_url_are_listed_and_shown(indexed, url):
    there = index.run(tiny_world.index(Path(url), list=True), NullReport())
    here = index.run(tiny_world.index(indexed, list=True), NullReport())
    assert there.documents == here.documents and len(here.documents) == 10
    shown = index.run(tiny_world.index(Path(url), show="long"), NullReport())
    assert [one.text for one in shown.texts]


def test_nothing_is_written_to_or_locked_at_a_url(works, url):
    before = stored(url)
    for place in ({"into": Path(url)}, {"out": Path(url)}, {"into": Path("s3://b/c.clara")}):
        with pytest.raises(UsageError, match="nothing is written to a URL") as refused:
            CompressConfig(inputs=(str(works.documents),), **place)
        assert "a copy of it" in refused.value.hint and int(refused.value.code) == 2
    for settings in ({}, {"check": True}):
        with pytest.raises(UsageError, match="nothing is written to a URL"):
            index.run(tiny_world.index(Path(url), **settings), NullReport())
    assert stored(url) == before and not Path("s3:").exists()


@pytest.mark.parametrize("name", ["passages/00001.jsonl.gz", "shards/00000.safetensors"])
def test_other_bytes_than_the_manifest_says_are_refused(url, own_cache, name):
    system, root = fsspec.core.url_to_fs(url)
    data = system.cat_file(f"{root}/{name}")
    for wrong in (data[:-1], data + b"x", data[:-1] + bytes([data[-1] ^ 1]), None):
        if wrong is None:
            system.rm_file(f"{root}/{name}")
        else:
            system.pipe_file(f"{root}/{name}", wrong)
        with pytest.raises(ArtefactError, match=name) as refused:
            search(Path(url), QUESTIONS[0], first_stage="hybrid")
        assert url in refused.value.message and int(refused.value.code) == 3
        assert not list(own_cache.rglob(Path(name).name))


def test_an_index_of_another_state_or_in_milvus_is_not_used(indexed, url, heard):
    system, root = fsspec.core.url_to_fs(url)
    data = system.cat_file(f"{root}/index/index.json")
    system.pipe_file(f"{root}/index/index.json", data.replace(b'"hnsw"', b'"milvus"'))
    report = heard()
    question = tiny_world.ask(QUESTIONS[0], Path(url), search=True, first_stage="latent", top_k=3)
    (result,) = ask.run(question, report)
    assert hits(result) == hits(search(indexed, QUESTIONS[0], first_stage="latent"))
    assert Corpus.open(Path(url)).remote is not None
    system.rm_file(f"{root}/index/index.json")
    assert hits(search(Path(url), QUESTIONS[0])) == hits(search(indexed, QUESTIONS[0]))


def test_copies_are_bounded_and_come_again_when_needed(indexed, url, own_cache, monkeypatch):
    whole = hits(search(Path(url), QUESTIONS[0], first_stage="latent"))
    assert len(shard_copies(own_cache)) > 3
    shutil.rmtree(next(own_cache.glob("*.clara/shards")))
    monkeypatch.setattr(remote_folder, "MOST_BYTES", 1)
    other = own_cache / "other.clara" / "shards" / "00000.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(bytes(1000))
    for question in QUESTIONS:
        search(Path(url), question, first_stage="hybrid")
        assert len(shard_copies(own_cache)) == 1 and not other.exists()
    assert hits(search(Path(url), QUESTIONS[0], first_stage="latent")) == whole
    corpora, size = remote_folder.remove_copies()
    assert (corpora, size > 0) == (2, True) and not own_cache.exists()


def test_what_is_no_corpus_or_no_file_system_is_said(tmp_path):
    with pytest.raises(ArtefactError, match="memory://nothing.clara: not a corpus: no manifest"):
        Corpus.open(Path("memory://nothing.clara"))
    with pytest.raises(UsageError, match="nosuch"):
        Corpus.open(Path("nosuch://a/b.clara"))
    with pytest.raises(UsageError, match="one URL within another"):
        Corpus.open(Path("memory://a.clara::memory://b"))


def test_a_file_url_and_a_web_server_serve_a_corpus(indexed):
    here = hits(search(indexed, QUESTIONS[0]))
    assert hits(search(Path(f"file://{indexed}"), QUESTIONS[0])) == here
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(indexed.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web = f"http://127.0.0.1:{server.server_port}"
        assert hits(search(Path(f"{web}/c.clara"), QUESTIONS[0])) == here
        with pytest.raises(ArtefactError, match="no manifest"):
            Corpus.open(Path(f"{web}/other.clara"))
        server.shutdown()


def test_what_is_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert url_of(Path("memory://a/b.clara")) == "memory://a/b.clara"
    assert url_of(Path("https://x.org/b.clara")) == "https://x.org/b.clara"
    assert url_of(Path("file:///tmp/b.clara")) == "file:///tmp/b.clara"
    for path in ("a.clara", "/a/b", "C:/a", "a:b/c", "./s3/b"):
        assert url_of(Path(path)) is None
    (tmp_path / "odd:" / "b").mkdir(parents=True)
    assert url_of(Path("odd:/b")) is None and url_of(Path("odd://c")) == "odd://c"
