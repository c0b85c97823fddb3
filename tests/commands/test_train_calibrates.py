"""A run that keeps records aside calibrates the support of its checkpoint on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_world

from clara_cli.answering.reading import Generated
from clara_cli.answering.support import read_calibrations
from clara_cli.commands import train
from clara_cli.core.batch import AnswerExample
from clara_cli.core.checkpoint import read_info
from clara_cli.training import calibrate as calibrating
from clara_cli.training.calibrate import controls, holds
from clara_cli.training.validation import Example

MANY = [(f"Town{n:02}", f"Ann{n:02} Lee{n:02}") for n in range(60)]


@pytest.fixture
def aside(tmp_path: Path) -> Path:
    return tiny_world.write_jsonl(tmp_path / "aside.jsonl", tiny_world.questions(MANY, pool=2))


def examples(count: int = 8) -> list[Example]:
    made = []
    for town, name in MANY[:count]:
        text = tiny_world.sentence(town, name)
        made.append(Example(AnswerExample(f"Who is mayor of {town}?", name, (text,)), (name,)))
    return made


def test_every_question_is_asked_over_its_own_passages_and_over_others_without_its_answer():
    asked = examples()
    chosen = controls(asked)
    assert len(chosen) == 2 * len(asked)
    for own, wrong in zip(chosen[::2], chosen[1::2], strict=True):
        assert not own.wrong and wrong.wrong
        assert own.example.question == wrong.example.question
        assert holds(own.example.texts, [own.answers[0].lower()])
        assert not holds(wrong.example.texts, [own.answers[0].lower()])
        assert own.beside not in {*own.example.texts, *wrong.example.texts}
    assert {one.example.question for one in chosen} == {one.given.question for one in asked}


def test_questions_without_answers_or_texts_are_no_controls():
    asked = examples(4)
    bare = Example(AnswerExample("Who?", "x", ()), ("x",))
    silent = Example(AnswerExample("Who?", "", ("A text.",)), ())
    assert len(controls([*asked, bare, silent])) == 8
    assert controls(asked[:1]) == []


def answers_from_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator finds the name in what it is given: right over its own passages alone."""
    by_ids: dict[tuple[int, ...], str] = {}
    read_prompt = calibrating.read_prompt

    def remembered(held_out: Any, example: AnswerExample) -> Any:
        prompt = read_prompt(held_out, example)
        town = example.question.removeprefix("Who is mayor of ").removesuffix("?")
        named = [text for text in example.texts if town in text]
        by_ids[id(prompt)] = named[0].split(" is ")[1].rstrip(".") if named else "nobody there"
        return prompt

    def generated(model: Any, prompts: Any, tokens: int) -> list[Generated]:
        texts = [by_ids[id(prompt)] for prompt in prompts]
        return [Generated(model.prompter.ids(text), text, -0.5) for text in texts]

    monkeypatch.setattr(calibrating, "read_prompt", remembered)
    monkeypatch.setattr(calibrating, "generate", generated)


@pytest.mark.parametrize("read", ["memory", "text"])
def test_a_run_writes_the_calibration_of_how_its_checkpoint_reads(
    works, report, tmp_path, monkeypatch, aside, read
):
    answers_from_passages(monkeypatch)
    text = {"text_share": 1.0, "train_roles": ("generator",)} if read == "text" else {}
    run = tmp_path / "run"
    changes = {"validation": (str(aside),), "validate_every": 3, **text}
    train.run(tiny_world.train(works.questions, works.scp, run, "instruct", **changes), report)
    info = read_info(run / "checkpoint")
    calibrations = read_calibrations(run / "checkpoint", info.fingerprint)
    assert list(calibrations) == [read] == [info.reading.mode]
    assert calibrations[read].with_text.probability.weights["facts"] > 0
    (summary,) = json.loads((run / "support.json").read_text()).values()
    assert summary["figures"]["text"]["auroc"][0] == 1.0
    assert summary["train"] + summary["figures"]["text"]["n"] == 2 * len(MANY)
    assert [point["threshold"] for point in summary["curve"]] == [n / 10 for n in range(1, 10)]
    assert any(f"calibrated on {2 * len(MANY)} answers" in note for note in report.notes)


def test_too_few_right_answers_leave_support_unjudged_and_say_so(works, report, tmp_path, aside):
    run = tmp_path / "run"
    changes = {"validation": (str(aside),), "validate_every": 3}
    train.run(tiny_world.train(works.questions, works.scp, run, "instruct", **changes), report)
    assert not (run / "checkpoint" / "support.json").exists()
    (note,) = [note for note in report.notes if "support stays unjudged" in note]
    assert "0 of" in note and "are right" in note


def test_a_text_reader_is_validated_on_text(works, report, tmp_path, aside, monkeypatch):
    """Its memory is not trained: what the checks measure is what it does."""
    from clara_cli.core.model import ClaraModel

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("memory was made")

    monkeypatch.setattr(ClaraModel, "encode", refuse)
    run = tmp_path / "run"
    changes = {"text_share": 1.0, "train_roles": ("generator",), "validate_limit": 4}
    changes |= {"validation": (str(aside),), "validate_every": 3}
    train.run(tiny_world.train(works.questions, works.scp, run, "instruct", **changes), report)
    (check,) = tiny_world.metrics(run, "validation.jsonl")
    assert torch.isfinite(torch.tensor(check["ce"])) and "f1" in check
