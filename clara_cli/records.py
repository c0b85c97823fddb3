"""Frozen records that cross module borders. Data only: no behaviour, no tensors, no files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

ABSTENTION = "not in the documents"  # what is said instead of an answer without support
Task = Literal["paraphrase", "qa"]  # what is written from the memory of one passage


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of Markdown: where its line starts in the text, its level from 1, its words."""

    start: int
    level: int
    words: str


@dataclass(frozen=True, slots=True)
class Document:
    """What the user gives. `source` is `file:line` (or the file) for error messages; `parts` are
    where pages, slides, sheets or sections start in the text, in order, as (start, `page=3`),
    `first_line` the line of a text file that the text starts on, `headings` those of Markdown, in
    order. It is from the file `label` of `input`, as the user named that, and all of that file
    where `is_file`; a document is the same wherever it was given."""

    id: str
    text: str
    title: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    parts: tuple[tuple[int, str], ...] = ()
    first_line: int = 1
    headings: tuple[Heading, ...] = ()
    input: str = field(default="", compare=False)
    label: str = field(default="", compare=False)
    is_file: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document; `text == document.text[start:end]` in Unicode code points.

    `tokens` counts the backbone tokens the compressor reads (title included, specials excluded).
    `title` is the document's, in Markdown with the headings it stands under. `text` is None in a
    corpus stored without text. `source` is the `file:line` where it begins, or `file#page=3`
    (`documents.places`), as the user named the file; empty where it came from none.
    """

    passage_id: str
    document_id: str
    title: str
    text: str | None
    start: int
    end: int
    tokens: int
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """One record of SCP pretraining: a passage with question-answer pairs or a paraphrase."""

    kind: str  # "paraphrase", or of questions "simple", "complex", "qa" (not told apart)
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    texts: tuple[str, ...]
    source: str = ""


@dataclass(frozen=True, slots=True)
class PoolPassage:
    """One candidate a question comes with."""

    id: str
    title: str
    text: str
    gold: bool = False


@dataclass(frozen=True, slots=True)
class GoldName:
    """A gold paragraph named without its text: by `id`, by `title`, or by both."""

    id: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its accepted answers and the pool it comes with (may be empty).

    `named_gold` are gold paragraphs that the data names and gives no text of; they count as not
    found unless the corpus searched has them. `own_passage` is the id of the passage of the corpus
    that is the question itself, and is never given.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    pool: tuple[PoolPassage, ...] = ()
    source: str = ""
    named_gold: tuple[GoldName, ...] = ()
    own_passage: str | None = None


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a passage; `start` and `end` are code points of the document's text, `line` is
    the line of its file, 0 where none is known."""

    text: str
    start: int
    end: int
    line: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage given to the generator: its 1-based rank, its row in `corpus`, the score that
    ranked it, whether it was `read` as memory or as text, and the sentence that serves the question
    best (None where no text was kept)."""

    rank: int
    row: int
    score: float
    passage: Passage
    corpus: str = ""
    read: str = "memory"
    sentence: Sentence | None = None


@dataclass(frozen=True, slots=True)
class PassageMatch:
    """Why a passage: the cosine of its flattened memory with the question's, what each memory token
    adds to it (they sum to the cosine), and the words each one is nearest to (logit lens)."""

    rank: int
    passage_id: str
    score: float
    cosine: float
    token_cosines: tuple[float, ...]
    words: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an answer: the words of the question's memory tokens, its passages, the positions the
    generator read against those of the same prompt in text (None where no text was kept), and
    seconds per phase, `first_token` from the beginning to the first id."""

    query_words: tuple[tuple[str, ...], ...]
    passages: tuple[PassageMatch, ...]
    tokens_read: int
    tokens_as_text: int | None
    seconds: dict[str, float]
    signals: dict[str, float]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with where it came from. Counts are in backbone tokens; `seconds` per phase, a
    question's share where several were answered together.

    `support` is a number in 0-1 (None where it cannot be judged), `supported` its verdict,
    `support_method` how it was judged: `calibrated` on the checkpoint's controls, or `declined`,
    where a language model said that the passages do not hold the answer. `read` is how the
    generator was given its passages; `abstained`: the answer is not to be shown, since it is not
    supported. `warnings` are sentences on why not to trust it. `id` is the question's own, as it
    was given.
    """

    question: str
    answer: str
    support: float | None
    supported: bool | None
    sources: tuple[Hit, ...]
    memory_tokens: int
    prompt_tokens: int
    text_tokens_replaced: int
    seconds: dict[str, float]
    support_method: str | None = None
    read: str = "memory"
    explain: Explanation | None = None
    abstained: bool = False
    warnings: tuple[str, ...] = ()
    id: Any = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The passages of a question alone, best first; `seconds` per phase, a question's share where
    several were searched together."""

    question: str
    sources: tuple[Hit, ...]
    seconds: dict[str, float]
    id: Any = None


