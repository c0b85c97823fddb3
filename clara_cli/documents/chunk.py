"""Documents into passages that fit a token budget, cut at sentence ends where possible.

Knows offsets and counts; the tokenizer comes as a function. Knows nothing of models or files.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from clara_cli.documents.headings import Section, join_sections, sections_of
from clara_cli.records import Document, Passage

CountTokens = Callable[[str], Sequence[tuple[int, int]]]
Split = Literal["sentences", "tokens", "none"]
Span = tuple[int, int]
Units = tuple["array[int]", "array[int]"]  # starts and ends, in order and without overlap
Piece = tuple[Span, int]  # of a text, and its tokens

_TINY = 4  # sections below a quarter of a passage are joined with others
SEPARATOR = " > "  # between a title and the headings of a passage
_BLOCK = 2**16  # characters tokenised at a time: bounds the tokenizer's memory on huge texts
_END = ".!?…؟۔։።។။।॥‼⁇⁈⁉"
_WIDE_END = "。！？｡．"  # scripts that put no space after a sentence
_CLOSE = "\"'”’»›)\\]}」』）〉》】"
# Possessive runs (`++`, `*+`) that start where no run stands before: linear on any text.
_BREAK = re.compile(
    rf"(?<![{_END}])(?P<end>[{_END}]++)[{_CLOSE}]*+(?P<space>\s++|\Z)"
    rf"|(?<![{_WIDE_END}])(?P<wide>[{_WIDE_END}]++)[{_CLOSE}]*+\s*+"
    r"|(?P<line>\n)\s*+"
)
_LINE = re.compile(r":\d+\Z")
_LAST_WORD = re.compile(r"[^\W_]+(?:\.[^\W_]+)*\Z")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st sr jr rev hon gen col capt lt sgt gov sen rep vs etc al cf ca approx"
    " e.g i.e eg ie no nos vol fig figs eq pp ed eds inc ltd co corp bros dept est jan feb mar apr"
    " jun jul aug sep sept oct nov dec mt ft u.s u.k p.m a.m bzw usw ca z.b d.h nr str abb mme mlle"
    " art sra ud".split()
)


def model_text(title: str, text: str) -> str:
    """A passage as the model reads it: the title, where there is one, on a line before the text."""
    return f"{title}\n{text}" if title else text


def sentence_spans(text: str) -> list[Span]:
    """Sentences of `text` as (start, end) code points, white space around each left out.

    In order and without overlap; together they hold every character but white space. Ends are
    sentence marks of many scripts with what closes after them, blank lines, and single newlines
    before anything but a lower-case letter. Abbreviations and initials do not end a sentence.
    Time is linear in the text.
    """
    return list(zip(*_sentences(text), strict=True))


def _sentences(text: str) -> Units:
    """Where sentences start and end, as `sentence_spans` has them, in four bytes each: a text may
    have a sentence every other character."""
    starts, ends = array("I"), array("I")
    start = len(text) - len(text.lstrip())
    for match in _BREAK.finditer(text):
        if match.end() > start and _ends_sentence(text, match):
            end = start + len(text[start : match.end()].rstrip())
            if end > start:
                starts.append(start)
                ends.append(end)
            start = match.end()
    end = start + len(text[start:].rstrip())
    if end > start:
        starts.append(start)
        ends.append(end)
    return starts, ends


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    if match["wide"]:
        return True
    following = match.end()
    space = text[match.start("line") : following] if match["line"] else match["space"]
    if following == len(text) or space.count("\n") > 1:
        return True
    if text[following].islower():
        return False
    if match["end"] != "." or "\n" in space:
        return True
    word = _LAST_WORD.search(text[max(0, match.start() - 16) : match.start()])
    if word is None:
        return True
    last = word[0].rpartition(".")[2]
    initial = len(last) == 1 and last.isupper() and last.isascii()
    return not initial and word[0].lower() not in _ABBREVIATIONS


@dataclass(frozen=True, slots=True)
class _Budget:
    """A text with its tokens, and how many of them, title included, a passage may take."""

    text: str
    starts: Sequence[int]  # where each token of `text` starts, never decreasing
    limit: int
    count_tokens: CountTokens
    overlap: int = 0
    title: str = ""
    reads_title: bool = False  # whether the model does
    title_tokens: int = 0

    def titled(self, title: str, is_read: bool) -> _Budget:
        """The budget of passages of this title, which lessens the overlap as it does the text."""
        tokens = len(self.count_tokens(f"{title}\n")) if title and is_read else 0
        overlap = self.overlap * max(0, self.limit - tokens) // self.limit
        return replace(self, title=title, reads_title=is_read, title_tokens=tokens, overlap=overlap)

    def exact(self, start: int, end: int) -> int:
        """Tokens of the model text of text[start:end]."""
        title = self.title if self.reads_title else ""
        return len(self.count_tokens(model_text(title, self.text[start:end])))

    def before(self, position: int) -> int:
        """Tokens of the whole text that start before `position`."""
        return bisect_left(self.starts, position)

    def about(self, start: int, end: int) -> int:
        """Tokens of the title and text[start:end], where both are cut as the whole text is."""
        return self.title_tokens + self.before(end) - self.before(start)


def split_document(
    document: Document,
    max_tokens: int,
    count_tokens: CountTokens,
    how: Split,
    with_title: bool,
    overlap: int = 0,
) -> list[Passage]:
    """Cut a document into passages of at most `max_tokens` tokens of `model_text`.

    `count_tokens` gives a text's tokens as (start, end) code points, without special tokens.
    `sentences` packs whole sentences, and cuts a sentence only where it alone is too long;
    `tokens` cuts windows as full as they get; `none` gives the document as one passage, however
    long: `tokens` above `max_tokens` then tells that the model will see its beginning only.

    `overlap`: tokens, at most, at the end of a passage that the next one repeats: as many whole
    sentences as that holds where the passage ended with one, else just so many tokens. A title
    lessens it in the proportion in which it lessens the text.

    A document with headings is cut at them first (`headings.join_sections`), and a passage's title
    names those it stands under. Else a document that fits is one passage of exactly its text;
    otherwise the passages' texts are `document.text[start:end]`, in order, and hold everything but
    white space between them. An empty or blank document gives one passage. A passage exceeds the
    budget only where a single character does. A title longer than half the budget is cut to it
    (where `with_title`), and loses its headings where they take more than a quarter.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, the least is 1")
    if not 0 <= overlap < max_tokens:
        raise ValueError(f"overlap is {overlap}, it must be less than max_tokens, {max_tokens}")
    text = document.text
    starts = _token_starts(text, count_tokens)
    whole = _Budget(text, starts, max_tokens, count_tokens, overlap)

    @cache
    def titled(path: tuple[str, ...]) -> _Budget:
        most = max_tokens if with_title and how != "none" else None
        return whole.titled(_title(document.title, path, most, count_tokens), with_title)

    sections = [Section(0, len(text), 1, ())]
    if document.headings and how != "none":
        sections = list(
            join_sections(
                sections_of(text, document.headings),
                is_tiny=lambda s: whole.about(s.start, s.end) < max_tokens // _TINY,
                fits=lambda s: titled(s.path).about(s.start, s.end) <= max_tokens,
            )
        )
    budget = titled(sections[0].path)
    if len(sections) == 1 and (tokens := _tokens_if_whole(budget, how)) is not None:
        return _passages(document, [(budget.title, (0, len(text)), tokens)])
    pieces = []
    for section in sections:
        budget = titled(section.path)
        pieces += [(budget.title, *piece) for piece in _section_pieces(section, budget, how)]
    return _passages(document, pieces)


