"""The client against a scripted server: what it sends, what it bears, and what it says of the
rest."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from helpers.scripted_llm import Asked, Raw, completion, serving, streamed

from clara_cli.chat import protocol
from clara_cli.chat.client import (
    ChatClient,
    ChatSettings,
    LLMError,
    Prompt,
    Unanswered,
    Unfit,
    base_url,
)
from clara_cli.chat.protocol import Reply
from clara_cli.errors import UsageError

KEY = "sk-very-secret-0123456789"
QUICK: dict[str, Any] = {"timeout": 5.0, "retries": 3, "backoff": 0.01}


def prompt(text: str = "hello") -> Prompt:
    return Prompt("test", text, {"type": "object"}, 50, 0.5)


def talk(
    urls: str | list[str],
    work: Callable[[ChatClient], Awaitable[Any]],
    key: str | None = None,
    said: list[str] | None = None,
    **changes: Any,
) -> Any:
    """What `work` makes of a client, checked first unless it is told not to."""
    urls = [urls] if isinstance(urls, str) else urls
    checked = changes.pop("checked", True)

    async def go() -> Any:
        settings = ChatSettings(**{"model": "m", **QUICK, **changes})
        client = ChatClient(urls, settings, key, [].append if said is None else said.append)
        try:
            if checked:
                await client.check()
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(go())


def one(client: ChatClient) -> Awaitable[Reply]:
    return client.ask(prompt())


def after_probe(*responses: Raw | str) -> Callable[[Asked], str | Raw]:
    """A player that answers the probe, then these in order, the last one for ever."""
    left = list(responses)

    def play(asked: Asked) -> str | Raw:
        if asked.task == "probe":
            return "ready"
        return left.pop(0) if len(left) > 1 else left[0]

    return play


def test_a_reply_and_the_request_it_answers() -> None:
    with serving(after_probe("fine")) as server:
        assert talk(server.url, one, KEY, seed=3) == Reply("fine", 100, 10)
        body = server.asked[-1].body
        assert server.headers[-1]["authorization"] == f"Bearer {KEY}"
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 50, 0.5)
    assert body["seed"] == prompt().seed(3) != prompt("other").seed(3)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["stream"] is False


def test_without_a_key_no_key_is_sent() -> None:
    with serving(after_probe("fine")) as server:
        talk(server.url, one)
        assert all("authorization" not in headers for headers in server.headers)


def test_streaming_gives_the_same() -> None:
    with serving(after_probe("a longer reply, in pieces: é")) as server:
        replies = [talk(server.url, one, stream=stream) for stream in (False, True)]
        assert server.asked[-1].body["stream_options"] == {"include_usage": True}
    assert replies[0] == replies[1] == Reply("a longer reply, in pieces: é", 100, 10)


def error(status: int, message: str = "no", **headers: str) -> Raw:
    return Raw(status, json.dumps({"error": {"message": message}}).encode(), headers)


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_said_without_showing_it(status: int) -> None:
    said = error(status, f"Incorrect API key provided: {KEY}")
    with serving(lambda asked: said) as server:
        with pytest.raises(LLMError) as caught:
            talk(server.url, one, KEY)
        assert len(server.asked) == 1
    assert caught.value.message == f"{server.url} refuses the key ({status})"
    assert "CLARA_LLM_API_KEY" in caught.value.hint
    assert KEY not in caught.value.message + caught.value.hint


def test_the_key_is_cut_out_of_every_refusal() -> None:
    with serving(lambda asked: error(400, f"bad header {KEY}")) as server:
        with pytest.raises(LLMError, match=r"bad header \*\*\*"):
            talk(server.url, one, KEY)


@pytest.mark.parametrize("part", [KEY[:8], KEY[-6:], KEY.upper(), f"{KEY[:6]}****{KEY[-4:]}"])
def test_parts_of_the_key_are_cut_out_too(part: str) -> None:
    with serving(lambda asked: error(400, f"Incorrect key: {part}.")) as server:
        with pytest.raises(LLMError, match=r"Incorrect key: \*[*]+\.") as caught:
            talk(server.url, one, KEY)
    assert not any(KEY[n : n + 4] in caught.value.message.lower() for n in range(len(KEY) - 3))


def test_an_unknown_model_is_named() -> None:
    with serving(lambda asked: error(404, "model m not found")) as server:
        with pytest.raises(LLMError, match="has no model 'm'.*404: model m not found") as caught:
            talk(server.url, one)
    assert "--llm-model" in caught.value.hint


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(LLMError, match=f"no server answers at {url}/v1"):
            talk(url, one)
    assert time.monotonic() - started < 2


def test_a_server_that_hangs() -> None:
    with serving(lambda asked: Raw(200, b"", {}, delay=1.5)) as server:
        with pytest.raises(LLMError, match="did not answer within 0.2 s"):
            talk(server.url, one, timeout=0.2)


def test_a_server_that_hangs_later_ends_the_run_after_one_timeout() -> None:
    hanging = False

    def play(asked: Asked) -> Raw:
        return Raw(200, b"", {}, delay=1.5 if hanging else 0) if hanging else completion("x")

    async def work(client: ChatClient) -> None:
        nonlocal hanging
        hanging = True
        await client.ask(prompt())

    with serving(play) as server:
        started = time.monotonic()
        with pytest.raises(LLMError, match="did not answer within 0.2 s"):
            talk(server.url, work, timeout=0.2)
    assert time.monotonic() - started < 3


def test_something_else_than_a_model() -> None:
    with serving(lambda asked: Raw(200, b"<html>hello</html>")) as server:
        with pytest.raises(LLMError, match="broke off its answer: not JSON"):
            talk(server.url, one)
    with serving(lambda asked: Raw(200, b'{"ok": [1]}')) as server:
        with pytest.raises(LLMError, match="no choices"):
            talk(server.url, one)
    with serving(lambda asked: Raw(302, b"", {"location": "http://elsewhere/"})) as server:
        with pytest.raises(LLMError, match="redirects"):
            talk(server.url, one)


def counted(prompt_tokens: object, completion_tokens: object) -> Raw:
    """A reply of one word from a server that counts so."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    record = {"choices": [{"message": {"content": "four"}}], "usage": usage}
    return Raw(200, json.dumps(record).encode())


