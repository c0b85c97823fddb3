"""`clara synth`: documents in, questions, answers and paraphrases out, written by a language model
and checked; resumable passage by passage.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from clara_cli.chat.client import LLM, ChatClient, ChatSettings, read_key
from clara_cli.chat.key import KeyGuard
from clara_cli.config import DocumentOptions, SynthConfig
from clara_cli.documents.chunk import CountTokens, Split, model_text, split_document
from clara_cli.documents.documents import read_documents
from clara_cli.documents.listing import describe_left_out
from clara_cli.errors import ArtefactError, Interrupted, UsageError, nearest
from clara_cli.records import Passage, Progress, Report, SynthResult
from clara_cli.storage.disk_set import DiskSet
from clara_cli.storage.files import write_atomic
from clara_cli.synthesis import pool_questions, rounds, run_summary
from clara_cli.synthesis.journal import Journal, beside
from clara_cli.synthesis.passage_worker import Outcome, Settings
from clara_cli.synthesis.prompts import VERSION
from clara_cli.synthesis.quality_checks import Limits
from clara_cli.synthesis.text_features import token_estimate
from clara_cli.synthesis.worker_pool import Job, Work, run_workers

PAIRS, POOLED = ("simple", "complex", "paraphrase"), ("e2e", "instruct")
SPLITS = ("sentences", "tokens", "none")


def run(config: SynthConfig, report: Report) -> SynthResult:
    """Work until every passage is finished; resumes an unfinished `out`.

    Raises:
        Interrupted: on Ctrl-C; finished passages are kept.
        ArtefactError: where `out` is of other settings, or no run's output.
        LLMError: where no server answers, with what is finished kept.
    """
    kinds = read_kinds(config.kinds)
    target = Target.of(config)
    if config.split not in SPLITS:
        raise UsageError(f"split is {config.split!r}", f"known: {', '.join(SPLITS)}")
    if config.min_coverage > 1:
        raise UsageError(f"min_coverage is {config.min_coverage}", "it is a share, 0 to 1")
    out = config.out or default_out(config.documents[0], kinds)
    reader = Reader(config, token_counter(config.tokenizer), report)
    total = None if "-" in config.documents else reader.count()
    settings = Settings(
        kinds=kinds,
        rounds=config.rounds,
        min_coverage=config.min_coverage,
        temperature=config.temperature,
        reply_tokens=config.reply_tokens,
        limits=Limits(answer_words=config.answer_words),
        top_k=config.top_k,
        pool_size=config.pool_size,
        seed=config.seed,
    )
    guard = KeyGuard(read_key() if target.urls else None)
    with Journal(out, identity(config, settings, target), guard) as journal:
        meter = Meter(config, report, journal, total)
        meter.show()
        try:
            asyncio.run(work(config, settings, target, reader, journal, meter))
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {len(journal.done):,} finished passages are kept in {out}",
                "run the same command again: it goes on with the others",
            ) from None
        left = sum(key not in reader.seen for key in journal.done) if config.limit is None else 0
        if left:
            report.warn(f"{left:,} passages of {out} are no longer in the documents")
        prices = config.prompt_price, config.reply_price
        result = run_summary.result(journal, kinds, prices, config.seed)
        text = run_summary.summary(journal, result, identity(config, settings, target))
        write_atomic(out.parent, beside(out, "summary.json").name, text.encode())
    return result


def read_kinds(text: str) -> tuple[str, ...]:
    """The kinds of a comma-separated list; pairs and pooled questions never share a file."""
    named = [kind.strip() for kind in text.split(",") if kind.strip()]
    for kind in named:
        if kind not in (*PAIRS, *POOLED):
            raise UsageError(f"--kinds: no kind {kind!r}", nearest(kind, (*PAIRS, *POOLED)))
    if not named:
        raise UsageError("--kinds is empty", f"known: {', '.join((*PAIRS, *POOLED))}")
    pooled = [kind for kind in POOLED if kind in named]
    if pooled and len(set(named)) > 1:
        message = f"--kinds {text}: {pooled[0]} shares a file with nothing else"
        raise UsageError(message, "run clara synth once for each, with its own --out")
    return tuple(kind for kind in (*PAIRS, *POOLED) if kind in named)


@dataclass(frozen=True)
class Target:
    """Which language model: servers' addresses and a name there, or a local model's name."""

    urls: tuple[str, ...]
    model: str

    @classmethod
    def of(cls, config: SynthConfig) -> Target:
        """What `--llm` and `--llm-model` name."""
        llm = config.llm or os.environ.get("CLARA_LLM", "")
        if not llm:
            hint = "give --llm a server's address and --llm-model, or --llm a local model's folder"
            raise UsageError("no language model", hint)
        parts = tuple(part.strip() for part in llm.split(","))
        served = [part.startswith(("http://", "https://")) for part in parts]
        if not any(served):
            if config.llm_model is not None:
                message = f"--llm-model {config.llm_model} with a local model, {llm}"
                raise UsageError(message, "a server's address begins with http:// or https://")
            return cls((), llm)
        if not all(served):
            wrong = parts[served.index(False)]
            raise UsageError(f"--llm: {wrong!r} beside an address", "give addresses or one model")
        if config.llm_model is None:
            raise UsageError("--llm-model is needed with a server", "name the model it serves")
        return cls(parts, config.llm_model)


def default_out(first: str, kinds: tuple[str, ...]) -> Path:
    """The output beside the current directory, named after the first input."""
    name = Path(first).name
    if first == "-" or not name.strip("."):
        raise UsageError(f"--out is needed for input {first!r}", "name it: --out pairs.jsonl")
    what = "questions" if kinds[0] in POOLED else "pairs"
    return Path(f"{name.split('.')[0]}.{what}.jsonl")


def token_counter(name: str | None) -> CountTokens:
    """How passages are measured: by a tokenizer, or by a careful estimate."""
    if name is None:
        return token_estimate
    from clara_cli.core.backbone import tokenizer_folder
    from clara_cli.core.loading import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder(name), f"tokenizer {name}")

    def offsets(text: str) -> list[tuple[int, int]]:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [tuple(pair) for pair in encoded["offset_mapping"]]

    return offsets


@dataclass
class Reader:
    """The passages of the documents, each text once, as jobs."""

    config: SynthConfig
    count_tokens: CountTokens
    report: Report
    seen: DiskSet = field(default_factory=DiskSet)
    repeated: int = 0

    def jobs(self) -> Iterator[Job]:
        """Every passage, up to the limit; a text that was there before is passed over."""
        self.seen = DiskSet()
        self.repeated = 0
        return islice(self._all(), self.config.limit)

    def _all(self) -> Iterator[Job]:
        config, split = self.config, cast(Split, self.config.split)
        options = DocumentOptions(skip_bad=config.skip_bad)
        reading = read_documents(config.documents, options, self._bad, self.report.note)
        if reading.left_out:
            self.report.note(f"left out: {describe_left_out(reading.left_out)}")
        for document in reading:
            limit, titled = config.passage_tokens, config.title
            for passage in split_document(document, limit, self.count_tokens, split, titled):
                text = model_text(passage.title if titled else "", passage.text or "")
                key = hashlib.sha256(text.encode()).hexdigest()[:20]
                if not self.seen.add(key):
                    self.repeated += 1
                    continue
                yield Job(key, len(self.seen) - 1, passage, text)

    def _bad(self, message: str) -> None:
        self.report.warn(f"skipped {message}")

    def count(self) -> int:
        """How many there are; a bad line shows here, before any token is spent."""
        number = sum(1 for _ in self.jobs())
        if self.repeated:
            self.report.note(f"{self.repeated:,} passages repeat an earlier one: left out")
        return number


def identity(config: SynthConfig, settings: Settings, target: Target) -> dict[str, Any]:
    """Everything that decides what is written, besides the documents' content and the limit."""
    return {
        "prompts": VERSION,
        "model": target.model,
        "documents": list(config.documents),
        **dataclasses.asdict(settings),
        **{k: getattr(config, k) for k in ("split", "title", "passage_tokens", "tokenizer")},
    }


