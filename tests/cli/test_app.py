"""The command line: flags generated from configs, results, exit codes, errors as users see them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from clara_cli import config as configs
from clara_cli import errors, records
from clara_cli.cli import app as application
from clara_cli.config.fields import flag_name, read_recipe, with_recipe

ROOT = Path(__file__).parents[2]

GENERAL = {
    "--device",
    "--dtype",
    "--help",
    "--json",
    "--quiet",
    "--seed",
    "--show-config",
    "--traceback",
}
HOLDING = {"--device-map", "--load-in"}
LEARN = {
    *HOLDING,
    "--backbone",
    "--init",
    "--list-settings",
    "--nproc",
    "--out",
    "--recipe",
    "--set",
    "--steps",
    "--dry-run",
    "--validation",
}
FLAGS = {  # frozen: a new flag is a decision, made here as well
    "synth": {
        *{"DOCUMENTS", "--concurrency", "--kinds", "--limit", "--llm", "--llm-model", "--out"},
        *{"--list-settings", "--recipe", "--rounds", "--set"},
    },
    "pretrain": {"PAIRS", *LEARN},
    "train": {"QUESTIONS", "--corpus", "--pool", "--stage", *LEARN},
    "compress": {
        *HOLDING,
        *{"INPUTS", "--backbone", "--batch-tokens", "--dry-run", "--model", "--no-text"},
        *{"--no-title", "--out", "--ratio", "--shard-size", "--skip-bad", "--split"},
        *{"--store-dtype", "--text", "--title", "--into", "--nproc", "--overlap", "--text-field"},
        *{"--file-seconds", "--id-field", "--max-record-mib", "--strict-fields", "--title-field"},
        *{"--encoding", "--exclude", "--ignored", "--include"},
        *{"--append", "--delete", "--delete-from", "--prune", "--vacuum", "--watch", "--yes"},
    },
    "index": {
        *HOLDING,
        *{"CORPUS", "--backbone", "--candidates", "--check", "--engine", "--model"},
        *{"--list", "--queries", "--show", "--top-k", "--uri"},
    },
    "bench": {
        *{"--backbone", "--compare", "--control", "--corpus", "--dataset", "--limit"},
        *{"--max-new-tokens", "--model", "--nproc", "--out", "--published", "--random-weights"},
        *{"--answer-timeout", "--break-even", "--list-systems", "--load-in"},
        *{"--ratio", "--setting", "--shape", "--speed", "--sup-model", "--system", "--top-k"},
    },
    "ask": {
        *HOLDING,
        "--dry-run",
        *{"QUESTION", "DOCUMENTS", "--backbone", "--candidates", "--corpus", "--explain", "--file"},
        *{"-f", "--first-stage", "--max-new-tokens", "--model", "--ratio", "--read"},
        *{"--passage", "--require-support", "--task", "--text-tokens", "--top-k", "--where"},
        *{
            "--abstain",
            "--clear-cache",
            *{"--forget", "--list"},
            "--answer-only",
            "--llm",
            "--log",
            "--serve",
            "--llm-model",
            *{"--file-seconds", "--id-field", "--max-record-mib", "--strict-fields"},
            *{"--encoding", "--exclude", "--ignored", "--include", "--title-field"},
            "--search",
            "--skip-bad",
            "--text-field",
        },
    },
}

COMPRESSED = records.CompressResult(
    corpus="my docs.clara",
    documents=3,
    passages=5,
    empty=0,
    skipped=1,
    left_out={".pdf": 3, ".docx": 1},
    truncated=0,
    memory_tokens=16,
    ratio=16,
    effective_ratio=9.5,
    bytes=2_500_000,
    seconds=2.0,
    passages_per_second=2.5,
)


def make_answer(question: str = "Who?", supported: bool | None = True) -> records.Answer:
    passage = records.Passage("d1:0", "d1", "A title", "The text.", 0, 9, 3)
    hit = records.Hit(1, 0, 0.75, passage)
    seconds = {"query": 0.1, "search": 0.2, "generate": 0.3}
    return records.Answer(question, "Ann.", 0.9, supported, (hit,), 16, 40, 200, seconds)


def invoke(*args: str, **extra: Any) -> Result:
    return CliRunner().invoke(application.app, list(args), **extra)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Replace a command's module; returns the list of configs its run was given."""

    def replace(name: str, outcome: Any) -> list[Any]:
        seen: list[Any] = []

        def run(config: Any, report: records.Report) -> Any:
            seen.append(config)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome(config, report) if callable(outcome) else outcome

        module = types.ModuleType(f"clara_cli.commands.{name}")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"clara_cli.commands.{name}", module)
        return seen

    return replace


