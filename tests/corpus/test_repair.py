"""Damage, and the commands that repair it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import torch

from clara_cli.cli.app import COMMANDS
from clara_cli.config.fields import flag_name
from clara_cli.corpus.manifest import Identity
from clara_cli.corpus.repair import repairs
from clara_cli.corpus.writer import open_writer
from clara_cli.records import Passage

USUAL = Identity(
    checkpoint={"fingerprint": "f", "model": "nano"},
    memory_tokens=2,
    hidden=4,
    ratio=16,
    dtype="bf16",
    text=True,
    options={"split": "sentences", "overlap": 0, "title": True, "shard_size": 1024},
)
ODD = replace(
    USUAL,
    text=False,
    dtype="int8",
    options={
        **{"split": "tokens", "overlap": 9, "title": False, "shard_size": 7, "batch_tokens": 5},
        **{"compute_dtype": "fp16"},
    },
)
COUNTS = {"documents": 1, "passages": 1, "empty": 0, "skipped": 0, "truncated": 0, "text_tokens": 1}


def make(folder: Path, identity: Identity, part: int, inputs: list[str]) -> None:
    with open_writer(folder, identity, part=part) as writer:
        passage = Passage(f"d{part}#0", f"d{part}", "", "t", 0, 1, 1)
        writer.write(0, [passage], torch.ones(1, 2, 4))
        writer.finish(COUNTS, "d" * 64, f"d{part}", inputs)


def test_each_part_has_its_own_command(tmp_path: Path) -> None:
    folder = tmp_path / "my c.clara"
    make(folder, USUAL, 0, ["a b.jsonl"])
    make(folder, USUAL, 1, ["more/", "--text-field", "context"])
    assert repairs(folder) == {}
    (folder / "shards/00001.safetensors").unlink()
    (folder / "passages/00000.jsonl.gz").write_bytes(b"")
    found = repairs(folder)
    quoted = shlex.quote(str(folder))
    common = "--ratio 16 --model nano --store-dtype bf16"
    first = f"clara compress 'a b.jsonl' {common} --out {quoted}"
    second = f"clara compress more/ --text-field context {common} --append --into {quoted}"
    assert list(found) == [first, second]
    assert found[second] == ["shards/00001.safetensors: missing"]
    assert "passages/00000.jsonl.gz: 0 bytes, recorded" in found[first][0]


def test_unusual_options_are_named_and_are_flags(tmp_path: Path) -> None:
    make(tmp_path / "c.clara", ODD, 0, ["a.jsonl"])
    (tmp_path / "c.clara/shards/00000.safetensors").unlink()
    (command,) = repairs(tmp_path / "c.clara")
    for words in ("--split tokens --overlap 9 --shard-size 7 --batch-tokens 5", "--no-title",
                  "--no-text", "--store-dtype int8 --dtype float16"):  # fmt: skip
        assert words in command
    known = {flag_name(f) for f in COMMANDS["compress"].__dataclass_fields__.values()}
    known |= {"--no-title", "--no-text"}
    assert {word for word in shlex.split(command) if word.startswith("--")} <= known
