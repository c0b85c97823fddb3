"""`clara ask --serve`: an OpenAI-compatible server over one session. /v1/chat/completions with the
sources as a field, /v1/models, /search, /health.

Everything a client can make large is bounded: the body, the requests that wait, the time of each.
A loopback address takes requests for loopback names only; any other needs a bearer token from the
environment. A checkpoint answers one question at a time, so that answers are those of the command
line; a language model behind `--llm` several.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from clara_cli.cli.show import json_line
from clara_cli.errors import ClaraError, UsageError
from clara_cli.extras import install_command
from clara_cli.records import ABSTENTION, Answer, Report, SearchResult

TOKEN = "CLARA_SERVE_TOKEN"
MODEL = "clara"
LONGEST_BODY = 2**18  # bytes
MOST_WAITING = 256  # requests, those being answered included
LONGEST_WAIT = 600.0  # seconds from a request to its answer
THREADS = 8  # of a session that may be asked several questions at once

Result = TypeVar("Result")


class Session(Protocol):
    """What answers and searches."""

    def search_all(self, questions: list[str], top_k: int | None = None) -> list[SearchResult]:
        """The passages of questions."""

    def answer_after(
        self,
        question: str,
        before: list[Answer],
        on_text: Callable[[str], None] | None = None,
        explain: bool = False,
        max_new_tokens: int | None = None,
    ) -> Answer:
        """The answer to a question asked after others."""


@dataclass(frozen=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """`[HOST:]PORT`; raises UsageError for anything else."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
        if not port.isdecimal() or int(port) > 65535:
            raise UsageError(
                f"--serve {text}: no port", "write --serve 8000, or --serve 127.0.0.1:8000"
            )
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    def listen(self) -> socket.socket:
        """A socket bound there; raises UsageError where that cannot be."""
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        except OSError as error:
            message = f"--serve {self.host}:{self.port}: {error.strerror or error}"
            raise UsageError(message, "name another address, or stop what listens there") from error
        return listener


def read_token(address: Address) -> str | None:
    """The token that requests must bear, from the environment.

    Raises:
        UsageError: where there is none, and others than this machine can reach the address.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token and not address.loopback:
        message = f"--serve {address.host}: others can reach it, and no token guards it"
        raise UsageError(message, f"set {TOKEN} to a secret, or serve on 127.0.0.1")
    return token or None


def check_installed() -> None:
    """Raise UsageError where the server's packages are missing."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(f"--serve needs {' and '.join(missing)}", install_command("serve"))


class Refusal(Exception):  # noqa: N818  (an answer to a client)
    """What a client receives instead of an answer, with its HTTP status."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind


class Abandoned(Exception):  # noqa: N818  (an event)
    """Nobody waits for the answer any more."""


class RequestQueue:
    """The requests that wait for the session, at most `MOST_WAITING`."""

    def __init__(self, session: Session, threads: int) -> None:
        self.session = session
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="clara-serve")
        self._lock, self._waiting = threading.Lock(), 0

    def take(self, work: Callable[[], Result]) -> Future[Result]:
        """What the work will give; raises Refusal where too many wait."""
        with self._lock:
            if self._waiting >= MOST_WAITING:
                raise Refusal(503, "too many questions wait", "overloaded")
            self._waiting += 1
        future = self._pool.submit(work)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._waiting -= 1

    def close(self) -> None:
        """Take no more, and drop what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class ChatRequest:
    """What a client asks: the last user turn, after the exchange before it."""

    question: str
    before: list[Answer]
    stream: bool
    max_new_tokens: int | None

    @classmethod
    def read(cls, body: Any) -> ChatRequest:
        """Check a chat completion's request; raises Refusal."""
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            raise Refusal(400, "messages is missing, wanted a list")
        if body.get("model") not in (None, MODEL):
            raise Refusal(404, f"no model {body['model']!r} here: {MODEL}")
        if body.get("n") not in (None, 1):
            raise Refusal(400, "n is not 1: an answer is greedy, there is one")
        turns = [_turn(message) for message in body["messages"]]
        turns = [(role, text) for role, text in turns if role in ("user", "assistant")]
        if not turns or turns[-1][0] != "user" or not turns[-1][1].strip():
            raise Refusal(400, "the last message is no question of the user")
        longest = body.get("max_completion_tokens") or body.get("max_tokens")
        if longest is not None and (not isinstance(longest, int) or longest < 1):
            raise Refusal(400, f"max_tokens is {longest!r}, wanted a number from 1")
        before = [
            Answer(question[1], reply[1], None, None, (), 0, 0, 0, {})
            for question, reply in zip(turns, turns[1:], strict=False)
            if (question[0], reply[0]) == ("user", "assistant")
        ]
        return cls(turns[-1][1], before, body.get("stream") is True, longest)


