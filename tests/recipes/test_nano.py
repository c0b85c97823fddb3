"""nano's recipe: the invented world, its training files, and a few steps of its backbone."""

from __future__ import annotations

import importlib
import itertools
import random
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.core.checkpoint import load
from clara_cli.corpus.examples import read_pairs, read_questions

NANO = Path(__file__).parent.parent.parent / "recipes" / "nano"


def module(name: str):
    sys.path.insert(0, str(NANO))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(NANO))


world, data = module("world"), module("data")


@given(st.integers(0, 10**9), st.booleans())
def test_every_fact_is_in_its_passage_and_every_question_names_its_entity(seed, held_out):
    entry = world.entry(random.Random(seed), held_out)
    assert world.is_held_out(entry.title) == held_out
    retold = world.retell(entry, random.Random(seed))
    for fact in entry.facts:
        assert fact.value in entry.text and fact.value in retold
        assert all(entry.title in question for question in fact.questions)


def test_the_same_seed_gives_the_same_world_and_another_another():
    first, again, other = (
        [e.text for e in itertools.islice(world.entries(seed), 20)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_training_never_meets_a_held_out_entity():
    titles = {e.title for e in itertools.islice(world.entries(0), 3000)}
    assert not any(world.is_held_out(title) for title in titles)


def test_the_training_files_are_what_the_commands_read(tmp_path):
    data.write(tmp_path / "pairs.jsonl", data.pairs(30, 0))
    data.write(tmp_path / "questions.jsonl", data.questions(10, 0))
    pairs = read_pairs([str(tmp_path / "pairs.jsonl")])
    assert sum(p.kind == "paraphrase" for p in pairs) == 10
    assert all(a in p.texts[0] for p in pairs if p.kind == "qa" for a in p.answers)
    for question in read_questions([str(tmp_path / "questions.jsonl")]):
        gold = [p for p in question.pool if p.gold]
        assert len(question.pool) == data.POOL and len(gold) == 1
        assert question.answers[0] in gold[0].text


@pytest.fixture(scope="module")
def backbone_run(tmp_path_factory) -> Path:
    """Three steps of a tiny backbone, through its own command line."""
    folder = tmp_path_factory.mktemp("nano") / "run"
    train(folder, steps=3)
    return folder


def train(folder: Path, steps: int) -> None:
    backbone = module("backbone")
    before = sys.argv
    sys.argv = ["backbone.py", "--out", str(folder), "--steps", str(steps), "--batch", "4"]
    sys.argv += ["--hidden", "64", "--layers", "1", "--vocab", "600", "--minutes", "5"]
    try:
        backbone.main()
    finally:
        sys.argv = before


def test_the_backbone_trains_resumes_and_exports(backbone_run, tmp_path):
    state = torch.load(backbone_run / "last.pt", weights_only=True)
    assert state["progress"]["step"] == 3
    train(backbone_run, steps=5)
    assert torch.load(backbone_run / "last.pt", weights_only=True)["progress"]["step"] == 5
    module("export").export(backbone_run, tmp_path / "out", torch.float32)
    loaded = load(str(tmp_path / "out"), device="cpu", dtype="float32")
    assert loaded.info.ratios == (4, 8, 16, 32) and loaded.model.slots == 64


def test_the_exported_model_reads_what_the_backbone_read(backbone_run, tmp_path):
    """Same memory from the training script's own encoder and from the product's."""
    backbone = module("backbone")
    state = torch.load(backbone_run / "last.pt", weights_only=True)
    module("export").export(backbone_run, tmp_path / "out", torch.float32)
    loaded = load(str(tmp_path / "out"), device="cpu", dtype="float32")
    tokenizer = backbone.PreTrainedTokenizerFast.from_pretrained(backbone_run)
    model = backbone.build_model(len(tokenizer), 64, 1)
    model.load_state_dict(state["model"])
    memory = backbone.Memory(64, 64, 1.0)
    memory.load_state_dict(state["memory"])
    trainer = backbone.Trainer(model, memory, tokenizer, 0)
    text = "Elm Velden\nThe mayor of Elmgate is Nora Velden."
    with torch.no_grad():
        expected = trainer.compress([trainer.ids(text)], 16)
        row = loaded.model.prompter.passage(text)
        found = loaded.model.encode([row], "compressor", 16).memory_BMD
    assert (found - expected).abs().max() < 1e-4
    prompter = loaded.model.prompter
    asked = prompter.prompt(prompter.answer_chat("Who?", 1, 4))
    ours = trainer.background(1, 4) + trainer.ids("\n\nQuestion:Who?") + [trainer.assistant]
    assert len(asked) == len(ours)
    assert [i for i in asked if i < len(tokenizer)] == [i for i in ours if i >= 0]
