"""Links inside corpora and run folders: nothing is written or deleted through them."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import tiny_world

from clara_cli.commands import compress, index, pretrain
from clara_cli.errors import ArtefactError, Interrupted


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of somebody's, which must stay as it is."""
    folder = tmp_path / "theirs"
    (folder / "00000.jsonl").parent.mkdir()
    for name in ("00000.jsonl", "00000.safetensors", "letter.txt"):
        (folder / name).write_text("dear")
    return folder


def link(artefact: Path, name: str, theirs: Path) -> None:
    """Put a link out of an artefact in place of a part of it: to a file where the part is one."""
    path = artefact / name
    as_file = path.is_file() or path.suffix in (".json", ".jsonl") or path.name == ".lock"
    if path.exists():
        path.rename(path.with_name(f"{path.name}.moved"))
        path.with_name(f"{path.name}.moved").rename(theirs.parent / "moved")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(theirs / "letter.txt" if as_file else theirs)


def refused(theirs: Path, artefact: Path, name: str, run) -> None:
    """`run` ends with 3 and names the link, and nothing of theirs changed."""
    before = tiny_world.files(theirs)
    with pytest.raises(ArtefactError, match=f"{artefact / name}") as caught:
        run()
    assert caught.value.code == 3 and caught.value.hint
    assert tiny_world.files(theirs) == before and (artefact / name).is_symlink()


@pytest.mark.parametrize("name", ["journal", "journal.json", ".lock", "shards", "passages"])
def test_compress_follows_no_link_in_a_corpus(works, report, tmp_path, theirs, name):
    out = tmp_path / "out.clara"
    link(out, name, theirs)
    config = tiny_world.compress(works.documents, works.e2e, out)
    refused(theirs, out, name, lambda: compress.run(config, report))


@pytest.mark.parametrize("name", ["journal", ".lock", "shards", "passages", "manifest.json"])
def test_compress_into_follows_no_link_in_a_corpus(works, report, tmp_path, theirs, name):
    out = tmp_path / "out.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, out), report)
    if name in ("shards", "passages"):  # read through the link, what is new is not written
        (out / name).rename(theirs / "kept")
        (out / name).symlink_to(theirs / "kept")
    elif name == "manifest.json":
        (out / name).rename(theirs / name)
        (out / name).symlink_to(theirs / name)
    else:
        link(out, name, theirs)
    more = tiny_world.write_jsonl(tmp_path / "more.jsonl", [{"id": "new", "text": "It rains."}])
    config = tiny_world.compress(more, works.e2e, None, into=out, append=True)
    refused(theirs, out, name, lambda: compress.run(config, report))


@pytest.mark.parametrize("name", ["index", "index/.lock", "index/index.json", "index/bm25"])
def test_index_follows_no_link_in_a_corpus(works, report, tmp_path, theirs, name):
    out = tmp_path / "out.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, out), report)
    link(out, name, theirs)
    for engine in ("hnsw", "exact") if name != "index/bm25" else ("hnsw",):
        config = tiny_world.index(out, engine=engine)
        refused(theirs, out, name, lambda config=config: index.run(config, report))


def test_a_corpus_that_is_a_link_itself_is_followed(works, report, tmp_path):
    (tmp_path / "there").mkdir()
    out = tmp_path / "out.clara"
    out.symlink_to(tmp_path / "there")
    compress.run(tiny_world.compress(works.documents, works.e2e, out), report)
    index.run(tiny_world.index(out, engine="hnsw"), report)
    assert out.is_symlink() and (tmp_path / "there" / "index" / "index.json").is_file()


RUN = ("last", "last.writing", "checkpoint", "checkpoint.writing", "metrics.jsonl", ".lock")


@pytest.mark.parametrize("name", [*RUN, "environment.jsonl", "run.json", "tensorboard"])
def test_training_follows_no_link_in_a_run_folder(works, heard, report, tmp_path, theirs, name):
    run = tmp_path / "run"
    tracker = "tensorboard" if name == "tensorboard" else "none"
    config = tiny_world.scp(works.pairs, works.backbone, run, tracker=tracker)
    if name != "run.json":
        with pytest.raises(Interrupted):
            pretrain.run(config, heard(stop_at=2))
        if tracker == "tensorboard":
            (run / "tensorboard").rename(tmp_path / "moved")
    else:
        run.mkdir()
    link(run, name, theirs)
    refused(theirs, run, name, lambda: pretrain.run(config, report))
