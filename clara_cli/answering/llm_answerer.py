"""A language model behind an OpenAI-compatible server that reads the passages found, as text.

Its answers have the same sources as those read from memory; their support is not judged, but for
one: the model is told to say so where the passages do not hold the answer, and then nothing
supports it. Knows no checkpoint.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from clara_cli.answering.passage_search import AskOptions, Ranking
from clara_cli.answering.sentences import with_best_sentences
from clara_cli.chat import protocol
from clara_cli.chat.client import ChatClient, LLMError, Prompt, Unanswered, Unfit
from clara_cli.chat.protocol import Reply
from clara_cli.documents.chunk import model_text
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.records import ABSTENTION, Answer

INSTRUCTION = (
    "Answer the question using only the text below, in a few words. If it does not hold the "
    f"answer, reply: {ABSTENTION}"
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class LLMQuestion:
    """A question with the passages found for it, and the exchange it leans on, if it does."""

    ranking: Ranking
    before: Answer | None = None


class LLMAnswerer:
    """Answers by one client. Its requests run in a thread of their own, so that any thread may
    ask, several at once."""

    def __init__(self, client: ChatClient) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="clara-llm").start()

    def close(self) -> None:
        """Let go of connections and the thread."""
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def answer(
        self,
        questions: Sequence[LLMQuestion],
        how: AskOptions,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Answer questions from their passages, as many at once as the client allows. `on_text` is
        told each piece of the answer to a single one.

        Raises:
            ArtefactError: where no text was kept.
            UsageError: for a prompt that the server refuses.
            LLMError: where the server does not answer.
        """
        prompts = [self._prompt(question, how) for question in questions]
        tell = on_text if len(questions) == 1 else None
        began = time.monotonic()
        replies = self._wait(self._ask(prompts, tell))
        seconds = (time.monotonic() - began) / max(1, len(questions))
        pairs = zip(questions, replies, strict=True)
        return [self._answer(question, reply, seconds, how) for question, reply in pairs]

    async def _ask(
        self, prompts: Sequence[Prompt], on_text: Callable[[str], None] | None
    ) -> list[Reply]:
        asking = [asyncio.ensure_future(self._client.ask(p, on_text)) for p in prompts]
        try:
            return await asyncio.gather(*asking)
        finally:
            for task in asking:
                task.cancel()

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What a coroutine gives in the client's thread; stopped if this one is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except Unanswered as error:
            raise LLMError(str(error), protocol.START_HINT) from error
        except Unfit as error:
            if error.gate == "context":
                message = f"the passages are too long for the model: {error.detail}"
                raise UsageError(message, "lower --top-k") from error
            raise UsageError(f"--llm refuses the request: {error.detail}", "see its log") from error
        finally:
            future.cancel()

    def _prompt(self, question: LLMQuestion, how: AskOptions) -> Prompt:
        passages = [hit.passage for hit in question.ranking.hits]
        if any(passage.text is None for passage in passages):
            hint = "compress again without --no-text"
            raise ArtefactError("--llm reads text, and the corpus kept none", hint)
        texts = [model_text(passage.title, passage.text or "") for passage in passages]
        parts = [INSTRUCTION, *texts]
        before = question.before
        if before is not None:
            parts.append(f"Question before: {before.question}\nIts answer: {before.answer}")
        parts.append(f"Question: {question.ranking.question}")
        return Prompt("ask", "\n\n".join(parts), None, how.max_new_tokens)

    def _answer(
        self, question: LLMQuestion, reply: Reply, seconds: float, how: AskOptions
    ) -> Answer:
        ranking = question.ranking
        text = self._client.guard.line({"text": reply.text.strip()}, frozenset())["text"]
        declined = text.strip(" .\"'").casefold() == ABSTENTION
        hits = [replace(hit, read="text") for hit in ranking.hits]
        spent = {**ranking.seconds, "generate": seconds}
        return Answer(
            question=ranking.question,
            answer=ABSTENTION if declined else text,
            support=0.0 if declined else None,
            supported=False if declined else None,
            sources=with_best_sentences(
                hits, ranking.searched, "" if declined else text, ranking.word_weights
            ),
            memory_tokens=0,
            prompt_tokens=reply.prompt_tokens,
            text_tokens_replaced=0,
            seconds={phase: round(value, 4) for phase, value in spent.items()},
            support_method="declined" if declined else None,
            read="text",
            abstained=declined,
        )
