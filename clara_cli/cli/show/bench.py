"""What `bench` measured as a terminal shows it: the scorecard within 100 columns, the papers'
figures in a block of their own. Knows records only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.filesize import decimal as size
from rich.table import Table
from rich.text import Text

from clara_cli.bench_records import (
    BenchResult,
    BreakEven,
    CompareResult,
    FactRetention,
    LogitLens,
    PublishedResult,
    PublishedRow,
    Scorecard,
    SpeedResult,
    SystemsResult,
)
from clara_cli.printable import shell_word

WIDE = 100  # columns the whole table takes; below, it shows the scores alone


def _bench_lines(r: BenchResult, only: str | None) -> list[Any]:
    width = Console().width if sys.stdout.isatty() else WIDE
    lines: list[Any] = [f"{r.dataset}: {r.n:,} questions, setting {r.setting}, seed {r.seed}"]
    lines.append(_table(r.systems, wide=width >= WIDE))
    lines.append("in %, ± half the 95 % interval; * the highest, by a significant difference")
    lines.append("words: mean length of an answer; empty: % of answers without a word")
    lines += _effective_lines(r.systems)
    for row in r.systems:
        if row.truncated:
            ratio = "" if row.ratio is None else f" {row.ratio}x"
            lines.append(
                f"{row.name}{ratio}: the last passages of {row.truncated:,} questions did not fit "
                "the window"
            )
        if row.out_of_memory:
            ratio = "" if row.ratio is None else f" {row.ratio}x"
            lines.append(
                f"{row.name}{ratio}: out of memory on {row.out_of_memory:,} questions, "
                "which are in none of its figures"
            )
        if row.error:
            lines.append(f"{row.name}: no answer to {row.unanswered:,} questions: {row.error}")
    if r.survival:
        lines += ["facts a paraphrase from memory still has (numbers and names found by rule)"]
        lines += [_retention_line(entry) for entry in r.survival]
    if r.lens:
        lines += [
            "questions whose query memory names a word of the gold passage, not the question's"
        ]
        lines += [_lens_line(entry) for entry in r.lens]
    if r.break_even:
        lines += ["time to the first token as a share of reading the same passages as text"]
        lines += [_break_even_line(entry) for entry in r.break_even]
    if r.published:
        lines += ["", "reported by papers: other corpus and model, not to be mixed with the above"]
        lines += _published_lines(r.published)
    if r.report:
        folder = shell_word(r.report)
        lines.append(f"report: {folder}/report.md, {folder}/report.html")
    return lines


def _effective_lines(rows: Sequence[Scorecard]) -> list[str]:
    """What ratios come to on passages that are shorter than the longest."""
    effective = {
        f"{row.ratio}x": f"{row.effective_ratio:.1f}"
        for row in rows
        if row.effective_ratio is not None and "/" not in row.name
    }
    if not effective:
        return []
    figures = ", ".join(f"{ratio} {figure}" for ratio, figure in effective.items())
    return [f"text tokens of the passages read for each memory token: {figures}"]


_ANSWERS = {"cover": 6, "words": 5, "empty": 5}
_NARROW = {"system": 17, "ratio": 5, "EM": 6, "F1": 6, **_ANSWERS}
_WIDE = {"system": 24, "ratio": 5, "EM": 6, "F1": 10, **_ANSWERS, "R@1": 5, "R@5": 5}
_WIDE |= {"ms": 6, "tokens": 6, "bytes": 6}


def _table(rows: Sequence[Scorecard], *, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name, width in (_WIDE if wide else _NARROW).items():
        left = name == "system"  # a long name goes on in the next line: its end tells rows apart
        justify: Literal["left", "right"] = "left" if left else "right"
        table.add_column(name, justify=justify, no_wrap=not left, overflow="fold", width=width)
    table.width = sum(column.width or 0 for column in table.columns) + len(table.columns) - 1
    for row in rows:
        half = None if "f1" not in row.ci95 else (row.ci95["f1"][1] - row.ci95["f1"][0]) / 2
        about = "" if half is None or not wide else f"±{100 * half:.1f}"
        scores = [("em", row.em, ""), ("f1", row.f1, about), ("cover_em", row.cover_em, "")]
        cells = [_score(value, more, marked=key in row.best) for key, value, more in scores]
        words = "-" if row.answer_words is None else f"{row.answer_words:.1f}"
        cells += [Text(words), _score(row.empty_share, "", marked=False)]
        if wide:
            cells += [_score(row.recall.get(k), "", marked=False) for k in ("1", "5")]
            figures = tuple(map(_whole, (row.ms_per_question, row.context_tokens)))
            cells += [Text(cell) for cell in (*figures, _bytes(row.bytes_per_passage))]
        ratio = "-" if row.ratio is None else str(row.ratio)
        table.add_row(Text(row.name), ratio, *cells)
    return table


def _whole(value: float | None) -> str:
    """A figure in six characters, as seconds are enough where milliseconds do not fit."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value < 99_999.5 else f"{value / 1000:,.0f}k"


