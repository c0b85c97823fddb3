"""README is executed: its commands, its Python, its tree of files, and its links."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_llm import serving

from clara_cli.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```$", README, re.M | re.S)
    return [body for found, body in fenced if found == language]


def commands(block: str) -> list[list[str]]:
    """The commands of a shell block, continuation lines and && taken apart."""
    joined = block.replace("\\\n", " ")
    lines = [part.strip() for line in joined.splitlines() for part in line.split("&&")]
    return [shlex.split(line, comments=True) for line in lines if line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A fresh folder with what a clone has beside the package."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


def test_the_main_job_runs_as_written_and_ends_with_an_answer_and_its_sources(
    workplace, monkeypatch, capsys
):
    monkeypatch.chdir(workplace)
    ours = [words for words in commands(blocks("sh")[0]) if words[0] == "clara"]
    assert [words[1] for words in ours] == ["compress", "index", "ask"]
    for words in ours:
        with pytest.raises(SystemExit) as left:
            app(words[1:])
        assert left.value.code == 0, words
    said = capsys.readouterr().out
    assert len(re.findall(r"(invented|real)-\d{3}", said)) >= 5


def run(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        app(words)
    assert left.value.code == 0, words


def test_documents_are_asked_as_written_and_by_a_language_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CLARA_MODEL", "nano")
    lines = blocks("sh documents")[0].splitlines()
    asking = [line for line in lines if line.startswith("clara ")]
    for line in lines[: len(lines) - len(asking)]:
        subprocess.run(["sh", "-c", line], check=True)
    shown = []
    for line in asking[:2]:
        run(shlex.split(line)[1:])
        shown.append(capsys.readouterr().out)
    for text in shown:  # the best sentence with its file and line, and the answer marked
        assert "The library opens at nine on weekdays and at noon on Sundays." in text
        assert "notes/library.md:1" in text
    assert "supported" in shown[1].lower()
    monkeypatch.setattr(sys, "stdin", io.StringIO("When does the library open?"))
    run(shlex.split(asking[2])[1:])
    assert "notes/library.md:1" in capsys.readouterr().out
    (line,) = blocks("sh llm")[0].splitlines()
    with serving(lambda asked: "at noon") as server:
        run([server.url if "://" in word else word for word in shlex.split(line)[1:]])
        assert "opens at nine" in server.asked[0].text
    assert capsys.readouterr().out.startswith("at noon\nsupport unjudged")


def screen(text: str) -> str:
    """What is left on a terminal of 80 x 24, scrolled out of sight or not, after a text with its
    codes was written to it."""
    pyte = pytest.importorskip("pyte", reason="reads a terminal's codes: pip install pyte")
    shown = pyte.HistoryScreen(80, 24, history=1000)
    pyte.Stream(shown).feed(text)
    above = ["".join(line[x].data for x in range(80)) for line in shown.history.top]
    return "\n".join([*above, *shown.display])


def seen(text: str) -> list[str]:
    """The lines a person reads: without line-end spaces and empty ones, times masked."""
    masked = re.sub(r"\d+\.\d s(, [\d.,]+ passages/s)?", "TIME", text)
    return [line.rstrip() for line in masked.splitlines() if line.strip()]


def test_the_first_screen_is_what_one_sees(tmp_path):
    """In a terminal of 80 x 24, progress aside; whoever changes an output changes the README."""
    pexpect = pytest.importorskip("pexpect", reason="needs a terminal: pip install pexpect")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    for part in blocks("console")[0].split("$ clara ")[1:]:
        words, _, shown = part.partition("\n")
        said = pexpect.run(
            shlex.join(["sh", "-c", f"{sys.executable} -m clara_cli {words} 2>/dev/null"]),
            cwd=tmp_path,
            env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
            dimensions=(24, 80),
            timeout=120,
            encoding="utf-8",
        )
        assert seen(screen(said)) == seen(shown), words


def test_the_python_example_runs(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    assert (workplace / "sample.clara").is_dir(), "the main job comes first"
    (code,) = blocks("python")
    exec(compile(code, "README", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "words", [w for b in blocks("sh gpu") for w in commands(b)], ids=lambda w: " ".join(w[:3])
)
def test_a_command_for_a_gpu_is_one_the_program_takes(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("clara_cli.cli.app._run", lambda *_, **__: None)
    monkeypatch.setattr("clara_cli.cli.app._ask", lambda *_, **__: None)
    monkeypatch.setattr("clara_cli.distributed.launch.run", lambda *_: None)
    assert words[0] == "clara"
    with pytest.raises(SystemExit) as left:
        app(words[1:])
    assert left.value.code == 0


def test_the_tree_is_the_real_tree():
    (tree,) = [b for b in blocks("") if "clara_cli/" in b]
    named = set(re.findall(r"^  (\w+)(?:\.py|/)", tree, re.M))
    real = {p.stem for p in (ROOT / "clara_cli").iterdir() if not p.name.startswith("__")}
    assert named == real


def test_every_link_inside_the_repository_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_help_of_every_command_shows_its_examples():
    run = subprocess.run(
        [sys.executable, "-m", "clara_cli", "--help"], capture_output=True, text=True, check=True
    )
    for name in re.findall(r"^\| `clara (\w+)", README, re.M):
        assert name in run.stdout
