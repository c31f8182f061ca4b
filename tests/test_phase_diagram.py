"""The phase diagram from its command to its files, on a grid of four cells and a few steps."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.dynamics import theory
from ssl_jax.errors import UserError
from ssl_jax.experiments import phase_diagram as experiment
from ssl_jax.experiments.harness import cells, linear_network
from ssl_jax.experiments.registry import run_experiment
from ssl_jax.reports.experiments import phase_diagram as reports

CONFIG = Path(__file__).parent.parent / "configs" / "experiments" / "phase_diagram.py"
TINY = {
    "cells": 2,
    "dim": 3,
    "twin.inputs": 5,
    "twin.time": 5.0,
    "digits.time": 0.3,
    "digits.width": 4,
}


def tiny(**fields):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.update_from_flattened_dict(TINY | fields)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A work directory; it was stopped after its second part, and went on."""
    directory, asked = tmp_path_factory.mktemp("phase"), iter([False, False, True])
    config = tiny(**{"digits.losses": ("cosine",)})
    run_experiment(config, str(directory), lambda: next(asked))
    assert (
        len(list((directory / "cells").iterdir())) == 2 and not (directory / "result.json").exists()
    )
    run_experiment(config, str(directory), lambda: False)
    return directory, config


@pytest.mark.slow
def test_from_command_to_files(finished, monkeypatch):
    directory, config = finished
    assert {p.name for p in directory.iterdir()} == {
        "config.json",
        "provenance.json",
        "cells",
        "result.json",
        "table.md",
        "figures",
    }
    assert {p.name for p in (directory / "figures").iterdir()} == {
        "phase_diagram.png",
        "control.png",
    }
    result = json.loads((directory / "result.json").read_text())
    assert (result["task"], result["experiment"], result["dataset"]) == (
        "experiment",
        "phase_diagram",
        "digits",
    )
    assert reports.report(result) == (directory / "table.md").read_text()
    for name in ("twin-none", "twin-average", "cosine-none", "cosine-average"):
        assert np.shape(result[name]["predicted"]) == np.shape(result[name]["measured"]) == (2, 2)
        assert 0 <= result[name]["agreement"] <= 1 and result[name].get("diverged", 0) == 0
    monkeypatch.setattr(cells, "write_cell", None)  # a second start computes nothing
    run_experiment(config, str(directory), lambda: False)
    assert json.loads((directory / "result.json").read_text()) == result


def test_a_seed_decides_all(finished):
    """The twins again, apart from the run: the same numbers, whatever the number of steps in a
    call.
    """
    directory, config = finished
    again = experiment.train_twins(config, True, lambda steps: None)["spectrum"]
    with np.load(directory / "cells" / "twin-average.npz") as cell:
        np.testing.assert_array_equal(again, cell["spectrum"])


@pytest.mark.parametrize("averaged", [False, True])
def test_settings_are_those_of_the_flow_that_is_predicted(averaged):
    config = tiny()
    grid = experiment.make_grid(config)
    for i in range(4):
        cell = {name: float(value[i]) for name, value in grid.settings.items()}
        flow, time = theory.mapping(**experiment.shared(config, averaged), **cell)
        expected = [grid.alpha_p[i], grid.eta_p[i], config.eta_s, time]
        np.testing.assert_allclose(
            [flow.alpha_p, flow.eta_p, flow.eta_s, config.learning_rate], expected, rtol=1e-6
        )
        assert flow.beta == (pytest.approx(config.beta) if averaged else None)
    np.testing.assert_allclose(grid.alpha_p[[0, 1, 2]], [0.03, 0.03, 3.0])  # rows of one α_p
    np.testing.assert_allclose(grid.eta_p[[0, 1, 2]], [0.02, 0.5, 0.02])


def test_twins_live_and_die_as_predicted():
    """The corners of the default grid: every mode."""
    config = tiny(**{"twin.time": 150.0})
    predicted = experiment.predict_twin(config)["none"]
    alive = (
        experiment.train_twins(config, False, lambda steps: None)["spectrum"]
        >= experiment.ALIVE * config.s
    )
    np.testing.assert_array_equal(alive, predicted)
    assert 0.2 < predicted.mean() < 0.8