@dataclass(frozen=True, slots=True)
class Retelling:
    """What the generator wrote from the memory of one passage: a paraphrase, or its questions with
    their answers (`qa`). Counts are in backbone tokens, `seconds` per phase."""

    task: Task
    passage: Passage
    answer: str
    memory_tokens: int
    prompt_tokens: int
    text_tokens_replaced: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of long work. `done` and `total` count `unit`s (`total` None: unknown), `share` is
    the part of the work that is done, 0-1, where it is not their quotient (None: unknown);
    `figures` are shown beside the bar in the order given, already formatted."""

    task: str
    done: int
    total: int | None
    unit: str
    figures: dict[str, str] = field(default_factory=dict)
    share: float | None = None


class Report(Protocol):
    """How a command speaks while it runs. Everything said here goes to stderr."""

    def progress(self, progress: Progress) -> None:
        """Show how far long work has come."""

    def note(self, message: str) -> None:
        """Say something worth knowing once."""

    def warn(self, message: str) -> None:
        """Say something the user did not ask for and should know."""

    def confirm(self, question: str) -> bool | None:
        """Ask the user yes or no; None where there is nobody to ask."""


class NullReport:
    """A report that says nothing."""

    def progress(self, progress: Progress) -> None:
        """Say nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""

    def warn(self, message: str) -> None:
        """Say nothing."""

    def confirm(self, question: str) -> bool | None:
        """Ask nobody."""


class Tracker(Protocol):
    """What follows a training run's figures elsewhere (TensorBoard, for one)."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the figures of a step."""

    def finish(self) -> None:
        """Take no more."""


