"""A scripted OpenAI-compatible server on loopback, and the language models it plays.

The documents are about invented towns, four facts each, so that a player can be competent, sloppy
or lying by rule, and every count is known beforehand.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TASKS = {
    "Task: write simple questions": "simple",
    "Task: write questions about the passage": "complex",
    "Task: below are a passage and questions": "more",
    "Task: a question and its answer": "repair",
    "Task: check an answer": "verify",
    "Task: say the passage below in other words. A first": "rephrase",
    "Task: say the passage below in other words.\n": "paraphrase",
    "Task: check a paraphrase": "same",
    "Task: below are several numbered": "linked",
    "Task: answer a question": "answer",
    "Reply with {": "probe",
}
NAMES = ["Arvelow", "Brimhold", "Carnow", "Dellmark", "Eskport", "Farholm", "Gallin", "Hovemere"]
MAYORS = ["Ilse", "Jonas", "Karin", "Lasse", "Mirja", "Nelo", "Orsa", "Petra"]
RIVERS = ["Tovel", "Ural", "Vessa", "Wendel", "Yarrow", "Zimba", "Ambel", "Bovar"]
CRAFTS = ["violins", "clocks", "kites", "ropes", "bells", "lamps", "boats", "pipes"]
CLOSING = "JSON only."


@dataclass(frozen=True)
class Town:
    """One invented town and its facts."""

    number: int

    @property
    def name(self) -> str:
        return f"{NAMES[self.number % 8]}{'abcdefghijklmnop'[self.number // 8 % 16]}"

    @property
    def mayor(self) -> str:
        return f"{MAYORS[self.number % 8]} {RIVERS[(self.number + 3) % 8]}sen"

    @property
    def year(self) -> str:
        return str(1200 + self.number)

    @property
    def text(self) -> str:
        n = self.number
        return (
            f"The mayor of {self.name} is {self.mayor}. {self.name} dates from {self.year}. "
            f"{self.name} stands beside the river {RIVERS[n % 8]}. "
            f"Its {CRAFTS[n % 8]} made {self.name} famous."
        )

    @property
    def facts(self) -> list[tuple[str, str]]:
        n, name = self.number, self.name
        return [
            (f"Who is the mayor of {name}?", self.mayor),
            (f"From which year does {name} date?", self.year),
            (f"Which river does {name} stand beside?", RIVERS[n % 8]),
            (f"What made {name} famous?", f"its {CRAFTS[n % 8]}"),
        ]

    @property
    def linked(self) -> tuple[str, str]:
        question = f"What is the town famous for whose mayor is {self.mayor}?"
        return question, f"its {CRAFTS[self.number % 8]}"

    @property
    def paraphrase(self) -> str:
        n = self.number
        return (
            f"Founded in {self.year}, {self.name} lies on the {RIVERS[n % 8]}. People know the "
            f"place for its {CRAFTS[n % 8]}; {self.mayor} heads the town as mayor."
        )


def write_towns(path: Path, numbers: range) -> Path:
    """A corpus of towns, one a line."""
    lines = [json.dumps({"id": f"town-{n}", "text": Town(n).text}) for n in numbers]
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass(frozen=True)
class Asked:
    """One request as the player sees it."""

    task: str
    text: str
    body: dict[str, Any]
    passage: str
    closing: str

    @property
    def town(self) -> Town | None:
        """The town the passage is about."""
        match = re.search(r"dates from (\d+)", self.passage)
        return Town(int(match[1]) - 1200) if match else None

    @property
    def quoted(self) -> list[dict[str, Any]]:
        """The JSON objects with a question behind the passage."""
        found = []
        for line in self.closing.splitlines():
            start = line.find('{"question"')
            if start >= 0:
                found.append(json.JSONDecoder().raw_decode(line, start)[0])
        return found


@dataclass
class Raw:
    """A response that is not simply what the model says."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    truncate: bool = False  # send less than announced, then close


Player = Callable[[Asked], "str | Raw"]


def pairs_json(pairs: list[tuple[str, str]]) -> str:
    """A reply with pairs."""
    listed = [{"question": q, "answer": a} for q, a in pairs]
    return json.dumps({"pairs": listed})


def read_request(body: dict[str, Any]) -> Asked:
    """What a request asks for."""
    text = body["messages"][0]["content"]
    task = next((name for start, name in TASKS.items() if text.startswith(start)), "?")
    block = re.search(r"<(passage-[0-9a-f]{12})>\n(.*)\n</\1>\n\n", text, re.DOTALL)
    passage, closing = (block[2], text[block.end() :]) if block else ("", text)
    return Asked(task, text, body, passage, closing)


