"""Settings: each one changes something one can observe, and a wrong one is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_world

from clara_cli.commands import pretrain, train
from clara_cli.config import PretrainConfig, TrainConfig
from clara_cli.config.fields import with_recipe
from clara_cli.core.checkpoint import read_info
from clara_cli.core.model import ClaraModel
from clara_cli.errors import UsageError
from clara_cli.training import loop, runner, validation
from clara_cli.training.loop import Schedule

# key: (value, settings of both runs it is compared in). `stage` is scp where it is not said.
CHECKED = {"validation_share": 0.25, "validate_every": 1}
LEARN: dict[str, tuple[Any, dict[str, Any]]] = {
    "batch_size": (3, {}),
    "micro_batch": (1, {}),
    "learning_rate": (1e-3, {}),
    "schedule": ("constant", {"steps": 3}),
    "warmup": (0.9, {}),
    "weight_decay": (0.5, {}),
    "clip": (0.01, {}),
    "max_length": (250, {}),
    "ratios": ((4,), {}),
    "dropout": (0.3, {}),
    "train_roles": (("generator",), {"train_memory": False}),
    "checkpointing": (True, {}),
    "save_minutes": (0.0, {}),
    "minutes": (1e-9, {}),
    "group_by_length": (True, {"batch_size": 2, "steps": 4}),
    "tracker": ("tensorboard", {}),
    "validation_share": (0.5, {}),
    "validate_every": (2, {"validation_share": 0.25}),
    "validate_limit": (1, {"validation_share": 0.25}),
    "patience": (1, {**CHECKED, "learning_rate": 1.0, "steps": 6}),
}
PRETRAIN = {
    **LEARN,
    "train_memory": (False, {}),
    "mse_weight": (0.0, {}),
    "memory_source": ("pooled", {}),
    "memory_positions": ("spread", {}),
    "memory_layer": (1, {}),
    "reconstruction": (1.0, {}),
    "mix": ({"qa": 1.0, "paraphrase": 0.0}, {}),
    "passage_tokens": (32, {}),
    "lora_rank": (2, {}),
    "lora_alpha": (32, {}),
    "best_by": ("mse", {**CHECKED, "learning_rate": 0.02, "steps": 6, "mse_weight": 0.0}),
}
TRAIN = {
    **LEARN,
    "train_memory": (True, {}),
    "top_k": (1, {}),
    "pool_size": (2, {"top_k": 1}),
    "pool_by": ("query", {"pool": "retrieved"}),
    "refresh_every": (1, {"pool": "retrieved", "pool_by": "query", "learning_rate": 0.5}),
    "gold_answer": ("first", {"several": True}),
    "temperature": (1.0, {}),
    "mask": ("released", {"temperature": 0.002}),
    "mse_weight": (0.0, {"stage": "instruct"}),
    "text_share": (1.0, {"stage": "instruct"}),
    "reconstruction": (1.0, {"stage": "instruct"}),
    "distillation": (1.0, {"stage": "instruct"}),
    "group_by_pool": (True, {"stage": "instruct", "batch_size": 2, "shared": True}),
    "answer_prefix": (" ", {}),
    "best_by": ("recall@1", {**CHECKED, "learning_rate": 0.3, "steps": 6}),
    "answer_tokens": (2, {**CHECKED, "learning_rate": 0.1, "validation_share": 0.5}),
}


def observe(works, out: Path, command: type, settings: dict[str, Any], monkeypatch) -> list[Any]:
    """What a run of two steps shows: its metrics, its checkpoint, its batches and its saves."""
    settings = {"steps": 2, "dropout": 0.0, **settings}
    shown: list[Any] = []
    fit, save = loop.fit, loop.RunFolder.save

    def spy_fit(trained, batches, losses, values, run, report, checks):
        shown.append([len(batches(step)) for step in range(2)])
        return fit(trained, batches, losses, values, run, report, checks)

    def spy_save(run, step, trained, optimizer):
        shown.append(f"save {step}")
        save(run, step, trained, optimizer)

    def spy_greedy(*given):
        shown.append(greedy(*given))
        return shown[-1]

    greedy = validation.greedy
    with monkeypatch.context() as patch:
        patch.setattr(validation, "greedy", spy_greedy)
        patch.setattr(runner, "fit", spy_fit)
        patch.setattr(loop.RunFolder, "save", spy_save)
        patch.setattr(ClaraModel, "checkpoint_layers", lambda _: shown.append("checkpointing"))
        if command is PretrainConfig:
            pretrain.run(tiny_world.scp(works.pairs, works.backbone, out, **settings), Silence())
        else:
            stage = settings.pop("stage", "e2e")
            if settings.get("pool") == "retrieved":
                settings["corpus"] = works.corpus
            asked = works.questions
            if settings.pop("several", False):
                several = [{**q, "answers": ["Her", "Him"]} for q in tiny_world.questions()]
                asked = tiny_world.write_jsonl(out.with_suffix(".jsonl"), several)
            if settings.pop("shared", False):
                first, *others = tiny_world.questions()
                shared = [{**q, "paragraphs": first["paragraphs"]} for q in others[:3]]
                asked = tiny_world.write_jsonl(out.with_suffix(".jsonl"), [first, *others, *shared])
            init = works.scp if stage == "instruct" else works.instruct
            train.run(tiny_world.train(asked, init, out, stage, **settings), Silence())
    info = dataclasses.replace(read_info(out / "checkpoint"), provenance=())
    checks = (
        tiny_world.metrics(out, "validation.jsonl") if (out / "validation.jsonl").exists() else []
    )
    shown += [checks, sorted(path.name for path in out.iterdir())]
    return [*shown, tiny_world.numbers(out), tiny_world.tensors(out / "checkpoint"), info]


class Silence:
    """A report nobody listens to."""

    def progress(self, progress: Any) -> None: ...

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    return one == other


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Runs already observed, by their settings."""
    return {}


