"""The sample corpus: it can be rebuilt, it is consistent, and its invented part is held out."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from clara_cli.cli import app
from clara_cli.documents.examples import read_pairs, read_questions

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


# --- the two forms of training data ---


def test_pairs_are_about_invented_passages_nobody_asks_about(
    passages: dict[str, dict], questions: list[dict]
) -> None:
    pairs = rows("pairs.jsonl")
    texts = {row["text"]: key for key, row in passages.items() if row["kind"] == "invented"}
    asked = {key for question in questions for key in question["gold"]}
    assert len(pairs) == 10
    assert {pair.get("kind", pair["data_type"]) for pair in pairs} == {
        *("simple", "complex", "paraphrase")
    }
    for pair in pairs:
        (text,) = pair["docs"]
        assert texts[text] not in asked
        if pair["data_type"] == "qa":
            assert all(answer in text for answer in pair["answers"])
            assert len(pair["question"]) == len(pair["answers"])


def test_pools_are_of_the_samples_passages_with_one_gold(
    passages: dict[str, dict], questions: list[dict]
) -> None:
    asked = {key for question in questions for key in question["gold"]}
    pools = rows("questions_with_pools.jsonl")
    assert len(pools) == 10
    for question in pools:
        for paragraph in question["paragraphs"]:
            same = {key: passages[paragraph["id"]][key] for key in ("title", "text")}
            assert same == {key: paragraph[key] for key in ("title", "text")}
            assert paragraph["id"] not in asked
        (gold,) = [p for p in question["paragraphs"] if p.get("gold")]
        assert question["answers"][0] in gold["text"]
    assert len({tuple(p.get("gold", False) for p in q["paragraphs"]) for q in pools}) > 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the sample's README have run, one after the other."""
    folder = tmp_path_factory.mktemp("sample")
    shutil.copytree(RECIPES, folder / "recipes")
    (block,) = re.findall(r"^```sh\n(.*?)^```$", (SAMPLE / "README.md").read_text(), re.M | re.S)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in block.splitlines():
            said = CliRunner().invoke(app.app, [*shlex.split(line)[1:], "--json"])
            assert said.exit_code == 0, said.output
            (folder / "said.jsonl").open("a").write(said.stdout.splitlines()[-1] + "\n")
    finally:
        os.chdir(before)
    return folder


def test_the_commands_of_the_samples_readme_run(trained: Path) -> None:
    results = [json.loads(line) for line in (trained / "said.jsonl").read_text().splitlines()]
    stages = [result["stage"] for result in results if "stage" in result]
    assert stages == ["scp", "instruct", "retrieval", "e2e", "e2e"]
    (row,) = results[-1]["systems"]
    assert row["recall"]["1"] > 0.9 and row["recall"]["5"] == 1  # BM25 over the sample's gold


@pytest.mark.parametrize("stage", ["instruct", "retrieval", "e2e", "pretrain"])
def test_a_stage_that_needs_more_says_what_to_add(stage: str, tmp_path: Path) -> None:
    words = [str(SAMPLE / "questions.jsonl"), "--init", "nano", "--out", str(tmp_path / "run")]
    command = ["pretrain", *words] if stage == "pretrain" else ["train", *words, "--stage", stage]
    said = CliRunner().invoke(app.app, command)
    assert said.exit_code == 4, said.output
    wanted = "pairs.jsonl" if stage == "pretrain" else "questions_with_pools.jsonl"
    assert f"recipes/sample/{wanted}" in "".join(said.stderr.split())
    assert ("--pool retrieved and --corpus" in " ".join(said.stderr.split())) == (stage == "e2e")


def test_the_lines_of_the_page_on_training_are_of_the_two_forms(tmp_path: Path) -> None:
    page = (RECIPES / "training" / "README.md").read_text("utf-8")
    pairs, questions = re.findall(r"^```json\n(.*?)^```$", page, re.M | re.S)
    (tmp_path / "pairs.jsonl").write_text(pairs, encoding="utf-8")
    (tmp_path / "questions.jsonl").write_text(questions, encoding="utf-8")
    assert [p.kind for p in read_pairs([str(tmp_path / "pairs.jsonl")])] == ["qa", "paraphrase"]
    (question,) = read_questions([str(tmp_path / "questions.jsonl")])
    assert [passage.gold for passage in question.pool] == [True, False]
