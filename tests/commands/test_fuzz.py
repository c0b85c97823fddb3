"""Damaged files of every kind through the commands: whatever is in them, an answer, or one error
that names the place and has its exit code, in bounded time and memory.

A hundred cases by default, the kinds of damage in turn; `CLARA_FUZZ=1000 pytest
tests/commands/test_fuzz.py` runs more, `CLARA_FUZZ_SEED` others; `CLARA_FUZZ_REPORT=FILE` lists all
faults. Each case runs in a forked process, so that one that crashes or hangs is a finding and not
the end. hnswlib is never given a damaged file: a recorder stands in its place and reports what
would have reached it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import lzma
import os
import random
import resource
import shutil
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import mutations, tiny_world
from helpers.scripted_llm import competent, serving, write_towns

from clara_cli.cli.app import app
from clara_cli.commands import compress, index
from clara_cli.evaluation.report import run_report as bench_report
from clara_cli.search import hnsw

CASES = int(os.environ.get("CLARA_FUZZ", "100"))
SEED = int(os.environ.get("CLARA_FUZZ_SEED", "0"))
REPORT = os.environ.get("CLARA_FUZZ_REPORT")  # a file for all faults; else the tenth ends the run
SECONDS = 60  # a tiny case takes a second; more than this is a hang
MEMORY = 2 * 2**30  # bytes a case may map beyond what its process began with
MACHINE = ["--device", "cpu", "--dtype", "float32", "--quiet"]
QUESTION = "Who is mayor of Elmgate?"
ANSWER = ["ask", QUESTION, "--max-new-tokens", "2", "--json"]
SETTINGS = {"batch_size": 2, "learning_rate": 1e-2, "max_length": 1024, "tracker": "none"}
RECIPE = "\n".join(
    [
        "batch_size = 2",
        "learning_rate = 1e-3",
        "ratios = [4]",
        'schedule = "cosine"',
        'tracker = "none"',
        "validation_share = 0.0",
    ]
)


DEFAULTS = """
dtype = "float32"
device = "cpu"

[ask]
top-k = 3
first-stage = "bm25"
read = "memory"
answer-only = false

