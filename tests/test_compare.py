"""Any runs on one page: which runs are found, what differs, the numbers, the page."""

import json

import numpy as np
import pytest
import scipy.stats
from nasty import NASTY
from PIL import Image
from test_foreign_results import check_page

from configs import compare as configuration
from configs import quickstart
from ssl_jax import launch
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.errors import UserError
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.compare.figures import (
    OTHERS,
    colours,
    draw_curves,
    draw_fields,
    draw_spectra,
    independent,
)
from ssl_jax.reports.compare.page import Compared, main_table, more_table, page, text_of
from ssl_jax.reports.compare.runs import (
    difference,
    estimate,
    find_runs,
    group,
    main_measure,
    read_runs,
    states,
    values,
)
from ssl_jax.tasks.compare import compare
from ssl_jax.workdir import metrics_csv

DEFAULTS = {"pretrain": defaults_of("pretrain"), "supervised": defaults_of("supervised")}


def write_run(path, seed=0, linear=0.5, changes=None, **result):
    """A work directory as a pretraining run leaves it."""
    config = quickstart.get_config()
    config.update_from_flattened_dict({"seed": seed} | (changes or {}))
    (path / "figures").mkdir(parents=True)
    (path / "config.json").write_text(config.to_json())
    if linear is not None:
        content = {"task": "pretrain", "seed": seed, "linear_accuracy": linear, "seconds": 60.0}
        content |= {"state": "healthy", "correlation_eigenvalues": [3.0, 1.0, None]} | result
        (path / "result.json").write_text(json.dumps(content))
    rows = [{"step": s, "epoch": s / 10, "loss": -s / 100} for s in (10.0, 20.0)]
    (path / "metrics.csv").write_text(metrics_csv.table(rows))
    Image.new("RGB", (900, 300)).save(path / "figures" / "training.png")
    return path


def groups_of(folder):
    runs, left_out = read_runs(find_runs(str(folder)), DEFAULTS)
    assert not left_out
    return group(runs)


@pytest.fixture
def tau(tmp_path):
    """Two values, three seeds of one and two of the other."""
    for seed, linear in enumerate((0.50, 0.54, 0.58)):
        write_run(tmp_path / "runs/a" / f"seed-{seed}", seed, linear, {"target.tau": 0.0})
    for seed, linear in ((1, 0.55), (2, 0.60)):
        write_run(tmp_path / "runs/b" / f"seed-{seed}", seed, linear, {"target.tau": 0.9})
    return tmp_path / "runs"


# --- Found, read, grouped -------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_and_by_patterns(tau, tmp_path):
    found = find_runs(str(tau))
    assert [p.relative_to(tau).as_posix() for p in found] == [
        "a/seed-0",
        "a/seed-1",
        "a/seed-2",
        "b/seed-1",
        "b/seed-2",
    ]
    assert find_runs(f"{tau}/b, {tau}/*/seed-1") == [
        tau / "b/seed-1",
        tau / "b/seed-2",
        tau / "a/seed-1",
    ]
    for patterns in ("", f"{tau}/c", f"{tau}/a,{tmp_path}/nothing*"):
        with pytest.raises(UserError, match="^runs: got .*takes work directories of runs"):
            find_runs(patterns)


def test_groups_differ_in_what_decides_and_seeds_go_together(tau):
    groups = groups_of(tau)
    assert [one.settings for one in groups] == [{"target.tau": 0.0}, {"target.tau": 0.9}]
    assert [[run.seed for run in one.runs] for one in groups] == [[0, 1, 2], [1, 2]]
    write_run(tau / "c", 0, 0.5, {"target.tau": 0.9, "log_every": 7, "method": "mine"})
    assert [len(one.runs) for one in groups_of(tau)] == [3, 3]


def test_a_field_that_a_run_lacks_has_its_default(tau):
    path = tau / "a/seed-0/config.json"
    content = json.loads(path.read_text())
    del content["loss_scale"]
    path.write_text(json.dumps(content))
    assert [len(one.runs) for one in groups_of(tau)] == [3, 2]


def test_numbers_are_those_of_scipy(tau):
    one, other = groups_of(tau)
    found = estimate(one, "linear_accuracy")
    low, high = scipy.stats.t.interval(0.95, 2, 54, scipy.stats.sem([50, 54, 58]))
    assert (found.mean, found.width) == pytest.approx((54, (high - low) / 2))
    # Over seeds 1 and 2 alone: 55 - 54 and 60 - 58.
    found = difference(other, one, "linear_accuracy")
    low, high = scipy.stats.t.interval(0.95, 1, 1.5, scipy.stats.sem([1, 2]))
    assert (found.mean, found.width) == pytest.approx((1.5, (high - low) / 2))
    assert str(found) == f"+1.50 ± {(high - low) / 2:.2f}"
    assert estimate(one, "knn_accuracy") is None


