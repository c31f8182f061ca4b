"""The README's tables are what the stored results say."""

import json
import re
from pathlib import Path

import pytest

from ssl_jax.reports.render_documents import documents, render, seeds_table

ROOT = Path(__file__).parent.parent
RESULT = {
    "method": "byol",
    "collapsed": False,
    "linear_accuracy": 0.5,
    "ridge_accuracy": 0.4,
    "knn_accuracy": 0.25,
    "relative_spread": 0.7,
    "effective_rank": 12.34,
}


def test_only_what_stands_between_the_marks_is_written(tmp_path):
    stored = tmp_path / "results" / "demo" / "byol" / "seed-0.json"
    stored.parent.mkdir(parents=True)
    stored.write_text(json.dumps(RESULT))
    text = "before\n<!-- seeds: demo -->\nold\n<!-- end -->\nafter\n"
    once = render(text, tmp_path)
    assert once == f"before\n<!-- seeds: demo -->\n{seeds_table([RESULT])}<!-- end -->\nafter\n"
    assert render(once, tmp_path) == once


def test_seeds_of_a_method_share_a_row():
    runs = [RESULT | {"linear_accuracy": x, "collapsed": x < 0.3} for x in (0.2, 0.4, 0.6)]
    lines = seeds_table([*runs, RESULT | {"method": "other"}]).splitlines()
    assert lines[2] == "| byol | 3 | 40.00 ± 20.00 | 40.00 ± 0.00 | 25.00 ± 0.00 | 0.70 ± 0.00 | 12.34 ± 0.00 | 1 |"
    assert lines[3] == "| other | 1 | 50.00 | 40.00 | 25.00 | 0.70 | 12.34 | 0 |"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_documents_are_up_to_date(path):
    text = path.read_text()
    assert path.name == "optimisation.md" or "<!-- end -->" in text
    assert render(text) == text, "python -m ssl_jax.reports.render_documents renews it"


def test_every_stored_experiment_is_told():
    stored = {path.stem for path in (ROOT / "results" / "experiments").glob("*.json")}
    told = [name for path in documents() for name in re.findall(r"<!-- experiment: (\w+) -->", path.read_text())]
    assert stored == set(told)
