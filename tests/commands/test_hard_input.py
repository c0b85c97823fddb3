"""Input that is large, odd or meant harm, through the commands: what is valid works in bounded
memory, what is not is one clear error; a stranger's file is read, never run.

`CLARA_LONG=1` runs them at full size: 100,000 empty documents, a line of 40 MB.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import lzma
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_world

from clara_cli.commands import ask, compress, index
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError, ClaraError, DataError

ROOT = Path(__file__).parents[2]
LONG = bool(os.environ.get("CLARA_LONG"))
MANY = 100_000 if LONG else 2_000
SENTENCES = 850_000 if LONG else 8_000
MEASURED = """
import re, sys
from pathlib import Path
from clara_cli.cli.app import app
try:
    app(sys.argv[1:])
finally:  # not ru_maxrss: a process begins with its parent's
    status = Path("/proc/self/status").read_text()
    print(re.search(r"VmHWM:\\s+(\\d+)", status)[1], file=sys.stderr)
"""


def compressed(data, works, out, report, **changes):
    return compress.run(tiny_world.compress(data, works.e2e, out, **changes), report)


@pytest.mark.slow
def test_very_many_empty_documents(works, report, tmp_path):
    data = tmp_path / "empty.jsonl"
    data.write_text('{"text": ""}\n' * MANY)
    out = tmp_path / "out.clara"
    result = compressed(data, works, out, report, shard_size=MANY, batch_tokens=16 * MANY, ratio=16)
    assert (result.documents, result.passages, result.empty) == (MANY, MANY, MANY)
    answer = next(ask.run(tiny_world.ask("Who is mayor?", out, model=str(works.e2e)), report))
    assert len({hit.passage.passage_id for hit in answer.sources}) == 5
    indexed = index.run(tiny_world.index(out), report)
    assert indexed.vectors == MANY and indexed.queries == 0


@pytest.mark.slow
def test_a_line_of_many_megabytes(works, tmp_path):
    """It is split like any document; memory stays far below what its tokens would take as one."""
    text = "The river runs past the mill and the old bridge. " * SENTENCES
    data = tmp_path / "long.jsonl"
    data.write_text(json.dumps({"text": text}) + "\n")
    assert data.stat().st_size > 48 * SENTENCES
    words = ["compress", str(data), "--model", str(works.e2e), "--ratio", "4", "--dry-run"]
    command = [sys.executable, "-c", MEASURED, *words, "--json", "--quiet"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["documents"] == 1 and result["passages"] == SENTENCES
    assert int(run.stderr.split()[-1]) < 4 * 2**20  # kilobytes


def test_ids_titles_and_texts_may_hold_anything(works, report, tmp_path):
    odd = ["a/b", "two\nlines", "../../up", "nul\x00", "🎉", " "]
    records = [{"id": name, "title": name, "text": f"{name} مرحبا 東京 </s>"} for name in odd]
    tiny_world.write_jsonl(tmp_path / "odd.jsonl", records)
    compressed(tmp_path / "odd.jsonl", works, tmp_path / "out.clara", report)
    passages = list(Corpus.open(tmp_path / "out.clara").passages())
    assert [p.document_id for p in passages if p.start == 0] == odd
    texts = ["".join(p.text for p in passages if p.document_id == name) for name in odd]
    assert texts == [record["text"] for record in records]
    assert {path.name for path in tmp_path.iterdir()} == {"odd.jsonl", "out.clara"}


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_pickle_with_code_in_it_is_not_run(recorded_copy, works, report, tmp_path):
    trap = tmp_path / "ran"
    torch.save({"decoder_adapter": Touch(str(trap))}, recorded_copy / "adapters.pth")
    with pytest.raises(ArtefactError, match="adapters.pth"):
        compressed(works.documents, dataclasses.replace(works, e2e=recorded_copy), trap, report)
    (recorded_copy / "adapters.pth").write_bytes(pickle.dumps(Touch(str(trap))))
    with pytest.raises(ArtefactError, match="adapters.pth"):
        compressed(works.documents, dataclasses.replace(works, e2e=recorded_copy), trap, report)
    assert not trap.exists()


@pytest.fixture
def recorded_copy(works, tmp_path):
    """A folder in the released form, as far as its weights."""
    folder = tmp_path / "released"
    folder.mkdir()
    config = {"decoder_model_name": str(works.backbone), "compr_rate": 16, "doc_max_length": 64}
    config |= {"lora_r": 4, "training_stage": "stage2", "model_type": "CLaRa"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", "__import__('os').system('touch ran')"),
        ("prompt_version", "$(touch ran)"),
        ("memory_tokens", "__import__('os').mkdir('ran')"),
        ("ratios", [{"__class__": "os.system"}]),
    ],
)
def test_code_in_a_clara_json_is_text(works, report, tmp_path, monkeypatch, key, value):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    for name, data in tiny_world.files(works.e2e / "checkpoint").items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(data)
    record = json.loads((model / "clara.json").read_text())
    assert key in record
    (model / "clara.json").write_text(json.dumps(record | {key: value}))
    with pytest.raises(ClaraError):
        compress.run(tiny_world.compress(works.documents, model, tmp_path / "out.clara"), report)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.clara").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("opened", [gzip.open, lzma.open], ids=["gz", "xz"])
def test_an_archive_bomb_takes_little_memory(works, tmp_path, opened):
    bomb = tmp_path / f"bomb.jsonl.{'gz' if opened is gzip.open else 'xz'}"
    with opened(bomb, "wb") as stream:
        for _ in range(320):
            stream.write(bytes(2**20))
    assert bomb.stat().st_size < 2**19
    words = ["compress", str(bomb), "--model", str(works.e2e), "--ratio", "4"]
    command = [sys.executable, "-c", MEASURED, *words, "--out", str(tmp_path / "out.clara")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == DataError.code and ":1: a line longer than 16 MiB" in run.stderr
    assert int(run.stderr.split()[-1]) < 2**20  # kilobytes: the program itself takes half of it
    assert not (tmp_path / "out.clara" / "manifest.json").exists()
