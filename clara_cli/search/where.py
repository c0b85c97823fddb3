"""Filters on passages' fields: `lang=en and (year>=2010 or not kind in (draft, "in review"))`.

    filter   = all { "or" all }         value = number | word | "quoted" | 'quoted'
    all      = one { "and" one }        word  = letters, digits and . _ : / + - @ #
    one      = "not" one | "(" filter ")" | field test
    test     = ("=" | "!=" | "<" | "<=" | ">" | ">=") value | ["not"] "in" "(" value {"," value} ")"

Keywords in any case; a field whose name is not a word is quoted. A number compares with numbers
and with text that is one; text compares by code points, so ISO dates sort; `true` and `false` also
mean themselves. A list fulfils a test when one of its items does; a passage without the field
fulfils none. `!=` and `not in` are the negations of `=` and `in`. Nothing is ever evaluated.
Knows nothing of corpora: a filter takes a mapping of fields.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clara_cli.errors import UsageError

_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"""|(?P<word>[\w.:/+@#-]+)|(?P<mark>!=|<=|>=|[=<>(),]))""",
    re.S,
)
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,300}(?:\.[0-9]{0,300})?|\.[0-9]{1,300})(?:[eE][+-]?[0-9]+)?")
_KEYWORDS = ("and", "or", "not", "in")
_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_DEPTH = 50  # brackets and nots inside each other; far above need, far below Python's stack
_HINT = "for example: --where 'lang=en and year>=2010'"

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """A value as written; quoted ones are text even where they look like a number."""

    text: str
    quoted: bool = False

    @property
    def number(self) -> int | float | None:
        """The number it is, None where it is text."""
        return None if self.quoted else _number(self.text)


@dataclass(frozen=True, slots=True)
class Compare:
    """`field mark value`, or one of several values (`in`)."""

    field: str
    mark: str
    values: tuple[Value, ...]

    def matches(self, fields: Fields) -> bool:
        """Whether the field's value, or an item of it, passes for one of the values."""
        stored = fields.get(self.field)
        items = stored if isinstance(stored, (list, tuple)) else [stored]
        return any(_compare(self.mark, item, value) for item in items for value in self.values)


@dataclass(frozen=True, slots=True)
class Not:
    """The negation of a filter."""

    part: Filter

    def matches(self, fields: Fields) -> bool:
        """Whether the part does not hold."""
        return not self.part.matches(fields)


@dataclass(frozen=True, slots=True)
class AllOf:
    """Filters joined by `and`."""

    parts: tuple[Filter, ...]

    def matches(self, fields: Fields) -> bool:
        """Whether every part holds."""
        return all(part.matches(fields) for part in self.parts)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Filters joined by `or`."""

    parts: tuple[Filter, ...]

    def matches(self, fields: Fields) -> bool:
        """Whether some part holds."""
        return any(part.matches(fields) for part in self.parts)


Filter = Compare | Not | AllOf | AnyOf


def parse(text: str) -> Filter:
    """The filter a text says. Raises UsageError naming the position, from 1, and what was met."""
    return _Parser(text).whole()


def named_fields(filter_: Filter) -> Iterator[str]:
    """The fields a filter asks for, in the order written."""
    if isinstance(filter_, Compare):
        yield filter_.field
    else:
        parts = (filter_.part,) if isinstance(filter_, Not) else filter_.parts
        for part in parts:
            yield from named_fields(part)


def _number(text: str) -> int | float | None:
    if not _NUMBER.fullmatch(text):
        return None
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def _compare(mark: str, found: Any, value: Value) -> bool:
    """One stored value against one written value; what cannot be compared does not match."""
    test = _TESTS[mark]
    if isinstance(found, bool):
        return mark == "=" and not value.quoted and value.text.lower() == str(found).lower()
    number = value.number
    if isinstance(found, (int, float)):
        return number is not None and test(found, number)
    if not isinstance(found, str):
        return False
    stored = _number(found.strip()) if number is not None else None
    return test(found, value.text) if stored is None else test(stored, number)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


class _Parser:
    """Recursive descent, one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._lex())
        self._next, self._depth = 0, 0

    def whole(self) -> Filter:
        condition = self._any()
        if self._peek().kind != "end":
            raise self._unexpected("and, or, or the end")
        return condition

    def _lex(self) -> Iterator[_Token]:
        position, text = 0, self._text
        end = len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position, end)
            if match is None:
                position += len(text[position:]) - len(text[position:].lstrip())
                what = "an open quote" if text[position] in "\"'" else f"{text[position]!r}"
                raise self._error(position, f"{what} cannot be read")
            kind = match.lastgroup or ""
            token = match[kind]
            if kind == "word" and token.lower() in _KEYWORDS:
                kind, token = "mark", token.lower()
            yield _Token(kind, token, match.start(match.lastgroup or 0))
            position = match.end()
        yield _Token("end", "", len(text))

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *marks: str) -> str | None:
        """The next token's text where it is one of these marks, which is then behind us."""
        token = self._peek()
        if token.kind != "mark" or token.text not in marks:
            return None
        self._next += 1
        return token.text

    def _any(self) -> Filter:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _all(self) -> Filter:
        parts = [self._one()]
        while self._take("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _one(self) -> Filter:
        opened = self._take("not", "(")
        if opened is None:
            return self._test()
        self._depth += 1
        if self._depth > _DEPTH:
            raise self._error(self._peek().position, f"more than {_DEPTH} brackets deep")
        condition = Not(self._one()) if opened == "not" else self._any()
        if opened == "(" and not self._take(")"):
            raise self._unexpected("and, or, or a closing bracket")
        self._depth -= 1
        return condition

    def _test(self) -> Filter:
        field = self._value("a field's name").text
        negated = self._take("not") is not None
        if self._take("in"):
            test = Compare(field, "=", self._values())
            return Not(test) if negated else test
        mark = None if negated else self._take("!=", *_TESTS)
        if mark is None:
            raise self._unexpected("in" if negated else "one of = != < <= > >= in")
        value = (self._value("a value"),)
        return Not(Compare(field, "=", value)) if mark == "!=" else Compare(field, mark, value)

    def _values(self) -> tuple[Value, ...]:
        if not self._take("("):
            raise self._unexpected("a list in brackets")
        values = [self._value("a value")]
        while self._take(","):
            values.append(self._value("a value"))
        if not self._take(")"):
            raise self._unexpected("a comma or a closing bracket")
        return tuple(values)

    def _value(self, what: str) -> Value:
        token = self._peek()
        if token.kind not in ("word", "quoted"):
            raise self._unexpected(what)
        self._next += 1
        if token.kind == "word":
            return Value(token.text)
        return Value(re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.S), quoted=True)

    def _unexpected(self, wanted: str) -> UsageError:
        token = self._peek()
        met = "the filter ends" if token.kind == "end" else f"there is {token.text!r}"
        return self._error(token.position, f"{met} where {wanted} should be")

    def _error(self, position: int, what: str) -> UsageError:
        return UsageError(f"filter {self._text!r}, character {position + 1}: {what}", _HINT)
