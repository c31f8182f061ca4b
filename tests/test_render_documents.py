"""The tables of README.md and of the pages are what the stored results say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ssl_jax.reports import front_figure
from ssl_jax.reports.render_documents import (
    CONTENDERS,
    digest_of,
    documents,
    labels_table,
    measures_table,
    pictures,
    render,
    seeds_table,
)

ROOT = Path(__file__).parent.parent
TABLES = (
    "README.md",
    "cosine.md",
    "dynamics.md",
    "experiments.md",
    "label_free.md",
    "methods.md",
    "replication.md",
)
RESULT = {
    "method": "byol",
    "seed": 0,
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
    accuracies = (0.2, 0.4, 0.6)
    runs = [RESULT | {"linear_accuracy": x, "seed": i} for i, x in enumerate(accuracies)]
    low, high = stats.t.interval(0.95, 2, 40, stats.sem([20, 40, 60]))
    runs[0]["collapsed"] = True
    lines = seeds_table([*runs, RESULT | {"method": "other"}]).splitlines()
    assert lines[0].split(" | ")[1:3] == ["seeds", "linear, %"] and "labels" not in lines[0]
    assert lines[2] == (
        f"| byol | 0, 1, 2 | 40.00 ± {(high - low) / 2:.2f} | 40.00 ± 0.00 | 25.00 ± 0.00 "
        "| 0.700 ± 0.000 | 12.34 ± 0.00 | 1 collapsed, 2 healthy |"
    )
    assert lines[3] == "| other | 0 | 50.00 | 40.00 | 25.00 | 0.700 | 12.34 | healthy |"
    few = {"few_label": {"labels_per_class": 10, "pretrained": {"mean": 0.9}}}
    lines = seeds_table([RESULT | few, RESULT | {"method": "other"}]).splitlines()
    assert lines[0].split(" | ")[4:6] == ["kNN, %", "few labels, %"]
    assert lines[2] == "| byol | 0 | 50.00 | 40.00 | 25.00 | 90.00 | 0.700 | 12.34 | healthy |"
    assert lines[3].startswith("| other | 0 | 50.00 | 40.00 | 25.00 |  | 0.700 |")


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_documents_are_up_to_date(path):
    text = path.read_text()
    assert ("<!-- end -->" in text) == (path.name in TABLES)
    assert render(text) == text, "python -m ssl_jax.reports.render_documents renews it"


def test_every_stored_experiment_is_told_and_shown():
    stored = {path.stem for path in (ROOT / "results" / "experiments").glob("*.json")}
    told = [
        name
        for path in documents()
        for name in re.findall(r"<!-- experiment: (\w+) -->", path.read_text())
    ]
    assert stored == set(told)
    # ... and drawn: pictures of these results, small ones on white
    assert stored | {"decay_ssl"} == set(pictures())
    for name, figures in pictures().items():
        for figure in figures:
            path = ROOT / "docs" / "figures" / name / f"{figure}.png"
            assert path.stat().st_size < 80_000
            with Image.open(path) as image:
                redraw = "python -m ssl_jax.reports.render_documents --figures draws it anew"
                assert image.text["Source"] == digest_of(name), f"{path}: {redraw}"
                assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
                assert 500 < image.width <= 1400


def test_labels_are_those_of_the_run():
    few = {
        name: {"mean": mean, "std": 0.0123}
        for name, mean in zip(CONTENDERS, (0.9361, 0.8766, 0.75), strict=True)
    }
    few |= {"labels_per_class": 7, "draws": 3}
    lines = labels_table(
        {"few_label": few, "device": "1 x cpu", "versions": {"jax": "0.0"}}
    ).splitlines()
    assert lines[0] == "| encoder, 7 labels a class | test accuracy, % |"
    assert lines[2:5] == [
        "| pretrained | 93.6 ± 1.2 |",
        "| untrained | 87.7 ± 1.2 |",
        "| raw pixels | 75.0 ± 1.2 |",
    ]
    assert "3 draws" in lines[6] and "1 x cpu" in lines[6]


def test_measures_are_those_of_the_benchmark():
    row = {"measure": "|alpha - 1|", "all_rho": -0.125, "all_p": 0.0123, "all_runs": 9}
    row |= {"byol_rho": None, "byol_p": None, "byol_runs": 2}
    cells = [{"cell": str(share), "linear_accuracy": share} for share in (0.5, 0.9123)]
    lines = measures_table({"rows": cells, "correlations": [row]}).splitlines()
    assert lines[1] == "| --- " * 7 + "|"
    assert lines[2] == "| `\\|alpha - 1\\|` | -0.12 | 0.012 | 9 |  |  | 2 |"
    assert lines[4] == "The 2 runs have linear accuracies of 50.0 to 91.2%."


def test_the_front_figure_is_of_the_stored_results(tmp_path):
    drawn = front_figure.draw(ROOT / "results", tmp_path / "front.png")
    few = json.loads((ROOT / "results" / "quickstart.json").read_text())["few_label"]
    full = json.loads((ROOT / "results" / "table1" / "full" / "byol" / "seed-0.json").read_text())
    assert drawn["digits"].tolist() == [
        few[name]["mean"] for name in ("raw_pixels", "random_init", "pretrained")
    ]
    assert drawn["cifar10"].tolist() == [
        full["random_init_linear_accuracy"],
        full["linear_accuracy"],
    ]
    for name, method in (("healthy", "byol"), ("collapsing", "simsiam_sym")):
        run = json.loads(
            (ROOT / "results" / "table1" / "midi" / method / "seed-0.json").read_text()
        )
        last = np.sort(run["dynamics"]["history"]["corr_eigenvalues"][-1])[::-1]
        np.testing.assert_allclose(
            drawn[name][-1], (last / last.sum())[: front_figure.SHOWN], atol=1e-6
        )
    kept = ROOT / "docs" / "figures" / "front.png"
    assert kept.stat().st_size < 100_000 and kept.read_bytes()[:4] == b"\x89PNG"
