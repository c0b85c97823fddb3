"""One frozen dataclass per command, every field typed, with its unit and doc (see fields.py).

Knows nothing of terminals or tensors.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clara_cli.errors import UsageError
from clara_cli.fields import (
    INPUT,
    MACHINE,
    METHOD,
    MODEL,
    OUTPUT,
    argument,
    flag_name,
    option,
    setting,
)


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options every command takes."""

    seed: int = option("Seed of everything random.", 0, MACHINE)
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "Where to compute; auto takes the fastest there is.", "auto", MACHINE
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "Number format of the computation; auto: bfloat16 on a GPU that has it, else float32.",
        "auto",
        MACHINE,
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            low, value = f.metadata.get("low"), getattr(self, f.name)
            if low is not None and value is not None and value < low:
                raise UsageError(f"{flag_name(f)} is {value}, the least is {low:g}")


@dataclass(frozen=True, kw_only=True)
class CompressConfig(Common):
    """Compress documents into memory tokens, once.

    Examples:
      clara compress recipes/sample/corpus.jsonl --ratio 16 --out sample.clara
      clara compress notes/ reports.jsonl.gz --out everything.clara
      cat corpus.jsonl | clara compress - --out piped.clara
    """

    inputs: tuple[str, ...] = argument(
        "Files or folders: .jsonl(.gz/.xz) .txt .md .csv .parquet, or - for JSONL on stdin."
    )
    ratio: int | None = option(
        "Text tokens per memory token; default: what the checkpoint was trained at.",
        None,
        METHOD,
        low=1,
    )
    model: str | None = option(
        "Checkpoint: nano, a directory or a Hub id; default $CLARA_MODEL, else nano.", None, MODEL
    )
    backbone: str | None = option(
        "Where the checkpoint's backbone comes from, instead of what it names.", None, MODEL
    )
    out: Path | None = option(
        "The corpus to write; default: the first input's name with .clara.", None, OUTPUT
    )
    split: Literal["sentences", "tokens", "none"] = option(
        "How long documents are cut; none keeps one passage per document and truncates it.",
        "sentences",
        METHOD,
    )
    title: bool = option(
        "Prefix each passage with its document's title when compressing.", True, METHOD
    )
    text: bool = option("Keep the passages' text, for sources and BM25.", True, OUTPUT)
    store_dtype: Literal["auto", "float32", "bf16", "fp16"] = option(
        "Stored number format; auto: what --dtype names, else bf16.", "auto", OUTPUT
    )
    shard_size: int = option("Passages per shard, the unit of resume.", 1024, OUTPUT, low=1)
    batch_tokens: int = option("Text tokens per batch; bounds memory.", 8192, MACHINE, low=1)
    skip_bad: bool = option(
        "Count and report bad lines and duplicate ids instead of stopping.", False, INPUT
    )
    dry_run: bool = option("Count passages and bytes, compress nothing.", False, OUTPUT)


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Common):
    """Make a compressed corpus searchable, and measure the index's recall.

    Examples:
      clara index sample.clara
      clara index sample.clara --engine hnsw --queries questions.jsonl
      clara index sample.clara --check
    """

    corpus: Path = argument("A corpus made by clara compress.")
    engine: Literal["auto", "exact", "hnsw"] = option(
        "Search structure questions will use; auto decides by the measured recall.", "auto", METHOD
    )
    queries: Path | None = option(
        "Questions (JSONL) to measure recall with, instead of the passages' first sentences.",
        None,
        INPUT,
    )
    top_k: int = option("k of the measured recall@k.", 5, METHOD, low=1)
    candidates: int | None = option(
        "Passages the index proposes for exact rescoring; default: 20 per k.", None, METHOD, low=1
    )
    model: str | None = option(
        "Checkpoint for the queries; default: what the corpus names.", None, MODEL
    )
    backbone: str | None = option(
        "Where the checkpoint's backbone comes from, instead of what it names.", None, MODEL
    )
    check: bool = option(
        "Verify every file of the corpus against its recorded checksum and stop.", False, OUTPUT
    )


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