def competent(asked: Asked) -> str:
    """A model that makes no mistake: three facts at first, the fourth when asked for more."""
    town, task = asked.town, asked.task
    if task == "probe":
        return "ready"
    if task in ("linked", "answer"):
        return pooled(asked)
    assert town is not None, asked.text[:200]
    known = {entry["question"] for entry in asked.quoted}
    if task == "simple":
        return pairs_json(town.facts[:3])
    if task == "complex":
        return pairs_json([town.linked])
    if task == "more":
        simple = "one fact each" in asked.text
        listed = town.facts if simple else [town.linked]
        return pairs_json([fact for fact in listed if fact[0] not in known])
    if task == "repair":
        return pairs_json([right(town, asked.quoted[0]["question"])])
    if task == "verify":
        pair = asked.quoted[0]
        true = (pair["question"], pair["answer"]) in [*town.facts, town.linked]
        return json.dumps({"reason": "compared", "correct": true})
    if task == "same":
        true = json.dumps(town.paraphrase) in asked.closing
        return json.dumps({"reason": "compared", "same": true})
    return json.dumps({"paraphrase": town.paraphrase})


def right(town: Town, question: str) -> tuple[str, str]:
    """The fact a spoilt question was about."""
    facts = [*town.facts, town.linked]
    return max(facts, key=lambda f: len(set(f[0].split()) & set(question.split())))


def pooled(asked: Asked) -> str:
    """Questions over two towns, and answers looked up."""
    towns = [Town(int(year) - 1200) for year in re.findall(r"dates from (\d+)", asked.passage)]
    if asked.task == "answer":
        match = re.search(r"Question: (\".*\")", asked.closing)
        question = json.loads(match[1]) if match else ""
        answers = [a for t in towns for q, a in t.facts if q == question]
        return json.dumps({"answer": answers[0] if answers else "not answered"})
    first, second = towns[:2]
    question = f"Which town is older, {first.name} or {second.name}?"
    older = min(first, second, key=lambda t: t.number)
    pair = {"question": question, "answer": older.name, "passages": [1, 2]}
    return json.dumps({"pairs": [pair]})


class Listener(ThreadingHTTPServer):
    """Takes a burst of connections, as real servers do."""

    request_queue_size = 256
    daemon_threads = True


class Server:
    """The server: who plays, what was asked, in order."""

    def __init__(self, player: Player) -> None:
        self.player = player
        self.asked: list[Asked] = []
        self.headers: list[dict[str, str]] = []
        self.busy = self.most = 0
        self._lock = threading.Lock()
        self.http = Listener(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def tasks(self) -> list[str]:
        """What was asked for, probes left out."""
        return [asked.task for asked in self.asked if asked.task != "probe"]

    def respond(self, body: dict[str, Any], headers: dict[str, str]) -> Raw:
        """The response to one request."""
        asked = read_request(body)
        with self._lock:
            self.asked.append(asked)
            self.headers.append(headers)
            self.busy += 1
            self.most = max(self.most, self.busy)
        try:
            said = self.player(asked)
        finally:
            with self._lock:
                self.busy -= 1
        if isinstance(said, Raw):
            return said
        return streamed(said) if body.get("stream") else completion(said)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet a response: no waiting for acknowledgements

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = json.loads(self.rfile.read(length))
                raw = server.respond(body, {k.lower(): v for k, v in self.headers.items()})
                if raw.delay:
                    time.sleep(raw.delay)
                try:
                    self.send_response(raw.status)
                    for name, value in raw.headers.items():
                        self.send_header(name, value)
                    announced = len(raw.body) + (10 if raw.truncate else 0)
                    self.send_header("content-length", str(announced))
                    self.end_headers()
                    self.wfile.write(raw.body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                self.close_connection = self.close_connection or raw.truncate

            def log_message(self, *args: object) -> None:
                return

        return Handler


def completion(text: str | None, reason: str = "stop") -> Raw:
    """A chat completion saying a text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    record = {"choices": [choice | {"finish_reason": reason}], "usage": usage}
    return Raw(200, json.dumps(record).encode(), {"content-type": "application/json"})


def streamed(text: str) -> Raw:
    """The same as server-sent events."""
    events = []
    for start in range(0, len(text), 7):
        delta = {"choices": [{"delta": {"content": text[start : start + 7]}}]}
        events.append(f"data: {json.dumps(delta)}\n\n")
    last = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}
    events += [f"data: {json.dumps(record)}\n\n" for record in (last, usage)]
    body = "".join([*events, "data: [DONE]\n\n"]).encode()
    return Raw(200, body, {"content-type": "text/event-stream"})


@contextmanager
def serving(player: Player) -> Iterator[Server]:
    """A server for the length of a test."""
    server = Server(player)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join(5)