def flags_of(name: str) -> dict[str, Any]:
    """Every flag and argument of a command, with its parameter."""
    command = get_command(application.app).commands[name]  # type: ignore[attr-defined]
    context = command.make_context(name, [], resilient_parsing=True)
    return {
        flag if flag.startswith("-") else flag.upper(): parameter
        for parameter in command.get_params(context)
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }


# --- flags and help ---


def test_commands_are_those_frozen_here() -> None:
    assert set(application.COMMANDS) == set(FLAGS)


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_those_frozen_here(name: str) -> None:
    assert set(flags_of(name)) == FLAGS[name] | GENERAL


@pytest.mark.parametrize("name", [name for name in FLAGS if "--list-settings" in FLAGS[name]])
def test_settings_are_listed_as_a_recipe_of_their_defaults(name: str, tmp_path: Path) -> None:
    """With nothing else given; what is printed is read back as the defaults."""
    said = invoke(name, "--list-settings")
    assert said.exit_code == 0, said.output
    config = application.COMMANDS[name]
    settings = [f for f in dataclasses.fields(config) if f.metadata["kind"] == "setting"]
    assert settings and all(f.metadata["doc"] in said.stdout for f in settings)
    recipe = tmp_path / "r.toml"
    recipe.write_text(said.stdout, encoding="utf-8")
    values = read_recipe(recipe)
    assert list(values) == [f.name for f in settings]
    needed = {f.name: Path("x") if f.name == "out" else ("x",) for f in dataclasses.fields(config)
              if f.default is dataclasses.MISSING}  # fmt: skip
    plain = dataclasses.replace(config(**needed), recipe=recipe)
    assert with_recipe(plain) == plain
    listed = json.loads(invoke(name, "--list-settings", "--json").stdout)["settings"]
    assert [one["name"] for one in listed] == list(values)


def squeeze(text: str) -> str:
    return re.sub(r"[\s│]+", "", text)


