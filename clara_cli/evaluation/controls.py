"""Controls: does an answer come from the documents? No documents, another question's documents,
and gold passages whose answer was replaced before they were compressed.

Everything is decided before any system answers, from the seed alone. Rule-based: an answer counts
as replaced where its very letters stand in the passages. Knows text, nothing of models.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from typing import Literal

from clara_cli.errors import DataError, UsageError, nearest
from clara_cli.evaluation.metrics import normalise
from clara_cli.evaluation.paragraphs import Case, Library, Piece, Pool
from clara_cli.records import PoolPassage, Question

Control = Literal["none", "wrong", "counterfactual", "survival", "lens"]
CONTROLS: tuple[Control, ...] = ("none", "wrong", "counterfactual", "survival", "lens")
WITHOUT_ROWS = ("survival", "lens")  # they measure the memory, no answers
_MONTHS = (
    "january february march april may june july august september october november december".split()
)


def parse(given: str | None, setting: str) -> tuple[str, ...]:
    """`--control a,b` as names.

    Raises:
        UsageError: for an unknown one, or one the setting cannot have.
    """
    names = tuple(dict.fromkeys(part.strip() for part in (given or "").split(",") if part.strip()))
    for name in names:
        if name not in CONTROLS:
            raise UsageError(f"--control {name!r}: no such control", nearest(name, CONTROLS))
        if name in ("wrong", "counterfactual") and setting == "corpus":
            raise UsageError(
                f"--control {name}: a whole corpus cannot be exchanged or rewritten",
                "use --setting gold, oracle or normal",
            )
    return names


def no_documents(cases: Sequence[Case]) -> dict[int, Case]:
    """Every question with nothing to read."""
    empty = Pool(())
    replaced = (dataclasses.replace(case, pool=empty, given=empty) for case in cases)
    return dict(enumerate(replaced))


def wrong_documents(cases: Sequence[Case]) -> dict[int, Case]:
    """Every question with the passages of another one that hold none of its gold texts nor any of
    its answers. Ids carry the other question's, so that none is mistaken for gold.

    Raises:
        DataError: when no question has such a partner.
    """
    controls = {}
    for number, case in enumerate(cases):
        other = _partner(number, case, cases)
        if other is not None:
            pool = Pool(tuple(_foreign(p, other.question.id) for p in other.given.pieces))
            controls[number] = dataclasses.replace(case, pool=pool, given=pool)
    if not controls:
        raise DataError(
            "--control wrong: no question has passages free of another's answer",
            "take more questions: raise --limit",
        )
    return controls


def _foreign(piece: Piece, other: str) -> Piece:
    return dataclasses.replace(piece, given=f"{other}:{piece.given}")


def _partner(number: int, case: Case, cases: Sequence[Case]) -> Case | None:
    """The first case from halfway round on whose passages could not help."""
    own = {p.row for p in case.given.pieces if p.given in case.gold}
    answers = [normalise(answer) for answer in case.question.answers]
    for step in range(len(cases)):
        other = cases[(number + len(cases) // 2 + step) % len(cases)]
        pieces = other.given.pieces
        if other is case or not pieces or own & {p.row for p in pieces}:
            continue
        text = f" {' '.join(normalise(' '.join(p.text for p in pieces)))} "
        if not any(words and f" {' '.join(words)} " in text for words in answers):
            return other
    return None


def counterfactual(
    questions: Sequence[Question],
    paragraphs: Callable[[int], Sequence[PoolPassage]],
    library: Library,
    donors: Sequence[str],
    seed: int,
) -> dict[int, Case]:
    """Questions whose answer stands in a gold passage, and in the question not, with passages in
    which it is replaced by one of the `donors`, answers, of like shape. The case's question carries
    that answer as its gold one: a system that follows the passages gives it.

    Raises:
        DataError: when no question can be probed.
    """
    controls = {}
    for number, question in enumerate(questions):
        pool = paragraphs(number)
        answers = sorted(question.answers, key=len, reverse=True)
        gold_text = "\n".join(f"{p.title}\n{p.text}" for p in pool if p.gold)
        pattern = _pattern(answers)
        if not pattern.search(gold_text) or pattern.search(question.question):
            continue
        order = random.Random(f"{seed} counterfactual {number}")
        new = _replacement(question, pool, order.sample(donors, len(donors)))
        if new is None:
            continue
        changed = [_replaced(p, pattern, new) for p in pool]
        cut = library.pool(changed)
        other = dataclasses.replace(question, answers=(new,))
        gold = tuple(dict.fromkeys(p.id for p in pool if p.gold))
        controls[number] = Case(other, cut, cut, gold)
    if not controls:
        raise DataError(
            "--control counterfactual: no answer stands in a gold passage and can be replaced",
            "take more questions (--limit), or a dataset with gold passages",
        )
    return controls


def _pattern(answers: Sequence[str]) -> re.Pattern[str]:
    """Any of the answers, as they are written, not inside a longer word."""
    parts = "|".join(re.escape(answer.strip()) for answer in answers if answer.strip())
    return re.compile(rf"(?<!\w)(?:{parts})(?!\w)" if parts else r"(?!)")


def _replaced(passage: PoolPassage, pattern: re.Pattern[str], new: str) -> PoolPassage:
    title, text = (pattern.sub(lambda _: new, part) for part in (passage.title, passage.text))
    return dataclasses.replace(passage, title=title, text=text)


def _replacement(
    question: Question, pool: Sequence[PoolPassage], donors: Sequence[str]
) -> str | None:
    """The first answer of like shape that shares no word with this question's and is not in its
    pool."""
    wanted, taken = shape(question.answers[0]), set()
    for answer in question.answers:
        taken.update(normalise(answer))
    present = " ".join(normalise(" ".join(f"{p.title} {p.text}" for p in pool)))
    for answer in donors:
        words = normalise(answer)
        fresh = words and not taken & set(words) and f" {' '.join(words)} " not in f" {present} "
        if fresh and shape(answer) == wanted:
            return answer.strip()
    return None


def shape(answer: str) -> tuple[str, int]:
    """What kind of answer: yes-no, a year, a date, a number or words; and of how many words (up to
    four) and whether capitalised."""
    words = answer.split()
    lower = [word.strip(".,").lower() for word in words]
    if lower in (["yes"], ["no"]):
        return "yes-no", 1
    if re.fullmatch(r"[12]\d{3}", answer.strip()):
        return "year", 1
    if any(word in _MONTHS for word in lower) and re.search(r"\d", answer):
        return "date", 1
    if re.fullmatch(r"[^\w]*\d[\d.,]*[^\w]*", answer.strip()):
        return "number", 1
    capital = any(word[0].isupper() for word in words)
    kind = "names" if capital and all(w[0].isupper() for w in words if len(w) > 3) else "words"
    return kind, min(len(words), 4)
