"""nano's recipe: the invented world, the packed data, the training script from end to end."""

from __future__ import annotations

import importlib
import itertools
import json
import lzma
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.core.checkpoint import LoadOptions, load, save
from clara_cli.documents.examples import read_pairs, read_questions

ROOT = Path(__file__).parent.parent.parent
NANO, BUNDLED = ROOT / "recipes" / "nano", ROOT / "clara_cli" / "models" / "nano"


def module(name: str):
    sys.path.insert(0, str(NANO))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(NANO))


world, data, sources, packed = map(module, ("world", "role_data", "sources", "packed_format"))
pack, batches, network = map(module, ("pack", "batches", "network"))
schedule, weights, train = map(module, ("schedule", "weights", "train"))
PACKING = ("--tokenizer", str(BUNDLED / "backbone"), "--world", "80", "--mib", "1")
TASKS = frozenset({"memory", "text", "repeat", "stream", "search", "slots", "read"})


@given(st.integers(0, 10**9), st.booleans())
def test_every_fact_is_in_its_passage_and_every_question_names_its_entity(seed, held_out):
    entry = world.entry(random.Random(seed), held_out)
    assert world.is_held_out(entry.title) == held_out
    retold = world.retell(entry, random.Random(seed))
    for fact in entry.facts:
        assert fact.value in entry.text and fact.value in retold
        assert all(entry.title in question for question in fact.questions)


