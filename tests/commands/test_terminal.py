"""`clara ask` in a real terminal of 80 x 24: every command, Ctrl-C in an answer, a resized window,
questions remembered across runs."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect", reason="needs a terminal: pip install pexpect")

PROMPT = "clara>"
WHERE = "\x1b[6n"  # asks a terminal for its cursor
SECONDS = 60
ESCAPES = re.compile(
    r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()=>][0-9A-B]?|\r"
)

CLARA = "from clara_cli.cli.app import main; main()"
SLOWLY = f"""
import time
from clara_cli.core.model import ClaraModel
generate = ClaraModel.generate
def slowly(*args, **options):
    print("answering", flush=True)
    time.sleep({SECONDS})
    return generate(*args, **options)
ClaraModel.generate = slowly
{CLARA}
"""


class Terminal:
    """A program in a terminal; it answers the one question a terminal is asked (where the cursor
    is)."""

    def __init__(self, words: list[str], folder: Path, program: str = CLARA) -> None:
        env = {**os.environ, "TERM": "xterm-256color", "XDG_STATE_HOME": str(folder / "state")}
        env |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        self.child = pexpect.spawn(
            sys.executable,
            ["-c", program, *words],
            cwd=folder,
            env=env,
            dimensions=(24, 80),
            timeout=SECONDS,
            encoding="utf-8",
        )

    def type(self, text: str) -> None:
        self.child.send(text)

    def until(self, text: str) -> str:
        """What is shown up to a text, without the terminal's own codes."""
        shown = ""
        while self.child.expect_exact([text, WHERE]):
            shown += self.child.before
            self.child.send("\x1b[1;1R")
        return ESCAPES.sub("", shown + self.child.before)

    def end(self) -> int:
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def words(works) -> Iterator[list[str]]:
    yield ["ask", "--corpus", str(works.corpus), "--model", str(works.e2e), "--device", "cpu"]


@pytest.mark.slow
def test_a_conversation_in_a_terminal(words, works, tmp_path):
    terminal = Terminal([*words, "--max-new-tokens", "8"], tmp_path)
    terminal.until(PROMPT)  # at once: the model loads while the user types
    terminal.type("Who is mayor of Elmgate?\r")
    assert "Elmgate" in terminal.until("1. ")
    terminal.until("top-k 5")  # the status line below the next prompt
    for typed, shown in {
        "/help": "Ctrl-R",
        "/sources": "The mayor of",
        "/explain": "why",
        "/top-k 2": "top-k is 2",
        "/ratio 16": "ratio is 16",
        "/ratio 3": "it serves",
        "/corpus": str(works.corpus)[:20],
        "/corpus nowhere.clara": "no such corpus",
        "/save talk.md": "answers saved to",
        "/sav": "did you mean '/save'",
    }.items():
        terminal.type(f"{typed}\r")
        terminal.until(shown)
    terminal.child.setwinsize(12, 40)
    terminal.type("Who is mayor of Quarrel?\r")
    terminal.until("2. ")
    terminal.until("ratio 16")
    terminal.type("/quit\r")
    assert terminal.end() == 0
    assert (tmp_path / "talk.md").read_text().startswith("## Who is mayor of Elmgate?")


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_only_and_ctrl_r_finds_it_in_the_next_run(words, tmp_path):
    terminal = Terminal(words, tmp_path, SLOWLY)
    terminal.until(PROMPT)
    terminal.type("Tell me of Pinewick\r")
    terminal.until("answering")
    terminal.type("\x03")
    terminal.until("stopped")
    terminal.until(PROMPT)
    terminal.type("/top-k 3\r")
    terminal.until("top-k is 3")
    terminal.until(PROMPT)
    terminal.type("\x04")
    assert terminal.end() == 0
    again = Terminal(words, tmp_path)
    again.until(PROMPT)
    again.type("\x12k 3\r\r")
    again.until("top-k is 3")
    again.type("\x04")
    assert again.end() == 0


@pytest.mark.slow
def test_two_conversations_share_one_history(words, tmp_path):
    both = [Terminal(words, tmp_path) for _ in range(2)]
    for number, terminal in enumerate(both):
        terminal.until(PROMPT)
        terminal.type(f"/top-k {number + 1}\r")
        terminal.until(f"top-k is {number + 1}")
    for terminal in both:
        terminal.type("\x04")
        assert terminal.end() == 0
    history = (tmp_path / "state" / "clara" / "history").read_text()
    assert "+/top-k 1" in history and "+/top-k 2" in history


ANSWERING_A_WHILE = SLOWLY.replace(f"time.sleep({SECONDS})", "time.sleep(2)")


@pytest.mark.slow
def test_what_is_typed_during_an_answer_is_asked_next(words, works, tmp_path):
    terminal = Terminal([*words, "--top-k", "1", "--log", "log"], tmp_path, ANSWERING_A_WHILE)
    terminal.until(PROMPT)
    terminal.type("Who is mayor of Elmgate?\r")
    terminal.until("answering")
    terminal.type("Who is mayor of Quarrel?\r/top-k 3\rWho is ma")
    terminal.until("answering")
    terminal.until("top-k is 3")
    terminal.until("Who is ma")
    terminal.type("yor of Pinewick?\r")
    terminal.until("answering")
    terminal.until("3. ")
    terminal.until(PROMPT)
    terminal.type("\x04")
    assert terminal.end() == 0
    asked = [json.loads(line)["question"] for line in (tmp_path / "log").read_text().splitlines()]
    towns = ("Elmgate", "Quarrel", "Pinewick")
    assert asked == [f"Who is mayor of {town}?" for town in towns]
