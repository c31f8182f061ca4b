"""The theory of the cosine loss against independent references: samples in NumPy, closed forms,
and its own flows, integrated. Each test has the derivation of what it holds.

Notation as in `dynamics.cosine`: modes (p, m, n), two views of variance A and correlation c, F of
noisy views with eigenvalues f = m² A.
"""

import inspect
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import gamma, hyp2f1

from ssl_jax.dynamics import cosine
from ssl_jax.errors import UserError

D = 8
TIMES = np.array([0.0, 1.0, 3.0, 6.0])


def modes(seed=0, size=D):
    """(p, m, n, data) of random modes, one of which has a mean."""
    rng = np.random.default_rng(seed)
    p, m, n, variance = rng.uniform(0.3, 1.2, (4, size))
    data = {"c": rng.uniform(0.2, 1, size), "variance": variance, "mean": 0.6 * np.eye(size)[1]}
    return p, m, n, data


def network(seed=0, size=3, inputs=4):
    """(W, W_p, W_a, data) of a random linear network, nothing of it aligned."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(2, inputs, inputs)) / np.sqrt(inputs)
    data = {"x": roots[0] @ roots[0].T, "x_prime": roots[1] @ roots[1].T / 2}
    data["mean"] = rng.normal(size=inputs) / 3
    shapes = (size, inputs), (size, size), (size, inputs)
    return *(rng.normal(size=shape) / 2 for shape in shapes), data


@cache
def compiled(function):
    static = {"order", "nodes", "norm", "centred", "isotropic"} & set(
        inspect.signature(function).parameters
    )
    return jax.jit(function, static_argnames=sorted(static))


def doubles(function, *args, **options):
    """What `function` returns, computed in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, compiled(function)(*args, **options))


def leading_rates(p, m, n, *, c, size, alpha_p):
    """dp, dm by the leading order's formulas, in NumPy: N = Σ p m n L, X = Σ p² m² A, Z = Σ n² A.

    `size` is A, any mean included, and L = c A. By p N has the derivative m n L, and X 2 p m² A:
    ∂(N / sqrt(X Z))/∂p = m A (n c - p m N / X) / sqrt(X Z), and by m the same with p before it.
    """
    x, z = np.sum(p**2 * m**2 * size), np.sum(n**2 * size)
    pull = size * (n * c - p * m * np.sum(p * m * n * c * size) / x) / np.sqrt(x * z)
    return alpha_p * m * pull, p * pull


def ends(field, state, time):
    """The state after `time`, by SciPy; `field` is of one vector."""
    found = solve_ivp(
        lambda t, y: field(y), (0, time), np.concatenate(state), "LSODA", rtol=1e-11, atol=1e-14
    )
    assert found.success
    return found.y[:, -1].reshape(len(state), -1)


# --- The integral ---------------------------------------------------------------------------------


def test_one_mode_is_the_arcsine():
    """Of one number cos(u, z) is the sign of u z, and E sign(u) sign(z) = 2/π asin c for Gaussians
    (Sheppard 1899)."""
    one = np.ones(1)
    for c in (0.0, 0.3, 0.9):
        found = doubles(
            cosine.expected_cosine, one, one, one, c=c * one, variance=one, mean=0 * one
        )
        np.testing.assert_allclose(found, 2 / np.pi * np.arcsin(c), atol=1e-6)
        with jax.enable_x64(True):  # no p and no m changes a sign: the gradient is 0
            data = {"c": c * one, "variance": one, "mean": 0 * one, "nodes": cosine.LEAST}
            value, by = jax.value_and_grad(cosine.expected_cosine)(one, one, one, **data)
            value, by = float(value), np.asarray(by)
        assert abs(value - 2 / np.pi * np.arcsin(c)) < 1e-4 and np.abs(by) < 1e-3
    with pytest.raises(UserError, match="^nodes: got 16, takes a whole number from 24"):
        data = {"c": one, "variance": one, "mean": 0 * one, "nodes": 16}
        with jax.enable_x64(True):
            cosine.expected_cosine(one, one, one, **data)


def test_two_and_three_equal_modes_are_bessel_series():
    """Of k equal modes E cos = c Γ((k+1)/2)² / (Γ(k/2) Γ(k/2+1)) ₂F₁(1/2, 1/2; k/2+1; c²), the
    mean cosine of two correlated Gaussian vectors (u and z are z' + noise; expand in c)."""
    for k, tolerance in ((2, 1e-8), (3, 1e-10), (8, 1e-13)):
        one, c = np.ones(k), 0.7
        found = doubles(
            cosine.expected_cosine, one, one, one, c=c * one, variance=one, mean=0 * one
        )
        series = gamma((k + 1) / 2) ** 2 / gamma(k / 2) / gamma(k / 2 + 1)
        series *= c * hyp2f1(0.5, 0.5, k / 2 + 1, c**2)
        np.testing.assert_allclose(found, series, atol=tolerance)


