"""Objectives of two views, and what is added to them, against NumPy in float64; the same on one
device and on four.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from suites import (
    alone,
    batch_of_projections,
    check_devices,
    check_objective,
    check_objective_of_name,
)
from test_checks import line_of
from tiny import BATCH, make_batch, make_parts, make_state, make_step, noisy_views

from configs import defaults
from ssl_jax.augment.views import make_views
from ssl_jax.builders import checks, pretraining
from ssl_jax.experiments.harness.linear_network import advance, exact_moments, make_twin
from ssl_jax.losses import OBJECTIVES, REGULARISERS, regularised, variance_hinge
from ssl_jax.train.pretrain import example_keys
from ssl_jax.train.state import init_state

KEY = jax.random.key(5)
WEIGHT = 0.7


def with_variance(name="cosine", weight=WEIGHT):
    return regularised(OBJECTIVES[name], {"variance": weight})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective(name):
    check_objective_of_name(name)


@pytest.mark.parametrize("added", REGULARISERS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_regularised_objective(name, added):
    check_objective(regularised(OBJECTIVES[name], {added: WEIGHT}))


def cosine_rows(p, t):
    return -np.sum(p * t, 1) / np.linalg.norm(p, axis=1) / np.linalg.norm(t, axis=1)


# name -> rows(p, t): (B,), NumPy float64
ROWS = {"cosine": cosine_rows, "euclidean": lambda p, t: np.sum((p - t) ** 2, 1) / 2}
ROWS |= {f"iso_{name}": rows for name, rows in ROWS.items()}  # whose gradient alone is another


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_is_the_mean_over_the_batch_of_both_directions(name):
    (p, z, t), memory = batch_of_projections()
    p64, t64 = ([np.float64(one) for one in pair] for pair in (p, t))
    rows = ROWS[name]
    expected = np.mean(rows(p64[0], t64[1])) + np.mean(rows(p64[1], t64[0]))
    value, terms = OBJECTIVES[name](p, z, t, memory, alone)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert len(terms) == 1


# --- IsoLoss --------------------------------------------------------------------------------------


def predicted(name, w, z, t):
    """The loss of predictions W_p z, as a step computes it."""
    p = tuple(one @ w.T for one in z)
    return OBJECTIVES[name](p, z, t, {}, alone)[0]


@pytest.mark.parametrize("name", ["cosine", "euclidean"])
def test_the_isotropic_gradient_times_w_p_is_the_losss_own(name):
    """∇_z L = W_pᵀ ∇_p L, and ∇_z L_iso = ∇_p L: W_pᵀ times this one is that one. W_p has none."""
    with jax.enable_x64(True):
        (_, z, t), _ = batch_of_projections()
        z, t = jax.tree.map(jnp.float64, (z, t))
        w = jnp.asarray(np.random.default_rng(1).normal(size=(6, 6)))
        own = jax.grad(predicted, 2)(name, w, z, t)
        by_w, isotropic = jax.grad(predicted, (1, 2))(f"iso_{name}", w, z, t)
        assert predicted(f"iso_{name}", w, z, t) == predicted(name, w, z, t)
        assert not np.any(by_w)
        for plain, iso in zip(own, isotropic, strict=True):
            np.testing.assert_allclose(iso @ w, plain, atol=1e-15)  # rows are (W_pᵀ g)ᵀ


@pytest.mark.parametrize("name", ["cosine", "euclidean"])
def test_the_isotropic_gradient_is_the_authors(name):
    """Their two functions, W_p symmetric and positive; twice this loss's. The cosine's value is
    another."""
    with jax.enable_x64(True):
        (_, z, t), memory = batch_of_projections()
        z, t = jax.tree.map(jnp.float64, (z, t))
        s, u = np.linalg.eigh(np.float64(memory["correlation"]))
        w, root = (u * np.sqrt(s)) @ u.T, (u * s**0.25) @ u.T

        def theirs(z):
            total = 0.0
            for one, target in ((z[0], t[1]), (z[1], t[0])):
                p, held = one @ w, jax.lax.stop_gradient
                if name == "euclidean":
                    total += jnp.mean(jnp.sum((one - held(target + one - p)) ** 2, 1))
                    continue
                size, of_target = jnp.linalg.norm(p, axis=1), jnp.linalg.norm(target, axis=1)
                pull = jnp.sum(one * target, 1) / held(size * of_target)
                push = held(jnp.sum(p * target, 1) / (size**3 * of_target))
                total += -2 * jnp.mean(pull - push * jnp.sum((one @ root) ** 2, 1) / 2)
            return total

        ours = jax.grad(predicted, 2)(f"iso_{name}", jnp.asarray(w), z, t)
        for one, other in zip(ours, jax.grad(theirs)(z), strict=True):
            np.testing.assert_allclose(2 * one, other, atol=1e-14)
        same = abs(theirs(z) - 2 * predicted(f"iso_{name}", jnp.asarray(w), z, t)) < 1e-12
        assert same == (name == "euclidean")


@pytest.mark.parametrize("loss", ["iso_euclidean", "euclidean"])
def test_modes_of_a_linear_network_move_at_their_theoretical_speed(loss):
    """J = E|p m x₁ - m x₂|²/2 of each mode has at u = p m x₁ the gradient m (p A - L) x, A the
    variance of a view and L what both share. IsoLoss passes it on as it is, dm = m (L - p A); the
    loss itself times p. W_p is held: it has no gradient, or no rate."""
    shared, noise = np.array([1.0, 0.8, 0.5]), np.array([0.1, 0.4, 0.9])
    m, p, rate, steps = np.array([0.9, 0.5, 0.7]), np.array([0.9, 0.3, 0.04]), 0.05, 12
    image = exact_moments(np.diag(shared), np.diag(noise))
    own = 0.0 if loss == "euclidean" else rate
    rates = {"learning_rate": rate, "predictor_learning_rate": own}
    state, step = make_twin(jnp.float32(np.diag(m)), jnp.float32(np.diag(p)), loss=loss, **rates)
    state = jax.jit(lambda s: advance(s, step, jnp.asarray(image), KEY, steps))(state)
    speed = shared - p * (shared + noise)
    expected = m * (1 + rate * speed * (1 if loss == "iso_euclidean" else p)) ** steps
    np.testing.assert_allclose(
        state.params["encoder"]["linear"]["kernel"], np.diag(expected), atol=1e-5
    )
    np.testing.assert_allclose(state.params["predictor"]["linear"]["kernel"], np.diag(p), atol=1e-7)


# --- The hinge on the variance --------------------------------------------------------------------


def hinge64(z, gamma=1.0, eps=1e-4):
    """Of one view, by loops over its dimensions."""
    total = 0.0
    for column in np.float64(z).T:
        centre = sum(column) / len(column)
        variance = sum((x - centre) ** 2 for x in column) / len(column)
        total += max(0.0, gamma - math.sqrt(variance + eps))
    return total / z.shape[1]


def hinge_of_the_authors(z):
    """As their PyTorch code writes it, with the unbiased variance that torch.Tensor.var takes."""
    std = np.sqrt(np.var(np.float64(z), axis=0, ddof=1) + 0.0001)
    return np.mean(np.maximum(1 - std, 0))


def hinge(z, **options):
    return variance_hinge((), z, (), {}, alone, **options)


def spread_views(seed=2, count=40):
    """Deviations from far below 1 to above 1: some dimensions are past the hinge."""
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.float32(rng.normal(size=(count, 7)) * np.geomspace(0.05, 2, 7) + 4) for _ in range(2)
    )


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5}, {"gamma": 2.0, "eps": 0.1}])
def test_variance_is_its_formula(options):
    z = spread_views()
    np.testing.assert_allclose(
        hinge(z, **options), sum(hinge64(one, **options) for one in z), rtol=1e-5
    )


def test_variance_is_the_authors_but_for_the_estimator():
    z = spread_views()
    # (N - 1) / N of the variance
    shrunk = [np.float64(one) * np.sqrt((len(one) - 1) / len(one)) for one in z]
    np.testing.assert_allclose(hinge(z), sum(map(hinge_of_the_authors, shrunk)), rtol=1e-5)


def test_gradient_of_the_variance_is_the_difference_quotient():
    z = spread_views(count=5)
    grad = jax.grad(hinge)(z)
    for view, row, column in ((0, 0, 0), (1, 3, 2), (0, 4, 6), (1, 1, 5)):
        ends = []
        for change in (1e-5, -1e-5):
            moved = [np.float64(one) for one in z]
            moved[view][row, column] += change
            ends.append(sum(map(hinge64, moved)))
        np.testing.assert_allclose(
            grad[view][row, column], (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=1e-6
        )


def test_where_all_projections_are_one_the_gradient_is_finite():
    z = (jnp.full((5, 3), 2.0), jnp.zeros((5, 3)))
    value, grad = jax.value_and_grad(hinge)(z)
    np.testing.assert_allclose(value, 2 * (1 - 0.01), rtol=1e-6)
    chex.assert_tree_all_finite(grad)


def test_a_dimension_spread_far_enough_is_left_alone():
    z = tuple(10 * one for one in spread_views())[0][:, 2:]
    assert hinge((z, z)) == 0 and not np.any(jax.grad(hinge)((z, z)))


def test_the_variance_is_of_the_whole_batch_on_four_devices():
    """Views whose devices' own variances are nearly 0: only between the devices do they differ."""
    rng = np.random.default_rng(0)
    far = np.repeat(rng.normal(size=(4, 1, 6)), 3, axis=1).reshape(12, 6)
    pairs = tuple(
        tuple(jnp.float32(far + 0.01 * rng.normal(size=far.shape)) for _ in range(2))
        for _ in range(3)
    )
    objective = with_variance(weight=5.0)
    value, grads = jax.value_and_grad(lambda p, z: objective(p, z, pairs[2], {}, alone)[0], (0, 1))(
        *pairs[:2]
    )
    check_devices(objective, pairs, {}, value, grads)
    with pytest.raises(AssertionError):  # of each device's own part, which is another number
        check_devices(
            lambda p, z, t, memory, mean: objective(p, z, t, memory, alone), pairs, {}, value, grads
        )


