"""The run folder of a training run: it survives anything, and one process of several writes it.

`last/` is the resumable state, `best/` the weights that validated best, `metrics.jsonl` has a line
a step, `validation.jsonl` a line a check, `run.json` the settings, `environment.jsonl` what each
start ran on. State is kept as safetensors, never pickled. Knows no stage and no text.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clara_cli.core.checkpoint import replace_folder
from clara_cli.core.ranks import Ranks
from clara_cli.disk import cannot_write, no_space
from clara_cli.errors import ArtefactError
from clara_cli.records import Tracker

Trained = dict[str, nn.Parameter]
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


class RunFolder:
    """Where one run lives; `ranks` are its processes, `trackers` are told every line as well."""

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        ranks: Ranks | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.path, self.settings = path, settings
        self.ranks, self.trackers = ranks or Ranks(), trackers
        self.metrics, self.last = path / "metrics.jsonl", path / "last"
        self.checks, self.best = path / "validation.jsonl", path / "best"

    def open(self) -> None:
        """Create the folder, or check that an existing one was begun with the same settings; one
        that is recorded no longer decides nothing."""
        file = self.path / "run.json"
        if file.exists():
            found = self._begun(file)
            for key, now in sorted(self.settings.items()):
                if found.get(key) != now:
                    raise ArtefactError(
                        f"{self.path}: begun with {key} = {found.get(key)!r}, now {now!r}",
                        "use another --out, or the settings it was begun with",
                    )
        elif self.path.exists() and not self.path.is_dir():
            raise ArtefactError(f"{self.path}: a file, not a run folder", "use another --out")
        elif self.path.exists() and {item.name for item in self.path.iterdir()} - {"run.tmp"}:
            raise ArtefactError(f"{self.path}: not empty and not a run folder", "use another --out")
        else:
            text = json.dumps(self.settings, indent=2, sort_keys=True) + "\n"
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                (self.path / "run.tmp").write_text(text, encoding="utf-8")
                os.replace(self.path / "run.tmp", file)
            except OSError as error:
                cannot_write(file, len(text), error)

    @staticmethod
    def _begun(file: Path) -> dict[str, Any]:
        """The settings a folder was begun with."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{file}: unreadable: {error}", "use another --out") from error
        if not isinstance(found, dict):
            raise ArtefactError(f"{file}: not the settings of a run", "use another --out")
        return found

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return (self.path / "checkpoint" / "clara.json").is_file()

    def log(self, file: Path, line: dict[str, Any], prefix: str = "train/") -> None:
        """Add the line of a step to one of the folder's files, and tell the trackers its figures.

        Raises:
            ClaraError: on a full disk; half a line is dropped on the next start.
        """
        if not self.ranks.first:
            return
        data = (json.dumps(line) + "\n").encode()
        try:
            with file.open("ab", buffering=0) as stream:
                if stream.write(data) != len(data):
                    raise OSError(errno.ENOSPC, "no space left")
        except OSError as error:
            cannot_write(file, len(data), error)
        figures = {prefix + k: v for k, v in line.items() if v is not None and k != "step"}
        for tracker in self.trackers:
            tracker.log(figures, line["step"])

    def lines(self, file: Path) -> list[dict[str, Any]]:
        """The lines of a file of this folder; none where it is not there.

        Raises:
            ArtefactError: naming a line that is damaged.
        """
        found = file.read_bytes().splitlines() if file.exists() else []
        return [_parsed(file, number, line) for number, line in enumerate(found, 1)]

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
        work = folder.with_name(folder.name + ".writing")
        tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        needed = sum(t.numel() * t.element_size() for t in tensors.values())
        with room(folder, needed):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            save_file(tensors, work / "state.safetensors")
            (work / "step.json").write_text(json.dumps({"step": step}))
        with undisturbed():
            replace_folder(work, folder)

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
        replaced = self.path / "last.old"
        if not self.last.exists() and replaced.is_dir():  # killed between two renames
            os.replace(replaced, self.last)
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
        for file in (self.metrics, self.checks):
            _keep_until(file, step)
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
        try:
            step = int(json.loads((folder / "step.json").read_text())["step"])
            tensors = load_file(folder / "state.safetensors")
            for name, parameter in trained.items():
                wanted = [name, *(f"{key}/{name}" for key in moments if step)]
                if any(tensors[key].shape != parameter.shape for key in wanted):
                    raise ValueError(f"{name} has another shape")
        except _DAMAGE as error:
            raise ArtefactError(
                f"{folder}: the state to resume from is damaged: {error}",
                "delete that folder to start this run anew",
            ) from error
        return step, tensors


def _parsed(file: Path, number: int, line: bytes) -> dict[str, Any]:
    """One line of a run's history."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("step"), int):
        return found
    message = f"{file}:{number}: not the line of a step: {line[:60]!r}"
    raise ArtefactError(message, "mend or delete that line, or use another --out")


def _keep_until(file: Path, step: int) -> None:
    """Drop the lines after a step, and half a line that a kill or a full disk left; a failure
    leaves the file as it was.

    Raises:
        ClaraError: for a line that is damaged, and on a full disk.
    """
    if not file.exists():
        return
    lines = file.read_bytes().splitlines(keepends=True)
    whole = [(n, line) for n, line in enumerate(lines, 1) if line.endswith(b"\n")]
    kept = [line for n, line in whole if _parsed(file, n, line)["step"] <= step]
    if len(kept) == len(lines):
        return
    work = file.with_name(file.name + ".writing")
    try:
        if kept:
            with work.open("wb") as stream:
                stream.write(b"".join(kept))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(work, file)
        else:
            file.unlink()
    except OSError as error:
        work.unlink(missing_ok=True)
        cannot_write(file, sum(map(len, kept)), error)


@contextmanager
def room(folder: Path, needed: int) -> Iterator[None]:
    """Where writing `folder` fails for want of space, take back what was written of it.

    Raises:
        ClaraError: with the bytes needed and free.
    """
    work = folder.with_name(folder.name + ".writing")
    try:
        yield
    except SafetensorError as error:  # carries the system's error as text only
        shutil.rmtree(work, ignore_errors=True)
        if f"os error {errno.ENOSPC}" not in str(error):
            raise
        raise no_space(folder, needed) from error
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        cannot_write(folder, needed, error)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is done, so that it happens whole or not."""
    if threading.current_thread() is not threading.main_thread():  # signals go to the main one
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, _: held.append(n)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)
    if held:
        signal.raise_signal(held[0])
