"""A run goes on when it is given more steps, finished or not, as one that was begun with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_world

from clara_cli.commands import pretrain, train
from clara_cli.core.checkpoint import read_info
from clara_cli.errors import ArtefactError, Interrupted

STEADY = {"schedule": "constant", "warmup": 0.0}  # the same rate in runs of any length


def go(works: Any, out: Path, stage: str, report: Any, **changes: Any) -> Any:
    if stage == "scp":
        made = tiny_world.scp(works.pairs, works.backbone, out, **STEADY, **changes)
        return pretrain.run(made, report)
    init = works.scp if stage == "instruct" else works.instruct
    return train.run(
        tiny_world.train(works.questions, init, out, stage, **STEADY, **changes), report
    )


@pytest.mark.parametrize("stage", ["scp", "instruct", "e2e"])
def test_a_finished_run_goes_on_to_more_steps_as_if_begun_with_them(
    works, heard, report, tmp_path, stage
):
    run = tmp_path / "run"
    go(works, run, stage, heard(), steps=2)
    before = tiny_world.files(run / "checkpoint")
    result = go(works, run, stage, report, steps=5)
    assert (result.steps, report.steps) == (5, 3)
    (note,) = [note for note in report.notes if "going on to 5" in note]
    assert "begun with 2 steps" in note and f"the checkpoint of 2 is {run}/checkpoint-2" in note
    assert tiny_world.files(run / "checkpoint-2") == before
    go(works, tmp_path / "whole", stage, heard(), steps=5)
    assert tiny_world.numbers(run) == tiny_world.numbers(tmp_path / "whole")
    assert tiny_world.same(run / "checkpoint", tmp_path / "whole" / "checkpoint")
    assert read_info(run / "checkpoint").provenance[-1]["steps"] == 5


def test_an_interrupted_extension_goes_on_by_the_same_command(works, heard, report, tmp_path):
    run = tmp_path / "run"
    go(works, run, "scp", heard(), steps=2)
    with pytest.raises(Interrupted, match="3 of 5"):
        go(works, run, "scp", heard(stop_at=1), steps=5)
    assert not (run / "checkpoint").exists()
    go(works, run, "scp", report, steps=5)
    assert report.steps == 2
    go(works, tmp_path / "whole", "scp", heard(), steps=5)
    assert tiny_world.same(run / "checkpoint", tmp_path / "whole" / "checkpoint")
    go(works, run, "scp", report, steps=5)
    assert report.steps == 2 and any("nothing to do" in note for note in report.notes)


def test_an_unfinished_run_may_be_given_more_steps(works, heard, report, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="1 of 2"):
        go(works, run, "scp", heard(stop_at=1), steps=2)
    assert go(works, run, "scp", report, steps=3).steps == 3
    assert not (run / "checkpoint-2").exists()


def test_one_pass_counts_as_its_steps(works, heard, report, tmp_path):
    """Eighteen pairs in batches of nine are two steps, asked for or not."""
    run = tmp_path / "run"
    records = len(tiny_world.pairs())
    go(works, run, "scp", heard(), steps=None, batch_size=-(-records // 2))
    done = go(works, run, "scp", report, steps=2, batch_size=-(-records // 2))
    assert (done.steps, report.steps) == (2, 0)
    assert go(works, run, "scp", report, steps=3, batch_size=-(-records // 2)).steps == 3


def test_fewer_steps_and_other_settings_are_refused(works, heard, report, tmp_path):
    run = tmp_path / "run"
    go(works, run, "scp", heard(), steps=2)
    with pytest.raises(ArtefactError, match="made with steps = 2, this command has 1"):
        go(works, run, "scp", report, steps=1)
    with pytest.raises(ArtefactError, match="made with batch_size"):
        go(works, run, "scp", report, steps=3, batch_size=3)
    assert json.loads((run / "run.json").read_text())["steps"] == 2
    assert (run / "checkpoint" / "clara.json").is_file()


def test_a_damaged_number_of_steps_is_another_run(works, heard, report, tmp_path):
    run = tmp_path / "run"
    go(works, run, "scp", heard(), steps=2)
    began = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**began, "steps": "two"}))
    with pytest.raises(ArtefactError, match="made with steps = 'two'"):
        go(works, run, "scp", report, steps=3)


def test_pools_of_the_query_reasoner_are_completed_for_the_steps_added(
    works, heard, report, tmp_path
):
    """Two steps of a refresh that serves ten: the questions of the next ones have no pools yet."""
    changes = {"pool": "retrieved", "corpus": works.corpus, "pool_size": 4, "batch_size": 2}
    changes |= {"pool_by": "query", "refresh_every": 10}
    run = tmp_path / "run"
    go(works, run, "e2e", heard(), steps=2, **changes)
    assert go(works, run, "e2e", report, steps=4, **changes).steps == 4
    assert len(tiny_world.metrics(run)) == 4
