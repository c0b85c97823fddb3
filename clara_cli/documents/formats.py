"""Office files, PDF, web pages, books and mail as text with the parts it has: pages, slides,
sheets, sections. Each file is read in a process of its own (`reader_process`), by libraries of the
extra `documents`; macros, scripts and what a file refers to outside itself are never followed.

Knows formats; knows nothing of passages.
"""

from __future__ import annotations

import email
import email.message
import email.policy
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import PurePath, PurePosixPath
from typing import IO, Any

from clara_cli.documents.listing import Source
from clara_cli.errors import DataError

_OLE = b"\xd0\xcf\x11\xe0"  # Office files of before 2007, and encrypted ones
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = (
    "p",
    "div",
    "section",
    "article",
    "main",
    "li",
    "ul",
    "ol",
    "dl",
    "dt",
    "dd",
    "tr",
    "table",
    "blockquote",
    "pre",
    "figure",
    "figcaption",
    "header",
    "hr",
    "br",
    "address",
    "summary",
    *_HEADINGS,
)
_BOILERPLATE = (
    "script",
    "style",
    "noscript",
    "template",
    "svg",
    "iframe",
    "object",
    "form",
    "button",
    "nav",
    "footer",
    "aside",
    "dialog",
    "head",
)
_ROLES = ("navigation", "banner", "contentinfo", "complementary", "search", "dialog")
_MARK = "\ue000"  # stands before a heading while a page is made text; a private character
_FILE_NAME = re.compile(r"\.\w{2,4}$|^untitled|^microsoft ", re.IGNORECASE)

Part = tuple[str, str]  # what a source link says (`page=3`), and its text


def read_pdf(source: Source, stream: IO[bytes]) -> dict[str, Any]:
    """The pages of a PDF in order, each `page=N`."""
    import pypdf

    reader = pypdf.PdfReader(stream)
    if reader.is_encrypted and not reader.decrypt(""):
        raise DataError(f"{source.name}: encrypted, it needs a password", "save it without one")
    parts = [(f"page={n}", page.extract_text()) for n, page in enumerate(reader.pages, 1)]
    if not any(text.strip() for _, text in parts):
        message = f"{source.name}: {len(parts)} pages and no text in them: scanned?"
        raise DataError(message, "recognise its text first, with ocrmypdf for example")
    title = str((reader.metadata and reader.metadata.title) or "").strip()
    return _record(source, parts, "" if _FILE_NAME.search(title) else title)


def read_docx(source: Source, stream: IO[bytes]) -> dict[str, Any]:
    """Paragraphs and tables in order; a heading begins a `section=`."""
    import docx
    from docx.table import Table

    _refuse_ole(source, stream)
    document = docx.Document(stream)
    parts: list[Part] = []
    heading = ""
    lines: list[str] = []
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            lines += _table_lines(block)
            continue
        style = (block.style and block.style.name) or ""
        if style.startswith(("Heading", "Title")) and block.text.strip():
            parts.append((heading, "\n".join(lines)))
            heading, lines = block.text.strip(), []
        lines.append(block.text)
    parts.append((heading, "\n".join(lines)))
    return _record(source, _sections(parts), document.core_properties.title or "")


def _table_lines(table: Any) -> Iterator[str]:
    """A line for each row of a Word table, tables within its cells in their place; a cell that
    spans several columns comes once."""
    for row in table.rows:
        cells = {cell._tc: cell for cell in row.cells}.values()
        yield _row(" ".join(_cell_lines(cell)) for cell in cells)


def _cell_lines(cell: Any) -> Iterator[str]:
    for block in cell.iter_inner_content():
        if hasattr(block, "rows"):
            yield from _table_lines(block)
        else:
            yield block.text


