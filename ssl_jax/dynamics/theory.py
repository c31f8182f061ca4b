"""The linear theory's flow, fixed points, stability and basins of attraction, in float64.

Source: Tian et al. 2021 (arXiv 2102.06810), "ORIG" below. Features are f = W x, the predictor is
W_p, the target is W_a. The Euclidean loss is J = E ||W_p W x₁ - sg(W_a x₂)||² / 2. X = E[x̄ x̄ᵀ] is
the moment of mean views, and X' = E Cov(view). With E = -W_p W (X + X') + W_a X, gradient descent
in small steps is the flow (ORIG Eqs. 4-6, the replication's Eqs. 2-4)

    dW_p = α_p E Wᵀ - η_p W_p        dW = W_pᵀ E - η_s W        dW_a = β (W - W_a)

Assume X = I, X' = σ² I, W_a = τ W, F = W Wᵀ, and W_p symmetric and aligned with F. Then every pair
of eigenvalues, p of W_p and s of F, evolves independently of the others (`mode_rates`). Throughout,
a = 1 + σ². `beta=None` means no average: τ is constant (SimSiam: 1).

Parameters of the flow, outside of whose range a value is a `UserError`:

    alpha_p > 0      α_p, learning rate of W_p divided by that of W
    eta_p >= 0       η_p, decay of W_p
    eta_s >= 0       η_s, decay of W
    tau in [0, 1]    τ, W_a divided by W
    sigma2 >= 0      σ², variance of the views
    beta > 0, None   β, rate of the target's average

`mapping` computes them from an experiment's settings. The theory assumes the Euclidean loss; image
runs train on the cosine.

The `*_rates` are right-hand sides; they take numbers, NumPy and JAX arrays. All other public
functions take and return NumPy in float64, whatever JAX's precision flag is. Arguments broadcast,
and a whole phase diagram is one compiled call. Only functions that integrate (simulate*, collapses,
separatrix) need diffrax.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.dynamics import integration
from ssl_jax.errors import UserError, nearest

Number = float | np.ndarray | jax.Array  # one value, or an array that broadcasts with the others
Matrix = np.ndarray | jax.Array

NEAR = 0.01  # share of the way from saddle to learned point within which a state has arrived
SETTLED = 0.1  # an average within this of τ = 1 counts as having caught up

# name: (the values that it takes, their test)
DOMAIN = {
    "alpha_p": ("a number above 0", lambda x: x > 0),
    "eta_p": ("a number from 0", lambda x: x >= 0),
    "eta_s": ("a number from 0", lambda x: x >= 0),
    "sigma2": ("a number from 0", lambda x: x >= 0),
    "tau": ("a number from 0 to 1", lambda x: (x >= 0) & (x <= 1)),
    "beta": ("a number above 0, or None for no average", lambda x: x > 0),
    "s": ("a number from 0 (an eigenvalue of F = W Wᵀ)", lambda x: x >= 0),
}


def check(**values: Number | None) -> None:
    """Raise a UserError that names the first parameter outside the theory's domain.

    Every element of an array is checked.
    """
    integration.check(DOMAIN, **values)


# --- From an experiment to the flow ---------------------------------------------------------------


class Flow(NamedTuple):
    """Parameters of the flow, named as the arguments here: `simulate(**flow._asdict(), ...)`."""

    alpha_p: float  # learning rate of W_p divided by that of W
    eta_p: float  # decay of W_p
    eta_s: float  # decay of W
    beta: float | None  # rate of the target's average; None without one


DECAYS = ("coupled", "decoupled", "realtime", "pre")
SCALES = ("lr", "literal")


def mapping(
    *,
    learning_rate: float,
    predictor_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    predictor_weight_decay: float | None = None,
    tau: float = 0.0,
    momentum: float = 0.0,
    decay: str = "coupled",
    decay_scale: str = "lr",
    loss_scale: float = 1.0,
) -> tuple[Flow, float]:
    """Return the flow that an experiment follows, and the flow's time that one step takes.

    To first order in the step, heavy-ball momentum μ makes a rate α act as α / (1 - μ). Let c be
    the loss scale and dt = c α / (1 - μ). A step under coupled L2 (gradient + wd W, then momentum)
    is then

        ΔW   = -α / (1 - μ) (c ∇J + wd W)              = -dt (∇J + wd / c W)
        ΔW_p = -α_pred / (1 - μ) (c ∇_p J + wd_pred W_p) = -dt α_pred / α (∇_p J + wd_pred / c W_p)
        ΔW_a = (1 - tau)(W - W_a)

    so that for c = 1 and any μ

        coupled:     η_s = wd,  η_p = (α_pred / α) wd_pred  (the group's own rate multiplies it)
        all:         α_p = α_pred / α,  β = (1 - tau) / dt  (ORIG's (1 - tau) / α where μ = 0)

    Decay outside of the gradient shrinks weights by d each step, and η = d / dt. Real-time and
    pre-decay differ from decoupled decay only in second order of the step.

    Args:
        learning_rate: α, of the whole network but the predictor.
        predictor_learning_rate: α_pred; None takes `learning_rate`.
        weight_decay: wd.
        predictor_weight_decay: wd_pred; None takes `weight_decay`.
        tau: the experiment's target.tau in W_a ← W_a + (1 - tau)(W - W_a), not the theory's τ; 0 is
            no average.
        momentum: μ of heavy ball, in [0, 1).
        decay: "coupled", "decoupled", "realtime" or "pre".
        decay_scale: for decay outside of the gradient, "lr" is d = rate * wd; "literal" is d = wd,
            which is ORIG's η = η̄ / α.
        loss_scale: c; the gradients are those of c J. A sum over both directions of the views has
            c = 2.

    Returns:
        The flow and dt.

    Raises:
        UserError: a setting is unknown or outside its range.
    """
    for name, value, known in (("decay", decay, DECAYS), ("decay_scale", decay_scale, SCALES)):
        if value not in known:
            raise UserError(f"{name}: got {value!r}, {nearest(value, known)}")
    rates = {"learning_rate": learning_rate, "predictor_learning_rate": predictor_learning_rate}
    rate, rate_p = (learning_rate if value is None else value for value in rates.values())
    wd, wd_p = (
        weight_decay,
        weight_decay if predictor_weight_decay is None else predictor_weight_decay,
    )
    _require(rate, "learning_rate", "a number above 0", 0 < rate)
    _require(rate_p, "predictor_learning_rate", "a number above 0", 0 < rate_p)
    _require(wd, "weight_decay", "a number from 0", 0 <= wd)
    _require(wd_p, "predictor_weight_decay", "a number from 0", 0 <= wd_p)
    _require(tau, "tau", "a number from 0 and below 1", 0 <= tau < 1)
    _require(momentum, "momentum", "a number from 0 and below 1", 0 <= momentum < 1)
    _require(loss_scale, "loss_scale", "a number above 0", 0 < loss_scale)
    time = loss_scale * rate / (1 - momentum)
    literal = decay != "coupled" and decay_scale == "literal"
    carried = 1 - momentum if decay == "coupled" else 1.0  # momentum accumulates coupled decay
    shrink, shrink_p = (wd, wd_p) if literal else (rate * wd / carried, rate_p * wd_p / carried)
    return Flow(
        rate_p / rate, shrink_p / time, shrink / time, (1 - tau) / time if tau else None
    ), time


def _require(value: float, name: str, takes: str, right: bool) -> None:
    if not (right and np.isfinite(value)):
        raise UserError(f"{name}: got {value}, takes {takes}")


# --- Right-hand sides -----------------------------------------------------------------------------


def matrix_rates(
    w: Matrix,
    w_p: Matrix,
    w_a: Matrix,
    *,
    x: Matrix,
    x_prime: Matrix,
    alpha_p: float,
    eta_p: float,
    eta_s: float,
    beta: float | None = None,
    symmetric: bool = False,
) -> tuple[Matrix, Matrix, Matrix]:
    """Return the flow of the whole matrices (ORIG Eqs. 4-6).

    Args:
        w: W, (D, N).
        w_p: W_p, (D, D).
        w_a: W_a, (D, N).
        x: X, (N, N).
        x_prime: X', (N, N).
        alpha_p, eta_p, eta_s: parameters of the flow (module docstring).
        beta: rate of the target's average. Without it W_a moves as W does, so that it stays equal
            to W if it starts there.
        symmetric: project dW_p, as a step does that symmetrises W_p after the update.

    Returns:
        dW (D, N), dW_p (D, D) and dW_a (D, N).
    """
    error = w_a @ x - w_p @ w @ (x + x_prime)
    pull = alpha_p * (error @ w.T)
    dw = w_p.T @ error - eta_s * w
    dw_p = ((pull + pull.T) / 2 if symmetric else pull) - eta_p * w_p
    return dw, dw_p, dw if beta is None else beta * (w - w_a)


def reduced_rates(
    f: Matrix,
    w_p: Matrix,
    *,
    tau: float,
    alpha_p: float,
    eta_p: float,
    eta_s: float,
    sigma2: float,
    symmetric: bool = True,
) -> tuple[Matrix, Matrix]:
    """Return the flow of F and W_p where X = I, X' = σ² I and W_a = τ W.

        general:      dW_p = α_p (τ F - a W_p F) - η_p W_p
                      dF = τ (W_pᵀF + F W_p) - a {W_pᵀW_p, F} - 2 η_s F
        symmetrised:  dW_p = α_p (τ F - a {W_p, F} / 2) - η_p W_p  (ORIG Eq. 8)
                      dF is the same, with W_p = W_pᵀ (ORIG Eq. 9)

    Args:
        f: F = W Wᵀ, (D, D).
        w_p: W_p, (D, D).
        tau, alpha_p, eta_p, eta_s, sigma2: parameters of the flow (module docstring).
        symmetric: whether the system is the symmetrised one.

    Returns:
        dF and dW_p, (D, D) each.
    """
    a = 1 + sigma2
    product = w_p @ f
    if symmetric:
        product = (product + product.T) / 2
    half = tau * (f @ w_p) - a * (f @ w_p.T @ w_p)
    return half + half.T - 2 * eta_s * f, alpha_p * (tau * f - a * product) - eta_p * w_p


def mode_rates(
    p: Number,
    s: Number,
    tau: Number,
    *,
    alpha_p: Number,
    eta_p: Number,
    eta_s: Number,
    sigma2: Number = 0.0,
    beta: Number | None = None,
) -> tuple[Number, Number, Number]:
    """Return the flow of one aligned mode, elementwise (ORIG Eqs. 12-14).

        dp = α_p s (τ - a p) - η_p p      ds = 2 s (p (τ - a p) - η_s)
        dτ = β (1 - τ) - τ ds / (2 s)

    Args:
        p: eigenvalue of W_p.
        s: eigenvalue of F.
        tau: τ, W_a divided by W.
        alpha_p, eta_p, eta_s, sigma2: parameters of the flow (module docstring).
        beta: rate of the target's average; None holds τ.

    Returns:
        dp, ds and dτ.
    """
    pull = tau - (1 + sigma2) * p
    growth = p * pull - eta_s
    dtau = 0 * tau if beta is None else beta * (1 - tau) - tau * growth
    return alpha_p * s * pull - eta_p * p, 2 * s * growth, dtau


def scalar_rates(
    w_p: Number,
    w: Number,
    w_a: Number,
    *,
    alpha_p: Number,
    eta_p: Number = 0.0,
    eta_s: Number = 0.0,
    beta: Number = 0.0,
    l_s: Number = 1.0,
    l_d: Number = 1.0,
) -> tuple[Number, Number, Number]:
    """Return the flow of one coordinate of data that need not be isotropic, elementwise.

    ORIG App. D: with e = w_a l_d - w_p w l_s,

        dw_p = α_p e w - η_p w_p      dw = e w_p - η_s w      dw_a = β (w - w_a)

    At l_s = a and l_d = 1 this is `mode_rates` with p = w_p, s = w² and τ = w_a / w. It stays
    smooth where w passes through 0 and τ through infinity.

    Args:
        w_p: predictor.
        w: online weight.
        w_a: target weight.
        alpha_p: learning rate of the predictor divided by that of w.
        eta_p: decay of the predictor.
        eta_s: decay of w.
        beta: rate of the target's average.
        l_s: eigenvalue of Σ_s = X + X'.
        l_d: eigenvalue of Σ_d = X.

    Returns:
        dw_p, dw and dw_a.
    """
    error = w_a * l_d - w_p * w * l_s
    return alpha_p * error * w - eta_p * w_p, w_p * error - eta_s * w, beta * (w - w_a)


# --- Closed forms ---------------------------------------------------------------------------------


def invariant(p: Number, s: Number, alpha_p: Number) -> Number:
    """Return s - p² / α_p.

    Under equal decay η it is its first value times e^{-2ηt}, for any target (ORIG Eq. 17, whose
    main text prints the opposite sign). Under unequal decay its derivative is
    -2 η_s s + 2 η_p p² / α_p.

    Args:
        p: eigenvalue of W_p.
        s: eigenvalue of F.
        alpha_p: learning rate of W_p divided by that of W.

    Returns:
        The invariant; arguments broadcast.
    """
    return s - p**2 / alpha_p


def mode_alignment(
    p: Number,
    s: Number,
    tau: Number,
    *,
    alpha_p: Number,
    eta_p: Number,
    eta_s: Number,
    sigma2: Number = 0.0,
) -> Number:
    """Return the eigenvalue of K for an aligned mode: a (α_p s / 2 + p²) - τ p + η_s + η_p / 2.

    On the parabola s = p²/α_p under equal decay it is > 0 iff
    Δ = p (τ - a p) - η < (α_p a s + η) / 2. The mode grows iff Δ > 0.

    Args:
        p: eigenvalue of W_p.
        s: eigenvalue of F.
        tau, alpha_p, eta_p, eta_s, sigma2: parameters of the flow (module docstring).

    Returns:
        The eigenvalue; arguments broadcast.
    """
    return (1 + sigma2) * (alpha_p * s / 2 + p**2) - tau * p + eta_s + eta_p / 2


def critical_decay(*, tau: Number = 1.0, sigma2: Number = 0.0) -> Number:
    """Return η_c = τ² / (4a); under a stronger decay η_s of W every mode collapses."""
    check(tau=tau, sigma2=sigma2)
    return np.square(tau) / (4 * (1 + np.asarray(sigma2)))


def roots(
    *, eta_s: Number, tau: Number = 1.0, sigma2: Number = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return p₋ and p₊ = [τ ∓ sqrt(τ² - 4 a η_s)] / 2a, between which a mode's s grows.

    Args:
        eta_s, tau, sigma2: parameters of the flow (module docstring).

    Returns:
        p₋ and p₊; arguments broadcast. Both are nan above the critical decay.
    """
    check(eta_s=eta_s, tau=tau, sigma2=sigma2)
    a, tau = 1 + np.asarray(sigma2, np.float64), np.asarray(tau, np.float64)
    inside = tau**2 - 4 * a * eta_s
    high = (tau + np.sqrt(np.where(inside >= 0, inside, np.nan))) / (2 * a)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(
            high > 0, eta_s / (a * high), high
        ), high  # p₋ p₊ = η_s / a, without cancellation


def height(p: Number, *, alpha_p: Number, eta_p: Number, eta_s: Number) -> Number:
    """Return s of the nontrivial fixed point at p: η_p p² / (α_p η_s).

    Under equal decays this is the parabola.

    Args:
        p: eigenvalue of W_p.
        alpha_p: learning rate of W_p divided by that of W.
        eta_p: decay of W_p.
        eta_s: decay of W, above 0.

    Returns:
        s; arguments broadcast.
    """
    return eta_p * p**2 / (alpha_p * eta_s)


def asymptotic_growth(
    *, alpha_p: Number, eta_p: Number, tau: Number = 1.0, sigma2: Number = 0.0
) -> Number:
    """Return ds/dt of a mode long after the start where η_s = 0 < η_p: 2 η_p (τ/a)² / α_p.

    p approaches τ/a and s grows in proportion to time, so that there is no finite fixed point to
    learn.

    Args:
        alpha_p, eta_p, tau, sigma2: parameters of the flow (module docstring).

    Returns:
        ds/dt; arguments broadcast.
    """
    check(alpha_p=alpha_p, eta_p=eta_p, tau=tau, sigma2=sigma2)
    return 2 * eta_p * (tau / (1 + sigma2)) ** 2 / alpha_p


def jacobian(
    p: float,
    s: float,
    tau: float = 1.0,
    *,
    alpha_p: float,
    eta_p: float,
    eta_s: float,
    sigma2: float = 0.0,
    beta: float | None = None,
) -> np.ndarray:
    """Return the derivatives of `mode_rates`.

    Args:
        p: eigenvalue of W_p.
        s: eigenvalue of F.
        tau, alpha_p, eta_p, eta_s, sigma2: parameters of the flow (module docstring).
        beta: rate of the target's average; None holds τ.

    Returns:
        (2, 2) with respect to (p, s) where τ is held, (3, 3) with respect to (p, s, τ) where it is
        averaged.
    """
    a = 1 + sigma2
    growth, turn = p * (tau - a * p) - eta_s, tau - 2 * a * p
    rows = [
        [-alpha_p * a * s - eta_p, alpha_p * (tau - a * p), alpha_p * s],
        [2 * s * turn, 2 * growth, 2 * p * s],
        [-tau * turn, 0, -(0 if beta is None else beta) - growth - tau * p],
    ]
    return np.array(rows, np.float64)[:2, :2] if beta is None else np.array(rows, np.float64)


class FixedPoint(NamedTuple):
    """A point at which a mode rests.

    nan in `p`, `s` and `eigenvalues` stands for a line of fixed points, where any value occurs.
    """

    name: str  # "collapsed" (s = 0), "saddle" (p₋), "learned" (p₊), "saddle-node" (p₋ = p₊)
    p: float  # eigenvalue of W_p
    s: float  # eigenvalue of F
    tau: float  # W_a divided by W
    eigenvalues: np.ndarray  # of the Jacobian by (p, s) or (p, s, τ), ascending
    stable: bool  # all eigenvalues are below 0, or a line attracts from the side


def fixed_points(
    *,
    alpha_p: float,
    eta_p: float,
    eta_s: float,
    tau: float = 1.0,
    sigma2: float = 0.0,
    beta: float | None = None,
) -> list[FixedPoint]:
    """Return all points at which a mode rests (ORIG section 3.2).

    For unequal decay they solve a p² - τ p + η_s = 0. The saddle lies on the border of the basins.

    Args:
        alpha_p, eta_p, eta_s: parameters of the flow (module docstring).
        tau: W_a divided by W, where there is no `beta`.
        sigma2: variance of the views.
        beta: rate of the target's average; None holds τ, and the system is (p, s). With an average
            τ = 1 at every point where W does not shrink. A collapsing W shrinks faster than its
            average follows: there τ ends at β / (β - η_s), or grows for ever (inf) where β <= η_s.

    Returns:
        The points, "collapsed" first.

    Raises:
        UserError: a parameter is outside its domain, or tau is not 1 beside a beta.
    """
    check(alpha_p=alpha_p, eta_p=eta_p, eta_s=eta_s, tau=tau, sigma2=sigma2, beta=beta)
    if beta is not None and tau != 1:
        raise UserError(f"tau: got {tau}, takes 1 where there is a beta: the average settles there")
    parameters = {
        "alpha_p": alpha_p,
        "eta_p": eta_p,
        "eta_s": eta_s,
        "sigma2": sigma2,
        "beta": beta,
    }
    points = [_collapsed(tau, eta_p, eta_s, beta)]
    if eta_s == 0:
        if eta_p > 0 and tau > 0:
            return points
        # p' = -α_p a s (p - τ/a), less η_p p where τ = 0: the line attracts wherever s > 0.
        return [
            *points,
            FixedPoint("learned", tau / (1 + sigma2), np.nan, tau, _unknown(beta), stable=True),
        ]
    low, high = map(float, roots(eta_s=eta_s, tau=tau, sigma2=sigma2))
    if eta_p == 0 or not high > 0:
        return points
    names = [("saddle-node", high)] if low == high else [("saddle", low), ("learned", high)]
    for name, p in names:
        s = float(height(p, alpha_p=alpha_p, eta_p=eta_p, eta_s=eta_s))
        values = np.sort(np.linalg.eigvals(jacobian(p, s, tau, **parameters)))
        # The name decides stability: near the critical decay the sign of an eigenvalue is lost in
        # rounding, while the closed form of the determinant has it.
        points.append(FixedPoint(name, p, s, float(tau), values, name == "learned"))
    return points


def _collapsed(tau: float, eta_p: float, eta_s: float, beta: float | None) -> FixedPoint:
    """Return the origin, with eigenvalues -η_p, -2 η_s and -|β - η_s|.

    Without decay of W_p any p is a fixed point. Without any decay the line is not stable: p < 0 is.
    """
    if beta is not None:
        tau = beta / (beta - eta_s) if beta > eta_s else np.inf
    if eta_p == 0:
        return FixedPoint("collapsed", np.nan, 0.0, float(tau), _unknown(beta), eta_s > 0)
    values = np.sort([-eta_p, -2 * eta_s] + ([] if beta is None else [-abs(beta - eta_s)]))
    return FixedPoint("collapsed", 0.0, 0.0, float(tau), values, eta_s > 0)


def _unknown(beta: float | None) -> np.ndarray:
    return np.full(2 if beta is None else 3, np.nan)


# --- Integration ----------------------------------------------------------------------------------


class Curves(NamedTuple):
    """Solution of the flow of a mode.

    An averaged target turns a mode with p < 0 round: w passes through 0. There tau has a pole, and
    changes its sign behind it.
    """

    time: np.ndarray  # (T,)
    p: np.ndarray  # (..., T) eigenvalue of W_p
    s: np.ndarray  # (..., T) eigenvalue of F
    tau: np.ndarray  # (..., T) W_a divided by W


def simulate(
    *,
    p: Number,
    s: Number,
    tau: Number = 1.0,
    times: np.ndarray | Sequence[float],
    alpha_p: Number,
    eta_p: Number,
    eta_s: Number,
    sigma2: Number = 0.0,
    beta: Number | None = None,
) -> Curves:
    """Integrate the flow of aligned modes.

    All arguments but the times broadcast, and one compiled call integrates all of them.

    Args:
        p: eigenvalue of W_p at the first of the times.
        s: eigenvalue of F there.
        tau: W_a divided by W there.
        times: ascending, (T,).
        alpha_p, eta_p, eta_s, sigma2: parameters of the flow (module docstring).
        beta: rate of the target's average; None holds τ.

    Returns:
        p, s and τ at the times.

    Raises:
        UserError: a parameter is outside its domain, there is no solution up to the last time, or
            diffrax is not installed.
    """
    parameters = {
        "alpha_p": alpha_p,
        "eta_p": eta_p,
        "eta_s": eta_s,
        "sigma2": sigma2,
        "beta": beta,
    }
    check(p=p, s=s, tau=tau, **parameters)
    numbers = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s}
    times = np.asarray(times, np.float64)
    if beta is None:
        p_curve, s_curve, tau_curve = integration.solve(
            mode_rates, (p, s, tau), 0, times, numbers | {"sigma2": sigma2}
        )
        # The flow keeps s >= 0; the solver's error may not.
        return Curves(times, p_curve, np.maximum(s_curve, 0), tau_curve)
    w = np.sqrt(s)
    numbers |= {"beta": beta, "l_s": 1 + np.asarray(sigma2)}
    p_curve, w, w_a = integration.solve(scalar_rates, (p, w, tau * w), 0, times, numbers)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Curves(times, p_curve, w**2, w_a / w)


def simulate_matrices(
    w: np.ndarray,
    w_p: np.ndarray,
    w_a: np.ndarray | None = None,
    *,
    times: np.ndarray | Sequence[float],
    x: np.ndarray,
    x_prime: np.ndarray,
    alpha_p: Number,
    eta_p: Number,
    eta_s: Number,
    beta: Number | None = None,
    symmetric: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integrate `matrix_rates`. Leading axes broadcast, those of the numbers too.

    Args:
        w: W at the first of the times, (..., D, N).
        w_p: W_p there, (..., D, D).
        w_a: W_a there, (..., D, N). None starts it as `w`; without `beta` it stays equal to W.
        times: ascending, (T,).
        x: X, (..., N, N).
        x_prime: X', (..., N, N).
        alpha_p, eta_p, eta_s: parameters of the flow (module docstring).
        beta: rate of the target's average.
        symmetric: whether the flow symmetrises W_p.

    Returns:
        W (..., T, D, N), W_p (..., T, D, D) and W_a (..., T, D, N).

    Raises:
        UserError: as for `simulate`, or a `w_a` without a `beta`.
    """
    numbers = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s, "beta": beta}
    check(**numbers)
    if beta is None and w_a is not None:
        raise UserError("beta: got None beside a target w_a, takes the rate of its average")
    matrices = {"x": x, "x_prime": x_prime}
    return integration.solve(
        matrix_rates,
        (w, w_p, w if w_a is None else w_a),
        2,
        times,
        numbers,
        matrices=matrices,
        flags=(("symmetric", symmetric),),
    )


def simulate_reduced(
    f: np.ndarray,
    w_p: np.ndarray,
    *,
    times: np.ndarray | Sequence[float],
    alpha_p: Number,
    eta_p: Number,
    eta_s: Number,
    tau: Number = 1.0,
    sigma2: Number = 0.0,
    symmetric: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Integrate `reduced_rates`. Leading axes broadcast, those of the numbers too.

    Args:
        f: F at the first of the times, (..., D, D).
        w_p: W_p there, (..., D, D).
        times: ascending, (T,).
        alpha_p, eta_p, eta_s, tau, sigma2: parameters of the flow (module docstring).
        symmetric: whether the flow symmetrises W_p.

    Returns:
        F and W_p, (..., T, D, D) each.

    Raises:
        UserError: as for `simulate`.
    """
    numbers = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s, "tau": tau, "sigma2": sigma2}
    check(**numbers)
    return integration.solve(
        reduced_rates, (f, w_p), 2, times, numbers, flags=(("symmetric", symmetric),)
    )


# --- Basins ---------------------------------------------------------------------------------------


def collapses(
    *,
    p: Number,
    s: Number,
    tau: Number = 1.0,
    alpha_p: Number,
    eta_p: Number,
    eta_s: Number,
    sigma2: Number = 0.0,
    beta: Number | None = None,
) -> np.ndarray:
    """Return whether a mode started at (p, s, tau) ends at s = 0.

    These cases are decided without integration. τ* is τ where it is held and 1 where averaged:

        s = 0, or η_s > η_c(τ*), or η_p = 0 < η_s     yes (no other point is at rest)
        η_s = 0 < η_p                                 no: p rises above 0, then s grows for ever
        η_s = η_p = 0, c = s - p²/α_p                 yes iff p < 0 and c <= 0,
                                                      or p > 0 and c <= -τ*²/(a² α_p)

    In all other cases the flow is integrated until it enters one of two sets.
    The mode collapses once it is in {p <= p₋, s <= s₋} (with an average: {|p| <= p₋, w² <= s₋,
    w_a² <= s₋}). Nothing leaves that set: at p = p₋ there dp <= 0, and W cannot grow.
    It learns once it is near the learned point or, where η_p >= η_s, in {p₋ <= p <= τ/a, s >= s₋,
    and s >= `height`(p) if p > p₊}. For held τ the flow points inwards on the whole border of that
    set too. No other end is possible: (dp, ds)/s has negative divergence everywhere (Bendixson and
    Dulac), so that there are no cycles. With an average the second set counts once |τ - 1| <= 0.1.
    That is not proven, but 12 000 random starts in it all learned.

    Args:
        p: eigenvalue of W_p at the start.
        s: eigenvalue of F at the start.
        tau: W_a divided by W at the start.
        alpha_p, eta_p, eta_s, sigma2: parameters of the flow (module docstring).
        beta: rate of the target's average; None holds τ.

    Returns:
        Booleans in the shape to which all arguments broadcast.

    Raises:
        UserError: a parameter is outside its domain, the integration does not reach an end, or it
            needs diffrax, which is not installed.
    """
    check(p=p, s=s, tau=tau, alpha_p=alpha_p, eta_p=eta_p, eta_s=eta_s, sigma2=sigma2, beta=beta)
    given = {
        "p": p,
        "s": s,
        "tau": tau,
        "alpha_p": alpha_p,
        "eta_p": eta_p,
        "eta_s": eta_s,
        "sigma2": sigma2,
    }
    batch, (flat,) = integration.spread([given if beta is None else given | {"beta": beta}], [0])
    known, dies = _known_end(**flat)
    if not known.all():
        integration.diffrax()
        # Known elements repeat an unknown start, so that every call of one size is one program.
        follow = np.where(known, np.argmin(known), np.arange(len(known)))
        dies = np.where(
            known, dies, _followed(**{name: value[follow] for name, value in flat.items()})
        )
    return dies.reshape(batch)


def _known_end(
    *,
    p: np.ndarray,
    s: np.ndarray,
    tau: np.ndarray,
    alpha_p: np.ndarray,
    eta_p: np.ndarray,
    eta_s: np.ndarray,
    sigma2: np.ndarray,
    beta: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return where `collapses` has a closed form, and what it says there. All arrays are (N,)."""
    settled, a = tau if beta is None else np.ones_like(tau), 1 + sigma2
    c = invariant(p, s, alpha_p)
    dead = (s == 0) | (eta_s > settled**2 / (4 * a)) | ((eta_p == 0) & (eta_s > 0))
    still = (
        (eta_p == 0)
        & (eta_s == 0)
        & (((p < 0) & (c <= 0)) | ((p > 0) & (c <= -((settled / a) ** 2) / alpha_p)))
    )
    return dead | (eta_s == 0), dead | still


def _followed(
    *,
    p: np.ndarray,
    s: np.ndarray,
    tau: np.ndarray,
    alpha_p: np.ndarray,
    eta_p: np.ndarray,
    eta_s: np.ndarray,
    sigma2: np.ndarray,
    beta: np.ndarray | None = None,
) -> np.ndarray:
    """Return `collapses` by integration. All arrays are (N,), with 0 < η_p and 0 < η_s <= η_c."""
    low, high = roots(eta_s=eta_s, tau=tau if beta is None else np.ones_like(tau), sigma2=sigma2)
    decays = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s}
    places = {
        "tau": tau,
        "low": low,
        "high": high,
        "s_low": height(low, **decays),
        "s_high": height(high, **decays),
    }
    numbers = decays | {"sigma2": sigma2} | ({} if beta is None else {"beta": beta})
    # For held τ integrate log s, which may fall far and rise again. For an averaged target
    # integrate w itself, which may pass through 0.
    state = (p, np.log(s)) if beta is None else (p, np.sqrt(s), tau * np.sqrt(s))
    with jax.enable_x64(True):
        dies, right = map(np.array, _trapped(state, numbers, places))
    if not right.all():
        low = np.min([eta_p[~right], eta_s[~right]])
        raise UserError(
            f"eta_p, eta_s: no end reached in {integration.MAX_STEPS} steps at {low:g}, "
            "takes larger ones or 0"
        )
    return dies


def _below(
    p: jax.Array, s: jax.Array, s_a: jax.Array | None, at: dict[str, jax.Array]
) -> jax.Array:
    """Return whether a state must collapse. s_a is w_a², None for a held target."""
    if s_a is None:
        return (p <= at["low"]) & (s <= at["s_low"])
    return (jnp.abs(p) <= at["low"]) & (jnp.maximum(s, s_a) <= at["s_low"])


def _above(
    p: jax.Array,
    s: jax.Array,
    s_a: jax.Array | None,
    at: dict[str, jax.Array],
    decays: dict[str, jax.Array],
) -> jax.Array:
    """Return whether a state must learn.

    It is near the learned point or, under strong decay of W_p, beyond the saddle.
    """
    rising = (p >= at["low"]) & (p <= at["low"] + at["high"])  # whose sum is τ/a
    rising &= (s if s_a is None else jnp.minimum(s, s_a)) > at["s_low"]
    rising &= (p <= at["high"]) | (s >= height(p, **decays))
    near = jnp.abs(p - at["high"]) <= NEAR * (at["high"] - at["low"])
    near &= jnp.abs(s - at["s_high"]) <= NEAR * (at["s_high"] - at["s_low"])
    return near | (rising & (decays["eta_p"] >= decays["eta_s"]))


@jax.jit
def _trapped(
    states: tuple[jax.Array, ...], numbers: dict[str, jax.Array], places: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Return whether each state ends in the set below its saddle, and whether that is known."""
    diffrax = integration.diffrax()
    averaged = "beta" in numbers

    def one(state: tuple, numbers: dict, at: dict) -> tuple[jax.Array, jax.Array]:
        decays = {name: numbers[name] for name in ("alpha_p", "eta_p", "eta_s")}

        def field(p: jax.Array, x: jax.Array, w_a: Any = None) -> tuple[Number, ...]:
            if averaged:
                return scalar_rates(
                    p, x, w_a, **decays, beta=numbers["beta"], l_s=1 + numbers["sigma2"]
                )
            pull = at["tau"] - (1 + numbers["sigma2"]) * p
            return decays["alpha_p"] * jnp.exp(x) * pull - decays["eta_p"] * p, 2 * (
                p * pull - decays["eta_s"]
            )

        def read(p: jax.Array, x: jax.Array, w_a: Any = None) -> tuple[jax.Array, jax.Array, Any]:
            return (p, jnp.exp(x), None) if w_a is None else (p, x**2, w_a**2)

        def over(t: Any, y: tuple, args: Any, **_: Any) -> jax.Array:
            caught_up = (jnp.abs(y[2] - y[1]) <= SETTLED * jnp.abs(y[1])) if averaged else True
            return _below(*read(*y), at) | (caught_up & _above(*read(*y), at, decays))

        end = 1e4 / jnp.minimum(numbers["eta_p"], numbers["eta_s"])
        last, right = integration.integrate(
            field,
            state,
            0.0,
            end,
            diffrax.SaveAt(t1=True),
            event=diffrax.Event(over),
            atol=1e-30,
        )
        return _below(*read(*(y[-1] for y in last)), at), right

    return jax.vmap(one)(states, numbers, places)


def separatrix(
    *,
    alpha_p: float,
    eta_p: float,
    eta_s: float,
    tau: float = 1.0,
    sigma2: float = 0.0,
    length: float = 3.0,
    points: int = 200,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the border between the starts that learn (above) and those that collapse, for held τ.

    With decay it is the saddle's stable manifold, integrated backwards. Without any decay it is
    s = p²/α_p left of p = 0, then s = 0, then s = (p² - (τ/a)²)/α_p right of p = τ/a.

    Args:
        alpha_p, eta_p, eta_s, tau, sigma2: parameters of the flow (module docstring).
        length: how far to follow it to either side, in units of τ/a and of the learned s.
        points: number of points on either side.

    Returns:
        p and s from left to right, (2 * points + 1,) each. None where all starts with s > 0 have
        the same end.

    Raises:
        UserError: a parameter is outside its domain, or diffrax is needed and not installed.
    """
    check(alpha_p=alpha_p, eta_p=eta_p, eta_s=eta_s, tau=tau, sigma2=sigma2)
    reach = tau / (1 + sigma2)
    if eta_p == eta_s == 0:
        p = np.linspace(-length * reach, (1 + length) * reach, 2 * points + 1)
        return p, np.where(p < 0, p**2, np.maximum(p**2 - reach**2, 0)) / alpha_p
    found = {
        point.name: point
        for point in fixed_points(alpha_p=alpha_p, eta_p=eta_p, eta_s=eta_s, tau=tau, sigma2=sigma2)
    }
    if "saddle" not in found:
        return None
    integration.diffrax()
    numbers = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s, "sigma2": sigma2}
    saddle, unit = found["saddle"], np.array([reach, found["learned"].s])
    values, vectors = (
        np.real(x) for x in np.linalg.eig(jacobian(saddle.p, saddle.s, tau, **numbers))
    )
    stable = vectors[:, np.argmin(values)]
    step = 1e-6 * saddle.p * stable / abs(stable[0])
    with jax.enable_x64(True):
        starts = jnp.array([saddle.p, saddle.s])[None, :] + jnp.array(
            [-step, step] if step[0] > 0 else [step, -step]
        )
        left, right = np.asarray(
            _backwards(starts, float(tau), numbers, unit, np.linspace(0, length, points + 1))
        )
    return tuple(np.concatenate([left[:0:-1], [[saddle.p, saddle.s]], right[1:]]).T)


@jax.jit
def _backwards(
    starts: jax.Array,
    tau: float,
    numbers: dict[str, float],
    unit: jax.Array,
    lengths: jax.Array,
) -> jax.Array:
    """Integrate against the flow at speed 1 in the given units, (2, points, 2).

    The flow itself would run off to infinity.
    """

    def field(p: Number, s: Number) -> tuple[Number, Number]:
        dp, ds, _ = mode_rates(p, s, tau, **numbers)
        speed = jnp.hypot(dp / unit[0], ds / unit[1])
        return -dp / speed, -ds / speed

    def one(start: jax.Array) -> jax.Array:
        line, _ = integration.integrate(
            field, (start[0], start[1]), 0.0, lengths[-1], integration.diffrax().SaveAt(ts=lengths)
        )
        return jnp.stack(line, axis=-1)

    return jax.vmap(one)(starts)