def _tokens_if_whole(budget: _Budget, how: Split) -> int | None:
    """The tokens of all of a text as one passage, None where it must be cut."""
    tokens, length = budget.about(0, len(budget.text)), len(budget.text)
    if how == "none":
        return budget.exact(0, length) if length <= _BLOCK else tokens
    if tokens > budget.limit or (tokens := budget.exact(0, length)) > budget.limit:
        return None
    return tokens


def _section_pieces(section: Section, budget: _Budget, how: Split) -> Iterator[Piece]:
    """The passages of a section as (span, tokens)."""
    text = budget.text[section.start : section.end]
    if not text.strip():
        yield _cut((section.start, section.end), budget)
        return
    if how == "sentences":
        starts, ends = _sentences(text)
    else:
        starts = array("I", [len(text) - len(text.lstrip())])
        ends = array("I", [len(text.rstrip())])
    if section.start:
        starts = array("I", (section.start + start for start in starts))
        ends = array("I", (section.start + end for end in ends))
    yield from _pack((starts, ends), budget)


def _passages(document: Document, pieces: Sequence[tuple[str, Span, int]]) -> list[Passage]:
    """Passages of (title, span, tokens), in order, each with the place where it begins."""
    made, line, counted = [], document.first_line, 0
    for number, (title, (start, end), tokens) in enumerate(pieces):
        line, counted = line + document.text.count("\n", counted, start), start
        passage = Passage(
            passage_id=f"{document.id}#{number}",
            document_id=document.id,
            title=title,
            text=document.text[start:end],
            start=start,
            end=end,
            tokens=tokens,
            metadata=document.metadata,
            source=_place(document, line, start),
        )
        made.append(passage)
    return made


def _place(document: Document, line: int, start: int) -> str:
    """`file:line`: a record's own line, or the line inside a file that is one document, with
    `#section=` where headings are; of a file with parts `file#part`, the one that begins last
    before `start`."""
    source = document.source
    if document.parts:
        number = bisect_right(document.parts, start, key=lambda part: part[0]) - 1
        return f"{source}#{document.parts[number][1]}" if document.parts[number][1] else source
    if source.startswith("<stdin>"):
        return ""
    if not source or _LINE.search(source):
        return source
    number = bisect_right(document.headings, start, key=lambda heading: heading.start) - 1
    section = f"#section={document.headings[number].words}" if number >= 0 else ""
    return f"{source}:{line}{section}"


