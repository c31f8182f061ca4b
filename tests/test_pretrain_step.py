"""The step against NumPy in float64, by its identities, and over all predictors with and without an
average.
"""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from suites import check_step
from tiny import DIM, fresh_state, make_batch, make_parts, make_state, make_step, noisy_views

from ssl_jax.linalg import asymmetry
from ssl_jax.predictors import KINDS
from ssl_jax.predictors.direct import direct_pred
from ssl_jax.train.pretrain import average, example_keys

KEY = jax.random.key(7)


@cache
def compiled(loss_scale=1.0, **options):
    """(parts, step) of these options; compiled once for all tests."""
    parts = make_parts(**options)
    return parts, jax.jit(make_step(parts, loss_scale=loss_scale))


@cache
def trunk():
    """network.train of all steps here, compiled."""
    return jax.jit(make_parts().network.train)


def projections(params, stats, views):
    """Both views through the trunk one after the other: [z1, z2], and the statistics after them."""
    trunk_params = {name: params[name] for name in ("encoder", "projector")}
    out = []
    for view in views:
        z, stats = trunk()(trunk_params, stats, view)
        out.append(z)
    return out, stats


@jax.jit
def views_of(step, batch):
    return noisy_views(example_keys(jax.random.key(7), step, batch["position"]), batch["image"])


def cosine(p, t):
    """Mean of -cos over the rows, NumPy float64."""
    p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
    return -np.mean(np.sum(p * t, 1) / np.linalg.norm(p, axis=1) / np.linalg.norm(t, axis=1))


# --- Loss and gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("tau, loss_scale", [(None, 1.0), (0.9, 1.0), (0.9, 2.0)])
def test_loss_is_the_formula_in_float64(tau, loss_scale):
    parts, step = compiled(tau=tau, loss_scale=loss_scale)
    state, batch = make_state(parts), make_batch()
    views = views_of(state.step, batch)
    (z1, z2), _ = projections(state.params, state.stats, views)
    t1, t2 = (z1, z2) if tau is None else projections(state.target, state.stats, views)[0]
    w = np.asarray(state.params["predictor"]["linear"]["kernel"], np.float64)
    expected = loss_scale * (cosine(z1 @ w, t2) + cosine(z2 @ w, t1))
    np.testing.assert_allclose(step(state, batch, KEY)[1]["loss"], expected, atol=1e-5)


def test_gradient_scales_with_the_loss():
    (parts, one), (_, two) = compiled(), compiled(loss_scale=2.0)
    state, batch = make_state(parts), make_batch()
    change = [
        jax.tree.map(jnp.subtract, s(state, batch, KEY)[0].params, state.params) for s in (one, two)
    ]
    chex.assert_trees_all_close(
        change[1], jax.tree.map(lambda x: 2 * x, change[0]), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("tau", [None, 0.9])
def test_no_gradient_flows_through_the_target(tau):
    """The step of plain gradient descent equals one on a loss in which the targets are numbers."""
    parts, step = compiled(tau=tau)
    state, batch = make_state(parts), make_batch()
    views = views_of(state.step, batch)
    frozen = state.params if tau is None else state.target
    (t1, t2), _ = jax.device_get(projections(frozen, state.stats, views))

    def loss(params):
        (z1, z2), _ = projections(params, state.stats, views)
        p1, p2 = (z @ params["predictor"]["linear"]["kernel"] for z in (z1, z2))

        def similarity(p, t):
            return jnp.mean(
                jnp.sum(p * t, 1) / jnp.linalg.norm(p, axis=1) / np.linalg.norm(t, axis=1)
            )

        return -similarity(p1, t2) - similarity(p2, t1)

    expected = jax.tree.map(
        lambda w, g: w - 0.1 * g, state.params, jax.jit(jax.grad(loss))(state.params)
    )
    chex.assert_trees_all_close(step(state, batch, KEY)[0].params, expected, atol=1e-5)


def test_randomness_follows_the_place_in_the_batch():
    parts, step = compiled()
    state, batch = make_state(parts), make_batch()
    order = np.random.default_rng(3).permutation(len(batch["position"]))
    shuffled = jax.tree.map(lambda x: x[order], batch)
    losses = [
        step(state, b, KEY)[1]["loss"]
        for b in (batch, shuffled, {**shuffled, "position": batch["position"]})
    ]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)  # sums in another order
    assert abs(losses[0] - losses[2]) > 1e-4


