"""pretrain and train: what they write, what they repeat to the bit, and how they stop."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import tiny_world

from clara_cli.cli.show.json_line import result_json
from clara_cli.commands import pretrain, train
from clara_cli.core.checkpoint import LoadOptions, load, read_info
from clara_cli.core.stage_losses import TRAINED
from clara_cli.errors import ArtefactError, ClaraError, DataError, Interrupted, UsageError
from clara_cli.training import loop, runner, sampling, scp
from clara_cli.training.run_folder import RunFolder

KEYS = {"step", "loss", "ce", "mse", "lr", "tokens", "seconds"}
RESULT = ["checkpoint", "stage", "steps", "ce", "mse", "seconds", "tokens_per_second"]
STAGES = ("scp", "instruct", "e2e")


def go(works, out: Path, stage: str, report, **changes):
    """A stage's run as the shared ones were made, but for `changes`."""
    if stage == "scp":
        backbone = changes.pop("backbone", works.backbone)
        return pretrain.run(tiny_world.scp(works.pairs, backbone, out, **changes), report)
    init = works.scp if stage == "instruct" else works.instruct
    return train.run(tiny_world.train(works.questions, init, out, stage, **changes), report)


# --- what a run writes ---


@pytest.mark.parametrize("stage", STAGES)
def test_metrics_have_a_line_a_step_with_the_keys_of_the_contract(works, stage):
    run = getattr(works, stage)
    lines = tiny_world.metrics(run)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    for line in lines:
        assert line.keys() >= KEYS
        assert (line["mse"] is None) == (stage == "e2e")
        expected = line["ce"] + (0.1 * line["mse"] if line["mse"] is not None else 0.0)
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert line["tokens"] > 0 and line["seconds"] >= 0 and line["lr"] > 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_says_what_made_it_and_holds_the_roles(works, stage):
    info = read_info(getattr(works, stage) / "checkpoint")
    roles = {"compressor", "generator"} | ({"query_reasoner"} if stage == "e2e" else set())
    assert set(info.roles) == roles and info.stage == stage
    assert (info.max_passage_tokens, info.memory_tokens, info.ratios) == (64, 16, (4, 16))
    assert [entry["stage"] for entry in info.provenance] == list(STAGES[: STAGES.index(stage) + 1])
    assert info.provenance[-1]["records"] == len(
        tiny_world.pairs() if stage == "scp" else tiny_world.FACTS
    )


def test_each_stage_trains_its_roles_and_no_other(works):
    scp, instruct, e2e = (tiny_world.tensors(getattr(works, s) / "checkpoint") for s in STAGES)

    def changed(before: dict, after: dict) -> set[str]:
        return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}

    assert changed(scp, instruct) == {"compressor", "generator"}
    assert changed(instruct, e2e) == {"generator"}
    start = {key.replace("compressor", "query_reasoner", 1): t for key, t in instruct.items()}
    moved = changed({k: t for k, t in start.items() if k.startswith("query_reasoner")}, e2e)
    assert moved == {"query_reasoner"}


def test_the_memory_space_is_kept_by_e2e_and_changed_by_instruct(works):
    prints = [read_info(getattr(works, s) / "checkpoint").fingerprint for s in STAGES]
    assert prints[0] != prints[1] == prints[2]


def test_the_result_has_the_contracts_keys_and_the_last_steps_means(works, report, tmp_path):
    result = go(works, tmp_path / "run", "scp", report, steps=2)
    assert list(result_json(result)) == RESULT
    last = tiny_world.metrics(tmp_path / "run")[-1]
    assert (result.stage, result.steps) == ("scp", 2)
    assert result.ce == pytest.approx(last["ce"], abs=1e-6)
    assert result.mse == pytest.approx(last["mse"], abs=1e-6)
    assert result.checkpoint == str(tmp_path / "run" / "checkpoint")
    assert report.steps == 2 and result.tokens_per_second > 0


