"""Options and settings of `clara synth`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clara_cli.config.common import Common
from clara_cli.config.fields import INPUT, MACHINE, METHOD, MODEL, OUTPUT, argument, option, setting


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
