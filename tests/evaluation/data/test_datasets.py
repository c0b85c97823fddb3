"""Every form of file is told by its content; what is in none of them is an error that says so."""

from __future__ import annotations

import json
import lzma
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from clara_cli.errors import ArtefactError, ClaraError, DataError, UsageError
from clara_cli.evaluation.data.datasets import HUB, load

HOTPOT = {
    "_id": "h1",
    "question": "Which river?",
    "answer": "Dun",
    "context": [["Dun", ["The Dun is a river.", " It is short."]], ["Elm", ["A tree.", "Tall."]]],
    "supporting_facts": [["Dun", 0], ["Dun", 1]],
}
TWO_WIKI = {**HOTPOT, "evidences": [["Dun", "is", "river"]], "type": "comparison"}
HUB_HOTPOT = {
    **{"id": "h1", "question": "Which river?", "answer": "Dun"},
    "context": {"title": ["Dun", "Elm"], "sentences": [["The Dun is a river."], ["A tree."]]},
    "supporting_facts": {"title": ["Dun"], "sent_id": [0]},
}
MUSIQUE = {
    "id": "m1",
    "question": "Who?",
    "answer": "Ann",
    "answer_aliases": ["Anna"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "A", "paragraph_text": "Ann rules.", "is_supporting": True},
        {"idx": 1, "title": "B", "paragraph_text": "Bob sleeps.", "is_supporting": False},
    ],
}
QAS = [
    {"id": "s1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]},
    {"id": "s2", "question": "No?", "answers": [], "is_impossible": True},
]
ARTICLE = {"title": "New_Town", "paragraphs": [{"context": "Ann.", "qas": QAS}]}
SQUAD = {"version": "2.0", "data": [ARTICLE]}
SQUAD_ROW = {
    **{"id": "s1", "title": "New_Town", "context": "Ann.", "question": "Who?"},
    "answers": {"text": ["Ann", "Ann"], "answer_start": [0, 0]},
}
FLASHRAG = {"id": "f1", "question": "Who?", "golden_answers": ["Ann", "Anna"]}
FLASHRAG_POOL = {
    **{"id": "f2", "question": "Which river?", "golden_answers": ["Dun", "River Dun"]},
    "metadata": {
        "supporting_facts": {"title": ["Dun"], "sent_id": [0]},
        "context": {"title": ["Dun", "Elm"], "content": [["The Dun is a river."], ["A tree."]]},
    },
}
OWN = {
    "question": "Who?",
    "answers": ["Ann"],
    "paragraphs": [{"text": "x"}, {"text": "Ann rules.", "gold": True}],
    "context": "another key, ignored",
}
DOCS = {"question": "Who?", "answer": "Ann", "docs": ["x", "Ann rules."], "pos_index": [1]}
QA = {"id": "p1", "question": "Who?", "answers": ["Ann"]}
PASSAGE = {"title": "T", "text": "Ann.", "qas": [QA]}
ROOT = Path(__file__).parents[3]
TRIVIA = {"question_id": "t1", "question": "Who?", "answer": {"value": "Ann", "aliases": ["Anna"]}}
POPQA = {"id": 7, "question": "Who?", "possible_answers": '["Ann", "Anna"]'}


def put(path: Path, value: Any, how: str) -> Path:
    if how == "lines":
        path.write_text(json.dumps(value) + "\n")
    elif how == "xz":
        path.write_bytes(lzma.compress((json.dumps(value) + "\n").encode()))
    elif how == "array":
        path.write_text(json.dumps([value]))
    else:
        start, indent = ("\ufeff", 1) if how == "indented" else ("", None)
        path.write_text(start + json.dumps(value, indent=indent))
    return path


@pytest.mark.parametrize(
    ("record", "how", "form", "gold", "answers"),
    [
        (HOTPOT, "array", "hotpotqa", [True, False], ("Dun",)),
        (HOTPOT, "lines", "hotpotqa", [True, False], ("Dun",)),
        (TWO_WIKI, "array", "hotpotqa", [True, False], ("Dun",)),
        (HUB_HOTPOT, "lines", "hotpotqa", [True, False], ("Dun",)),
        (MUSIQUE, "lines", "musique", [True, False], ("Ann", "Anna")),
        (MUSIQUE, "xz", "musique", [True, False], ("Ann", "Anna")),
        (SQUAD, "whole", "squad", [True], ("Ann",)),
        (SQUAD, "indented", "squad", [True], ("Ann",)),
        (SQUAD_ROW, "lines", "squad-row", [True], ("Ann",)),
        (FLASHRAG, "lines", "open", [], ("Ann", "Anna")),
        (FLASHRAG_POOL, "lines", "flashrag", [True, False], ("Dun", "River Dun")),
        (FLASHRAG_POOL, "array", "flashrag", [True, False], ("Dun", "River Dun")),
        (OWN, "lines", "clara", [False, True], ("Ann",)),
        (DOCS, "lines", "clara", [False, True], ("Ann",)),
        (PASSAGE, "lines", "clara", [True], ("Ann",)),
        (TRIVIA, "lines", "triviaqa", [], ("Ann", "Anna")),
        (POPQA, "lines", "popqa", [], ("Ann", "Anna")),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "noend"])
def test_a_form_is_told_by_content(
    record: Any, how: str, form: str, gold: list[bool], answers: tuple[str, ...], name: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    found = load(str(put(tmp_path / name, record, how)))
    assert (found.form, len(found.questions)) == (form, 1)
    question = found.questions[0]
    assert [p.gold for p in question.pool] == gold
    assert question.answers == answers
    assert found.revision is not None and found.revision.startswith("sha256:")


NULL_IDS = {
    "musique": {**MUSIQUE, "id": None},
    "squad": {
        "data": [{**ARTICLE, "paragraphs": [{"context": "Ann.", "qas": [{**QAS[0], "id": None}]}]}]
    },
    "squad row": {**SQUAD_ROW, "id": None},
    "triviaqa": {**TRIVIA, "question_id": None},
    "popqa": {**POPQA, "id": None},
    "open": {**FLASHRAG, "id": None},
    "own": {**OWN, "id": None, "paragraphs": [{**p, "id": None} for p in OWN["paragraphs"]]},
    "passage": {**PASSAGE, "id": None, "qas": [{**QA, "id": None}]},
}


@pytest.mark.parametrize("form", NULL_IDS)
def test_an_id_of_null_is_none(form: str, tmp_path: Path) -> None:
    question = load(str(put(tmp_path / "q.jsonl", NULL_IDS[form], "whole"))).questions[0]
    assert question.id.startswith(str(tmp_path / "q.jsonl"))
    assert "None" not in [passage.id for passage in question.pool]


def test_sentences_are_joined_and_ids_are_positions(tmp_path: Path) -> None:
    question = load(str(put(tmp_path / "h.json", HOTPOT, "array"))).questions[0]
    assert (question.id, [p.id for p in question.pool]) == ("h1", ["0", "1"])
    assert [p.text for p in question.pool] == ["The Dun is a river. It is short.", "A tree. Tall."]


def beir(folder: Path, **changes: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    files = {
        "corpus.jsonl": '{"_id": "d1", "title": "T", "text": "A."}\n{"_id": "d2", "text": "B."}\n',
        "queries.jsonl": '{"_id": "q1", "text": "Who?"}\n{"_id": "q2", "text": "Unjudged?"}\n',
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n",
    }
    for name, text in {**files, **changes}.items():
        (folder / name).write_text(text)
    return folder


def test_a_beir_folder(tmp_path: Path) -> None:
    found = load(str(beir(tmp_path / "b")))
    assert (found.form, found.pooled, [q.id for q in found.questions]) == ("beir", False, ["q1"])
    assert [p.id for p in found.paragraphs] == ["d1", "d2"]
    assert [(p.id, p.gold) for p in found.questions[0].pool] == [("d1", True)]
    assert found.questions[0].answers == ()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"qrels/test.tsv": "q1\td1\n"}, "test.tsv"),
        ({"qrels/test.tsv": "q\td\ts\nq9\td1\t1\n"}, "no query is judged"),
        ({"corpus.jsonl": '{"_id": 3, "text": "x"}\n'}, "corpus.jsonl:1"),
    ],
)
def test_bad_beir_folders(files: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        load(str(beir(tmp_path / "b", **files)))


def test_a_flashrag_folder(tmp_path: Path) -> None:
    put(tmp_path / "dev.jsonl", FLASHRAG_POOL, "lines")
    put(tmp_path / "train.jsonl", FLASHRAG, "lines")
    found = load(str(tmp_path))
    assert (found.form, [q.id for q in found.questions]) == ("flashrag", ["f2"])
    assert [p.gold for p in found.questions[0].pool] == [True, False]
    assert "dev.jsonl" in found.notes[0]
    put(tmp_path / "test.jsonl", FLASHRAG, "lines")
    corpus = [{"id": 1, "contents": '"T"\nA.'}, {"id": "2", "contents": "B."}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(c) + "\n" for c in corpus))
    found = load(str(tmp_path))
    assert [(q.id, q.answers, q.pool) for q in found.questions] == [("f1", ("Ann", "Anna"), ())]
    assert [(p.id, p.text) for p in found.paragraphs] == [("1", '"T"\nA.'), ("2", "B.")]


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("test.jsonl", '{"question": "Who?"}', r"test\.jsonl:1: no golden_answers"),
        ("test.jsonl", '{"question": "Who?", "golden_answers": []}', r"test\.jsonl:1: no answer"),
        ("corpus.jsonl", '{"id": "1", "text": "x"}', r"corpus\.jsonl:1: .*contents"),
        ("corpus.jsonl", '{"id": 1, "contents": ""}\n{"id": "1", "contents": ""}', "comes twice"),
    ],
)
def test_bad_flashrag_folders(name: str, line: str, said: str, tmp_path: Path) -> None:
    put(tmp_path / "test.jsonl", FLASHRAG, "lines")
    (tmp_path / name).write_text(line + "\n")
    with pytest.raises(DataError, match=said):
        load(str(tmp_path))


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"without .*corpus\.jsonl") as caught:
        load(str(tmp_path))
    assert "BEIR" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a document"}\n', r"x\.jsonl:1: in no known form \(its keys: text\)"),
        ("[1, 2]", "record 0 is 1"),
        ("[]", "no records"),
        ('[{"question": "\\udc01"}]', r"record 0: question has the lone surrogate \\udc01"),
        ('{"question": "Who?", "answers": ["\\ud800"]}', r":1: answers has the lone surrogate"),
        ('{"a": \n', "neither JSON lines nor JSON"),
        ('[{"text": "a document"}]', "record 0: in no known form"),
        ('{"question": "Who?"}\n', r":1: no answer"),
        ('{"question": "Who?", "answers": []}\n', r":1: no answer"),
        (json.dumps(HOTPOT) + "\n" + json.dumps(FLASHRAG) + "\n", ":2: not a hotpotqa record"),
        (json.dumps({**HOTPOT, "context": [["Dun", "text"]]}), "no list of sentences"),
        (json.dumps({**MUSIQUE, "paragraphs": [{"paragraph_text": "x"}]}), "is_supporting is None"),
        (json.dumps({**HOTPOT, "possible_answers": ["x"]}), "looks like hotpotqa and like popqa"),
        (json.dumps({**POPQA, "possible_answers": "[Ann"}), "possible_answers is not JSON"),
    ],
)
def test_what_is_in_no_form_says_where_and_what_was_looked_for(
    content: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        load(str(path))
    assert caught.value.hint


def test_a_pool_in_an_unknown_form_is_said(tmp_path: Path) -> None:
    found = load(str(put(tmp_path / "x.jsonl", {**FLASHRAG, "ctxs": [{"text": "Ann"}]}, "lines")))
    assert "ctxs" in found.notes[0]


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no such name, file or folder") as caught:
        load("hotpot")
    assert "'hotpotqa'" in caught.value.hint


@pytest.mark.parametrize("name", HUB)
def test_names_without_network_are_one_clear_error(name: str) -> None:
    with pytest.raises(ArtefactError, match=f"dataset {name}") as caught:
        load(name)
    assert "give a file" in caught.value.hint


def test_a_name_is_read_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Rows(list):
        info = types.SimpleNamespace(
            download_checksums={"hf://datasets/hotpotqa/hotpot_qa@0123abcd/d/a.parquet": {}}
        )

    def load_dataset(*args: Any, **named: Any) -> Rows:
        asked.append((args, named))
        return Rows([HUB_HOTPOT])

    import datasets

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load("hotpotqa")
    assert asked == [(("hotpotqa/hotpot_qa", "distractor"), {"split": "validation"})]
    assert (found.revision, len(found.questions), found.form) == ("0123abcd", 1, "hotpotqa")


@pytest.mark.parametrize(
    ("file", "questions", "gold"),
    [
        ("multihop/hotpotqa_dev.jsonl.xz", 300, 600),
        ("multihop/musique_train.jsonl.xz", 100, 237),
        ("squad/dev.jsonl.xz", 5457, 5457),
    ],
)
def test_real_files(shared: Path, file: str, questions: int, gold: int) -> None:
    found = load(str(shared / "data" / file))
    assert len(found.questions) == questions
    assert sum(p.gold for q in found.questions for p in q.pool) == gold


def test_importing_loads_no_dataset_library() -> None:
    import subprocess

    code = "import sys, clara_cli.evaluation.data.datasets; print('datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_errors_are_of_the_kind_users_see(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x00\xff\x00")
    with pytest.raises(ClaraError):
        load(str(tmp_path / "x.bin"))