# --- In the step ----------------------------------------------------------------------------------


def test_no_weight_is_the_objective_itself():
    """So that nothing of it is traced."""
    for weights in ({}, {"variance": 0.0}):
        assert regularised(OBJECTIVES["cosine"], weights) is OBJECTIVES["cosine"]


@pytest.mark.parametrize("tau", [None, 0.9])
def test_loss_of_the_step_is_the_weighted_sum(tau):
    parts, batch = make_parts(tau=tau), make_batch()
    state = make_state(parts)
    plain, more = (
        jax.jit(make_step(parts, objective=objective, loss_scale=2.0))(state, batch, KEY)[1]
        for objective in (OBJECTIVES["cosine"], with_variance())
    )
    views = noisy_views(example_keys(KEY, state.step, batch["position"]), batch["image"])
    z1, stats = parts.network.train(state.params, state.stats, views[0])
    variance = hinge64(z1) + hinge64(parts.network.train(state.params, stats, views[1])[0])
    assert variance > 0.01
    np.testing.assert_allclose(more["loss_variance"], variance, rtol=1e-4)
    np.testing.assert_allclose(2 * more["loss_prediction"], plain["loss"], rtol=1e-5)
    np.testing.assert_allclose(more["loss"], plain["loss"] + 2 * WEIGHT * variance, rtol=1e-4)
    assert set(more) - set(plain) == {"loss_prediction", "loss_variance"}


