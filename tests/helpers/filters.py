"""Filters and fields at random, for hypothesis."""

from __future__ import annotations

import string

from hypothesis import strategies as st

from clara_cli.search.where import AllOf, AnyOf, Compare, Filter, Not, Value

NAMES = st.text(string.ascii_letters + "_.", min_size=1, max_size=6).filter(
    lambda word: word.lower() not in ("and", "or", "not", "in")
)
WORDS = st.one_of(NAMES, st.integers(-(10**6), 10**6).map(str), st.floats(0, 1e6).map(repr))
VALUES = st.one_of(WORDS.map(Value), st.text(max_size=6).map(lambda text: Value(text, quoted=True)))
COMPARISONS = st.one_of(
    st.builds(
        lambda field, mark, value: Compare(field, mark, (value,)),
        NAMES, st.sampled_from(["=", "<", "<=", ">", ">="]), VALUES,
    ),
    st.builds(
        lambda field, values: Compare(field, "=", tuple(values)),
        NAMES, st.lists(VALUES, min_size=2, max_size=4),
    ),
)  # fmt: skip
FILTERS: st.SearchStrategy[Filter] = st.recursive(
    COMPARISONS,
    lambda parts: st.one_of(
        parts.map(Not),
        st.lists(parts, min_size=2, max_size=3).map(lambda found: AllOf(tuple(found))),
        st.lists(parts, min_size=2, max_size=3).map(lambda found: AnyOf(tuple(found))),
    ),
    max_leaves=6,
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), WORDS
)
ANYTHING = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(NAMES, SCALARS))
