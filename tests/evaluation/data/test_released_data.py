"""Data as its authors release it: read by content, and scored as they would score it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.mayors import MAYORS, sentence, write

from clara_cli.bench_records import BenchResult
from clara_cli.commands import bench, compress
from clara_cli.config import BenchConfig, CompressConfig
from clara_cli.errors import DataError
from clara_cli.evaluation.data.datasets import load
from clara_cli.records import GoldName

Bench = Callable[..., tuple[BenchResult, dict[str, dict[str, Any]]]]


@pytest.fixture
def measured(checkpoint: Path, tmp_path: Path, report: Any) -> Bench:
    """(result, the line of each (system, question)) of a small bench run."""

    def run(dataset: Path, **changes: Any) -> Any:
        settings = {"model": str(checkpoint), "device": "cpu", "dtype": "float32"}
        settings |= {"system": "text+bm25", "max_new_tokens": 2, "out": tmp_path / "report"}
        done = bench.run(BenchConfig(dataset=str(dataset), **{**settings, **changes}), report)
        assert isinstance(done, BenchResult) and done.predictions is not None
        lines = map(json.loads, Path(done.predictions).read_text().splitlines())
        return done, {f"{line['system']} {line['id']}": line for line in lines}

    return run


@pytest.fixture
def compressed(checkpoint: Path, tmp_path: Path, report: Any) -> Callable[..., Path]:
    """A corpus of documents, compressed at ratio 16."""

    def run(documents: Path, **more: Any) -> Path:
        out = tmp_path / "documents.clara"
        machine = {"device": "cpu", "dtype": "float32", "model": str(checkpoint)}
        compress.run(CompressConfig(inputs=(str(documents),), out=out, **machine, **more), report)
        return out

    return run


def beir(folder: Path, passages: list[dict[str, str]], queries: dict[str, str], qrels: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", passages)
    write(folder / "queries.jsonl", [{"_id": key, "text": q} for key, q in queries.items()])
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}")
    return folder


# --- queries that stand in the corpus ---

ARGUMENT = "We should ban cars because cars are loud and dirty."
COUNTER = {"_id": "con1b", "title": "", "text": "Cars should stay: cars are quiet and clean."}


@pytest.mark.parametrize("setting", ["normal", "corpus"])
@pytest.mark.parametrize("system", ["text+bm25", "clara", "text"])
def test_a_query_is_not_given_its_own_passage(
    setting: str, system: str, measured: Bench, tmp_path: Path
) -> None:
    """As in ArguAna: the counter-argument is second to the argument itself, by words."""
    own = {"_id": "con1", "title": "cars", "text": f"We should  ban\ncars{ARGUMENT[18:]}"}
    folder = beir(tmp_path / "b", [own, COUNTER], {"con1": ARGUMENT}, "con1\tcon1b\t1\n")
    done, lines = measured(folder, setting=setting, system=system)
    assert lines[f"{system} con1"]["hits"] == ["con1b"]
    assert done.systems[0].recall["1"] == 1


def test_the_note_says_how_many_queries_stand_in_the_corpus(tmp_path: Path) -> None:
    own = {"_id": "con1", "title": "", "text": ARGUMENT}
    folder = beir(tmp_path / "b", [own, COUNTER], {"con1": ARGUMENT}, "con1\tcon1b\t1\n")
    found = load(str(folder))
    assert [q.own_passage for q in found.questions] == ["con1"]
    assert any("1 queries stand in it under their own id" in note for note in found.notes)


def test_a_title_may_stand_in_the_query(tmp_path: Path) -> None:
    own = {"_id": "q7", "title": "Is  tea", "text": "healthy for cats?"}
    other = {"_id": "q8", "title": "", "text": "Can cats drink tea?"}
    query = {"q7": "Is tea healthy for cats?"}
    found = load(str(beir(tmp_path / "b", [own, other], query, "q7\tq8\t1\n")))
    assert found.questions[0].own_passage == "q7"


def test_a_passage_that_shares_only_the_id_stays(measured: Bench, tmp_path: Path) -> None:
    """As in sets whose queries and passages are numbered apart: passage 1 is query 1's gold."""
    passages = [{"_id": "1", "title": "", "text": sentence("Elmgate", "Nora Velden")}, COUNTER]
    query = {"1": "Who is mayor of Elmgate?"}
    folder = beir(tmp_path / "b", passages, query, "1\t1\t1\n")
    notes = load(str(folder)).notes
    assert any("BEIR's own evaluator would drop it" in note for note in notes)
    done, lines = measured(folder, setting="corpus")
    assert (lines["text+bm25 1"]["hits"][0], done.systems[0].recall["1"]) == ("1", 1)


