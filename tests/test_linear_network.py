"""The linear twin, trained by our own step, against the theory's equations in float64: it has to
lie on their curves, up to an error that halves where the step does.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.dynamics import theory
from ssl_jax.experiments.harness import linear_network
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Params

D, N, TIME, RECORDS = 4, 5, 8.0, 8
STEPS = (200, 400)  # in TIME
MANY = 8  # settings of one kind, trained together

# What makes a program of its own: target average, symmetric predictor, kind of decay, momentum.
KINDS = {
    "simsiam": (False, False, {"decay": "coupled"}),
    "simsiam, symmetric": (False, True, {"decay": "decoupled"}),
    "byol": (True, False, {"decay": "coupled", "momentum": 0.5}),
    "byol, symmetric": (True, True, {"decay": "pre", "decay_scale": "literal"}),
}


class Matrices(NamedTuple):
    """W (D, N), W_p (D, D), and W_a (D, N), which is W where no average is kept."""

    w: jax.Array
    w_p: jax.Array
    w_a: jax.Array


def train(w, w_p, image, key, *, steps, every, **settings) -> Matrices:
    """W, W_p and W_a after 0, every, 2 every, ... steps, each with that as its first axis (steps /
    every + 1).
    """
    state, step = linear_network.make_twin(w, w_p, **settings)

    def stretch(state, _):
        state = linear_network.advance(state, step, image, key, every)
        return state, matrices(state)

    _, seen = jax.lax.scan(stretch, state, length=steps // every)
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest]), matrices(state), seen
    )


def matrices(state: PretrainState) -> Matrices:
    w = kernel(state.params)
    w_p = state.params["predictor"]["linear"]["kernel"].T
    return Matrices(w, w_p, kernel(state.target) if state.target else w)


def kernel(params: Params) -> jax.Array:
    """W (D, N)."""
    return params["encoder"]["linear"]["kernel"].T


def modes(found: Matrices, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(p, s, τ) (..., D) along the columns v of `basis` (D, D): v·W_p v, v·F v with F = W Wᵀ, and
    v·W_a Wᵀ v / s.
    """
    w, w_p, w_a = (np.asarray(x, np.float64) for x in found)
    turned = np.swapaxes(w, -1, -2)
    p, s, cross = (
        np.einsum("ij,...ik,kj->...j", basis, m, basis) for m in (w_p, w @ turned, w_a @ turned)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return p, s, cross / s


def settings_of(rng, averaged, fixed, steps):
    """MANY random settings as columns of numbers, and their flows; each step takes TIME / steps of
    the flow's time.

    Three of them without any decay, one with that of the predictor alone, one with equal decays.
    """
    dt, momentum = TIME / steps, fixed.get("momentum", 0.0)
    rate = dt * rng.uniform(0.3, 3, MANY)
    ratio, beta = rng.uniform(0.3, 3, MANY), rng.uniform(0.2, 2, MANY)
    eta, eta_p = rng.uniform(0.02, 0.3, (2, MANY))
    eta[:4], eta_p[:3], eta_p[4] = 0, 0, eta[4]
    given = {
        "learning_rate": rate,
        "predictor_learning_rate": ratio * rate,
        # So that the flow has η_s = eta and η_p = eta_p, whatever the learning rate: see
        # `theory.mapping`.
        "weight_decay": eta * dt if "decay_scale" in fixed else eta * dt * (1 - momentum) / rate,
        "predictor_weight_decay": eta_p * dt
        if "decay_scale" in fixed
        else eta_p * dt * (1 - momentum) / rate / ratio,
        "loss_scale": dt * (1 - momentum) / rate,  # c of the mapping, half of which is the step's
    }
    if averaged:
        given["tau"] = 1 - beta * dt
    rows = [{name: float(column[i]) for name, column in given.items()} for i in range(MANY)]
    flows = [theory.mapping(**row, **fixed) for row in rows]
    np.testing.assert_allclose([time for _, time in flows], dt)
    columns = {
        name: np.array([getattr(flow, name) for flow, _ in flows], float)
        for name in theory.Flow._fields[:3]
    }
    np.testing.assert_allclose(
        [columns["eta_p"], columns["eta_s"]], [eta_p, eta], rtol=1e-9, atol=1e-15
    )
    columns["beta"] = np.array([flow.beta for flow, _ in flows]) if averaged else None
    return given | {"loss_scale": given["loss_scale"] / 2}, columns


@cache
def program(kind, steps):
    averaged, symmetric, fixed = KINDS[kind]
    common = fixed | {"symmetric": symmetric, "steps": steps, "every": steps // RECORDS}

    def one(w, w_p, image, numbers):
        return train(w, w_p, image, jax.random.key(0), **common, **numbers)

    return jax.jit(jax.vmap(one))


def trained(kind, steps, seed, start, image):
    """(what the twins were, the flows' numbers), twins (MANY, RECORDS + 1, ...)."""
    averaged, _, fixed = KINDS[kind]
    numbers, flow = settings_of(np.random.default_rng(seed), averaged, fixed, steps)
    w, w_p = (jnp.asarray(x, jnp.float32) for x in start)
    images = (
        jnp.broadcast_to(jnp.asarray(image)[None], (MANY, *image.shape))
        if image.ndim == 3
        else image
    )
    numbers = {name: jnp.asarray(value, jnp.float32) for name, value in numbers.items()}
    return jax.device_get(program(kind, steps)(w, w_p, images, numbers)), flow


def aligned_start(rng):
    """(W, W_p, basis, p, s): W_p symmetric, and with the eigenvectors of F; p of both signs, modes
    of many sizes.
    """
    p, s = rng.uniform(-0.1, 0.8, (MANY, D)), rng.uniform(0.05, 0.8, (MANY, D))
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0]
    turn = np.linalg.qr(rng.normal(size=(N, N)))[0][:, :D]
    return (
        np.einsum("ij,mj,nj->min", basis, np.sqrt(s), turn),
        np.einsum("ij,mj,kj->mik", basis, p, basis),
        basis,
        p,
        s,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_modes_lie_on_the_curves_of_the_theory(kind):
    """32 random settings: each p, s and τ, from an aligned start, at every record."""
    rng = np.random.default_rng(3)
    w, w_p, basis, p, s = aligned_start(rng)
    sigma2 = rng.uniform(0, 0.3, MANY)
    image = np.stack(
        [
            linear_network.exact_moments(np.eye(N), v * np.eye(N), seed=i)
            for i, v in enumerate(sigma2)
        ]
    )
    errors = []
    for steps in STEPS:
        found, flow = trained(kind, steps, 4, (w, w_p), image)
        columns = {name: None if value is None else value[:, None] for name, value in flow.items()}
        times = np.linspace(0, TIME, RECORDS + 1)
        curves = theory.simulate(p=p, s=s, times=times, sigma2=sigma2[:, None], **columns)
        measured = modes(Matrices(*found), basis)
        seen = np.stack([measured[0], measured[1], measured[2] * measured[1]])  # τ s: τ has poles
        right = np.stack([curves.p, curves.s, curves.tau * curves.s]).swapaxes(-1, -2)
        errors.append(np.abs(seen - right).max((0, 2, 3)))
    check_first_order(*errors)
    assert np.abs(right[1, :, -1] - right[1, :, 0]).max(-1).min() > 0.05  # they all went somewhere


@pytest.mark.parametrize("kind", ["simsiam", "byol, symmetric"])
def test_matrices_lie_on_those_of_the_theory(kind):
    """16 more settings, from any start and on data that are not isotropic."""
    rng = np.random.default_rng(5)
    w, w_p = rng.normal(size=(MANY, D, N)) / 3, rng.normal(size=(MANY, D, D)) / 3
    _, symmetric, _ = KINDS[kind]
    if symmetric:
        w_p = (w_p + w_p.swapaxes(1, 2)) / 2
    roots = rng.normal(size=(2, N, N)) / 3
    x, x_prime = np.eye(N) / 2 + roots[0] @ roots[0].T, roots[1] @ roots[1].T / 2
    image, errors = linear_network.exact_moments(x, x_prime), []
    for steps in STEPS:
        found, flow = trained(kind, steps, 6, (w, w_p), image)
        times = np.linspace(0, TIME, RECORDS + 1)
        right = theory.simulate_matrices(
            w, w_p, times=times, x=x, x_prime=x_prime, symmetric=symmetric, **flow
        )
        errors.append(
            np.max(
                [np.abs(a - b).max((1, 2, 3)) for a, b in zip(found, right, strict=True)], axis=0
            )
        )
    check_first_order(*errors)


@pytest.mark.parametrize("kind", ["simsiam", "byol"])
def test_balance_of_the_layers_decays_as_the_theory_says(kind):
    """W Wᵀ - W_pᵀ W_p / α_p goes as e^(-2ηt) where both decay alike, and stays where neither
    decays.
    """
    rng = np.random.default_rng(5)
    w, w_p = rng.normal(size=(MANY, D, N)) / 3, rng.normal(size=(MANY, D, D)) / 3
    image, times = (
        linear_network.exact_moments(np.eye(N), np.eye(N) / 10),
        np.linspace(0, TIME, RECORDS + 1),
    )
    found, flow = trained(kind, STEPS[1], 6, (w, w_p), image)
    alike = np.flatnonzero(np.isclose(flow["eta_p"], flow["eta_s"]))
    assert len(alike) == 4
    for i in alike:
        now = np.stack(
            [
                w @ w.T - w_p.T @ w_p / flow["alpha_p"][i]
                for w, w_p in zip(found[0][i], found[1][i], strict=True)
            ]
        )
        right = np.exp(-2 * flow["eta_s"][i] * times)[:, None, None] * now[:1]
        assert np.abs(now - right).max() < 0.02 < np.abs(now[0]).max()


def check_first_order(coarse, fine):
    """Errors (MANY,) of twice the step and of the step. Rounding in float32 leaves some 1e-6, far
    below either.
    """
    assert fine.max() < 0.02 and fine.min() > 1e-4, fine
    ratio = coarse / fine
    assert (1.9 < ratio).all() and (ratio < 2.2).all(), ratio


def test_moments_are_exact():
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, N, N))
    x, x_prime = (root @ root.T for root in roots)
    flat = linear_network.exact_moments(x, x_prime).astype(np.float64).reshape(3 * N, 3 * N)
    expected = np.zeros((3, N, 3, N))
    expected[0, :, 0], expected[1, :, 1], expected[2, :, 2] = x, x_prime, x_prime
    np.testing.assert_allclose(flat.T @ flat / len(flat), expected.reshape(3 * N, 3 * N), atol=2e-6)


