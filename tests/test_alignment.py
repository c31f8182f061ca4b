"""Eigenspace alignment against NumPy in float64, and on matrices whose answer is known."""

import jax
import numpy as np
import pytest

from ssl_jax.dynamics.alignment import eigenspace_alignment
from ssl_jax.predictors.direct import direct_pred


def random_pair(dim=7, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(40, dim)) * np.linspace(1, 3, dim)
    return np.float32(z.T @ z / 40), np.float32(rng.normal(size=(dim, dim)))


@pytest.mark.parametrize("compile", [False, True])
def test_is_the_formula_in_float64(compile):
    corr, w = random_pair()
    measure = jax.jit(eigenspace_alignment) if compile else eigenspace_alignment
    got = measure(corr, w)
    s, v = np.linalg.eigh(np.float64(corr))
    s, v = s[::-1], v[:, ::-1]
    moved = np.float64(w) @ v
    np.testing.assert_allclose(got["corr_eigenvalues"], s, rtol=1e-4)
    np.testing.assert_allclose(
        got["alignment"], (v * moved).sum(0) / np.linalg.norm(moved, axis=0), atol=1e-4
    )
    real = np.sort(np.linalg.eigvals(np.float64(w)).real)[::-1]
    np.testing.assert_allclose(got["predictor_eigenvalues"], real, atol=1e-4)
    np.testing.assert_allclose(got["asymmetry"], np.abs(w - w.T).sum() / np.abs(w).sum(), rtol=1e-5)


def test_the_closed_form_is_aligned_and_its_negative_is_turned_round():
    corr, _ = random_pair()
    w = np.asarray(direct_pred(corr))
    for sign in (1, -1):
        got = eigenspace_alignment(corr, sign * w)
        np.testing.assert_allclose(got["alignment"], sign, atol=1e-4)
        assert got["asymmetry"] < 1e-5
    s = np.asarray(got["corr_eigenvalues"], np.float64)
    expected = np.sort(-(np.sqrt(s / s[0]) + 0.1))[::-1]
    np.testing.assert_allclose(got["predictor_eigenvalues"], expected, atol=1e-4)


def test_a_random_matrix_is_as_asymmetric_as_can_be_and_aligned_with_nothing():
    """Both norms give sqrt(2) for independent Gaussian entries: E |a - b| / E |a|."""
    corr, w = random_pair(128)
    got = eigenspace_alignment(corr, w)
    assert got["asymmetry"] == pytest.approx(np.sqrt(2), abs=0.02)
    assert abs(np.mean(got["alignment"])) < 0.05


def test_a_quarter_turn_and_the_zero_matrix_have_no_alignment():
    turn = np.float32([[0, -1], [1, 0]])
    got = eigenspace_alignment(np.diag(np.float32([2, 1])), turn)
    np.testing.assert_allclose(got["alignment"], 0, atol=1e-6)
    np.testing.assert_allclose(got["predictor_eigenvalues"], 0, atol=1e-6)
    assert got["asymmetry"] == pytest.approx(2)
    nothing = eigenspace_alignment(np.eye(2, dtype=np.float32), np.zeros((2, 2), np.float32))
    assert (
        all(np.isfinite(value).all() for value in nothing.values())
        and not nothing["alignment"].any()
    )


def test_many_at_once():
    pairs = [random_pair(seed=n) for n in range(3)]
    together = jax.vmap(eigenspace_alignment)(*map(np.stack, zip(*pairs, strict=True)))
    for i, (corr, w) in enumerate(pairs):
        for name, value in eigenspace_alignment(corr, w).items():
            np.testing.assert_allclose(together[name][i], value, atol=1e-4, rtol=1e-4)


def test_a_matrix_that_is_not_finite_has_no_eigenvalues():
    """The run that it belongs to ends with its own message."""
    corr, w = random_pair(4)
    w = np.array(w)
    w[0, 0] = np.nan
    got = jax.jit(eigenspace_alignment)(corr, w)
    assert (
        np.isnan(got["predictor_eigenvalues"]).all() and np.isfinite(got["corr_eigenvalues"]).all()
    )