@pytest.mark.parametrize("system", ["text+bm25", "clara"])
def test_a_copy_of_the_query_under_another_id_is_found(
    system: str, measured: Bench, tmp_path: Path
) -> None:
    """As in Quora: the duplicate with the very same words is the gold passage."""
    passages = [
        {"_id": "a", "title": "", "text": "How do bees make honey?"},
        {"_id": "b", "title": "", "text": "How do bees make honey?"},
        {"_id": "c", "title": "", "text": "Where is Elmgate?"},
    ]
    query = {"a": "How do bees make honey?"}
    folder = beir(tmp_path / "b", passages, query, "a\tb\t1\n")
    done, lines = measured(folder, setting="corpus", system=system, top_k=1)
    assert lines[f"{system} a"]["hits"] == ["b"]
    assert done.systems[0].recall["1"] == 1


def test_a_stored_corpus_leaves_the_query_out_too(
    measured: Bench, compressed: Callable[..., Path], tmp_path: Path
) -> None:
    own = {"_id": "con1", "title": "", "text": ARGUMENT}
    folder = beir(tmp_path / "b", [own, COUNTER], {"con1": ARGUMENT}, "con1\tcon1b\t1\n")
    corpus = compressed(folder / "corpus.jsonl")
    for system in ("text+bm25", "clara"):
        more = {"setting": "corpus", "corpus": corpus, "system": system}
        done, lines = measured(folder, **more, out=tmp_path / system)
        assert lines[f"{system} con1"]["hits"] == lines[f"{system} con1"]["gold"]
        assert done.systems[0].recall["1"] == 1


# --- gold that is not there ---


def test_a_judged_passage_the_corpus_lacks_counts_as_not_found(
    measured: Bench, shared: Path
) -> None:
    folder = shared / "cases" / "beir-missing-doc"
    (note,) = load(str(folder)).notes
    assert "1 judged passages are not in corpus.jsonl; they count as not found" in note
    done, lines = measured(folder, setting="corpus")
    assert {key: line["gold"] for key, line in lines.items()} == {
        "text+bm25 q1": ["x1"],
        "text+bm25 q2": ["x2", "gone"],
    }
    assert (done.systems[0].recall["1"], done.systems[0].recall["5"]) == (0.75, 0.75)


def test_a_query_whose_gold_is_all_gone_scores_nothing(measured: Bench, tmp_path: Path) -> None:
    queries = {"q1": "Who is mayor?", "q2": "Why cars?"}
    folder = beir(tmp_path / "b", [COUNTER], queries, "q1\tgone\t1\nq2\tcon1b\t2\n")
    for setting in ("normal", "gold"):
        done, _ = measured(folder, setting=setting, out=tmp_path / setting)
        assert done.systems[0].recall["5"] == 0.5


def test_full_wiki_hotpotqa_keeps_the_gold_that_is_not_among_the_ten(
    measured: Bench, shared: Path
) -> None:
    file = shared / "cases" / "hotpot-fullwiki" / "dev_fullwiki.json"
    (note,) = load(str(file)).notes
    assert "1 gold paragraphs are not among those their question comes with" in note
    done, lines = measured(file, setting="oracle", system="text")
    assert lines["text a2"]["gold"] == ["title:Pinewick"]
    assert lines["text a2"]["hits"] == ["0", "1"]
    assert done.systems[0].recall == {"1": 0.5, "3": 0.5, "5": 0.5}


