"""What every predictor, objective and method has to fulfil: a new one is held to it by its name alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.losses import OBJECTIVES

DEVICES, ROWS, DIM = 4, 12, 6


def alone(tree):
    """The mean over the devices where there is one."""
    return tree


# --- Objectives ---------------------------------------------------------------------------------------------------


def batch_of_projections(seed=0):
    """(p, z, t), pairs (ROWS, DIM) of two views that have something in common, and a memory."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(ROWS, DIM)) * np.geomspace(1, 0.2, DIM) + 0.3
    p, z, t = (tuple(jnp.float32(common + 0.3 * rng.normal(size=(ROWS, DIM))) for _ in range(2)) for _ in range(3))
    stacked = np.concatenate(z).astype(np.float64)
    return (p, z, t), {"correlation": jnp.float32(stacked.T @ stacked / len(stacked))}


def check_objective(objective):
    """An objective of `losses`, or a regularised one."""
    (p, z, t), memory = batch_of_projections()

    def loss(p, z, t):
        return objective(p, z, t, memory, alone)

    (value, terms), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(p, z, t)
    chex.assert_shape([value, *terms.values()], ())
    chex.assert_tree_all_finite((value, terms, grads))
    assert terms and any(np.any(leaf) for leaf in jax.tree.leaves(grads)), "nothing to learn from"
    dead = tuple(jnp.zeros_like(one) for one in z)
    chex.assert_tree_all_finite(jax.value_and_grad(loss, (0, 1), has_aux=True)(dead, dead, dead))
    check_devices(objective, (p, z, t), memory, value, grads)


def check_devices(objective, batch, memory, value, grads):
    """The mean of the devices' losses is the whole batch's, and so is that of the gradients by what all devices share,
    here a scale of each coordinate of p and of z.
    """

    def part(scales, batch, mean):
        p, z, t = batch
        scaled = (tuple(scale * one for one in pair) for scale, pair in zip(scales, (p, z), strict=True))
        return objective(*scaled, t, memory, mean)[0]

    def on_device(scales, batch):
        def mean(tree):
            return jax.lax.pmean(tree, "devices")

        return mean(jax.value_and_grad(part)(scales, batch, mean))

    ones = jnp.ones((2, 1, DIM))
    split = jax.tree.map(lambda x: x.reshape(DEVICES, -1, DIM), batch)
    shared, by_scale = jax.pmap(on_device, "devices", in_axes=(None, 0))(ones, split)
    np.testing.assert_allclose(shared, np.full(DEVICES, value), rtol=1e-5, atol=1e-6)
    chain = [sum(np.sum(g * x, 0) for g, x in zip(*pair, strict=True)) for pair in zip(grads, batch[:2], strict=True)]
    np.testing.assert_allclose(by_scale[0][:, 0], chain, rtol=1e-4, atol=1e-5)


def check_sees_scale(objective):
    """Whether `sees_scale` is what scaled predictions and scaled projections say."""
    (p, z, t), memory = batch_of_projections(1)

    def times(pair):
        return tuple(3 * one for one in pair)

    plain, p_scaled, z_scaled = (
        objective(*batch, memory, alone)[0] for batch in ((p, z, t), (times(p), z, t), (p, times(z), times(t)))
    )
    seen = max(abs(p_scaled - plain), abs(z_scaled - plain)) > 1e-4
    assert objective.sees_scale == seen, f"sees_scale is {objective.sees_scale}"


def check_objective_of_name(name):
    check_objective(OBJECTIVES[name])
    check_sees_scale(OBJECTIVES[name])
