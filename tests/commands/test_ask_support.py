"""Whether an answer comes from its passages: a calibration, and what it judges by."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import tiny_world

from clara_cli.answering import support
from clara_cli.answering.engine import AskOptions, Clara
from clara_cli.answering.reading import generate
from clara_cli.commands import ask
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.core.decode import log_likelihoods
from clara_cli.errors import ArtefactError

QUESTION = tiny_world.questions()[0]["question"]


def calibrated(works, folder: Path, **changes) -> Path:
    """The shared checkpoint with a calibration by likelihood alone."""
    checkpoint = folder / "calibrated"
    shutil.copytree(works.e2e / "checkpoint", checkpoint)
    zero = dict.fromkeys(support.TEXT_SIGNALS, 0.0)
    fit = {"weights": {**zero, "over_nothing": 2.0}, "bias": 0.5, "threshold": 0.6}
    info = json.loads((checkpoint / "clara.json").read_text())
    raw = {"format": "clara-support", "version": 1, "fingerprint": info["fingerprint"]}
    (checkpoint / "support.json").write_text(
        json.dumps({**raw, "text": fit, "memory": fit, **changes})
    )
    return checkpoint


def test_a_calibration_judges_by_the_answers_likelihood(works, tmp_path):
    path = calibrated(works, tmp_path)
    clara = Clara.open(works.corpus, model=str(path), device="cpu", dtype="float32")
    answer = clara.ask(QUESTION, top_k=2, max_new_tokens=8, explain=True)
    assert answer.support_method == "calibrated"
    gain = answer.explain.signals["over_nothing"]
    expected = 1 / (1 + torch.tensor(-(2 * gain + 0.5)).exp().item())
    assert answer.support == pytest.approx(expected, abs=1e-3)
    assert answer.supported == (answer.support >= 0.6)
    for read in ("text", "auto"):  # of those the calibration knows nothing
        other = clara.ask(QUESTION, top_k=2, max_new_tokens=8, read=read)
        assert (other.support, other.supported, other.support_method) == (None, None, None)


def test_a_follow_up_is_judged_on_what_it_stands_for(works, tmp_path, report):
    path = calibrated(works, tmp_path)
    config = tiny_world.ask(None, works.corpus, model=str(path), top_k=1, explain=True)
    session = ask.open_session(config, report)
    session.ask("Who is mayor of Quarrel?")
    pointing = session.ask("And its baker?").explain.signals["asked"]
    alone = ask.open_session(config, report).ask("And its baker?").explain.signals["asked"]
    assert pointing > alone


def test_likelihood_signals_compare_the_same_answer(clara):
    how = AskOptions(top_k=2, max_new_tokens=8)
    found = clara.find([QUESTION], how)
    prompt = clara.answerer.prompt(found[0], how)
    given = generate(clara.model, [prompt], 8)
    (signals,) = clara.answerer.signals(found, given)
    assert set(signals) == set(support.TEXT_SIGNALS)
    ids, memory_ND = [given[0].ids], prompt.memory_ND
    own = log_likelihoods(clara.model, [prompt.ids], ids, memory_ND)
    assert [signals["likelihood"]] == pytest.approx(own, abs=1e-4)
    prompter = clara.prompter
    bare = prompter.prompt(prompter.answer_chat(QUESTION, 0, 16))
    nothing = log_likelihoods(clara.model, [bare], ids, None)
    assert signals["over_nothing"] == pytest.approx(own[0] - nothing[0], abs=1e-4)
    (row,) = [r for r in range(len(clara.corpus)) if torch.equal(
        clara.corpus.memory([r])[0], clara._other(found[0])[0]
    )]  # fmt: skip
    assert row not in {hit.row for hit in found[0].hits}
    other = prompter.prompt(prompter.answer_chat(QUESTION, 1, 16))
    over = log_likelihoods(clara.model, [other], ids, clara.corpus.memory([row])[0])
    assert signals["over_other"] == pytest.approx(own[0] - over[0], abs=1e-4)
    assert clara.answerer.signals(found, [dataclasses.replace(given[0], ids=[])]) == [{}]


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 3},
        {"text": {}},
        {"text": None},
        {"memory": {"weights": 1}},
        {"version": 2},
        {"version": 2, "modes": {"text": {"text": {"weights": {}}}}},
    ],
)
def test_a_damaged_calibration_is_named(works, tmp_path, changes):
    path = calibrated(works, tmp_path, **changes)
    with pytest.raises(ArtefactError, match=r"support\.json: key '(version|text|memory|modes)"):
        support.read_calibrations(path, "x")


def test_each_way_of_reading_has_a_calibration_of_its_own(works, tmp_path):
    """Over text the answer is compared with the question alone; no other passage is read."""
    zero = dict.fromkeys(support.READ_TEXT_SIGNALS, 0.0)
    fit = {"weights": {**zero, "over_nothing": 2.0}, "bias": 0.5, "threshold": 0.6}
    path = calibrated(works, tmp_path, version=2, modes={"text": {"text": fit}})
    clara = Clara.open(works.corpus, model=str(path), device="cpu", dtype="float32")
    ways = {"top_k": 2, "max_new_tokens": 8, "explain": True}
    answer = clara.ask(QUESTION, read="text", **ways)
    signals = answer.explain.signals
    assert set(signals) == set(support.READ_TEXT_SIGNALS)
    how = AskOptions(top_k=2, max_new_tokens=8, read="text")
    prompt = clara.answerer.prompt(clara.find([QUESTION], how)[0], how)
    assert prompt.role == clara.answerer.text_role
    (given,) = generate(clara.model, [prompt], 8)
    bare = clara.prompter.prompt(clara.prompter.text_chat(QUESTION, []))
    (nothing,) = log_likelihoods(clara.model, [bare], [given.ids], None, prompt.role)
    assert signals["over_nothing"] == pytest.approx(given.likelihood - nothing, abs=1e-3)
    expected = 1 / (1 + torch.tensor(-(2 * signals["over_nothing"] + 0.5)).exp().item())
    assert answer.support == pytest.approx(expected, abs=1e-3)
    for read in ("memory", "auto"):
        assert clara.ask(QUESTION, read=read, **ways).support is None


def test_a_calibration_of_another_memory_space_is_left_alone(works, tmp_path):
    path = calibrated(works, tmp_path, fingerprint="other")
    info = load(LoadOptions(str(path), device="cpu")).info
    assert support.read_calibrations(path, info.fingerprint) == {}


def test_facts_are_names_and_numbers_else_words(clara):
    passages = [clara.corpus.passage(0)]
    share = support.text_signals("Who is mayor of Elmgate?", "Nora Velden in 1999", passages)
    assert share == {"facts": pytest.approx(2 / 3), "asked": 1.0}
    share = support.text_signals("Who is mayor of Quarrel?", "the mayor", passages)
    assert share == {"facts": 1.0, "asked": 0.0}
    assert support.text_signals("?", "", passages) == {"facts": 0.0, "asked": 0.0}
    for question, told in (("who leads Quarrel?", 0.0), ("Quarrel: who leads Elmgate?", 1.0)):
        assert support.text_signals(question, "the mayor", passages)["asked"] == told, question
