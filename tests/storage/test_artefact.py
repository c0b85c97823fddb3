"""JSON artefacts: every wrong value is one text that names file, key and value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.errors import ArtefactError
from clara_cli.storage import artefact
from clara_cli.storage.artefact import Fields

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
HUGE = 10**4000

WRONG = {
    "missing": ({}, lambda f: f.get("k", int), "key 'k': missing"),
    "bool": ({"k": True}, lambda f: f.count("k"), "key 'k': True, not of type int"),
    "float": ({"k": 2.0}, lambda f: f.count("k"), "key 'k': 2.0, not of type int"),
    "small": ({"k": -1}, lambda f: f.count("k"), "key 'k': -1, the least is 0"),
    "huge": ({"k": HUGE}, lambda f: f.count("k"), r"key 'k': 1000+\.\.\.0+, the most is"),
    "huge number": ({"k": HUGE}, lambda f: f.number("k"), "key .k.: 1000.*, not a finite"),
    "infinite": ({"k": float("inf")}, lambda f: f.number("k"), "key 'k': inf, not a finite"),
    "surrogate": ({"k": "\ud800"}, lambda f: f.get("k", str), "key .k.: .*not Unicode text"),
    "in list": ({"k": ["a", 1]}, lambda f: f.list_of("k", str), "key 'k': 1 in it, not of type"),
    "object": ({"k": []}, lambda f: f.object("k"), r"key 'k': \[\], not of type dict"),
    "below": ({"k": {}}, lambda f: f.object("k").get("l", str), r"key 'k\.l': missing"),
    "item": ({"k": [{}, 1]}, lambda f: f.objects("k"), r"key 'k\[1\]': not an object: 1"),
    "long": ({"k": "a" * 999}, lambda f: f.get("k", int), r"key 'k': 'a+\.\.\.a+', not of type"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_named(name):
    values, read, message = WRONG[name]
    with pytest.raises(ArtefactError, match=rf"^f\.json: {message}") as caught:
        read(Fields(values, "f.json", "mend it"))
    assert caught.value.hint == "mend it" and len(caught.value.message) < 250


@given(JSON, st.sampled_from(["get", "count", "number", "object", "objects", "list_of", "opt"]))
def test_any_value_is_read_or_refused(value, how):
    """Whatever JSON a file holds, nothing but a value of the type or an ArtefactError comes."""
    data = json.dumps({"k": value}).encode()
    read = {
        "get": lambda f: type(f.get("k", str)) is str,
        "count": lambda f: 0 <= f.count("k") < 2**63,
        "number": lambda f: abs(f.number("k")) < float("inf"),
        "object": lambda f: type(f.object("k").values) is dict,
        "objects": lambda f: all(type(o.values) is dict for o in f.objects("k")),
        "list_of": lambda f: all(type(i) is int for i in f.list_of("k", int)),
        "opt": lambda f: f.optional("k", bool) in (None, True, False),
    }[how]
    try:
        assert read(artefact.fields_of(data, "f.json", ""))
    except ArtefactError as error:
        assert error.message.startswith("f.json: ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"a":' * 3_000 + "1" + "}" * 3_000,
        "1" * 5_000,
        "\xff",
        "[" * 70 + "]" * 70,
    ],
)
def test_what_is_no_json_or_nested_too_deeply_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "f.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtefactError, match=r"f\.json: not JSON: "):
        artefact.read_object(path, "mend it")


def test_many_brackets_that_are_not_deep_are_read():
    value = {"rows": [[1]] * 100, "text": "[" * 100}
    assert artefact.parse(json.dumps(value)) == value


def test_no_file_is_none_and_an_unreadable_one_an_error(tmp_path: Path):
    assert artefact.read_object(tmp_path / "f.json", "") is None
    (tmp_path / "file").write_text("")
    assert artefact.read_object(tmp_path / "file" / "f.json", "") is None
    with pytest.raises(ArtefactError, match="not readable"):
        artefact.read_object(tmp_path, "")


def test_format_and_version_are_checked(tmp_path: Path):
    path = tmp_path / "f.json"
    for values, message in (
        ({"format": "b", "version": 1}, "key 'format': not 'a'"),
        ({"format": "a", "version": 2}, "key 'version': 2, this program reads 1"),
        ({"format": "a"}, "key 'version': None, this program reads 1"),
    ):
        path.write_text(json.dumps(values))
        with pytest.raises(ArtefactError, match=message):
            artefact.read_object(path, "", "a", 1)


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"a": 1}, {"a": 2}, "a = 1, this command has 2"),
        ({"a": 1}, {"a": True}, "a = 1, this command has True"),
        ({}, {"a": None}, "a = absent, this command has None"),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, r"a\.b\.c = 1, this command has 2"),
        ({"a": 1, "ratio": 4}, {"a": 2, "ratio": 8}, "ratio = 4, this command has 8"),
    ],
)
def test_other_settings_are_refused(before, now, message):
    with pytest.raises(ArtefactError, match=f"^runs/x was made with {message}$") as caught:
        artefact.refuse_difference(Path("runs/x"), before, now)
    assert caught.value.hint == "use another --out, or delete runs/x"


def test_the_same_settings_are_not(tmp_path):
    artefact.refuse_difference(tmp_path, {"a": [1, 2], "b": {}}, {"a": (1, 2), "b": {}})
