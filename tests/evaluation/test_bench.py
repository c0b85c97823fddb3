"""bench end to end on random weights: who is given what, what is counted, resumed and refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import processes
from helpers.mayors import MAYORS, question, sentence, write
from typer.testing import CliRunner, Result

from clara_cli.bench_records import BenchResult, CompareResult
from clara_cli.cli import app
from clara_cli.cli.show.json_line import result_json
from clara_cli.commands import bench, compress
from clara_cli.config import BenchConfig, CompressConfig
from clara_cli.core.checkpoint import LoadOptions, load, save
from clara_cli.corpus.store import Corpus
from clara_cli.distributed import launch
from clara_cli.errors import ArtefactError, ClaraError, DataError, Interrupted, UsageError
from clara_cli.evaluation import predictions, systems
from clara_cli.evaluation.metrics import exact_match, f1, mean
from clara_cli.evaluation.scores import score

ROW = [
    *["name", "ratio", "em", "f1", "cover_em", "answer_words", "empty_share"],
    *["recall", "ci95", "truncated"],
    *["ms_per_question", "context_tokens", "bytes_per_passage"],
]
LINE = ["system", "ratio", "id", "question", "prediction", "golden_answers", "hits", "gold"]
ALL = ["clara", "scp", "closed-book", "text", "text+bm25"]


class Heard:
    """A report that keeps what was said; may raise at the n-th question."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.steps, self.stop_at = 0, stop_at
        self.begun: set[str] = set()

    def progress(self, progress: Any) -> None:
        self.steps += progress.task in self.begun
        self.begun.add(progress.task)
        if self.steps == self.stop_at:
            raise KeyboardInterrupt

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def config(dataset: Path | str, checkpoint: Path, **changes: Any) -> BenchConfig:
    settings = {"dataset": str(dataset), "model": str(checkpoint), "max_new_tokens": 3}
    machine = {"device": "cpu", "dtype": "float32"}
    return BenchConfig(**{**settings, **machine, **changes})


def go(dataset: Path | str, checkpoint: Path, report: Any = None, **changes: Any) -> BenchResult:
    done = bench.run(config(dataset, checkpoint, **changes), report or Heard())
    assert isinstance(done, BenchResult)
    return done


def lines(path: str | Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def hits(path: str | Path | None, system: str) -> dict[str, list[str]]:
    return {line["id"]: line["hits"] for line in lines(path) if line["system"] == system}


# --- the contract ---


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app.app, list(words))