def test_value_and_gradients_are_those_of_samples():
    """Any network, with a mean. Of a sample ∂cos/∂u = z / (|u||z|) - cos u / |u|², and W_p and W
    get that times (W x₁)ᵀ and W_pᵀ that x₁ᵀ."""
    w, w_p, w_a, data = network()
    rng, count = np.random.default_rng(1), 400_000
    means = rng.multivariate_normal(data["mean"], data["x"], count)
    one, two = (
        means + rng.multivariate_normal(np.zeros(4), data["x_prime"], count) for _ in range(2)
    )
    u, z = one @ w.T @ w_p.T, two @ w_a.T
    sizes = np.linalg.norm(u, axis=1), np.linalg.norm(z, axis=1)
    cos = np.sum(u * z, axis=1) / sizes[0] / sizes[1]
    by_u = z / (sizes[0] * sizes[1])[:, None] - (cos / sizes[0] ** 2)[:, None] * u
    samples = (
        cos,
        np.einsum("bi,bj->bij", by_u @ w_p, one),
        np.einsum("bi,bj->bij", by_u, one @ w.T),
    )

    def all_three(w, w_p):
        def value(w, w_p):
            return cosine.expected_cosine_of_matrices(w, w_p, w_a, **data)

        return value(w, w_p), *jax.grad(value, (0, 1))(w, w_p)

    for exact, sample in zip(doubles(all_three, w, w_p), samples, strict=True):
        error = (exact - sample.mean(0)) / (sample.std(0) / np.sqrt(count))
        assert np.abs(error).max() < 4, error  # in standard errors


@pytest.mark.parametrize("order", cosine.ORDERS)
def test_modes_are_the_matrices_of_an_aligned_network(order):
    p, m, n, data = modes(size=3)
    rng = np.random.default_rng(2)
    left, right = np.linalg.qr(rng.normal(size=(3, 3)))[0], np.linalg.qr(rng.normal(size=(4, 4)))[0]
    right = right[:, :3]
    w, w_a, w_p = (left * m) @ right.T, (left * n) @ right.T, (left * p) @ left.T
    shared, noise = data["c"] * data["variance"], (1 - data["c"]) * data["variance"]
    of_matrices = {
        "x": (right * shared) @ right.T,
        "x_prime": (right * noise) @ right.T,
        "mean": right @ data["mean"],
        "order": order,
    }
    flow = {"alpha_p": 2.0, "eta_p": 0.1, "eta_s": 0.2, "beta": 0.4}
    dw, dw_p, dw_a = doubles(cosine.matrix_rates, w, w_p, w_a, **of_matrices, **flow)
    dp, dm, dn = doubles(cosine.mode_rates, p, m, n, **data, order=order, **flow)
    np.testing.assert_allclose(left.T @ dw @ right, np.diag(dm), atol=1e-9)
    np.testing.assert_allclose(left.T @ dw_p @ left, np.diag(dp), atol=1e-9)
    np.testing.assert_allclose(left.T @ dw_a @ right, np.diag(dn), atol=1e-9)


def gradients(order, p, m, data):
    """∂/∂p and ∂/∂m in one array; the target is at W."""
    rates = {"alpha_p": 1.0, "eta_p": 0.0, "eta_s": 0.0, "order": order}
    return np.concatenate(doubles(cosine.mode_rates, p, m, m, **data, **rates)[:2])


def test_orders_fall_off_with_the_number_of_modes():
    """The series is one in 1/D: moments of u·z, |u|² and |z|² over their means go as 1/D. So the
    leading order's error goes as 1/D, the next one's as 1/D²: by 4 and by 16 each time."""
    errors = []
    for size in (8, 32, 128):
        found = [gradient_errors(seed, size) for seed in range(4)]
        errors.append(np.exp(np.mean(np.log(found), axis=0)))
    ratios = np.array(errors[:-1]) / errors[1:]
    assert ((2.5 < ratios[:, 0]) & (ratios[:, 0] < 5)).all() and (ratios[:, 1] > 6).all(), errors
    assert (np.array(errors) < [(0.5, 0.25), (0.15, 0.04), (0.05, 0.005)]).all(), errors


def gradient_errors(seed, size):
    """Relative errors of the gradient to leading and next order, (2,)."""
    p, m, _, data = modes(seed, size)
    data["mean"] = np.zeros(size)
    right, *found = (gradients(order, p, m, data) for order in ("exact", "leading", "next"))
    return [np.linalg.norm(wrong - right) / np.linalg.norm(right) for wrong in found]


def test_leading_order_is_its_formula_with_a_mean_as_a_mode_with_c_1():
    """A mean adds μ² to variance and covariance, and only E u·z, E|u|² and E|z|² enter."""
    p, m, n, data = modes()
    size = data["variance"] + data["mean"] ** 2
    share = (data["c"] * data["variance"] + data["mean"] ** 2) / size
    dp, dm = leading_rates(p, m, n, c=share, size=size, alpha_p=1.5)
    flow = {"alpha_p": 1.5, "eta_p": 0.1, "eta_s": 0.2, "beta": 0.3, "order": "leading"}
    found = doubles(cosine.mode_rates, p, m, n, **data, **flow)
    np.testing.assert_allclose(found[0], dp - 0.1 * p, atol=1e-14)
    np.testing.assert_allclose(found[1], dm - 0.2 * m, atol=1e-14)
    np.testing.assert_allclose(found[2], 0.3 * (m - n), atol=1e-15)


# --- What the flow keeps --------------------------------------------------------------------------


def starts(rows=4, seed=4):
    """(p, s, c) (rows, D) of random starts in which modes live and die."""
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(0.2, 1.0, (rows, D)),
        rng.uniform(0.02, 1.0, (rows, D)),
        rng.uniform(0.2, 1, (rows, D)),
    )


