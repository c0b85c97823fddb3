"""`clara ask`: one question, a file of them, or a session for the REPL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from clara_cli.config import AskConfig
from clara_cli.corpus.examples import read_questions
from clara_cli.engine import Clara
from clara_cli.errors import ArtefactError, DataError, UsageError
from clara_cli.records import Answer, Report
from clara_cli.retrieval import FirstStage


def run(config: AskConfig, report: Report) -> Iterator[Answer]:
    """Answer `question`, or every question of `file` in order."""
    questions = [config.question] if config.question is not None else read_file(config.file)
    session = open_session(config, report)
    for question in questions:
        if question is not None:
            yield session.ask(question)


class Session:
    """A corpus held open; `top_k` may change between questions."""

    def __init__(self, clara: Clara, config: AskConfig) -> None:
        self.clara, self.config, self.top_k = clara, config, config.top_k

    @property
    def corpus_name(self) -> str:
        """The corpus as the user knows it."""
        return str(self.clara.corpus.folder)

    def ask(self, question: str) -> Answer:
        """Answer one question."""
        if not question.strip():
            raise UsageError("the question is empty", 'ask something: clara ask "Who ...?"')
        chosen = self.config.first_stage
        stage: FirstStage | None = None if chosen == "auto" else chosen
        return self.clara.ask(
            question,
            self.top_k,
            stage,
            self.config.candidates,
            self.config.max_new_tokens,
            self.config.ratio,
        )


def open_session(config: AskConfig, report: Report) -> Session:
    """Find and open the corpus, its checkpoint and its index."""
    folder = find_corpus(config.corpus)
    clara = Clara.open(folder, config.model, config.backbone, config.device, config.dtype)
    if "generator" not in clara.model.roles:
        message = f"{clara.loaded.path}: no generator in this checkpoint"
        raise ArtefactError(message, "use another --model")
    if not (folder / "index").exists():
        report.note(f"{folder} has no index: every passage is scanned (clara index {folder})")
    if clara.query_role == "compressor" and config.first_stage in ("latent", "hybrid"):
        report.note("this checkpoint has no query reasoner: questions are read by the compressor")
    clara.slots(config.ratio)
    return Session(clara, config)


def find_corpus(given: Path | None) -> Path:
    """The corpus named, else $CLARA_CORPUS, else the only *.clara here."""
    if given is not None:
        return given
    if named := os.environ.get("CLARA_CORPUS"):
        return Path(named)
    found = sorted(Path().glob("*.clara"))
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} of them here ({', '.join(map(str, found[:4]))})" if found else "none here"
    raise UsageError(f"which corpus? {what}", "name it with --corpus DIR")


def read_file(file: Path | None) -> list[str]:
    """Questions of a text file (one a line) or a JSON-lines file (`question`)."""
    if file is None:
        raise UsageError("no question", "give one, or -f FILE")
    if ".jsonl" in file.suffixes:
        return [q.question for q in read_questions([str(file)], need_answers=False)]
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", "give -f a file of questions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8: {error}", "save the file as UTF-8") from error
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise DataError(f"{file}: no questions in it", "one question a line")
    return questions
