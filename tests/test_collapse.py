"""The signs of collapse against NumPy in float64, and at their two ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.dynamics.collapse import collapse_signs, relative_spread


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
    np.testing.assert_allclose(
        relative_spread(jnp.float32(z)), np.sqrt(12) * unit.std(axis=0).mean(), rtol=1e-5
    )


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
