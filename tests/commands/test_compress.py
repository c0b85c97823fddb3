"""compress: what is stored, counted and repeated to the byte, and what is refused."""

from __future__ import annotations

import dataclasses
import gzip
import json
import lzma
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny_world

from clara_cli.commands import compress, compress_pipeline
from clara_cli.config import CompressConfig
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.corpus.progress import UNKNOWN_SIZE
from clara_cli.corpus.store import Corpus, verify
from clara_cli.corpus.writer import CorpusWriter
from clara_cli.documents.chunk import model_text
from clara_cli.errors import ArtefactError, ClaraError, DataError, Interrupted, UsageError

KEYS = [
    *["corpus", "documents", "passages", "empty", "skipped", "left_out"],
    *["truncated", "memory_tokens", "ratio", "effective_ratio", "bytes", "seconds"],
    "passages_per_second",
]
FACT = "The mayor of Elmgate is Nora Velden."


def go(data: Path, works, out: Path, report, **changes):
    return compress.run(tiny_world.compress(data, works.e2e, out, **changes), report)


def memory(corpus: Path) -> torch.Tensor:
    return torch.cat([chunk for _, chunk in Corpus.open(corpus).memory_chunks()])


def lines(path: Path, *texts: str) -> Path:
    return tiny_world.write_jsonl(path, [{"id": str(n), "text": t} for n, t in enumerate(texts)])


# --- what comes in ---


def as_jsonl(folder: Path, text: str) -> Path:
    return lines(folder / "a.jsonl", text)


def as_gz(folder: Path, text: str) -> Path:
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(as_jsonl(folder, text).read_bytes()))
    return path


def as_xz(folder: Path, text: str) -> Path:
    path = folder / "a.jsonl.xz"
    path.write_bytes(lzma.compress(as_jsonl(folder, text).read_bytes()))
    return path


def as_text(folder: Path, text: str) -> Path:
    (folder / "a.txt").write_text(text)
    return folder / "a.txt"


def as_folder(folder: Path, text: str) -> Path:
    (folder / "notes").mkdir()
    (folder / "notes" / "a.md").write_text(text)
    return folder / "notes"


def as_csv(folder: Path, text: str) -> Path:
    (folder / "a.csv").write_text(f'id,text\n0,"{text}"\n')
    return folder / "a.csv"


def as_parquet(folder: Path, text: str) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["0"], "text": [text]}), folder / "a.parquet")
    return folder / "a.parquet"


FORMS = [as_jsonl, as_gz, as_xz, as_text, as_folder, as_csv, as_parquet]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__[3:])
def test_every_form_of_documents_gives_the_same_memory(works, report, tmp_path, form):
    data = form(tmp_path, FACT)
    result = go(data, works, tmp_path / "out.clara", report, title=False)
    assert (result.documents, result.passages) == (1, 1)
    model = load(LoadOptions(str(works.e2e), device="cpu")).model
    with torch.no_grad():
        expected = model.encode([model.prompter.passage(FACT)], "compressor", 16).memory_BMD
    assert (memory(tmp_path / "out.clara") - expected).abs().max() < 1e-5


def test_the_default_corpus_is_named_after_the_first_input():
    names = {("a/b.jsonl.gz",): "b.clara", ("notes/", "x.txt"): "notes.clara"}
    for inputs, expected in names.items():
        assert compress_pipeline.default_out(inputs) == Path(expected)
    for inputs in (("-",), ("..",), (".",), (".hidden.jsonl",)):
        with pytest.raises(UsageError, match="--out is needed"):
            compress_pipeline.default_out(inputs)


def test_the_model_is_the_environments_where_none_is_given(works, report, tmp_path, monkeypatch):
    monkeypatch.setenv("CLARA_MODEL", str(works.e2e))
    config = tiny_world.compress(
        lines(tmp_path / "a.jsonl", FACT), works.e2e, tmp_path / "out.clara"
    )
    compress.run(dataclasses.replace(config, model=None), report)
    made_by = Corpus.open(tmp_path / "out.clara").manifest.identity.checkpoint
    assert made_by["model"] == str(works.e2e) and made_by["stage"] == "e2e"


# --- the result ---


