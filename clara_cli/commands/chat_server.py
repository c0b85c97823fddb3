"""A server asked from code that waits for it: the chat client behind plain calls."""

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
from clara_cli.core.prompts import ANSWER_SYSTEM
from clara_cli.evaluation.rivals.server import ChatAnswer

RETRIES, BACKOFF = 2, 0.5
_HINT = "start it, or correct --system server=MODEL@URL; the same command goes on"


class ServerChat:
    """`evaluation.rivals.server.Chat` over /v1/chat/completions. A prompt may take `timeout`
    seconds; raises LLMError where the server is away or refuses all."""

    def __init__(
        self, model: str, url: str, timeout: float, seed: int, warn: Callable[[str], None]
    ) -> None:
        settings = ChatSettings(
            model=model, timeout=timeout, retries=RETRIES, backoff=BACKOFF, seed=seed
        )
        self._client = ChatClient([url], settings, read_key(), warn)
        self._runner = asyncio.Runner()
        try:
            self._runner.run(self._client.check(ANSWER_SYSTEM))
        except LLMError as error:
            self.close()
            raise LLMError(error.message, _HINT) from error

    def ask(self, prompts: Sequence[tuple[str, str]], max_tokens: int) -> list[ChatAnswer]:
        """All prompts at once."""
        try:
            return self._runner.run(self._ask_all(prompts, max_tokens))
        except LLMError as error:
            raise LLMError(error.message, _HINT) from error

    async def _ask_all(
        self, prompts: Sequence[tuple[str, str]], max_tokens: int
    ) -> list[ChatAnswer]:
        requests = (
            Prompt("answer", user, None, max_tokens=max_tokens, system=system)
            for system, user in prompts
        )
        return list(await asyncio.gather(*map(self._ask, requests)))

    async def _ask(self, prompt: Prompt) -> ChatAnswer:
        try:
            reply = await self._client.ask(prompt)
        except Unfit as unfit:
            return ChatAnswer(None, unfit.detail, too_long=unfit.gate == "context")
        except Unanswered as error:
            return ChatAnswer(None, str(error))
        if reply.textless:
            return ChatAnswer(None, "an answer without text")
        return ChatAnswer(reply.text)

    def close(self) -> None:
        """Close the connections and the loop."""
        self._runner.run(self._client.close())
        self._runner.close()