@dataclass(frozen=True, slots=True)
class CompressResult:
    """What `compress` made or added; the keys of its JSON line. `skipped` counts what was bad or
    could not be read, `left_out` the files of folders that are not read, by suffix. Of a dry run,
    `bytes` are those of the memory, `seconds` and `passages_per_second` the estimate; the latter is
    None where nothing was left to compute."""

    corpus: str
    documents: int
    passages: int
    empty: int
    skipped: int
    left_out: dict[str, int]
    truncated: int
    memory_tokens: int
    ratio: int
    effective_ratio: float
    bytes: int
    seconds: float
    passages_per_second: float | None


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What `compress --into` did to a corpus; the keys of its JSON line. `documents`, `passages`
    and `bytes` (of shards and passages) are those of the corpus now. Of the documents given,
    `added`, `replaced` and `unchanged` ones, and `moved` ones among the added, whose memory was
    there under another id; `deleted` are gone. `computed` passages, `bytes_written` without the
    index, `index_bytes` of the index that followed."""

    corpus: str
    documents: int
    passages: int
    added: int
    replaced: int
    unchanged: int
    moved: int
    deleted: int
    skipped: int
    left_out: dict[str, int]
    computed: int
    memory_tokens: int
    ratio: int
    bytes: int
    bytes_written: int
    index_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class IndexResult:
    """What `index` built and measured; the keys of its JSON line. `dim` and `recall_at_k` are the
    graph's, which engine `exact` does not keep: how wide its keys are, and the mean share of the
    exact scan's top k among its candidates over `queries` questions (None without any)."""

    corpus: str
    engine: str
    vectors: int
    dim: int
    recall_at_k: float | None
    k: int
    queries: int
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A document of a corpus: how many passages and tokens it has, the bytes of its memory, and the
    file it is from, seen from the folder that the corpus lies in."""

    id: str
    passages: int
    tokens: int
    bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class CorpusContents:
    """What a corpus holds; the keys of the JSON line of `index --list`. `bytes` are those of its
    shards and passages."""

    corpus: str
    model: str | None
    ratio: int
    passages: int
    bytes: int
    documents: tuple[DocumentRow, ...]


@dataclass(frozen=True, slots=True)
class PassageRow:
    """A passage of a document; its text is None where none was kept."""

    passage_id: str
    start: int
    end: int
    tokens: int
    source: str
    text: str | None


@dataclass(frozen=True, slots=True)
class DocumentContents:
    """A document of a corpus; the keys of the JSON line of `index --show`."""

    id: str
    title: str
    passages: int
    tokens: int
    bytes: int
    source: str
    model: str | None
    metadata: dict[str, Any]
    texts: tuple[PassageRow, ...]


@dataclass(frozen=True, slots=True)
class CachedCorpusRow:
    """A corpus that the user's cache keeps of documents that were asked: what was given, and when
    it was last used, in UTC. `documents` is None of one that is not finished."""

    name: str
    inputs: tuple[str, ...]
    documents: int | None
    passages: int | None
    model: str | None
    bytes: int
    last_used: str


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What `pretrain` and `train` made; the keys of their JSON line. Losses are means over the
    last tenth of the steps; `tokens_per_second` is None where no step was left to do, `mse` in
    stages that have none. `best_step` is the step whose weights the checkpoint has where the run
    was validated, `validation` their figures."""

    checkpoint: str
    stage: str
    steps: int
    ce: float | None
    mse: float | None
    seconds: float
    tokens_per_second: float | None
    best_step: int | None = field(default=None, metadata={"json": False})
    validation: dict[str, float] = field(default_factory=dict, metadata={"json": False})


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """The memory a command would need, computed from configs; the keys of the JSON line of `ask`,
    `pretrain` and `train` with `--dry-run`. `bytes` is the sum of what follows it: the backbone's
    weights, its roles' adapters, memory tokens, the cache of an answer, and gradients and optimiser
    of what trains. Activations are not in it."""

    backbone: str
    parameters: int
    dtype: str
    load_in: str | None
    roles: tuple[str, ...]
    bytes: int
    weights: int
    adapters: int
    memory_tokens: int
    cache: int
    training: int


@dataclass(frozen=True, slots=True)
class SynthResult:
    """What `synth` wrote; the keys of its JSON line. `pairs` is the file; `accepted` and `rejected`
    count question-answer pairs, paraphrases or pool questions over all runs that made it, `rounds`
    is the most that a passage took, `tokens` are the language model's, read and written.

    `kinds` has (accepted, rejected) of each kind, `reasons` and `dropped` count why pairs and
    passages were rejected, `coverage` is the mean over passages, `samples` are pairs to judge by.
    """

    pairs: str
    accepted: int
    rejected: int
    passages: int
    rounds: int
    tokens: int
    seconds: float
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict, metadata={"json": False})
    reasons: dict[str, int] = field(default_factory=dict, metadata={"json": False})
    dropped: dict[str, int] = field(default_factory=dict, metadata={"json": False})
    coverage: float | None = field(default=None, metadata={"json": False})
    cost: float | None = field(default=None, metadata={"json": False})
    samples: tuple[tuple[str, str], ...] = field(default=(), metadata={"json": False})