def test_the_result_has_the_contracts_keys_and_adds_up(works, report, tmp_path):
    result = go(works.documents, works, tmp_path / "out.clara", report)
    assert list(dataclasses.asdict(result)) == KEYS
    corpus = Corpus.open(tmp_path / "out.clara")
    passages = list(corpus.passages())
    assert result.corpus == str(tmp_path / "out.clara")
    assert result.documents == len(tiny_world.documents())
    assert result.passages == len(passages) == len(corpus) > result.documents
    assert (result.empty, result.skipped, result.truncated) == (1, 0, 0)
    assert (result.memory_tokens, result.ratio) == (16, 4)
    tokens = sum(passage.tokens for passage in passages)
    assert result.effective_ratio == pytest.approx(tokens / (16 * len(passages)), abs=1e-3)
    files = [*(tmp_path / "out.clara").glob("shards/*"), *(tmp_path / "out.clara").glob("pass*/*")]
    assert result.bytes == sum(file.stat().st_size for file in files) > 0
    assert result.passages_per_second > 0 and result.seconds >= 0
    assert report.steps == 1


def test_tokens_count_the_title_and_stop_at_the_passage_length(works, report, tmp_path):
    data = tiny_world.write_jsonl(tmp_path / "a.jsonl", [{"title": "Who", "text": "x" * 200}])
    result = go(data, works, tmp_path / "out.clara", report, split="none")
    assert result.truncated == 1
    assert result.effective_ratio == 64 / 16
    assert next(Corpus.open(tmp_path / "out.clara").passages()).tokens == 204


# --- what is stored ---


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_rows_are_the_models_own_in_the_order_of_the_input(works, report, tmp_path, batch_tokens):
    out = tmp_path / "out.clara"
    go(works.documents, works, out, report, batch_tokens=batch_tokens)
    model = load(LoadOptions(str(works.e2e), device="cpu")).model
    rows = [
        model.prompter.passage(model_text(p.title, p.text)) for p in Corpus.open(out).passages()
    ]
    with torch.no_grad():
        expected = torch.cat([model.encode([row], "compressor", 16).memory_BMD for row in rows])
    assert (memory(out) - expected).abs().max() < 1e-5
    order = [passage.document_id for passage in Corpus.open(out).passages()]
    assert list(dict.fromkeys(order)) == [record["id"] for record in tiny_world.documents()]


def test_passages_keep_where_they_come_from(works):
    by_id = {record["id"]: record for record in tiny_world.documents()}
    for passage in Corpus.open(works.corpus).passages():
        record = by_id[passage.document_id]
        assert passage.text == record["text"][passage.start : passage.end]
        assert passage.title == record.get("title", "")
        assert passage.metadata == {k: v for k, v in record.items() if k == "rank"}
        assert passage.tokens <= 64


def test_a_higher_ratio_stores_the_first_rows(works, report, tmp_path):
    go(works.documents, works, tmp_path / "out.clara", report, ratio=16)
    assert Corpus.open(tmp_path / "out.clara").manifest.identity.memory_tokens == 4
    assert (memory(tmp_path / "out.clara") - memory(works.corpus)[:, :4]).abs().max() < 1e-5


def test_the_ratio_asked_for_is_the_ratio_recorded(works, report, tmp_path):
    """Also where it does not divide the passage length: 64 // 20 = 3 memory tokens."""
    from clara_cli.commands import pretrain

    pretrain.run(
        tiny_world.scp(works.pairs, works.backbone, tmp_path / "run", ratios=(20,), steps=0), report
    )
    config = tiny_world.compress(
        works.documents, tmp_path / "run", tmp_path / "out.clara", ratio=20
    )
    result = compress.run(config, report)
    assert (result.ratio, result.memory_tokens) == (20, 3)
    assert Corpus.open(tmp_path / "out.clara").manifest.identity.ratio == 20


