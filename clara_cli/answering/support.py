"""Does the answer come from the documents? Signals of it, and what a checkpoint's calibration makes
of them.

Signals: how likely the generator finds its answer over the passages, against over nothing and,
where it read memory, over another passage of the corpus; how many of the answer's names and
numbers, and of the question's words, stand in the passages' kept text. A checkpoint's
`support.json` turns them into a probability, each way of reading by a calibration of its own;
without one support is not judged: words alone call "the 3" supported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from clara_cli.answering.facts import Fact, known_parts, read_facts
from clara_cli.answering.reading import Generated, Prompt, joined, like_lengths, make_prompt
from clara_cli.core.checkpoint_info import ReadMode
from clara_cli.core.decode import log_likelihoods
from clara_cli.core.model import ClaraModel
from clara_cli.documents.chunk import model_text
from clara_cli.errors import ArtefactError
from clara_cli.records import Passage
from clara_cli.storage.artefact import Fields, read_object

FILE, FORMAT, VERSION = "support.json", "clara-support", 2
MEMORY_SIGNALS = ("likelihood", "over_nothing", "over_other")
WORD_SIGNALS = ("facts", "asked")
TEXT_SIGNALS = (*MEMORY_SIGNALS, *WORD_SIGNALS)
READ_TEXT_SIGNALS = (*MEMORY_SIGNALS[:2], *WORD_SIGNALS)
SIGNALS: dict[ReadMode, dict[str, tuple[str, ...]]] = {  # by way of reading and name of the fit
    "memory": {"text": TEXT_SIGNALS, "memory": MEMORY_SIGNALS},
    "text": {"text": READ_TEXT_SIGNALS},
}
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
class Fit:
    """A probability, and the threshold from which an answer counts as supported."""

    probability: Logistic
    threshold: float

    def judge(self, signals: Signals) -> tuple[float, bool]:
        """(support, supported)."""
        p = self.probability(signals)
        return round(p, 4), p >= self.threshold


@dataclass(frozen=True)
class Calibration:
    """What a checkpoint's controls taught of one way of reading: with the text's signals, and
    without them where memory may be read alone."""

    with_text: Fit
    without_text: Fit | None = None

    def judge(self, signals: Signals) -> tuple[float, bool]:
        """(support, supported)."""
        fit = self.with_text if "facts" in signals else self.without_text
        assert fit is not None, "text that was read was kept"
        return fit.judge(signals)


def read_calibrations(folder: Path, *fingerprints: str) -> dict[ReadMode, Calibration]:
    """A checkpoint's `support.json`, by way of reading; {} where it has none, or one of another
    memory space than these stand for. Version 1 was of memory alone.

    Raises:
        ArtefactError: where the file is damaged.
    """
    fields = read_object(folder / FILE, _RESTORE, FORMAT, (1, VERSION))
    if fields is None:
        return {}
    modes = fields if fields.values["version"] == 1 else fields.object("modes")
    calibrations: dict[ReadMode, Calibration] = {}
    if modes is fields or "memory" in modes.values:
        memory = modes if modes is fields else modes.object("memory")
        with_text = _fit(memory.object("text"), TEXT_SIGNALS)
        without = _fit(memory.object("memory"), MEMORY_SIGNALS)
        calibrations["memory"] = Calibration(with_text, without)
    if modes is not fields and "text" in modes.values:
        fit = _fit(modes.object("text").object("text"), READ_TEXT_SIGNALS)
        calibrations["text"] = Calibration(fit)
    return calibrations if fields.values.get("fingerprint") in fingerprints else {}


def _fit(fields: Fields, names: Sequence[str]) -> Fit:
    weights, threshold = fields.object("weights"), fields.number("threshold")
    if not 0 < threshold <= 1:
        raise fields.wrong("threshold", f"{threshold}, not above 0 and at most 1")
    numbers = {name: weights.number(name, _LARGEST) for name in names}
    return Fit(Logistic(numbers, fields.number("bias", _LARGEST)), threshold)


@dataclass(frozen=True)
class ModelAnswer:
    """An answer of a token at least, and prompts that its question has without its passages: over
    nothing and, where it was read from memory, over another passage."""

    answer: Generated
    without: tuple[Prompt, ...]


def likelihood_signals(model: ClaraModel, answers: Sequence[ModelAnswer]) -> list[Signals]:
    """For each answer: its mean log-probability a token as it was read, and how much higher that is
    than over no passage and than over another one."""
    pairs = [(prompt, one.answer.ids) for one in answers for prompt in one.without]
    likelihoods: dict[int, float] = {}
    lengths = [len(prompt.ids) + len(ids) for prompt, ids in pairs]
    for batch in like_lengths(lengths, model.device):
        prompts = [pairs[i][0] for i in batch]
        memory_ND = joined(model, [prompt.memory_ND for prompt in prompts])
        rows, written = [prompt.ids for prompt in prompts], [pairs[i][1] for i in batch]
        scored = log_likelihoods(model, rows, written, memory_ND, prompts[0].role)
        likelihoods.update(zip(batch, scored, strict=True))
    signals, number = [], iter(range(len(pairs)))
    for one in answers:
        as_read = one.answer.likelihood
        values = (as_read, *(as_read - likelihoods[next(number)] for _ in one.without))
        signals.append(dict(zip(MEMORY_SIGNALS, values, strict=False)))
    return signals


def prompts_without(
    model: ClaraModel, question: str, read: ReadMode, text_role: str | None, other_1MD: Tensor
) -> tuple[Prompt, ...]:
    """A question's prompts over nothing and, where memory is read, over that of another passage
    (or of none, [0, M, D])."""
    nothing = make_prompt(model, question, other_1MD[:0], (), read, text_role)
    if read == "text":
        return (nothing,)
    return (nothing, make_prompt(model, question, other_1MD, (), read, text_role))


def text_signals(question: str, answer: str, passages: Sequence[Passage]) -> Signals:
    """The same of passages with their titles."""
    return word_signals(question, answer, model_texts(passages))


def word_signals(question: str, answer: str, texts: Sequence[str]) -> Signals:
    """Shares of the answer's names and numbers (its words, where it has none) and of the question's
    telling words that stand in the texts."""
    passage_words = known_words(texts)
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
    """The same of passages with their titles."""
    return lexical_share(answer, model_texts(passages))


def lexical_share(answer: str, texts: Sequence[str]) -> float:
    """Share of the answer's words and numbers that occur in the texts, 0 for an empty answer.
    Words only: it cannot tell a right use of a word from a wrong one."""
    return round(_share(_parts(read_facts(answer)), known_words(texts)), 4)


def model_texts(passages: Sequence[Passage]) -> list[str]:
    """Passages as the model reads them, with their titles."""
    return [model_text(passage.title, passage.text or "") for passage in passages]


def known_words(texts: Sequence[str]) -> set[str]:
    """Every word and number of some texts."""
    return set().union(*map(known_parts, texts))


def _parts(facts: Iterable[Fact]) -> list[str]:
    return [part for fact in facts for part in fact.parts]


def _share(said: Sequence[str], known: set[str]) -> float:
    return sum(word in known for word in said) / len(said) if said else 0.0
