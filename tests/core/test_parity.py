"""Number by number against outputs recorded from the released implementation."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clara_cli.core.batch import (
    AnswerExample,
    Batch,
    answer_batch,
    retrieval_batch,
    scp_batch,
)
from clara_cli.core.checkpoint import LoadOptions
from clara_cli.core.losses import alignment_mse
from clara_cli.core.model import ClaraModel
from clara_cli.core.prompts import PARAPHRASE_INSTRUCTIONS
from clara_cli.core.released import load_released
from clara_cli.core.stage_losses import choose, contrastive_loss, end_to_end_loss, read_memory_loss
from clara_cli.records import Pair

CASES = {"mistral_256_32": "mistral-tiny", "nosys_64_4": "mistral-nosys-tiny"}
ROLES = {
    "encoder_adapter": "compressor",
    "decoder_adapter": "generator",
    "query_reasoner_adapter": "query_reasoner",
}


CHECKPOINTING = pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])


@dataclass
class Case:
    folder: Path
    backbone: Path
    facts: dict
    tensors: dict[str, torch.Tensor]

    def load(self, stage: str, checkpointing: bool = False) -> ClaraModel:
        folder = self.folder / f"ckpt_{stage}"
        options = LoadOptions("recorded", str(self.backbone), "cpu", "float32")
        model = load_released(folder, options, dropout=0.0).model
        if checkpointing:
            model.checkpoint_layers()
            model.train()
        return model


@pytest.fixture(scope="module", params=CASES)
def case(request, shared) -> Case:
    folder = shared / "reference" / "fixtures" / request.param
    facts = json.loads((folder / "case.json").read_text())
    backbone = shared / "reference" / "backbones" / CASES[request.param]
    return Case(folder, backbone, facts, load_file(folder / "tensors.safetensors"))


def real(ids: torch.Tensor, mask: torch.Tensor) -> list[int]:
    return [i for i, m in zip(ids.tolist(), mask.tolist(), strict=True) if m]


def assert_gradients(model: ClaraModel, tensors: dict, stage: str) -> None:
    checked = 0
    for key, expected in tensors.items():
        if not key.startswith(f"{stage}.grad.model."):
            continue
        name = key.removeprefix(f"{stage}.grad.")
        for adapter, role in ROLES.items():
            name = name.replace(adapter, role)
        found = model.get_parameter(f"peft.base_model.model.{name}").grad
        assert (found - expected).norm() <= 1e-3 * expected.norm(), name
        checked += 1
    assert checked


def test_encoder_ids_memory_and_mse(case):
    model = case.load("stage1")
    rows = [model.prompter.passage(text) for text in case.facts["enc"]["docs"]]
    for row, ids, mask in zip(
        rows, case.tensors["enc.input_ids"], case.tensors["enc.attention_mask"], strict=True
    ):
        assert row == real(ids, mask)[: -model.memory_tokens]
    with torch.no_grad():
        encoded = model.encode(rows, "compressor")
    assert (encoded.memory_BMD - case.tensors["stage1.compressed"]).abs().max() < 1e-4
    mse = alignment_mse(encoded.memory_BMD, encoded.hidden_BLD, encoded.mask_BL)
    assert abs(mse.item() - case.tensors["stage1.mse"].item()) < 1e-4


def stage1_batch(model: ClaraModel, items: list) -> Batch:
    rng = random.Random(5)
    pairs, instructions = [], []
    for docs, questions, answers, kind, *_ in items:
        pairs.append(Pair(kind, tuple(questions), tuple(answers), tuple(docs)))
        instructions.append(
            rng.choice(range(len(PARAPHRASE_INSTRUCTIONS))) if kind == "paraphrase" else 0
        )
    return scp_batch(model.prompter, pairs, instructions, model.memory_tokens, 2048)


def assert_rows(batch: Batch, tensors: dict, prefix: str) -> None:
    found = zip(
        tensors[f"{prefix}dec_input_ids"],
        tensors[f"{prefix}dec_attention_mask"],
        tensors[f"{prefix}labels"],
        strict=True,
    )
    for row, labels, (ids, mask, expected) in zip(batch.rows, batch.labels, found, strict=True):
        assert row == real(ids, mask)
        assert labels == real(expected, mask)


@CHECKPOINTING
def test_stage1_loss_and_gradients(case, checkpointing):
    model = case.load("stage1", checkpointing)
    model.train_only(("compressor", "generator"), memory=True)
    batch = stage1_batch(model, case.facts["stage1_batch"]["items"])
    assert_rows(batch, case.tensors, "stage1.")
    result = read_memory_loss(model, batch, mse_weight=0.1)
    assert abs(result.ce - case.tensors["stage1.loss"].item()) < 1e-4
    assert abs(result.mse - case.tensors["stage1.batch_mse"].item()) < 1e-4
    result.loss.backward()
    assert_gradients(model, case.tensors, "stage1")
    expected = case.tensors["stage1.grad.mem_rows"]
    assert (model.memory_MD.grad - expected).norm() <= 1e-3 * expected.norm()


def test_paraphrase_prompts_and_loss(case):
    model = case.load("stage1")
    facts = json.loads((case.folder / "paraphrase.json").read_text())
    tensors = load_file(case.folder / "paraphrase.safetensors")
    items = [[docs, [], answers, kind] for docs, _, answers, kind, *_ in facts["items"]]
    batch = stage1_batch(model, items)
    assert_rows(batch, tensors, "")
    result = read_memory_loss(model, batch, mse_weight=0.1)
    assert abs(result.ce - tensors["loss"].item()) < 1e-4
    assert abs(result.mse - tensors["mse"].item()) < 1e-4


def answer_examples(items: list) -> list[AnswerExample]:
    return [AnswerExample(question, answer, tuple(docs)) for docs, question, answer, *_ in items]


@CHECKPOINTING
def test_stage1_2_loss_and_norms(case, checkpointing):
    model = case.load("stage1_2", checkpointing)
    model.train_only(("compressor", "generator"))
    items = case.facts["stage1_2_batch"]["items"]
    batch = answer_batch(model.prompter, answer_examples(items), model.memory_tokens, 2048)
    assert_rows(batch, case.tensors, "stage1_2.")
    result = read_memory_loss(model, batch, mse_weight=0.1)
    assert abs(result.ce - case.tensors["stage1_2.loss"].item()) < 1e-4
    assert abs(result.mse - case.tensors["stage1_2.batch_mse"].item()) < 1e-4
    result.loss.backward()
    for adapter in ("encoder_adapter", "decoder_adapter"):
        expected = case.facts["stage1_2_grads"][adapter]["grad_norm"]
        assert role_norm(model, ROLES[adapter]) == pytest.approx(expected, rel=1e-3)


def role_norm(model: ClaraModel, role: str) -> float:
    gradients = [p.grad for p in model.role_parameters(role).values() if p.grad is not None]
    return torch.stack([g.norm() for g in gradients]).norm().item() if gradients else 0.0


@CHECKPOINTING
def test_stage2_choice_loss_and_gradients(case, checkpointing):
    model = case.load("stage2", checkpointing)
    model.train_only(("query_reasoner", "generator"))
    facts = case.facts["stage2_batch"]
    k = case.facts["stage2_generation_top_k"]
    examples = answer_examples(facts["items"])
    batch = answer_batch(model.prompter, examples, model.memory_tokens, facts["dec_max_len"], k)
    assert_rows(batch, case.tensors, "stage2.")
    _, indices, scores = choose(model, batch, 0.02, "released")
    assert [i.tolist() for i in indices] == case.tensors["stage2.topk_idx"].tolist()
    assert (torch.stack(scores) - case.tensors["stage2.scores"]).abs().max() < 1e-5
    result = end_to_end_loss(model, batch, 0.02, "released")
    assert abs(result.ce - case.tensors["stage2.loss"].item()) < 1e-4
    result.loss.backward()
    assert_gradients(model, case.tensors, "stage2")
    for adapter, role in ROLES.items():
        expected = case.facts["stage2_grads"][adapter]["grad_norm"]
        assert role_norm(model, role) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@CHECKPOINTING
def test_infonce_gradient(case, checkpointing):
    """The contrastive stage as it was meant: the released code leaves the wrong adapter active."""
    model = case.load("stage2", checkpointing)
    model.train_only(("query_reasoner",))
    items = case.facts["stage2_batch"]["items"]
    examples = [
        AnswerExample(question, "", tuple(docs), golds=tuple(golds))
        for docs, question, _, _, golds, *_ in items
    ]
    batch = retrieval_batch(model.prompter, examples, model.memory_tokens)
    loss = contrastive_loss(model, batch, 0.02).loss
    expected = case.tensors["stage2_pretrain_retrieval.loss"].item()
    assert abs(loss.item() - expected) < 1e-4
    loss.backward()
    assert_gradients(model, case.tensors, "stage2_pretrain_retrieval")


def test_greedy_ids_from_text(case):
    model = case.load("stage1_2")
    facts = case.facts["generate_from_text"]
    documents = case.facts["enc"]["docs"]
    assert_greedy(model, facts, [[documents[i] for i in group] for group in facts["docs_idx"]])


def test_greedy_ids_from_questions(case):
    model = case.load("stage2")
    facts = case.facts["generate_from_questions"]
    k = case.facts["stage2_generation_top_k"]
    examples = [
        AnswerExample(q, "-", tuple(docs))
        for q, docs in zip(facts["questions"], facts["documents"], strict=True)
    ]
    batch = answer_batch(model.prompter, examples, model.memory_tokens, 1024, k)
    _, indices, _ = choose(model, batch, 0.02, "released")
    assert [i.tolist() for i in indices] == facts["topk_idx"]
    chosen = [
        [documents[i] for i in picks.tolist()]
        for documents, picks in zip(facts["documents"], indices, strict=True)
    ]
    assert_greedy(model, facts, chosen)


def assert_greedy(model: ClaraModel, facts: dict, documents: list[list[str]]) -> None:
    prompter = model.prompter
    for i, (question, texts) in enumerate(zip(facts["questions"], documents, strict=True)):
        chat = prompter.answer_chat(question, len(texts), model.memory_tokens)
        prompt = prompter.prompt(chat)
        assert prompter.render(chat, None) == facts["prompts"][i]
        with torch.no_grad():
            memory = model.encode([prompter.passage(t) for t in texts], "compressor").memory_BMD
        ids = model.generate([prompt], memory.flatten(0, 1), len(facts["ids"][i]))[0]
        assert ids == facts["ids"][i][: len(ids)]
        rest = facts["ids"][i][len(ids) :]
        assert all(token in (*model.end_ids(), prompter.tokenizer.bos_token_id) for token in rest)
        decoded = prompter.tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded.strip() == facts["out"][i].strip()
