"""The sample corpus: it can be rebuilt, it is consistent, and its invented part is held out."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SAMPLE = RECIPES / "sample"


def load(path: Path, name: str) -> ModuleType:
    """A module of the recipes, which are scripts and not a package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


world = load(RECIPES / "nano" / "world.py", "test_sample_world")
make = load(SAMPLE / "make.py", "test_sample_make")


def rows(name: str) -> list[dict]:
    """The rows of one committed file of the sample."""
    return [json.loads(line) for line in (SAMPLE / name).read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus() -> list[dict]:
    return rows("corpus.jsonl")


@pytest.fixture(scope="module")
def questions() -> list[dict]:
    return rows("questions.jsonl")


@pytest.fixture(scope="module")
def passages(corpus: list[dict]) -> dict[str, dict]:
    return {row["id"]: row for row in corpus}


@pytest.fixture(scope="module")
def invented_titles(corpus: list[dict]) -> set[str]:
    return {row["title"] for row in corpus if row["kind"] == "invented"}


@pytest.mark.parametrize("name", ["corpus.jsonl", "questions.jsonl"])
def test_rebuilding_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    make.build(tmp_path)
    assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes()


def test_corpus_has_a_hundred_passages_of_each_kind(corpus: list[dict]) -> None:
    assert Counter(row["kind"] for row in corpus) == {"invented": 100, "real": 100}
    assert all(list(row) == ["id", "title", "text", "kind"] for row in corpus)


def test_ids_and_titles_are_unique(corpus: list[dict], questions: list[dict]) -> None:
    expected = {f"{kind}-{n:03d}" for kind in ("invented", "real") for n in range(1, 101)}
    assert {row["id"] for row in corpus} == expected
    assert len({row["title"].casefold() for row in corpus}) == 200
    assert [row["id"] for row in questions] == [f"q-{n:03d}" for n in range(1, 61)]
    assert len({row["question"] for row in questions}) == 60


def test_corpus_is_shuffled(corpus: list[dict]) -> None:
    assert {row["kind"] for row in corpus[:20]} == {"invented", "real"}


def test_invented_passages_cover_every_kind() -> None:
    entries = make.invent(world, make.random.Random(make.SEED))
    counts = Counter(entry.kind for entry in entries)
    assert set(counts) == set(world.KINDS)
    assert min(counts.values()) >= 12


def test_real_passages_are_short_and_complete(corpus: list[dict]) -> None:
    for row in corpus:
        if row["kind"] == "real":
            assert 40 <= len(row["text"].split()) <= 90, row["title"]
            assert row["text"] == " ".join(row["text"].split()), row["title"]
            assert row["text"].endswith("."), row["title"]


def test_invented_passages_use_the_right_article(corpus: list[dict]) -> None:
    for row in corpus:
        if row["kind"] == "invented":
            assert not re.search(r"\ba [aeio]", row["text"]), row["title"]


def test_questions_are_half_invented_and_half_real(questions: list[dict]) -> None:
    assert Counter(row["kind"] for row in questions) == {"invented": 30, "real": 30}
    assert all(list(row) == ["id", "question", "answers", "gold", "kind"] for row in questions)


def test_each_question_has_its_own_passage(
    questions: list[dict], passages: dict[str, dict]
) -> None:
    gold = [one for row in questions for one in row["gold"]]
    assert len(set(gold)) == len(gold) == 60
    for row in questions:
        assert all(passages[one]["kind"] == row["kind"] for one in row["gold"])


def test_first_answer_stands_in_the_gold_passage(
    questions: list[dict], passages: dict[str, dict]
) -> None:
    for row in questions:
        answer = re.compile(rf"\b{re.escape(row['answers'][0])}\b")
        assert answer.search(passages[row["gold"][0]]["text"]), row
        assert answer.search(row["question"]) is None, row
        assert len(set(row["answers"])) == len(row["answers"]), row


def test_invented_questions_name_the_entity_of_one_passage_only(
    questions: list[dict], corpus: list[dict], passages: dict[str, dict]
) -> None:
    for row in questions:
        if row["kind"] == "invented":
            title = passages[row["gold"][0]]["title"]
            assert title in row["question"]
            name = re.compile(rf"\b{re.escape(title)}\b")
            assert [one["id"] for one in corpus if name.search(one["text"])] == row["gold"]


def test_invented_entities_are_held_out(invented_titles: set[str]) -> None:
    assert all(world.is_held_out(title) for title in invented_titles)


def test_no_invented_entity_is_in_the_training_stream(invented_titles: set[str]) -> None:
    trained = {entry.title for entry in islice(world.entries(0), 20_000)}
    assert not invented_titles & trained