@pytest.mark.parametrize(
    ("dtype", "store", "expected"),
    [
        ("auto", "auto", "fp8"),
        ("float32", "auto", "float32"),
        ("bfloat16", "auto", "bf16"),
        ("float32", "bf16", "bf16"),
        ("auto", "float32", "float32"),
        ("float32", "fp16", "fp16"),
        ("float32", "fp8", "fp8"),
        ("auto", "int8", "int8"),
        ("float32", "nf4", "nf4"),
    ],
)
def test_the_stored_format_is_the_one_named(works, report, tmp_path, dtype, store, expected):
    data, out = lines(tmp_path / "a.jsonl", FACT), tmp_path / "out.clara"
    go(data, works, out, report, dtype=dtype, store_dtype=store)
    identity = Corpus.open(out).manifest.identity
    assert identity.dtype == expected
    compute = "bf16" if dtype == "bfloat16" else "float32"  # auto is float32 on a CPU
    assert identity.options["compute_dtype"] == compute
    go(data, works, tmp_path / "exact.clara", report)
    exact = memory(tmp_path / "exact.clara")
    error = (memory(out) - exact).abs().max() / exact.abs().max()
    most = {"float32": 1e-6, "bf16": 6e-2, "fp16": 1e-3, "fp8": 7e-2, "int8": 5e-3, "nf4": 0.16}
    assert error <= most[expected]
    if expected == "float32":
        assert torch.equal(memory(out), exact)


def test_text_and_title_can_be_left_out(works, report, tmp_path):
    data = tiny_world.write_jsonl(tmp_path / "a.jsonl", [{"title": "Elmgate", "text": FACT}])
    made = {}
    for name, changes in (("all", {}), ("bare", {"title": False}), ("mute", {"text": False})):
        go(data, works, tmp_path / name, report, **changes)
        made[name] = Corpus.open(tmp_path / name)
    passages = {name: corpus.passage(0) for name, corpus in made.items()}
    assert [passages[n].text for n in made] == [FACT, FACT, None]
    assert [passages[n].title for n in made] == ["Elmgate"] * 3
    assert passages["all"].tokens == passages["bare"].tokens + len("Elmgate\n")
    assert torch.equal(memory(tmp_path / "all"), memory(tmp_path / "mute"))
    assert (memory(tmp_path / "all") - memory(tmp_path / "bare")).abs().max() > 1e-3
    go(lines(tmp_path / "b.jsonl", FACT), works, tmp_path / "plain", report)
    assert torch.equal(memory(tmp_path / "bare"), memory(tmp_path / "plain"))


@pytest.mark.parametrize("split", ["sentences", "tokens", "none"])
def test_long_documents_are_cut_as_asked(works, report, tmp_path, split):
    text = " ".join(record["text"] for record in tiny_world.documents()[:4])
    result = go(lines(tmp_path / "a.jsonl", text), works, tmp_path / split, report, split=split)
    passages = list(Corpus.open(tmp_path / split).passages())
    assert result.truncated == (split == "none")
    if split == "none":
        assert [p.text for p in passages] == [text]
        cut = load(LoadOptions(str(works.e2e), device="cpu")).model.prompter.passage(text)
        assert len(cut) == 64 + 3
    else:
        assert len(passages) > 1 and all(p.tokens <= 64 for p in passages)
    whole = [p.text.endswith(".") for p in passages]
    assert all(whole) == (split != "tokens")


def test_special_tokens_in_a_document_are_plain_text(works, report, tmp_path):
    data = lines(tmp_path / "a.jsonl", "A <|memory|> and </s>.", "A \x00 byte.")
    result = go(data, works, tmp_path / "out.clara", report)
    assert result.passages == 2
    assert Corpus.open(tmp_path / "out.clara").passage(0).text == "A <|memory|> and </s>."


# --- the same bytes ---


def test_the_same_command_writes_the_same_bytes(works, report, tmp_path):
    for name in ("once.clara", "again.clara"):
        go(works.documents, works, tmp_path / name, report)
    assert tiny_world.files(tmp_path / "again.clara") == tiny_world.files(tmp_path / "once.clara")


@pytest.mark.parametrize("shard", [1, 3])
def test_an_interrupted_corpus_ends_in_the_same_bytes(works, heard, report, tmp_path, shard):
    data = works.documents
    go(data, works, tmp_path / "whole.clara", report, shard_size=shard)
    out = tmp_path / "out.clara"
    with pytest.raises(Interrupted, match="finished shards are kept") as caught:
        go(data, works, out, heard(stop_at=2), shard_size=shard)
    assert caught.value.code == 130 and "same command" in caught.value.hint
    assert not (out / "manifest.json").exists()
    with pytest.raises(ArtefactError, match="is not finished: 2 shards so far"):
        Corpus.open(out)
    result = go(data, works, out, report, shard_size=shard)
    assert tiny_world.files(out) == tiny_world.files(tmp_path / "whole.clara")
    assert result.passages == len(Corpus.open(out))


