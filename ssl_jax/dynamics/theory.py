"""What the linear theory predicts: flow, fixed points, stability, basins. All of it in float64.

Tian et al. 2021 (arXiv 2102.06810), "ORIG" below: features f = W x, predictor W_p, target W_a, Euclidean loss
J = E ||W_p W x₁ - sg(W_a x₂)||² / 2, X = E[x̄ x̄ᵀ] of mean views and X' = E Cov(view). Gradient descent in small steps
is then the flow (ORIG Eqs. 4-6, the replication's Eqs. 2-4), with E = -W_p W (X + X') + W_a X,

    dW_p = α_p E Wᵀ - η_p W_p        dW = W_pᵀ E - η_s W        dW_a = β (W - W_a)

With X = I, X' = σ² I, W_a = τ W, F = W Wᵀ and W_p symmetric and aligned with F, every eigenvalue p of W_p and s of F
goes by itself (`mode_rates`). Throughout a = 1 + σ²; `beta=None` means no average: τ is held (SimSiam: at 1).
Names: alpha_p > 0, eta_p >= 0 (decay of W_p), eta_s >= 0 (of W), tau in [0, 1], sigma2 >= 0, beta > 0 or None; anything
else is a `UserError`. `mapping` makes them of an experiment's own settings. The theory is of the Euclidean loss; image
runs train on the cosine.

The `*_rates` are right-hand sides, of numbers, NumPy or JAX arrays alike. What is public besides takes and gives NumPy
in float64, whatever the flag of the program around it; arguments broadcast, and a whole phase diagram is one compiled
call. Only what integrates (simulate*, collapses, separatrix) needs diffrax.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.errors import UserError, nearest

RTOL, ATOL = 1e-11, 1e-13  # of one step of the integration
MAX_STEPS = 100_000
NEAR = 0.01  # of the way from saddle to learned point: so near the latter counts as there
SETTLED = 0.1  # an average within this of τ = 1 counts as having caught up

# name: (what it takes, the test of it)
DOMAIN = {
    "alpha_p": ("a number above 0", lambda x: x > 0),
    "eta_p": ("a number from 0", lambda x: x >= 0),
    "eta_s": ("a number from 0", lambda x: x >= 0),
    "sigma2": ("a number from 0", lambda x: x >= 0),
    "tau": ("a number from 0 to 1", lambda x: (x >= 0) & (x <= 1)),
    "beta": ("a number above 0, or None for no average", lambda x: x > 0),
    "s": ("a number from 0 (an eigenvalue of F = W Wᵀ)", lambda x: x >= 0),
}


def check(**values) -> None:
    """UserError that names the first parameter outside the theory's domain; arrays are looked at in every element."""
    for name, value in values.items():
        x = np.asarray(np.nan if value is None else value, np.float64)
        takes, fits = DOMAIN.get(name, ("a finite number", np.isfinite))
        right = fits(x) & np.isfinite(x)
        if not (np.all(right) or (name == "beta" and value is None)):
            raise UserError(f"{name}: got {x[~right].flat[0] if x.ndim else value}, takes {takes}")


# --- From an experiment to the flow -------------------------------------------------------------------------


