"""What each stage of `train` makes of its data: golds, pools, and what they are called."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from helpers import tiny_world

from clara_cli.commands import pretrain, train
from clara_cli.core.batch import retrieval_batch
from clara_cli.core.checkpoint import LoadOptions, load, read_info
from clara_cli.core.stage_losses import TRAINED, rank_pools
from clara_cli.documents.examples import read_questions
from clara_cli.errors import DataError, UsageError
from clara_cli.training.instruct import Instruct
from clara_cli.training.retrieval import Retrieval
from clara_cli.training.sampling import sample_step


def variants() -> list[dict]:
    """Pools of two to five passages, one or two of them called gold that share no name with the
    question, so that there is something to learn."""
    records = tiny_world.questions(pool=5)
    for number, record in enumerate(records):
        pool = record["paragraphs"] = record["paragraphs"][: 2 + number % 4]
        pool[0]["gold"], pool[-1]["gold"] = False, True
        pool[1]["gold"] |= number % 2 == 0 and len(pool) > 2
    return records


def ranked_first(questions: Path, checkpoint: Path) -> float:
    """Mean reciprocal rank of the best gold passage by cosine, the checkpoint's query reasoner
    asking."""
    model = load(LoadOptions(str(checkpoint), device="cpu", dtype="float32")).model
    config = tiny_world.train(questions, checkpoint, Path("unused"), "retrieval")
    asked = list(read_questions([str(questions)]))
    examples = [Retrieval.example(question, config, random.Random(0)) for question in asked]
    with torch.no_grad():
        _, scores = rank_pools(model, retrieval_batch(model.prompter, examples, 4))
    ranks = [
        min(int((found > found[gold]).sum()) + 1 for gold in example.golds)
        for found, example in zip(scores, examples, strict=True)
    ]
    return sum(1 / rank for rank in ranks) / len(ranks)


def test_retrieval_learns_to_rank_gold_passages_first(works, report, tmp_path):
    """Pools of unlike sizes, one or two golds; the compressor and the memory space stay."""
    data = tiny_world.write_jsonl(tmp_path / "q.jsonl", variants())
    settings = {"steps": 30, "batch_size": 8, "dropout": 0.0, "ratios": (16,)}
    config = tiny_world.train(data, works.scp, tmp_path / "run", "retrieval", **settings)
    result = train.run(config, report)
    lines = tiny_world.metrics(tmp_path / "run")
    assert result.stage == "retrieval" and result.mse is None
    assert lines[-1]["ce"] < 0.5 * lines[0]["ce"]
    start = tmp_path / "start"
    still = settings | {"steps": 1, "learning_rate": 0.0}
    train.run(tiny_world.train(data, works.scp, start, "retrieval", **still), report)
    before = ranked_first(data, start / "checkpoint")
    assert before < 0.7 < 0.9 < ranked_first(data, tmp_path / "run" / "checkpoint")
    made, scp = (read_info(p / "checkpoint") for p in (tmp_path / "run", works.scp))
    assert made.fingerprint == scp.fingerprint
    assert set(made.roles) == {"compressor", "generator", "query_reasoner"}


def test_retrieval_needs_no_answers(works, report, tmp_path):
    records = [{k: v for k, v in r.items() if k != "answer"} for r in tiny_world.questions()]
    data = tiny_world.write_jsonl(tmp_path / "q.jsonl", records)
    train.run(tiny_world.train(data, works.scp, tmp_path / "run", "retrieval", steps=1), report)
    assert tiny_world.metrics(tmp_path / "run")[0]["ce"] > 0
    with pytest.raises(DataError, match=r"q.jsonl:1: no answer"):
        train.run(tiny_world.train(data, works.scp, tmp_path / "other", "e2e", steps=1), report)


@pytest.mark.parametrize(("gold", "words"), [(False, "is gold"), (True, "every passage")])
def test_retrieval_refuses_a_question_it_cannot_learn_from(works, report, tmp_path, gold, words):
    records = tiny_world.questions()
    for paragraph in records[2]["paragraphs"]:
        paragraph["gold"] = gold
    data = tiny_world.write_jsonl(tmp_path / "q.jsonl", records)
    with pytest.raises(DataError, match=rf"q.jsonl:3: .*{words}"):
        train.run(tiny_world.train(data, works.scp, tmp_path / "run", "retrieval"), report)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [3, [4], [-1], ["0"], [True]])
def test_positions_of_golds_are_checked(works, report, tmp_path, wrong):
    record = {"question": "Who?", "answer": "Nora", "docs": ["a", "b"], "pos_index": wrong}
    data = tiny_world.write_jsonl(tmp_path / "q.jsonl", [record])
    with pytest.raises(DataError, match=r"q.jsonl:1: pos_index is .* from 0 to 1"):
        train.run(tiny_world.train(data, works.scp, tmp_path / "run", "retrieval"), report)


FORMS = {
    "pair": tiny_world.pairs()[0],
    "paraphrase": tiny_world.pairs()[2],
    "question": tiny_world.questions()[0],
    "qas": {"text": "A town.", "qas": [{"question": "What?", "answers": ["a town"]}]},
    "docs": {
        "question": "What?",
        "answers": ["a town"],
        "docs": ["A town.", "b"],
        "pos_index": [0],
    },
    "document": tiny_world.documents()[0],
}


@pytest.mark.parametrize(
    ("stage", "form"),
    [
        (stage, form)
        for stage in TRAINED
        for form in FORMS
        if form == "document" or (form in ("pair", "paraphrase")) != (stage == "scp")
    ],
)
@pytest.mark.parametrize("held_out", [False, True], ids=["data", "validation"])
def test_data_of_another_stages_form_is_refused_by_line_with_what_reads_it(
    works, report, tmp_path, stage, form, held_out
):
    own = works.pairs if stage == "scp" else works.questions
    good = json.loads(own.read_text().splitlines()[0])
    data = tiny_world.write_jsonl(tmp_path / "q.jsonl", [good, FORMS[form]])
    files = {"pairs" if stage == "scp" else "questions": (str(data),)}
    if held_out:
        files = {"validation": (str(data),)}
    config = (
        tiny_world.scp(works.pairs, works.backbone, tmp_path / "run", **files)
        if stage == "scp"
        else tiny_world.train(works.questions, works.instruct, tmp_path / "run", stage, **files)
    )
    command = train if stage != "scp" else pretrain
    with pytest.raises(DataError, match=r"q.jsonl:2: a ") as caught:
        command.run(config, report)
    reader = "synth" if form == "document" else "train" if stage == "scp" else "pretrain"
    assert f"clara {reader}" in caught.value.hint and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("number", "key", "words"),
    [
        (0, "docs", r"2 docs, a pair is of one passage"),
        (2, "docs", r"2 docs, a pair is of one passage"),
        (2, "answers", r"2 answers, a paraphrase is one text"),
    ],
)
def test_what_a_pair_would_leave_unread_is_refused(works, report, tmp_path, number, key, words):
    good, pair = tiny_world.pairs()[0], tiny_world.pairs()[number]
    more = {**pair, key: [*pair[key], "Another."]}
    data = tiny_world.write_jsonl(tmp_path / "q.jsonl", [good, more])
    with pytest.raises(DataError, match=rf"q.jsonl:2: {words}") as caught:
        pretrain.run(tiny_world.scp(data, works.backbone, tmp_path / "run"), report)
    assert "a record of its own" in caught.value.hint and not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", TRAINED)
def test_a_lone_surrogate_anywhere_in_a_record_is_named(works, report, tmp_path, stage):
    data, key = (works.pairs, "docs") if stage == "scp" else (works.questions, "paragraphs")
    lines = data.read_text(encoding="utf-8").splitlines()[:2]
    lines[1] = (
        lines[1].replace('"text": "', '"text": "\\ud83d').replace('"docs": ["', '"docs": ["\\ud83d')
    )
    broken = tmp_path / "q.jsonl"
    broken.write_text("\n".join(lines), encoding="utf-8")
    if stage == "scp":
        command, config = pretrain, tiny_world.scp(broken, works.backbone, tmp_path / "run")
    else:
        command, config = train, tiny_world.train(broken, works.instruct, tmp_path / "run", stage)
    with pytest.raises(DataError, match=rf"q.jsonl:2: {key} has the lone surrogate \\ud83d"):
        command.run(config, report)
    assert not (tmp_path / "run").exists()


def test_no_stage_is_a_usage_error_that_names_them(works, report, tmp_path):
    config = tiny_world.train(works.questions, works.scp, tmp_path / "run", None)
    with pytest.raises(UsageError) as caught:
        train.run(config, report)
    assert all(stage in caught.value.hint for stage in ("instruct", "retrieval", "e2e"))


# --- a part of the roles ---


@pytest.mark.parametrize(
    ("stage", "roles"),
    [("instruct", "generator"), ("instruct", "compressor"), ("e2e", "generator")],
)
def test_a_variant_trains_its_role_alone_and_says_so(works, report, tmp_path, stage, roles):
    init = works.scp if stage == "instruct" else works.instruct
    config = tiny_world.train(works.questions, init, tmp_path / "run", stage, train_roles=(roles,))
    train.run(config, report)
    before, after = (tiny_world.tensors(path / "checkpoint") for path in (init, tmp_path / "run"))
    moved = {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {roles}
    info = read_info(tmp_path / "run" / "checkpoint")
    assert info.provenance[-1]["roles"] == [roles]
    same = info.fingerprint == read_info(init / "checkpoint").fingerprint
    assert same == (roles != "compressor")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_roles": ("compressor",)}, "e2e does not train 'compressor'"),
        ({"train_roles": ("judge",)}, "does not train 'judge'"),
        ({"train_roles": ("generator",), "train_memory": True}, "generator alone.*train_memory"),
    ],
)
def test_roles_that_cannot_be_trained_are_refused(works, report, tmp_path, changes, words):
    config = tiny_world.train(works.questions, works.instruct, tmp_path / "run", "e2e", **changes)
    with pytest.raises(UsageError, match=words):
        train.run(config, report)


# --- several answers ---


def several(tmp_path: Path) -> Path:
    return tiny_world.write_jsonl(
        tmp_path / "q.jsonl", [{**r, "answers": ["Her", "Him"]} for r in tiny_world.questions()]
    )


def test_of_several_answers_each_is_learned_at_some_visit_and_the_same_again(tmp_path):
    """A function of (seed, step): another pass may draw another."""
    data = several(tmp_path)
    asked = list(read_questions([str(data)]))

    def drawn(**changes) -> list[str]:
        changed = tiny_world.train(data, Path("init"), tmp_path / "run", "instruct", **changes)
        visits = [sample_step(changed, step, asked) for step in range(60)]
        return [Instruct.example(q, changed, rng).answer for picked, rng in visits for q in picked]

    assert drawn() == drawn() != drawn(seed=1)
    first = asked[0].answers[0]
    assert set(drawn()) == {"Him", "Her", *{q.answers[0] for q in asked}}
    assert first in drawn(gold_answer="first") and "Him" not in drawn(gold_answer="first")


def test_recomputing_layers_changes_no_run(works, report, tmp_path):
    """Dropout included: it is drawn again as it was."""
    for name, value in (("kept", False), ("again", True)):
        config = tiny_world.train(works.questions, works.instruct, tmp_path / name, "e2e")
        config = type(config)(**{**config.__dict__, "checkpointing": value})
        train.run(config, report)
    kept, again = (tiny_world.metrics(tmp_path / name) for name in ("kept", "again"))
    for line, other in zip(kept, again, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-4)