FLOW = {
    "alpha_p": np.array([0.5, 0.5, 2.0, 1.0]),
    "eta_p": np.array([0.0, 0.1, 0.1, 0.3]),
    "eta_s": np.array([0.0, 0.1, 0.1, 0.05]),
}


@cache
def exact_curves():
    """The exact flow of the starts: without decay, twice under equal ones, under unequal ones. The
    first two have the same start."""
    p, s, c = (np.concatenate([x[:1], x[:1], x[2:]]) for x in starts())
    return cosine.simulate(p=p, s=s, c=c, times=TIMES, **FLOW)


def test_norms_feel_decay_alone():
    """J does not change where W_p, or W in front of a held target, is multiplied by a number, so
    Σ p ∂J/∂p = Σ m ∂J/∂m = 0 (Euler), for any target: d‖W_p‖²/dt = -2 η_p ‖W_p‖² and
    d‖W‖²/dt = -2 η_s ‖W‖²."""
    p, m, n, data = modes()
    rates = {"alpha_p": 1.5, "eta_p": 0.3, "eta_s": 0.1}
    dp, dm, _ = doubles(cosine.mode_rates, p, m, n, **data, **rates)
    np.testing.assert_allclose([p @ dp, m @ dm], [-0.3 * p @ p, -0.1 * m @ m], rtol=1e-11)
    curves = exact_curves()
    for value, eta in ((curves.p, FLOW["eta_p"]), (curves.m, FLOW["eta_s"])):
        size = np.sum(value**2, axis=-1)
        expected = size[:, :1] * np.exp(-2 * eta[:, None] * TIMES)
        np.testing.assert_allclose(size, expected, rtol=1e-9)
    assert np.abs(curves.s[0, -1] - curves.s[0, 0]).max() > 0.1  # it did move


def test_a_lone_mode_does_not_drift():
    """The same holds of the sum in place of the integral: it takes u and z of size 1. Where one
    mode lives, the exact gradient is 0, and an error along the weights would be all there is."""
    p, m, c = np.array([1.0, 0.5, 0.2]), np.array([1.0, 1e-4, 1e-6]), np.array([0.9, 0.5, 0.3])
    data = {"c": c, "variance": np.ones(3), "mean": np.zeros(3), "nodes": cosine.LEAST}
    still = {"alpha_p": 1.0, "eta_p": 0.0, "eta_s": 0.0}
    dp, dm, _ = doubles(cosine.mode_rates, p, m, m, **data, **still)
    assert abs(p @ dp) < 1e-14 and abs(m @ dm) < 1e-14
    data = {"x": np.diag(c), "x_prime": np.diag(1 - c), "mean": np.zeros(3), "nodes": cosine.LEAST}
    w, w_p = np.diag(m), np.diag(p)
    dw, dw_p, _ = doubles(cosine.matrix_rates, w, w_p, w, **data, **still)
    assert abs(np.sum(w * dw)) < 1e-14 and abs(np.sum(w_p * dw_p)) < 1e-14


@pytest.mark.parametrize("size", [1e-11, 1e10])
def test_the_gradient_knows_no_size(size):
    """Not in float32 either, which does not hold its fourth power. By m it goes as one over it."""
    p, m, n, data = (jax.tree.map(jnp.float32, x) for x in modes())
    by_m = compiled(cosine.mode_rates)
    flow = {"alpha_p": 1.0, "eta_p": 0.0, "eta_s": 0.0}
    _, here, _ = by_m(p, m, n, **data, **flow)
    _, there, _ = by_m(p, size * m, size * n, **data, **flow)
    np.testing.assert_allclose(size * there, here, rtol=1e-3, atol=1e-4 * np.abs(here).max())


def test_balance_changes_by_decay_alone():
    """u depends on p m alone, so p ∂J/∂p = m ∂J/∂m, for any target. Then d(s - p²/α)/dt =
    -2 η_s s + 2 η_p p²/α, which under equal decays is -2 η times itself."""
    curves = exact_curves()
    kept = curves.s - curves.p**2 / FLOW["alpha_p"][:, None, None]
    equal = np.flatnonzero(FLOW["eta_p"] == FLOW["eta_s"])
    fall = np.exp(-2 * FLOW["eta_s"][equal][:, None] * TIMES)[..., None]
    np.testing.assert_allclose(kept[equal], kept[equal, :1] * fall, atol=1e-9)
    p, m, n, data = modes()
    rates = {"alpha_p": 1.5, "eta_p": 0.3, "eta_s": 0.1}
    dp, dm, _ = doubles(cosine.mode_rates, p, m, n, **data, **rates)
    change = 2 * m * dm - 2 * p * dp / 1.5
    np.testing.assert_allclose(change, -0.2 * m**2 + 0.6 * p**2 / 1.5, atol=1e-10)