def test_a_full_wiki_question_of_two_titles_reaches_half(measured: Bench, tmp_path: Path) -> None:
    record = {
        "_id": "a3",
        "question": "Who is mayor of Elmgate, sister town of Pinewick?",
        "answer": "Nora Velden",
        "supporting_facts": [["Elmgate", 0], ["Pinewick", 0], ["Pinewick", 1]],
        "context": [["Elmgate", [sentence("Elmgate", "Nora Velden")]]],
    }
    file = tmp_path / "dev_fullwiki.json"
    file.write_text(json.dumps([record]))
    done, lines = measured(file)
    assert lines["text+bm25 a3"]["gold"] == ["0", "title:Pinewick"]
    assert (done.systems[0].recall["1"], done.systems[0].recall["5"]) == (0.5, 0.5)


def test_gold_that_another_questions_pool_has_can_be_found(measured: Bench, tmp_path: Path) -> None:
    def record(key: str, asked: int, shown: int) -> dict[str, Any]:
        town, name = MAYORS[asked]
        context = [[MAYORS[shown][0], [sentence(*MAYORS[shown])]]]
        question = {"_id": key, "question": f"Who is mayor of {town}?", "answer": name}
        return {**question, "supporting_facts": [[town, 0]], "context": context}

    file = tmp_path / "dev_fullwiki.json"
    file.write_text(json.dumps([record("a", 0, 1), record("b", 1, 0)]))
    done, _ = measured(file, setting="normal")
    assert done.systems[0].recall["1"] == 1
    done, _ = measured(file, setting="oracle", out=file.parent / "oracle")
    assert done.systems[0].recall["1"] == 0


def test_a_context_of_nothing_is_read_and_answered_from_nothing(
    measured: Bench, shared: Path, tmp_path: Path
) -> None:
    file = shared / "cases" / "hotpot-fullwiki" / "empty_context.json"
    for setting in ("oracle", "gold"):
        more = {"system": "clara,text", "out": tmp_path / setting}
        done, lines = measured(file, setting=setting, **more)
        assert [line["hits"] for line in lines.values()] == [[], []]
        assert [card.recall["1"] for card in done.systems] == [0, 0]


# --- gold named by its page ---


def test_kilt_lines_are_questions(shared: Path) -> None:
    (question,) = load(str(shared / "cases" / "kilt" / "nq-dev-kilt.jsonl")).questions
    assert (question.id, question.question) == ("k1", "Who is mayor of Elmgate?")
    assert (question.answers, question.pool) == (("Nora Velden",), ())
    assert question.named_gold == (GoldName("1", "Elmgate"),)


def test_kilt_is_scored_on_a_corpus_by_the_pages_it_names(
    measured: Bench, compressed: Callable[..., Path], shared: Path, tmp_path: Path
) -> None:
    file = shared / "cases" / "kilt" / "nq-dev-kilt.jsonl"
    towns = [{"title": town, "text": sentence(town, name)} for town, name in MAYORS]
    corpus = compressed(write(tmp_path / "towns.jsonl", towns))
    done, lines = measured(file, setting="corpus", corpus=corpus)
    (gold,) = lines["text+bm25 k1"]["gold"]
    assert gold.startswith("towns.jsonl#")
    assert done.systems[0].recall["1"] == 1
    with pytest.raises(DataError, match="'k1' has no paragraphs") as caught:
        measured(file, setting="oracle", out=tmp_path / "oracle")
    assert "--setting corpus, and give --corpus" in caught.value.hint


def test_a_page_in_several_passages_counts_once(
    measured: Bench, compressed: Callable[..., Path], shared: Path, tmp_path: Path
) -> None:
    """A collection in passages of a hundred words, as DPR's: several ids a page."""
    rows = ["id\ttext\ttitle", "1\tElmgate is old.\tElmgate"]
    rows += ["2\tWho is mayor of Elmgate? Nora Velden.\tElmgate", "3\tMayor: Max.\tQuarrel"]
    (tmp_path / "psgs.tsv").write_text("\n".join(rows) + "\n")
    file = shared / "cases" / "kilt" / "nq-dev-kilt.jsonl"
    done, lines = measured(file, setting="corpus", corpus=compressed(tmp_path / "psgs.tsv"))
    assert lines["text+bm25 k1"]["gold"] == ["Elmgate"]
    assert lines["text+bm25 k1"]["hits"] == ["Elmgate", "Quarrel"]
    assert done.systems[0].recall["1"] == 1