def test_four_devices_take_the_step_of_one():
    batch, axis = make_batch(), "batch"
    alone, together = make_parts(momentum=0.9), make_parts(momentum=0.9, axis_name=axis)
    state = make_state(alone)
    one, metrics = jax.jit(make_step(alone, objective=with_variance(weight=5.0)))(state, batch, KEY)
    split = jax.tree.map(lambda x: x.reshape(4, BATCH // 4, *x.shape[1:]), batch)
    step = make_step(together, objective=with_variance(weight=5.0), axis_name=axis)
    four, shared = jax.pmap(step, axis, in_axes=(None, 0, None), out_axes=None)(
        state, split, jax.random.key(5)
    )
    chex.assert_trees_all_close(one.params, four.params, atol=1e-5)
    for name in ("loss", "loss_prediction", "loss_variance"):
        np.testing.assert_allclose(metrics[name], shared[name], rtol=1e-5)
    without, _ = jax.jit(make_step(alone))(state, batch, KEY)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        one.params["projector"],
        without.params["projector"],
    )
    assert max(jax.tree.leaves(moved)) > 1e-3  # it matters


def test_an_objective_gets_what_the_docstring_says():
    parts, batch = make_parts("direct_pred", tau=None), make_batch()
    state = make_state(parts)._replace(memory={"correlation": jnp.eye(6)})

    def objective(p, z, t, memory, mean):
        w = state.params["predictor"]["linear"]["kernel"]
        numbers = {"p": sum(jnp.abs(a - b @ w).max() for a, b in zip(p, z, strict=True))}
        numbers |= {"t": sum(jnp.abs(a - b).max() for a, b in zip(z, t, strict=True))}
        numbers |= {"memory": memory["correlation"].trace()}
        return sum(jnp.sum(one) for one in t), numbers  # of constants: nothing to descend

    new, metrics = jax.jit(make_step(parts, objective=objective))(state, batch, KEY)
    assert metrics["loss_p"] < 1e-5 and metrics["loss_t"] == 0 and metrics["loss_memory"] == 6
    trunk = [
        {name: params[name] for name in ("encoder", "projector")}
        for params in (state.params, new.params)
    ]
    chex.assert_trees_all_equal(*trunk)


# --- By configuration -----------------------------------------------------------------------------


def program_of(**fields):
    """The text of the step that a configuration builds, nothing computed."""
    config = defaults.get_config()
    small = {
        "encoder.name": "convnet_digits",
        "encoder.width": 4,
        "projector.out": 6,
        "views.recipe": "digits",
    }
    config.update_from_flattened_dict(small | fields)
    parts = pretraining.build(config, 100, 10, None)
    step = pretraining.build_step(config, parts, make_views(parts.recipe, 8), None)
    state = jax.eval_shape(lambda: pretraining_state(parts))
    batch = {
        "image": jax.ShapeDtypeStruct((4, 8, 8, 1), "uint8"),
        "position": jax.ShapeDtypeStruct((4,), "int32"),
    }
    out = jax.eval_shape(step, state, batch, KEY)[1]
    return str(jax.make_jaxpr(step)(state, batch, KEY)), set(out)


def pretraining_state(parts):
    return init_state(
        jax.random.key(0),
        jnp.zeros((2, 8, 8, 1)),
        parts.network,
        parts.predictor,
        parts.optimizer,
        True,
    )


def test_the_field_adds_the_term_and_its_default_adds_nothing():
    plain, columns = program_of()
    assert (plain, columns) == program_of(**{"regularisers.variance": 0.0})
    other, more = program_of(**{"regularisers.variance": 0.5})
    assert len(other) > len(plain) and more - columns == {"loss_prediction", "loss_variance"}


def test_every_regulariser_has_its_field():
    assert set(defaults.get_config().regularisers) == set(REGULARISERS)
    assert not any(defaults.get_config().regularisers.values())


def test_a_weight_below_zero_is_refused():
    config = defaults.get_config()
    config.regularisers.variance = -1.0
    assert (
        line_of(checks.check_counts, config)
        == "regularisers.variance: got -1.0, takes a number of at least 0"
    )
