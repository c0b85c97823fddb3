"""What a store format loses is measured on the answers that decoding gives, and goes on where it
was stopped."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from clara_cli.commands import compress
from clara_cli.config import CompressConfig
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.corpus.quantize import passage_bytes
from clara_cli.corpus.store import Corpus
from clara_cli.records import NullReport

RECIPES = Path(__file__).parent.parent.parent / "recipes"
FORMATS = ("float32", "fp8", "nf4")
MEMORY_TOKENS = {16: 16, 64: 4}


@pytest.fixture(scope="module")
def store_formats():
    sys.path.insert(0, str(RECIPES / "corpora"))
    try:
        return importlib.import_module("store_formats")
    finally:
        sys.path.remove(str(RECIPES / "corpora"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve passages of the sample, each with up to three questions."""
    lines = (RECIPES / "sample" / "corpus.jsonl").read_text().splitlines()[:12]
    path = tmp_path_factory.mktemp("formats") / "data.jsonl"
    records = []
    for number, row in enumerate(map(json.loads, lines)):
        asked = ("What is {}?", "Who made {}, and in which year was that?", "Where is {}?")
        qas = [
            {"id": f"{number}-{n}", "question": text.format(row["title"]), "answers": ["It"]}
            for n, text in enumerate(asked[: 1 + number % 3])
        ]
        records.append({"title": row["title"], "text": row["text"], "qas": qas})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def corpus(data) -> Path:
    out = data.parent / "dev.clara"
    config = CompressConfig(
        inputs=(str(data),),
        out=out,
        model="nano",
        ratio=4,
        split="none",
        device="cpu",
        dtype="float32",
    )
    assert compress.run(config, NullReport()).passages == 12
    return out


def measure(store_formats, corpus, data, out, monkeypatch, capsys) -> list[list[str]]:
    """The cells of the table's lines."""
    words = [str(corpus), str(data), "--ratios", "16,64", "--formats", ",".join(FORMATS)]
    more = ["--questions", "18", "--max-new-tokens", "5", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["store_formats.py", *words, *more])
    store_formats.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| ratio | format | bytes a passage |")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.fixture(scope="module")
def answered(store_formats, corpus, data):
    """The folder of a whole run, and its table."""
    with pytest.MonkeyPatch.context() as patch:
        capsys = Captured(patch)
        table = measure(store_formats, corpus, data, data.parent / "run", patch, capsys)
    return data.parent / "run", table


class Captured:
    """`capsys` for a fixture of a module."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        import io

        self.out = io.StringIO()
        patch.setattr(sys, "stdout", self.out)

    def readouterr(self):
        return type("Text", (), {"out": self.out.getvalue()})


def test_the_answers_are_those_of_decoding_one_by_one(store_formats, corpus, data, answered):
    written = store_formats.read_lines(answered[0] / "answers.jsonl")
    chosen = store_formats.drawn(Corpus.open(corpus), [str(data)], 18, 0)
    assert sum(map(len, chosen.values())) >= 18 and len(chosen) < 12
    assert set(written) == {(r, d, row) for r in MEMORY_TOKENS for d in FORMATS for row in chosen}
    model = load(LoadOptions("nano", None, "cpu", "float32", only_reads=True)).model
    different = 0
    for (ratio, dtype, row), answers in written.items():
        exact_1MD = Corpus.open(corpus).memory([row], MEMORY_TOKENS[ratio])
        memory_MD = store_formats.stored(exact_1MD, dtype)[0]
        for question in chosen[row]:
            chat = model.prompter.answer_chat(question.question, 1, MEMORY_TOKENS[ratio])
            (ids,) = model.generate([model.prompter.prompt(chat)], memory_MD, 5)
            assert answers[question.id] == ids
            different += ids != written[ratio, "float32", row][question.id]
    assert different  # so drafts were left, too


def test_the_table_says_bytes_error_and_change(answered):
    lines = {(cells[0], cells[1]): cells for cells in answered[1]}
    assert list(lines) == [(f"{r}x", d) for r in MEMORY_TOKENS for d in FORMATS]
    for (ratio, dtype), cells in lines.items():
        tokens = MEMORY_TOKENS[int(ratio[:-1])]
        assert cells[2] == f"{passage_bytes(dtype, tokens, 256):,}"
        assert int(cells[-1]) >= 18
    assert float(lines["16x", "float32"][4]) == 0
    assert 0.01 < float(lines["16x", "fp8"][4]) < 0.05 < float(lines["16x", "nf4"][4]) < 0.2


def test_a_run_that_was_stopped_goes_on(
    store_formats, corpus, data, answered, tmp_path, monkeypatch, capsys
):
    for name in ("answers.jsonl", "hits.jsonl"):
        whole = (answered[0] / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 5])  # in the middle of a line
    assert measure(store_formats, corpus, data, tmp_path, monkeypatch, capsys) == answered[1]
    for name in ("answers.jsonl", "hits.jsonl"):
        first, second = (store_formats.read_lines(f / name) for f in (answered[0], tmp_path))
        assert first == second


def test_another_checkpoints_corpus_or_a_passage_that_is_not_there_is_refused(
    store_formats, corpus, data, tmp_path, monkeypatch, capsys
):
    other = tmp_path / "other.jsonl"
    qas = [{"id": "1", "question": "What?", "answers": ["It"]}]
    other.write_text(json.dumps({"title": "T", "text": "Of no corpus.", "qas": qas}) + "\n")
    with pytest.raises(SystemExit, match="no passage of the corpus is its one gold passage"):
        measure(store_formats, corpus, other, tmp_path / "run", monkeypatch, capsys)


def test_a_change_that_no_question_shows_has_no_interval(store_formats):
    exact = [[100.0, 0.0], [50.0]]
    assert store_formats._cell(exact, exact, True, 0) == "50.0"
    assert store_formats._cell(exact, exact, False, 0) == "no change seen"
    changed = store_formats._cell([[100.0, 30.0], [50.0]], exact, False, 0)
    assert changed == "+10.00 (+0.00 to +15.00)"


def test_the_interval_is_over_passages(store_formats):
    interval = store_formats.mean_and_interval
    assert interval([[2.0, 2.0], [2.0]], 0) == pytest.approx((2, 2, 2))
    torch.manual_seed(0)
    alone = [[value] for value in torch.randn(400).tolist()]
    mean, low, high = interval(alone, 0)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1) and low < mean < high
    together = [values * 4 for values in alone]  # four questions of a passage that all fare alike
    assert interval(together, 0) == pytest.approx((mean, low, high))