def test_the_same_seed_gives_the_same_world_and_another_another():
    first, again, other = (
        [e.text for e in itertools.islice(world.entries(seed), 20)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_training_never_meets_a_held_out_entity():
    titles = {e.title for e in itertools.islice(world.entries(0), 3000)}
    assert not any(world.is_held_out(title) for title in titles)


def test_the_training_files_are_what_the_commands_read(tmp_path):
    data.write(tmp_path / "pairs.jsonl", data.pairs(30, 0))
    data.write(tmp_path / "questions.jsonl", data.questions(10, 0))
    pairs = read_pairs([str(tmp_path / "pairs.jsonl")])
    assert sum(p.kind == "paraphrase" for p in pairs) == 10
    assert all(a in p.texts[0] for p in pairs if p.kind == "qa" for a in p.answers)
    for question in read_questions([str(tmp_path / "questions.jsonl")]):
        gold = [p for p in question.pool if p.gold]
        assert len(question.pool) == data.POOL and len(gold) == 1
        assert question.answers[0] in gold[0].text


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """Files shaped like the real ones, of invented text."""
    folder = tmp_path_factory.mktemp("real")
    made = list(itertools.islice(world.entries(5), 60))
    passages = [
        {
            "title": e.title,
            "text": e.text,
            "qas": [{"question": f.questions[0], "answers": [f.value]} for f in e.facts],
        }
        for e in made
    ]
    write_lines(folder / "squad" / "train.jsonl.xz", passages[:40])
    articles = [{"title": e.title, "text": f"{e.text}\n{made[0].text}"} for e in made[30:]]
    write_lines(folder / "wiki" / "part-00.jsonl.xz", articles)
    pool = [{"title": e.title, "text": e.text, "gold": i < 2} for i, e in enumerate(made[50:56])]
    fact = made[51].facts[0]
    asked = {"id": "hop", "question": fact.questions[0], "answer": fact.value, "paragraphs": pool}
    for name in ("hotpotqa", "musique"):
        path = folder / "multihop" / f"{name}_train.jsonl.xz"
        write_lines(path, [{**asked, "dataset": name, "id": name}])
    return folder


@pytest.fixture(scope="module")
def packed_folder(real, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    pack.main([str(real), str(out), *PACKING])
    return out


@pytest.fixture(scope="module")
def arrays(packed_folder) -> dict:
    return packed.read(packed_folder)[0]


@pytest.fixture(scope="module")
def pieces(packed_folder) -> dict:
    return packed.read(packed_folder)[1]["pieces"]


@pytest.fixture(scope="module")
def tok(packed_folder):
    return pack.PreTrainedTokenizerFast.from_pretrained(packed_folder)


def builder(arrays, pieces, **mixture):
    chosen = {"squad": 0.5, "wiki": 0.2, "world": 0.2, "hotpotqa": 0.1}
    small = batches.Mixture(chosen, **{"passages": 8, "cluster": 4, "stream": 2, **mixture})
    return batches.Builder(arrays, pieces, small, seed=0)


def test_a_packed_folder_is_repeatable_and_a_damaged_one_is_refused(real, packed_folder, tmp_path):
    again = tmp_path / "again"
    pack.main([str(real), str(again), *PACKING])
    files = sorted(path.name for path in packed_folder.iterdir())
    assert files == sorted(path.name for path in again.iterdir())
    assert all((again / n).read_bytes() == (packed_folder / n).read_bytes() for n in files)
    victim = again / "passage_tokens.xz"
    victim.write_bytes(victim.read_bytes()[:-8])
    with pytest.raises(SystemExit, match="passage_tokens.xz: damaged"):
        packed.read(again)


def test_a_tokenizer_is_learnt_where_none_is_given(real, monkeypatch, tmp_path):
    learn = pack.nano_tokenizer.train
    monkeypatch.setattr(pack.nano_tokenizer, "train", lambda *a: learn(*a, invented=200))
    pack.main([str(real), str(tmp_path), "--vocab", "500", "--world", "20", "--mib", "1"])
    arrays, manifest = packed.read(tmp_path)
    assert manifest["vocabulary"] == 500 > arrays["passage_tokens"].max()
    tok = pack.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    first = packed.Ragged.of(arrays, "passage")[0]
    text = next(sources.squad(real / "squad" / "train.jsonl.xz"))
    assert tok.decode(first) == f"{text.title}\n{text.text}"


def test_a_dev_file_is_never_packed(tmp_path):
    for name in ("dev.jsonl.xz", "hotpotqa_dev.jsonl.xz"):
        write_lines(tmp_path / name, [{}])
        with pytest.raises(SystemExit, match="dev file"):
            list(sources.lines(tmp_path / name))


def test_packed_questions_belong_to_passages_that_hold_their_answers(arrays, tok):
    passages, questions, answers = (
        packed.Ragged.of(arrays, name) for name in ("passage", "question", "answer")
    )
    assert len(questions) == len(answers) == len(arrays["question_passage"]) > 300
    for n, owner in enumerate(arrays["question_passage"]):
        text, question = tok.decode(passages[owner]), tok.decode(questions[n])
        assert tok.decode(answers[n]).strip() in text
        assert question.startswith("\n\nQuestion:")
    near = arrays["passage_near"]
    assert not (near == np.arange(len(near))[:, None]).any()
    hops = [n for n, also in enumerate(arrays["question_also"]) if (also >= 0).any()]
    assert len(hops) == 2
    names = [packed.SOURCES[s] for s in arrays["passage_source"]]
    assert {names[arrays["question_passage"][n]] for n in hops} == {"hotpotqa", "musique"}


def test_a_cloze_gap_is_a_name_or_number_inside_its_sentence(arrays, tok):
    passages = packed.Ragged.of(arrays, "passage")
    assert len(arrays["cloze_passage"]) >= 10
    for owner, (start, gap, end, stop) in zip(
        arrays["cloze_passage"], arrays["cloze_span"], strict=True
    ):
        answer = tok.decode(passages[owner][gap:end])
        sentence = tok.decode(passages[owner][start:stop])
        assert answer[0] == " " and (answer[1].isupper() or answer[1].isdigit())
        assert answer in sentence and sentence.strip()[-1] == "."


def test_passages_that_tell_nearly_the_same_are_paired():
    first = "the mill on the river was built in 1820 by two brothers from the north"
    assert sources.overlap(first, first + " and sold") == 1.0
    assert sources.overlap(first, "nothing of the kind stands here at all, sir") == 0.0
    records = [
        sources.Source("squad", "Mill", first),
        sources.Source("wiki", "Mill", first.replace("two brothers", "two sisters")),
        sources.Source("wiki", "Other", first.replace("two", "three")),
    ]
    assert pack.same_pairs(records)["same"].tolist() == [[0, 1]]


def test_a_batch_depends_on_seed_and_step_alone(arrays, pieces):
    one, other = builder(arrays, pieces), builder(arrays, pieces)
    other.batch(3, TASKS)
    first, again, later = one.batch(7, TASKS), other.batch(7, TASKS), one.batch(8, TASKS)
    assert (first.passages == again.passages).all() and (first.words == again.words).all()
    for name, rows in first.tasks.items():
        assert (rows.ids == again.tasks[name].ids).all()
    assert first.passages.shape != later.passages.shape or (first.passages != later.passages).any()


@given(st.integers(0, 10_000))
def test_rows_hold_the_memories_they_name_and_predict_answers_only(arrays, pieces, step):
    batch = builder(arrays, pieces).batch(step, TASKS)
    for name in ("memory", "repeat"):
        rows = batch.tasks[name]
        assert (rows.ids == network.MEMORY).sum() == len(rows.memories) * batch.slots
        assert rows.memories.max() < len(batch.passages)
    rows = batch.tasks["memory"]
    assert (rows.ids.ravel()[rows.where + 1] == rows.targets).all()
    assert set(np.unique(rows.weights)) == {np.float32(0.2), np.float32(1)}
    ends = (rows.targets[rows.weights == 1] == pieces["eos"][0]).sum()
    asked = (rows.ids == pieces["assistant"][0]).sum()
    assert ends == asked
    assert batch.lengths.max() + batch.slots <= batch.passages.shape[1]
    tasks = sum(rows.ids.size for rows in batch.tasks.values())
    assert batch.tokens == batch.passages.size + batch.queries.size + tasks


def test_held_out_passages_are_never_trained_on(arrays, pieces):
    made = builder(arrays, pieces)
    held = set(np.flatnonzero(arrays["passage_held"]))
    assert held
    assert all(held.isdisjoint(rows) for rows in made.seeds.values())


def test_a_run_ends_inside_its_minutes_whatever_its_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    for pace, later in ((0.5, 0.5), (0.5, 2.0), (0.5, 0.1)):
        now[0], clock = 100.0, schedule.Clock(10)
        clock.start(now[0])
        rates = []
        while clock.share < 1:
            now[0] += pace if not clock.horizon else later
            clock.tick(1000)
            rates.append(schedule.rate(clock.share))
        assert clock.seconds <= 600 and rates[-1] == pytest.approx(0.02, abs=0.03)
        assert clock.tokens_per_second == pytest.approx(1000 / pace, rel=0.01)
        assert max(rates) == 1.0


def test_the_learning_rate_warms_up_holds_and_falls():
    shares = [0.001, 0.01, 0.02, 0.5, 0.6, 0.8, 1.0]
    found = [schedule.rate(share) for share in shares]
    assert found[0] < found[1] < found[2] == found[3] == 1.0
    assert found[3] > found[4] > found[5] > found[6] == 0.02


def trained(packed_folder: Path, out: Path, steps: int, *more: str) -> None:
    train.main(
        ["--data", str(packed_folder), "--out", str(out), "--steps", str(steps), "--cpu"]
        + "--minutes 5 --hidden 64 --layers 1 --inner 96 --passages 4 --cluster 2".split()
        + "--stream 1 --window 64 --text-first 0 --checked 4 --lr 3e-3".split()
        + list(more)
    )


@pytest.fixture(scope="module")
def run(packed_folder, tmp_path_factory) -> Path:
    """Three steps of a tiny backbone, through its own command line."""
    folder = tmp_path_factory.mktemp("nano") / "run"
    trained(packed_folder, folder, 3)
    return folder


def test_training_goes_on_where_it_stopped(run, packed_folder):
    before = torch.load(run / "last.pt", weights_only=True)
    assert before["clock"]["steps"] == 3
    trained(packed_folder, run, 5)
    after = torch.load(run / "last.pt", weights_only=True)
    assert after["clock"]["steps"] == 5
    assert after["clock"]["tokens"] > before["clock"]["tokens"]
    assert len(after["log"]) == 2 and set(after["log"][-1]["losses"]) == TASKS


def test_every_parameter_learns_in_one_step(packed_folder, arrays, pieces, run):
    torch.manual_seed(0)
    shape = json.loads((run / "weights" / "about.json").read_text())["shape"]
    net = network.Network(network.build_model(**shape), network.Memory(64, shape["hidden"]))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    small = builder(arrays, pieces, slots=(64,))
    train.Trainer(net, 1e-3, False, False).step(small.batch(0, TASKS), TASKS, 1.0)
    still = [name for name, p in net.named_parameters() if torch.equal(p, before[name])]
    assert not still


def test_bfloat16_has_the_losses_and_the_gradients_of_float32(arrays, pieces):
    shape, state = weights.read(BUNDLED)
    small = builder(arrays, pieces, slots=(16,)).batch(0, TASKS)
    losses, gradients = [], []
    for bf16 in (False, True):
        net = network.Network(network.build_model(**shape), network.Memory(64, shape["hidden"]))
        net.load_state_dict(state)
        trainer = train.Trainer(net, 1e-3, False, bf16)
        with trainer.autocast():
            found = trainer.losses(small, TASKS)
        sum(found.values()).backward()
        losses.append({name: value.item() for name, value in found.items()})
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_weights_travel_in_parts_and_come_back_whole(run, monkeypatch, tmp_path):
    shape, state = weights.read(run / "weights")
    net = network.Network(network.build_model(**shape), network.Memory(64, shape["hidden"]))
    net.load_state_dict(state)
    monkeypatch.setattr(weights, "PART", 30_000)
    weights.write(tmp_path, net, {"shape": shape})
    files = list(tmp_path.glob("part-*.safetensors"))
    assert len(files) > 3 and all(f.stat().st_size < 40_000 for f in files)
    _, again = weights.read(tmp_path)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_run_can_begin_where_the_bundled_model_ended():
    shape, state = weights.read(BUNDLED)
    net = network.Network(network.build_model(**shape), network.Memory(64, shape["hidden"]))
    net.load_state_dict(state)
    loaded = load(LoadOptions(str(BUNDLED), device="cpu", dtype="float32"))
    table = loaded.model.causal_lm.get_input_embeddings().weight
    assert torch.equal(net.model.model.embed_tokens.weight, table)
    assert torch.equal(net.memory.slots_MD.data, loaded.model.memory_MD.data)


def test_an_export_in_eight_bits_is_a_checkpoint_too(run, packed_folder, tmp_path):
    info = module("export").export(run / "weights", packed_folder, tmp_path, torch.int8)
    loaded = load(LoadOptions(str(tmp_path), device="cpu", dtype="float32"))
    assert loaded.info.fingerprint == info.fingerprint
    _, state = weights.read(run / "weights")
    table = loaded.model.causal_lm.get_input_embeddings().weight
    expected = state["model.model.embed_tokens.weight"]
    assert 0 < (table - expected).abs().max() <= expected.abs().max() / 127


def test_the_exported_model_reads_what_the_backbone_read(run, packed_folder, pieces, tok, tmp_path):
    """Same memory and the same prompt from the training script and from the product."""
    module("export").export(run / "weights", packed_folder, tmp_path / "out", torch.float32)
    loaded = load(LoadOptions(str(tmp_path / "out"), device="cpu", dtype="float32"))
    assert loaded.info.ratios == (4, 8, 16, 32, 64) and loaded.model.memory_tokens == 64
    shape, state = weights.read(run / "weights")
    net = network.Network(network.build_model(**shape), network.Memory(64, shape["hidden"]))
    net.load_state_dict(state)
    text = "Elm Velden\nThe mayor of Elmgate is Nora Velden."
    ids = tok(text, add_special_tokens=False)["input_ids"]
    made = builder({**packed.read(packed_folder)[0]}, pieces)
    rows, lengths = made.to_compress([np.array(ids), np.array(ids[:5])], 16)
    with torch.no_grad():
        expected = net.compress(torch.from_numpy(rows), torch.from_numpy(lengths), 16)[0][0]
        found = loaded.model.encode([loaded.model.prompter.passage(text)], "compressor", 16)
    assert (found.memory_BMD[0] - expected).abs().max() < 1e-4
    prompter = loaded.model.prompter
    question = tok("\n\nQuestion:Who?", add_special_tokens=False)["input_ids"]
    block = [network.MEMORY] * 4 + [network.SEPARATOR]
    for product, blocks in (
        (prompter.answer_chat("Who?", 2, 4), [block, block]),
        (prompter.text_chat("Who?", [text]), [ids]),
        (prompter.text_chat("Who?", [text, text]), [ids, [*pieces["joint"], *ids]]),
        (prompter.text_chat("Who?", []), []),
    ):
        expected = prompter.prompt(product)
        ours = made.conversation(made.opening(blocks), [(question, [], [])])[0][:-1]
        assert len(expected) == len(ours)
        assert [i for i in expected if i < len(tok)] == [i for i in ours if i >= 0]


def test_what_ships_is_half_the_size_and_answers_the_same(monkeypatch, tmp_path):
    ship = module("ship")
    before, source = load(LoadOptions("nano", device="cpu", dtype="float32")), tmp_path / "source"
    for parameter in before.model.role_parameters("compressor").values():
        parameter.data += 1e-5 * torch.randn(parameter.shape)  # what was shipped is rounded
    info = save(before.model, before.info, source, BUNDLED / "backbone")
    out = tmp_path / "shipped"
    ship.main([str(source), str(out)])
    after = load(LoadOptions(str(out), device="cpu", dtype="float32"))
    sizes = [(folder / "generator" / "adapter_model.safetensors") for folder in (source, out)]
    assert sizes[1].stat().st_size < 0.55 * sizes[0].stat().st_size
    rows = [before.model.prompter.passage("Elmgate\nNora Velden is mayor of Elmgate.")]
    memories = [
        loaded.model.encode_frozen(rows, "compressor", 16).memory_BMD.flatten()
        for loaded in (before, after)
    ]
    assert torch.cosine_similarity(*memories, dim=0) > 0.999
    assert after.info.fingerprint != info.fingerprint
    with pytest.raises(SystemExit, match="exists"):
        ship.main([str(source), str(out)])
    monkeypatch.setattr(ship, "LIMIT", 1000)
    with pytest.raises(SystemExit, match="more than 1,000: export with --dtype int8"):
        ship.main([str(source), str(tmp_path / "again")])


def test_real_questions_come_with_what_bm25_finds(real):
    squad = list(sources.squad(real / "squad" / "train.jsonl.xz"))
    for record in data.real_questions(squad, 20, 0):
        gold = [p for p in record["paragraphs"] if p["gold"]]
        assert len(gold) == 1 and record["answer"] in gold[0]["text"]
        assert len(record["paragraphs"]) <= data.POOL


def test_an_ablation_differs_in_one_thing_and_repeats_nothing(monkeypatch, tmp_path):
    ablate, ran = module("ablate"), []

    def command(words):
        ran.append([str(w) for w in words])
        row = {"f1": 0.5, "em": 0.4, "recall": {"1": 0.9}}
        return {"systems": [row]}

    monkeypatch.setattr(ablate, "clara", command)
    monkeypatch.setattr(ablate, "with_fresh_reasoner", lambda source, out: out)
    argv = ["init", "data", "--dataset", "dev.jsonl", "--out", str(tmp_path), "--seeds", "2"]
    ablate.main(argv)
    trained = {w[w.index("--out") + 1]: w for w in ran if w[0] == "train"}
    assert len(trained) == 2 * len(ablate.VARIANTS)
    base = trained[str(tmp_path / "e2e-published-0")]

    def changed(name):
        words = trained[str(tmp_path / f"e2e-{name}-0")]
        return {w for w in words if w not in base and f"e2e-{name}" not in w}

    assert changed("released-mask") == {"--set", "mask=released"}
    assert changed("no-mse") == {str(tmp_path / "scp-mse_weight=0.0-0")}
    assert changed("random-reasoner") == {str(tmp_path / "fresh-0")}
    assert "retrieved" in changed("retrieved-pools")
    assert changed("generator-only") == {"--set", 'train_roles=["generator"]'}
    count = len(ran)
    ablate.main(argv)
    assert len(ran) == count
    with pytest.raises(SystemExit, match="made with limit = 300, this command has 20"):
        ablate.main([*argv, "--limit", "20"])


def test_an_ablation_s_interval_is_student_s_over_pairs():
    ablate = module("ablate")
    mean, half = ablate.difference([3.0, 5.0, 7.0], [1.0, 2.0, 6.0])
    assert mean == 2.0 and half == pytest.approx(4.303 * 1.0 / 3**0.5)
    assert ablate.difference([1.0], [0.0]) == (1.0, float("inf"))
