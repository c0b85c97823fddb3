r"""Which layer memory is best read from, before anything is trained: answers' likelihood by layer.

    python recipes/smol/layers.py runs/smol-reader/checkpoint runs/smol-data/held_out.jsonl \
        --layers 4 8 12 15 20 25

The hidden states of a passage after each layer, as they are (`--ratio 1`: one for each token), are
given to the generator as memory at positions spread over the passage, and the mean negative
log-likelihood of the answers is printed, with that over the passage's text and over none beside it.
A generator that reads text reads some layers' states without having learned it: training starts
from there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from clara_cli.core.batch import AnswerExample, answer_batch, text_batch
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.core.model import ClaraModel
from clara_cli.core.stage_losses import read_memory_loss, read_text_loss
from clara_cli.documents.chunk import model_text
from clara_cli.documents.examples import read_questions
from clara_cli.memory_layout import MemoryLayout

LIMIT = 4096


def examples_of(file: Path, count: int) -> list[AnswerExample]:
    """The first questions of a file, each over its first passage."""
    questions = islice(read_questions([str(file)], need_answers=True), count)
    return [
        AnswerExample(
            question.question,
            " " + question.answers[0],
            (model_text(question.pool[0].title, question.pool[0].text),),
        )
        for question in questions
    ]


@torch.no_grad()
def text_nll(model: ClaraModel, examples: Sequence[AnswerExample], passages: int) -> float:
    """Nats a token over the text of so many passages: one, or none."""
    batches = (text_batch(model.prompter, [one], LIMIT, passages) for one in examples)
    return sum(read_text_loss(model, batch).ce for batch in batches) / len(examples)


@torch.no_grad()
def memory_nll(
    model: ClaraModel, examples: Sequence[AnswerExample], layer: int, ratio: int
) -> float:
    """Nats a token over memory read from a layer of the backbone as it is."""
    count = model.prompter.max_passage // ratio
    memory_MD = torch.zeros(count, model.hidden)
    model.begin_memory_anew(MemoryLayout("pooled", "spread", layer), memory_MD, count * ratio)
    batches = (answer_batch(model.prompter, [one], count, LIMIT) for one in examples)
    return sum(read_memory_loss(model, batch, 0.0).ce for batch in batches) / len(examples)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line a layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="with a generator that reads text")
    parser.add_argument("questions", type=Path, help="questions with their passages, JSON lines")
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--ratio", type=int, default=1)
    parser.add_argument("--limit", type=int, default=40)
    args = parser.parse_args(argv)
    model = load(LoadOptions(args.checkpoint, device="cpu", dtype="float32"), 0.0).model
    examples = examples_of(args.questions, args.limit)
    print(f"text: {text_nll(model, examples, 1):.2f}, nothing: {text_nll(model, examples, 0):.2f}")
    for layer in args.layers:
        nll = memory_nll(model, examples, layer, args.ratio)
        print(f"layer {layer}, ratio {args.ratio}: {nll:.2f}", flush=True)


if __name__ == "__main__":
    main()