def _turn(message: Any) -> tuple[str, str]:
    """(role, text) of a message, its text a string or a list of text parts."""
    role = message.get("role") if isinstance(message, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    if not isinstance(role, str) or not isinstance(content, str):
        raise Refusal(400, "a message needs a role and a text")
    return role, content


def completion(answer: Answer) -> dict[str, Any]:
    """A chat completion of an answer, with its sources and support beside the choices."""
    content = ABSTENTION if answer.abstained else answer.answer
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {**_head("chat.completion"), "choices": [choice], **_result_fields(answer)}


def _head(kind: str) -> dict[str, Any]:
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind}
    return {**head, "created": int(time.time()), "model": MODEL}


def _result_fields(answer: Answer) -> dict[str, Any]:
    record = json_line.answer_json(answer)
    return {key: record[key] for key in ("sources", "support", "supported")}


class Server:
    """The application: requests in, responses out."""

    def __init__(
        self,
        desk: RequestQueue,
        token: str | None,
        *,
        holds_back: bool,
        log: Callable[[dict[str, Any]], None],
    ) -> None:
        self._desk, self._token, self._holds_back, self._log = desk, token, holds_back, log

    def app(self, *, loopback: bool) -> Any:
        """The ASGI application."""
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route

        names = ["localhost", "127.0.0.1", "[::1]", "::1"]
        hosts = [Middleware(TrustedHostMiddleware, allowed_hosts=names)] if loopback else []
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
            Route("/search", self._guarded(self._search), methods=["POST"]),
        ]
        return Starlette(routes=routes, middleware=hosts)

    def _guarded(self, endpoint: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """An endpoint for those who bear the token; what it raises becomes a response."""
        from starlette.responses import JSONResponse

        async def guarded(request: Any) -> Any:
            try:
                self._check_token(request.headers.get("authorization", ""))
                return await endpoint(request)
            except Refusal as refusal:
                error = {"message": refusal.message, "type": refusal.kind}
                return JSONResponse({"error": error}, refusal.status)

        return guarded

    def _check_token(self, header: str) -> None:
        scheme, _, token = header.partition(" ")
        wanted = self._token
        if wanted is None:
            return
        right = hmac.compare_digest(token.strip().encode(), wanted.encode())
        if scheme.lower() != "bearer" or not right:
            raise Refusal(401, "the bearer token is missing or wrong", "authentication_error")

    async def _health(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        return JSONResponse({"status": "ok"})

    async def _models(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "clara"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _search(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        body = await read_json(request)
        question = body.get("question") if isinstance(body, dict) else None
        if not isinstance(question, str) or not question.strip():
            raise Refusal(400, "question is missing, wanted a text")
        top_k = body.get("top_k")
        if top_k is not None and (type(top_k) is not int or not 1 <= top_k <= 100):
            raise Refusal(400, f"top_k is {top_k!r}, wanted a number from 1 to 100")
        work = self._desk.take(lambda: self._desk.session.search_all([question], top_k)[0])
        result = await in_time(work)
        record = json_line.search_json(result)
        self._log(record)
        return JSONResponse(record)

    async def _chat(self, request: Any) -> Any:
        from starlette.responses import JSONResponse, StreamingResponse

        chat = ChatRequest.read(await read_json(request))
        pieces: asyncio.Queue[str] = asyncio.Queue()
        loop, gone = asyncio.get_running_loop(), threading.Event()

        def tell(piece: str) -> None:
            if gone.is_set():
                raise Abandoned
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def work() -> Answer:
            if gone.is_set():
                raise Abandoned
            session, longest = self._desk.session, chat.max_new_tokens
            return session.answer_after(chat.question, chat.before, tell, max_new_tokens=longest)

        future = self._desk.take(work)
        if chat.stream:
            events = self._events(future, pieces, gone)
            return StreamingResponse(events, media_type="text/event-stream")
        try:
            answer = await in_time(future)
        finally:
            gone.set()
        self._log(json_line.answer_json(answer))
        return JSONResponse(completion(answer))

    async def _events(
        self, future: Future[Answer], pieces: asyncio.Queue[str], gone: threading.Event
    ) -> AsyncIterator[str]:
        """A streamed completion: its pieces as they come (the whole at the end, where an answer may
        be held back), then the sources and the support."""
        head = _head("chat.completion.chunk")

        def event(delta: dict[str, Any], finish: str | None = None, **beside: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return f"data: {json.dumps({**head, 'choices': [choice], **beside})}\n\n"

        try:
            yield event({"role": "assistant", "content": ""})
            answering, sent = asyncio.ensure_future(in_time(future)), ""
            while not answering.done() or not pieces.empty():
                getting = asyncio.ensure_future(pieces.get())
                await asyncio.wait({getting, answering}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                elif not self._holds_back:
                    piece = getting.result() if sent else getting.result().lstrip()
                    sent += piece
                    yield event({"content": piece})
            answer = await answering
            self._log(json_line.answer_json(answer))
            content = ABSTENTION if answer.abstained else answer.answer
            if content.startswith(sent) and content != sent:
                yield event({"content": content[len(sent) :]})
            yield event({}, "stop", **_result_fields(answer))
        except Refusal as refusal:
            error = {"message": refusal.message, "type": refusal.kind}
            yield f"data: {json.dumps({'error': error})}\n\n"
        finally:
            gone.set()
        yield "data: [DONE]\n\n"


async def read_json(request: Any) -> Any:
    """The JSON of a request, of bounded size; raises Refusal. Only a request that says it is JSON:
    a page of another site cannot send one without being asked first."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refusal(415, "the content type is not application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise Refusal(413, f"the body is larger than {LONGEST_BODY:,} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error


async def in_time(future: Future[Result]) -> Result:
    """What a future gives within the time of a request; raises Refusal for what goes wrong."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), LONGEST_WAIT)
    except TimeoutError as error:
        raise Refusal(504, f"no answer within {LONGEST_WAIT:g} s", "timeout") from error
    except UsageError as error:
        raise Refusal(400, f"{error.message}; {error.hint}") from error
    except (ClaraError, MemoryError, RuntimeError) as error:
        raise Refusal(500, str(error) or type(error).__name__, "server_error") from error


def serve(
    session: Session,
    address: Address,
    report: Report,
    *,
    threads: int,
    holds_back: bool,
    log: Callable[[dict[str, Any]], None],
) -> None:
    """Serve until the process is asked to end.

    Raises:
        UsageError: where the address cannot be had, or needs a token.
    """
    import uvicorn

    token = read_token(address)
    listener, desk = address.listen(), RequestQueue(session, threads)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    report.note(f"serving {MODEL} at http://{shown}:{port}/v1 (Ctrl-C ends it)")
    app = Server(desk, token, holds_back=holds_back, log=log).app(loopback=address.loopback)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
    )
    try:
        uvicorn.Server(settings).run(sockets=[listener])
    finally:
        desk.close()
