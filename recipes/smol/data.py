"""Prepares smol's questions: real passages with people's questions, some among their neighbours.

    python recipes/smol/data.py DATA runs/smol-data

DATA holds squad/ squadshifts/ fairytaleqa/ qed/ policyqa/ as xz-compressed JSON lines of
{"title", "text", "qas"}. Written are `train.jsonl` (a passage, or a pool of passages, a line with
its questions), `passages.jsonl` (some of its passages, for the query reasoner to search) and
`held_out.jsonl`: SQuAD-train articles kept back by title, on which every choice (reading mode,
thresholds, support) is made. Passages that share 13 words in a row with SQuAD's dev
set or with the sample, or a title with the dev set, are left out and counted. Seeded: the same
files give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s

SAMPLE = Path(__file__).parent.parent / "sample" / "corpus.jsonl"
SOURCES = {
    "squad": "squad/train.jsonl.xz",
    "reddit": "squadshifts/reddit.jsonl.xz",
    "amazon": "squadshifts/amazon_reviews.jsonl.xz",
    "fairytale": "fairytaleqa/train.jsonl.xz",
    "nq": "qed/nq_train.jsonl.xz",
    "policy": "policyqa/dev_test.jsonl.xz",
}
SHARED_WORDS = 13
HELD_OUT = 20  # one SQuAD article in so many is kept back
ANSWER_WORDS = 10  # longer answers are left out
PASSAGE_CHARACTERS = 1400  # longer passages are left out: 256 tokens hold about 1,100
QUESTIONS = 6  # of one passage in one line; the others go into a line of their own
NEIGHBOURS = 4


@dataclass(frozen=True)
class Passage:
    """A passage with its questions and where it came from."""

    source: str
    title: str
    text: str
    qas: tuple[dict[str, Any], ...]


def main() -> None:
    """Read, filter, add neighbours, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pools", type=float, default=0.4, help="share of lines with neighbours")
    parser.add_argument("--squad", type=float, help="share of SQuAD's lines: fewer of the others")
    parser.add_argument("--passages", type=int, default=1800, help="passages to search")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    dev = list(read_jsonl(options.data / "squad/dev.jsonl.xz"))
    forbidden = word_runs(record["text"] for record in dev)
    forbidden |= word_runs(record["text"] for record in read_jsonl(SAMPLE))
    dropped: Counter[str] = Counter()
    passages = []
    for source, file in SOURCES.items():
        records = read_jsonl(options.data / file)
        titles = {record["title"] for record in dev}
        passages += filter_passages(source, records, titles, forbidden, dropped)
    held = [p for p in passages if p.source == "squad" and is_held_out(p.title)]
    kept = [p for p in passages if p.source != "squad" or not is_held_out(p.title)]
    if options.squad is not None:
        kept = with_squad_share(kept, options.squad, rng)
    options.out.mkdir(parents=True, exist_ok=True)
    write_jsonl(options.out / "held_out.jsonl", map(single, held))
    lines = training_lines(kept, options.pools, rng)
    write_jsonl(options.out / "train.jsonl", lines)
    write_jsonl(options.out / "passages.jsonl", first_passages(lines, options.passages))
    questions = Counter(p.source for p in kept for _ in p.qas)
    print(f"questions to train on: {dict(questions)}; left out: {dict(dropped)}")
    print(f"{len(lines)} lines; held back: {len(held)} passages")


def read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """JSON records, a line each, plain or xz."""
    opened = lzma.open if file.suffix == ".xz" else open
    with opened(file, "rt", encoding="utf-8") as text:
        for line in text:
            yield json.loads(line)