def test_equal_decays_are_a_change_of_time():
    """e^(ηt) (W, W_p) at t is the flow without decay at T = (e^(2ηt) - 1) / 2η (derivation below,
    with equal decays)."""
    curves, eta = exact_curves(), FLOW["eta_s"][1]
    without = np.flatnonzero(FLOW["eta_s"] == 0)[0]
    later = cosine.time_without_decay(TIMES, eta)
    p, s, c = (np.concatenate([x[:1], x[:1], x[2:]]) for x in starts())
    flow = FLOW | {"eta_p": 0 * FLOW["eta_p"], "eta_s": 0 * FLOW["eta_s"]}
    free = cosine.simulate(p=p, s=s, c=c, times=later, **flow)
    np.testing.assert_allclose(curves.p[1] * np.exp(eta * TIMES)[:, None], free.p[1], atol=1e-8)
    np.testing.assert_allclose(curves.m[1] * np.exp(eta * TIMES)[:, None], free.m[1], atol=1e-8)
    assert np.abs(curves.p[1, -1] - curves.p[without, -1]).max() > 0.01  # decay did act
    np.testing.assert_allclose(cosine.time_without_decay(TIMES, 0.0), TIMES)


def test_unequal_decays_are_a_learning_rate_that_changes():
    """With m~ = e^(η_s t) m and p~ = e^(η_p t) p, ∂J/∂m = e^(η_s t) ∂J/∂m~ by the scale symmetry.
    So dm~/dt = -e^(2 η_s t) ∂J/∂m~ and dp~/dt = -α_p e^(2 η_p t) ∂J/∂p~: in the time
    dT = e^(2 η_s t) dt it is the flow without decay, of α_p e^(2 (η_p - η_s) t)."""
    p, m, _, data = modes()
    flow = {"alpha_p": 1.5, "eta_p": 0.3, "eta_s": 0.1}
    for t in (0.0, 1.0, 4.0):
        dp, dm, _ = doubles(cosine.mode_rates, p, m, m, **data, **flow)
        grown_p, grown_m = np.exp(0.3 * t) * p, np.exp(0.1 * t) * m
        per_time = np.exp(0.2 * t)  # dT/dt
        h = 1e-6  # T' by differences
        ends = cosine.time_without_decay(np.array([t - h, t + h]), 0.1)
        np.testing.assert_allclose(np.diff(ends) / (2 * h), per_time, rtol=1e-8)
        free = {"alpha_p": cosine.alpha_without_decay(t, **flow), "eta_p": 0.0, "eta_s": 0.0}
        right = doubles(cosine.mode_rates, grown_p, grown_m, grown_m, **data, **free)
        np.testing.assert_allclose((dp + 0.3 * p) * np.exp(0.3 * t) / per_time, right[0], atol=1e-9)
        np.testing.assert_allclose((dm + 0.1 * m) * np.exp(0.1 * t) / per_time, right[1], atol=1e-9)


@pytest.mark.slow  # its program compiles for long
def test_matrices_flow_as_their_modes_do():
    p, s, c = (x[0, :3] for x in starts())
    rng = np.random.default_rng(5)
    left, right = np.linalg.qr(rng.normal(size=(3, 3)))[0], np.linalg.qr(rng.normal(size=(4, 4)))[0]
    right = right[:, :3]
    flow = {"alpha_p": 2.0, "eta_p": 0.1, "eta_s": 0.2, "beta": 0.4, "order": "next"}
    curves = cosine.simulate(p=p, s=s, c=c, times=TIMES, **flow)
    w, w_p, w_a = cosine.simulate_matrices(
        (left * np.sqrt(s)) @ right.T,
        (left * p) @ left.T,
        times=TIMES,
        x=(right * c) @ right.T,
        x_prime=(right * (1 - c)) @ right.T,
        **flow,
    )
    for found, values, other in (
        (w, curves.m, right),
        (w_a, curves.n, right),
        (w_p, curves.p, left),
    ):
        turned = np.einsum("ia,tij,jb->tab", left, found, other)
        np.testing.assert_allclose(turned, values[:, :, None] * np.eye(3), atol=1e-9)


# --- Which modes live -----------------------------------------------------------------------------


def test_water_fills_as_the_flow_of_leading_order_ends():
    """At rest p = q c or s = 0. π = p² - α s is kept (balance), so at rest p² = q² c² and
    s = (q² c² - π) / α > 0, or s = 0 and p² = π >= q² c² (else s would grow: ds goes as
    p (c - p/q)). Σ p² is kept (norm), which gives q. Where p < 0 and π > 0 s falls until
    p = -sqrt(π), as c - p/q > 0 there."""
    rng, seen, lost = np.random.default_rng(6), [], 0
    for row in range(40):
        p, s, c = rng.uniform(0, 1, D), rng.uniform(0.02, 1, D), rng.uniform(0.2, 1, D)
        variance, alpha_p = rng.uniform(0.5, 2, D), rng.uniform(0.05, 2)
        p[0] *= -1 if row % 2 else 1
        fate = cosine.fate(p, s, c, alpha_p)
        kept = p**2 - alpha_p * s
        if np.abs(fate.q**2 * c**2 - kept).min() < 1e-3:
            continue  # so near to the border the flow takes too long

        def field(y, c=c, variance=variance, alpha_p=alpha_p):
            p, m = y.reshape(2, -1)
            return np.concatenate(leading_rates(p, m, m, c=c, size=variance, alpha_p=alpha_p))

        p_end, m_end = ends(field, (p, np.sqrt(s)), 1e5)
        seen.append(fate.alive)
        lost += (p[0] < 0) & (kept[0] > 0)
        np.testing.assert_array_equal(m_end**2 > 1e-6, fate.alive)
        np.testing.assert_allclose(m_end**2, fate.s, atol=5e-9)
        np.testing.assert_allclose(p_end, fate.p, atol=5e-9)
        np.testing.assert_allclose(fate.p[fate.alive], fate.q * c[fate.alive], rtol=1e-12)
    assert len(seen) > 25 and 0.3 < np.mean(seen) < 0.9 and lost > 2