def test_kilt_pages_are_found_by_their_wikipedia_id(
    measured: Bench, compressed: Callable[..., Path], tmp_path: Path
) -> None:
    output = [
        {"answer": "Una Holt", "provenance": [{"wikipedia_id": "77", "title": "Pine_wick"}]},
        {"answer": "Una Holt", "provenance": [{"wikipedia_id": "99", "title": "Elsewhere"}]},
    ]
    file = write(tmp_path / "k.jsonl", [{"id": "k2", "input": "Pinewick mayor", "output": output}])
    documents = [{"id": "77", "text": sentence("Pinewick", "Una Holt")}, {"id": "5", "text": "No."}]
    corpus = compressed(write(tmp_path / "d.jsonl", documents))
    done, lines = measured(file, setting="corpus", corpus=corpus)
    assert lines["text+bm25 k2"]["gold"] == ["77", "title:Elsewhere"]
    assert done.systems[0].recall["5"] == 0.5


def test_gold_may_be_a_list_of_document_ids(
    measured: Bench, compressed: Callable[..., Path], tmp_path: Path
) -> None:
    """As in the sample's questions."""
    documents = [{"id": f"d{n}", "text": sentence(*mayor)} for n, mayor in enumerate(MAYORS)]
    question = {"id": "q", "question": "Who is mayor of Quarrel?", "answers": ["Max Orme"]}
    file = write(tmp_path / "q.jsonl", [{**question, "gold": ["d3", "d99"]}])
    corpus = compressed(write(tmp_path / "d.jsonl", documents))
    done, lines = measured(file, setting="corpus", corpus=corpus)
    assert lines["text+bm25 q"]["gold"] == ["d3", "d99"]
    assert done.systems[0].recall["1"] == 0.5


def test_gold_ids_may_name_the_questions_own_paragraphs(tmp_path: Path) -> None:
    record = {"question": "Who?", "answer": "Ann", "gold": ["b"]}
    record["paragraphs"] = [{"id": "a", "text": "No."}, {"id": "b", "text": "Ann."}]
    (question,) = load(str(write(tmp_path / "q.jsonl", [record]))).questions
    assert ([p.gold for p in question.pool], question.named_gold) == ([False, True], ())
    (other,) = load(str(write(tmp_path / "o.jsonl", [{**record, "gold": "Ann"}]))).questions
    assert [p.gold for p in other.pool] == [False, False]


# --- answers without passages ---


@pytest.mark.parametrize("name", ["unfiltered-web-dev.json", "array.json"])
def test_triviaqa_as_its_authors_give_it(name: str, shared: Path) -> None:
    found = load(str(shared / "cases" / "triviaqa-official" / name))
    (question,) = found.questions
    assert (found.form, question.id) == ("triviaqa-official", "tc_1")
    assert question.question == "Who is mayor of Elmgate?"
    assert question.answers[0] == "Nora Velden"
    assert set(question.answers) <= {"Nora Velden", "N. Velden"}


def test_triviaqa_takes_what_people_answered(
    measured: Bench, compressed: Callable[..., Path], tmp_path: Path
) -> None:
    answer = {"Value": "Nora Velden", "Aliases": [], "HumanAnswers": ["Mayor Velden"]}
    record = {"Question": "Who is mayor of Elmgate?", "QuestionId": "t", "Answer": answer}
    file = tmp_path / "wikipedia-dev.json"
    file.write_text(json.dumps({"Data": [record], "Domain": "Wikipedia", "Version": 1.0}, indent=1))
    assert load(str(file)).questions[0].answers == ("Nora Velden", "Mayor Velden")
    documents = [{"title": town, "text": sentence(town, name)} for town, name in MAYORS]
    corpus = compressed(write(tmp_path / "d.jsonl", documents))
    done, lines = measured(file, setting="corpus", corpus=corpus)
    assert lines["text+bm25 t"]["hits"][0].startswith("d.jsonl#")
    assert done.systems[0].recall == {"1": None, "3": None, "5": None}  # nobody judged passages


