"""The conversation of `clara ask` without a question: a prompt with a status line, answers, and the
commands of `repl_commands`.

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
from typing import TYPE_CHECKING

from clara_cli.cli import repl_commands
from clara_cli.cli.repl_commands import Session
from clara_cli.errors import ClaraError
from clara_cli.interrupts import Terminated
from clara_cli.storage.cache import private
from clara_cli.storage.files import append, make_folder

if TYPE_CHECKING:
    from concurrent.futures import Future

    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import Output

    from clara_cli.records import Answer, SearchResult


class Loader:
    """Opens a session in a daemon thread (leaving early does not wait for it) and keeps what came
    of it: the session, or the error, raised where the session is asked for."""

    def __init__(self, open_session: Callable[[], Session], ended: Callable[[], None]) -> None:
        from concurrent.futures import Future

        self._open = open_session
        self._ended = ended
        self.future: Future[Session] = Future()
        threading.Thread(target=self._load, daemon=True, name="clara-load").start()

    def _load(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.push(self._keep)
            self.future.set_result(self._open())
            self._ended()

    def _keep(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is not None:
            self.future.set_exception(error)
            self._ended()
        return error is not None

    def check(self) -> None:
        """Raise what went wrong, if loading has failed already."""
        if self.future.done():
            self.future.result()


class Repl:
    """The loop: a line is a question or a command. `reply` answers a question and shows it."""

    def __init__(
        self,
        open_session: Callable[[], Session],
        reply: Callable[[Session, str], object],
        show: Callable[[Answer | SearchResult], None],
        prompt: PromptSession[str],
    ) -> None:
        self._reply, self._show, self._prompt = reply, show, prompt
        self._loader = Loader(open_session, self._wake)
        self._conversation: repl_commands.Conversation | None = None
        prompt.bottom_toolbar = self.status

    def loop(self) -> None:
        """Take lines until the user leaves. A failed load ends it, a failed question does not."""
        from clara_cli.cli.show import terminal

        while (line := self._line()) is not None:
            try:
                self._do(line)
            except Terminated:
                raise
            except KeyboardInterrupt:
                terminal.say("stopped")
            except (ClaraError, MemoryError, RuntimeError) as error:
                self._loader.check()
                terminal.show_error(terminal.explain(error))

    def status(self) -> str:
        """The line below the prompt: what is asked, and how."""
        future = self._loader.future
        if not future.done():
            return "loading the model ..."
        if future.exception() is not None:
            return ""
        session = future.result()
        ratio = "" if session.ratio is None else f"  ratio {session.ratio}"
        return f"top-k {session.top_k}{ratio}  /help  {session.corpus_name}"

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
            if line in repl_commands.LEAVE:
                return None
            if line:
                return line

    def _do(self, line: str) -> None:
        conversation = self._ready()
        if line in repl_commands.HELP:
            repl_commands.run("/help", conversation)
        elif line.startswith("/"):
            repl_commands.run(line, conversation)
        else:
            self._reply(conversation.session, line)

    def _ready(self) -> repl_commands.Conversation:
        """The conversation, its session waited for."""
        from clara_cli.cli.show import answers, terminal

        if self._conversation is None:
            if not self._loader.future.done():
                terminal.say("loading the model ...")
            session = self._loader.future.result()
            self._conversation = repl_commands.Conversation(
                session, terminal.say, self._show, answers.show_sources, self._clear
            )
        return self._conversation

    def _clear(self) -> None:
        """Clear the screen, as Ctrl-L does."""
        self._prompt.app.renderer.clear()

    def _wake(self) -> None:
        """Called from the loading thread when it ended: redraw the status, or end the prompt that
        may be waiting for nothing."""
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
        app.invalidate()


def run(
    open_session: Callable[[], Session],
    reply: Callable[[Session, str], object],
    show: Callable[[Answer | SearchResult], None],
    *,
    terminal: Input | None = None,
    screen: Output | None = None,
) -> None:
    """Converse until the user leaves: `reply` answers a question and shows the answer, `show` shows
    one that is there. Tests give a `terminal` and a `screen` of their own."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output
    from prompt_toolkit.shortcuts import CompleteStyle

    screen = screen or create_output(stdout=sys.stderr)
    with create_app_session(input=terminal, output=screen):
        prompt: PromptSession[str] = PromptSession(
            history=_history(),
            key_bindings=_keys(),
            completer=WordCompleter(list(repl_commands.COMMANDS), sentence=True),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            prompt_continuation="  ...> ",
            reserve_space_for_menu=0,
        )
        Repl(open_session, reply, show, prompt).loop()


def _keys() -> KeyBindings:
    """Alt-Enter begins a new line of the question."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def history_path() -> Path:
    """Where earlier questions are kept."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "clara" / "history"


def _history() -> History:
    """Questions on disk, readable by their owner only; in memory where the disk refuses."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_path()
    try:
        with private():
            make_folder(path.parent)
            append(path.parent, path.name, b"")
    except ClaraError:
        return InMemoryHistory()
    return FileHistory(str(path))
