"""clara.toml, the environment, and --show-config."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clara_cli.cli.app import app
from clara_cli.config import option_files


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(option_files, "users_file", lambda: tmp_path / "user" / "clara.toml")
    (tmp_path / "user").mkdir()
    return tmp_path


def shown(*words: str, **env: str) -> dict[str, str]:
    """Every option of `ask` that is not its default, with its source."""
    result = CliRunner().invoke(app, ["ask", *words, "--show-config"], env=env)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if not line.endswith("# default")]
    return dict(line.split(" = ", 1) for line in lines)


def test_without_files_everything_is_a_default() -> None:
    assert shown() == {}


def test_the_command_line_beats_the_environment_the_folder_and_the_user(folder: Path) -> None:
    users = 'device = "cpu"\n[ask]\ntop-k = 2\nmax-new-tokens = 9\nllm = "http://127.0.0.1:1"\n'
    (folder / "user" / "clara.toml").write_text(users)
    (folder / "clara.toml").write_text('[ask]\ntop_k = 3\ncorpus = ["a.clara", "b.clara"]\n')
    assert shown() == {
        "top-k": "3  # clara.toml",
        "max-new-tokens": "9  # clara.toml",
        "corpus": '["a.clara", "b.clara"]  # clara.toml',
        "device": '"cpu"  # clara.toml',
        "llm": '"http://127.0.0.1:1"  # clara.toml',
    }
    assert shown(CLARA_ASK_TOP_K="4")["top-k"] == "4  # environment"
    assert shown("--top-k", "5", CLARA_ASK_TOP_K="4")["top-k"] == "5  # command line"


@pytest.mark.parametrize("corpus", ['["https://x.org/a.clara"]', '["a.clara", "s3:/b/c"]'])
def test_a_folders_file_names_no_url_to_ask(corpus: str, folder: Path) -> None:
    (folder / "clara.toml").write_text(f"[ask]\ncorpus = {corpus}\n")
    result = CliRunner().invoke(app, ["ask", "q", "--show-config"])
    assert result.exit_code == 2 and "a URL is not taken from a folder's file" in result.stderr
    (folder / "clara.toml").rename(folder / "user" / "clara.toml")
    assert "corpus" in shown()


@pytest.mark.parametrize("whose", ["clara.toml", "user/clara.toml"])
def test_a_pipe_in_its_place_is_refused_and_not_waited_for(whose, folder, no_waiting) -> None:
    os.mkfifo(folder / whose)
    result = CliRunner().invoke(app, ["ask", "q", "--show-config"])
    assert result.exit_code == 2 and "clara.toml: a named pipe, not a file" in result.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"[ask]\ntop-k = {'[' * 20_000}", "clara.toml: nested too deeply"),
        (f"[ask]\ntop-k = {'1' * 5_000}\n", "clara.toml: Exceeds the limit"),
        ("[ask]\ntop-q = 3\n", "did you mean 'top_k'"),
        ("nonsense = 3\n", "no option 'nonsense'"),
        ("[ask\n", "lines look like"),
        ("ask = 3\n", "a table: [ask]"),
        ('[ask]\nllm = "http://evil.example"\n', "not taken from a folder's file"),
        ('[ask]\nserve = "0.0.0.0:80"\n', "not taken from a folder's file"),
        ('[ask]\nlog = "x"\n', "not taken from a folder's file"),
        ("[ask]\ntop-k = 0\n", "the least is 1"),
        ('[ask]\ntop-k = "many"\n', "--top-k"),
    ],
)
def test_a_slip_in_a_file_is_named(text: str, says: str, folder: Path) -> None:
    (folder / "clara.toml").write_text(text)
    result = CliRunner().invoke(app, ["ask", "q", "--show-config"])
    assert result.exit_code == 2 and says in result.stderr, result.stderr
    assert CliRunner().invoke(app, ["--version"]).exit_code == 0