PASSING = {
    "busy": error(429),
    "down": error(500),
    "gone": error(503, "loading"),
    "html": Raw(200, b"<html>"),
    "truncated": Raw(200, completion("fine").body[:40], {}, truncate=True),
    "broken stream": Raw(200, streamed("fine").body[:60], {"content-type": "text/event-stream"}),
}


@pytest.mark.parametrize("failure", PASSING)
def test_failures_that_pass_are_tried_again(failure: str) -> None:
    bad = PASSING[failure]
    with serving(after_probe(bad, bad, "fine")) as server:
        assert talk(server.url, one).text == "fine"
        assert len(server.tasks()) == 3


def test_retry_after_is_kept_to() -> None:
    with serving(after_probe(error(429, **{"retry-after": "0.4"}), "fine")) as server:
        started = time.monotonic()
        assert talk(server.url, one).text == "fine"
    assert time.monotonic() - started > 0.4


def test_one_bad_prompt_is_unanswered_while_others_are() -> None:
    def play(asked: Asked) -> str | Raw:
        return error(500, "poison") if asked.text == "poison" else "fine"

    async def work(client: ChatClient) -> list[Any]:
        asked = [client.ask(prompt(text)) for text in ("a", "poison", "b", "c")]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    with serving(play) as server:
        a, bad, b, c = talk(server.url, work)
        counted = Counter(asked.text for asked in server.asked)
    assert {a.text, b.text, c.text} == {"fine"}
    assert isinstance(bad, Unanswered)
    assert str(bad) == f"{server.url} answers 500: poison"
    assert counted["poison"] == 4


def test_an_outage_ends_the_run() -> None:
    with serving(after_probe("fine", error(500, "gone"))) as server:
        down = False

        async def work(client: ChatClient) -> None:
            nonlocal down
            await client.ask(prompt())
            down = True
            await client.ask(prompt())

        play = server.player
        server.player = lambda asked: error(500, "gone") if down else play(asked)
        with pytest.raises(LLMError, match="answers 500: gone"):
            talk(server.url, work)


