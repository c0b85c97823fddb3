"""The bytes of a chat completion: the request in the dialects servers understand, the reply whole
or as a stream, never more of it than a bound.

Knows one exchange; nothing of retries, prompts or keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx2

REPLY_BYTES = 2**20  # more than any reply asked for here; beyond it nobody reads
MOST_TOKENS = 2**24  # of one prompt or reply, more than any model reads; a higher count is none
CHARACTERS_A_TOKEN = 4  # where a server does not count
LAST_DIALECT = 2
URL_HINT = "an address looks like http://127.0.0.1:8000/v1"
START_HINT = "start the server, or correct --llm"
_TOO_LONG = (
    "context length",
    "context size",  # llama.cpp
    "context window",
    "maximum context",
    "too long",
    "too many tokens",
)


class BrokenReply(Exception):  # noqa: N818  (a verdict on one response)
    """A response that is no chat completion."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, and the tokens it took (estimated where the server gives no count that
    can be: an integer from 0 to `MOST_TOKENS`). `cut`: it ended at the token limit, or at the size
    bound. `textless`: its message holds no text, which is not the same as an empty one."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cut: bool = False
    textless: bool = False


def body(
    dialect: int,
    *,
    model: str,
    text: str,
    system: str,
    schema: dict[str, Any] | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    stream: bool,
) -> dict[str, Any]:
    """A request. Dialect 0 asks for the JSON schema; 1 leaves that to the prompt (transformers
    serve); 2 is what is left for servers that refuse a seed, a temperature, `max_tokens` or a
    system turn."""
    messages = [{"role": "user", "content": text}]
    if system and dialect == LAST_DIALECT:
        messages = [{"role": "user", "content": f"{system}\n{text}"}]
    elif system:
        messages = [{"role": "system", "content": system}, *messages]
    made: dict[str, Any] = {"model": model, "messages": messages, "stream": stream}
    if dialect == LAST_DIALECT:
        return made | {"max_completion_tokens": max_tokens}
    made |= {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    if dialect == 0 and schema is not None:
        named = {"name": "reply", "schema": schema}
        made["response_format"] = {"type": "json_schema", "json_schema": named}
    if dialect == 0 and stream:
        made["stream_options"] = {"include_usage": True}
    return made


async def read_bounded(response: httpx2.Response, limit: int) -> tuple[bytes, bool]:
    """At most `limit` bytes of a response, decompressed, and whether that is all of it."""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        parts.append(part[: limit - size])
        size += len(part)
        if size > limit:
            return b"".join(parts), False
    return b"".join(parts), True


async def read_reply(
    response: httpx2.Response, asked: str, on_text: Callable[[str], None] | None = None
) -> Reply:
    """The reply of a response with status 200; `on_text` receives each piece of a streamed one.
    Raises BrokenReply."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return await _read_stream(response, asked, on_text)
    raw, whole = await read_bounded(response, REPLY_BYTES)
    if not whole:
        return Reply("", _estimate(asked), REPLY_BYTES // CHARACTERS_A_TOKEN, cut=True)
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BrokenReply("not JSON") from error
    choice = _choice(record)
    if choice is None:
        raise BrokenReply("no choices in it")
    message = choice.get("message")
    text = _text(message.get("content")) if isinstance(message, dict) else None
    return _reply(text, choice, record.get("usage"), asked)


def _text(content: Any) -> str | None:
    """The text of a message: a string, or the text parts of a list; None where there is none."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts else None
    return content if isinstance(content, str) else None


async def _read_stream(
    response: httpx2.Response, asked: str, on_text: Callable[[str], None] | None
) -> Reply:
    parts: list[str] = []
    last: dict[str, Any] = {}
    usage: Any = None
    ended = False
    async for data in _events(response):
        if data is None:  # beyond the bound
            return Reply("", _estimate(asked), REPLY_BYTES // CHARACTERS_A_TOKEN, cut=True)
        if data == b"[DONE]":
            ended = True
            break
        try:
            record = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BrokenReply("an event that is not JSON") from error
        choice = _choice(record)
        usage = record.get("usage") or usage if isinstance(record, dict) else usage
        if choice is not None:
            last = choice if choice.get("finish_reason") else last
            delta = choice.get("delta")
            text = delta.get("content") if isinstance(delta, dict) else None
            parts.append(text if isinstance(text, str) else "")
            if on_text is not None and parts[-1]:
                on_text(parts[-1])
    if not ended and not last:
        raise BrokenReply("the stream ended early")
    return _reply("".join(parts), last, usage, asked)


async def _events(response: httpx2.Response) -> AsyncIterator[bytes | None]:
    """The data of each event of a stream; None once it passes the bound."""
    rest, size = b"", 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > REPLY_BYTES:
            yield None
            return
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


def _choice(record: Any) -> dict[str, Any] | None:
    choices = record.get("choices") if isinstance(record, dict) else None
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    return None


def _reply(text: str | None, choice: dict[str, Any], usage: Any, asked: str) -> Reply:
    counted = usage if isinstance(usage, dict) else {}
    return Reply(
        text or "",
        _count(counted.get("prompt_tokens"), asked),
        _count(counted.get("completion_tokens"), text or ""),
        cut=choice.get("finish_reason") == "length",
        textless=text is None,
    )


def _count(said: Any, text: str) -> int:
    """The tokens of a text as a server counts them, estimated where it does not."""
    return said if type(said) is int and 0 <= said <= MOST_TOKENS else _estimate(text)


def _estimate(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_A_TOKEN)


def retry_after(value: str | None) -> float:
    """Seconds a server asks to be left alone; 0 where it says nothing readable."""
    try:
        seconds = float(value or 0)
    except ValueError:  # a date: the own backoff is as good
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def too_long(status: int, said: str) -> bool:
    """Whether a refusal is about a prompt beyond the model's context."""
    return status == 413 or any(mark in said.lower() for mark in _TOO_LONG)
