"""The names and numbers of a text, as support compares them: names by their capitals in any script,
numbers in full, whatever their digits and the marks between groups of three. Knows text alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from clara_cli.search.bm25 import words

_GROUP_MARKS = "'\u2019\u00a0\u2009\u202f"  # between groups of three digits, beside , and .
_NUMBER = rf"\d+(?:[.,:/]\d+|[{_GROUP_MARKS}]\d{{3}}(?!\d))*"
_WORD = r"\w[\w\u0300-\u036f]*"  # with the combining marks that no single letter holds
_TOKEN = re.compile(rf"(?P<number>{_NUMBER})(?!\w)|{_WORD}")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_GROUPED_BY_POINTS = re.compile(r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}(?:\.\d{3})+,\d+")
_DECIMAL_COMMA = re.compile(r"\d+,\d{1,2}")


@dataclass(frozen=True)
class Fact:
    """A word or number at a code point of the text: how it is `written`, and the `parts` it is
    compared by (a number is one part)."""

    start: int
    written: str
    parts: tuple[str, ...]
    is_number: bool

    @property
    def is_name(self) -> bool:
        """Whether it has a capital, or a digit, in any script."""
        return any(c.isupper() or c.istitle() or c.isdecimal() for c in self.written)


def read_facts(text: str) -> Iterator[Fact]:
    """Every word and number of a text, in order."""
    text = unicodedata.normalize("NFC", text)
    for token in _TOKEN.finditer(text):
        written = token.group()
        number = token.group("number") is not None
        parts = (canonical_number(written),) if number else tuple(words(written))
        yield Fact(token.start(), written, parts, number)


def canonical_number(written: str) -> str:
    """A number with ASCII digits, a point before decimals and nothing between groups of three:
    1,905 and 1905 are one, 1.5 and 15 are not."""
    number = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in written)
    number = re.sub(f"[{_GROUP_MARKS}]", "", number)
    if _GROUPED.fullmatch(number):
        return number.replace(",", "")
    if _GROUPED_BY_POINTS.fullmatch(number):
        return number.replace(".", "").replace(",", ".")
    return number.replace(",", ".") if _DECIMAL_COMMA.fullmatch(number) else number


def known_parts(text: str) -> set[str]:
    """Every word and number that stands in a text; those of a date or time on their own too."""
    known: set[str] = set()
    for fact in read_facts(text):
        known.update(fact.parts)
        if fact.is_number:
            known.update(map(canonical_number, re.split("[:/]", fact.written)))
    return known
