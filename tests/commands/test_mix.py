"""What pretraining reads how often, and at which ratios."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import tiny_world
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.commands import ask, compress, pretrain
from clara_cli.config.fields import with_recipe
from clara_cli.core.checkpoint import LoadOptions, load, read_info
from clara_cli.core.losses import alignment_mse
from clara_cli.documents.examples import read_pairs
from clara_cli.errors import DataError, UsageError
from clara_cli.records import Pair
from clara_cli.training import loop, scp

KINDS = ("simple", "complex", "paraphrase")


def records(each: int = 8) -> list[dict]:
    """As synth writes them: lists of simple and of complex questions, and paraphrases."""
    made = []
    for number in range(each):
        town, name = tiny_world.FACTS[number % len(tiny_world.FACTS)]
        docs = [tiny_world.sentence(town, name)]
        asked = {"question": [f"Who leads {town}?"], "answers": [name], "docs": docs}
        made.append({"data_type": "qa", **asked, "kind": "simple"})
        made.append({"data_type": "qa", **asked, "kind": "complex"})
        said = {"question": [], "answers": [f"{name} leads {town}."], "docs": docs}
        made.append({"data_type": "paraphrase", **said, "kind": "paraphrase"})
    return made


def mixed(weights: dict[str, float] | None, each: int = 8, seed: int = 0) -> list[Pair]:
    pairs = [Pair(kind, (), ("a",), (str(n),)) for n in range(each) for kind in KINDS]
    config = tiny_world.scp(Path("p"), Path("b"), Path("o"), mix=weights, seed=seed)
    return scp.mix(pairs, config)


@given(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 3.0])] * 3), st.integers(0, 3))
def test_a_kind_is_visited_as_often_as_its_weight_says(weights, seed):
    asked = dict(zip(KINDS, weights, strict=True))
    if not any(weights):
        with pytest.raises(UsageError, match="leaves out every pair"):
            mixed(asked, seed=seed)
        return
    found = mixed(asked, seed=seed)
    counts = Counter(pair.kind for pair in found)
    assert counts == {kind: int(8 * weight) for kind, weight in asked.items() if weight}
    assert found == mixed(asked, seed=seed)
    visits = Counter((pair.kind, pair.texts[0]) for pair in found)
    for (kind, _), times in visits.items():
        assert times - asked[kind] < 1


def test_without_a_mix_every_pair_comes_once_and_another_seed_draws_others():
    assert Counter(pair.kind for pair in mixed(None)) == dict.fromkeys(KINDS, 8)
    half = {"simple": 0.5, "complex": 0, "paraphrase": 0}
    assert mixed(half, seed=0) != mixed(half, seed=1)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"simple": 1, "complex": 1, "paraphrases": 1}, ("'paraphrases'", "'paraphrase'")),
        ({"simple": 1, "complex": 1}, ("nothing of the 8 paraphrase pairs", "paraphrase = 0")),
        ({**dict.fromkeys(KINDS, 1), "qa": 1}, ("mix.qa is 1", "no pair is qa")),
        ({"simple": -1, "complex": 1, "paraphrase": 1}, ("mix.simple is -1",)),
    ],
)
def test_a_mix_that_cannot_be_meant_is_refused(weights, words):
    with pytest.raises(UsageError) as caught:
        mixed(weights)
    said = f"{caught.value.message} {caught.value.hint}"
    assert all(word in said for word in words), said


@pytest.mark.parametrize("value", ["3", "{simple = 'much'}"])
def test_a_mix_is_a_table_of_numbers(value):
    with pytest.raises(UsageError, match="mix"):
        with_recipe(tiny_world.scp(Path("p"), Path("b"), Path("o"), set=(f"mix={value}",)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "difficult"}, "kind is 'difficult', known of qa: qa, simple, complex"),
        ({"kind": "paraphrase"}, "kind is 'paraphrase'"),
        ({"data_type": "riddle"}, "data_type is 'riddle'"),
    ],
)
def test_an_unknown_kind_in_the_data_is_named_with_its_line(tmp_path, changes, words):
    lines = [*records(1), {**records(1)[0], **changes}]
    data = tiny_world.write_jsonl(tmp_path / "pairs.jsonl", lines)
    with pytest.raises(DataError, match=rf"pairs.jsonl:4: {words}"):
        read_pairs([str(data)])


def test_a_recipes_mix_is_what_a_run_reads(works, report, tmp_path, monkeypatch):
    data = tiny_world.write_jsonl(tmp_path / "pairs.jsonl", records())
    recipe = tmp_path / "mix.toml"
    recipe.write_text("mix = {simple = 0.5, complex = 2, paraphrase = 0}\nbatch_size = 4\n")
    config = tiny_world.scp(data, works.backbone, tmp_path / "run", recipe=recipe, steps=None)
    seen: Counter = Counter()
    kinds = {f"{data}:{n}": r["kind"] for n, r in enumerate(records(), 1)}
    gradients = loop.gradients

    def count(step, rate, trained, micro, *rest):
        seen.update(kinds[source] for batch in micro for source in batch.sources)
        return gradients(step, rate, trained, micro, *rest)

    monkeypatch.setattr(loop, "gradients", count)
    result = pretrain.run(with_recipe(config), report)
    assert seen == {"simple": 4, "complex": 16} and result.steps == 5


# --- nested ratios ---


def test_one_checkpoint_serves_from_4_to_64(works, report, tmp_path, monkeypatch):
    """M is drawn anew for every batch, alignment is of the memory in use, and what was trained
    together compresses and answers at each ratio."""
    ratios, used = (4, 8, 16, 32, 64), []

    def keep(memory, hidden, mask):
        used.append(memory.shape[1])
        return alignment_mse(memory, hidden, mask)

    monkeypatch.setattr("clara_cli.core.stage_losses.alignment_mse", keep)
    out = tmp_path / "run"
    changes = {"ratios": ratios, "steps": 24, "passage_tokens": 64}
    pretrain.run(tiny_world.scp(works.pairs, works.backbone, out, **changes), report)
    assert set(used) == {16, 8, 4, 2, 1} and len(used) == 24
    info = read_info(out / "checkpoint")
    assert info.ratios == ratios and info.memory_tokens == 16
    model = load(LoadOptions(str(out), device="cpu", dtype="float32")).model
    row = model.prompter.passage(tiny_world.sentence(*tiny_world.FACTS[0]))
    with torch.no_grad():
        longest = model.encode([row], "compressor", 16).memory_BMD
        for memory_tokens in (8, 4, 2, 1):
            shorter = model.encode([row], "compressor", memory_tokens).memory_BMD
            assert (shorter - longest[:, :memory_tokens]).abs().max() < 1e-5
    corpus = tmp_path / "four.clara"
    compress.run(tiny_world.compress(works.documents, out, corpus), report)
    for ratio in ratios:
        (found,) = ask.run(tiny_world.ask("Who is mayor of Elmgate?", corpus, ratio=ratio), report)
        assert found.memory_tokens == 64 // ratio * len(found.sources)


def test_a_ratio_the_checkpoint_does_not_serve_is_refused(works, report, tmp_path):
    config = tiny_world.scp(works.pairs, None, tmp_path / "run", init=str(works.scp), ratios=(8,))
    with pytest.raises(UsageError) as caught:
        pretrain.run(config, report)
    assert "8" in caught.value.message and "4, 16" in caught.value.hint