class Flow(NamedTuple):
    """Parameters of the flow, named as the functions here take them: `simulate(**flow._asdict(), ...)`."""

    alpha_p: float
    eta_p: float
    eta_s: float
    beta: float | None


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
    """(flow, time): the flow that an experiment follows, and how much of the flow's time t one of its steps takes.

    `tau` is the experiment's target.tau (W_a ← W_a + (1 - tau)(W - W_a) each step, 0: no average), not the theory's τ.
    `loss_scale` c: the gradients are those of c J (a sum over both directions of the views: c = 2). A predictor's rate
    or decay of None is that of the rest. To first order in the step, heavy-ball momentum μ makes a rate α act as
    α / (1 - μ). With dt = c α / (1 - μ), a step of W under coupled L2 (gradient + wd W, then momentum) is

        ΔW   = -α / (1 - μ) (c ∇J + wd W)              = -dt (∇J + wd / c W)
        ΔW_p = -α_pred / (1 - μ) (c ∇_p J + wd_pred W_p) = -dt α_pred / α (∇_p J + wd_pred / c W_p)
        ΔW_a = (1 - tau)(W - W_a)

    so that, where c = 1 and whatever μ is,

        coupled:     η_s = wd,  η_p = (α_pred / α) wd_pred  (the decay is multiplied by that group's own rate)
        all:         α_p = α_pred / α,  β = (1 - tau) / dt  (ORIG's (1 - tau) / α where μ = 0)

    Decay outside of the gradient shrinks by d each step, and d is divided by the time of one: η = d / dt. With
    decay_scale "lr" d = rate * wd, with "literal" d = wd, which is ORIG's η = η̄ / α. Real-time and pre-decay differ
    from decoupled only in second order of the step.
    """
    for name, value, known in (("decay", decay, DECAYS), ("decay_scale", decay_scale, SCALES)):
        if value not in known:
            raise UserError(f"{name}: got {value!r}, {nearest(value, known)}")
    rates = {"learning_rate": learning_rate, "predictor_learning_rate": predictor_learning_rate}
    rate, rate_p = (learning_rate if value is None else value for value in rates.values())
    wd, wd_p = weight_decay, weight_decay if predictor_weight_decay is None else predictor_weight_decay
    _require(rate, "learning_rate", "a number above 0", 0 < rate)
    _require(rate_p, "predictor_learning_rate", "a number above 0", 0 < rate_p)
    _require(wd, "weight_decay", "a number from 0", 0 <= wd)
    _require(wd_p, "predictor_weight_decay", "a number from 0", 0 <= wd_p)
    _require(tau, "tau", "a number from 0 and below 1", 0 <= tau < 1)
    _require(momentum, "momentum", "a number from 0 and below 1", 0 <= momentum < 1)
    _require(loss_scale, "loss_scale", "a number above 0", 0 < loss_scale)
    time = loss_scale * rate / (1 - momentum)
    literal = decay != "coupled" and decay_scale == "literal"
    carried = 1 - momentum if decay == "coupled" else 1.0  # momentum adds up what the decay leaves in it
    shrink, shrink_p = (wd, wd_p) if literal else (rate * wd / carried, rate_p * wd_p / carried)
    return Flow(rate_p / rate, shrink_p / time, shrink / time, (1 - tau) / time if tau else None), time


def _require(value, name: str, takes: str, right: bool) -> None:
    if not (right and np.isfinite(value)):
        raise UserError(f"{name}: got {value}, takes {takes}")


# --- Right-hand sides ---------------------------------------------------------------------------------------


def matrix_rates(w, w_p, w_a, *, x, x_prime, alpha_p, eta_p, eta_s, beta=None, symmetric=False):
    """(dW, dW_p, dW_a) of ORIG Eqs. 4-6 for W and W_a (D, N), W_p (D, D), X and X' (N, N).

    `symmetric` projects dW_p, as a step does that symmetrises W_p after the update. Without `beta` W_a moves as W does:
    started at W, it stays W.
    """
    error = w_a @ x - w_p @ w @ (x + x_prime)
    pull = alpha_p * (error @ w.T)
    dw = w_p.T @ error - eta_s * w
    dw_p = ((pull + pull.T) / 2 if symmetric else pull) - eta_p * w_p
    return dw, dw_p, dw if beta is None else beta * (w - w_a)


