"""What every predictor, objective and method has to fulfil: a new one is held to it by its name
alone.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tiny import make_batch, make_state

from ssl_jax.builders import checks, pretraining
from ssl_jax.builders.network import forward_order
from ssl_jax.builders.optimizer import layer_table
from ssl_jax.losses import OBJECTIVES
from ssl_jax.predictors import make_predictor
from ssl_jax.train.state import init_state

DEVICES, ROWS, DIM = 4, 12, 6


def alone(tree):
    """The mean over the devices where there is one."""
    return tree


# --- Objectives -----------------------------------------------------------------------------------


def batch_of_projections(seed=0):
    """(p, z, t), pairs (ROWS, DIM) of two views that have something in common, and a memory."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(ROWS, DIM)) * np.geomspace(1, 0.2, DIM) + 0.3
    p, z, t = (
        tuple(jnp.float32(common + 0.3 * rng.normal(size=(ROWS, DIM))) for _ in range(2))
        for _ in range(3)
    )
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
    """The mean of the devices' losses is the whole batch's, and so is that of the gradients by what
    all devices share, here a scale of each coordinate of p and of z.
    """

    def part(scales, batch, mean):
        p, z, t = batch
        scaled = (
            tuple(scale * one for one in pair) for scale, pair in zip(scales, (p, z), strict=True)
        )
        return objective(*scaled, t, memory, mean)[0]

    def on_device(scales, batch):
        def mean(tree):
            return jax.lax.pmean(tree, "devices")

        return mean(jax.value_and_grad(part)(scales, batch, mean))

    ones = jnp.ones((2, 1, DIM))
    split = jax.tree.map(lambda x: x.reshape(DEVICES, -1, DIM), batch)
    shared, by_scale = jax.pmap(on_device, "devices", in_axes=(None, 0))(ones, split)
    np.testing.assert_allclose(shared, np.full(DEVICES, value), rtol=1e-5, atol=1e-6)
    chain = [
        sum(np.sum(g * x, 0) for g, x in zip(*pair, strict=True))
        for pair in zip(grads, batch[:2], strict=True)
    ]
    np.testing.assert_allclose(by_scale[0][:, 0], chain, rtol=1e-4, atol=1e-5)


def check_sees_scale(objective):
    """Whether `sees_scale` is what scaled predictions and scaled projections say."""
    (p, z, t), memory = batch_of_projections(1)

    def times(pair):
        return tuple(3 * one for one in pair)

    plain, p_scaled, z_scaled = (
        objective(*batch, memory, alone)[0]
        for batch in ((p, z, t), (times(p), z, t), (p, times(z), times(t)))
    )
    seen = max(abs(p_scaled - plain), abs(z_scaled - plain)) > 1e-4
    assert objective.sees_scale == seen, f"sees_scale is {objective.sees_scale}"


def check_objective_of_name(name):
    check_objective(OBJECTIVES[name])
    check_sees_scale(OBJECTIVES[name])


# --- Predictors -----------------------------------------------------------------------------------


def correlation(seed=0, dim=DIM, rank=None, scale=1.0):
    """Of projections whose directions are of many sizes, and `rank` of them not zero; (dim, dim)
    float64.
    """
    z = np.random.default_rng(seed).normal(size=(4 * dim, dim)) * np.geomspace(3, 0.1, dim)
    z[:, rank:] = 0 if rank else z[:, rank:]
    return scale * z.T @ z / len(z)


def check_predictor(kind):
    """The predictor of that name with its own defaults: all that its record promises."""
    predictor = make_predictor(kind, DIM, rho=0.3)
    params, memory = predictor.init(jax.random.key(0))
    chex.assert_trees_all_equal((params, memory), predictor.init(jax.random.key(0)))
    z = jnp.float32(np.random.default_rng(0).normal(size=(5, DIM)))
    check_memory(predictor, params, memory)
    check_apply(predictor, params, memory, z)
    check_closed_form(predictor, params, memory)
    # of each option there is a default
    assert make_predictor(kind, 1).closed_form == predictor.closed_form


