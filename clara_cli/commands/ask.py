"""`clara ask`: one question, a file of them in batches, or a session for the REPL; answered, or
only searched for (`--search`)."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from clara_cli.answering.engine import AskOptions, Clara, named_model
from clara_cli.answering.llm_answerer import LLMAnswerer
from clara_cli.answering.passage_search import PassageSearch
from clara_cli.answering.retriever import Retriever
from clara_cli.answering.session import (
    ClaraSession,
    PassageSession,
    Session,
    refuse_empty,
    refuse_unreadable,
)
from clara_cli.bundled import choose_model
from clara_cli.chat.client import ChatClient, ChatSettings, read_key
from clara_cli.commands.checkpoint_notes import describe_checkpoint, note_older
from clara_cli.commands.dry_run import need_of_answering
from clara_cli.commands.question_files import (
    STDIN,
    AskedQuestion,
    read_question_file,
    read_stdin,
)
from clara_cli.config import AskConfig
from clara_cli.config.documents import changed_options
from clara_cli.config.fields import flag_name
from clara_cli.core.batch_encoding import keep_heap
from clara_cli.core.checkpoint import LoadOptions, load, resolve
from clara_cli.core.checkpoint_info import read_info
from clara_cli.corpus.cache import cached_corpus
from clara_cli.corpus.store import Corpus
from clara_cli.documents.listing import Source
from clara_cli.errors import DataError, UsageError
from clara_cli.records import Answer, MemoryNeed, Progress, Report, Retelling, SearchResult
from clara_cli.search.where import parse

IDLE_IN_TASK = (
    "question",
    "file",
    "top_k",
    "candidates",
    "first_stage",
    "where",
    "read",
    "text_tokens",
    "explain",
    "require_support",
    "search",
    "abstain",
    "llm",
    "llm_model",
    "answer_only",
    "log",
)
IDLE_IN_SEARCH = (
    "max_new_tokens",
    "read",
    "explain",
    "require_support",
    "abstain",
    "llm",
    "llm_model",
    "dry_run",
    "answer_only",
)
IDLE_IN_SERVE = (
    "question",
    "file",
    "answer_only",
    "require_support",
    "task",
    "passage",
    "dry_run",
    "explain",
)
IDLE_WITH_LLM = ("read", "explain", "require_support", "abstain", "dry_run")
TASK_HINT = "a task reads the memory of the one passage that --passage names: omit the other option"
NOT_ANSWERING = "use an Instruct or E2E one for answers, or this one with --task"
LLM_RETRIES = 2  # somebody waits for the answer
TOGETHER = 256  # questions of a file found, answered and judged together


def run(
    config: AskConfig, report: Report
) -> Iterator[Answer | SearchResult | Retelling | MemoryNeed]:
    """Answer `question`, or every question of `file` in order, or find their passages; or do the
    `task`."""
    check_options(config)
    if config.dry_run:
        yield needed(config, report)
        return
    if config.task is not None:
        yield retell(config, report)
        return
    if config.question is None:
        keep_heap()
    if config.file == STDIN:
        session = open_session(config, report)
        for questions in read_stdin(TOGETHER):
            check_questions(session, questions)
            yield from replies(session, questions)
        return
    if config.question is not None:
        questions = [AskedQuestion(config.question)]
    elif config.file is not None:
        questions = read_question_file(config.file)
    else:
        raise UsageError("no question", "give one, or a file of them with -f")
    session = open_session(config, report)
    check_questions(session, questions)
    if config.file is not None:
        report.progress(Progress("ask", 0, len(questions), "questions"))
    for first in range(0, len(questions), TOGETHER):
        yield from replies(session, questions[first : first + TOGETHER])
        if config.file is not None:
            done = min(first + TOGETHER, len(questions))
            report.progress(Progress("ask", done, len(questions), "questions"))


def replies(
    session: Session, questions: Sequence[AskedQuestion]
) -> Iterator[Answer | SearchResult]:
    """Answers to questions asked together, or their passages alone, with their ids."""
    texts = [question.text for question in questions]
    ids = [question.id for question in questions]
    if session.config.search:
        for id, result in zip(ids, session.search_all(texts), strict=True):
            yield dataclasses.replace(result, id=id)
        return
    for id, answer in zip(ids, session.ask_all(texts), strict=True):
        yield dataclasses.replace(answer, id=id)


def needed(config: AskConfig, report: Report) -> MemoryNeed:
    """The memory that answering from the corpora, or from documents, takes."""
    if config.documents:
        model = choose_model(config.model, report.note)
        return need_of_answering(config, model, config.ratio, report)
    corpus = Corpus.open(find_corpora(config.corpus)[0])
    ratio = config.ratio or corpus.manifest.identity.ratio
    return need_of_answering(config, named_model(corpus, config.model), ratio, report)


def check_options(config: AskConfig) -> None:
    """Raise UsageError for options that do not go together, and for a slip in a filter: before
    documents are compressed or a model is loaded."""
    if config.task is not None or config.passage is not None:
        check_task(config)
    if config.search:
        refuse_idle(config, IDLE_IN_SEARCH, "--search", "nothing is generated: omit it")
    if config.serve is not None:
        refuse_idle(config, IDLE_IN_SERVE, "--serve", "questions come over HTTP: omit it")
    if config.llm is not None:
        refuse_idle(config, IDLE_WITH_LLM, "--llm", "the model reads text, and judges by itself")
    if (config.llm is None) != (config.llm_model is None):
        given, other = ("--llm", "--llm-model") if config.llm else ("--llm-model", "--llm")
        raise UsageError(f"{given} without {other}", "give the server and its model's name")
    if config.read != "auto" and config.text_tokens != AskOptions.text_tokens:
        message = f"--text-tokens with --read {config.read}"
        raise UsageError(message, "nothing spends it there: add --read auto, or omit it")
    if config.where is not None:
        parse(config.where)
    idle = next((name for name, _ in changed_options(config)), None)
    if idle and not config.documents:
        raise UsageError(
            f"{idle} without documents", "name documents after the question, or omit it"
        )


def check_task(config: AskConfig) -> None:
    """Raise UsageError for half a task, and for options that do nothing in one."""
    if config.task is None or config.passage is None:
        given, other = ("--passage", "--task") if config.task is None else ("--task", "--passage")
        raise UsageError(
            f"{given} without {other}", "both are needed; sources show the ids of passages"
        )
    refuse_idle(config, IDLE_IN_TASK, f"--task {config.task}", TASK_HINT)


def refuse_idle(config: AskConfig, idle: tuple[str, ...], beside: str, hint: str) -> None:
    """Raise UsageError for a given option that would do nothing beside another."""
    for f in dataclasses.fields(config):
        if f.name in idle and getattr(config, f.name) != f.default:
            named = "a question" if f.name == "question" else flag_name(f)
            raise UsageError(f"{beside} and {named} do not go together", hint)


def retell(config: AskConfig, report: Report) -> Retelling:
    """Write from the memory of one passage."""
    assert config.task is not None and config.passage is not None, "checked before"
    clara = open_clara(config, report)
    longest = config.max_new_tokens
    return clara.retell(config.task, config.passage, longest, config.ratio, config.seed)


def open_session(config: AskConfig, report: Report) -> Session:
    """Find and open the corpora and their indexes; their checkpoint too, but to search alone."""
    check_options(config)
    if config.search or config.llm is not None:
        return open_passages(config, report)
    return ClaraSession(open_clara(config, report), config, report)


def open_passages(config: AskConfig, report: Report) -> PassageSession:
    """Open the corpora, and the way to the language model that reads their text, if one does; a
    checkpoint is loaded for the first question that words do not find."""
    search = open_search(config, report)
    refuse_empty(search)
    answerer = None
    if config.llm is not None:
        settings = ChatSettings(str(config.llm_model), retries=LLM_RETRIES, seed=config.seed)
        urls = [part.strip() for part in config.llm.split(",")]
        answerer = LLMAnswerer(ChatClient(urls, settings, read_key(), report.warn))

    def load_checkpoint(some: PassageSearch) -> Clara:
        return with_checkpoint(config, some, report)

    return PassageSession(search, load_checkpoint, answerer, config, report)


def open_search(config: AskConfig, report: Report) -> PassageSearch:
    """Find and open the corpora and their indexes. Of one at a URL it is told where its files are
    copied to."""
    retrievers = [Retriever.open(folder) for folder in find_corpora(config.corpus)]
    for corpus in (retriever.corpus for retriever in retrievers):
        if corpus.remote is not None:
            size = f"{corpus.manifest.bytes / 1e6:,.1f} MB"
            report.note(f"{corpus.name}: {size}, read as needed into {corpus.folder}")
    return PassageSearch(retrievers)


def with_checkpoint(config: AskConfig, search: PassageSearch, report: Report) -> Clara:
    """Corpora with the checkpoint that reads them, loaded."""
    first = search.retrievers[0].corpus
    ratio = first.manifest.identity.ratio
    model = named_model(first, config.model)
    loaded = load(LoadOptions.of(config, model, ratio, only_reads=True))
    clara = Clara(loaded, *search.retrievers)
    note_older(loaded, [one.corpus for one in search.retrievers], report)
    return clara


def open_clara(config: AskConfig, report: Report) -> Clara:
    """Find and open the corpora, their checkpoint and their indexes."""
    clara = with_checkpoint(config, open_search(config, report), report)
    checkpoint = describe_checkpoint(clara.loaded, report)
    checkpoint.need("generator")
    if config.task is None and not checkpoint.answers:
        report.warn(f"{checkpoint.name} was not trained to answer questions: {NOT_ANSWERING}")
    if config.task is not None and not checkpoint.writes_from_memory:
        report.note(f"{checkpoint.name} was trained last to answer, not to write from memory")
    refuse_unreadable(clara, config, report)
    read = config.read or clara.loaded.info.reading.mode
    judged = clara.answerer.calibrations
    if config.abstain and read not in judged:
        what = f"{checkpoint.name} with --read {read}" if judged else checkpoint.name
        hint = "omit --abstain, or use a checkpoint whose support.json has this way of reading"
        raise UsageError(f"--abstain: nothing judges the support of answers by {what}", hint)
    return clara


def cached(documents: Sequence[Source], model: str, config: AskConfig) -> Path:
    """Where the user's cache keeps the corpus of these documents, made by this checkpoint."""
    path = resolve(model, config.ratio)
    if (path / "clara.json").is_file():
        maker = read_info(path).fingerprint
    else:  # a released checkpoint says nothing of itself: its files stand for it
        facts = [(file.name, file.stat()) for file in sorted(path.iterdir())]
        maker = repr([path, *((name, s.st_size, s.st_mtime_ns) for name, s in facts)])
    held = () if config.load_in is None else (config.load_in,)
    how = [f"{name}={value}" for name, value in changed_options(config)]
    return cached_corpus(
        documents, [maker, config.backbone, config.dtype, str(config.ratio), *held, *how]
    )


def find_corpora(folders: tuple[Path, ...]) -> list[Path]:
    """The corpora named, else $CLARA_CORPUS, else the only *.clara here."""
    if folders:
        return list(dict.fromkeys(folders))
    if named := os.environ.get("CLARA_CORPUS"):
        return [Path(named)]
    candidates = sorted(Path().glob("*.clara"))
    if len(candidates) == 1:
        return candidates
    what = (
        f"{len(candidates)} of them here ({', '.join(map(str, candidates[:4]))})"
        if candidates
        else "none here"
    )
    hint = "name one with --corpus, or ask documents directly: clara ask ./notes"
    if candidates:
        hint = f"name it: --corpus {shlex.quote(str(candidates[0]))}"
    raise UsageError(f"which corpus? {what}", hint)


def check_questions(session: Session, questions: Sequence[AskedQuestion]) -> None:
    """Raise DataError for the first question of a file that cannot be read: before any is
    answered."""
    for question in questions:
        try:
            session.check_question(question.text)
        except UsageError as error:
            if not question.place:
                raise
            raise DataError(f"{question.place}: {error.message}", error.hint) from error
