"""JSON artefacts read: every value checked, every wrong one named by file and key in one text; and
the one refusal of other settings.

Knows no artefact's keys. Nesting is bounded, so that nothing that walks a value can fail.
"""

from __future__ import annotations

import json
import re
import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from clara_cli.errors import ArtefactError
from clara_cli.storage.file_kinds import read_file

Value = TypeVar("Value")

_LEVELS = 64  # objects and lists within each other
_MOST = 2**63 - 1
_MISSING = object()
_RELEASE = re.compile(r"\d{1,5}(?:\.\d{1,5}){0,3}")
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80


class Fields:
    """The keys of a JSON object. `file` (with the line, if there are several) and `place` (where
    the object lies in it, as `shards[0]`) stand in every error, `hint` is what mends the file."""

    def __init__(self, values: Any, file: Path | str, hint: str, place: str = "") -> None:
        self.file, self.hint, self.place = file, hint, place
        if not isinstance(values, dict):
            raise self._error(f"not an object: {_brief.repr(values)}", place)
        self.values: dict[str, Any] = values

    def get(self, key: str, kind: type[Value]) -> Value:
        """The value of a key, of exactly type `kind`: a bool is no int."""
        value = self.values.get(key, _MISSING)
        if value is _MISSING:
            raise self.wrong(key, "missing")
        if type(value) is not kind:
            raise self.wrong(key, f"{_brief.repr(value)}, not of type {kind.__name__}")
        if isinstance(value, str):
            self._check_text(key, value)
        return value

    def optional(self, key: str, kind: type[Value]) -> Value | None:
        """The value of a key that may be null."""
        return None if self.values.get(key, _MISSING) is None else self.get(key, kind)

    def count(self, key: str, least: int = 0, most: int = _MOST) -> int:
        """A whole number between bounds."""
        number = self.get(key, int)
        if not least <= number <= most:
            bound = f"the least is {least}" if number < least else f"the most is {most}"
            raise self.wrong(key, f"{_brief.repr(number)}, {bound}")
        return number

    def number(self, key: str, most: float = sys.float_info.max) -> float:
        """A finite number, whole or not, of at most this size."""
        value = self.get(key, int if type(self.values.get(key)) is int else float)
        if not abs(value) <= most:
            raise self.wrong(key, f"{_brief.repr(value)}, not a finite number up to {most:g}")
        return float(value)

    def object(self, key: str) -> Fields:
        """The object under a key."""
        return Fields(self.get(key, dict), self.file, self.hint, self._at(key))

    def objects(self, key: str) -> list[Fields]:
        """The list of objects under a key."""
        items = enumerate(self.get(key, list))
        return [Fields(v, self.file, self.hint, f"{self._at(key)}[{n}]") for n, v in items]

    def list_of(self, key: str, kind: type[Value]) -> tuple[Value, ...]:
        """The list of values of exactly one type under a key."""
        values = self.get(key, list)
        for value in values:
            if type(value) is not kind:
                raise self.wrong(key, f"{_brief.repr(value)} in it, not of type {kind.__name__}")
            if isinstance(value, str):
                self._check_text(key, value)
        return tuple(values)

    def wrong(self, key: str, what: str) -> ArtefactError:
        """The error of a key whose value is not what it must be."""
        return self._error(what, self._at(key))

    def _check_text(self, key: str, value: str) -> None:
        """A string that cannot be written anywhere is none."""
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.wrong(key, f"{_brief.repr(value)}, not Unicode text") from error

    def _at(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def _error(self, what: str, place: str) -> ArtefactError:
        where = f"{self.file}: key {place!r}" if place else f"{self.file}"
        return ArtefactError(f"{where}: {what}", self.hint)


def parse(data: bytes | str) -> Any:
    """A JSON value. Raises ValueError where it is none, or nested too deeply."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    opening = ("[", "{") if isinstance(data, str) else (b"[", b"{")
    if sum(map(data.count, opening)) > _LEVELS:  # type: ignore[arg-type]
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_LEVELS):
        parts = [item.values() if isinstance(item, dict) else item for item in level]
        level = [v for part in parts for v in part if isinstance(v, dict | list)]
        if not level:
            return
    raise ValueError("nested too deeply")


def read_bytes(path: Path, hint: str) -> bytes | None:
    """The bytes of a file, None where there is none. Raises ArtefactError."""
    try:
        return read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArtefactError(f"{path}: not readable: {error.strerror}", hint) from error


def fields_of(data: bytes, file: Path | str, hint: str) -> Fields:
    """The JSON object that a file, or one of its lines, holds. Raises ArtefactError."""
    try:
        value = parse(data)
    except ValueError as error:
        raise ArtefactError(f"{file}: not JSON: {error}", hint) from error
    return Fields(value, file, hint)


def read_object(
    path: Path, hint: str, form: str = "", version: int | tuple[int, ...] = 0
) -> Fields | None:
    """The JSON object in a file, None where there is none; where it says its format and version,
    only of these. Raises ArtefactError."""
    data = read_bytes(path, hint)
    return None if data is None else check_form(fields_of(data, path, hint), form, version)


def check_form(fields: Fields, form: str, version: int | tuple[int, ...]) -> Fields:
    """The same fields, once they name this format and this version, or one of several. Raises
    ArtefactError; its hint names the program that reads a newer version, where that says it."""
    versions = version if isinstance(version, tuple) else (version,)
    if form and fields.values.get("format") != form:
        raise fields.wrong("format", f"not {form!r}")
    if form and (number := fields.values.get("version")) not in versions:
        readable = ", ".join(map(str, versions[:-1])) + " and " if versions[1:] else ""
        readable += str(versions[-1])
        error = fields.wrong("version", f"{_brief.repr(number)}, this program reads {readable}")
        needs = fields.values.get("needs")
        if type(number) is int and number > max(versions) and _is_release(needs):
            raise ArtefactError(error.message, f"pip install --upgrade 'clara-cli>={needs}'")
        raise error
    return fields


def _is_release(text: Any) -> bool:
    return isinstance(text, str) and bool(_RELEASE.fullmatch(text))


def encode(value: Mapping[str, Any]) -> bytes:
    """A JSON object as the bytes of its file, always the same."""
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()


def refuse_difference(
    made: Path, before: Mapping[str, Any], now: Mapping[str, Any], hint: str = ""
) -> None:
    """Refuse to go on with what was made with other settings: raises ArtefactError naming the first
    that differs, and both values; `hint` says what to do, unless it is to use another --out."""
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "ratio", key)):
        was, wanted = old.get(key, _MISSING), new.get(key, _MISSING)
        if was != wanted or type(was) is not type(wanted):
            shown = ["absent" if v is _MISSING else _brief.repr(v) for v in (was, wanted)]
            message = f"{made} was made with {key} = {shown[0]}, this command has {shown[1]}"
            raise ArtefactError(message, hint or f"use another --out, or delete {made}")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat.update(_flat(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat
