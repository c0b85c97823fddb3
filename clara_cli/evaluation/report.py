"""What a run leaves for people: report.md, a self-contained report.html, results.json, and plots
where matplotlib is installed (the [plot] extra). Knows scores; computes none but paired tests.
"""

from __future__ import annotations

import base64
import html
import json
import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from clara_cli import __version__
from clara_cli.corpus.files import write_atomic
from clara_cli.evaluation.scores import Difference, Scored, differences, label
from clara_cli.records import BenchResult, PublishedRow, Report

Table = tuple[str, list[str], list[list[str]]]  # heading, columns, rows of cells
_CONTROLS = {
    "none": "the generator with no documents at all",
    "wrong": "another question's passages: who reads them does no better than closed-book",
    "counterfactual": (
        "the answer in the gold passages was replaced before compression; EM, F1 and Cover-EM "
        "count answers that follow the passage"
    ),
}


def write_reports(
    folder: Path,
    result: BenchResult,
    scored: Sequence[Scored],
    settings: Mapping[str, Any],
    device: torch.device,
    report: Report,
) -> None:
    """Write all of them into the run's folder."""
    tests = differences(scored, result.seed)
    machine = environment(device)
    plots: dict[str, bytes] = {}
    if find_spec("matplotlib") is None:
        report.note("no plots: install clara-cli[plot] for them")
    else:
        from clara_cli.evaluation.plots import draw

        plots = draw(folder, scored)
    everything = {
        "result": {**asdict(result), "systems": [asdict(row.card) for row in scored]},
        "ranking": {label(row.card): row.ranking for row in scored},
        "milliseconds": {label(row.card): row.phases for row in scored},
        "differences": [asdict(test) for test in tests],
        "settings": dict(settings),
        "environment": machine,
    }
    write_atomic(folder / "results.json", (json.dumps(everything, indent=2) + "\n").encode())
    title = f"clara bench: {result.dataset}"
    said = f"{result.n:,} questions, setting `{result.setting}`, seed {result.seed}."
    tables = _tables(result, scored, tests, settings, machine)
    page = _markdown(title, said, tables, sorted(plots))
    write_atomic(folder / "report.md", page.encode("utf-8", "replace"))
    page = _html(title, said, tables, plots)
    write_atomic(folder / "report.html", page.encode("utf-8", "replace"))


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that made the numbers."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, Any] = {"clara": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "bm25s"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found |= {
        "machine": platform.platform(),
        "device": device.type,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "peak_rss_bytes": peak * (1 if sys.platform == "darwin" else 1024),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def _tables(
    result: BenchResult,
    scored: Sequence[Scored],
    tests: Sequence[Difference],
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> list[Table]:
    plain = [row for row in scored if "/" not in row.card.name]
    tables = [_scores("Answers (%, 95 % bootstrap interval)", plain)]
    tables += [_retrieval(plain), _cost(plain)]
    for name, meaning in _CONTROLS.items():
        rows = [row for row in scored if row.card.name.endswith(f"/{name}")]
        if rows:
            tables.append(_scores(f"Control: {name} ({meaning})", rows))
    if result.survival:
        tables.append(_survival(result))
    if tests:
        cells = [
            [t.first, t.second, str(t.n), *(_percent(v) for v in t.values), f"{t.p:.4f}"]
            for t in tests
        ]
        heading = "Paired permutation tests, F1"
        tables.append((heading, ["first", "second", "n", "first", "second", "p"], cells))
    if result.published:
        tables.append(_published(result.published))
    tables.append(("Settings", ["", ""], [[k, _shown(v)] for k, v in settings.items()]))
    tables.append(("Machine and versions", ["", ""], [[k, _shown(v)] for k, v in machine.items()]))
    return tables


def _scores(heading: str, rows: Sequence[Scored]) -> Table:
    cells = []
    for row in rows:
        card, line = row.card, [label(row.card), str(len(row.ids))]
        for key, value in (("em", card.em), ("f1", card.f1), ("cover_em", card.cover_em)):
            low_high = card.ci95.get(key)
            about = "" if low_high is None else f" [{', '.join(map(_percent, low_high))}]"
            line.append(_percent(value) + about + (" *" if key in card.best else ""))
        cells.append(line)
    return heading, ["system", "n", "EM", "F1", "Cover-EM"], cells


def _retrieval(rows: Sequence[Scored]) -> Table:
    names = list(rows[0].ranking) if rows else []
    cells = [
        [
            label(row.card),
            *(_percent(value) for value in row.card.recall.values()),
            *(_percent(row.ranking[name]) for name in names),
        ]
        for row in rows
    ]
    return "Passages given (%)", ["system", "R@1", "R@3", "R@5", *names], cells


def _cost(rows: Sequence[Scored]) -> Table:
    columns = ["system", "context tokens", "bytes a passage", "truncated", "ms a question"]
    columns += ["query ms", "search ms", "generate ms", "compress ms (done before)"]
    cells = []
    for row in rows:
        card, ms = row.card, row.phases
        kept = "-" if card.bytes_per_passage is None else f"{card.bytes_per_passage:,.0f}"
        line = [label(card), f"{card.context_tokens:,.1f}", kept, str(card.truncated)]
        line.append(f"{card.ms_per_question:,.1f}")
        line += [f"{ms[phase]:,.1f}" for phase in ("query", "search", "generate", "compress")]
        cells.append(line)
    return "Cost", columns, cells


def _survival(result: BenchResult) -> Table:
    cells = [
        [
            f"{s.ratio}x",
            str(s.passages),
            f"{_percent(s.numbers_kept)} of {s.numbers}",
            f"{_percent(s.names_kept)} of {s.names}",
        ]
        for s in result.survival
    ]
    heading = "Facts kept (%): in a paraphrase written from memory; found by rule; a lower bound"
    return heading, ["ratio", "passages", "numbers", "names"], cells


def _published(rows: Sequence[PublishedRow]) -> Table:
    datasets = list(dict.fromkeys(name for row in rows for name in row.values))
    cells = []
    for r in rows:
        ratio = "-" if r.ratio is None else f"{r.ratio}x"
        figures = (f"{r.values[name]:.2f}" if name in r.values else "-" for name in datasets)
        cells.append([r.system, ratio, r.metric, *figures, r.source])
    heading = "Reported by papers: another corpus and model, not to be mixed with the above"
    return heading, ["system", "ratio", "metric", *datasets, "source"], cells


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(
            " ".join(map(str, (part for part in item if part is not None)))
            if isinstance(item, (list, tuple))
            else str(item)
            for item in value
        )
    return "-" if value is None else str(value)


def _markdown(title: str, said: str, tables: Sequence[Table], plots: Sequence[str]) -> str:
    lines = [f"# {title}", "", said, "", "`*` the highest by a significant paired difference.", ""]
    for heading, columns, rows in tables:
        lines += [f"## {heading}", "", f"| {' | '.join(columns)} |"]
        lines += [f"|{'---|' * len(columns)}"]
        escaped = ([cell.replace("|", r"\|") for cell in row] for row in rows)
        lines += [f"| {' | '.join(row)} |" for row in escaped]
        lines.append("")
    lines += [f"![{name}]({name}.svg)" for name in plots]
    return "\n".join(lines).rstrip() + "\n"


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2430;background:#fff;max-width:62rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.05rem;margin:2rem 0 .5rem}
p{color:#56607a;margin-top:0}.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
th{text-align:left;font-weight:600;border-bottom:2px solid #c8cfdc}
th,td{padding:.28rem .9rem .28rem 0;vertical-align:top}
td{border-bottom:1px solid #e8ebf1;overflow-wrap:anywhere}
td:first-child{white-space:nowrap}td.best{font-weight:700;color:#0b6e4f}
img{max-width:100%;margin:1rem 0}
@media(prefers-color-scheme:dark){body{background:#12151c;color:#dfe4ee}p{color:#98a2b8}
th{border-color:#3a4358}td{border-color:#262d3c}td.best{color:#5fd3a7}img{background:#fff}}
"""


def _html(title: str, said: str, tables: Sequence[Table], plots: Mapping[str, bytes]) -> str:
    e = html.escape
    parts = [f"<h1>{e(title)}</h1><p>{e(said.replace('`', ''))}<br>"]
    parts.append("* marks the highest by a significant paired difference.</p>")
    for name, image in sorted(plots.items()):
        data = base64.b64encode(image).decode()
        parts.append(f'<img alt="{e(name)}" src="data:image/svg+xml;base64,{data}">')
    for heading, columns, rows in tables:
        head = "".join(f"<th>{e(column)}</th>" for column in columns)
        body = "".join(
            "<tr>"
            + "".join(
                f'<td class="best">{e(cell)}</td>' if cell.endswith(" *") else f"<td>{e(cell)}</td>"
                for cell in row
            )
            + "</tr>"
            for row in rows
        )
        head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
        table = f"<table>{head}<tbody>{body}</tbody></table>"
        parts.append(f'<h2>{e(heading)}</h2><div class="wide">{table}</div>')
    start = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{e(title)}</title>'
    view = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    return f"{start}{view}<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
