"""A transformers model in this process as the language model: prompts gathered into batches, each
generated in a thread, so that the rest goes on meanwhile.

Knows one loaded model and its tokenizer; who loads them and onto what is the command's business.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clara_cli.chat.client import LLMError, Prompt, Unfit
from clara_cli.chat.protocol import Reply

LEAST_ROOM = 64  # tokens a reply needs at least


@dataclass(slots=True)
class _Job:
    prompt: Prompt
    ids: list[int]
    room: int
    reply: asyncio.Future[Reply]


def _like(job: _Job) -> tuple[float, int]:
    return job.prompt.temperature, job.room


class LocalLLM:
    """`LLM` over a model in memory, which answers up to `batch` prompts together. `as_chat` writes
    a prompt as the user's turn of a chat, where the model has a template for one; `window` bounds
    the tokens of prompt and reply."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch: int,
        seed: int,
        as_chat: Callable[[str], str | None],
        window: int | None,
    ) -> None:
        self._model, self._tokenizer, self._seed = model, tokenizer, seed
        self._as_chat = as_chat
        self._batch = batch
        self._window = window
        self._waiting: list[_Job] = []
        self._runner: asyncio.Task[None] | None = None
        self._stopped = threading.Event()

    async def check(self) -> None:
        """A model in memory answers, if it can write at all."""
        if not callable(getattr(self._model, "generate", None)):
            message = f"{type(self._model).__name__} cannot generate text"
            raise LLMError(message, "use another --llm")

    async def close(self) -> None:
        """Stop at the next token."""
        self._stopped.set()
        if self._runner is not None:
            self._runner.cancel()

    async def ask(self, prompt: Prompt) -> Reply:
        """The reply, from the next batch with room."""
        ids = self._encode(f"{prompt.system}\n{prompt.text}" if prompt.system else prompt.text)
        room = prompt.max_tokens
        if self._window is not None:
            room = min(room, self._window - len(ids))
            if room < min(LEAST_ROOM, prompt.max_tokens):
                detail = f"a prompt of {len(ids)} tokens in a window of {self._window}"
                raise Unfit("context", detail)
        job = _Job(prompt, ids, room, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await job.reply

    def _encode(self, text: str) -> list[int]:
        """A prompt as token ids. What looks like a special token in it is text, and stays text."""
        for special in self._tokenizer.all_special_tokens:
            text = text.replace(special, f"{special[:1]} {special[1:]}")
        chat = self._as_chat(text)
        if chat is not None:
            return list(self._tokenizer(chat, add_special_tokens=False)["input_ids"])
        return list(self._tokenizer(text)["input_ids"])

    async def _run(self) -> None:
        """Batches of prompts of one temperature and room for a reply, until nobody waits."""
        await asyncio.sleep(0)  # let everybody who is about to ask, ask
        while self._waiting:
            like = _like(self._waiting[0])
            batch = [job for job in self._waiting if _like(job) == like][: self._batch]
            chosen = set(map(id, batch))
            self._waiting = [job for job in self._waiting if id(job) not in chosen]
            generating = asyncio.to_thread(self._generate, batch)
            (outcome,) = await asyncio.gather(generating, return_exceptions=True)
            if isinstance(outcome, (RuntimeError, ValueError)):  # what torch and transformers raise
                outcome = LLMError(f"the local model failed: {outcome}")
            for number, job in enumerate(batch):
                if job.reply.done():
                    continue
                if isinstance(outcome, BaseException):  # nobody may wait for ever
                    job.reply.set_exception(outcome)
                else:
                    job.reply.set_result(outcome[number])

    def _generate(self, batch: list[_Job]) -> list[Reply]:
        import torch
        from transformers import StoppingCriteriaList

        pad = self._tokenizer.pad_token_id
        pad = self._tokenizer.eos_token_id if pad is None else pad
        longest = max(len(job.ids) for job in batch)
        rows = [[pad] * (longest - len(job.ids)) + job.ids for job in batch]
        seen = [[0] * (longest - len(job.ids)) + [1] * len(job.ids) for job in batch]
        device, warm = self._model.device, batch[0].prompt.temperature
        sampling = {"do_sample": True, "temperature": warm} if warm else {"do_sample": False}
        torch.manual_seed(batch[0].prompt.seed(self._seed))
        with torch.inference_mode():
            generated = self._model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(seen, device=device),
                max_new_tokens=batch[0].room,
                pad_token_id=pad,
                stopping_criteria=StoppingCriteriaList([self._stop]),
                **sampling,
            )
        return [
            self._reply(job, row[longest:].tolist())
            for job, row in zip(batch, generated, strict=True)
        ]

    def _stop(self, ids: Any, scores: Any, **extra: Any) -> Any:
        """A stopping criterion: everybody stops once the run is over."""
        import torch

        return torch.full((len(ids),), self._stopped.is_set(), device=ids.device)

    def _reply(self, job: _Job, ids: list[int]) -> Reply:
        ends = self._model.generation_config.eos_token_id
        end_ids = set(ends if isinstance(ends, list) else [ends])
        end = next((i for i, token in enumerate(ids) if token in end_ids), None)
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True)
        used = len(ids) if end is None else end + 1
        return Reply(text, len(job.ids), used, cut=end is None)
