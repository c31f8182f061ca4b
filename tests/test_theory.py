"""Every formula of the linear theory against an independent one, in float64: SciPy's integrator,
automatic derivatives, finite differences, and the numbers that Tian et al. 2021 (arXiv 2102.06810)
give.
"""

import builtins
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import cumulative_simpson, solve_ivp

from ssl_jax.dynamics import theory
from ssl_jax.errors import UserError

# The paper's Figure 5: alpha 0.01, weight decay 4e-4, target.tau 0.996.
BASE = {"alpha_p": 1.0, "eta_p": 0.04, "eta_s": 0.04}
UNEQUAL = {"alpha_p": 2.5, "eta_p": 0.09, "eta_s": 0.04}


def reference(rates, state, times, **parameters):
    """`rates` by SciPy's Dormand-Prince of order 8: each of the state's arrays over the times."""
    state = [np.asarray(x, np.float64) for x in state]
    ends = np.cumsum([x.size for x in state])[:-1]

    def field(t, y):
        parts = [part.reshape(x.shape) for part, x in zip(np.split(y, ends), state, strict=True)]
        return np.concatenate([np.ravel(rate) for rate in rates(*parts, **parameters)])

    start = np.concatenate([x.ravel() for x in state])
    found = solve_ivp(
        field, (times[0], times[-1]), start, "DOP853", times, rtol=1e-12, atol=1e-14
    ).y.T
    return [
        part.reshape(len(times), *x.shape)
        for part, x in zip(np.split(found, ends, axis=1), state, strict=True)
    ]


def matrices(seed=0, size=4, wide=5):
    """(W, W_p, W_a, X, X')."""
    rng = np.random.default_rng(seed)
    w, w_a = rng.normal(size=(2, size, wide)) / 2
    roots = rng.normal(size=(2, wide, wide)) / 3
    return w, rng.normal(size=(size, size)) / 2, w_a, *(root @ root.T for root in roots)


# modes in every call: all tests share the programs of two shapes, which compile for seconds
N = 100


def run(times, **given):
    """`theory.simulate` of one mode or of several, up to N."""
    times = np.asarray(times, np.float64)
    fine = (
        times
        if len(times) == 9
        else np.interp(np.linspace(0, len(times) - 1, 9), np.arange(len(times)), times)
    )
    keep = np.searchsorted(fine, times)
    curves = theory.simulate(times=fine, **padded(given))
    several = max(np.size(value) for value in given.values())
    return theory.Curves(
        times, *(x[0, keep] if several == 1 else x[:several, keep] for x in curves[1:])
    )


def collapses(**given):
    several = max(np.size(value) for value in given.values())
    return theory.collapses(**padded(given))[: several if several > 1 else None]


def padded(given):
    """The last mode once more until there are N."""
    return {
        k: v if v is None else np.pad(np.ravel(v), (0, N - np.size(v)), "edge")
        for k, v in given.items()
    }


# --- The matrix system ----------------------------------------------------------------------------


def test_rates_are_the_gradients_of_the_loss():
    """J over a finite population that has exactly the given X and X'."""
    rng = np.random.default_rng(1)
    w, w_p, w_a, _, _ = matrices()
    means, shifts = rng.normal(size=(40, 5)), rng.normal(size=(40, 5))
    one = np.concatenate([means + shifts, means - shifts, means + shifts, means - shifts])
    # the two views independent
    two = np.concatenate([means + shifts, means - shifts, means - shifts, means + shifts])
    x, x_prime = means.T @ means / 40, shifts.T @ shifts / 40

    def loss(w, w_p):
        return jnp.mean(jnp.sum((one @ w.T @ w_p.T - two @ w_a.T) ** 2, axis=1)) / 2

    with jax.enable_x64(True):
        by_w, by_p = map(np.asarray, jax.grad(loss, (0, 1))(jnp.array(w), jnp.array(w_p)))
    numbers = {"alpha_p": 3.0, "eta_p": 0.2, "eta_s": 0.1, "beta": 0.7, "x": x, "x_prime": x_prime}
    dw, dw_p, dw_a = theory.matrix_rates(w, w_p, w_a, **numbers)
    np.testing.assert_allclose(dw, -by_w - 0.1 * w, atol=1e-13)
    np.testing.assert_allclose(dw_p, -3 * by_p - 0.2 * w_p, atol=1e-13)
    np.testing.assert_allclose(dw_a, 0.7 * (w - w_a), atol=1e-15)
    symmetric = theory.matrix_rates(w, w_p, w_a, **numbers, symmetric=True)[1] + 0.2 * w_p
    np.testing.assert_allclose(symmetric, -1.5 * (by_p + by_p.T), atol=1e-13)


