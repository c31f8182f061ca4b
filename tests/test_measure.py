"""What is measured of a run's dynamics, against NumPy in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import DIM, make_batch, make_parts, make_state, make_step, noisy_views

from ssl_jax.dynamics.measure import (
    PARTS,
    measure_spectra,
    measure_step,
    measure_views,
    measure_weights,
)
from ssl_jax.losses import OBJECTIVES, half_squared
from ssl_jax.train.pretrain import example_keys


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tree(rng):
    return {
        part: {"a": rng.normal(size=(3, n)), "b": rng.normal(size=n)}
        for n, part in enumerate(PARTS, 2)
    }


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def single(tree):
    return jax.tree.map(jnp.float32, tree)


def test_of_a_step(rng):
    grads, updates = tree(rng), tree(rng)
    z, t = rng.normal(0.5, 1, size=(2, 2, 9, 4))
    corr = sum(v.T @ v for v in z) / 18
    found = measure_step(
        single(grads),
        single(updates),
        tuple(single(z)),
        tuple(single(t)),
        jnp.float32(corr),
        lambda x: x,
    )
    np.testing.assert_allclose(
        found["gradient_norm"], [np.linalg.norm(flat(grads[p])) for p in PARTS], rtol=1e-6
    )
    np.testing.assert_allclose(
        found["update_norm"], [np.linalg.norm(flat(updates[p])) for p in PARTS], rtol=1e-6
    )
    rows, others = z.reshape(-1, 4), t.reshape(-1, 4)
    share = np.sum(rows.mean(0) ** 2) / np.mean(np.sum(rows**2, 1))
    np.testing.assert_allclose(found["mean_share"], share, rtol=1e-5)
    cosine = (
        np.sum(rows * others, 1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(others, axis=1)
    )
    np.testing.assert_allclose(found["online_target_cosine"], cosine.mean(), rtol=1e-5)


def test_one_vector_for_all_has_the_whole_share():
    z = jnp.ones((9, 4))
    grads = {part: {"w": jnp.ones(2)} for part in PARTS}
    found = measure_step(grads, grads, (z, z), (z, z), z.T @ z / 9, lambda x: x)
    np.testing.assert_allclose([found["mean_share"], found["online_target_cosine"]], 1, rtol=1e-6)


def test_of_weights(rng):
    params, target = tree(rng), tree(rng)
    target.pop("predictor")
    found = measure_weights(single(params), single(target))
    np.testing.assert_allclose(
        found["parameter_norm"], [np.linalg.norm(flat(params[p])) for p in PARTS], rtol=1e-6
    )
    a, b = flat({p: params[p] for p in target}), flat(target)
    np.testing.assert_allclose(
        found["weight_cosine"], a @ b / np.linalg.norm(a) / np.linalg.norm(b), rtol=1e-5
    )
    assert np.isnan(measure_weights(single(params), {})["weight_cosine"])


def test_of_spectra(rng):
    x, w = rng.normal(size=(20, 5)), rng.normal(size=(5, 5))
    corr = x.T @ x / 20
    found = measure_spectra(jnp.float32(corr), jnp.float32(w))
    s, v = np.linalg.eigh(corr)
    np.testing.assert_allclose(found["mode_predictor"], np.diag(v.T @ w @ v)[::-1], rtol=1e-4)
    commutator = np.linalg.norm(corr @ w - w @ corr)
    np.testing.assert_allclose(found["commutator"], commutator, rtol=1e-5)
    relative = commutator / np.linalg.norm(corr) / np.linalg.norm(w)
    np.testing.assert_allclose(found["commutator_relative"], relative, rtol=1e-5)
    np.testing.assert_allclose(
        found["asymmetry"], np.linalg.norm(w - w.T) / np.linalg.norm(w), rtol=1e-5
    )
    np.testing.assert_allclose(
        found["asymmetry_l1"], np.abs(w - w.T).sum() / np.abs(w).sum(), rtol=1e-5
    )
    share = s / s.sum()
    np.testing.assert_allclose(
        found["effective_rank"], np.exp(-np.sum(share * np.log(share))), rtol=1e-5
    )
    together = measure_spectra(
        jnp.float32(corr), jnp.float32(v @ np.diag(rng.normal(size=5)) @ v.T)
    )
    assert float(together["commutator_relative"]) < 1e-6


def test_what_two_views_share(rng):
    """In the eigenvectors of F, a running average, and not in those of the batch."""
    roots = rng.normal(size=(3, 4, 4))
    means, noise = (
        rng.normal(size=(300, 4)) @ roots[0] + 0.5,
        rng.normal(size=(2, 300, 4)) @ roots[1],
    )
    z, corr = means + noise, roots[2] @ roots[2].T
    s, v = np.linalg.eigh(corr)
    one, two = z @ v[:, ::-1]
    expected = np.sum(one * two, axis=0) * 2 / np.sum(one**2 + two**2, axis=0)
    found = measure_views(jnp.float32(corr), tuple(single(z)), jnp.array(True), lambda x: x)
    np.testing.assert_allclose(found["view_correlation"], expected, rtol=1e-4)
    never = measure_views(jnp.float32(corr), tuple(single(z)), jnp.array(False), lambda x: x)
    assert np.isnan(never["view_correlation"]).all() and never["view_correlation"].shape == (4,)
    same = measure_views(jnp.float32(corr), (single(z[0]),) * 2, jnp.array(True), lambda x: x)
    np.testing.assert_allclose(same["view_correlation"], 1, rtol=1e-5)


def test_what_views_share_is_measured_when_due_with_the_average_of_that_step():
    parts = make_parts()
    step, key = jax.jit(make_step(parts, tracked=2)), jax.random.key(7)
    state, first = step(make_state(parts), make_batch(), key)
    after, second = step(state, make_batch(1), key)
    assert np.isnan(first["view_correlation"]).all()
    batch = make_batch(1)
    views = noisy_views(example_keys(key, state.step, batch["position"]), batch["image"])
    z = [np.float64(parts.network.train(state.params, state.stats, view)[0]) for view in views]
    v = np.linalg.eigh(np.float64(after.memory["correlation"]))[1][:, ::-1]
    one, two = (view @ v for view in z)
    expected = np.sum(one * two, axis=0) * 2 / np.sum(one**2 + two**2, axis=0)
    np.testing.assert_allclose(second["view_correlation"], expected, rtol=1e-3, atol=1e-3)


def test_tracking_leaves_the_step_as_it_is_and_measures_that_step():
    parts = make_parts(tau=0.9, decay=0.01)
    state, batch, key = make_state(parts), make_batch(), jax.random.key(7)
    plain, _ = jax.jit(make_step(parts))(state, batch, key)
    tracked, metrics = jax.jit(make_step(parts, tracked=1))(state, batch, key)
    chex.assert_trees_all_close(tracked, plain, rtol=1e-6, atol=1e-7)
    moved = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, tracked.params, state.params)
    np.testing.assert_allclose(
        metrics["update_norm"], [np.linalg.norm(flat(moved[p])) for p in PARTS], rtol=1e-3
    )
    cosine = online_target_cosine(parts, state, batch, key)
    np.testing.assert_allclose(metrics["online_target_cosine"], cosine, rtol=1e-4)


def online_target_cosine(parts, state, batch, key):
    """Of the same view, over both views."""
    views = noisy_views(example_keys(key, state.step, batch["position"]), batch["image"])
    trunk = {part: state.params[part] for part in state.target}
    cosines = []
    for view in views:
        a, b = (
            np.float64(parts.network.train(p, state.stats, view)[0]) for p in (trunk, state.target)
        )
        cosines.append(np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    return np.mean(cosines)


def test_tracking_is_the_same_on_four_devices():
    key, batch = jax.random.key(7), make_batch()
    parts = make_parts(axis_name="batch")
    state = make_state(parts)
    step = jax.pmap(
        make_step(parts, axis_name="batch", tracked=1), "batch", in_axes=(None, 0, None)
    )
    shares = jax.tree.map(lambda x: np.reshape(x, (4, 2, *x.shape[1:])), batch)
    _, apart = step(state, shares, key)
    alone = make_parts()
    _, whole = jax.jit(make_step(alone, tracked=1))(state, batch, key)
    names = ("mean_share", "online_target_cosine", "gradient_norm", "update_norm")
    for name in (*names, "view_correlation"):
        np.testing.assert_allclose(apart[name][0], whole[name], rtol=1e-4, err_msg=name)


def test_the_euclidean_step_descends_the_theory_s_loss():
    """Loss of the formula in float64; no gradient flows through the target's side."""
    parts = make_parts(tau=None)
    state, batch, key = make_state(parts), make_batch(), jax.random.key(7)
    _, metrics = jax.jit(make_step(parts, objective=OBJECTIVES["euclidean"], loss_scale=2.0))(
        state, batch, key
    )
    views = noisy_views(example_keys(key, state.step, batch["position"]), batch["image"])
    trunk = {part: state.params[part] for part in ("encoder", "projector")}
    z1, stats = parts.network.train(trunk, state.stats, views[0])
    z2, _ = parts.network.train(trunk, stats, views[1])
    z1, z2, w = (
        np.float64(z1),
        np.float64(z2),
        np.float64(state.params["predictor"]["linear"]["kernel"]),
    )
    assert w.shape == (DIM, DIM)
    expected = 2 * np.mean(np.sum((z1 @ w - z2) ** 2, 1) / 2 + np.sum((z2 @ w - z1) ** 2, 1) / 2)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_half_squared_stops_the_gradient_of_its_target(rng):
    p, z = jnp.float32(rng.normal(size=(2, 3, 4)))
    np.testing.assert_allclose(
        half_squared(p, z), np.sum((np.float64(p) - np.float64(z)) ** 2, 1) / 2, rtol=1e-6
    )
    to_p, to_z = jax.grad(lambda p, z: half_squared(p, z).sum(), argnums=(0, 1))(p, z)
    np.testing.assert_allclose(to_p, p - z, rtol=1e-6)
    assert not np.any(to_z)