def test_a_bundled_backbone_travels_with_the_checkpoint(works, report, tmp_path):
    bundled = tmp_path / "bundled"
    shutil.copytree(works.scp / "checkpoint", bundled)
    shutil.copytree(works.backbone, bundled / "backbone")
    config = tiny_world.train(works.questions, bundled, tmp_path / "run", "instruct", steps=1)
    train.run(config, report)
    shutil.rmtree(bundled)
    made = tmp_path / "run" / "checkpoint"
    assert tiny_world.files(made / "backbone") == tiny_world.files(works.backbone)
    assert load(LoadOptions(str(made), device="cpu")).info.stage == "instruct"


# --- numbers ---

CURVE = [
    *[6.17938, 6.11152, 5.87340, 5.79873, 5.60261, 5.65549, 5.37628, 5.45131, 5.47499, 5.28361],
    *[5.27312, 5.23532, 5.04342, 5.34307, 5.09610, 5.18516, 4.96647, 5.08820, 5.15742, 5.02091],
]


def test_the_loss_curve_of_twenty_steps_is_the_recorded_one(works, report, tmp_path):
    """No dropout, whose random numbers differ between processors."""
    changes = {"steps": 20, "batch_size": 4, "learning_rate": 3e-3, "dropout": 0.0}
    go(works, tmp_path / "run", "scp", report, **changes)
    found = [line["loss"] for line in tiny_world.metrics(tmp_path / "run")]
    assert found == pytest.approx(CURVE, rel=1e-3)


def test_sixty_steps_on_four_records_overfit(works, report, tmp_path):
    data = tiny_world.write_jsonl(tmp_path / "four.jsonl", tiny_world.pairs()[:4])
    changes = {"steps": 60, "batch_size": 4, "dropout": 0.0, "learning_rate": 2e-2}
    pretrain.run(tiny_world.scp(data, works.backbone, tmp_path / "run", **changes), report)
    lines = tiny_world.metrics(tmp_path / "run")
    assert lines[-1]["ce"] < 0.6 * lines[0]["ce"]


@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_make_the_same_step_as_the_whole_batch(works, report, tmp_path, stage):
    """Answers and alignment both weigh as in the whole batch, whatever the parts' lengths."""
    changes = {"steps": 3, "dropout": 0.0, "batch_size": 5, "clip": 1e9}
    if stage != "scp":
        changes["top_k"] = 1
    go(works, tmp_path / "whole", stage, report, **changes)
    go(works, tmp_path / "parts", stage, report, **changes, micro_batch=2)
    for whole, parts in zip(
        tiny_world.metrics(tmp_path / "whole"), tiny_world.metrics(tmp_path / "parts"), strict=True
    ):
        for key in ("loss", "ce", "mse", "lr"):
            assert parts[key] == (whole[key] and pytest.approx(whole[key], rel=1e-5)), key


@pytest.mark.parametrize("stage", TRAINED)
def test_bfloat16_stays_within_two_percent_of_float32(works, report, tmp_path, stage):
    """Of six steps on the same batches; the roles' own weights stay in float32, so that steps too
    small for bfloat16 are not lost."""
    changes = {"steps": 6, "dropout": 0.0, "learning_rate": 1e-3}
    if stage == "retrieval":
        changes["temperature"] = 0.5
    for dtype in ("float32", "bfloat16"):
        go(works, tmp_path / dtype, stage, report, **changes, dtype=dtype)
    exact, rounded = (
        [line["loss"] for line in tiny_world.metrics(tmp_path / dtype)]
        for dtype in ("float32", "bfloat16")
    )
    assert rounded == pytest.approx(exact, rel=0.02) and rounded != exact
    kept = tiny_world.tensors(tmp_path / "bfloat16" / "checkpoint")
    assert {t.dtype for n, t in kept.items() if "lora_" in n} == {torch.float32}


def test_gradients_of_micro_batches_are_those_of_the_whole_batch(
    works, report, tmp_path, monkeypatch
):
    kept: list[dict[str, torch.Tensor]] = []

    def keep(optimizer, line, run, began):
        parameters = optimizer.param_groups[0]["params"]
        kept.append({str(n): p.grad.clone() for n, p in enumerate(parameters)})
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "update", keep)
    for name, micro in (("whole", None), ("parts", 2)):
        changes = {"dropout": 0.0, "batch_size": 5, "clip": 1e9, "mse_weight": 3.0}
        with pytest.raises(Interrupted):
            go(works, tmp_path / name, "scp", report, micro_batch=micro, **changes)
    whole, parts = kept
    for name, expected in whole.items():
        assert (parts[name] - expected).norm() <= 1e-5 * expected.norm() + 1e-7, name


