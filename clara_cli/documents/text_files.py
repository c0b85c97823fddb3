"""Text and Markdown files: their encoding, their title, and the front matter of Markdown.

Knows bytes and letters; knows nothing of records.
"""

from __future__ import annotations

import codecs
import math
import re
import unicodedata
from collections.abc import Callable
from datetime import date
from pathlib import PurePath
from typing import Any

from clara_cli.documents.headings import find_headings
from clara_cli.documents.listing import Source
from clara_cli.documents.sources import BadRecord, FileText, not_utf8

_SAMPLE = 2**18  # bytes that an encoding is guessed from
_MARKS = {  # how files of other encodings begin, the longer marks first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WESTERN_MARKS = set("’‘“”–—…«»°£€§©®·¿¡½¼¾²³×\u00a0\u00ad")
_FRONT_MATTER = re.compile(
    r"---[ \t]*\r?\n(?P<yaml>.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.M | re.S
)
_MOST_FRONT_MATTER = 2**16  # characters


def read_text(source: Source, data: bytes, note: Callable[[str], None]) -> FileText:
    """A text file's text, its title and, of Markdown, its metadata and headings. `note` is told of
    an encoding that is not UTF-8. Raises BadRecord for bytes that are no text."""
    text = _decoded(source, data, note)
    name = PurePath(source.label).name.removesuffix(".gz").removesuffix(".xz")
    title = PurePath(name).stem
    if not name.lower().endswith(".md"):
        return FileText(title, text, [], {})
    metadata, start = _front_matter(source, text, note)
    first_line = 1 + text.count("\n", 0, start)
    text = text[start:]
    headings = find_headings(text)
    first = next((heading.words for heading in headings if heading.level == 1), title)
    title = str(metadata.pop("title", None) or first)
    return FileText(title, text, [], metadata, first_line, headings)


def _decoded(source: Source, data: bytes, note: Callable[[str], None]) -> str:
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    try:
        if marked is None:
            return data.decode()
    except UnicodeDecodeError as error:
        number, what = not_utf8(data, error.start)
        failure = BadRecord(f"line {number}: {what}")
    encoding = marked or _guessed(data)
    if encoding is None:
        raise failure
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise BadRecord(f"neither UTF-8 nor {encoding}; --encoding says what it is") from None
    note(f"{source.name}: not UTF-8, read as {encoding}; --encoding says what it is")
    return text


def _guessed(data: bytes) -> str | None:
    """The encoding of a text that is not UTF-8; None for what looks like no text."""
    if b"\0" in data[:_SAMPLE]:
        return None
    if _is_western(data):
        return "cp1252"
    from charset_normalizer import from_bytes

    best = from_bytes(data[:_SAMPLE]).best()
    return None if best is None or best.encoding == "utf_8" else best.encoding


def _is_western(data: bytes) -> bool:
    """Whether bytes read as Windows-1252 (Latin-1 with more marks) are letters with some accented
    ones among them: of other scripts nearly every letter would be accented."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    others = [c for c in text if not c.isascii()]
    letters = sum(c.isalpha() for c in text)
    latin = sum(c in _WESTERN_MARKS or _is_latin(c) for c in others)
    return latin == len(others) and len(others) < 0.3 * max(letters, 1)


def _is_latin(character: str) -> bool:
    return unicodedata.name(character, "").startswith("LATIN ")


def _front_matter(
    source: Source, text: str, note: Callable[[str], None]
) -> tuple[dict[str, Any], int]:
    """The fields of Markdown's front matter and where the text after it starts; none and 0 where
    there is none, or where it is no plain YAML, which is told."""
    match = _FRONT_MATTER.match(text) if text.startswith("---") else None
    if match is None or match.end() > _MOST_FRONT_MATTER:
        return {}, 0
    import yaml

    try:
        events = list(yaml.parse(match["yaml"], Loader=yaml.SafeLoader))
        if any(isinstance(event, yaml.AliasEvent) for event in events):
            raise yaml.YAMLError("it repeats parts of itself")
        value = yaml.safe_load(match["yaml"])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).partition("\n")[0]
        note(f"{source.name}: its front matter is not plain YAML, and is read as text: {first}")
        return {}, 0
    if not isinstance(value, dict):
        return {}, 0
    return {str(key): _plain(item) for key, item in value.items()}, match.end()


def _plain(value: Any) -> Any:
    """A YAML value as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, date | bytes):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
