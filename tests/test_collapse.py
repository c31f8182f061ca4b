"""The signs of collapse against NumPy in float64 and at their two ends; the words name what to turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.dynamics.collapse import RANK_FLOOR, SPREAD_FLOOR, collapse_signs, relative_spread, verdict


@pytest.mark.parametrize("dim", [8, 128])
def test_spread_of_an_even_sphere_is_one(dim):
    z = np.random.default_rng(0).normal(size=(4096, dim))
    assert abs(relative_spread(jnp.float32(z)) - 1) < 0.02


def test_spread_of_one_point_is_none():
    z = np.tile(np.random.default_rng(0).normal(size=(1, 16)), (64, 1))
    assert relative_spread(jnp.float32(z)) < 1e-3
    lengths = np.random.default_rng(1).uniform(0.1, 9, size=(64, 1))
    assert relative_spread(jnp.float32(z * lengths)) < 1e-3  # the cosine sees no length
    assert relative_spread(jnp.zeros((64, 16))) == 0


def test_spread_is_its_formula():
    z = 3 * np.random.default_rng(2).normal(size=(32, 12)) + 1
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(relative_spread(jnp.float32(z)), np.sqrt(12) * unit.std(axis=0).mean(), rtol=1e-5)


def test_signs_are_their_formulas():
    rng = np.random.default_rng(3)
    z, w = rng.normal(size=(50, 7)) * np.geomspace(3, 0.1, 7), rng.normal(size=(7, 7))
    correlation = z.T @ z / 50
    s = np.linalg.eigvalsh(correlation)
    share = s / s.sum()
    expected = {
        "effective_rank": np.exp(-np.sum(share * np.log(share))),
        "top_eigenvalue": s[-1],
        "predictor_norm": np.sqrt(np.sum(w**2)),
        "predictor_asymmetry": np.sqrt(np.sum((w - w.T) ** 2) / np.sum(w**2)),
    }
    signs = jax.jit(collapse_signs)(jnp.float32(correlation), jnp.float32(w))
    assert signs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(signs[name], value, rtol=1e-4, err_msg=name)


HEALTHY = {
    "spread": 0.9,
    "rank": 20.0,
    "dim": 128,
    "tau": 0.996,
    "symmetric": False,
    "learned": True,
    "predictor_decay": 4e-4,
}


def test_verdict_of_a_healthy_run():
    healthy = verdict(**HEALTHY)
    assert not healthy.collapsed and healthy.words.startswith("not collapsed")
    assert "0.900" in healthy.words and "20.0 of 128" in healthy.words


@pytest.mark.parametrize(
    "dim, rank, collapsed", [(128, 8.5, False), (128, 1.02, True), (8, 1.6, False), (8, 1.4, True)]
)
def test_verdict_on_effective_rank_goes_by_its_share_of_the_dimensions(dim, rank, collapsed):
    """At D = 128 the published SimSiam, and the published symmetric SimSiam."""
    assert verdict(**HEALTHY | {"dim": dim, "rank": rank}).collapsed == collapsed


@pytest.mark.parametrize("sign", [{"spread": SPREAD_FLOOR / 2}, {"rank": (1 + RANK_FLOOR) / 2}])
def test_verdict_goes_by_either_sign_and_names_the_knobs(sign):
    collapsed = verdict(**HEALTHY | sign | {"tau": 0, "symmetric": True})
    assert collapsed.collapsed and collapsed.words.startswith("COLLAPSED")
    for knob in (
        "target.tau=",
        "predictor.symmetric=False",
        "optimizer.predictor.learning_rate",
        "optimizer.predictor.weight_decay (now 0.0004)",
    ):
        assert knob in collapsed.words


def test_verdict_does_not_advise_what_is_already_so():
    words = verdict(**HEALTHY | {"spread": 0.01}).words
    assert "target.tau" not in words and "predictor.symmetric" not in words
    closed_form = verdict(**HEALTHY | {"spread": 0.01, "learned": False}).words
    assert "optimizer.predictor" not in closed_form and "optimizer.learning_rate" in closed_form


@pytest.mark.parametrize("sign", ["spread", "rank"])
def test_verdict_on_numbers_that_are_none(sign):
    assert verdict(**HEALTHY | {sign: float("nan")}).collapsed