def reduced_rates(f, w_p, *, tau, alpha_p, eta_p, eta_s, sigma2, symmetric=True):
    """(dF, dW_p) where X = I, X' = σ² I and W_a = τ W; F = W Wᵀ and W_p (D, D).

    As it is:     dW_p = α_p (τ F - a W_p F) - η_p W_p        dF = τ (W_pᵀF + F W_p) - a {W_pᵀW_p, F} - 2 η_s F
    symmetrised:  dW_p = α_p (τ F - a {W_p, F} / 2) - η_p W_p  (ORIG Eq. 8; dF is the same, with W_p = W_pᵀ: Eq. 9)
    """
    a = 1 + sigma2
    product = w_p @ f
    if symmetric:
        product = (product + product.T) / 2
    half = tau * (f @ w_p) - a * (f @ w_p.T @ w_p)
    return half + half.T - 2 * eta_s * f, alpha_p * (tau * f - a * product) - eta_p * w_p


def mode_rates(p, s, tau, *, alpha_p, eta_p, eta_s, sigma2=0.0, beta=None):
    """(dp, ds, dτ) of one aligned mode, elementwise (ORIG Eqs. 12-14):

    dp = α_p s (τ - a p) - η_p p      ds = 2 s (p (τ - a p) - η_s)      dτ = β (1 - τ) - τ ds / (2 s)
    """
    pull = tau - (1 + sigma2) * p
    growth = p * pull - eta_s
    dtau = 0 * tau if beta is None else beta * (1 - tau) - tau * growth
    return alpha_p * s * pull - eta_p * p, 2 * s * growth, dtau


def scalar_rates(w_p, w, w_a, *, alpha_p, eta_p=0.0, eta_s=0.0, beta=0.0, l_s=1.0, l_d=1.0):
    """(dw_p, dw, dw_a) of one coordinate of data that need not be isotropic (ORIG App. D), elementwise: with
    e = w_a l_d - w_p w l_s,  dw_p = α_p e w - η_p w_p,  dw = e w_p - η_s w,  dw_a = β (w - w_a).

    l_s and l_d: eigenvalues of Σ_s = X + X' and Σ_d = X. At l_s = a, l_d = 1 it is `mode_rates` with p = w_p, s = w²,
    τ = w_a / w, and stays smooth where w passes through 0 and τ through infinity.
    """
    error = w_a * l_d - w_p * w * l_s
    return alpha_p * error * w - eta_p * w_p, w_p * error - eta_s * w, beta * (w - w_a)


# --- Closed forms -------------------------------------------------------------------------------------------


def invariant(p, s, alpha_p):
    """s - p² / α_p, which under equal decay is its first value times e^{-2ηt}, for any target (ORIG Eq. 17, whose main
    text prints the opposite sign). Under unequal decay d/dt = -2 η_s s + 2 η_p p² / α_p.
    """
    return s - p**2 / alpha_p


def mode_alignment(p, s, tau, *, alpha_p, eta_p, eta_s, sigma2=0.0):
    """The eigenvalue of K that belongs to an aligned mode: a (α_p s / 2 + p²) - τ p + η_s + η_p / 2.

    On the parabola s = p²/α_p under equal decay this is > 0 iff Δ = p (τ - a p) - η < (α_p a s + η) / 2, and the mode
    grows iff Δ > 0.
    """
    return (1 + sigma2) * (alpha_p * s / 2 + p**2) - tau * p + eta_s + eta_p / 2


def critical_decay(*, tau=1.0, sigma2=0.0):
    """η_c = τ² / (4a): under a stronger decay η_s of W nothing but collapse is left."""
    check(tau=tau, sigma2=sigma2)
    return np.square(tau) / (4 * (1 + np.asarray(sigma2)))


def roots(*, eta_s, tau=1.0, sigma2=0.0):
    """(p₋, p₊) = [τ ∓ sqrt(τ² - 4 a η_s)] / 2a, between which a mode's s grows; nan above the critical decay."""
    check(eta_s=eta_s, tau=tau, sigma2=sigma2)
    a, tau = 1 + np.asarray(sigma2, np.float64), np.asarray(tau, np.float64)
    inside = tau**2 - 4 * a * eta_s
    high = (tau + np.sqrt(np.where(inside >= 0, inside, np.nan))) / (2 * a)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(high > 0, eta_s / (a * high), high), high  # p₋ p₊ = η_s / a: nothing cancels


