"""The script that judges anybody's pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "synth" / "gates.py"
TEXT = "The lighthouse of Kestrel Point was lit in 1871 by the engineer Odile Marrane."
PAIRS = {
    "When was the lighthouse of Kestrel Point lit?": "1871",
    "Who lit the lighthouse in the document?": "Odile Marrane",
    "When was the lighthouse of Kestrel Point painted?": "1899",
}


def test_pairs_are_counted_and_shown(tmp_path: Path) -> None:
    record = {"data_type": "qa", "question": [*PAIRS], "answers": [*PAIRS.values()], "docs": [TEXT]}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(record) + "\n")
    command = [sys.executable, str(SCRIPT), str(pairs), "--show", "5"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    *shown, totals = map(json.loads, run.stdout.splitlines())
    assert totals == {"pairs": 3, "passed": 1, "document": 1, "numbers": 1}
    assert {line["gate"] for line in shown} == {"document", "numbers"}
    assert all(line["source"] == f"{pairs}:1" for line in shown)