CASES = [(PretrainConfig, key) for key in PRETRAIN] + [(TrainConfig, key) for key in TRAIN]


@pytest.mark.parametrize(
    ("command", "key"), CASES, ids=[f"{c.__name__[:-6].lower()}-{k}" for c, k in CASES]
)
def test_a_setting_changes_what_one_can_observe(works, tmp_path, monkeypatch, seen, command, key):
    value, both = (PRETRAIN if command is PretrainConfig else TRAIN)[key]
    base = (command.__name__, *sorted(both.items()))
    if base not in seen:
        seen[base] = observe(works, tmp_path / "base", command, both, monkeypatch)
    changed = observe(works, tmp_path / "run", command, {**both, key: value}, monkeypatch)
    pairs = zip(seen[base], changed, strict=False)
    assert len(seen[base]) != len(changed) or not all(equal(*pair) for pair in pairs)


def test_the_same_settings_change_nothing(works, tmp_path, monkeypatch):
    """Else the test above would pass for any setting."""
    one, other = (observe(works, tmp_path / n, TrainConfig, {}, monkeypatch) for n in "ab")
    assert all(equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize(("command", "table"), [(PretrainConfig, PRETRAIN), (TrainConfig, TRAIN)])
def test_every_setting_is_in_the_tables_above(command, table):
    named = {f.name for f in dataclasses.fields(command) if f.metadata["kind"] == "setting"}
    assert named == set(table) | {"fsdp"}  # for several processes: test_distributed


@pytest.mark.parametrize("given", ["0", "-0.02"])
def test_a_temperature_is_above_zero(works, given):
    """Below it InfoNCE learns the reverse, at it nothing."""
    out, sets = Path("unused"), (f"temperature={given}",)
    config = tiny_world.train(works.questions, works.scp, out, "retrieval", set=sets)
    with pytest.raises(UsageError, match=r"temperature is .*, the least is 1e-06"):
        with_recipe(config)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("learningrate=1", ("learningrate", "did you mean 'learning_rate'?")),
        ("batch=2", ("batch", "batch_size")),
        ("zzz=1", ("zzz", "known: ", "batch_size", "warmup")),
        ("batch_size=two", ("batch_size", "'two'", "expected int")),
        ("batch_size=0", ("batch_size is 0", "the least is 1")),
        ("learning_rate=nan", ("learning_rate is nan", "a finite number")),
        ("mse_weight=inf", ("mse_weight is inf", "a finite number")),
        ("mse_weight", ("no '='", "--set learning_rate=1e-4")),
    ],
)
def test_a_wrong_set_is_named_with_what_comes_nearest(works, given, words):
    config = tiny_world.scp(works.pairs, works.backbone, Path("unused"), set=(given,))
    with pytest.raises(UsageError) as caught:
        with_recipe(config)
    said = f"{caught.value.message} {caught.value.hint}"
    assert all(word in said for word in words), said
    assert caught.value.code == 2