def check_memory(predictor, params, memory):
    """F_0 = C_0, F_k = rho F_{k-1} + (1 - rho) C_k: rho keeps the old. One traced program takes all
    steps.
    """
    update, f = jax.jit(predictor.update), None
    for step in range(4):
        c = correlation(10 + step)
        f = c if step == 0 else 0.3 * f + 0.7 * c
        before = params, memory
        params, memory = update(params, memory, jnp.float32(c), step)
        chex.assert_trees_all_equal_shapes_and_dtypes(before, (params, memory))
        chex.assert_tree_all_finite((params, memory))
        chex.assert_trees_all_close(memory["correlation"], f, atol=1e-4)


def check_apply(predictor, params, memory, z):
    """Predictions and their gradients; `linear` says whether they are products with `matrix`."""
    p, w = predictor.apply(params, memory, z), predictor.matrix(params)
    chex.assert_shape([p, w], [z.shape, (DIM, DIM)])
    chex.assert_tree_all_finite(
        jax.grad(lambda params: jnp.square(predictor.apply(params, memory, z)).sum())(params)
    )
    product = np.allclose(p, z @ np.asarray(w).T, atol=1e-5)
    assert predictor.linear == product, f"linear is {predictor.linear}"


def check_closed_form(predictor, params, memory):
    """Whether W_p after a step is a function of the correlation alone, or of what the optimizer
    left too.
    """
    corr, moved = jnp.float32(correlation()), jax.tree.map(lambda x: x + 0.1, params)
    w, other = (
        predictor.matrix(predictor.update(before, memory, corr, 0)[0]) for before in (params, moved)
    )
    assert predictor.closed_form == np.array_equal(w, other), (
        f"closed_form is {predictor.closed_form}"
    )


# --- The step, and methods ------------------------------------------------------------------------


def check_step(parts, step):
    """Two steps: everything stays finite and of its shape, and every parameter learns. Returns the
    losses.
    """
    state = first = make_state(parts)
    losses = []
    for i in range(2):
        state, metrics = step(state, make_batch(i), jax.random.key(7))
        losses.append(float(metrics["loss"]))
        assert 0 <= metrics["relative_spread"] <= 1.01
    assert np.isfinite(losses).all()
    chex.assert_tree_all_finite(state._replace(step=0))
    chex.assert_trees_all_equal_shapes_and_dtypes(first, state)
    changed = jax.tree.map(
        lambda a, b: bool(np.any(np.asarray(a) != b)), first.params, state.params
    )
    # A bias in front of a normalisation has no gradient but rounding.
    assert all(
        value for path, value in jax.tree.leaves_with_path(changed) if "linear1" not in str(path)
    )
    return losses


def shapes(config: ConfigDict, side: int, channels: int = 3):
    """(parts, the state's shapes): nothing is computed."""
    parts = pretraining.build(config, 1000, 10, None)
    image = jnp.zeros((2, side, side, channels))

    def make(key):
        return init_state(
            key, image, parts.network, parts.predictor, parts.optimizer, parts.tau is not None
        )

    return parts, jax.eval_shape(make, jax.random.key(0))


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def sizes(config, parts, params) -> dict[str, tuple[int, int]]:
    """(parameters, those that decay) of each group, by the table that a run prints."""
    groups: dict[str, tuple[int, int]] = {}
    for row in layer_table(
        params, parts.rules, config, forward_order(parts.network, parts.predictor)
    ):
        group = row.modules.split("/")[0]
        size, decayed = groups.get(group, (0, 0))
        groups[group] = size + row.size, decayed + row.decayed
    return groups


def check_method(config: ConfigDict, method: str):
    """A configuration of that method passes all checks and can be built, and each parameter has
    exactly one rule.
    """
    assert config.method == method
    checks.check_counts(config)
    parts, state = shapes(config, 32)
    assert (parts.tau is None) == (config.target.tau == 0)
    assert parts.tau is None or parts.tau(7) == config.target.tau
    groups = sizes(config, parts, state.params)
    assert list(groups) == ["encoder", "projector", "predictor"]
    assert all(
        size == count(state.params[group]) and 0 < decayed <= size
        for group, (size, decayed) in groups.items()
    )
    dim = config.projector.out
    assert jax.eval_shape(parts.predictor.matrix, state.params["predictor"]).shape == (dim, dim)
    assert bool(jax.tree.leaves(state.target)) == (config.target.tau > 0)