def test_an_interrupted_corpus_computes_no_finished_shard_again(
    works, heard, report, tmp_path, monkeypatch
):
    with pytest.raises(Interrupted):
        go(works.documents, works, tmp_path / "out.clara", heard(stop_at=2), shard_size=3)
    written: list[int] = []
    write = CorpusWriter.write

    def spy(writer, number, *rest):
        written.append(number)
        write(writer, number, *rest)

    monkeypatch.setattr(CorpusWriter, "write", spy)
    go(works.documents, works, tmp_path / "out.clara", report, shard_size=3)
    assert written and min(written) == 2


def test_a_finished_corpus_is_left_as_it_is(works, report, tmp_path, monkeypatch):
    shutil.copytree(works.corpus, tmp_path / "copy.clara")
    before = tiny_world.files(tmp_path / "copy.clara")
    monkeypatch.setattr(CorpusWriter, "write", None)
    result = go(works.documents, works, tmp_path / "copy.clara", report)
    assert tiny_world.files(tmp_path / "copy.clara") == before
    assert (result.documents, result.passages_per_second) == (len(tiny_world.documents()), None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ratio": 16}, ("ratio", "4", "16")),
        ({"split": "none"}, ("split", "'sentences'", "'none'")),
        ({"title": False}, ("title", "True", "False")),
        ({"text": False}, ("text", "True", "False")),
        ({"store_dtype": "bf16"}, ("dtype", "'float32'", "'bf16'")),
        ({"shard_size": 5}, ("shard_size", "1024", "5")),
        ({"batch_tokens": 5}, ("batch_tokens", "8192", "5")),
        ({"dtype": "bfloat16", "store_dtype": "float32"}, ("compute_dtype", "'bf16'")),
    ],
)
def test_another_option_on_a_finished_corpus_is_refused_by_name(works, report, changes, named):
    before = tiny_world.files(works.corpus)
    with pytest.raises(ArtefactError) as caught:
        go(works.documents, works, works.corpus, report, **changes)
    assert caught.value.code == 3
    assert all(word in caught.value.message for word in (str(works.corpus), *named))
    assert tiny_world.files(works.corpus) == before


def test_a_corpus_in_the_format_that_was_the_default_is_left_as_it_is(works, report, tmp_path):
    data, out = lines(tmp_path / "a.jsonl", FACT), tmp_path / "out.clara"
    go(data, works, out, report, dtype="auto", store_dtype="bf16")
    before = tiny_world.files(out)
    assert go(data, works, out, report, dtype="auto", store_dtype="auto").passages == 1
    assert tiny_world.files(out) == before
    with pytest.raises(ArtefactError, match="dtype = 'bf16', this command has 'fp8'"):
        go(data, works, out, report, dtype="auto", store_dtype="fp8")


def test_another_checkpoint_on_a_finished_corpus_is_refused(works, report):
    with pytest.raises(ArtefactError, match=r"checkpoint\.fingerprint"):
        compress.run(tiny_world.compress(works.documents, works.scp, works.corpus), report)


@pytest.mark.parametrize("change", ["text", "more", "fewer", "metadata"])
def test_other_documents_on_a_finished_corpus_are_refused(works, report, tmp_path, change):
    records = tiny_world.documents()
    if change == "text":
        records[2]["text"] = records[2]["text"].replace("Ada", "Ida")
    elif change == "more":
        records.append({"id": "more", "text": "More."})
    elif change == "fewer":
        records.pop()
    else:
        records[0]["rank"] = 99
    data = tiny_world.write_jsonl(tmp_path / "documents.jsonl", records)
    before = tiny_world.files(works.corpus)
    with pytest.raises(ArtefactError, match="finished corpus") as caught:
        go(data, works, works.corpus, report)
    assert caught.value.hint and tiny_world.files(works.corpus) == before