def test_data_smaller_than_a_batch_is_one_batch(works, report, tmp_path):
    result = go(works, tmp_path / "run", "scp", report, steps=None, batch_size=100)
    assert result.steps == 1
    whole = go(
        works, tmp_path / "whole", "scp", report, steps=1, batch_size=len(tiny_world.pairs())
    )
    assert tiny_world.numbers(tmp_path / "run") == tiny_world.numbers(tmp_path / "whole")
    assert whole.steps == 1


def test_one_pass_reads_every_record_once(works):
    config = tiny_world.scp(works.pairs, works.backbone, Path("unused"), batch_size=5, steps=None)
    records = list(range(12))
    steps = sampling.count_steps(config, len(records))
    seen = [
        record
        for step in range(steps)
        for record in sampling.sample_step(config, step, records, int)[0]
    ]
    assert sorted(seen) == records
    again = [
        r
        for step in range(steps, 2 * steps)
        for r in sampling.sample_step(config, step, records, int)[0]
    ]
    assert sorted(again) == records and again != seen


# --- stopping and going on ---


@pytest.fixture(scope="module")
def unbroken(works, tmp_path_factory):
    """Runs of six steps that nothing interrupts, by stage."""
    folder = tmp_path_factory.mktemp("unbroken")

    def make(stage: str) -> Path:
        if not (folder / stage).exists():
            go(works, folder / stage, stage, Silence(), steps=6)
        return folder / stage

    return make


class Silence:
    """A report nobody listens to."""

    def progress(self, progress) -> None: ...

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


def assert_resumed_as_if_nothing_happened(run: Path, whole: Path) -> None:
    assert tiny_world.numbers(run) == tiny_world.numbers(whole)
    assert tiny_world.same(run / "checkpoint", whole / "checkpoint")


@pytest.mark.parametrize("stage", TRAINED)
def test_a_run_interrupted_after_a_step_goes_on_to_the_bit(
    works, unbroken, heard, report, tmp_path, stage
):
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="3 of 6 steps are kept") as caught:
        go(works, run, stage, heard(stop_at=3), steps=6)
    assert caught.value.code == 130 and "same command" in caught.value.hint
    assert not (run / "checkpoint").exists()
    result = go(works, run, stage, report, steps=6)
    assert report.steps == 3 and result.steps == 6
    assert_resumed_as_if_nothing_happened(run, unbroken(stage))


def test_a_run_short_of_memory_goes_on_in_smaller_passes(works, unbroken, heard, report, tmp_path):
    """Also in a folder whose settings recorded their size."""
    run, exact = tmp_path / "run", {"steps": 6, "dropout": 0.0}
    with pytest.raises(Interrupted):
        go(works, run, "scp", heard(stop_at=3), **exact)
    began = json.loads((run / "run.json").read_text())
    assert not {"micro_batch", "checkpointing"} & began.keys()
    (run / "run.json").write_text(json.dumps({**began, "micro_batch": 2, "checkpointing": False}))
    go(works, run, "scp", report, **exact, micro_batch=1, checkpointing=True)
    go(works, tmp_path / "whole", "scp", report, **exact)
    for one, other in zip(
        tiny_world.metrics(run), tiny_world.metrics(tmp_path / "whole"), strict=True
    ):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_a_run_interrupted_while_a_batch_is_made_goes_on_to_the_bit(
    works, unbroken, report, tmp_path, monkeypatch
):
    def interrupt(config, step, records, length):
        if step == 4:
            raise KeyboardInterrupt
        return sampling.sample_step(config, step, records, length)

    with monkeypatch.context() as patch:
        patch.setattr(scp, "sample_step", interrupt)
        with pytest.raises(Interrupted, match="4 of 6"):
            go(works, tmp_path / "run", "scp", report, steps=6)
    go(works, tmp_path / "run", "scp", report, steps=6)
    assert_resumed_as_if_nothing_happened(tmp_path / "run", unbroken("scp"))


