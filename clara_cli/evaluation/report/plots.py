"""The plots of a run, by matplotlib: quality against ratio and against context tokens, controls,
and time. Names stand beside what they name.

Imported only where matplotlib is installed. Written as SVG and PNG, the same bytes for the same
scores; what is returned for a page is SVG whose ink is `currentColor`, so that it follows the
page's colours.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from clara_cli.bench_records import BreakEven
from clara_cli.evaluation.break_even import CACHED, SHORTENED, WHEN_ASKED
from clara_cli.evaluation.scores import Scored, label
from clara_cli.storage.files import write_atomic

_INK = "#1d2431"  # text and axes; becomes currentColor on a page
_COLOURS = {  # one a system, told apart on light and on dark ground, by the colour-blind as well
    "clara": "#2f7fd6",
    "sup": "#8d63d6",
    "scp": "#159a74",
    "scp+bm25": "#0f6b50",
    "closed-book": "#8b919c",
    "text": "#e06c2f",
    "text+bm25": "#cf4d8f",
    "extractive": "#b08a1e",
    "text+generator": "#b0481a",
    "text+generator+bm25": "#962f66",
}
_OTHERS = ("#4f9bb3", "#9a6a4f", "#6f8f2f", "#b05fb0", "#5f6fb0", "#a04040")
_PHASES = {"query": "#8d63d6", "search": "#e0a32f", "generate": "#2f7fd6"}
_CONTROLS = {
    "as it is": ("", "o", "#2f7fd6"),
    "wrong passages": ("/wrong", "x", "#8b919c"),
    "answer replaced": ("/counterfactual", "D", "#e06c2f"),
}
_WAYS: dict[str, Any] = {  # ways to answer the break-even is about
    CACHED: {"color": "#2f7fd6"},
    WHEN_ASKED: {"color": "#8d63d6", "ls": (0, (5, 2))},
    SHORTENED: {"color": "#b08a1e"},
}
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # ticks of times
_STYLE: Any = {
    "svg.hashsalt": "clara",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": "#8b919c",
    "grid.alpha": 0.25,
    "lines.linewidth": 1.8,
}
Label = tuple[float, float, str, str]  # x, y, text, colour


def _colour(name: str) -> str:
    """A system's colour; one of a few for a rival, always the same for the same name."""
    return _COLOURS.get(name) or _OTHERS[zlib.crc32(name.encode()) % len(_OTHERS)]


def draw(
    folder: Path, scored: Sequence[Scored], times: Sequence[BreakEven], hardware: str
) -> dict[str, str]:
    """Draw every plot there is data for; SVG for a page, by name, in the order to show. `times` to
    the first token were measured on `hardware`."""
    rows = [row for row in scored if row.card.ms_per_question is not None]
    plain = [row for row in rows if "/" not in row.card.name]
    answered = [row for row in plain if row.card.f1 is not None]
    plots: dict[str, Callable[[Any], None]] = {}
    if len({row.card.ratio for row in answered if row.card.ratio}) > 1:
        plots["f1-ratio"] = lambda axes: _by_ratio(axes, answered)
    if answered:
        plots["f1-context"] = lambda axes: _by_context(axes, answered)
    if any(row.card.name.endswith(("/wrong", "/counterfactual")) for row in rows):
        plots["controls"] = lambda axes: _controls(axes, rows)
    if plain:
        plots["time"] = lambda axes: _time(axes, plain)
    bars = {"controls": len(plain), "time": len(plain)}
    with matplotlib.rc_context(_STYLE):
        heights = {name: 1.1 + 0.3 * bars[name] if name in bars else 3.7 for name in plots}
        pages = {name: _draw_plot(folder, name, plots[name], heights[name]) for name in plots}
        if times:
            pages["break-even"] = _break_even(folder, times, answered, hardware)
        return pages


