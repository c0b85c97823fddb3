"""compress, its additions and index, killed at random moments; several processes as one.

`CLARA_KILLS=50 pytest tests/commands/test_killed_and_run_again.py` is the long form. The commands
run in forked processes, which have torch loaded: a kill meets the work and not the imports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import tiny_world
from helpers.forks import ended, fork

from clara_cli.commands import compress, index
from clara_cli.corpus import journal
from clara_cli.corpus.store import Corpus, verify
from clara_cli.corpus.writer import CorpusWriter
from clara_cli.errors import ArtefactError, ClaraError

ROOT = Path(__file__).parent.parent.parent
KILLS = int(os.environ.get("CLARA_KILLS", "3"))
SHARD = 3


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    assert ended(fork(work)) == 0
    return time.monotonic() - began


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """When each recorded shard file was written, and which file it is."""
    unfinished, found = journal.read(folder), {}
    shards = list(unfinished.shards.values()) if unfinished else []
    if (folder / "manifest.json").exists():
        shards += Corpus.open(folder).manifest.shards
    for shard in shards:
        for name in (shard.memory, shard.passages):
            stat = (folder / name).stat()
            found[name] = (stat.st_mtime_ns, stat.st_ino)
    return found


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost_doubled_or_changed(works, heard, tmp_path):
    rng, report = random.Random(KILLS), heard()
    records = [dict(r, id=f"more {r['id']}") for r in tiny_world.documents()]
    more = tiny_world.write_jsonl(tmp_path / "more.jsonl", records)

    def phases(folder: Path) -> list[Callable[[], object]]:
        first = tiny_world.compress(works.documents, works.e2e, folder, shard_size=SHARD)
        added = tiny_world.compress(
            more, works.e2e, None, shard_size=SHARD, into=folder, append=True
        )
        graph = tiny_world.index(folder, engine="hnsw")
        return [
            lambda: compress.run(first, report),
            lambda: compress.run(added, report),
            lambda: index.run(graph, report),
        ]

    whole = tmp_path / "whole.clara"
    expected, length = [], []
    for work in phases(whole):
        length.append(timed(work))
        expected.append(tiny_world.files(whole))
    recall = index.run(tiny_world.index(whole, engine="hnsw"), report).recall_at_k
    kills = round_ = 0
    while kills < KILLS:
        folder = tmp_path / f"{round_}.clara"
        for phase, work in enumerate(phases(folder)):
            share = KILLS if phase == 2 else KILLS * (phase + 1) // 3
            before = stamps(folder) if folder.exists() else {}
            while True:
                pid = fork(work)
                if kills < share:
                    time.sleep(rng.uniform(0, length[phase]))
                    os.kill(pid, signal.SIGKILL)
                code = ended(pid)
                kills += code == -9
                now = stamps(folder) if folder.exists() else {}
                assert before.items() <= now.items()  # nothing lost, finished shards untouched
                before = now
                if phase:  # a reader meanwhile: the corpus before, or the corpus after
                    assert len(Corpus.open(folder)) in [whole_rows(expected[n]) for n in (0, 1)]
                if code != -9:
                    break
            assert code == 0
            assert tiny_world.files(folder) == expected[phase]
        assert verify(folder) == []
        found = index.run(tiny_world.index(folder, engine="hnsw"), report).recall_at_k
        assert abs(found - recall) <= 0.005
        round_ += 1


def whole_rows(files: dict[str, bytes]) -> int:
    return json.loads(files["manifest.json"])["counts"]["passages"]


# --- several processes ---


def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def two(work: Callable[[int], object]) -> list[int]:
    """`work` in two processes as a launcher would start them; their exit codes."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": port()}
    common["MASTER_ADDR"] = "127.0.0.1"
    pids = [
        fork(lambda rank=rank: work(rank), RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(2)
    ]
    return [ended(pid) for pid in pids]


def test_two_ranks_write_the_bytes_of_one_each_its_own_shards(works, heard, tmp_path, monkeypatch):
    config = tiny_world.compress(
        works.documents, works.e2e, tmp_path / "out.clara", shard_size=SHARD
    )
    one = tiny_world.compress(works.documents, works.e2e, tmp_path / "one.clara", shard_size=SHARD)
    expected = compress.run(one, heard())
    write = CorpusWriter.write
    monkeypatch.setattr(
        CorpusWriter,
        "write",
        lambda self, number, *rest: (
            (tmp_path / f"{number} by {os.environ['RANK']}").touch(),
            write(self, number, *rest),
        ),
    )

    def work(rank: int) -> None:
        result = compress.run(config, heard())
        assert (result.passages, result.bytes) == (expected.passages, expected.bytes)

    assert two(work) == [0, 0]
    assert tiny_world.files(tmp_path / "out.clara") == tiny_world.files(tmp_path / "one.clara")
    shards = -(-expected.passages // SHARD)
    made = sorted(path.name for path in tmp_path.glob("* by *"))
    assert made == sorted(f"{n} by {n % 2}" for n in range(shards))
    assert two(work) == [0, 0]  # finished: nothing more is written
    assert tiny_world.files(tmp_path / "out.clara") == tiny_world.files(tmp_path / "one.clara")


def test_an_error_of_one_rank_ends_both_and_what_is_done_is_kept(
    works, heard, tmp_path, monkeypatch
):
    out = tmp_path / "out.clara"
    config = tiny_world.compress(works.documents, works.e2e, out, shard_size=SHARD)
    write = CorpusWriter.write

    def full(self, number, *rest):
        if number == 1:
            raise ClaraError("no space left")
        write(self, number, *rest)

    monkeypatch.setattr(CorpusWriter, "write", full)
    assert two(lambda rank: compress.run(config, heard())) == [1, 1]
    done = set(journal.read(out).shards)
    assert 0 in done and 1 not in done
    with pytest.raises(ArtefactError, match="is not finished"):
        Corpus.open(out)
    monkeypatch.undo()
    compress.run(config, heard())  # one process goes on where two stopped
    again = tiny_world.compress(
        works.documents, works.e2e, tmp_path / "one.clara", shard_size=SHARD
    )
    compress.run(again, heard())
    assert tiny_world.files(out) == tiny_world.files(tmp_path / "one.clara")


def test_documents_that_differ_between_the_machines_are_refused(works, heard, tmp_path):
    data = [
        tiny_world.write_jsonl(tmp_path / f"{n}.jsonl", tiny_world.documents()[n:])
        for n in range(2)
    ]
    out = tmp_path / "out.clara"
    codes = two(lambda rank: compress.run(tiny_world.compress(data[rank], works.e2e, out), heard()))
    assert codes == [1, 1] and not (out / "manifest.json").exists()


@pytest.mark.slow
def test_nproc_starts_two_processes_and_one_speaks(works, tmp_path):
    """The whole way, from the command line through the launcher."""
    words = ["compress", str(works.documents), "--model", str(works.e2e), "--out", "out.clara"]
    words += ["--ratio", "4", "--device", "cpu", "--dtype", "float32", "--shard-size", "3"]
    run = subprocess.run(
        [sys.executable, "-m", "clara_cli", *words, "--nproc", "2", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    assert json.loads(line)["documents"] == len(tiny_world.documents())
    one = tiny_world.compress(works.documents, works.e2e, tmp_path / "one.clara", shard_size=3)

    class Quiet:
        progress = note = warn = staticmethod(lambda said: None)

    compress.run(one, Quiet())
    assert tiny_world.files(tmp_path / "out.clara") == tiny_world.files(tmp_path / "one.clara")