def height(p, *, alpha_p, eta_p, eta_s):
    """s of the nontrivial fixed point at p: η_p p² / (α_p η_s), the parabola where the decays are equal."""
    return eta_p * p**2 / (alpha_p * eta_s)


def asymptotic_growth(*, alpha_p, eta_p, tau=1.0, sigma2=0.0):
    """ds/dt of a mode long after the start where η_s = 0 < η_p: 2 η_p (τ/a)² / α_p, with p → τ/a. There is no finite
    fixed point to learn; s grows in proportion to time.
    """
    check(alpha_p=alpha_p, eta_p=eta_p, tau=tau, sigma2=sigma2)
    return 2 * eta_p * (tau / (1 + sigma2)) ** 2 / alpha_p


def jacobian(p, s, tau=1.0, *, alpha_p, eta_p, eta_s, sigma2=0.0, beta=None) -> np.ndarray:
    """Derivatives of `mode_rates`: (2, 2) by (p, s) where τ is held, (3, 3) by (p, s, τ) where it is averaged."""
    a = 1 + sigma2
    growth, turn = p * (tau - a * p) - eta_s, tau - 2 * a * p
    rows = [
        [-alpha_p * a * s - eta_p, alpha_p * (tau - a * p), alpha_p * s],
        [2 * s * turn, 2 * growth, 2 * p * s],
        [-tau * turn, 0, -(0 if beta is None else beta) - growth - tau * p],
    ]
    return np.array(rows, np.float64)[:2, :2] if beta is None else np.array(rows, np.float64)


class FixedPoint(NamedTuple):
    """Where a mode rests. nan in `p` or `s` (and in `eigenvalues`): a whole line of rest, any value does.

    name: "collapsed" (s = 0), "saddle" (p₋, on the border of the basins), "learned" (p₊), or "saddle-node" where the
    two are one. `eigenvalues`, ascending, of the Jacobian by (p, s) or (p, s, τ); `stable`: all below 0, or a line that
    is approached from the side.
    """

    name: str
    p: float
    s: float
    tau: float
    eigenvalues: np.ndarray
    stable: bool


def fixed_points(*, alpha_p, eta_p, eta_s, tau=1.0, sigma2=0.0, beta=None) -> list[FixedPoint]:
    """All points at which a mode rests, "collapsed" first (ORIG section 3.2; unequal decay: a p² - τ p + η_s = 0).

    Without `beta` τ is held and the system is (p, s); with it τ = 1 at every point where W does not shrink, and an
    argument tau other than 1 is refused. A collapsing W outruns its average: there τ ends at β / (β - η_s), or, where
    β <= η_s, it grows for ever (inf).
    """
    check(alpha_p=alpha_p, eta_p=eta_p, eta_s=eta_s, tau=tau, sigma2=sigma2, beta=beta)
    if beta is not None and tau != 1:
        raise UserError(f"tau: got {tau}, takes 1 where there is a beta: the average settles there")
    parameters = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s, "sigma2": sigma2, "beta": beta}
    points = [_collapsed(tau, eta_p, eta_s, beta)]
    if eta_s == 0:
        if eta_p > 0 and tau > 0:
            return points
        return [*points, FixedPoint("learned", tau / (1 + sigma2), np.nan, tau, _unknown(beta), eta_p == 0)]
    low, high = map(float, roots(eta_s=eta_s, tau=tau, sigma2=sigma2))
    if eta_p == 0 or not high > 0:
        return points
    names = [("saddle-node", high)] if low == high else [("saddle", low), ("learned", high)]
    for name, p in names:
        s = height(p, alpha_p=alpha_p, eta_p=eta_p, eta_s=eta_s)
        values = np.sort(np.linalg.eigvals(jacobian(p, s, tau, **parameters)))
        # By the closed form of the determinant: beside the critical decay an eigenvalue's sign is lost in rounding.
        points.append(FixedPoint(name, p, s, float(tau), values, name == "learned"))
    return points