def test_json_is_the_contract(
    mayors: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", str(mayors), "--model", str(checkpoint), "--ratio", "4,16"]
    words += ["--limit", "3"]
    words += ["--max-new-tokens", "3", "--top-k", "3", "--device", "cpu", "--out", "report"]
    said = invoke("bench", *words, "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout.splitlines()[-1])
    assert list(found) == ["dataset", "setting", "n", "seed", "systems", "predictions"]
    assert [found[key] for key in ("setting", "n", "seed")] == ["oracle", 3, 0]
    assert [(row["name"], row["ratio"]) for row in found["systems"]] == [
        *[("clara", 4), ("clara", 16), ("scp", 4), ("scp", 16)],
        *[("closed-book", None), ("text", None), ("text+bm25", None)],
    ]
    assert found["predictions"] == "report/predictions.jsonl"
    told = lines(found["predictions"])
    for row in found["systems"]:
        rare = ["effective_ratio"] if row["ratio"] else []
        assert list(row) == [*ROW, *rare]
        own = [p for p in told if (p["system"], p["ratio"]) == (row["name"], row["ratio"])]
        assert [p["id"] for p in own] == ["q0", "q1", "q2"]
        assert all(list(p) == LINE for p in own)
        assert row["em"] == mean([exact_match(p["prediction"], p["golden_answers"]) for p in own])
        assert row["f1"] == mean([f1(p["prediction"], p["golden_answers"]) for p in own])
        lengths = [len(p["prediction"].split()) for p in own]
        assert row["answer_words"] == mean(lengths)
        assert row["empty_share"] == mean([float(n == 0) for n in lengths])
        assert row["recall"]["5"] is None  # beyond --top-k
        for k in (1, 3):
            share = [len({*p["gold"]} & {*p["hits"][:k]}) / len(p["gold"]) for p in own]
            assert row["recall"][str(k)] == mean(share)
        assert sorted(row["ci95"]) == ["cover_em", "em", "f1"]
        assert row["ci95"]["f1"][0] <= row["f1"] <= row["ci95"]["f1"][1]
    assert {path.name for path in Path("report").iterdir()} >= {
        *["bench.json", "predictions.jsonl", "report.md", "report.html", "results.json"]
    }


def test_lengths_and_empty_answers_stand_beside_f1(
    mayors: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four answers: of five words, of one, and two of none."""
    answers = iter(["Nora Velden is the mayor", "Sand", "", " \n"])
    monkeypatch.setattr(
        systems.Reader, "generate", lambda self, prompts, memories: [next(answers) for _ in prompts]
    )
    done = go(mayors, checkpoint, system="closed-book", limit=4, out=tmp_path / "o")
    (card,) = done.systems
    assert (card.answer_words, card.empty_share) == (1.5, 0.5)
    report = (tmp_path / "o" / "report.md").read_text()
    heading, row = (next(line for line in report.splitlines() if line.startswith(start))
                    for start in ("| system | n |", "| closed-book |"))  # fmt: skip
    assert heading.endswith("| Cover-EM | words | empty |")
    assert row.endswith("| 1.5 | 50.0 |")


def test_a_row_without_answers_has_no_lengths() -> None:
    card = score(
        "text", None, [{**dict.fromkeys(LINE), "gold": []}], [{"error": "away"}],
        top_k=5, seed=0, bytes_per_passage=None,
    ).card  # fmt: skip
    assert (card.answer_words, card.empty_share, card.unanswered) == (None, None, 1)


def test_the_scorecard_fits_100_columns(mayors: Path, checkpoint: Path) -> None:
    words = ["--dataset", str(mayors), "--model", str(checkpoint), "--limit", "2", "--published"]
    words += ["--control", "counterfactual", "--max-new-tokens", "2", "--device", "cpu"]
    said = invoke("bench", *words)
    assert said.exit_code == 0, said.output
    assert "text+bm25/counterfactual" in said.stdout
    assert "reported by papers" in said.stdout
    assert max(map(len, said.stdout.splitlines()[1:])) <= 100
    assert "cover words empty   R@1   R@5" in said.stdout
    assert "predictions" not in said.stdout


def test_compressing_the_corpus_shows_how_far_it_is(
    mayors: Path, checkpoint: Path, tmp_path: Path
) -> None:
    shown = []
    report = Heard()
    report.progress = shown.append  # type: ignore[method-assign]
    bench.run(config(mayors, checkpoint, setting="corpus", system="clara", limit=2), report)
    compressed = [(p.done, p.total) for p in shown if p.task == "compress"]
    assert compressed == [(0, len(MAYORS)), (len(MAYORS), len(MAYORS))]  # one batch holds them


# --- who is given what ---


def test_every_system_is_given_what_its_setting_says(
    mayors: Path, checkpoint: Path, tmp_path: Path
) -> None:
    done = go(mayors, checkpoint, limit=2, top_k=2, out=tmp_path / "o")
    gold = {line["id"]: line["gold"] for line in lines(done.predictions)}
    assert gold == {"q0": ["0"], "q1": ["0"]}
    assert hits(done.predictions, "scp") == {"q0": ["0", "1", "2"], "q1": ["0", "1", "2"]}
    assert hits(done.predictions, "text") == {"q0": ["0", "1", "2"], "q1": ["0", "1", "2"]}
    assert hits(done.predictions, "closed-book") == {"q0": [], "q1": []}
    assert hits(done.predictions, "text+bm25") == {"q0": ["0", "1"], "q1": ["0", "1"]}
    assert all(len(own) == len({*own}) == 2 for own in hits(done.predictions, "clara").values())
    row = {card.name: card for card in done.systems}
    assert (row["clara"].context_tokens, row["scp"].context_tokens) == (2 * 4, 3 * 4)
    texts = [f"{town}\n{sentence(town, name)}" for town, name in MAYORS[:3]]
    assert row["text"].context_tokens == pytest.approx(
        (sum(map(len, texts)) + sum(len(f"{t}\n{sentence(t, n)}") for t, n in MAYORS[1:4])) / 2
    )
    whole = sum(map(len, texts)) + sum(len(f"{t}\n{sentence(t, n)}") for t, n in MAYORS[1:4])
    assert row["scp"].effective_ratio == pytest.approx(whole / (2 * 3 * 4), abs=1e-3)
    assert row["text"].effective_ratio is None
    assert (row["closed-book"].context_tokens, row["closed-book"].bytes_per_passage) == (0, None)
    assert row["clara"].bytes_per_passage == 4 * 32 * 4  # M x D x float32
    assert row["text"].bytes_per_passage == pytest.approx(
        mean([len(f"{t}\n{sentence(t, n)}") for t, n in MAYORS[:4]]), abs=0.1
    )


def test_memory_is_read_as_a_corpus_would_store_it(
    mayors: Path, checkpoint: Path, tmp_path: Path
) -> None:
    exact, stored = (
        go(
            mayors,
            checkpoint,
            limit=2,
            system="scp,clara",
            ratio="16",
            dtype=dtype,
            out=tmp_path / dtype,
        )
        for dtype in ("float32", "auto")
    )
    sizes = [{row.bytes_per_passage for row in done.systems} for done in (exact, stored)]
    assert sizes == [{4 * 32 * 4}, {4 * (32 + 4)}]  # of fp8: a byte a value, a scale a token
    settings = json.loads((tmp_path / "auto" / "bench.json").read_text())
    assert settings["memory_dtype"] == "fp8"
    assert hits(stored.predictions, "scp") == hits(exact.predictions, "scp")


@pytest.mark.parametrize("setting", ["oracle", "corpus"])
def test_memory_of_the_best_by_bm25(
    setting: str, mayors: Path, checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    """Memory of the passages text+bm25 reads; scp, given those, answers the same."""
    changes: dict[str, Any] = {"setting": setting, "ratio": "4", "limit": 3, "top_k": 2}
    if setting == "corpus":
        changes["corpus"] = corpus
    done = go(mayors, checkpoint, system="scp+bm25,text+bm25", out=tmp_path / "o", **changes)
    picked = hits(done.predictions, "scp+bm25")
    assert picked == hits(done.predictions, "text+bm25")
    assert {len(ids) for ids in picked.values()} == {2}
    dtype = Corpus.open(corpus).manifest.identity.dtype if setting == "corpus" else "float32"
    assert json.loads((tmp_path / "o" / "bench.json").read_text())["memory_dtype"] == dtype
    assert done.systems[0].context_tokens == 2 * 16
    records = lines(mayors)[:3]
    for record in records:
        towns = [MAYORS[int(name.removeprefix("d"))] for name in picked[record["id"]]]
        if setting == "oracle":
            record["paragraphs"] = [record["paragraphs"][int(n)] for n in picked[record["id"]]]
        else:
            record["paragraphs"] = [{"title": t, "text": sentence(t, n)} for t, n in towns]
    given = write(tmp_path / "given.jsonl", records)
    again = go(given, checkpoint, system="scp", ratio="4", out=tmp_path / "a")
    answers = [
        [line["prediction"] for line in lines(run.predictions) if line["ratio"]]
        for run in (done, again)
    ]
    assert answers[0] == answers[1]


def test_gold_gives_the_gold_paragraphs(mayors: Path, checkpoint: Path, tmp_path: Path) -> None:
    done = go(mayors, checkpoint, setting="gold", limit=6, out=tmp_path / "o")
    for system in ("clara", "scp", "text", "text+bm25"):
        assert set(map(tuple, hits(done.predictions, system).values())) <= {("0",), ("1",), ("2",)}
    assert [card.recall["1"] for card in done.systems] == [1, 1, 0, 1, 1]


@pytest.mark.parametrize("setting", ["normal", "corpus"])
def test_all_paragraphs_once_with_their_place_in_the_collection_as_id(
    setting: str, mayors: Path, checkpoint: Path, tmp_path: Path
) -> None:
    more = {"setting": setting, "top_k": 2, "system": "clara,text+bm25"}
    done = go(mayors, checkpoint, out=tmp_path / "o", **more)
    towns = list(dict.fromkeys(p["title"] for q in lines(mayors) for p in q["paragraphs"]))
    wanted = {f"q{n}": [str(towns.index(town))] for n, (town, _) in enumerate(MAYORS)}
    assert {line["id"]: line["gold"] for line in lines(done.predictions)} == wanted
    best = hits(done.predictions, "text+bm25")
    assert {key: own[:1] for key, own in best.items()} == wanted
    row = done.systems[-1]
    assert (row.recall["1"], row.recall["3"]) == (1, None)
    if setting == "corpus":
        assert all(len(own) == 2 for own in hits(done.predictions, "clara").values())


def test_given_ids_stay_where_they_are_one_paragraphs(checkpoint: Path, tmp_path: Path) -> None:
    records = [question(n) for n in range(3)]
    for record in records:
        for paragraph in record["paragraphs"]:
            paragraph["id"] = f"doc-{paragraph['title']}"
    data = write(tmp_path / "q.jsonl", records)
    done = go(data, checkpoint, setting="normal", system="text+bm25", out=tmp_path / "o")
    found = {line["id"]: line["gold"] for line in lines(done.predictions)}
    assert found == {f"q{n}": [f"doc-{MAYORS[n][0]}"] for n in range(3)}


def test_long_paragraphs_are_cut_and_count_once(checkpoint: Path, tmp_path: Path) -> None:
    text = " ".join(sentence(*mayor) for mayor in MAYORS)  # several passages of 64 bytes
    record = {"id": "q", "question": "Who?", "answer": "Ann"}
    record["paragraphs"] = [{"id": "long", "text": text, "gold": True}, {"id": "x", "text": "No."}]
    done = go(write(tmp_path / "q.jsonl", [record]), checkpoint, top_k=4, out=tmp_path / "o")
    assert hits(done.predictions, "scp") == {"q": ["long", "x"]}
    found = hits(done.predictions, "clara")["q"]
    assert "long" in found and len(found) == len(set(found))
    row = {card.name: card for card in done.systems}
    assert row["clara"].context_tokens == 4 * 4
    assert row["scp"].context_tokens > 5 * 4


def test_the_query_reasoner_picks_the_nearest_memory(
    mayors: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """clara's order is that of the cosines, computed here from the parts."""
    done = go(mayors, checkpoint, limit=3, top_k=3, system="clara", ratio="4", out=tmp_path / "o")
    model = load(LoadOptions(str(checkpoint), device="cpu", dtype="float32")).model
    for record, said in zip(lines(mayors), lines(done.predictions), strict=False):
        texts = [f"{p['title']}\n{p['text']}" for p in record["paragraphs"]]

        def flat(text: str, role: str) -> torch.Tensor:
            with torch.no_grad():
                return model.encode([model.prompter.passage(text)], role, 16).memory_BMD.flatten()

        query = flat(record["question"], "query_reasoner")
        memory = [flat(text, "compressor") for text in texts]
        scores = [torch.cosine_similarity(query, m, dim=0).item() for m in memory]
        assert said["hits"] == [str(i) for i in sorted(range(3), key=lambda i: -scores[i])]


def test_what_exceeds_the_window_is_left_out_and_counted(
    checkpoint: Path, tmp_path: Path, tiny_backbone: Path
) -> None:
    """The window is 2,048 positions; sixty passages of text take more."""
    paragraphs = [{"text": sentence(f"Town number {n:03}", "Nora Velden")} for n in range(60)]
    record = {"id": "q", "question": "Who?", "answer": "Ann", "paragraphs": paragraphs}
    done = go(write(tmp_path / "q.jsonl", [record]), checkpoint, out=tmp_path / "o")
    cut = {card.name: card.truncated for card in done.systems}
    assert cut == {"clara": 0, "scp": 0, "closed-book": 0, "text": 1, "text+bm25": 0}
    given = hits(done.predictions, "text")["q"]
    assert given == [str(n) for n in range(len(given))] and 10 < len(given) < 60
    model = load(LoadOptions(str(checkpoint), device="cpu")).model
    texts = [p["text"] for p in paragraphs]

    def length(n: int) -> int:
        return len(model.prompter.prompt(model.prompter.text_chat("Who?", texts[:n])))

    assert length(len(given)) + 3 <= 2048 < length(len(given) + 1) + 3


# --- a corpus compressed before ---


@pytest.fixture
def corpus(checkpoint: Path, tmp_path: Path) -> Path:
    texts = [(town, sentence(town, name)) for town, name in MAYORS]
    records = [{"id": f"d{n}", "title": t, "text": text} for n, (t, text) in enumerate(texts)]
    documents = write(tmp_path / "documents.jsonl", records)
    settings = {"inputs": (str(documents),), "model": str(checkpoint), "out": tmp_path / "m.clara"}
    machine = {"device": "cpu", "dtype": "float32"}
    compress.run(CompressConfig(**settings, **machine, ratio=4), Heard())
    return tmp_path / "m.clara"


def test_a_compressed_corpus_is_read_by_its_documents_ids(
    corpus: Path, mayors: Path, checkpoint: Path, tmp_path: Path
) -> None:
    more = {"setting": "corpus", "corpus": corpus, "model": None, "system": "clara,text+bm25"}
    done = go(mayors, checkpoint, **more, ratio="4,16", out=tmp_path / "o")
    assert [(card.name, card.ratio) for card in done.systems][:2] == [("clara", 4), ("clara", 16)]
    found = {line["id"]: line["gold"] for line in lines(done.predictions)}
    assert found == {f"q{n}": [f"d{n}"] for n in range(6)}
    assert done.systems[-1].recall["1"] == 1
    fresh = go(mayors, checkpoint, **{**more, "corpus": None, "model": str(checkpoint)},
               ratio="4,16", out=tmp_path / "fresh")  # fmt: skip
    assert [c.recall for c in done.systems] == [c.recall for c in fresh.systems]


def test_what_a_corpus_does_not_hold_is_said(
    corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    record = question(0)
    record["paragraphs"][0]["text"] = "Something else."
    data, heard = write(tmp_path / "q.jsonl", [record]), Heard()
    done = go(data, checkpoint, heard, setting="corpus", corpus=corpus, system="text+bm25")
    assert done.systems[0].recall["5"] == 0
    assert any("1 gold paragraphs are not in" in warning for warning in heard.warnings)


# --- the query reasoner of the retrieval stage ---


def supervised(checkpoint: Path, folder: Path, seed: int = 5, stage: str = "retrieval") -> Path:
    """The checkpoint with another query reasoner, as the retrieval stage leaves it."""
    loaded = load(LoadOptions(str(checkpoint), device="cpu", dtype="float32"))
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in loaded.model.role_parameters("query_reasoner").values():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn) * 0.3)
    save(loaded.model, dataclasses.replace(loaded.info, stage=stage), folder)
    return folder


def test_sup_picks_with_the_query_reasoner_of_the_retrieval_stage(
    mayors: Path, checkpoint: Path, tmp_path: Path
) -> None:
    other = supervised(checkpoint, tmp_path / "sup")
    more = {"top_k": 3, "limit": 3, "ratio": "4"}
    done = go(mayors, checkpoint, system="clara,sup", sup_model=str(other),
              control="wrong", out=tmp_path / "o", **more)  # fmt: skip
    names = [card.name for card in done.systems]
    assert names == ["clara", "sup", "clara/wrong", "sup/wrong"]
    alone = go(mayors, other, system="clara", out=tmp_path / "alone", **more)
    picked = hits(done.predictions, "sup")
    assert picked == hits(alone.predictions, "clara") != hits(done.predictions, "clara")
    own = go(mayors, checkpoint, system="clara", out=tmp_path / "own", **more)
    assert hits(own.predictions, "clara") == hits(done.predictions, "clara")


def test_sup_refuses_what_the_retrieval_stage_did_not_make(
    mayors: Path, checkpoint: Path, tmp_path: Path
) -> None:
    def refused(name: Path, said: str) -> None:
        with pytest.raises(ArtefactError, match=said) as caught:
            go(mayors, checkpoint, system="sup", sup_model=str(name))
        assert "--stage retrieval" in caught.value.hint

    refused(supervised(checkpoint, tmp_path / "e2e", stage="e2e"), "comes from stage e2e")
    elsewhere = supervised(checkpoint, tmp_path / "elsewhere")
    told = json.loads((elsewhere / "clara.json").read_text())
    (elsewhere / "clara.json").write_text(json.dumps({**told, "fingerprint": "0" * 32}))
    refused(elsewhere, "memory space 0000")


# --- out of memory ---


def test_out_of_memory_is_said_and_is_no_wrong_answer(
    mayors: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text runs out of memory on every batch, and on question q1 even alone."""
    generate = systems.Reader.generate

    def scarce(self: Any, prompts: Any, memories: Any) -> list[str]:
        texts = [self.prompter.tokenizer.decode(ids) for ids in prompts]
        if memories is None and (len(texts) > 1 or "Frostmouth?" in texts[0]):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, prompts, memories)

    plain = go(mayors, checkpoint, system="clara,text", out=tmp_path / "plain")
    monkeypatch.setattr(systems.Reader, "generate", scarce)
    done = go(mayors, checkpoint, system="clara,text", out=tmp_path / "o")
    clara, text = done.systems
    assert (clara.out_of_memory, text.out_of_memory) == (0, 1)
    kept = [p for p in lines(plain.predictions) if p["system"] == "text" and p["id"] != "q1"]
    assert text.f1 == mean([f1(p["prediction"], p["golden_answers"]) for p in kept])
    assert text.recall["5"] == 1
    (missing,) = [p for p in lines(done.predictions) if p["prediction"] is None]
    assert (missing["system"], missing["id"]) == ("text", "q1")
    assert "out of memory" in (tmp_path / "o" / "report.md").read_text()
    rows = [result_json(card) for card in done.systems]
    assert [row.get("out_of_memory") for row in rows] == [None, 1]
    folders = (str(tmp_path / "plain"), str(tmp_path / "o"))
    compared = bench.run(BenchConfig(compare=folders), Heard())
    assert isinstance(compared, CompareResult)
    assert {row.n for row in compared.rows if row.name == "text"} == {5}


def test_a_row_that_never_had_the_memory_has_no_figures(
    mayors: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Any, prompts: Any, memories: Any) -> list[str]:
        raise MemoryError

    monkeypatch.setattr(systems.Reader, "generate", never)
    done = go(mayors, checkpoint, system="text,closed-book", limit=2, out=tmp_path / "o")
    for card in done.systems:
        figures = (card.em, card.f1, card.ms_per_question, card.context_tokens, card.recall["1"])
        assert (figures, card.ci95, card.out_of_memory) == ((None,) * 5, {}, 2)


# --- a missing extra ---


def test_without_matplotlib_all_but_the_images_is_written(
    mayors: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clara_cli.evaluation.report.run_report.find_spec", lambda name: None)
    heard = Heard()
    go(mayors, checkpoint, heard, limit=1, system="closed-book", out=tmp_path / "o")
    assert [note for note in heard.notes if "[plot]" in note] == heard.notes[-1:]
    written = {path.suffix for path in (tmp_path / "o").iterdir()}
    assert {".md", ".html", ".json", ".jsonl"} <= written and not {".svg", ".png"} & written


# --- the papers' figures ---


def test_published_figures_alone(mayors: Path) -> None:
    said = invoke("bench", "--published")
    assert said.exit_code == 0, said.output
    assert "other corpus and model" in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 100
    rows = json.loads(invoke("bench", "--published", "--json").stdout)["published"]
    assert all(row["source"].startswith("arXiv") and "Table" in row["source"] for row in rows)
    names = " ".join({row["system"] for row in rows})
    wanted = ["CLaRa", "SCP", "PISCO", "COCOM", "xRAG", "PCC", "AutoCompressor", "LLMLingua-2"]
    wanted += ["DRO", "GenGround", "In-context RAG", "RECOMP", "DPA-RAG", "Self-RAG", "RetRobust"]
    wanted += ["ChatQA", "DDR-RAG", "BGE", "RankZephyr", "Setwise", "Rank-R1", "BM25", "Sup-"]
    assert [name for name in wanted if name not in names] == []
    best = {"system": "CLaRa-Mistral inst-init", "ratio": 16, "metric": "f1"}
    (row,) = [r for r in rows if best.items() <= r.items() and "Normal" in r["source"]]
    assert row["values"] == {
        **{"nq": 50.89, "hotpotqa": 47.62, "musique": 18.01, "2wiki": 44.66},
        "average": 40.30,
    }


# --- the same, resumed ---


def test_two_runs_are_equal_and_an_interrupted_one_ends_the_same(
    mayors: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five questions in batches of two, stopped after the second batch."""
    monkeypatch.setattr(predictions, "BATCH", 2)
    more = {"ratio": "4,16", "control": "none,wrong,counterfactual", "limit": 5}
    whole, again, resumed = (tmp_path / name for name in ("whole", "again", "resumed"))
    first = go(mayors, checkpoint, out=whole, **more)
    assert [
        (a.name, a.em, a.f1, a.recall, a.context_tokens) for a in first.systems
    ] == [(b.name, b.em, b.f1, b.recall, b.context_tokens)
          for b in go(mayors, checkpoint, out=again, **more).systems]  # fmt: skip
    with pytest.raises(Interrupted, match="are in") as caught:
        go(mayors, checkpoint, Heard(stop_at=2), out=resumed, **more)
    assert "run the same command again" in caught.value.hint
    kept = (resumed / "predictions.jsonl").read_bytes()
    assert 0 < len(kept) < len((whole / "predictions.jsonl").read_bytes())
    with (resumed / "predictions.jsonl").open("ab") as stream:
        stream.write(b'{"system": "clara", "ra')  # killed in the middle of a line
    heard = Heard()
    go(mayors, checkpoint, heard, out=resumed, **more)
    assert heard.steps == 1
    for name in ("predictions.jsonl", "bench.json"):
        expected = (whole / name).read_bytes()
        assert (again / name).read_bytes() == (resumed / name).read_bytes() == expected
    heard = Heard()
    go(mayors, checkpoint, heard, out=resumed, **more)  # finished: nothing to answer
    assert heard.steps == 0
    told = [(folder / "predictions.jsonl").read_bytes() for folder in (resumed, whole)]
    assert told[0] == told[1]


def test_two_processes_write_what_one_does(
    mayors: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six questions in batches of two, of which the processes take every other one; then a run of
    one process that two end."""
    monkeypatch.setattr(predictions, "BATCH", 2)
    more = {"ratio": "4", "system": "clara,text+bm25", "control": "counterfactual"}
    names = ("one", "two", "begun")
    one, two, begun = (tmp_path / name for name in names)
    go(mayors, checkpoint, out=one, **more)
    with pytest.raises(Interrupted):
        go(mayors, checkpoint, Heard(stop_at=1), out=begun, **more)

    def work(rank: int) -> list[str]:
        for folder in (two, begun):
            go(mayors, checkpoint, launch.report_of_first(Heard()), out=folder, **more)
        return sorted(path.name for path in two.iterdir()) if rank == 0 else []

    written, _ = processes.ranks(work)
    assert "report.html" in written, written
    for folder in (two, begun):
        for name in ("predictions.jsonl", "bench.json"):
            assert (folder / name).read_bytes() == (one / name).read_bytes()


def test_an_error_of_the_first_process_is_everyones(
    mayors: Path, checkpoint: Path, tmp_path: Path
) -> None:
    more = {"system": "closed-book", "limit": 1}
    go(mayors, checkpoint, out=tmp_path / "o", **more)

    def work(rank: int) -> None:
        go(mayors, checkpoint, launch.report_of_first(Heard()), out=tmp_path / "o", top_k=2, **more)

    for kind, message, _ in processes.ranks(work):
        assert (kind, "top_k = 5, this command has 2" in message) == ("ArtefactError", True), (
            message
        )


def test_other_settings_are_refused_with_the_difference(
    mayors: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    go(mayors, checkpoint, limit=1, system="closed-book", out=out)
    with pytest.raises(ArtefactError, match="max_new_tokens = 3, this command has 4"):
        go(mayors, checkpoint, limit=1, system="closed-book", out=out, max_new_tokens=4)
    (out / "bench.json").unlink()
    with pytest.raises(ArtefactError, match=r"has predictions\.jsonl but no bench\.json"):
        go(mayors, checkpoint, limit=1, system="closed-book", out=out)


def test_predictions_of_other_questions_are_refused(
    mayors: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    go(mayors, checkpoint, limit=2, system="closed-book", out=out)
    told = (out / "predictions.jsonl").read_text().replace('"id": "q0"', '"id": "qX"')
    (out / "predictions.jsonl").write_text(told)
    with pytest.raises(ArtefactError, match=r"predictions\.jsonl:1: .*'qX'"):
        go(mayors, checkpoint, limit=2, system="closed-book", out=out)


# --- controls ---


def test_controls_change_what_is_read(mayors: Path, checkpoint: Path, tmp_path: Path) -> None:
    out, system = tmp_path / "o", "clara,text"
    done = go(mayors, checkpoint, system=system, control="none,wrong,counterfactual", out=out)
    names = [(card.name, card.ratio) for card in done.systems]
    assert names == [
        *[("clara", 16), ("text", None), ("clara/none", None), ("clara/wrong", 16)],
        *[("text/wrong", None), ("clara/counterfactual", 16), ("text/counterfactual", None)],
    ]
    assert all(own == [] for own in hits(done.predictions, "clara/none").values())
    wrong = hits(done.predictions, "text/wrong")
    assert set(wrong) == {f"q{n}" for n in range(6)}
    for key, own in wrong.items():
        assert len(own) == 3 and all(":" in hit and not hit.startswith(key) for hit in own)
    changed = [line for line in lines(done.predictions) if line["system"] == "text/counterfactual"]
    assert len(changed) == 6
    paragraphs = [record["paragraphs"] for record in lines(mayors)]
    for line in changed:
        number = int(line["id"][1:])
        (new,) = line["golden_answers"]
        own = {name for _, name in (MAYORS[p] for p in sorted((number + s) % 6 for s in range(3)))}
        assert new in {name for _, name in MAYORS} - own
        assert line["gold"] == [p for p in "012" if paragraphs[number][int(p)]["gold"]]


def test_a_counterfactual_passage_holds_the_new_answer_and_not_the_old() -> None:
    from clara_cli.evaluation.controls import counterfactual, shape
    from clara_cli.evaluation.paragraphs import Library
    from clara_cli.records import PoolPassage, Question

    def one(number: int, text: str, *answers: str, asked: str = "Who?") -> Question:
        pool = (PoolPassage("0", "", text, True), PoolPassage("1", "", "Other.", False))
        return Question(f"q{number}", asked, answers, pool)

    questions = [
        one(0, "Ann Lee (1906) met Anna. Ann Lee left.", "Ann Lee", "Lee, Ann"),
        one(1, "Born in 1906.", "1906"),
        one(2, "Max Orme was born in 1871.", "Max Orme"),
        one(3, "It was 1871.", "1871"),
        one(4, "Is Ann Lee older than Max Orme?", "Ann Lee", asked="Ann Lee or Max Orme?"),
        one(5, "Nothing of the kind.", "Una Holt"),
        one(6, "Yes.", "yes"),
    ]
    library = Library(64, lambda text: [(i, i + 1) for i in range(len(text))])
    donors = [q.answers[0] for q in questions]
    made = counterfactual(questions, lambda n: questions[n].pool, library, donors, seed=0)
    texts = {n: [p.text for p in case.pool.pieces] for n, case in made.items()}
    new = {n: case.question.answers[0] for n, case in made.items()}
    assert set(made) == {0, 1, 2, 3}
    assert (new[1], new[3]) == ("1871", "1906")
    assert new[0] in ("Max Orme", "Una Holt")
    assert texts[0][0] == f"{new[0]} (1906) met Anna. {new[0]} left."
    assert texts[1][0] == "Born in 1871."
    assert made[0].gold == ("0",)
    assert [shape(a)[0] for a in ("No", "3 May 1906", "1,906 m", "$12", "the end", "New York")] == [
        *["yes-no", "date", "words", "number", "words", "names"]
    ]


def test_survival_counts_facts_by_rule(mayors: Path, checkpoint: Path) -> None:
    from clara_cli.evaluation.fact_retention import names, numbers

    text = "Founded in 1906. The city of New York has 8,804,190 people. Ann met Bob Lee at 10:30."
    assert numbers(text) == {"1906", "8,804,190", "10:30"}
    assert names(text) == {"New York", "Bob Lee"}
    done = go(mayors, checkpoint, limit=2, system="clara", ratio="4,16", control="survival")
    assert [(entry.ratio, entry.passages) for entry in done.survival] == [(4, 2), (16, 2)]
    assert all(entry.names == 4 and entry.names_kept is not None for entry in done.survival)


# --- comparing runs ---


def test_compare_two_runs(mayors: Path, checkpoint: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    go(mayors, checkpoint, system="closed-book", out=one)
    shutil.copytree(one, two)
    told = lines(two / "predictions.jsonl")
    write(two / "predictions.jsonl", [{**p, "prediction": p["golden_answers"][0]} for p in told])
    said = invoke("bench", "--compare", str(one), str(two), "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert list(found) == ["first", "second", "rows"]
    expected = {"name": "closed-book", "ratio": None, "metric": "em", "n": 6}
    assert found["rows"][0] == {**expected, "first": 0, "second": 1, "p": 2 / 2**6}
    assert "closed-book" in invoke("bench", "--compare", str(one), str(two)).stdout
    (two / "predictions.jsonl").write_text("")
    empty = invoke("bench", "--compare", str(one), str(two))
    assert (empty.exit_code, "no predictions in it" in empty.stderr) == (4, True)
    assert invoke("bench", "--compare", str(one), str(tmp_path)).exit_code == 3


# --- refused ---


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"dataset": None}, UsageError, "no --dataset"),
        ({"dataset": "musiqe"}, UsageError, "--dataset musiqe"),
        ({"system": "clara,spu"}, UsageError, "'spu'"),
        ({"system": "clara,sup"}, UsageError, "no --sup-model"),
        ({"sup_model": "x"}, UsageError, "--sup-model without"),
        ({"system": "clara,"}, UsageError, "--system is 'clara,'"),
        ({"system": "text,text"}, UsageError, "named twice"),
        ({"ratio": "4,x"}, UsageError, "--ratio is '4,x'"),
        ({"ratio": "4,4"}, UsageError, "named twice"),
        ({"ratio": "8"}, UsageError, "--ratio 8: not served"),
        ({"control": "wrnog"}, UsageError, "--control 'wrnog'"),
        ({"control": "wrong", "setting": "corpus"}, UsageError, "--control wrong"),
        ({"control": "wrong", "limit": 1}, DataError, "--control wrong"),
        ({"corpus": Path("nowhere.clara")}, ArtefactError, "nowhere.clara"),
        ({"compare": ("a", "b")}, UsageError, "--dataset and --compare"),
    ],
)
def test_refused(
    changes: dict[str, Any], kind: type[ClaraError], said: str, mayors: Path, checkpoint: Path
) -> None:
    with pytest.raises(kind, match=said.replace("(", r"\(")) as caught:
        go(**{"dataset": mayors, "checkpoint": checkpoint, **changes}) if "dataset" not in changes \
            else bench.run(BenchConfig(dataset=changes["dataset"]), Heard())  # fmt: skip
    assert caught.value.hint


def test_questions_a_setting_cannot_serve_are_named(checkpoint: Path, tmp_path: Path) -> None:
    flagless = question(0)
    for paragraph in flagless["paragraphs"]:
        paragraph["gold"] = False
    data = write(tmp_path / "q.jsonl", [question(1), flagless])
    with pytest.raises(DataError, match=r"q\.jsonl:2: question 'q0' has no gold paragraph"):
        go(data, checkpoint, setting="gold")
    bare = write(tmp_path / "bare.jsonl", [{"id": "b", "question": "Who?", "answer": "Ann"}])
    with pytest.raises(DataError, match="'b' has no paragraphs"):
        go(bare, checkpoint)
    with pytest.raises(DataError, match="without paragraphs"):
        go(bare, checkpoint, setting="corpus")
    heard = Heard()
    done = go(data, checkpoint, heard, system="text+bm25")
    assert done.systems[0].recall["1"] is not None
    assert any("1 questions have no gold paragraph" in note for note in heard.notes)


def test_a_corpus_is_not_silently_left_out(corpus: Path, mayors: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="--corpus is not read with --setting oracle"):
        go(mayors, checkpoint, corpus=corpus)
    with pytest.raises(UsageError, match="--ratio 4|cannot be rewritten"):
        go(mayors, checkpoint, corpus=corpus, setting="normal", control="counterfactual")


def test_beir_is_scored_by_ranking_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "b" / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "text": sentence(*m)} for n, m in enumerate(MAYORS)]
    write(tmp_path / "b" / "corpus.jsonl", documents)
    write(tmp_path / "b" / "queries.jsonl", [{"_id": "q", "text": "Who is mayor of Quarrel?"}])
    (tmp_path / "b" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td3\t1\n")
    done = go(tmp_path / "b", checkpoint, setting="corpus", system="text+bm25,clara")
    assert (done.systems[0].em, done.systems[0].recall["1"], done.systems[0].ci95) == (None, 1, {})
    with pytest.raises(DataError, match="no pools"):
        go(tmp_path / "b", checkpoint)


@pytest.mark.parametrize(
    "name",
    ["predictions.jsonl", "measures.jsonl", "bench.json", ".lock", "report.md", "results.json"],
)
def test_no_link_in_the_folder_is_written_through(mayors, checkpoint, tmp_path, name):
    out, theirs = tmp_path / "o", tmp_path / "theirs"
    out.mkdir()
    theirs.write_text("dear\n")
    if name in ("predictions.jsonl", "measures.jsonl"):
        go(mayors, checkpoint, limit=1, system="closed-book", out=out)
        (out / name).unlink()
    (out / name).symlink_to(theirs)
    with pytest.raises(ArtefactError, match=rf"o/{name}"):
        go(mayors, checkpoint, limit=1, system="closed-book", out=out)
    assert theirs.read_text() == "dear\n" and (out / name).is_symlink()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("predictions.jsonl", '{"system": "closed-book", "ratio": null, "id": "0"}'),
        ("predictions.jsonl", "[" * 100_000),
        ("measures.jsonl", '{"context_tokens": 1, "truncated": 0, "seconds": {}}'),
        ("measures.jsonl", '{"context_tokens": 1, "truncated": false, "seconds": {"a": "b"}}'),
        ("measures.jsonl", '{"context_tokens": -1, "truncated": false, "seconds": {}}'),
        ("measures.jsonl", '{"context_tokens": 1, "truncated": false, "seconds": {"query": 1}}'),
        ("measures.jsonl", '{"error": {"a": [1]}}'),
        ("measures.jsonl", '{"out_of_memory": "no"}'),
        ("bench.json", "[]"),
        ("bench.json", '{"a": ' * 5_000),
    ],
)
def test_a_damaged_line_of_a_run_is_named(mayors, checkpoint, tmp_path, name, line):
    out = tmp_path / "o"
    go(mayors, checkpoint, limit=1, system="closed-book", out=out)
    (out / name).write_text(f"{line}\n")
    with pytest.raises(ArtefactError, match=rf"o/{name}"):
        go(mayors, checkpoint, limit=1, system="closed-book", out=out)
