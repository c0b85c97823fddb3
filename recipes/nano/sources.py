"""Reads what nano learns from: real text and questions, and what is derived from them.

Third-party files stay where they are; nothing of them enters this repository. Yields plain records,
knows nothing of token ids.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import world

PASSAGE_CHARACTERS = 800  # about 200 tokens: a passage of 256 with its title, most of the time
HELD_OUT = 40  # one article in so many is kept for the training script's own checks
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
NAME = r"[A-Z][\w'’-]+(?: (?:of|the|de|von) [A-Z][\w'’-]+| [A-Z][\w'’-]+){0,3}"
CLOZE_SPAN = re.compile(rf"(?<=[a-z,;] )(?:{NAME}|\d[\d,.]*\d|\d)\b")


@dataclass
class Source:
    """A passage with its questions. `also` names further passages a question needs, by key."""

    source: str
    title: str
    text: str
    pairs: list[tuple[str, str]] = field(default_factory=list)
    also: list[str] = field(default_factory=list)
    held: bool = False
    key: str = ""


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON records of an xz file."""
    if "_dev" in path.name or path.name.startswith("dev"):
        raise SystemExit(f"{path}: a dev file; nothing is ever trained on one")
    with lzma.open(path, "rt", encoding="utf-8") as text:
        for line in text:
            yield json.loads(line)


def in_held_part(title: str) -> bool:
    """Whether an article is kept for checks, by a hash of its title."""
    return hashlib.sha256(title.encode()).digest()[0] % HELD_OUT == 0


def squad(path: Path) -> Iterator[Source]:
    """SQuAD's train passages, each with all its questions and their first answers."""
    for record in lines(path):
        pairs = [(q["question"].strip(), q["answers"][0].strip()) for q in record["qas"]]
        title = record["title"].replace("_", " ")
        yield Source("squad", title, record["text"].strip(), pairs, held=in_held_part(title))


def multihop(path: Path) -> Iterator[list[Source]]:
    """Each HotpotQA or MuSiQue question: its pool, the question at its last gold passage, the
    other gold passages named there."""
    for record in lines(path):
        pool = []
        for number, paragraph in enumerate(record["paragraphs"]):
            key = f"{record['id']}/{number}"
            text = paragraph["text"].strip()
            pool.append(Source(record["dataset"], paragraph["title"], text, key=key))
        gold = [p for p, given in zip(pool, record["paragraphs"], strict=True) if given["gold"]]
        if gold:
            gold[-1].pairs.append((record["question"].strip(), record["answer"].strip()))
            gold[-1].also += [p.key for p in gold[:-1]]
            yield pool


def invented(count: int, seed: int) -> Iterator[Source]:
    """Entities that never existed; one in forty from the held-out part."""
    rng = random.Random(f"pack {seed}")
    for number in range(count):
        held = number % HELD_OUT == 0
        entry = world.entry(rng, held)
        pairs = [(rng.choice(fact.questions), fact.value) for fact in entry.facts]
        yield Source("world", entry.title, entry.text, pairs, held=held)


def articles(folder: Path, seed: int) -> Iterator[tuple[str, str]]:
    """(title, text) of the Wikipedia articles, files in a seeded order."""
    paths = sorted(folder.glob("part-*.jsonl.xz"))
    random.Random(seed).shuffle(paths)
    for path in paths:
        for record in lines(path):
            yield record["title"], record["text"]


def passages(text: str, limit: int = PASSAGE_CHARACTERS) -> Iterator[str]:
    """Paragraphs, long ones cut at sentence ends; scraps under 120 characters are left out."""
    for paragraph in text.split("\n"):
        part = ""
        for sentence in SENTENCE_END.split(paragraph.strip()):
            if part and len(part) + len(sentence) > limit:
                yield part
                part = ""
            part = f"{part} {sentence}".strip()[:limit]
        if len(part) >= 120:
            yield part


def cloze(text: str, rng: random.Random) -> tuple[int, int, int, int] | None:
    """(sentence start, answer start, answer end, sentence end) in characters: a name or a number
    inside a sentence of moderate length that occurs there once; None where there is none."""
    starts = [0, *(match.end() for match in SENTENCE_END.finditer(text))]
    found = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        sentence = text[start:end].rstrip()
        if not 40 <= len(sentence) <= 240:
            continue
        for match in CLOZE_SPAN.finditer(sentence):
            if sentence.count(match[0]) == 1:
                edges = (start, start + match.start(), start + match.end(), start + len(sentence))
                found.append(edges)
    return rng.choice(found) if found else None


def overlap(first: str, second: str, size: int = 4) -> float:
    """Share of the smaller text's word 4-grams that the other holds too."""
    grams = []
    for text in (first, second):
        words = text.split()
        grams.append({tuple(words[i : i + size]) for i in range(len(words) - size + 1)})
    smaller = min(map(len, grams))
    return len(grams[0] & grams[1]) / smaller if smaller else 0.0