def test_the_evidence_triviaqa_names_is_found_in_its_folder_or_by_title(
    measured: Bench, compressed: Callable[..., Path], tmp_path: Path
) -> None:
    """The filtered files name documents that hold an answer; compressed, they keep their names."""
    folder = tmp_path / "evidence" / "wikipedia"
    folder.mkdir(parents=True)
    for town, name in MAYORS:
        (folder / f"{town}_(town).txt").write_text(sentence(town, name))
    pages = [
        {"DocSource": "TagMe", "Filename": "Elmgate_(town).txt", "Title": "Elmgate (town)"},
        {"DocSource": "Search", "Filename": "Elsewhere.txt", "Title": "Elsewhere"},
    ]
    answer = {"Value": "Nora Velden", "Aliases": ["N. Velden"]}
    record = {"Question": "Who is mayor of Elmgate?", "QuestionId": "t", "Answer": answer}
    whole = {"Data": [{**record, "EntityPages": pages}], "Domain": "Wikipedia", "Version": 1.0}
    file = tmp_path / "wikipedia-dev.json"
    file.write_text(json.dumps(whole))
    more = {"setting": "corpus", "corpus": compressed(folder)}
    done, lines = measured(file, **more)
    assert lines["text+bm25 t"]["gold"] == ["Elmgate_(town).txt", "title:Elsewhere"]
    assert done.systems[0].recall["1"] == 0.5
    file.write_text(json.dumps({**whole, "Domain": "unfiltered-web"}))
    assert load(str(file)).questions[0].named_gold == ()


