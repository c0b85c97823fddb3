"""Prepares nano's training data on a CPU: one folder of packed token ids, at most 40 MiB.

    python recipes/nano/pack.py DATA runs/nano-packed            (DATA: wiki/ squad/ multihop/)

What is in it: SQuAD's train passages with every question, HotpotQA's and MuSiQue's train pools,
Wikipedia passages (language modelling, reconstruction, cloze questions), pairs of passages that
tell nearly the same (SQuAD's snapshot against Wikipedia's), invented entities, and for every
passage with questions its nearest others by BM25. Wikipedia fills what the other parts leave.
`train.py` needs this folder and nothing else. Seeded: the same files give the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import packed_format
import sources
import tokenizer as nano_tokenizer
from sources import Source
from transformers import PreTrainedTokenizerFast

from clara_cli.search.bm25 import BM25

MAX_PASSAGE = 254  # with BOS and EOS a passage is at most 256 tokens
NEAR = 7  # other passages listed with each one that has questions
MAX_QUESTION, MAX_ANSWER = 60, 24  # tokens; longer ones are left out
BYTES_PER_CHARACTER = 0.29  # packed size of text, estimated high; the folder's size is checked
SAME = (0.4, 0.95)  # overlap of two passages that tell nearly the same


class Encoder:
    """A tokenizer with the few constant pieces of nano's prompts."""

    def __init__(self, tok: PreTrainedTokenizerFast) -> None:
        self.tok = tok

    def __call__(self, text: str) -> list[int]:
        return self.tok(text, add_special_tokens=False)["input_ids"]

    def many(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Token ids of texts, a thousand at a time, as small arrays."""
        texts = iter(texts)
        while part := list(itertools.islice(texts, 1000)):
            encoded = self.tok(part, add_special_tokens=False, return_attention_mask=False)
            yield from (np.array(ids, np.uint16) for ids in encoded["input_ids"])

    def pieces(self) -> dict[str, list[int]]:
        """Token ids of what stands around passages, questions and answers, for the manifest."""
        return {
            "opening": self("Background:\n"),
            "joint": self("\n\nA")[:-1],
            "question": self("\n\nQuestion:A")[:-1],
            "gap": self(" ____"),
            "repeat": self(" is a paraphrase of what?"),
            "user": [self.tok.convert_tokens_to_ids("<|user|>")],
            "assistant": [self.tok.convert_tokens_to_ids("<|assistant|>")],
            "bos": [self.tok.bos_token_id],
            "eos": [self.tok.eos_token_id],
        }


def wiki(folder: Path, characters: int, seed: int) -> Iterator[Source]:
    """Passages of Wikipedia articles until so many characters are used."""
    for title, text in sources.articles(folder, seed):
        held = sources.in_held_part(title)
        for part in sources.passages(text):
            characters -= len(part)
            if characters < 0:
                return
            yield Source("wiki", title, part, held=held)


def gather(args: argparse.Namespace) -> tuple[list[Source], list[list[int]]]:
    """All passages, and the rows of each multi-hop pool."""
    records = list(sources.squad(args.data / "squad" / "train.jsonl.xz"))
    records += sources.invented(args.world, args.seed)
    pools = []
    for name in ("hotpotqa_train", "musique_train"):
        for pool in sources.multihop(args.data / "multihop" / f"{name}.jsonl.xz"):
            pools.append(list(range(len(records), len(records) + len(pool))))
            records += pool
    if args.passages is not None:
        keep = args.passages
        kept = random.Random(args.seed).sample(range(len(records)), k=min(keep, len(records)))
        records, pools = [records[i] for i in sorted(kept)], []
    spent = sum(len(r.text) + sum(len(q) + len(a) for q, a in r.pairs) for r in records)
    room = args.mib * 2**20 / BYTES_PER_CHARACTER * 0.95 - spent
    limit = int(min(room, args.wiki_characters or room))
    records += wiki(args.data / "wiki", max(limit, 0), args.seed)
    return records, pools


def encode_passages(records: Sequence[Source], encode: Encoder) -> dict[str, np.ndarray]:
    """Tokens of title and text; `passage_head` is how many of them the title takes."""
    whole = encode.many(f"{r.title}\n{r.text}" for r in records)
    heads = encode.many(f"{r.title}\n" for r in records)
    return {
        **packed_format.ragged("passage", (ids[:MAX_PASSAGE] for ids in whole)),
        "passage_head": np.array([min(len(head), 60) for head in heads], np.uint8),
        "passage_source": np.array(
            [packed_format.SOURCES.index(r.source) for r in records], np.uint8
        ),
        "passage_held": np.array([r.held for r in records], np.uint8),
    }


def encode_pairs(records: Sequence[Source], encode: Encoder) -> dict[str, np.ndarray]:
    """Questions as they stand in a prompt ("\\n\\nQuestion:..."), answers with their space."""
    owners, asked, said, also = [], [], [], []
    rows = {record.key: i for i, record in enumerate(records) if record.key}
    for i, record in enumerate(records):
        for question, answer in record.pairs:
            ids, answer_ids = encode(f"\n\nQuestion:{question}"), encode(f" {answer}")
            if answer and len(ids) <= MAX_QUESTION and len(answer_ids) <= MAX_ANSWER:
                owners.append(i)
                asked.append(ids)
                said.append(answer_ids)
                others = [rows[key] for key in record.also if key in rows][:3]
                also.append(others + [-1] * (3 - len(others)))
    return {
        **packed_format.ragged("question", asked),
        **packed_format.ragged("answer", said),
        "question_passage": np.array(owners, np.uint32),
        "question_also": np.array(also, np.int32).reshape(-1, 3),
    }


def nearest(
    records: Sequence[Source], pools: Sequence[Sequence[int]], seed: int
) -> dict[str, np.ndarray]:
    """`passage_near`: other passages that one of its questions finds by BM25 (SQuAD), that are of
    its kind (invented) or of its pool (multi-hop); -1 where there is none."""
    near = np.full((len(records), NEAR), -1, np.int32)
    for pool in pools:
        for i in pool:
            near[i] = ([j for j in pool if j != i] + [-1] * NEAR)[:NEAR]
    rng = random.Random(seed)
    kinds: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        if record.source == "world":
            kinds[re.sub(r"\W.*", "", record.pairs[0][0])].append(i)
    for rows in kinds.values():
        for i in rows:
            found = [j for j in rng.sample(rows, k=min(NEAR, len(rows))) if j != i]
            near[i, : len(found)] = found
    asked = [i for i, r in enumerate(records) if r.source == "squad" and r.pairs]
    bm25 = BM25.build(f"{records[i].title}\n{records[i].text}" for i in asked)
    for i in asked:
        question = rng.choice(records[i].pairs)[0]
        _, found = bm25.search(question, NEAR + 1)
        others = [asked[row] for row in found if asked[row] != i][:NEAR]
        near[i, : len(others)] = others
    return {"passage_near": near}


def cloze_questions(
    records: Sequence[Source], encode: Encoder, ends: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Where in a passage's tokens a sentence and the gap inside it begin and end."""
    rng, owners, spans = random.Random(seed), [], []
    for i, record in enumerate(records):
        found = sources.cloze(record.text, rng) if record.source == "wiki" else None
        if found is None:
            continue
        head = len(record.title) + 1
        text = f"{record.title}\n{record.text}"
        offsets = encode.tok(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [begin for begin, _ in offsets["offset_mapping"]]
        spaces = [head + edge - (edge > 0) for edge in found[:2]]  # a word begins with its space
        within = [np.searchsorted(starts, space, "right") - 1 for space in spaces]
        edges = [*within, *(np.searchsorted(starts, head + edge) for edge in found[2:])]
        length = int(ends[i] - (ends[i - 1] if i else 0))
        if edges[0] < edges[1] < edges[2] <= edges[3] <= length and edges[2] - edges[1] <= 12:
            owners.append(i)
            spans.append(edges)
    return {
        "cloze_passage": np.array(owners, np.uint32),
        "cloze_span": np.array(spans, np.uint8).reshape(-1, 4),
    }


def same_pairs(records: Sequence[Source]) -> dict[str, np.ndarray]:
    """SQuAD passages and the Wikipedia passages of the same article that tell nearly the same."""
    by_title = defaultdict(list)
    for i, record in enumerate(records):
        if record.source == "wiki":
            by_title[record.title].append(i)
    found = [
        (i, j)
        for i, record in enumerate(records)
        if record.source == "squad" and not record.held
        for j in by_title.get(record.title, ())
        if SAME[0] <= sources.overlap(record.text, records[j].text) <= SAME[1]
    ]
    return {"same": np.array(found, np.uint32).reshape(-1, 2)}


def learn_tokenizer(args: argparse.Namespace) -> PreTrainedTokenizerFast:
    """The given tokenizer, or a new one of real text and the invented world."""
    if args.tokenizer is not None:
        return PreTrainedTokenizerFast.from_pretrained(args.tokenizer)
    real = itertools.chain(
        (s.text for s in sources.squad(args.data / "squad" / "train.jsonl.xz")),
        (s.text for s in wiki(args.data / "wiki", 30_000_000, args.seed)),
    )
    return nano_tokenizer.train(itertools.islice(real, args.tokenizer_texts), args.vocab, args.seed)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with wiki/, squad/ and multihop/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--mib", type=float, default=40, help="compressed size of the folder")
    parser.add_argument("--vocab", type=int, default=12_288)
    parser.add_argument("--tokenizer", type=Path, help="use this one instead of a new one")
    parser.add_argument("--tokenizer-texts", type=int, default=50_000)
    parser.add_argument("--world", type=int, default=30_000, help="invented entities")
    parser.add_argument("--passages", type=int, help="keep so many passages beside Wikipedia's")
    parser.add_argument("--wiki-characters", type=int, help="at most so much of Wikipedia")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    tok = learn_tokenizer(args)
    encode = Encoder(tok)
    records, pools = gather(args)
    asked = sum(len(record.pairs) for record in records)
    print(f"{len(records):,} passages, {asked:,} questions", flush=True)
    arrays = encode_passages(records, encode)
    arrays |= encode_pairs(records, encode) | nearest(records, pools, args.seed)
    arrays |= cloze_questions(records, encode, arrays["passage_ends"], args.seed)
    arrays |= same_pairs(records)
    about = {
        "vocabulary": len(tok),
        "pieces": encode.pieces(),
        "seed": args.seed,
        "passages": {n: sum(r.source == n for r in records) for n in packed_format.SOURCES},
        "licences": "SQuAD, Wikipedia, HotpotQA: CC BY-SA; MuSiQue: CC BY 4.0; world: Apache-2.0",
    }
    manifest = packed_format.write(args.out, arrays, about)
    tok.save_pretrained(args.out)
    size = sum(f.stat().st_size for f in args.out.iterdir()) / 2**20
    print(f"{args.out}: {len(arrays['passage_tokens']):,} tokens, {size:.1f} MiB")
    if size > args.mib:
        raise SystemExit(f"{size:.1f} MiB is more than --mib {args.mib:g}: take less of Wikipedia")
    assert manifest["bytes"] < size * 2**20


if __name__ == "__main__":
    main()
