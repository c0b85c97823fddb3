"""Options of `clara ask`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clara_cli.config.common import PlacementOptions
from clara_cli.config.documents import DocumentOptions
from clara_cli.config.fields import INPUT, MACHINE, METHOD, MODEL, OUTPUT, argument, option


@dataclass(frozen=True, kw_only=True)
class AskConfig(PlacementOptions, DocumentOptions):
    """Answer questions from a compressed corpus, with sources. Without a question: the REPL.

    Examples:
      clara ask "Who commanded the Eastern Walrus 58?" --corpus sample.clara
      clara ask "When is the next release?" ./notes
      clara ask --search "highest rank in sumo" --corpus sample.clara
      clara ask "When is the next release?" ./notes --llm http://127.0.0.1:8000 --llm-model any
      clara ask -f questions.txt --corpus sample.clara --json
      cat questions.txt | clara ask -f - --corpus sample.clara --answer-only
      clara ask "Who commanded the ship?" --corpus sample.clara --where 'title="Eastern Walrus 58"'
      clara ask --serve 8000 --corpus sample.clara
      clara ask --task paraphrase --passage invented-030#0 --corpus sample.clara
      clara ask --corpus sample.clara
    """

    question: str | None = argument(
        "The question; none opens the REPL, or reads stdin when piped.", None
    )
    documents: tuple[str, ...] = argument(
        "Documents to ask instead of a corpus: compressed once, kept in the user's cache.", ()
    )
    file: Path | None = option(
        "Questions from a file, or - for stdin: one a line, or JSONL with `question` and `id`.",
        None,
        INPUT,
        flag="--file/-f",
    )
    corpus: tuple[Path, ...] = option(
        "The corpus, a folder or URL (several: repeat it); default $CLARA_CORPUS, else the only "
        "*.clara here.",
        (),
        INPUT,
    )
    top_k: int | None = option(
        "Passages given to the generator; default: the checkpoint's own, 5 where it names none.",
        None,
        METHOD,
        low=1,
    )
    candidates: int | None = option(
        "Passages the first stage proposes for exact rescoring; default: what clara index found "
        "to be enough, else 20 per k.",
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
    where: str | None = option(
        "Search only passages whose fields fulfil this, like: 'lang=en and year>=2010'.",
        None,
        METHOD,
    )
    max_new_tokens: int = option("Longest answer, in tokens.", 128, METHOD, low=1)
    model: str | None = option("Checkpoint; default: what the corpus names.", None, MODEL)
    llm: str | None = option(
        "Let an OpenAI-compatible server at this address read the passages found, as text; keys: "
        "CLARA_LLM_API_KEY, OPENAI_API_KEY.",
        None,
        MODEL,
    )
    llm_model: str | None = option("The model's name at the server of --llm.", None, MODEL)
    read: Literal["memory", "text", "auto"] | None = option(
        "What is read: memory tokens; text (by the generator where it has learned to, else by the "
        "bare backbone); auto: the text of the best passages within --text-tokens, the memory of "
        "the rest. Default: the checkpoint's own.",
        None,
        METHOD,
    )
    text_tokens: int = option("Most text tokens that --read auto spends.", 256, METHOD, low=0)
    explain: bool = option(
        "Say why: scores, matching memory tokens and their words, timing, tokens.", False, METHOD
    )
    task: Literal["paraphrase", "qa"] | None = option(
        "Instead of answering: write from the memory of one passage, a paraphrase (--seed picks "
        "one of 13 instructions) or its questions and answers.",
        None,
        METHOD,
    )
    passage: str | None = option("The passage of --task, by its id.", None, INPUT)
    search: bool = option(
        "Find passages and answer nothing: the best sentence of each, with its place.",
        False,
        METHOD,
    )
    require_support: bool = option(
        "Exit with 5 when the sources do not support the answer.", False, METHOD
    )
    abstain: bool = option(
        "Say 'not in the documents' instead of an answer that the sources do not support.",
        False,
        METHOD,
    )
    serve: str | None = option(
        "Answer over HTTP at PORT or HOST:PORT, as an OpenAI-compatible server (extra serve); any "
        "host but this machine needs a token in CLARA_SERVE_TOKEN.",
        None,
        MACHINE,
    )
    answer_only: bool = option(
        "Print the words of the answer alone, a line for each question of a file.", False, OUTPUT
    )
    log: Path | None = option(
        "Append every answer to this file, as --json prints it, with its time.", None, OUTPUT
    )
    clear_cache: bool = option(
        "Remove the backbones that were dequantised into the cache and the copies of corpora at "
        "URLs, print their size, and stop.",
        False,
        OUTPUT,
    )
    list: bool = option(
        "List the corpora that the cache keeps of documents that were asked, and stop.",
        False,
        OUTPUT,
    )
    forget: str | None = option(
        "Remove the cached corpus of this name (--list), or `all` of them, and stop.", None, OUTPUT
    )
    dry_run: bool = option(
        "Print the memory needed, computed from configs alone, and stop.", False, OUTPUT
    )
