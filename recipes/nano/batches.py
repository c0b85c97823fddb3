"""What one training step reads: rows of token ids made from the packed arrays.

Batch number s is a function of (seed, s) alone, so a run that was stopped goes on with the very
batches it would have seen. numpy only; knows nothing of the network but the codes of its positions.

Tasks of a step, all about the same passages:
  memory    several questions in turn about one passage, read from memory tokens; other passages of
            its pool stand beside it, the first in rank mostly the right one
  text      the same with the passages as text
  repeat    the passage itself, or the one that tells nearly the same, from memory tokens
  search    a question of each passage against all passages of the batch
  slots     words each memory should hold, those of answers first
  read      language modelling on the passages while they are compressed
  stream    Wikipedia in a row, language modelling
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from network import ENCODE, MEMORY, SEPARATOR
from packed_format import SOURCES, Ragged

TITLE_SHARE = 0.6  # of passages are read with their title
FIRST_SHARE = 0.7  # of prompts with several passages have the right one first
REPEATED = 96  # tokens of a passage that are repeated
TEXT_TOKENS = 1400  # of passages in one prompt of text, questions not counted


@dataclass(frozen=True)
class Mixture:
    """How much of what a step holds; shares of the seeds of a batch by source."""

    sources: dict[str, float]
    passages: int = 64  # compressed in a step
    cluster: int = 4  # passages of one pool in a row
    turns: int = 4  # questions about one passage
    longest: int = 24  # tokens of an answer that is asked for
    asked: float = 0.2  # weight of a question's tokens beside the answer's
    closed: float = 0.02  # share of prompts with nothing to read
    text: float = 0.25  # share of the clusters whose first passage is also read as text
    stream: int = 0  # rows of language modelling
    window: int = 512  # tokens of such a row
    slots: tuple[int, ...] = (64, 64, 32, 16, 16, 8, 4)  # M of a step is drawn from these
    widths: int = 1  # row lengths are rounded up to a multiple of this


@dataclass
class Rows:
    """Rows of one task: ids (B, T) padded, the flat positions that predict, what they predict,
    how much each counts, and which passages' memories stand in them, in reading order."""

    ids: np.ndarray
    where: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    memories: np.ndarray


@dataclass
class Batch:
    """One step. `lengths` are those of the rows to compress, memory slots not counted."""

    slots: int
    passages: np.ndarray
    lengths: np.ndarray
    queries: np.ndarray
    query_lengths: np.ndarray
    owners: np.ndarray
    word_rows: np.ndarray
    words: np.ndarray
    read_where: np.ndarray  # flat positions inside the compressed texts that predict a token
    read: np.ndarray
    tasks: dict[str, Rows]
    tokens: int = 0


