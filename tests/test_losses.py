"""The loss against its formula in float64, and where its gradient goes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.losses import negative_cosine, unit


def pair(seed=0, shape=(6, 5)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape)


def test_is_minus_the_cosine():
    p, z = pair()
    expected = -np.sum(p * z, axis=1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1)
    chex.assert_trees_all_close(negative_cosine(jnp.float32(p), jnp.float32(z)), expected, atol=1e-6)


def test_same_direction_is_minus_one_and_scale_does_not_matter():
    p, _ = pair()
    chex.assert_trees_all_close(negative_cosine(jnp.float32(p), jnp.float32(300 * p)), -np.ones(6), atol=1e-6)


def test_gradient_is_analytic_in_p_and_none_in_z():
    p, z = pair()
    in_p, in_z = jax.grad(lambda p, z: negative_cosine(p, z).sum(), (0, 1))(jnp.float32(p), jnp.float32(z))
    norm, zu = np.linalg.norm(p, axis=1, keepdims=True), z / np.linalg.norm(z, axis=1, keepdims=True)
    pu = p / norm
    chex.assert_trees_all_close(in_p, -(zu - pu * np.sum(pu * zu, axis=1, keepdims=True)) / norm, atol=1e-6)
    chex.assert_trees_all_equal(in_z, jnp.zeros_like(in_z))


def test_zero_vector_has_finite_loss_and_gradient():
    z = jnp.ones((2, 3))
    value, grad = jax.value_and_grad(lambda p: negative_cosine(p, z).sum())(jnp.zeros((2, 3)))
    assert value == 0 and jnp.all(jnp.isfinite(grad))
    chex.assert_trees_all_close(unit(jnp.zeros(3)), jnp.zeros(3))


def test_wrong_shapes_are_refused():
    with pytest.raises(AssertionError):
        negative_cosine(jnp.zeros((2, 3)), jnp.zeros((3, 3)))
