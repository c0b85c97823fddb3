"""The sentence of a passage that serves a question best, and the line it stands on."""

from __future__ import annotations

import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.answering.sentences import (
    best_sentence,
    sentence_weights,
    with_best_sentences,
)
from clara_cli.documents.chunk import split_document
from clara_cli.records import Document, Hit, Passage

NOTES = """# Library

## Opening hours

Monday to Friday from nine to six.
On holiday eves it closes at noon.

## Borrowing

Six books at a time. The fee for a lost
card is 4 euros.
"""


def passage(text: str, title: str = "", source: str = "", start: int = 0) -> Passage:
    return Passage("d#0", "d", title, text, start, start + len(text), 9, {}, source)


def best(question: str, text: str, answer: str = "", title: str = "") -> str:
    one = passage(text, title)
    found = best_sentence(one, question, answer, sentence_weights([one], question))
    assert found is not None
    return found.text


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("What does a lost card cost?", "The fee for a lost\ncard is 4 euros."),
        ("When does it close before a holiday?", "On holiday eves it closes at noon."),
        ("What are the opening hours?", "Monday to Friday from nine to six."),  # by its heading
        ("How many books may I borrow?", "Six books at a time."),
    ],
)
def test_the_best_sentence_is_found_by_the_questions_words(question: str, sentence: str) -> None:
    assert best(question, NOTES) == sentence


def test_what_the_title_says_tells_sentences_apart_no_more() -> None:
    text = "The Walrus carried tobacco. The ship was commanded by Jarmond."
    assert best("Who commanded the Walrus?", text, title="Walrus").startswith("The ship")


def test_the_answers_words_decide_where_the_questions_do_not() -> None:
    text = "Ann sings in the choir. Bea sings in the band."
    assert best("Who sings?", text) == "Ann sings in the choir."
    assert best("Who sings?", text, answer="Bea") == "Bea sings in the band."


def test_a_sentence_stands_on_its_line_of_a_text_file_and_on_the_line_of_a_record() -> None:
    document = Document("n", NOTES, "", {}, "notes/library.md")
    offsets = [(i, i + 1) for i in range(len(NOTES))]
    pieces = split_document(
        document, 100, lambda text: offsets[: len(text)], "sentences", with_title=False
    )
    assert len(pieces) > 1
    lines = NOTES.splitlines()
    for piece in pieces:
        found = best_sentence(piece, "a lost card", "", {})
        assert found is not None
        assert NOTES[found.start : found.end] == found.text
        assert found.text.splitlines()[0] in lines[found.line - 1]
    record = best_sentence(passage(NOTES, source="corpus.jsonl:7"), "a lost card", "", {})
    assert record is not None and record.line == 7
    nowhere = best_sentence(passage(NOTES), "a lost card", "", {})
    assert nowhere is not None and nowhere.line == 0


def test_offsets_are_the_documents() -> None:
    found = best_sentence(passage("One. Two three.", start=100), "three?", "", {})
    assert found is not None and (found.start, found.end) == (105, 115)


def test_a_passage_without_text_has_no_sentence_and_one_of_headings_has_its_first() -> None:
    bare = Passage("d#0", "d", "", None, 0, 0, 0)
    hit = Hit(1, 0, 0.5, bare)
    assert with_best_sentences([hit], "Who?")[0].sentence is None
    assert best("Who?", "# One\n\n# Two") == "# One"


@given(st.text(max_size=200), st.text(max_size=40), st.text(max_size=20))
def test_it_is_a_piece_of_any_text_at_its_offsets(text: str, question: str, answer: str) -> None:
    one = passage(text)
    found = best_sentence(one, question, answer, sentence_weights([one], question))
    if not text.strip():
        assert found is None
        return
    assert found is not None and found.text and text[found.start : found.end] == found.text


def test_on_squad_it_holds_the_answer_far_more_often_than_the_first_sentence(shared) -> None:
    with lzma.open(shared / "data" / "squad" / "dev.jsonl.xz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line, _ in zip(lines, range(60), strict=False)]
    right = asked = 0
    for record in records:
        one = passage(record["text"], record["title"].replace("_", " "))
        for qa in record["qas"]:
            weights = sentence_weights([one], qa["question"])
            found = best_sentence(one, qa["question"], "", weights)
            assert found is not None
            asked += 1
            right += any(answer in found.text for answer in qa["answers"])
    assert asked > 200 and right / asked > 0.8
