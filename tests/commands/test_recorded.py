"""The command line against the outputs recorded from the released implementation: memory, chosen
passages and greedy text, and the same from the checkpoint's native form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_world
from safetensors.torch import load_file
from typer.testing import CliRunner

from clara_cli.cli.app import app
from clara_cli.core.checkpoint import read_info
from clara_cli.corpus.store import Corpus

CASES = {"mistral_256_32": "mistral-tiny", "nosys_64_4": "mistral-nosys-tiny"}
EXACT = ["--device", "cpu", "--dtype", "float32", "--json", "--quiet"]


def clara(*words: str) -> dict[str, Any]:
    """Run the program; the last line of stdout is its result."""
    done = CliRunner().invoke(app, [*words, *EXACT])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Case:
    """A recorded case with its documents compressed by the command line, a corpus a question."""

    folder: Path
    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    model: list[str]
    corpora: list[Path]

    @property
    def asked(self) -> dict[str, Any]:
        return self.facts["generate_from_questions"]

    @property
    def top_k(self) -> str:
        return str(self.facts["stage2_generation_top_k"])


@pytest.fixture(scope="module", params=CASES)
def case(request, shared, tmp_path_factory) -> Case:
    recorded = shared / "reference" / "fixtures" / request.param
    assert recorded.is_dir(), f"the recorded data is incomplete: no {recorded}"
    facts = json.loads((recorded / "case.json").read_text())
    backbone = shared / "reference" / "backbones" / CASES[request.param]
    model = ["--model", str(recorded / "ckpt_stage2"), "--backbone", str(backbone)]
    folder = tmp_path_factory.mktemp("recorded")
    corpora = []
    for number, texts in enumerate(facts["generate_from_questions"]["documents"]):
        records = [{"id": str(n), "text": text} for n, text in enumerate(texts)]
        data = tiny_world.write_jsonl(folder / f"{number}.jsonl", records)
        corpora.append(folder / f"{number}.clara")
        clara("compress", str(data), *model, "--split", "none", "--out", str(corpora[-1]))
    return Case(folder, facts, load_file(recorded / "tensors.safetensors"), model, corpora)


def memory(corpus: Path) -> torch.Tensor:
    return torch.cat([chunk for _, chunk in Corpus.open(corpus).memory_chunks()])


def ask(case: Case, number: int, model: list[str]) -> dict[str, Any]:
    question = case.asked["questions"][number]
    chosen = ["--first-stage", "latent", "--top-k", case.top_k]
    length = ["--max-new-tokens", str(len(case.asked["ids"][number]))]
    corpus = ["--corpus", str(case.corpora[number])]
    return clara("ask", question, *corpus, *chosen, *length, *model)


def test_compress_reproduces_the_recorded_memory(case):
    """The questions' documents are those of the recorded training batch."""
    batch = [item[0] for item in case.facts["stage2_batch"]["items"]]
    assert batch == case.asked["documents"]
    recorded_BNP = case.tensors["stage2.doc_embeddings"]
    for corpus, recorded_NP in zip(case.corpora, recorded_BNP, strict=True):
        assert (memory(corpus).flatten(1) - recorded_NP.flatten(1)).abs().max() < 1e-4


def test_ask_reproduces_the_chosen_passages_their_scores_and_the_greedy_text(case):
    for number, recorded in enumerate(case.asked["out"]):
        answer = ask(case, number, case.model)
        chosen = [int(source["document_id"]) for source in answer["sources"]]
        assert chosen == case.asked["topk_idx"][number]
        assert answer["answer"] == recorded.strip()
        scores = case.tensors["stage2.scores"][number]
        found = [source["score"] for source in answer["sources"]]
        assert found == pytest.approx(scores[chosen].tolist(), abs=1e-5)


def test_the_native_form_answers_as_the_released_one_to_the_bit(case):
    native = case.folder / "native"
    init = ["--init", case.model[1], "--backbone", case.model[3]]
    made = clara("train", *init, "--steps", "0", "--out", str(native))
    assert (made["steps"], made["ce"], made["checkpoint"]) == (0, None, str(native / "checkpoint"))
    assert set(read_info(native / "checkpoint").roles) == {
        "compressor",
        "query_reasoner",
        "generator",
    }
    for number, corpus in enumerate(case.corpora):
        again = case.folder / f"native{number}.clara"
        data = str(case.folder / f"{number}.jsonl")
        model = ["--model", str(native)]
        clara("compress", data, *model, "--split", "none", "--out", str(again))
        assert torch.equal(memory(again), memory(corpus))
        answers = [ask(case, number, each) for each in (case.model, model)]
        for answer in answers:
            del answer["seconds"]
        assert answers[0] == answers[1]


def test_index_measures_the_released_checkpoints_corpus(case):
    corpus = case.corpora[0]
    result = clara("index", str(corpus), *case.model, "--engine", "hnsw")
    assert (result["engine"], result["vectors"]) == ("hnsw", 5)
    assert 0 <= result["recall_at_k"] <= 1
    answer = ask(case, 0, case.model)
    assert [int(s["document_id"]) for s in answer["sources"]] == case.asked["topk_idx"][0]
