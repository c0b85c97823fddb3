"""`clara ask` at a terminal or in a pipe: where the question comes from, documents compressed on
the way, answers streamed or printed whole, and the exit code of an unsupported one.

Knows no model: `commands.ask` and `commands.compress` are loaded when they run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from clara_cli.bundled import choose_model
from clara_cli.cli import repl, repl_commands, serving
from clara_cli.cli.show import answers, json_line, terminal
from clara_cli.cli.show.terminal import TerminalReport
from clara_cli.config import AskConfig, CompressConfig, DocumentOptions
from clara_cli.errors import ArtefactError, DataError, NotSupportedError, UsageError
from clara_cli.printable import clean, shell_word
from clara_cli.records import Answer, CachedCorpusRow, SearchResult
from clara_cli.storage.file_kinds import special_file


def run(config: AskConfig, *, as_json: bool, quiet: bool) -> None:
    """Answer one question or a file of them; without any, read one from stdin or open the REPL."""
    config = _documents_named_first(config)
    if config.question is not None and config.file is not None:
        raise UsageError("a question and --file were both given", "give one of them")
    if config.documents and config.corpus:
        raise UsageError("documents and --corpus were both given", "give one of them")
    if config.clear_cache:
        _clear_cache(config, as_json=as_json)
        return
    if config.list or config.forget is not None:
        _show_cache(config, as_json=as_json)
        return
    if config.dry_run:
        _say_need(config, as_json=as_json, quiet=quiet)
        return
    if config.serve is not None:
        _serve(config, as_json=as_json, quiet=quiet)
        return
    if config.task is not None or config.passage is not None:
        _do_task(config, as_json=as_json, quiet=quiet)
        return
    if config.question is None and config.file is None:
        if sys.stdin is not None and sys.stdin.isatty():
            _converse(config, as_json=as_json, quiet=quiet)
            return
        config = dataclasses.replace(config, question=_read_question())
    if config.question is not None and not config.question.strip():
        raise UsageError("the question is empty", "write it in quotes after clara ask")
    with terminal.TerminalReport(quiet=quiet) as report, contextlib.ExitStack() as held:
        printer = held.enter_context(Printer(config, report, as_json=as_json))
        config = _with_documents(config, report, held)
        module = importlib.import_module("clara_cli.commands.ask")
        if config.file is None and printer.streams:
            session = module.open_session(config, report)
            answers_shown: Iterable[Answer] = [printer.stream(session, config.question or "")]
        else:
            answers_shown = printer.show_all(module.run(config, report))
        _check_support(answers_shown, required=config.require_support)


def _clear_cache(config: AskConfig, *, as_json: bool) -> None:
    """Empty the cache of dequantised backbones and of corpora at URLs."""
    if config.question is not None or config.file is not None:
        raise UsageError("--clear-cache and a question do not go together", "give one of them")
    gguf = importlib.import_module("clara_cli.core.gguf")
    remote_folder = importlib.import_module("clara_cli.storage.remote_folder")
    backbones, size = gguf.remove_backbones()
    corpora, more = remote_folder.remove_copies()
    if as_json:
        record = {"backbones": backbones, "remote_corpora": corpora, "bytes": size + more}
        json_line.write_json(record)
    else:
        removed = f"removed {backbones} backbones and {corpora} corpora of URLs"
        megabytes = (size + more) / 1e6
        terminal.console(stderr=False).print(f"{removed}, {megabytes:,.1f} MB")


def _show_cache(config: AskConfig, *, as_json: bool) -> None:
    """List the cached corpora, or remove one."""
    if config.question is not None or config.file is not None or config.documents:
        raise UsageError("--list and --forget answer nothing", "omit the question")
    if config.list and config.forget is not None:
        raise UsageError("--list and --forget do not go together", "give one of them")
    cache = importlib.import_module("clara_cli.corpus.cache")
    if config.forget is not None:
        names = cache.forget(config.forget)
        shown: dict[str, Any] = {"forgotten": names}
        lines = [f"forgot {name}" for name in names] or ["nothing is cached"]
    else:
        rows = cache.cached_corpora()
        shown = {"corpora": [dataclasses.asdict(row) for row in rows]}
        lines = [_cache_line(row) for row in rows] or ["nothing is cached"]
    if as_json:
        json_line.write_json(shown)
        return
    out = terminal.console(stderr=False)
    for line in lines:
        out.print(clean(line))


def _cache_line(row: CachedCorpusRow) -> str:
    """A cached corpus in one line."""
    counts = "not finished"
    if row.documents is not None:
        counts = f"{row.documents:,} documents, {row.passages:,} passages, {row.model}"
    inputs = ", ".join(row.inputs)
    return f"{row.name}  {row.last_used}  {row.bytes / 1e6:,.1f} MB  {counts}  {inputs}"


def _serve(config: AskConfig, *, as_json: bool, quiet: bool) -> None:
    """Answer over HTTP until the process is asked to end."""
    if as_json:
        raise UsageError("--serve and --json do not go together", "omit --json")
    serving.check_installed()
    address = serving.Address.parse(str(config.serve))
    serving.read_token(address)  # before documents are compressed or a model is loaded
    with terminal.TerminalReport(quiet=quiet) as report, contextlib.ExitStack() as held:
        printer = held.enter_context(Printer(config, report, as_json=False))
        module = importlib.import_module("clara_cli.commands.ask")
        session = module.open_session(_with_documents(config, report, held), report)
        several = config.llm is not None or config.search
        serving.serve(
            session,
            address,
            report,
            threads=serving.THREADS if several else 1,
            holds_back=config.abstain,
            log=printer.log,
        )


def _say_need(config: AskConfig, *, as_json: bool, quiet: bool) -> None:
    """Show the memory that answering takes."""
    with terminal.TerminalReport(quiet=quiet) as report:
        module = importlib.import_module("clara_cli.commands.ask")
        for need in module.run(config, report):
            if as_json:
                json_line.write_json(json_line.result_json(need))
            else:
                terminal.show_result(need)


def _do_task(config: AskConfig, *, as_json: bool, quiet: bool) -> None:
    """Show what is written from the memory of a passage."""
    with terminal.TerminalReport(quiet=quiet) as report, contextlib.ExitStack() as held:
        config = _with_documents(config, report, held)
        module = importlib.import_module("clara_cli.commands.ask")
        for retelling in module.run(config, report):
            report.pause()
            if as_json:
                json_line.write_json(json_line.retelling_json(retelling))
            else:
                answers.show_retelling(retelling)


def _documents_named_first(config: AskConfig) -> AskConfig:
    """`clara ask ./notes`: a first argument that is a file or folder, and no question."""
    first = config.question
    if first is None or not (first.startswith((".", "/", "~")) or os.sep in first):
        return config
    if not Path(first).expanduser().exists():
        return config
    return dataclasses.replace(config, question=None, documents=(first, *config.documents))


def _with_documents(
    config: AskConfig, report: TerminalReport, held: contextlib.ExitStack
) -> AskConfig:
    """The config with `documents` compressed, once, into the user's cache, where their corpus stays
    until `held` is closed."""
    if not config.documents:
        return config
    ask = importlib.import_module("clara_cli.commands.ask")
    ask.check_options(config)
    model = choose_model(config.model, report.note)
    documents = tuple(_absolute(given) for given in config.documents)
    listing = importlib.import_module("clara_cli.documents.listing")
    listed = listing.list_documents(documents, config)
    if listed.left_out:
        report.warn(f"left out: {listing.describe_left_out(listed.left_out)}")
    corpus = ask.cached(listed.sources, model, config)
    cache = importlib.import_module("clara_cli.corpus.cache")
    held.enter_context(cache.in_use(corpus))
    names = ", ".join(config.documents)
    try:
        with cache.making(corpus, report.note) as missing:
            if missing:
                report.note(f"{names}: compressed once into {corpus}")
                _compress(config, documents, model, corpus, report)
                cache.drop_unused()
                report.pause()
            else:
                report.note(f"{names}: compressed before, in {corpus}")
                for line in listed.unreadable:
                    report.warn(f"skipped {line}")
    except ArtefactError as error:
        if str(corpus) not in error.message:
            raise
        # its own advice is for `clara compress --out`
        hint = f"delete {shell_word(corpus)}, and ask again"
        raise ArtefactError(error.message, hint) from error
    return dataclasses.replace(config, corpus=(corpus,), model=model)


def _compress(
    config: AskConfig, documents: tuple[str, ...], model: str, corpus: Path, report: TerminalReport
) -> None:
    """Compress the documents into the cache."""
    compress = importlib.import_module("clara_cli.commands.compress")
    settings = CompressConfig(
        inputs=documents,
        ratio=config.ratio,
        model=model,
        backbone=config.backbone,
        out=corpus,
        device=config.device,
        dtype=config.dtype,
        load_in=config.load_in,
        device_map=config.device_map,
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(DocumentOptions)},
    )
    compress.run(settings, report)


def _absolute(given: str) -> str:
    return given if given == "-" else str(Path(given).expanduser().absolute())


def _converse(config: AskConfig, *, as_json: bool, quiet: bool) -> None:
    report, held = terminal.TerminalReport(quiet=quiet, hold=True), contextlib.ExitStack()

    def open_session() -> repl_commands.Session:
        ask = importlib.import_module("clara_cli.commands.ask")
        session: repl_commands.Session = ask.open_session(
            _with_documents(config, report, held), report
        )
        return session

    printer = held.enter_context(Printer(config, report, as_json=as_json))

    def show(result: Answer | SearchResult) -> None:
        _check_support(printer.show_all([result]), required=config.require_support)

    def reply(session: repl_commands.Session, question: str) -> None:
        if config.search:
            show(session.search(question))
        elif printer.streams:
            answer = printer.stream(session, question)
            _check_support([answer], required=config.require_support)
        else:
            show(session.ask(question))

    with report, held:
        repl.run(open_session, reply, show)


class Printer:
    """Shows answers, and passages found, as the options want them, and keeps them in the log."""

    def __init__(self, config: AskConfig, report: TerminalReport, *, as_json: bool) -> None:
        if as_json and config.answer_only:
            raise UsageError("--json and --answer-only were both given", "give one of them")
        self._config, self._report, self._as_json = config, report, as_json
        self._log = _open_log(config.log)

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *error: object) -> None:
        if self._log is not None:
            self._log.close()

    @property
    def streams(self) -> bool:
        """Whether an answer is shown as its words come: on a terminal, unless bare or as JSON."""
        bare = self._config.answer_only or self._config.search or self._as_json
        return not bare and sys.stdout.isatty()

    def stream(self, session: repl_commands.Session, question: str) -> Answer:
        """The answer to a question, a draft of it shown as its words come."""
        self._report.pause()
        with answers.Stream() as stream:
            answer = session.ask(question, stream.say)
        self._report.pause()
        self.show(answer)
        return answer

    def show_all(self, results: Iterable[Answer | SearchResult]) -> Iterator[Answer]:
        """Show results as soon as they are there; pass the answers on."""
        for result in results:
            self._report.pause()
            self.show(result)
            if isinstance(result, Answer):
                yield result

    def show(self, result: Answer | SearchResult) -> None:
        """Show one result, and log it."""
        config, titled = self._config, self._config.file is not None
        if isinstance(result, SearchResult):
            record = json_line.search_json(result)
        else:
            record = json_line.answer_json(result)
        if self._as_json:
            json_line.write_json(record)
        elif isinstance(result, SearchResult):
            answers.show_search(result, titled=titled)
        elif config.answer_only:
            answers.show_text(result, line=titled)
        else:
            answers.show(result, titled=titled)
        self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        """Append the JSON of a result to the log, if there is one."""
        if self._log is not None:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self._log.write(json_line.one_line({"time": now, **record}) + "\n")


def _open_log(file: Path | None) -> TextIO | None:
    """The file of --log, written a line at a time; a new one is its owner's alone.

    Raises:
        UsageError: where it cannot be written.
    """
    if file is None:
        return None
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    try:
        handle = os.open(file, flags | os.O_NONBLOCK, 0o600)  # a pipe that nobody reads has no end
    except OSError as error:
        reason = special_file(file) or error.strerror
        raise UsageError(f"--log {file}: {reason}", "name a file to append to") from error
    os.set_blocking(handle, True)
    return os.fdopen(handle, "a", buffering=1, encoding="utf-8", errors="backslashreplace")


def _check_support(given: Iterable[Answer], *, required: bool) -> None:
    """Take every answer; with `--require-support`, fail when the sources do not carry one, or
    it is unjudged."""
    verdicts = [answer.supported for answer in given]
    missing, unjudged = verdicts.count(False), verdicts.count(None)
    if not required or not missing + unjudged:
        return
    told, total = [], len(verdicts)
    hint = "judging needs a checkpoint with a support.json, and --read memory"
    if missing:
        which = f"{missing} of {total} answers are" if total > 1 else "the answer is"
        told.append(f"{which} not supported by the sources")
        hint = "ask more precisely, or give the generator more passages with --top-k"
    if unjudged:
        which = f"{unjudged} of {total} answers" if total > 1 else "the answer"
        told.append(f"the support of {which} could not be judged")
    raise NotSupportedError(", ".join(told), hint)


def _read_question() -> str:
    try:
        question = sys.stdin.read().strip() if sys.stdin is not None else ""
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not {error.encoding}", "pipe UTF-8 text") from error
    if not question:
        raise UsageError("no question: stdin is empty", "write it in quotes after clara ask")
    return question
