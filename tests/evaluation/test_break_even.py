"""Where memory beats text: shares of text's time to the first token, by the tokens of passages."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.mayors import MAYORS, question, sentence, write

from clara_cli.bench_records import BenchResult, BreakEvenPoint
from clara_cli.commands import bench
from clara_cli.config import BenchConfig
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.core.model import ClaraModel
from clara_cli.errors import DataError, UsageError
from clara_cli.evaluation import break_even
from clara_cli.evaluation.systems import Reader


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every position read takes a second, compressing too."""
    now = [0.0]
    generate, encode = Reader.generate, ClaraModel.encode

    def generating(self: Any, prompts: Any, memories: Any) -> Any:
        now[0] += sum(map(len, prompts))
        return generate(self, prompts, memories)

    def encoding(self: Any, rows: Any, *args: Any) -> Any:
        now[0] += sum(map(len, rows))
        return encode(self, rows, *args)

    monkeypatch.setattr(Reader, "generate", generating)
    monkeypatch.setattr(ClaraModel, "encode", encoding)
    monkeypatch.setattr(break_even.time, "perf_counter", lambda: now[0])


def run(dataset: Path, checkpoint: Path, report: Any, **changes: Any) -> BenchResult:
    settings = {"model": str(checkpoint), "device": "cpu", "dtype": "float32", "break_even": True}
    settings |= {"system": "text", "max_new_tokens": 2, **changes}
    done = bench.run(BenchConfig(dataset=str(dataset), **settings), report)
    assert isinstance(done, BenchResult)
    return done


def test_shares_are_those_of_the_positions_read(
    clock: None, mayors: Path, checkpoint: Path, report: Any
) -> None:
    """Six passages in the data: one, two and four are measured, at both ratios."""
    done = run(mayors, checkpoint, report, ratio="4,16")
    model = load(LoadOptions(str(checkpoint), device="cpu", dtype="float32")).model
    prompter, asked = model.prompter, question(0)["question"]
    texts = [f"{town}\n{sentence(town, name)}" for town, name in MAYORS]
    lines = {(line.way, line.ratio): line for line in done.break_even}
    assert len(lines) == 3 * 2
    for ratio, m in ((4, 16), (16, 4)):
        for count, cached, asked_now in zip(
            (1, 2, 4), lines["memory", ratio].points,
            lines["memory, compressed when asked", ratio].points, strict=True,
        ):  # fmt: skip
            reading = len(prompter.prompt(prompter.text_chat(asked, texts[:count])))
            memory = len(prompter.prompt(prompter.answer_chat(asked, count, m)))
            passages = sum(len(prompter.passage(text)) for text in texts[:count])
            assert (cached.passages, cached.context_tokens) == (count, count * m)
            assert cached.text_tokens == sum(map(len, texts[:count]))
            assert cached.share == pytest.approx(memory / reading)
            assert asked_now.share == pytest.approx((memory + passages) / reading)
        extractive = lines["text, extractive", ratio].points
        assert all(point.context_tokens <= point.passages * m for point in extractive)
    assert lines["memory", 16].faster_from == lines["memory", 16].points[0].text_tokens
    assert lines["memory, compressed when asked", 4].faster_from is None


def test_faster_from_is_where_it_stays_faster() -> None:
    def from_(*shares: float) -> int | None:
        points = [BreakEvenPoint(n, 100 * n, n, share) for n, share in enumerate(shares, 1)]
        return break_even.faster_from(points)

    assert from_(1.2, 0.9, 0.5) == 200
    assert from_(0.9, 1.1, 0.5) == 300
    assert from_(0.5, 0.9, 1.0) is None
    assert from_(0.5) == 100


def test_sizes_the_window_does_not_take_as_text_are_left_out(
    clock: None, checkpoint: Path, tmp_path: Path, report: Any
) -> None:
    """Passages of some 60 positions, a window of 2,048: sixteen fit and 32 do not."""
    paragraphs = [{"text": sentence(f"Town {n:03} of the west", "Nora Velden the Third")}
                  for n in range(60)]  # fmt: skip
    record = {"id": "q", "question": "Who?", "answer": "Ann", "paragraphs": paragraphs}
    done = run(write(tmp_path / "q.jsonl", [record]), checkpoint, report, limit=1)
    sizes = {tuple(p.passages for p in line.points) for line in done.break_even}
    assert sizes == {(1, 2, 4, 8, 16)}
    prompter = load(LoadOptions(str(checkpoint), device="cpu")).model.prompter
    texts = [paragraph["text"] for paragraph in paragraphs]
    lengths = [len(prompter.prompt(prompter.text_chat("Who?", texts[:n]))) for n in (16, 32)]
    assert lengths[0] + 1 <= 2048 < lengths[1] + 1


def test_the_report_has_the_table_and_the_plot(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "o"
    run(mayors, checkpoint, report, system="clara,text,extractive", ratio="4", out=out)
    told = (out / "report.md").read_text()
    assert "## Break-even with text" in told and "| memory 4x |" in told
    assert "of" in told and "threads" in told  # the machine is named
    assert {"break-even.svg", "break-even.png"} <= {path.name for path in out.iterdir()}
    page = (out / "report.html").read_text()
    HTMLParser().feed(page)
    assert "share of text" in page
    kept = json.loads((out / "results.json").read_text())["result"]["break_even"]
    assert [line["way"] for line in kept] == [
        *("memory", "memory, compressed when asked", "text, extractive")
    ]


def test_what_cannot_be_measured_is_refused(checkpoint: Path, tmp_path: Path, report: Any) -> None:
    with pytest.raises(UsageError, match="--break-even goes with --dataset"):
        bench.run(BenchConfig(break_even=True, published=True), report)
    context: list[Any] = []
    record = {"_id": "a", "question": "Who?", "answer": "Ann", "context": context}
    data = tmp_path / "q.json"
    data.write_text(json.dumps([{**record, "supporting_facts": [["Elmgate", 0]]}]))
    with pytest.raises(DataError, match="no question comes with a passage"):
        run(data, checkpoint, report)
