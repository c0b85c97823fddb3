"""Progress, summaries and errors as people read them (answers.py has the answers, json_line.py what
programs read). Results go to stdout, all else to stderr.

Knows the records and nothing of how they come about. Honours NO_COLOR (through rich), a terminal as
narrow as 40 columns, and streams that are no terminal at all.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.filesize import decimal as size
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
)
from rich.segment import Segment
from rich.text import Text

from clara_cli import records
from clara_cli.cli.show import bench, json_line, synth
from clara_cli.config.fields import Setting
from clara_cli.documents.listing import describe_left_out
from clara_cli.errors import ClaraError, Interrupted, is_out_of_memory, memory_hint
from clara_cli.printable import clean, shell_word
from clara_cli.records import (
    CompressResult,
    CorpusContents,
    DocumentContents,
    IndexResult,
    MemoryNeed,
    SyncResult,
    TrainResult,
)

NARROW = 60  # columns below which tables become lists and bars become counts
FIRST_SECONDS = 1.0  # before the first progress line of a task where there is no terminal
LINE_SECONDS = 10.0  # between the lines that follow
OS_HINTS = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.ENOSPC: "free some disk space and run the same command again",
}


class _Console(Console):
    """A console that leaves a reader's going away to the error boundary, and shows no character
    that a terminal would obey."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """What is printed, whatever printed it, without characters that a terminal would obey."""
        for segment in super().render(renderable, options):
            safe = segment.control or segment.text.isprintable()
            yield segment if safe else Segment(clean(segment.text), segment.style)


def console(*, stderr: bool) -> Console:
    """A console that shows text as it is: no markup, no guessed colours, no emoji codes. Off a
    terminal it does not wrap, so that lines can be searched."""
    stream = sys.stderr if stderr else sys.stdout
    return _Console(
        stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=not stream.isatty()
    )


class TerminalReport:
    """`records.Report` on stderr, with the time remaining: a bar on a terminal, else a line after a
    second, one at most every ten seconds, and one at the end. `quiet` keeps warnings only; `hold`
    keeps all messages until `pause`."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        hold: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console(stderr=True)
        self._quiet, self._hold, self._clock = quiet, hold, clock
        self._bars = sys.stderr.isatty() and not self._console.is_dumb_terminal
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._unsaid: records.Progress | None = None
        self._task, self._next_line = "", clock() + FIRST_SECONDS
        self._remaining: dict[str, _Remaining] = {}
        self._seen: set[str] = set()
        self._held: list[Text] = []

    def __enter__(self) -> TerminalReport:
        return self

    def __exit__(self, *error: object) -> None:
        self.pause()

    def progress(self, progress: records.Progress) -> None:
        """Show how far long work has come."""
        if not (self._quiet or self._hold):
            begun = _Remaining(self._clock(), _share(progress) or 0.0)
            self._remaining.setdefault(progress.task, begun)
            (self._draw if self._bars else self._write)(progress)

    def note(self, message: str) -> None:
        """Say something worth knowing, once."""
        if not self._quiet:
            self._once(message, "")

    def warn(self, message: str) -> None:
        """Say something the user did not ask for and should know, once."""
        self._once(f"warning: {message}", "yellow")

    def confirm(self, question: str) -> bool | None:
        """Ask the user yes or no; None where there is no terminal."""
        self.pause()
        if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
            return None
        self._console.print(Text(clean(f"{question} [y/N] ")), end="")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def pause(self) -> None:
        """Clear the bar (the next progress brings it back) and say what is still unsaid."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._tasks.clear()
        if self._unsaid is not None:
            self._line(self._unsaid)
        while self._held:
            self._console.print(self._held.pop(0))

    def _once(self, message: str, style: str) -> None:
        if message not in self._seen:
            self._seen.add(message)
            text = Text(clean(message), style=style)
            self._held.append(text) if self._hold else self._console.print(text)

    def _draw(self, progress: records.Progress) -> None:
        if self._live is None:
            self._live = Progress(
                *_columns(self._console.width),
                console=self._console,
                transient=True,
                refresh_per_second=5,
                redirect_stdout=False,  # results stay on stdout
            )
            self._live.start()
        if progress.task not in self._tasks:
            self._tasks[progress.task] = self._live.add_task(
                progress.task, total=None, count="", figures=""
            )
        share = _share(progress)
        self._live.update(
            self._tasks[progress.task],
            completed=share or 0.0,
            total=None if share is None else 1.0,
            count=_count(progress),
            figures=self._figures(progress),
        )

    def _write(self, progress: records.Progress) -> None:
        if progress.task != self._task:
            if self._unsaid is not None:
                self._line(self._unsaid)
            self._task = progress.task
            self._next_line = min(self._next_line, self._clock() + FIRST_SECONDS)
        self._unsaid = progress
        finished = progress.total is not None and progress.done >= progress.total
        if self._clock() >= self._next_line or finished:
            self._line(progress)

    def _line(self, progress: records.Progress) -> None:
        self._unsaid, self._next_line = None, self._clock() + LINE_SECONDS
        figures = self._figures(progress)
        line = f"{progress.task}: {_count(progress)}" + (f", {figures}" if figures else "")
        self._console.print(Text(line))

    def _figures(self, progress: records.Progress) -> str:
        """The time remaining, where it is known, and the figures that come with progress."""
        shown = [f"{name} {value}" for name, value in progress.figures.items()]
        share = _share(progress)
        if share is not None:
            shown = self._remaining[progress.task].eta(self._clock(), share) + shown
        return ", ".join(shown)


@dataclasses.dataclass(frozen=True)
class _Remaining:
    """How long a task will take, by its pace since it was first shown: what an earlier run did has
    no part in it."""

    began: float
    share: float

    def eta(self, now: float, share: float) -> list[str]:
        """The time remaining, as one thing to show; nothing when all is done."""
        if share >= 1:
            return []
        if share <= self.share:
            return ["ETA -:--:--"]
        seconds = (now - self.began) * (1 - share) / (share - self.share)
        return [f"ETA {timedelta(seconds=round(seconds))}"]


def _columns(width: int) -> list[ProgressColumn]:
    places = ("description", "fields[count]", "fields[figures]")
    name, count, figures = (TextColumn(f"{{task.{place}}}", markup=False) for place in places)
    if width < NARROW:
        return [name, count]
    return [name, BarColumn(width // 5), count, figures]


def _share(progress: records.Progress) -> float | None:
    """The part of the work that is done, 0-1; None where it is not known."""
    if progress.share is None and progress.total:
        return progress.done / progress.total
    return progress.share


def _count(progress: records.Progress) -> str:
    share = _share(progress)
    percent = "" if share is None else f"{math.floor(100 * share)}% "
    of_all = f"/{progress.total:,}" if progress.total else ""
    return f"{percent}{progress.done:,}{of_all} {progress.unit}"


def show_option(f: dataclasses.Field[Any], value: Any, source: str) -> None:
    """An option's value as a line of TOML, and where it comes from; none is a comment."""
    shown = "(none)" if value is None else json.dumps(json_line.jsonable(value), ensure_ascii=False)
    line = f"{f.name.replace('_', '-')} = {shown}  # {source}"
    console(stderr=False).print(Text(clean(f"# {line}" if value is None else line)), soft_wrap=True)