def test_what_water_filling_says_of_a_predictor_that_begins_as_the_identity():
    """From W_p = p I and r = α s / p²: mode j dies where 1 - r_j >= (q c_j / p)². All live where
    every r >= 1 (then π <= 0), and where all c are alike (then q c = p sqrt(mean) >= sqrt(π))."""
    rng = np.random.default_rng(7)
    s, c = rng.uniform(0.1, 1, (2, 50, D))
    assert cosine.fate(np.sqrt(0.1), s, c, 1.0).alive.all()  # r >= 1
    assert cosine.fate(1.0, s, np.full(D, 0.3), 0.01).alive.all()
    found = cosine.fate(1.0, s, c, 0.01)
    np.testing.assert_array_equal(found.alive, 1 - 0.01 * s < (found.q[:, None] * c) ** 2)
    assert 0 < found.alive.mean() < 0.5
    absent = cosine.fate(1.0, np.where(np.arange(D) < 3, 0, s), c, 0.5)
    assert not absent.alive[:, :3].any() and (absent.p[:, :3] == 1).all()


def test_level_is_where_modes_rest():
    p, m, _, data = modes()
    f = m**2 * (data["variance"] + data["mean"] ** 2)
    share = (data["c"] * data["variance"] + data["mean"] ** 2) / (
        data["variance"] + data["mean"] ** 2
    )
    q = cosine.level(p, f, share)
    p[3] = q * share[3]  # moves q too: solve for the p at rest
    for _ in range(100):
        p[3] = cosine.level(p, f, share) * share[3]
    rates = {"alpha_p": 1.0, "eta_p": 0.0, "eta_s": 0.0, "order": "leading"}
    dp, dm, _ = doubles(cosine.mode_rates, p, m, m, **data, **rates)
    assert abs(dp[3]) < 1e-12 and abs(dm[3]) < 1e-12 and np.abs(dp).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("size", "rows", "right"), [(8, 24, 0.9), (32, 6, 0.97)])
def test_water_filling_in_the_exact_flow(size, rows, right):
    """It is of leading order: in the exact flow a few modes near the border go the other way, fewer
    the more modes there are."""
    rng = np.random.default_rng(8)
    p, s, c = (
        np.ones((rows, size)),
        rng.uniform(0.2, 1, (rows, size)),
        rng.uniform(0.3, 1, (rows, size)),
    )
    alpha_p = rng.uniform(0.1, 1, rows)
    end = cosine.simulate(p=p, s=s, c=c, times=[0.0, 2e3], alpha_p=alpha_p, nodes=40)
    fate = cosine.fate(p, s, c, alpha_p)
    alive = end.s[:, -1] > 0.01 * s.mean(1, keepdims=True)
    assert np.mean(alive == fate.alive) > right and 0.2 < fate.alive.mean() < 0.9


WIDTH = 32  # of every call of `revival_level` beside other modes: it compiles for each shape


def level_beside(p, s, c, variance=1.0, mean=0.0):
    """`revival_level` beside up to WIDTH modes; all others are absent."""
    p, s, c, variance, mean = (
        np.pad(np.broadcast_to(np.asarray(x, float), np.shape(p)), (0, WIDTH - len(p)))
        for x in (p, s, c, variance, mean)
    )
    return cosine.revival_level(p, s, c, variance, mean)


def threshold(k, c):
    """Of `revival_level` beside k equal modes with p = 1, as a share of their p."""
    one = np.ones(k)
    return c * level_beside(one, one, c)


def test_an_absent_mode_grows_just_below_its_level():
    """Exact rates of a mode so small that it changes nothing, on either side of q c."""
    p, m, _, data = modes()
    for seed in range(3):
        p, m, _, data = modes(seed)
        m[0], data["mean"] = 1e-6, 0.6 * np.eye(D)[1] * (seed > 0)
        there = {name: value[1:] for name, value in data.items()}
        limit = data["c"][0] * level_beside(p[1:], m[1:] ** 2, **there)
        rates = {"alpha_p": 1.0, "eta_p": 0.0, "eta_s": 0.0}
        for p[0], sign in ((-0.1, -1), (0.5 * limit, 1), (0.999 * limit, 1), (1.001 * limit, -1)):
            dm = doubles(cosine.mode_rates, p, m, m, **data, **rates)[1]
            assert np.sign(dm[0]) == sign


