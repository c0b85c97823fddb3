"""Which systems there are, what each needs, and how `--system` names them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from clara_cli.cli import app
from clara_cli.errors import UsageError
from clara_cli.evaluation.rivals import registry
from clara_cli.evaluation.rivals.build import OPENERS
from clara_cli.evaluation.rivals.registry import SYSTEMS, parse_systems

STATES = {"runs here", "needs an extra", "needs weights", "reported only"}
ISSUED = {
    *["server", "text+dense", "text+rerank", "text+hybrid", "llmlingua2", "recomp-extractive"],
    *[
        "recomp-abstractive",
        "provence",
        "released-clara",
        "pisco",
        "oscar",
        "cocom",
        "xrag",
        "lclm",
    ],
    *["comprexit", "arc-encoder", "latent-memory", "autocompressor", "pcc", "self-rag", "chatqa"],
    *["retrobust", "rankzephyr", "gritlm", "rag-ddr", "dro", "genground", "dpa-rag"],
}


def test_every_system_of_the_paper_and_the_new_ones_are_listed_with_a_state() -> None:
    said = CliRunner().invoke(app.app, ["bench", "--list-systems", "--json"])
    assert said.exit_code == 0, said.output
    rows = {row["name"].partition("=")[0]: row for row in json.loads(said.stdout)["systems"]}
    assert ISSUED | {"clara", "sup", "scp", "closed-book", "text", "text+bm25"} <= set(rows)
    assert {row["state"] for row in rows.values()} <= STATES
    assert all(row["licence"] and row["why"] for row in rows.values())
    for name in ("clara", "text", "server"):
        assert (rows[name]["state"], rows[name]["needs"]) == ("runs here", "")
    assert {n for n, row in rows.items() if row["state"] == "reported only"} == {
        info.name for info in SYSTEMS if info.kind == "reported"
    }


def test_the_table_shows_every_row_in_a_terminals_width() -> None:
    said = CliRunner().invoke(app.app, ["bench", "--list-systems"])
    assert max(map(len, said.stdout.splitlines())) <= 100
    for info in SYSTEMS:
        assert any(line.startswith(info.name) for line in said.stdout.splitlines()), info.name


def test_a_missing_package_is_an_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    rows = {row.name: row for row in registry.states()}
    assert (rows["llmlingua2"].state, rows["text+dense"].state) == ("needs an extra",) * 2
    assert "[rivals]" in rows["llmlingua2"].needs


def test_weights_in_the_hubs_cache_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_in_cache", lambda repository: "bge" in repository)
    rows = {row.name: row.state for row in registry.states()}
    assert (rows["text+rerank"], rows["chatqa"]) == ("runs here", "needs weights")


def test_every_rival_that_can_be_named_can_be_opened() -> None:
    named = {info.name for info in SYSTEMS if info.kind not in ("own", "reported")}
    assert set(OPENERS) == named


def test_rows_are_named_after_their_model() -> None:
    text = "server=org/tiny@http://a:1/v1,server=other/tiny@https://b/v1,text+dense=x/bge-base,text"
    specs = parse_systems(text)
    labels = ["server=tiny", "server=tiny#2", "text+dense=bge-base", "text"]
    assert [spec.label for spec in specs] == labels
    assert specs[0].server == ("org/tiny", "http://a:1/v1")
    assert [spec.identity for spec in specs[:1]] == ["server=org/tiny"]
    assert all("/" not in spec.label for spec in specs)  # a slash parts a control from its system


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("dro", "reported only", "--published"),
        ("server", "of which MODEL@URL", "server=MODEL@http"),
        ("server=http://a", "no model and address", "server=MODEL@http"),
        ("pisco", "of which DIR", "recipes/rivals"),
        ("text=x", "not what it takes", "write text"),
        ("text+dense=", "not what it takes", "text+dense=ID"),
        ("text+dens", "no such system", "text+dense"),
        ("text,,text", "--system is", "commas"),
    ],
)
def test_refused(text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_systems(text)
    assert said in caught.value.message and hint in caught.value.hint
