"""One suite for every optimizer under every kind of decay: against NumPy, and what any optimizer
must be able to do.
"""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optim_reference as reference
import pytest

from ssl_jax.optim import DECAYS, make_optimizer
from ssl_jax.optim.directions import DIRECTIONS
from ssl_jax.workdir import checkpoints

STEPS = 20
SHAPES = {
    "conv1": {"kernel": (2, 3), "bias": (3,)},
    "norm1": {"scale": (3,)},
    "conv2": {"kernel": (3, 2)},
}
LAYER = {"conv1": 1, "norm1": 1, "conv2": 2}
EXCLUDE = "norm1/"
# Options other than the defaults, where twenty steps would not show them: both branches of RAdam,
# of the Fisher matrix (a block and a diagonal) and of Lookahead.
OPTIONS = {
    "radam": {"b2": 0.9},
    "amsgrad": {"b2": 0.5},
    "natural": {"block": 5, "damping": 0.1},
    "lookahead": {"inner": "momentum", "period": 3},
    "lars": {"trust": 0.1, "eps": 0.01},
    "adagrad": {"initial": 0.2, "eps": 1e-3},
    "momentum": {"dampening": 0.3},
}
VARIANTS = list(itertools.product(DECAYS, ("", "mean"), ("lr", "literal")))
# (learning rate, weight decay) of the members of a grid that trains together; the decay is a tenth
# of it as a share.
GRID = np.array([[0.1, 0.8], [0.03, 0.2]])


def leaves_like(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: rng.normal(size=s).astype(dtype), SHAPES, is_leaf=lambda s: isinstance(s, tuple)
    )


START, CENTRE, CURVE = leaves_like(0), leaves_like(1), jax.tree.map(np.square, leaves_like(2))
NOISE = [leaves_like(3 + t) for t in range(STEPS)]
STACKED = jax.tree.map(lambda *n: np.stack(n), *NOISE)


def falling(peak, by):
    """A schedule that changes at every step."""
    return lambda count: peak * (1 - by * count)


def one_step(optimizer, params, state, noise):
    """A noisy quadratic, h (theta - x) + noise: the gradient depends on where it is taken."""
    params = optimizer.pre(params, state)
    grads = jax.tree.map(
        lambda p, x, h, n: (h * (p - x) + n).astype(p.dtype), params, CENTRE, CURVE, noise
    )
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def trajectory(optimizer, params=None):
    """The parameters after each of the steps, stacked along a first axis."""
    params = jax.tree.map(jnp.asarray, START) if params is None else params

    def step(carry, noise):
        carry = one_step(optimizer, *carry, noise)
        return carry, carry[0]

    return jax.lax.scan(step, (params, optimizer.init(params)), STACKED)[1]


def build(name, kind, layerwise, scale, rate=0.1, strength=0.8, **options):
    return make_optimizer(
        name,
        falling(rate, 0.04),
        weight_decay=falling(strength / 10 if scale == "literal" else strength, 0.02),
        decay=kind,
        layerwise=layerwise,
        decay_scale=scale,
        exclude=EXCLUDE,
        **(OPTIONS.get(name, {}) | options),
    )


def expected(name, kind, layerwise, scale, rate, strength, **options):
    """The same by the reference, parameter by parameter."""
    rates, strengths = (
        falling(rate, 0.04),
        falling(strength / 10 if scale == "literal" else strength, 0.02),
    )

    def path(module, leaf):
        def gradient(theta, t):
            return CURVE[module][leaf] * (theta - CENTRE[module][leaf]) + NOISE[t][module][leaf]

        return reference.train(
            reference.DIRECTIONS[name](**(OPTIONS.get(name, {}) | options)),
            START[module][leaf],
            gradient,
            [rates(t) for t in range(STEPS)],
            [strengths(t) for t in range(STEPS)],
            kind,
            scale == "literal",
            0.0 if module == "norm1" else 2 * LAYER[module] / 3 if layerwise else 1.0,
        )

    return {
        module: {leaf: path(module, leaf)[1:] for leaf in leaves}
        for module, leaves in SHAPES.items()
    }


