"""The experiment cosine_borders: its forecasts are the theory's flow, and its counts are counts."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from ssl_jax.dynamics import cosine
from ssl_jax.errors import UserError
from ssl_jax.experiments import cosine_borders as experiment
from ssl_jax.experiments import phase_diagram as phases
from ssl_jax.experiments.harness import linear_network
from ssl_jax.reports.experiments import cosine_borders as reports

CONFIG = Path(__file__).parent.parent / "configs" / "experiments" / "cosine_borders.py"


def config(**fields):
    found = runpy.run_path(str(CONFIG))["get_config"]()
    found.update_from_flattened_dict({"dim": 4, "points": 3, "grid.cells": 2} | fields)
    return found


def start_of(given, scan):
    """Made-up measurements at the start, of one seed, whose modes are all of W and W_p."""
    rng, cells = np.random.default_rng(0), len(scan.x)
    shape = 1, cells, given.dim
    s, c = rng.uniform(0.2, 1, shape), rng.uniform(0.2, 0.9, shape)
    c[..., 0] = 1
    p, f = np.ones(shape) * scan.p[:, None], s * rng.uniform(0.5, 1.5, shape)
    mean = np.zeros(shape)
    mean[..., 0] = 0.9
    found = {"begun_p": p, "begun_s": s, "begun_f": f, "begun_c": c, "begun_mean": mean}
    one = np.ones((1, cells, 2))
    found |= {
        "at": np.array([0, experiment.steps_of(given)[1]]),
        "size": np.linalg.norm(np.sqrt(s), axis=-1)[..., None] * one,
        "size_p": np.linalg.norm(p, axis=-1)[..., None] * one,
    }
    return found


@pytest.mark.parametrize(("direct", "averaged"), [(False, True), (True, False)])
def test_forecasts_are_the_flow_where_steps_are_small(direct, averaged):
    pytest.importorskip("diffrax")
    given = config(learning_rate=2e-3, time=4.0)
    scan = experiment.Scan(
        x=np.ones(2),
        alpha_p=np.array([0.5, 2.0]),
        eta_p=np.array([0.0, 0.2]),
        eta_s=0.1,
        p=np.array([0.3, 0.6]),
        eps=np.array([0.05, 0.3]) if direct else None,
        averaged=averaged,
        noise=0.3,
        seeds=1,
    )
    found = start_of(given, scan)
    p, s, f, c = (found[f"begun_{x}"][0] for x in ("p", "s", "f", "c"))
    same = {
        "s": s,
        "c": c,
        "variance": f / s,
        "times": [0.0, given.early * given.time, given.time],
        "eta_s": scan.eta_s,
        "beta": given.beta if averaged else None,
        "order": "leading",
    }
    if direct:
        curves = cosine.simulate_direct(eps=scan.eps, **same)
    else:
        curves = cosine.simulate(p=p, alpha_p=scan.alpha_p, eta_p=scan.eta_p, **same)
    got = experiment.forecast(given, scan, found, norms=False)
    for column, spectra in enumerate(got):
        expected = (curves.s * (f / s)[:, None])[:, column + 1]
        assert np.abs(expected - f).max() > 0.05  # it has gone somewhere
        np.testing.assert_allclose(spectra[0], expected, rtol=5e-3)


def test_a_forecast_keeps_the_norms_of_the_run():
    given = config(time=5.0)
    scan = experiment.scans(given)["decay-none"]
    found = start_of(given, scan)
    found["size"] = found["size"] * np.array([1.0, 4.0])
    early, end = experiment.forecast(given, scan, found, norms=True)
    a = found["begun_f"] / found["begun_s"]
    start = found["begun_s"].sum(-1)
    np.testing.assert_allclose((end / a).sum(-1), 16 * start, rtol=1e-9)
    at = experiment.steps_of(given)[0] / experiment.steps_of(given)[1]
    np.testing.assert_allclose((early / a).sum(-1), 4 ** (2 * at) * start, rtol=1e-9)


def test_the_flows_ends_are_water_and_the_law():
    given = config()
    for name, eps in (("balance-1", None), ("eps-none", experiment.scans(given)["eps-none"].eps)):
        scan = experiment.scans(given)[name]
        found = start_of(given, scan)
        p, s, f, c = (found[f"begun_{x}"] for x in ("p", "s", "f", "c"))
        got = experiment.ends(scan, found)
        if eps is None:
            # what is kept: p² - α s of living modes, with p = q c of one q
            rest = np.sqrt(np.maximum(got * s / f + p**2 - s, 0)) / c
            for row, lives in zip(rest[0], got[0] > 0, strict=True):
                assert lives.any() and np.ptp(row[lives]) < 1e-9
        else:
            law = np.maximum((1 + eps[:, None]) * c[0] - eps[:, None], 0) ** 2
            np.testing.assert_allclose(got[0], law)
    assert experiment.ends(experiment.scans(given)["decay-none"], found) is None


def test_the_mean_is_no_living_mode():
    given = config()
    found = start_of(given, experiment.scans(given)["balance-1"])
    found["begun_mean"][..., 0] = 1.0  # all of the first mode is mean
    lives = experiment.alive(np.ones_like(found["begun_f"]), found)
    assert not lives[..., 0].any() and lives[..., 1:].all()


@pytest.mark.slow
def test_modes_are_measured_as_numpy_measures_them():
    given = config(width=6)
    parts = experiment.build(given, 0.5)
    optimizer = linear_network.two_rates(learning_rate=0.1, predictor_learning_rate=0.1)
    key = jax.random.key(0)
    state = phases.init_digits(parts, key, optimizer, False, 0.7, given.s)
    got = {name: np.asarray(x) for name, x in experiment.modes_of(parts, state, key).items()}
    one, two = (np.asarray(z, np.float64) for z in parts.project(state, key))
    both = np.concatenate([one, two])
    f, v = np.linalg.eigh(both.T @ both / len(both))
    f, v = f[::-1], v[:, ::-1]
    kernel = np.asarray(state.params["projector"]["linear2"]["kernel"], np.float64)
    right = {
        "f": f,
        "c": np.diag(v.T @ one.T @ two @ v) / len(one) / f,
        "mean": (both.mean(0) @ v) ** 2 / f,
        "s": np.diag(v.T @ kernel.T @ kernel @ v),
        "p": np.full(4, 0.7),
        "size": np.linalg.norm(kernel),
    }
    for name, expected in right.items():
        np.testing.assert_allclose(got[name], expected, rtol=2e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("x", "alive", "words"),
    [
        ([1, 100], [[0.0, 1.0], [0.0, 1.0]], "10"),
        ([1, 10, 1000], [[1.0, 0.75, 0.0], [1.0, 0.75, 0.0]], "46"),  # a third of two decades
        ([1, 10], [[1.0, 0.5]], "none"),
    ],
)
def test_a_border_is_where_half_of_the_modes_live(x, alive, words):
    assert reports.border(x, alive) == words


def test_ranks_are_compared_by_their_order():
    x = np.array([0.3, 2.0, 1.0, 7.0])
    assert experiment.spearman(x, x**3) == pytest.approx(1)
    assert experiment.spearman(x, -np.exp(x)) == pytest.approx(-1)
    assert experiment.spearman(x, np.ones(4)) == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"balance": (1.0, 0.1)}, "^balance: got .1.0, 0.1., takes two ascending numbers"),
        ({"grid.eta_p": (0.0, 0.1)}, "^grid.eta_p: got .0.0, 0.1., takes two ascending numbers"),
        ({"beta": 10.0}, "^beta: got 10.0, takes a number above 0 and below 10"),
        ({"noises": ()}, "^noises: got .., takes numbers from 0"),
    ],
)
def test_mistakes_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        experiment.check(config(**fields))


@pytest.mark.slow
def test_from_training_to_the_report():
    """A short run: W_p of DirectPred is written down, and every scan is in the table."""
    given = config(time=2.0, width=6, batch_size=16, seeds=1, **{"grid.seeds": 1})
    cells = {n: c.make(lambda steps: None) for n, c in experiment.plan(given, None).items()}
    written = cells["eps-none"]
    f, eps = written["end_f"][0], experiment.scans(given)["eps-none"].eps
    np.testing.assert_allclose(
        written["end_p"][0], np.sqrt(f / f.max(-1, keepdims=True)) + eps[:, None], rtol=0.2
    )
    result = experiment.summarise(given, None, cells) | {"config": given.to_dict()}
    text = reports.report(result)
    assert text.count("\n| ") == 2 * 3 + 2 * 2 + 4 + 2 * 2 + 1 and "Spearman" in text
    assert set(reports.draw(result)) == {"cosine_borders"}
