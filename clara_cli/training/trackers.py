"""Trackers of a training run, by accelerate: TensorBoard in the run folder, wandb or trackio.

None of them is required: `auto` takes TensorBoard where it is installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clara_cli.errors import UsageError
from clara_cli.extras import install_command
from clara_cli.records import Report, Tracker


def check_tracker(name: str) -> None:
    """Refuse a tracker that is asked for by name and not installed."""
    if name not in ("auto", "none") and find_spec(name) is None:
        raise UsageError(f"tracker is {name}, which is not installed", install_command("trackers"))


def open_trackers(
    name: str, folder: Path, settings: dict[str, Any], report: Report
) -> tuple[Tracker, ...]:
    """The trackers of a run, given its settings; the first process has them."""
    if name == "auto" and find_spec("tensorboard") is None:
        report.note(f"no TensorBoard files: {install_command('trackers')} brings tensorboard")
        return ()
    if name == "none":
        return ()
    from accelerate import tracking

    if name in ("auto", "tensorboard"):
        tracker: Any = tracking.TensorBoardTracker("tensorboard", folder)
    elif name == "wandb":
        tracker = tracking.WandBTracker("clara", name=folder.name, dir=str(folder))
    else:
        tracker = tracking.TrackioTracker("clara", name=folder.name)
    tracker.start()
    if name not in ("auto", "tensorboard"):  # it would make a run of its own of them
        tracker.store_init_configuration(settings)
    return (tracker,)
