"""Answers as people read them: streamed, with their support, their sources, and the why.

Knows the records and nothing of how they come about.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from clara_cli.cli.show.terminal import console, duration
from clara_cli.documents.places import Place, place_of
from clara_cli.printable import clean, clean_line
from clara_cli.records import (
    ABSTENTION,
    Answer,
    Explanation,
    Hit,
    PassageMatch,
    Retelling,
    SearchResult,
)

SENTENCE_CHARACTERS = 400  # of a sentence, at most, around the words that count
SHORT_WORD = 3  # letters below which a word is marked only where it stands capitalised or in digits
TOKENS_SHOWN, WORDS_SHOWN = 3, 8
_WORD = re.compile(r"\w+")


class Stream:
    """An answer's pieces as they come, on a terminal: a draft, dim, that gives way to the answer
    as `show` prints it once its support is known. Of a long one the last lines are shown."""

    def __init__(self) -> None:
        self._out = console(stderr=False)
        self._text = Text(style="dim")
        self._live = Live(
            console=self._out,
            transient=True,
            refresh_per_second=12,
            get_renderable=self._tail,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Stream:
        if not self._out.is_dumb_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def say(self, piece: str) -> None:
        """Show one piece."""
        self._text.append(clean(piece))

    def _tail(self) -> Text:
        lines = self._text.wrap(self._out, self._out.width)
        return Text("\n").join(lines[-max(1, self._out.height - 2) :])


def show_text(answer: Answer, *, line: bool) -> None:
    """The words of an answer and nothing else; in one `line` where there are several answers."""
    text = ABSTENTION if answer.abstained else clean(answer.answer)
    console(stderr=False).print(Text(" ".join(text.split()) if line else text), soft_wrap=True)


def show_retelling(retelling: Retelling) -> None:
    """What was written from one passage, and the passage."""
    out, passage = console(stderr=False), retelling.passage
    out.print(Text(clean(retelling.answer) or "(nothing)", style="bold"), soft_wrap=False)
    read = f"{retelling.memory_tokens:,} memory tokens for {retelling.text_tokens_replaced:,}"
    spent = duration(sum(retelling.seconds.values()))
    out.print(Text(f"{retelling.task} from {read} of text; {spent}", style="dim"), soft_wrap=False)
    parts = [passage.title, f"{passage.document_id} [{passage.start}:{passage.end}]"]
    out.print(Text(clean(" ".join(filter(None, parts))), style="bold"), soft_wrap=False)
    out.print(Text(clean(passage.text or "") or "(text not kept)"), soft_wrap=False)


def show(answer: Answer, *, titled: bool = False) -> None:
    """An answer and the passages it was read from; `titled` repeats the question above it. Where
    the passages do not support it, their best sentences come first, and the generated text small
    and marked below them."""
    out = console(stderr=False)
    if titled:
        out.print(Text(clean(answer.question), style="cyan"), soft_wrap=False)
    if answer.abstained:
        out.print(Text(ABSTENTION, style="bold"), soft_wrap=False)
    elif answer.supported is not False:
        out.print(Text(clean(answer.answer) or "(no answer)", style="bold"), soft_wrap=False)
    out.print(_balance(answer), soft_wrap=False)
    for hit in answer.sources:
        _show_hit(out, hit, answer.question, answer.answer)
    if answer.supported is False and not answer.abstained:
        generated = clean(answer.answer) or "(no answer)"
        out.print(Text(f"generated, NOT supported: {generated}", style="dim"), soft_wrap=False)
    if answer.explain is not None:
        _show_explanation(out, answer.explain)
    out.print()


def show_search(result: SearchResult, *, titled: bool = False) -> None:
    """The passages of a question alone: the best sentence of each, and where it stands."""
    out = console(stderr=False)
    if titled:
        out.print(Text(clean(result.question), style="cyan"), soft_wrap=False)
    for hit in result.sources:
        _show_hit(out, hit, result.question, "", large=True)
    if not result.sources:
        out.print(Text("no passage was found", style="bold"), soft_wrap=False)
    out.print()


def show_sources(answer: Answer) -> None:
    """The passages of an answer in full, the answer's words marked."""
    out = console(stderr=False)
    for hit in answer.sources:
        out.print(Text(f"{hit.rank}. {_details(hit)}", style="bold"), soft_wrap=False)
        place = place_of(hit.passage.source)
        if place.file:
            out.print(Text(f"   {clean_line(str(place))}", style=_link(place)), soft_wrap=False)
        marked = Text(clean(hit.passage.text or "") or "(text not kept)")
        mark(marked, telling_words(answer.answer))
        out.print(marked, soft_wrap=False)


def _show_hit(out: Console, hit: Hit, question: str, answer: str, *, large: bool = False) -> None:
    """The best sentence of a passage, the words of the answer (else of the question) marked; then
    its place, and the passage: title, document and span, score."""
    sentence = "(text not kept)" if hit.sentence is None else clean(hit.sentence.text)
    words = telling_words(answer or question)
    shown = Text(excerpt(sentence, words, SENTENCE_CHARACTERS), style="bold" if large else "")
    mark(shown, words)
    out.print(_hanging(out, Text(f"{hit.rank}. ", style="cyan"), shown), soft_wrap=False)
    details = Text(_details(hit), style="dim")
    place = _sentence_place(hit)
    if not place.file:
        out.print(Text("   ") + details, soft_wrap=False)
        return
    near = dataclasses.replace(place, file=_from_here(place.file))
    where = Text(clean_line(str(near)), style=_link(place))
    beside = 3 + where.cell_len + 2 + details.cell_len <= out.width
    out.print(Text.assemble("   ", where, "  " if beside else "\n   ", details), soft_wrap=False)