def test_digits_begin_where_they_should():
    config = tiny()
    parts, rates = (
        experiment.build_digits(config),
        {"learning_rate": 0.1, "predictor_learning_rate": 0.1},
    )

    def begun(key):
        state = experiment.init_digits(
            parts, key, linear_network.two_rates(**rates), True, config.p, config.s
        )
        return state, experiment.view_statistics(parts, state, key)

    state, seen = jax.jit(begun)(jax.random.key(3))
    np.testing.assert_array_equal(
        state.params["predictor"]["linear"]["kernel"], jnp.float32(config.p) * np.eye(3)
    )
    np.testing.assert_allclose(np.trace(seen["centred"]) / 3, config.s, rtol=1e-4)
    trunk = {name: state.params[name] for name in ("encoder", "projector")}
    jax.tree.map(np.testing.assert_array_equal, state.target, trunk)


def test_what_views_share_is_the_covariance_of_their_means():
    rng = np.random.default_rng(0)
    mean, noise = (
        rng.normal(size=(4000, 3)) @ rng.normal(size=(3, 3)),
        rng.normal(size=(2, 4000, 3)),
    )
    found = experiment.view_correlation(*(jnp.asarray(mean + n + 5, jnp.float32) for n in noise))
    np.testing.assert_allclose(found, np.cov(mean.T), atol=0.15)


@pytest.mark.parametrize("loss, share", [("cosine", "unit"), ("euclidean", "centred")])
def test_a_loss_that_sees_no_scale_is_measured_without_one(loss, share):
    """Living modes are counted of the matrix, and from the floor, that the loss can see."""
    config = tiny(**{"digits.losses": (loss,)})
    assert config.s != 1 / config.dim  # else both floors would be one
    seeds, cells = 1, config.cells**2
    floor = experiment.ALIVE * {"unit": 1 / config.dim, "centred": config.s}[share]
    values = {"unit": [0.9, 1.1, 2.0], "centred": [0.8, 1.2, 3.0]}  # of the floor
    seen = {
        name: np.tile(np.diag(floor * np.array(v)), (seeds, cells, 1, 1))
        for name, v in values.items()
    }
    seen |= {name: np.ones((seeds, cells)) for name in ("square", "own")}
    found = experiment.digits_arrays(config, loss, seen, seen)
    np.testing.assert_allclose(found["spectrum"][0, 0, 0], floor * np.array(values[share]))
    none = {
        f"twin-{target}": {"spectrum": np.ones((seeds, 2, 2, 3))} for target in experiment.TARGETS
    }
    measured = none | {f"{loss}-{target}": found for target in experiment.TARGETS}
    predicted = {target: np.ones((seeds, 2, 2, 3), bool) for target in experiment.TARGETS}
    parts = experiment.Parts(predicted, None)  # what the digits are is not looked at here
    result = experiment.summarise(config, parts, measured)
    np.testing.assert_allclose(result[f"{loss}-none"]["measured"], 2 / 3, atol=1e-4)


def test_agreement_counts_cells_on_the_same_side():
    # one seed, 2 x 2 cells, two modes
    predicted = np.array([[[[1, 1], [0, 0]], [[1, 1], [1, 0]]]], bool)
    measured = np.array([[[[1, 0], [0, 0]], [[0, 0], [1, 0]]]], bool)
    found = experiment.compare(predicted, measured)
    assert found["agreement"] == 0.75 and found["difference"] == 0.375
    assert found["predicted"] == [[1, 0], [1, 0.5]] and found["measured"] == [[0.5, 0], [0, 0.5]]


@pytest.mark.parametrize(
    "field, value",
    [
        ("eta_s", -0.1),
        ("alpha_p", (0.0, 1.0)),
        ("eta_p", (0.5, 0.1)),
        ("beta", 0.0),
        ("beta", 10.0),
        ("s", 0.0),
        ("twin.sigma2", -1.0),
        ("digits.losses", ("cosin",)),
        ("digits.losses", ()),
        ("digits.batch_size", 5000),
        ("cells", 1),
    ],
)
def test_mistakes_are_told_before_any_work(field, value, tmp_path):
    config = tiny()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"^{field}: got [^\n]*takes[^\n]*$") as told:
        run_experiment(config, str(tmp_path), lambda: False)
    assert len(str(told.value).splitlines()) == 1 and not list(tmp_path.iterdir())
