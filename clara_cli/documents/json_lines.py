"""One JSON text as a value, within bounds: whatever the bytes, a value or what is wrong with them.

Knows nothing of what a record means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from clara_cli.documents.sources import BadRecord, not_utf8, shortened, too_long

MAX_DEPTH = 100  # arrays and objects inside each other
BYTES_A_VALUE = 16  # a value takes up to a hundred bytes of memory, and may take two of JSON
_PIECE = 2**16
_BETWEEN = re.compile(rb"[ \t\r\n,]*")  # items of an array
_MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)  # whole strings, or a mark
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def parse_line(line: bytes, limit: int, not_a_number: bool = False) -> Any:
    """The JSON value of a line of at most `limit` bytes.

    Raises BadRecord for bytes that are not UTF-8, text that is not JSON (`not_a_number` admits the
    NaN and Infinity that Python writes), an integer of more than 4,300 digits, nesting deeper than
    `MAX_DEPTH`, and more values than one to `BYTES_A_VALUE` bytes of the limit.
    """
    _refuse_many(line, limit // BYTES_A_VALUE)
    constant = None if not_a_number else _refuse_constant
    try:
        value = json.loads(line.decode(), parse_constant=constant)
    except UnicodeDecodeError as error:
        raise BadRecord(not_utf8(line, error.start)[1]) from None
    except json.JSONDecodeError as error:
        shown = shortened(line.decode())
        raise BadRecord(f"not JSON ({error.msg} at {error.colno}): {shown}") from None
    except ValueError as error:
        shown = shortened(line.decode())
        raise BadRecord(f"not JSON ({str(error)[:60]}): {shown}") from None
    except RecursionError:
        raise BadRecord(f"JSON nested too deeply: {shortened(line.decode())}") from None
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _is_deep(value):
        raise BadRecord(f"JSON nested too deeply: {shortened(line.decode())}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_many(line: bytes, most: int) -> None:
    """Raise BadRecord for more values than `most`, counted by what separates and opens them."""
    if _marks(line) > most and _marks(_STRING.sub(b"", line)) > most:
        raise BadRecord(
            f"more than {most:,} values in one record; --max-record-mib raises the most"
        )


def _marks(line: bytes) -> int:
    return line.count(b",") + line.count(b"[") + line.count(b"{")


def _is_deep(value: Any) -> bool:
    """Whether arrays and objects stand inside each other more than `MAX_DEPTH` times."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        items = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for inside in items for item in inside if isinstance(item, dict | list)]
    return bool(level)


def array_items(stream: IO[bytes], limit: int) -> Iterator[Any]:
    """The items of a JSON array, one after another, each of at most `limit` bytes; a BadRecord in
    place of one that is too long or no JSON, and of an end that comes early."""
    data, ended = stream.read(_PIECE), False
    place = data.find(b"[") + 1
    while True:
        place = _BETWEEN.match(data, place).end()  # type: ignore[union-attr]  # it may be empty
        if data[place : place + 1] == b"]":
            return
        end = _end_of_item(data, place)
        if end is not None:
            yield _item(data[place:end], limit)
            place = end
        elif ended:
            yield BadRecord("the JSON array ends early")
            return
        elif len(data) - place > limit:
            yield BadRecord(too_long("an item", limit))
            return
        else:
            data, place = data[place:], 0
            piece = stream.read(max(_PIECE, len(data)))  # twice as much: linear in a long item
            data, ended = data + piece, not piece


def _end_of_item(data: bytes, place: int) -> int | None:
    """Where the item that begins at `place` ends, None where that is not in `data`: the first comma
    or closing bracket outside strings and inside nothing."""
    depth = 0
    for match in _MARK.finditer(data, place):
        mark = match[0]
        if mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}") and depth:
            depth -= 1
        elif mark in (b",", b"]", b"}") and not depth:
            return match.start()
        elif mark == b'"':  # a string that does not end here
            return None
    return None


def _item(data: bytes, limit: int) -> Any:
    if len(data) > limit:
        return BadRecord(too_long("an item", limit))
    try:
        return parse_line(data, limit)
    except BadRecord as bad:
        return bad