def _collapsed(tau, eta_p, eta_s, beta) -> FixedPoint:
    """Origin, with eigenvalues -η_p, -2 η_s and -|β - η_s|; without decay of W_p any p, without decay at all not stable
    (p < 0 is).
    """
    if beta is not None:
        tau = beta / (beta - eta_s) if beta > eta_s else np.inf
    if eta_p == 0:
        return FixedPoint("collapsed", np.nan, 0.0, float(tau), _unknown(beta), eta_s > 0)
    values = np.sort([-eta_p, -2 * eta_s] + ([] if beta is None else [-abs(beta - eta_s)]))
    return FixedPoint("collapsed", 0.0, 0.0, float(tau), values, eta_s > 0)


def _unknown(beta) -> np.ndarray:
    return np.full(2 if beta is None else 3, np.nan)


# --- Integration --------------------------------------------------------------------------------------------


class Curves(NamedTuple):
    """time (T,); p, s and tau (..., T). An averaged target turns a mode with p < 0 round: w passes through 0, there tau
    has a pole and then changes sign.
    """

    time: np.ndarray
    p: np.ndarray
    s: np.ndarray
    tau: np.ndarray


def simulate(*, p, s, tau=1.0, times, alpha_p, eta_p, eta_s, sigma2=0.0, beta=None) -> Curves:
    """A mode's (p, s, τ) at `times` (T,), started at `p`, `s`, `tau` at the first of them. Everything but the times
    broadcasts: one compiled call integrates all of it.
    """
    parameters = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s, "sigma2": sigma2, "beta": beta}
    check(p=p, s=s, tau=tau, **parameters)
    numbers = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s}
    times = np.asarray(times, np.float64)
    if beta is None:
        return Curves(times, *_solve(mode_rates, (p, s, tau), 0, times, numbers | {"sigma2": sigma2}))
    w = np.sqrt(s)
    numbers |= {"beta": beta, "l_s": 1 + np.asarray(sigma2)}
    p, w, w_a = _solve(scalar_rates, (p, w, tau * w), 0, times, numbers)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Curves(times, p, w**2, w_a / w)


