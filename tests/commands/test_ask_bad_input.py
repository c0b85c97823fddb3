"""Corpora, questions and models that cannot be asked, and answers at a terminal."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys

import pytest
from helpers import tiny_world

from clara_cli.cli import ask as terminal_ask
from clara_cli.cli.show import answers
from clara_cli.commands import ask
from clara_cli.corpus.manifest import COUNTS
from clara_cli.corpus.store import Corpus
from clara_cli.corpus.writer import open_writer
from clara_cli.errors import ArtefactError

QUESTION = tiny_world.questions()[0]["question"]


def test_an_empty_corpus_is_refused(works, report, tmp_path):
    identity = Corpus.open(works.corpus).manifest.identity
    empty = tmp_path / "empty.clara"
    with open_writer(empty, identity) as writer:
        writer.finish(dict.fromkeys(COUNTS, 0), "0" * 64)
    with pytest.raises(ArtefactError, match=r"empty\.clara: no passages in it") as caught:
        list(ask.run(tiny_world.ask(QUESTION, empty), report))
    assert caught.value.code == 3 and caught.value.hint


def test_control_characters_of_a_question_do_not_reach_the_terminal(clara, capsys):
    answer = clara.ask("\x00Who\x1b[2J is\x07 mayor of Elmgate?", max_new_tokens=8)
    assert answer.sources
    answers.show(answer, titled=True)
    out = capsys.readouterr().out
    assert "Who" in out and not set("\x00\x1b\x07") & set(out)


def test_a_model_that_is_not_here_is_named_offline(works, report, tmp_path):
    corpus = tmp_path / "copy.clara"
    shutil.copytree(works.corpus, corpus)
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["checkpoint"]["model"] = "nobody/nothing-7b"
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="nobody/nothing-7b: not downloaded yet") as caught:
        list(ask.run(tiny_world.ask(QUESTION, corpus), report))
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_a_terminal_gets_the_answer_as_it_comes(clara, works, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    config = tiny_world.ask(QUESTION, works.corpus, top_k=1)
    shown = {}
    for name, stream in (("terminal", Terminal()), ("pipe", io.StringIO())):
        monkeypatch.setattr(sys, "stdout", stream)
        terminal_ask.run(config, as_json=False, quiet=True)
        shown[name] = stream.getvalue()
    answer = clara.ask(QUESTION, top_k=1, max_new_tokens=8).answer
    text = re.sub(r"\x1b(\[[?\d;]*[a-zA-Z]|\]8;.*?\x1b\\\\)", "", shown["terminal"])
    assert text.startswith(answers.clean(answer)) and "support unjudged" in text  # after a draft
    assert "\x1b" not in shown["pipe"] and "support unjudged" in shown["pipe"]
    assert f"{works.documents}:1" in shown["pipe"]
