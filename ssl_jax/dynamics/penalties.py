"""Where weight decay pushes a weight up: opposing penalties.

Ordinary decay takes P = d theta, which belongs to the weight before the step, off the weight after it, theta - eta U.
Where the step has carried the weight to less than P / 2, or across zero, the penalty makes it larger instead of
smaller: (theta - eta U - P)² > (theta - eta U)². For theta > 0 that is eta U > (1 - d / 2) theta, mirrored below zero.
Decay in real time, (1 - d)(theta - eta U), never does.
"""

import jax
import jax.numpy as jnp

from ssl_jax.types import Params, PyTree


def opposing(theta: jax.Array, update: jax.Array, d: jax.Array | float) -> jax.Array:
    """True where the penalty d theta, taken after the update -eta U, makes a weight larger. All of one shape."""
    towards_zero = -update * jnp.sign(theta)
    return (jnp.abs(d * theta) > 0) & (towards_zero > (1 - d / 2) * jnp.abs(theta))


def opposing_penalty(params: Params, updates: Params, decay: float | PyTree) -> dict[str, jax.Array]:
    """Over the whole tree, each (): `ratio` A = sum |P| over the opposing entries / sum |P| over all; `bounded_ratio`
    A / (1 + A), at most 1/2; `fraction` of all entries that oppose. Without any decay all are 0.

    updates: -eta U, as Optax gives them, without the decay; decay: d, a number or a pytree of one a parameter.
    """
    return _shares(*(sum(column) for column in zip(*_sums(params, updates, decay), strict=True)))


def opposing_by_layer(
    params: Params, updates: Params, decay: float | PyTree, index: tuple[PyTree, int]
) -> dict[str, jax.Array]:
    """The same for each layer, (n,); index: the layer of each parameter and their number, from `layer_index`."""
    layers, n = index
    place = jnp.array(jax.tree.leaves(layers)) - 1
    columns = zip(*_sums(params, updates, decay), strict=True)
    return _shares(*(jax.ops.segment_sum(jnp.stack(column), place, n) for column in columns))


def _sums(params, updates, decay) -> list[tuple[jax.Array, ...]]:
    """(|P| over opposing entries, |P|, opposing entries, entries) of each parameter, float32."""
    whole = jax.tree.structure(decay) == jax.tree.structure(params)
    rates = decay if whole else jax.tree.map(lambda _: decay, params)

    def one(theta, update, d):
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


def _shares(opposing_sum, total, count, entries) -> dict[str, jax.Array]:
    ratio = jnp.where(total > 0, opposing_sum / jnp.where(total > 0, total, 1.0), 0.0)
    fraction = jnp.where(entries > 0, count / jnp.maximum(entries, 1.0), 0.0)
    return {"ratio": ratio, "bounded_ratio": ratio / (1 + ratio), "fraction": fraction}