def test_integration_agrees_with_scipy_and_leaves_float32_alone():
    w, w_p, w_a, x, x_prime = matrices()
    times = np.array([0, 0.5, 2, 8])
    numbers = {"alpha_p": 2.0, "eta_p": 0.02, "eta_s": 0.05, "beta": 0.4}
    several = numbers | {"eta_s": np.array([[0.1], [0.05]])}
    starts = np.stack([w, w_a])  # a batch over starts and over a parameter
    batch = theory.simulate_matrices(starts, w_p, w_a, times=times, x=x, x_prime=x_prime, **several)
    assert batch[0].shape == (2, 2, 4, 4, 5)
    ours = [curve[1, 0] for curve in batch]
    theirs = reference(theory.matrix_rates, (w, w_p, w_a), times, x=x, x_prime=x_prime, **numbers)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, other, atol=1e-9)
    assert jnp.ones(2).dtype == jnp.float32 and not jax.config.read("jax_enable_x64")


def balance(w, w_p, alpha_p):
    return w @ w.T - w_p.T @ w_p / alpha_p


def test_balance_decays_alike_for_any_target():
    """Theorem 1, with a target that follows no rule at all."""
    w, w_p, w_a, x, x_prime = matrices(2)
    eta, alpha_p, times = 0.1, 2.0, np.linspace(0, 10, 11)

    def rates(w, w_p, clock):
        target = np.sin(3 * clock) * w_a + np.cos(clock**2) * w_a[:, ::-1]
        numbers = {"alpha_p": alpha_p, "eta_p": eta, "eta_s": eta, "x": x, "x_prime": x_prime}
        return *theory.matrix_rates(w, w_p, target, **numbers)[:2], np.ones(())

    found, predictor, _ = reference(rates, (w, w_p, np.zeros(())), times)
    first = balance(w, w_p, alpha_p)
    assert np.linalg.norm(first) > 0.1
    for time, now, now_p in zip(times, found, predictor, strict=True):
        np.testing.assert_allclose(
            balance(now, now_p, alpha_p), np.exp(-2 * eta * time) * first, rtol=0, atol=1e-9
        )


def test_without_predictor_all_collapses():
    """Theorem 2: W_p = I with a stop-gradient and W_a = W is dW = -W X' - η W."""
    w, _, _, x, x_prime = matrices(4)
    numbers = {"alpha_p": 1.0, "eta_p": 0.0, "eta_s": 0.3, "x": x, "x_prime": x_prime}
    dw = theory.matrix_rates(w, np.eye(4), w, **numbers)[0]
    np.testing.assert_allclose(dw, -w @ x_prime - 0.3 * w, atol=1e-13)


@pytest.mark.parametrize("symmetric", [True, False])
def test_reduced_system_is_the_matrix_system_where_it_says(symmetric):
    """X = I, X' = σ² I, W_a = τ W; F = W Wᵀ."""
    w, w_p, _, _, _ = matrices(5)
    if symmetric:
        w_p = w_p + w_p.T
    decays, sigma2, tau = UNEQUAL, 0.3, 0.8
    data = {"x": np.eye(5), "x_prime": sigma2 * np.eye(5)}
    dw, dw_p, _ = theory.matrix_rates(w, w_p, tau * w, **decays, **data, symmetric=symmetric)
    numbers = decays | {"tau": tau, "sigma2": sigma2, "symmetric": symmetric}
    df, reduced_p = theory.reduced_rates(w @ w.T, w_p, **numbers)
    np.testing.assert_allclose(df, dw @ w.T + w @ dw.T, atol=1e-13)
    np.testing.assert_allclose(reduced_p, dw_p, atol=1e-13)


def test_predictor_settles_symmetric_while_features_stand_still():
    f = matrices(6)[3]
    numbers = {"tau": 0.8, "sigma2": 0.3, "alpha_p": 2.5, "eta_p": 0.09}
    # τ F (a F + (η_p / α_p) I)⁻¹ with a = 1 + σ²
    settled = 0.8 * np.linalg.solve(1.3 * f + 0.09 / 2.5 * np.eye(len(f)), f)
    np.testing.assert_allclose(settled, settled.T, atol=1e-13)
    rates = theory.reduced_rates(f, settled, **numbers, eta_s=0.04, symmetric=False)
    np.testing.assert_allclose(rates[1], 0, atol=1e-13)


def alignment_matrix(f, w_p, *, tau, alpha_p, eta_p, eta_s, sigma2):
    """K of dL = -(K L + L K) for the commutator L = F W_p - W_p F of the symmetrised system."""
    decay = eta_s + eta_p / 2
    return (1 + sigma2) * (alpha_p * f / 2 + w_p @ w_p) - tau * w_p + decay * np.eye(len(f))


