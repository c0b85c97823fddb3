"""The conversation: a prompt driven through a pipe, its commands, and what each line leads to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.answers import make_answer

from clara_cli.cli import repl
from clara_cli.errors import ArtefactError, DataError, UsageError
from clara_cli.interrupts import Terminated
from clara_cli.records import Answer, SearchResult


class FakeSession:
    """Answers with its `top_k`; a question may name an exception to raise instead."""

    def __init__(self) -> None:
        self.corpus_name = "sample.clara"
        self.top_k = 5
        self.ratio: int | None = None
        self.said: list[Answer] = []

    def read_at(self, ratio: int) -> None:
        if ratio not in (16, 32):
            raise UsageError(f"--ratio {ratio}: not served by this checkpoint", "it serves 16, 32")
        self.ratio = ratio

    def change_corpus(self, folders: list[Path]) -> None:
        if not all(folder.suffix == ".clara" for folder in folders):
            raise ArtefactError(f"{folders[0]}: no such corpus", "make one")
        self.corpus_name = ", ".join(map(str, folders))

    def explain(self) -> Answer:
        return make_answer(self.said[-1].question, answer="because")

    def search(self, question: str) -> SearchResult:
        return SearchResult(question, make_answer().sources, {})

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        faults: dict[str, BaseException] = {
            "clara": DataError("a bad question"),
            "memory": MemoryError(),
            "stop": KeyboardInterrupt(),
            "term": Terminated(),
            "bug": TypeError("a bug"),
        }
        if question in faults:
            raise faults[question]
        self.said.append(make_answer(question, answer=f"{question} k={self.top_k}"))
        return self.said[-1]


@pytest.fixture
def converse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., list[Answer]]]:
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as keys:

        def drive(typed: str, open_session: Callable[[], Any] = FakeSession) -> list[Answer]:
            shown: list[Answer] = []
            keys.send_text(typed)

            def reply(session: Any, question: str) -> None:
                shown.append(session.ask(question))

            repl.run(open_session, reply, shown.append, terminal=keys, screen=DummyOutput())
            return shown

        yield drive


CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.mark.parametrize("leave", ["/quit\n", "/exit\n", "exit\n", "quit\n", CTRL_D])
def test_questions_are_answered_until_the_user_leaves(
    leave: str, converse: Callable[..., list[Answer]]
) -> None:
    shown = converse("one\n\n  \ntwo\n" + leave)
    assert [answer.answer for answer in shown] == ["one k=5", "two k=5"]


def test_top_k_holds_from_then_on(
    converse: Callable[..., list[Answer]], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = converse("/top-k 2\none\n/top-k\n/top-k 0\n/top-k x\n/top-k 3\ntwo\n/quit\n")
    assert [answer.answer for answer in shown] == ["one k=2", "two k=3"]
    err = capsys.readouterr().err
    assert "top-k is 2" in err
    assert err.count("not a number from 1") == 2


def test_help_corpus_sources_and_unknown_commands(
    converse: Callable[..., list[Answer]], capsys: pytest.CaptureFixture[str]
) -> None:
    converse("/help\n/corpus\n/sources\none\n/sources\n/surces\n/quit\n")
    out, err = capsys.readouterr()
    assert "N: read N passages" in err and "Ctrl-R" in err
    assert "sample.clara" in err
    assert "there is no answer yet" in err
    assert "did you mean '/sources'" in err
    assert "document-2" in out  # sources are results


def test_errors_of_one_question_do_not_end_it(
    converse: Callable[..., list[Answer]], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = converse("clara\nmemory\nstop\none\n/quit\n")
    assert [answer.question for answer in shown] == ["one"]
    err = capsys.readouterr().err
    assert "error: a bad question" in err
    assert "error: out of memory" in err
    assert "stopped" in err


def test_ctrl_c_at_the_prompt_drops_the_line(converse: Callable[..., list[Answer]]) -> None:
    shown = converse(f"half a question{CTRL_C}one\n{CTRL_D}")
    assert [answer.question for answer in shown] == ["one"]


@pytest.mark.parametrize(("word", "kind"), [("term", Terminated), ("bug", TypeError)])
def test_termination_and_bugs_end_it(
    word: str, kind: type[BaseException], converse: Callable[..., list[Answer]]
) -> None:
    with pytest.raises(kind):
        converse(f"{word}\n/quit\n")


def refuse() -> Any:
    raise ArtefactError("no corpus here", "clara compress ...")


def refuse_later() -> Any:
    time.sleep(0.3)
    refuse()


@pytest.mark.parametrize("open_session", [refuse, refuse_later])
@pytest.mark.parametrize("typed", ["", "one\n", "one\ntwo\n"])
def test_a_failed_load_ends_it_even_at_the_prompt(
    open_session: Callable[[], Any], typed: str, converse: Callable[..., list[Answer]]
) -> None:
    with pytest.raises(ArtefactError, match="no corpus here"):
        converse(typed, open_session)


def test_the_first_question_waits_for_the_model(
    converse: Callable[..., list[Answer]], capsys: pytest.CaptureFixture[str]
) -> None:
    threads: list[threading.Thread] = []

    def slow() -> FakeSession:
        threads.append(threading.current_thread())
        time.sleep(0.4)
        return FakeSession()

    shown = converse("one\n/quit\n", slow)
    assert [answer.question for answer in shown] == ["one"]
    assert threads[0] is not threading.main_thread()
    assert "loading the model" in capsys.readouterr().err


def test_leaving_does_not_wait_for_the_model(converse: Callable[..., list[Answer]]) -> None:
    never = threading.Event()
    started = time.monotonic()
    converse("/quit\n", lambda: never.wait(5))
    assert time.monotonic() - started < 3
    never.set()


def test_questions_are_remembered_for_their_owner_only(
    converse: Callable[..., list[Answer]], tmp_path: Path
) -> None:
    converse("one\n/quit\n")
    history = tmp_path / "clara" / "history"
    assert "+one" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_a_disk_that_refuses_history_is_no_error(
    converse: Callable[..., list[Answer]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert len(converse("one\n/quit\n")) == 1


def test_history_is_in_the_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert repl.history_path() == Path("/home/someone/.local/state/clara/history")


def test_the_ratio_and_the_corpus_change_or_stay_as_they_were(
    converse: Callable[..., list[Answer]], capsys: pytest.CaptureFixture[str]
) -> None:
    ratios = ["/ratio", "/ratio 32", "/ratio 7", "/ratio x", "/ratio"]
    converse("\n".join([*ratios, "/corpus a.clara b.clara", "/corpus c", "/corpus", "/quit", ""]))
    err = capsys.readouterr().err
    assert "memory is read as it was stored" in err and err.count("ratio is 32") == 2
    assert "it serves 16, 32" in err and "/ratio x: not a number" in err
    assert err.count("a.clara, b.clara") == 2 and "c: no such corpus" in err


@pytest.mark.parametrize("typed", ["help", "?", "/help"])
def test_help_by_any_name(
    typed: str, converse: Callable[..., list[Answer]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert converse(f"{typed}\n/quit\n") == []
    assert "/search" in capsys.readouterr().err


def test_a_new_conversation_forgets_what_was_said(converse: Callable[..., list[Answer]]) -> None:
    session = FakeSession()
    converse("one\n/new\n/quit\n", lambda: session)
    assert session.said == []


def test_clear_clears_the_screen(
    converse: Callable[..., list[Answer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prompt_toolkit.renderer import Renderer

    cleared: list[str] = []
    monkeypatch.setattr(Renderer, "clear", lambda self: cleared.append("all"))
    assert [answer.question for answer in converse("/clear\none\n/quit\n")] == ["one"]
    assert "all" in cleared


def test_search_shows_passages_alone(
    converse: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = converse("/search\n/search the mayor\n/quit\n")
    assert [type(result) for result in shown] == [SearchResult]
    assert shown[0].question == "the mayor"
    assert "/search needs a question" in capsys.readouterr().err


def test_the_why_of_the_last_answer(converse: Callable[..., list[Answer]]) -> None:
    shown = converse("/explain\none\n/explain\n/quit\n")
    assert [answer.answer for answer in shown] == ["one k=5", "because"]


def test_a_conversation_is_saved_and_saved_again_but_over_no_other_file(
    converse: Callable[..., list[Answer]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("theirs.md").write_text("mine")
    typed = ["/save a.md", "one", "/save theirs.md", "/save", "/save a.md", "two", "/save 'a.md'"]
    converse("\n".join([*typed, "/save 'a", "/quit", ""]))
    err = capsys.readouterr().err
    assert Path("theirs.md").read_text() == "mine" and "theirs.md: it exists" in err
    assert "/save needs the name of a file" in err and "No closing quotation" in err
    saved = Path("a.md").read_text()
    assert saved.count("## ") == 2 and "one k=5" in saved and "document-2" in saved


def test_alt_enter_begins_a_new_line(converse: Callable[..., list[Answer]]) -> None:
    shown = converse("first\x1b\rsecond\n/quit\n")
    assert [answer.question for answer in shown] == ["first\nsecond"]


def test_tab_completes_a_command(
    converse: Callable[..., list[Answer]], capsys: pytest.CaptureFixture[str]
) -> None:
    converse("/top\t 3\n/quit\n")
    assert "top-k is 3" in capsys.readouterr().err


def test_the_status_line_says_what_is_asked_and_how(tmp_path: Path) -> None:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import DummyOutput

    prompt: PromptSession[str] = PromptSession(output=DummyOutput())
    go = threading.Event()
    session = FakeSession()

    def open_session() -> FakeSession:
        go.wait(5)
        return session

    made = repl.Repl(open_session, lambda s, q: None, lambda a: None, prompt)
    assert made.status() == "loading the model ..."
    go.set()
    made._loader.future.result(5)
    assert made.status() == "top-k 5  /help  sample.clara"
    session.ratio = 32
    assert "ratio 32" in made.status()