def test_two_runs_of_one_seed_count_as_one_seed(tau):
    write_run(tau / "a/again", 2, 0.62, {"target.tau": 0.0})
    one, other = groups_of(tau)
    found = estimate(one, "linear_accuracy")
    low, high = scipy.stats.t.interval(0.95, 2, 54, scipy.stats.sem([50, 54, 60]))
    assert (found.mean, found.width) == pytest.approx((164 / 3, (high - low) / 2))
    assert difference(other, one, "linear_accuracy").mean == pytest.approx(0.5)  # of 1 and 0


def test_a_measure_that_all_have_is_the_main_one(tau):
    write_run(tau / "c", 0, None, {"target.tau": 0.99})
    groups = groups_of(tau)
    assert main_measure(groups) is None and states(groups[2]) == "unfinished"
    write_run(tau / "d", 1, 0.5, {"target.tau": 0.99}, rankme=5.0)
    assert main_measure(groups_of(tau)) == "linear_accuracy"


def test_runs_that_cannot_be_read_are_named(tau):
    (tau / "a/seed-0/metrics.csv").write_text("step,loss\n1,x\n")
    (tau / "a/seed-1/result.json").write_text('{"task": "pretrain", "linear_accuracy": "good"}')
    (tau / "a/seed-2/config.json").write_text('{"task": "views"}')
    (tau / "b/seed-1/config.json").write_text("[")
    write_run(tau / "b/seed-3")
    (tau / "b/seed-3/config.json").write_text('{"task": ["pretrain"]}')
    runs, left_out = read_runs(find_runs(str(tau)), DEFAULTS)
    assert [run.path for run in runs] == [tau / "b/seed-2"]
    for line, words in zip(
        left_out,
        (
            "line 2 holds no number",
            "linear_accuracy: got",
            "trains nothing",
            "not JSON",
            "its task is ['pretrain']",
        ),
        strict=True,
    ):
        assert words in line


# --- The page -------------------------------------------------------------------------------------


def test_few_fields_have_columns_and_many_share_one(tau):
    groups = groups_of(tau)
    table = main_table(groups)
    assert table.header[:4] == ["target.tau", "seeds", "linear, %", "minus the first"]
    assert table.rows[0][:3] == ["0", "0, 1, 2", "54.00 ± 9.94"] and table.texts == 2
    assert more_table(groups) is None
    for i, field in enumerate(("epochs", "batch_size", "encoder.width"), start=2):
        write_run(tau / f"c{i}", 0, 0.5, {"target.tau": 0.0, field: 30 + i})
    groups = groups_of(tau)
    rows = main_table(groups).rows
    assert rows[0][0] == "as most"
    others = {"target.tau=0.9", "epochs=32", "batch_size=33", "encoder.width=34"}
    assert {row[0] for row in rows[1:]} == others


def test_a_field_that_is_left_empty_is_unset_and_comes_first(tmp_path):
    """From scratch, beside runs that begin with weights."""
    for weights in ("runs/b", "", "runs/a"):
        write_run(tmp_path / "runs" / f"from{weights}", 0, 0.5, {"weights": weights}, loss=0.1)
    groups = groups_of(tmp_path / "runs")
    assert [row[0] for row in main_table(groups).rows] == ["unset", "runs/a", "runs/b"]
    assert [one.label({}) for one in groups] == [
        "weights=unset",
        "weights=runs/a",
        "weights=runs/b",
    ]
    text = page(Compared(groups, []))
    assert "<h2>Beside accuracy</h2>" in text and "weights=<" not in text


def test_the_page_is_whole_and_its_links_lead_somewhere(tau):
    write_run(tau / "c", 0, None, {"target.tau": 0.99})
    compared = Compared(groups_of(tau), ["x: <b>damaged</b>"])
    text = page(compared)
    parsed = check_page(text)
    assert (
        sum(tag == "img" for tag, _ in parsed.found) == 3 + 3
    )  # two figures and names; one a group
    assert "http" not in text.replace("http-equiv", "") and "&lt;b&gt;damaged" in text
    assert text == page(compared)
    assert "54.00 ± 9.94" in text_of(compared) and "## Left out" in text_of(compared)


@pytest.mark.parametrize("text", NASTY[::3])
def test_foreign_text_is_text(tmp_path, text):
    text = text.encode(errors="replace").decode()
    write_run(tmp_path / "a", 0, 0.5, {"data.name": text}, state=text, device=text)
    origin = {"commit": text, "command": text}
    write_run(tmp_path / "b", 0, 0.5, verdict=text, provenance=origin)
    compared = Compared(groups_of(tmp_path), [])
    check_page(page(compared))
    assert len(text_of(compared).splitlines()) == 6


