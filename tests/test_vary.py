"""Sweeps over any fields: what is typed, which cells it makes, and that they run."""

import json
import math
from collections import Counter

import jax
import numpy as np
import pytest
from test_sweep import Pretend, never

from configs import sweep as configuration
from ssl_jax.builders.fields import flat
from ssl_jax.errors import UserError
from ssl_jax.sweeps.vary import LONGEST, Range, draw, name_of, named, pairs, parse, varied_grid
from ssl_jax.tasks import sweep

HUNDRED = ",".join(map(str, range(100)))


def sweep_config(**fields):
    config = configuration.get_config()
    config.of = "configs/quickstart.py"
    for name, value in fields.items():
        config[name] = value
    return config


# --- What is typed --------------------------------------------------------------------------------


def test_fields_and_their_values():
    found = parse(" target.tau = 0, 0.9 ;views.crop_scale=(0.2,1),(0.08,1); data.name=digits ;")
    assert found == {
        "target.tau": ["0", "0.9"],
        "views.crop_scale": ["0.2,1", "0.08,1"],
        "data.name": ["digits"],
    }
    assert parse("a=log:1e-4..1e-1; b=4..64; c=.5..1; d=1,2", ranges=True) == {
        "a": Range(1e-4, 0.1, True, False),
        "b": Range(4, 64, False, True),
        "c": Range(0.5, 1, False, False),
        "d": ["1", "2"],
    }
    assert parse("data.data_dir=../pictures") == {"data.data_dir": ["../pictures"]}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "vary: got none, takes FIELD=VALUE"),
        ("target.tau", "vary: got 'target.tau', takes FIELD=VALUE"),
        ("target.tau=0,,1", "vary: got 'target.tau=0,,1', takes FIELD=VALUE"),
        ("a=1; a=2", "vary: a stands twice"),
        ("a=1,2,1", "vary: a: got 1,2,1, a value stands twice"),
        ("a=1..2", "vary: a: got 1..2; takes one range, with random=N"),
    ],
)
def test_a_wrong_list_is_told(text, line):
    with pytest.raises(UserError) as error:
        parse(text)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize("text", ["a=2..1", "a=log:0..1", "a=0..inf", "a=1..1"])
def test_a_range_has_two_ends(text):
    with pytest.raises(UserError, match=r"takes LOW\.\.HIGH"):
        parse(text, ranges=True)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"of": ""}, "of: got none"),
        ({"of": "configs/probe.py"}, "of: got configs/probe.py, whose task is probe"),
        ({"vary": "target.taw=0,1"}, "vary: target.taw: no such field, did you mean 'target.tau'"),
        ({"vary": "seed=0,1"}, "vary: seed: no field of a cell; takes --config.seeds"),
        ({"vary": "epochs=many"}, "vary: epochs: got 'many', takes a whole number"),
        ({"vary": "target=0"}, "vary: target: no such field"),
        ({"random": -1}, "random: got -1"),
        ({"random": 2, "pair": True}, "pair: got True beside random"),
        ({"vary": "task=supervised,probe"}, "vary: task: all cells have that of"),
        ({"sweep": "table1"}, "sweep: got 'table1' beside of and vary; takes --config configs/swe"),
        ({"random": 10**9}, "vary: got 1,000,000,000 cells, takes at most 10,000"),
        (
            {"vary": f"epochs={HUNDRED}; log_every={HUNDRED}; eval_every={HUNDRED}"},
            "vary: got 1,000,000 cells",
        ),
        (
            {"vary": "optimizer.learning_rate=1e+1,1e-1"},
            "vary: optimizer.learning_rate: 1e+1 and 1e-1 would both be the directory",
        ),
        (
            {"vary": "optimizer.learning_rate=0.1,0.3,0.10"},
            "vary: optimizer.learning_rate=0.1 and optimizer.learning_rate=0.10 are the same run",
        ),
        ({"pair": True, "vary": "epochs=1,2; seed_=1"}, "vary: seed_: no such field"),
        ({"pair": True, "vary": "epochs=1,2; batch_size=8,16,32"}, "pair: got epochs 2, batch_"),
    ],
)
def test_a_wrong_field_is_told(fields, line):
    with pytest.raises(UserError) as error:
        varied_grid(sweep_config(**{"vary": "target.tau=0,0.9"} | fields))
    assert str(error.value).startswith(line)


# --- The cells ------------------------------------------------------------------------------------


def test_every_combination_on_top_of_the_configuration():
    config = sweep_config(vary="target.tau=0,0.9; views.crop_scale=(0.2,1),(0.08,1); epochs=3")
    cells = varied_grid(config).cells
    assert list(cells) == [
        f"target.tau={tau}+views.crop_scale={crop}"
        for tau in ("0", "0.9")
        for crop in ("0.2-1", "0.08-1")
    ]
    found = [(c.target.tau, tuple(c.views.crop_scale), c.epochs) for c in cells.values()]
    assert found == [(tau, (low, 1), 3) for tau in (0.0, 0.9) for low in (0.2, 0.08)]
    from configs import quickstart

    plain = quickstart.get_config()
    changed = {"target.tau", "views.crop_scale", "epochs"}
    for cell in cells.values():
        for field in set(flat(plain)) - changed:
            section, _, name = field.rpartition(".")
            here, there = cell, plain
            for part in filter(None, section.split(".")):
                here, there = here[part], there[part]
            assert here[name] == there[name], field