def _break_even(
    folder: Path, times: Sequence[BreakEven], rows: Sequence[Scored], hardware: str
) -> str:
    """F1 and time to the first token as shares of text's, against tokens."""
    text = next((row for row in rows if row.card.name == "text" and row.card.f1), None)
    figure = Figure(figsize=(6, 3.7 if text is None else 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    count = 1 if text is None else 2
    if text is not None:
        _quality_shares(figure.add_subplot(count, 1, 1), rows, text)
    _time_shares(figure.add_subplot(count, 1, count), times, hardware)
    return _save_plot(folder, "break-even", figure)


def _quality_shares(axes: Any, rows: Sequence[Scored], text: Scored) -> None:
    """F1 of each row as a share of text's, by the tokens standing in the prompt."""
    axes.axhline(1, color=_colour("text"), ls=(0, (4, 3)), lw=1.4)
    for row in rows:
        share = (row.card.f1 or 0) / (text.card.f1 or 1)
        at = (row.card.context_tokens or 0, share)
        axes.plot(*at, "o", color=_colour(row.card.name))
        near = {"xytext": (6, 4), "textcoords": "offset points", "size": 8.5}
        axes.annotate(label(row.card), at, color=_colour(row.card.name), **near)
    axes.set_xscale("symlog", linthresh=10, linscale=0.5)
    axes.margins(x=0.16, y=0.2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(xlabel="context tokens a question", ylabel="F1, share of text's")
    axes.grid(axis="y")


def _time_shares(axes: Any, times: Sequence[BreakEven], hardware: str) -> None:
    """Time to the first token as a share of text's, a line a way and ratio."""
    axes.axhline(1, color=_colour("text"), ls=(0, (4, 3)), lw=1.4)
    axes.text(1.01, 1, "text", transform=axes.get_yaxis_transform(), color=_colour("text"))
    ratios = list(dict.fromkeys(line.ratio for line in times))
    for line in times:
        style = _WAYS[line.way]
        shade = 1 - 0.5 * ratios.index(line.ratio) / max(1, len(ratios) - 1)
        name = line.way if line.ratio is None else f"{line.way} {line.ratio}x"
        tokens = [point.text_tokens for point in line.points]
        own = [point.share for point in line.points]
        axes.plot(tokens, own, marker="o", ms=4, alpha=shade, label=name, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    shares = [point.share for line in times for point in line.points]
    low, high = min(0.5, *shares), max(2.0, *shares)
    axes.set_yticks([tick for tick in _SHARES if low / 2 < tick < high * 2])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set(
        xlabel=f"tokens of the passages as text ({hardware})",
        ylabel="time to first token, share of text's",
    )
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
    axes.legend(frameon=False, fontsize=8, **place)
    axes.grid(axis="y")


def _draw_plot(folder: Path, name: str, plot: Callable[[Any], None], height: float) -> str:
    """Write one plot as SVG and PNG; its SVG for a page."""
    figure = Figure(figsize=(6, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(axis="x" if name in ("controls", "time") else "y")
    axes.set_axisbelow(True)
    plot(axes)
    return _save_plot(folder, name, figure)


def _save_plot(folder: Path, name: str, figure: Any) -> str:
    for kind in ("svg", "png"):
        write_atomic(folder, f"{name}.{kind}", _image(figure, kind, transparent=False))
    page = _image(figure, "svg", transparent=True).decode()
    return page[page.index("<svg") :].replace(_INK, "currentColor")


def _image(figure: Any, kind: str, *, transparent: bool) -> bytes:
    image = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(image, format=kind, dpi=160, metadata=metadata, transparent=transparent)
    return image.getvalue()


def _percent(row: Scored) -> float:
    return 100 * (row.card.f1 or 0.0)


def _errors(rows: Sequence[Scored]) -> list[list[float]]:
    """F1's distances to its intervals' ends, in %, as matplotlib wants them."""
    ends = [row.card.ci95["f1"] for row in rows]
    below = [_percent(row) - 100 * low for row, (low, _) in zip(rows, ends, strict=True)]
    above = [100 * high - _percent(row) for row, (_, high) in zip(rows, ends, strict=True)]
    return [below, above]


def _top(rows: Sequence[Scored]) -> float:
    """Where an axis of F1 ends: room above every interval, and never so near zero that noise looks
    large."""
    return max(10.0, 105 * max(row.card.ci95["f1"][1] for row in rows))


def _by_ratio(axes: Any, rows: Sequence[Scored]) -> None:
    """F1 by ratio, a line a system; systems without a ratio as levels across."""
    labels: list[Label] = []
    ticks = sorted({row.card.ratio for row in rows if row.card.ratio})
    names = list(dict.fromkeys(row.card.name for row in rows if row.card.ratio))
    for place, name in enumerate(names):
        own = [row for row in rows if row.card.name == name and row.card.ratio]
        own.sort(key=lambda row: row.card.ratio or 0)
        shift = 1.03 ** (2 * place - len(names) + 1)  # intervals side by side
        ratios, values = [(r.card.ratio or 0) * shift for r in own], [_percent(r) for r in own]
        axes.errorbar(ratios, values, _errors(own), **_series(name))
        labels.append((ticks[-1], values[-1], name, _colour(name)))
    for row in (row for row in rows if not row.card.ratio):
        axes.axhline(_percent(row), color=_colour(row.card.name), ls=(0, (4, 3)), lw=1.4)
        labels.append((ticks[-1], _percent(row), row.card.name, _colour(row.card.name)))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="ratio, text tokens per memory token", ylabel="F1, %", ylim=(0, _top(rows)))
    _name_levels(axes, labels)


def _series(name: str) -> dict[str, Any]:
    style = {"color": _colour(name), "marker": "o", "markersize": 5, "capsize": 3}
    return {**style, "elinewidth": 1.2}


def _name_levels(axes: Any, labels: Sequence[Label]) -> None:
    """Names at the right edge, at the height of what they name, moved apart where they touch."""
    axes.figure.draw_without_rendering()
    top = axes.get_ylim()[1]
    gap = 14 * top / (axes.bbox.height * 72 / axes.figure.dpi)
    height = -gap
    for _, y, text, colour in sorted(labels, key=lambda item: item[1]):
        height = max(y, height + gap)
        at, across = (1.015, height), axes.get_yaxis_transform()
        axes.text(*at, text, transform=across, color=colour, va="center", weight="bold")


def _by_context(axes: Any, rows: Sequence[Scored]) -> None:
    """F1 by the tokens standing in the prompt, a point a row."""
    labels: list[Label] = []
    for name in dict.fromkeys(row.card.name for row in rows):
        own = [row for row in rows if row.card.name == name]
        own.sort(key=lambda row: row.card.context_tokens or 0)
        tokens = [row.card.context_tokens or 0.0 for row in own]
        values = [_percent(row) for row in own]
        axes.errorbar(tokens, values, _errors(own), **_series(name))
        points = zip(tokens, values, own, strict=True)
        labels += [(x, y, label(row.card), _colour(name)) for x, y, row in points]
    axes.set_xscale("symlog", linthresh=10, linscale=0.5)
    axes.margins(x=0.16)
    ticks = [0, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000]
    largest = max(x for x, *_ in labels)
    axes.set_xticks([t for t in ticks if t <= 2 * largest], minor=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    axes.set(xlabel="context tokens a question", ylabel="F1, %", ylim=(0, _top(rows)))
    intervals = [(r.card.context_tokens or 0, *(100 * e for e in r.card.ci95["f1"])) for r in rows]
    _name_points(axes, labels, intervals)


def _name_points(axes: Any, labels: Sequence[Label], intervals: Sequence[Any]) -> None:
    """Each point's name on the first side of it where it covers no other name and no interval."""
    axes.figure.draw_without_rendering()
    renderer = axes.figure.canvas.get_renderer()
    taken = []
    for x, low, high in intervals:
        (left, bottom), (_, top) = axes.transData.transform([(x, low), (x, high)])
        taken.append(Bbox.from_extents(left - 5, bottom - 2, left + 5, top + 2))
    heights = (5, -13, 17, -25, 29, -37, 41, -49)
    sides = [(side * dx, dy) for dx in (7, 14) for dy in heights for side in (1, -1)]
    for x, y, text, colour in labels:
        tried = []
        for right, up in sides:
            near = {"xytext": (right, up), "textcoords": "offset points"}
            ha = "left" if right > 0 else "right"
            note = axes.annotate(text, (x, y), **near, ha=ha, color=colour, size=8.5)
            box = note.get_window_extent(renderer)
            hidden = sum(box.overlaps(other) for other in taken) + 10 * (box.y0 < axes.bbox.y0)
            tried.append((hidden, box, note))
            if not tried[-1][0]:
                break
        best = min(tried, key=lambda item: item[0])
        for attempt in tried:
            if attempt is not best:
                attempt[2].remove()
        taken.append(best[1])


def _controls(axes: Any, rows: Sequence[Scored]) -> None:
    """F1 of every system that reads: as it is, with wrong passages, with a replaced answer."""
    row_of = {(row.card.name, row.card.ratio): row for row in rows}
    systems = [
        row.card
        for row in rows
        if "/" not in row.card.name and row.card.name != "closed-book" and row.card.f1 is not None
    ]
    shown = [row for row in rows if row.card.f1 is not None]
    for meaning, (suffix, marker, colour) in _CONTROLS.items():
        pairs = [(i, row_of.get((c.name + suffix, c.ratio))) for i, c in enumerate(systems)]
        own = [(i, row) for i, row in pairs if row is not None and row.card.f1 is not None]
        if own:
            style = {
                "color": colour,
                "marker": marker,
                "ls": "none",
                "capsize": 3,
                "label": meaning,
            }
            values = [_percent(row) for _, row in own]
            places = [i + 0.22 * (list(_CONTROLS).index(meaning) - 1) for i, _ in own]
            axes.errorbar(values, places, xerr=_errors([row for _, row in own]), **style)
    axes.set_yticks(range(len(systems)), [label(card) for card in systems])
    axes.invert_yaxis()
    axes.set(xlabel="F1, % (with a replaced answer: F1 against the new one)", xlim=(0, _top(shown)))
    _legend(axes)


def _time(axes: Any, rows: Sequence[Scored]) -> None:
    """Milliseconds of a question, by phase."""
    names, left = [label(row.card) for row in rows], [0.0] * len(rows)
    for phase, colour in _PHASES.items():
        widths = [row.phases[phase] or 0.0 for row in rows]
        axes.barh(names, widths, left=left, height=0.62, color=colour, label=phase)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        near = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "size": 8.5}
        axes.annotate(f"{total:,.0f}", (total, place), **near)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds a question (memory was compressed before)")
    _legend(axes)


def _legend(axes: Any) -> None:
    """Above the plot, in one line."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "ncols": 3, "frameon": False}
    axes.legend(**place, borderaxespad=0.2, handletextpad=0.5, columnspacing=1.6)