def test_randomness_differs_by_step_place_and_run():
    def keys(key, step):
        return jax.random.key_data(example_keys(key, jnp.int32(step), jnp.arange(4)))

    drawn = np.concatenate([keys(jax.random.key(k), n) for k in (0, 1) for n in (0, 1, 2)])
    assert len(np.unique(drawn, axis=0)) == len(drawn)


# --- Target ---------------------------------------------------------------------------------------


def test_without_average_is_an_average_that_forgets_at_once():
    """tau = 0 copies the online network into the target after every step: SimSiam's own step, by
    another way.
    """
    (parts, simsiam), (_, byol) = compiled(tau=None), compiled(tau=0.0)
    a = make_state(parts)
    b = a._replace(target={name: a.params[name] for name in ("encoder", "projector")})
    for i in range(3):
        (a, m), (b, n) = simsiam(a, make_batch(i), KEY), byol(b, make_batch(i), KEY)
        np.testing.assert_allclose(m["loss"], n["loss"], atol=1e-5)
    assert a.target == {}
    chex.assert_trees_all_close(a.params, b.params, atol=1e-5)
    chex.assert_trees_all_close(a.stats, b.stats, atol=1e-5)


def test_target_follows_the_new_online_weights():
    parts, step = compiled(tau=0.9)
    state = make_state(parts)
    new, _ = step(state, make_batch(), KEY)
    online = {name: new.params[name] for name in ("encoder", "projector")}
    expected = jax.tree.map(
        lambda a, w: 0.9 * np.float64(a) + 0.1 * np.float64(w), state.target, online
    )
    chex.assert_trees_all_close(new.target, expected, atol=1e-6, rtol=1e-5)


def test_average_leaves_the_predictor_out():
    online = {"encoder": np.float32([1.0, 2.0]), "predictor": np.float32([9.0])}
    target = average({"encoder": np.float32([3.0, 2.0])}, online, 0.75)
    chex.assert_trees_all_close(target, {"encoder": np.float32([2.5, 2.0])})


def test_running_statistics_never_touch_training():
    """The target's forward is in training mode, so nobody has to average its BatchNorm buffers."""
    parts, step = compiled(tau=0.9)
    state, batch = make_state(parts), make_batch()
    strange = state._replace(stats=jax.tree.map(lambda x: 5 * x + 3, state.stats))
    (one, m), (other, n) = step(state, batch, KEY), step(strange, batch, KEY)
    chex.assert_trees_all_equal((m, one._replace(stats=0)), (n, other._replace(stats=0)))
    assert not np.allclose(jax.tree.leaves(one.stats)[0], jax.tree.leaves(other.stats)[0])


def test_statistics_are_the_online_networks_view_one_then_two():
    parts, step = compiled(tau=0.9)
    state, batch = make_state(parts), make_batch()
    new, _ = step(state, batch, KEY)
    views = views_of(state.step, batch)
    forth, back = (projections(state.params, state.stats, v)[1] for v in (views, views[::-1]))
    chex.assert_trees_all_close(new.stats, forth, atol=1e-6)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(new.stats, back, atol=1e-6)


# --- Predictor ------------------------------------------------------------------------------------


def second_moment64(z1, z2):
    z = np.concatenate([z1, z2]).astype(np.float64)
    return z.T @ z / len(z)


