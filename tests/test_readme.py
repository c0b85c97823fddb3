"""README and the pages of recipes/ are executed: their commands, their Python, the tree, the files
that they name, and their links."""

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
from helpers.scripted_llm import serving

from clara_cli.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "recipes").glob("*/README.md"))
EXECUTED_ELSEWHERE = {"sample": "tests/recipes/test_sample.py"}


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of a page whose fence says `language`."""
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S)
    return [body for tag, body in fenced if tag == language]


def commands(block: str) -> list[list[str]]:
    """The commands of a shell block, continuation lines and && taken apart."""
    joined = block.replace("\\\n", " ")
    lines = [part.strip() for line in joined.splitlines() for part in line.split("&&")]
    return [shlex.split(line, comments=True) for line in lines if line]


def clara_commands(block: str) -> list[list[str]]:
    """What follows `clara`, or `-m clara_cli` behind a launcher, in each command of a block."""
    lines = re.split(r"\n|&&", block.replace("\\\n", " "))
    found = [re.match(r"\s*(?:clara|torchrun .* -m clara_cli) (.*)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


def run(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        app(words)
    assert left.value.code == 0, words


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
    ours = clara_commands(blocks("sh")[0])
    assert [words[0] for words in ours] == ["compress", "index", "ask"]
    for words in ours:
        run(words)
    assert len(re.findall(r"(invented|real)-\d{3}", capsys.readouterr().out)) >= 5


def test_documents_are_asked_as_written_and_by_a_language_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CLARA_MODEL", "nano")
    make_notes, *asking, by_server = blocks("sh documents")[0].splitlines()
    subprocess.run(["sh", "-c", make_notes], check=True)
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
    with serving(lambda asked: "at noon") as server:
        run([server.url if "://" in word else word for word in shlex.split(by_server)[1:]])
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


def visible_lines(text: str) -> list[str]:
    """The lines a person reads: without line-end spaces and empty ones, times masked."""
    masked = re.sub(r"\d+\.\d s(, [\d.,]+ passages/s)?", "TIME", text)
    return [line.rstrip() for line in masked.splitlines() if line.strip()]


def test_the_first_screen_is_what_one_sees(tmp_path):
    """In a terminal of 80 x 24, progress aside; whoever changes an output changes the README."""
    pexpect = pytest.importorskip("pexpect", reason="needs a terminal: pip install pexpect")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    for part in blocks("console")[0].split("$ clara ")[1:]:
        words, _, shown = part.partition("\n")
        output = pexpect.run(
            shlex.join(["sh", "-c", f"{sys.executable} -m clara_cli {words} 2>/dev/null"]),
            cwd=tmp_path,
            env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
            dimensions=(24, 80),
            timeout=120,
            encoding="utf-8",
        )
        assert visible_lines(screen(output)) == visible_lines(shown), words


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if p.parent.name not in EXECUTED_ELSEWHERE and blocks("sh", p.read_text())],
    ids=lambda page: page.parent.name,
)
def test_the_commands_and_the_python_of_a_page_run_in_their_order(
    page, tmp_path, monkeypatch, capsys
):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    for block in blocks("sh", text):
        assert len(clara_commands(block)) == len(commands(block)), (
            "other programs have a bare fence"
        )
        for words in clara_commands(block):
            run(words)
            assert capsys.readouterr().out.strip(), words
    for code in blocks("python", text):
        exec(compile(code, str(page), "exec"), {})  # noqa: S102
        assert capsys.readouterr().out.strip()


def commands_to_parse() -> list[tuple[str, list[str]]]:
    """The commands that no test can run: they need a GPU, weights, a server or other data."""
    parsed = []
    for page in [ROOT / "README.md", *PAGES]:
        text = page.read_text(encoding="utf-8")
        for language in ("sh gpu", ""):
            for block in blocks(language, text):
                parsed += [(page.parent.name, words) for words in clara_commands(block)]
    return parsed


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=f"{page}: {' '.join(words[:3])}")
        for page, words in commands_to_parse()
    ],
)
def test_a_command_for_another_machine_is_one_the_program_takes(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("clara_cli.cli.app._run", lambda *_, **__: None)
    monkeypatch.setattr("clara_cli.cli.app._ask", lambda *_, **__: None)
    monkeypatch.setattr("clara_cli.distributed.launch.run", lambda *_: None)
    run(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_script_and_every_data_file_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w./-])(?:recipes|tests|clara_cli)/[\w./-]*\w", text):
        assert (ROOT / name).exists(), name


def test_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150
    assert max(len(line) for line in README.splitlines() if not line.startswith("|")) <= 120


def test_every_page_is_linked_from_readme():
    for page in PAGES:
        assert f"](recipes/{page.parent.name}/README.md" in README, page


def test_the_tree_is_the_real_tree():
    (tree,) = [
        block.partition("clara_cli/\n")[2] for block in blocks("") if "clara_cli/\n" in block
    ]
    folders = set(re.findall(r"^  (\w+)/", tree, re.M))
    files = set(re.findall(r"(\w+)\.py", tree))
    package = ROOT / "clara_cli"
    held = [p.relative_to(package).parts for p in package.rglob("*") if p.is_file()]
    assert folders == {parts[0] for parts in held if len(parts) > 1 and "__pycache__" not in parts}
    assert files == {p.stem for p in package.glob("*.py") if not p.name.startswith("__")}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: p.parent.name)
def test_every_link_inside_the_repository_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, _, anchor in (t.partition("#") for t in re.findall(r"\]\(([^)]+)\)", text)):
        if target.startswith(("http:", "https:")):
            continue
        leads_to = (page.parent / target) if target else page
        assert leads_to.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", leads_to.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{target}#{anchor}"


TASKS = (
    *("add a stage", "add a document format", "change the index key", "add a bench system"),
    *("change a prompt", "add a metric", "add an engine", "change the shard format"),
    *("add a REPL command", "change how support is judged"),
)


def test_where_to_change_what_names_ten_tasks_and_files_that_exist():
    rows = README.partition("## Where to change what")[2]
    files = dict(re.findall(r"\| ((?:add|change) [\w ]+) \| `([^`]+)`", rows))
    assert set(files) == set(TASKS)
    for file in files.values():
        assert (ROOT / file).is_file(), file


def test_readme_keeps_eight_words_and_ten_lines_of_trust():
    glossary = README.partition("| word | is |")[2].partition("## ")[0]
    words = re.findall(r"\| ([a-zA-Z ]{3,14}) \| [a-z]", glossary)
    assert len(set(words)) == 8, words
    trust = README.partition("## What clara trusts")[2].partition("## ")[0]
    assert re.findall(r"^(\d+)\. ", trust, re.M) == [str(n) for n in range(1, 11)]


def test_help_shows_every_command_of_the_table():
    shown = subprocess.run(
        [sys.executable, "-m", "clara_cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    named = re.findall(r"^\| `clara (\w+)", README, re.M)
    assert len(set(named)) >= 7
    for name in named:
        assert name in shown
