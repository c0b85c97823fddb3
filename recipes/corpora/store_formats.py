"""What each `--store-dtype` costs and loses: bytes, the error of the memory, and answers and search
over it against float32, on questions whose passage is known.

    clara compress DATA --model smol --ratio 2 --dtype float32 --split none --out dev.clara
    python recipes/corpora/store_formats.py dev.clara DATA --ratios 4,16,24 --out runs/storage

DATA holds passages with their questions (`qas`), one a line. The corpus keeps a long memory in
float32, of which that of every ratio and format is made. Passages are drawn by the seed, each with
all its questions, which the generator answers from the memory of their passage, greedily. Search is
the exact scan of all passages by the checkpoint's own reading of the question.

Answers are kept as they come (`answers.jsonl`): a run that was stopped goes on when the same
command is given again. Prints the table.

Tensor letters: P passages of a group, F formats, Q questions, R rows (P x F, or their questions), M
memory tokens, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clara_cli.core.checkpoint import LoadOptions, load, reads
from clara_cli.core.checkpoint_info import CheckpointInfo
from clara_cli.core.length_grouping import until_end
from clara_cli.core.llama import Cache, Llama
from clara_cli.core.model import ClaraModel
from clara_cli.corpus.quantize import FORMATS, pack, passage_bytes, unpack
from clara_cli.corpus.store import Corpus
from clara_cli.documents.examples import Question, read_questions
from clara_cli.evaluation.metrics import exact_match, f1
from clara_cli.memory_layout import coarsen
from clara_cli.search.exact import scan

EXACT = "float32"  # the format that the others are compared with
TOP_K = 5
GROUP, ROWS = 8, 32  # passages answered together, and rows of one pass
QUERIES = 64  # questions read together
RESAMPLES = 10_000
ANSWERS, HITS = "answers.jsonl", "hits.jsonl"


def stored(memory_NMD: Tensor, dtype: str) -> Tensor:
    """Memory as it is read after it was stored."""
    packed = pack(memory_NMD, dtype)
    return unpack(packed["memory"], packed.get("scales"), dtype, memory_NMD.shape[2])


# --- answers ---


@dataclass(frozen=True)
class Prompt:
    """The ids and positions of a prompt: what is before the memory, the memory's places, and what
    follows it."""

    ids: list[int]
    positions: list[int]
    start: int
    end: int


def prompt_of(model: ClaraModel, question: str, memory_tokens: int) -> Prompt:
    """The prompt of a question over the memory of one passage."""
    prompter = model.prompter
    ids = prompter.prompt(prompter.answer_chat(question, 1, memory_tokens))
    places = [place for place, token in enumerate(ids) if token in prompter.memory_ids]
    positions = model.positions([ids])
    placed = list(range(len(ids))) if positions is None else positions[0]
    return Prompt(ids, placed, places[0], places[-1] + 1)


@dataclass(frozen=True)
class Task:
    """A question over the memory of a row, and a guess at its answer."""

    row: int
    prompt: Prompt
    draft: list[int]

    @property
    def tail(self) -> list[int]:
        """The ids that follow the memory."""
        return self.prompt.ids[self.prompt.end :] + self.draft

    @property
    def places(self) -> list[int]:
        """Their positions."""
        after = self.prompt.positions[-1] + 1
        return [*self.prompt.positions[self.prompt.end :], *range(after, after + len(self.draft))]


class AnswerWriter:
    """Greedy answers over the memory of one passage each. What prompts begin with, and the memory
    of a passage, is computed once for all questions; a draft is checked in one pass and left where
    another token is likelier, so that an answer is what decoding token by token gives."""

    def __init__(self, model: ClaraModel, memory_tokens: int, max_new_tokens: int) -> None:
        if not isinstance(model.causal_lm, Llama):
            raise SystemExit("this script reads with clara's own Llama alone")
        self._model, self._llama = model, model.causal_lm
        self._most = max_new_tokens
        self._ends = model.end_ids()
        self._memory_tokens = memory_tokens
        self._first = prompt_of(model, "", memory_tokens)
        first = self._first
        embeds_1TD = model.embed(torch.tensor([first.ids[: first.start]]), None)
        with model.role("generator"):
            self._beginning = model.causal_lm.read(embeds_1TD)

    def answers(
        self,
        memory_RMD: Tensor,
        questions: Sequence[Sequence[str]],
        drafts: Sequence[Sequence[list[int]]],
    ) -> list[list[list[int]]]:
        """The ids of the answers to each row's questions; `drafts` may be empty lists."""
        tasks = [
            Task(row, prompt_of(self._model, text, self._memory_tokens), draft)
            for row, pair in enumerate(zip(questions, drafts, strict=True))
            for text, draft in zip(*pair, strict=True)
        ]
        memory = self._after_memory(memory_RMD)
        written: dict[int, list[int]] = {}
        by_length = sorted(range(len(tasks)), key=lambda number: len(tasks[number].tail))
        for start in range(0, len(tasks), ROWS):
            numbers = by_length[start : start + ROWS]
            answers = self._write([tasks[number] for number in numbers], memory)
            written.update(zip(numbers, answers, strict=True))
        flat = iter([until_end(written[n][: self._most], self._ends) for n in range(len(tasks))])
        return [[next(flat) for _ in row] for row in questions]

    def _write(self, tasks: Sequence[Task], memory: Cache) -> list[list[int]]:
        """Answers to some tasks, with what comes after their end."""
        guesses = [task.draft for task in tasks]
        width, end = max(len(task.tail) for task in tasks), self._first.end
        room = width + self._most
        cache = _picked(memory, [task.row for task in tasks], room)
        real_RT = torch.ones(len(tasks), end + width, dtype=torch.bool)
        for row, task in enumerate(tasks):
            real_RT[row, end : end + width - len(task.tail)] = False
        ids_RT = torch.tensor([[0] * (width - len(task.tail)) + task.tail for task in tasks])
        places_RT = torch.tensor([[0] * (width - len(t.places)) + t.places for t in tasks])
        hidden_RTD = self._read(self._model.embed(ids_RT, None), real_RT, places_RT, cache)
        written = self._check(hidden_RTD, guesses)
        self._continue(written, guesses, cache, real_RT, places_RT)
        return written

    def _read(
        self, embeds_RTD: Tensor, real_RT: Tensor | None, positions_RT: Tensor, cache: Cache
    ) -> Tensor:
        """The hidden states of positions that follow what the cache holds."""
        with self._model.role("generator"):
            out = self._llama.model(embeds_RTD, real_RT, positions_RT, cache=cache)
        return out.last_hidden_state

    def _after_memory(self, memory_RMD: Tensor) -> Cache:
        """The cache of everything up to the memory's end, a row for each memory."""
        first, rows = self._first, len(memory_RMD)
        ids_RM = torch.tensor([first.ids[first.start : first.end]] * rows)
        embeds_RMD = self._model.embed(ids_RM, memory_RMD.flatten(0, 1))
        cache = self._beginning.followed(rows, len(ids_RM[0]))
        places_1M = torch.tensor([first.positions[first.start : first.end]])
        self._read(embeds_RMD, None, places_1M, cache)
        return cache

    def _check(self, hidden_RTD: Tensor, guesses: Sequence[list[int]]) -> list[list[int]]:
        """Each draft as far as it is what would be written, and the token after that."""
        states = [
            hidden_TD[hidden_TD.shape[0] - 1 - len(draft) :]
            for hidden_TD, draft in zip(hidden_RTD, guesses, strict=True)
        ]
        likeliest = self._llama.lm_head(torch.cat(states)).argmax(-1)
        written = []
        for draft, ids in zip(guesses, likeliest.split([len(s) for s in states]), strict=True):
            pairs = zip(ids.tolist(), draft, strict=False)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(draft))
            written.append([*draft[:same], int(ids[same])])
        return written

    def _continue(
        self,
        written: list[list[int]],
        guesses: Sequence[list[int]],
        cache: Cache,
        real_RT: Tensor,
        places_RT: Tensor,
    ) -> None:
        """Write on, in place, where the last token ends nothing and there is room."""
        rows = [row for row, ids in enumerate(written) if self._goes_on(ids)]
        lasts = []
        for row in rows:
            rejected = len(guesses[row]) - (len(written[row]) - 1)
            end = real_RT.shape[1]
            real_RT[row, end - rejected : end] = False
            lasts.append(int(places_RT[row, -1]) - rejected)
        cache, real_RT = _picked(cache, rows), real_RT[rows]
        places_R1 = torch.tensor(lasts)[:, None]
        while rows:
            ids_R1 = torch.tensor([[written[row][-1]] for row in rows])
            real_RT, places_R1 = F.pad(real_RT, (0, 1), value=True), places_R1 + 1
            hidden_R1D = self._read(self._model.embed(ids_R1, None), real_RT, places_R1, cache)
            for row, token in zip(
                rows, self._llama.lm_head(hidden_R1D[:, -1]).argmax(-1).tolist(), strict=True
            ):
                written[row].append(token)
            kept = [place for place, row in enumerate(rows) if self._goes_on(written[row])]
            if len(kept) < len(rows):
                cache, real_RT, places_R1 = _picked(cache, kept), real_RT[kept], places_R1[kept]
                rows = [rows[place] for place in kept]

    def _goes_on(self, ids: Sequence[int]) -> bool:
        return ids[-1] not in self._ends and len(ids) < self._most