def test_sampled_data_have_the_moments_they_should():
    x, x_prime = np.diag([2.0, 1, 0.5]), 0.3 * np.eye(3)
    keys = jax.random.split(jax.random.key(1), 20000)
    one, two = (
        np.asarray(v, np.float64)
        for v in jax.jit(linear_network.sampled_views(x, x_prime))(keys, jnp.zeros((20000, 1)))
    )
    for a, b, moment in ((one, one, x + x_prime), (two, two, x + x_prime), (one, two, x)):
        np.testing.assert_allclose(a.T @ b / 20000, moment, atol=0.08)


def test_what_the_theory_says_dies_dies_and_the_rest_lives():
    """One start and flow, two modes on either side of the border; on exact data and on fresh random
    ones.
    """
    flow = {"alpha_p": 1.0, "eta_p": 0.1, "eta_s": 0.1}
    p, s = np.full(2, 0.1), np.array([0.005, 0.3])
    dies = theory.collapses(p=p, s=s, sigma2=0.1, **flow)
    np.testing.assert_array_equal(dies, [True, False])
    rate, data = 0.1, (np.eye(2), 0.1 * np.eye(2))
    numbers = {"learning_rate": rate, "predictor_learning_rate": rate, "weight_decay": 0.1}
    numbers |= {"predictor_weight_decay": 0.1, "steps": 1000, "every": 1000}
    w, w_p = jnp.diag(jnp.sqrt(jnp.array(s, jnp.float32))), 0.1 * jnp.eye(2)
    sampled = {"views": linear_network.sampled_views(*data)}
    for image, views in (
        (jnp.asarray(linear_network.exact_moments(*data)), {}),
        (jnp.zeros((256, 1)), sampled),
    ):
        found = jax.jit(partial(train, **numbers, **views))(w, w_p, image, jax.random.key(2))
        p_end, s_end, _ = modes(jax.device_get(found), np.eye(2))
        # Fresh noise turns the living mode a little, and some 1e-5 of its s into the other's
        # direction.
        np.testing.assert_array_equal(s_end[-1] < 1e-4, dies)
        learned = theory.fixed_points(sigma2=0.1, **flow)[2]
        np.testing.assert_allclose([p_end[-1, 1], s_end[-1, 1]], [learned.p, learned.s], rtol=0.05)
