"""Spectra and correlations against NumPy in float64."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from threadpoolctl import threadpool_info

from ssl_jax.linalg import asymmetry, effective_rank, from_spectrum, second_moment, symmetric_eigh
from ssl_jax.runtime.threads import lapack_on_one_thread


def test_second_moment_is_the_mean_outer_product_of_both_views():
    rng = np.random.default_rng(0)
    z1, z2 = rng.normal(size=(7, 4)), rng.normal(size=(7, 4))
    expected = np.mean([np.outer(z, z) for z in np.concatenate([z1, z2])], axis=0)
    chex.assert_trees_all_close(
        second_moment(jnp.float32(z1), jnp.float32(z2)), expected, atol=1e-5
    )


def test_spectrum_and_back():
    m = np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32)
    values, vectors = symmetric_eigh(m)
    chex.assert_trees_all_close(from_spectrum(vectors, values), (m + m.T) / 2, atol=1e-5)
    chex.assert_trees_all_close(values, np.linalg.eigvalsh((m + m.T) / 2.0), atol=1e-5)


@pytest.mark.parametrize(
    "eigenvalues, rank",
    [(np.ones(5), 5), ([1.0, 0, 0, 0], 1), ([0.5, 0.5, 0, -1e-9], 2), (np.zeros(3), 1)],
)
def test_effective_rank_of_known_spectra(eigenvalues, rank):
    chex.assert_trees_all_close(
        effective_rank(jnp.asarray(eigenvalues, jnp.float32)), jnp.float32(rank), rtol=1e-5
    )


def test_effective_rank_is_exp_of_the_entropy():
    s = np.random.default_rng(2).exponential(size=9)
    share = s / s.sum()
    expected = np.exp(-np.sum(share * np.log(share)))
    chex.assert_trees_all_close(effective_rank(jnp.float32(s)), np.float32(expected), rtol=1e-5)


def test_asymmetry_bounds():
    m = np.random.default_rng(3).normal(size=(128, 128)).astype(np.float32)
    assert asymmetry(jnp.asarray(m + m.T)) < 1e-6
    # independent entries: 2 - 2 E[m_ij m_ji]
    assert abs(float(asymmetry(jnp.asarray(m))) - np.sqrt(2)) < 0.05
    chex.assert_trees_all_close(asymmetry(jnp.asarray(m - m.T)), jnp.float32(2.0), rtol=1e-5)


def test_lapack_on_one_thread():
    """SciPy's, which XLA calls, and only while it lasts."""

    def threads():
        return [
            each["num_threads"] for each in threadpool_info() if "scipy.libs" in each["filepath"]
        ]

    symmetric_eigh(jnp.eye(3))  # loads it
    before = threads()
    with lapack_on_one_thread():
        assert threads() == [1] * len(before) and before
    assert threads() == before
