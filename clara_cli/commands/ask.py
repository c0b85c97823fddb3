"""`clara ask`: one question, a file of them answered in batches, or a session for the REPL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from clara_cli.commands.session import Session, refuse_unreadable
from clara_cli.config import AskConfig
from clara_cli.core.checkpoint import read_info, resolve
from clara_cli.corpus.cache import cached_corpus
from clara_cli.corpus.examples import read_questions
from clara_cli.engine import Clara
from clara_cli.errors import ArtefactError, DataError, UsageError
from clara_cli.records import Answer, Progress, Report
from clara_cli.search.where import parse

TOGETHER = 128  # questions of a file found, answered and judged together


def run(config: AskConfig, report: Report) -> Iterator[Answer]:
    """Answer `question`, or every question of `file` in order."""
    questions = [config.question] if config.question is not None else read_file(config.file)
    session = open_session(config, report)
    for first in range(0, len(questions), TOGETHER):
        yield from session.ask_all(questions[first : first + TOGETHER])
        if config.file is not None:
            done = min(first + TOGETHER, len(questions))
            report.progress(Progress("ask", done, len(questions), "questions"))


def open_session(config: AskConfig, report: Report) -> Session:
    """Find and open the corpora, their checkpoint and their indexes."""
    if config.where is not None:
        parse(config.where)  # so that a slip is told before a model is loaded
    folders = find_corpora(config.corpus)
    clara = Clara.open(folders, config.model, config.backbone, config.device, config.dtype)
    if "generator" not in clara.model.roles:
        message = f"{clara.loaded.path}: no generator in this checkpoint"
        raise ArtefactError(message, "use another --model")
    refuse_unreadable(clara, config, report)
    return Session(clara, config, report)


def cached(documents: tuple[str, ...], model: str, config: AskConfig) -> Path:
    """Where the user's cache keeps the corpus of these documents, made by this checkpoint."""
    path = resolve(model, config.ratio)
    if (path / "clara.json").is_file():
        maker = read_info(path).fingerprint
    else:  # a released checkpoint says nothing of itself: its files stand for it
        facts = [(file.name, file.stat()) for file in sorted(path.iterdir())]
        maker = repr([path, *((name, s.st_size, s.st_mtime_ns) for name, s in facts)])
    return cached_corpus(documents, [maker, config.backbone, config.dtype, str(config.ratio)])


def find_corpora(given: tuple[Path, ...]) -> list[Path]:
    """The corpora named, else $CLARA_CORPUS, else the only *.clara here."""
    if given:
        return list(dict.fromkeys(given))
    if named := os.environ.get("CLARA_CORPUS"):
        return [Path(named)]
    found = sorted(Path().glob("*.clara"))
    if len(found) == 1:
        return found
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
