"""Opposing penalties: the definition in NumPy, the closed form, the ratio's bounds, layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.dynamics.penalties import opposing, opposing_by_layer, opposing_penalty
from ssl_jax.optim import make_optimizer
from ssl_jax.optim.decay import layer_index, layer_rates

SHAPES = {
    "conv1": {"kernel": (4, 5), "bias": (5,)},
    "conv2": {"kernel": (5, 6)},
    "head": {"kernel": (6, 3)},
}


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.float32(scale * rng.normal(size=s)),
        SHAPES,
        is_leaf=lambda s: isinstance(s, tuple),
    )


def by_definition(theta, update, d):
    """(theta - eta U - P)² > (theta - eta U)², P = d theta, in float64."""
    after, penalty = np.float64(theta) + np.float64(update), d * np.float64(theta)
    return (after - penalty) ** 2 > after**2


@pytest.mark.parametrize("d", [1e-3, 0.1, 0.9])
def test_opposing_is_what_makes_a_weight_larger(d):
    theta, update = (np.asarray(draw(seed)["conv2"]["kernel"]) for seed in (0, 1))
    found = np.asarray(opposing(theta, update, d))
    assert (found == by_definition(theta, update, d)).all() and 0 < found.sum() < found.size


def test_opposing_at_and_around_its_border():
    """eta U > (1 - d / 2) theta, mirrored below zero; a weight at 0 and one that does not decay
    have no penalty.
    """
    theta = jnp.array([1.0, 1.0, 1.0, -1.0, -1.0, 0.0, 1.0])
    eta_u = jnp.array([0.74, 0.75, 0.76, -0.76, 0.76, 5.0, 5.0])
    d = jnp.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0])
    assert opposing(theta, -eta_u, d).tolist() == [False, False, True, True, False, False, False]


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_ratios_against_numpy_and_their_bounds(size):
    params, updates, rates = draw(0), draw(1, size), layer_rates(draw(0), 0.1)
    found = jax.jit(opposing_penalty)(params, updates, rates)
    theta, u, d = (
        np.concatenate([np.ravel(leaf) for leaf in leaves])
        for leaves in flat(params, updates, rates)
    )
    opposes, penalty = by_definition(theta, u, d), np.abs(d * theta)
    ratio = penalty[opposes].sum() / penalty.sum()
    # the paper's, over all elements
    other = penalty[opposes].sum() / (penalty.sum() + penalty[opposes].sum())
    assert float(found["ratio"]) == pytest.approx(ratio, rel=1e-5)
    assert float(found["bounded_ratio"]) == pytest.approx(other, rel=1e-5)
    assert float(found["fraction"]) == pytest.approx(opposes.mean(), rel=1e-5)
    assert 0 <= ratio <= 1 and 0 <= other <= 0.5
    # Over the penalties that do not oppose alone, as the paper may also be read, (sum P_o + the
    # rest) is A again.
    assert penalty[opposes].sum() / (
        penalty[~opposes].sum() + penalty[opposes].sum()
    ) == pytest.approx(ratio)


def flat(params, updates, rates):
    spread = jax.tree.map(lambda d, p: jnp.full(p.shape, d), rates, params)
    return [jax.tree.leaves(tree) for tree in (params, updates, spread)]


def test_bounds_are_reached():
    params = draw(0)
    all_cross = jax.tree.map(lambda p: -2 * p, params)
    none = jax.tree.map(jnp.zeros_like, params)
    assert {
        k: float(v) for k, v in opposing_penalty(params, all_cross, 0.1).items()
    } == pytest.approx({"ratio": 1.0, "bounded_ratio": 0.5, "fraction": 1.0})
    for quiet in (opposing_penalty(params, none, 0.1), opposing_penalty(params, all_cross, 0.0)):
        assert {k: float(v) for k, v in quiet.items()} == {
            "ratio": 0.0,
            "bounded_ratio": 0.0,
            "fraction": 0.0,
        }


def test_a_mask_takes_its_parameters_out_of_the_penalty():
    params, updates = draw(0), draw(1)
    rates = {module: dict.fromkeys(leaves, 0.1) for module, leaves in SHAPES.items()}
    rates["conv1"]["bias"] = 0.0
    whole = opposing_penalty(params, updates, rates)
    changed = {**params, "conv1": {**params["conv1"], "bias": 100 * params["conv1"]["bias"]}}
    assert float(whole["ratio"]) == float(opposing_penalty(changed, updates, rates)["ratio"])


def test_layers_one_by_one():
    params, updates = draw(0), draw(1)
    index, n = layer_index(params)
    rates = layer_rates(params, 0.1)
    found = opposing_by_layer(params, updates, rates, (index, n))
    for i, module in enumerate(("conv1", "conv2", "head")):
        alone = opposing_penalty(
            {module: params[module]}, {module: updates[module]}, {module: rates[module]}
        )
        for name, value in alone.items():
            assert found[name].shape == (n,) == (3,)
            assert float(found[name][i]) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("kind, breaks", [("realtime", False), ("decoupled", True)])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_decay_never_pushes_up_in_real_time_and_does_so_exactly_on_the_opposing_set_otherwise(
    name, kind, breaks
):
    """|theta'| <= |theta - eta U| is equation 8 of the paper."""
    params, grads = draw(0), draw(1, 3.0)
    optimizer = make_optimizer(
        name, 0.9, weight_decay=0.2, decay=kind, decay_scale="literal", layerwise="mean"
    )
    state = optimizer.init(params)
    move, share = optimizer.apart(grads, state, params)
    updates, _ = optimizer.update(grads, state, params)

    def violated(theta, u, step):
        return np.abs(np.float64(theta) + step) > np.abs(np.float64(theta) + u) * (1 + 1e-6)

    found = jax.tree.leaves(jax.tree.map(violated, params, move, updates))
    expected = jax.tree.leaves(
        jax.tree.map(lambda *leaf: np.asarray(opposing(*leaf)) & breaks, params, move, share)
    )
    assert all((f == e).all() for f, e in zip(found, expected, strict=True))
    assert any(f.any() for f in found) == breaks
