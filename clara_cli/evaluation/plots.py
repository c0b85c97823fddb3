"""The plots of a run, by matplotlib: quality against ratio and against context tokens, and time.

Imported only where matplotlib is installed. Written as SVG and PNG, the same bytes for the same
scores.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from clara_cli.corpus.files import write_atomic
from clara_cli.evaluation.scores import Scored, label

_COLOURS = {  # readable for the colour-blind (Okabe and Ito), one a system
    "clara": "#0072B2",
    "scp": "#009E73",
    "closed-book": "#7f7f7f",
    "text": "#D55E00",
    "text+bm25": "#CC79A7",
}
_PHASES = {"query": "#56B4E9", "search": "#E69F00", "generate": "#0072B2"}
_STYLE: Any = {
    "svg.hashsalt": "clara",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(folder: Path, scored: Sequence[Scored]) -> dict[str, bytes]:
    """Draw every plot there is data for; the SVG bytes by name."""
    rows = [row for row in scored if "/" not in row.card.name]
    plots: dict[str, Callable[[Any, Sequence[Scored]], None]] = {"time": _time}
    if any(row.card.f1 is not None for row in rows):
        plots["f1-context"] = _by_context
        if len({row.card.ratio for row in rows if row.card.ratio}) > 1:
            plots["f1-ratio"] = _by_ratio
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = {}
    with matplotlib.rc_context(_STYLE):
        for name, plot in plots.items():
            figure = Figure(figsize=(7, 3.8), layout="constrained")
            FigureCanvasAgg(figure)
            plot(figure.add_subplot(), rows)
            for kind in ("svg", "png"):
                image = io.BytesIO()
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(image, format=kind, dpi=160, metadata=metadata)
                write_atomic(folder / f"{name}.{kind}", image.getvalue())
                if kind == "svg":
                    drawn[name] = image.getvalue()
    return drawn


def _errors(row: Scored) -> list[list[float]]:
    """F1's distances to its interval's ends, in %, as matplotlib wants them."""
    low, high = row.card.ci95["f1"]
    value = row.card.f1 or 0.0
    return [[100 * (value - low)], [100 * (high - value)]]


def _by_ratio(axes: Any, rows: Sequence[Scored]) -> None:
    for name in dict.fromkeys(row.card.name for row in rows):
        own = [row for row in rows if row.card.name == name and row.card.f1 is not None]
        if own and own[0].card.ratio is None:
            axes.axhline(100 * (own[0].card.f1 or 0), color=_COLOURS[name], ls="--", label=name)
            continue
        own.sort(key=lambda row: row.card.ratio or 0)
        ratios, values = [r.card.ratio for r in own], [100 * (r.card.f1 or 0) for r in own]
        spread = [[_errors(r)[side][0] for r in own] for side in (0, 1)]
        style = {"color": _COLOURS[name], "marker": "o", "capsize": 3, "label": name}
        axes.errorbar(ratios, values, spread, **style)
    axes.set_xscale("log", base=2)
    ticks = sorted({row.card.ratio for row in rows if row.card.ratio})
    axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="ratio, text tokens per memory token", ylabel="F1, %", ylim=(0, None))
    _legend(axes)


def _by_context(axes: Any, rows: Sequence[Scored]) -> None:
    for name in dict.fromkeys(row.card.name for row in rows if row.card.f1 is not None):
        own = sorted((r for r in rows if r.card.name == name), key=lambda r: r.card.context_tokens)
        points = [(row.card.context_tokens, 100 * (row.card.f1 or 0)) for row in own]
        spread = [[_errors(row)[side][0] for row in own] for side in (0, 1)]
        style = {"color": _COLOURS[name], "marker": "o", "capsize": 3, "label": name}
        axes.errorbar(*zip(*points, strict=True), spread, **style)
        for row, point in zip(own, points, strict=True):
            if row.card.ratio is not None:
                near = {"textcoords": "offset points", "fontsize": 8, "color": _COLOURS[name]}
                axes.annotate(f"{row.card.ratio}x", point, (7, -9), **near)
    axes.set(xlabel="context tokens a question", ylabel="F1, %", ylim=(0, None))
    axes.set_xscale("symlog", linthresh=10)
    axes.margins(x=0.1)
    _legend(axes)


def _time(axes: Any, rows: Sequence[Scored]) -> None:
    names, left = [label(row.card) for row in rows], [0.0] * len(rows)
    for phase, colour in _PHASES.items():
        widths = [row.phases[phase] for row in rows]
        axes.barh(names, widths, left=left, color=colour, label=phase)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds a question (memory compressed before)")
    _legend(axes)


def _legend(axes: Any) -> None:
    """Beside the plot, where it hides nothing."""
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