async def work(
    config: SynthConfig,
    settings: Settings,
    target: Target,
    reader: Reader,
    journal: Journal,
    meter: Meter,
) -> None:
    """Every passage that is not finished; the model is not bothered where there is none."""
    everything = reader.jobs()
    library: pool_questions.Library | None = None
    if settings.kinds[0] in POOLED:
        listed = list(everything)
        found: list[Passage] = [job.passage for job in listed]
        library = pool_questions.Library.build(found, [job.text for job in listed])
        everything = iter(listed)
    jobs = (job for job in everything if job.key not in journal.done)
    first = next(jobs, None)
    if first is None:
        return
    llm = open_llm(config, target, reader.report)
    try:
        await llm.check()
        each = worker(settings, llm, library)
        await run_workers(
            chain([first], jobs), each, journal.commit, config.concurrency, meter.tell
        )
    finally:
        await llm.close()


def open_llm(config: SynthConfig, target: Target, report: Report) -> LLM:
    """The language model."""
    if not target.urls:
        return open_local_llm(config, target.model, report)
    chat = ChatSettings(
        model=target.model,
        concurrency=config.concurrency,
        timeout=config.timeout,
        retries=config.retries,
        backoff=config.backoff,
        stream=config.stream,
        seed=config.seed,
    )
    return ChatClient(target.urls, chat, read_key(), report.warn)


