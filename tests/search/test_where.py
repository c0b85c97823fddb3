"""Filters: what they mean, where they go wrong, and that they are read as they are written."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.filters import ANYTHING, FILTERS, NAMES
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_cli.errors import UsageError
from clara_cli.search.where import AllOf, Compare, Filter, Not, Value, named_fields, parse

BOOK = {
    "lang": "en",
    "year": 2010,
    "price": 9.5,
    "tags": ["war", "sea", 7],
    "isbn": "0042",
    "date": "2010-05-17",
    "printed": True,
    "note": None,
    "author": {"name": "Ann"},
    "title": "The sea's edge",
    "first edition": 1,
}


@pytest.mark.parametrize(
    ("text", "fulfilled"),
    [
        ("lang=en", True),
        ("lang = EN", False),
        ("lang='en'", True),
        ("lang!=en", False),
        ("lang in (de, en)", True),
        ("lang not in (de, en)", False),
        ("year>=2010", True),
        ("year>2010", False),
        ("year<2010.5", True),
        ("year=2.01e3", True),
        ("year='2010'", False),  # quoted: text, and the year is a number
        ("price<=9.5", True),
        ("price = -9.5", False),
        ("isbn=42", True),  # a number against text that is one
        ("isbn='42'", False),
        ("isbn='0042'", True),
        ("date>=2010-05-01 and date<2010-06-01", True),
        ("date>=2011", False),
        ("tags=sea", True),
        ("tags=7", True),
        ("tags!=sea", False),
        ("tags in (love, war)", True),
        ("printed=true", True),
        ("printed=TRUE", True),
        ("printed=1", False),
        ("printed='true'", False),
        ("printed>=true", False),
        ("note=x", False),
        ("note!=x", True),
        ("author=Ann", False),
        ("missing=1", False),
        ("missing<1", False),
        ("missing!=1", True),
        ('title="The sea\'s edge"', True),
        (r"title='The sea\'s edge'", True),
        ('"first edition"=1', True),
        ("lang=de or year=2010 and price<9", False),
        ("(lang=de or year=2010) and price<10", True),
        ("lang=en or year=1 and year=2", True),  # and binds before or
        ("not lang=de and not (year=1 OR year=2)", True),
        ("NOT NOT lang=en", True),
        ("lang>=a and lang<f", True),
    ],
)
def test_what_a_filter_means(text: str, fulfilled: bool) -> None:
    assert parse(text).matches(BOOK) is fulfilled


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 1, "the filter ends where a field's name should be"),
        ("   ", 4, "the filter ends"),
        ("lang", 5, "the filter ends where one of = != < <= > >= in should be"),
        ("lang=", 6, "where a value should be"),
        ("lang==en", 6, "there is '=' where a value"),
        ("lang en", 6, "there is 'en'"),
        ("lang=en and", 12, "the filter ends"),
        ("and=3", 1, "there is 'and'"),
        ("lang=or", 6, "there is 'or'"),
        ("(lang=en", 9, "or a closing bracket"),
        ("lang=en)", 8, "there is ')' where and, or, or the end"),
        ("year in 2010", 9, "a list in brackets"),
        ("year in ()", 10, "there is ')' where a value"),
        ("year in (1 2)", 12, "a comma or a closing bracket"),
        ("year not = 1", 10, "there is '=' where in"),
        ("title='open", 7, "an open quote"),
        ("year ; 1", 6, "';' cannot be read"),
        ("__import__('os')", 11, "there is '('"),
        ("(" * 51 + "a=1", 52, "more than 50 brackets deep"),
        ("not " * 60 + "a=1", 205, "more than 50 brackets deep"),
    ],
)
def test_a_slip_is_named_with_its_place(text: str, position: int, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert f"character {position}: " in caught.value.message and words in caught.value.message
    assert "--where" in caught.value.hint


def written(value: Value) -> str:
    if not value.quoted:
        return value.text
    return '"' + value.text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def spelled(part: Filter) -> str:
    """A filter as text, every part in brackets."""
    if isinstance(part, Compare):
        if len(part.values) > 1:
            return f"{part.field} in ({', '.join(map(written, part.values))})"
        return f"{part.field}{part.mark}{written(part.values[0])}"
    if isinstance(part, Not):
        return f"not ({spelled(part.part)})"
    word = " and " if isinstance(part, AllOf) else " OR "
    return word.join(f"({spelled(each)})" for each in part.parts)


@settings(max_examples=60, deadline=None)
@given(FILTERS)
def test_a_filter_is_read_as_it_is_written(part: Filter) -> None:
    assert parse(spelled(part)) == part


@settings(max_examples=60, deadline=None)
@given(FILTERS, st.dictionaries(NAMES, ANYTHING, max_size=4), st.data())
def test_any_metadata_gives_a_verdict_and_not_is_its_opposite(
    part: Filter, fields: dict[str, Any], data: st.DataObject
) -> None:
    asked = list(named_fields(part))
    fields[data.draw(st.sampled_from(asked))] = data.draw(ANYTHING)
    verdict = part.matches(fields)
    assert isinstance(verdict, bool)
    assert parse(f"not ({spelled(part)})").matches(fields) is not verdict


@settings(deadline=None)
@given(st.text(alphabet="ab=<>!()\"'\\ ,01.andornit\n€", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        part = parse(text)
    except UsageError as error:
        assert "character" in error.message
    else:
        assert isinstance(part.matches({"a": 1, "b": "x"}), bool)


def test_a_long_filter_is_read() -> None:
    text = " or ".join(f"id={number}" for number in range(20_000))
    assert parse(text).matches({"id": 19999})
