"""The output files of a run and what makes it resumable: a progress file with one line a finished
passage, written and flushed after the lines it tells of.

A line of the progress file holds how long the other two files were by then. Whatever lies beyond
the last whole line was in flight when the process died, and is cut off when the next one begins.
Knows nothing of how lines come about. The lock is flock(2) on the progress file.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.keyset import KeySet
from clara_cli.synthesis.desk import Outcome
from clara_cli.synthesis.key import KeyGuard

FORMAT = 1
GIVEN = frozenset(("id", "docs", "paragraphs", "passage_id"))  # of the documents, not a server


def beside(out: Path, name: str) -> Path:
    """`pairs.jsonl` -> `pairs.rejected.jsonl` and the like."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.{name}")


class Journal:
    """The files of one run, open and locked until closed."""

    def __init__(self, out: Path, settings: dict[str, Any], guard: KeyGuard | None = None) -> None:
        self._guard = guard or KeyGuard(None)
        self.out, self.rejected = out, beside(out, "rejected.jsonl")
        self.progress = beside(out, "progress.jsonl")
        self.done = KeySet()
        self.counts: dict[str, float] = {}
        self.rounds = 0
        self.seconds = 0.0
        self._settings = json.loads(json.dumps(settings))
        self._writing, self._broken = threading.Lock(), False
        self._files: dict[Path, IO[bytes]] = {}
        self._since = time.monotonic()

    def __enter__(self) -> Journal:
        new = not self.progress.exists()
        if new and self.out.exists():
            message = f"{self.out} exists, and no {self.progress.name} beside it"
            raise ArtefactError(message, "it is not from an unfinished run: choose another --out")
        try:
            self._open(self.progress)
            self._lock()
            ends = self._read()
            for path, end in ends.items():
                self._open(path)
                self._cut(path, end)
        except OSError as error:
            self._cannot_write(error)
        self._since = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        """Close; files in which nothing was ever written go."""
        with self._writing:
            if not self.done:
                for path in self._files:
                    path.unlink(missing_ok=True)
            for stream in self._files.values():
                stream.close()
            self._files.clear()

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._files[path] = os.fdopen(descriptor, "r+b", buffering=0)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._files[self.progress], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._files.clear()  # they are another run's
            message = f"{self.out} is being written by another clara synth"
            raise ArtefactError(message, "wait for it to end, or choose another --out") from error

    def _read(self) -> dict[Path, int]:
        """Take in the finished passages; how long each file is by them."""
        end, ends = 0, {self.out: 0, self.rejected: 0}
        header: dict[str, Any] | None = None
        with self.progress.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    break  # the process died while it wrote this
                record = self._record(line, number)
                if header is None:
                    header = record
                else:
                    self._take(record, number, ends)
                end += len(line)
        if self.done:
            self._compare(header or {})
            self._cut(self.progress, end)
        else:  # nothing is finished: these settings may replace those
            self._cut(self.progress, 0)
            header = {"clara_synth": FORMAT, "settings": self._settings}
            self._append(self.progress, _line(header))
        return ends

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or (number == 1 and "clara_synth" not in record):
            self._damaged(number)
        return record

    def _take(self, record: dict[str, Any], number: int, ends: dict[Path, int]) -> None:
        try:
            self._add(record)
            ends[self.out], ends[self.rejected] = record["out"], record["rejected"]
        except (KeyError, TypeError, ValueError, AttributeError):
            self._damaged(number)

    def _damaged(self, number: int) -> NoReturn:
        message = f"{self.progress}:{number}: not a line of a progress file"
        raise ArtefactError(message, "restore it, or start anew with another --out")

    def _compare(self, header: dict[str, Any]) -> None:
        before = header.get("settings", {})
        for key in sorted(before.keys() | self._settings.keys()):
            was, now = before.get(key), self._settings.get(key)
            if was != now:
                message = f"{self.out} was begun with {key} {was!r}, not {now!r}"
                raise ArtefactError(message, "use the same settings, or another --out")

    def _cut(self, path: Path, end: int) -> None:
        stream = self._files[path]
        size = os.fstat(stream.fileno()).st_size
        if size < end:
            message = f"{path} is {size:,} bytes long, {self.progress.name} knows {end:,}"
            raise ArtefactError(message, "restore it, or start anew with another --out")
        if size > end:
            stream.truncate(end)
        stream.seek(end)

    def _append(self, path: Path, data: bytes) -> None:
        """Write lines and flush them to the disk."""
        stream, rest = self._files[path], memoryview(data)
        while rest:
            rest = rest[stream.write(rest) :]
        if data:
            os.fsync(stream.fileno())

    def commit(self, outcomes: Sequence[Outcome]) -> None:
        """Make finished passages last. Raises ClaraError where the disk does not take them;
        nothing is written any more after that."""
        with self._writing:
            if self._broken or not outcomes:
                return
            now = time.monotonic()
            spent, self._since = round((now - self._since) / len(outcomes), 4), now
            ends = {path: self._files[path].tell() for path in (self.out, self.rejected)}
            lines: dict[Path, bytes] = {self.out: b"", self.rejected: b"", self.progress: b""}
            records = []
            for outcome in outcomes:
                for path, said in ((self.out, outcome.lines), (self.rejected, outcome.rejected)):
                    data = b"".join(_line(self._guard.line(one, GIVEN)) for one in said)
                    lines[path] += data
                    ends[path] += len(data)
                record = _progress(outcome) | {"seconds": spent}
                record |= {"out": ends[self.out], "rejected": ends[self.rejected]}
                lines[self.progress] += _line(record)
                records.append(record)
            self._broken = True
            try:
                for path, data in lines.items():  # the progress last
                    self._append(path, data)
            except OSError as error:
                self._cannot_write(error)
            self._broken = False
            for record in records:
                self._add(record)

    def _add(self, record: dict[str, Any]) -> None:
        self.done.add(record["key"])
        for name, number in record["counts"].items():
            self.counts[name] = self.counts.get(name, 0) + number
        self.rounds = max(self.rounds, record["rounds"])
        self.seconds += record["seconds"]

    def _cannot_write(self, error: OSError) -> NoReturn:
        message = f"{error.filename or self.out}: cannot be written: {error.strerror or error}"
        raise ClaraError(message, "make room for it and run the same command again") from error


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


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