def test_levels_of_revival():
    """E[1/(|u||z|)] and E[cos/|u|²] by samples beside four modes; beside the mean alone u and z are
    constant, and q is p; beside many modes it is the leading order's."""
    rng, c, count = np.random.default_rng(9), 0.7, 400_000
    y = rng.normal(size=(count, 4))
    other = c * y + np.sqrt(1 - c**2) * rng.normal(size=(count, 4))
    sizes = np.linalg.norm(y, axis=1), np.linalg.norm(other, axis=1)
    ratio = np.mean(1 / sizes[0] / sizes[1])
    ratio /= np.mean(np.sum(y * other, 1) / sizes[0] ** 3 / sizes[1])
    np.testing.assert_allclose(threshold(4, c), c * ratio, rtol=5e-3)
    beside_mean = level_beside([0.5], 1.0, 1.0, variance=0.0, mean=1.0)
    np.testing.assert_allclose(beside_mean, 0.5, rtol=1e-9)
    p, m, _, data = modes(1, WIDTH)
    data["mean"] = np.zeros(WIDTH)
    f = m**2 * data["variance"]
    found = level_beside(p, m**2, **data)
    np.testing.assert_allclose(found, cosine.level(p, f, data["c"]), rtol=0.06)
    easier = [threshold(k, 1 / 1.3) for k in (2, 3, 4, 8, 32)]
    assert (np.diff(easier) < 0).all() and easier[-1] > 1


def test_without_predictor_or_stopped_gradient_only_the_largest_c_is_left():
    """With p = 1 held q = Σ f / Σ f c is one over the mean of c, so that modes above that mean grow
    at the cost of the others, exactly as to leading order; where all c are alike none goes. With
    the target's gradient the flow climbs E cos itself, at most max c to leading order (N² <=
    max c² X Z by Cauchy) and only where no other mode is left. A target average changes the time
    alone."""
    c, s, one = np.array([0.95, 0.95, 0.6, 0.4]), np.array([0.2, 0.3, 0.6, 0.5]), np.ones(4)
    flow = {"variance": one, "mean": 0 * one, "alpha_p": 0.0, "eta_p": 0.0, "eta_s": 0.0}

    def held(m, order, c=c):
        return doubles(cosine.mode_rates, one, m, m, c=c, order=order, nodes=32, **flow)[1]

    for order in ("leading", "exact"):
        left = ends(lambda m, order=order: held(m, order), (np.sqrt(s),), 500.0)[0] ** 2
        assert left[:2].sum() > 0.999 * s.sum() and left[:2].min() > 0.1
        alike = ends(lambda m, order=order: held(m, order, c[:1] * one), (np.sqrt(s),), 500.0)[0]
        assert (alike**2).min() > 0.19

    def averaged(y):
        m, n = y.reshape(2, -1)
        _, dm = leading_rates(one, m, n, c=c, size=one, alpha_p=0.0)
        return np.concatenate([dm, 0.05 * (m - n)])

    left = ends(averaged, (np.sqrt(s), np.sqrt(s)), 3e3)[0] ** 2
    assert left[:2].sum() > 0.999 * s.sum()

    def climbing(y):
        p, m = y.reshape(2, -1)
        n, x, z = np.sum(p * m**2 * c), np.sum(p**2 * m**2), np.sum(m**2)
        by_p = m**2 * c / n - p * m**2 / x
        by_m = 2 * p * m * c / n - p**2 * m / x - m / z
        return np.concatenate([by_p, by_m]) * n / np.sqrt(x * z)

    p, m = ends(climbing, (one, np.sqrt(s)), 1e4)
    assert ((p * m)[2:] ** 2).sum() < 1e-3 * ((p * m) ** 2).sum()


# --- Predictors in closed form --------------------------------------------------------------------


@pytest.mark.parametrize("norm", cosine.NORMS)
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_spectrum_of_a_predictor_in_closed_form(norm, power):
    """A living mode rests where p = q c, and p = (f/‖f‖)^a + ε is given: so f/‖f‖ = (q c - ε)^(1/a)
    where that is above 0, else f = 0; q follows from the norm. Decay takes the same share of every
    f and leaves it. Two starts each, of modes with unequal variances, one of them like a mean."""
    rng = np.random.default_rng(10)
    c, size = np.append(1, rng.uniform(0.2, 0.95, D - 1)), rng.uniform(0.5, 2, D)

    def field(m):
        p = doubles(cosine.direct_values, m**2 * size, **direct)
        return leading_rates(p, m, m, c=c, size=size, alpha_p=0.0)[1] - 1e-3 * m

    norms = {"max": np.max, "frobenius": np.linalg.norm, "trace": np.sum}
    for eps in (0.0, 0.3):
        direct = {"power": power, "eps": eps, "norm": norm}
        law = cosine.direct_spectrum(c, **direct)
        np.testing.assert_allclose(norms[norm](law), 1, rtol=1e-12)
        for _ in range(2):
            (m,) = ends(field, (rng.uniform(0.2, 1, D),), 3e3)
            f = m**2 * size
            np.testing.assert_allclose(f / norms[norm](f), law, atol=1e-6)
    if norm == "max":
        np.testing.assert_array_equal(law == 0, c <= 0.3 / 1.3)


@pytest.mark.slow
def test_spectrum_in_the_exact_flow():
    """The law is of leading order: at 8 modes the exact flow ends within .1 of it, at 32 closer."""
    rng, worst = np.random.default_rng(11), []
    for size in (8, 32):
        s, c = rng.uniform(0.05, 1, (2, size)), rng.uniform(0.2, 1, size)
        end = cosine.simulate_direct(s=s, c=c, eps=0.1, times=[0.0, 3e3], nodes=40)
        law = cosine.direct_spectrum(c, eps=0.1)
        f = end.s[:, -1] / end.s[:, -1].max(1, keepdims=True)
        worst.append(np.abs(f - law).max())
        assert np.abs(f[0] - f[1]).max() < 0.02  # whatever the start
    assert worst[0] < 0.1 and worst[1] < 0.05


