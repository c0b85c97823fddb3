"""A rival that runs in an environment of its own: questions and passages out, answers and picks
back, one JSON object a line.

The environment is a folder the user made: `bin/python`, and `rival.py`, which speaks the protocol
(recipes/rivals). It is started without keys and tokens of this process's environment; whatever it
does, it is waited for no longer than said, and ended with all its children.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.evaluation.paragraphs import Piece
from clara_cli.evaluation.rivals.registry import GUIDE
from clara_cli.evaluation.rivals.retrievers import candidates
from clara_cli.evaluation.systems import PHASES, Extract, Failure, PooledQuestion, Prediction

PROTOCOL = 1
WORKER = "rival.py"
LINE_BYTES = 2**20  # the longest line read
LAST_LINES = 5  # of what a program writes to stderr, kept for its error
PATIENCE = 5.0  # seconds to end by itself
_SECRETS = re.compile(r".*(API_KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS).*", re.I)
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


class ProgramError(ClaraError):
    """A program that cannot be asked any more."""


class Program:
    """The process. `ask` raises ProgramError where it died, took too long, or broke the protocol:
    it is ended then."""

    def __init__(
        self, folder: Path, hello: dict[str, Any], timeout: float, start_timeout: float
    ) -> None:
        self._timeout, self._number = timeout, 0
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=LAST_LINES)
        self._process = _start(folder)
        assert self._process.stdin is not None
        self._stdin, self._sender = self._process.stdin, threading.Thread()
        self._error_reader = threading.Thread(target=self._read_errors, daemon=True)
        self._error_reader.start()
        threading.Thread(target=self._read_answers, daemon=True).start()
        reply = self._exchange({"protocol": PROTOCOL, **hello}, start_timeout)
        if reply.get("ready") is not True:
            self.close()
            raise ProgramError(f"{folder}: not ready: {_short(reply)}", f"see {GUIDE}")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request."""
        self._number += 1
        reply = self._exchange({"id": self._number, **request}, self._timeout)
        if reply.get("id") != self._number:
            self._give_up(f"answered {_short(reply)} to request {self._number}")
        return reply

    def close(self) -> None:
        """End it, with its children: by itself, else by force."""
        if not self._sender.is_alive():  # else its pipe is full, and closing would wait for it
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._stdin.close()
                self._process.wait(PATIENCE)
        for ending in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, ending)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)

    def _exchange(self, record: dict[str, Any], seconds: float) -> dict[str, Any]:
        line = json.dumps(record).encode() + b"\n"
        self._sender = threading.Thread(target=_send, args=(self._stdin, line), daemon=True)
        self._sender.start()  # a program that does not read must not hold us
        try:
            raw = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._give_up(f"did not answer within {seconds:g} s")
        if raw is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
            code = self._process.poll()
            self._give_up("closed its output" if code is None else f"ended with code {code}")
        try:
            reply = json.loads(raw)
        except (ValueError, RecursionError):
            self._give_up(f"wrote a line that is not JSON: {raw[:80]!r}")
        if not isinstance(reply, dict):
            self._give_up(f"wrote a line that is no object: {raw[:80]!r}")
        return reply

    def _give_up(self, what: str) -> NoReturn:
        self.close()
        self._error_reader.join(PATIENCE)  # its last words may still be on their way
        last = "; ".join(self._errors)[-200:]
        message = f"the program {what}: {last}" if last else f"the program {what}"
        raise ProgramError(message, "the same command asks again")

    def _read_answers(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while line := stream.readline(LINE_BYTES):
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        while line := stream.readline(LINE_BYTES):
            text = line.decode(errors="replace").strip()
            if text:
                self._errors.append(text[:200])


def _send(stream: Any, line: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has ended: its output says so
        stream.write(line)
        stream.flush()


def _start(folder: Path) -> subprocess.Popen[bytes]:
    python, worker = folder / "bin" / "python", folder / WORKER
    for path in (python, worker):
        if not path.is_file():
            what = f"{folder}: no {path.relative_to(folder)}: not an environment of a rival"
            raise ArtefactError(what, f"make one as {GUIDE} says")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not _SECRETS.fullmatch(name) and name not in _OURS
    }
    try:
        return subprocess.Popen(
            [str(python.absolute()), "-u", str(worker.absolute())],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ArtefactError(f"{python}: {error.strerror}", f"see {GUIDE}") from error


def _short(value: Any) -> str:
    return json.dumps(value)[:120]


def _passages(pieces: Sequence[Piece]) -> list[dict[str, str]]:
    """Passages as the program gets them, known by their places: one paragraph may be several."""
    return [{"id": str(n), "text": piece.text} for n, piece in enumerate(pieces)]


class ProgramSystem:
    """A rival that picks and answers by itself."""

    chooses = True

    def __init__(self, name: str, ratio: int | None, program: Program) -> None:
        self.name, self.ratio, self._program = name, ratio, program

    def bytes_per_passage(self, texts: Sequence[str]) -> float | None:
        """Not known."""
        return None

    def answer(self, batch: Sequence[PooledQuestion]) -> list[Prediction | Failure]:
        """One by one."""
        return [self._answer(asked) for asked in batch]

    def _answer(self, asked: PooledQuestion) -> Prediction | Failure:
        pieces, began = candidates(asked), time.monotonic()
        request = {"question": asked.question, "passages": _passages(pieces)}
        reply = self._program.ask(request)
        seconds = dict.fromkeys(PHASES, 0.0) | {"generate": time.monotonic() - began}
        if "error" in reply:
            return _failure(reply["error"])
        text, tokens = reply.get("answer"), reply.get("context_tokens", 0)
        places = _places(reply.get("picks"), len(pieces))
        if not isinstance(text, str) or places is None or type(tokens) is not int or tokens < 0:
            return _failure(f"an answer of another form: {_short(reply)}")
        hits = dict.fromkeys(pieces[place].given for place in places)
        return Prediction(text.strip(), tuple(hits), tokens, False, seconds)


class ProgramCompressor:
    """A text compressor that needs the question: passages out, what is left of them back."""

    asks = True

    def __init__(self, program: Program, count_tokens: Callable[[str], int]) -> None:
        self._program, self._count = program, count_tokens

    def compress(self, question: str, pieces: Sequence[Piece]) -> list[Extract] | Failure:
        """What the program leaves, in its order."""
        reply = self._program.ask({"question": question, "passages": _passages(pieces)})
        if "error" in reply:
            return _failure(reply["error"])
        left = reply.get("passages")
        items = [i for i in left if isinstance(i, dict)] if isinstance(left, list) else []
        texts = [item.get("text") for item in items]
        places = _places([item.get("id") for item in items], len(pieces))
        if places is None or items != left or not all(isinstance(text, str) for text in texts):
            return _failure(f"an answer of another form: {_short(reply)}")
        return [
            Extract((pieces[place],), str(text), self._count(str(text)))
            for place, text in zip(places, texts, strict=True)
            if str(text).strip()
        ]


def _failure(error: Any) -> Failure:
    """What a program says of a question, in one line."""
    return Failure(" ".join(str(error).split())[:400])


def _places(ids: Any, count: int) -> list[int] | None:
    """The places that ids name, all where there are none; None for what names no passage."""
    if ids is None:
        return list(range(count))
    place_of = {str(place): place for place in range(count)}
    if not isinstance(ids, list) or not all(isinstance(i, str) and i in place_of for i in ids):
        return None
    return [place_of[i] for i in ids]
