"""The commands of a conversation, `/help` to `/save`: what each does with what was typed behind it.

Knows the session it changes and nothing of keys or prompts.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from clara_cli.errors import UsageError, nearest
from clara_cli.records import Answer, SearchResult

LEAVE = ("/quit", "/exit", "exit", "quit")
HELP = ("help", "?")


class Session(Protocol):
    """What answers: a checkpoint and corpora, loaded, and what was said so far."""

    top_k: int
    ratio: int | None
    said: list[Answer]

    @property
    def corpus_name(self) -> str:
        """The corpora as the user knows them."""

    def search(self, question: str) -> SearchResult:
        """The passages of a question alone."""

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """The answer to one question; `on_text` receives each piece as it comes."""

    def explain(self) -> Answer:
        """The last answer again, with the why."""

    def read_at(self, ratio: int) -> None:
        """Read at another ratio from now on."""

    def change_corpus(self, folders: list[Path]) -> None:
        """Ask other corpora from now on."""


@dataclass
class Conversation:
    """A conversation as its commands see it: the session, what to say, and files saved to."""

    session: Session
    say: Callable[[str], None]
    show: Callable[[Answer | SearchResult], None]
    show_sources: Callable[[Answer], None]
    clear: Callable[[], None]
    saved: set[Path] = field(default_factory=set)

    def last(self) -> Answer:
        """The last answer; raises UsageError before the first question."""
        if not self.session.said:
            raise UsageError("there is no answer yet", "ask a question first")
        return self.session.said[-1]


def _help(conversation: Conversation, rest: str) -> None:
    width = max(map(len, COMMANDS))
    conversation.say("Type a question; Alt-Enter begins a new line of it.")
    for name, (doc, _) in COMMANDS.items():
        conversation.say(f"{name:{width}}  {doc}")
    conversation.say("Ctrl-C stops an answer, Ctrl-D leaves, Ctrl-R and Up find earlier questions.")


def _new(conversation: Conversation, rest: str) -> None:
    conversation.session.said.clear()
    conversation.say("a new conversation: questions lean on nothing before")


def _clear(conversation: Conversation, rest: str) -> None:
    conversation.clear()


def _sources(conversation: Conversation, rest: str) -> None:
    conversation.show_sources(conversation.last())


def _search(conversation: Conversation, rest: str) -> None:
    if not rest:
        raise UsageError("/search needs a question", "write /search opening hours")
    conversation.show(conversation.session.search(rest))


def _explain(conversation: Conversation, rest: str) -> None:
    conversation.last()
    conversation.show(conversation.session.explain())


def _top_k(conversation: Conversation, rest: str) -> None:
    if rest:
        conversation.session.top_k = _count("/top-k", rest, "5")
    conversation.say(f"top-k is {conversation.session.top_k}")


def _ratio(conversation: Conversation, rest: str) -> None:
    if rest:
        conversation.session.read_at(_count("/ratio", rest, "32"))
    ratio = conversation.session.ratio
    conversation.say("memory is read as it was stored" if ratio is None else f"ratio is {ratio}")


def _count(name: str, text: str, example: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{name} {text}: not a number from 1", f"write {name} {example}")
    return int(text)


def _corpus(conversation: Conversation, rest: str) -> None:
    if rest:
        conversation.session.change_corpus([Path(name).expanduser() for name in _words(rest)])
    conversation.say(conversation.session.corpus_name)


def _save(conversation: Conversation, rest: str) -> None:
    """Write the conversation as Markdown; a file of somebody else's is left alone."""
    conversation.last()
    words = _words(rest)
    if len(words) != 1:
        raise UsageError("/save needs the name of a file", "write /save conversation.md")
    path = Path(words[0]).expanduser()
    if path.exists() and path.resolve() not in conversation.saved:
        raise UsageError(f"/save {path}: it exists", "name another file")
    from clara_cli.storage.files import write_atomic

    write_atomic(path.parent, path.name, markdown(conversation.session.said).encode())
    conversation.saved.add(path.resolve())
    conversation.say(f"{len(conversation.session.said)} answers saved to {path}")


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text}: {error}", "close the quotation mark") from error


def markdown(said: list[Answer]) -> str:
    """A conversation to keep: each question, its answer, whether supported, and its sources."""
    parts = []
    for answer in said:
        verdict = {True: "supported", False: "not supported", None: "support unjudged"}
        parts.append(f"## {answer.question}\n\n{answer.answer or '(no answer)'}\n")
        parts.append(f"*{verdict[answer.supported]}*\n")
        for hit in answer.sources:
            passage = hit.passage
            named = " ".join(filter(None, [passage.title, f"`{passage.document_id}`"]))
            text = " ".join((passage.text or "(text not kept)").split())
            parts.append(f"{hit.rank}. {named} [{passage.start}:{passage.end}]: {text}")
        parts.append("")
    return "\n".join(parts)


COMMANDS: dict[str, tuple[str, Callable[[Conversation, str], None]]] = {
    "/help": ("this list (or help, ?)", _help),
    "/search": ("QUESTION: passages alone, the best sentence of each", _search),
    "/sources": ("the last answer's passages in full", _sources),
    "/explain": ("the last answer again, and why", _explain),
    "/top-k": ("N: read N passages", _top_k),
    "/ratio": ("N: read memory at a higher ratio", _ratio),
    "/corpus": ("DIR...: ask other corpora; alone: which these are", _corpus),
    "/save": ("FILE: keep the conversation as Markdown", _save),
    "/new": ("begin a new conversation: forget what was said", _new),
    "/clear": ("clear the screen", _clear),
    "/exit": ("leave (or /quit, exit, quit, Ctrl-D)", _help),
}


def run(line: str, conversation: Conversation) -> None:
    """Carry out one command.

    Raises:
        ClaraError: for an unknown one, or one that cannot be done now; the conversation goes on.
    """
    name, _, rest = line.partition(" ")
    if name not in COMMANDS:
        raise UsageError(f"no such command: {name}", nearest(name, COMMANDS))
    COMMANDS[name][1](conversation, rest.strip())
