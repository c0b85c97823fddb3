"""All three roles with random weights on a tiny backbone, and the losses of every stage on them."""

from __future__ import annotations

import torch

from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import load_backbone
from clara_cli.core.batch import AnswerExample, Batch, answer_batch, retrieval_batch, scp_batch
from clara_cli.core.model import ClaraModel, fresh_memory
from clara_cli.core.prompts import Prompter
from clara_cli.core.stage_losses import (
    Losses,
    contrastive_loss,
    end_to_end_loss,
    read_memory_loss,
)
from clara_cli.records import Pair

CPU = torch.device("cpu")


TEXTS = [
    "The mayor of Elmgate is Nora Velden.",
    "It rains.",
    "",
    "A longer text about a river. " * 3,
]


def build(
    folder, memory_tokens: int = 16, passage_tokens: int = 64, dropout: float = 0.0
) -> ClaraModel:
    """All three roles with random, distinct LoRA weights."""
    base = load_backbone(str(folder), CPU, torch.float32)
    seeded = torch.Generator().manual_seed(1)
    memory, markers = fresh_memory(memory_tokens, base.model.get_input_embeddings().weight, seeded)
    prompter = Prompter(base.tokenizer, passage_tokens)
    roles = ("compressor", "query_reasoner", "generator")
    model = ClaraModel(base, prompter, LoraSettings(4, 8, dropout), roles, memory, markers)
    with torch.no_grad():
        for role in roles:
            for parameter in model.role_parameters(role).values():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded) * 0.1)
    return model


PAIRS = [
    Pair("qa", ("Who?", "What?"), ("Nora", "A town, an old one"), (TEXTS[0],)),
    Pair("paraphrase", (), ("Rain.",), (TEXTS[1],)),
    Pair("simple", ("When?",), ("Now",), (TEXTS[3],)),
]


QUESTIONS = [
    AnswerExample("Who is mayor?", "Nora", tuple(TEXTS[:3]), golds=(0,)),
    AnswerExample("Rain?", "yes", tuple(TEXTS), golds=(1, 3)),
    AnswerExample("A river?", "a long one", tuple(TEXTS[2:]), golds=(1,)),
]


def batch_of(model: ClaraModel, stage: str, memory_tokens: int = 4) -> Batch:
    if stage == "scp":
        return scp_batch(model.prompter, PAIRS, [0, 3, 0], memory_tokens, 512)
    if stage == "retrieval":
        return retrieval_batch(model.prompter, QUESTIONS, memory_tokens)
    top_k = 2 if stage == "e2e" else None
    return answer_batch(model.prompter, QUESTIONS, memory_tokens, 512, top_k)


def loss_of(model: ClaraModel, stage: str) -> Losses:
    batch = batch_of(model, stage)
    if stage == "retrieval":
        return contrastive_loss(model, batch, 0.5)
    if stage == "e2e":
        return end_to_end_loss(model, batch, 0.5, "exact")
    return read_memory_loss(model, batch, 0.1)


def gradients(model: ClaraModel) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
