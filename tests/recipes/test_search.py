"""The measurements of search run, at a size that takes a moment, and say what they found."""

from __future__ import annotations

import importlib
import json
import lzma
import re
import sys
from pathlib import Path

import pytest
import torch

from clara_cli.commands import compress
from clara_cli.config import CompressConfig

RECIPES = Path(__file__).parent.parent.parent / "recipes"


def module(name: str):
    sys.path.insert(0, str(RECIPES / "search"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RECIPES / "search"))


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The sample corpus in the shape of the real files: a question a passage, long paragraphs."""
    lines = (RECIPES / "sample" / "corpus.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:60]]
    asked = [
        {
            "title": row["title"],
            "text": row["text"],
            "qas": [{"id": f"q{n}", "question": f"What is {row['title']}?", "answers": ["?"]}],
        }
        for n, row in enumerate(rows[:12])
    ]
    text = "\n".join(row["text"] for row in rows[12:])
    write(tmp_path / "data" / "squad" / "dev.jsonl.xz", asked)
    write(tmp_path / "data" / "wiki" / "part-00.jsonl.xz", [{"title": "All", "text": text}])
    return tmp_path / "data"


def test_the_tables_are_made_from_documents_to_figures(data, tmp_path, report):
    passages, keys = module("passages"), module("keys")
    made = tmp_path / "run"
    assert passages.write(data, made, 40)[1] == 40
    corpus = tmp_path / "search.clara"
    inputs = (str(made / "documents.jsonl"),)
    config = CompressConfig(inputs=inputs, model="nano", ratio=16, out=corpus, device="cpu")
    assert compress.run(config, report).passages == 40
    torch.manual_seed(0)
    said = keys.run(corpus, made / "questions.jsonl", 6, seed=0)
    assert said.startswith("40 passages, 6 questions, seed 0")
    curve = [line for line in said.splitlines() if re.match(r"\| (mean|means|proj|pca)", line)]
    assert len(curve) == 4 and "No key reaches 0.98 within 5%" in said  # 5 % of 40 is 2
    for line in curve:
        figures = [float(cell) for cell in line.split("|")[2:-1]]
        assert figures == sorted(figures) and 0 <= figures[0] <= figures[-1] <= 1
    table = [line for line in said.splitlines() if re.match(r"\| (exact|hnsw) ", line)]
    assert len(table) == 3 + 2 * 4
    assert float(table[0].split("|")[5]) == 1.0  # the exact scan against itself
