"""What of a passage survives compression: the numbers and names a paraphrase written from its
memory still has. Both are found by rule, not by a tagger, and a generator that paraphrases badly
loses facts the memory may hold: a lower bound.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from clara_cli.bench_records import FactRetention
from clara_cli.core.checkpoint import Loaded
from clara_cli.evaluation.paragraphs import Case, Piece
from clara_cli.evaluation.passage_memories import Memories
from clara_cli.evaluation.systems import Reader

PASSAGES = 20
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_NAME = re.compile(r"(?<![.!?\n] )(?<!^)(?<!\n)\b[A-Z]\w+(?:[ -][A-Z]\w+)*", re.MULTILINE)


def numbers(text: str) -> set[str]:
    """Numbers, written as they are."""
    return set(_NUMBER.findall(text))


def names(text: str) -> set[str]:
    """Runs of capitalised words that do not begin a sentence."""
    return set(_NAME.findall(text))


def fact_retention(
    cases: Sequence[Case], tokens_by_ratio: dict[int, int], loaded: Loaded, memories: Memories
) -> tuple[FactRetention, ...]:
    """Each ratio's share of facts kept, over the first gold passages."""
    pieces = {
        piece.row: piece
        for case in cases
        for piece in case.given.pieces
        if piece.given in case.gold and piece.text
    }
    chosen = list(pieces.values())[:PASSAGES]
    return tuple(_at(ratio, m, chosen, loaded, memories) for ratio, m in tokens_by_ratio.items())


def _at(
    ratio: int, memory_tokens: int, pieces: Sequence[Piece], loaded: Loaded, memories: Memories
) -> FactRetention:
    prompter = loaded.model.prompter
    ids = prompter.prompt(prompter.paraphrase_chat(memory_tokens, 0))
    found, kept = {"numbers": 0, "names": 0}, {"numbers": 0, "names": 0}
    for piece in pieces:
        reader = Reader(loaded, piece.tokens)  # a paraphrase is about as long
        (said,) = reader.generate([ids], [memories.rows([piece.row], memory_tokens)])
        for kind, facts in (("numbers", numbers(piece.text)), ("names", names(piece.text))):
            found[kind] += len(facts)
            kept[kind] += sum(_stands(fact, said) for fact in facts)
    shares = {kind: kept[kind] / count if count else None for kind, count in found.items()}
    counts = (found["numbers"], shares["numbers"], found["names"], shares["names"])
    return FactRetention(ratio, len(pieces), *counts)


def _stands(fact: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(fact)}(?!\w)", text) is not None