def compare(name, variants, **options):
    """One program for all variants and the whole grid: compiling is what takes the time."""

    def run(rate, strength):
        return [
            trajectory(build(name, *variant, rate, strength, **options)) for variant in variants
        ]

    with jax.enable_x64(True):
        found = jax.device_get(jax.jit(jax.vmap(run))(*GRID.T))
    for variant, paths in zip(variants, found, strict=True):
        for member, (rate, strength) in enumerate(GRID):
            right = expected(name, *variant, rate, strength, **options)
            for (path, got), want in zip(
                jax.tree.leaves_with_path(paths), jax.tree.leaves(right), strict=True
            ):
                assert got.dtype == np.float64
                where = f"{variant} {jax.tree_util.keystr(path)}"
                np.testing.assert_allclose(
                    got[member, 0], want[0], rtol=1e-9, atol=1e-12, err_msg=f"step 1, {where}"
                )
                np.testing.assert_allclose(got[member], want, rtol=1e-8, atol=1e-10, err_msg=where)


def diagonal(i):
    """Four of the sixteen variants, each kind of decay once, each layer rule and scale twice."""
    return [
        (kind, ("", "mean")[(i + j) % 2], ("lr", "literal")[(i + j // 2) % 2])
        for j, kind in enumerate(DECAYS)
    ]


@pytest.mark.parametrize("i, name", list(enumerate(DIRECTIONS)))
def test_one_and_twenty_steps_against_numpy(i, name):
    compare(name, diagonal(i))


@pytest.mark.slow
@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_variant_against_numpy(name):
    compare(name, VARIANTS)


OTHER_OPTIONS = {
    "momentum": {"inside": True, "dampening": 0.0, "momentum": 0.7},
    "nesterov": {"momentum": 0.5},
    "rmsprop": {"rho": 0.99, "eps": 1e-3, "heavy_ball": 0.9},
    "lookahead": {"inner": "adam", "period": 4, "slow": 0.8, "b1": 0.8},
    "adam": {"b1": 0.7, "b2": 0.95, "eps": 1e-3},
    "lion": {"b1": 0.8, "b2": 0.9},
}


@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_options_reach_the_equations(name):
    compare(name, [("pre", "mean", "lr")], **OTHER_OPTIONS[name])


@pytest.mark.parametrize("kind", DECAYS)
def test_vmap_over_plain_numbers_equals_a_loop(kind):
    """A grid is a vmap over a function that builds the optimizer inside, of traced scalars."""

    def run(rate, strength):
        return trajectory(
            make_optimizer("momentum", rate, weight_decay=strength, decay=kind, layerwise="max")
        )

    with jax.enable_x64(True):
        together, alone = jax.jit(jax.vmap(run))(*GRID.T), jax.jit(run)
        for i, member in enumerate(GRID):
            one = jax.tree.map(lambda paths: paths[i], together)  # noqa: B023
            chex.assert_trees_all_close(one, alone(*member), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("i, name", list(enumerate(DIRECTIONS)))
def test_types_and_shapes_stay(i, name, dtype):
    """Traced only: nothing is compiled."""
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), START)
    for variant in diagonal(i):
        optimizer = build(name, *variant)
        state = jax.eval_shape(optimizer.init, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(
            jax.eval_shape(optimizer.pre, params, state), params
        )
        updates, after = jax.eval_shape(optimizer.update, params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        move, share = jax.eval_shape(optimizer.apart, params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(move, params)
        assert jax.tree.structure(share) == jax.tree.structure(params)


@pytest.mark.parametrize("i, name", list(enumerate(DIRECTIONS)))
def test_jit_equals_eager(i, name):
    optimizer = build(name, *diagonal(i)[i // 4])
    params = {"conv1": jax.tree.map(jnp.float32, START["conv1"])}
    grads = {"conv1": jax.tree.map(jnp.float32, NOISE[0]["conv1"])}

    def step(params, state):
        params = optimizer.pre(params, state)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled, eager = (jax.jit(step), step)
    one, two = (params, optimizer.init(params)), (params, optimizer.init(params))
    for _ in range(2):
        one, two = compiled(*one), eager(*two)
    chex.assert_trees_all_close(one, two, rtol=2e-6, atol=1e-6)


def test_every_state_survives_a_checkpoint(tmp_path):
    """As a run writes it: NumPy through Orbax, in the same tree, shapes and types."""
    rng = np.random.default_rng(0)
    shapes = {name: jax.eval_shape(build(name, *VARIANTS[0]).init, START) for name in DIRECTIONS}
    states = jax.tree.map(
        lambda leaf: (100 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes
    )
    manager = checkpoints.open_manager(tmp_path, "accuracy")
    checkpoints.save(manager, states, 1, {"accuracy": 0.5})
    manager.wait_until_finished()
    back = checkpoints.restore(manager, jax.tree.map(np.zeros_like, states))
    manager.close()
    chex.assert_trees_all_equal(back, states)
    chex.assert_trees_all_equal_dtypes(back, states)
