"""A folder of 203 files of seven kinds, by six packages: compressed, edited, pruned and asked."""

from __future__ import annotations

import json
from email.message import EmailMessage
from pathlib import Path

import pytest
from helpers import tiny_world

from clara_cli.commands import ask, compress, index
from clara_cli.config import CompressConfig
from clara_cli.corpus.store import Corpus
from clara_cli.records import NullReport

EACH = 29


def fact(kind: str, number: int) -> str:
    return f"The {kind} of Town {number} is kept by Keeper{number}."


def as_word(path: Path, text: str) -> None:
    import docx

    document = docx.Document()
    document.add_paragraph(text)
    document.save(str(path))


def as_slides(path: Path, text: str) -> None:
    import pptx

    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = text
    deck.save(str(path))


def as_sheet(path: Path, text: str) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append([text])
    book.save(path)


def as_mail(path: Path, text: str) -> None:
    message = EmailMessage()
    message["Subject"] = path.stem
    message.set_content(text)
    path.write_bytes(message.as_bytes())


def as_pdf(path: Path, text: str) -> None:
    from fpdf import FPDF

    page = FPDF()
    page.set_font("helvetica", size=12)
    page.add_page()
    page.multi_cell(0, 8, text)
    page.output(str(path))


def as_parquet(path: Path, text: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [path.stem], "text": [text]}), path)


def as_markdown(path: Path, text: str) -> None:
    path.write_text(f"---\ntags: [town]\n---\n# {path.stem}\n{text}\n", encoding="utf-8")


WRITERS = {
    "docx": as_word,
    "pptx": as_slides,
    "xlsx": as_sheet,
    "pdf": as_pdf,
    "eml": as_mail,
    "parquet": as_parquet,
    "md": as_markdown,
}


def into(corpus: Path, folder: Path, **changes) -> CompressConfig:
    return CompressConfig(
        **tiny_world.MACHINE, inputs=(str(folder),), into=corpus, skip_bad=True, **changes
    )


@pytest.mark.slow
def test_two_hundred_mixed_files_are_compressed_edited_pruned_and_asked(works, tmp_path):
    for module in ("docx", "pptx", "openpyxl", "bs4", "pypdf", "fpdf"):
        pytest.importorskip(module, reason="the extras clara-cli[documents,dev] are not installed")
    folder, corpus = tmp_path / "mixed", tmp_path / "mixed.clara"
    folder.mkdir()
    for kind, writer in WRITERS.items():
        for number in range(EACH):
            writer(folder / f"{kind}{number}.{kind}", fact(kind, number))
    assert len(list(folder.iterdir())) == 203
    made = compress.run(tiny_world.compress(folder, works.e2e, corpus), NullReport())
    assert (made.documents, made.skipped) == (203, 0)
    index.run(tiny_world.index(corpus, engine="hnsw"), NullReport())

    for kind, writer in WRITERS.items():
        writer(folder / f"{kind}0.{kind}", f"The {kind} of Town 0 was sold to Buyer{kind}.")
        (folder / f"{kind}1.{kind}").unlink()
    (folder / "docx2.docx").write_bytes(b"no longer a document")
    same = compress.run(into(corpus, folder), NullReport())
    assert (same.replaced, same.added, same.deleted, same.skipped) == (7, 0, 0, 1)
    assert same.computed == 7 and same.documents == 203
    pruned = compress.run(into(corpus, folder, prune=True, yes=True), NullReport())
    assert (pruned.deleted, pruned.documents, pruned.computed) == (7, 196, 0)

    texts = {p.document_id: p.text for p in Corpus.open(corpus).passages()}
    assert "docx2.docx" in texts  # it could not be read: kept
    for kind in WRITERS:
        name = "parquet0" if kind == "parquet" else f"{kind}0.{kind}"
        assert f"Buyer{kind}" in texts[name]
        question = f"Buyer{kind}"
        (result,) = ask.run(tiny_world.ask(question, corpus, search=True, top_k=1), NullReport())
        assert result.sources[0].passage.document_id == name
        assert result.sources[0].sentence is not None
    (answer,) = ask.run(tiny_world.ask("Who bought Town 0?", corpus), NullReport())
    assert answer.sources and {hit.passage.document_id for hit in answer.sources} <= texts.keys()
    gone = json.dumps(sorted(texts))
    assert not any(f'"{kind}1.' in gone for kind in WRITERS)
