"""Losses between what the predictor says and what the target says."""

import chex
import jax
import jax.numpy as jnp

NORM_FLOOR = 1e-12  # of torch.nn.functional.normalize


def unit(x: jax.Array) -> jax.Array:
    """x (..., D) divided by its Euclidean norm, the norm floored at 1e-12; finite gradient at zero."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, NORM_FLOOR**2))


def negative_cosine(p: jax.Array, z: jax.Array) -> jax.Array:
    """-<p, z> / (||p|| ||z||), the loss of one direction; p, z (B, D) -> (B,). No gradient flows into z.

    Höppe et al. 2022 (ReScience C), eq. 1. The loss of a pair is the sum of its two directions.
    """
    chex.assert_rank([p, z], 2)
    chex.assert_equal_shape([p, z])
    return -jnp.sum(unit(p) * unit(jax.lax.stop_gradient(z)), axis=-1)
