"""Time and memory of one optimiser step against the plain way, side by side on the same batches.

The plain way is the released code's: every passage padded to L_max + 3 + M positions, a question to
1,024 + 3 + M, full causal language model everywhere with all hidden states kept, the loss over all
positions' logits. Both train the same roles of one random 33 M backbone with 32,000 tokens on
batches of `clara_example` (SCP: its pairs; e2e: each document's first question among 8 documents of
its own). Peaks come first, each of a process of its own, above the loaded model; then steps in
turn, by wall clock and by processor time: median, least and most of a round's ratio. Losses and
gradients of the first step have to be equal.

    CLARA_SHARED=... python tests/benchmarks/train_speed.py --stage scp
    CLARA_SHARED=... python tests/benchmarks/train_speed.py --stage e2e
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))

from untrained import PASSAGE_TOKENS, SHAPES, backbone_33m, random_model

from clara_cli.core.batch import (
    AnswerExample,
    Batch,
    answer_batch,
    example_length,
    pair_length,
    scp_batch,
)
from clara_cli.core.losses import IGNORE
from clara_cli.core.model import ClaraModel
from clara_cli.core.stage_losses import TRAINED, Losses, end_to_end_loss, read_memory_loss
from clara_cli.core.topk import select, straight_through_topk
from clara_cli.records import Pair

SLOTS, WEIGHT, POOL, TOP_K, TEMPERATURE = 16, 0.1, 8, 5, 0.02
LIMITS = {"scp": 2048, "e2e": 1024}
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
Example = Pair | AnswerExample
Step = Callable[[ClaraModel, Batch], Losses]


def examples() -> list[Pair]:
    """The documents of `clara_example` with their question-answer pairs."""
    file = Path(os.environ["CLARA_SHARED"]) / "data" / "clara_example" / "pretrain_data.jsonl.xz"
    with lzma.open(file, "rt", encoding="utf-8") as lines:
        records = map(json.loads, lines)
        return [
            Pair(r["data_type"], tuple(r["question"]), tuple(r["answers"]), tuple(r["docs"]))
            for r in records
        ]


def build(folder: Path, stage: str) -> ClaraModel:
    """The roles of a stage, ready to train."""
    roles = tuple(dict.fromkeys(("compressor", *TRAINED[stage])))
    model = random_model(folder, roles, SLOTS, dropout=0.0)
    model.train_only(TRAINED[stage], memory=stage == "scp")
    return model.train()


def batches(stage: str, pairs: list[Pair], size: int) -> list[list[Example]]:
    """Examples of `size` a step; no document is in two of them."""
    found: list[Example] = list(pairs)
    if stage == "e2e":
        found = []
        asked = [pair for pair in pairs if pair.questions]
        for at in range(0, len(asked) - POOL + 1, POOL):
            pool = asked[at : at + POOL]
            texts = tuple(pair.texts[0] for pair in pool)
            found.append(AnswerExample(pool[0].questions[0], pool[0].answers[0], texts))
    return [found[at : at + size] for at in range(0, len(found) - size + 1, size)]


def batch_of(model: ClaraModel, part: list[Example], stage: str) -> Batch:
    """One forward pass of examples."""
    if stage == "scp":
        return scp_batch(model.prompter, part, [0] * len(part), SLOTS, LIMITS[stage])
    return answer_batch(model.prompter, part, SLOTS, LIMITS[stage], TOP_K)


def left(rows: list[list[int]], width: int, value: int) -> Tensor:
    """Rows as one tensor, padded on the left to a width."""
    return torch.tensor([[value] * (width - len(row)) + row for row in rows])


def plain_read(
    model: ClaraModel, role: str, rows: list[list[int]], most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(memory_BMD, hidden_BLD, mask_BL of the text) of rows padded to the longest there may be."""
    width = most + 3 + SLOTS
    rows = [row + model.prompter.memory_ids * SLOTS for row in rows]
    mask_BL = left([[1] * len(row) for row in rows], width, 0)
    embeds = model.embed(left(rows, width, 0), model.memory_MD.repeat(len(rows), 1))
    with model.role(role):
        out = model.causal_lm(
            inputs_embeds=embeds, attention_mask=mask_BL, output_hidden_states=True
        )
    hidden = out.hidden_states[-1]
    text_BL = mask_BL.clone()
    text_BL[:, -SLOTS:] = 0
    return hidden[:, -SLOTS:], hidden, text_BL