def simulate_matrices(
    w, w_p, w_a=None, *, times, x, x_prime, alpha_p, eta_p, eta_s, beta=None, symmetric=False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(W, W_p, W_a) at `times`, each (..., T, D, N or D), by `matrix_rates`. `w_a` of None starts as `w`, and without
    `beta` stays it. Leading axes broadcast, those of the numbers too.
    """
    numbers = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s, "beta": beta}
    check(**numbers)
    if beta is None and w_a is not None:
        raise UserError("beta: got None beside a target w_a, takes the rate of its average")
    matrices = {"x": x, "x_prime": x_prime}
    return _solve(
        matrix_rates, (w, w_p, w if w_a is None else w_a), 2, times, numbers, matrices, (("symmetric", symmetric),)
    )


def simulate_reduced(
    f, w_p, *, times, alpha_p, eta_p, eta_s, tau=1.0, sigma2=0.0, symmetric=True
) -> tuple[np.ndarray, np.ndarray]:
    """(F, W_p) at `times`, each (..., T, D, D), by `reduced_rates`; leading axes broadcast."""
    numbers = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s, "tau": tau, "sigma2": sigma2}
    check(**numbers)
    return _solve(reduced_rates, (f, w_p), 2, times, numbers, flags=(("symmetric", symmetric),))


def _solve(rates, state, rank: int, times, numbers: dict, matrices: dict | None = None, flags: tuple = ()) -> tuple:
    """`rates` integrated from `state`, whose elements end in `rank` axes of their own; all before those is a batch."""
    _diffrax()
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2 or not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        raise UserError(f"times: got {times.tolist()[:4]}, takes two or more ascending numbers")
    numbers = {name: value for name, value in numbers.items() if value is not None}
    tree = [dict(enumerate(state)), numbers, matrices or {}]
    batch, tree = _spread(tree, [rank, 0, 2])
    with jax.enable_x64(True):
        curves, right = _curves(rates, flags, *tree, times)
    if not np.all(right):
        raise UserError(f"times: no solution up to {times[-1]:g} in {MAX_STEPS} steps, takes a shorter time")
    return tuple(np.asarray(curve).reshape(*batch, *curve.shape[1:]) for curve in curves)


def _spread(groups: list[dict[Any, Any]], ranks: list[int]) -> tuple[tuple[int, ...], list[dict]]:
    """The common batch shape, and every array with that batch as its one first axis."""
    groups = [{name: np.asarray(value, np.float64) for name, value in group.items()} for group in groups]
    ranked = [(array, rank) for group, rank in zip(groups, ranks, strict=True) for array in group.values()]
    batch = np.broadcast_shapes(*(array.shape[: array.ndim - rank] for array, rank in ranked))

    def spread(array, rank):
        own = array.shape[array.ndim - rank :]
        return np.broadcast_to(array, (*batch, *own)).reshape(-1, *own)

    return batch, [{k: spread(v, rank) for k, v in group.items()} for group, rank in zip(groups, ranks, strict=True)]


def _diffrax():
    """The package, imported where it is first needed."""
    try:
        import diffrax
    except ImportError as error:
        raise UserError("diffrax: not installed; pip install -e '.[theory]'") from error
    return diffrax


def _integrate(field, state: tuple, start, end, saveat, event=None, atol=ATOL) -> tuple[Any, Any]:
    """(states, whether they could be had), by a method of order 8: the flow is smooth and hardly stiff."""
    diffrax = _diffrax()
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(*y)),
        diffrax.Dopri8(),
        start,
        end,
        None,
        state,
        saveat=saveat,
        stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=atol),
        event=event,
        max_steps=MAX_STEPS,
        throw=False,
        adjoint=diffrax.ForwardMode(),
    )
    return solution.ys, diffrax.is_okay(solution.result)


@partial(jax.jit, static_argnames=("rates", "flags"))
def _curves(rates, flags, states, numbers, matrices, times):
    """(curves, whether they could be had) of a batch."""

    def one(state, numbers, matrices):
        field = partial(rates, **numbers, **matrices, **dict(flags))
        return _integrate(field, tuple(state.values()), times[0], times[-1], _diffrax().SaveAt(ts=times))

    return jax.vmap(one)(states, numbers, matrices)


# --- Basins -------------------------------------------------------------------------------------------------


def collapses(*, p, s, tau=1.0, alpha_p, eta_p, eta_s, sigma2=0.0, beta=None) -> np.ndarray:
    """Whether a mode started at (p, s, tau) ends at s = 0 if it is left alone for ever; all arguments broadcast.

    Decided without integration, with τ* = τ where it is held and 1 where it is averaged:

        s = 0, or η_s > η_c(τ*), or η_p = 0 < η_s     yes (nothing else is at rest)
        η_s = 0 < η_p                                 no: p is drawn above 0, then s grows without end
        η_s = η_p = 0, c = s - p²/α_p                 yes iff p < 0 and c <= 0, or p > 0 and c <= -τ*²/(a² α_p)

    In the rest the start is followed until its fate is sealed.
    It collapses once in {p <= p₋, s <= s₋} (with an average: {|p| <= p₋, w² <= s₋, w_a² <= s₋}), which nothing leaves:
    at p = p₋ there dp <= 0, and W cannot grow. It learns once near the learned point or, where η_p >= η_s, in
    {p₋ <= p <= τ/a, s >= s₋, and s >= `height`(p) if p > p₊}. For held τ the flow points inwards all around that set
    too, and no other end is possible: (dp, ds)/s has negative divergence everywhere (Bendixson and Dulac), so nothing
    cycles. With an average the second set is taken once |τ - 1| <= 0.1; that is not proven, but 12 000 random starts in
    it all learned.
    """
    check(p=p, s=s, tau=tau, alpha_p=alpha_p, eta_p=eta_p, eta_s=eta_s, sigma2=sigma2, beta=beta)
    given = {"p": p, "s": s, "tau": tau, "alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s, "sigma2": sigma2}
    batch, (flat,) = _spread([given if beta is None else given | {"beta": beta}], [0])
    known, dies = _known_end(**flat)
    if not known.all():
        _diffrax()
        # Every call of one size is one program: what is known repeats a start that is not.
        follow = np.where(known, np.argmin(known), np.arange(len(known)))
        dies = np.where(known, dies, _followed(**{name: value[follow] for name, value in flat.items()}))
    return dies.reshape(batch)


def _known_end(*, p, s, tau, alpha_p, eta_p, eta_s, sigma2, beta=None):
    """(known, collapses) of the closed forms in `collapses`, all (N,)."""
    settled, a = tau if beta is None else np.ones_like(tau), 1 + sigma2
    c = invariant(p, s, alpha_p)
    dead = (s == 0) | (eta_s > settled**2 / (4 * a)) | ((eta_p == 0) & (eta_s > 0))
    still = (eta_p == 0) & (eta_s == 0) & (((p < 0) & (c <= 0)) | ((p > 0) & (c <= -((settled / a) ** 2) / alpha_p)))
    return dead | (eta_s == 0), dead | still


def _followed(*, p, s, tau, alpha_p, eta_p, eta_s, sigma2, beta=None) -> np.ndarray:
    """`collapses` by integration, all (N,) with 0 < η_p and 0 < η_s <= η_c."""
    low, high = roots(eta_s=eta_s, tau=tau if beta is None else np.ones_like(tau), sigma2=sigma2)
    decays = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s}
    places = {"tau": tau, "low": low, "high": high, "s_low": height(low, **decays), "s_high": height(high, **decays)}
    numbers = decays | {"sigma2": sigma2} | ({} if beta is None else {"beta": beta})
    # Held, s goes by its logarithm, averaged w by itself: it may pass through 0, but both may fall far and rise again.
    state = (p, np.log(s)) if beta is None else (p, np.sqrt(s), tau * np.sqrt(s))
    with jax.enable_x64(True):
        dies, right = map(np.array, _trapped(state, numbers, places))
    if not right.all():
        low = np.min([eta_p[~right], eta_s[~right]])
        raise UserError(f"eta_p, eta_s: no end reached in {MAX_STEPS} steps at {low:g}, takes larger ones or 0")
    return dies


def _below(p, s, s_a, at):
    """The set of starts that must collapse; s_a is w_a², None for a held target."""
    if s_a is None:
        return (p <= at["low"]) & (s <= at["s_low"])
    return (jnp.abs(p) <= at["low"]) & (jnp.maximum(s, s_a) <= at["s_low"])


def _above(p, s, s_a, at, decays):
    """The set of starts that learn: near the learned point, or under strong decay of W_p past the saddle."""
    rising = (p >= at["low"]) & (p <= at["low"] + at["high"])  # whose sum is τ/a
    rising &= (s if s_a is None else jnp.minimum(s, s_a)) > at["s_low"]
    rising &= (p <= at["high"]) | (s >= height(p, **decays))
    near = jnp.abs(p - at["high"]) <= NEAR * (at["high"] - at["low"])
    near &= jnp.abs(s - at["s_high"]) <= NEAR * (at["s_high"] - at["s_low"])
    return near | (rising & (decays["eta_p"] >= decays["eta_s"]))


@jax.jit
def _trapped(states, numbers, places):
    """(whether each of a batch ends in the set below its saddle, whether that is known)."""
    diffrax = _diffrax()
    averaged = "beta" in numbers

    def one(state, numbers, at):
        decays = {name: numbers[name] for name in ("alpha_p", "eta_p", "eta_s")}

        def field(p, x, w_a=None):
            if averaged:
                return scalar_rates(p, x, w_a, **decays, beta=numbers["beta"], l_s=1 + numbers["sigma2"])
            pull = at["tau"] - (1 + numbers["sigma2"]) * p
            return decays["alpha_p"] * jnp.exp(x) * pull - decays["eta_p"] * p, 2 * (p * pull - decays["eta_s"])

        def read(p, x, w_a=None):
            return (p, jnp.exp(x), None) if w_a is None else (p, x**2, w_a**2)

        def over(t, y, args, **_):
            caught_up = (jnp.abs(y[2] - y[1]) <= SETTLED * jnp.abs(y[1])) if averaged else True
            return _below(*read(*y), at) | (caught_up & _above(*read(*y), at, decays))

        end = 1e4 / jnp.minimum(numbers["eta_p"], numbers["eta_s"])
        last, right = _integrate(field, state, 0.0, end, diffrax.SaveAt(t1=True), diffrax.Event(over), 1e-30)
        return _below(*read(*(y[-1] for y in last)), at), right

    return jax.vmap(one)(states, numbers, places)


def separatrix(
    *, alpha_p, eta_p, eta_s, tau=1.0, sigma2=0.0, length=3.0, points=200
) -> tuple[np.ndarray, np.ndarray] | None:
    """(p, s), each (2 * points + 1,) from left to right: the border between the starts that learn (above) and those
    that collapse, for held τ. None where all starts with s > 0 share one fate.

    With decay it is the saddle's stable manifold, followed backwards over `length` in units of τ/a and of the learned
    s. Without any it is s = p²/α_p left of p = 0, then s = 0, then s = (p² - (τ/a)²)/α_p right of p = τ/a.
    """
    check(alpha_p=alpha_p, eta_p=eta_p, eta_s=eta_s, tau=tau, sigma2=sigma2)
    reach = tau / (1 + sigma2)
    if eta_p == eta_s == 0:
        p = np.linspace(-length * reach, (1 + length) * reach, 2 * points + 1)
        return p, np.where(p < 0, p**2, np.maximum(p**2 - reach**2, 0)) / alpha_p
    found = {
        point.name: point for point in fixed_points(alpha_p=alpha_p, eta_p=eta_p, eta_s=eta_s, tau=tau, sigma2=sigma2)
    }
    if "saddle" not in found:
        return None
    _diffrax()
    numbers = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s, "sigma2": sigma2}
    saddle, unit = found["saddle"], np.array([reach, found["learned"].s])
    values, vectors = (np.real(x) for x in np.linalg.eig(jacobian(saddle.p, saddle.s, tau, **numbers)))
    stable = vectors[:, np.argmin(values)]
    step = 1e-6 * saddle.p * stable / abs(stable[0])
    with jax.enable_x64(True):
        starts = jnp.array([saddle.p, saddle.s])[None, :] + jnp.array([-step, step] if step[0] > 0 else [step, -step])
        left, right = np.asarray(_backwards(starts, float(tau), numbers, unit, np.linspace(0, length, points + 1)))
    return tuple(np.concatenate([left[:0:-1], [[saddle.p, saddle.s]], right[1:]]).T)


@jax.jit
def _backwards(starts, tau, numbers, unit, lengths):
    """(2, points, 2): against the flow at speed 1 in the given units; the flow itself would run off to infinity."""

    def field(p, s):
        dp, ds, _ = mode_rates(p, s, tau, **numbers)
        speed = jnp.hypot(dp / unit[0], ds / unit[1])
        return -dp / speed, -ds / speed

    def one(start):
        line, _ = _integrate(field, (start[0], start[1]), 0.0, lengths[-1], _diffrax().SaveAt(ts=lengths))
        return jnp.stack(line, axis=-1)

    return jax.vmap(one)(starts)
