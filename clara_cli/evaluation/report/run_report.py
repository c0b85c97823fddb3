"""What a run leaves for people: report.md, a self-contained report.html, results.json, and plots
where matplotlib is installed (the [plot] extra). Knows scores; computes none but paired tests.
"""

from __future__ import annotations

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
from clara_cli.bench_records import BenchResult
from clara_cli.evaluation.report.page import markdown, page
from clara_cli.evaluation.report.tables import hardware, tables
from clara_cli.evaluation.scores import Scored, differences, label
from clara_cli.extras import install_command
from clara_cli.records import Report
from clara_cli.storage.files import write_atomic


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
    plots: dict[str, str] = {}
    if find_spec("matplotlib") is None:
        report.note(f"no plots: {install_command('plot')} brings what draws them")
    else:
        from clara_cli.evaluation.report.plots import draw

        plots = draw(folder, scored, result.break_even, hardware(machine))
    everything = {
        "result": {**asdict(result), "systems": [asdict(row.card) for row in scored]},
        "ranking": {label(row.card): row.ranking for row in scored},
        "milliseconds": {label(row.card): row.phases for row in scored},
        "differences": [asdict(test) for test in tests],
        "settings": dict(settings),
        "environment": machine,
    }
    write_atomic(folder, "results.json", (json.dumps(everything, indent=2) + "\n").encode())
    title = f"clara bench: {Path(result.dataset).name}"
    subtitle = f"{result.n:,} questions, setting {result.setting}, seed {result.seed}; "
    subtitle += f"{settings['model']} on {machine['device']}, clara {machine['clara']}."
    report_tables = tables(result, scored, tests, settings, machine)
    pages = {"report.md": markdown(title, subtitle, report_tables, list(plots))}
    pages["report.html"] = page(title, subtitle, report_tables, plots)
    for name, text in pages.items():
        write_atomic(folder, name, text.encode("utf-8", "replace"))


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that made the numbers."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, Any] = {"clara": __version__, "python": platform.python_version()}
    libraries = ("torch", "transformers", "peft", "accelerate", "safetensors")
    for name in (*libraries, "numpy", "scipy"):
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
