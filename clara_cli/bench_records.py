"""Frozen records of what `bench` measured, as other modules show and write it. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Scorecard:
    """One row of `bench`: a system at a ratio (None where none applies). Scores are fractions 0-1
    over all questions, None where nothing can be said; `ci95` holds 95 % bootstrap intervals.

    `answer_words` is the mean length of an answer in words (between white space), `empty_share` the
    share of answers of none: F1 and Cover-EM depend on both.
    `context_tokens` are the tokens that stand for the passages in the prompt, memory or text, on
    average; `ms_per_question` is query, search and generation, with memory compressed before;
    `bytes_per_passage` what keeping a passage takes; `effective_ratio` the text tokens of the
    passages read for each memory token, since a passage is seldom as long as it may be. `best`
    names the scores in which the row is highest by a significant difference. The questions for
    which memory did not suffice (`out_of_memory`), and those unanswered for another reason
    (`unanswered`; `error` is the first one's), are in no figure.
    """

    name: str
    ratio: int | None
    em: float | None
    f1: float | None
    cover_em: float | None
    answer_words: float | None
    empty_share: float | None
    recall: dict[str, float | None]
    ci95: dict[str, list[float]]
    truncated: int
    ms_per_question: float | None
    context_tokens: float | None
    bytes_per_passage: float | None
    effective_ratio: float | None = field(default=None, metadata={"json": "where set"})
    best: tuple[str, ...] = field(default=(), metadata={"json": False})
    out_of_memory: int = field(default=0, metadata={"json": "where set"})
    unanswered: int = field(default=0, metadata={"json": "where set"})
    error: str = field(default="", metadata={"json": "where set"})


@dataclass(frozen=True, slots=True)
class FactRetention:
    """How many of the numbers and names of `passages` texts (found by rule) a paraphrase written
    from their memory still has."""

    ratio: int
    passages: int
    numbers: int
    numbers_kept: float | None
    names: int
    names_kept: float | None


@dataclass(frozen=True, slots=True)
class LogitLens:
    """Of `questions` with a gold passage, the share whose query memory names a word that stands in
    it, in few others and not in the question; the share by chance (other questions' gold passages);
    `words` that a memory names on average; and the 95 % interval of the shares' difference."""

    ratio: int
    questions: int
    words: float | None
    share: float | None
    chance: float | None
    difference95: list[float] | None


@dataclass(frozen=True, slots=True)
class BreakEvenPoint:
    """A way to answer over so many passages, of `text_tokens` as text and `context_tokens` as they
    are read: its seconds to the first token as a `share` of those over the text."""

    passages: int
    text_tokens: int
    context_tokens: int
    share: float


@dataclass(frozen=True, slots=True)
class BreakEven:
    """One way at a ratio, by size; `faster_from`: the text tokens from which on it is faster than
    text, None where it is not at the largest size."""

    way: str
    ratio: int | None
    points: tuple[BreakEvenPoint, ...]
    faster_from: int | None


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """Figures a paper reports, in %, by data set (`average` over all of them); another corpus and
    model than anything measured here."""

    system: str
    ratio: int | None
    metric: str
    values: dict[str, float]
    source: str


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """What `bench --published` alone prints; the keys of its JSON line."""

    published: tuple[PublishedRow, ...]


@dataclass(frozen=True, slots=True)
class SystemState:
    """A system `bench` knows of. `state`: runs here, needs an extra, needs weights, or reported
    only; `needs` is what to install, `weights` its default ones, `why` what it is."""

    name: str
    kind: str
    state: str
    needs: str
    licence: str
    weights: str
    why: str


@dataclass(frozen=True, slots=True)
class SystemsResult:
    """What `bench --list-systems` prints; the keys of its JSON line."""

    systems: tuple[SystemState, ...]


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What `bench` measured; the keys of its JSON line. `report` is the folder of the reports."""

    dataset: str
    setting: str
    n: int
    seed: int
    systems: tuple[Scorecard, ...]
    predictions: str | None
    survival: tuple[FactRetention, ...] = field(default=(), metadata={"json": False})
    lens: tuple[LogitLens, ...] = field(default=(), metadata={"json": "where set"})
    break_even: tuple[BreakEven, ...] = field(default=(), metadata={"json": "where set"})
    published: tuple[PublishedRow, ...] = field(default=(), metadata={"json": False})
    report: str | None = field(default=None, metadata={"json": False})


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row that two runs share, on their common questions: the mean of `metric` in each and the
    paired permutation test's p."""

    name: str
    ratio: int | None
    metric: str
    n: int
    first: float
    second: float
    p: float


@dataclass(frozen=True, slots=True)
class CompareResult:
    """What `bench --compare` found; the keys of its JSON line."""

    first: str
    second: str
    rows: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class Throughput:
    """Whole passages (256 tokens) compressed, `batch` at a time."""

    batch: int
    passages_per_second: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Writing:
    """An answer to a prompt of so many positions: until its first token, and tokens from there."""

    prompt_positions: int
    first_token_ms: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class SpeedTrain:
    """A training step on `batch` passages: forward, backward and the optimiser; positions of all
    rows a second."""

    batch: int
    step_ms: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """What `bench --speed` measured; the keys of its JSON line. Medians over `rounds`; None where
    memory did not suffice. `memory` and `text` answer from the same five passages. `mfu` is model
    FLOPs utilisation, None where the device's peak is not known."""

    shape: str
    weights: str
    device: str
    dtype: str
    parameters: int
    ratio: int
    memory_tokens: int
    rounds: int
    threads: int
    compress: Throughput | None
    query_ms: float | None
    memory: Writing | None
    text: Writing | None
    train: SpeedTrain | None
    peak_memory_bytes: int
    peak_flops: float | None
    mfu: dict[str, float | None]
    out: str | None = field(default=None, metadata={"json": False})
