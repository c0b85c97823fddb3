"""The set of keys that does not grow in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.errors import ClaraError
from clara_cli.storage.disk_set import DiskSet

GROWTH = """
from pathlib import Path
from clara_cli.storage.disk_set import DiskSet

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

keys = DiskSet()
assert all(keys.add(f"{n:020x}") for n in range(20_000))
before = peak()
assert all(keys.add(f"{n * 7919:020x}-") for n in range(400_000))
assert len(keys) == 420_000
print(peak() - before)
"""


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_it_is_a_set(words):
    keys, known = DiskSet(), set()
    for word in words:
        assert keys.add(word) == (word not in known)
        known.add(word)
        assert word in keys and (word + "x" in keys) == (word + "x" in known)
    assert len(keys) == len(known) and sorted(keys) == sorted(known)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_where_it_was():
    ended = subprocess.run([sys.executable, "-c", GROWTH], check=True, capture_output=True)
    assert int(ended.stdout) < 4_000  # kB; as Python strings in a set it would be 50,000


def test_no_room_is_one_clear_error():
    keys = DiskSet()
    keys._table.execute("PRAGMA max_page_count = 2")
    with pytest.raises(ClaraError, match="temporary folder does not take"):
        for number in range(10_000):
            keys.add(f"{number:040}")