def test_closed_form_comes_after_the_optimizer_from_projections_before_it():
    """F_0 = C_0, F_1 = rho F_0 + (1 - rho) C_1, of raw projections of both views."""
    parts, step = compiled(kind="direct_pred", tau=0.9)
    state, correlation = make_state(parts), None
    for i in range(2):
        batch = make_batch(i)
        (z1, z2), _ = projections(state.params, state.stats, views_of(state.step, batch))
        fresh = second_moment64(z1, z2)
        correlation = fresh if i == 0 else 0.3 * correlation + 0.7 * fresh
        state, _ = step(state, batch, KEY)
        chex.assert_trees_all_close(state.memory["correlation"], correlation, rtol=1e-4, atol=1e-5)
        expected = direct_pred(jnp.float32(correlation), 0.1)
        chex.assert_trees_all_close(
            parts.predictor.matrix(state.params["predictor"]), expected, atol=1e-3
        )


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_symmetric_predictor_stays_symmetric(kind):
    parts, step = compiled(kind=kind, symmetric=True, momentum=0.9, decay=1e-3)
    state = make_state(parts)
    assert asymmetry(parts.predictor.matrix(state.params["predictor"])) > 0.5
    for i in range(3):
        before = parts.predictor.matrix(state.params["predictor"])
        state, _ = step(state, make_batch(i), KEY)
        after = parts.predictor.matrix(state.params["predictor"])
        assert asymmetry(after) < 1e-6
        assert np.abs(after - before).max() > 1e-4  # it learns none the less


def test_hybrid_sets_every_fifth_step_and_learns_in_between():
    parts, step = compiled(kind="direct_pred", every=5, momentum=0.9)
    state, set_at = make_state(parts), []
    for i in range(7):
        before = parts.predictor.matrix(state.params["predictor"])
        state, _ = step(state, make_batch(i), KEY)
        after = parts.predictor.matrix(state.params["predictor"])
        assert np.abs(after - before).max() > 1e-5
        if np.allclose(after, direct_pred(state.memory["correlation"], 0.1), atol=1e-5):
            set_at.append(i)
    assert set_at == [0, 5]


@pytest.mark.parametrize("tau", [None, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_takes_finite_steps(kind, tau):
    losses = check_step(*compiled(kind=kind, tau=tau))
    assert all(-2 <= loss <= 2 for loss in losses)


def test_state_is_a_frozen_tree_of_arrays():
    parts, step = compiled()
    state, _ = step(make_state(parts), make_batch(), KEY)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert state.step == 1 and state.step.dtype == jnp.int32
    with pytest.raises(AttributeError):
        state.step = 3


def test_a_run_begins_with_a_copied_target():
    parts = make_parts()
    state = jax.jit(lambda key: fresh_state(parts, key))(jax.random.key(0))
    assert state.step == 0
    chex.assert_trees_all_equal(state.target, {name: state.params[name] for name in state.target})
    assert asymmetry(parts.predictor.matrix(state.params["predictor"])) > 0.5
    assert (
        parts.predictor.matrix(state.params["predictor"]).shape
        == state.memory["correlation"].shape
        == (DIM, DIM)
    )


def test_a_step_gives_the_predictor_what_it_averages():
    """Projections and targets of the step's own views, before the step: E t zᵀ over the other view,
    and of it W_p."""
    parts = make_parts("optimal", tau=0.9)
    state, batch, key = make_state(parts), make_batch(), jax.random.key(3)
    views = noisy_views(example_keys(key, state.step, batch["position"]), batch["image"])
    z, t = (
        [np.float64(parts.network.train(params, state.stats, view)[0]) for view in views]
        for params in (state.params, state.target)
    )
    after, _ = jax.jit(make_step(parts))(state, batch, key)
    cross = (t[1].T @ z[0] + t[0].T @ z[1]) / (2 * len(z[0]))
    chex.assert_trees_all_close(after.memory["cross"], cross, rtol=1e-4, atol=1e-5)
    f = sum(one.T @ one for one in z) / (2 * len(z[0]))
    w = cross @ np.linalg.inv(f + 0.01 * np.trace(f) / len(f) * np.eye(len(f)))
    chex.assert_trees_all_close(parts.predictor.matrix(after.params["predictor"]), w, atol=1e-3)
