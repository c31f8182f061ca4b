"""Opposing penalties: weight decay that makes a weight larger.

Ordinary decay subtracts P = d theta, which belongs to the weight before the step, from the weight
after it, theta - eta U. The penalty makes the weight larger where the step has carried it below
P / 2 or across zero: (theta - eta U - P)² > (theta - eta U)². For theta > 0 the condition is
eta U > (1 - d / 2) theta, and it is mirrored below zero. Decay in real time,
(1 - d)(theta - eta U), never does so.
"""

import jax
import jax.numpy as jnp

from ssl_jax.types import Params, PyTree


def opposing(theta: jax.Array, update: jax.Array, d: jax.Array | float) -> jax.Array:
    """Return True where the penalty d theta makes a weight larger after the update -eta U.

    Args:
        theta: weights before the step, of any shape.
        update: -eta U without the decay, in the shape of theta.
        d: decay of one step, a number or an array that broadcasts to theta.

    Returns:
        Booleans in the shape of theta. Entries without a penalty are False.
    """
    towards_zero = -update * jnp.sign(theta)
    return (jnp.abs(d * theta) > 0) & (towards_zero > (1 - d / 2) * jnp.abs(theta))


def opposing_penalty(
    params: Params, updates: Params, decay: float | PyTree
) -> dict[str, jax.Array]:
    """Measure how much of a step's weight decay opposes it, over the whole tree.

    Args:
        params: weights before the step.
        updates: -eta U, as Optax gives them, without the decay; a tree like params.
        decay: d, a number or a pytree of one number a parameter.

    Returns:
        ratio (): A = sum |P| over the opposing entries / sum |P| over all entries.
        bounded_ratio (): A / (1 + A), at most 1/2.
        fraction (): share of all entries that oppose.
        All three are 0 without any decay.
    """
    return _shares(*(sum(column) for column in zip(*_sums(params, updates, decay), strict=True)))


def opposing_by_layer(
    params: Params, updates: Params, decay: float | PyTree, index: tuple[PyTree, int]
) -> dict[str, jax.Array]:
    """Measure how much of a step's weight decay opposes it, for each layer.

    Args:
        params: weights before the step.
        updates: -eta U, as Optax gives them, without the decay; a tree like params.
        decay: d, a number or a pytree of one number a parameter.
        index: the layer of each parameter, from 1, and the number n of layers, from `layer_index`.

    Returns:
        ratio, bounded_ratio and fraction of `opposing_penalty`, (n,) each.
    """
    layers, n = index
    place = jnp.array(jax.tree.leaves(layers)) - 1
    columns = zip(*_sums(params, updates, decay), strict=True)
    return _shares(*(jax.ops.segment_sum(jnp.stack(column), place, n) for column in columns))


def _sums(params: Params, updates: Params, decay: float | PyTree) -> list[tuple[jax.Array, ...]]:
    """Return four sums for each parameter, float32.

    They are |P| over opposing entries, |P| over all, opposing entries, and entries.
    """
    whole = jax.tree.structure(decay) == jax.tree.structure(params)
    rates = decay if whole else jax.tree.map(lambda _: decay, params)

    def one(theta: jax.Array, update: jax.Array, d: jax.Array | float) -> tuple[jax.Array, ...]:
        theta, update = theta.astype(jnp.float32), update.astype(jnp.float32)
        opposes, penalty = opposing(theta, update, d), jnp.abs(d * theta)
        return (
            jnp.sum(jnp.where(opposes, penalty, 0.0)),
            jnp.sum(penalty),
            jnp.sum(opposes.astype(jnp.float32)),
            jnp.float32(theta.size),
        )

    trees = zip(*map(jax.tree.leaves, (params, updates, rates)), strict=True)
    return [one(*leaves) for leaves in trees]


def _shares(
    opposing_sum: jax.Array | int,
    total: jax.Array | int,
    count: jax.Array | int,
    entries: jax.Array | int,
) -> dict[str, jax.Array]:
    ratio = jnp.where(total > 0, opposing_sum / jnp.where(total > 0, total, 1.0), 0.0)
    fraction = jnp.where(entries > 0, count / jnp.maximum(entries, 1.0), 0.0)
    return {"ratio": ratio, "bounded_ratio": ratio / (1 + ratio), "fraction": fraction}
