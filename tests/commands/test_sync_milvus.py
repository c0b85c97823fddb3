"""A corpus whose keys lie in Milvus, edited by commands: asked like one made anew."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_world

from clara_cli.answering.retriever import Retriever
from clara_cli.commands import ask, compress, index
from clara_cli.config import CompressConfig
from clara_cli.records import NullReport

pytestmark = pytest.mark.skipif(
    find_spec("pymilvus") is None or find_spec("milvus_lite") is None,
    reason="pymilvus and milvus-lite are not installed: the extra clara-cli[milvus]",
)
QUESTIONS = ["Who is mayor of Town 3?", "Mayor 49", "the new mayor of Elmgate"]


def sentence(number: int) -> str:
    return tiny_world.sentence(f"Town {number}", f"Mayor {number * number}")


def write(folder: Path, numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        (folder / f"{number:03}.txt").write_text(sentence(number), encoding="utf-8")


def made(works, folder: Path, corpus: Path) -> Path:
    """A corpus of a folder, in float32, its keys in a file beside it."""
    settings = tiny_world.compress(folder, works.e2e, corpus, store_dtype="float32")
    compress.run(settings, NullReport())
    uri = str(corpus.with_suffix(".db"))
    index.run(tiny_world.index(corpus, engine="milvus", uri=uri), NullReport())
    return corpus


def into(corpus: Path, *inputs: Path, **changes: Any) -> None:
    named = tuple(map(str, inputs))
    settings = {**tiny_world.MACHINE, "inputs": named, "into": corpus, **changes}
    compress.run(CompressConfig(**settings), NullReport())


def found(corpus: Path, question: str) -> list[tuple[str, float]]:
    how = {"search": True, "first_stage": "latent", "top_k": 5}
    (result,) = ask.run(tiny_world.ask(question, corpus, **how), NullReport())
    return [(hit.passage.passage_id, hit.score) for hit in result.sources]


def assert_asked_alike(works, folder: Path, corpus: Path, other: Path) -> None:
    """Two corpora of a folder, the second made now, give the same ids in the same order."""
    made(works, folder, other)
    retriever = Retriever.open(corpus)
    assert retriever.index is not None and retriever.index.engine == "milvus"
    for question in QUESTIONS:
        ours, theirs = found(corpus, question), found(other, question)
        assert [one for one, _ in ours] == [one for one, _ in theirs]
        assert [s for _, s in ours] == pytest.approx([s for _, s in theirs], abs=1e-6)


@pytest.mark.slow
def test_after_edits_a_corpus_in_milvus_is_asked_like_one_made_anew(works, tmp_path):
    folder, corpus = tmp_path / "notes", tmp_path / "c.clara"
    write(folder, range(30))
    made(works, folder, corpus)

    write(folder, range(30, 40))
    (folder / "003.txt").write_text("The mayor of Town 3 is the new mayor of Elmgate.")
    (folder / "007.txt").unlink()
    into(corpus, folder, prune=True, yes=True)
    assert_asked_alike(works, folder, corpus, tmp_path / "second.clara")

    for number in range(4, 40):  # nine tenths go
        (folder / f"{number:03}.txt").unlink(missing_ok=True)
    into(corpus, folder, prune=True, yes=True)
    assert len(found(corpus, QUESTIONS[0])) == 4
    assert_asked_alike(works, folder, corpus, tmp_path / "third.clara")

    write(folder, range(4, 34))  # and come again
    into(corpus, folder)
    assert_asked_alike(works, folder, corpus, tmp_path / "fourth.clara")
    into(corpus, vacuum=True)
    assert_asked_alike(works, folder, corpus, tmp_path / "fifth.clara")
