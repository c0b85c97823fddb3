"""Documents that cannot be read, through the commands: exit 4 with each named, or skipped and
counted; nothing waits for a pipe that nobody writes to."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from clara_cli.cli.app import app

FAST = ["--device", "cpu", "--dtype", "float32"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a document, a pipe that nobody writes to, a picture and a hidden file; the
    user's cache is beside it."""
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "towns.md").write_text("Ann Lee is mayor of Elmgate.")
    (folder / "map.png").write_bytes(b"\x89PNG")
    (folder / ".draft.md").write_text("no")
    os.mkfifo(folder / "feed.jsonl")
    return folder


def run(capsys, *words):
    """(exit code, stdout, stderr) of a command line."""
    with pytest.raises(SystemExit) as left:
        app([str(word) for word in words])
    printed = capsys.readouterr()
    return left.value.code or 0, printed.out, printed.err


def test_compress_refuses_or_skips_and_counts(works, folder, tmp_path, capsys):
    words = ["compress", folder, "--model", works.e2e, "--out", tmp_path / "c.clara", *FAST]
    code, _, err = run(capsys, *words)
    assert code == 4 and f"{folder}/feed.jsonl: a named pipe, not a file" in err
    assert not (tmp_path / "c.clara" / "manifest.json").exists()
    code, out, err = run(capsys, *words, "--skip-bad", "--json")
    result = json.loads(out.splitlines()[-1])
    assert (code, result["documents"], result["skipped"]) == (0, 1, 1)
    assert result["left_out"] == {".png": 1, "hidden": 1}
    assert "skipped" in err and "feed.jsonl: a named pipe" in err
    code, out, _ = run(capsys, *words, "--skip-bad")
    assert "left out: 1 .png, 1 hidden" in out.splitlines()


def test_ask_refuses_or_skips_and_says_what_is_left_out(works, folder, capsys):
    words = ["ask", "Who is mayor of Elmgate?", folder, "--model", works.e2e, *FAST]
    words += ["--max-new-tokens", "2", "--json"]
    code, _, err = run(capsys, *words)
    assert code == 4 and "feed.jsonl: a named pipe, not a file" in err
    for _ in range(2):  # compressed, then found in the cache
        code, out, err = run(capsys, *words, "--skip-bad")
        assert code == 0 and json.loads(out)["sources"][0]["document_id"] == "towns.md"
        assert "feed.jsonl: a named pipe, not a file" in err
        assert "left out: 1 .png, 1 hidden" in err


def test_document_options_need_documents(works, capsys):
    words = ["ask", "Who?", "--corpus", works.corpus, *FAST]
    code, _, err = run(capsys, *words, "--skip-bad")
    assert code == 2 and "--skip-bad without documents" in err


@pytest.mark.usefixtures("no_waiting")
def test_no_command_waits_for_a_pipe(works, folder, tmp_path, capsys):
    feed = folder / "feed.jsonl"
    for name in ("recipe.toml", "questions.txt", "log.jsonl", "pairs.jsonl"):
        os.mkfifo(tmp_path / name)
    indexed = tmp_path / "indexed.clara"
    shutil.copytree(works.corpus, indexed)
    corpus = ["--corpus", works.corpus, *FAST]
    run_folder = ["--init", works.scp, "--out", tmp_path / "run", *FAST]
    for code, words in (
        (4, ["compress", feed, "--model", works.e2e, *FAST]),
        (4, ["ask", "-f", feed, *corpus]),
        (4, ["ask", "-f", tmp_path / "questions.txt", *corpus]),
        (4, ["index", indexed, "--queries", feed, *FAST]),
        (4, ["pretrain", feed, *run_folder]),
        (2, ["pretrain", works.pairs, *run_folder, "--recipe", tmp_path / "recipe.toml"]),
        (4, ["bench", "--dataset", feed, *corpus]),
        (2, ["ask", "Who?", "--log", tmp_path / "log.jsonl", *corpus]),
        (2, ["ask", "Who?", "--device-map", tmp_path / "questions.txt", *corpus[:2]]),
    ):
        left, _, err = run(capsys, *words)
        assert left == code and "a named pipe, not a file" in err, (words, err)


def test_a_source_names_the_page_it_is_from(works, tmp_path, monkeypatch, capsys):
    fpdf = pytest.importorskip("fpdf", reason="needs the extra dev")
    pytest.importorskip("pypdf", reason="needs the extra documents")
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    made = fpdf.FPDF()
    made.set_font("helvetica", size=12)
    for text in ("The river Ord is long. " * 20, "Ann Lee is mayor of Elmgate."):
        made.add_page()
        made.multi_cell(0, 8, text)
    made.output(str(tmp_path / "towns.pdf"))
    words = ["ask", "Who is mayor of Elmgate?", tmp_path / "towns.pdf", "--model", works.e2e, *FAST]
    code, out, _ = run(capsys, *words, "--max-new-tokens", "2", "--json")
    best = json.loads(out)["sources"][0]
    assert code == 0 and best["page"] == 2 and "line" not in best
    assert best["file"] == str(tmp_path / "towns.pdf")
    _, out, _ = run(capsys, *words, "--max-new-tokens", "2")
    assert "towns.pdf page 2" in " ".join(out.split())
