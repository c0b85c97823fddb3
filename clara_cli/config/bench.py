"""Options of `clara bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clara_cli.config.common import Common
from clara_cli.fields import INPUT, METHOD, MODEL, OUTPUT, option


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Common):
    """Answer a dataset's questions with several systems, side by side, and score them.

    Examples:
      clara bench --dataset hotpotqa_dev.json --ratio 4,16 --limit 100 --out report
      clara bench --dataset musique --system clara,text --control wrong,counterfactual
      clara bench --dataset squad.jsonl --setting corpus --corpus sample.clara
      clara bench --compare report-before report-after
    """

    dataset: str | None = option(
        "A file or BEIR folder, or one of nq hotpotqa musique 2wiki squad triviaqa popqa.",
        None,
        INPUT,
    )
    setting: Literal["gold", "oracle", "normal", "corpus"] = option(
        "What is given: gold passages; the question's pool; BM25's 20 best; a whole corpus.",
        "oracle",
        INPUT,
    )
    corpus: Path | None = option(
        "A compressed corpus for normal and corpus; default: the dataset's own paragraphs.",
        None,
        INPUT,
    )
    limit: int | None = option("Take the first questions only.", None, INPUT, low=1)
    model: str | None = option(
        "Checkpoint; default: what the corpus names, else $CLARA_MODEL, else nano.", None, MODEL
    )
    backbone: str | None = option(
        "Where the checkpoint's backbone comes from, instead of what it names.", None, MODEL
    )
    system: str = option(
        "Systems to compare, comma-separated.", "clara,scp,closed-book,text,text+bm25", METHOD
    )
    ratio: str | None = option(
        "Ratios, comma-separated; default: the checkpoint's or the corpus's own.", None, METHOD
    )
    top_k: int = option("Passages given by the systems that choose.", 5, METHOD, low=1)
    max_new_tokens: int = option("Longest answer, in tokens.", 32, METHOD, low=1)
    control: str | None = option(
        "Controls, comma-separated: none, wrong, counterfactual, survival.", None, METHOD
    )
    out: Path | None = option(
        "Folder for the predictions and reports; the same command goes on where it stopped.",
        None,
        OUTPUT,
    )
    compare: tuple[str, str] | None = option(
        "Test two --out folders of earlier runs against each other, and stop.", None, OUTPUT
    )
    published: bool = option(
        "Add the figures of the papers, in a block of their own.", False, OUTPUT
    )
