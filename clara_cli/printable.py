"""Text of documents, names and models made safe to print: on a terminal, in JSON, in a report, in a
command to copy. Knows nothing of what the text is.
"""

from __future__ import annotations

import json
import shlex
import unicodedata

_LINES = "\n\t"
_JOINERS = "\u200c\u200d"  # scripts and emoji are written with them; they order nothing anew


def clean(text: str) -> str:
    """Text without the characters that a terminal or browser would obey rather than show: controls,
    and those that turn the direction of what follows. Line ends and tabs stay."""
    odd = {c for c in text if not _is_shown(c)}
    return text.translate({ord(c): "\N{REPLACEMENT CHARACTER}" for c in odd}) if odd else text


def clean_line(text: str) -> str:
    """As `clean`, on one line: a name cannot write a line of its own."""
    return " ".join(clean(text).split())


def escaped_json(line: str) -> str:
    """A line of JSON in which those characters stand escaped: the same values, safe to print."""
    odd = {c for c in line if not _is_shown(c)}
    return line.translate({ord(c): json.dumps(c)[1:-1] for c in odd}) if odd else line


def shell_word(name: object) -> str:
    """A name as one word of a command to copy, which no shell or option parser takes for more."""
    text = str(name)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _is_shown(character: str) -> bool:
    if character.isprintable() or character in _LINES or character in _JOINERS:
        return True
    return unicodedata.category(character) == "Zs"
