"""What the query reasoner's memory names: words that stand in the gold passage and not in the
question, by the logit lens (the paper's Fig. 4, as a number).

A memory token names the words its nearest output embeddings are. Words of more than a tenth of the
gold passages tell nothing and do not count; how often the others are named by chance is told by the
gold passages of other questions. Tokens that are parts of words name nothing, so a vocabulary of
short pieces is a lower bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from clara_cli.bench_records import LogitLens
from clara_cli.core.decode import lens
from clara_cli.evaluation.metrics import interval, mean
from clara_cli.evaluation.paragraphs import Case
from clara_cli.evaluation.systems import Reader
from clara_cli.search.bm25 import words

NAMED = 3  # words a memory token names, as `clara ask --explain` shows them
COMMON = 10  # a word of more than one in so many gold passages tells nothing
PARTNERS = 50  # other questions whose gold passages tell what is chance
_TOGETHER = 32  # questions read at once


@dataclass(frozen=True)
class _Probe:
    """A question's own words and those of its gold passages."""

    question: str
    asked: frozenset[str]
    gold: frozenset[str]


def logit_lens(
    cases: Sequence[Case], tokens_by_ratio: Mapping[int, int], reader: Reader, seed: int
) -> tuple[LogitLens, ...]:
    """Each ratio's share of questions whose memory names a word of their gold passages, over those
    whose gold passages have a text."""
    probes = _probes(cases)
    return tuple(_at(ratio, m, probes, reader, seed) for ratio, m in tokens_by_ratio.items())


def _probes(cases: Sequence[Case]) -> list[_Probe]:
    whole: dict[str, str] = {}
    if cases and cases[0].pool.whole:
        wanted = {key for case in cases for key in case.gold}
        for piece in cases[0].pool.pieces:
            if piece.given in wanted:
                whole[piece.given] = f"{whole.get(piece.given, '')}\n{piece.text}"
    probes = []
    for case in cases:
        texts = [f"{p.title}\n{p.text}" for p in case.question.pool if p.gold]
        texts = texts or [whole[key] for key in case.gold if key in whole]
        texts = texts or [p.text for p in case.given.pieces if p.given in case.gold]
        gold = frozenset(word for text in texts for word in words(text))
        if gold:
            question = case.question.question
            probes.append(_Probe(question, frozenset(words(question)), gold))
    return _telling(probes)


def _telling(probes: Sequence[_Probe]) -> list[_Probe]:
    """The same with the words of gold passages that few of them have."""
    distinct = {probe.gold for probe in probes}
    counts = Counter(word for gold in distinct for word in gold)
    most = max(1, len(distinct) // COMMON)
    telling = {word for word, count in counts.items() if count <= most}
    return [replace(probe, gold=probe.gold & telling) for probe in probes]


def _at(ratio: int, m: int, probes: Sequence[_Probe], reader: Reader, seed: int) -> LogitLens:
    named = [
        names
        for start in range(0, len(probes), _TOGETHER)
        for names in _named(probes[start : start + _TOGETHER], reader, m)
    ]
    hits = [float(_names(names, p, p)) for names, p in zip(named, probes, strict=True)]
    chances = [_chance(number, names, probes) for number, names in enumerate(named)]
    if not hits:
        return LogitLens(ratio, 0, None, None, None, None)
    gains = [hit - chance for hit, chance in zip(hits, chances, strict=True)]
    return LogitLens(
        ratio,
        len(hits),
        mean([float(len(names)) for names in named]),
        mean(hits),
        mean(chances),
        list(interval(gains, seed)) if len(set(gains)) > 1 else [gains[0], gains[0]],
    )


def _named(probes: Sequence[_Probe], reader: Reader, m: int) -> list[frozenset[str]]:
    """The words that each question's memory names."""
    questions = [probe.question for probe in probes]
    query_BMD = reader.queries(questions, reader.model.query_role, m)
    return [
        frozenset(
            word
            for tokens in lens(reader.model, query_MD, NAMED)
            for token in tokens
            for word in words(token)
        )
        for query_MD in query_BMD
    ]


def _names(names: frozenset[str], asking: _Probe, gold: _Probe) -> bool:
    return bool((names & gold.gold) - asking.asked)


def _chance(number: int, names: frozenset[str], probes: Sequence[_Probe]) -> float:
    """How often the same words stand in another question's gold passages, and not in this one's
    question; over others at equal distances, those of the same passages left out."""
    step = max(1, (len(probes) - 1) // PARTNERS)
    others = [probes[(number + n) % len(probes)] for n in range(1, len(probes), step)]
    others = [other for other in others if other.gold != probes[number].gold]
    shares = [float(_names(names, probes[number], other)) for other in others]
    return mean(shares) if shares else 0.0
