"""Shapes that results from others must have."""

import json
import math

import pytest

from ssl_jax.errors import UserError
from ssl_jax.workdir.schema import (
    ARRAY,
    CURVE,
    DEEPEST,
    FLAG,
    KNOWN,
    NUMBER,
    REAL,
    SECTION,
    SHARE,
    TABLE,
    TEXT,
    WHOLE,
    WIDTH,
    fault,
    require,
)

VALUES = {
    "0": 0,
    "1": 1,
    "0.5": 0.5,
    "1.5": 1.5,
    "nan": math.nan,
    "inf": math.inf,
    "huge": 10**400,
    "big": 2**70,
    "true": True,
    "null": None,
    "text": "0.5",
    "list": [1.0, None],
    "nan list": [math.nan],
    "text list": ["1"],
    "table": [[1, 2], [3, None]],
    "ragged": [[1, 2], [3]],
    "mixed": [[1, 2], 3],
    "cube": [[[1], [2]]],
    "empty": [],
    "section": {},
}
FITS = {
    "REAL": (REAL, "0 1 0.5 1.5 nan inf big"),
    "NUMBER": (NUMBER, "0 1 0.5 1.5 big"),
    "SHARE": (SHARE, "0 1 0.5"),
    "KNOWN": (KNOWN, "0 1 0.5 1.5 big null"),
    "WHOLE": (WHOLE, "0 1"),
    "TEXT": (TEXT, "text"),
    "FLAG": (FLAG, "true"),
    "SECTION": (SECTION, "section"),
    "CURVE": (CURVE, "list empty"),
    "TABLE": (TABLE, "table empty"),
    "ARRAY": (ARRAY, "list table cube empty"),
    "WIDTH": (WIDTH, "0 1 0.5 1.5 big null list table empty"),
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("leaf", FITS)
def test_every_leaf_takes_its_values_and_no_other(leaf, value):
    shape, fitting = FITS[leaf]
    # "big" and the like are one word each; the lists have two
    assert (fault(VALUES[value], shape) is None) == (value in fitting.split())


@pytest.mark.parametrize(
    "value, shape, says",
    [
        ({}, {"a": NUMBER, "b?": NUMBER, "c": TEXT}, "lacks a, c"),
        ({"a": {}}, {"a": {"b": NUMBER}}, "lacks a.b"),
        ({"a": {"b": [1, "2"]}}, {"a": {"b": [NUMBER]}}, "a.b[1]: got '2', takes a finite number"),
        ({"a": 3}, {"a": [NUMBER]}, "a: got 3, takes a list"),
        ({"a": [3]}, {"a": {"b": NUMBER}}, "a: got [3], takes a section"),
        ([], {"a": NUMBER}, "the file: got [], takes a section"),
        ({"x": 1, "y": "z"}, {str: NUMBER}, "y: got 'z', takes a finite number"),
        ({"b": None}, {"b?": NUMBER}, None),
        ({"b": None}, {"b": NUMBER}, "b: got None, takes a finite number"),
        ({"extra": object}, {"a?": NUMBER}, None),
        ({"<b>\n": 1}, {str: TEXT}, "<b>\\n: got 1, takes text"),
        ({"a": "x" * 500}, {"a": NUMBER}, f"a: got '{'x' * 38}…{'x' * 19}', takes a finite number"),
    ],
)
def test_the_first_fault_is_named_on_one_line(value, shape, says):
    assert fault(value, shape) == says


def test_depth_is_bounded():
    def nested(levels):
        return json.loads('{"a":' + "[" * levels + "]" * levels + "}")

    assert fault(nested(DEEPEST - 1), {}) is None
    assert fault(nested(DEEPEST), {}) == f"is nested deeper than {DEEPEST} levels"


def test_require_names_the_file(tmp_path):
    content = {"a": 1}
    assert require(content, {"a": NUMBER}, tmp_path) is content
    with pytest.raises(UserError, match="lacks b"):
        require(content, {"b": NUMBER}, tmp_path)
