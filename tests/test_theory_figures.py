"""The theory's figures hold what they show, and the task draws what its configuration names."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from scipy.integrate import solve_ivp

from configs import theory as configuration
from ssl_jax.dynamics import theory
from ssl_jax.errors import UserError
from ssl_jax.reports.theory_figures import FIGURES
from ssl_jax.tasks.theory import as_json
from ssl_jax.tasks.theory import theory as task

SMALL = {
    "figure3": {"cells": 8},
    "figure4": {},
    "figure5": {},
    "figure7": {"runs": 3, "size": 4},
    "figure8": {"runs": 3, "size": 4},
    "figure9": {"runs": 3, "size": 4},
    "figure10": {},
    "phase_diagram": {"cells": 8},
    "water": {"modes": 4},
    "direct_spectrum": {"modes": 4},
    "euclid_and_cosine": {"modes": 4, "cells": 13},
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """{name: (arrays, pixels)}, each figure drawn once."""
    folder = tmp_path_factory.mktemp("figures")
    plt.close("all")  # those of other files' tests
    return {
        name: (FIGURES[name](folder / f"{name}.png", **SMALL[name]), read(folder / f"{name}.png"))
        for name in FIGURES
    }


def read(path):
    with Image.open(path) as picture:
        assert picture.info["dpi"][0] == pytest.approx(150, abs=0.1)
        return np.asarray(picture.convert("L"))


@pytest.mark.slow
def test_every_figure_is_a_picture_with_something_on_it(drawn):
    assert set(FIGURES) == set(SMALL) and not plt.get_fignums()
    for name, (_, pixels) in drawn.items():
        assert min(pixels.shape) > 450 and pixels.std() > 5, name


@pytest.mark.slow
def test_water_settles_at_one_height_and_the_flow_ends_there(drawn):
    shown = drawn["water"][0]
    alive, end = shown["alive"], shown["s"][-1]
    np.testing.assert_array_equal(end > 1e-6, alive)
    heights = (1 - 0.5 * shown["start"] + 0.5 * end)[alive] / shown["c"][alive] ** 2
    level = np.broadcast_to(shown["q2"], heights.shape)
    np.testing.assert_allclose(heights, level, rtol=1e-6)
    assert 0 < alive.sum() < len(alive)


@pytest.mark.slow
def test_spectrum_falls_with_what_views_share_and_is_cut_by_eps(drawn, tmp_path):
    shown = drawn["direct_spectrum"][0]
    wider = FIGURES["direct_spectrum"](tmp_path / "wider.png", modes=8)
    assert (np.diff(shown["law"], axis=1) <= 0).all() and (np.diff(shown["law"], axis=0) <= 0).all()
    # The law is of many modes. The exact flow of a few ends below it, by less the more there are:
    # by .18 at most for four, by .14 for eight (python launch.py --config configs/theory.py).
    gaps = {len(one["law"][0]): one["law"][:, None] - one["flow"] for one in (shown, wider)}
    assert min(gap.min() for gap in gaps.values()) > -1e-3
    assert gaps[8].max() < gaps[4].max() < 0.2
    np.testing.assert_allclose(shown["flow"][:, 0], shown["flow"][:, 1], atol=1e-3)


@pytest.mark.slow
def test_decay_and_size_decide_under_the_squared_distance_alone(drawn):
    """Without decay a mode with p > 0 dies there iff p² - α_p s >= c². At rest with decay η it
    needs p (c - p) = η, which no p solves above η = c² / 4."""
    shown = drawn["euclid_and_cosine"][0]
    c, p, r = shown["c"], shown["p"][:, None, None], shown["r"][:, None]
    np.testing.assert_array_equal(shown["euclid_r"], np.sum(p**2 * (1 - r) < c**2, -1))
    assert (shown["cosine_r"] == shown["cosine_r"][0]).all()
    assert shown["cosine_r"][0, 0] < shown["cosine_r"][0, -1] == len(c)
    possible = np.sum(shown["decay"][:, None] <= c**2 / 4, -1)
    assert (shown["euclid_decay"] <= possible).all() and (shown["euclid_decay"][0] > 0).any()
    assert (shown["cosine_decay"] == shown["cosine_decay"][:, :1]).all()


@pytest.mark.slow
def test_phase_portrait_shades_the_basin_of_collapse(drawn):
    shown = drawn["figure3"][0]
    free, weak, strong = shown["collapses"]
    p, s = np.meshgrid(shown["p"], shown["s"])
    below = (s < p**2) & ((p < 0) | (s < p**2 - 1)) | (s == 0)  # without decay, in closed form
    np.testing.assert_array_equal(free, below)
    assert strong.all() and weak.mean() < free.mean()
    assert weak[s == 0].all()


@pytest.mark.slow
def test_the_curve_on_the_parabola_has_its_zeros_where_the_roots_are(drawn):
    shown = drawn["figure4"][0]
    weak = shown["dp"][1]  # eta = .1
    low, high = (1 - np.sqrt(0.6)) / 2, (1 + np.sqrt(0.6)) / 2
    inside = (shown["p"] > low) & (shown["p"] < high)
    assert (weak[inside] > 0).all() and (weak[shown["p"] > high] < 0).all()
    assert (shown["dp"][3][shown["p"] > 0] < 0).all()  # above the critical decay
    for tau, (small, large) in zip(shown["taus"], shown["roots"], strict=True):
        exist = shown["decay"] <= tau**2 / 4
        assert np.isfinite(small[exist]).all() and np.isnan(large[~exist]).all()


@pytest.mark.slow
def test_curves_over_time_end_at_rest(drawn):
    """The two weakest decays have come to p₊ of a p² - p + η = 0, the strongest has collapsed."""
    shown = drawn["figure5"][0]
    for i in (0, 1):
        assert shown["eta_p"][i, -1] == pytest.approx(
            (1 + np.sqrt(1 - 4 * shown["eta"][i])) / 2, rel=2e-3
        )
    assert shown["eta_s"][-1, -1] < 1e-4 and (shown["eta_tau"][:, 0] == 0).all()
    same = shown["beta_p"][list(shown["beta"]).index(0.4)]
    np.testing.assert_allclose(same, shown["eta_p"][list(shown["eta"]).index(0.04)], atol=1e-9)
    halfway = (shown["beta_p"] > 0.5).argmax(axis=1)
    assert (np.diff(halfway) < 0).all()  # the quicker the target, the sooner a mode is learned


@pytest.mark.slow
def test_target_stays_in_proportion(drawn):
    """At once W_a = β t W, at last W_a = W; between them it need not."""
    correlation = drawn["figure7"][0]["correlation"]
    assert correlation.shape == (3, 3, 150)
    np.testing.assert_allclose(correlation[..., 0], 1, atol=1e-3)
    assert 0.9 < correlation.min() < 0.999 and (correlation[..., -1] > 0.99).all()


@pytest.mark.slow
def test_decay_makes_the_predictor_symmetric_and_aligned(drawn):
    shown = drawn["figure8"][0]
    assert (shown["antisymmetric"][..., 0] > 0.3).all() and shown["antisymmetric"][
        2, :, -1
    ].max() < 1e-4
    assert shown["symmetric"][..., -1].min() > 0.5
    commutator = drawn["figure9"][0]["commutator"]
    assert (commutator[..., -1] < 1e-3 * commutator[..., 0]).all()


@pytest.mark.slow
def test_flows_of_one_coordinate(drawn):
    shown = drawn["figure10"][0]
    w, y = np.meshgrid(shown["w"], shown["y"])
    held, tied, plain = shown["flows"]
    np.testing.assert_allclose(held, [y * (0.5 - y * w), w * (0.5 - y * w)], atol=1e-14)
    np.testing.assert_allclose(tied, [w * (y / 2 - w**2), w - y], atol=1e-14)
    np.testing.assert_allclose(plain, [y / 2 - w, w - y], atol=1e-14)


@pytest.mark.slow
def test_phase_diagram_has_both_phases_and_a_quick_predictor_learns(drawn):
    shown = drawn["phase_diagram"][0]
    for dies in shown["collapses"]:
        assert 0 < dies.sum() < dies.size
        # upwards, in alpha_p, only from collapse to learning
        assert (np.diff(dies.astype(int), axis=0) <= 0).all()
    i, j = 5, 2
    setting = {"alpha_p": shown["alpha_p"][i], "eta_p": shown["eta_p"][j], "eta_s": 0.1}
    end = solve_ivp(
        lambda t, y: theory.mode_rates(*y, 1.0, **setting)[:2],
        (0, 3000),
        (0.0, 0.1),
        "LSODA",
        atol=1e-12,
    )
    assert shown["collapses"][0, i, j] == (end.y[1, -1] < 1e-6)


def test_task_draws_one_figure_and_tells_its_numbers(tmp_path, capsys):
    task(configuration.get_config("figure4"), str(tmp_path))
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["figure4.png"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["task"] == "theory" and list(result["figures"]) == ["figure4"]
    assert result["figures"]["figure4"]["eta"] == [0.0, 0.1, 0.25, 0.4]
    assert len(json.dumps(result)) < 10_000 and "figure4.png" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "task": "theory",
        "figure": "figure4",
    }


def test_all_is_every_figure(tmp_path, monkeypatch):
    for name in FIGURES:
        monkeypatch.setitem(FIGURES, name, lambda path: {"path": np.array([path.name])})
    task(configuration.get_config(), str(tmp_path))
    figures = json.loads((tmp_path / "result.json").read_text())["figures"]
    assert figures == {name: {"path": [f"{name}.png"]} for name in FIGURES}


def test_numbers_are_written_as_json_can_hold_them():
    assert as_json(np.array([1.0, np.nan, np.inf])) == [1, None, None]
    large = as_json(np.concatenate([np.arange(100.0), [np.nan]]))
    assert large == {"shape": [101], "min": 0, "max": 99, "mean": 49.5}


def test_mistakes_leave_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="^figure: got 'figure6', did you mean"):
        configuration.get_config("figure6")
    config = configuration.get_config()
    config.figure = "figure6"
    with pytest.raises(UserError, match="^figure: got 'figure6', did you mean"):
        task(config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_the_configuration_knows_every_figure():
    assert set(configuration.FIGURES) == {*FIGURES, "all"}