def test_direct_values_are_those_of_the_predictors_in_use():
    """DirectPred and DirectCopy of `predictors.direct`, from a whole F."""
    from ssl_jax.predictors.direct import direct_copy, direct_pred

    rng = np.random.default_rng(12)
    f, basis = rng.uniform(0.01, 2, 6), np.linalg.qr(rng.normal(size=(6, 6)))[0]
    corr = jnp.float32((basis * f) @ basis.T)
    for whole, options in (
        (direct_pred(corr, eps=0.1), {"power": 0.5, "eps": 0.1}),
        (direct_copy(corr, eps=0.3), {"power": 1.0, "eps": 0.3, "norm": "frobenius"}),
    ):
        values = np.diag(basis.T @ np.asarray(whole) @ basis)
        np.testing.assert_allclose(
            values, cosine.direct_values(jnp.float32(f), **options), rtol=1e-5
        )


@pytest.mark.parametrize("order", cosine.ORDERS)
def test_isoloss_has_the_rates_without_the_eigenvalue(order):
    """u = p m x, so that ∂J/∂m = p ∂J/∂a at a = p m, and IsoLoss has ∂J/∂a. Decay stays."""
    _, m, n, data = modes(2)
    given = {"power": 0.5, "eps": 0.1, "eta_s": 0.3, "order": order, **data}
    plain, iso = (
        doubles(cosine.direct_rates, m, n, beta=0.2, isotropic=flag, **given)[0] + 0.3 * m
        for flag in (False, True)
    )
    f = m**2 * (data["variance"] + data["mean"] ** 2)
    np.testing.assert_allclose(iso * (np.sqrt(f / f.max()) + 0.1), plain, rtol=1e-9, atol=1e-15)


def test_isoloss_ends_on_the_same_spectrum():
    """What is 0 without the factor p is 0 with it."""
    rng = np.random.default_rng(3)
    s, c = rng.uniform(0.05, 1, (2, 12)), rng.uniform(0.2, 1, 12)
    given = {"s": s, "c": c, "eps": 0.2, "times": [0.0, 20.0, 3e3], "order": "leading"}
    plain, iso = (cosine.simulate_direct(isotropic=flag, **given).s for flag in (False, True))
    law = cosine.direct_spectrum(c, eps=0.2)
    for s in (plain, iso):
        assert np.abs(s[:, -1] / s[:, -1].max(1, keepdims=True) - law).max() < 1e-4
    assert np.abs(plain[:, 1] - iso[:, 1]).max() > 0.05  # on other ways


@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_of_a_centred_predictor_only_the_mean_is_left(eps):
    """The mean's own mode has no variance: there p = ε, and c = 1. It grows where ε < q, and
    q - ε = Σ p f (p - ε c) / Σ p f c > 0 as p >= ε and c <= 1, whatever the other modes do. So no
    spectrum rests but the mean alone. With ε = 0 nothing moves it, and others go on beside it."""
    rng = np.random.default_rng(4)
    c, s = np.append(rng.uniform(0.3, 0.9, 7), 1.0), rng.uniform(0.2, 1, (2, 8))
    variance, mean = np.append(np.ones(7), 0.0), 0.3 * np.eye(8)[7]
    given = {"s": s, "c": c, "variance": variance, "mean": mean, "eps": eps, "order": "leading"}
    end = cosine.simulate_direct(centred=True, times=[0.0, 400.0], **given)
    f = end.s[:, -1] * (variance + mean**2)
    if eps:
        assert (f[:, 7] > 0.99 * f.sum(1)).all()
        f = cosine.simulate_direct(times=[0.0, 3e3], **given).s[:, -1] * (variance + mean**2)
        law = cosine.direct_spectrum(c, eps=eps)  # uncentred
        assert np.abs(f / f.max(1, keepdims=True) - law).max() < 1e-3
    else:
        np.testing.assert_allclose(end.s[:, -1, 7], s[:, 7], rtol=1e-9)


@pytest.mark.parametrize("norm", cosine.NORMS)
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_eps_of_modes_leaves_so_many(norm, power):
    c = np.random.default_rng(5).uniform(0.1, 1, 9)
    for alive in range(1, 10):
        eps = cosine.eps_of_modes(c, alive, power=power, norm=norm)
        law = cosine.direct_spectrum(c, power=power, eps=eps, norm=norm)
        assert np.sum(law > 0) == alive
        assert set(np.argsort(-c)[:alive]) == set(np.flatnonzero(law))
    # x / (max c - x) at x = .6, between .5 and .7
    assert cosine.eps_of_modes([1.0, 0.5, 0.7], 2) == pytest.approx(0.6 / 0.4)