@pytest.mark.parametrize("decays", [BASE, UNEQUAL])
def test_commutator_follows_its_own_equation(decays):
    """Theorem 3, the derivative by finite differences of an integrated run."""
    w, w_p, _, _, _ = matrices(7)
    numbers = decays | {"tau": 0.8, "sigma2": 0.3}
    step = 1e-3
    times = np.array([0, 1, 1 + step, 1 + 2 * step])
    fs, ps = theory.simulate_reduced(w @ w.T, w_p + w_p.T, times=times, **numbers)
    commutator = fs @ ps - ps @ fs
    derivative = (commutator[3] - commutator[1]) / (2 * step)
    k = alignment_matrix(fs[2], ps[2], **numbers)
    expected = -(k @ commutator[2] + commutator[2] @ k)
    assert np.linalg.norm(expected) > 1e-3
    np.testing.assert_allclose(derivative, expected, atol=1e-6 * np.linalg.norm(expected) + 1e-8)
    whole = alignment_matrix(np.diag([0.3, 0.2]), np.diag([0.5, 0.1]), **numbers)
    modes = theory.mode_alignment(
        np.array([0.5, 0.1]), np.array([0.3, 0.2]), 0.8, **decays, sigma2=0.3
    )
    np.testing.assert_allclose(whole, np.diag(modes), atol=1e-15)


@pytest.mark.parametrize("beta", [None, 0.4])
def test_modes_are_the_matrix_system_from_an_aligned_start(beta):
    rng = np.random.default_rng(8)
    basis = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    p, s, tau, sigma2 = np.array([0.4, 0.2, 0.05, -0.1]), np.array([0.9, 0.3, 0.05, 0.2]), 1.0, 0.3
    times = np.linspace(0, 20, 4)
    w, w_p = basis @ np.diag(np.sqrt(s)) @ turn.T, basis @ np.diag(p) @ basis.T
    data = {"x": np.eye(4), "x_prime": sigma2 * np.eye(4)}
    ws, ps, targets = theory.simulate_matrices(
        w, w_p, times=times, **data, **UNEQUAL, beta=beta, symmetric=True
    )
    curves = theory.simulate(p=p, s=s, tau=tau, times=times, sigma2=sigma2, **UNEQUAL, beta=beta)
    inside = np.einsum("ik,tij,jk->kt", basis, ps, basis)
    np.testing.assert_allclose(inside, curves.p, atol=1e-9)
    np.testing.assert_allclose(
        np.einsum("ik,tin,tjn,jk->kt", basis, ws, ws, basis), curves.s, atol=1e-9
    )
    crossed = np.einsum("ik,tin,tjn,jk->kt", basis, targets, ws, basis)
    np.testing.assert_allclose(crossed, curves.tau * curves.s, atol=1e-9)