def write_jsonl(file: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON record a line."""
    with file.open("w", encoding="utf-8") as text:
        for record in records:
            text.write(json.dumps(record, ensure_ascii=False) + "\n")


def words(text: str) -> list[str]:
    """Lower-case words, as texts are compared by."""
    return re.findall(r"\w+", text.lower())


def word_runs(texts: Iterable[str]) -> set[tuple[str, ...]]:
    """Every run of `SHARED_WORDS` words."""
    runs = set()
    for text in texts:
        listed = words(text)
        runs |= {tuple(listed[i : i + SHARED_WORDS]) for i in range(len(listed) - SHARED_WORDS + 1)}
    return runs


def is_held_out(title: str) -> bool:
    """Whether an article is kept back, by a hash of its title."""
    return int.from_bytes(hashlib.sha256(title.encode()).digest()[:4], "big") % HELD_OUT == 0


def filter_passages(
    source: str,
    records: Iterable[dict[str, Any]],
    dev_titles: set[str],
    forbidden: set[tuple[str, ...]],
    dropped: Counter[str],
) -> Iterator[Passage]:
    """The passages that may be trained on, each with the questions whose answers are short."""
    for record in records:
        text, title = record["text"].strip(), record["title"].replace("_", " ").strip()
        if title and title in {t.replace("_", " ") for t in dev_titles}:
            dropped[f"{source}: title of the dev set"] += 1
        elif not word_runs([text]).isdisjoint(forbidden):
            dropped[f"{source}: shares {SHARED_WORDS} words"] += 1
        elif len(text) > PASSAGE_CHARACTERS:
            dropped[f"{source}: long"] += 1
        elif qas := tuple(filter(None, map(short_answers, record["qas"]))):
            yield Passage(source, title, text, qas)


def short_answers(entry: dict[str, Any]) -> dict[str, Any] | None:
    """A question with its first short answer; None where it has none."""
    answers = [a.strip() for a in entry["answers"] if 0 < len(a.split()) <= ANSWER_WORDS]
    question = entry["question"].strip()
    if not answers or not question:
        return None
    return {"id": entry["id"], "question": question, "answers": answers[:1]}


def with_squad_share(
    passages: Sequence[Passage], share: float, rng: random.Random
) -> list[Passage]:
    """All of SQuAD's passages and so many of the others that SQuAD's are `share` of them."""
    squad = [passage for passage in passages if passage.source == "squad"]
    others = [passage for passage in passages if passage.source != "squad"]
    most = min(len(others), round(len(squad) * (1 - share) / share))
    return squad + rng.sample(others, most)


def training_lines(
    passages: Sequence[Passage], pools: float, rng: random.Random
) -> list[dict[str, Any]]:
    """Lines in a random order: a share of `pools` give a passage among its neighbours by BM25 of
    one of its questions, within its source."""
    parts = [
        (number, part)
        for number, passage in enumerate(passages)
        for part in question_parts(passage.qas, rng)
    ]
    rng.shuffle(parts)
    pooled = set(rng.sample(range(len(parts)), round(pools * len(parts))))
    near = neighbours(passages, [parts[i] for i in sorted(pooled)])
    lines = []
    for place, (number, part) in enumerate(parts):
        passage = passages[number]
        if place not in pooled:
            lines.append(single(Passage(passage.source, passage.title, passage.text, part)))
            continue
        others = [passages[n] for n in near.pop(0)]
        lines.append(pool_line(passage, part, others, rng))
    return lines


def question_parts(
    qas: Sequence[dict[str, Any]], rng: random.Random
) -> list[tuple[dict[str, Any], ...]]:
    """A passage's questions shuffled, in parts of at most `QUESTIONS`."""
    shuffled = rng.sample(list(qas), k=len(qas))
    return [tuple(shuffled[i : i + QUESTIONS]) for i in range(0, len(shuffled), QUESTIONS)]


def neighbours(
    passages: Sequence[Passage], parts: Sequence[tuple[int, tuple[dict[str, Any], ...]]]
) -> list[list[int]]:
    """For each part the numbers of the best other passages of its source for its first question."""
    ranked: dict[int, list[int]] = {}
    for source in sorted({passage.source for passage in passages}):
        numbers = [n for n, passage in enumerate(passages) if passage.source == source]
        asked = [i for i, (n, _) in enumerate(parts) if passages[n].source == source]
        if not asked:
            continue
        index = bm25s.BM25()
        texts = [f"{passages[n].title} {passages[n].text}" for n in numbers]
        index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
        queries = bm25s.tokenize([parts[i][1][0]["question"] for i in asked], show_progress=False)
        most = min(NEIGHBOURS + 1, len(numbers))
        rows, _ = index.retrieve(queries, k=most, show_progress=False)
        for i, row in zip(asked, rows, strict=True):
            own = parts[i][0]
            ranked[i] = [numbers[r] for r in row if numbers[r] != own][:NEIGHBOURS]
    return [ranked[i] for i in range(len(parts))]


def first_passages(lines: Iterable[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The passages of the first lines that give one alone, each once."""
    given = [(line["title"], line["text"]) for line in lines if "text" in line]
    return [{"title": title, "text": text} for title, text in list(dict.fromkeys(given))[:count]]


def single(passage: Passage) -> dict[str, Any]:
    """A passage a line."""
    return {"title": passage.title, "text": passage.text, "qas": list(passage.qas)}


def pool_line(
    passage: Passage, qas: Sequence[dict[str, Any]], others: Sequence[Passage], rng: random.Random
) -> dict[str, Any]:
    """A pool a line. The passage with the answer is first half of the time, as a first stage finds
    it, else anywhere."""
    place = 0 if rng.random() < 0.5 else rng.randrange(len(others) + 1)
    order = [*others[:place], passage, *others[place:]]
    paragraphs = [{"title": one.title, "text": one.text, "gold": one is passage} for one in order]
    return {"paragraphs": paragraphs, "qas": list(qas)}


if __name__ == "__main__":
    main()
