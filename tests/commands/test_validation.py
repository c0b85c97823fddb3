"""Checks while training: what they measure, which weights they keep, when they end a run; and what
else a run folder holds."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import math
import random
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import processes, tiny_world

from clara_cli.cli.show.json_line import result_json
from clara_cli.commands import pretrain, train
from clara_cli.core.batch import answer_batch
from clara_cli.core.checkpoint import LoadOptions, load, read_info
from clara_cli.core.stage_losses import read_memory_loss
from clara_cli.distributed.ranks import Ranks
from clara_cli.documents.examples import read_questions
from clara_cli.errors import ClaraError, Interrupted, UsageError
from clara_cli.extras import install_command
from clara_cli.records import Question
from clara_cli.storage.errors import cannot_write
from clara_cli.training import (
    loop,
    run_folder,
    runner,
    sampling,
    scp,
    trackers,
    validation_schedule,
)
from clara_cli.training.instruct import Instruct
from clara_cli.training.run_folder import RunFolder

KEPT = tiny_world.FACTS[:3]  # validated on


def go(works, out: Path, stage: str, report: Any, **changes: Any) -> Any:
    """A short run on all but the first three facts, validated on those; no dropout."""
    base = {"dropout": 0.0, "steps": 4, "validate_every": 2, **changes}
    held = out.with_suffix(".held.jsonl")
    if "validation_share" not in changes:
        records = tiny_world.pairs(KEPT) if stage == "scp" else tiny_world.questions(KEPT, pool=3)
        base["validation"] = (str(tiny_world.write_jsonl(held, records)),)
    if stage == "scp":
        return pretrain.run(tiny_world.scp(works.pairs, works.backbone, out, **base), report)
    init = works.scp if stage == "instruct" else works.instruct
    return train.run(tiny_world.train(works.questions, init, out, stage, **base), report)


def checked(run: Path) -> list[dict[str, Any]]:
    return tiny_world.metrics(run, "validation.jsonl")


FIGURES = {
    "scp": {"ce", "mse"},
    "instruct": {"ce", "mse", "em", "f1"},
    "retrieval": {"ce", "recall@1", "recall@3", "recall@5"},
    "e2e": {"ce", "em", "f1", "recall@1", "recall@3", "recall@5"},
}


@pytest.mark.parametrize("stage", FIGURES)
def test_a_check_measures_what_its_stage_is_about(works, report, tmp_path, stage):
    result = go(works, tmp_path / "run", stage, report)
    lines = checked(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert set(line) == {"step", *FIGURES[stage]}
        shares = [line[name] for name in line if name not in ("step", "ce", "mse")]
        assert all(0 <= share <= 1 for share in shares) and line["ce"] > 0
        assert line.get("recall@3", 1.0) == 1.0  # pools of three
    assert result.validation.keys() == FIGURES[stage] and result.best_step in (2, 4)
    assert "best_step" not in result_json(result)


def test_the_loss_of_a_check_is_that_of_the_checkpoint_over_all_answer_tokens(
    works, report, tmp_path
):
    go(works, tmp_path / "run", "instruct", report, steps=2, micro_batch=2)
    model = load(LoadOptions(str(tmp_path / "run"), device="cpu", dtype="float32")).model
    examples = [
        Instruct.example(
            question, tiny_world.train(Path("x"), Path("y"), Path("z"), "instruct"), rng
        )
        for question in read_questions([str(tmp_path / "run.held.jsonl")])
        for rng in [random.Random(0)]
    ]
    batch = answer_batch(model.prompter, examples, 4, 1024)
    with torch.no_grad():
        expected = read_memory_loss(model, batch, 0.1)
    assert checked(tmp_path / "run")[-1]["ce"] == pytest.approx(expected.ce, abs=1e-5)
    assert checked(tmp_path / "run")[-1]["mse"] == pytest.approx(expected.mse, abs=1e-6)


def test_answers_are_right_where_the_model_says_them(works, report, tmp_path, monkeypatch):
    """A decoder that says the gold answer scores 1, one that says half of it a part of F1."""
    said = iter([["Nora Velden", "Ivo", "nobody"]])
    monkeypatch.setattr("clara_cli.training.validation.greedy", lambda *_: next(said))
    changes = {"steps": 1, "batch_size": 3, "validate_every": 1}
    go(works, tmp_path / "run", "instruct", report, **changes)
    (line,) = checked(tmp_path / "run")
    assert line["em"] == pytest.approx(1 / 3) and line["f1"] == pytest.approx((1 + 2 / 3) / 3)


def steered(monkeypatch, values: list[float]) -> None:
    """Checks whose loss is what the test says."""
    rest = iter(values)
    monkeypatch.setattr("clara_cli.training.validation.measure", lambda *_: {"ce": next(rest)})


def test_the_best_weights_become_the_checkpoint_and_the_last_ones_stay(
    works, report, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    steered(monkeypatch, [2.0, 1.0, 1.5])
    result = go(works, run, "scp", report, steps=3, validate_every=1)
    assert (result.steps, result.best_step, result.validation) == (3, 2, {"ce": 1.0})
    steered(monkeypatch, [3.0, 2.0])
    shorter = {"steps": 3, "validate_every": 1, "patience": None}
    with pytest.raises(Interrupted):
        go(works, tmp_path / "two", "scp", Stopping(2), **shorter)
    at_two, ours = tiny_world.tensors(tmp_path / "two" / "last"), tiny_world.tensors(run / "best")
    assert all(torch.equal(ours[name], at_two[name]) for name in ours)
    best, last = (read_info(run / name) for name in ("checkpoint", "checkpoint-last"))
    assert (best.provenance[-1]["steps"], last.provenance[-1]["steps"]) == (2, 3)
    assert best.provenance[-1]["validation"] == {"ce": 1.0}
    assert not tiny_world.same(run / "checkpoint", run / "checkpoint-last")
    assert load(LoadOptions(str(run / "checkpoint-last"), device="cpu")).info.stage == "scp"


class Stopping:
    """A report that stops the run after a step."""

    def __init__(self, stop_at: int) -> None:
        self.left = stop_at

    def progress(self, progress: Any) -> None:
        self.left -= progress.done > 0
        if not self.left:
            raise KeyboardInterrupt

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


def test_a_run_that_ends_by_the_clock_is_checked_at_its_end(works, report, tmp_path, monkeypatch):
    """Else what was learned since the last check would be thrown away."""
    monkeypatch.setattr(loop.Schedule, "over", lambda self, step, seconds: step == 3)
    settings = {"validate_every": 2, "minutes": 9.0, "steps": 50}
    go(works, tmp_path / "run", "instruct", report, **settings)
    assert [line["step"] for line in tiny_world.metrics(tmp_path / "run", "validation.jsonl")] == [
        2,
        3,
    ]


def test_a_check_shows_how_far_it_is(works, heard, tmp_path):
    report = heard()
    go(works, tmp_path / "run", "instruct", report, steps=2, batch_size=2)
    shown = [(p.done, p.total, p.unit) for p in report.seen if p.task == "check"]
    assert shown == [(0, 3, "records"), (2, 3, "records"), (3, 3, "records")]


def test_patience_ends_a_run_early_and_it_is_finished(works, report, tmp_path, monkeypatch):
    steered(monkeypatch, [1.0, 1.0, 1.2, 0.1])
    changes = {"steps": 50, "validate_every": 1, "patience": 2}
    result = go(works, tmp_path / "run", "scp", report, **changes)
    assert (result.steps, result.best_step) == (3, 1)
    again = go(works, tmp_path / "run", "scp", report, **changes)
    assert "is finished" in report.notes[-1] and again.best_step == 1


def test_a_validated_run_goes_on_to_the_bit(works, heard, report, tmp_path):
    changes = {"steps": 4, "validate_every": 1}
    go(works, tmp_path / "whole", "e2e", report, **changes)
    shutil.copy(tmp_path / "whole.held.jsonl", tmp_path / "run.held.jsonl")
    same = {**changes, "validation": (str(tmp_path / "whole.held.jsonl"),)}
    config = tiny_world.train(works.questions, works.instruct, tmp_path / "run", "e2e", dropout=0.0)
    config = type(config)(**{**config.__dict__, **same})
    with pytest.raises(Interrupted):
        train.run(config, heard(stop_at=2))
    (tmp_path / "run" / "validation.jsonl").open("a").write('{"step": 2, "ce"')  # killed
    train.run(config, report)
    assert checked(tmp_path / "run") == checked(tmp_path / "whole")
    assert tiny_world.numbers(tmp_path / "run") == tiny_world.numbers(tmp_path / "whole")
    assert tiny_world.same(tmp_path / "run" / "checkpoint", tmp_path / "whole" / "checkpoint")


def test_a_share_kept_aside_is_never_trained_on(works, report, tmp_path, monkeypatch):
    seen: set[str] = set()
    build = scp.scp_batch

    def spy(prompter, pairs, *rest):
        if torch.is_grad_enabled():
            seen.update(pair.source for pair in pairs)
        return build(prompter, pairs, *rest)

    monkeypatch.setattr(scp, "scp_batch", spy)
    changes = {"validation_share": 0.25, "steps": None, "validate_every": None}
    go(works, tmp_path / "run", "scp", report, **changes)
    info = read_info(tmp_path / "run" / "checkpoint")
    assert len(seen) == info.provenance[-1]["records"] == 9  # of twelve


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("scp", {"best_by": "em"}, "best_by is 'em', which scp does not measure"),
        ("e2e", {"validation_share": 0.5, "validation": ("x",)}, "were both given"),
        ("scp", {"validation": (), "patience": 2}, "patience is 2, but nothing is kept aside"),
        ("scp", {"validation": (), "validate_every": 2}, "validate_every is 2, but nothing"),
        ("scp", {"validation_share": 0.01}, "validation_share = 0.01 of 12 records"),
    ],
)
def test_validation_that_cannot_be_is_refused(works, report, tmp_path, stage, changes, message):
    base = {"validation": ()} if "validation_share" in changes else {}
    config = tiny_world.scp(works.pairs, works.backbone, tmp_path / "run", **{**base, **changes})
    if stage == "e2e":
        config = tiny_world.train(
            works.questions, works.instruct, tmp_path / "run", stage, **changes
        )
    with pytest.raises(UsageError, match=message):
        (pretrain if stage == "scp" else train).run(config, report)
    assert not (tmp_path / "run").exists()


def test_two_processes_measure_what_one_does_sharded_or_not(works, report, tmp_path):
    go(works, tmp_path / "one", "e2e", report, steps=2)
    for name, fsdp in (("two", False), ("cut", True)):
        work = {"steps": 2, "fsdp": fsdp}
        processes.ranks(
            lambda rank, w=work, n=name: go(works, tmp_path / n, "e2e", report, **w).steps
        )
        for ours, theirs in zip(checked(tmp_path / name), checked(tmp_path / "one"), strict=True):
            assert ours == {key: pytest.approx(theirs[key], abs=1e-5) for key in theirs}
        assert load(LoadOptions(str(tmp_path / name), device="cpu")).info.stage == "e2e"


# --- what else is in the folder ---


def test_the_run_folder_says_what_it_was_computed_with(works):
    (line,) = tiny_world.metrics(works.scp, "environment.jsonl")
    assert line["torch"] == torch.__version__ and line["processes"] == 1 and line["began"]
    settings = json.loads((works.scp / "run.json").read_text())
    assert len(settings["data_sha256"]) == 64 and settings["seed"] == 0


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="needs the plot extra")
def test_the_losses_are_drawn_where_matplotlib_is(works, report, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "find_spec", importlib.util.find_spec)
    go(works, tmp_path / "run", "e2e", report, steps=2)
    drawn = (tmp_path / "run" / "losses.svg").read_text()
    assert "<svg" in drawn and not any("[plot]" in note for note in report.notes)


def test_without_matplotlib_it_is_said_once(works, report, tmp_path):
    go(works, tmp_path / "run", "scp", report, steps=1)
    assert [n for n in report.notes if "[plot]" in n] == [
        f"no plot of the losses: {install_command('plot')} brings what draws it"
    ]
    assert not (tmp_path / "run" / "losses.svg").exists()


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="needs tensorboard")
def test_tensorboard_in_the_run_folder_has_every_step_and_check(works, report, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    go(works, tmp_path / "run", "scp", report, tracker="auto", steps=2, validate_every=1)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    shown = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in ("train/ce",)}
    assert shown["train/ce"] == [
        (line["step"], pytest.approx(line["ce"])) for line in tiny_world.metrics(tmp_path / "run")
    ]
    assert [e.step for e in events.Scalars("validation/ce")] == [1, 2]


def test_a_tracker_that_is_not_installed_is_refused_by_name_and_missed_by_default(
    works, report, tmp_path, monkeypatch
):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="tracker is wandb, which is not installed") as caught:
        go(works, tmp_path / "named", "scp", report, tracker="wandb")
    assert "[trackers]" in caught.value.hint and not (tmp_path / "named").exists()
    go(works, tmp_path / "auto", "scp", report, tracker="auto", steps=1)
    assert f"no TensorBoard files: {install_command('trackers')} brings tensorboard" in report.notes


# --- a full disk ---


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_full_while_the_state_is_saved_keeps_the_state_before(
    works, heard, report, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        go(works, run, "scp", heard(stop_at=2))
    before = tiny_world.tensors(run / "last")
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_tensors", full)
        usage = namedtuple("usage", "total used free")(9, 9, 1234)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        needed = sum(t.numel() * 4 for t in before.values())
        message = rf"no space left: {needed:,} bytes needed, 1,234 free"
        with pytest.raises(ClaraError, match=message):
            go(works, run, "scp", report)
    assert not (run / "last.writing").exists()
    kept = tiny_world.tensors(run / "last")
    assert all(torch.equal(kept[name], before[name]) for name in before)
    go(works, run, "scp", report)
    go(works, tmp_path / "whole", "scp", report)
    assert tiny_world.numbers(run) == tiny_world.numbers(tmp_path / "whole")
    assert tiny_world.same(run / "checkpoint", tmp_path / "whole" / "checkpoint")


def test_a_disk_full_while_a_line_is_written_changes_no_parameter(
    works, report, tmp_path, monkeypatch
):
    run, log, written = tmp_path / "run", RunFolder.log, []

    def filling(folder, file, line, prefix="train/"):
        written.append(line)
        if len(written) == 2:
            with file.path.open("a") as stream:
                stream.write('{"step": 2, "lo')
            cannot_write(file.path, 99, OSError(errno.ENOSPC, "No space left on device"))
        log(folder, file, line, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", filling)
        with pytest.raises(ClaraError, match=r"metrics.jsonl: no space left: 99 bytes"):
            go(works, run, "scp", report)
    assert json.loads((run / "last" / "step.json").read_text()) == {"step": 1}
    go(works, run, "scp", report)
    go(works, tmp_path / "whole", "scp", report)
    assert tiny_world.numbers(run) == tiny_world.numbers(tmp_path / "whole")


def test_a_disk_full_while_the_checkpoint_is_written_leaves_none(
    works, report, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("clara_cli.core.checkpoint.save_tensors", full)
        with pytest.raises(ClaraError, match="checkpoint: no space left: .* bytes needed"):
            go(works, tmp_path / "run", "scp", report, steps=1)
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert not (tmp_path / "run" / "checkpoint.writing").exists()
    assert go(works, tmp_path / "run", "scp", report, steps=1).steps == 1


# --- pure parts ---


def test_the_best_check_is_the_first_of_the_best():
    lines = [
        {"step": n, "ce": ce, "em": em} for n, ce, em in ((1, 2, 0.1), (2, 1, 0.3), (3, 1, 0.3))
    ]
    assert (
        validation_schedule.best(lines, "ce")["step"] == 2
        and validation_schedule.best(lines, "em")["step"] == 2
    )
    assert validation_schedule.best([], "ce") is None


def test_batches_by_length_read_every_record_once_and_repeat(works):
    config = tiny_world.scp(works.pairs, works.backbone, Path("unused"), batch_size=8)
    config = type(config)(**{**config.__dict__, "group_by_length": True})
    lengths = [random.Random(n).randrange(1000) for n in range(1003)]
    steps = sampling.count_steps(type(config)(**{**config.__dict__, "steps": None}), len(lengths))

    def spread(step: int) -> int:
        picked = sampling.sample_step(config, step, lengths, lambda n: n)[0]
        assert len(picked) == (8 if step < steps - 1 else 3)
        return max(picked) - min(picked)

    seen = [n for step in range(steps) for n in sampling.sample_step(config, step, lengths, int)[0]]
    assert sorted(seen) == sorted(lengths)
    assert sum(map(spread, range(steps))) / steps < 100  # a random batch spans about 780
    assert (
        sampling.sample_step(config, 70, lengths, int)[0]
        == sampling.sample_step(config, 70, lengths, int)[0]
    )
    again = [
        n for s in range(steps, 2 * steps) for n in sampling.sample_step(config, s, lengths, int)[0]
    ]
    assert sorted(again) == sorted(lengths) and again != seen


def drawn_anew(config, step: int, count: int) -> list[int]:
    """What a step draws, its whole pass shuffled for it alone."""
    size = min(config.batch_size, count)
    number, place = divmod(step, math.ceil(count / size))
    order = list(range(count))
    random.Random(f"{config.seed} pass {number}").shuffle(order)
    if not config.group_by_length:
        return order[place * size : (place + 1) * size]
    window, place = divmod(place, sampling.WINDOW)
    order = order[window * sampling.WINDOW * size :][: sampling.WINDOW * size]
    order.sort(key=lambda n: n % 7)
    whole = len(order) // size * size
    starts = list(range(0, whole, size))
    random.Random(f"{config.seed} pass {number} window {window}").shuffle(starts)
    start = [*starts, whole][place]
    return order[start : start + size]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_pass_is_shuffled_once_and_drawn_as_if_for_each_step(works, monkeypatch, grouped):
    config = tiny_world.scp(works.pairs, works.backbone, Path("unused"), batch_size=4, seed=91)
    config = dataclasses.replace(config, group_by_length=grouped)
    steps = [*range(120), 3, 90, 0]  # of a little more than two passes, and back
    expected = [drawn_anew(config, step, 203) for step in steps]
    shuffled: list[int] = []

    class Counting(random.Random):
        def shuffle(self, x):
            shuffled.append(len(x))
            super().shuffle(x)

    monkeypatch.setattr(random, "Random", Counting)
    assert [
        sampling.sample_step(config, s, range(203), lambda n: n % 7)[0] for s in steps
    ] == expected
    assert shuffled.count(203) <= 5


def test_the_length_of_a_question_is_taken_once(works, report, monkeypatch, tmp_path):
    taken: list[int] = []

    class Counted(Question):
        def __repr__(self) -> str:
            taken.append(1)
            return super().__repr__()

    config = tiny_world.train(works.questions, works.instruct, tmp_path, "instruct", steps=9)
    config = dataclasses.replace(config, group_by_length=True)
    names = [field.name for field in dataclasses.fields(Question)]
    read = read_questions(config.questions)
    questions = [Counted(**{name: getattr(q, name) for name in names}) for q in read]
    stage = Instruct(
        config, load(LoadOptions(config.init, device="cpu")), questions, Ranks(), report
    )
    for step in range(9):
        stage.visits(step)
    assert len(taken) == len(questions)
