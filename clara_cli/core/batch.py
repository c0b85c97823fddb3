"""Records to token rows, per training stage. No tensors: a batch is lists of ids, built from a
prompter alone, so that what a step trains on can be counted before anything is computed.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from clara_cli.core.losses import IGNORE
from clara_cli.core.prompts import PARAPHRASE_INSTRUCTIONS, Prompter, list_target
from clara_cli.records import Pair


@dataclass(frozen=True)
class AnswerExample:
    """A question, the answer to learn and the passages it comes with: model texts, or `rows` of a
    corpus whose memory is stored. `golds` are the positions of those known to hold the answer,
    `source` is the record's `file:line`."""

    question: str
    answer: str
    texts: tuple[str, ...]
    source: str = ""
    golds: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()


@dataclass
class Batch:
    """Token rows of one forward pass.

    `passages` are encoded once each, `stored` are rows of a corpus in their place; example b reads
    `pools[b]` of them. `rows` and
    `labels` are the generator's; `queries` what the query reasoner reads; `picks` how many passages
    of its pool example b is given; `golds` the positions in it to be ranked first. `cut` counts
    answers that did not fit; an example of which no answer token fits is left out. `sources` names
    every record, for messages; examples of equal `contexts` read the same passages. `text_rows` are
    ids and labels of examples, by their number, with the passages' text in memory's place.
    """

    memory_tokens: int
    passages: list[list[int]] = field(default_factory=list)
    pools: list[list[int]] = field(default_factory=list)
    picks: list[int] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    queries: list[list[int]] = field(default_factory=list)
    golds: list[tuple[int, ...]] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    cut: int = 0
    sources: list[str] = field(default_factory=list)
    contexts: list[Hashable] = field(default_factory=list)
    text_rows: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)
    _known: dict[tuple[int, ...], int] = field(default_factory=dict)

    @property
    def labelled(self) -> int:
        """What the loss is a mean over: labelled tokens (each label but a first position's has a
        logit before it); where nothing is answered, the questions with a passage to find."""
        if not self.rows:
            return len(self.golds)
        return sum(label != IGNORE for labels in self.labels for label in labels[1:])

    @property
    def read(self) -> int:
        """Passages the examples read, each as often as it is: what alignment is a mean over."""
        return sum(map(len, self.pools))

    @property
    def tokens(self) -> int:
        """Positions computed: passages with their memory, queries with theirs, decoder rows."""
        encoded = sum(len(row) + self.memory_tokens for row in [*self.passages, *self.queries])
        as_text = sum(len(ids) for ids, _ in self.text_rows.values())
        return encoded + sum(map(len, self.rows)) + as_text

    def add_passages(self, rows: Sequence[list[int]]) -> None:
        """Give the next example its pool; a passage already in the batch is not encoded again."""
        pool = []
        for row in rows:
            key = tuple(row)
            if key not in self._known:
                self._known[key] = len(self.passages)
                self.passages.append(row)
            pool.append(self._known[key])
        self.pools.append(pool)

    def add_stored(self, rows: Sequence[int]) -> None:
        """Give the next example a pool of passages whose memory a corpus has."""
        place_of = {row: place for place, row in enumerate(self.stored)}
        self.pools.append([place_of.setdefault(row, len(place_of)) for row in rows])
        self.stored = list(place_of)

    def add_target(
        self, prompter: Prompter, chat: tuple[str, str], answer: str, limit: int
    ) -> bool:
        """Give the next example its prompt and answer; False where no answer token fits."""
        ids, labels = prompter.example(chat, answer, limit + 1)
        self.cut += len(ids) > limit
        if all(label == IGNORE for label in labels[1:limit]):
            return False
        self.rows.append(ids[:limit])
        self.labels.append(labels[:limit])
        return True

    def add_text(self, prompter: Prompter, example: AnswerExample, limit: int) -> None:
        """Give the last example its prompt over text, where prompt and answer fit as they do over
        memory."""
        chat = prompter.text_chat(example.question, example.texts)
        ids, labels = prompter.example(chat, example.answer, limit)
        answer = [label for label in labels if label != IGNORE]
        if answer == [label for label in self.labels[-1] if label != IGNORE]:
            self.text_rows[len(self.rows) - 1] = (ids, labels)