def test_the_test_files_without_answers_say_so(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    first = {"Question": "Who?", "QuestionId": "a", "Answer": {"Value": "Ann"}}
    file.write_text(json.dumps({"Data": [first, {**first, "Answer": None}]}))
    with pytest.raises(DataError, match="record 1: no Answer: the test files come without"):
        load(str(file))


# --- DPR and FiD ---

PLAIN = ("who is mayor of elmgate", ("Nora Velden",))


def test_dpr_training_files_have_gold_and_other_passages(
    measured: Bench, shared: Path, tmp_path: Path
) -> None:
    found = load(str(shared / "cases" / "dpr" / "nq-dev.json"))
    (question,) = found.questions
    assert (found.form, question.question, question.answers) == ("dpr", *PLAIN)
    assert [(p.id, p.title, p.gold) for p in question.pool] == [("1", "Elmgate", True)]
    others = [{"title": t, "text": sentence(t, n), "psg_id": str(i)} for i, (t, n) in
              enumerate(MAYORS[1:4], 7)]  # fmt: skip
    gold = {"title": "Elmgate", "text": sentence("Elmgate", "Nora Velden"), "psg_id": "6"}
    record = {"question": PLAIN[0], "answers": list(PLAIN[1]), "positive_ctxs": [gold, gold]}
    record |= {"negative_ctxs": others[:1], "hard_negative_ctxs": others[1:]}
    file = tmp_path / "dev.json"
    file.write_text(json.dumps([record]))
    done, lines = measured(file, setting="oracle", system="text+bm25,text")
    assert lines["text+bm25 " + load(str(file)).questions[0].id]["gold"] == ["6"]
    assert done.systems[0].recall["1"] == 1
    order = lines["text " + load(str(file)).questions[0].id]["hits"]
    assert sorted(order) == ["6", "7", "8", "9"]
    record["positive_ctxs"], record["negative_ctxs"] = others[:1], [gold]
    file.write_text(json.dumps([record]))
    assert [p.id for p in load(str(file)).questions[0].pool] == order  # whoever is gold


def test_fid_passages_keep_their_order(measured: Bench, shared: Path, tmp_path: Path) -> None:
    found = load(str(shared / "cases" / "dpr" / "fid.json"))
    (question,) = found.questions
    assert (found.form, question.id, question.answers) == ("fid", "0", PLAIN[1])
    assert [(p.id, p.title, p.gold) for p in question.pool] == [("1", "Elmgate", False)]
    ctxs = [{"id": str(n), "title": t, "text": sentence(t, name), "has_answer": n == 2}
            for n, (t, name) in enumerate(MAYORS[:3])]  # fmt: skip
    records = [
        {"id": "f1", "question": "pinewick mayor", "answers": ["Una Holt"], "ctxs": ctxs},
        {"id": "f2", "question": "pinewick mayor", "answers": ["Una Holt"], "ctxs": []},
    ]
    done, lines = measured(write(tmp_path / "fid.jsonl", records), system="text,text+bm25")
    assert lines["text f1"]["hits"] == ["0", "1", "2"]
    assert lines["text f2"]["hits"] == []
    assert [card.recall["1"] for card in done.systems] == [0, 1]


def test_contexts_without_ids_of_their_own_have_positions(tmp_path: Path) -> None:
    ctxs = [{"title": "A", "text": "x"}, {"title": "B", "text": "y", "id": None}]
    record = {"question": "Who?", "answers": ["Ann"], "ctxs": ctxs}
    (question,) = load(str(write(tmp_path / "f.jsonl", [record]))).questions
    assert [p.id for p in question.pool] == ["0", "1"]


def test_an_array_of_plain_questions(shared: Path) -> None:
    found = load(str(shared / "cases" / "dpr" / "plain_array.json"))
    assert [(q.question, q.answers) for q in found.questions] == [PLAIN]


def test_an_array_of_our_own_form(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    paragraphs = [{"text": "Ann.", "gold": True}]
    file.write_text(json.dumps([{"question": "Who?", "answer": "Ann", "paragraphs": paragraphs}]))
    found = load(str(file))
    assert (found.form, found.questions[0].pool[0].gold) == ("clara", True)


# --- tab-separated ---


def test_dpr_questions_with_lists_of_answers(shared: Path, tmp_path: Path) -> None:
    found = load(str(shared / "cases" / "dpr" / "nq-test.qa.csv"))
    assert [(q.question, q.answers) for q in found.questions] == [PLAIN]
    file = tmp_path / "trivia-dev.qa.csv"
    file.write_text('who wrote it\t"[""Pat O\'Neil"", \'P. O.\']"\nwhere\t[\'Elmgate\']\n')
    assert [q.answers for q in load(str(file)).questions] == [("Pat O'Neil", "P. O."), ("Elmgate",)]
    file.write_text("who\t['Ann']\nwhere\tElmgate\n")
    with pytest.raises(DataError, match=r"csv:2: 'where\\tElmgate', wanted a question"):
        load(str(file))


def test_ms_marco_questions_are_scored_by_the_judgements_beside_them(
    measured: Bench, compressed: Callable[..., Path], tmp_path: Path
) -> None:
    collection = [f"{n}\t{sentence(*mayor)}" for n, mayor in enumerate(MAYORS)]
    (tmp_path / "collection.tsv").write_text("\n".join(collection) + "\n")
    queries = 'q1\twho is mayor of quarrel\nq2\t"redwater" mayor\nq9\tunjudged\n'
    (tmp_path / "queries.dev.small.tsv").write_text(queries)
    (tmp_path / "qrels.dev.small.tsv").write_text("q1\t0\t3\t1\nq2\t0\t4\t1\nq2\t0\t99\t1\n")
    asked = [question.question for question in load(str(tmp_path)).questions]
    assert asked == ["who is mayor of quarrel", '"redwater" mayor']
    corpus = compressed(tmp_path / "collection.tsv")
    for dataset, more in ((tmp_path, {}), (tmp_path / "queries.dev.small.tsv", {"corpus": corpus})):
        out = tmp_path / f"report{len(more)}"
        done, lines = measured(dataset, setting="corpus", out=out, **more)
        assert lines["text+bm25 q2"]["gold"] == ["4", "99"]
        assert done.systems[0].recall["1"] == 0.75
        assert done.systems[0].f1 is None
    (tmp_path / "qrels.dev.small.tsv").unlink()
    (note,) = load(str(tmp_path / "queries.dev.small.tsv")).notes
    assert "no qrels beside it" in note


def test_a_collection_is_no_set_of_questions(shared: Path) -> None:
    with pytest.raises(DataError, match=r"documents \(columns id, text, title\), not questions"):
        load(str(shared / "cases" / "dpr" / "psgs_w100.tsv"))