@dataclass(frozen=True, kw_only=True)
class SynthConfig(Common):
    """Write training data from documents with a language model, and check all of it.

    Examples:
      clara synth corpus.jsonl --llm http://127.0.0.1:8000/v1 --llm-model Qwen/Qwen3-8B --limit 20
      clara synth notes/ --llm Qwen/Qwen3-4B --kinds simple,paraphrase --out pairs.jsonl
      clara synth corpus.jsonl --kinds e2e --llm http://gpu1:8000,http://gpu2:8000 --llm-model q
    """

    documents: tuple[str, ...] = argument(
        "Files or folders, as clara compress reads them, or - for JSONL on stdin."
    )
    llm: str | None = option(
        "An OpenAI-compatible server's address (several, with commas, share the load), or a local "
        "model's directory or Hub id; default $CLARA_LLM. Keys: CLARA_LLM_API_KEY, OPENAI_API_KEY.",
        None,
        MODEL,
    )
    llm_model: str | None = option("The model's name at the server.", None, MODEL)
    kinds: str = option(
        "simple, complex, paraphrase (for pretrain); or e2e, or instruct (for train).",
        "simple,complex,paraphrase",
        METHOD,
    )
    rounds: int = option(
        "Most rounds of asking what is still uncovered, per passage and kind.", 10, METHOD, low=1
    )
    limit: int | None = option(
        "Passages at most; a later run with a higher limit goes on.", None, INPUT, low=1
    )
    concurrency: int = option(
        "Requests in flight at a time; the batch of a local model.", 16, MACHINE, low=1
    )
    out: Path | None = option(
        "The JSONL file; default: the first input's name with .pairs.jsonl or .questions.jsonl.",
        None,
        OUTPUT,
    )
    recipe: Path | None = option("TOML file of settings.", None, METHOD)
    set: tuple[str, ...] = option(
        "One setting over the recipe's, key=value; repeatable.", (), METHOD
    )
    skip_bad: bool = setting("Count and report bad lines instead of stopping.", False)
    split: str = setting("How documents are cut: sentences, tokens or none.", "sentences")
    title: bool = setting("Put the title before each passage, as compress does.", True)
    passage_tokens: int = setting("Longest passage, tokens.", 256, low=8)
    tokenizer: str | None = setting("Backbone whose tokens count; None: a careful estimate.", None)
    min_coverage: float = setting(
        "Share of a passage's sentences its questions must cover.", 0.5, low=0
    )
    temperature: float = setting("Sampling temperature of writing; checking is at 0.", 0.7, low=0)
    answer_words: int = setting("Longest answer, words.", 40, low=1)
    reply_tokens: int = setting("Longest reply of the model, tokens.", 2048, low=16)
    top_k: int = setting("Passages an instruct answer is read from.", 5, low=1)
    pool_size: int = setting("Passages of an e2e question's pool.", 20, low=2)
    stream: bool = setting("Ask servers to stream their replies.", False)
    timeout: float = setting("Seconds a reply may take.", 300.0, low=0.01)
    retries: int = setting("Further tries of a request that failed.", 5, low=0)
    backoff: float = setting("Seconds before the first further try; doubles with each.", 1.0, low=0)
    prompt_price: float = setting("Cost of a million prompt tokens, for the report.", 0.0, low=0)
    reply_price: float = setting("Cost of a million reply tokens, for the report.", 0.0, low=0)


@dataclass(frozen=True, kw_only=True)
class LearnConfig(Common):
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
    save_minutes: float = setting("Minutes between saves of the resumable state.", 5.0, low=0)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(LearnConfig):
    """SCP: teach a compressor and a generator on question-answer pairs and paraphrases.

    Examples:
      clara pretrain pairs.jsonl --backbone mistralai/Mistral-7B-Instruct-v0.2 --out runs/scp
      clara pretrain pairs.jsonl --recipe recipes/nano/scp.toml --init nano --out runs/scp
    """

    pairs: tuple[str, ...] = argument("JSONL files of pairs: data_type, question, answers, docs.")
    init: str | None = option(
        "Checkpoint to start from; default: fresh roles on --backbone.", None, MODEL
    )
    mse_weight: float = setting("Weight of the alignment loss (paper Table 10: 0.1).", 0.1, low=0)
    passage_tokens: int | None = setting("Longest passage, tokens; fresh: 256.", None, low=1)
    lora_rank: int | None = setting("LoRA rank; fresh: 16.", None, low=1)
    lora_alpha: int | None = setting("LoRA alpha; fresh: 32.", None, low=1)
    train_memory: bool = setting("Train the memory tokens too.", True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LearnConfig):
    """Train answering (instruct) or retrieval through answering (e2e).

    Examples:
      clara train questions.jsonl --stage instruct --init runs/scp --out runs/instruct
      clara train questions.jsonl --stage e2e --init runs/instruct --out runs/e2e
      clara train --init some/checkpoint --steps 0 --out native
    """

    questions: tuple[str, ...] = argument("JSONL files of questions with their pools.", ())
    stage: Literal["instruct", "e2e"] | None = option(
        "What to train; may be left out with --steps 0.", None, METHOD
    )
    init: str = option("Checkpoint to start from.", panel=MODEL)
    top_k: int = setting("Passages given to the generator.", 5, low=1)
    pool_size: int = setting(
        "Candidates per question in e2e; larger pools are sampled, gold kept.", 20, low=1
    )
    temperature: float = setting("Temperature of the straight-through top-k.", 0.02)
    mask: Literal["exact", "released"] = setting(
        "Mask of taken candidates: exact, or released (the published penalty).", "exact"
    )
    mse_weight: float = setting(
        "Weight of the alignment loss in instruct (0.1 in the released runs).", 0.1, low=0
    )