[compress]
split = "sentences"
exclude = ["*.pdf"]
"""
SETTINGS_OF = ("recipe", "defaults")  # a wrong setting is named, not the file it is in
AT_LEAST = 40  # of each kind of damage, and of what is damaged, among a thousand cases


@dataclass(frozen=True)
class Case:
    """A command on a copy: `victims` are what may be damaged, `codes` how it may end, `fit` makes
    recorded checksums right again, `outside` has to stay as it is."""

    name: str
    victims: list[Path]
    words: list[str]
    codes: tuple[int, ...]
    fit: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Stock:
    """What cases are copied from; nothing in it is ever written to."""

    works: Any
    indexed: Path
    unfinished: Path
    run: Path
    documents: Path
    questions: Path
    bench: Path
    towns: Path
    synth: Path
    llm: str


def options(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def pretrain_words(works: Any, out: Path) -> list[str]:
    words = ["pretrain", str(works.pairs), "--init", str(works.scp), "--steps", "1"]
    return [*words, "--out", str(out), *options(SETTINGS), *MACHINE]


def compress_words(documents: Path, works: Any, out: Path) -> list[str]:
    words = ["compress", str(documents), "--model", str(works.e2e), "--ratio", "4"]
    return [*words, "--out", str(out), *MACHINE]


def bench_words(questions: Path, works: Any, out: Path) -> list[str]:
    words = ["bench", "--dataset", str(questions), "--model", str(works.e2e), "--out", str(out)]
    return [*words, "--system", "scp,closed-book", "--max-new-tokens", "2", *MACHINE]


def synth_words(towns: Path, llm: str, out: Path) -> list[str]:
    words = ["synth", str(towns), "--llm", llm, "--llm-model", "m", "--out", str(out), "--quiet"]
    return [*words, "--kinds", "simple,paraphrase", *options({"retries": 0, "timeout": 20.0})]


@pytest.fixture(scope="session")
def stock(works, heard, tmp_path_factory) -> Iterator[Stock]:
    """An indexed corpus, an unfinished one, finished runs of training, bench and synth, a language
    model, and documents in every form."""
    folder = tmp_path_factory.mktemp("stock")
    towns = write_towns(folder / "towns.jsonl", range(4))
    questions = tiny_world.write_jsonl(
        folder / "bench.jsonl", [*tiny_world.questions(), *tiny_world.questions()[:2]]
    )
    with serving(competent) as server:
        bench, synth = folder / "bench", folder / "synth" / "pairs.jsonl"
        for words in (
            pretrain_words(works, folder / "run"),
            bench_words(questions, works, bench),
            [*synth_words(towns, server.url, synth), "--limit", "2"],
        ):
            end = run(words, folder)
            assert end.code == 0, end.err
        yield Stock(
            works,
            indexed=indexed_corpus(works, folder / "indexed.clara", heard),
            unfinished=unfinished_corpus(works, folder / "half.clara", heard),
            run=folder / "run",
            documents=documents_of_every_form(folder / "documents"),
            questions=questions,
            bench=bench,
            towns=towns,
            synth=synth.parent,
            llm=server.url,
        )


def indexed_corpus(works: Any, folder: Path, heard: Any) -> Path:
    shutil.copytree(works.corpus, folder)
    index.run(tiny_world.index(folder, engine="hnsw"), heard())
    return folder


def unfinished_corpus(works: Any, folder: Path, heard: Any) -> Path:
    unfinished = tiny_world.compress(works.documents, works.e2e, folder, shard_size=3)
    with pytest.raises(BaseException, match="interrupted"):
        compress.run(unfinished, heard(stop_at=3))
    return folder


def documents_of_every_form(made: Path) -> Path:
    """The same documents as JSON lines, packed, as text, as tables."""
    made.mkdir()
    records = [record for record in tiny_world.documents() if "title" in record]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (made / "a.jsonl").write_bytes(lines)
    (made / "b.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (made / "c.jsonl.xz").write_bytes(lzma.compress(lines))
    (made / "d.txt").write_bytes(records[0]["text"].encode())
    (made / "e.md").write_bytes(b"# Towns\n\n" + records[1]["text"].encode())
    with (made / "f.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "title", "text"])
        writer.writeheader()
        writer.writerows({key: r[key] for key in ("id", "title", "text")} for r in records)
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"id": r["id"], "text": r["text"]} for r in records])
    pyarrow.parquet.write_table(table, made / "g.parquet")
    return made


# --- what is damaged ---


def documents(stock: Stock, folder: Path, rng: random.Random) -> Case:
    """A file of documents, given by name or in its folder."""
    copied = folder / "documents"
    chosen = rng.choice(sorted(stock.documents.iterdir()))
    copied.mkdir()
    shutil.copy(chosen, copied)
    given = copied if rng.random() < 0.3 else copied / chosen.name
    words = compress_words(given, stock.works, folder / "out.clara")
    words += ["--skip-bad"] * rng.randrange(2)
    return Case("documents", [copied / chosen.name], words, (0, 4))


def questions(stock: Stock, folder: Path, rng: random.Random) -> Case:
    """A file of questions, asked, measured with or trained on; or of pairs."""
    kind, works = rng.randrange(4), stock.works
    victim = folder / "questions.jsonl"
    shutil.copy(works.pairs if kind == 3 else works.questions, victim)
    if kind == 0:
        words = ["ask", "-f", str(victim), "--corpus", str(works.corpus), "--model", str(works.e2e)]
        return Case("questions", [victim], [*words, "--max-new-tokens", "2", *MACHINE], (0, 2, 4))
    if kind == 1:
        corpus = folder / "c.clara"
        shutil.copytree(works.corpus, corpus)
        words = ["index", str(corpus), "--queries", str(victim), "--model", str(works.e2e)]
        return Case("questions", [victim], [*words, *MACHINE], (0, 2, 4))
    if kind == 2:
        words = ["train", str(victim), "--stage", "instruct", "--init", str(works.scp)]
    else:
        words = ["pretrain", str(victim), "--init", str(works.scp)]
    words += ["--steps", "1", "--out", str(folder / "run"), *options(SETTINGS), *MACHINE]
    return Case("questions", [victim], words, (0, 4))


def recipe(stock: Stock, folder: Path, rng: random.Random) -> Case:
    """A recipe."""
    victim = folder / "r.toml"
    victim.write_text(RECIPE)
    words = ["pretrain", str(stock.works.pairs), "--init", str(stock.works.scp), "--steps", "1"]
    words += ["--recipe", str(victim), "--out", str(folder / "run"), *MACHINE]
    return Case("recipe", [victim], words, (0, 2))


def corpus(stock: Stock, folder: Path, rng: random.Random) -> Case:
    """A file of a corpus, with its index or without."""
    copied = folder / "c.clara"
    shutil.copytree(rng.choice([stock.indexed, stock.works.corpus]), copied)
    model = ["--model", str(stock.works.e2e)]
    stage = rng.choice(["bm25", "latent", "hybrid"])
    words = [*ANSWER, "--corpus", str(copied), *model, "--first-stage", stage, *MACHINE]
    kind = rng.randrange(8)
    if kind == 0:
        words = ["index", str(copied), "--check", "--quiet"]
    elif kind == 1:
        words = ["index", str(copied), *model, *MACHINE]
    elif kind == 2:
        more = tiny_world.write_jsonl(
            folder / "more.jsonl", [{"id": "new", "text": "Una rules Elm."}]
        )
        words = ["compress", str(more), "--into", str(copied), *model, *MACHINE]
    fit = (lambda: refit(copied)) if rng.random() < 0.6 else (lambda: None)
    return Case("corpus", files_of(copied), words, (0, 3), fit)


def unfinished(stock: Stock, folder: Path, rng: random.Random) -> Case:
    """A corpus whose command was stopped, and goes on."""
    copied = folder / "c.clara"
    shutil.copytree(stock.unfinished, copied)
    words = compress_words(stock.works.documents, stock.works, copied)
    words += ["--shard-size", "3"]
    return Case("unfinished", files_of(copied), words, (0, 3))


def checkpoint(stock: Stock, folder: Path, rng: random.Random) -> Case:
    """A file of a checkpoint or of the backbone in it."""
    copied = folder / "m"
    shutil.copytree(stock.works.e2e / "checkpoint", copied)
    shutil.copytree(stock.works.backbone, copied / "backbone")
    fit = {"weights": dict.fromkeys(SIGNALS, 0.1), "bias": 0.5, "threshold": 0.6}
    described = json.loads((copied / "clara.json").read_text())
    support = {"format": "clara-support", "version": 1, "fingerprint": described["fingerprint"]}
    (copied / "support.json").write_text(json.dumps({**support, "text": fit, "memory": fit}))
    words = [*ANSWER, "--corpus", str(stock.works.corpus), "--model", str(copied), *MACHINE]
    kind = rng.randrange(4)
    if kind == 0:
        words = ["compress", str(stock.works.documents), "--model", str(copied), "--ratio", "4"]
        words += ["--out", str(folder / "out.clara"), "--dry-run", *MACHINE]
    elif kind == 1:
        words += ["--dry-run"]
    elif kind == 2:
        words = ["train", "--init", str(copied), "--steps", "0", "--out", str(folder / "native")]
        words += MACHINE
    part = rng.choice([copied, copied / "backbone", copied / "backbone", copied / "support.json"])
    victims = files_of(part) if part.is_dir() else [part]
    return Case("checkpoint", victims, words, (0, 3))


SIGNALS = ("likelihood", "over_nothing", "over_other", "facts", "asked")


def run_folder(stock: Stock, folder: Path, rng: random.Random) -> Case:
    """A file of a run, its checkpoint there or gone."""
    copied = folder / "run"
    shutil.copytree(stock.run, copied)
    if rng.random() < 0.6:
        shutil.rmtree(copied / "checkpoint")
    words = pretrain_words(stock.works, copied)
    words[words.index("--steps") + 1] = rng.choice(["1", "1", "2"])
    victims = [path for path in files_of(copied) if "checkpoint" not in path.parts]
    return Case("run", victims, words, (0, 3))


def bench_folder(stock: Stock, folder: Path, rng: random.Random) -> Case:
    """A file of a bench folder, finished or not, that goes on or is compared with another."""
    copied = folder / "bench"
    shutil.copytree(stock.bench, copied)
    if rng.random() < 0.5:
        for name in ("predictions.jsonl", "measures.jsonl"):  # of the first 8 of 10 questions
            lines = (copied / name).read_bytes().splitlines(keepends=True)
            (copied / name).write_bytes(b"".join(lines[:16]))
    words = bench_words(stock.questions, stock.works, copied)
    codes: tuple[int, ...] = (0, 3)
    if rng.random() < 0.2:
        words = ["bench", "--compare", str(stock.bench), str(copied), "--json", "--quiet"]
        codes = (0, 3, 4)
    return Case("bench", files_of(copied), words, codes)


def synth_files(stock: Stock, folder: Path, rng: random.Random) -> Case:
    """A file that `clara synth` wrote; it goes on, or finds that it is finished."""
    copied = folder / "synth"
    shutil.copytree(stock.synth, copied)
    words = synth_words(stock.towns, stock.llm, copied / "pairs.jsonl")
    words += ["--limit", "2"] * rng.randrange(2)
    return Case("synth", files_of(copied), words, (0, 3))


def defaults(stock: Stock, folder: Path, rng: random.Random) -> Case:
    """A `clara.toml`: the user's own, or that of the present folder."""
    victim = folder / rng.choice(["clara.toml", "config/clara/clara.toml"])
    victim.parent.mkdir(parents=True, exist_ok=True)
    victim.write_text(DEFAULTS)
    words = [*ANSWER, "--corpus", str(stock.works.corpus), "--model", str(stock.works.e2e)]
    return Case("defaults", [victim], [*words, "--quiet"], (0, 2))


