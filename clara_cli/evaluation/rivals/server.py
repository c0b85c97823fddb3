"""Passages read as text by a model behind an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from clara_cli.chat.client import (
    ChatClient,
    ChatSettings,
    LLMError,
    Prompt,
    Unanswered,
    Unfit,
    read_key,
)
from clara_cli.core.prompts import ANSWER_SYSTEM, text_chat
from clara_cli.evaluation.systems import Failure, Reading

RETRIES, BACKOFF = 2, 0.5
_HINT = "start it, or correct its address in --system; the same command goes on"


class ServerReader:
    """`TextReader` over /v1/chat/completions, with the prompt that the bare backbone gets, greedy.
    An answer may take `timeout` seconds; raises LLMError where the server is away or refuses
    all."""

    def __init__(
        self,
        model: str,
        url: str,
        max_new_tokens: int,
        timeout: float,
        seed: int,
        warn: Callable[[str], None],
    ) -> None:
        settings = ChatSettings(
            model=model, timeout=timeout, retries=RETRIES, backoff=BACKOFF, seed=seed
        )
        self._max_new_tokens = max_new_tokens
        self._client = ChatClient([url], settings, read_key(), warn)
        self._runner = asyncio.Runner()
        try:
            self._runner.run(self._client.check(ANSWER_SYSTEM))
        except LLMError as error:
            self.close()
            raise LLMError(error.message, _HINT) from error

    def read(self, batch: Sequence[tuple[str, Sequence[str]]]) -> list[Reading | Failure]:
        """All at once; a prompt that is too long is asked again without its last text."""
        try:
            return self._runner.run(self._read_all(batch))
        except LLMError as error:
            raise LLMError(error.message, _HINT) from error

    def close(self) -> None:
        """Close the connections and the loop."""
        self._runner.run(self._client.close())
        self._runner.close()

    async def _read_all(
        self, batch: Sequence[tuple[str, Sequence[str]]]
    ) -> list[Reading | Failure]:
        return list(await asyncio.gather(*(self._read(*task) for task in batch)))

    async def _read(self, question: str, texts: Sequence[str]) -> Reading | Failure:
        for kept in range(len(texts), -1, -1):
            system, user = text_chat(question, texts[:kept])
            prompt = Prompt("answer", user, None, self._max_new_tokens, system=system)
            try:
                reply = await self._client.ask(prompt)
            except Unfit as unfit:
                if unfit.gate == "context" and kept:
                    continue
                return Failure(unfit.detail)
            except Unanswered as error:
                return Failure(str(error))
            if reply.textless:
                return Failure("an answer without text")
            return Reading(self._without_key(reply.text).strip(), kept)
        raise AssertionError("the prompt without texts is answered or refused")

    def _without_key(self, text: str) -> str:
        """A reply as it may be kept: a server may repeat the key it was sent."""
        return str(self._client.guard.line({"text": text}, frozenset())["text"])
