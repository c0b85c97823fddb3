"""Questions a second of `clara ask -f` (batches) against single calls in one loaded process.

Both answer the same questions over the same corpus, in alternating slices of as many as `-f` takes
together, so that a busy machine slows both. Answers are compared; where they differ, the logits'
gap at the first token that differs is shown: a near-tie is a gap that the rounding of float32 can
turn. The F1 of both is beside them.

    python tests/benchmarks/ask_batch.py CORPUS QUESTIONS --questions 500
    python tests/benchmarks/ask_batch.py CORPUS QUESTIONS --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from clara_cli.answering.engine import AskOptions, Clara
from clara_cli.answering.reading import generate
from clara_cli.commands.ask import TOGETHER
from clara_cli.core.backbone import head_logits
from clara_cli.core.batch_encoding import keep_heap
from clara_cli.evaluation import metrics


def gap(clara: Clara, question: str, how: AskOptions) -> float:
    """How near the two best first-differing tokens are: the smallest gap between the two highest
    logits along the greedy answer, alone in its batch."""
    (found,) = clara.find([question], how)
    prompt = clara.answerer.prompt(found, how)
    (answer,) = generate(clara.model, [prompt], how.max_new_tokens)
    row = torch.tensor([[*prompt.ids, *answer.ids]])
    with torch.inference_mode():
        embeds_BTD = clara.model.embed(row, prompt.memory_ND)
        hidden_TD = clara.model("generator", embeds_BTD)[0, len(prompt.ids) - 1 :]
        logits_TV = head_logits(clara.model.causal_lm, hidden_TD)
    best_T2 = logits_TV.topk(2).values
    return float((best_T2[:, 0] - best_T2[:, 1]).min())


def golden_answers(record: dict[str, Any]) -> list[str]:
    """The answers of a question's line, however it calls them."""
    named = (record.get(key) for key in ("golden_answers", "answers", "answer"))
    answers = next(answer for answer in named if answer is not None)
    return answers if isinstance(answers, list) else [answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("file", type=Path, help="JSON lines with `question`")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    args = parser.parse_args()
    lines = args.file.read_text(encoding="utf-8").splitlines()
    known = [json.loads(line) for line in lines]
    golden = {record["question"]: golden_answers(record) for record in known}
    asked = [known[i % len(known)]["question"] for i in range(args.questions)]
    keep_heap()  # as `clara ask -f` does
    clara = Clara.open(args.corpus, device="cpu", dtype=args.dtype)
    how = AskOptions(max_new_tokens=args.max_new_tokens)
    clara.ask_all(asked[:4], how)  # what loads late is loaded
    spent, differ = {"single": 0.0, "batch": 0.0}, []
    f1: dict[str, list[float]] = {"single": [], "batch": []}
    for first in range(0, len(asked), TOGETHER):
        part = asked[first : first + TOGETHER]
        began = time.perf_counter()
        alone = [clara.ask_all([question], how)[0] for question in part]
        middle = time.perf_counter()
        together = clara.ask_all(part, how)
        spent["single"] += middle - began
        spent["batch"] += time.perf_counter() - middle
        for name, answers in (("single", alone), ("batch", together)):
            f1[name] += [metrics.f1(a.answer, golden[a.question]) for a in answers]
        pairs = zip(alone, together, strict=True)
        differ += [(a, b) for a, b in pairs if a.answer != b.answer]
    result = {
        "questions": len(asked),
        "distinct": len(set(asked)),
        "single_per_second": round(len(asked) / spent["single"], 2),
        "batch_per_second": round(len(asked) / spent["batch"], 2),
        "ratio": round(spent["single"] / spent["batch"], 2),
        "f1": {name: round(sum(each) / len(each), 4) for name, each in f1.items()},
        "dtype": args.dtype,
        "identical": round(1 - len(differ) / len(asked), 4),
        "differ": [
            {
                "question": a.question,
                "single": a.answer,
                "batch": b.answer,
                "smallest_gap": gap(clara, a.question, how),
            }
            for a, b in differ
        ],
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