def test_settings_come_from_the_recipe_then_from_set(works, tmp_path):
    recipe = tmp_path / "small.toml"
    recipe.write_text("learning_rate = 1\nratios = [4]\nclip = 2.5\nmicro_batch = 1\n")
    config = tiny_world.scp(works.pairs, works.backbone, tmp_path / "run", recipe=recipe)
    config = dataclasses.replace(config, set=("clip=0.5", "micro_batch=none", "steps=1"))
    made = with_recipe(config)
    assert (made.learning_rate, made.ratios, made.clip) == (1.0, (4,), 0.5)
    assert (made.micro_batch, made.steps) == (None, 1)
    pretrain.run(made, Silence())
    assert tiny_world.metrics(made.out)[0]["lr"] == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate = ", ("not a TOML recipe",)),
        ("rate = 1", ("unknown setting 'rate'", "did you mean")),
        ("ratios = ['a']", ("ratios is 'a'", "expected int")),
    ],
)
def test_a_wrong_recipe_is_named(works, tmp_path, text, words):
    recipe = tmp_path / "wrong.toml"
    recipe.write_text(text)
    config = tiny_world.scp(works.pairs, works.backbone, tmp_path / "run", recipe=recipe)
    with pytest.raises(UsageError) as caught:
        with_recipe(config)
    said = f"{caught.value.message} {caught.value.hint}"
    assert str(recipe) in said and all(word in said for word in words), said


@pytest.mark.parametrize("name", ["passage_tokens", "lora_rank", "lora_alpha"])
def test_settings_of_fresh_checkpoints_are_refused_where_they_would_do_nothing(
    works, tmp_path, heard, name
):
    config = tiny_world.scp(
        works.pairs,
        None,
        tmp_path / "run",
        init=str(works.scp),
        **{name: 2 * tiny_world.FRESH[name]},
    )
    with pytest.raises(UsageError, match=f"{name} is .* was made with {tiny_world.FRESH[name]}"):
        pretrain.run(config, heard())


@pytest.mark.parametrize(
    ("steps", "minutes", "step", "seconds", "share"),
    [(10, None, 4, 99.0, 0.4), (1000, 2, 4, 30.0, 0.25), (10, 2, 9, 30.0, 0.9), (0, None, 0, 0, 1)],
)
def test_how_far_a_run_is_follows_its_steps_or_its_minutes(steps, minutes, step, seconds, share):
    schedule = Schedule(1e-3, steps, 0.03, "cosine", minutes)
    assert schedule.share(step, seconds) == pytest.approx(share)


def test_the_rate_falls_by_whichever_ends_the_run_steps_or_minutes():
    """A run whose steps are done long before its minutes ends at a tenth of its rate, too."""
    by_steps, by_minutes = (
        Schedule(1e-3, steps, 0.1, "cosine", minutes) for steps, minutes in ((100, 60), (10**6, 1))
    )
    assert by_steps.at(99, 30.0) == pytest.approx(1e-4, rel=0.01)
    assert by_steps.at(55, 17.0) == pytest.approx(0.55e-3, rel=0.01)
    assert by_minutes.at(55, 33.0) == pytest.approx(by_steps.at(55, 17.0))
    assert by_minutes.at(99, 60.0) == pytest.approx(1e-4)