def show_result(result: Any, *, only: str | None = None) -> None:
    """What a command made, its figures, and the command to run next. `only` names the flag
    (`dry_run`, `check`) that made it do less."""
    lines: dict[type, Callable[[Any, str | None], list[Any]]]
    lines = {CompressResult: _compress_lines, IndexResult: _index_lines, TrainResult: _train_lines}
    lines |= {SyncResult: _sync_lines, MemoryNeed: _memory_lines}
    lines |= {CorpusContents: _contents_lines, DocumentContents: _document_lines}
    out = console(stderr=False)
    for line in {**lines, **bench.LINES, **synth.LINES}[type(result)](result, only):
        out.print(Text(clean(line)) if isinstance(line, str) else line)


def show_settings(settings: Sequence[Setting]) -> None:
    """The settings of a command as a recipe that says what each is."""
    out = console(stderr=False)
    for one in settings:
        least = "" if one.low is None else f", {one.low:g} or more"
        out.print(Text(f"# {one.doc} ({one.type}{least})", style="dim"))
        out.print(Text(f"{one.name} = {one.default}"))


def _compress_lines(r: CompressResult, only: str | None) -> list[str]:
    contents = f"{r.documents:,} documents, {r.passages:,} passages"
    left = {"empty": r.empty, "skipped": r.skipped, "truncated": r.truncated}
    odd = "".join(f", {number:,} {name}" for name, number in left.items() if number)
    left_out = [f"left out: {describe_left_out(r.left_out)}"] if r.left_out else []
    ratios = f"ratio {r.ratio}, effective {r.effective_ratio:.1f}"
    shape = f"{r.memory_tokens} memory tokens each ({ratios}), {size(r.bytes)}"
    pace, speed = r.passages_per_second, "complete as it was: nothing to compute"
    if pace is not None:
        paced = f"{pace:,.1f}" if pace >= 1 else f"{pace:.2g}"
        speed = f"{duration(r.seconds)}, {paced} passages/s"
    if only == "dry_run":
        following = "next: the same command without --dry-run"
        first = f"{r.corpus} would hold {contents}{odd}"
        return [first, *left_out, shape, f"about {speed}", following]
    following = f"next: clara index {shell_word(r.corpus)}"
    return [f"{r.corpus}: {contents}{odd}", *left_out, shape, speed, following]


