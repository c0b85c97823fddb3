"""Options of `clara ask`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clara_cli.config.common import Common
from clara_cli.fields import INPUT, METHOD, MODEL, argument, option


@dataclass(frozen=True, kw_only=True)
class AskConfig(Common):
    """Answer questions from a compressed corpus, with sources. Without a question: the REPL.

    Examples:
      clara ask "Who is the mayor of Frostmouth?" --corpus sample.clara
      clara ask -f questions.txt --corpus sample.clara --json
      clara ask --corpus sample.clara
    """

    question: str | None = argument(
        "The question; none opens the REPL, or reads stdin when piped.", None
    )
    file: Path | None = option(
        "Questions from a file: one a line, or JSONL with `question`.",
        None,
        INPUT,
        flag="--file/-f",
    )
    corpus: Path | None = option(
        "The corpus; default $CLARA_CORPUS, else the only *.clara here.", None, INPUT
    )
    top_k: int = option("Passages given to the generator.", 5, METHOD, low=1)
    candidates: int | None = option(
        "Passages the first stage proposes for exact rescoring; default: 20 per k.",
        None,
        METHOD,
        low=1,
    )
    ratio: int | None = option(
        "Read the corpus at a higher ratio than it was compressed at.", None, METHOD, low=1
    )
    first_stage: Literal["auto", "latent", "bm25", "hybrid"] = option(
        "Who proposes passages: latent (query reasoner), bm25 (words), hybrid (both); "
        "auto: bm25 where text was kept and a word matches, else latent.",
        "auto",
        METHOD,
    )
    max_new_tokens: int = option("Longest answer, in tokens.", 128, METHOD, low=1)
    model: str | None = option("Checkpoint; default: what the corpus names.", None, MODEL)
    backbone: str | None = option(
        "Where the checkpoint's backbone comes from, instead of what it names.", None, MODEL
    )
    require_support: bool = option(
        "Exit 5 when the sources do not support the answer.", False, METHOD
    )