def _title(
    title: str, path: Sequence[str], max_tokens: int | None, count_tokens: CountTokens
) -> str:
    """A document's title and the headings that a passage stands under: all of them, else the last,
    else none, whichever takes at most a quarter of `max_tokens`."""
    headings = [words for words in path if words != title]
    for shown in (headings, headings[-1:]):
        if not shown:
            break
        whole = SEPARATOR.join([title, *shown] if title else shown)
        if max_tokens is None or len(count_tokens(f"{whole}\n")) <= max_tokens // 4:
            return whole
    return title if max_tokens is None else _cut_title(title, max_tokens, count_tokens)


def _cut_title(title: str, max_tokens: int, count_tokens: CountTokens) -> str:
    """As much of a title as takes half the budget, so that the other half is text."""
    if not title or len(count_tokens(f"{title[:_BLOCK]}\n")) <= max_tokens // 2:
        return title
    offsets = count_tokens(title[:_BLOCK])
    for keep in range(min(max_tokens // 2, len(offsets) - 1), -1, -1):
        title = title[: offsets[keep][0]].rstrip()
        if not title or len(count_tokens(f"{title}\n")) <= max_tokens // 2:
            break
    return title


def _token_starts(text: str, count_tokens: CountTokens) -> Sequence[int]:
    """Tokenise a text once, in blocks that bound the tokenizer's memory on huge ones."""
    starts = array("I")
    latest = 0
    for block_start, block_end in _blocks(text):
        for start, _ in count_tokens(text[block_start:block_end]):
            latest = max(latest, block_start + start)
            starts.append(latest)
    return starts


def _blocks(text: str) -> Iterator[Span]:
    start = 0
    while start < len(text):
        end = start + _BLOCK
        if end < len(text):
            end = max(text.rfind(mark, start + _BLOCK // 2, end) for mark in "\n ")
            end = end if end > start else start + _BLOCK
        yield start, min(end, len(text))
        start = end


def _pack(units: Units, budget: _Budget) -> Iterator[Piece]:
    """Greedily join neighbouring units while they fit; cut a unit that alone does not. A passage
    begins up to `budget.overlap` tokens before the text that is new in it."""
    starts, ends = units
    index, fresh, start = 0, starts[0], starts[0]
    while index < len(starts):
        span, count = _most_units(start, index, ends, budget)
        if count > budget.limit and start < fresh and starts[index] == fresh:
            start = fresh  # the next unit fits only without a repetition, if at all
            continue
        if count > budget.limit:
            span, count = _cut((start, ends[index]), budget)
        if span[1] <= fresh and start < fresh:
            start = fresh
            continue
        yield span, count
        index = bisect_right(ends, span[1], lo=index)
        if index < len(starts):
            rest = _next_text(budget.text, span[1], ends[index])
            fresh = max(starts[index], rest)
            start = _repeat_from(starts, index, span, fresh, budget)


def _repeat_from(
    unit_starts: array[int], index: int, last: Span, fresh: int, budget: _Budget
) -> int:
    """Where the passage whose new text begins at `fresh` begins: within `budget.overlap` tokens of
    the end of the passage before, `last`."""
    if not budget.overlap:
        return fresh
    token = max(0, budget.before(last[1]) - budget.overlap)
    earliest = max(budget.starts[token], last[0] + 1)
    if fresh > unit_starts[index]:  # `last` ended inside a unit
        return min(fresh, _next_text(budget.text, earliest, fresh))
    first = bisect_left(unit_starts, earliest, hi=index)
    return unit_starts[first] if first < index else fresh


def _most_units(start: int, index: int, ends: array[int], budget: _Budget) -> Piece:
    """As many whole units from `index` on as fit, at least one (which may not fit)."""
    before = budget.before(start)
    if budget.before(ends[index]) - before > 2 * budget.limit:
        return (start, ends[index]), budget.limit + 1  # hopeless: not worth an exact count
    stop = before + budget.limit - budget.title_tokens
    reach = budget.starts[stop] if stop < len(budget.starts) else len(budget.text)
    last = max(index, bisect_right(ends, reach, lo=index) - 1)
    while True:
        count = budget.exact(start, ends[last])
        if count <= budget.limit or last == index:
            return (start, ends[last]), count
        last -= 1


def _cut(unit: Span, budget: _Budget) -> Piece:
    """The longest beginning of a unit, in whole tokens, that fits; at least one character."""
    start, unit_end = unit
    least = min(start + 1, unit_end)
    first = budget.before(start)
    take = max(1, budget.limit - budget.title_tokens)
    end = unit_end
    while True:
        if take >= 1:
            stop = first + take
            end = min(budget.starts[stop] if stop < len(budget.starts) else unit_end, unit_end)
        else:
            end = start + (end - start) // 2  # one token of the whole takes several alone
        end = max(start + len(budget.text[start:end].rstrip()), least)
        count = budget.exact(start, end)
        if count <= budget.limit or end <= least:
            return (start, end), count
        take = min(take - 1, max(1, take - (count - budget.limit)))


def _next_text(text: str, position: int, end: int) -> int:
    """The first position from `position` on that is not white space."""
    while position < end and text[position].isspace():
        position += 1
    return position
