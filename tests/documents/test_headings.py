"""Headings of Markdown: which lines are some, and the passages and titles they make."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clara_cli.documents.chunk import model_text, split_document
from clara_cli.documents.headings import find_headings, sections_of
from clara_cli.documents.places import place_of
from clara_cli.records import Document, Heading, Passage


def words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def cut(text: str, limit: int = 40, title: str = "Doc", how: str = "sentences") -> list[Passage]:
    document = Document("d", text, title, source="d.md", headings=find_headings(text))
    return split_document(document, limit, words, how, with_title=True)  # type: ignore[arg-type]


def body(name: str, count: int) -> str:
    return " ".join(f"{name}{n}" for n in range(count)) + "."


@pytest.mark.parametrize(
    ("text", "headings"),
    [
        ("# One\n## Two ##\n###### Six", [(1, "One"), (2, "Two"), (6, "Six")]),
        ("One\n===\n\ntext\n\nTwo\r\n---\r\n", [(1, "One"), (2, "Two")]),
        ("#no\n####### no\n    # no\n#\n> # no\n- # no", []),
        ("```sh\n# no\n~~~\n```\n# yes", [(1, "yes")]),
        ("~~~~\n# no\n~~~\n# no\n~~~~ \n# yes", [(1, "yes")]),
        ("```\n# never closed", []),
        ("a ``` b\n# yes", [(1, "yes")]),
        ("``` a`b\n# yes", [(1, "yes")]),
        ("- item\n---\n| a |\n|---|\ntext\n\n---\n", []),
        ("two lines\nof text\n---\n", []),
        ("# C# and F #\n# `a` #b", [(1, "C# and F"), (1, "`a` #b")]),
    ],
)
def test_which_lines_are_headings(text: str, headings: list[tuple[int, str]]) -> None:
    found = find_headings(text)
    assert [(one.level, one.words) for one in found] == headings
    for heading in found:
        line = text[heading.start :].split("\n")[0]
        assert heading.words in line


@pytest.mark.parametrize(
    "text",
    ["# x\n" * 250_000, "- x\n" * 250_000, "#" * 10**6, "# " * 500_000, "```\n" * 250_000,
     "x\n=\n\n" * 200_000, " " * 10**6, "`" * 10**6, "# " + " #" * 500_000],
    ids=lambda text: repr(text[:4]),
)  # fmt: skip
def test_finding_headings_takes_linear_time(text: str) -> None:
    started = time.process_time()
    find_headings(text)
    assert time.process_time() - started < 10


GUIDE = f"""{body("intro", 20)}

# Guide

## Install

{body("install", 20)}

### Linux

{body("linux", 8)}

### Mac

{body("mac", 30)}

## Use

{" ".join(body(f"Use{n}-", 9) for n in range(6))}

## Notes

{body("n", 3)}

## Links