def _bytes(count: float | None) -> str:
    """A size in three digits at most, and its unit."""
    if count is None:
        return "-"
    figure, _, unit = ("" if count < 1000 else size(round(count))).partition(" ")
    if not unit:
        return f"{count:.0f} B"
    return f"{float(figure):.0f} {unit}" if float(figure) >= 10 else f"{figure} {unit}"


def _score(value: float | None, more: str, *, marked: bool) -> Text:
    if value is None:
        return Text("-")
    return Text(f"{100 * value:.1f}{more}{'*' * marked}", style="bold" if marked else "")


def _retention_line(entry: FactRetention) -> str:
    parts = (
        ("numbers", entry.numbers_kept, entry.numbers),
        ("names", entry.names_kept, entry.names),
    )
    shares = (f"{100 * x:.1f} % of {n:,} {what}" for what, x, n in parts if x is not None)
    return f"  {entry.ratio}x, {entry.passages} passages: {', '.join(shares) or 'none to find'}"


def _lens_line(entry: LogitLens) -> str:
    if entry.share is None or entry.chance is None or entry.difference95 is None:
        return f"  {entry.ratio}x: no question has a gold passage with a text"
    low, high = (100 * end for end in entry.difference95)
    gain = 100 * (entry.share - entry.chance)
    return (
        f"  {entry.ratio}x, {entry.questions:,} questions: {100 * entry.share:.1f} %, by chance "
        f"{100 * entry.chance:.1f} %; difference {gain:+.1f} [{low:.1f}, {high:.1f}]"
    )


def _break_even_line(entry: BreakEven) -> str:
    name = entry.way if entry.ratio is None else f"{entry.way} {entry.ratio}x"
    first, last = entry.points[0], entry.points[-1]
    ends = ", ".join(
        f"{point.share:.2f} at {point.text_tokens:,} tokens"
        for point in dict.fromkeys((first, last))
    )
    if entry.faster_from is None:
        return f"  {name}: {ends}; not faster than text"
    return f"  {name}: {ends}; faster from {entry.faster_from:,} on"


def _published_lines(rows: Sequence[PublishedRow]) -> list[Any]:
    """One table a source, a column a data set."""
    shown: list[Any] = []
    for source in dict.fromkeys(row.source for row in rows):
        own = [row for row in rows if row.source == source]
        datasets = list(dict.fromkeys(name for row in own for name in row.values))
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for name in ("system", "ratio", "metric", *datasets):
            table.add_column(name, justify="left" if name in ("system", "metric") else "right")
        for row in own:
            ratio = "-" if row.ratio is None else str(row.ratio)
            figures = (f"{row.values[n]:.2f}" if n in row.values else "-" for n in datasets)
            table.add_row(*(Text(cell) for cell in (row.system, ratio, row.metric, *figures)))
        shown += [f"{source}:", table]
    return shown


