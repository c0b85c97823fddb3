"""What a report says, as tables of cells; how they are written down is not known here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clara_cli.bench_records import BenchResult, PublishedRow
from clara_cli.evaluation.scores import Difference, Scored, label

_CONTROLS = {
    "none": "the generator with no documents at all",
    "wrong": "another question's passages: who reads them does no better than closed-book",
    "counterfactual": (
        "the answer in the gold passages was replaced before compression; EM, F1 and Cover-EM "
        "count answers that follow the passage"
    ),
}


@dataclass(frozen=True)
class Cell:
    """A figure; `note` is its interval, `best` the mark of a significant lead."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under columns, `about` a sentence to read them by; `apart` marks what is not measured
    here, `aside` what few look up."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    about: str = ""
    apart: bool = False
    aside: bool = False


def tables(
    result: BenchResult,
    scored: Sequence[Scored],
    tests: Sequence[Difference],
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> list[Table]:
    """All that is to be said, in order."""
    plain = [row for row in scored if "/" not in row.card.name]
    sections = [_scores("Answers", "% with the 95 % bootstrap interval", plain)]
    sections += [_retrieval(plain), _cost(plain), _time(plain)]
    if any(row.card.error for row in scored):
        sections.append(_errors(scored))
    for name, meaning in _CONTROLS.items():
        rows = [row for row in scored if row.card.name.endswith(f"/{name}")]
        if rows:
            sections.append(_scores(f"Control: {name}", meaning, rows))
    if result.survival:
        sections.append(_survival(result))
    if result.lens:
        sections.append(_lens(result))
    if result.break_even:
        sections.append(_break_even(result, machine))
    if tests:
        sections.append(_tests(tests))
    if result.published:
        sections.append(_published_figures(result.published))
    sections.append(_facts("Settings", settings))
    sections.append(_facts("Machine and versions", machine))
    return sections


def _table(
    heading: str, columns: Sequence[str], rows: Sequence[Sequence[Cell | str]], about: str = "",
    **more: bool,
) -> Table:  # fmt: skip
    cells = tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
    return Table(heading, tuple(columns), cells, about, **more)


def _scores(heading: str, about: str, rows: Sequence[Scored]) -> Table:
    cells: list[list[Cell | str]] = []
    for row in rows:
        card = row.card
        line: list[Cell | str] = [
            label(card),
            f"{len(row.ids) - card.out_of_memory - card.unanswered:,}",
        ]
        for key, value in (("em", card.em), ("f1", card.f1), ("cover_em", card.cover_em)):
            ends = card.ci95.get(key)
            note = "" if ends is None else f"[{', '.join(map(percent, ends))}]"
            line.append(Cell(percent(value), note, key in card.best))
        cells.append([*line, _figure(card.answer_words), percent(card.empty_share)])
    columns = ["system", "n", "EM", "F1", "Cover-EM", "words", "empty"]
    about += "; words: the mean length of an answer; empty: % of answers without a word"
    return _table(heading, columns, cells, about)


def _retrieval(rows: Sequence[Scored]) -> Table:
    names = list(rows[0].ranking) if rows else []
    cells = [
        [
            label(row.card),
            *(percent(value) for value in row.card.recall.values()),
            *(percent(row.ranking[name]) for name in names),
        ]
        for row in rows
    ]
    short = [name.replace("precision", "P").replace("mrr", "MRR") for name in names]
    columns = ["system", "R@1", "R@3", "R@5", *(n.replace("ndcg", "nDCG") for n in short)]
    return _table("Passages given", columns, cells, "% of the gold paragraphs; order as given")


def _cost(rows: Sequence[Scored]) -> Table:
    cells = []
    for row in rows:
        card = row.card
        kept = "-" if card.bytes_per_passage is None else f"{card.bytes_per_passage:,.0f}"
        effective = "-" if card.effective_ratio is None else f"{card.effective_ratio:.1f}"
        line = [label(card), _figure(card.context_tokens), effective, kept, f"{card.truncated:,}"]
        cells.append([*line, f"{card.out_of_memory:,}", f"{card.unanswered:,}"])
    columns = ["system", "context tokens", "effective ratio", "bytes a passage", "truncated"]
    columns.append("out of memory")
    about = "effective ratio: text tokens of the passages read for each memory token; "
    about += "truncated: questions whose last passages did not fit the window; questions out of "
    about += "memory and unanswered ones are in no figure"
    return _table("Cost of a question", [*columns, "unanswered"], cells, about)


def _errors(rows: Sequence[Scored]) -> Table:
    cells = [
        [label(row.card), f"{row.card.unanswered:,}", row.card.error]
        for row in rows
        if row.card.error
    ]
    about = "their questions are in no figure of the row and in no paired test with it; the same "
    about += "command asks them again"
    return _table("Unanswered", ["system", "questions", "first error"], cells, about)


def _time(rows: Sequence[Scored]) -> Table:
    phases = ("query", "search", "generate", "compress")
    cells = [
        [
            label(row.card),
            _figure(row.card.ms_per_question),
            *(_figure(row.phases[phase]) for phase in phases),
        ]
        for row in rows
    ]
    about = "milliseconds; questions are answered in batches, each taking an equal share of what "
    about += "was done together; compressing was done before and is no part of answering"
    columns = ["system", "answering", *phases[:3], "compress (before)"]
    return _table("Time of a question", columns, cells, about)


def _survival(result: BenchResult) -> Table:
    cells: list[list[Cell | str]] = [
        [
            f"{s.ratio}x",
            f"{s.passages:,}",
            Cell(percent(s.numbers_kept), f"of {s.numbers:,}"),
            Cell(percent(s.names_kept), f"of {s.names:,}"),
        ]
        for s in result.survival
    ]
    about = "% of the numbers and names of gold passages, found by rule, that a paraphrase written "
    about += "from their memory still has: a lower bound"
    return _table("Facts kept", ["ratio", "passages", "numbers", "names"], cells, about)


def _lens(result: BenchResult) -> Table:
    cells = []
    for r in result.lens:
        gain = None if r.share is None or r.chance is None else 100 * (r.share - r.chance)
        ends = "" if r.difference95 is None else f"[{', '.join(map(percent, r.difference95))}]"
        difference = Cell("-" if gain is None else f"{gain:+.1f}", ends)
        row: list[Cell | str] = [f"{r.ratio}x", f"{r.questions:,}", _figure(r.words)]
        cells.append([*row, percent(r.share), percent(r.chance), difference])
    columns = ["ratio", "questions", "words named", "gold passage", "chance", "difference"]
    about = "% of questions whose query memory names, by the logit lens, a word that stands in the "
    about += "gold passage and not in the question; chance: in other questions' gold passages"
    return _table("Logit lens", columns, cells, about)


def _break_even(result: BenchResult, machine: Mapping[str, Any]) -> Table:
    sizes = [point.text_tokens for point in result.break_even[0].points]
    cells = []
    for line in result.break_even:
        name = line.way if line.ratio is None else f"{line.way} {line.ratio}x"
        shares = [f"{point.share:.2f}" for point in line.points]
        start = "never" if line.faster_from is None else f"{line.faster_from:,}"
        cells.append([name, *shares, start])
    columns = ["way", *(f"{size:,} tokens" for size in sizes), "faster from"]
    about = "seconds to the first token as a share of those over the same passages as text, by the "
    about += f"tokens these have, on {hardware(machine)}; faster from: the tokens from which on it "
    about += "is below 1; finding the passages is left out"
    return _table("Break-even with text", columns, cells, about)


def hardware(machine: Mapping[str, Any]) -> str:
    """What the times were measured on."""
    if "gpu" in machine:
        return str(machine["gpu"])
    return f"{machine['device']}, {machine['threads']} of {machine['cpus']} threads"


def _tests(tests: Sequence[Difference]) -> Table:
    cells = [
        [
            t.first,
            t.second,
            f"{t.n:,}",
            *(percent(value) for value in t.values),
            f"{100 * (t.values[1] - t.values[0]):+.1f}",
            f"{t.p:.4f}",
        ]
        for t in tests
    ]
    columns = ["first", "second", "n", "F1 of first", "F1 of second", "difference", "p"]
    about = "F1 on the questions both answered, two-sided, not corrected for their number"
    return _table("Paired permutation tests", columns, cells, about, aside=True)


def _published_figures(rows: Sequence[PublishedRow]) -> Table:
    datasets = list(dict.fromkeys(name for row in rows for name in row.values))
    cells = []
    for r in rows:
        ratio = "-" if r.ratio is None else f"{r.ratio}x"
        figures = [f"{r.values[name]:.2f}" if name in r.values else "-" for name in datasets]
        cells.append([r.system, ratio, r.metric, *figures, r.source])
    columns = ["system", "ratio", "metric", *datasets, "source"]
    about = "another corpus and another model: not to be compared with the figures above"
    return _table("Reported by papers", columns, cells, about, apart=True, aside=True)


def _facts(heading: str, facts: Mapping[str, Any]) -> Table:
    cells = [[key.replace("_", " "), _setting_text(value)] for key, value in facts.items()]
    return _table(heading, ["", ""], cells, aside=True)


def percent(value: float | None) -> str:
    """A fraction in percent."""
    return "-" if value is None else f"{100 * value:.1f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _setting_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(
            " ".join(map(str, (part for part in item if part is not None)))
            if isinstance(item, (list, tuple))
            else str(item)
            for item in value
        )
    return "-" if value is None else str(value)