{body("l", 3)}
"""


def test_passages_end_at_headings_and_have_them_in_their_titles() -> None:
    passages = cut(GUIDE)
    starts = [((p.text or "").split("\n")[0].split()[0], p.title) for p in passages]
    assert starts == [
        ("intro0", "Doc"),
        ("#", "Doc > Guide > Install"),  # with what is above it alone, and the short one below it
        ("###", "Doc > Guide > Install > Mac"),
        ("##", "Doc > Guide > Use"),
        ("Use3-0", "Doc > Guide > Use"),
        ("##", "Doc > Guide"),  # two tiny sections
    ]
    assert "### Linux" in (passages[1].text or "") and "## Links" in (passages[5].text or "")
    lines = GUIDE.splitlines()
    for passage in passages:
        place = place_of(passage.source)
        assert (passage.text or "").split("\n")[0] in lines[place.line - 1]
    sections = [place_of(p.source).name for p in passages]
    assert sections == ["", "Guide", "Mac", "Use", "Use", "Notes"]
    assert [str(place_of(p.source)) for p in passages[:2]] == ["d.md:1", "d.md:3 section Guide"]


def test_a_small_text_is_cut_at_headings_too_unless_its_sections_are_tiny() -> None:
    two = f"# One\n\n{body('a', 15)}\n\n# Two\n\n{body('b', 15)}\n"
    assert [(p.title, p.text) for p in cut(two)] == [
        ("Doc > One", f"# One\n\n{body('a', 15)}"),
        ("Doc > Two", f"# Two\n\n{body('b', 15)}"),
    ]
    (joined,) = cut(two, limit=80)
    assert (joined.title, joined.text) == ("Doc", two)
    (whole,) = split_document(Document("d", two, "Doc"), 40, words, "sentences", True)
    assert whole.text == two and whole.title == "Doc"  # no Markdown: no headings


def test_a_title_is_not_said_twice_nor_longer_than_a_quarter() -> None:
    (passage,) = cut("# Doc\n\nText.")
    assert passage.title == "Doc"
    deep = "# A b c d\n## E f g h\n### I j\n" + body("x", 20)
    assert [p.title for p in cut(deep, limit=48)] == ["Doc > I j"]
    assert [p.title for p in cut(deep, limit=30)] == ["Doc > E f g h", "Doc > I j"]
    assert {p.title for p in cut(deep, limit=12)} == {"Doc"}
    unread = Document("d", deep, "Doc", headings=find_headings(deep))
    made = split_document(unread, 12, words, "sentences", with_title=False)
    assert made[-1].title == "Doc > A b c d > E f g h > I j"
    (one,) = split_document(unread, 12, words, "none", with_title=True)
    assert (one.title, one.text) == ("Doc", deep)


_LINES = st.lists(
    st.sampled_from(["# a", "## b c", "### d", "#### e", "", "x y.", "z " * 9, "```", "==="]),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(_LINES, st.integers(4, 30), st.sampled_from(["sentences", "tokens"]), st.integers(0, 3))
@example(["# a", "## b c", "", "z " * 9, "## b c", "z " * 9], 10, "tokens", 0)
def test_passages_hold_all_fit_and_cross_no_heading_of_their_level(
    lines: list[str], limit: int, how: str, overlap: int
) -> None:
    text = "\n".join(lines)
    headings = find_headings(text)
    document = Document("d", text, "T", headings=headings)
    passages = split_document(
        document,
        limit,
        words,
        how,
        with_title=True,
        overlap=overlap,  # type: ignore[arg-type]
    )
    seen = ""
    for passage in passages:
        assert passage.text == text[passage.start : passage.end]
        assert passage.tokens == len(words(model_text(passage.title, passage.text or "")))
        assert passage.tokens <= limit
        seen += text[len(seen) : passage.end]
        _check_headings(passage, headings, text, limit)
    assert not text[len(seen) :].strip()


def _check_headings(passage: Passage, headings: tuple[Heading, ...], text: str, limit: int) -> None:
    """Behind a passage's first quarter comes no heading of the level it has reached by then."""
    inside = [heading for heading in headings if passage.start <= heading.start < passage.end]
    level = next((h.level for h in reversed(headings) if h.start <= passage.start), None)
    for heading in inside:
        if heading.start == passage.start:
            continue
        before = len(words(text[passage.start : heading.start]))
        if before >= limit // 4 and level is not None:
            assert heading.level > level
        elif level is not None:
            level = heading.level


def test_headings_are_bounded_in_number_and_length() -> None:
    many = find_headings("# x\n" * 70_000)
    assert len(many) == 2**16 and many[-1].start == 4 * (2**16 - 1)
    (long,) = find_headings("# " + "y" * 1000)
    assert long.words == "y" * 200


def test_sections_are_the_text() -> None:
    sections = list(sections_of(GUIDE, find_headings(GUIDE)))
    assert "".join(GUIDE[one.start : one.end] for one in sections) == GUIDE
    assert [one.path[-1:] for one in sections][:3] == [(), ("Guide",), ("Install",)]
