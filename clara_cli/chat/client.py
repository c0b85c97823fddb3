"""A language model behind any OpenAI-compatible server: bounded concurrency, retries with backoff,
several servers sharing the load, replies of bounded size, errors a user can act on.

Knows nothing of what is asked. The key comes from the caller, goes into one header, and is cut out
of whatever a server says of a refusal before anybody reads it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx2

from clara_cli.chat import protocol
from clara_cli.chat.key import KeyGuard
from clara_cli.chat.protocol import BrokenReply, Reply
from clara_cli.errors import ClaraError, UsageError

LONGEST_WAIT = 60.0  # seconds, whatever a server asks for
CONNECT_SECONDS = 10.0
KEYS = ("CLARA_LLM_API_KEY", "OPENAI_API_KEY")
KEY_HINT = "set CLARA_LLM_API_KEY (or OPENAI_API_KEY) to a key this server takes"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One thing to ask. `schema` is the JSON the reply should be (None: plain text), `system` the
    system turn, `salt` makes a second asking another sample."""

    task: str
    text: str
    schema: dict[str, Any] | None
    max_tokens: int = 1024
    temperature: float = 0.0
    salt: int = 0
    system: str = ""

    def seed(self, seed: int) -> int:
        """The sampling seed: the same for the same prompt, whatever the order of the work."""
        digest = hashlib.sha256(f"{seed} {self.salt} {self.text}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


class LLM(Protocol):
    """What answers prompts."""

    async def check(self) -> None:
        """Make sure it answers at all; raises LLMError."""

    async def ask(self, prompt: Prompt) -> Reply:
        """The reply. Raises Unfit, Unanswered, LLMError."""

    async def close(self) -> None:
        """Let go of connections and threads."""


class LLMError(ClaraError):
    """No reply can be had from now on; the run ends."""


class Unfit(Exception):  # noqa: N818  (a verdict on one prompt)
    """The server refuses this prompt and answers others: `gate` is context or refused."""

    def __init__(self, gate: str, detail: str) -> None:
        super().__init__(detail)
        self.gate, self.detail = gate, detail


class Unanswered(Exception):  # noqa: N818  (an event on one prompt)
    """Every try at one prompt failed while the server answers others."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How to talk to servers. Times are seconds."""

    model: str
    concurrency: int = 16
    timeout: float = 300.0
    retries: int = 5
    backoff: float = 1.0
    stream: bool = False
    seed: int = 0


class _Transient(Exception):
    """A failure that may pass. `everyone`: other prompts would meet it too; `hung`: it took a
    whole timeout to see."""

    def __init__(
        self, message: str, wait: float = 0.0, everyone: bool = False, hung: bool = False
    ) -> None:
        super().__init__(message)
        self.wait, self.everyone, self.hung = wait, everyone, hung


class _PieceCounter:
    """Passes pieces of a reply on, and counts them."""

    def __init__(self, on_text: Callable[[str], None] | None) -> None:
        self._on_text, self.pieces = on_text, 0

    def __call__(self, text: str) -> None:
        self.pieces += 1
        if self._on_text is not None:
            self._on_text(text)


@dataclass(slots=True)
class _Endpoint:
    url: str
    http: httpx2.AsyncClient
    dialect: int = 0  # how much of the request this server understands, see protocol.body
    in_flight: int = 0
    ready_at: float = 0.0


class ChatClient:
    """`LLM` over /v1/chat/completions of one or several servers with the same model."""

    def __init__(
        self,
        urls: Sequence[str],
        settings: ChatSettings,
        key: str | None,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._key, self._say = settings, key, say
        self.guard = KeyGuard(key)
        self._endpoints = [self._endpoint(url) for url in dict.fromkeys(map(base_url, urls))]
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._answered_at, self._checked = -1.0, False
        self._random = random.Random(settings.seed)

    def _endpoint(self, url: str) -> _Endpoint:
        host = urlsplit(url).hostname or ""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        size = self._settings.concurrency
        http = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=size, max_keepalive_connections=size),
            verify=url.startswith("https:"),  # reading certificates takes a while
            trust_env=host not in _LOOPBACK,  # a proxy does not know this machine's servers
        )
        return _Endpoint(url, http)

    async def close(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints:
            await endpoint.http.aclose()

    async def check(self, system: str = "") -> None:
        """Ask each server for a few tokens, with a system turn if there is to be one, and learn
        what it understands. A server that does not answer is said and left out; raises LLMError
        where none does."""
        endpoints, self._checked = self._endpoints, True
        errors_or_none = await asyncio.gather(*(self._probe(e, system) for e in endpoints))
        errors = [error for error in errors_or_none if error is not None]
        if len(errors) == len(errors_or_none):
            raise errors[0]
        for error in errors:
            self._say(f"{error.message}; going on without it")
        self._endpoints = [
            e for e, error in zip(endpoints, errors_or_none, strict=True) if error is None
        ]

    async def _probe(self, endpoint: _Endpoint, system: str) -> LLMError | None:
        text, schema = 'Reply with {"ready": true}', {"type": "object"}
        prompt = Prompt("probe", text, schema, max_tokens=16, system=system)
        for attempt in range(self._settings.retries + 1):
            try:
                await self._send(endpoint, prompt)
                return None
            except LLMError as error:
                return error
            except Unfit as unfit:
                if endpoint.dialect == protocol.LAST_DIALECT:
                    message = f"{endpoint.url} refuses requests: {unfit.detail}"
                    return LLMError(message, "check --llm-model and the server's log")
                endpoint.dialect += 1
            except _Transient as error:
                if attempt == self._settings.retries or not error.wait:
                    return LLMError(str(error), protocol.START_HINT)
                await asyncio.sleep(self._delay(error, attempt))
        return LLMError(f"{endpoint.url} does not answer", protocol.START_HINT)

    async def ask(self, prompt: Prompt, on_text: Callable[[str], None] | None = None) -> Reply:
        """The reply to a prompt, tried again where a failure may pass, elsewhere if there is an
        elsewhere. `on_text` receives each piece of a streamed reply: once it was told one, nothing
        is tried again."""
        heard = _PieceCounter(on_text)
        started, last, failed = time.monotonic(), "", None
        async with self._slots:
            for attempt in range(self._settings.retries + 1):
                endpoint = await self._pick(failed)
                endpoint.in_flight += 1
                try:
                    reply = await self._send_fitting(endpoint, prompt, on_text and heard)
                    self._answered_at = time.monotonic()
                    return reply
                except _Transient as error:
                    last, failed = str(error), endpoint
                    if heard.pieces:
                        raise Unanswered(last) from error
                    if error.hung and self._answered_at < started:
                        break  # a whole timeout without an answer to anybody: enough
                    await self._wait(endpoint, error, attempt)
                finally:
                    endpoint.in_flight -= 1
            if self._answered_at < started:  # nobody was answered meanwhile: is it gone?
                await self.check()
        raise Unanswered(last)

    async def _pick(self, failed: _Endpoint | None) -> _Endpoint:
        """The least busy server that is not resting, rather another one than failed just now."""
        now = time.monotonic()
        ready = [e for e in self._endpoints if e.ready_at <= now]
        if ready:
            return min(ready, key=lambda e: (e is failed, e.in_flight))
        first = min(self._endpoints, key=lambda e: e.ready_at)
        await asyncio.sleep(first.ready_at - now)
        return first

    def _delay(self, error: _Transient, attempt: int) -> float:
        wait: float = self._settings.backoff * 2**attempt * (1 + self._random.random() / 4)
        return min(LONGEST_WAIT, max(wait, error.wait))

    async def _wait(self, endpoint: _Endpoint, error: _Transient, attempt: int) -> None:
        if attempt == self._settings.retries:
            return
        delay = self._delay(error, attempt)
        if error.everyone:
            endpoint.ready_at = max(endpoint.ready_at, time.monotonic() + delay)
        elif len(self._endpoints) == 1:
            await asyncio.sleep(delay)

    async def _send_fitting(
        self, endpoint: _Endpoint, prompt: Prompt, on_text: Callable[[str], None] | None
    ) -> Reply:
        """Send a prompt; a server that was never checked may refuse what it does not understand,
        and is asked in plainer dialects."""
        while True:
            try:
                return await self._send(endpoint, prompt, on_text)
            except Unfit as unfit:
                plainest = endpoint.dialect == protocol.LAST_DIALECT
                if self._checked or unfit.gate != "refused" or plainest:
                    raise
                endpoint.dialect += 1

    async def _send(
        self, endpoint: _Endpoint, prompt: Prompt, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        settings, url = self._settings, endpoint.url
        body = protocol.body(
            endpoint.dialect,
            model=settings.model,
            text=prompt.text,
            system=prompt.system,
            schema=prompt.schema,
            max_tokens=prompt.max_tokens,
            temperature=prompt.temperature,
            seed=prompt.seed(settings.seed),
            stream=settings.stream or on_text is not None,
        )
        try:
            async with asyncio.timeout(settings.timeout):
                async with endpoint.http.stream(
                    "POST", f"{url}/chat/completions", json=body
                ) as response:
                    if response.status_code == 200:
                        return await protocol.read_reply(response, prompt.text, on_text)
                    reason = await self._error_text(response)
                    raise self._failure(url, response, reason)
        except TimeoutError as error:
            message = f"{url} did not answer within {settings.timeout:g} s"
            raise _Transient(message, hung=True) from error
        except httpx2.ConnectError as error:
            reason = self.guard.refusal(str(error))
            raise _Transient(f"no server answers at {url}: {reason}", everyone=True) from error
        except (httpx2.TransportError, httpx2.DecodingError, BrokenReply) as error:
            reason = self.guard.refusal(str(error)) or type(error).__name__
            raise _Transient(f"{url} broke off its answer: {reason}") from error

    async def _error_text(self, response: httpx2.Response) -> str:
        """What the server says of its refusal, one line, the key cut out."""
        raw, _ = await protocol.read_bounded(response, 65_536)
        text = raw.decode(errors="replace")
        try:
            detail = json.loads(text)
        except (ValueError, RecursionError):
            detail = text
        for key in ("error", "message", "detail"):
            detail = detail.get(key, detail) if isinstance(detail, dict) else detail
        text = detail if isinstance(detail, str) else json.dumps(detail)
        return self.guard.refusal(" ".join(text.split()))[:200]

    def _failure(self, url: str, response: httpx2.Response, said: str) -> Exception:
        """What a status other than 200 means."""
        status = response.status_code
        if status in (401, 403):
            sent = "the key" if self._key else "requests without a key"
            return LLMError(f"{url} refuses {sent} ({status})", KEY_HINT)
        if status == 404:
            named = f"{url} has no model {self._settings.model!r}, or no chat completions"
            hint = "check --llm-model, and that --llm is the address up to /v1"
            return LLMError(f"{named} (404: {said})", hint)
        if status == 429 or status >= 500 or status == 408:
            wait = protocol.retry_after(response.headers.get("retry-after"))
            everyone = status in (429, 503)
            return _Transient(f"{url} answers {status}: {said}", max(wait, 1e-3), everyone)
        if 300 <= status < 400:
            return LLMError(f"{url} redirects ({status})", "give --llm the address it leads to")
        if protocol.too_long(status, said):
            return Unfit("context", said)
        return Unfit("refused", f"{status}: {said}")


def read_key() -> str | None:
    """The server's key from the environment, None where there is none."""
    for name in KEYS:
        key = os.environ.get(name, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UsageError(f"${name} holds characters that no key has", "set it again")
        if key:
            return key
    return None


def base_url(url: str) -> str:
    """A server's address up to /v1. Raises UsageError for what cannot be one."""
    shown = url.split("@")[-1]
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"--llm {shown}: {error}", protocol.URL_HINT) from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError(f"--llm {shown}: not a server's address", protocol.URL_HINT)
    if "@" in parts.netloc:
        raise UsageError(f"--llm {shown}: a key in the address", KEY_HINT)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"
