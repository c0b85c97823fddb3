"""Values that are not finite, wherever they come from, never become a supported answer: they are
refused with their place, exit 3, even where every checksum fits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import tiny_world
from safetensors.torch import load_file, save_file

from clara_cli.answering import support
from clara_cli.answering.engine import AskOptions, Clara
from clara_cli.answering.reading import Generated
from clara_cli.cli.app import app
from clara_cli.commands import compress, index, pretrain
from clara_cli.core.checkpoint_info import read_info
from clara_cli.corpus.quantize import FORMATS
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError

QUESTION = tiny_world.questions()[0]["question"]
ROW = 3


def poison(corpus: Path, value: float, row: int = ROW) -> None:
    """Put a value into a row of the first shard, and make every recorded sum fit."""
    shard = corpus / "shards" / "00000.safetensors"
    tensors = load_file(shard)
    name = "scales" if "scales" in tensors else "memory"
    tensors[name][row].flatten()[1] = value
    save_file(tensors, shard)
    manifest = corpus / "manifest.json"
    described = json.loads(manifest.read_text())
    described["shards"][0]["sha256_memory"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    described["shards"][0]["bytes_memory"] = shard.stat().st_size
    manifest.write_text(json.dumps(described))
    for sidecar in (corpus / "index").rglob("*.json"):
        indexed = json.loads(sidecar.read_text())
        indexed["corpus_sha256"] = Corpus.open(corpus).manifest.fingerprint
        sidecar.write_text(json.dumps(indexed))


def ask(corpus: Path, *more: str) -> list[str]:
    machine = ["--device", "cpu", "--dtype", "float32", "--max-new-tokens", "4", "--json"]
    return ["ask", QUESTION, "--corpus", str(corpus), "--top-k", "8", *machine, *more]


def refused(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as left:
        app(words)
    output = capsys.readouterr()
    assert left.value.code == 3, output.err
    assert output.out == ""
    return output.err


@pytest.fixture(scope="module")
def corpora(works, tmp_path_factory, heard) -> dict[str, Path]:
    """The shared documents in every stored format; the first has a graph."""
    folder = tmp_path_factory.mktemp("formats")
    made = {}
    for dtype in FORMATS:
        made[dtype] = folder / f"{dtype}.clara"
        config = tiny_world.compress(works.documents, works.e2e, made[dtype], store_dtype=dtype)
        compress.run(config, heard())
    index.run(tiny_world.index(made["float32"], engine="hnsw"), heard())
    return made


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_memory_that_is_not_finite_is_refused_with_shard_and_row(corpora, tmp_path, dtype, value):
    shutil.copytree(corpora[dtype], tmp_path / "c")
    poison(tmp_path / "c", value)
    corpus = Corpus.open(tmp_path / "c")
    place = re.escape(f"shards/00000.safetensors: row {ROW} ")
    with pytest.raises(ArtefactError, match=f"{place}.*has memory that is not finite"):
        corpus.memory([0, ROW])
    with pytest.raises(ArtefactError, match=place):
        list(corpus.memory_chunks())
    assert bool(torch.isfinite(corpus.memory([0, ROW + 1])).all())


@pytest.mark.parametrize("stage", ["bm25", "latent", "hybrid"])
@pytest.mark.parametrize("dtype", ["float32", "bf16"])  # with a graph, without
def test_every_first_stage_refuses_it(corpora, tmp_path, capsys, stage, dtype):
    shutil.copytree(corpora[dtype], tmp_path / "c")
    for row in range(len(Corpus.open(tmp_path / "c"))):
        poison(tmp_path / "c", float("nan"), row)
    said = refused(ask(tmp_path / "c", "--first-stage", stage), capsys)
    assert re.search(r"shards/00000\.safetensors: row \d+ .* not finite", said)


def test_index_and_its_check_refuse_it_though_the_checksum_fits(corpora, tmp_path, capsys):
    shutil.copytree(corpora["bf16"], tmp_path / "c")
    poison(tmp_path / "c", float("nan"))
    for more in (["--check"], ["--device", "cpu", "--dtype", "float32"]):
        said = refused(["index", str(tmp_path / "c"), *more], capsys)
        assert f"shards/00000.safetensors: row {ROW} " in said


def test_values_that_are_large_and_finite_are_read(corpora, tmp_path, report):
    shutil.copytree(corpora["float32"], tmp_path / "c")
    for row in range(3):
        poison(tmp_path / "c", 3e38, row)  # their sum is infinite
    assert float(Corpus.open(tmp_path / "c").memory([0, 1, 2]).max()) == pytest.approx(3e38)
    index.run(
        tiny_world.index(tmp_path / "c", engine="hnsw"), report
    )  # keys that overflow are none


# --- weights and logits ---


@pytest.mark.parametrize("file", ["generator/adapter_model.safetensors", "memory.safetensors"])
def test_weights_that_are_not_finite_are_refused_with_file_and_tensor(
    works, tmp_path, capsys, file
):
    shutil.copytree(works.e2e / "checkpoint", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / file)
    name = min(tensors)
    tensors[name].flatten()[0] = float("nan")
    save_file(tensors, tmp_path / "m" / file)
    said = refused(ask(works.corpus, "--model", str(tmp_path / "m")), capsys)
    assert f"{file}: tensor {name} has values that are not finite" in said


@pytest.fixture()
def clara(works) -> Clara:
    return Clara.open(works.corpus, device="cpu", dtype="float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(clara, value):
    head = clara.model.causal_lm.get_output_embeddings()
    with torch.no_grad():
        head.weight[7] = value
    with pytest.raises(ArtefactError, match="its logits are not finite"):
        clara.ask(QUESTION, max_new_tokens=4)


def test_a_token_ruled_out_is_no_fault(clara):
    """Some backbones give tokens they never say a logit of minus infinity."""
    head = clara.model.causal_lm.get_output_embeddings()
    rule_out = torch.zeros(head.weight.shape[0])
    rule_out[5:9] = float("-inf")
    head.register_forward_hook(lambda module, given, logits: logits + rule_out)
    assert clara.ask(QUESTION, max_new_tokens=4).answer is not None


# --- calibration ---


def calibration(works, folder: Path, **changes) -> Path:
    shutil.copytree(works.e2e / "checkpoint", folder)
    info = json.loads((folder / "clara.json").read_text())
    zero = dict.fromkeys(support.TEXT_SIGNALS, 0.0)
    fit = {"weights": zero, "bias": 5.0, "threshold": 0.6, **changes}
    raw = {"format": "clara-support", "version": 1, "fingerprint": info["fingerprint"]}
    (folder / "support.json").write_text(json.dumps({**raw, "text": fit, "memory": fit}))
    return folder


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), "0.5", True, None, [1], pytest.param(10**400, id="huge")],
)
@pytest.mark.parametrize("key", ["bias", "threshold", "weight"])
def test_a_calibration_with_no_finite_number_is_refused(works, tmp_path, capsys, key, value):
    zero = dict.fromkeys(support.TEXT_SIGNALS, 0.0)
    changes = {"weights": {**zero, "facts": value}} if key == "weight" else {key: value}
    path = calibration(works, tmp_path / "m", **changes)
    said = refused(ask(works.corpus, "--model", str(path)), capsys)
    name = "weights.facts" if key == "weight" else key
    assert f"support.json: key 'text.{name}': " in said and ", not " in said


@pytest.mark.parametrize("threshold", [0, -1, 1.5])
def test_a_threshold_that_all_answers_pass_is_refused(works, tmp_path, capsys, threshold):
    path = calibration(works, tmp_path / "m", threshold=threshold)
    said = refused(ask(works.corpus, "--model", str(path)), capsys)
    assert f"support.json: key 'text.threshold': {float(threshold)}, not above 0" in said


def test_signals_that_are_not_finite_are_not_judged(works, tmp_path):
    path = calibration(works, tmp_path / "m")
    judge = support.read_calibrations(path, read_info(path).fingerprint)["memory"]
    zero = dict.fromkeys(support.TEXT_SIGNALS, 0.0)
    assert judge.judge(zero)[1]
    with pytest.raises(ArtefactError, match=r"support\.json: its weights make no finite number"):
        judge.judge({**zero, "likelihood": float("nan")})


@pytest.mark.parametrize("decoded", ["", "</s>", " "])
def test_an_empty_answer_is_never_supported(works, tmp_path, decoded):
    """No token, a special token alone, white space alone: none is an answer."""
    path = calibration(works, tmp_path / "m")
    clara = Clara.open(works.corpus, model=str(path), device="cpu", dtype="float32")
    tokenizer = clara.prompter.tokenizer
    ids = tokenizer(decoded, add_special_tokens=False)["input_ids"]
    assert len(ids) == bool(decoded)
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert text == ""
    found = clara.find([QUESTION], AskOptions(top_k=2))
    (verdict,) = clara.answerer._judge(found, [Generated(ids, text, -0.1)], AskOptions(top_k=2))
    assert (verdict.support, verdict.supported) == (0.0, False)
    as_text = dataclasses.replace(AskOptions(top_k=2), read="text")
    (unjudged,) = clara.answerer._judge(found, [Generated(ids, text, -0.1)], as_text)
    assert unjudged.support is None and not unjudged.supported


def test_support_that_cannot_be_judged_is_no_support(works, tmp_path, capsys):
    out = tmp_path / "n.clara"
    words = ["compress", str(works.documents), "--model", str(works.e2e), "--ratio", "4"]
    machine = ["--device", "cpu", "--dtype", "float32"]
    with pytest.raises(SystemExit) as left:
        app([*words, "--no-text", "--out", str(out), *machine, "--quiet"])
    assert left.value.code == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        app([*ask(out), "--require-support"])
    assert left.value.code == 5
    assert json.loads(capsys.readouterr().out)["supported"] is None


@pytest.mark.parametrize("name", ["memory_MD", "exp_avg"])
def test_a_state_that_is_not_finite_is_not_resumed(works, tmp_path, heard, name):
    shutil.copytree(works.scp, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    file = tmp_path / "run" / "last" / "state.safetensors"
    tensors = load_file(file)
    key = next(key for key in sorted(tensors) if name in key)
    tensors[key].flatten()[0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(ArtefactError, match=rf"state\.safetensors: {re.escape(key)} has values"):
        pretrain.run(tiny_world.scp(works.pairs, works.backbone, tmp_path / "run"), heard())
