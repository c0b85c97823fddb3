"""`--dry-run`: the memory needed, told without loading or writing anything."""

from __future__ import annotations

import json

import pytest
from helpers import tiny_world
from typer.testing import CliRunner

from clara_cli.cli.app import app
from clara_cli.commands import ask, compress, compress_pipeline, pretrain, train
from clara_cli.core import load_options
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.training import scp


@pytest.fixture
def unloaded(monkeypatch):
    """Loading a checkpoint fails."""

    def refuse(*_, **__):
        raise AssertionError("a dry run loads nothing")

    for module in (train, scp):
        monkeypatch.setattr(module, "load", refuse)
    monkeypatch.setattr(load_options, "load_backbone", refuse)
    monkeypatch.setattr(ask, "load", refuse)


def test_asking_counts_the_cache_of_its_prompt(works, heard, unloaded):
    needs = []
    for changes in ({}, {"max_new_tokens": 9}, {"top_k": 6}, {"ratio": 16}):
        report = heard()
        (need,) = ask.run(tiny_world.ask(None, works.corpus, dry_run=True, **changes), report)
        needs.append(need)
        assert "computed from configs: activations and workspace come on top" in report.notes
    position = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, their width, float32
    caches = [need.cache // position for need in needs]
    assert caches == [5 * 17 + 64 + 8, 5 * 17 + 64 + 9, 6 * 17 + 64 + 8, 5 * 5 + 64 + 8]
    assert set(needs[0].roles) == {"compressor", "generator", "query_reasoner"}
    assert needs[0].training == 0


def test_training_counts_what_it_trains_and_the_roles_it_adds(works, heard, tmp_path, unloaded):
    def of(stage, **changes):
        config = tiny_world.train(works.questions, works.scp, tmp_path / "run", stage, **changes)
        return train.run(config.__class__(**{**vars(config), "dry_run": True}), heard())

    instruct, e2e = of("instruct"), of("e2e")
    one = instruct.adapters // 2
    assert instruct.roles == ("compressor", "generator")
    assert instruct.training == 3 * 2 * one  # a gradient and two moments of two roles
    assert set(e2e.roles) == {"compressor", "generator", "query_reasoner"}
    assert (e2e.adapters, e2e.training) == (3 * one, 3 * 2 * one)
    assert of("instruct", train_roles=("generator",)).training == 3 * one
    assert not (tmp_path / "run").exists()


def test_pretraining_counts_fresh_roles(works, heard, tmp_path, unloaded):
    config = tiny_world.scp(works.pairs, works.backbone, tmp_path / "run", dry_run=True)
    need = pretrain.run(config, heard())
    whole = load_again(works)
    roles = ("compressor", "generator")
    adapters = sum(p.numel() * 4 for r in roles for p in whole.role_parameters(r).values())
    assert need.adapters == adapters
    assert need.memory_tokens == 4 * (16 + 2) * 32
    assert need.training == 3 * (adapters + 4 * 16 * 32)
    with pytest.raises(UsageError, match="neither --backbone nor --init"):
        pretrain.run(tiny_world.scp(works.pairs, None, tmp_path / "run", dry_run=True), heard())


def load_again(works):
    """The checkpoint those settings made, loaded by the real function."""
    from clara_cli.core import backbone

    kept = load_options.load_backbone
    load_options.load_backbone = backbone.load_backbone
    try:
        return load(LoadOptions(str(works.scp), device="cpu", dtype="float32")).model
    finally:
        load_options.load_backbone = kept


def test_compress_says_it_before_it_loads(works, heard, tmp_path, monkeypatch):
    report = heard()

    def stop(*_, **__):
        raise ArtefactError("stopped", "")

    monkeypatch.setattr(compress_pipeline, "load", stop)
    with pytest.raises(ArtefactError, match="stopped"):
        config = tiny_world.compress(works.documents, works.e2e, tmp_path / "x.clara", dry_run=True)
        compress.run(config, report)
    assert any(note.startswith("weights and adapters take 0.00 GB") for note in report.notes)


def test_json_and_text_of_a_need(works):
    words = ["ask", "--dry-run", "--corpus", str(works.corpus), "--dtype", "float32"]
    done = CliRunner().invoke(app, [*words, "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)) == [
        *("backbone", "parameters", "dtype", "load_in", "roles", "bytes"),
        *("weights", "adapters", "memory_tokens", "cache", "training"),
    ]
    shown = CliRunner().invoke(app, [*words, "--device", "cpu", "--load-in", "4bit"]).stdout
    assert "parameters need" in shown and "weights in 4bit" in shown


def test_a_backbone_whose_config_cannot_be_had_is_one_error(works, heard):
    config = tiny_world.ask(None, works.corpus, dry_run=True, backbone="/nowhere")
    with pytest.raises(ArtefactError, match="backbone /nowhere: no such directory"):
        list(ask.run(config, heard()))
