"""The run folder of a training run: it survives anything, and one process of several writes it.

`last/` is the resumable state, `best/` the weights that validated best, `metrics.jsonl` has a line
a step, `validation.jsonl` a line a check, `run.json` the settings, `environment.jsonl` what each
start ran on. State is kept as safetensors, never pickled. Knows no stage and no text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clara_cli.core.checkpoint import check_files
from clara_cli.distributed.ranks import Ranks
from clara_cli.errors import ArtefactError
from clara_cli.records import Tracker
from clara_cli.storage import files
from clara_cli.storage.artefact import Fields, read_object, refuse_difference
from clara_cli.storage.history import History
from clara_cli.storage.tensors import read_tensors, save_tensors

Trained = dict[str, nn.Parameter]
RUN = "run.json"
_MEND = "mend or delete that line, or use another --out"
_ANEW = "delete that folder to start this run again"


class RunFolder:
    """Where one run lives; `ranks` are its processes, `trackers` receive every line too."""

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        ranks: Ranks | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.path, self.settings = path, settings
        self.ranks, self.trackers = ranks or Ranks(), trackers
        self.metrics = History(path, "metrics.jsonl", _MEND)
        self.checks = History(path, "validation.jsonl", _MEND)
        self.last, self.best = path / "last", path / "best"

    def open(self) -> None:
        """Create the folder, or check that an existing one was begun with the same settings, or
        with fewer steps; a setting that is recorded no longer decides nothing."""
        begun = read_object(self.path / RUN, "use another --out")
        if begun is not None:
            before = {key: begun.values.get(key) for key in self.settings}
            done = total_steps(before)
            if done is not None and (total_steps(self.settings) or 0) >= done:
                before["steps"] = self.settings.get("steps")
            hint = "use another --out, or the settings it was begun with"
            refuse_difference(self.path, before, self.settings, hint)
            return
        if self.path.exists() and not self.path.is_dir():
            raise ArtefactError(f"{self.path}: a file, not a run folder", "use another --out")
        names = [item.name for item in self.path.iterdir()] if self.path.exists() else []
        if not all(map(files.is_temporary, names)):
            raise ArtefactError(f"{self.path}: not empty and not a run folder", "use another --out")
        files.make_folder(self.path)
        self._record(self.settings)

    def _record(self, settings: dict[str, Any]) -> None:
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        files.write_atomic(self.path, RUN, text.encode())

    def extend(self) -> int | None:
        """Record that more steps are wanted than before, and keep a finished run's checkpoints
        under that number of steps (`checkpoint-100`); it, or None where no more are wanted."""
        begun = read_object(self.path / RUN, "use another --out")
        before = {} if begun is None else begun.values
        done, wanted = total_steps(before), total_steps(self.settings)
        if done is None or wanted is None or wanted <= done:
            return None
        for name in ("checkpoint-last", "checkpoint"):
            if (self.path / name).is_dir():
                files.rename(self.path, name, f"{name}-{done}")
        self._record({**before, "steps": wanted})
        return done

    def damage(self, bundled: bool = False) -> str:
        """Why the run has no result, or one that is not whole (`bundled`: with a backbone of its
        own); empty where it is finished."""
        try:
            check_files(self.path / "checkpoint", bundled)
        except ArtefactError as error:
            return error.message
        return ""

    def refuse_lost(self, damage: str) -> None:
        """Raise ArtefactError where a result was written once, is damaged now, and no state is
        kept to write it again from."""
        kept = any((self.path / name / "step.json").is_file() for name in ("last", "last.old"))
        if not kept and any(self.path.glob("checkpoint*")):
            message = f"{damage}, and {self.last} is not there to write it again from"
            raise ArtefactError(message, "restore one of them, or use another --out")

    def log(self, history: History, line: dict[str, Any], prefix: str = "train/") -> None:
        """Add the line of a step to one of the folder's histories, and tell the trackers its
        figures.

        Raises:
            ClaraError: on a full disk; half a line is dropped on the next start.
        """
        if not self.ranks.first:
            return
        history.append([line], sync=False)
        figures = {prefix + k: v for k, v in line.items() if v is not None and k != "step"}
        for tracker in self.trackers:
            tracker.log(figures, line["step"])

    def lines(self, history: History) -> list[dict[str, Any]]:
        """The lines of a history of this folder; none where it is not there.

        Raises:
            ArtefactError: naming a line that is damaged.
        """
        needed = ("ce", "cut") if history is self.metrics else (self.settings["best_by"],)
        return [_step_line(fields, needed).values for fields in history.lines()]

    def save(self, step: int, trained: Trained, optimizer: torch.optim.AdamW) -> None:
        """Keep everything needed to go on after `step` steps."""
        tensors: dict[str, Tensor] = dict(trained)
        for name, parameter in trained.items():
            for key in ("exp_avg", "exp_avg_sq"):
                if parameter in optimizer.state:
                    tensors[f"{key}/{name}"] = optimizer.state[parameter][key]
        self._write(self.last, step, tensors)

    def save_best(self, step: int, trained: Trained) -> None:
        """Keep the weights of `step` as the best so far."""
        self._write(self.best, step, dict(trained))

    def _write(self, folder: Path, step: int, tensors: dict[str, Tensor]) -> None:
        """A folder of tensors, whole or as it was.

        Raises:
            ClaraError: on a full disk, with the bytes needed; what was kept before stays.
        """
        if not self.ranks.first:
            return
        needed = sum(t.numel() * t.element_size() for t in tensors.values())
        with files.new_folder(self.path, folder.name, needed) as work:
            save_tensors(work / "state.safetensors", tensors)
            files.write_atomic(work, "step.json", json.dumps({"step": step}).encode())

    def restore(self, trained: Trained, optimizer: torch.optim.AdamW) -> int:
        """Put a kept state back, in every process; returns the number of steps already done."""
        step = self.ranks.lead(lambda: self._read(trained, optimizer))
        for parameter in trained.values():
            if step and not self.ranks.first:
                zero = torch.zeros_like(parameter)
                state = {"exp_avg": zero, "exp_avg_sq": zero.clone()}
                optimizer.state[parameter] = {"step": torch.tensor(float(step)), **state}
            moments = optimizer.state.get(parameter, {})
            self.ranks.follow([parameter.data, *(moments[k] for k in moments if k != "step")])
        return step

    def _read(self, trained: Trained, optimizer: torch.optim.AdamW) -> int:
        if not self.last.exists() and (self.path / "last.old").is_dir():
            files.rename(self.path, "last.old", "last")  # killed between two renames
        step = 0
        if (self.last / "step.json").is_file():
            step, tensors = self._load(self.last, trained, ("exp_avg", "exp_avg_sq"))
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(tensors[name])
                    if step:
                        optimizer.state[parameter] = {
                            "step": torch.tensor(float(step)),
                            "exp_avg": tensors[f"exp_avg/{name}"].to(parameter),
                            "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter),
                        }
        for history in (self.metrics, self.checks):
            kept = takewhile(lambda line: line["step"] <= step, self.lines(history))
            history.keep(sum(1 for _ in kept))
        return step

    def restore_best(self, trained: Trained) -> None:
        """Put the best weights in place of the last ones, in every process."""

        def read() -> None:
            _, tensors = self._load(self.best, trained)
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(tensors[name])

        self.ranks.lead(read)
        self.ranks.follow(parameter.data for parameter in trained.values())

    def _load(
        self, folder: Path, trained: Trained, moments: Sequence[str] = ()
    ) -> tuple[int, dict[str, Tensor]]:
        """Step and tensors of a kept state, all of them there and of the right shape."""
        kept = read_object(folder / "step.json", _ANEW)
        if kept is None:
            raise ArtefactError(f"{folder / 'step.json'}: missing", _ANEW)
        step = kept.count("step")
        file = folder / "state.safetensors"
        tensors = read_tensors(file, _ANEW)
        for name, parameter in trained.items():
            for key in (name, *(f"{moment}/{name}" for moment in moments if step)):
                if key not in tensors or tensors[key].shape != parameter.shape:
                    message = f"{file}: {key} is missing or has another shape"
                    raise ArtefactError(message, _ANEW)
                if not bool(torch.isfinite(tensors[key]).all()):
                    raise ArtefactError(f"{file}: {key} has values that are not finite", _ANEW)
        return step, tensors


def _step_line(fields: Fields, needed: Sequence[str]) -> Fields:
    """A line whose figures are numbers, the `needed` ones among them."""
    fields.count("step")
    for key in {*fields.values, *needed}:
        if fields.values.get(key, ...) is not None:
            fields.number(key)
    return fields


def total_steps(settings: dict[str, Any]) -> int | None:
    """The steps of a run with these settings: those asked for, else one pass over its records;
    None where a damaged file says neither."""
    steps, records, batch = (settings.get(key) for key in ("steps", "records", "batch_size"))
    if steps is None and type(records) is int and type(batch) is int and batch > 0:
        return math.ceil(records / batch)
    return steps if type(steps) is int else None