def test_a_folder_of_other_things_is_left_alone(works, report, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("Dear")
    with pytest.raises(ArtefactError, match="letter.txt"):
        go(works.documents, works, tmp_path / "mine", report)
    assert list(tiny_world.files(tmp_path / "mine")) == ["letter.txt"]


# --- what is counted, left out or refused ---


def test_empty_documents_are_compressed_and_counted(works, report, tmp_path):
    data = lines(tmp_path / "a.jsonl", "", "  \n", FACT)
    result = go(data, works, tmp_path / "out.clara", report)
    assert (result.documents, result.passages, result.empty) == (3, 3, 2)
    assert torch.isfinite(memory(tmp_path / "out.clara")).all()


BAD = '{"id": "a", "text": "One."}\nnot json\n{"id": "b"}\n{"id": "a", "text": "Again."}\n'


def test_bad_lines_stop_with_their_place_and_leave_nothing_finished(works, report, tmp_path):
    (tmp_path / "a.jsonl").write_text(BAD)
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON") as caught:
        go(tmp_path / "a.jsonl", works, tmp_path / "out.clara", report)
    assert caught.value.code == 4 and "--skip-bad" in caught.value.hint
    assert not (tmp_path / "out.clara" / "manifest.json").exists()


def test_bad_lines_are_counted_and_reported_where_one_asks(works, report, tmp_path):
    (tmp_path / "a.jsonl").write_text(BAD)
    result = go(tmp_path / "a.jsonl", works, tmp_path / "out.clara", report, skip_bad=True)
    assert (result.documents, result.skipped) == (1, 3)
    assert [w.split(":")[1] for w in report.warnings] == ["2", "3", "4"]
    assert "used before" in report.warnings[2]
    assert Corpus.open(tmp_path / "out.clara").manifest.counts["skipped"] == 3


@pytest.mark.parametrize("ratio", [1, 8, 64, 1000])
def test_a_ratio_not_served_names_those_that_are(works, report, tmp_path, ratio):
    with pytest.raises(UsageError, match=f"--ratio {ratio}: not served") as caught:
        go(works.documents, works, tmp_path / "out.clara", report, ratio=ratio)
    assert caught.value.hint == "it serves 4, 16"
    assert not (tmp_path / "out.clara").exists()


def test_a_dry_run_counts_and_writes_nothing(works, report, tmp_path):
    out = tmp_path / "out.clara"
    planned = go(works.documents, works, out, report, dry_run=True)
    assert not out.exists() and planned.corpus == str(out)
    real = go(works.documents, works, out, report)
    for key in ("documents", "passages", "empty", "truncated", "effective_ratio", "ratio"):
        assert getattr(planned, key) == getattr(real, key)
    assert planned.bytes == memory(out).numel() * 4 <= real.bytes


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere/at/all", "checkpoint /nowhere/at/all: no such directory"),
        ("", "not a checkpoint"),
    ],
)
def test_a_model_that_is_none_is_named(works, report, tmp_path, model, message):
    model = model or str(tmp_path)
    with pytest.raises(ArtefactError, match=message):
        compress.run(tiny_world.compress(works.documents, model, tmp_path / "out.clara"), report)