# --- One mode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [None, 0.4])
def test_a_mode_by_scipy(beta):
    times = np.linspace(0, 30, 9)
    numbers = UNEQUAL | {"sigma2": 0.2, "beta": beta}
    curves = run(times, p=0.1, s=0.2, tau=0.5, **numbers)
    expected = reference(theory.mode_rates, (0.1, 0.2, 0.5), times, **numbers)
    for ours, theirs in zip(curves[1:], expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_average_of_amplitudes_is_the_paper_s_tau():
    p, s, tau, sigma2 = 0.3, 0.5, 0.7, 0.2
    dp, ds, dtau = theory.mode_rates(p, s, tau, **UNEQUAL, sigma2=sigma2, beta=0.4)
    w = np.sqrt(s)
    dw_p, dw, dw_a = theory.scalar_rates(p, w, tau * w, **UNEQUAL, beta=0.4, l_s=1 + sigma2)
    np.testing.assert_allclose(
        [dw_p, 2 * w * dw, dw_a / w - tau * dw / w], [dp, ds, dtau], atol=1e-14
    )


@pytest.mark.parametrize("beta", [None, 0.4])
def test_invariant_parabola(beta):
    times = np.linspace(0, 40, 9)
    curves = run(times, p=0.2, s=0.3, tau=0.6, beta=beta, **BASE | {"alpha_p": 2.0})
    first = 0.3 - 0.2**2 / 2
    np.testing.assert_allclose(
        theory.invariant(curves.p, curves.s, 2.0), np.exp(-0.08 * times) * first, rtol=0, atol=1e-9
    )


def test_invariant_under_unequal_decay():
    p, s, tau = 0.3, 0.5, 0.7
    dp, ds, _ = theory.mode_rates(p, s, tau, **UNEQUAL, sigma2=0.2)
    change = ds - 2 * p * dp / UNEQUAL["alpha_p"]
    expected = -2 * UNEQUAL["eta_s"] * s + 2 * UNEQUAL["eta_p"] * p**2 / UNEQUAL["alpha_p"]
    np.testing.assert_allclose(change, expected, atol=1e-15)


def test_without_decay():
    """Lines of rest, the height at which a mode ends, and the paper's collapse (-.5, .1) → (-.387,
    0).
    """
    free = {"alpha_p": 1.0, "eta_p": 0.0, "eta_s": 0.0}
    for p, s in ((0.3, 0.0), (-2.0, 0.0), (0.8 / 1.2, 3.0)):
        np.testing.assert_allclose(
            theory.mode_rates(p, s, 0.8, **free, sigma2=0.2)[:2], 0, atol=1e-15
        )
    free["alpha_p"] = 2.0
    curves = run([0, 200.0], p=-0.5, s=0.3, tau=0.8, sigma2=0.2, **free)
    np.testing.assert_allclose(curves.p[-1], 0.8 / 1.2, atol=1e-9)
    np.testing.assert_allclose(curves.s[-1], (0.3 - 0.125) + 0.8**2 / (1.2**2 * 2), atol=1e-9)
    free["alpha_p"] = 1.0
    curves = run([0, 100.0], p=-0.5, s=0.1, **free)
    assert (
        curves.p[-1] == pytest.approx(-np.sqrt(0.15), abs=1e-9) and round(curves.p[-1], 3) == -0.387
    )
    assert abs(curves.s[-1]) < 1e-9


def test_growth_without_decay_of_the_features():
    """The replication's Table 3, above: s grows in proportion to time; .006942 measured against
    .006944.
    """
    numbers = {"alpha_p": 2.0, "eta_p": 0.01, "eta_s": 0.0, "sigma2": 0.2}
    rate = theory.asymptotic_growth(alpha_p=2.0, eta_p=0.01, sigma2=0.2)
    assert round(float(rate), 6) == 0.006944
    curves = run([0, 4000, 5000.0], p=0.1, s=0.1, **numbers)
    assert (curves.s[2] - curves.s[1]) / 1000 == pytest.approx(rate, rel=1e-3)
    assert curves.p[-1] == pytest.approx(1 / 1.2, rel=1e-3)
    assert [point.name for point in theory.fixed_points(tau=1, **numbers)] == ["collapsed"]


def test_on_the_parabola():
    """dp = p²(τ - a p) - η p = -a p (p - p₋)(p - p₊)."""
    p, tau, a, eta = np.linspace(-0.5, 1.2, 18), 0.9, 1.2, 0.05
    low, high = theory.roots(eta_s=eta, tau=tau, sigma2=0.2)
    dp = theory.mode_rates(p, p**2 / 3, tau, alpha_p=3.0, eta_p=eta, eta_s=eta, sigma2=0.2)[0]
    np.testing.assert_allclose(dp, p**2 * (tau - a * p) - eta * p, atol=1e-15)
    np.testing.assert_allclose(dp, -a * p * (p - low) * (p - high), atol=1e-15)


def test_alignment_of_a_mode_on_the_parabola():
    """K > 0 iff Δ < (α_p a s + η) / 2."""
    p, tau, eta = np.linspace(-0.5, 1.2, 60), 0.9, 0.05
    s = p**2 / 3
    k = theory.mode_alignment(p, s, tau, alpha_p=3.0, eta_p=eta, eta_s=eta, sigma2=0.2)
    delta = p * (tau - 1.2 * p) - eta
    np.testing.assert_array_equal(k > 0, delta < (3 * 1.2 * s + eta) / 2)
    assert 0 < (k > 0).sum() < 60


# --- Rest, stability, basins ----------------------------------------------------------------------


def test_the_paper_s_numbers():
    """a = 1, α_p = 1, β = .4, η = .04."""
    assert theory.critical_decay() == 0.25
    dead, saddle, learned = theory.fixed_points(tau=1, sigma2=0, **BASE)
    assert [dead.name, saddle.name, learned.name] == ["collapsed", "saddle", "learned"]
    assert [dead.stable, saddle.stable, learned.stable] == [True, False, True]
    np.testing.assert_allclose(
        [saddle.p, learned.p, learned.s], [0.041742, 0.958258, 0.918258], atol=5e-7
    )
    np.testing.assert_allclose(dead.eigenvalues, [-0.08, -0.04], atol=1e-15)
    np.testing.assert_allclose(saddle.eigenvalues, [-0.08, 0.03826], atol=5e-6)
    np.testing.assert_allclose(learned.eigenvalues, [-0.87826, -0.08], atol=5e-6)
    dead, saddle, learned = theory.fixed_points(beta=0.4, **BASE)
    np.testing.assert_allclose(learned.eigenvalues, [-2.0665, -0.17, -0.08], atol=5e-5)
    assert not saddle.stable and dead.tau == pytest.approx(0.4 / 0.36)


@pytest.mark.parametrize("seed", range(4))
def test_points_of_rest_at_random_settings(seed):
    rng = np.random.default_rng(seed)
    numbers = {
        "alpha_p": rng.uniform(0.2, 5),
        "eta_p": rng.uniform(0.01, 0.5),
        "sigma2": rng.uniform(0, 1),
    }
    tau = rng.uniform(0.3, 1)
    numbers["eta_s"] = rng.uniform(0.1, 0.9) * theory.critical_decay(
        tau=tau, sigma2=numbers["sigma2"]
    )
    points = theory.fixed_points(tau=tau, **numbers)
    assert len(points) == 3
    for point in points:
        np.testing.assert_allclose(
            theory.mode_rates(point.p, point.s, tau, **numbers)[:2], 0, atol=1e-14
        )
        assert point.stable == (max(point.eigenvalues.real) < 0)
    _, saddle, learned = points
    a = 1 + numbers["sigma2"]
    assert saddle.p < tau / (2 * a) < learned.p
    for point in (saddle, learned):
        matrix = theory.jacobian(point.p, point.s, tau, **numbers)
        turn = (tau - a * point.p) * (2 * a * point.p - tau)
        assert np.trace(matrix) < 0
        assert np.linalg.det(matrix) == pytest.approx(
            2 * numbers["alpha_p"] * point.s * turn, rel=1e-9
        )
    above = numbers | {"eta_s": 1.01 * theory.critical_decay(tau=tau, sigma2=numbers["sigma2"])}
    assert [point.name for point in theory.fixed_points(tau=tau, **above)] == ["collapsed"]


@pytest.mark.parametrize("beta", [None, 0.7])
def test_jacobian_by_automatic_derivatives(beta):
    numbers = UNEQUAL | {"sigma2": 0.2, "beta": beta}

    def rates(y):
        return jnp.stack([jnp.asarray(rate) for rate in theory.mode_rates(*y, **numbers)])

    for place in ((0.3, 0.5, 0.7), (-0.4, 0.1, 1.3)):
        with jax.enable_x64(True):
            derived = jax.jacobian(rates)(jnp.array(place))
        size = 2 if beta is None else 3
        np.testing.assert_allclose(
            theory.jacobian(*place, **numbers), derived[:size, :size], atol=1e-14
        )


def test_jacobian_at_rest_is_the_paper_s():
    p, beta, a = theory.fixed_points(**BASE, sigma2=0.2)[2].p, 0.4, 1.2
    s = p**2
    rows = [
        [-a * s - 0.04, 1 - a * p, s],
        [2 * s * (1 - 2 * a * p), 0, 2 * p * s],
        [2 * a * p - 1, 0, -beta - p],
    ]
    np.testing.assert_allclose(
        theory.jacobian(p, s, 1.0, **BASE, sigma2=0.2, beta=beta), rows, atol=1e-14
    )


def test_points_without_decay_and_at_the_critical_one():
    lines = theory.fixed_points(alpha_p=1, eta_p=0, eta_s=0, tau=0.8, sigma2=0.2)
    assert [(point.name, point.stable) for point in lines] == [
        ("collapsed", False),
        ("learned", True),
    ]
    assert (
        np.isnan(lines[0].p)
        and lines[0].s == 0
        and lines[1].p == pytest.approx(0.8 / 1.2)
        and np.isnan(lines[1].s)
    )
    critical = theory.fixed_points(alpha_p=1, eta_p=0.25, eta_s=0.25, tau=1, sigma2=0)
    assert [(point.name, point.stable) for point in critical] == [
        ("collapsed", True),
        ("saddle-node", False),
    ]
    assert critical[1].p == 0.5


def test_a_line_without_target_attracts_the_flow():
    """eta_s = 0 and tau = 0: p dies out, s stays where it is, at any value."""
    numbers = {"alpha_p": 1.0, "eta_p": 0.04, "eta_s": 0.0, "tau": 0.0}
    collapsed, line = theory.fixed_points(**numbers)
    curves = theory.simulate(p=[0.3, -0.3], s=[0.5, 2.0], times=[0, 1000.0], **numbers)
    np.testing.assert_allclose(curves.p[:, -1], line.p, atol=1e-6)
    assert line.stable and np.all(curves.s[:, -1] > 0.1) and not collapsed.stable


def test_s_is_never_below_zero():
    """Modes that die, some at once, by an adaptive solver."""
    eta = np.geomspace(0.3, 30, 20)
    for given in ({"p": 0.5, "s": 0.3}, {"p": -3.0, "s": 5.0}, {"p": 2.0, "s": 1e-12}):
        curves = theory.simulate(
            **given, times=np.linspace(0, 100, 200), alpha_p=1, eta_p=eta, eta_s=eta
        )
        assert np.min(curves.s) >= 0


def test_the_border_between_learning_and_collapse():
    """On the parabola it lies between .0415 and .0420, in the integrated flow and by the test of
    the basin.
    """
    start = np.array([0.0415, 0.0420])
    curves = run([0, 1000.0], p=start, s=start**2, **BASE)
    np.testing.assert_allclose(curves.p[:, -1], [0, 0.958258], atol=1e-6)
    np.testing.assert_array_equal(collapses(p=start, s=start**2, **BASE), [True, False])


def test_separatrix_divides_the_basins():
    p, s = theory.separatrix(**UNEQUAL, sigma2=0.2, tau=0.9, points=20)
    saddle = theory.fixed_points(**UNEQUAL, sigma2=0.2, tau=0.9)[1]
    assert (p[20], s[20]) == (saddle.p, saddle.s)
    numbers = UNEQUAL | {"sigma2": 0.2, "tau": 0.9}
    # Backwards the flow draws all curves together, so that only what lies clearly off the line
    # tells its sides apart.
    np.testing.assert_array_equal(collapses(p=p, s=s * 0.99, **numbers), True)
    np.testing.assert_array_equal(collapses(p=p, s=s * 1.01, **numbers), False)
    p, s = theory.separatrix(alpha_p=2.0, eta_p=0.0, eta_s=0.0)
    free = {"alpha_p": 2.0, "eta_p": 0.0, "eta_s": 0.0}
    np.testing.assert_array_equal(theory.collapses(p=p, s=0.99 * s - 1e-9 + 1e-9, **free), True)
    np.testing.assert_array_equal(theory.collapses(p=p, s=1.01 * s + 1e-9, **free), False)
    assert theory.separatrix(alpha_p=1, eta_p=0.3, eta_s=0.3) is None
    assert theory.separatrix(alpha_p=1, eta_p=0.1, eta_s=0.0) is None


@pytest.mark.parametrize("beta", [None, 0.4])
def test_basin_is_where_the_flow_ends(beta):
    """Random starts and settings, each kind of decay among them, followed for long; the closed
    forms too.
    """
    rng, n = np.random.default_rng(9), N
    eta_p, eta_s = rng.uniform(0.02, 0.3, n), rng.uniform(0.02, 0.3, n)
    eta_p[:40], eta_s[20:40] = 0, 0
    given = {
        "p": rng.uniform(-0.6, 1.4, n),
        "s": rng.uniform(0.005, 0.4, n),
        "alpha_p": rng.uniform(0.3, 3, n),
    }
    given |= {"eta_p": eta_p, "eta_s": eta_s, "sigma2": rng.uniform(0, 0.3, n), "beta": beta}
    dies = collapses(**given)
    end = run([0, 1500.0], **given).s[:, -1]
    np.testing.assert_array_equal(dies, end < 1e-5)
    assert dies[:20].all() and 3 < dies[20:40].sum() < 15 and 15 < dies[40:].sum() < 45
    assert not theory.collapses(**given | {"eta_p": 0.1, "eta_s": 0.0}).any()  # grows without end


def test_features_may_fall_far_and_rise_again():
    """A slow predictor (η_p ≪ η_s) lets s fall by many powers of ten before it is right for it."""
    slow = {"alpha_p": 1.0, "eta_p": 0.002, "eta_s": 0.2, "p": 1.0, "s": 1.0}
    s = run(np.linspace(0, 3200, 9), **slow).s
    assert s.min() < 1e-4 and s[-1] > 5e-3
    assert not collapses(**slow).any()
    assert collapses(**slow | {"eta_s": 0.24}).all()  # a little more decay, and it never comes back


def test_average_from_zero_has_its_closed_form():
    """c = 0, τ(0) = 0: τ = β e^{-βt} / p(t) ∫ p e^{βt'} dt'."""
    times = np.linspace(0, 20, 8001)
    curves = run(times[::1000], p=0.3, s=0.09, tau=0.0, beta=0.4, **BASE)
    p = reference(theory.mode_rates, (0.3, 0.09, 0.0), times, beta=0.4, **BASE)[0]
    inner = cumulative_simpson(p * np.exp(0.4 * times), x=times, initial=0)
    expected = 0.4 * np.exp(-0.4 * times) / p * inner
    np.testing.assert_allclose(curves.tau, expected[::1000], atol=1e-9)


def test_average_outlives_what_it_averages():
    """In a collapse τ ends at β / (β - η_s), not at 1; a mode with p < 0 goes through w = 0."""
    curves = run([0, 300.0], p=0.01, s=0.0001, beta=0.4, **BASE)
    assert curves.tau[-1] == pytest.approx(0.4 / 0.36, rel=1e-3)
    crossing = run(np.linspace(0, 8, 9), p=-0.9, s=0.1, beta=0.4, **BASE)
    assert np.isfinite(crossing.s).all() and crossing.tau[0] == 1 and crossing.tau.min() < 0


# --- Data that are not isotropic ------------------------------------------------------------------


def test_scalar_system_is_the_matrix_system_of_one():
    w, w_p, w_a, l_s, l_d = 0.7, 0.4, 0.9, 1.3, 0.5
    numbers = {"alpha_p": 2.0, "eta_p": 0.1, "eta_s": 0.2, "beta": 0.3}
    data = {"x": np.array([[l_d]]), "x_prime": np.array([[l_s - l_d]])}
    dw, dw_p, dw_a = theory.matrix_rates(
        *(np.array([[v]]) for v in (w, w_p, w_a)), **numbers, **data
    )
    ours = theory.scalar_rates(w_p, w, w_a, **numbers, l_s=l_s, l_d=l_d)
    np.testing.assert_allclose(ours, [dw_p.item(), dw.item(), dw_a.item()], atol=1e-15)


def test_scalar_energy_falls_and_a_tied_pair_stays_tied():
    numbers = {"alpha_p": 1.0, "l_s": 1.0, "l_d": 0.5, "beta": 0.0}
    times = np.linspace(0, 60, 81)
    w_p, w, w_a = reference(theory.scalar_rates, (-0.3, 0.8, 1.0), times, **numbers)
    energy = (w_a * 0.5 - w_p * w) ** 2 / 2
    assert (np.diff(energy) <= 1e-15).all() and energy[-1] < 1e-6 < energy[0]
    w_p, w, _ = reference(theory.scalar_rates, (0.3, 0.3, 0.1), times, **numbers | {"beta": 1.0})
    np.testing.assert_allclose(w_p, w, atol=1e-12)
    assert abs(w[-1] - 0.5) < 1e-2


def test_rest_of_data_that_are_not_isotropic():
    """W_p W = W Σ_d Σ_s⁻¹ (W_a = W, no decay): with W = diag, W_p = diag(λ_d / λ_s)."""
    l_s, l_d = np.array([2.0, 1.5, 1.0]), np.array([1.5, 0.5, 0.2])
    w, w_p = np.diag([0.5, 1.0, 2.0]), np.diag(l_d / l_s)
    data = {"x": np.diag(l_d), "x_prime": np.diag(l_s - l_d)}
    rates = theory.matrix_rates(w, w_p, w, alpha_p=1.0, eta_p=0.0, eta_s=0.0, **data)
    np.testing.assert_allclose(np.stack(rates), 0, atol=1e-15)


# --- From an experiment ---------------------------------------------------------------------------

SETTINGS = [
    {"decay": "coupled"},
    {"decay": "decoupled"},
    {"decay": "decoupled", "decay_scale": "literal"},
    {"decay": "coupled", "momentum": 0.9},
    {"decay": "decoupled", "momentum": 0.9},
    {"decay": "pre", "decay_scale": "literal", "momentum": 0.5, "loss_scale": 2.0},
    {"decay": "coupled", "loss_scale": 2.0, "tau": 0.0},
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_small_steps_follow_the_mapped_flow(setting):
    """Gradient descent on J with that decay and momentum, written out here, against the flow: the
    gap goes as the step does.
    """
    gaps = [gap(setting, steps) for steps in (1000, 2000)]
    assert gaps[1] < 0.01 and 1.7 < gaps[0] / gaps[1] < 2.3


def gap(setting: dict, steps: int) -> float:
    """How far p, w and w_a of a scalar network are from the flow after `steps`, the flow's time
    being 5.
    """
    momentum, scale = setting.get("momentum", 0.0), setting.get("loss_scale", 1.0)
    rate = 5 / steps * (1 - momentum) / scale
    literal, coupled = setting.get("decay_scale") == "literal", setting["decay"] == "coupled"
    decay, decay_p = (0.1 * rate, 0.3 * rate) if literal else (0.1, 0.3)
    given = {"learning_rate": rate, "predictor_learning_rate": 2 * rate, "weight_decay": decay}
    given |= {"predictor_weight_decay": decay_p, "tau": 1 - rate / 2} | setting
    flow, time = theory.mapping(**given)
    assert time * steps == pytest.approx(5)
    p, w, w_a, m_p, m = 0.2, 0.6, 0.6, 0.0, 0.0
    for _ in range(steps):
        error = w_a - 1.2 * p * w
        g_p, g = -scale * error * w, -scale * error * p
        m_p, m = (
            momentum * m_p + g_p + coupled * decay_p * p,
            momentum * m + g + coupled * decay * w,
        )
        shrink_p, shrink = (
            (0, 0)
            if coupled
            else (decay_p, decay)
            if literal
            else (2 * rate * decay_p, rate * decay)
        )
        p, w = p - 2 * rate * m_p - shrink_p * p, w - rate * m - shrink * w
        w_a = w_a + (1 - given["tau"]) * (w - w_a)
    curves = run([0, 5.0], p=0.2, s=0.36, tau=1.0, sigma2=0.2, **flow._asdict())
    w_end = np.sqrt(curves.s[-1])
    return float(
        np.abs(np.array([p, w, w_a]) - [curves.p[-1], w_end, curves.tau[-1] * w_end]).max()
    )


def test_mapping_gives_the_paper_s_numbers():
    """alpha 0.01 with weight decay 4e-4 read as decoupled, target.tau 0.996: η = .04, β = .4."""
    flow, time = theory.mapping(
        learning_rate=0.01, weight_decay=4e-4, tau=0.996, decay="decoupled", decay_scale="literal"
    )
    np.testing.assert_allclose([*flow, time], [1, 0.04, 0.04, 0.4, 0.01], atol=1e-12)
    given = {
        "learning_rate": 0.2,
        "predictor_learning_rate": 2.0,
        "weight_decay": 0.0,
        "predictor_weight_decay": 4e-4,
    }
    flow, _ = theory.mapping(**given)  # the replication's Table 3
    assert flow.beta is None and flow.eta_s == 0
    np.testing.assert_allclose([flow.alpha_p, flow.eta_p], [10, 4e-3])


# --- Mistakes -------------------------------------------------------------------------------------

START = {"p": 0.1, "s": 0.1, "times": np.array([0, 1.0])}


@pytest.mark.parametrize(
    "name, value",
    [
        ("alpha_p", 0.0),
        ("alpha_p", np.array([1.0, -1.0])),
        ("eta_p", -0.1),
        ("eta_s", float("nan")),
        ("tau", 1.1),
        ("tau", -0.1),
        ("sigma2", -1e-3),
        ("beta", 0.0),
        ("s", -0.1),
        ("p", float("inf")),
        ("times", np.array([1.0, 0.0])),
        ("times", np.array([1.0])),
    ],
)
def test_what_is_outside_the_domain_is_named(name, value):
    with pytest.raises(UserError, match=f"^{name}: got .*, takes"):
        theory.simulate(**BASE | START | {name: value})
    if name in ("alpha_p", "eta_p", "eta_s", "tau", "sigma2", "beta"):
        with pytest.raises(UserError, match=f"^{name}: got"):
            theory.fixed_points(**BASE | {"tau": 1, "sigma2": 0} | {name: value})


@pytest.mark.parametrize(
    "name, value",
    [
        ("learning_rate", 0),
        ("weight_decay", -1),
        ("tau", 1.0),
        ("momentum", 1),
        ("decay", "both"),
        ("loss_scale", 0),
    ],
)
def test_settings_that_map_to_no_flow_are_named(name, value):
    with pytest.raises(UserError, match=f"^{name}: got"):
        theory.mapping(**{"learning_rate": 0.1} | {name: value})


def test_an_average_settles_at_one():
    with pytest.raises(UserError, match="^tau: got 0.5, takes 1"):
        theory.fixed_points(**BASE, tau=0.5, beta=0.4)


def test_without_diffrax_closed_forms_work_and_the_rest_says_so(monkeypatch):
    imports = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("diffrax"):
            raise ImportError(name)
        return imports(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert len(theory.fixed_points(**BASE)) == 3 and theory.collapses(
        p=0.1, s=0.1, alpha_p=1, eta_p=0.3, eta_s=0.3
    )
    for call in (
        partial(theory.simulate, **START, **BASE),
        partial(theory.collapses, p=0.1, s=0.1, **BASE),
        partial(theory.separatrix, **BASE),
    ):
        with pytest.raises(
            UserError, match=r"^diffrax: not installed; pip install -e '\.\[theory\]'$"
        ):
            call()