@pytest.mark.parametrize("name", FLAGS)
def test_help_names_every_flag_with_its_doc_and_the_examples(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    result = invoke(name, "--help")
    assert result.exit_code == 0
    for flag in FLAGS[name] | GENERAL:
        assert flag in result.stdout
    page = squeeze(result.stdout)
    for f in dataclasses.fields(application.COMMANDS[name]):
        if f.metadata["kind"] != "setting":
            assert "[" not in f.metadata["doc"]  # help would read it as markup
            assert squeeze(f.metadata["doc"]) in page, f.name


@pytest.mark.parametrize("name", ["compress", "index", "ask", "bench"])
def test_help_keeps_one_example_a_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    examples = re.findall(r"^ +(clara \w+ .*)$", application.COMMANDS[name].__doc__ or "", re.M)
    lines = [line.strip() for line in invoke(name, "--help").stdout.splitlines()]
    assert examples
    assert set(examples) <= set(lines)


def test_help_has_each_panel_once_machine_last() -> None:
    panels = re.findall(r"╭─ (\w+) ─", invoke("compress", "--help").stdout)
    assert panels == ["Arguments", "Input", "Model", "Method", "Output", "Machine"]


def test_settings_are_no_flags() -> None:
    assert "--learning-rate" not in flags_of("pretrain")


def spelled(f: dataclasses.Field[Any], hint: Any) -> tuple[list[str], Any] | None:
    """Words that set a field to something other than its default, and the value they mean."""
    flag = f.metadata["flag"].split("/")[0] if f.metadata["flag"] else None
    flag = flag or "--" + f.name.replace("_", "-")
    choices = [hint, *typing.get_args(hint)]
    literal = next((c for c in choices if typing.get_origin(c) is typing.Literal), None)
    alone = ("recipe", "set", "file", "compare", "clear_cache", "list", "show", "forget")
    alone += ("append", "delete", "delete_from", "prune", "vacuum", "watch", "yes")
    if f.metadata["kind"] == "argument" or f.name in alone:
        return None
    if literal is not None:
        value = typing.get_args(literal)[-1]
        return [flag, value], value
    if hint is bool:
        return [flag.replace("--", "--no-") if f.default else flag], not f.default
    if int in choices or float in choices:
        return [flag, "7"], 7
    if Path in choices:
        several = typing.get_origin(hint) is tuple
        value = Path("some/where")
        return [flag, "some/where"], (value,) if several else value
    return [flag, "word"], ("word",) if typing.get_origin(hint) is tuple else "word"


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_reaches_its_field(
    name: str, fake: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # stay in this process
    monkeypatch.setattr(application.launch, "must_launch", lambda nproc: False)
    result = iter(()) if name == "ask" else COMPRESSED
    seen = fake(name, result)
    config = application.COMMANDS[name]
    hints = typing.get_type_hints(config)
    fields = {f.name: f for f in dataclasses.fields(config) if f.metadata["kind"] == "option"}
    made = {n: s for n, f in fields.items() if (s := spelled(f, hints[n])) is not None}
    words = [word for parts, _ in made.values() for word in parts]
    takes = any(f.metadata["kind"] == "argument" for f in dataclasses.fields(config))
    shown = invoke(name, *(["first"] if takes else []), *words)
    assert seen, shown.output
    for field, (_, value) in made.items():
        assert getattr(seen[0], field) == value, field


@pytest.mark.parametrize(
    ("name", "words", "field", "value"),
    [
        ("compress", ["a", "b", "c"], "inputs", ("a", "b", "c")),
        ("compress", ["-"], "inputs", ("-",)),
        ("index", ["x.clara"], "corpus", Path("x.clara")),
        ("pretrain", ["p", "q", "--out", "o"], "pairs", ("p", "q")),
        ("pretrain", ["p", "--out", "o"], "recipe", None),
        ("train", ["--init", "i", "--out", "o", "--steps", "0"], "questions", ()),
        ("train", ["q", "--init", "i", "--out", "o"], "stage", None),
        ("ask", ["-f", "q.txt"], "file", Path("q.txt")),
        ("ask", ["--file", "q.txt"], "file", Path("q.txt")),
        ("compress", ["a", "--title"], "title", True),
        ("ask", ["q"], "top_k", None),
        ("bench", ["--compare", "a", "b"], "compare", ("a", "b")),
    ],
)
def test_words_and_fields(
    name: str, words: list[str], field: str, value: Any, fake: Callable[..., list[Any]]
) -> None:
    seen = fake(name, iter(()) if name == "ask" else COMPRESSED)
    result = invoke(name, *words)
    assert seen, result.output
    assert getattr(seen[0], field) == value


def test_defaults_are_the_configs_own(fake: Callable[..., list[Any]]) -> None:
    seen = fake("compress", COMPRESSED)
    invoke("compress", "a")
    assert seen == [configs.CompressConfig(inputs=("a",))]


def test_explicit_flags_outrank_the_recipe_and_set_outranks_all(
    tmp_path: Path, fake: Callable[..., list[Any]]
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('steps = 3\nseed = 9\nbackbone = "recipe"\nlearning_rate = 0.5\n')
    seen = fake("pretrain", COMPRESSED)
    words = ["p", "--out", "o", "--recipe", str(recipe), "--seed", "0", "--backbone", "mine"]
    invoke("pretrain", *words, "--set", "learning_rate=0.25", "--set", "batch_size=4")
    config = seen[0]
    assert (config.steps, config.seed, config.backbone) == (3, 0, "mine")
    assert (config.learning_rate, config.batch_size) == (0.25, 4)


def test_no_arguments_is_help_and_usage() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "Commands" in result.stdout


def test_version() -> None:
    import clara_cli

    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"clara {clara_cli.__version__}\n")


# --- usage errors ---


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["compres"], "no such command: compres", "did you mean 'compress'?"),
        (["compress", "x", "--rato", "3"], "no such option: --rato", "'--ratio'"),
        (["compress", "x", "--device", "cudda"], "--device is 'cudda'", "'cuda'"),
        (["compress", "x", "--ratio", "a"], "--ratio is 'a'", "expected <int>"),
        (["compress", "x", "--ratio", "0"], "--ratio is 0, the least is 1", ""),
        (["compress"], "no documents", "name files or folders"),
        (["train", "q", "--out", "o"], "missing option '--init'", "clara train --help"),
        (["--json", "ask"], "no such option: --json", "clara ask --json"),
        (["ask", "--file"], "option '--file' requires an argument", "--help"),
        (["ask", "q", "-f", "x"], "a question and --file", "give one of them"),
        (["ask", "q", "-f", "x", "--dry-run"], "a question and --file", "give one of them"),
        (
            ["ask", "./tests", "--corpus", "c", "--task", "qa", "--passage", "p"],
            *("documents and --corpus", "give one of them"),
        ),
        (["ask", " "], "the question is empty", "clara ask"),
        (["ask", "Who?", "--model", ""], "--model is empty", "is a variable unset?"),
        (["train", "q", "--init", "nano", "--out="], "--out is empty", "is a variable unset?"),
        (["ask", "--json", ""], "the question is empty", "clara ask"),
        (["pretrain", "p", "--out", "o", "--set", "steep=3"], "unknown setting 'steep'", "steps"),
    ],
)
def test_usage_errors(words: list[str], message: str, hint: str) -> None:
    result = invoke(*words)
    first, *rest = result.stderr.splitlines()
    assert result.exit_code == 2
    assert first.startswith("error: ")
    assert message in first
    assert hint in "".join(rest)
    assert result.stdout == ""