@pytest.fixture
def closed():
    """Figures that a test leaves open are closed."""
    yield
    plt.close("all")


def test_figures_by_the_number_of_fields(tau, tmp_path, closed):
    groups = groups_of(tau)
    line = draw_fields(groups, "linear_accuracy").axes[0]
    np.testing.assert_allclose(line.lines[0].get_xydata(), [[0, 54], [0.9, 57.5]])
    for i, (tau_, rate) in enumerate([(0.0, 0.3), (0.9, 0.3), (0.9, 0.03)]):
        changes = {"target.tau": tau_, "optimizer.learning_rate": rate}
        write_run(tmp_path / "two" / str(i), 0, 0.1 * i, changes | {"epochs": int(10 * rate) + 1})
    groups = groups_of(tmp_path / "two")
    # The epochs go with the rate.
    assert set(independent(groups)) in (
        {"target.tau", "optimizer.learning_rate"},
        {"target.tau", "epochs"},
    )
    values = draw_fields(groups, "linear_accuracy").axes[0].images[0].get_array()
    found = np.asarray(values.filled(np.nan)).ravel()
    np.testing.assert_allclose(np.sort(found), [0, 10, 20, np.nan])
    legend, curves = draw_curves(groups)
    np.testing.assert_allclose(curves.axes[0].lines[0].get_xydata(), [[10, -0.1], [20, -0.2]])
    names = [text.get_text() for text in legend.axes[0].get_legend().get_texts()]
    assert names == [one.label({}, last=True) for one in groups]
    spectra = draw_spectra(groups).axes[0].lines
    np.testing.assert_allclose(spectra[0].get_ydata(), [3, 1, np.nan])
    assert len(spectra) >= 3


def test_many_fields_are_rows_and_of_many_groups_three_have_colours(tmp_path, closed):
    fields = ("epochs", "batch_size", "encoder.width", "target.tau")
    for i in range(11):
        changes = {fields[i % 4]: 0.5 if i % 4 == 3 else 40 + i} if i else {}
        changes |= {"loss_scale": 3.0} if i == 3 else {}
        for seed in range(2):
            linear = 0.5 + 0.01 * (i * 7 % 11) + 0.002 * seed
            write_run(tmp_path / f"{i}-{seed}", seed, linear, changes)
    groups = groups_of(tmp_path)
    rows = draw_fields(groups, "linear_accuracy").axes[0]
    points = [one for one in rows.collections if hasattr(one, "get_sizes")]
    found = [one.get_offsets()[:, 0] for one in points]
    want = [list(values(one, "linear_accuracy").values()) for one in groups]
    np.testing.assert_allclose(found, want)
    names = [tick.get_text() for tick in rows.get_yticklabels()]
    assert names[0] == "as most" and len(names) == len(groups) == 11
    means = [np.mean(one) for one in want]
    special = {0, int(np.argmax(means)), int(np.argmin(means))}
    assert [k for k, colour in enumerate(colours(groups)) if colour != OTHERS] == sorted(special)
    legend = draw_curves(groups)[0].axes[0].get_legend().get_texts()
    assert len(legend) == len(special) + 1 and legend[-1].get_text() == "the others"


def test_a_run_that_has_just_begun_hides_no_curve_of_the_others(tau, closed):
    run = write_run(tau / "a/seed-3", 3, None, {"target.tau": 0.0})
    (run / "metrics.csv").write_text(metrics_csv.table([]))
    curves = draw_curves(groups_of(tau))[1].axes[0].lines
    np.testing.assert_allclose(curves[0].get_xydata(), [[10, -0.1], [20, -0.2]])


def test_from_the_command_line(tau, tmp_path, capsys):
    words = [f"--config.runs={tau}/*", "--workdir", str(tmp_path / "page")]
    assert launch.main(["launch.py", "--config", "compare", *words]) == 0
    assert "5 runs in 2 groups: wrote" in capsys.readouterr().out
    result = json.loads((tmp_path / "page/result.json").read_text())
    assert (result["runs"], result["left_out"]) == (5, [])
    assert result["tables"][0]["columns"][0] == "target.tau"


def test_no_run_can_be_read(tau, tmp_path):
    for path in tau.glob("*/*/config.json"):
        path.write_text("{}")
    config = configuration.get_config()
    config.runs = str(tau)
    with pytest.raises(UserError, match="^runs: none can be read"):
        compare(config, str(tmp_path / "page"))
    assert not (tmp_path / "page").exists()