def _picked(cache: Cache, rows: Sequence[int], room: int = 0) -> Cache:
    """Rows of a cache, one perhaps several times, with `room` for more positions."""
    keys, values = (
        [F.pad(x[list(rows)], (0, 0, 0, room)) if room else x[list(rows)] for x in layers]
        for layers in (cache.keys, cache.values)
    )
    return Cache(keys, values, cache.filled)


# --- what is kept of a run ---


@dataclass(frozen=True)
class Line:
    """What a line of a file holds of one ratio, format and passage: a value for each question."""

    ratio: int
    dtype: str
    row: int
    values: dict[str, Any]


def read_lines(path: Path) -> dict[tuple[int, str, int], dict[str, Any]]:
    """Values by ratio, format and row. A last line that was cut off counts as not written."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    lines = [Line(**json.loads(line)) for line in whole.splitlines()]
    return {(line.ratio, line.dtype, line.row): line.values for line in lines}


def append(path: Path, lines: Sequence[Line]) -> None:
    """Write lines at the end of a file."""
    with path.open("a") as stream:
        stream.writelines(json.dumps(vars(line)) + "\n" for line in lines)


# --- the two measurements ---


@dataclass(frozen=True)
class Measured:
    """What is measured: a corpus, the drawn rows with their questions, ratios as memory tokens."""

    corpus: Corpus
    questions: dict[int, list[Question]]
    memory_tokens: dict[int, int]
    formats: tuple[str, ...]
    out: Path

    def memory(self, rows: Sequence[int], ratio: int) -> Tensor:
        """The float32 memory of rows at a ratio."""
        return self.corpus.memory(rows, self.memory_tokens[ratio])


def write_answers(measured: Measured, model: ClaraModel, max_new_tokens: int) -> None:
    """Answer the questions of every passage over its memory in every format, ratio by ratio,
    a group of passages at a time."""
    model.merge("generator")
    path = measured.out / ANSWERS
    done = read_lines(path)
    writers = {
        ratio: AnswerWriter(model, count, max_new_tokens)
        for ratio, count in measured.memory_tokens.items()
    }
    rows = list(measured.questions)
    for start in range(0, len(rows), GROUP):
        group = rows[start : start + GROUP]
        for ratio, writer in writers.items():
            wanted = [d for d in measured.formats if any((ratio, d, r) not in done for r in group)]
            if wanted:
                append(path, _answer_group(measured, writer, ratio, group, wanted, done))
        sys.stderr.write(f"answers: {min(start + GROUP, len(rows))} of {len(rows)} passages\n")


def _answer_group(
    measured: Measured,
    writer: AnswerWriter,
    ratio: int,
    group: Sequence[int],
    formats: Sequence[str],
    done: dict[tuple[int, str, int], dict[str, Any]],
) -> Iterator[Line]:
    """Lines of some passages at a ratio: float32 first; its answers are the others' drafts."""
    questions = [[question.question for question in measured.questions[row]] for row in group]
    memory_PMD = measured.memory(group, ratio)
    nothing: list[list[list[int]]] = [[[] for _ in texts] for texts in questions]
    drafts = [
        [done[ratio, EXACT, row][q.id] for q in measured.questions[row]]
        if (ratio, EXACT, row) in done
        else None
        for row in group
    ]
    exact = drafts if None not in drafts else writer.answers(memory_PMD, questions, nothing)
    others = [dtype for dtype in formats if dtype != EXACT]
    written = {EXACT: exact} if EXACT in formats else {}
    if others:
        memory_RMD = torch.cat([stored(memory_PMD, dtype) for dtype in others])
        answers = writer.answers(memory_RMD, questions * len(others), exact * len(others))
        for place, dtype in enumerate(others):
            written[dtype] = answers[place * len(group) : (place + 1) * len(group)]
    for dtype, answered in written.items():
        for row, ids in zip(group, answered, strict=True):
            names = [question.id for question in measured.questions[row]]
            yield Line(ratio, dtype, row, dict(zip(names, ids, strict=True)))