def test_a_home_is_found_in_what_varies(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    config = sweep_config(vary="data.data_dir=~/a,~/b", of="~/none")
    with pytest.raises(UserError, match="no file /home/of/mine/none"):
        varied_grid(config)
    config.of = "quickstart"
    found = [cell.data.data_dir for cell in varied_grid(config).cells.values()]
    assert found == ["/home/of/mine/a", "/home/of/mine/b"]


def test_one_cell_where_nothing_varies():
    assert list(varied_grid(sweep_config(vary="epochs=2")).cells) == ["base"]


def test_pairs_take_the_values_together():
    assert pairs({"a": ["1", "2"], "b": ["3", "4"], "c": ["5"]}) == [
        {"a": "1", "b": "3", "c": "5"},
        {"a": "2", "b": "4", "c": "5"},
    ]


def test_draws_are_of_the_range_and_a_longer_list_begins_as_a_shorter():
    fields = parse("a=log:1e-4..1e-1; b=4..6; c=-1..1; d=x,y", ranges=True)
    draws = draw(fields, 2000, seed=3)
    assert draw(fields, 5, seed=3) == draws[:5] and draw(fields, 5, seed=4) != draws[:5]
    a = np.array([float(row["a"]) for row in draws])
    assert 1e-4 <= a.min() and a.max() <= 0.1
    # Evenly by the logarithm: the mean of log10 is -2.5, with a deviation of 3 / sqrt(12 * 2000).
    assert np.log10(a).mean() == pytest.approx(-2.5, abs=4 * 3 / math.sqrt(12 * 2000))
    counts = Counter(row["b"] for row in draws)
    assert set(counts) == {"4", "5", "6"}
    # Each end as likely as the middle: 667 of 2000, with a deviation of 21.
    assert all(abs(count - 2000 / 3) < 90 for count in counts.values())
    c = np.array([float(row["c"]) for row in draws])
    assert c.min() < -0.9 and c.max() > 0.9 and abs(c.mean()) < 4 * 2 / math.sqrt(12 * 2000)
    assert {row["d"] for row in draws} == {"x", "y"}


def test_names_are_folders_that_no_comma_splits():
    assert name_of({"a.b": "1e-05", "c": "x/y, z"}) == "a.b=1e-05+c=x-y-z"
    long = {f"field_{i}": "0.123456" for i in range(20)}
    other = long | {"field_19": "0.654321"}
    assert list(named([{"a": "1", "b": "2"}] * 2, ["a"])) == ["a=1"]
    assert len(name_of(long)) <= LONGEST + 9 and name_of(long) != name_of(other)


# --- They run -------------------------------------------------------------------------------------


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(sweep.gc, "collect", lambda: 0)


SMALL = (
    "batch_size=32; data.train_size=96; encoder.width=4; probe.validation_size=32;"
    "probe.knn_k=5; probe.few_labels=0;"
)


def test_more_values_on_the_same_directory_run_what_is_new(quiet, tmp_path, capsys):
    config = sweep_config(vary=SMALL + "method=one,two")
    config.seeds = (0, 1)
    pretend = Pretend()
    sweep.sweep(config, str(tmp_path), never, pretend)
    assert pretend.ran == [("one", 0), ("two", 0), ("one", 1), ("two", 1)]
    assert "2 cells of configs/quickstart.py: 0 of 4 cells done" in capsys.readouterr().out
    config.vary += ",three"
    sweep.sweep(config, str(tmp_path), never, pretend)
    assert pretend.ran[4:] == [("three", 0), ("three", 1)]
    stored = json.loads((tmp_path / "method=three/seed-1/config.json").read_text())
    assert (stored["method"], stored["seed"], stored["encoder"]["width"]) == ("three", 1, 4)


def test_all_cells_are_checked_before_the_first_runs(quiet, tmp_path):
    config = sweep_config(vary=SMALL + "optimizer.name=momentum,momentun")
    with pytest.raises(UserError, match="cell optimizer.name=momentun: optimizer.name: got 'mom"):
        sweep.sweep(config, str(tmp_path / "w"), never, Pretend())
    config.vary = SMALL + f"weights={tmp_path}/nothing"
    with pytest.raises(UserError, match="cell base: weights: got .*, where nothing is"):
        sweep.sweep(config, str(tmp_path / "w"), never, Pretend())
    assert not (tmp_path / "w").exists()


def test_a_directory_of_other_settings_is_refused(quiet, tmp_path):
    """A field that is fixed names no folder: its change is told, not run into old cells."""
    config = sweep_config(vary=SMALL + "epochs=2; method=one,two")
    sweep.sweep(config, str(tmp_path), never, Pretend())
    config.vary = SMALL + "epochs=2; target.tau=0.5; method=one,two"
    with pytest.raises(UserError, match=r"holds a run with another configuration \(target.tau"):
        sweep.sweep(config, str(tmp_path), never, Pretend())
