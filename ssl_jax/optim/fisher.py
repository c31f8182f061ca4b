"""Natural gradient with the empirical Fisher matrix of the batch gradient."""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ssl_jax.types import PyTree


class FisherState(NamedTuple):
    """count () int32; fisher: for each parameter the moving average of g gᵀ (k, k), or of g² in its own shape."""

    count: jax.Array
    fisher: PyTree


def scale_by_fisher(rho: float = 0.95, damping: float = 1e-3, block: int = 64) -> optax.GradientTransformation:
    """g -> (F + damping I)⁻¹ g (Amari 1998, "Natural gradient works efficiently in learning", section 3).

    F is the moving average of g gᵀ over the batch gradients, rho F + (1 - rho) g gᵀ, freed of its start at zero as
    Adam's moments are: the empirical Fisher, of which only what lies within one parameter array is kept: the whole
    block for arrays of at most `block` entries, the diagonal for larger ones. In float32 or better.
    """

    def init(params):
        return FisherState(jnp.zeros((), jnp.int32), jax.tree.map(zero, params))

    def zero(leaf):
        shape = (leaf.size, leaf.size) if leaf.size <= block else leaf.shape
        return jnp.zeros(shape, jnp.promote_types(leaf.dtype, jnp.float32))

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        fisher = jax.tree.map(average, state.fisher, updates)
        unbiased = optax.tree.bias_correction(fisher, rho, count)
        solved = jax.tree.map(lambda g, f: solve(f, g, damping), updates, unbiased)
        return solved, FisherState(count, fisher)

    def average(fisher, gradient):
        g = gradient.astype(fisher.dtype)
        square = g * g if fisher.shape == g.shape and g.size > block else jnp.outer(g, g)
        return rho * fisher + (1 - rho) * square

    def solve(fisher, gradient, damping):
        g = gradient.astype(fisher.dtype)
        if g.size > block:
            return (g / (fisher + damping)).astype(gradient.dtype)
        return solve_block(fisher, g, damping).astype(gradient.dtype)

    return optax.GradientTransformation(init, update)


def solve_block(fisher: jax.Array, gradient: jax.Array, damping: float) -> jax.Array:
    """(F + damping I)⁻¹ g for F (k, k), positive semidefinite, and g of k entries in any shape."""
    chex.assert_shape(fisher, (math.prod(gradient.shape),) * 2)
    damped = fisher + damping * jnp.eye(len(fisher), dtype=fisher.dtype)
    return jax.scipy.linalg.solve(damped, gradient.reshape(-1), assume_a="pos").reshape(gradient.shape)