def open_local_llm(config: SynthConfig, name: str, report: Report) -> LLM:
    """A model in this process. Prompts share a batch where that changes no reply; of its own
    settings for writing only the ends count.

    Raises:
        ArtefactError: where it cannot be had, or its chat template does not keep a prompt.
    """
    from clara_cli.core.backbone import load_backbone, pick_device, pick_dtype, window
    from clara_cli.core.chat_templates import check_user_turn, write_user_turn
    from clara_cli.core.probe import answers_together
    from clara_cli.core.writing import forget_settings
    from clara_cli.synthesis.local_model import LocalLLM

    device = pick_device(config.device)
    try:
        loaded = load_backbone(name, device, pick_dtype(config.dtype, device))
    except ArtefactError as error:
        reason = error.message.partition(": ")[2] or error.message
        hint = "give --llm a model's directory, its Hub id, or an address with http://"
        raise ArtefactError(f"--llm {name}: {reason}", hint) from error
    check_user_turn(loaded.tokenizer, f"--llm {name}")
    forget_settings(loaded.model, loaded.tokenizer.eos_token_id)
    batch = config.concurrency if answers_together(loaded) else 1
    if batch < config.concurrency:
        report.note(f"--llm {name}: its state reads padding: prompts are answered one by one")
    return LocalLLM(
        loaded.model,
        loaded.tokenizer,
        batch,
        config.seed,
        partial(write_user_turn, loaded.tokenizer),
        window(loaded.model),
    )


def worker(settings: Settings, llm: LLM, library: pool_questions.Library | None) -> Work:
    """What is done with one passage."""
    if library is None:
        return lambda job: rounds.synthesize(job.passage, job.text, llm, settings, job.key)
    shelf = library
    each = pool_questions.linked if settings.kinds == ("e2e",) else pool_questions.instruct
    return lambda job: each(shelf, job.row, llm, settings, job.key)


@dataclass
class Meter:
    """What is said while the work goes."""

    config: SynthConfig
    report: Report
    journal: Journal
    total: int | None
    began: float = field(default_factory=time.monotonic)
    tokens: int = 0

    def tell(self, outcome: Outcome) -> None:
        """A passage is finished and stored."""
        self.tokens += outcome.counts["prompt_tokens"] + outcome.counts["completion_tokens"]
        self.show()

    def show(self) -> None:
        """Show how far the work is."""
        counts, done = self.journal.counts, len(self.journal.done)
        seconds = max(time.monotonic() - self.began, 1e-9)
        shown = {
            "accepted": f"{sum(run_summary.under(counts, 'accepted.').values()):,}",
            "rejected": f"{sum(run_summary.under(counts, 'rejected.').values()):,}",
        }
        if self.tokens:
            shown["tokens/s"] = f"{self.tokens / seconds:,.0f}"
        spent = run_summary.cost(counts, self.config.prompt_price, self.config.reply_price)
        if spent is not None:
            shown["cost"] = f"{spent:,.2f}"
        self.report.progress(Progress("synth", done, self.total, "passages", shown))
