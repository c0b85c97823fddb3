"""Passages read as text by a model behind an OpenAI-compatible server. What speaks to the server is
given: nothing here knows of requests, keys or retries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from clara_cli.core.prompts import text_chat
from clara_cli.evaluation.systems import Failure, Reading


@dataclass(frozen=True)
class ChatAnswer:
    """A server's answer to one prompt: its text, or why there is none. `too_long`: the prompt
    exceeds its window."""

    text: str | None
    error: str = ""
    too_long: bool = False


class Chat(Protocol):
    """Asks a server; raises a ClaraError where no prompt can be answered any more."""

    def ask(self, prompts: Sequence[tuple[str, str]], max_tokens: int) -> list[ChatAnswer]:
        """Answers to (system, user) turns, greedy, each of at most `max_tokens` tokens."""

    def close(self) -> None:
        """Let go of the connections."""


ChatOpener = Callable[[str, str], Chat]
"""Opens (model, URL); raises a ClaraError where it does not answer."""


class ServerReader:
    """`TextReader` over a server, with the prompt that the bare backbone gets."""

    def __init__(self, chat: Chat, max_new_tokens: int) -> None:
        self._chat, self._max_new_tokens = chat, max_new_tokens

    def read(self, batch: Sequence[tuple[str, Sequence[str]]]) -> list[Reading | Failure]:
        """All at once; a prompt that is too long is asked again without its last text."""
        kept = [len(texts) for _, texts in batch]
        readings: dict[int, Reading | Failure] = {}
        waiting = list(range(len(batch)))
        while waiting:
            prompts = [text_chat(batch[n][0], batch[n][1][: kept[n]]) for n in waiting]
            answers = self._chat.ask(prompts, self._max_new_tokens)
            for n, answer in zip(waiting, answers, strict=True):
                if answer.too_long and kept[n] > 0:
                    kept[n] -= 1
                elif answer.text is None:
                    readings[n] = Failure(answer.error)
                else:
                    readings[n] = Reading(answer.text.strip(), kept[n])
            waiting = [n for n in waiting if n not in readings]
        return [readings[n] for n in range(len(batch))]
