"""What one step of each stage computes. Every function takes a model and a batch and returns
losses; which role trains is set once per stage by `TRAINED`.

B batch, N candidates, K selected, M memory tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from clara_cli.core.batch import Batch
from clara_cli.core.losses import alignment_mse, hidden_kl, hidden_nll, infonce
from clara_cli.core.model import ClaraModel, Encoded
from clara_cli.core.topk import Mask, cosines, select, straight_through_topk

TRAINED = {
    "scp": ("compressor", "generator"),
    "instruct": ("compressor", "generator"),
    "retrieval": ("query_reasoner",),
    "e2e": ("query_reasoner", "generator"),
}


@dataclass
class Losses:
    """Means over a batch, in nats (`ce`: of answer tokens, or in retrieval of gold passages among
    their pools) and squared units (`mse`); `loss` carries gradient."""

    loss: Tensor
    ce: float
    mse: float | None


def read_memory_loss(
    model: ClaraModel, batch: Batch, mse_weight: float, distillation: float = 0.0
) -> Losses:
    """SCP and instruct: compress, align, splice, answer. loss = CE + mse_weight x MSE
    (paper eq. 5), and `distillation` times the divergence from what the same generator predicts
    over the passages' text (arXiv 2510.20797); compressor and generator both get gradient where
    they train. A passage is encoded once and aligned as often as it is read."""
    encoded = encode(model, batch.passages, "compressor", batch.memory_tokens)
    read = [passage for pool in batch.pools for passage in pool]
    memory_BMD = encoded.memory_BMD[read]
    memory_ND = memory_BMD.flatten(0, 1)
    states = model.labelled_states(batch.rows, batch.labels, memory_ND, batch.contexts)
    ce = hidden_nll(*states[:2], model.head)
    mse = alignment_mse(memory_BMD, encoded.hidden_BLD[read], encoded.mask_BL[read])
    loss = ce + mse_weight * mse
    if distillation and batch.text_rows:
        loss = loss + distillation * text_divergence(model, batch, states[0], states[2])
    return Losses(loss, ce.item(), mse.item())


def text_divergence(
    model: ClaraModel, batch: Batch, hidden_PD: Tensor, places: list[tuple[int, int]]
) -> Tensor:
    """Mean KL divergence, over the answers' tokens, from the generator that reads the batch's
    `text_rows` to the one whose hidden states these are; rows without a text are left out."""
    rows = sorted(batch.text_rows)
    texts = [batch.text_rows[number] for number in rows]
    training = model.training
    model.eval()
    with torch.no_grad():
        ids, labels = [ids for ids, _ in texts], [labels for _, labels in texts]
        taught_PD, _, taught_places = model.labelled_states(ids, labels, None)
    model.train(training)
    order = sorted(range(len(taught_places)), key=taught_places.__getitem__)
    own = sorted((place, i) for i, place in enumerate(places) if place[0] in batch.text_rows)
    return hidden_kl(hidden_PD[[i for _, i in own]], taught_PD[order], model.head)


def read_text_loss(model: ClaraModel, batch: Batch) -> Losses:
    """Answering from the passages' text, by the generator: CE alone, nothing is compressed."""
    ce = model.nll(batch.rows, batch.labels, None, batch.contexts)
    return Losses(ce, ce.item(), None)


def encode(model: ClaraModel, rows: list[list[int]], role: str, memory_tokens: int) -> Encoded:
    """Read rows in a role, with gradient and dropout only where it trains."""
    how = model.encode if model.trains(role) else model.encode_frozen
    return in_groups(model, rows, partial(how, role=role, memory_tokens=memory_tokens))


def in_groups(
    model: ClaraModel, rows: list[list[int]], how: Callable[[list[list[int]]], Encoded]
) -> Encoded:
    """What `how` gives of rows, those of like length read together."""
    groups = model.groups([len(row) for row in rows])
    parts = [how([rows[i] for i in group]) for group in groups]
    if len(parts) == 1:
        return parts[0]
    back = torch.tensor([i for group in groups for i in group], device=model.device).argsort()
    width = max(part.hidden_BLD.shape[1] for part in parts)
    hidden = [F.pad(p.hidden_BLD, (0, 0, 0, width - p.hidden_BLD.shape[1])) for p in parts]
    masks = [F.pad(p.mask_BL, (0, width - p.mask_BL.shape[1])) for p in parts]
    memory_BMD = torch.cat([part.memory_BMD for part in parts])
    return Encoded(memory_BMD[back], torch.cat(hidden)[back], torch.cat(masks)[back])


def rank_pools(
    model: ClaraModel, batch: Batch, stored_BMD: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """(memory_BMD of the passages, scores_N per example): the query reasoner reads the question,
    cosine of flattened memories ranks its pool. The compressor is frozen: its memories carry no
    gradient (paper section 3.2), and a corpus's may stand in for them (`stored_BMD`)."""
    memory_BMD = stored_BMD
    if memory_BMD is None:
        frozen = partial(model.encode_frozen, role="compressor", memory_tokens=batch.memory_tokens)
        memory_BMD = in_groups(model, batch.passages, frozen).memory_BMD
    query_BMD = encode(model, batch.queries, "query_reasoner", batch.memory_tokens).memory_BMD
    scores_QB = cosines(query_BMD, memory_BMD)
    pools = [torch.tensor(pool, device=scores_QB.device) for pool in batch.pools]
    return memory_BMD, [scores_B[pool] for scores_B, pool in zip(scores_QB, pools, strict=True)]


def choose(
    model: ClaraModel,
    batch: Batch,
    temperature: float,
    mask: Mask,
    stored_BMD: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(memory_ND to splice, indices_K per example, scores_N per example): straight-through top-k
    picks from each question's ranked pool."""
    memory_BMD, scores = rank_pools(model, batch, stored_BMD)
    spliced, indices = [], []
    for scores_N, pool, picks in zip(scores, batch.pools, batch.picks, strict=True):
        weights_1KN, indices_1K = straight_through_topk(scores_N[None], picks, temperature, mask)
        spliced.append(select(weights_1KN, memory_BMD[pool].unsqueeze(0)).flatten(0, 2))
        indices.append(indices_1K[0])
    return torch.cat(spliced), indices, scores


def end_to_end_loss(
    model: ClaraModel,
    batch: Batch,
    temperature: float,
    mask: Mask,
    stored_BMD: Tensor | None = None,
) -> Losses:
    """End to end: the answer's loss trains both the generator and, through the choice, the query
    reasoner."""
    memory_ND, _, _ = choose(model, batch, temperature, mask, stored_BMD)
    ce = model.nll(batch.rows, batch.labels, memory_ND)
    return Losses(ce, ce.item(), None)


def contrastive_loss(
    model: ClaraModel, batch: Batch, temperature: float, stored_BMD: Tensor | None = None
) -> Losses:
    """Retrieval from labels (the paper's Sup- baseline): InfoNCE of each question's gold passages
    among its pool, on the query reasoner alone."""
    scores = rank_pools(model, batch, stored_BMD)[1]
    scores_BN = pad_sequence(scores, batch_first=True, padding_value=-torch.inf)
    positives_BN = torch.zeros_like(scores_BN, dtype=torch.bool)
    for b, golds in enumerate(batch.golds):
        positives_BN[b, list(golds)] = True
    loss = infonce(scores_BN, positives_BN, temperature)
    return Losses(loss, loss.item(), None)
