"""The calibration of support: its figures by hand, and that nano's belongs to nano."""

from __future__ import annotations

import importlib
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clara_cli.answering import calibration as calibrating
from clara_cli.answering.support import MEMORY_SIGNALS, TEXT_SIGNALS, read_calibrations
from clara_cli.bundled import BUNDLED
from clara_cli.core.checkpoint import read_info

RECIPES = Path(__file__).parent.parent.parent / "recipes"


def module(folder: str, name: str):
    sys.path.insert(0, str(RECIPES / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RECIPES / folder))


recipe, controls = module("support", "calibrate"), module("nano", "support_data")
real_text = module("support", "real_text")


def test_nanos_calibration_is_of_its_memory_space():
    """After nano is made anew: python recipes/support/calibrate.py (see its head)."""
    info = read_info(BUNDLED["nano"])
    calibration = read_calibrations(BUNDLED["nano"], info.fingerprint)["memory"]
    certain = dict.fromkeys(TEXT_SIGNALS, 0.0) | {"facts": 1.0, "asked": 1.0}
    nothing = dict.fromkeys(TEXT_SIGNALS, 0.0)
    assert calibration.judge(certain)[0] > calibration.judge(nothing)[0]
    memory = dict.fromkeys(MEMORY_SIGNALS, 0.0)
    assert 0 < calibration.judge(memory)[0] < 1


def test_figures_by_hand():
    p_N, y_N = torch.tensor([0.9, 0.8, 0.3, 0.3]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert calibrating.auroc(p_N, y_N) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert calibrating.precision(p_N, y_N, 0.5) == 0.5 and calibrating.recall(p_N, y_N, 0.5) == 0.5
    assert calibrating.ece(p_N, y_N) == pytest.approx(0.25 * 0.1 + 0.25 * 0.8 + 0.5 * 0.2)
    assert calibrating.f1(p_N >= 0.5, y_N) == 0.5


def test_the_fit_finds_the_signal_that_tells():
    rng, rows = random.Random(0), []
    for number in range(400):
        right = number % 2 == 0
        signals = {name: rng.gauss(0, 1) for name in TEXT_SIGNALS}
        signals["facts"] += 3 * right
        rows.append(calibrating.Case(str(number), False, right, signals, 0.5))
    train = [row for row in rows if calibrating.first_half(row.question)]
    test = [row for row in rows if not calibrating.first_half(row.question)]
    assert 150 < len(train) < 250
    fitted = calibrating.fit(train, TEXT_SIGNALS)
    weights = {name: abs(w) for name, w in fitted["weights"].items()}
    assert max(weights, key=weights.get) == "facts"
    figures = calibrating.measure(calibrating.scores(fitted, test), test, fitted["threshold"], 0)
    assert figures["auroc"][0] > 0.95 and figures["ece"][0] < 0.1
    assert figures["auroc"][1] <= figures["auroc"][0] <= figures["auroc"][2]


def test_the_curve_trades_precision_for_recall():
    p_N = torch.tensor([0.95, 0.85, 0.35, 0.05])
    rights = (True, False, True, False)
    rows = [calibrating.Case(str(n), False, right, {}, 0.5) for n, right in enumerate(rights)]
    curve = {point["threshold"]: point for point in calibrating.curve(p_N, rows)}
    assert [curve[t]["said"] for t in (0.1, 0.4, 0.9)] == [3, 2, 1]
    assert [curve[t]["precision"][0] for t in (0.1, 0.4, 0.9)] == [0.667, 0.5, 1.0]
    assert [curve[t]["recall"][0] for t in (0.1, 0.4, 0.9)] == [1.0, 0.5, 0.5]
    assert calibrating.share(21, 21) == [1.0, 0.845, 1.0] and calibrating.share(0, 0) is None


def test_controls_are_held_out_and_the_same_each_time(tmp_path):
    made = list(controls.invented(12, 0))
    assert made == list(controls.invented(12, 0)) != list(controls.invented(12, 1))
    for document, asked in made:
        assert asked["gold"] == [document["id"]] and asked["answers"][0] in document["text"]
    file = tmp_path / "dev.jsonl"
    record = {"title": "T", "text": "x", "qas": [{"question": "q", "answers": ["x"]}]}
    file.write_text((json.dumps(record) + "\n") * 7)
    assert [asked is not None for _, asked in controls.squad(file)] == [
        *(True, False, False, False, False, True, False)
    ]


# --- on files of questions with their passages ---


def invented_file(file: Path, count: int, seed: int) -> Path:
    """Passages of the invented world, a question each, as `clara bench --dataset` reads them."""
    records = (
        {"title": document["title"], "text": document["text"], "qas": [question]}
        for document, question in controls.invented(count, seed)
    )
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def real_text_table(monkeypatch, capsys, *words) -> dict[str, list[str]]:
    """The script's table, cells by the name of the row."""
    monkeypatch.setattr(sys, "argv", ["real_text.py", *map(str, words)])
    real_text.main()
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}


def test_a_file_is_calibrated_on_and_others_measured_by_one_command(tmp_path, monkeypatch, capsys):
    fitted, unseen = (invented_file(tmp_path / f"{n}.jsonl", 16, n) for n in (1, 2))
    out, keep = tmp_path / "support.json", tmp_path / "keep"
    words = ["--fit", fitted, "--measure", unseen, "--questions", "14", "--top-k", "1"]
    words += ["--out", out, "--keep", keep]
    table = real_text_table(monkeypatch, capsys, *words)
    assert list(table) == ["text", "memory", "words alone", "text, 2", "text, 2, found alone"]
    assert table["text, 2"][0].startswith("28 (") and table["text, 2, found alone"][0][:4] == "14 ("
    info = read_info(BUNDLED["nano"])
    assert set(read_calibrations(tmp_path, info.fingerprint)) == {"memory"}
    monkeypatch.setattr(real_text, "judged", None)  # all answers are kept: none is made again
    assert real_text_table(monkeypatch, capsys, *words) == table
    with pytest.raises(SystemExit, match="is of other settings"):
        real_text_table(monkeypatch, capsys, *words, "--seed", "1")


def test_what_was_trained_on_is_not_measured(tmp_path):
    file = invented_file(tmp_path / "a.jsonl", 6, 0)
    known = tmp_path / "train.jsonl"
    lines = file.read_text().splitlines()
    pool = {"paragraphs": [json.loads(lines[4])], "qas": []}
    known.write_text(f"{lines[1]}\n{json.dumps(pool)}\n")
    questions = real_text.datasets.load(str(file)).questions
    drawn = real_text.drawn(questions, 9, real_text.trained_on([known]), 0)
    assert drawn == [0, 2, 3, 5]
    assert real_text.drawn(questions, 2, set(), 0) == real_text.drawn(questions, 2, set(), 0)


def test_a_checkpoint_without_a_calibration_says_so(monkeypatch):
    loaded = SimpleNamespace(name="smol", path=BUNDLED["smol"], info=read_info(BUNDLED["smol"]))
    monkeypatch.setattr(real_text, "read_calibrations", lambda *names: {})
    with pytest.raises(SystemExit, match="no calibration of answers read from text: give --fit"):
        real_text.own_figures(loaded, "text", {}, 0)
