"""Options of `clara bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clara_cli.config.common import CheckpointOptions
from clara_cli.config.fields import INPUT, MACHINE, METHOD, MODEL, OUTPUT, option
from clara_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class BenchConfig(CheckpointOptions):
    """Answer a dataset's questions with several systems, side by side, and score them.

    Examples:
      clara bench --dataset hotpotqa_dev.json --ratio 4,16 --limit 100 --out report
      clara bench --dataset musique --system clara,text --control wrong,counterfactual
      clara bench --dataset squad.jsonl --setting corpus --corpus sample.clara
      clara bench --compare report-before report-after
      clara bench --speed --shape qwen3-0.6b --random-weights
      clara bench --list-systems
    """

    dataset: str | None = option(
        "A released file or folder, or one of nq hotpotqa musique 2wiki squad triviaqa popqa.",
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
        "Checkpoint; default: what the corpus names, else $CLARA_MODEL, else the bundled one.",
        None,
        MODEL,
    )
    sup_model: str | None = option(
        "Checkpoint of train --stage retrieval, whose query reasoner picks for sup.", None, MODEL
    )
    system: str = option(
        "Systems to compare, comma-separated, as --list-systems shows them.",
        "clara,scp,closed-book,text,text+bm25",
        METHOD,
    )
    list_systems: bool = option(
        "List every system and rival with its licence and what it needs to run here, and stop.",
        False,
        OUTPUT,
    )
    ratio: str | None = option(
        "Ratios, comma-separated; default: the checkpoint's or the corpus's own.", None, METHOD
    )
    top_k: int = option("Passages given by the systems that choose.", 5, METHOD, low=1)
    max_new_tokens: int = option("Longest answer, in tokens.", 32, METHOD, low=1)
    answer_timeout: float = option(
        "Seconds a server or another program may take for an answer; four times that to start.",
        300.0,
        MACHINE,
        low=0.01,
    )
    control: str | None = option(
        "Controls, comma-separated: none, wrong, counterfactual, survival, lens.", None, METHOD
    )
    break_even: bool = option(
        "Time to the first token too, by context: memory, text and shortened text, as shares.",
        False,
        METHOD,
    )
    out: Path | None = option(
        "Folder for the predictions and reports; the same command goes on where it stopped.",
        None,
        OUTPUT,
    )
    compare: tuple[str, str] | None = option(
        "Test two --out folders of earlier runs against each other, and stop.", None, OUTPUT
    )
    speed: bool = option(
        "Measure speed instead: compress, query, first token, tokens/s, training step.",
        False,
        METHOD,
    )
    shape: Literal["mistral-7b", "phi-4-mini", "qwen3-0.6b", "nano"] | None = option(
        "With --speed: measure a backbone of this shape; default: the checkpoint's.", None, MODEL
    )
    random_weights: bool = option(
        "With --shape: weights drawn at random, nothing is downloaded.", False, MODEL
    )
    nproc: int | None = option(
        "Processes on this machine, one a GPU, that share the questions; default: one.",
        None,
        MACHINE,
        low=1,
    )
    published: bool = option(
        "Add the figures of the papers, in a block of their own; alone: all of them.", False, OUTPUT
    )

    def check(self) -> None:
        """Refuse options that do not go together.

        Raises:
            UsageError: naming them.
        """
        flags = {
            "--dataset": self.dataset is not None,
            "--compare": self.compare is not None,
            "--speed": self.speed,
            "--list-systems": self.list_systems,
        }
        named = [flag for flag, there in flags.items() if there]
        if named[1:]:
            raise UsageError(f"{' and '.join(named)} were both given", "give one of them")
        if self.compare is not None and self.out is not None:
            raise UsageError("--compare with --out: it writes nothing", "omit --out")
        if self.nproc is not None and self.dataset is None:
            raise UsageError("--nproc goes with --dataset", "omit it")
        if self.break_even and self.dataset is None:
            raise UsageError("--break-even goes with --dataset", "omit it")
        if not self.speed and (self.shape is not None or self.random_weights):
            raise UsageError("--shape and --random-weights go with --speed", "add --speed")
        if self.speed and self.load_in is not None:
            message = "--load-in with --speed: the work of quantised layers is not counted"
            raise UsageError(message, "omit --load-in; it goes with --dataset")
        self._check_shape()

    def _check_shape(self) -> None:
        if self.random_weights and self.shape is None:
            raise UsageError("--random-weights: of which shape?", "add --shape, like mistral-7b")
        if self.shape is not None and (self.model or self.backbone):
            raise UsageError(
                "--shape and --model or --backbone were both given",
                "--model measures a checkpoint as it is; --shape with --random-weights needs none",
            )
        if self.shape not in (None, "nano") and not self.random_weights:
            raise UsageError(
                f"--shape {self.shape}: its weights are not bundled",
                "add --random-weights (speed does not depend on them), or name a checkpoint with "
                "--model",
            )