def read_pptx(source: Source, stream: IO[bytes]) -> dict[str, Any]:
    """Slides in order, each `slide=N`, with tables, groups and the speaker's notes."""
    import pptx

    _refuse_ole(source, stream)
    slides = pptx.Presentation(stream)
    parts = []
    for number, slide in enumerate(slides.slides, 1):
        lines = [line for shape in slide.shapes for line in _shape_lines(shape)]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            lines.append(slide.notes_slide.notes_text_frame.text)
        parts.append((f"slide={number}", "\n".join(lines)))
    return _record(source, parts, slides.core_properties.title or "")


def _shape_lines(shape: Any) -> Iterator[str]:
    if getattr(shape, "shapes", None) is not None:  # a group
        for inner in shape.shapes:
            yield from _shape_lines(inner)
    elif getattr(shape, "has_table", False):
        for row in shape.table.rows:
            yield _row(cell.text for cell in row.cells)
    elif shape.has_text_frame:
        yield shape.text_frame.text


def read_xlsx(source: Source, stream: IO[bytes]) -> dict[str, Any]:
    """Sheets in order, each `sheet=NAME`: a line a row, the values that formulas had when saved."""
    import openpyxl

    _refuse_ole(source, stream)
    book = openpyxl.load_workbook(stream, read_only=True, data_only=True, keep_links=False)
    parts = []
    for sheet in book.worksheets:
        rows = (_row(map(_cell, row)) for row in sheet.iter_rows(values_only=True))
        parts.append((f"sheet={sheet.title}", "\n".join(filter(None, rows))))
    return _record(source, parts, book.properties.title or "")


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def read_html(source: Source, stream: IO[bytes]) -> dict[str, Any]:
    """The main part of a web page; a heading begins a `section=`. Menus, headers and footers of the
    site, scripts and forms are left out."""
    title, parts = _page(stream.read())
    return _record(source, _sections(parts), title)


def read_epub(source: Source, stream: IO[bytes]) -> dict[str, Any]:
    """The chapters of a book in reading order; a heading begins a `section=`."""
    from bs4 import BeautifulSoup

    with zipfile.ZipFile(stream) as book:
        names = set(book.namelist())
        if {"META-INF/rights.xml", "META-INF/sinf.xml"} & names:
            message = f"{source.name}: encrypted by its seller's rights management"
            raise DataError(message, "leave it out")
        container: Any = BeautifulSoup(book.read("META-INF/container.xml"), "lxml-xml")
        package_name = container.find("rootfile")["full-path"]
        package: Any = BeautifulSoup(book.read(package_name), "lxml-xml")
        hrefs = {item["id"]: item["href"] for item in package.find_all("item")}
        folder = PurePosixPath(package_name).parent
        parts: list[Part] = []
        for reference in package.find_all("itemref"):
            name = (folder / hrefs[reference["idref"]]).as_posix()
            if name in names:
                parts += _page(book.read(name))[1]
        heading = package.find("title")
        return _record(source, _sections(parts), heading.get_text() if heading else "")


def _page(data: bytes) -> tuple[str, list[Part]]:
    """The title of a page, and (heading, text) of what is between its headings."""
    from bs4 import BeautifulSoup, Comment

    soup: Any = BeautifulSoup(data, "lxml")
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    main: Any = soup.find("main") or soup.find("article") or soup.body or soup
    for tag in main.find_all(_BOILERPLATE):
        tag.decompose()
    for tag in main.find_all(attrs={"role": _ROLES}):
        tag.decompose()
    if main.name not in ("main", "article"):  # inside those, a header has the heading
        for tag in main.find_all("header"):
            tag.decompose()
    for string in main.find_all(string=True):
        if isinstance(string, Comment):
            string.extract()
        elif string.find_parent("pre") is None:
            string.replace_with(re.sub(r"\s+", " ", string.replace(_MARK, "")))
    for tag in main.find_all(_BLOCKS):
        tag.insert_before("\n")
        tag.append("\n")
    for tag in main.find_all(_HEADINGS):
        tag.insert(0, _MARK)
    for tag in main.find_all(["td", "th"]):
        tag.append(" | ")
    before, *rest = main.get_text().split(_MARK)
    sections = [(piece.partition("\n")[0].strip(), piece) for piece in rest]
    return title, [(heading, _tidied(text)) for heading, text in [("", before), *sections]]


