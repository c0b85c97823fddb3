"""Ctrl-C and SIGTERM from the program's first line on: 130, one word, no traceback.

`CLARA_SIGNALS=100 pytest tests/test_interrupts.py -k first_seconds` is the long form.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clara_cli import interrupts

ROOT = Path(__file__).parent.parent
SIGNALS = int(os.environ.get("CLARA_SIGNALS", "4"))
START = """
import os, clara_cli
os.write(1, b"started\\n")
from clara_cli.__main__ import main
main()
"""


def begin(code: str, *words: str, ignored: bool = False) -> subprocess.Popen[str]:
    """A program whose signals are as a terminal leaves them, running once this returns."""

    def defaults() -> None:
        for number in interrupts.SIGNALS:
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=defaults,
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


def test_signals_in_the_first_seconds_are_clean(tmp_path: Path) -> None:
    """Whatever is being imported, loaded, read or written when they come."""
    documents = tmp_path / "d.jsonl"
    words = " ".join(f"word{n}" for n in range(2_000))
    documents.write_text("".join(json.dumps({"text": words}) + "\n" for _ in range(500)))
    rng, unclean = random.Random(16), []
    for number in range(SIGNALS):
        out = tmp_path / f"{number}.clara"
        options = ["--model", "nano", "--device", "cpu", "--quiet", "--out", str(out)]
        process = begin(START, "compress", str(documents), *options)
        kind, wait = interrupts.SIGNALS[number % 2], rng.random() * 2
        time.sleep(wait)
        process.send_signal(kind)
        _, err = process.communicate(timeout=60)
        if process.returncode != 130 or not err.startswith("interrupted") or "Traceback" in err:
            unclean.append(
                (signal.Signals(kind).name, round(wait, 3), process.returncode, err[-500:])
            )
    assert not unclean, f"{len(unclean)} of {SIGNALS}: {unclean}"


# What a program does when the signal comes, between two lines that say so.
MOMENTS = {
    "before the program is loaded": "import clara_cli.__main__; at()",
    "in an import": (
        "import clara_cli.__main__; from clara_cli import interrupts\n"
        "with interrupts.raised(): import moment"
    ),
    "while an object goes": (
        "import clara_cli.__main__; from clara_cli import interrupts\n"
        "class Going:\n    def __del__(self): at()\n"
        "with interrupts.raised():\n    going = Going(); del going; time.sleep(20)"
    ),
    "in a command": (
        "import clara_cli.__main__, types\n"
        "module = types.ModuleType('m'); module.run = lambda config, report: at()\n"
        "sys.modules['clara_cli.commands.compress'] = module\n"
        "sys.argv = ['clara', 'compress', 'x']; clara_cli.__main__.main()"
    ),
    "in a library that makes another error of it": (
        "import clara_cli.__main__, types\n"
        "def run(config, report):\n"
        "    try: at()\n    except BaseException as error: raise RuntimeError('lost') from error\n"
        "module = types.ModuleType('m'); module.run = run\n"
        "sys.modules['clara_cli.commands.compress'] = module\n"
        "sys.argv = ['clara', 'compress', 'x']; clara_cli.__main__.main()"
    ),
    "after all is done": "import clara_cli.__main__, atexit; atexit.register(at)",
}
AT = """
import os, sys, time
def at():
    os.write(1, b"started\\n")
    time.sleep(20)
"""


@pytest.mark.parametrize("number", interrupts.SIGNALS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_ends_with_130(moment: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "moment.py").write_text(f"{AT}at()")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{AT}{MOMENTS[moment]}"
    process = begin(code)
    time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_signals_that_were_ignored_stay_ignored() -> None:
    process = begin(
        f"{AT}import clara_cli.__main__\ntime.sleep = lambda s: None; at()", ignored=True
    )
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_a_python_program_keeps_its_own_signals() -> None:
    code = "import signal, clara_cli, clara_cli.cli.app; print(signal.getsignal(signal.SIGINT))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "default_int_handler" in done.stdout or "SIG_IGN" in done.stdout