def add_reconstructions(
    batch: Batch, prompter: Prompter, share: float, rng: random.Random, limit: int
) -> None:
    """Add for a share of the passages, drawn, that the generator writes them out: the text that the
    compressor reads, after a paraphrase instruction drawn as well."""
    for place, row in enumerate(batch.passages):
        if rng.random() >= share:
            continue
        instruction = rng.randrange(len(PARAPHRASE_INSTRUCTIONS))
        chat = prompter.paraphrase_chat(batch.memory_tokens, instruction)
        if batch.add_target(prompter, chat, prompter.text_of(row), limit):
            batch.pools.append([place])
            batch.picks.append(1)
            if batch.contexts:
                batch.contexts.append(("reconstruction", place, instruction))


def pair_length(pair: Pair) -> int:
    """Characters an SCP example takes, about in proportion to its tokens: sorted by it, examples
    of like length share a forward pass."""
    return sum(map(len, (pair.texts[0], *pair.questions, *pair.answers)))


def example_length(example: AnswerExample) -> int:
    """The same of a question with its passages."""
    return sum(map(len, (example.question, example.answer, *example.texts)))


def scp_batch(
    prompter: Prompter,
    pairs: Sequence[Pair],
    instructions: Sequence[int],
    memory_tokens: int,
    limit: int,
) -> Batch:
    """SCP: each pair's passage, and its question-answer list or paraphrase as the target
    (paper section 3.1). `instructions[b]` picks the paraphrase instruction of example b."""
    batch = Batch(memory_tokens)
    for pair, instruction in zip(pairs, instructions, strict=True):
        batch.sources.append(pair.source)
        if pair.kind == "paraphrase":
            chat = prompter.paraphrase_chat(
                memory_tokens, instruction % len(PARAPHRASE_INSTRUCTIONS)
            )
            target = pair.answers[0]
        else:
            chat, target = (
                prompter.list_chat(memory_tokens),
                list_target(pair.questions, pair.answers),
            )
        if batch.add_target(prompter, chat, target, limit):
            batch.add_passages([prompter.passage(pair.texts[0])])
            batch.picks.append(1)
    return batch


def answer_batch(
    prompter: Prompter,
    examples: Sequence[AnswerExample],
    memory_tokens: int,
    limit: int,
    top_k: int | None = None,
    with_text: bool = False,
) -> Batch:
    """Questions over memories: instruct gives every passage (`top_k` None), e2e encodes the
    question as a query and leaves `top_k` places in the prompt. `with_text`: the same over the
    passages' text too, where the answer fits."""
    batch = Batch(memory_tokens)
    for example in examples:
        batch.sources.append(example.source)
        passages = len(example.texts) or len(example.rows)
        picks = passages if top_k is None else min(top_k, passages)
        chat = prompter.answer_chat(example.question, picks, memory_tokens)
        if not batch.add_target(prompter, chat, example.answer, limit):
            continue
        if example.rows:
            batch.add_stored(example.rows)
        else:
            rows = [prompter.passage(text) for text in example.texts]
            batch.add_passages(rows)
            if top_k is None:  # else each question chooses passages of its own
                batch.contexts.append(tuple(batch.pools[-1]))
        batch.picks.append(picks)
        if with_text:
            batch.add_text(prompter, example, limit)
        if top_k is not None:
            batch.queries.append(prompter.query(example.question))
    return batch


def text_batch(
    prompter: Prompter, examples: Sequence[AnswerExample], limit: int, top_k: int
) -> Batch:
    """Questions over the text of their first `top_k` passages: nothing is compressed."""
    batch = Batch(memory_tokens=0)
    for example in examples:
        batch.sources.append(example.source)
        texts = example.texts[:top_k]
        chat = prompter.text_chat(example.question, texts)
        if batch.add_target(prompter, chat, example.answer, limit):
            batch.contexts.append(texts)
    return batch


def retrieval_batch(
    prompter: Prompter, examples: Sequence[AnswerExample], memory_tokens: int
) -> Batch:
    """Questions and the passages to tell apart for them; nothing is answered."""
    batch = Batch(memory_tokens)
    for example in examples:
        batch.sources.append(example.source)
        if example.rows:
            batch.add_stored(example.rows)
        else:
            batch.add_passages([prompter.passage(text) for text in example.texts])
        batch.queries.append(prompter.query(example.question))
        batch.golds.append(example.golds)
    return batch