# --- the boundary ---


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ClaraError, 1),
        (errors.UsageError, 2),
        (errors.ArtefactError, 3),
        (errors.DataError, 4),
        (errors.NotSupportedError, 5),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_every_kind_of_error_has_its_code(
    kind: type[errors.ClaraError], code: int, flags: list[str], fake: Callable[..., list[Any]]
) -> None:
    fake("compress", kind("it [/red] broke at x.jsonl:3", "mend it"))
    result = invoke("compress", "x", *flags)
    assert result.exit_code == code
    assert result.stderr == "error: it [/red] broke at x.jsonl:3\nhint: mend it\n"
    assert result.stdout == ""


def test_long_messages_stay_on_one_line_off_a_terminal(fake: Callable[..., list[Any]]) -> None:
    fake("compress", errors.DataError("word " * 60))
    assert len(invoke("compress", "x").stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "stderr"),
    [
        (KeyboardInterrupt(), "interrupted\n"),
        (
            errors.Interrupted("interrupted at step 4", "run it again"),
            "interrupted at step 4\nhint: run it again\n",
        ),
    ],
)
def test_interrupts(error: BaseException, stderr: str, fake: Callable[..., list[Any]]) -> None:
    fake("compress", error)
    result = invoke("compress", "x")
    assert (result.exit_code, result.stderr, result.stdout) == (130, stderr, "")


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ZeroDivisionError("by\nzero"), "error: ZeroDivisionError: by\nhint: this is a fault"),
        (AssertionError(), "error: AssertionError\nhint: "),
        (MemoryError(), "error: out of memory\nhint: lower --batch-tokens or take --device cpu"),
        (OutOfMemoryError("CUDA"), "error: out of memory\nhint: lower --batch-tokens"),
        (FileNotFoundError(2, "No such file", "a/b"), "error: a/b: No such file\nhint: check"),
        (OSError(28, "No space left"), "error: No space left\nhint: free some disk"),
        (OSError("odd"), "error: OSError: odd\nhint: "),
    ],
)
def test_other_exceptions(
    error: Exception, expected: str, fake: Callable[..., list[Any]], monkeypatch: Any
) -> None:
    monkeypatch.delenv("CLARA_TRACEBACK", raising=False)
    fake("compress", error)
    result = invoke("compress", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith(expected)
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", application.COMMANDS)
def test_the_advice_on_memory_names_what_the_command_has(name: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(application.COMMANDS[name])}
    hint = errors.memory_hint(name)
    flags = set(re.findall(r"--[a-z-]+", hint))
    assert flags and flags <= {flag_name(f) for f in fields.values()}
    assert set(re.findall(r"--set (\w+)=", hint)) <= fields.keys()


@pytest.mark.parametrize(("flags", "env"), [(["--traceback"], {}), ([], {"CLARA_TRACEBACK": "1"})])
def test_traceback_on_request(
    flags: list[str], env: dict[str, str], fake: Callable[..., list[Any]]
) -> None:
    fake("compress", ZeroDivisionError("by zero"))
    result = invoke("compress", "x", *flags, env=env)
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "error: ZeroDivisionError: by zero" in result.stderr


SCRIPT = """
import os, signal, sys, time, types
module = types.ModuleType("clara_cli.commands.compress")
def run(config, report):
    {body}
module.run = run
sys.modules[module.__name__] = module
from clara_cli.cli.app import main
sys.argv = ["clara", "compress", "x"]
main()
"""


def start(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_with_130(number: int) -> None:
    process = start("sys.stderr.write('ready\\n'); sys.stderr.flush(); time.sleep(30)")
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


@pytest.mark.parametrize("count", [10, 1_000_000])  # within the buffer, beyond it
def test_a_reader_that_leaves_ends_the_program_quietly(count: int) -> None:
    process = start(f"time.sleep(0.3); sys.stdout.write('x' * {count}); sys.stdout.flush()")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=20) == 141


# --- results ---


def test_json_is_the_last_line_of_stdout(fake: Callable[..., list[Any]]) -> None:
    def run(config: Any, report: records.Report) -> Any:
        report.note("a note")
        report.progress(records.Progress("compress", 5, 5, "passages"))
        return COMPRESSED

    fake("compress", run)
    result = invoke("compress", "x", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == dataclasses.asdict(COMPRESSED)
    assert result.stdout.count("\n") == 1
    assert result.stderr == "a note\ncompress: 100% 5/5 passages\n"


def test_summary_says_what_was_made_and_what_comes_next(fake: Callable[..., list[Any]]) -> None:
    fake("compress", COMPRESSED)
    result = invoke("compress", "x")
    assert "my docs.clara: 3 documents, 5 passages, 1 skipped" in result.stdout
    assert "left out: 3 .pdf, 1 .docx" in result.stdout.splitlines()
    assert result.stdout.endswith("next: clara index 'my docs.clara'\n")
    assert "--dry-run" in invoke("compress", "x", "--dry-run").stdout


def test_quiet_keeps_results_and_warnings(fake: Callable[..., list[Any]]) -> None:
    def run(config: Any, report: records.Report) -> Any:
        report.note("a note")
        report.warn("beware")
        report.warn("beware")
        report.progress(records.Progress("compress", 5, 5, "passages"))
        return COMPRESSED

    fake("compress", run)
    result = invoke("compress", "x", "--quiet")
    assert result.stderr == "warning: beware\n"
    assert "my docs.clara" in result.stdout


def test_ask_one_question(fake: Callable[..., list[Any]]) -> None:
    seen = fake("ask", lambda config, report: iter([make_answer()]))
    result = invoke("ask", "Who?")
    assert result.exit_code == 0
    assert seen[0].question == "Who?"
    assert "Ann." in result.stdout
    assert "A title" in result.stdout


def test_ask_json_is_the_contract(fake: Callable[..., list[Any]]) -> None:
    fake("ask", lambda config, report: iter([make_answer()]))
    shown = json.loads(invoke("ask", "Who?", "--json").stdout)
    assert shown == {
        "question": "Who?",
        "answer": "Ann.",
        "support": 0.9,
        "supported": True,
        "sources": [
            {
                "rank": 1,
                "passage_id": "d1:0",
                "document_id": "d1",
                "title": "A title",
                "text": "The text.",
                "start": 0,
                "end": 9,
                "score": 0.75,
            }
        ],
        "memory_tokens": 16,
        "prompt_tokens": 40,
        "text_tokens_replaced": 200,
        "seconds": {"query": 0.1, "search": 0.2, "generate": 0.3},
    }


def test_ask_file_gives_one_json_line_a_question(fake: Callable[..., list[Any]]) -> None:
    fake("ask", lambda config, report: iter([make_answer("a?"), make_answer("b?")]))
    lines = invoke("ask", "-f", "q.txt", "--json").stdout.splitlines()
    assert [json.loads(line)["question"] for line in lines] == ["a?", "b?"]


def test_progress_is_said_before_the_answer_it_led_to(fake: Callable[..., list[Any]]) -> None:
    def run(config: Any, report: records.Report) -> Any:
        for question in ("a?", "b?"):
            report.progress(records.Progress("ask", 1, None, question))
            yield make_answer(question)

    fake("ask", run)
    lines = invoke("ask", "-f", "q.txt", "--json").output.splitlines()
    assert [line[:17] for line in lines] == [
        *("ask: 1 a?", '{"question": "a?"', "ask: 1 b?", '{"question": "b?"')
    ]


def test_ask_reads_a_piped_question(fake: Callable[..., list[Any]]) -> None:
    seen = fake("ask", lambda config, report: iter([make_answer()]))
    assert invoke("ask", input="  Who is Ann?\n").exit_code == 0
    assert seen[0].question == "Who is Ann?"


@pytest.mark.parametrize("piped", ["", " \n"])
def test_ask_with_empty_stdin_is_a_usage_error(piped: str) -> None:
    result = invoke("ask", input=piped)
    assert result.exit_code == 2
    assert "stdin is empty" in result.stderr


def test_ask_with_bytes_that_are_no_text() -> None:
    result = invoke("ask", input=b"\xff\xfe\xfa")
    assert result.exit_code == 4
    assert "stdin is not utf-8" in result.stderr


@pytest.mark.parametrize(
    ("verdict", "said", "hint"),
    [
        (False, "the answer is not supported by the sources\n", "--top-k"),
        (None, "the support of the answer could not be judged\n", "support.json"),
    ],
)
def test_require_support_fails_after_the_answer(
    verdict: bool | None, said: str, hint: str, fake: Callable[..., list[Any]]
) -> None:
    fake("ask", lambda config, report: iter([make_answer(supported=verdict)]))
    result = invoke("ask", "Who?", "--require-support", "--json")
    assert result.exit_code == 5
    assert json.loads(result.stdout)["supported"] is verdict
    assert result.stderr.startswith(f"error: {said}") and hint in result.stderr
    assert invoke("ask", "Who?", "--json").exit_code == 0


def test_require_support_of_a_file_answers_all_first(fake: Callable[..., list[Any]]) -> None:
    answers = [make_answer(supported=False), make_answer(), make_answer(supported=None)]
    fake("ask", lambda config, report: iter(answers))
    result = invoke("ask", "-f", "x", "--require-support", "--json")
    assert result.exit_code == 5
    assert len(result.stdout.splitlines()) == 3
    assert (
        "1 of 3 answers are not supported by the sources, "
        "the support of 1 of 3 answers could not be judged"
    ) in result.stderr


def test_ask_on_a_terminal_opens_the_repl(
    monkeypatch: pytest.MonkeyPatch, fake: Callable[..., list[Any]]
) -> None:
    from clara_cli.cli import repl

    fake("ask", None)
    opened: list[Any] = []

    class Stdin:
        def isatty(self) -> bool:
            return True

    class Answering:
        def ask(self, question: str) -> records.Answer:
            opened.append(question)
            return make_answer()

    def run(
        open_session: Callable[[], Any],
        reply: Callable[[Any, str], None],
        show: Callable[[records.Answer], None],
    ) -> None:
        opened.append(open_session())
        reply(Answering(), "Who?")
        show(make_answer())

    module = sys.modules["clara_cli.commands.ask"]
    monkeypatch.setattr(module, "open_session", lambda c, r: c.top_k, raising=False)
    monkeypatch.setattr(repl, "run", run)
    monkeypatch.setattr(sys, "stdin", Stdin())
    with pytest.raises(SystemExit) as left:
        get_command(application.app).main(["ask", "--top-k", "3"])
    assert left.value.code == 0
    assert opened == [3, "Who?"]


def test_a_stdout_without_the_letters_still_works() -> None:
    answer = "from clara_cli.cli.show.json_line import *; import sys; write_json({'a': 'é\\ud800'})"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", answer], cwd=ROOT, env=env, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == {"a": "é\ud800"}