def write_hits(measured: Measured, model: ClaraModel) -> None:
    """Search all passages for every question, in every format."""
    path = measured.out / HITS
    done = read_lines(path)
    keys = [(r, d) for r in measured.memory_tokens for d in measured.formats]
    rows = [row for row in measured.questions if any((*key, row) not in done for key in keys)]
    asked = [(row, question) for row in rows for question in measured.questions[row]]
    if not asked:
        return
    longest = max(measured.memory_tokens.values())
    queries_QMD = _read_queries(model, [question.question for _, question in asked], longest)
    for ratio, count in measured.memory_tokens.items():
        coarse_QMD = coarsen(queries_QMD, count, model.layout.coarsening)
        memory_NMD = measured.memory(range(len(measured.corpus)), ratio)
        for dtype in measured.formats:
            _, best_QK = scan(coarse_QMD, [(0, stored(memory_NMD, dtype))], TOP_K)
            hits: dict[int, dict[str, list[int]]] = defaultdict(dict)
            for (row, question), best in zip(asked, best_QK.tolist(), strict=True):
                hits[row][question.id] = best
            append(path, [Line(ratio, dtype, row, found) for row, found in hits.items()])
            sys.stderr.write(f"search: {dtype} at {ratio}x\n")


def _read_queries(model: ClaraModel, questions: Sequence[str], memory_tokens: int) -> Tensor:
    parts = []
    for start in range(0, len(questions), QUERIES):
        rows = [model.prompter.passage(text) for text in questions[start : start + QUERIES]]
        parts.append(model.encode(rows, model.query_role, memory_tokens).memory_BMD.float())
    return torch.cat(parts)