def plain_answer(model: ClaraModel, batch: Batch, memory_ND: Tensor) -> Tensor:
    """The full causal language model's own loss."""
    width = max(map(len, batch.rows))
    with model.role("generator"):
        out = model.causal_lm(
            inputs_embeds=model.embed(left(batch.rows, width, 0), memory_ND),
            attention_mask=left([[1] * len(row) for row in batch.rows], width, 0),
            labels=left(batch.labels, width, IGNORE),
            output_hidden_states=True,
        )
    return out.loss


def plain_scp(model: ClaraModel, batch: Batch) -> Losses:
    """The released step of SCP."""
    memory, hidden, text = plain_read(model, "compressor", batch.passages, PASSAGE_TOKENS)
    means = (hidden * text[..., None]).sum(1) / text.sum(1, keepdim=True)
    mse = F.mse_loss(memory.mean(1), means)
    ce = plain_answer(model, batch, memory.flatten(0, 1))
    return Losses(ce + WEIGHT * mse, ce.item(), mse.item())


def plain_e2e(model: ClaraModel, batch: Batch) -> Losses:
    """The released end-to-end step: pools of one size, passages without gradient."""
    with torch.no_grad():
        memory = plain_read(model, "compressor", batch.passages, PASSAGE_TOKENS)[0]
    pools_BNMD = torch.stack([memory[pool] for pool in batch.pools])
    query_BMD = plain_read(model, "query_reasoner", batch.queries, LIMITS["e2e"])[0]
    scores_BN = F.cosine_similarity(query_BMD.flatten(1)[:, None], pools_BNMD.flatten(2), dim=-1)
    weights = straight_through_topk(scores_BN, TOP_K, TEMPERATURE, "exact")[0]
    ce = plain_answer(model, batch, select(weights, pools_BNMD).flatten(0, 2))
    return Losses(ce, ce.item(), None)


def clara_scp(model: ClaraModel, batch: Batch) -> Losses:
    """The step of `clara pretrain`."""
    return read_memory_loss(model, batch, WEIGHT)


def clara_e2e(model: ClaraModel, batch: Batch) -> Losses:
    """The step of `clara train --stage e2e`."""
    return end_to_end_loss(model, batch, TEMPERATURE, "exact")


WAYS: dict[str, dict[str, Step]] = {
    "scp": {"plain": plain_scp, "clara": clara_scp},
    "e2e": {"plain": plain_e2e, "clara": clara_e2e},
}


class Trainer:
    """One way's model and optimiser."""

    def __init__(self, way: str, args: argparse.Namespace, folder: Path) -> None:
        self.stage, self.sorts = args.stage, way == "clara"
        self.micro = args.micro or args.batch
        self.step = WAYS[args.stage][way]
        self.model = build(folder, args.stage)
        parameters = self.model.trained_parameters().values()
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0)

    def gradients(self, part: list[Example]) -> float:
        """Forward and backward of a step in passes of `micro` examples, ours sorted by length as
        the commands do; the mean loss over the passes."""
        if self.sorts:
            part = sorted(part, key=pair_length if self.stage == "scp" else example_length)
        passes = [part[i : i + self.micro] for i in range(0, len(part), self.micro)]
        total = 0.0
        for examples in passes:
            result = self.step(self.model, batch_of(self.model, examples, self.stage))
            (result.loss / len(passes)).backward()
            total += result.loss.item() / len(passes)
        return total

    def update(self) -> None:
        """The optimiser's part, at rate zero."""
        parameters = list(self.model.trained_parameters().values())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def peak(args: argparse.Namespace) -> None:
    """In a process of its own: the most memory two steps take above the loaded model, MB."""
    trainer = Trainer(args.peak, args, Path(args.folder))
    parts = batches(args.stage, examples(), args.batch)[:2]
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is forgotten
    before = status("VmRSS")
    for part in parts:
        trainer.gradients(part)
        trainer.update()
    sys.stdout.write(f"{(status('VmHWM') - before) / 1024:.0f}\n")


