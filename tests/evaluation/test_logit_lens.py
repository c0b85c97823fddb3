"""What query memory names, as a share of questions, against chance."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.mayors import MAYORS, question, sentence, write

from clara_cli.commands import bench
from clara_cli.config import BenchConfig
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.evaluation import logit_lens
from clara_cli.evaluation.paragraphs import Case, Pool
from clara_cli.evaluation.systems import Reader
from clara_cli.records import PoolPassage, Question


def case(number: int) -> Case:
    town, name = MAYORS[number]
    pool = (PoolPassage("0", town, sentence(town, name), True), PoolPassage("1", "", "zebra"))
    asked = Question(f"q{number}", f"Who is mayor of {town}?", (name,), pool)
    return Case(asked, Pool(()), Pool(()), ("0",))


@pytest.fixture
def reader(checkpoint: Path) -> Reader:
    return Reader(load(LoadOptions(str(checkpoint), device="cpu", dtype="float32")), 1)


def measure(
    monkeypatch: pytest.MonkeyPatch, reader: Reader, cases: list[Case], names: list[list[str]]
) -> Any:
    """With memories that name these words, question by question."""
    left = iter(names)
    monkeypatch.setattr(logit_lens, "lens", lambda model, memory_MD, count: [next(left)])
    (found,) = logit_lens.logit_lens(cases, {16: 4}, reader, seed=0)
    return found


def test_shares_by_hand(monkeypatch: pytest.MonkeyPatch, reader: Reader) -> None:
    """Four questions: one names its mayor, one its own question's word, one another's mayor, one
    what stands in nobody's passage or in all."""
    names = [[" Velden"], [" Frostmouth", "mayor"], [" Nora"], ["zebra", " is"]]
    found = measure(monkeypatch, reader, [case(n) for n in range(4)], names)
    assert (found.questions, found.words, found.share) == (4, 1.5, 0.25)
    # Velden: in none of three others; Frostmouth, mayor: asked; Nora: in one of three; is: asked
    assert found.chance == pytest.approx((0 + 0 + 1 / 3 + 0) / 4)
    low, high = found.difference95
    assert low <= found.share - found.chance <= high


def test_a_word_of_every_passage_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, reader: Reader
) -> None:
    cases = []
    for one in map(case, range(5)):
        pool = (PoolPassage("0", "", f"{one.question.pool[0].text} Indeed.", True),)
        asked = dataclasses.replace(one.question, pool=pool)
        cases.append(dataclasses.replace(one, question=asked))
    found = measure(monkeypatch, reader, cases, [["indeed"]] * 5)
    assert (found.share, found.chance, found.difference95) == (0.0, 0.0, [0.0, 0.0])


def test_parts_of_words_name_nothing(monkeypatch: pytest.MonkeyPatch, reader: Reader) -> None:
    found = measure(monkeypatch, reader, [case(0), case(1)], [["Vel", "den"], [" Iv"]])
    assert (found.share, found.chance) == (0.0, 0.0)


def test_without_gold_there_is_nothing_to_say(
    monkeypatch: pytest.MonkeyPatch, reader: Reader
) -> None:
    bare = Question("q", "Who?", ("Ann",))
    found = measure(monkeypatch, reader, [Case(bare, Pool(()), Pool(()), ())], [])
    assert (found.questions, found.share, found.chance) == (0, None, None)


def test_the_words_are_those_nearest_to_the_query_memory(reader: Reader) -> None:
    """By the head's rows, computed here from the parts."""
    probe = logit_lens._probes([case(0)])[0]
    (names,) = logit_lens._named([probe], reader, 4)
    query_MD = reader.queries([probe.question], reader.model.query_role, 4)[0]
    head_VD = reader.model.causal_lm.get_output_embeddings().weight[
        : len(reader.prompter.tokenizer)
    ]
    top = torch.topk(query_MD @ head_VD.T, logit_lens.NAMED).indices.flatten().tolist()
    decode = reader.prompter.tokenizer.decode
    assert names == {w for i in top for w in logit_lens.words(decode([i]))}


def test_bench_prints_it_per_ratio(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any
) -> None:
    settings = {"model": str(checkpoint), "device": "cpu", "system": "closed-book", "ratio": "4,16"}
    settings |= {"control": "lens", "max_new_tokens": 2, "out": tmp_path / "o"}
    done = bench.run(BenchConfig(dataset=str(mayors), **settings), report)
    assert [(entry.ratio, entry.questions) for entry in done.lens] == [(4, 6), (16, 6)]
    assert all(0 <= entry.share <= 1 for entry in done.lens)
    assert "## Logit lens" in (tmp_path / "o" / "report.md").read_text()
    assert [card.name for card in done.systems] == ["closed-book"]  # no row of its own
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert results["result"]["lens"][0]["ratio"] == 4


def test_gold_of_a_whole_corpus_is_looked_up_there(
    checkpoint: Path, tmp_path: Path, report: Any
) -> None:
    from clara_cli.commands import compress
    from clara_cli.config import CompressConfig

    documents = [{"id": f"d{n}", "text": sentence(*mayor)} for n, mayor in enumerate(MAYORS)]
    corpus = tmp_path / "c.clara"
    machine = {"device": "cpu", "dtype": "float32", "model": str(checkpoint)}
    inputs = (str(write(tmp_path / "d.jsonl", documents)),)
    compress.run(CompressConfig(inputs=inputs, out=corpus, ratio=16, **machine), report)
    named = [{**question(n), "paragraphs": [], "gold": [f"d{n}"]} for n in range(3)]
    for record in named:
        del record["paragraphs"]
    data = write(tmp_path / "q.jsonl", named)
    settings = {"setting": "corpus", "corpus": corpus, "system": "closed-book", "control": "lens"}
    machine.pop("model")
    done = bench.run(
        BenchConfig(dataset=str(data), max_new_tokens=2, **settings, **machine), report
    )
    assert [entry.questions for entry in done.lens] == [3]
