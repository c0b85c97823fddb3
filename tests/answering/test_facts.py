"""Names by their capitals in any script, numbers in full: what support compares."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.answering.facts import canonical_number, known_parts, read_facts
from clara_cli.answering.support import lexical, text_signals
from clara_cli.records import Passage


def passage(text: str, title: str = "") -> list[Passage]:
    return [Passage("p#0", "p", title, text, 0, len(text), 1)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Łódź", "Łódź leży w Polsce."),
        ("Москва", "Столица России - Москва."),
        ("Şanlıurfa", "Şanlıurfa bir şehirdir."),
        ("İstanbul", "Boğaz İstanbul'dadır, şehir İstanbul."),
        ("Ōsaka", "The castle of Ōsaka."),
        ("Ἀθῆναι", "Αἱ Ἀθῆναι."),
        ("Երևան", "Մայրաքաղաքը Երևան է։"),
        ("Ǆakovo", "Grad Ǆakovo."),
        ("eBay", "Sold on eBay today."),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_told_by_its_capital_in_every_script(name: str, text: str, form: str) -> None:
    """Beside small words that stand in no passage, the name alone is judged."""
    said = unicodedata.normalize(form, f"zzz {name} zzz")
    assert [f.written for f in read_facts(said) if f.is_name] == [
        unicodedata.normalize("NFC", name)
    ]
    assert text_signals("?", said, passage(text))["facts"] == 1.0
    assert text_signals("?", said, passage("Nothing of it."))["facts"] == 0.0


def test_the_question_is_about_the_names_it_has() -> None:
    about = passage("Łódź is a city. Its mayor is Nora.", "Łódź")
    assert text_signals("Who is mayor of Łódź?", "Nora", about)["asked"] == 1.0
    assert text_signals("Who is mayor of Śrem?", "Nora", about)["asked"] == 0.0
    assert text_signals("Кто мэр города Москва?", "Nora", about)["asked"] == 0.0


@pytest.mark.parametrize(
    ("answer", "text", "share"),
    [
        ("1905", "in 1,905 villages", 1.0),
        ("1,905", "in 1905", 1.0),
        ("905", "in 1,905 villages", 0.0),
        ("8,804,190", "8 cities, 804 towns, 190 villages", 0.0),
        ("8,804,190", "8\u202f804\u202f190 people", 1.0),
        ("8'804'190", "8,804,190 people", 1.0),
        ("8.804.190", "8804190 people", 1.0),
        ("1.5", "1 of 5", 0.0),
        ("15", "1.5 km", 0.0),
        ("3,5", "3.5 percent", 1.0),
        ("10:30", "at 10 with 30 people", 0.0),
        ("10:30", "at 10:30 sharp", 1.0),
        ("1999", "on 12/05/1999.", 1.0),
        ("1999.", "(1999)", 1.0),
        ("\u0661\u0669\u0660\u0665", "in 1905", 1.0),
        ("1905", "1905-1907", 1.0),
        ("12km", "12km away", 1.0),
    ],
)
def test_numbers_are_compared_in_full(answer: str, text: str, share: float) -> None:
    assert text_signals("?", answer, passage(text))["facts"] == share
    assert lexical(answer, passage(text)) == share


def test_an_answer_without_names_is_judged_by_its_words() -> None:
    assert text_signals("?", "red wine", passage("wine is red"))["facts"] == 1.0
    assert text_signals("?", "東京", passage("東京都"))["facts"] == 1.0
    assert text_signals("?", "", passage("x"))["facts"] == 0.0


@given(st.integers(0, 10**12))
def test_a_whole_number_is_one_however_it_is_grouped(number: int) -> None:
    plain = str(number)
    grouped = f"{number:,}"
    assert canonical_number(grouped) == canonical_number(grouped.replace(",", "\u2009")) == plain
    assert plain in known_parts(f"There are {grouped}, they say.")


@given(st.text(max_size=60))
def test_what_a_text_says_is_known_from_it(text: str) -> None:
    known = known_parts(text)
    assert all(part in known for fact in read_facts(text) for part in fact.parts)