def status(key: str) -> int:
    """A figure of this process's memory, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def peaks(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The peak of each way, and their ratio."""
    found = {}
    for way in WAYS[args.stage]:
        again = [sys.executable, __file__, "--stage", args.stage, "--peak", way]
        again += ["--folder", str(folder), "--batch", str(args.batch)]
        again += ["--micro", str(args.micro or args.batch), "--threads", str(args.threads)]
        shown = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True).stdout
        found[way] = int(shown)
    share = round(found["clara"] / found["plain"], 2)
    return {**{f"{way}_peak_mb": mb for way, mb in found.items()}, "peak_share": share}


def equal(trainers: dict[str, Trainer], part: list[Example]) -> dict[str, object]:
    """The largest differences of both ways on one step; it also warms them up.

    Raises SystemExit where they are not the same step.
    """
    losses = {way: trainer.gradients(part) for way, trainer in trainers.items()}
    expected, found = (
        {name: p.grad for name, p in trainer.model.trained_parameters().items()}
        for trainer in trainers.values()
    )
    worst = max(((found[n] - expected[n]).norm() / expected[n].norm()).item() for n in expected)
    loss = abs(losses["plain"] - losses["clara"])
    if loss > LOSS_TOLERANCE or not worst < GRADIENT_TOLERANCE:
        sys.exit(f"not the same step: loss {losses}, gradient {worst:.1e}")
    for trainer in trainers.values():
        trainer.update()
    return {"loss_difference": loss, "gradient_difference": worst}


def compare(args: argparse.Namespace, folder: Path, pairs: list[Pair]) -> dict[str, object]:
    """Steps of both ways in turn on the same batches; who begins changes every round."""
    trainers = {way: Trainer(way, args, folder) for way in WAYS[args.stage]}
    parts = batches(args.stage, pairs, args.batch)[: args.rounds + 1]
    result = {} if args.micro else equal(trainers, parts[0])
    clocks = {"seconds": time.perf_counter, "processor_seconds": time.process_time}
    spent: dict[str, dict[str, list[float]]] = {c: {w: [] for w in trainers} for c in clocks}
    for number, part in enumerate(parts[1:]):
        for way in sorted(trainers, reverse=bool(number % 2)):
            began = {name: clock() for name, clock in clocks.items()}
            trainers[way].gradients(part)
            trainers[way].update()
            for name, clock in clocks.items():
                spent[name][way].append(clock() - began[name])
    result |= filled(trainers["clara"].model, parts[1:], args.stage)
    for name, ways in spent.items():
        ratios = [a / b for a, b in zip(ways["plain"], ways["clara"], strict=True)]
        result |= {f"{w}_{name}": round(statistics.median(s), 2) for w, s in ways.items()}
        faster = [statistics.median(ratios), min(ratios), max(ratios)]
        result[f"times_fewer_{name}"] = [round(number, 2) for number in faster]
    return result


def filled(model: ClaraModel, parts: list[list[Example]], stage: str) -> dict[str, float]:
    """How full the plain way's rows are, and the share of the generator's positions labelled."""
    made = [batch_of(model, part, stage) for part in parts]
    read = [len(row) + SLOTS for batch in made for row in batch.passages]
    written = sum(len(row) for batch in made for row in batch.rows)
    computed = sum(len(batch.rows) * max(map(len, batch.rows)) for batch in made)
    return {
        "encoder_filled": round(sum(read) / len(read) / (PASSAGE_TOKENS + 3 + SLOTS), 2),
        "decoder_filled": round(written / computed, 2),
        "labelled": round(sum(batch.labelled for batch in made) / written, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=WAYS, default="scp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--micro", type=int, help="examples per forward pass; default: the batch")
    parser.add_argument("--shape", choices=SHAPES, default="deep")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", choices=("plain", "clara"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        peak(args)
        return
    pairs = examples()
    with tempfile.TemporaryDirectory() as name:
        texts = (text for p in pairs for text in (*p.texts, *p.questions, *p.answers))
        folder = backbone_33m(Path(name), texts, args.shape)
        result = {"stage": args.stage, "shape": args.shape, "batch": args.batch}
        result |= {"micro": args.micro or args.batch, "rounds": args.rounds}
        result |= {**peaks(args, folder), **compare(args, folder, pairs)}
    result |= {"torch": torch.__version__, "threads": args.threads}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