def _sync_lines(r: SyncResult, only: str | None) -> list[str]:
    changed = {"added": r.added, "replaced": r.replaced, "deleted": r.deleted}
    changes = [f"{number:,} {name}" for name, number in changed.items() if number]
    if r.moved:
        changes.append(f"{r.moved:,} of the added known by another id")
    if r.skipped:
        changes.append(f"{r.skipped:,} skipped")
    changes.append(f"{r.unchanged:,} unchanged")
    left_out = [f"left out: {describe_left_out(r.left_out)}"] if r.left_out else []
    now = f"{r.corpus}: {r.documents:,} documents, {r.passages:,} passages, {size(r.bytes)}"
    computed = f"{r.computed:,} passages computed, {size(r.bytes_written)} written"
    index = f", {size(r.index_bytes)} of the index" if r.index_bytes else ""
    if only == "dry_run":
        return [now, f"would change: {', '.join(changes)}", *left_out]
    return [now, ", ".join(changes), *left_out, f"{computed}{index}, {duration(r.seconds)}"]


def _contents_lines(r: CorpusContents, only: str | None) -> list[str]:
    width = max((len(row.id) for row in r.documents), default=0)
    listed = [
        f"{row.id.ljust(min(width, 60))}  {row.passages:>5,} passages  {row.tokens:>8,} tokens"
        f"  {row.source}"
        for row in r.documents
    ]
    origin = f"{r.model}, ratio {r.ratio}, {size(r.bytes)}"
    return [
        f"{r.corpus}: {len(r.documents):,} documents, {r.passages:,} passages, {origin}",
        *listed,
    ]


def _document_lines(r: DocumentContents, only: str | None) -> list[str]:
    named = f"{r.id}: {r.title}" if r.title else r.id
    counts = f"{r.passages:,} passages, {r.tokens:,} tokens, {size(r.bytes)} of memory by {r.model}"
    lines = [named, counts, r.source]
    for passage in r.texts:
        place = passage.source or r.source
        lines += ["", f"{passage.passage_id} [{passage.start}:{passage.end}] {place}"]
        lines.append("(no text was kept)" if passage.text is None else passage.text)
    return lines