def test_a_run_interrupted_between_backward_and_update_goes_on_to_the_bit(
    works, unbroken, report, tmp_path, monkeypatch
):
    clip = torch.nn.utils.clip_grad_norm_
    calls: list[int] = []

    def interrupt(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return clip(*args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", interrupt)
        with pytest.raises(Interrupted, match="2 of 6"):
            go(works, tmp_path / "run", "scp", report, steps=6)
    go(works, tmp_path / "run", "scp", report, steps=6)
    assert_resumed_as_if_nothing_happened(tmp_path / "run", unbroken("scp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_an_update_leaves_it_whole(
    works, unbroken, report, tmp_path, monkeypatch, number
):
    """The parameters have changed and the metrics have no line yet: Ctrl-C has to wait."""
    update = torch.optim.AdamW.step
    calls: list[int] = []

    def interrupt(*args, **kwargs):
        result = update(*args, **kwargs)
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(number)
        return result

    def end(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)  # as the program's entry point does
    try:
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", interrupt)
            with pytest.raises(Interrupted, match="2 of 6"):
                go(works, tmp_path / "run", "scp", report, steps=6)
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
    go(works, tmp_path / "run", "scp", report, steps=6)
    assert_resumed_as_if_nothing_happened(tmp_path / "run", unbroken("scp"))


@pytest.mark.parametrize("stage", TRAINED)
def test_a_killed_run_goes_on_from_its_last_save(works, unbroken, report, tmp_path, stage):
    """A copy made while step 4 is shown has the state of step 3 and a line too many."""

    class Copying(Silence):
        steps = 0

        def progress(self, progress) -> None:
            self.steps += progress.done > 0
            if self.steps == 4:
                shutil.copytree(tmp_path / "run", tmp_path / "killed")

    go(works, tmp_path / "run", stage, Copying(), steps=6, save_minutes=0.0)
    assert len(tiny_world.metrics(tmp_path / "killed")) == 4
    assert json.loads((tmp_path / "killed" / "last" / "step.json").read_text()) == {"step": 3}
    go(works, tmp_path / "killed", stage, report, steps=6)
    assert report.steps == 3
    assert_resumed_as_if_nothing_happened(tmp_path / "killed", unbroken(stage))


def test_a_run_killed_between_the_renames_of_a_save_is_not_lost(
    works, unbroken, heard, report, tmp_path
):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        go(works, run, "scp", heard(stop_at=3), steps=6)
    (run / "last").rename(run / "last.old")
    go(works, run, "scp", report, steps=6)
    assert report.steps == 3
    assert_resumed_as_if_nothing_happened(run, unbroken("scp"))


def test_a_run_killed_while_its_backbone_is_copied_is_not_finished(
    works, report, tmp_path, monkeypatch
):
    bundled = tmp_path / "bundled"
    shutil.copytree(works.scp / "checkpoint", bundled)
    shutil.copytree(works.backbone, bundled / "backbone")
    config = tiny_world.train(works.questions, bundled, tmp_path / "run", "instruct", steps=1)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.run(config, report)
    assert not (tmp_path / "run" / "checkpoint").exists()
    train.run(config, report)
    assert load(LoadOptions(str(tmp_path / "run"), device="cpu")).info.stage == "instruct"


def test_a_finished_run_is_left_as_it_is(works, report, tmp_path, monkeypatch):
    run = tmp_path / "run"
    first = go(works, run, "scp", report, steps=2)
    before = tiny_world.files(run)
    monkeypatch.setattr(runner, "fit", None)
    again = go(works, run, "scp", report, steps=2)
    assert report.notes[-1] == f"{run} is finished; nothing to do"
    assert tiny_world.files(run) == before
    assert (again.steps, again.ce, again.mse) == (first.steps, first.ce, first.mse)
    assert again.tokens_per_second is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.5}, ("learning_rate", "0.01", "0.5")),
        ({"steps": 5}, ("steps", "6", "5")),
        ({"seed": 3}, ("seed", "0", "3")),
        ({"ratios": (4,)}, ("ratios", "[4, 16]", "[4]")),
    ],
)
def test_other_settings_on_a_run_are_refused_by_name_and_value(
    works, report, tmp_path, changes, named
):
    copy = tmp_path / "run"
    shutil.copytree(works.scp, copy)
    before = tiny_world.files(copy)
    with pytest.raises(ArtefactError) as caught:
        go(works, copy, "scp", report, **changes)
    assert all(word in caught.value.message for word in (str(copy), *named))
    assert tiny_world.files(copy) == before


