"""`clara --help` against a bare typer app that prints the same help, started in turn.

python tests/benchmarks/startup.py --rounds 15
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clara_cli.cli.app import COMMANDS

HEAD = '''import typer
app = typer.Typer(name="clara", no_args_is_help=True, pretty_exceptions_enable=False)
@app.callback()
def top(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    """Compress documents into memory tokens, and answer questions from them, with sources."""
'''


def bare_app(folder: Path) -> Path:
    """A script with the same commands and first help lines, and nothing behind them."""
    lines = [HEAD]
    for name, config in COMMANDS.items():
        first = (config.__doc__ or "").strip().splitlines()[0]
        lines.append(f'@app.command("{name}", help={first!r})\ndef {name}() -> None: ...\n')
    script = folder / "bare.py"
    script.write_text("\n".join([*lines, "app()\n"]))
    return script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        script = bare_app(Path(folder))
        ways = {
            "bare": [sys.executable, str(script), "--help"],
            "clara": [sys.executable, "-c", "from clara_cli.cli.app import main; main()", "--help"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds + 1):
            for name, command in ways.items():
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    result = {f"{name}_ms": round(1000 * value) for name, value in medians.items()}
    result |= {"ratio": round(medians["clara"] / medians["bare"], 2), "rounds": rounds}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
