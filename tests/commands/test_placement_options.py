"""`--load-in` and `--device-map` through the commands: the same checkpoint, held otherwise."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_world

from clara_cli.commands import ask, bench, compress, index, pretrain, train
from clara_cli.config import BenchConfig
from clara_cli.core.checkpoint import read_info
from clara_cli.corpus.repair import repairs
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError, UsageError

HAVE = importlib.util.find_spec("bitsandbytes") is not None


@pytest.fixture
def on_disk(tmp_path) -> str:
    """A map of the tiny Llama with its last layer on disk."""
    places = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"]
    file = tmp_path / "map.json"
    file.write_text(json.dumps({**dict.fromkeys(places, "cpu"), "model.layers.1": "disk"}))
    return str(file)


def memory(corpus: Path) -> torch.Tensor:
    return torch.cat([chunk for _, chunk in Corpus.open(corpus).memory_chunks()])


def answer(corpus: Path, heard: Any, **changes: Any) -> tuple[Any, ...]:
    (found,) = ask.run(tiny_world.ask("Who is mayor of Pinewick?", corpus, **changes), heard())
    return found.answer, [hit.passage.passage_id for hit in found.sources], found.prompt_tokens


def test_spread_it_compresses_indexes_and_answers_as_whole(works, heard, tmp_path, on_disk):
    corpus = tmp_path / "spread.clara"
    compress.run(
        tiny_world.compress(works.documents, works.e2e, corpus, device_map=on_disk), heard()
    )
    assert (memory(corpus) - memory(works.corpus)).abs().max() < 1e-5  # merged there, not here
    index.run(tiny_world.index(corpus, device_map=on_disk), heard())
    for stage in ("bm25", "latent"):
        how: dict[str, Any] = {"first_stage": stage, "explain": True}
        spread = answer(corpus, heard, device_map=on_disk, **how)
        assert spread == answer(corpus, heard, **how)


def test_training_takes_a_map_that_leaves_nothing_on_disk(works, heard, tmp_path, on_disk):
    def of(name: str, **changes: Any) -> list[list[Any]]:
        config = tiny_world.train(
            works.questions, works.scp, tmp_path / name, "instruct", **changes
        )
        train.run(config, heard())
        return tiny_world.numbers(tmp_path / name)

    assert of("spread", device_map="auto") == of("whole")
    assert tiny_world.same(tmp_path / "spread" / "checkpoint", tmp_path / "whole" / "checkpoint")
    with pytest.raises(UsageError, match="adapter weights off the GPUs"):
        of("disk", device_map=on_disk)
    fresh = tiny_world.scp(
        works.pairs, works.backbone, tmp_path / "scp", device_map="auto", steps=1
    )
    assert pretrain.run(fresh, heard()).steps == 1


@pytest.mark.parametrize("changes", [{"load_in": "8bit"}, {"device_map": "auto"}])
def test_writing_the_native_form_takes_neither(works, heard, tmp_path, changes):
    config = tiny_world.train(
        works.questions, works.scp, tmp_path / "x", "instruct", steps=0, **changes
    )
    with pytest.raises(UsageError, match="--steps 0 computes nothing"):
        train.run(config, heard())


def test_fsdp_goes_with_neither(works, heard, tmp_path, monkeypatch):
    from clara_cli.distributed.ranks import Ranks
    from clara_cli.training import runner

    config = tiny_world.train(works.questions, works.scp, tmp_path / "x", "instruct", fsdp=True)
    for changes in ({"load_in": "8bit"}, {"device_map": "auto"}):
        with pytest.raises(UsageError, match="omit|with"):
            runner.load_options(dataclasses.replace(config, **changes), "x", Ranks(size=2))
    several = dataclasses.replace(config, fsdp=False, device_map="auto")
    with pytest.raises(UsageError, match="--device-map with several processes"):
        runner.load_options(several, "x", Ranks(size=2))


@pytest.mark.skipif(not HAVE, reason="bitsandbytes is not installed (extra quant)")
def test_quantised_through_every_command(heard, tmp_path, works, backbone_maker):
    """Pretrained, trained, compressed and asked in eight bits; the checkpoint is one of the whole
    backbone, and the corpus says how it was made."""
    backbone = backbone_maker(tmp_path / "backbone", hidden=64)
    bits = {"load_in": "8bit"}
    pretrain.run(tiny_world.scp(works.pairs, backbone, tmp_path / "scp", steps=2, **bits), heard())
    how = {"steps": 2, **bits}
    for stage, init in (("instruct", "scp"), ("e2e", "instruct")):
        out = tmp_path / stage
        train.run(tiny_world.train(works.questions, tmp_path / init, out, stage, **how), heard())
    corpora = {name: tmp_path / f"{name}.clara" for name in ("quantised", "whole")}
    for name, corpus in corpora.items():
        held = bits if name == "quantised" else {}
        compress.run(
            tiny_world.compress(works.documents, tmp_path / "e2e", corpus, **held), heard()
        )
    one, other = (Corpus.open(corpus).manifest.identity for corpus in corpora.values())
    assert one.checkpoint["fingerprint"] == other.checkpoint["fingerprint"]
    assert one.options["load_in"] == "8bit" and "load_in" not in other.options
    error = memory(corpora["quantised"]) - memory(corpora["whole"])
    assert 0 < error.norm() < 0.1 * memory(corpora["whole"]).norm()
    assert answer(corpora["quantised"], heard, **bits)[1]
    shard = corpora["quantised"] / "shards" / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert "--load-in 8bit" in next(iter(repairs(corpora["quantised"])))
    info = read_info(tmp_path / "e2e" / "checkpoint")
    assert info.fingerprint == one.checkpoint["fingerprint"]


@pytest.mark.skipif(not HAVE, reason="bitsandbytes is not installed (extra quant)")
def test_bench_measures_a_quantised_checkpoint_and_keeps_it_apart(heard, works, tmp_path):
    settings = {"dataset": str(works.questions), "system": "closed-book", "limit": 2}
    common = {**tiny_world.MACHINE, **settings, "out": tmp_path / "out", "max_new_tokens": 4}
    done = bench.run(BenchConfig(**common, setting="gold", load_in="8bit"), heard())
    assert done.n == 2
    with pytest.raises(ArtefactError, match="load_in is '8bit' there"):
        bench.run(BenchConfig(**common, setting="gold"), heard())


def test_speed_is_of_whole_backbones(heard):
    with pytest.raises(UsageError, match="--load-in with --speed"):
        bench.run(BenchConfig(speed=True, load_in="8bit"), heard())
