"""What a checkpoint can do follows from its adapters: text from the memory of one passage, and what
is said where a role is missing."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from helpers import tiny_world
from safetensors.torch import load_file
from typer.testing import CliRunner

from clara_cli.answering.retelling import task_prompt
from clara_cli.cli.app import app
from clara_cli.commands import ask, compress, train
from clara_cli.core.abilities import Abilities
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.core.prompts import LIST_SYSTEM, PARAPHRASE_INSTRUCTIONS, PARAPHRASE_SYSTEM
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError, UsageError

EXACT = ["--device", "cpu", "--dtype", "float32", "--json"]


def do(works, heard, task: str | None = "paraphrase", passage: str | None = "d1#0", **changes):
    """(retelling, what was said) of a task on the shared corpus."""
    report = heard()
    config = tiny_world.ask(None, works.corpus, task=task, passage=passage, **changes)
    (made,) = ask.run(config, report)
    return made, report


@pytest.mark.parametrize(
    ("task", "system"), [("paraphrase", PARAPHRASE_SYSTEM), ("qa", LIST_SYSTEM)]
)
def test_a_task_is_greedy_text_over_the_stored_memory(works, heard, task, system):
    made, _ = do(works, heard, task, seed=3)
    corpus = Corpus.open(works.corpus)
    row = next(r for r, p in enumerate(corpus.passages()) if p.passage_id == "d1#0")
    model = load(LoadOptions(str(works.e2e), device="cpu", dtype="float32")).model
    memory_MD = corpus.memory([row])[0]
    prompter, memory_tokens = model.prompter, len(memory_MD)
    chat = (
        prompter.list_chat(memory_tokens)
        if task == "qa"
        else prompter.paraphrase_chat(memory_tokens, 3)
    )
    assert chat[0] == system
    prompt = prompter.prompt(chat)
    (ids,) = model.generate([prompt], memory_MD, 8)
    assert made.answer == prompter.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert (made.task, made.passage) == (task, corpus.passage(row))
    assert (made.memory_tokens, made.prompt_tokens) == (memory_tokens, len(prompt))
    assert made.text_tokens_replaced == corpus.passage(row).tokens


def test_the_seed_picks_the_instruction_and_the_ratio_the_memory(works):
    model = load(LoadOptions(str(works.e2e), device="cpu", dtype="float32")).model
    memory_MD = torch.zeros(4, 32)
    prompts = [task_prompt(model, "paraphrase", memory_MD, n).ids for n in range(14)]
    assert prompts[13] == prompts[0]
    assert len({tuple(ids) for ids in prompts}) == len(PARAPHRASE_INSTRUCTIONS)


def test_a_higher_ratio_reads_fewer_memory_tokens(works, heard):
    assert do(works, heard)[0].memory_tokens == 16
    assert do(works, heard, ratio=16)[0].memory_tokens == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passage": None}, "--task without --passage"),
        ({"task": None}, "--passage without --task"),
        ({"question": "Who?"}, "and a question do not go together"),
        ({"top_k": 3}, "--top-k do not go"),
        ({"where": "rank=1"}, "--where do not go"),
        ({"require_support": True}, "--require-support do not go"),
        ({"passage": "d1"}, "no passage 'd1' in"),
        ({"max_new_tokens": 4000}, "exceed the backbone's window"),
    ],
)
def test_what_does_not_go_with_a_task_is_refused(works, heard, changes, message):
    config = tiny_world.ask(None, works.corpus, task="qa", passage="d1#0")
    with pytest.raises(UsageError, match=message) as caught:
        list(ask.run(dataclasses.replace(config, **changes), heard()))
    assert caught.value.hint
    if changes.get("passage") == "d1":
        assert "'d1#0'" in caught.value.hint


def test_a_dry_run_refuses_what_the_run_would(works, heard):
    for changes in ({"passage": None}, {"top_k": 3}):
        given = {"task": "qa", "passage": "d1#0", "dry_run": True, **changes}
        with pytest.raises(UsageError, match="--task"):
            list(ask.run(tiny_world.ask(None, works.corpus, **given), heard()))


def test_json_and_text_of_a_task(works):
    words = ["ask", "--task", "qa", "--passage", "long#0", "--corpus", str(works.corpus)]
    words += ["--max-new-tokens", "4"]
    done = CliRunner().invoke(app, [*words, *EXACT])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout.splitlines()[-1])
    assert list(made) == [
        *("task", "passage_id", "document_id", "title", "text", "start", "end", "answer"),
        *("memory_tokens", "prompt_tokens", "text_tokens_replaced", "seconds"),
    ]
    assert (made["task"], made["passage_id"], made["start"]) == ("qa", "long#0", 0)
    shown = CliRunner().invoke(app, [*words, *EXACT[:-1]]).stdout
    assert "qa from 16 memory tokens for" in shown and made["text"][:30] in shown


# --- what is said ---


def without(checkpoint: Path, out: Path, *roles: str) -> Path:
    """A copy of a native checkpoint that lacks some roles."""
    shutil.copytree(checkpoint / "checkpoint", out)
    described = json.loads((out / "clara.json").read_text())
    described["roles"] = [role for role in described["roles"] if role not in roles]
    (out / "clara.json").write_text(json.dumps(described))
    for role in roles:
        shutil.rmtree(out / role)
    return out


def test_without_a_query_reasoner_it_is_said_once_how_passages_are_found(works, heard, tmp_path):
    model = str(without(works.e2e, tmp_path / "instruct", "query_reasoner"))
    said = {
        "auto": "found by their words (BM25), else by the compressor reading the question",
        "bm25": "found by their words (BM25)",
        "latent": "ranked by the compressor reading it",
        "hybrid": "ranked by the compressor reading it",
    }
    for stage, how in said.items():
        report = heard()
        config = tiny_world.ask(
            "Who is mayor of Pinewick?", works.corpus, model=model, first_stage=stage
        )
        (answer,) = ask.run(config, report)
        told = [note for note in report.notes if "no query reasoner: passages are" in note]
        assert told == [f"this checkpoint has no query reasoner: passages are {how}"]
        assert answer.sources


def test_latent_search_without_a_query_reasoner_is_the_compressors_own_reading(
    works, heard, tmp_path
):
    model = str(without(works.e2e, tmp_path / "instruct", "query_reasoner"))
    question = "Who is mayor of Pinewick?"
    config = tiny_world.ask(question, works.corpus, model=model, first_stage="latent", top_k=3)
    (answer,) = ask.run(config, heard())
    loaded = load(LoadOptions(model, device="cpu", dtype="float32")).model
    row = loaded.prompter.passage(question)
    with torch.no_grad():
        query_P = loaded.encode([row], "compressor", 16).memory_BMD.flatten()
    corpus = Corpus.open(works.corpus)
    memory_NP = corpus.memory(range(len(corpus))).flatten(1)
    cosines_N = torch.nn.functional.cosine_similarity(memory_NP, query_P[None])
    best = cosines_N.topk(3)
    assert [hit.row for hit in answer.sources] == best.indices.tolist()
    assert [hit.score for hit in answer.sources] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("missing", "needed"),
    [("generator", "ask"), ("compressor", "compress"), ("compressor", "train")],
)
def test_a_missing_role_is_one_error(works, heard, tmp_path, missing, needed):
    model = without(works.e2e, tmp_path / "part", missing)
    if missing == "compressor":  # its fingerprint is of a model with one
        described = json.loads((model / "clara.json").read_text())
        found = load_fingerprint(model)
        (model / "clara.json").write_text(json.dumps({**described, "fingerprint": found}))
    with pytest.raises(ArtefactError, match=f"no {missing} in this checkpoint") as caught:
        if needed == "ask":
            list(ask.run(tiny_world.ask("Who?", works.corpus, model=str(model)), heard()))
        elif needed == "compress":
            compress.run(tiny_world.compress(works.documents, model, tmp_path / "x.clara"), heard())
        else:
            train.run(
                tiny_world.train(works.questions, model, tmp_path / "run", "instruct"), heard()
            )
    assert "it has " in caught.value.hint
    assert missing not in caught.value.hint


def load_fingerprint(model: Path) -> str:
    """What a checkpoint's fingerprint would be, as the error's check computes it."""
    from clara_cli.core import checkpoint

    seen = []
    original = checkpoint.fingerprint
    checkpoint.fingerprint = lambda *args: seen.append(original(*args)) or seen[-1]
    try:
        with pytest.raises(ArtefactError, match="fingerprint"):
            load(LoadOptions(str(model), device="cpu", dtype="float32"))
    finally:
        checkpoint.fingerprint = original
    return seen[0]


@pytest.mark.parametrize(
    ("roles", "stage", "said"),
    [
        (
            ("compressor", "generator"),
            "stage1",
            "compresses documents, paraphrases a passage and lists its questions (ask --task); "
            "it has no query reasoner",
        ),
        (
            ("compressor", "generator"),
            "stage1_2",
            "compresses documents, answers questions; it has no query reasoner",
        ),
        (
            ("compressor", "query_reasoner", "generator"),
            "stage2",
            "compresses documents, answers questions, finds passages by its query reasoner",
        ),
        (("query_reasoner",), "retrieval", "finds passages by its query reasoner"),
    ],
)
def test_abilities_follow_from_roles_and_stage(roles, stage, said):
    assert Abilities("x", roles, stage).sentence() == f"x ({stage}): {said}"


# --- the recorded released checkpoints, stage by stage ---

CASES = {"mistral_256_32": "mistral-tiny", "nosys_64_4": "mistral-nosys-tiny"}


@pytest.fixture(scope="module", params=CASES)
def released(request, shared):
    """(folder of the recorded case, --model and --backbone words of one of its checkpoints)."""
    folder = shared / "reference" / "fixtures" / request.param
    backbone = shared / "reference" / "backbones" / CASES[request.param]

    def words(stage: str) -> list[str]:
        return ["--model", str(folder / f"ckpt_{stage}"), "--backbone", str(backbone)]

    return folder, words


def test_prompts_of_tasks_are_the_recorded_ones(released):
    folder, words = released
    checkpoint, backbone = words("stage1")[1::2]
    model = load(LoadOptions(checkpoint, backbone, "cpu", "float32")).model
    facts = json.loads((folder / "case.json").read_text())
    recorded = [
        (load_file(folder / "tensors.safetensors"), "stage1.", facts["stage1_batch"]["items"]),
        (
            load_file(folder / "paraphrase.safetensors"),
            "",
            json.loads((folder / "paraphrase.json").read_text())["items"],
        ),
    ]
    for tensors, prefix, items in recorded:
        rng, compared = random.Random(5), set()
        for number, item in enumerate(items):
            task = "paraphrase" if "paraphrase" in item else "qa"
            instruction = rng.choice(range(13)) if task == "paraphrase" else 0
            ids = tensors[f"{prefix}dec_input_ids"][number]
            unlabelled = tensors[f"{prefix}labels"][number] == -100
            real = tensors[f"{prefix}dec_attention_mask"][number].bool()
            prompt = task_prompt(model, task, torch.zeros(model.memory_tokens, 1), instruction).ids
            assert prompt == ids[unlabelled & real].tolist()
            compared.add(task)
        assert compared


def test_every_recorded_stage_does_what_its_adapters_allow(released, tmp_path):
    _, words = released
    data = tiny_world.write_jsonl(tmp_path / "d.jsonl", [{"id": "a", "text": "Ann lives in Rome."}])
    for stage, told in (
        ("stage1", "paraphrases a passage"),
        ("stage1_2", "answers questions; it has no query reasoner"),
        ("stage2", "finds passages by its query reasoner"),
    ):
        corpus, model = str(tmp_path / f"{stage}.clara"), words(stage)
        done = CliRunner().invoke(app, ["compress", str(data), *model, "--out", corpus, *EXACT])
        assert done.exit_code == 0, done.output
        assert told in done.stderr
        common = ["--corpus", corpus, *model, "--max-new-tokens", "4", *EXACT]
        task = CliRunner().invoke(app, ["ask", "--task", "qa", "--passage", "a#0", *common])
        asked = CliRunner().invoke(app, ["ask", "Where is Ann?", *common])
        for run in (task, asked):
            assert run.exit_code == 0, run.output
            assert json.loads(run.stdout.splitlines()[-1])["memory_tokens"]
        assert ("was not trained to answer questions" in asked.stderr) == (stage == "stage1")
        assert ("trained last to answer" in task.stderr) == (stage != "stage1")
        assert ("no query reasoner: passages" in asked.stderr) == (stage != "stage2")
