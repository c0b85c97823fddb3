"""Several corpora asked as one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers import tiny_world
from helpers.answers import plain

from clara_cli.answering.engine import AskOptions, Clara
from clara_cli.commands import ask, compress
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.records import NullReport

QUESTION = tiny_world.questions()[0]["question"]


@pytest.fixture(scope="module")
def halves(works, tmp_path_factory) -> list[Path]:
    """The shared documents in two corpora, the second at a higher ratio."""
    folder = tmp_path_factory.mktemp("halves")
    documents, made = tiny_world.documents(), []
    for name, part, ratio in (("one", documents[:5], 4), ("two", documents[5:], 16)):
        data = tiny_world.write_jsonl(folder / f"{name}.jsonl", part)
        made.append(folder / f"{name}.clara")
        compress.run(tiny_world.compress(data, works.e2e, made[-1], ratio=ratio), NullReport())
    return made


def test_several_corpora_answer_as_one_and_name_themselves(clara, halves):
    both = Clara.open(halves, device="cpu", dtype="float32")
    how = AskOptions(first_stage="latent", ratio=16, top_k=4, max_new_tokens=8)
    (joint,), (whole,) = both.ask_all([QUESTION], how), clara.ask_all([QUESTION], how)
    assert joint.answer == whole.answer
    assert [h.passage.passage_id for h in joint.sources] == [
        h.passage.passage_id for h in whole.sources
    ]
    assert [h.score for h in joint.sources] == pytest.approx([h.score for h in whole.sources])
    for source, hit in zip(plain(joint)["sources"], joint.sources, strict=True):
        home = halves[0] if hit.passage.document_id in ("d0", "d1", "d2", "d3", "d4") else halves[1]
        assert source["corpus"] == str(home)
    assert all("corpus" not in source for source in plain(whole)["sources"])


def test_a_word_counts_as_rare_as_it_is_in_all_corpora(works, tmp_path):
    """`ferry` is common where `Dover` is not told of: that corpus must not come first for it."""
    told = ["A ferry leaves Dover at noon."] + [f"Street {n} has a shop." for n in range(3)]
    rest = ["A ferry leaves Bergen at noon."] + [f"Lake {n} has a boat here." for n in range(40)]
    folders = []
    for name, texts in (("small", told), ("large", rest)):
        data = tiny_world.write_jsonl(
            tmp_path / f"{name}.jsonl", [{"text": text} for text in texts]
        )
        folders.append(tmp_path / f"{name}.clara")
        compress.run(tiny_world.compress(data, works.e2e, folders[-1], ratio=16), NullReport())
    both = Clara.open(folders, device="cpu", dtype="float32")
    (found,) = both.find(["Does the ferry leave Dover?"], AskOptions(top_k=2))
    assert [hit.corpus for hit in found.hits] == [str(folders[0]), str(folders[1])]
    alone = [
        Clara.open(folder, device="cpu", dtype="float32").find(["a ferry"], AskOptions(top_k=1))[0]
        for folder in folders
    ]
    assert alone[0].hits[0].score < alone[1].hits[0].score
    (found,) = both.find(["ferry"], AskOptions(top_k=2))
    assert found.hits[0].score == pytest.approx(found.hits[1].score, rel=0.2)


def test_the_highest_ratio_among_corpora_is_read(halves):
    both = Clara.open(halves, device="cpu", dtype="float32")
    assert both.memory_tokens_for(None) == 4
    with pytest.raises(UsageError, match="compressed at 16"):
        both.memory_tokens_for(4)


def test_corpora_of_two_memory_spaces_are_refused(works, report, tmp_path):
    other = tmp_path / "other.clara"
    compress.run(tiny_world.compress(works.documents, works.scp, other), report)
    config = tiny_world.ask(QUESTION, works.corpus)
    config = dataclasses.replace(config, corpus=(works.corpus, other))
    with pytest.raises(ArtefactError, match=r"other\.clara was compressed by checkpoint"):
        list(ask.run(config, report))