def _tidied(text: str) -> str:
    """Lines without white space around them, at most one blank line between two."""
    lines = (line.strip().removesuffix(" |").strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def read_rst(source: Source, stream: IO[bytes]) -> dict[str, Any]:
    """The text of reStructuredText, without its marks; a heading begins a `section=`. Nothing is
    included from other files, nothing raw is kept."""
    from docutils import core, nodes

    settings = {"file_insertion_enabled": False, "raw_enabled": False, "_disable_config": True}
    quiet = {"report_level": 5, "halt_level": 5, "warning_stream": False}
    text = stream.read().decode("utf-8-sig", "replace")
    tree = core.publish_doctree(text, settings_overrides={**settings, **quiet})
    for message in list(tree.findall(nodes.system_message)):
        unknown = "Unknown directive type" in message.astext()  # its words are kept, as they stand
        blocks = [node for node in message.children if isinstance(node, nodes.literal_block)]
        message.parent.replace(message, blocks if unknown else [])
    parts: list[Part] = []
    heading = ""
    lines: list[str] = []
    for node in tree.findall(lambda node: isinstance(node, nodes.title | nodes.TextElement)):
        if isinstance(node.parent, nodes.TextElement) or isinstance(node, nodes.comment):
            continue
        if isinstance(node, nodes.title):
            parts.append((heading, "\n\n".join(lines)))
            heading, lines = node.astext(), []
        lines.append(node.astext())
    parts.append((heading, "\n\n".join(lines)))
    first = next((heading for heading, _ in parts if heading), "")
    return _record(source, _sections(parts), first)


def read_email(source: Source, stream: IO[bytes]) -> dict[str, Any]:
    """The subject and body of a message; its attachments are left out."""
    message = email.message_from_binary_file(stream, policy=email.policy.default)
    assert isinstance(message, email.message.EmailMessage)
    body = message.get_body(("plain", "html"))
    text = "" if body is None else body.get_content()
    if body is not None and body.get_content_subtype() == "html":
        text = "\n\n".join(part for _, part in _page(text.encode())[1])
    named = {name: str(message[name]) for name in ("from", "to", "date") if message[name]}
    attached = [part.get_filename() or "unnamed" for part in message.iter_attachments()]
    metadata = named | ({"attachments": attached} if attached else {})
    subject = str(message["subject"] or "")
    return {**_record(source, [("", text)], subject), "metadata": metadata}


def _refuse_ole(source: Source, stream: IO[bytes]) -> None:
    start = stream.read(4)
    stream.seek(0)
    if start == _OLE:
        message = f"{source.name}: encrypted, or of the format of before 2007"
        raise DataError(message, "save it again, without a password")


def _row(cells: Any) -> str:
    kept = [" ".join(str(cell).split()) for cell in cells]
    return " | ".join(kept) if any(kept) else ""


def _sections(parts: list[Part]) -> list[Part]:
    return [(f"section={heading}" if heading else "", text) for heading, text in parts]


def _record(source: Source, parts: list[Part], title: str) -> dict[str, Any]:
    """Title, text and parts as (start, name); a file without a title has its name."""
    text, starts = "", []
    for name, part in parts:
        if not part.strip():
            continue
        text += "\n\n" if text else ""
        starts.append([len(text), name])
        text += part.strip()
    title = " ".join(title.split()) or PurePath(source.label).stem
    return {"title": title, "text": text, "parts": starts, "metadata": {}}


FORMATS: dict[str, Callable[[Source, IO[bytes]], dict[str, Any]]] = {
    "pdf": read_pdf,
    "docx": read_docx,
    "pptx": read_pptx,
    "xlsx": read_xlsx,
    "html": read_html,
    "epub": read_epub,
    "rst": read_rst,
    "email": read_email,
}
