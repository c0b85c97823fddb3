"""The gates by hand, each with what it lets through and what it does not; then by hypothesis."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_cli.synthesis import quality_checks, text_features
from clara_cli.synthesis.quality_checks import (
    Candidate,
    Limits,
    check_duplicate,
    check_golds,
    check_pair,
    check_paraphrase,
    coverage,
)

TEXT = (
    "Kestrel Point\nThe lighthouse was lit in 1871 by Odile Marrane. It stands 1,200 metres from "
    "the harbour of Saltbridge. After twelve years the keeper painted its tower red, because the "
    "ferry Solveig had run aground in fog."
)
GERMAN = (
    "Der Leuchtturm wurde 1871 von Odile Marrane gebaut. Er steht auf einem Felsen vor der Stadt "
    "und ist bei den Fischern nicht beliebt."
)
LIMITS = Limits()


def gate(question: str, answer: str, text: str = TEXT) -> str | None:
    verdict = check_pair(Candidate(question, answer), text, LIMITS)
    return None if verdict is None else verdict.gate


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("When was the lighthouse of Kestrel Point lit?", "1871", None),
        ("Who lit the lighthouse of Kestrel Point?", "Odile Marrane", None),
        ("How far is the lighthouse from Saltbridge?", "1200 metres", None),
        ("After how many years was the tower painted?", "12", None),
        ("After how many years was the tower painted?", "twelve years", None),
        ("Which two colours or paints does the tower of Kestrel Point wear?", "red", None),
        ("Did the Solveig run aground?", "Yes", None),
        ("Was the tower red or white?", "red", None),
        ("Why was the tower painted?", "because the ferry had run aground in the fog", None),
        ("", "1871", "empty"),
        ("When was it lit?", " . ", "empty"),
        ("word " * 61 + "?", "1871", "question_length"),
        ("Who lit the lighthouse?", "Odile Marrane " * 21, "answer_length"),
        ("Who owns the lighthouse?", "That is not mentioned.", "no_answer"),
        ("Who owns the lighthouse?", "I'm sorry, I cannot help with that.", "no_answer"),
        ("Who owns the lighthouse?", "not answered", "no_answer"),
        ("According to the passage, when was the lighthouse lit?", "1871", "document"),
        ("When was the lighthouse in this text lit?", "1871", "document"),
        ("What does the document say of 1871?", "The lighthouse was lit", "document"),
        ("Wann wurde der Leuchtturm der Stadt gebaut und von wem?", "1871", "language"),
        ("Когда был зажжён маяк?", "1871", "language"),
        ("When was the lighthouse lit?", "1872", "numbers"),
        ("What did Odile Marrane do in 1870?", "lit the lighthouse", "numbers"),
        ("After how many years was the tower painted?", "fourteen years", "numbers"),
        ("Who lit the lighthouse?", "It was Odile Svenson", "names"),
        ("Which ferry did the French navy send?", "Solveig", "names"),
        ("Why is Odile Marrane known for red paint?", "Odile Marrane", "echo"),
        ("Who lit the lighthouse?", "some unnamed engineer", "unsupported"),
        ("Which animals do zoologists study abroad?", "red", "ungrounded"),
    ],
)
def test_pairs_by_hand(question: str, answer: str, expected: str | None) -> None:
    assert gate(question, answer) == expected


def test_a_document_about_a_document_may_be_asked_about() -> None:
    text = "The document of 1215 was sealed by the king at Runnymede before his barons."
    assert gate("Where did the king seal the document of 1215?", "Runnymede", text) is None
    assert gate("Where was this document sealed by the king?", "Runnymede", text) == "document"


def test_german_nouns_are_no_names() -> None:
    assert text_features.names(GERMAN) == set()
    question = "Wer hat den Leuchtturm auf dem Felsen vor der Stadt gebaut?"
    assert gate(question, "Odile Marrane", GERMAN) is None
    assert gate("Who built the tower on the rock by the town?", "1871", GERMAN) == "language"


def test_scripts_without_spaces() -> None:
    text = "東京は日本の首都です。人口は1400万人です。"
    assert gate("日本の首都はどこですか？", "東京", text) is None
    assert gate("日本の首都はどこですか？", "大阪", text) == "unsupported"
    assert gate("What is the capital city of the country?", "東京", text) == "language"


@pytest.mark.parametrize(
    ("question", "answer", "duplicate"),
    [
        ("who LIT the old lighthouse of Kestrel Point", "Ann", True),
        ("Who was it that lit the old lighthouse of Kestrel Point?", "Odile Marrane", True),
        ("Who first lit the old lighthouse of Kestrel Point?", "Odile", True),
        ("Who first lit the old lighthouse of Kestrel Point?", "the mayor", False),
        ("When was the lighthouse lit?", "1871", False),
        ("What colour is the tower?", "red", False),
    ],
)
def test_duplicates(question: str, answer: str, duplicate: bool) -> None:
    known = [Candidate("Who lit the old lighthouse of Kestrel Point?", "Odile Marrane")]
    verdict = check_duplicate(Candidate(question, answer), known)
    assert (verdict is not None) is duplicate


def test_the_same_question_about_another_place_is_no_duplicate() -> None:
    known = [Candidate("What is the name of the hospital in Fethiye?", "Fethiye Hospital")]
    other = Candidate("What is the name of the hospital in Marmaris?", "Marmaris Hospital")
    assert check_duplicate(other, known) is None


GOOD = (
    "Since 1871, when Odile Marrane first lit it, a lighthouse has guarded Kestrel Point, 1,200 "
    "metres off Saltbridge's harbour. Fog put a ferry called Solveig on the rocks, and so, twelve "
    "years on, its keeper gave it a red coat."
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (GOOD, None),
        ("...", "empty"),
        ("I'm sorry, I can't rewrite this text for you today.", "no_answer"),
        ("The passage tells of 1871. " + GOOD, "document"),
        (GERMAN, "language"),
        ("A light was lit in 1871.", "length"),
        (GOOD * 3, "length"),
        (GOOD.replace("1871", "1817"), "numbers"),
        (GOOD.replace("Odile Marrane", "Odile Svensson"), "names"),
        (
            "Somebody once lit a lamp at the coast near a harbour; some years later the person "
            "who kept it gave the tower a new colour, since a ship ran onto rocks in bad weather.",
            "incomplete",
        ),
        (TEXT, "copy"),
        (TEXT.replace("lit in 1871 by", "first lit in 1871 by"), "copy"),
    ],
)
def test_paraphrases_by_hand(said: str, expected: str | None) -> None:
    verdict = check_paraphrase(said, TEXT, LIMITS)
    assert (None if verdict is None else verdict.gate) == expected


def test_golds_must_each_add_something() -> None:
    pair = Candidate("Where was the painter of the lighthouse of Kestrel born?", "Saltbridge")
    first, second = "The lighthouse of Kestrel has a painter.", "She was born in Saltbridge."
    assert check_golds(pair, [first, second]) is None
    verdict = check_golds(pair, [first, "Nothing to do with it."])
    assert verdict is not None
    assert (verdict.gate, verdict.detail) == ("single", "passage 2 adds nothing to the question")


def test_coverage_by_hand() -> None:
    text = "Ann lives in Rome. Bob keeps bees. Cid sells shoes and boots."
    ann, bob = Candidate("Where does Ann live?", "Rome"), Candidate("Who keeps bees?", "Bob")
    assert coverage(text, []) == 0.0
    assert coverage(text, [ann]) == pytest.approx(1 / 3)
    assert coverage(text, [ann, bob]) == pytest.approx(2 / 3)
    assert coverage("", [ann]) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,200 and 1.200 and 1200", {"1200"}),
        ("3.0 or 3.50, 007", {"3", "3.50", "7"}),
        ("twenty-four or ninety", {"20", "4", "24", "90"}),
        ("one", set()),
        ("٣ and ３", {"3", "٣"}),
    ],
)
def test_numbers(text: str, expected: set[str]) -> None:
    assert text_features.numbers(text) == expected


def test_names() -> None:
    said = "The mayor of Bram is Irma Jar. She said: Paris waits. The UN met; OR5AC2 is a gene."
    assert text_features.names(said) == {"bram", "irma", "jar", "un", "or5ac2"}
    assert text_features.names("ALL OF THIS IS WRITTEN LOUDLY BY SOMEBODY WHO SHOUTS") == set()


def test_language_needs_evidence() -> None:
    assert text_features.language("Irma Jarmark") is None
    assert text_features.language("Who is the mayor of the town?") == "en"
    assert text_features.language("Qui est le maire de la ville et où habite-t-il ?") == "fr"
    assert not text_features.other_language("1871", "Когда был зажжён маяк?")


# --- properties ---

CAPITAL = st.sampled_from("ABCDEFGHIJKLMNOP")
NAME = st.builds(lambda c, rest: c + rest, CAPITAL, st.text("bcdfgklmnp", min_size=4, max_size=8))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=300))
def test_any_text_gets_a_verdict_or_none(question: str, answer: str, text: str) -> None:
    verdict = check_pair(Candidate(question, answer), text, LIMITS)
    assert verdict is None or verdict.gate in quality_checks.PAIR_GATES
    verdict = check_paraphrase(answer, text, LIMITS)
    assert verdict is None or verdict.gate in quality_checks.PARAPHRASE_GATES
    assert 0.0 <= coverage(text, [Candidate(question, answer)]) <= 1.0


@settings(max_examples=60, deadline=None)
@given(NAME, NAME, st.integers(10, 99999), st.integers(10, 99999))
def test_what_the_passage_does_not_hold_never_passes(a: str, b: str, n: int, m: int) -> None:
    text = f"The keeper of the tower is {a}, who painted it red in {n} and left it then."
    assert gate("Who is the keeper of the tower?", f"The keeper is {a}", text) is None
    same = text_features.holds_name(b.casefold(), {a.casefold()})
    if not same:
        assert gate("Who is the keeper of the tower?", f"The keeper is {b}", text) == "names"
    if n != m:
        assert gate(f"Who painted the tower red in {m}?", a, text) == "numbers"
        assert gate("In which year was the tower painted red?", str(m), text) == "numbers"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("abcdefgh ", min_size=5, max_size=30), min_size=1, max_size=8))
def test_duplicates_of_oneself_are_found_and_coverage_only_grows(questions: list[str]) -> None:
    pairs = [Candidate(question, "an answer") for question in questions]
    text = ". ".join(questions)
    shares = [coverage(text, pairs[:n]) for n in range(len(pairs) + 1)]
    assert shares == sorted(shares)
    for pair in pairs:
        assert check_duplicate(pair, pairs) is not None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("red tower keeper fog ferry coast lamp stone".split()), min_size=6))
def test_a_copy_is_always_a_copy(said: list[str]) -> None:
    text = " ".join(said)
    verdict = check_paraphrase(text, text, LIMITS)
    assert verdict is not None and verdict.gate == "copy"


def test_one_in_the_passage_is_a_1_in_the_answer() -> None:
    text = "Hill made 64 appearances for Hendon and scored one goal in two seasons."
    assert (
        check_pair(Candidate("How many goals did Hill score for Hendon?", "1"), text, LIMITS)
        is None
    )
    wrong = check_pair(Candidate("How many goals did Hill score for Hendon?", "3"), text, LIMITS)
    assert wrong is not None and wrong.gate == "numbers"


def test_a_quotation_may_be_in_any_language() -> None:
    text = (
        "Sugar Sugar Rune (シュガシュガルーン) is a Japanese manga series that was written by "
        "Moyoco Anno. It was published in eight volumes and adapted for an anime series, and "
        "it won the Kodansha award for the best manga that was made for children in its year."
    )
    asked = "What is the Japanese title of the manga series Sugar Sugar Rune?"
    assert check_pair(Candidate(asked, "シュガシュガルーン"), text, LIMITS) is None
    wrong = check_pair(Candidate(asked, "チョコレートの魔法です"), text, LIMITS)
    assert wrong is not None and wrong.gate == "language"


def test_published_pairs_through_the_gates(shared: Path) -> None:
    """Pinned on the first 40 documents of the published pipeline's output."""
    path = shared / "data" / "clara_example" / "pretrain_data.jsonl.xz"
    counts: dict[str, int] = {}
    with lzma.open(path, "rt") as stream:
        for _, line in zip(range(40), stream, strict=False):
            record = json.loads(line)
            known: list[Candidate] = []
            for pair in map(Candidate, record["question"], record["answers"]):
                verdict = check_pair(pair, record["docs"][0], LIMITS)
                verdict = verdict or check_duplicate(pair, known)
                name = "passed" if verdict is None else verdict.gate
                counts[name] = counts.get(name, 0) + 1
                known += [pair] if verdict is None else []
    assert counts == {
        **{"passed": 286, "document": 30, "names": 10, "duplicate": 5, "unsupported": 2},
        **{"numbers": 2, "echo": 1},
    }