def test_other_data_on_a_run_is_refused(works, report, tmp_path):
    copy, data = tmp_path / "run", tmp_path / "pairs.jsonl"
    shutil.copytree(works.scp, copy)
    shutil.copy(works.pairs, data)
    config = tiny_world.scp(works.pairs, works.backbone, copy)
    data.write_text(data.read_text().replace("Nora", "Cora"))
    other = {**config.__dict__, "pairs": (str(data),)}
    with pytest.raises(ArtefactError, match="data_sha256|pairs"):
        pretrain.run(type(config)(**other), report)


@pytest.mark.parametrize("what", ["file", "folder", "settings"])
def test_a_place_that_is_no_run_folder_is_left_alone(works, report, tmp_path, what):
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / ("run.json" if what == "settings" else "notes.txt")).write_text("[1]")
    with pytest.raises(ArtefactError, match=str(out)):
        go(works, out, "scp", report)


def test_a_damaged_state_is_named(works, heard, report, tmp_path):
    with pytest.raises(Interrupted):
        go(works, tmp_path / "run", "scp", heard(stop_at=1))
    state = tmp_path / "run" / "last" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(ArtefactError, match=r"last/state\.safetensors: damaged"):
        go(works, tmp_path / "run", "scp", report)


def kept(folder: Path, steps: int, saved: int) -> RunFolder:
    """A run folder with the lines of `steps` steps and the state after `saved` of them."""
    run = RunFolder(folder, {"best_by": "ce"})
    run.open()
    for step in range(1, steps + 1):
        run.log(run.metrics, {"step": step, "ce": 1.0, "cut": 0})
    run.save(saved, {}, torch.optim.AdamW([torch.zeros(1)]))
    return run


def restored(run: RunFolder) -> list[int]:
    """The steps whose lines are there after resuming."""
    assert run.restore({}, torch.optim.AdamW([torch.zeros(1)])) == 3
    return [line["step"] for line in run.lines(run.metrics)]


def test_history_is_not_written_again_where_no_line_is_dropped(tmp_path):
    run = kept(tmp_path / "run", steps=3, saved=3)
    os.utime(run.metrics.path, ns=(0, 0))
    before = run.metrics.path.stat()
    assert restored(run) == [1, 2, 3]
    after = run.metrics.path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, 0)


def test_history_survives_a_disk_that_is_full_while_lines_are_dropped(tmp_path, monkeypatch):
    run = kept(tmp_path / "run", steps=5, saved=3)
    before = tiny_world.files(run.path)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", full)
        with pytest.raises(ClaraError, match=r"metrics\.jsonl: no space left"):
            restored(run)
    assert tiny_world.files(run.path) == before
    assert restored(run) == [1, 2, 3]


def test_a_last_line_cut_by_a_kill_is_dropped(tmp_path):
    run = kept(tmp_path / "run", steps=3, saved=3)
    with run.metrics.path.open("a") as stream:
        stream.write('{"step": 4, "c')
    assert restored(run) == [1, 2, 3]


@pytest.mark.parametrize(
    "damage",
    ['{"step": 2, "c', "[2]", '{"ce": 1.0, "cut": 0}', '{"step": 2, "ce": NaN, "cut": 0}', "\xff"],
)
def test_a_damaged_line_of_the_history_is_named(tmp_path, damage):
    run = kept(tmp_path / "run", steps=3, saved=3)
    lines = run.metrics.path.read_text().splitlines()
    lines[1] = damage
    run.metrics.path.write_text("".join(line + "\n" for line in lines), encoding="latin-1")
    for read in (lambda: restored(run), lambda: run.lines(run.metrics)):
        with pytest.raises(ArtefactError, match=r"metrics\.jsonl:2: ") as caught:
            read()
        assert caught.value.hint


