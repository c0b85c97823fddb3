"""The loss plot of a training run, by matplotlib: each step's losses and each check's figures.

Imported only where matplotlib is installed. Knows lines of metrics, nothing of models.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clara_cli.storage.files import write_atomic

_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f")
_FAINT: dict[str, Any] = {"color": "#0072B2", "alpha": 0.25, "linewidth": 1}


def draw_losses(
    file: Path, steps: Sequence[dict[str, Any]], checks: Sequence[dict[str, Any]]
) -> None:
    """Draw what a run's metrics.jsonl and validation.jsonl say, one panel a figure, as SVG."""
    names = ["ce", "mse"] if any(line["mse"] is not None for line in steps) else ["ce"]
    others = [name for name in (checks[0] if checks else {}) if name not in ("step", *names)]
    count = len(names) + bool(others)
    figure = Figure(figsize=(7, 2.6 * count), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(count, 1, place)
        values = [line[name] for line in steps if line[name] is not None]
        at = [line["step"] for line in steps if line[name] is not None]
        axes.plot(at, values, **_FAINT)
        axes.plot(at, smoothed(values), color="#0072B2", label="training, smoothed")
        _draw_checks(axes, checks, name, "#D55E00", "validation")
        axes.set(ylabel=name, ylim=(0, None))
        axes.legend(frameon=False)
    if others:
        axes = figure.add_subplot(count, 1, count)
        for name, colour in zip(others, _COLOURS, strict=False):
            _draw_checks(axes, checks, name, colour, name)
        axes.set(ylabel="validation", ylim=(0, 1))
        axes.legend(frameon=False)
    axes.set(xlabel="step")
    image = io.BytesIO()
    figure.savefig(image, format="svg", metadata={"Date": None})
    write_atomic(file.parent, file.name, image.getvalue())


def _draw_checks(
    axes: Any, checks: Sequence[dict[str, Any]], name: str, colour: str, label: str
) -> None:
    points = [(line["step"], line[name]) for line in checks if name in line]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", label=label)


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential mean over about a twentieth of the steps."""
    keep, mean, means = 1 - 1 / max(1, len(values) / 20), 0.0, []
    for n, value in enumerate(values, 1):
        mean = keep * mean + (1 - keep) * value
        means.append(mean / (1 - keep**n))
    return means
