"""A report written down: Markdown, and one HTML file that needs nothing beside it, in light and
dark, on a wide screen, a narrow one and paper.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from clara_cli.evaluation.report.tables import Cell, Table
from clara_cli.printable import clean, clean_line

_PLOTS = {
    "f1-ratio": "Quality against ratio; bars are 95 % intervals",
    "f1-context": "Quality against the tokens that stand for the passages",
    "controls": "Controls: whose answer is it?",
    "time": "Time of a question",
    "break-even": "Break-even: quality and time to the first token, against text",
}
_WORDED = ("second", "metric", "source", "first error")  # columns of words, not figures
_MARK = "marks the highest by a significant paired difference (p < 0.05) to the next."
_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--card:#f7f8fa;--ink:#1d2431;--soft:#5d677a;
--line:#e1e5ec;--strong:#c3cad6;--best:#0b7a52;--apart:#8a5a00}
@media(prefers-color-scheme:dark){:root{--ground:#11141a;--card:#191d26;--ink:#e3e8f0;
--soft:#9aa5b8;--line:#2a3040;--strong:#444d60;--best:#4fd1a0;--apart:#e0b060}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);
background:var(--ground);max-width:80rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .35rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.4rem 0 .15rem}p{margin:.1rem 0 .7rem;color:var(--soft)}
.about{font-size:.9rem;max-width:46rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,28rem),1fr));gap:1rem;
margin:1.5rem 0}
figure{margin:0;padding:1rem;background:var(--card);border-radius:.6rem}
figcaption{font-size:.9rem;font-weight:600;margin-bottom:.6rem}
figure svg{width:100%;height:auto;display:block;color:var(--ink)}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:.6rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .8rem;text-align:right;white-space:nowrap}
th{font-weight:600;background:var(--card);border-bottom:1px solid var(--strong)}
td{border-bottom:1px solid var(--line)}tbody tr:last-child td{border-bottom:0}
th:first-child,td:first-child{text-align:left}td:first-child{font-weight:600}
td.words,th.words{text-align:left}
td small{color:var(--soft);font-size:.8rem;margin-left:.35rem}
td.best{color:var(--best);font-weight:700}
.facts td{white-space:normal;overflow-wrap:anywhere;text-align:left}
.facts td:first-child{white-space:nowrap;font-weight:400;color:var(--soft);width:12rem}
details{margin-top:1.6rem}summary{cursor:pointer;font-size:1.1rem;font-weight:600}
details.apart summary,h2.apart{color:var(--apart)}details p{margin-top:.3rem}
@media print{body{max-width:none;padding:0}.wide{overflow:visible}}
"""


def markdown(title: str, said: str, tables: Sequence[Table], plots: Sequence[str]) -> str:
    """The report for a terminal or a repository; plots are the files beside it."""
    lines = [f"# {title}", "", said, "", f"`*` {_MARK}", ""]
    lines += [f"![{_PLOTS[name]}]({name}.svg)\n" for name in plots]
    for table in tables:
        lines += [f"## {table.heading}", ""]
        lines += [f"{table.about[:1].upper()}{table.about[1:]}.", ""] if table.about else []
        lines += [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
        lines += [f"| {' | '.join(map(_plain, row))} |" for row in table.rows]
        lines.append("")
    return clean("\n".join(lines).rstrip()) + "\n"


def _plain(cell: Cell) -> str:
    note = f" {cell.note}" if cell.note else ""
    return clean_line(cell.text + note + " *" * cell.best).replace("|", r"\|")


def page(title: str, said: str, tables: Sequence[Table], plots: Mapping[str, str]) -> str:
    """The report for a browser; `plots` are SVG elements by name."""
    e = html.escape
    parts = [f"<h1>{e(title)}</h1><p>{e(said)}</p>"]
    parts.append(f'<p class="about">Green, with a star: {e(_MARK[6:])}</p>')
    figures = (
        f"<figure><figcaption>{e(_PLOTS[name])}</figcaption>{svg}</figure>"
        for name, svg in plots.items()
    )
    parts.append(f'<div class="plots">{"".join(figures)}</div>' if plots else "")
    parts += map(_section, tables)
    start = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{e(title)}</title>'
    view = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    body = clean("".join(parts))
    return f"{clean(start)}{view}<style>{_STYLE}</style><body>{body}</body></html>\n"


def _section(table: Table) -> str:
    """A table under its heading; what few look up is folded away."""
    e = html.escape
    about = f'<p class="about">{e(table.about)}</p>' if table.about else ""
    kind = ' class="apart"' if table.apart else ""
    body = f'{about}<div class="wide">{_grid(table)}</div>'
    if table.aside:
        return f"<details{kind}><summary>{e(table.heading)}</summary>{body}</details>"
    return f"<h2{kind}>{e(table.heading)}</h2>{body}"


def _grid(table: Table) -> str:
    e = html.escape
    worded = {i for i, name in enumerate(table.columns) if name in _WORDED}
    head = "".join(
        f'<th class="words">{e(name)}</th>' if i in worded else f"<th>{e(name)}</th>"
        for i, name in enumerate(table.columns)
    )
    body = "".join(
        f"<tr>{''.join(_cell(cell, words=i in worded) for i, cell in enumerate(row))}</tr>"
        for row in table.rows
    )
    if not any(table.columns):
        return f'<table class="facts"><tbody>{body}</tbody></table>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: Cell, *, words: bool) -> str:
    e = html.escape
    kind = ' class="best"' if cell.best else ' class="words"' if words else ""
    note = f"<small>{e(cell.note)}</small>" if cell.note else ""
    return f"<td{kind}>{e(cell.text)}{'*' * cell.best}{note}</td>"
