"""The conversation of `clara ask` without a question: a prompt, answers, and a few commands.

The model loads in a background thread while the first question is typed. Prompts and remarks go to
stderr, so that stdout holds answers only. Knows nothing of how a question is answered or an answer
shown: it is given a way to open a session and a way to show.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from clara_cli.errors import ClaraError, UsageError, nearest

if TYPE_CHECKING:
    from concurrent.futures import Future

    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

    from clara_cli.records import Answer

HELP = """\
Type a question. /sources shows the last answer's passages in full, /top-k N reads N passages,
/corpus names the corpus, /quit (or exit, quit, Ctrl-D) leaves. Ctrl-C stops an answer.
Up and Ctrl-R find earlier questions."""

COMMANDS = ("/help", "/sources", "/top-k", "/corpus", "/quit")
LEAVE = ("/quit", "exit", "quit")


class Terminated(KeyboardInterrupt):
    """SIGTERM. Ends the program as Ctrl-C does, where Ctrl-C here only stops an answer."""


class Session(Protocol):
    """What answers: a checkpoint and a corpus, loaded."""

    top_k: int

    @property
    def corpus_name(self) -> str:
        """The corpus as the user knows it."""

    def ask(self, question: str) -> Answer:
        """The answer to one question."""


class Loader:
    """Opens a session in a daemon thread (leaving early does not wait for it) and keeps what came
    of it: the session, or the error, raised where the session is asked for."""

    def __init__(self, open_session: Callable[[], Session], failed: Callable[[], None]) -> None:
        from concurrent.futures import Future

        self._open = open_session
        self._failed = failed
        self.future: Future[Session] = Future()
        threading.Thread(target=self._load, daemon=True, name="clara-load").start()

    def _load(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.push(self._keep)
            self.future.set_result(self._open())

    def _keep(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is not None:
            self.future.set_exception(error)
            self._failed()
        return error is not None

    def check(self) -> None:
        """Raise what went wrong, if loading has failed already."""
        if self.future.done():
            self.future.result()


class Repl:
    """The loop's state: the prompt, the loading session, the last answer."""

    def __init__(
        self,
        open_session: Callable[[], Session],
        show: Callable[[Answer], None],
        prompt: PromptSession[str],
    ) -> None:
        self._show = show
        self._prompt = prompt
        self._loader = Loader(open_session, self._wake)
        self._top_k: int | None = None
        self._last: Answer | None = None

    def loop(self) -> None:
        """Take lines until the user leaves. A failed load ends it, a failed question does not."""
        from clara_cli import ui

        while (line := self._line()) is not None:
            try:
                self._answer(line)
            except Terminated:
                raise
            except KeyboardInterrupt:
                ui.say("stopped")
            except (ClaraError, MemoryError, RuntimeError) as error:
                self._loader.check()
                ui.show_error(ui.explain(error))

    def _line(self) -> str | None:
        """The next line that holds something; None at the end."""
        while True:
            self._loader.check()
            try:
                line = self._prompt.prompt("clara> ", pre_run=self._stop_if_failed).strip()
            except Terminated:
                raise
            except KeyboardInterrupt:  # Ctrl-C at the prompt drops the line
                continue
            except EOFError:
                self._loader.check()  # a failed load ends the prompt as Ctrl-D does
                return None
            if line in LEAVE:
                return None
            if line:
                return line

    def _answer(self, line: str) -> None:
        if line.startswith("/"):
            self._command(line)
            return
        session = self._session()
        self._last = session.ask(line)
        self._show(self._last)

    def _session(self) -> Session:
        """The session, waited for; `/top-k` given meanwhile holds."""
        from clara_cli import ui

        if not self._loader.future.done():
            ui.say("loading the model ...")
        session = self._loader.future.result()
        if self._top_k is not None:
            session.top_k = self._top_k
        return session

    def _command(self, line: str) -> None:
        from clara_cli import ui

        name, _, rest = line.partition(" ")
        if name == "/help":
            ui.say(HELP)
        elif name == "/corpus":
            ui.say(self._session().corpus_name)
        elif name == "/sources":
            if self._last is None or not self._last.sources:
                raise UsageError("there are no sources yet", "ask a question first")
            from clara_cli import answers

            answers.show_sources(self._last)
        elif name == "/top-k":
            self._set_top_k(rest.strip())
        else:
            raise UsageError(f"no such command: {name}", nearest(name, COMMANDS))

    def _set_top_k(self, value: str) -> None:
        from clara_cli import ui

        if value:
            if not value.isdecimal() or int(value) < 1:
                raise UsageError(f"/top-k {value}: not a number of passages", "write /top-k 5")
            self._top_k = int(value)
            ui.say(f"top-k is {self._top_k}")
        else:
            ui.say(f"top-k is {self._session().top_k}")

    def _wake(self) -> None:
        """Called from the loading thread when it failed: end the prompt that may be waiting."""
        app = self._prompt.app
        loop = app.loop
        if loop is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the prompt ended in this instant
                loop.call_soon_threadsafe(self._stop_if_failed)

    def _stop_if_failed(self) -> None:
        """Called in the prompt's own thread: end it when there is no model to ask."""
        app = self._prompt.app
        future = self._loader.future
        if future.done() and future.exception() is not None and app.is_running and not app.is_done:
            app.exit(exception=EOFError)


def run(
    open_session: Callable[[], Session],
    show: Callable[[Answer], None],
    *,
    terminal: Input | None = None,
    screen: Output | None = None,
) -> None:
    """Converse until the user leaves. Tests give a `terminal` and a `screen` of their own."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.output import create_output

    screen = screen or create_output(stdout=sys.stderr)
    with create_app_session(input=terminal, output=screen):
        prompt: PromptSession[str] = PromptSession(history=_history(), reserve_space_for_menu=0)
        Repl(open_session, show, prompt).loop()


def history_path() -> Path:
    """Where earlier questions are kept."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "clara" / "history"


def _history() -> History:
    """Questions on disk, readable by their owner only; in memory where the disk refuses."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
