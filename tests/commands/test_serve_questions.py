"""ask --serve in a process of its own, asked by the `openai` client and by bare HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from helpers import tiny_world

from clara_cli.cli import serving
from clara_cli.cli.show import json_line
from clara_cli.commands import ask
from clara_cli.errors import UsageError
from clara_cli.records import Answer

for needed in ("starlette", "uvicorn", "openai"):
    pytest.importorskip(needed, reason="pip install 'clara-cli[serve]' openai")
import openai  # noqa: E402

QUESTION = "Who is mayor of Elmgate?"
TOKEN = "a-secret-token"
CLARA = "from clara_cli.cli.app import main; main()"


@contextmanager
def served(works, *more: str, port: int = 0, **env: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server's address and process."""
    words = ["ask", "--corpus", str(works.corpus), "--device", "cpu", "--dtype", "float32"]
    words += ["--max-new-tokens", "8", "--serve", str(port), *more]
    process = subprocess.Popen(
        [sys.executable, "-c", CLARA, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **env},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = []
    try:
        for line in process.stderr:
            seen.append(line)
            if found := re.search(r"http://\S+", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                wait_for(found[0].removesuffix("/v1"))
                yield found[0], process
                return
        pytest.fail("".join(seen))
    finally:
        process.kill()
        process.wait(20)


def wait_for(url: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            assert send(f"{url}/health") == (200, {"status": "ok"})
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    pytest.fail("no server came up")


def send(url: str, body: object = None, **headers: str) -> tuple[int, dict]:
    """Status and JSON of a request; a body that is no bytes is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    kinds = {
        "content-type": "application/json",
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, kinds), timeout=60) as done:
            return done.status, json.load(done)
    except urllib.error.HTTPError as error:
        raw = error.read()
        return error.code, json.loads(raw) if raw.startswith(b"{") else {"raw": raw.decode()}


@pytest.fixture(scope="module")
def url(works) -> Iterator[str]:
    with served(works) as (address, _):
        yield address


@pytest.fixture(scope="module")
def expected(works) -> dict[str, dict]:
    """What the command line answers, by question."""
    from clara_cli.records import NullReport

    session = ask.open_session(tiny_world.ask(None, works.corpus), NullReport())
    questions = [f"Who is mayor of {town}?" for town, _ in tiny_world.FACTS]
    alone = {question: session.answer_after(question, []) for question in questions}
    return {q: json_line.answer_json(answer) for q, answer in alone.items()}


def chat(url: str, question: str, **more):
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="clara", messages=messages, **more)


@pytest.mark.slow
def test_the_openai_client_gets_the_command_lines_answer_with_its_sources(url, expected):
    made = chat(url, QUESTION)
    assert made.choices[0].message.content == expected[QUESTION]["answer"]
    assert made.choices[0].finish_reason == "stop"
    assert made.model_extra["sources"] == expected[QUESTION]["sources"]
    assert made.model_extra["supported"] == expected[QUESTION]["supported"]


@pytest.mark.slow
def test_a_streamed_answer_is_the_same_in_pieces(url, expected):
    chunks = list(chat(url, QUESTION, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == expected[QUESTION]["answer"]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["sources"] == expected[QUESTION]["sources"]


@pytest.mark.slow
def test_64_questions_at_once_are_answered_as_one_at_a_time(url, expected):
    questions = [list(expected)[i % len(expected)] for i in range(64)]
    with ThreadPoolExecutor(64) as pool:
        made = list(pool.map(lambda question: chat(url, question), questions))
    for question, one in zip(questions, made, strict=True):
        assert one.choices[0].message.content == expected[question]["answer"]
        assert one.model_extra["sources"] == expected[question]["sources"]


@pytest.mark.slow
def test_models_and_search(works, url, report):
    client = openai.OpenAI(base_url=url, api_key="none")
    assert [model.id for model in client.models.list()] == ["clara"]
    root = url.removesuffix("/v1")
    status, record = send(f"{root}/search", {"question": QUESTION, "top_k": 2})
    (alone,) = ask.run(tiny_world.ask(QUESTION, works.corpus, search=True, top_k=2), report)
    assert status == 200 and record["sources"] == json_line.search_json(alone)["sources"]


@pytest.mark.slow
def test_a_follow_up_is_searched_with_what_was_said(url):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is mayor of Quarrel?"},
        {"role": "assistant", "content": "Max Orme"},
        {"role": "user", "content": [{"type": "text", "text": "And its baker?"}]},
    ]
    _, record = send(f"{url}/chat/completions", {"messages": turns})
    assert "Quarrel" in record["sources"][0]["text"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        ([], 400, "messages is missing"),
        ({"messages": []}, 400, "no question"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "no question"),
        ({"messages": [{"role": "user"}]}, 400, "needs a role and a text"),
        ({"model": "gpt-4", "messages": [{"role": "user", "content": "x"}]}, 404, "no model"),
        ({"n": 2, "messages": [{"role": "user", "content": "x"}]}, 400, "n is not 1"),
        ({"max_tokens": "a", "messages": [{"role": "user", "content": "x"}]}, 400, "max_tokens"),
        ({"messages": [{"role": "user", "content": "W" * 65}]}, 400, "more than 64 tokens"),
        ({"messages": [{"role": "user", "content": "W" * 2**18}]}, 413, "larger than"),
    ],
)
def test_a_request_that_is_none_is_refused_and_the_server_goes_on(url, body, status, says):
    got, record = send(f"{url}/chat/completions", body)
    assert got == status and says in record["error"]["message"]
    assert send(f"{url.removesuffix('/v1')}/health")[0] == 200


@pytest.mark.slow
def test_other_sites_pages_cannot_ask(url):
    body = {"messages": [{"role": "user", "content": QUESTION}]}
    assert send(f"{url}/chat/completions", body, host="evil.example")[0] == 400
    assert send(f"{url}/chat/completions", body, content_type="text/plain")[0] == 415


@pytest.mark.slow
def test_a_token_is_asked_for_where_one_is_set(works):
    with served(works, CLARA_SERVE_TOKEN=TOKEN) as (url, _):
        body = {"messages": [{"role": "user", "content": QUESTION}]}
        for header in ("", f"Bearer {TOKEN}x", f"Basic {TOKEN}"):
            assert send(f"{url}/chat/completions", body, authorization=header)[0] == 401
        right = send(f"{url}/chat/completions", body, authorization=f"Bearer {TOKEN}")
        assert right[0] == 200 and right[1]["sources"]


@pytest.mark.slow
def test_a_killed_server_is_started_again_at_its_port_and_answers_the_same(works, expected):
    with served(works) as (url, process):
        port = int(url.rsplit(":", 1)[1].removesuffix("/v1"))
        first = chat(url, QUESTION)
        process.kill()
        process.wait(20)
    with served(works, port=port) as (url, process):
        again = chat(url, QUESTION)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (130, -signal.SIGTERM)
    assert first.choices[0].message.content == again.choices[0].message.content


# --- without a process ---


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("8000", "127.0.0.1", 8000, True),
        ("localhost:1", "localhost", 1, True),
        ("[::1]:80", "::1", 80, True),
        ("0.0.0.0:8000", "0.0.0.0", 8000, False),
        ("example.org:8000", "example.org", 8000, False),
    ],
)
def test_an_address(text, host, port, loopback, monkeypatch):
    address = serving.Address.parse(text)
    assert (address.host, address.port, address.loopback) == (host, port, loopback)
    monkeypatch.delenv("CLARA_SERVE_TOKEN", raising=False)
    if loopback:
        assert serving.read_token(address) is None
        return
    with pytest.raises(UsageError, match="no token guards it") as caught:
        serving.read_token(address)
    assert "CLARA_SERVE_TOKEN" in caught.value.hint
    monkeypatch.setenv("CLARA_SERVE_TOKEN", TOKEN)
    assert serving.read_token(address) == TOKEN


@pytest.mark.parametrize("text", ["", "x", "host:", "host:99999", "host:-1"])
def test_no_address(text):
    with pytest.raises(UsageError, match="no port"):
        serving.Address.parse(text)


def test_only_so_many_questions_wait(monkeypatch):
    monkeypatch.setattr(serving, "MOST_WAITING", 3)
    go, desk = threading.Event(), serving.RequestQueue(None, 1)
    waiting = [desk.take(lambda: go.wait(10)) for _ in range(3)]
    with pytest.raises(serving.Refusal, match="too many questions wait") as caught:
        desk.take(lambda: None)
    assert caught.value.status == 503
    go.set()
    assert all(future.result(10) for future in waiting)
    assert desk.take(lambda: 7).result(10) == 7
    desk.close()


def test_an_answer_that_takes_too_long_is_given_up(monkeypatch):
    import asyncio

    monkeypatch.setattr(serving, "LONGEST_WAIT", 0.01)
    go, desk = threading.Event(), serving.RequestQueue(None, 1)
    future = desk.take(lambda: go.wait(10))
    with pytest.raises(serving.Refusal) as caught:
        asyncio.run(serving.in_time(future))
    assert caught.value.status == 504
    go.set()
    desk.close()


def test_an_abstained_answer_is_said_as_such():
    answer = Answer("q", "x", 0.1, False, (), 0, 0, 0, {}, abstained=True)
    made = serving.completion(answer)
    assert made["choices"][0]["message"]["content"] == "not in the documents"
    assert made["supported"] is False and made["sources"] == []


@pytest.mark.parametrize("idle", [{"question": "q"}, {"answer_only": True}, {"explain": True}])
def test_an_option_that_would_do_nothing_is_refused(works, report, idle):
    config = tiny_world.ask(None, works.corpus, serve="8000")
    with pytest.raises(UsageError, match="--serve and .* do not go together"):
        ask.open_session(type(config)(**{**vars(config), **idle}), report)
