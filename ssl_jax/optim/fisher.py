"""Natural gradient with the empirical Fisher matrix of the batch gradient."""

# JAX and Optax leave the types of leaves, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import math
from typing import NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import optax

from ssl_jax.types import Params, PyTree


class FisherState(NamedTuple):
    """The state of `scale_by_fisher`."""

    # () int32, steps taken. (A tuple has a method of this name, which nothing here calls.)
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    fisher: PyTree  # per parameter, the moving average of g gᵀ (k, k), or of g² in its own shape


def scale_by_fisher(
    rho: float = 0.95, damping: float = 1e-3, block: int = 64
) -> optax.GradientTransformation:
    """Return g -> (F + damping I)⁻¹ g, with the empirical Fisher matrix F.

    Amari 1998, "Natural gradient works efficiently in learning", section 3. F is the moving average
    rho F + (1 - rho) g gᵀ over the batch gradients. Its bias towards its start at zero is corrected
    as that of Adam's moments. It has no entries between two parameter arrays. Computed in float32
    or better.

    Args:
        rho: share of the old average, in [0, 1).
        damping: what is added to the diagonal of F, above 0.
        block: an array of at most this many entries has its whole block of F, a larger one the
            diagonal.

    Returns:
        A transformation of gradients with a `FisherState`.
    """

    def init(params: Params) -> FisherState:
        return FisherState(jnp.zeros((), jnp.int32), jax.tree.map(zero, params))

    def zero(leaf: jax.Array) -> jax.Array:
        shape = (leaf.size, leaf.size) if leaf.size <= block else leaf.shape
        return jnp.zeros(shape, jnp.promote_types(leaf.dtype, jnp.float32))

    def update(
        updates: Params, state: FisherState, params: Params | None = None
    ) -> tuple[Params, FisherState]:
        del params
        count = state.count + 1
        fisher = jax.tree.map(average, state.fisher, updates)
        unbiased = cast(PyTree, optax.tree.bias_correction(fisher, rho, count))
        solved = jax.tree.map(lambda g, f: solve(f, g, damping), updates, unbiased)
        return solved, FisherState(count, fisher)

    def average(fisher: jax.Array, gradient: jax.Array) -> jax.Array:
        g = gradient.astype(fisher.dtype)
        square = g * g if fisher.shape == g.shape and g.size > block else jnp.outer(g, g)
        return rho * fisher + (1 - rho) * square

    def solve(fisher: jax.Array, gradient: jax.Array, damping: float) -> jax.Array:
        g = gradient.astype(fisher.dtype)
        if g.size > block:
            return (g / (fisher + damping)).astype(gradient.dtype)
        return solve_block(fisher, g, damping).astype(gradient.dtype)

    # Optax lets a state be any pytree; this one is given its own back.
    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def solve_block(fisher: jax.Array, gradient: jax.Array, damping: float) -> jax.Array:
    """Compute (F + damping I)⁻¹ g.

    Args:
        fisher: F (k, k), positive semidefinite.
        gradient: g, k entries in any shape.
        damping: a number above 0.

    Returns:
        An array of the gradient's shape.
    """
    chex.assert_shape(fisher, (math.prod(gradient.shape),) * 2)
    damped = fisher + damping * jnp.eye(len(fisher), dtype=fisher.dtype)
    return jax.scipy.linalg.solve(damped, gradient.reshape(-1), assume_a="pos").reshape(
        gradient.shape
    )
