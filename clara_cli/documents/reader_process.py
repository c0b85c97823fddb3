"""Files read in a process of their own, whose memory and time are bounded: what a file of a few
bytes may ask of a library ends there, as one error that names the file and the limit.

One process reads file after file; one that fails is replaced. Parent and child speak in JSON lines:
a file's Source and limits in, its records, notes and errors out. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from clara_cli.documents import parquet, sources
from clara_cli.documents.formats import FORMATS
from clara_cli.documents.listing import NEEDS, Source
from clara_cli.documents.sources import BadRecord, FileText, Record, shortened
from clara_cli.errors import DataError

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from clara_cli.documents.reader_process import serve; serve()"
)
_PIECE = 2**16
_VALUES: dict[str, Callable[[Any], Any]] = {  # a message's kind, and what its value stands for
    "record": dict,
    "bad": BadRecord,
    "file": lambda value: FileText(**value),
}
_FILES = 100  # read by one process before a fresh one takes its place


@dataclass(frozen=True)
class Bounds:
    """What one file may take: bytes of a record, bytes of memory beside what the libraries take,
    and seconds between two records."""

    record: int
    memory: int
    seconds: float = 60.0


class ReaderProcess:
    """The child that reads files, started with the first of them. Close it when done."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._child: subprocess.Popen[bytes] | None = None
        self._files, self._buffer = 0, b""

    def read(self, source: Source, bounds: Bounds) -> Iterator[tuple[Record, int]]:
        """The records of a file, each with the bytes of the file that were read so far; of a file
        that is one document its FileText.

        Raises:
            DataError: for a file that its reader refuses, and one that takes too much memory or
                time.
        """
        self._send(source, bounds)
        while True:
            kind, *message = self._receive(source, bounds)
            if kind == "end":
                return
            if kind == "note":
                self._note(message[0])
            elif kind == "error":
                self.close()
                raise DataError(*message)
            else:
                place, value, position = message
                where = f"{source.name}:{place}" if place is not None else source.name
                yield (where, _VALUES[kind](value)), position

    def close(self) -> None:
        """End the child."""
        child, self._child, self._buffer = self._child, None, b""
        if child is not None:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):  # it died with something unread in its pipe
                        stream.close()

    def _send(self, source: Source, bounds: Bounds) -> None:
        if self._files >= _FILES:
            self.close()
        if self._child is None:
            self._files = 0
            environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        self._files += 1
        request = {**dataclasses.asdict(source), "path": str(source.path)}
        request["bounds"] = dataclasses.asdict(bounds)
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(request).encode() + b"\n")
        self._child.stdin.flush()

    def _receive(self, source: Source, bounds: Bounds) -> list[Any]:
        """The child's next message. A child that is silent, dead or long-winded is replaced."""
        assert self._child is not None and self._child.stdout is not None
        deadline = time.monotonic() + bounds.seconds
        most = 4 * bounds.record + _PIECE
        pieces = [self._buffer]
        size = len(self._buffer)
        while b"\n" not in pieces[-1]:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._child.stdout], [], [], left)[0]:
                self.close()
                message = f"{source.name}: not read within {bounds.seconds:g} seconds"
                raise DataError(message, "look whether the file is whole, or leave it out")
            piece = os.read(self._child.stdout.fileno(), _PIECE)
            size += len(piece)
            if not piece or size > most:
                self.close()
                raise _too_much_memory(source, bounds)
            pieces.append(piece)
        line, _, self._buffer = b"".join(pieces).partition(b"\n")
        received: list[Any] = json.loads(line)
        return received


def _too_much_memory(source: Source, bounds: Bounds) -> DataError:
    memory = f"{bounds.memory / 2**20:g} MiB of memory"
    hint = "look whether the file is whole; --max-record-mib raises it"
    return DataError(f"{source.name}: cannot be read within {memory}", hint)


def serve() -> None:
    """What the child does: read the files named on stdin, until it is closed."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer

    def answer(*message: Any) -> None:
        answers.write(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        answers.flush()

    for line in requests:
        _serve_file(json.loads(line), answer)


def _serve_file(request: dict[str, Any], answer: Callable[..., None]) -> None:
    bounds = Bounds(**request.pop("bounds"))
    fields = tuple(request.pop("fields"))
    source = Source(**{**request, "path": Path(request["path"]), "fields": fields})

    def fail(kind: type[BaseException], error: BaseException, trace: object) -> None:
        what = f"{source.name}: not readable: {kind.__name__}: {shortened(str(error), 120)}"
        answer("error", what, "look whether the file is whole")

    sys.excepthook = fail  # whatever else a library raises ends this process, and is told
    try:
        _answer_file(source, bounds, answer)
    except DataError as error:
        answer("error", error.message, error.hint)
    except MemoryError:
        failure = _too_much_memory(source, bounds)
        answer("error", failure.message, failure.hint)
    answer("end")


def _answer_file(source: Source, bounds: Bounds, answer: Callable[..., None]) -> None:
    """Tell the parent every record of a file."""
    _import_library(source.kind)

    def note(line: str) -> None:
        answer("note", line)

    with sources.opened(source) as (_, stream):
        limit_memory(bounds.memory)
        if source.kind in FORMATS:
            record = FORMATS[source.kind](source, stream)
            too_long = len(record["text"].encode("utf-8", "replace")) > bounds.record
            message = sources.too_long("a text", bounds.record)
            answer("bad" if too_long else "file", None, message if too_long else record, 0)
            return
        for number, record in enumerate(parquet.rows(source, stream, note), 1):
            position = sources.position(stream)
            size = len(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace"))
            if size > bounds.record:
                answer("bad", number, sources.too_long("a row", bounds.record), position)
            else:
                answer("record", number, record, position)


def _import_library(kind: str) -> None:
    """Import what reads files of a kind, before memory is bounded."""
    import_module("pyarrow.parquet" if kind == "parquet" else NEEDS[kind])
    if NEEDS.get(kind) == "bs4":
        import_module("lxml.etree")


def limit_memory(more: int) -> None:
    """Let this process take `more` bytes of memory than it has, and write no file. Where the
    system does not count them (it is no Linux), only time is bounded."""
    with contextlib.suppress(OSError, ValueError):
        status = Path("/proc/self/status").read_text()
        taken = next(int(line.split()[1]) for line in status.splitlines() if "VmData" in line)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (taken * 1024 + more, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