def _published_result_lines(r: PublishedResult, only: str | None) -> list[Any]:
    heading = "reported by papers: other corpus and model, not to be mixed with figures of yours"
    return [heading, *_published_lines(r.published)]


def _systems_lines(r: SystemsResult, only: str | None) -> list[Any]:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, width=WIDE)
    for name, width in (("system", 21), ("state", 14), ("licence", 21), ("what it is", None)):
        table.add_column(name, width=width)
    for s in r.systems:
        table.add_row(*(Text(cell) for cell in (s.name, s.state, s.licence, s.why)))
    needs = dict.fromkeys(f"{s.state}: {s.needs}" for s in r.systems if s.state == "needs an extra")
    return [
        table,
        *needs,
        "needs weights: NAME fetches them from the Hub (--json says which); NAME=ID takes others,",
        "  by Hub id or folder; NAME=DIR runs its own code in an environment you make",
    ]


def _comparison_lines(r: CompareResult, only: str | None) -> list[Any]:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("system", "ratio", "metric", "n", "first", "second", "change", "p"):
        table.add_column(name, justify="left" if name in ("system", "metric") else "right")
    for row in r.rows:
        ratio = "-" if row.ratio is None else str(row.ratio)
        first, second = 100 * row.first, 100 * row.second
        figures = (f"{first:.1f}", f"{second:.1f}", f"{second - first:+.1f}", f"{row.p:.4f}")
        table.add_row(*(Text(c) for c in (row.name, ratio, row.metric, f"{row.n:,}", *figures)))
    return [f"first: {r.first}", f"second: {r.second}", table]


def _speed_lines(r: SpeedResult, only: str | None) -> list[Any]:
    about = f"{r.shape} ({r.weights}), {r.parameters / 1e6:,.1f} M parameters, {r.dtype}"
    where = f"{r.device}, {r.threads} threads" if r.device == "cpu" else r.device
    lines: list[Any] = [f"{about}, on {where}"]
    lines.append(f"ratio {r.ratio}: {r.memory_tokens} memory tokens for 256 of text")
    lines += [f"{name:<20}{figures}" for name, figures in _speeds(r)]
    lines.append(f"medians of {r.rounds} alternating rounds; an answer reads 5 passages")
    return [*lines, f"written: {shell_word(r.out)}/speed.json"] if r.out else lines


def _speeds(r: SpeedResult) -> Iterator[tuple[str, str]]:
    """What was measured, and its figures."""
    none = "out of memory"
    used = {name: "" if x is None else f", MFU {100 * x:.1f} %" for name, x in r.mfu.items()}
    yield (
        "compress",
        none
        if r.compress is None
        else f"{r.compress.passages_per_second:,.1f} passages/s, "
        f"{r.compress.tokens_per_second:,.0f} tokens/s ({r.compress.batch} at a time)"
        + used["compress"],
    )
    yield "query", none if r.query_ms is None else f"{r.query_ms:,.1f} ms"
    for name, said in (("answer from memory", r.memory), ("answer from text", r.text)):
        yield (
            name,
            none
            if said is None
            else f"{said.first_token_ms:,.1f} ms to the first token of {said.prompt_positions:,} "
            f"positions, then {said.tokens_per_second:,.1f} tokens/s",
        )
    if r.memory is not None and r.text is not None:
        gain = r.text.first_token_ms / r.memory.first_token_ms
        yield "text / memory", f"{gain:.2f} times the first token's ms"
    yield (
        "training step",
        none
        if r.train is None
        else f"{r.train.step_ms:,.0f} ms ({r.train.batch} passages, "
        f"{r.train.tokens_per_second:,.0f} positions/s)" + used["train"],
    )
    yield "peak memory", size(r.peak_memory_bytes)


LINES: dict[type, Callable[[Any, str | None], list[Any]]] = {
    BenchResult: _bench_lines,
    CompareResult: _comparison_lines,
    PublishedResult: _published_result_lines,
    SpeedResult: _speed_lines,
    SystemsResult: _systems_lines,
}
