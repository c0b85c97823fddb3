"""PDF, office files, web pages, books and mail: their text in order, the part each passage comes
from, and what is refused. The files are made here by other packages' writers."""

from __future__ import annotations

import email.message
import zipfile
from pathlib import Path

import pytest

from clara_cli.config import DocumentOptions
from clara_cli.documents import formats, listing
from clara_cli.documents.chunk import split_document
from clara_cli.documents.documents import read_documents
from clara_cli.documents.places import place_of
from clara_cli.errors import DataError
from clara_cli.records import Document

for library in sorted(set(listing.NEEDS.values())):
    pytest.importorskip(library, reason="needs the extra documents")


TOWNS = ("Ann Lee is mayor of Elmgate.", "Bo Ray is mayor of Quarrel.")


def read(*paths: Path, **options: object) -> tuple[list[Document], list[str]]:
    bad: list[str] = []
    how = DocumentOptions(skip_bad=True, **options)  # type: ignore[arg-type]
    return list(read_documents([str(path) for path in paths], how, bad.append, print)), bad


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_documents([str(path)], DocumentOptions(), print, print))
    return caught.value.message


def places(document: Document, *starts: str) -> list[str]:
    """The parts that texts of a document begin in."""

    def letters(text: str) -> list[tuple[int, int]]:
        return [(n, n + 1) for n in range(len(text))]

    passages = split_document(document, 4, letters, "tokens", False)
    where = [next(p for p in passages if p.start <= document.text.index(s) < p.end) for s in starts]
    return [place_of(passage.source).part for passage in where]


def pdf(path: Path, *pages: str, title: str = "") -> Path:
    from fpdf import FPDF

    made = FPDF()
    made.set_title(title)
    made.set_font("helvetica", size=12)
    for text in pages:
        made.add_page()
        made.multi_cell(0, 8, text)
    made.output(str(path))
    return path


def test_a_pdf_has_pages(tmp_path: Path) -> None:
    path = pdf(tmp_path / "towns.pdf", *TOWNS)
    (document,), _ = read(path)
    assert (document.id, document.title) == (path.name, "towns")
    assert document.text == "\n\n".join(TOWNS)
    assert places(document, "Ann", "Bo") == ["page 1", "page 2"]
    (document,), _ = read(pdf(tmp_path / "titled.pdf", "x", title="Mayors of the coast"))
    assert document.title == "Mayors of the coast"


def test_a_pdf_that_is_encrypted_scanned_or_broken_is_named(tmp_path: Path) -> None:
    from pypdf import PdfWriter

    writer = PdfWriter(clone_from=pdf(tmp_path / "a.pdf", "secret"))
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    assert "locked.pdf: encrypted" in refused(tmp_path / "locked.pdf")
    blank = PdfWriter()
    blank.add_blank_page(100, 100)
    blank.write(tmp_path / "scan.pdf")
    assert "scan.pdf: 1 pages and no text in them: scanned?" in refused(tmp_path / "scan.pdf")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    assert "broken.pdf: not readable" in refused(tmp_path / "broken.pdf")
    documents, bad = read(tmp_path)
    assert [document.id for document in documents] == ["a.pdf"]
    assert len(bad) == 3 and all(line.startswith(str(tmp_path)) for line in bad)


def test_a_word_file_has_sections_and_tables(tmp_path: Path) -> None:
    import docx

    made = docx.Document()
    made.core_properties.title = "Report"
    made.add_paragraph("Before all.")
    made.add_heading("Towns", 1)
    made.add_paragraph("Elmgate lies by the sea.")
    table = made.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Elmgate", "Ann Lee"
    made.add_heading("Rivers", 2)
    made.add_paragraph("The Ord is long.")
    made.save(str(tmp_path / "r.docx"))
    (document,), _ = read(tmp_path / "r.docx")
    assert document.title == "Report"
    towns = "Towns\nElmgate lies by the sea.\nElmgate | Ann Lee"
    assert document.text == f"Before all.\n\n{towns}\n\nRivers\nThe Ord is long."
    sections = places(document, "Before", "Ann Lee", "The Ord")
    assert sections == ["", "section Towns", "section Rivers"]
    (tmp_path / "old.docx").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    assert "encrypted, or of the format of before 2007" in refused(tmp_path / "old.docx")
    (tmp_path / "broken.docx").write_bytes(b"PK")
    assert "broken.docx: not readable" in refused(tmp_path / "broken.docx")


def test_word_tables_within_tables_are_read_and_wide_cells_once(tmp_path: Path) -> None:
    import docx

    made = docx.Document()
    table = made.add_table(2, 3)
    table.cell(0, 0).merge(table.cell(0, 2)).text = "Mayors of the coast"
    cell = table.cell(1, 0)
    cell.text = "before"
    cell.add_table(1, 2).rows[0].cells[1].text = "inner"
    cell.add_paragraph("after")
    table.cell(1, 2).text = "last"
    made.save(str(tmp_path / "t.docx"))
    (document,), _ = read(tmp_path / "t.docx")
    first, second = document.text.split("\n")
    assert first == "Mayors of the coast"
    assert second.replace("|", "").split() == ["before", "inner", "after", "last"]


