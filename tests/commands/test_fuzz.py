"""Damaged and odd files through the commands: whatever the bytes, an answer or one clear error.

A hundred cases by default; `CLARA_FUZZ=1000 pytest tests/commands/test_fuzz.py` runs more.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny

from clara_cli.app import app

CASES = int(os.environ.get("CLARA_FUZZ", "100"))
ODD = [b"\x00", b"\xff\xfe", b"{", b"}", b'"', b"null", b"NaN", b"1e999", b"../", b"\\ud800", b"\n"]
RECIPE = b'batch_size = 2\nlearning_rate = 1e-3\nratios = [4]\nschedule = "cosine"\n'


SECONDS = 10  # no case may take longer


class Hung(BaseException):
    """Nothing in the program catches it."""


@contextmanager
def in_time(what: str) -> Iterator[None]:
    def ring(signum: int, frame: object) -> None:
        raise Hung(what)

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled or replaced by something odd."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(5)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + rng.randint(1, 40)]
        elif kind == 2:
            changed[at:at] = rng.choice(ODD)
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randint(1, 60)]
        else:
            del changed[at:]
    return bytes(changed)


def attack(works, folder: Path, rng: random.Random) -> list[str]:
    """Copy what a command needs, damage one file of it, and name the command line."""
    common = ["--device", "cpu", "--dtype", "float32", "--quiet"]
    kind = rng.choice(["documents", "corpus", "corpus", "checkpoint", "recipe", "questions"])
    if kind == "documents":
        victim = folder / "documents.jsonl"
        shutil.copy(works.documents, victim)
        words = ["compress", str(victim), "--model", str(works.e2e), "--ratio", "4"]
        words += ["--out", str(folder / "out.clara")] + ["--skip-bad"] * rng.randrange(2)
    elif kind == "corpus":
        shutil.copytree(works.corpus, folder / "c.clara")
        victim = rng.choice(sorted(p for p in (folder / "c.clara").rglob("*") if p.is_file()))
        words = [
            "ask",
            "Who is mayor?",
            "--corpus",
            str(folder / "c.clara"),
            "--model",
            str(works.e2e),
        ]
        words += ["--max-new-tokens", "2"]
        if rng.random() < 0.3:
            words, common = ["index", str(folder / "c.clara"), "--check"], ["--quiet"]
    elif kind == "checkpoint":
        shutil.copytree(works.scp / "checkpoint", folder / "m")
        victim = rng.choice(sorted(p for p in (folder / "m").rglob("*") if p.is_file()))
        words = ["compress", str(works.documents), "--model", str(folder / "m"), "--ratio", "4"]
        words += ["--out", str(folder / "out.clara"), "--dry-run"]
    elif kind == "recipe":
        victim = folder / "r.toml"
        victim.write_bytes(RECIPE)
        words = ["pretrain", str(works.pairs), "--init", str(works.scp), "--recipe", str(victim)]
        words += ["--steps", "1", "--out", str(folder / "run")]
    else:
        victim = folder / "questions.jsonl"
        tiny.write_jsonl(victim, [{"question": "Who is mayor of Elmgate?"}])
        words = ["ask", "-f", str(victim), "--corpus", str(works.corpus), "--model", str(works.e2e)]
        words += ["--max-new-tokens", "2"]
    victim.write_bytes(mutate(victim.read_bytes(), rng))
    return words + common


@pytest.mark.slow
def test_no_damage_ends_in_a_traceback_a_wrong_code_or_a_changed_original(works, tmp_path, capsys):
    originals = {name: tiny.files(getattr(works, name)) for name in ("scp", "e2e", "corpus")}
    for case in range(CASES):
        rng = random.Random(case)
        folder = tmp_path / str(case)
        folder.mkdir()
        words = attack(works, folder, rng)
        with in_time(f"case {case}: {' '.join(words)}"), pytest.raises(SystemExit) as left:
            app(words)
        said = capsys.readouterr()
        where = f"case {case}: {' '.join(words)}\n{said.err}"
        assert left.value.code in (0, 1, 2, 3, 4), where
        assert "Traceback" not in said.err and "fault in clara" not in said.err, where
        if left.value.code:
            assert said.err.startswith("error: ") or "\nerror: " in said.err, where
        shutil.rmtree(folder)
    for name, before in originals.items():
        assert tiny.files(getattr(works, name)) == before