def _memory_lines(r: MemoryNeed, only: str | None) -> list[str]:
    how = f"in {r.load_in}" if r.load_in else f"in {r.dtype}"
    parts = {
        f"weights {how}": r.weights,
        f"adapters ({', '.join(r.roles)})": r.adapters,
        "memory tokens": r.memory_tokens,
        "cache": r.cache,
        "gradients and optimiser": r.training,
    }
    listed = ", ".join(f"{name} {size(part)}" for name, part in parts.items() if part)
    return [f"{r.backbone}: {r.parameters:,} parameters need {size(r.bytes)}", listed]


def _index_lines(r: IndexResult, only: str | None) -> list[str]:
    following = f"next: clara ask --corpus {shell_word(r.corpus)}"
    if only == "check":
        return [f"{r.corpus}: every file matches its checksum, {duration(r.seconds)}", following]
    recall = f", recall@{r.k} {r.recall_at_k:.3f}" if r.recall_at_k is not None else ""
    measured_on = f" over {r.queries:,} questions" if recall else ""
    description = f"{r.engine} index of {r.vectors:,} vectors, {r.dim} wide{recall}{measured_on}"
    if r.engine == "exact":
        graph = f"the graph, {r.dim} wide{recall}{measured_on}, was not kept"
        description = f"exact scan of {r.vectors:,} vectors; {graph}"
    return [f"{r.corpus}: {description}", f"{size(r.bytes)}, {duration(r.seconds)}", following]


def _train_lines(r: TrainResult, only: str | None) -> list[str]:
    losses = (("ce", r.ce), ("mse", r.mse))
    figures = "".join(f", {name} {x:.4g}" for name, x in losses if x is not None)
    place = shell_word(r.checkpoint)
    following = f"clara compress with documents and --model {place}"
    if r.stage in ("pretrain", "scp"):
        following = f"clara train with questions, an --out, --stage instruct --init {place}"
    elif r.stage == "instruct":
        following = f"clara train with questions, an --out, --stage e2e --init {place}"
    best = [f"{name} {value:.4g}" for name, value in r.validation.items()]
    best_line = [f"best of the checks, and the checkpoint: step {r.best_step}, {', '.join(best)}"]
    pace, spent = r.tokens_per_second, "nothing was left to do"
    if pace is not None:
        spent = f"{duration(r.seconds)} ({pace:,.0f} tokens/s)"
    return [
        f"{r.checkpoint}: {r.stage}, {r.steps:,} steps{figures}",
        *(best_line if best else []),
        spent,
        f"next: {following}",
    ]


def duration(seconds: float) -> str:
    """Seconds as people write them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def explain(error: BaseException, command: str = "") -> ClaraError:
    """Whatever went wrong in a command as an error with a next step."""
    if isinstance(error, ClaraError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    if is_out_of_memory(error):
        return ClaraError("out of memory", memory_hint(command))
    if isinstance(error, OSError) and error.errno is not None:
        where = "" if error.filename is None else f"{error.filename}: "
        return ClaraError(f"{where}{error.strerror}", OS_HINTS.get(error.errno, ""))
    first = str(error).strip().partition("\n")[0]
    hint = "this is a fault in clara: run again with --traceback and report what it shows"
    return ClaraError(f"{type(error).__name__}: {first}".rstrip(": "), hint)


def show_error(error: ClaraError) -> None:
    """What went wrong and what to do next, on stderr."""
    err = console(stderr=True)
    label = "" if isinstance(error, Interrupted) else "error: "
    err.print(Text.assemble((label, "bold red"), (clean(error.message), "red")))
    if error.hint:
        err.print(Text.assemble(("hint: ", "bold"), clean(error.hint)))


def say(message: str) -> None:
    """A line of the conversation that is no result, on stderr."""
    console(stderr=True).print(Text(clean(message), style="dim"))
