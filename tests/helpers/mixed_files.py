"""Files of seven kinds with one sentence each, by the packages that people write them with."""

from __future__ import annotations

from email.message import EmailMessage
from pathlib import Path

NEEDED = ("docx", "pptx", "openpyxl", "bs4", "pypdf", "fpdf")


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