@dataclass
class Builder:
    """Makes batches of packed arrays. `stage` of a batch: which tasks, how many passages."""

    arrays: dict[str, np.ndarray]
    pieces: dict[str, list[int]]
    mixture: Mixture
    seed: int
    held: bool = False
    orders: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.passage = Ragged.of(self.arrays, "passage")
        self.question = Ragged.of(self.arrays, "question")
        self.answer = Ragged.of(self.arrays, "answer")
        owner = self.arrays["question_passage"]
        rows = np.arange(len(self.passage))
        self.first = np.searchsorted(owner, rows, "left")
        self.last = np.searchsorted(owner, rows, "right")
        self.gap_of = {int(p): i for i, p in enumerate(self.arrays["cloze_passage"])}
        same = self.arrays["same"]
        self.twin = {int(a): int(b) for a, b in [*same, *same[:, ::-1]]}

    @cached_property
    def seeds(self) -> dict[str, np.ndarray]:
        """Passages that can be asked about, by source."""
        askable = self.last > self.first
        askable[self.arrays["cloze_passage"]] = True
        askable &= (self.arrays["passage_held"] == 1) == self.held
        source = self.arrays["passage_source"]
        found = {n: np.flatnonzero(askable & (source == i)) for i, n in enumerate(SOURCES)}
        return {name: rows for name, rows in found.items() if len(rows)}

    @cached_property
    def anywhere(self) -> np.ndarray:
        """All passages of this part, asked about or not."""
        return np.flatnonzero((self.arrays["passage_held"] == 1) == self.held)

    def drawn(self, source: str, number: int) -> int:
        """The passage at a place in an endless shuffled reading of one source."""
        rows = self.seeds[source]
        epoch, place = divmod(number, len(rows))
        if (source, epoch) not in self.orders:
            rng = np.random.default_rng((self.seed, SOURCES.index(source), epoch))
            self.orders = {k: v for k, v in self.orders.items() if k[0] != source}
            self.orders[source, epoch] = rng.permutation(rows)
        return int(self.orders[source, epoch][place])

    def chosen(self, step: int, rng: np.random.Generator) -> list[list[int]]:
        """Clusters of passages: a seed and others of its pool."""
        names = [name for name in self.mixture.sources if name in self.seeds]
        weights = np.array([self.mixture.sources[name] for name in names])
        count = max(1, self.mixture.passages // self.mixture.cluster)
        taken: set[int] = set()
        clusters = []
        for place in range(count):
            source = names[int(rng.choice(len(names), p=weights / weights.sum()))]
            seed = self.drawn(source, step * count + place)
            near = [int(j) for j in self.arrays["passage_near"][seed] if j >= 0]
            members = [j for j in [seed, *near] if j not in taken][: self.mixture.cluster]
            while len(members) < self.mixture.cluster:  # no pool, or one that is used up
                other = int(rng.choice(self.anywhere))
                members += [other] if other not in (*taken, *members) else []
            taken.update(members)
            clusters.append(members)
        return clusters

    def asked(self, passage: int, rng: np.random.Generator) -> list[tuple[Any, Any, list[int]]]:
        """(question ids, answer ids, further passages needed) about a passage, shuffled."""
        numbers = rng.permutation(np.arange(self.first[passage], self.last[passage]))
        also = self.arrays["question_also"]
        found = [
            (self.question[n], self.answer[n], [int(j) for j in also[n] if j >= 0])
            for n in numbers
            if len(self.answer[n]) <= self.mixture.longest
        ][: self.mixture.turns]
        if passage in self.gap_of:
            ids, span = self.passage[passage], self.arrays["cloze_span"][self.gap_of[passage]]
            start, gap, end, stop = (int(edge) for edge in span)
            pieces = self.pieces
            asked = [*pieces["question"], *ids[start:gap], *pieces["gap"], *ids[end:stop]]
            found.append((asked, ids[gap:end], []))
        return found

    def text(self, passage: int, rng: np.random.Generator) -> np.ndarray:
        """A passage's tokens, with or without its title."""
        with_title = rng.random() < TITLE_SHARE
        return self.passage[passage][0 if with_title else self.arrays["passage_head"][passage] :]

    def group(
        self, right: int, needed: list[int], cluster: list[int], rng: np.random.Generator
    ) -> list[int]:
        """The passages of one prompt: the right ones and some others of the cluster."""
        must = [right, *(j for j in needed if j in cluster and j != right)]
        others = [j for j in cluster if j not in must]
        extra = int(rng.choice((0, 0, 1, len(others)))) if others else 0
        rest = [int(j) for j in rng.permutation(others)[:extra]]
        if rng.random() < FIRST_SHARE:
            return must + rest
        return [int(j) for j in rng.permutation(must + rest)]

    def conversation(
        self, opening: list[int], turns: list
    ) -> tuple[list[int], list[int], list[float]]:
        """(ids, labels, weights): questions and answers in turn after an opening."""
        pieces, light = self.pieces, self.mixture.asked
        ids, target, weights = list(opening), [-1] * len(opening), [0.0] * len(opening)
        for number, (asked, said, _) in enumerate(turns):
            closed = number == 0 and opening == self.opening([])
            asked = list(asked[len(pieces["joint"]) if closed else 0 :])
            answer = [*said, *pieces["eos"]]
            ids += [*asked, *pieces["assistant"], *answer]
            target += [*asked, -1, *answer] if light else [-1] * (len(asked) + 1) + answer
            weights += [light] * len(asked) + [0.0] + [1.0] * len(answer)
        return ids, target, weights

    def opening(self, blocks: list[list[int]]) -> list[int]:
        """A prompt up to where the question begins; no blocks: closed book."""
        start = [*self.pieces["bos"], *self.pieces["user"]]
        return start + (self.pieces["opening"] + sum(blocks, []) if blocks else [])

    def rows(self, made: list[tuple[list, list, list]], memories: list[int]) -> Rows:
        """Pad rows of (ids, labels, weights) and find the positions that predict a label."""
        if not made:
            return Rows(*(np.zeros(0, np.int64) for _ in range(5)))
        ids = self.padded([ids for ids, _, _ in made])
        labels, weights = np.full(ids.shape, -1), np.zeros(ids.shape, np.float32)
        for i, (_, target, weight) in enumerate(made):
            labels[i, : len(target) - 1] = target[1:]
            weights[i, : len(target) - 1] = weight[1:]
        where = np.flatnonzero(labels.ravel() >= 0)
        found = labels.ravel()[where], weights.ravel()[where]
        return Rows(ids, where, *found, np.array(memories, np.int64))

    def padded(self, rows: list) -> np.ndarray:
        width = max(len(row) for row in rows)
        width = -(-width // self.mixture.widths) * self.mixture.widths
        ids = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return ids

    def to_compress(self, texts: list[np.ndarray], slots: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows for `Network.compress`, and the lengths before their slots."""
        bos, eos = self.pieces["bos"], self.pieces["eos"]
        rows = [[ENCODE, *bos, *text, *eos] for text in texts]
        ids = self.padded([row + [MEMORY] * slots for row in rows])
        return ids, np.array([len(row) for row in rows])

    def batch(self, step: int, tasks: frozenset[str]) -> Batch:
        """The batch of one step with the tasks named."""
        rng = np.random.default_rng((self.seed, 10, step))
        slots = int(rng.choice(self.mixture.slots))
        clusters = self.chosen(step, rng)
        passages = [p for cluster in clusters for p in cluster]
        texts = [self.text(p, rng) for p in passages]
        ids, lengths = self.to_compress(texts, slots)
        turns = [self.asked(p, rng) for p in passages]
        made: dict[str, Rows] = {}
        if "memory" in tasks:
            made["memory"] = self.reading(clusters, passages, turns, slots, rng)
        if "repeat" in tasks:
            made["repeat"] = self.repeating(passages, texts, slots, step)
        if "text" in tasks:
            made["text"] = self.reading_text(clusters, passages, turns, texts, rng)
        made = {name: rows for name, rows in made.items() if rows.ids.size}
        if "stream" in tasks and self.mixture.stream:
            made["stream"] = self.streaming(rng)
        owners = [i for i, turn in enumerate(turns) if turn]
        prefix = len(self.pieces["question"])
        asked = [np.asarray(turns[i][0][0][prefix:]) for i in owners]
        queries, query_lengths = self.to_compress(asked, slots)
        result = Batch(
            slots,
            ids,
            lengths,
            queries,
            query_lengths,
            np.array(owners),
            *self.wanted(texts, turns, slots),
            *self.reading_on(ids, lengths),
            made,
        )
        result.tokens = ids.size + sum(rows.ids.size for rows in made.values())
        result.tokens += queries.size if "search" in tasks else 0
        return result

    def reading_on(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the texts to compress that have a next token, BOS to the last but one."""
        places = np.arange(ids.shape[1])
        inside = (places >= 1) & (places < lengths[:, None] - 1)
        where = np.flatnonzero(inside.ravel())
        return where, ids.ravel()[where + 1]

    def reading(
        self, clusters: list, passages: list[int], turns: list, slots: int, rng: Any
    ) -> Rows:
        """The memory task."""
        place = {p: i for i, p in enumerate(passages)}
        block = [MEMORY] * slots + [SEPARATOR]
        pairs, memories = [], []
        for cluster in clusters:
            for right in cluster:
                turn = turns[place[right]]
                if not turn:
                    continue
                closed = rng.random() < self.mixture.closed
                needed = [j for _, _, also in turn for j in also]
                group = [] if closed else self.group(right, needed, cluster, rng)
                pairs.append(self.conversation(self.opening([block] * len(group)), turn))
                memories += [place[j] for j in group]
        return self.rows(pairs, memories)

    def reading_text(
        self, clusters: list, passages: list[int], turns: list, texts: list, rng: Any
    ) -> Rows:
        """The text task, for the first passages of some clusters."""
        place = {p: i for i, p in enumerate(passages)}
        pairs = []
        for cluster in clusters[: max(1, round(self.mixture.text * len(clusters)))]:
            turn = turns[place[cluster[0]]]
            if not turn:
                continue
            needed = [j for _, _, also in turn for j in also]
            blocks: list[list[int]] = []
            for j in self.group(cluster[0], needed, cluster, rng):
                joint = self.pieces["joint"] if blocks else []
                if sum(map(len, blocks)) + len(texts[place[j]]) < TEXT_TOKENS:
                    blocks.append([*joint, *texts[place[j]]])
            pairs.append(self.conversation(self.opening(blocks), turn))
        return self.rows(pairs, [])

    def repeating(self, passages: list[int], texts: list, slots: int, step: int) -> Rows:
        """The repeat task, for one passage in eight."""
        pairs, memories = [], []
        block = [MEMORY] * slots + [SEPARATOR]
        for i in range(step % min(8, len(passages)), len(passages), 8):
            twin = self.twin.get(passages[i])
            said = texts[i] if twin is None else self.passage[twin]
            head = 0 if twin is None else self.arrays["passage_head"][twin]
            target = [*said[head : head + REPEATED], *self.pieces["eos"]]
            opening = self.opening([block]) + self.pieces["repeat"] + self.pieces["assistant"]
            ids = opening + target
            weights = [0.0] * len(opening) + [1.0] * len(target)
            pairs.append((ids, [-1] * len(opening) + target, weights))
            memories.append(i)
        return self.rows(pairs, memories)

    def streaming(self, rng: np.random.Generator) -> Rows:
        """Windows of the packed passages in their order: Wikipedia's articles as they run."""
        tokens, window = self.passage.tokens, self.mixture.window
        start = rng.integers(0, len(tokens) - window, size=self.mixture.stream)
        found = [tokens[s : s + window].tolist() for s in start]
        return self.rows([(ids, ids, [1.0] * window) for ids in found], [])

    def wanted(self, texts: list, turns: list, slots: int) -> tuple[np.ndarray, np.ndarray]:
        """(row, word) of what memories should hold: every answer's words, and as many others of
        the passage as there are slots, spread over it."""
        rows, words = [], []
        for i, text in enumerate(texts):
            spread = text[np.linspace(0, len(text) - 1, num=min(len(text), slots)).astype(int)]
            said = [word for _, answer, _ in turns[i] for word in answer]
            found = sorted({*(int(w) for w in said), *(int(w) for w in spread)})
            rows += [i] * len(found)
            words += found
        return np.array(rows), np.array(words)
