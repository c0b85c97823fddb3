"""What starting the program loads: nothing heavy before a command runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "peft", "datasets", "numpy", "accelerate", "safetensors"}
LATE = HEAVY | {"prompt_toolkit", "hnswlib"}

SCRIPT = """
import sys
sys.argv = ["clara", *sys.argv[1:]]
from clara_cli.cli.app import main
try:
    main()
except SystemExit:
    pass
sys.stderr.write(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded(code: str, *words: str) -> set[str]:
    """The top-level modules in memory after running a script with these words."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "words", [["--help"], ["compress", "--help"], ["train", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    names = loaded(SCRIPT, *words)
    assert "clara_cli" in names
    assert not names & LATE


def test_a_usage_error_loads_nothing_heavy() -> None:
    assert not loaded(SCRIPT, "compress", "x", "--rato", "3") & LATE


def test_the_app_itself_does_not_load_rich() -> None:
    code = "import sys, clara_cli.app; sys.stderr.write(' '.join(sys.modules))"
    assert not loaded(code) & {"rich", "rich.console", "clara_cli.cli.show.terminal", *LATE}


def test_the_package_loads_nothing_of_its_own() -> None:
    code = "import sys, clara_cli; sys.stderr.write(' '.join(sys.modules))"
    assert {name for name in loaded(code) if name.startswith("clara_cli.")} == set()


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clara_cli", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("clara ")


def test_version_is_a_version_and_unknown_names_fail() -> None:
    import clara_cli

    assert clara_cli.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="nothing"):
        _ = clara_cli.nothing


ASK = """
import sys
sys.argv = ["clara", "ask", "Who found it?", "--corpus", sys.argv[1], "--model", "nano", "--quiet"]
from clara_cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.stderr.write(" ".join(sorted(sys.modules)))
"""


def test_asking_loads_neither_transformers_nor_peft(tmp_path: Path, monkeypatch) -> None:
    """But for the first time, when transformers opens the model and tries whether that may be."""
    from clara_cli.app import main

    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["clara"])
    documents, corpus = tmp_path / "documents.jsonl", str(tmp_path / "out.clara")
    documents.write_text('{"id": "a", "text": "Ann Lee found it."}\n')
    first = ["compress", str(documents), "--model", "nano", "--out", corpus, "--quiet"]
    monkeypatch.setattr(sys, "argv", ["clara", *first])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    names = loaded(ASK, corpus)
    heavy = {"transformers", "peft", "accelerate", "sympy", "torch._dynamo"}
    assert "torch" in names
    assert sorted(names & heavy) == []