def test_ten_megabytes_are_cut_off_and_cost_no_memory() -> None:
    huge = completion("x" * 10_000_000)
    long_stream = streamed("y" * 150_000)
    assert len(long_stream.body) > protocol.REPLY_BYTES
    with serving(after_probe(huge, long_stream)) as server:
        assert talk(server.url, one) == Reply("", 2, protocol.REPLY_BYTES // 4, cut=True)
        assert talk(server.url, one, stream=True).cut


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (completion(None), Reply("", 100, 10, textless=True)),
        (completion("", "length"), Reply("", 100, 10, cut=True)),
        (Raw(200, b'{"choices": [{"message": {"content": "abcde"}}]}'), Reply("abcde", 2, 2)),
        (Raw(200, b'{"choices": [{"message": null}], "usage": 3}'), Reply("", 2, 0, textless=True)),
        (counted(-1, 2**24 + 1), Reply("four", 2, 1)),
        (counted(True, 1e999), Reply("four", 2, 1)),
        (counted(10**400, "9"), Reply("four", 2, 1)),
        (counted(2**24, 0), Reply("four", 2**24, 0)),
    ],
)
def test_replies_with_little_in_them(raw: Raw, expected: Reply) -> None:
    with serving(after_probe(raw)) as server:
        assert talk(server.url, one) == expected


@pytest.mark.parametrize(
    "detail",
    [
        "This model's maximum context length is 2048 tokens",
        "request (3031 tokens) exceeds the available context size (1024 tokens)",  # llama.cpp
    ],
)
def test_prompts_a_server_refuses(detail: str) -> None:
    with serving(after_probe(error(400, detail), error(400, "content policy"))) as server:
        for gate, said in (("context", detail), ("refused", "400: content policy")):
            with pytest.raises(Unfit) as caught:
                talk(server.url, one)
            assert caught.value.gate == gate
            assert said in caught.value.detail


@pytest.mark.parametrize(
    ("refused", "dialect"), [("response_format", 1), ("seed", 2), ("max_tokens", 2)]
)
def test_the_dialect_is_found_once(refused: str, dialect: int) -> None:
    def play(asked: Asked) -> str | Raw:
        return error(422, f"Unexpected fields: {refused}") if refused in asked.body else "fine"

    with serving(play) as server:
        assert talk(server.url, one).text == "fine"
        assert len(server.asked) == dialect + 2
        assert refused not in server.asked[-1].body


def test_requests_in_flight_are_bounded_and_all_used() -> None:
    def play(asked: Asked) -> str:
        time.sleep(0.02)
        return "fine"

    async def work(client: ChatClient) -> None:
        await asyncio.gather(*(client.ask(prompt(str(n))) for n in range(40)))

    with serving(play) as server:
        talk(server.url, work, concurrency=5)
        assert server.most == 5


def test_several_servers_share_the_load_and_stand_in_for_each_other() -> None:
    def play(asked: Asked) -> str:
        time.sleep(0.01)
        return "fine"

    async def work(client: ChatClient) -> list[Reply]:
        return await asyncio.gather(*(client.ask(prompt(str(n))) for n in range(40)))

    with serving(play) as a, serving(play) as b:
        talk([a.url, b.url], work, concurrency=4)
        shares = [len(a.tasks()), len(b.tasks())]
        assert sum(shares) == 40
        assert min(shares) >= 12
        b.player = lambda asked: "fine" if asked.task == "probe" else error(500)
        replies = talk([a.url, b.url], work, concurrency=4, backoff=0.05)
        assert {reply.text for reply in replies} == {"fine"}


def test_a_server_that_is_down_is_left_out_and_said() -> None:
    said: list[str] = []
    with serving(after_probe("fine")) as server:
        urls = ["http://127.0.0.1:9", server.url]
        assert talk(urls, one, said=said).text == "fine"
    assert len(said) == 1
    assert said[0].startswith("no server answers at http://127.0.0.1:9/v1")
    assert said[0].endswith("; going on without it")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/openai/v2", "https://h/openai/v2"),
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_addresses(given: str, expected: str) -> None:
    assert base_url(given) == expected


@pytest.mark.parametrize("given", ["ftp://h", "http://", "http://h:x", "h:1", "http://h/?k=1"])
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(UsageError, match="--llm"):
        base_url(given)


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError) as caught:
        base_url("http://me:hunter2@host/v1")
    assert "hunter2" not in caught.value.message
