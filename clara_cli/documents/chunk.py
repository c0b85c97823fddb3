"""Documents into passages that fit a token budget, cut at sentence ends where possible.

Knows offsets and counts; the tokenizer comes as a function. Knows nothing of models or files.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from clara_cli.records import Document, Passage

CountTokens = Callable[[str], Sequence[tuple[int, int]]]
Split = Literal["sentences", "tokens", "none"]
Span = tuple[int, int]
Units = tuple["array[int]", "array[int]"]  # starts and ends, in order and without overlap

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
    title: str
    title_tokens: int
    starts: Sequence[int]  # where each token of `text` starts, never decreasing
    limit: int
    count_tokens: CountTokens
    overlap: int = 0

    def exact(self, start: int, end: int) -> int:
        """Tokens of the model text of text[start:end]."""
        return len(self.count_tokens(model_text(self.title, self.text[start:end])))

    def before(self, position: int) -> int:
        """Tokens of the whole text that start before `position`."""
        return bisect_left(self.starts, position)


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

    A document that fits is one passage of exactly its text; otherwise the passages' texts are
    `document.text[start:end]`, in order, and hold everything but white space between them. An
    empty or blank document gives one passage. A passage exceeds the budget only where a single
    character does. A title longer than half the budget is cut to it (where `with_title`).
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, the least is 1")
    if not 0 <= overlap < max_tokens:
        raise ValueError(f"overlap is {overlap}, it must be less than max_tokens, {max_tokens}")
    text, title = document.text, document.title
    if with_title and how != "none":
        title = _cut_title(title, max_tokens, count_tokens)
    budget = _budget(text, title if with_title else "", max_tokens, count_tokens, overlap)
    tokens = budget.title_tokens + len(budget.starts)
    if how == "none" or tokens <= max_tokens:
        tokens = budget.exact(0, len(text)) if len(text) <= _BLOCK or how != "none" else tokens
        if how == "none" or tokens <= max_tokens:
            return _passages(document, title, [((0, len(text)), tokens)])
    if text and not text.isspace():
        first = len(text) - len(text.lstrip())
        window = (array("I", [first]), array("I", [len(text.rstrip())]))
        units = _sentences(text) if how == "sentences" else window
        pieces = list(_pack(units, budget))
    else:
        pieces = [_cut((0, len(text)), budget)]
    return _passages(document, title, pieces)


def _passages(document: Document, title: str, pieces: Sequence[tuple[Span, int]]) -> list[Passage]:
    """Passages of (span, tokens), in order, each with the place where it begins."""
    made, line, counted = [], document.first_line, 0
    for number, ((start, end), tokens) in enumerate(pieces):
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
    """`file:line`: a record's own line, or the line inside a file that is one document; of a file
    with parts `file#part`, the one that begins last before `start`."""
    source = document.source
    if document.parts:
        number = bisect_right(document.parts, start, key=lambda part: part[0]) - 1
        return f"{source}#{document.parts[number][1]}" if document.parts[number][1] else source
    if source.startswith("<stdin>"):
        return ""
    return source if not source or _LINE.search(source) else f"{source}:{line}"


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


def _budget(text: str, title: str, limit: int, count_tokens: CountTokens, overlap: int) -> _Budget:
    """Tokenise a text once, in blocks that bound the tokenizer's memory on huge ones."""
    starts = array("I")
    latest = 0
    for block_start, block_end in _blocks(text):
        for start, _ in count_tokens(text[block_start:block_end]):
            latest = max(latest, block_start + start)
            starts.append(latest)
    title_tokens = len(count_tokens(f"{title}\n")) if title else 0
    overlap = overlap * max(0, limit - title_tokens) // limit
    return _Budget(text, title, title_tokens, starts, limit, count_tokens, overlap)


def _blocks(text: str) -> Iterator[Span]:
    start = 0
    while start < len(text):
        end = start + _BLOCK
        if end < len(text):
            end = max(text.rfind(mark, start + _BLOCK // 2, end) for mark in "\n ")
            end = end if end > start else start + _BLOCK
        yield start, min(end, len(text))
        start = end


def _pack(units: Units, budget: _Budget) -> Iterator[tuple[Span, int]]:
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


def _most_units(start: int, index: int, ends: array[int], budget: _Budget) -> tuple[Span, int]:
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


def _cut(unit: Span, budget: _Budget) -> tuple[Span, int]:
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
