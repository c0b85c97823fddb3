"""Every example in every `--help` is run, or where it needs a server, a GPU, the network or other
data is one that the program takes; no hint has a placeholder to fill in."""

from __future__ import annotations

import ast
import gzip
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.scripted_llm import serving
from typer.testing import CliRunner

from clara_cli.cli.app import COMMANDS, app

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = [
    (name, line.strip())
    for name, config in COMMANDS.items()
    for line in inspect.cleandoc(config.__doc__ or "").partition("Examples:")[2].splitlines()
    if line.strip()
]
RUN = {  # what stands on stdout; the order is that of help, and of what needs what
    'clara ask "Who commanded the Eastern Walrus 58?" --corpus sample.clara': "Casper Jarmond",
    'clara ask "When is the next release?" ./notes': "notes/plan.md",
    'clara ask --search "highest rank in sumo" --corpus sample.clara': "yokozuna",
    'clara ask "When is the next release?" ./notes --llm http://127.0.0.1:8000 --llm-model any': (
        "in May"
    ),
    "clara ask -f questions.txt --corpus sample.clara --json": '"answer": "Casper Jarmond"',
    "cat questions.txt | clara ask -f - --corpus sample.clara --answer-only": "Casper Jarmond\n",
    'clara ask "Who commanded the ship?" --corpus sample.clara '
    "--where 'title=\"Eastern Walrus 58\"'": "Eastern Walrus 58",
    "clara ask --task paraphrase --passage invented-030#0 --corpus sample.clara": "Walrus",
    "clara ask --corpus sample.clara": "Casper Jarmond",
    "clara compress recipes/sample/corpus.jsonl --ratio 16 --out sample.clara": "200 passages",
    "clara compress notes/ reports.jsonl.gz --out everything.clara": "2 documents",
    "cat corpus.jsonl | clara compress - --out piped.clara": "200 documents",
    "clara compress more.jsonl --into sample.clara --append": "sample.clara",
    "clara compress --into sample.clara --delete d17": "sample.clara",
    "clara index sample.clara": "recall@5",
    "clara index sample.clara --engine hnsw --queries questions.jsonl": "hnsw index",
    "clara index sample.clara --check": "every file matches",
    "clara index sample.clara --list": "invented-030",
    "clara index sample.clara --show invented-030": "Eastern Walrus 58",
    "clara bench --list-systems": "text+bm25",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    sample = folder / "recipes" / "sample"
    shutil.copy(sample / "corpus.jsonl", folder)
    shutil.copy(sample / "questions.jsonl", folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "plan.md").write_text("The next release is planned for May.\n")
    (folder / "questions.txt").write_text("Who commanded the Eastern Walrus 58?\n")
    (folder / "more.jsonl").write_text('{"id": "d17", "text": "The mill closed in 1950."}\n')
    with gzip.open(folder / "reports.jsonl.gz", "wt") as stream:
        stream.write('{"text": "Sales rose in March."}\n')
    return folder


def invoke(words: list[str], stdin: str | None = None) -> str:
    run = CliRunner().invoke(app, words, input=stdin)
    assert run.exit_code == 0, run.output
    return run.stdout


def piped(line: str) -> str:
    """stdout of a pipe, as a shell runs it."""
    command = line.replace("| clara ", f"| {shlex.quote(sys.executable)} -m clara_cli ")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_example_that_can_be_run_gives_what_it_says(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("CLARA_CACHE", str(workplace / "cache"))
    monkeypatch.setenv("CLARA_MODEL", "nano")
    shown = {line for _, line in EXAMPLES}
    assert set(RUN) <= shown, set(RUN) - shown
    first = [line for line in RUN if line.startswith("clara compress recipes")]
    with serving(lambda request: "in May") as server:
        for line in [*first, *(line for line in RUN if line not in first)]:
            if line.startswith("cat "):
                assert RUN[line] in piped(line), line
                continue
            _, _, command = line.partition("clara ")
            words = [server.url if "://" in word else word for word in shlex.split(command)]
            assert RUN[line] in invoke(words, "Who commanded the Eastern Walrus 58?"), line


@pytest.mark.parametrize("line", [line for _, line in EXAMPLES if line not in RUN])
def test_every_other_example_is_one_the_program_takes(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("clara_cli.cli.app._run", lambda *_, **__: None)
    monkeypatch.setattr("clara_cli.cli.app._ask", lambda *_, **__: None)
    monkeypatch.setattr("clara_cli.distributed.launch.run", lambda *_: None)
    command = re.fullmatch(r"(?:torchrun .* -m clara_cli|clara) (.*)", line)
    assert command, line
    invoke(shlex.split(command[1]))


def hints(file: Path) -> list[tuple[int, str]]:
    """The text of the last argument of every error raised in a file, and of names that end in HINT
    or are called `hint`."""
    texts: list[tuple[int, str]] = []

    def add(node: ast.AST) -> None:
        parts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
        texts.append((node.lineno, " ".join(p for p in parts if isinstance(p, str))))

    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error"):
            if len(node.args) > 1:
                add(node.args[-1])
        elif isinstance(node, ast.Assign):
            names = [getattr(target, "id", "") for target in node.targets]
            if any(name.lower().endswith("hint") for name in names):
                add(node.value)
    return texts


PLACEHOLDER = re.compile(
    r"\b(DIR|NAME|FILE|URL|DOCUMENTS|CHECKPOINT|QUESTIONS|CKPT|CORPUS|FOLDER|BACKBONE|HOST|ID)\b"
    r"|clara .*\"\.\.\.\""
)


def test_no_hint_has_a_placeholder():
    files = sorted((ROOT / "clara_cli").rglob("*.py"))
    texts = [(file, line, text) for file in files for line, text in hints(file)]
    assert len(texts) > 200
    odd = [f"{file}:{line}: {text}" for file, line, text in texts if PLACEHOLDER.search(text)]
    assert not odd, "\n".join(odd)