# --- the table ---


def mean_and_interval(by_passage: Sequence[Sequence[float]], seed: int) -> tuple[float, ...]:
    """The mean over questions and its 95 % interval: a percentile bootstrap over passages, since
    the questions of one share its memory."""
    sums_P = np.array([sum(values) for values in by_passage])
    counts_P = np.array([len(values) for values in by_passage])
    mean = float(sums_P.sum() / counts_P.sum())
    bounds = stats.bootstrap(
        (sums_P, counts_P),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        n_resamples=RESAMPLES,
        batch=1000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return mean, float(bounds.low), float(bounds.high)


def scores_of(
    measured: Measured, ratio: int, dtype: str, decode: Any
) -> tuple[dict[str, list[list[float]]], dict[str, list[list[float]]]]:
    """The scores with a format, and with float32, of each question by passage, of the passages
    answered with both."""
    answers, hits = read_lines(measured.out / ANSWERS), read_lines(measured.out / HITS)
    both = ((ratio, dtype), (ratio, EXACT))
    rows = [row for row in measured.questions if all((*key, row) in answers for key in both)]
    scores: list[dict[str, list[list[float]]]] = []
    for key in both:
        own: dict[str, list[list[float]]] = {"F1": [], "EM": [], "recall@5": [], "same": []}
        for row in rows:
            questions, given = measured.questions[row], answers[*key, row]
            texts = [decode(given[q.id], skip_special_tokens=True).strip() for q in questions]
            pairs = list(zip(texts, questions, strict=True))
            own["F1"].append([100 * f1(text, q.answers) for text, q in pairs])
            own["EM"].append([100 * exact_match(text, q.answers) for text, q in pairs])
            own["recall@5"].append([100.0 * (row in hits[*key, row][q.id]) for q in questions])
            exact = answers[ratio, EXACT, row]
            own["same"].append([100.0 * (given[q.id] == exact[q.id]) for q in questions])
        scores.append(own)
    return scores[0], scores[1]


def table(measured: Measured, decode: Any, seed: int) -> Iterator[str]:
    """A line for each ratio and format: the score with float32, and of the others the change."""
    names = ("ratio", "format", "bytes a passage", "bytes a text token", "relative error")
    more = ("answers changed", "F1", "EM", "recall@5", "questions")
    yield f"| {' | '.join((*names, *more))} |"
    yield "|---" * (len(names) + len(more)) + "|"
    identity, counts = measured.corpus.manifest.identity, measured.corpus.manifest.counts
    tokens = counts["text_tokens"] / counts["passages"]
    for ratio, count in measured.memory_tokens.items():
        exact_NMD = measured.memory(range(len(measured.corpus)), ratio)
        for dtype in measured.formats:
            own, exact = scores_of(measured, ratio, dtype, decode)
            size = passage_bytes(dtype, count, identity.hidden)
            error = (stored(exact_NMD, dtype) - exact_NMD).norm() / exact_NMD.norm()
            cells = [f"{ratio}x", dtype, f"{size:,}", f"{size / tokens:,.0f}", f"{error:.2g}"]
            questions = sum(map(len, own["F1"]))
            same = sum(map(sum, own["same"])) / max(questions, 1)
            cells.append("-" if dtype == EXACT else f"{100 - same:.1f} %")
            for name in ("F1", "EM", "recall@5"):
                cells.append(_cell(own[name], exact[name], dtype == EXACT, seed))
            yield f"| {' | '.join((*cells, f'{questions:,}'))} |"


def _cell(
    values: Sequence[Sequence[float]], exact: Sequence[Sequence[float]], is_exact: bool, seed: int
) -> str:
    """A score, of float32, or the change from it with its interval. Where no question's score
    changed there is nothing to resample."""
    if is_exact:
        return f"{mean_and_interval(values, seed)[0]:.1f}"
    change = [
        [a - b for a, b in zip(own, other, strict=True)]
        for own, other in zip(values, exact, strict=True)
    ]
    if not any(value for passage in change for value in passage):
        return "no change seen"
    mean, low, high = mean_and_interval(change, seed)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


# --- the command ---


def drawn(corpus: Corpus, files: Sequence[str], count: int, seed: int) -> dict[int, list[Question]]:
    """Rows of the corpus in a random order with their questions, as many as make `count`."""
    row_of = {corpus.passage(row).text: row for row in range(len(corpus))}
    by_row: dict[int, list[Question]] = defaultdict(list)
    for question in read_questions(files):
        gold = [passage for passage in question.pool if passage.gold]
        if len(gold) != 1 or gold[0].text not in row_of:
            raise SystemExit(f"{question.source}: no passage of the corpus is its one gold passage")
        by_row[row_of[gold[0].text]].append(question)
    rows = sorted(by_row)
    random.Random(seed).shuffle(rows)  # noqa: S311
    chosen: dict[int, list[Question]] = {}
    for row in rows:
        if sum(map(len, chosen.values())) >= count:
            break
        chosen[row] = by_row[row]
    return chosen


def memory_tokens_of(info: CheckpointInfo, corpus: Corpus, ratios: str) -> dict[int, int]:
    """Memory tokens of each ratio, which the corpus must hold."""
    tokens = {int(ratio): info.memory_tokens_for(int(ratio)) for ratio in ratios.split(",")}
    identity = corpus.manifest.identity
    if identity.dtype != EXACT or identity.memory_tokens < max(tokens.values()):
        raise SystemExit(f"{corpus.name}: not in float32, or its ratio is higher than those asked")
    return tokens


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("data", nargs="+", help="passages with `qas`")
    parser.add_argument("--ratios", default="4,16,24")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--questions", type=int, default=2000, help="at least so many")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only-table", action="store_true", help="of what was measured so far")
    args = parser.parse_args()
    corpus = Corpus.open(args.corpus)
    checkpoint = corpus.manifest.identity.checkpoint
    options = LoadOptions(checkpoint["model"], None, "cpu", "float32", only_reads=True)
    loaded = load(options)
    if not reads(loaded, checkpoint["fingerprint"]):
        raise SystemExit(f"{corpus.name} was made with another {loaded.name}")
    args.out.mkdir(parents=True, exist_ok=True)
    measured = Measured(
        corpus,
        drawn(corpus, args.data, args.questions, args.seed),
        memory_tokens_of(loaded.info, corpus, args.ratios),
        tuple(args.formats.split(",")),
        args.out,
    )
    if not args.only_table:
        with torch.inference_mode():
            write_hits(measured, loaded.model)
            write_answers(measured, loaded.model, args.max_new_tokens)
    decode = loaded.model.prompter.tokenizer.decode
    sys.stdout.writelines(f"{line}\n" for line in table(measured, decode, args.seed))


if __name__ == "__main__":
    main()
