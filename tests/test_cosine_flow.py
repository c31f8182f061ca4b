"""The experiment cosine_flow: its networks take the theory's steps, and its numbers are what they
say they are.
"""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from ssl_jax.dynamics import cosine
from ssl_jax.errors import UserError
from ssl_jax.experiments import cosine_flow as experiment
from ssl_jax.reports.experiments import cosine_flow as reports

CONFIG = Path(__file__).parent.parent / "configs" / "experiments" / "cosine_flow.py"


def config(**fields):
    found = runpy.run_path(str(CONFIG))["get_config"]()
    found.update_from_flattened_dict({"dim": 3, "inputs": 4, "settings": 5} | fields)
    return found


@pytest.mark.parametrize("kind", ["simsiam, matrices", "byol, symmetric, matrices"])
def test_a_short_time_is_the_exact_gradient(kind):
    """Six steps of a thousandth: what W and W_p moved is the theory's rate times that, but for the
    noise of 8192 examples and the second order."""
    given = config(time=6e-3)
    setting = experiment.draw_settings(given, kind)
    w, w_p, w_a = experiment.train(given, setting, kind, 6, 8192)
    _, symmetric, _, _ = experiment.KINDS[kind]

    @jax.jit
    def rates(w, w_p, x, x_prime, flow):
        data = {"x": x, "x_prime": x_prime, "mean": np.zeros(4), "nodes": 24}
        return cosine.matrix_rates(w, w_p, w, symmetric=symmetric, **data, **flow)

    for row in (0, 4):  # without decay, and with both
        flow = {n: None if x is None else x[row] for n, x in setting.flow.items()}
        with jax.enable_x64(True):
            arrays = (x[row] for x in (setting.w, setting.w_p, setting.x, setting.x_prime))
            dw, dw_p, _ = map(np.asarray, rates(*arrays, flow))
        for found, right in ((w, dw), (w_p, dw_p)):
            moved = (found[row, -1] - found[row, 0]) / given.time
            assert np.linalg.norm(moved - right) < 0.05 * np.linalg.norm(right)
    if symmetric:  # the target follows behind
        assert 0 < np.abs(w_a[:, -1] - w_a[:, 0]).max() < 0.1 * np.abs(w[:, -1] - w[:, 0]).max()


def test_settings_have_no_decay_one_and_both_and_make_the_flow():
    for kind in experiment.KINDS:
        setting = experiment.draw_settings(config(), kind)
        flow = setting.flow
        assert (flow["eta_p"] > 0).tolist() == [False] * 3 + [True] * 2
        assert (flow["eta_s"] > 0).tolist() == [False] * 4 + [True]
        experiment.columns(setting, kind, 0.05)  # asserts that `mapping` gives this flow


def test_errors_of_steps_and_noise_are_told_apart():
    dt = np.array([0.2, 0.1, 0.05])
    rms = {str(b): np.sqrt((0.3 * dt) ** 2 + 0.08**2 * dt / b) for b in (16, 128, 4096)}
    np.testing.assert_allclose(experiment.fit_errors(dt, rms), [0.3, 0.08], rtol=1e-6)


def test_a_difference_is_in_units_of_the_start():
    setting = experiment.draw_settings(config(), "simsiam")
    p, s = (np.ones((5, 2, 3)) * x[:, None] for x in (setting.p, setting.s))
    off = experiment.difference(setting, (p, s, s), (p + 0.1, s, s - 0.2), True)
    np.testing.assert_allclose(-off.min(1), 0.1 / setting.p.max(1))
    np.testing.assert_allclose(off.max(1), 0.2 / setting.s.max(1))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": (30, 50)}, "^steps: got 50, takes multiples of 6"),
        ({"steps": (60, 30)}, "^steps: got .60, 30., takes two or more ascending"),
        ({"batch_sizes": (0,)}, "^batch_sizes: got 0, takes numbers from 1"),
        ({"inputs": 2}, r"^inputs: got 2, takes at least dim \(3\)"),
    ],
)
def test_mistakes_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        experiment.check(config(**fields))


@pytest.mark.slow
def test_errors_halve_with_the_step():
    """Two kinds at two sizes of the step, from the cells to the report."""
    given = config(steps=(24, 48), batch_sizes=(64,), settings=4)
    names = {name for name in experiment.plan(given, None) if "matrices" not in name}
    cells = {
        n: c.make(lambda steps: None) for n, c in experiment.plan(given, None).items() if n in names
    }
    for kind in experiment.KINDS:
        if "matrices" in kind:
            name = kind.replace(", ", "-")
            cells |= {f"{name}-{n}": cells[f"simsiam-{n}"] for n in (24, 48)}
    result = experiment.summarise(given, None, cells)
    for part in result["kinds"].values():
        assert part["largest"][-1] < 0.06 < part["moved"][0]
        assert 1.5 < np.divide(*part["median"]) < 2.6
    text = reports.report(result | {"config": given.to_dict()})
    assert text.count("\n| ") == 7 and "batch" in text
