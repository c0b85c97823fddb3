"""Memory of another kind than the published one: means of the text's own hidden states, from a
middle layer, at positions spread over the text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_roles import PAIRS, QUESTIONS, TEXTS, build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clara_cli.core.backbone import inner_model
from clara_cli.core.batch import AnswerExample, add_reconstructions, answer_batch, scp_batch
from clara_cli.core.checkpoint import load, save
from clara_cli.core.checkpoint_info import CheckpointInfo
from clara_cli.core.decode import lens, log_likelihoods
from clara_cli.core.load_options import LoadOptions
from clara_cli.core.losses import IGNORE
from clara_cli.core.memory_space import fingerprint
from clara_cli.core.model import ClaraModel
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.memory_layout import (
    PUBLISHED,
    MemoryLayout,
    coarsen,
    reading_positions,
    slot_offsets,
    van_der_corput,
    window_weights,
)

POOLED = MemoryLayout("pooled", "spread", 1)
LAYOUTS = [POOLED, MemoryLayout("pooled"), MemoryLayout("slots", "spread"), MemoryLayout(layer=1)]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: "-".join(map(str, layout.changes().values())))
def model(tiny_backbone: Path, request: pytest.FixtureRequest) -> ClaraModel:
    return with_layout(build(tiny_backbone), request.param)


def with_layout(model: ClaraModel, layout: MemoryLayout) -> ClaraModel:
    model.layout = layout
    return model


def encode(model: ClaraModel, texts: list[str], memory_tokens: int) -> torch.Tensor:
    with torch.no_grad():
        rows = [model.prompter.passage(text) for text in texts]
        return model.encode(rows, "compressor", memory_tokens).memory_BMD


@given(st.integers(1, 40), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_windows_cut_a_text_into_equal_parts(length: int, windows: int) -> None:
    """Of texts of several lengths in one batch: every position is in one window where there are
    enough, windows are in order, their sizes differ by one at most, and padding is in none."""
    lengths = (length, length + 3)
    weights_BML = window_weights(torch.tensor(lengths), length + 3, windows)
    for weights_ML, count in zip(weights_BML, lengths, strict=True):
        parts = [row.nonzero().flatten().tolist() for row in weights_ML]
        assert (weights_ML.sum(1) - 1).abs().max() < 1e-6
        if count >= windows:
            assert [place for part in parts for place in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        else:
            assert [part for part in parts] == [[k * count // windows] for k in range(windows)]


@given(st.integers(1, 6), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_windows_that_divide_a_text_are_torchs_average_pooling(size: int, windows: int) -> None:
    hidden_LD = torch.randn(size * windows, 4, generator=torch.Generator().manual_seed(size))
    (weights_ML,) = window_weights(torch.tensor([size * windows]), size * windows, windows)
    expected = F.avg_pool1d(hidden_LD.T[None], size)[0].T
    assert (weights_ML @ hidden_LD - expected).abs().max() < 1e-5


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_coarser_memory_is_the_same_by_one_step_or_two(a: int, b: int, c: int) -> None:
    memory_NMD = torch.randn(2, a * b * c, 3, generator=torch.Generator().manual_seed(a * b))
    once = coarsen(memory_NMD, a, "mean")
    assert (coarsen(coarsen(memory_NMD, a * b, "mean"), a, "mean") - once).abs().max() < 1e-5
    assert torch.equal(coarsen(memory_NMD, a, "prefix"), memory_NMD[:, :a])


def test_a_coarser_memory_is_the_mean_of_neighbours() -> None:
    memory_NMD = torch.tensor([[[1.0], [3.0], [10.0], [20.0]]])
    assert coarsen(memory_NMD, 2, "mean").flatten().tolist() == [2.0, 15.0]
    assert coarsen(memory_NMD, 4, "mean") is memory_NMD


def test_van_der_corputs_first_points() -> None:
    points = [van_der_corput(k) for k in range(7)]
    assert points == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]


@given(st.integers(1, 64), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_every_shorter_memory_lies_over_the_whole_text(memory_tokens: int, span: int) -> None:
    """Slots in van der Corput's order leave no gap longer than a quarter of what even spacing over
    the next power of two does; windows stand in order, each in the middle of its share."""
    offsets = slot_offsets(memory_tokens, span, "prefix")
    assert all(0 <= offset < span for offset in offsets)
    marks = [0, *sorted(offsets), span]
    widest = max(b - a for a, b in zip(marks, marks[1:], strict=False))
    assert widest <= 2 * span / (memory_tokens + 1) + 2
    even = slot_offsets(memory_tokens, span, "mean")
    assert even == sorted(even) and all(0 <= offset < span for offset in even)
    for k, offset in enumerate(even):
        assert abs(offset + 0.5 - (k + 0.5) * span / memory_tokens) <= 1


def test_each_passage_of_a_prompt_takes_as_many_positions_as_it_may_have_tokens() -> None:
    memory = frozenset({90, 91})
    ids = [5, 90, 91, 90, 91, 7, 90, 91, 8, 9]
    assert reading_positions(ids, memory, 16, "mean") == [
        *[0, 1 + 2, 1 + 6, 1 + 10, 1 + 14],
        *[17, 18 + 4, 18 + 12, 34, 35],
    ]
    assert reading_positions([1, 2, 3], memory, 16, "mean") == [0, 1, 2]


def test_the_hidden_states_of_a_layer_are_transformers_own(model: ClaraModel) -> None:
    embeds_BTD = model.embed(torch.tensor([[1, 40, 50, 60]]), None)
    with torch.no_grad(), model.role("compressor"):
        inner = inner_model(model.causal_lm)
        out = inner(inputs_embeds=embeds_BTD, output_hidden_states=True, use_cache=False)
        stopped_BTD = model("compressor", embeds_BTD, layer=1)
    assert (stopped_BTD - out.hidden_states[1]).abs().max() < 1e-5


def test_pooled_memory_is_the_mean_of_the_texts_hidden_states(tiny_backbone: Path) -> None:
    model = with_layout(build(tiny_backbone), POOLED)
    row = model.prompter.passage(TEXTS[3])
    with torch.no_grad():
        hidden_TD = model("compressor", model.embed(torch.tensor([row]), None), layer=1)[0, 1:]
    cuts = [k * len(hidden_TD) // 16 for k in range(17)]
    expected = torch.stack([hidden_TD[a:b].mean(0) for a, b in zip(cuts, cuts[1:], strict=False)])
    (memory_MD,) = encode(model, [TEXTS[3]], 16)
    assert (memory_MD - expected).abs().max() < 1e-5
    assert len(encode(model, [""], 16)) == 1  # a text of no token has its markers' states


def test_a_shorter_memory_is_the_longest_one_coarsened(model: ClaraModel) -> None:
    whole = encode(model, TEXTS, 16)
    for memory_tokens in (1, 3, 4, 8):
        shorter = coarsen(whole, memory_tokens, model.layout.coarsening)
        assert (encode(model, TEXTS, memory_tokens) - shorter).abs().max() < 1e-5


def test_a_passage_does_not_depend_on_its_batch(model: ClaraModel) -> None:
    together = encode(model, TEXTS, 8)
    for i, text in enumerate(TEXTS):
        assert (encode(model, [text], 8)[0] - together[i]).abs().max() < 1e-5


def test_questions_over_the_same_memory_are_computed_once_at_the_same_loss(
    model: ClaraModel,
) -> None:
    examples = [AnswerExample(f"Who is number {n}?", f"Nora {n}", (TEXTS[0],)) for n in range(4)]
    batch = answer_batch(model.prompter, examples, 8, 512)
    memory_ND = torch.randn(4 * 8, model.hidden, generator=torch.Generator().manual_seed(0))
    memory_ND[8:] = memory_ND[:8].repeat(3, 1)
    with torch.no_grad():
        together = model.nll(batch.rows, batch.labels, memory_ND, batch.contexts)
        apart = model.nll(batch.rows, batch.labels, memory_ND)
    assert together.item() == pytest.approx(apart.item(), abs=1e-5)


def test_gaps_between_positions_count_as_part_of_the_window(tiny_backbone: Path) -> None:
    model = build(tiny_backbone)
    ids = model.prompter.prompt(model.prompter.answer_chat("Who?", 3, 4))
    assert model.extent(ids) == len(ids)
    assert with_layout(model, POOLED).extent(ids) == len(ids) + 3 * (64 - 4)
    assert model.extent([]) == 0


def test_an_answer_is_what_its_likelihood_says(model: ClaraModel) -> None:
    """Greedy tokens after memory at its positions, alone and padded in a batch, are the likeliest
    ones by the scoring pass."""
    prompter = model.prompter
    prompts = [
        prompter.prompt(prompter.answer_chat(question, passages, 8))
        for question, passages in (("Who?", 1), ("Who is the mayor of Elmgate?", 2))
    ]
    memory_ND = torch.randn(3 * 8, model.hidden, generator=torch.Generator().manual_seed(0))
    together = model.generate(prompts, memory_ND, 5, min_new_tokens=5)
    parts = [memory_ND[:8], memory_ND[8:]]
    for prompt, part, answer in zip(prompts, parts, together, strict=True):
        assert model.generate([prompt], part, 5, min_new_tokens=5) == [answer]
        (best,) = log_likelihoods(model, [prompt], [answer[:1]], part)
        for other in range(3, 40):
            assert log_likelihoods(model, [prompt], [[other]], part)[0] <= best + 1e-5


def test_the_words_of_a_middle_layers_memory_are_read_after_the_norm(tiny_backbone: Path) -> None:
    model = with_layout(build(tiny_backbone), POOLED)
    (memory_MD,) = encode(model, [TEXTS[0]], 4)
    with torch.no_grad():
        logits_MV = model.causal_lm.lm_head(inner_model(model.causal_lm).norm(memory_MD))
    expected = logits_MV[:, : len(model.prompter.tokenizer)].argmax(-1).tolist()
    words = [one[0] for one in lens(model, memory_MD, 1)]
    assert words == [model.prompter.tokenizer.decode([i]) for i in expected]


def test_every_stage_trains_what_it_did(model: ClaraModel) -> None:
    from helpers.tiny_roles import loss_of

    model.train_only(("compressor", "generator"), memory=True)
    loss_of(model, "scp").loss.backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max()}
    assert any(".generator." in name for name in moved)
    assert any(".compressor." in name for name in moved)
    assert ("memory_MD" in moved) == (model.layout.source == "slots")


def info_of(model: ClaraModel, folder: Path) -> CheckpointInfo:
    base = model.backbone
    return CheckpointInfo(
        backbone=str(folder),
        revision=None,
        backbone_digest=base.digest,
        max_passage_tokens=64,
        memory_tokens=16,
        ratio=4,
        ratios=(4, 16),
        lora=model.lora,
        roles=model.roles,
        layout=model.layout,
    )


def test_a_checkpoint_keeps_its_layout_under_a_version_of_its_own(
    model: ClaraModel, tiny_backbone: Path, tmp_path: Path
) -> None:
    save(model, info_of(model, tiny_backbone), tmp_path / "c")
    stored = json.loads((tmp_path / "c" / "clara.json").read_text())
    assert (stored["version"], stored["memory"]) == (3, model.layout.changes())
    for only_reads in (False, True):
        options = LoadOptions(str(tmp_path / "c"), device="cpu", dtype="float32")
        loaded = load(replace(options, only_reads=only_reads))
        assert loaded.info.layout == loaded.model.layout == model.layout
        assert (encode(loaded.model, TEXTS, 8) - encode(model, TEXTS, 8)).abs().max() < 1e-5


def test_the_published_layout_leaves_checkpoints_as_they_were(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    model = build(tiny_backbone)
    info = save(model, info_of(model, tiny_backbone), tmp_path / "c")
    stored = json.loads((tmp_path / "c" / "clara.json").read_text())
    assert stored["version"] == 2 and "memory" not in stored
    others = {fingerprint(with_layout(model, one), info.backbone_digest, {}) for one in LAYOUTS}
    assert len(others | {fingerprint(with_layout(model, PUBLISHED), info.backbone_digest, {})}) == 5


@pytest.mark.parametrize(
    "memory",
    [
        {"source": "windows"},
        {"positions": 3},
        {"layer": 0},
        {"layer": "deep"},
        {"layer": True},
        {"scale": 2},
        [],
        "pooled",
    ],
)
def test_a_layout_that_is_not_known_is_refused_with_its_key(
    tiny_backbone: Path, tmp_path: Path, memory: object
) -> None:
    model = with_layout(build(tiny_backbone), POOLED)
    save(model, info_of(model, tiny_backbone), tmp_path / "c")
    file = tmp_path / "c" / "clara.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "memory": memory}))
    with pytest.raises(ArtefactError, match=r"clara\.json.*memory"):
        load(LoadOptions(str(tmp_path / "c")))


def test_a_layer_that_the_backbone_does_not_have_is_refused(tiny_backbone: Path) -> None:
    model = with_layout(build(tiny_backbone), MemoryLayout("pooled", layer=40))
    with pytest.raises(UsageError, match="memory_layer is 40"):
        model.check_layout()


def test_memory_begun_anew_keeps_the_generator_alone(tiny_backbone: Path) -> None:
    model = build(tiny_backbone)
    generator = {n: p.clone() for n, p in model.role_parameters("generator").items()}
    model.begin_memory_anew(POOLED, torch.zeros(32, model.hidden), 64)
    assert (model.roles, model.memory_tokens) == (("compressor", "generator"), 32)
    assert all(torch.equal(p, generator[n]) for n, p in model.role_parameters("generator").items())
    bare = model(None, model.embed(torch.tensor([[1, 40, 50]]), None))
    fresh = model("compressor", model.embed(torch.tensor([[1, 40, 50]]), None))
    assert torch.equal(bare, fresh)


def test_a_share_of_the_passages_is_written_out_too(tiny_backbone: Path) -> None:
    import random

    prompter = build(tiny_backbone).prompter
    for make in (
        lambda: answer_batch(prompter, QUESTIONS, 4, 512),
        lambda: scp_batch(prompter, PAIRS, [0, 3, 0], 4, 512),
    ):
        batch, before = make(), make()
        add_reconstructions(batch, prompter, 0.0, random.Random(0), 512)
        assert batch == before
        add_reconstructions(batch, prompter, 1.0, random.Random(0), 512)
        added = [
            (pool, [label for label in labels if label != IGNORE])
            for pool, labels in zip(batch.pools, batch.labels, strict=True)
        ][len(before.rows) :]
        assert [pool for pool, _ in added] == [[place] for place in range(len(before.passages))]
        for pool, target in added:
            text = prompter.text_of(batch.passages[pool[0]])
            assert (
                prompter.tokenizer.decode(target, skip_special_tokens=True).strip() == text.strip()
            )
        assert len(batch.contexts) in (0, len(batch.rows))
