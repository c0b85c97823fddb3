"""Options and settings of `clara pretrain` and `clara train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clara_cli.config.common import PlacementOptions
from clara_cli.config.fields import INPUT, MACHINE, METHOD, MODEL, OUTPUT, argument, option, setting


@dataclass(frozen=True, kw_only=True)
class LearnConfig(PlacementOptions):
    """What pretraining and training share. Defaults are the published settings."""

    out: Path = option(
        "Run folder: checkpoint/, last/ (resumable state), metrics.jsonl.", panel=OUTPUT
    )
    backbone: str | None = option("Backbone: a directory or a Hub id.", None, MODEL)
    recipe: Path | None = option("TOML file of settings.", None, METHOD)
    set: tuple[str, ...] = option(
        "One setting over the recipe's, key=value; repeatable.", (), METHOD
    )
    steps: int | None = option(
        "Optimiser steps; default: one pass over the data.", None, METHOD, low=0
    )
    nproc: int | None = option(
        "Processes on this machine, one a GPU; default: one.", None, MACHINE, low=1
    )
    dry_run: bool = option(
        "Print the memory needed, computed from configs alone, and stop.", False, OUTPUT
    )
    validation: tuple[str, ...] = option(
        "JSONL file of records to validate on while training; repeatable.", (), INPUT
    )
    batch_size: int = setting("Examples per optimiser step.", 128, low=1)
    micro_batch: int | None = setting(
        "Examples per forward pass; None: the whole batch.", None, low=1
    )
    learning_rate: float = setting("Peak learning rate.", 1e-4, low=0)
    schedule: str = setting("cosine (to a tenth) or constant, after the warm-up.", "cosine")
    warmup: float = setting("Share of the steps spent warming up.", 0.03, low=0)
    weight_decay: float = setting("AdamW weight decay.", 0.0, low=0)
    clip: float = setting("Largest gradient norm.", 1.0, low=0)
    max_length: int = setting(
        "Longest decoder input, tokens; answers beyond it are cut and counted.", 2048, low=8
    )
    ratios: tuple[int, ...] = setting(
        "Ratios trained; several: one drawn per step, memory nested.", ()
    )
    dropout: float = setting("LoRA dropout while training.", 0.1, low=0)
    train_memory: bool = setting("Train the memory tokens too.", False)
    group_by_length: bool = setting(
        "Put records of like length in a batch: less padding, the same records in a pass.", False
    )
    validation_share: float = setting(
        "Share of the records kept aside to validate on, instead of --validation.", 0.0, low=0
    )
    validate_every: int | None = setting(
        "Steps between checks on them; None: ten checks a run.", None, low=1
    )
    validate_limit: int = setting("Most records to validate on.", 200, low=1)
    best_by: Literal["ce", "mse", "em", "f1", "recall@1", "recall@3", "recall@5"] = setting(
        "The figure by which a check is best; its weights become the checkpoint.", "ce"
    )
    patience: int | None = setting(
        "Checks in a row without a better one that end the run early; None: never.", None, low=1
    )
    tracker: Literal["auto", "none", "tensorboard", "wandb", "trackio"] = setting(
        "Who follows the run; auto: tensorboard, into the run folder, where it is installed.",
        "auto",
    )
    fsdp: bool = setting(
        "Cut the backbone's layers up among the processes (FSDP2), for GPUs too small for it.",
        False,
    )
    train_roles: tuple[str, ...] = setting(
        "Roles trained, of those the stage trains; default: all of them.", ()
    )
    checkpointing: bool = setting(
        "Keep no activations inside layers: far less memory, about a third more time.", False
    )
    minutes: float | None = setting(
        "Minutes of training after which a run is done; the schedule follows the clock, so such a "
        "run does not repeat to the bit. None: as many as the steps take.",
        None,
        low=0,
    )
    reconstruction: float = setting(
        "Share of the passages that the generator also writes out from their memory, word by word; "
        "in pretrain and in instruct.",
        0.0,
        low=0,
    )
    save_minutes: float = setting("Minutes between saves of the resumable state.", 5.0, low=0)

    @property
    def named_ratio(self) -> int | None:
        """The ratio that picks among a repository's checkpoints: the only one trained."""
        return self.ratios[0] if len(self.ratios) == 1 else None


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(LearnConfig):
    """SCP: teach a compressor and a generator on question-answer pairs and paraphrases.

    A pair is one JSON line, as the ten of recipes/sample/pairs.jsonl:
    {"data_type": "qa", "question": ["..."], "answers": ["..."], "docs": ["the passage"]}
    {"data_type": "paraphrase", "answers": ["the passage in other words"], "docs": ["the passage"]}

    Examples:
      clara pretrain recipes/sample/pairs.jsonl --init nano --out runs/sample
      clara pretrain pairs.jsonl --backbone mistralai/Mistral-7B-Instruct-v0.2 --out runs/scp
      clara pretrain pairs.jsonl --recipe recipes/nano/scp.toml --init nano --out runs/scp
    """

    pairs: tuple[str, ...] = argument("JSONL files of pairs: data_type, question, answers, docs.")
    init: str | None = option(
        "Checkpoint to start from; default: fresh roles on --backbone.", None, MODEL
    )
    mse_weight: float = setting("Weight of the alignment loss (paper Table 10: 0.1).", 0.1, low=0)
    mix: dict[str, float] | None = setting(
        "Visits per pass by kind of pair, {simple = 1, complex = 0.5, paraphrase = 2}; qa is a "
        "list of questions of no kind. Default: every pair once.",
        None,
    )
    passage_tokens: int | None = setting("Longest passage, tokens; fresh: 256.", None, low=1)
    memory_source: Literal["slots", "pooled"] | None = setting(
        "What memory is made of: slots after the text, or pooled, means over windows of the text's "
        "own hidden states. Default: the checkpoint's; fresh: slots. Another one than that of "
        "--init begins the memory anew.",
        None,
    )
    memory_positions: Literal["after", "spread"] | None = setting(
        "Where memory stands: after the text and in the prompt's order, or spread over the text in "
        "both passes. Default: the checkpoint's; fresh: after.",
        None,
    )
    memory_layer: int | None = setting(
        "Layers that memory has passed; 0: all of them. Default: the checkpoint's; fresh: all.",
        None,
        low=0,
    )
    lora_rank: int | None = setting("LoRA rank; fresh: 16.", None, low=1)
    lora_alpha: int | None = setting("LoRA alpha; fresh: 32.", None, low=1)
    train_memory: bool = setting("Train the memory tokens too.", True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LearnConfig):
    """Train answering (instruct), retrieval through answering (e2e) or from labels (retrieval).

    A question is one JSON line, as the ten of recipes/sample/questions_with_pools.jsonl:
    {"question": "...", "answers": ["..."],
    "paragraphs": [{"title": "...", "text": "...", "gold": true}, {"title": "...", "text": "..."}]}

    Examples:
      clara train recipes/sample/questions_with_pools.jsonl --stage e2e --init nano --out runs/e2e
      clara train questions.jsonl --stage instruct --init runs/scp --out runs/instruct
      clara train questions.jsonl --stage e2e --init runs/instruct --out runs/e2e
      clara train q.jsonl --stage e2e --pool retrieved --corpus d.clara --init runs/scp --out runs/f
      clara train --init some/checkpoint --steps 0 --out native
    """

    questions: tuple[str, ...] = argument("JSONL files of questions with their pools.", ())
    stage: Literal["instruct", "retrieval", "e2e"] | None = option(
        "What to train; may be left out with --steps 0.", None, METHOD
    )
    init: str = option("Checkpoint to start from.", panel=MODEL)
    pool: Literal["labelled", "retrieved", "corpus"] = option(
        "Candidates: labelled, as given, gold among them; in e2e retrieved from --corpus, no "
        "relevance label read; in retrieval gold among passages drawn from --corpus.",
        "labelled",
        METHOD,
    )
    corpus: Path | None = option("Compressed corpus that pools come from.", None, INPUT)
    pool_by: Literal["bm25", "query"] | None = setting(
        "Who retrieves: bm25 (the default), or query: the query reasoner as it learns.", None
    )
    refresh_every: int | None = setting(
        "Steps between the query reasoner's retrievals; default 100.", None, low=1
    )
    top_k: int = setting("Passages given to the generator.", 5, low=1)
    pool_size: int = setting(
        "Candidates per question in e2e and retrieval; larger pools are sampled, gold kept. With "
        "--pool corpus: passages drawn from it a step.",
        20,
        low=1,
    )
    gold_answer: Literal["any", "first"] = setting(
        "Learned of several accepted answers: any, drawn at each visit, or the first.", "any"
    )
    temperature: float = setting(
        "Of the straight-through top-k (e2e), of InfoNCE (retrieval).", 0.02, low=1e-6
    )
    mask: Literal["exact", "released"] = setting(
        "Mask of taken candidates: exact, or released (the published penalty).", "exact"
    )
    text_share: float = setting(
        "Share of instruct's steps in which the generator reads the passages' text instead of "
        "their memory; 1: text alone.",
        0.0,
        low=0,
    )
    distillation: float = setting(
        "Weight, in instruct, of the divergence from what the generator predicts over the "
        "passages' text; a forward pass over it more.",
        0.0,
        low=0,
    )
    group_by_pool: bool = setting(
        "Put questions over the same passages in one step: what they share is computed once.", False
    )
    answer_prefix: str = setting(
        'Put before each answer learned; " " spells it as inside a sentence.', ""
    )
    answer_tokens: int = setting("Longest greedy answer of a check, tokens.", 32, low=1)
    mse_weight: float = setting(
        "Weight of the alignment loss in instruct (0.1 in the released runs).", 0.1, low=0
    )
