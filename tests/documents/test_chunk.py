"""Splitting: budgets hold, only white space is lost, sentences stay whole, time is linear."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clara_cli.documents import chunk
from clara_cli.documents.chunk import model_text, sentence_spans, split_document
from clara_cli.records import Document


def by_words(text: str) -> list[tuple[int, int]]:
    """Words, and each other visible character: a token never spans white space."""
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def by_bytes(text: str) -> list[tuple[int, int]]:
    """A byte-level tokenizer: several tokens a character, white space counts."""
    return [(i, i + 1) for i, c in enumerate(text) for _ in c.encode("utf-8", "surrogatepass")]


def by_pairs(text: str) -> list[tuple[int, int]]:
    """A dummy first token, and tokens that depend on where the text was cut."""
    return [(0, 0)] + [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)]


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four… Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
        ("Dr. J. R. Roe et al. saw e.g. it. Yes", ["Dr. J. R. Roe et al. saw e.g. it.", "Yes"]),
        ('He said "Go!" and went. (So.) Then', ['He said "Go!" and went.', "(So.)", "Then"]),
        ("Pi is 3.14 or v1.2.3. Ok", ["Pi is 3.14 or v1.2.3.", "Ok"]),
        ("Wait... what? \"Really?!\" Yes", ["Wait... what?", '"Really?!"', "Yes"]),
        ("他来了。她说：“好。”再见！", ["他来了。", "她说：“好。”", "再见！"]),
        ("है। ठीक है॥ हाँ", ["है।", "ठीक है॥", "हाँ"]),
        ("هل؟ نعم. لا", ["هل؟", "نعم.", "لا"]),
        ("hard\nwrapped\nNew line\n\nlower para", ["hard\nwrapped", "New line", "lower para"]),
        ("ends with approx.\n\nfive", ["ends with approx.", "five"]),
        ("  \n lead. Trail \n ", ["lead.", "Trail"]),
        ("", []),
        (" \n\t", []),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aA1 .!?\n\t\"')。”…é\u3000", max_size=60))
def test_sentences_hold_all_but_white_space(text: str) -> None:
    spans = sentence_spans(text)
    assert "".join(text[a:b] for a, b in spans).split() or not text.split()
    rest, last = [], 0
    for start, end in spans:
        assert last <= start < end
        assert text[start:end] == text[start:end].strip()
        rest.append(text[last:start])
        last = end
    assert "".join([*rest, text[last:]]).strip() == ""


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet='aB1 .!\n"。é€😀\u3000', max_size=120),
    title=st.sampled_from(["", "T", "A longer title, of words", "é€😀" * 5]),
    limit=st.integers(1, 40),
    count_tokens=st.sampled_from([by_words, by_bytes, by_pairs]),
    how=st.sampled_from(["sentences", "tokens", "none"]),
    with_title=st.booleans(),
)
@example("a", "é€😀" * 5, 2, by_bytes, "sentences", True)
@example(" " * 100, "T", 5, by_bytes, "tokens", True)
def test_passages_partition_within_budget(
    text, title, limit, count_tokens, how, with_title
) -> None:
    document = Document("d", text, title, {"k": 1})
    passages = split_document(document, limit, count_tokens, how, with_title)
    assert [p.passage_id for p in passages] == [f"d#{n}" for n in range(len(passages))]
    last, dropped = 0, []
    for passage in passages:
        assert last <= passage.start <= passage.end <= len(text)
        assert passage.text == text[passage.start : passage.end]
        read = model_text(passage.title if with_title else "", passage.text)
        assert passage.tokens == len(count_tokens(read))
        assert passage.metadata == {"k": 1}
        if how != "none":
            assert passage.tokens <= limit or len(passage.text) <= 1
        dropped.append(text[last : passage.start])
        last = passage.end
    assert "".join([*dropped, text[last:]]).strip() == ""
    if how == "none" or not text.strip():
        assert len(passages) == 1
    if not with_title or how == "none":
        assert all(p.title == title for p in passages)


def test_packs_whole_sentences_greedily() -> None:
    text = "A b c. D e. F g h i. J."  # 4, 3, 5 and 2 tokens
    passages = split_document(Document("d", text), 7, by_words, "sentences", True)
    assert [(p.text, p.tokens) for p in passages] == [("A b c. D e.", 7), ("F g h i. J.", 7)]
    passages = split_document(Document("d", text, "Ti"), 7, by_words, "sentences", True)
    assert [(p.text, p.tokens) for p in passages] == [
        ("A b c.", 5),
        ("D e.", 4),
        ("F g h i.", 6),
        ("J.", 3),
    ]
    unseen = split_document(Document("d", text, "Ti"), 7, by_words, "sentences", False)
    assert [p.tokens for p in unseen] == [7, 7] and unseen[0].title == "Ti"


def test_a_long_sentence_is_cut_by_tokens_and_its_rest_packed() -> None:
    text = "one two three four five six seven. Eight. Nine ten eleven twelve."
    passages = split_document(Document("d", text), 5, by_words, "sentences", True)
    assert [p.text for p in passages] == [
        "one two three four five",
        "six seven. Eight.",
        "Nine ten eleven twelve.",
    ]
    assert [(p.start, p.end) for p in passages] == [(0, 23), (24, 41), (42, 65)]


def test_token_windows_are_full() -> None:
    text = " ".join(f"w{n}" for n in range(23))
    passages = split_document(Document("d", text), 5, by_words, "tokens", True)
    assert [p.tokens for p in passages] == [5, 5, 5, 5, 3]


def test_none_keeps_the_whole_and_counts_it() -> None:
    text = "  a b c d e f  "
    (passage,) = split_document(Document("d", text, "T"), 3, by_words, "none", True)
    assert (passage.text, passage.start, passage.end, passage.tokens) == (text, 0, 15, 7)


def test_what_fits_is_one_passage_unstripped() -> None:
    (passage,) = split_document(Document("d", " a. b. ", "T"), 5, by_words, "sentences", True)
    assert (passage.text, passage.tokens) == (" a. b. ", 5)
    (empty,) = split_document(Document("d", "", "T"), 5, by_words, "sentences", True)
    assert (empty.text, empty.tokens, empty.start, empty.end) == ("", 1, 0, 0)


def test_a_title_leaves_half_the_budget() -> None:
    title = " ".join("abcdefghijklmnopqrstuvwxyz")
    passages = split_document(Document("d", "1 2 3 4 5 6 7 8", title), 8, by_words, "tokens", True)
    assert [p.text for p in passages] == ["1 2 3 4", "5 6 7 8"]
    assert {p.title for p in passages} == {"a b c d"}


@pytest.mark.parametrize(
    "text",
    ["." * 10**6, "a. " * 150_000, " " * 10**6, ' "' * 300_000, "\n" * 10**6, "。”" * 200_000,
     '.")' * 200_000, "x" * 10**6, "Mr. " * 100_000],
    ids=lambda text: repr(text[:4]),
)  # fmt: skip
def test_sentences_take_linear_time(text: str) -> None:
    started = time.process_time()
    sentence_spans(text)
    assert time.process_time() - started < 3


def test_a_huge_line_is_tokenised_once_in_blocks(monkeypatch) -> None:
    monkeypatch.setattr(chunk, "_BLOCK", 4096)
    lengths: list[int] = []

    def counted(text: str) -> list[tuple[int, int]]:
        lengths.append(len(text))
        return by_words(text)

    text = "word " * 40_000
    passages = split_document(Document("d", text), 100, counted, "sentences", True)
    assert [p.tokens for p in passages] == [100] * 400
    assert max(lengths) <= 4096
    assert sum(lengths) < 2.2 * len(text)  # once for the offsets, once for each passage's count


# --- overlap ---


def test_an_overlap_repeats_whole_sentences_else_tokens() -> None:
    text = "A b c. D e. F g h i. J k."
    made = split_document(Document("d", text), 8, by_words, "sentences", False, overlap=4)
    assert [p.text for p in made] == ["A b c. D e.", "D e. F g h i.", "J k."]
    long = " ".join(str(n) for n in range(20))
    made = split_document(Document("d", long), 8, by_words, "sentences", False, overlap=3)
    assert [p.text.split()[0] for p in made] == ["0", "5", "10", "15"]
    assert [p.tokens for p in made] == [8, 8, 8, 5]
    for wrong in (-1, 8, 9):
        with pytest.raises(ValueError, match=f"overlap is {wrong}"):
            split_document(Document("d", long), 8, by_words, "tokens", False, overlap=wrong)


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet="aB .!?\n\u3000é。", max_size=120),
    st.sampled_from(["", "T t"]),
    st.sampled_from(["sentences", "tokens"]),
    st.sampled_from([by_words, by_bytes, by_pairs]),
    st.integers(1, 12).flatmap(lambda limit: st.tuples(st.just(limit), st.integers(0, limit - 1))),
)
def test_overlapping_passages_go_on_hold_all_and_fit(text, title, how, tokens, sizes) -> None:
    limit, overlap = sizes
    made = split_document(Document("d", text, title), limit, tokens, how, True, overlap)
    assert [p.passage_id for p in made] == [f"d#{n}" for n in range(len(made))]
    seen = ""
    for n, passage in enumerate(made):
        assert passage.text == text[passage.start : passage.end]
        assert passage.tokens <= limit or len(passage.text) <= 1
        if n:
            before = made[n - 1]
            assert before.start < passage.start and before.end < passage.end
            assert not text[before.end : passage.start].strip()
            if before.end > passage.start and tokens is by_words:
                assert len(by_words(text[passage.start : before.end])) <= overlap
        seen += text[len(seen) : passage.end]
    assert not text[len(seen) :].strip()


# --- places ---


def test_a_passage_knows_the_line_where_it_begins() -> None:
    text = "One two.\n\nThree four.\nFive six."
    made = split_document(
        Document("d", text, source="notes/a.md"), 3, by_words, "sentences", with_title=False
    )
    assert [(p.text, p.source) for p in made] == [
        ("One two.", "notes/a.md:1"),
        ("Three four.", "notes/a.md:3"),
        ("Five six.", "notes/a.md:4"),
    ]


@pytest.mark.parametrize(
    ("source", "place"),
    [("c.jsonl:7", "c.jsonl:7"), ("<stdin>:7", ""), ("", ""), ("a:b.txt", "a:b.txt:1")],
)
def test_a_records_place_is_its_own_line(source: str, place: str) -> None:
    document = Document("d", "One two.\nThree.", source=source)
    assert {p.source for p in split_document(document, 9, by_words, "none", False)} == {place}