# --- Finite steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_noise_and_decay_set_norm_and_turn(momentum):
    """Gradients are noise, orthogonal to w and as one over its norm. With heavy ball a step is
    Δ = -rate v, v = Σ μ^k (g + η w) of k steps ago. E w·v = -rate G μ / ((1 - μ)(1 - μ²)) +
    η |w|²/(1 - μ), as w holds -rate (1 - μ^k)/(1 - μ) of a gradient k steps old, and E|Δ|² =
    rate² G / (1 - μ²). At rest -2 rate E w·v + E|Δ|² = 0: |w|² = rate G / (2 η (1 - μ)), where
    G = E|g|² / |w|² at norm 1, and the turn is |Δ|/|w| = sqrt(2 η rate / (1 + μ))."""
    rng, rate, decay, size = np.random.default_rng(13), 0.05, 0.04, 400
    settings = {"learning_rate": rate, "weight_decay": decay, "momentum": momentum}
    norm = cosine.resting_norm(3.0, **settings)
    w, v = rng.normal(size=size), np.zeros(size)
    w *= 1.5 * norm / np.linalg.norm(w)
    norms, turns = [], []
    for step in range(4000):
        g = rng.normal(size=size)
        g -= w * (w @ g) / (w @ w)
        g *= 3.0 / np.linalg.norm(w) / np.linalg.norm(g)
        v = momentum * v + g + decay * w
        w, before = w - rate * v, w
        if step >= 2000:
            norms.append(np.linalg.norm(w))
            turns.append(np.arccos(w @ before / norms[-1] / np.linalg.norm(before)))
    np.testing.assert_allclose(np.mean(norms), norm, rtol=0.02)
    np.testing.assert_allclose(np.mean(turns), cosine.resting_turn(**settings), rtol=0.02)


def test_equilibrium_of_equal_and_of_weak_modes():
    """Equal modes share alike, but for the samples. No mode dies: in the balance (its docstring)
    the terms by noise fall with s_j, and γ p_j² stays."""
    equal = cosine.equilibrium(np.full(4, 0.7), steps=100, samples=4096)
    np.testing.assert_allclose(equal.s, 1 / 4, rtol=0.15)
    np.testing.assert_allclose(equal.p, 1 / 2, rtol=0.05)
    c = [0.9, 0.9, 0.9, 0.2, 0.1]
    weak = cosine.equilibrium(c, steps=150, samples=4096)
    assert 1e-4 < weak.s[4] < weak.s[3] < 0.03
    # γ grows with η_p / η_s
    more = cosine.equilibrium(c, decay_ratio=4.0, steps=150, samples=4096)
    assert more.s[4] > 1.05 * weak.s[4]


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_steps_of_noise_and_decay_end_at_the_equilibrium(ratio):
    """Steps in NumPy from random W; what is left is the share of each direction of the inputs."""
    rng, c, rest, batch, networks = np.random.default_rng(3), np.array([0.9, 0.9, 0.5]), 2e-4, 8, 24
    eta_s = rest / np.sqrt(ratio)
    w = rng.normal(size=(networks, 3, 3))
    w_p = np.broadcast_to(np.eye(3), w.shape)
    steps, shares = 15_000, []
    for step in range(steps):
        noise = rng.normal(size=(3, networks, batch, 3))
        x, x_2 = (np.sqrt(c) * noise[0] + np.sqrt(1 - c) * noise[i] for i in (1, 2))
        z_1 = x @ w.mT
        u, z = z_1 @ w_p.mT, x_2 @ w.mT
        size = np.linalg.norm(u, axis=-1, keepdims=True)
        u, z = u / size, z / np.linalg.norm(z, axis=-1, keepdims=True)
        h = (z - u * np.sum(u * z, -1, keepdims=True)) / size / batch
        by_w, by_p = (h @ w_p).mT @ x, h.mT @ z_1
        w, w_p = w + by_w - eta_s * w, w_p + by_p - eta_s * ratio * w_p
        if step > steps / 2 and step % 20 == 0:
            columns = np.sum(w**2, axis=1)
            shares.append(columns / columns.sum(-1, keepdims=True))
    # the fluctuation of the fast directions is left, of the order of sqrt(rest / batch): 0.067
    # here, and 0.104 from a law whose M_j leaves |x|² out
    law = cosine.equilibrium(c, decay_ratio=ratio, samples=20_000).s
    np.testing.assert_allclose(np.mean(shares, (0, 1)), law, rtol=0.09)


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cosine.fate(1.0, [0.1, -0.1], 0.5, 1.0), "^s: got -0.1, takes a number from 0"),
        (lambda: cosine.fate(1.0, [0.1, 0.1], [0.5, 1.1], 1.0), "^c: got 1.1, takes a number from"),
        (lambda: cosine.fate(1.0, [0.1, 0.1], 0.5, 0.0), "^alpha_p: got 0.0, takes a number above"),
        (lambda: cosine.direct_spectrum([0.5], norm="spectral"), "^norm: got 'spectral'"),
        (lambda: cosine.direct_spectrum([0.5], power=0.0), "^power: got 0.0, takes a number above"),
        (lambda: cosine.eps_of_modes([0.5, 0.6], 3), "^alive: got 3, takes a whole number from 1"),
        (lambda: cosine.eps_of_modes([0.5, 0.5], 1), "^alive: got 1, but modes 1 and 2 both have"),
        (lambda: cosine.equilibrium([0.5, 0.0]), "^c: got 0.0, takes a number above 0"),
        (lambda: cosine.equilibrium([0.5, 0.5], decay_ratio=0), "^decay_ratio: got 0, takes a"),
        (
            lambda: cosine.simulate(p=1, s=1, c=1, times=[0, 1], alpha_p=1, order="third"),
            "^order: got 'third'",
        ),
    ],
)
def test_what_is_outside_the_domain_is_named(call, words):
    with pytest.raises(UserError, match=words):
        call()
