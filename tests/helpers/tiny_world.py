"""A world of a dozen sentences, and configs that train, compress and ask about it in a moment.

The tiny backbone reads bytes: 64-token passages are 64 characters. Everything computes on the CPU
in float32, so that the numbers are the same on a machine with a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from clara_cli.config import AskConfig, CompressConfig, IndexConfig, PretrainConfig, TrainConfig

FACTS = [
    ("Elmgate", "Nora Velden"),
    ("Frostmouth", "Ivo Sand"),
    ("Kestrel Bay", "Ada Marsh"),
    ("Low Harbour", "Tom Reed"),
    ("Pinewick", "Una Holt"),
    ("Quarrel", "Max Orme"),
    ("Redwater", "Lia Frost"),
    ("Stonebridge", "Ben Lark"),
]
MACHINE = {"device": "cpu", "dtype": "float32"}
LEARN = {
    **MACHINE,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "max_length": 1024,
    "tracker": "none",
}
FRESH = {"passage_tokens": 64, "ratios": (4, 16), "lora_rank": 4, "lora_alpha": 8}


def sentence(town: str, name: str) -> str:
    return f"The mayor of {town} is {name}."


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def pairs(facts: list[tuple[str, str]] = FACTS) -> list[dict[str, Any]]:
    """A question-answer list and, for every second fact, a paraphrase."""
    records: list[dict[str, Any]] = []
    for number, (town, name) in enumerate(facts):
        text = sentence(town, name)
        asked = {"question": [f"Who is mayor of {town}?"], "answers": [name], "docs": [text]}
        records.append({"data_type": "qa", **asked})
        if number % 2:
            said = {"question": [], "answers": [f"{name} leads {town}."], "docs": [text]}
            records.append({"data_type": "paraphrase", **said})
    return records


def questions(facts: list[tuple[str, str]] = FACTS, pool: int = 4) -> list[dict[str, Any]]:
    """A question a fact, with a pool of it and its neighbours."""
    records = []
    for number, (town, name) in enumerate(facts):
        near = [facts[(number + step) % len(facts)] for step in range(pool)]
        paragraphs = [
            {"title": near_town, "text": sentence(near_town, near_name), "gold": near_town == town}
            for near_town, near_name in near
        ]
        record = {"question": f"Who is mayor of {town}?", "answer": name, "paragraphs": paragraphs}
        records.append(record)
    return records


def documents() -> list[dict[str, Any]]:
    """The sentences, a long text that is cut into passages, an empty one, and another script."""
    long = " ".join(sentence(town, name) for town, name in FACTS[:4])
    facts = [
        {"id": f"d{n}", "title": town, "text": sentence(town, name), "rank": n}
        for n, (town, name) in enumerate(FACTS)
    ]
    rest = [
        {"id": "long", "text": long},
        {"id": "empty", "text": "  "},
        {"id": "odd/id", "title": "Wetter", "text": "Es schneit in Zürich. 雪が降る。"},
    ]
    return [*facts, *rest]


def scp(data: Path, backbone: Path | None, out: Path, **changes: Any) -> PretrainConfig:
    settings = {**LEARN, **FRESH, "pairs": (str(data),), "out": out, "steps": 6}
    return PretrainConfig(**{**settings, "backbone": backbone and str(backbone), **changes})


def train(data: Path, init: Path, out: Path, stage: str, **changes: Any) -> TrainConfig:
    settings = {**LEARN, "questions": (str(data),), "init": str(init), "out": out, "stage": stage}
    return TrainConfig(**{**settings, "steps": 3, "top_k": 2, **changes})


def compress(data: Path, model: Path, out: Path, **changes: Any) -> CompressConfig:
    settings = {**MACHINE, "inputs": (str(data),), "model": str(model), "out": out, "ratio": 4}
    return CompressConfig(**{**settings, **changes})


def index(corpus: Path, **changes: Any) -> IndexConfig:
    return IndexConfig(**{**MACHINE, "corpus": corpus, **changes})


def ask(question: str | None, corpus: Path | None, **changes: Any) -> AskConfig:
    named = () if corpus is None else (corpus,)
    longest = {} if changes.get("search") else {"max_new_tokens": 8}
    settings = {**MACHINE, "question": question, "corpus": named, **longest}
    return AskConfig(**{**settings, **changes})


def metrics(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def numbers(run: Path) -> list[list[Any]]:
    """A run's metrics without the time they took."""
    return [[line[key] for key in sorted(line) if key != "seconds"] for line in metrics(run)]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, by file and name."""
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, to the bit."""
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