def _hanging(out: Console, heading: Text, text: Text) -> Text:
    """A text behind its heading, its further lines below its first."""
    lines = text.wrap(out, max(1, out.width - heading.cell_len))
    return heading + Text("\n" + " " * heading.cell_len).join(lines)


def _details(hit: Hit) -> str:
    """A passage in a line: title, document and span, score, how it was read, its corpus."""
    passage = hit.passage
    span = f"{passage.document_id} [{passage.start}:{passage.end}]"
    read = "" if hit.read == "memory" else f"read as {hit.read}"
    parts = [passage.title, span, f"{hit.score:.3f}", read, hit.corpus]
    return clean_line(" ".join(filter(None, parts)))


def telling_words(answer: str) -> set[str]:
    """The words of an answer worth finding in a text, case-folded: all but short lower-case ones,
    unless there are no others."""
    answer_words = _WORD.findall(answer)
    telling = [word for word in answer_words if len(word) > SHORT_WORD or not word.islower()]
    return {word.casefold() for word in telling or answer_words}


def mark(text: Text, words: set[str]) -> None:
    """Mark these words in a text."""
    for found in _WORD.finditer(text.plain):
        if found[0].casefold() in words:
            text.stylize("bold yellow underline", *found.span())


def excerpt(text: str, words: set[str], width: int) -> str:
    """One line of at most `width` characters, around the first of `words`, else the beginning; cut
    between words where there are any."""
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    first = next((m.start() for m in _WORD.finditer(line) if m[0].casefold() in words), 0)
    start = max(0, min(first - width // 3, len(line) - width + 1))
    piece = line[start : start + width - 1]
    if start:
        piece = f"…{piece[1:].partition(' ')[2] or piece[1:]}"
    return piece if start + width > len(line) else f"{piece.rpartition(' ')[0] or piece}…"


def _sentence_place(hit: Hit) -> Place:
    """Where a passage's best sentence stands, else the passage."""
    place = place_of(hit.passage.source)
    line = hit.sentence.line if hit.sentence is not None else 0
    return dataclasses.replace(place, line=line) if line else place


def _from_here(file: str) -> str:
    """A file's path as one would type it here: relative, where it lies below this folder."""
    path, here = Path(file), Path.cwd()
    below = path.is_absolute() and path.is_relative_to(here)
    return str(path.relative_to(here)) if below else file


def _link(place: Place) -> str:
    """A style that opens the file where a terminal can, if it is still there; a PDF at its page."""
    path = Path(place.file)
    at = f"#page={place.name}" if place.kind == "page" else ""
    return f"dim link {path.resolve().as_uri()}{at}" if path.is_file() else "dim"


def _balance(answer: Answer) -> Text:
    verdicts = {
        True: ("supported", "green"),
        False: ("NOT supported", "bold yellow"),
        None: ("support unjudged", "dim"),
    }
    support = "" if answer.support is None else f" ({answer.support:.2f})"
    as_text = sum(hit.read == "text" for hit in answer.sources)
    read = [f"{answer.memory_tokens:,} memory tokens for {answer.text_tokens_replaced:,} of text"]
    if as_text:
        read.insert(0, f"{as_text} read as text")
        read = read[: 1 + (as_text < len(answer.sources))]
    spent = duration(sum(answer.seconds.values()))
    return Text.assemble(
        verdicts[answer.supported], (f"{support}; {'; '.join(read)}; {spent}", "dim")
    )


def _show_explanation(out: Console, why: Explanation) -> None:
    """The why, below an answer."""
    dim = "dim"
    out.print(Text("why", style="cyan"))
    out.print(
        Text(f"   the question's memory says: {_word_list(why.query_words)}"), soft_wrap=False
    )
    for match in why.passages:
        out.print(Text(f"{match.rank}. {_match_line(match)}"), soft_wrap=False)
        out.print(
            Text(f"   its memory says: {_word_list(match.words)}", style=dim), soft_wrap=False
        )
    as_text = "" if why.tokens_as_text is None else f", {why.tokens_as_text:,} had it been text"
    out.print(Text(f"   {why.tokens_read:,} positions read{as_text}", style=dim), soft_wrap=False)
    seconds = ", ".join(f"{name} {value:.3f} s" for name, value in why.seconds.items())
    out.print(Text(f"   {seconds}", style=dim), soft_wrap=False)
    if why.signals:
        signals = ", ".join(f"{name} {value:.2f}" for name, value in why.signals.items())
        out.print(Text(f"   support: {signals}", style=dim), soft_wrap=False)


def _match_line(match: PassageMatch) -> str:
    cosines = match.token_cosines
    order = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:TOKENS_SHOWN]
    parts = ", ".join(f"token {i + 1} {cosines[i]:+.3f}" for i in order)
    return f"score {match.score:.3f}, cosine {match.cosine:.3f}: {parts}"


def _word_list(words: tuple[tuple[str, ...], ...]) -> str:
    """The nearest words of all memory tokens, the commonest first."""
    counts = Counter(word.strip() for row in words for word in row if word.strip())
    return clean(" ".join(word for word, _ in counts.most_common(WORDS_SHOWN)))
