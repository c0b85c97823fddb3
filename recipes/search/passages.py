"""Writes the documents that the measurements of search are made on: real passages whose questions
have a known gold passage, in a crowd of other real passages.

    python recipes/search/passages.py ../shared/data runs/search --passages 20000

Reads `squad/dev.jsonl.xz` (passages with their questions, every one kept) and
`wiki/part-*.jsonl.xz` (articles, not those of squad/dev), whose paragraphs fill up to `--passages`.
Writes
`documents.jsonl` for `clara compress` and `questions.jsonl`, each question with the id of its gold
document. Nothing is drawn at random: the same files give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.documents.chunk import split_document
from clara_cli.records import Document

LEAST = 200  # characters of a wiki paragraph worth keeping; shorter ones are headings and captions


def lines(path: Path) -> Iterator[dict]:
    """The objects of a JSONL.xz file."""
    with lzma.open(path, "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def questioned(squad: Path) -> Iterator[tuple[Document, list[dict]]]:
    """Passages that questions were asked about, and the questions."""
    for number, row in enumerate(lines(squad)):
        document = Document(f"squad-{number}", row["text"], row["title"], {"source": "squad"})
        yield document, row["qas"]


def paragraphs(wiki: Path) -> Iterator[Document]:
    """Paragraphs of the articles, in the order of the parts: the k-th of each article before any
    k+1-th of the next thousand articles, so that few articles do not fill the corpus."""
    articles = (row for part in sorted(wiki.glob("part-*.jsonl.xz")) for row in lines(part))
    for first in iter(lambda: list(islice(articles, 1000)), []):
        long = [[p for p in row["text"].split("\n") if len(p) >= LEAST] for row in first]
        for k in range(max(map(len, long), default=0)):
            for row, found in zip(first, long, strict=True):
                if k < len(found):
                    name = f"wiki-{row['title']}-{k}"
                    yield Document(name, found[k], row["title"], {"source": "wiki"})


def write(data: Path, out: Path, passages: int, model: str = "nano") -> tuple[int, int]:
    """Write both files; returns how many documents and how many passages they make."""
    loaded = load(LoadOptions(model, None, "cpu", "auto"))
    limit, offsets = loaded.info.max_passage_tokens, loaded.model.prompter.offsets

    def pieces(document: Document) -> int:
        return len(split_document(document, limit, offsets, "sentences", with_title=True))

    out.mkdir(parents=True, exist_ok=True)
    documents, total, seen = 0, 0, set()
    crowd, file = out / "documents.jsonl", out / "questions.jsonl"
    with crowd.open("w") as stream, file.open("w") as asked:
        for document, qas in questioned(data / "squad" / "dev.jsonl.xz"):
            for qa in qas:
                row = {"id": qa["id"], "question": qa["question"], "answers": qa["answers"]}
                asked.write(json.dumps(row | {"gold": document.id}) + "\n")
            documents, total = documents + 1, total + pieces(document)
            write_document(stream, document)
        for document in paragraphs(data / "wiki"):
            count = pieces(document)
            if total + count > passages or document.id in seen:
                if total == passages:
                    break
                continue
            seen.add(document.id)
            documents, total = documents + 1, total + count
            write_document(stream, document)
    return documents, total


def write_document(stream, document: Document) -> None:
    """One line of `clara compress`'s input."""
    row = {"id": document.id, "title": document.title, "text": document.text}
    stream.write(json.dumps(row | document.metadata) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--passages", type=int, default=20_000)
    args = parser.parse_args()
    documents, passages = write(args.data, args.out, args.passages)
    print(f"{args.out}: {documents:,} documents, {passages:,} passages")  # noqa: T201


if __name__ == "__main__":
    main()
