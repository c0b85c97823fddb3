"""Headings of Markdown: where they stand, and the sections that they cut a text into.

Knows lines and levels; knows nothing of tokens, sentences or files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from clara_cli.records import Heading

_MOST_LETTERS = 200  # of a heading
_MOST_HEADINGS = 2**16  # of a text; what comes behind is the last one's
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}(?=[^`]*$)|~{3,})")
_MARKED = re.compile(r" {0,3}(?P<marks>#{1,6})(?P<words>[ \t].*)?$")
_CLOSING_MARKS = re.compile(r"(?:^|[ \t])#+$")
_UNDERLINE = re.compile(r" {0,3}(?:(?P<first>=+)|-+)[ \t]*$")
_PARAGRAPH = re.compile(r" {0,3}(?![-+*>|#<]|\d{1,9}[.)])\S")


def find_headings(text: str) -> tuple[Heading, ...]:
    """The headings of a Markdown text that have words, `# marked` and underlined by a line of `=`
    or `-`, outside of code. Those in lists and quotes are none. Time is linear in the text, which
    that of a parser of all of Markdown is not."""
    headings: list[Heading] = []
    fence = ""
    above: tuple[int, str] | None = None  # a line that begins a paragraph, which one below may mark
    begins = True  # whether a paragraph may begin on this line
    for start, line in _lines(text):
        opening = _FENCE.match(line)
        heading = None
        if fence:
            if opening and opening["fence"].startswith(fence) and opening.end() == len(line):
                fence = ""
        elif opening:
            fence = opening["fence"]
        elif marked := _MARKED.match(line):
            words = _CLOSING_MARKS.sub("", (marked["words"] or "").strip()).strip()
            heading = Heading(start, len(marked["marks"]), words)
        elif above and (underline := _UNDERLINE.match(line)):
            heading = Heading(above[0], 1 if underline["first"] else 2, above[1].strip())
        if heading and heading.words:
            headings.append(replace(heading, words=heading.words[:_MOST_LETTERS]))
            if len(headings) == _MOST_HEADINGS:
                break
        above = (start, line) if begins and not fence and _PARAGRAPH.match(line) else None
        begins = not line or heading is not None
    return tuple(headings)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text without the white space at their ends, and where each starts."""
    start = 0
    while start <= len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield start, text[start:end].rstrip()
        start = end + 1


@dataclass(frozen=True, slots=True)
class Section:
    """The text from a heading, or the beginning, to another heading or the end. `path` are the
    headings it stands under, its own the last."""

    start: int
    end: int
    level: int
    path: tuple[str, ...]


def sections_of(text: str, headings: Sequence[Heading]) -> Iterator[Section]:
    """The sections of a text with headings: one each, and one of what stands before the first."""
    if text[: headings[0].start].strip():
        yield Section(0, headings[0].start, headings[0].level, ())
    above: list[Heading] = []
    ends = [heading.start for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=True):
        while above and above[-1].level >= heading.level:
            above.pop()
        above.append(heading)
        path = tuple(one.words for one in above)
        yield Section(heading.start, end, heading.level, path)


def join_sections(
    sections: Iterable[Section],
    is_tiny: Callable[[Section], bool],
    fits: Callable[[Section], bool],
) -> Iterator[Section]:
    """Sections joined with those below them while all fits into a passage. A tiny one is also
    joined with its neighbours of the same level, and with what is below it however long that is.
    What is joined stands under the headings that all of it but such a beginning shares."""
    run: Section | None = None
    outermost = 0  # the level of the run's first heading
    for section in sections:
        if run is None:
            run, outermost = section, section.level
            continue
        tiny, is_below = is_tiny(run), section.level > run.level
        joined = _joined(run, section, tiny and is_below)
        may_join = section.level >= outermost and (tiny or is_below)
        if may_join and ((tiny and is_below) or fits(joined)):
            run = joined if tiny else replace(joined, level=run.level)
        else:
            yield run
            run, outermost = section, section.level
    if run is not None:
        yield run


def _joined(run: Section, following: Section, is_its_beginning: bool) -> Section:
    """Two sections in one, of the level of the second; `is_its_beginning`: the first is little more
    than the headings above the second."""
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(run.path, following.path, strict=False))
    path = following.path if is_its_beginning else tuple(words for words, _ in shared)
    return Section(run.start, following.end, following.level, path)
