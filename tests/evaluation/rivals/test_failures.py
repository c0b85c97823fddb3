"""What a rival that cannot answer leaves: a row with its error, and no wrong answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from clara_cli.bench_records import BenchResult, CompareResult
from clara_cli.cli.show.json_line import result_json
from clara_cli.commands import bench
from clara_cli.config import BenchConfig
from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.evaluation import predictions
from clara_cli.evaluation.rivals import build
from clara_cli.evaluation.systems import Failure, PooledQuestion, Prediction

SPEC = "external=nowhere"


class Scripted:
    """A rival that answers as told, question by question."""

    name, ratio, chooses = "external", None, False

    def __init__(self, answer: Callable[[str], Prediction | Failure]) -> None:
        self._answer = answer

    def bytes_per_passage(self, texts: Sequence[str]) -> float | None:
        return None

    def answer(self, batch: Sequence[PooledQuestion]) -> list[Prediction | Failure]:
        return [self._answer(asked.question) for asked in batch]


def right(question: str) -> Prediction:
    seconds = dict.fromkeys(("query", "search", "compress", "generate"), 0.0)
    return Prediction("Nora Velden", ("0",), 5, False, seconds)


@pytest.fixture
def rival(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put a function (question -> answer), or an error raised at opening, in the rival's place."""

    def put(answer: Any) -> None:
        def opener(spec: Any, bench: Any, ratio: Any) -> Scripted:
            if isinstance(answer, BaseException):
                raise answer
            return Scripted(answer)

        monkeypatch.setitem(build.OPENERS, "external", (False, opener))

    return put


def go(mayors: Path, checkpoint: Path, report: Any, **changes: Any) -> BenchResult:
    settings: dict[str, Any] = {"dataset": str(mayors), "model": str(checkpoint)}
    settings |= {"device": "cpu", "dtype": "float32", "max_new_tokens": 2, "system": f"text,{SPEC}"}
    done = bench.run(BenchConfig(**{**settings, **changes}), report)
    assert isinstance(done, BenchResult)
    return done


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_rival_that_does_not_open_is_an_error_in_its_row(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, rival: Any
) -> None:
    rival(ArtefactError("no weights", "fetch them"))
    done = go(mayors, checkpoint, report, out=tmp_path / "o")
    text, other = (result_json(card) for card in done.systems)
    assert "error" not in text and text["f1"] is not None
    assert (other["error"], other["unanswered"], other["em"]) == (
        "no weights (fetch them)",
        6,
        None,
    )
    assert report.warnings == [
        "external: no weights (fetch them); its other questions are not asked"
    ]
    assert {p["prediction"] for p in lines(tmp_path / "o") if p["system"] == "external"} == {None}
    page = (tmp_path / "o" / "report.md").read_text()
    assert "| external | 6 | no weights (fetch them) |" in page
    assert "| external | 0 |" in page  # answered questions


class Page(HTMLParser):
    """What a report's page holds: cells of its tables, and addresses it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        if tag in ("td", "tr", "table", "tbody", "details"):
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "tr", "table", "tbody", "details"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def test_the_page_has_every_row_and_the_error_and_fetches_nothing(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, rival: Any
) -> None:
    rival(ArtefactError("<no> weights & nothing", "fetch them"))
    go(mayors, checkpoint, report, out=tmp_path / "o")
    page = Page((tmp_path / "o" / "report.html").read_text())
    assert {"text", "external", "<no> weights & nothing (fetch them)"} <= set(page.cells)
    assert (page.open, page.fetched) == ([], [])


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_weights_too_large_for_memory_are_tried_once(
    error: BaseException, mayors: Path, checkpoint: Path, report: Any, rival: Any
) -> None:
    rival(error)
    card = go(mayors, checkpoint, report).systems[1]
    assert (card.out_of_memory, card.unanswered, card.em) == (6, 0, None)
    assert len(report.warnings) == 1


def test_a_fault_in_a_rivals_library_is_its_rows_error(
    mayors: Path, checkpoint: Path, report: Any, rival: Any
) -> None:
    rival(lambda question: {}["missing"])
    text, other = go(mayors, checkpoint, report).systems
    assert other.error == "KeyError: 'missing'" and text.error == ""


def test_one_unanswered_question_leaves_the_paired_comparison(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, rival: Any
) -> None:
    rival(lambda question: Failure("took too long") if "Pinewick" in question else right(question))
    done = go(mayors, checkpoint, report, out=tmp_path / "o")
    row = result_json(done.systems[1])
    assert (row["unanswered"], row["error"], row["em"]) == (1, "took too long", 1 / 5)
    assert report.warnings == []
    differences = json.loads((tmp_path / "o" / "results.json").read_text())["differences"]
    assert [d["n"] for d in differences] == [5]
    folders = (str(tmp_path / "o"), str(tmp_path / "o"))
    compared = bench.run(BenchConfig(compare=folders), report)
    assert isinstance(compared, CompareResult)
    assert {r.name: r.n for r in compared.rows} == {"text": 6, "external": 5}


def test_what_failed_is_asked_again_when_the_run_goes_on(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, rival: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A server dies at the third question and is back for the second run: the files are then those
    of a run in which it never died."""
    monkeypatch.setattr(predictions, "BATCH", 2)
    asked: list[str] = []

    def dies(question: str) -> Prediction:
        asked.append(question)
        if len(asked) > 2:
            raise ClaraError("it died", "start it again")
        return right(question)

    rival(dies)
    first = go(mayors, checkpoint, report, out=tmp_path / "o")
    assert (first.systems[1].unanswered, len(asked)) == (4, 3)
    assert first.systems[1].error == "it died (start it again)"
    rival(right)
    second = go(mayors, checkpoint, report, out=tmp_path / "o")
    assert (second.systems[1].unanswered, second.systems[1].error) == (0, "")
    go(mayors, checkpoint, report, out=tmp_path / "whole")
    assert lines(tmp_path / "o") == lines(tmp_path / "whole")


def test_the_rivals_model_is_part_of_the_runs_settings(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, rival: Any
) -> None:
    rival(right)
    go(mayors, checkpoint, report, out=tmp_path / "o")
    with pytest.raises(ClaraError, match="with rivals ="):
        go(mayors, checkpoint, report, out=tmp_path / "o", system="text,external=elsewhere")