TARGETS = (
    documents, documents, questions, questions, recipe, recipe, defaults, defaults, corpus, corpus,
    unfinished, checkpoint, checkpoint, checkpoint, run_folder, bench_folder, bench_folder,
    synth_files, synth_files,
)  # fmt: skip


def files_of(folder: Path) -> list[Path]:
    """Every file and folder below, in order."""
    return sorted(folder.rglob("*"))


def refit(copied: Path) -> None:
    """Make every sum and size that a corpus records right again, as an attacker would."""
    manifest = copied / "manifest.json"
    described = readable(manifest)
    for shard in described.get("shards", []) if isinstance(described, dict) else []:
        for part in ("memory", "passages") if isinstance(shard, dict) else ():
            path = copied / str(shard.get(part)).replace("\0", "")
            if path.is_file() and not path.is_symlink() and path.is_relative_to(copied):
                shard[f"bytes_{part}"] = path.stat().st_size
                shard[f"sha256_{part}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if isinstance(described, dict) and described.get("shards"):
        manifest.write_text(json.dumps(described))
    for path in copied.rglob("*.json"):
        record = readable(path)
        if path == manifest or not isinstance(record, dict) or path.is_symlink():
            continue
        if "corpus_sha256" in record and manifest.is_file():
            record["corpus_sha256"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
        for entry in record.values():
            named = path.parent / str(entry.get("file")) if isinstance(entry, dict) else path
            if named != path and named.is_file():
                entry["sha256"] = hashlib.sha256(named.read_bytes()).hexdigest()
        path.write_text(json.dumps(record))


def readable(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except (ValueError, RecursionError):
        return None


# --- running one ---


@dataclass(frozen=True)
class End:
    """How a command ended: its exit code, minus a signal, or None where it did not."""

    code: int | None
    out: str
    err: str


class Recorder:
    """Stands in hnswlib's place: reads the graph that was built, and tells of any other."""

    whole: bytes = b""

    def __init__(self, space: str, dim: int) -> None:
        self._graph = REAL_INDEX(space=space, dim=dim)

    def load_index(self, name: str, max_elements: int) -> None:
        if Path(name).read_bytes() != self.whole:
            raise AssertionError(f"a fault in clara: hnswlib was given {name}, damaged")
        self._graph.load_index(name, max_elements=max_elements)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)


REAL_INDEX = hnsw.hnswlib.Index


def run(words: list[str], folder: Path) -> End:
    """The program on a command line, in a process forked from this one."""
    out, err = folder / "stdout", folder / "stderr"
    pid = os.fork()
    if not pid:
        code = 70
        try:
            code = _child(words, folder, out, err)
        finally:
            os._exit(code)
    code = _ended(pid)
    return End(code, out.read_text(errors="replace"), err.read_text(errors="replace"))


def _child(words: list[str], folder: Path, out: Path, err: Path) -> int:
    with out.open("w") as stdout, err.open("w") as stderr, open(os.devnull) as stdin:
        for number, stream in enumerate((stdin, stdout, stderr)):
            os.dup2(stream.fileno(), number)
        sys.stdin, sys.stdout, sys.stderr = stdin, stdout, stderr
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        os.environ["CLARA_CACHE"] = str(folder / "cache")
        os.environ["XDG_CONFIG_HOME"] = str(folder / "in" / "config")
        os.chdir(folder / "in" if (folder / "in").is_dir() else folder)
        bench_report.find_spec = lambda name: None  # plots take longer than all the rest
        torch.set_num_threads(1)  # threads do not survive a fork
        hnsw.hnswlib.Index = Recorder
        try:
            app(words)
        except SystemExit as left:
            return int(left.code or 0)
        finally:
            stdout.flush()
            stderr.flush()
    return 70


def _ended(pid: int) -> int | None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def fault(case: Case, end: End, folder: Path) -> str | None:
    """What is wrong about how a damaged case ended, if anything is."""
    if end.code is None:
        return f"still running after {SECONDS} s"
    if end.code < 0:
        return f"killed by {signal.Signals(-end.code).name}"
    if "Traceback" in end.err or "a fault in clara" in end.err:
        return "a fault"
    unwritten = end.code == 1 and "cannot be written" in end.err  # a folder in a file's place
    if end.code not in case.codes and not unwritten:
        return f"exit code {end.code}, not one of {case.codes}"
    if end.code and "error: " not in end.err:
        return "no error"
    if end.code and str(folder) not in end.err and case.name not in SETTINGS_OF:
        return "the place is not named"
    return None


def known(folder: Path) -> dict[str, Any]:
    """What lies in a folder outside: names, kinds and bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.is_dir() or stat.S_ISREG(path.lstat().st_mode)
    }


def attack(stock: Stock, number: int, folder: Path) -> tuple[str, Case, End, str | None]:
    """One case: its kind of damage, what was damaged, how it ended, what is wrong about that."""
    rng = random.Random(SEED * 1_000_003 + number)
    kind = mutations.KINDS[number % len(mutations.KINDS)]
    while True:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        inside, outside = folder / "in", folder / "out"
        inside.mkdir()
        outside.mkdir()
        case = rng.choice(TARGETS)(stock, inside, rng)
        victims = [path for path in case.victims if mutations.fits(kind, path)]
        if victims:
            break
    victim = rng.choice(victims)
    mutations.damage(kind, victim, outside, rng)
    if kind not in mutations.PLACES:
        case.fit()
    if str(victim) in case.words and not victim.exists():  # no such file: a wrong command line
        case = replace(case, codes=(*case.codes, 2))
    before = known(outside)
    end = run(case.words, folder)
    wrong = fault(case, end, inside)
    if wrong is None and known(outside) != before:
        wrong = "something outside changed"
    name = f"{case.name}/{victim.relative_to(inside)}"
    return f"{kind} in {name}", case, end, wrong


@pytest.mark.slow
def test_damage_ends_in_an_answer_or_an_error_with_its_place_and_code(stock, tmp_path):
    Recorder.whole = next(stock.indexed.rglob("graph.bin")).read_bytes()
    shared = {
        name: tiny_world.files(getattr(stock.works, name)) for name in ("scp", "e2e", "corpus")
    }
    counts: Counter[str] = Counter()
    damaged: Counter[str] = Counter()
    codes: Counter[Any] = Counter()
    faults: list[str] = []
    for number in range(CASES):
        folder = tmp_path / "case"
        folder.mkdir(exist_ok=True)
        what, case, end, wrong = attack(stock, number, folder)
        counts[mutations.KINDS[number % len(mutations.KINDS)]] += 1
        damaged[case.name] += 1
        codes[end.code] += 1
        if wrong is not None:
            tail = end.err.strip()[-600:]
            faults.append(f"seed {SEED}, case {number}: {what}: {wrong}\n  {case.words}\n  {tail}")
        if len(faults) == 10 and not REPORT:
            break
        shutil.rmtree(folder)
    print(f"seed {SEED}, {sum(counts.values())} cases: {dict(counts)}; of {dict(damaged)}")
    print(f"exit codes {dict(codes)}; {len(faults)} faults")
    if REPORT:
        Path(REPORT).write_text("\n\n".join([*faults, f"{len(faults)} faults"]))
    assert not faults, "\n\n".join(faults)
    assert CASES < 1000 or min(*counts.values(), *damaged.values()) >= AT_LEAST
    for name, before in shared.items():
        assert tiny_world.files(getattr(stock.works, name)) == before