def test_slides_and_sheets(tmp_path: Path) -> None:
    import openpyxl
    import pptx

    deck = pptx.Presentation()
    for title, note in (("First", ""), ("Second", "Say hello.")):
        slide = deck.slides.add_slide(deck.slide_layouts[5])
        slide.shapes.title.text = title
        if note:
            slide.notes_slide.notes_text_frame.text = note
    deck.save(str(tmp_path / "a.pptx"))
    (document,), _ = read(tmp_path / "a.pptx")
    assert document.text == "First\n\nSecond\nSay hello."
    assert places(document, "First", "Say") == ["slide 1", "slide 2"]
    book = openpyxl.Workbook()
    book.active.title = "Mayors"
    book.active.append(["town", "mayor", None])
    book.active.append(["Elmgate", "Ann Lee", 7])
    book.create_sheet("Empty")
    book.create_sheet("Rivers").append(["Ord", 2.5])
    book.save(tmp_path / "a.xlsx")
    (document,), _ = read(tmp_path / "a.xlsx")
    assert document.text == "town | mayor | \nElmgate | Ann Lee | 7\n\nOrd | 2.5"
    assert places(document, "Ann", "Ord") == ["sheet Mayors", "sheet Rivers"]


HTML = """<!doctype html><html><head><title>The coast</title><style>p {}</style></head><body>
<header>Site name</header><nav><a href="/">Home</a></nav>
<main><header><h1>Towns</h1></header><p>Elmgate lies
 by   the <b>sea</b>.</p><!-- a remark --><script>alert(1)</script>
<h2>Mayors</h2><table><tr><td>Elmgate</td><td>Ann Lee</td></tr></table>
<ul><li>one<li>two</ul><pre>kept
  as is</pre><aside>Read also</aside></main><footer>Imprint</footer></body></html>"""


def test_a_web_page_without_its_boilerplate(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(HTML)
    (document,), _ = read(tmp_path / "a.html")
    assert document.title == "The coast"
    lines = [line for line in document.text.split("\n") if line]
    assert lines == [
        *["Towns", "Elmgate lies by the sea.", "Mayors", "Elmgate | Ann Lee", "one", "two"],
        *["kept", "as is"],
    ]
    assert places(document, "lies", "Ann") == ["section Towns", "section Mayors"]


def epub(path: Path, *chapters: str) -> Path:
    items = "".join(f'<item id="c{n}" href="c{n}.xhtml"/>' for n in range(len(chapters)))
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<metadata><dc:title>A book</dc:title></metadata><manifest>{items}</manifest>"
        f"<spine>{spine}</spine></package>"
    )
    with zipfile.ZipFile(path, "w") as book:
        root = '<container><rootfiles><rootfile full-path="O/p.opf"/></rootfiles></container>'
        book.writestr("META-INF/container.xml", root)
        book.writestr("O/p.opf", package)
        for number, chapter in enumerate(chapters):
            page = f"<html><body><h1>Chapter {number}</h1><p>{chapter}</p></body></html>"
            book.writestr(f"O/c{number}.xhtml", page)
    return path


def test_a_book_in_reading_order(tmp_path: Path) -> None:
    (document,), _ = read(epub(tmp_path / "a.epub", "It began.", "It ended."))
    assert document.title == "A book"
    assert document.text == "Chapter 0\n\nIt began.\n\nChapter 1\n\nIt ended."
    assert places(document, "It ended") == ["section Chapter 1"]


def test_restructured_text_includes_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    text = "Towns\n=====\n\nElmgate is *old*.\n\n.. include:: secret.txt\n\n"
    text += ".. raw:: html\n\n   <b>raw</b>\n\n"
    (tmp_path / "a.rst").write_text(text + "Rivers\n------\n\n- The Ord\n")
    (document,), _ = read(tmp_path / "a.rst")
    assert document.text.startswith("Towns\n\nElmgate is old.")
    assert "The Ord" in document.text
    assert "secret" not in document.text and "<b>" not in document.text
    assert places(document, "Elmgate", "The Ord") == ["section Towns", "section Rivers"]
    (tmp_path / "a.rst").write_text("Towns\n=====\n\n.. unheard::\n\n   Words in it.\n")
    (document,), _ = read(tmp_path / "a.rst")
    assert "Words in it." in document.text


def test_mail(tmp_path: Path) -> None:
    message = email.message.EmailMessage()
    message["Subject"], message["From"] = "The mayor", "ann@a.example"
    message.set_content("Ann Lee was chosen.\n")
    message.add_alternative("<p>HTML</p>", subtype="html")
    message.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="map.png")
    (tmp_path / "a.eml").write_bytes(message.as_bytes())
    (document,), _ = read(tmp_path / "a.eml")
    assert (document.title, document.text) == ("The mayor", "Ann Lee was chosen.")
    assert document.metadata["from"] == "ann@a.example"
    assert document.metadata["attachments"] == ["map.png"]


def test_without_the_extra_a_pdf_is_refused_or_left_out(tmp_path: Path, monkeypatch) -> None:
    path = pdf(tmp_path / "a.pdf", "text")
    (tmp_path / "b.txt").write_text("b")
    monkeypatch.setattr(listing, "find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.message == f"{path}: PDF is read with the extra documents, not installed"
    assert "[documents]'" in caught.value.hint
    reading = read_documents([str(tmp_path)], DocumentOptions(), print, print)
    assert [document.text for document in reading] == ["b"]
    assert reading.left_out == {".pdf": 1}


def test_a_text_that_is_too_long_is_refused_with_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(f"<p>{'x' * (2**20 + 1)}</p>")
    documents, bad = read(tmp_path / "a.html", pdf(tmp_path / "b.pdf", "b"), max_record_mib=1)
    assert [document.text for document in documents] == ["b"]
    limit = "a text longer than 1 MiB; --max-record-mib raises the most"
    assert bad == [f"{tmp_path / 'a.html'}: {limit}"]


def test_no_format_is_without_a_suffix_and_a_library() -> None:
    kinds = set(listing.KINDS.values())
    assert set(formats.FORMATS) == set(listing.NEEDS) <= kinds
