"""The output files of a run and what makes it resumable: a history with one line a finished
passage, written and flushed after the lines it tells of.

A line of the history holds how long the other two files were by then. Whatever lies beyond the last
whole line was in flight when the process died, and is cut off when the next one begins. Knows
nothing of how lines come about.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clara_cli.chat.key import KeyGuard
from clara_cli.errors import ArtefactError
from clara_cli.storage import files
from clara_cli.storage.artefact import Fields, refuse_difference
from clara_cli.storage.disk_set import DiskSet
from clara_cli.storage.history import History, encode_line
from clara_cli.storage.lock import locked
from clara_cli.synthesis.passage_worker import Outcome

FORMAT = 1
GIVEN = frozenset(("id", "docs", "paragraphs", "passage_id"))  # of the documents, not a server
_ANEW = "restore it, or start again with another --out"


def beside(out: Path, name: str) -> Path:
    """`pairs.jsonl` -> `pairs.rejected.jsonl` and the like."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.{name}")


class Journal:
    """The files of one run, locked until closed. `out` may be a link, the files beside it not."""

    def __init__(self, out: Path, settings: dict[str, Any], guard: KeyGuard | None = None) -> None:
        self._guard = guard or KeyGuard(None)
        self.out, self.rejected = out, beside(out, "rejected.jsonl")
        self.progress = History(out.parent, beside(out, "progress.jsonl").name, _ANEW)
        self.done = DiskSet()
        self.counts: dict[str, float] = {}
        self.rounds = 0
        self.seconds = 0.0
        self._settings = json.loads(json.dumps(settings))
        self._writing, self._broken = threading.Lock(), False
        self._lock = ExitStack()
        self._written = {Path(os.path.realpath(out)): 0, self.rejected: 0}  # bytes of each
        self._since = time.monotonic()

    def __enter__(self) -> Journal:
        files.make_folder(self.out.parent)
        with ExitStack() as stack:
            name = beside(self.out, "lock").name
            stack.enter_context(locked(self.out.parent, name, self.out))
            if self.out.exists() and not self.progress.path.exists():
                message = f"{self.out} exists, and no {self.progress.name} beside it"
                hint = "it is not from an unfinished run: choose another --out"
                raise ArtefactError(message, hint)
            self._read()
            for path, size in self._written.items():
                self._cut(path, size)
            self._lock = stack.pop_all()
        self._since = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        """Close; files in which nothing was ever written go."""
        with self._writing, self._lock:
            self._broken = True
            if not self.done:
                for path in (*self._written, self.progress.path):
                    files.remove(path.parent, path.name)

    def _read(self) -> None:
        """Take in the finished passages, and how long each file is by them."""
        lines = self.progress.lines()
        header, count = next(lines, None), 1
        if header is not None and "clara_synth" not in header.values:
            raise header.wrong("clara_synth", "missing")
        for count, fields in enumerate(lines, 2):  # noqa: B007  (the last one's is read below)
            self._add(_checked(fields))
            self._written = dict(
                zip(self._written, (fields.count("out"), fields.count("rejected")), strict=True)
            )
        if header is not None and self.done:
            refuse_difference(self.out, header.object("settings").values, self._settings)
            self.progress.keep(count)
        else:  # nothing is finished: these settings may replace those
            self.progress.keep(0)
            self.progress.append([{"clara_synth": FORMAT, "settings": self._settings}])

    def _cut(self, path: Path, size: int) -> None:
        there = path.stat().st_size if path.exists() else 0
        if there < size:
            named = self.rejected if path == self.rejected else self.out
            message = f"{named} is {there:,} bytes long, {self.progress.name} knows {size:,}"
            raise ArtefactError(message, _ANEW)
        files.append(path.parent, path.name, b"")  # it is there, and can be written
        files.truncate(path.parent, path.name, size)

    def commit(self, outcomes: Sequence[Outcome]) -> None:
        """Make finished passages last. Raises ClaraError where the disk does not take them;
        nothing is written any more after that."""
        with self._writing:
            if self._broken or not outcomes:
                return
            now = time.monotonic()
            spent, self._since = round((now - self._since) / len(outcomes), 4), now
            sizes, records = list(self._written.values()), []
            lines = [b"", b""]
            for outcome in outcomes:
                for place, made in enumerate((outcome.lines, outcome.rejected)):
                    data = b"".join(encode_line(self._guard.line(one, GIVEN)) for one in made)
                    lines[place] += data
                    sizes[place] += len(data)
                record = _progress(outcome) | {"seconds": spent}
                records.append(record | {"out": sizes[0], "rejected": sizes[1]})
            self._broken = True
            for path, data in zip(self._written, lines, strict=True):
                if data:
                    files.append(path.parent, path.name, data)
            self.progress.append(records)  # last
            self._written = dict(zip(self._written, sizes, strict=True))
            self._broken = False
            for record in records:
                self._add(record)

    def _add(self, record: dict[str, Any]) -> None:
        self.done.add(record["key"])
        for name, number in record["counts"].items():
            self.counts[name] = self.counts.get(name, 0) + number
        self.rounds = max(self.rounds, record["rounds"])
        self.seconds += record["seconds"]


def _checked(fields: Fields) -> dict[str, Any]:
    """The record of a finished passage, every value of its type."""
    fields.get("key", str)
    counts = fields.object("counts")
    for name in counts.values:
        counts.number(name)
    fields.count("rounds")
    fields.number("seconds")
    return fields.values


def _progress(outcome: Outcome) -> dict[str, Any]:
    counts: dict[str, float] = {k: n for k, n in sorted(outcome.counts.items()) if n}
    if outcome.coverage is not None:
        counts |= {"coverage": outcome.coverage, "covered": 1}
    return {
        "key": outcome.key,
        "passage_id": outcome.passage_id,
        "rounds": outcome.rounds,
        "counts": counts,
    }
