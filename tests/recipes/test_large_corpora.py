"""The page on a corpus of 21 million passages has what its script computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / "recipes" / "large-corpora"


def printed(*options: str) -> str:
    command = [sys.executable, str(FOLDER / "plan.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_page_has_the_tables_that_the_script_prints():
    assert printed() in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_bytes_and_hours_follow_the_passages_and_the_rate():
    tables = printed("--passages", "1024000", "--gpu-rate", "1000")
    # 16 x 4096 numbers of two bytes, of one or of half of one with scales; 1,024 passages a shard
    assert "| 16 (16x) | 134 GB | 67.2 GB | 37.7 GB | 67.2 MB |" in tables
    assert "manifest, 1,000 shards" in tables
    assert "compress, 7B, H100 (1000.0 passages/s) | 0 GPU | 0.0, 0.0, 0.0 |" in tables
    hours = printed("--passages", "36000000", "--gpu-rate", "10")
    assert "| 1,000 GPU | 125.0, 62.5, 31.2 |" in hours