def test_a_checkpoint_without_a_compressor_is_refused(works, report, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(works.e2e / "checkpoint", bare)
    facts = json.loads((bare / "clara.json").read_text())
    (bare / "clara.json").write_text(json.dumps({**facts, "roles": ["generator"]}))
    with pytest.raises(ClaraError):
        compress.run(tiny_world.compress(works.documents, bare, tmp_path / "out.clara"), report)


def test_what_was_compressed_is_whole(works):
    assert verify(works.corpus) == []


def test_a_finished_corpus_stays_when_its_documents_have_moved(works, report, tmp_path):
    out = tmp_path / "world.clara"
    shutil.copytree(works.corpus, out)
    moved = tmp_path / "elsewhere.jsonl"
    shutil.copy(works.documents, moved)
    before = tiny_world.files(out)
    compress.run(tiny_world.compress(moved, works.e2e, out), report)
    assert tiny_world.files(out) == before
    places = [p.source for p in Corpus.open(out).passages()]
    assert places[0] == f"{works.documents}:1" and places[-1] == f"{works.documents}:11"


# --- overlap, datasets, estimates ---


def test_an_overlap_is_repeated_in_the_next_passage(works, report, tmp_path):
    text = " ".join(record["text"] for record in tiny_world.documents()[:4])
    data = lines(tmp_path / "a.jsonl", text)
    go(data, works, tmp_path / "out.clara", report, split="tokens", overlap=16)
    passages = list(Corpus.open(tmp_path / "out.clara").passages())
    starts = [later.start - before.end for before, later in zip(passages, passages[1:])]  # noqa: B905
    assert set(starts) <= {-16, -15} and all(p.tokens <= 64 for p in passages)
    assert all(p.text == text[p.start : p.end] for p in passages)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overlap": 64}, "--overlap 64: a passage has at most 64 tokens"),
        ({"overlap": 8, "split": "none"}, "--overlap does nothing with --split none"),
    ],
)
def test_an_overlap_without_sense_is_refused(works, report, tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        go(works.documents, works, tmp_path / "out.clara", report, **changes)
    assert not (tmp_path / "out.clara").exists()


def test_a_dataset_by_name_is_compressed(works, report, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(lines(tmp_path / "a.jsonl", FACT), folder / "train.jsonl")
    result = go(f"hf:{folder}", works, tmp_path / "out.clara", report, title=False)
    go(tmp_path / "a.jsonl", works, tmp_path / "same.clara", report, title=False)
    assert result.documents == 1
    assert torch.equal(memory(tmp_path / "out.clara"), memory(tmp_path / "same.clara"))
    assert compress_pipeline.default_out(("hf:owner/name/config:train",)) == Path("config.clara")


def test_progress_has_its_share_of_the_input_from_the_start(works, heard, tmp_path, monkeypatch):
    monkeypatch.setattr("clara_cli.corpus.progress.SHOW_SECONDS", 0)
    report = heard()
    go(works.documents, works, tmp_path / "out.clara", report, shard_size=3, batch_tokens=60)
    steps = report.seen
    assert (steps[0].done, steps[0].share, steps[0].figures) == (0, 0.0, {"MB": "0.0"})
    shares = [step.share for step in steps]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert len(set(shares)) > 5, "within shards too"
    assert steps[-1].done == 14 and set(steps[-1].figures) == {"passages/s", "tokens/s", "MB"}


def test_a_corpus_already_complete_shows_no_pace(works, heard, tmp_path):
    shutil.copytree(works.corpus, tmp_path / "copy.clara")
    report = heard()
    go(works.documents, works, tmp_path / "copy.clara", report)
    assert report.seen and all(set(step.figures) == {"MB"} for step in report.seen)


def test_a_dry_run_shows_how_far_it_has_read(works, heard, tmp_path, monkeypatch):
    monkeypatch.setattr("clara_cli.corpus.progress.SHOW_SECONDS", 0)
    report = heard()
    documents = lines(tmp_path / "many.jsonl", *["A town has a mayor."] * 200)
    go(documents, works, tmp_path / "out.clara", report, dry_run=True)
    steps = {task: [step for step in report.seen if step.task == task] for task in report.begun}
    assert (steps["compress"][0].share, report.begun) == (0.0, {"compress", "time", "read"})
    for task in ("time", "read"):
        shares = [step.share for step in steps[task]]
        assert shares == sorted(shares) and shares[-1] == 1.0
    assert (steps["time"][-1].total, steps["read"][-1].done) == (64, 200)
    assert set(steps["read"][-1].figures) == {"passages/s"}


def test_progress_goes_on_within_a_batch(works, heard, tmp_path, monkeypatch):
    """All passages in one batch: layer by layer, with the bytes of a run that nobody watches."""
    monkeypatch.setattr("clara_cli.corpus.progress.SHOW_SECONDS", 0)
    report = heard()
    go(works.documents, works, tmp_path / "seen.clara", report)
    within = [step for step in report.seen if step.done == 0]
    assert [step.share for step in within] == [0.0, 0.5, 1.0]  # two layers
    assert report.seen[-1].done == 14
    monkeypatch.setattr("clara_cli.core.batch_encoding.layers_of", refuse_layers)
    go(works.documents, works, tmp_path / "unseen.clara", heard())
    seen, unseen = (tiny_world.files(tmp_path / name / "shards") for name in
                    ("seen.clara", "unseen.clara"))  # fmt: skip
    assert seen == unseen and seen


def refuse_layers(inner):
    """As for a kind whose layers are not one list."""
    raise ArtefactError("its layers are not in one list", "")


def test_an_empty_file_is_not_called_a_pipe(works, heard, tmp_path):
    report = heard()
    with pytest.raises(DataError, match="no documents in"):
        go(lines(tmp_path / "d.jsonl"), works, tmp_path / "c.clara", report)
    assert UNKNOWN_SIZE not in report.notes


def test_documents_from_a_pipe_say_that_no_time_can_be_given(works, heard, tmp_path, monkeypatch):
    monkeypatch.setattr("clara_cli.corpus.progress.SHOW_SECONDS", 0)
    for name, dry_run in (("a", False), ("b", True)):
        report, (reading, writing) = heard(), os.pipe()
        os.write(writing, lines(tmp_path / "d.jsonl", *["A town has a mayor."] * 70).read_bytes())
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
            result = go("-", works, tmp_path / f"{name}.clara", report, dry_run=dry_run)
        assert (result.passages, report.notes.count(UNKNOWN_SIZE)) == (70, 1)
        counted = [step for step in report.seen if step.task != "time"]
        assert {step.share for step in counted} == {None}
        assert counted[-1].done == 70 and "passages/s" in counted[-1].figures


def test_a_dry_run_estimates_the_time_from_the_first_passages(works, report, tmp_path):
    text = " ".join(record["text"] for record in tiny_world.documents()[:8])
    few, many = (lines(tmp_path / f"{n}.jsonl", *[text] * n) for n in (20, 200))
    plans = [go(d, works, tmp_path / "out.clara", report, dry_run=True) for d in (few, many)]
    assert report.notes.count("the time is estimated from the first 64 passages") == 2
    assert plans[1].passages == 10 * plans[0].passages
    assert plans[1].seconds > 2 * plans[0].seconds > 0
    assert plans[0].passages_per_second == pytest.approx(
        plans[0].passages / plans[0].seconds,
        rel=0.05,  # seconds are rounded
    )


# --- additions and repairs ---


@pytest.fixture
def corpus(works, tmp_path) -> Path:
    """A copy of the shared corpus, to add to or damage."""
    return Path(shutil.copytree(works.corpus, tmp_path / "copy.clara"))


def test_documents_are_added_with_the_options_of_the_corpus(works, report, tmp_path, corpus):
    more = tiny_world.write_jsonl(tmp_path / "more.jsonl", [{"id": "new", "text": FACT}])
    bare = {"model": None, "ratio": None, "into": corpus, "append": True}
    result = compress.run(dataclasses.replace(tiny_world.compress(more, "", None), **bare), report)
    before = Corpus.open(works.corpus)
    after = Corpus.open(corpus)
    assert (result.documents, result.passages, result.ratio) == (1, 1, 4)
    assert len(after) == len(before) + 1 and after.passage(len(before)).document_id == "new"
    assert after.manifest.shards[: len(before.manifest.shards)] == before.manifest.shards
    assert result.bytes == sum(
        shard.bytes_memory + shard.bytes_passages for shard in after.manifest.shards[-1:]
    )
    once = tiny_world.files(corpus)
    compress.run(dataclasses.replace(tiny_world.compress(more, "", None), **bare), report)
    assert tiny_world.files(corpus) == once


UNUSUAL: dict[str, Any] = {
    "split": "tokens",
    "overlap": 9,
    "title": False,
    "text": False,
    "shard_size": 4,
    "batch_tokens": 300,
    "dtype": "bfloat16",
    "store_dtype": "int8",
}


def test_an_addition_need_not_repeat_the_corpus_s_options(works, report, tmp_path):
    out = tmp_path / "out.clara"
    go(works.documents, works, out, report, **UNUSUAL)
    more = tiny_world.write_jsonl(tmp_path / "more.jsonl", [{"id": "new", "text": FACT * 3}])
    bare = CompressConfig(inputs=(str(more),), into=out, append=True, device="cpu")
    assert compress.run(bare, report).documents == 1
    repeated = tiny_world.compress(more, works.e2e, None, into=out, append=True, **UNUSUAL)
    once = tiny_world.files(out)
    compress.run(repeated, report)
    assert tiny_world.files(out) == once
    with pytest.raises(ArtefactError, match=r"options\.overlap = 9, this command has 8") as caught:
        compress.run(dataclasses.replace(repeated, overlap=8), report)
    assert "omit that option" in caught.value.hint and "delete" not in caught.value.hint
    assert tiny_world.files(out) == once


def test_an_addition_loads_the_backbone_as_the_corpus_did(works):
    stored = Corpus.open(works.corpus).manifest.identity
    quantised = dataclasses.replace(stored, options={**stored.options, "load_in": "4bit"})
    bare = CompressConfig(inputs=("more.jsonl",), into=works.corpus, append=True)
    assert compress_pipeline.as_stored(bare, quantised).load_in == "4bit"
    assert compress_pipeline.as_stored(bare, stored).load_in is None


def test_ids_the_corpus_has_are_refused_or_passed_over(works, report, tmp_path, corpus):
    records = [{"id": "new", "text": FACT}, {"id": "d3", "text": "Again."}]
    more = tiny_world.write_jsonl(tmp_path / "more.jsonl", records)
    before = tiny_world.files(corpus)
    with pytest.raises(DataError, match=r"more\.jsonl:2: the id 'd3' is in .*copy\.clara already"):
        compress.run(tiny_world.compress(more, works.e2e, None, into=corpus, append=True), report)
    assert {name: b for name, b in tiny_world.files(corpus).items() if name in before} == before
    result = compress.run(
        tiny_world.compress(more, works.e2e, None, into=corpus, append=True, skip_bad=True), report
    )
    assert (result.documents, result.skipped) == (1, 1)
    assert len(Corpus.open(corpus)) == len(Corpus.open(works.corpus)) + 1


def test_an_addition_that_does_not_fit_is_refused(works, report, tmp_path, corpus):
    more = lines(tmp_path / "more.jsonl", FACT)
    before = tiny_world.files(corpus)
    for changes, error in (
        ({"ratio": 16}, "made with ratio = 4, this command has 16"),
        ({"overlap": 3}, "options.overlap = 0, this command has 3"),
        ({"out": tmp_path / "x"}, "--out and --into were both given"),
        ({"into": tmp_path / "none.clara"}, "no finished corpus to add to"),
    ):
        config = tiny_world.compress(more, works.e2e, None, into=corpus, append=True)
        with pytest.raises(ClaraError, match=error):
            compress.run(dataclasses.replace(config, **changes), report)
    assert tiny_world.files(corpus) == before


def test_the_same_command_repairs_what_check_names(works, heard, report, tmp_path, monkeypatch):
    from clara_cli.commands import index

    out = tmp_path / "out.clara"
    go(works.documents, works, out, report, shard_size=3)
    index.run(tiny_world.index(out, engine="hnsw"), report)
    whole = tiny_world.files(out)
    (graph,) = (name for name in whole if name.endswith("graph.bin"))
    for name in ("shards/00001.safetensors", "passages/00003.jsonl.gz", graph):
        (out / name).write_bytes(whole[name][:-1] + bytes([whole[name][-1] ^ 1]))
    with pytest.raises(ArtefactError) as caught:
        index.run(tiny_world.index(out, check=True), report)
    said = caught.value
    assert all(name in said.message for name in ("shards/00001", "passages/00003", "graph.bin"))
    again = f"clara compress {works.documents} --ratio 4 --model {works.e2e} --shard-size 3"
    again += f" --store-dtype float32 --dtype float32 --out {out}"
    assert said.hint == f"repair it: {again}; then clara index {out}"
    written: list[int] = []
    write = CorpusWriter.write
    monkeypatch.setattr(
        CorpusWriter, "write", lambda self, n, *rest: (written.append(n), write(self, n, *rest))
    )
    go(works.documents, works, out, report, shard_size=3)
    index.run(tiny_world.index(out, engine="hnsw"), report)
    assert written == [1, 3] and tiny_world.files(out) == whole
    index.run(tiny_world.index(out, check=True), report)


@pytest.mark.parametrize(("rate", "told"), [(None, None), (0.00412, 0.0041), (152.849, 152.85)])
def test_a_slow_run_is_not_one_that_computed_nothing(rate, told):
    counts = dict.fromkeys(("documents", "passages", "empty", "skipped", "truncated"), 1)
    progress = SimpleNamespace(**counts, text_tokens=1, left_out={})
    identity = SimpleNamespace(memory_tokens=4, ratio=16)
    job = SimpleNamespace(progress=progress, identity=identity, out="c.clara")
    assert compress.result(job, 1, 1.0, rate).passages_per_second == told
