"""Does the answer come from the documents? Signals of it, and what a checkpoint's calibration makes
of them.

Signals: how likely the generator finds its answer over the passages' memory, against over nothing
and over another passage of the corpus; how many of the answer's names and numbers, and of the
question's words, stand in the passages' kept text. A checkpoint with a `support.json` turns them
into a probability; without one support is not judged: words alone call "the 3" supported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from clara_cli.answering.facts import Fact, known_parts, read_facts
from clara_cli.answering.reading import Generated, Prompt, joined, like_lengths, make_prompt
from clara_cli.core.decode import log_likelihoods
from clara_cli.core.model import ClaraModel
from clara_cli.documents.chunk import model_text
from clara_cli.errors import ArtefactError
from clara_cli.records import Passage
from clara_cli.storage.artefact import Fields, read_object

FILE, FORMAT, VERSION = "support.json", "clara-support", 1
MEMORY_SIGNALS = ("likelihood", "over_nothing", "over_other")
TEXT_SIGNALS = (*MEMORY_SIGNALS, "facts", "asked")
_LARGEST = 1e9  # a weight beyond it is no weight
_RESTORE = "delete the file (support is then not judged), or restore the checkpoint"
_LEAST_ASKED = 4  # letters of a question's word that could tell its subject, unless capitalised

Signals = dict[str, float]


@dataclass(frozen=True)
class Logistic:
    """A probability from signals: weights by name, and the bias."""

    weights: Mapping[str, float]
    bias: float

    def __call__(self, signals: Signals) -> float:
        """In 0-1. Raises ArtefactError where signals and weights give no finite number."""
        z = self.bias + sum(weight * signals[name] for name, weight in self.weights.items())
        if not math.isfinite(z):
            message = f"{FILE}: its weights make no finite number of {signals}"
            raise ArtefactError(message, _RESTORE)
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, z))))


@dataclass(frozen=True)
class Calibration:
    """What a checkpoint's controls taught: one function with the text's signals, one without, each
    with the threshold from which an answer counts as supported."""

    text: Logistic
    text_threshold: float
    memory: Logistic
    memory_threshold: float

    def judge(self, signals: Signals) -> tuple[float, bool]:
        """(support, supported)."""
        with_text = "facts" in signals
        p = (self.text if with_text else self.memory)(signals)
        threshold = self.text_threshold if with_text else self.memory_threshold
        return round(p, 4), p >= threshold


def read_calibration(folder: Path, *fingerprints: str) -> Calibration | None:
    """A checkpoint's `support.json`; None where it has none, or one of another memory space than
    these stand for.

    Raises:
        ArtefactError: where the file is damaged.
    """
    fields = read_object(folder / FILE, _RESTORE, FORMAT, VERSION)
    if fields is None:
        return None
    text = _fit(fields.object("text"), TEXT_SIGNALS)
    memory = _fit(fields.object("memory"), MEMORY_SIGNALS)
    fits = fields.values.get("fingerprint") in fingerprints
    return Calibration(*text, *memory) if fits else None


def _fit(fields: Fields, names: Sequence[str]) -> tuple[Logistic, float]:
    weights, threshold = fields.object("weights"), fields.number("threshold")
    if not 0 < threshold <= 1:
        raise fields.wrong("threshold", f"{threshold}, not above 0 and at most 1")
    numbers = {name: weights.number(name, _LARGEST) for name in names}
    return Logistic(numbers, fields.number("bias", _LARGEST)), threshold


@dataclass(frozen=True)
class ModelAnswer:
    """An answer of a token at least, with its question, and the memory of another passage than
    those it was read from (or of none, [0, M, D])."""

    question: str
    answer: Generated
    other_1MD: Tensor


def memory_signals(model: ClaraModel, answers: Sequence[ModelAnswer]) -> list[Signals]:
    """For each answer: its mean log-probability a token as it was read, and how much higher that is
    than over no passage and than over another one."""
    prompts = [prompt for said in answers for prompt in _without(model, said)]
    ids = [said.answer.ids for said in answers for _ in range(2)]
    found: dict[int, float] = {}
    lengths = [len(p.ids) + len(a) for p, a in zip(prompts, ids, strict=True)]
    for batch in like_lengths(lengths, model.device):
        memory_ND = joined(model, [prompts[i].memory_ND for i in batch])
        rows, said_ids = [prompts[i].ids for i in batch], [ids[i] for i in batch]
        found.update(zip(batch, log_likelihoods(model, rows, said_ids, memory_ND), strict=True))
    signals = []
    for number, said in enumerate(answers):
        given, nothing, other = said.answer.likelihood, found[2 * number], found[2 * number + 1]
        values = (given, given - nothing, given - other)
        signals.append(dict(zip(MEMORY_SIGNALS, values, strict=True)))
    return signals


def _without(model: ClaraModel, said: ModelAnswer) -> list[Prompt]:
    """The question over no passage, and over another one."""
    memories = (said.other_1MD[:0], said.other_1MD)
    return [
        make_prompt(model, said.question, memory_KMD, (), "memory", None) for memory_KMD in memories
    ]


def text_signals(question: str, answer: str, passages: Sequence[Passage]) -> Signals:
    """Shares of the answer's names and numbers (its words, where it has none) and of the question's
    telling words that stand in the passages' text or titles."""
    passage_words = known_words(passages)
    answer_facts, question_facts = list(read_facts(answer)), list(read_facts(question))
    facts = _parts(fact for fact in answer_facts if fact.is_name) or _parts(answer_facts)
    telling = (
        _parts(  # not the first: its capital, if it has one, is the sentence's
            fact for fact in question_facts[1:] if fact.is_name and not fact.written[0].islower()
        )
        or [part for part in _parts(question_facts) if len(part) >= _LEAST_ASKED]
    )
    return {"facts": _share(facts, passage_words), "asked": _share(telling, passage_words)}


def lexical(answer: str, passages: Sequence[Passage]) -> float:
    """Share of the answer's words and numbers that occur in the passages' kept text or titles, 0
    for an empty answer. Words only: it cannot tell a right use of a word from a wrong one."""
    return round(_share(_parts(read_facts(answer)), known_words(passages)), 4)


def known_words(passages: Sequence[Passage]) -> set[str]:
    """Every word and number of the passages' text and titles."""
    return set().union(*(known_parts(model_text(p.title, p.text or "")) for p in passages))


def _parts(facts: Iterable[Fact]) -> list[str]:
    return [part for fact in facts for part in fact.parts]


def _share(said: Sequence[str], known: set[str]) -> float:
    return sum(word in known for word in said) / len(said) if said else 0.0
