"""The gates: what a question, an answer and a paraphrase must be whatever any model says of them.

Pure functions over texts; the first gate that fails names itself. Knows no language model, and
judges words only: what a sentence means is for the model's own verification to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass

from clara_cli.search.bm25 import words
from clara_cli.synthesis.text_features import (
    content_words,
    digits,
    holds_name,
    names,
    numbers,
    other_language,
    overlap,
    sentences,
    vocabulary,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question and its answer, not yet believed."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why something was turned away: the gate's name and what it saw."""

    gate: str
    detail: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Where the gates stand. Shares are of words, 0 to 1."""

    answer_words: int = 40
    question_words: int = 60
    support: float = 0.5  # least share of the answer's own content words found in the passage
    grounding: float = 0.3  # the same of a question without a name or number of the passage
    copy: float = 0.6  # largest share of a paraphrase's 4-grams taken from the passage
    kept: float = 0.7  # least share of the passage's numbers and names a paraphrase keeps
    shortest: float = 0.5  # length of a paraphrase, in passages
    longest: float = 2.0


PAIR_GATES = (
    "empty",
    "question_length",
    "answer_length",
    "no_answer",
    "document",
    "language",
    "numbers",
    "names",
    "echo",
    "unsupported",
    "ungrounded",
)
DUPLICATE = "duplicate"
PARAPHRASE_GATES = (
    "empty",
    "no_answer",
    "document",
    "language",
    "length",
    "numbers",
    "names",
    "incomplete",
    "copy",
)
COPY_GRAM = 4

_NOUN = r"(?:document|passage|text|article|paragraph|excerpt|context|snippet)"
_POINTS_AT = re.compile(
    rf"\b(?:this|given|above|provided|following|preceding)\s+(?:\w+\s+)?{_NOUN}s?\b"
    rf"|\b(?:according to|in|by|from|based on|mentioned in|stated in|described in|of)\s+"
    rf"the\s+(?:\w+\s+)?{_NOUN}s?\b(?!\s+of\b)"
    r"|\b(?:laut|im|dem|diesem)\s+(?:text|dokument|abschnitt|artikel)\b"
    r"|\b(?:le|ce|du|dans le|selon le)\s+(?:texte|document|passage|paragraphe)\b"
    r"|\b(?:el|este|del|al)\s+(?:texto|documento|pasaje|párrafo)\b"
    r"|\b(?:il|questo|nel|dal)\s+(?:testo|documento|brano|paragrafo)\b"
    r"|\b(?:o|este|no|do)\s+(?:texto|documento|trecho)\b"
    r"|本文|文中|文章中|この文章|この文書|这段|该文|上文",
    re.IGNORECASE,
)
_BARE = re.compile(rf"\bthe\s+{_NOUN}\b(?!\s+of\b)", re.IGNORECASE)
_NO_ANSWER = re.compile(
    r"\b(?:is|are|was|were|does|do|did|has|have|can|could)(?:\s+not|n[’']t)\s+(?:be\s+)?"
    r"(?:mention|state|specif|giv|provid|say|contain|answer|determin|includ|known|disclos|find)\w*"
    r"|\bnot\s+(?:answered|mentioned|stated|specified|provided|given|known|disclosed|available)\b"
    r"|\bno\s+(?:information|answer|mention)\b|\bunknown\b|\bn/a\b|\bcannot\s+(?:be\s+)?\w+"
    r"|\bI(?:['’]m| am)\s+(?:sorry|unable|not able)\b|\bI\s+can(?:not|[’']t)\b"
    r"|\bas an? (?:ai|language model)\b",
    re.IGNORECASE,
)
_YES_NO = frozenset(
    "yes no ja nein oui non si sí sì sim não nee tak nie да нет はい いいえ 是 否".split()
)
_OR = frozenset("or oder ou o of lub czy или 或 还".split())  # questions that name their answers
_LEAST_WORDS_TO_JUDGE = 4  # shorter answers may well be foreign names


def check_pair(pair: Candidate, text: str, limits: Limits) -> Verdict | None:
    """The first gate a pair fails against the text it was made from, None where it passes all."""
    question, answer = pair.question, pair.answer
    asked, answered = words(question), words(answer)
    if not asked or not answered:
        return Verdict("empty", "no words in the " + ("answer" if asked else "question"))
    if len(asked) > limits.question_words:
        return Verdict("question_length", f"{len(asked)} words, at most {limits.question_words}")
    if len(answered) > limits.answer_words:
        return Verdict("answer_length", f"{len(answered)} words, at most {limits.answer_words}")
    return (
        _says_nothing(answer, text)
        or _points_at_document(question, text)
        or _points_at_document(answer, text)
        or _wrong_language(question, answer, text)
        or _invents(f"{question}\n{answer}", _claims(pair), text)
        or _unsupported(pair, text, limits)
        or _ungrounded(pair, text, limits)
    )


def _says_nothing(answer: str, text: str) -> Verdict | None:
    match = _NO_ANSWER.search(answer)
    if match is None or match[0].casefold() in text.casefold():
        return None
    return Verdict("no_answer", f"says {match[0]!r}")


def _points_at_document(said: str, text: str) -> Verdict | None:
    match = _POINTS_AT.search(said) or _BARE.search(said)
    if match is None or match[0].casefold() in text.casefold():
        return None
    return Verdict("document", f"says {match[0]!r}")


def _wrong_language(question: str, answer: str, text: str) -> Verdict | None:
    if other_language(question, text):
        return Verdict("language", "the question is in another language than the passage")
    quoted = answer.casefold() in text.casefold()
    long = len(words(answer)) >= _LEAST_WORDS_TO_JUDGE
    if long and not quoted and other_language(answer, text):
        return Verdict("language", "the answer is in another language than the passage")
    return None


def _claims(pair: Candidate) -> Set[str]:
    """The numbers a pair states: all of the answer's and the question's digits. A question may
    count what it asks for in words (which three rivers), and the answer repeat it."""
    counted = numbers(pair.question) - digits(pair.question)
    return digits(pair.question) | (numbers(pair.answer) - counted) | digits(pair.answer)


def _invents(statement: str, claims: Set[str], text: str) -> Verdict | None:
    """Numbers and names that are not in the passage."""
    text_words = vocabulary(text)
    counted = set(numbers(text))
    if "one" in text_words:  # alone it is rarely a statement
        counted.add("1")
    strange = sorted(claims - counted)
    if strange:
        return Verdict("numbers", f"not in the passage: {', '.join(strange[:5])}")
    strange = sorted(name for name in names(statement) if not holds_name(name, text_words))
    if strange:
        return Verdict("names", f"not in the passage: {', '.join(strange[:5])}")
    return None


def _unsupported(pair: Candidate, text: str, limits: Limits) -> Verdict | None:
    """An answer that only repeats its question, or whose words the passage does not have."""
    answer_words, question_words = set(words(pair.answer)), set(words(pair.question))
    if answer_words <= _YES_NO:
        return None
    claimed = content_words(pair.answer) or words(pair.answer)
    own = [word for word in claimed if word not in question_words]
    if not own and not question_words & _OR:
        return Verdict("echo", "the answer is in the question")
    spelled = [word for word in own or claimed if not word[0].isdigit()]  # numbers were checked
    share = overlap(spelled, vocabulary(text))
    if share < limits.support:
        return Verdict("unsupported", f"{share:.0%} of the answer's words are in the passage")
    return None


def _ungrounded(pair: Candidate, text: str, limits: Limits) -> Verdict | None:
    """A question about nothing in the passage; a name or number of it is a hold."""
    if names(pair.question) | digits(pair.question):  # in the passage, or `_invents` had said so
        return None
    share = overlap(content_words(pair.question), vocabulary(text))
    if share < limits.grounding:
        return Verdict("ungrounded", f"{share:.0%} of the question's words are in the passage")
    return None


def check_duplicate(pair: Candidate, accepted: Iterable[Candidate]) -> Verdict | None:
    """Whether a question is there already: the same words, or nearly the same with nearly the
    same answer (so that when and where something happened stay two questions)."""
    asked, answered = words(pair.question), vocabulary(pair.answer)
    core, own = set(content_words(pair.question)), answered - set(asked)
    for other in accepted:
        if words(other.question) == asked:
            return Verdict(DUPLICATE, f"asked before: {other.question}")
        near = _jaccard(core, set(content_words(other.question))) >= 0.75
        near = near and _facts(other.question) == _facts(pair.question)
        theirs = vocabulary(other.answer) - vocabulary(other.question)
        if near and _contained(own or answered, theirs) >= 0.5:
            return Verdict(DUPLICATE, f"nearly asked before: {other.question}")
    return None


def _facts(text: str) -> Set[str]:
    return numbers(text) | names(text)


def _jaccard(a: Set[str], b: Set[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 0.0


def _contained(a: Set[str], b: Set[str]) -> float:
    """How much of the smaller set the other one holds."""
    return len(a & b) / max(1, min(len(a), len(b)))


def check_paraphrase(paraphrase: str, text: str, limits: Limits) -> Verdict | None:
    """The first gate a paraphrase fails against its passage, None where it passes all."""
    paraphrase_words, text_words = words(paraphrase), words(text)
    if not paraphrase_words:
        return Verdict("empty", "no words")
    verdict = _says_nothing(paraphrase, text) or _points_at_document(paraphrase, text)
    if verdict is not None:
        return verdict
    if other_language(paraphrase, text):
        return Verdict("language", "in another language than the passage")
    length = len(paraphrase_words) / max(1, len(text_words))
    if not limits.shortest <= length <= limits.longest:
        return Verdict("length", f"{length:.1f} times as long as the passage")
    return (
        _invents(paraphrase, numbers(paraphrase), text)
        or _loses(paraphrase, text, limits)
        or _copies(paraphrase_words, text_words, limits)
    )


def _loses(paraphrase: str, text: str, limits: Limits) -> Verdict | None:
    known, counted = vocabulary(paraphrase), numbers(paraphrase)
    facts, kept = numbers(text) | names(text), 0
    for fact in facts:
        kept += fact in counted or holds_name(fact, known)
    if facts and kept < limits.kept * len(facts):
        return Verdict("incomplete", f"keeps {kept} of {len(facts)} numbers and names")
    return None


def _copies(said: list[str], given: list[str], limits: Limits) -> Verdict | None:
    size = min(COPY_GRAM, len(said), len(given))
    taken = {tuple(given[i : i + size]) for i in range(len(given) - size + 1)}
    grams = [tuple(said[i : i + size]) for i in range(len(said) - size + 1)]
    share = sum(gram in taken for gram in grams) / len(grams)
    if share > limits.copy:
        return Verdict("copy", f"{share:.0%} of its {size}-word runs are the passage's")
    return None


def check_golds(pair: Candidate, texts: list[str]) -> Verdict | None:
    """Whether a question over several passages owes something to each of them: each must hold a
    content word of the pair that no other one holds."""
    pair_words = set(content_words(f"{pair.question} {pair.answer}"))
    held = [vocabulary(text) & pair_words for text in texts]
    for number, own in enumerate(held):
        others = set().union(*held[:number], *held[number + 1 :])
        if not own - others:
            return Verdict("single", f"passage {number + 1} adds nothing to the question")
    return None


def coverage(text: str, pairs: Iterable[Candidate]) -> float:
    """The share of a passage's sentences of which the pairs hold at least half the content
    words."""
    known: set[str] = set()
    for pair in pairs:
        known.update(words(pair.question), words(pair.answer))
    parts = [content_words(sentence) for sentence in sentences(text)]
    parts = [part for part in parts if part]
    if not parts:
        return 0.0
    return sum(overlap(part, known) >= 0.5 for part in parts) / len(parts)