def test_a_second_writer_is_refused(works, heard, report, tmp_path):
    class Second(Silence):
        def progress(self, progress) -> None:
            with pytest.raises(ArtefactError, match="is being written by process"):
                go(works, tmp_path / "run", "scp", report)

    go(works, tmp_path / "run", "scp", Second(), steps=6)


# --- numbers that are none, answers that do not fit, words that are wrong ---


def test_a_loss_that_is_not_a_number_stops_and_names_the_records(works, report, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ClaraError) as caught:
        go(works, run, "scp", report, weight_decay=1e37, learning_rate=1.0, warmup=0.0)
    assert "step 2" in caught.value.message and "nan" in caught.value.message
    assert f"{works.pairs}:" in caught.value.message and "learning_rate" in caught.value.hint
    assert len(tiny_world.metrics(run)) == 1 and not (run / "checkpoint").exists()
    kept = tiny_world.tensors(run / "last")
    assert kept and all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_a_gradient_that_is_not_finite_changes_no_parameter(works, report, tmp_path, monkeypatch):
    def burst(parameters, most):
        for parameter in parameters:
            parameter.grad.fill_(math.inf)
        return torch.tensor(math.inf)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", burst)
    with pytest.raises(ClaraError, match="step 1: the gradient is inf"):
        go(works, tmp_path / "run", "scp", report)
    assert all(
        torch.isfinite(t).all() for t in tiny_world.tensors(tmp_path / "run" / "last").values()
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_without_a_labelled_token_stops_and_names_the_records(
    works, report, tmp_path, stage
):
    with pytest.raises(ClaraError, match="step 1: no labelled token in the batch") as caught:
        go(works, tmp_path / "run", stage, report, max_length=100)
    source = works.pairs if stage == "scp" else works.questions
    assert f"{source}:" in caught.value.message and "max_length" in caught.value.hint


@pytest.mark.parametrize("stage", ["instruct", "e2e"])
def test_an_example_whose_prompt_does_not_fit_is_counted_and_left_out(
    works, report, tmp_path, stage
):
    records = tiny_world.questions()
    records[0]["question"] += " " + "Really" * 200
    data = tiny_world.write_jsonl(tmp_path / "q.jsonl", records)
    init = works.scp if stage == "instruct" else works.instruct
    changes = {"steps": 1, "batch_size": len(records), "max_length": 800}
    train.run(tiny_world.train(data, init, tmp_path / "run", stage, **changes), report)
    line = tiny_world.metrics(tmp_path / "run")[0]
    assert line["cut"] == 1 and math.isfinite(line["loss"])
    assert report.warnings == ["answers cut to fit max_length = 800: 1"]


def test_an_answer_that_just_fits_is_not_counted_as_cut(works):
    from clara_cli.core.batch import AnswerExample, answer_batch

    prompter = load(LoadOptions(str(works.scp), device="cpu")).model.prompter
    example = AnswerExample("Who?", "Nora", ("It rains.",))
    room = len(answer_batch(prompter, [example], 4, 10_000).rows[0])
    fits, cut = (answer_batch(prompter, [example], 4, room - less) for less in (0, 1))
    assert (fits.cut, cut.cut) == (0, 1)
    assert len(cut.rows[0]) == room - 1


def test_a_fresh_role_follows_from_the_seed(works, report, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(works.scp / "checkpoint", bare)
    facts = json.loads((bare / "clara.json").read_text())
    (bare / "clara.json").write_text(json.dumps({**facts, "roles": ["compressor"]}))
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        torch.manual_seed(hash(name))
        config = tiny_world.train(
            works.questions, bare, tmp_path / name, "instruct", seed=seed, steps=1
        )
        train.run(config, report)
    generators = [tmp_path / n / "checkpoint" / "generator" for n in ("one", "same", "other")]
    assert tiny_world.same(generators[0], generators[1])
    assert not tiny_world.same(generators[0], generators[2])


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("scp", {"schedule": "linear"}, "schedule is 'linear'"),
        ("scp", {"warmup": 2.0}, "warmup is 2.0"),
        ("scp", {"dropout": 1.5}, "dropout is 1.5"),
        ("scp", {"learning_rate": 1e38}, r"learning_rate is 1e\+38, the largest is 1"),
        ("e2e", {"validation_share": 2.0}, "validation_share is 2.0"),
        ("scp", {"ratios": (65,)}, "ratio 65 of 64-token passages"),
        ("scp", {"backbone": None}, "neither --backbone nor --init"),
        ("e2e", {"mask": "soft"}, "mask is 'soft'"),
        ("e2e", {"questions": ()}, "training needs questions and --stage"),
        ("e2e", {"ratios": (5,)}, "ratios: 5 is not served"),
    ],
)
def test_wrong_settings_are_usage_errors(works, report, tmp_path, stage, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        go(works, tmp_path / "run", stage, report, **changes)
    assert caught.value.hint and not (tmp_path / "run").exists()


def test_a_question_without_a_pool_is_named(works, report, tmp_path):
    record = {"question": "Who?", "answer": "Nora"}
    data = tiny_world.write_jsonl(tmp_path / "q.jsonl", [record])
    with pytest.raises(DataError, match="q.jsonl:1: the question has no pool"):
        train.run(tiny_world.train(data, works.scp, tmp_path / "run", "e2e"), report)


# --- --steps 0 ---


def convert(init: Path, out: Path, report, **changes):
    settings = {**tiny_world.MACHINE, "init": str(init), "out": out, "steps": 0, **changes}
    return train.run(train.TrainConfig(**settings), report)


def test_steps_0_writes_the_checkpoint_again_and_trains_nothing(works, report, tmp_path):
    result = convert(works.e2e, tmp_path / "out", report)
    assert (result.stage, result.steps, result.ce, result.mse) == ("e2e", 0, None, None)
    assert result.tokens_per_second is None
    assert tiny_world.same(tmp_path / "out" / "checkpoint", works.e2e / "checkpoint")
    infos = [read_info(p / "checkpoint") for p in (works.e2e, tmp_path / "out")]
    assert infos[0].fingerprint == infos[1].fingerprint


def test_steps_0_twice_does_nothing_and_elsewhere_refuses(works, report, tmp_path):
    convert(works.scp, tmp_path / "out", report)
    before = tiny_world.files(tmp_path / "out")
    convert(works.scp, tmp_path / "out", report)
    assert any("is finished" in note for note in report.notes)
    assert tiny_world.files(tmp_path / "out") == before
    with pytest.raises(ArtefactError, match="init"):
        convert(works.e2e, tmp_path / "out", report)
    with pytest.raises(UsageError, match="ratios: 1 is not served"):
        convert(works.scp, tmp_path / "new", report, ratios=(1,))


# --- a result that is lost ---

LOSSES = {
    "cut": lambda folder: cut(folder / "generator" / "adapter_model.safetensors"),
    "memory cut": lambda folder: cut(folder / "memory.safetensors"),
    "no adapter": lambda folder: (folder / "compressor" / "adapter_model.safetensors").unlink(),
    "no description": lambda folder: (folder / "clara.json").unlink(),
    "no JSON": lambda folder: (folder / "clara.json").write_text("{"),
    "empty": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
    "gone": shutil.rmtree,
}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_finished_run_whose_checkpoint_is_damaged_writes_it_again(works, report, tmp_path, loss):
    run = tmp_path / "run"
    go(works, run, "scp", report)
    before = tiny_world.files(run)
    LOSSES[loss](run / "checkpoint")
    go(works, run, "scp", report)
    after = tiny_world.files(run)
    for changing in (before, after):
        del changing["environment.jsonl"]
    assert after == before
    report.notes.clear()
    go(works, run, "scp", report)
    assert any("nothing to do" in note for note in report.notes)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_damaged_checkpoint_without_a_state_is_refused(works, report, tmp_path, loss):
    run = tmp_path / "run"
    go(works, run, "scp", report)
    shutil.rmtree(run / "last")
    LOSSES[loss](run / "checkpoint")
    (run / "checkpoint").mkdir(exist_ok=True)
    with pytest.raises(ArtefactError, match="last is not there to write it again from"):
        go(works, run, "scp", report)
