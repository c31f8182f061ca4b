"""The linear theory under the cosine loss: flow of modes and matrices, ends, closed-form spectra.

The network is that of `dynamics.theory`: predictions u = W_p W x₁ of targets z = W_a x₂, with two
views x₁ and x₂ and z without gradient. The loss is J = 1 - E cos(u, z), and the flow is

    dW_p = -α_p ∂J/∂W_p - η_p W_p      dW = -∂J/∂W - η_s W      dW_a = β (W - W_a)

Where W_p, W and W_a share their singular vectors, and the vectors on the side of the inputs are
independent directions of the data, they go on sharing them: to reflect the data in one of these
directions changes no expectation. All that is left is a number of each mode:

    p, m, n (D,)   singular values of W_p, W and W_a, of either sign; s = m² is an eigenvalue of
                   W Wᵀ. Without an average W_a is W, and n = m.
    variance (D,)  A >= 0, variance of one view in the mode's direction of the inputs
    c (D,)         in [0, 1], the correlation of the two views there: c A is their covariance, the
                   variance of mean views
    mean (D,)      of the views there; not 0 in one mode at most. A mode that is all mean has A = 0
                   and counts as one with c = 1.

F, the correlation of projections that a run records and that predictors in closed form are computed
from (of a long memory from another F, see `predictors.recent_correlation`), is of noisy views. Its
eigenvalue is f = s (A + mean²), and that is `f` here; the theory of mean views has c f instead. A
mode's share c is then v·E[z₁ z₂ᵀ]v / v·F v for its eigenvector v.

Exact, for Gaussian views. With 1/|u| = π^(-1/2) ∫ t^(-1/2) exp(-t |u|²) dt, twice, E cos is a
double integral over the Gaussian's generating function. Of a mode with var u = U, var z = Z,
cov(u, z) = V and means μ_u, μ_z it has the factors

    d = 1 + 2 t₁ U + 2 t₂ Z + 4 t₁ t₂ (U Z - V²)
    a = ((1 + 2 t₂ Z) μ_u - 2 t₂ V μ_z) / d      b = ((1 + 2 t₁ U) μ_z - 2 t₁ V μ_u) / d
    E cos = 1/π ∬ (t₁ t₂)^(-1/2) Π d^(-1/2) exp(-t₁ μ_u a - t₂ μ_z b) Σ (V / d + a b) dt₁ dt₂

The integral is a sum over t = exp(w - e^(-w)), trapezoids in w, after u and z are scaled to
E|u|² = E|z|² = 1. For c up to .99 its error is below 1e-14 for four modes and more, 1e-11 for
three, 1e-9 for two and 2e-6 for one (64 nodes each), and below 1e-4 with LEAST nodes, fewer than
which are refused. Where all c are 1 it is 1e-12, 1e-9, 1e-6 and 5e-4. What lives counts, not D. Its
gradient is orthogonal to the weights whatever the error, so that the conserved norms stay when all
modes but one have died.

"leading" is the first term in one over the number of modes. With N = E u·z, X = E|u|² and
Z = E|z|² it is E cos = N / sqrt(X Z), and with q = X / N (sums over modes, n = m)

    dp = α_p κ f (c - p/q) - η_p p      ds = 2 κ f p (c - p/q) - 2 η_s s      κ = 1 / sqrt(X Z)

"next" adds the second moments of u·z, |u|² and |z|².

Sources: the setting is that of Tian et al. 2021 (arXiv 2102.06810). Bao 2023 (arXiv 2309.16109) has
dynamics of the cosine loss with the norms of W and W_p held fixed. The integral, the conserved
norms, decay as a change of time, `fate` and `direct_spectrum` are derived here; each has its
derivation at its test.

`*_rates` and `expected_*` take NumPy and JAX arrays, and may be differentiated and traced. All
other functions take and return NumPy in float64. Leading axes of their arguments broadcast.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.dynamics import integration
from ssl_jax.errors import UserError, nearest

Array = np.ndarray | jax.Array
Number = float | Array

ORDERS = ("exact", "next", "leading")
NORMS = ("max", "frobenius", "trace")
NODES = 64
LEAST = 24  # nodes: with 16 the gradient of one or two modes is wrong by 1e-2
RANGE = (-4.2, 14.0)  # of w, outside of which the integrand is below 1e-16 for four modes
WIDE = (-4.2, 40.0)  # where the integrand falls slowly: of two modes


# --- The expected cosine --------------------------------------------------------------------------


def expected_cosine(
    p: Array,
    m: Array,
    n: Array,
    *,
    c: Array,
    variance: Array,
    mean: Array,
    order: str = "exact",
    nodes: int = NODES,
) -> jax.Array:
    """Return E cos(u, z) of aligned modes (module docstring).

    Args:
        p: singular values of W_p, (D,).
        m: singular values of W, (D,).
        n: singular values of W_a, (D,).
        c: correlation of the two views in each mode, (D,).
        variance: of one view, (D,).
        mean: of the views, (D,).
        order: "exact", "next" or "leading".
        nodes: number of nodes of either integral.

    Returns:
        ().
    """
    _check_order(order)
    u_var, z_var = p**2 * m**2 * variance, n**2 * variance
    cov, u_mean, z_mean = p * m * n * c * variance, p * m * mean, n * mean
    if order != "exact":
        return _expansion(
            jnp.sum(cov + u_mean * z_mean),
            jnp.sum(u_var + u_mean**2),
            jnp.sum(z_var + z_mean**2),
            (
                2 * jnp.sum(cov * u_var + u_mean**2 * cov + u_mean * z_mean * u_var),
                2 * jnp.sum(cov * z_var + z_mean**2 * cov + u_mean * z_mean * z_var),
                2 * jnp.sum(u_var**2 + 2 * u_mean**2 * u_var),
                2 * jnp.sum(z_var**2 + 2 * z_mean**2 * z_var),
                2 * jnp.sum(cov**2 + 2 * u_mean * z_mean * cov),
            )
            if order == "next"
            else None,
        )
    t, weight = _nodes(nodes)
    factor, cosine = _integrand(u_var, z_var, cov, u_mean, z_mean, t)
    return jnp.sum(weight[:, None] * weight[None, :] * factor * cosine) / np.pi


def _nodes(nodes: int, ends: tuple[float, float] = RANGE) -> tuple[np.ndarray, np.ndarray]:
    """Return t (nodes,) and weights (nodes,) for ∫ t^(-1/2) f(t) dt from 0 to infinity."""
    if nodes < LEAST:
        raise UserError(f"nodes: got {nodes}, takes a whole number from {LEAST}")
    w = np.linspace(*ends, nodes)
    t = np.exp(w - np.exp(-w))
    return t, (w[1] - w[0]) * np.sqrt(t) * (1 + np.exp(-w))


def _integrand(
    u_var: Array, z_var: Array, cov: Array, u_mean: Array, z_mean: Array, t: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Return the integrand's two factors at all pairs of nodes, (nodes, nodes) each.

    The first is that of E exp(-t₁|u|² - t₂|z|²), the second E u·z under that weight. u and z are
    scaled here, which changes no cosine. A gradient goes through the scale, too. So it is
    orthogonal to the weights however few the nodes, and a flow keeps their norms.
    """
    u_size = jnp.sqrt(jnp.sum(u_var + u_mean**2))
    z_size = jnp.sqrt(jnp.sum(z_var + z_mean**2))
    one, two = t[:, None, None], t[None, :, None]
    u, z, v, u_mean, z_mean = (
        x[None, None, :]
        for x in (
            # divided twice: a gradient through the square of a tiny size is lost in float32
            u_var / u_size / u_size,
            z_var / z_size / z_size,
            cov / u_size / z_size,
            u_mean / u_size,
            z_mean / z_size,
        )
    )
    d = 1 + 2 * one * u + 2 * two * z + 4 * one * two * (u * z - v**2)
    a = ((1 + 2 * two * z) * u_mean - 2 * two * v * z_mean) / d
    b = ((1 + 2 * one * u) * z_mean - 2 * one * v * u_mean) / d
    exponent = -jnp.sum(jnp.log(d) / 2 + one * u_mean * a + two * z_mean * b, axis=-1)
    return jnp.exp(exponent), jnp.sum(v / d + a * b, axis=-1)


def _expansion(
    n: jax.Array, x: jax.Array, z: jax.Array, moments: tuple[jax.Array, ...] | None
) -> jax.Array:
    """Return E of N / sqrt(X Z) for random N, X and Z, to first or second order.

    Args:
        n: mean of N = u·z.
        x: mean of X = |u|².
        z: mean of Z = |z|².
        moments: cov(N, X), cov(N, Z), var X, var Z and cov(X, Z); None for first order.

    Returns:
        N/sqrt(X Z) (1 + ⅜ var X/X² + ⅜ var Z/Z² + ¼ cov(X, Z)/(X Z))
        - (cov(N, X)/X + cov(N, Z)/Z) / (2 sqrt(X Z)), the Taylor series in N, X and Z.
    """
    root = jnp.sqrt(x * z)
    if moments is None:
        return n / root
    nx, nz, xx, zz, xz = moments
    wide = 3 / 8 * (xx / x**2 + zz / z**2) + xz / (4 * x * z)
    return (n * (1 + wide) - (nx / x + nz / z) / 2) / root


def expected_cosine_of_matrices(
    w: Array,
    w_p: Array,
    w_a: Array,
    *,
    x: Array,
    x_prime: Array,
    mean: Array,
    order: str = "exact",
    nodes: int = NODES,
) -> jax.Array:
    """Return E cos(u, z) of any linear network.

    The factors of the module docstring with blocks in place of numbers: for (u, z) of mean μ and
    covariance C, and T = diag(2 t₁ I, 2 t₂ I), the factor is det(I + C T)^(-1/2)
    exp(-μᵀ T μ' / 2), the weighted mean is μ' = (I + C T)^(-1) μ, and the weighted covariance
    (I + C T)^(-1) C.

    Args:
        w: W, (D, N).
        w_p: W_p, (D, D).
        w_a: W_a, (D, N).
        x: covariance of mean views, (N, N): `theory`'s X less the mean's part.
        x_prime: X', covariance of a view around its mean view, (N, N).
        mean: of all views, (N,).
        order: "exact", "next" or "leading".
        nodes: number of nodes of either integral.

    Returns:
        ().
    """
    _check_order(order)
    size, both = len(w), jnp.concatenate([w_p @ w, w_a])
    total, shared = both @ (x + x_prime) @ both.T, both @ x @ both.T
    cov, mu = total.at[:size, size:].set(shared[:size, size:]), both @ mean
    cov = cov.at[size:, :size].set(shared[size:, :size])
    u, z, v = cov[:size, :size], cov[size:, size:], cov[:size, size:]
    a, b = mu[:size], mu[size:]
    if order != "exact":
        return _expansion(
            jnp.trace(v) + a @ b,
            jnp.trace(u) + a @ a,
            jnp.trace(z) + b @ b,
            (
                2 * (jnp.sum(u * v) + a @ v @ a + b @ u @ a),
                2 * (jnp.sum(z * v) + b @ v @ b + a @ z @ b),
                2 * (jnp.sum(u * u) + 2 * a @ u @ a),
                2 * (jnp.sum(z * z) + 2 * b @ z @ b),
                2 * (jnp.sum(v * v) + 2 * a @ v @ b),
            )
            if order == "next"
            else None,
        )
    sizes = jnp.sqrt(jnp.stack([jnp.trace(u) + a @ a, jnp.trace(z) + b @ b]))
    scale = jnp.repeat(1 / sizes, size, total_repeat_length=2 * size)
    cov, mu = cov * scale[:, None] * scale[None, :], mu * scale
    t, weight = _nodes(nodes)
    one, two = (jnp.broadcast_to(x, (nodes, nodes)) for x in (t[:, None], t[None, :]))
    diagonal = jnp.repeat(jnp.stack([2 * one, 2 * two], -1), size, -1, total_repeat_length=2 * size)
    matrix = jnp.eye(2 * size)[None, None] + cov[None, None] * diagonal[:, :, None, :]
    right = jnp.concatenate([cov, mu[:, None]], axis=1)
    right = jnp.broadcast_to(right, (nodes, nodes, *right.shape))
    found, log_det = _solve(matrix, right)
    moved = found[..., -1]
    exponent = -(log_det + jnp.sum(mu[None, None] * diagonal * moved, axis=-1)) / 2
    cosine = jnp.trace(found[..., :size, size:-1], axis1=-2, axis2=-1)
    cosine = cosine + jnp.sum(moved[..., :size] * moved[..., size:], axis=-1)
    return jnp.sum(weight[:, None] * weight[None, :] * jnp.exp(exponent) * cosine) / np.pi


def _solve(matrix: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return matrix^(-1) right and log det of matrices (..., K, K) by Gauss-Jordan elimination.

    It needs no pivoting: I + C T has the pivots of I + T^½ C T^½, which is positive definite. XLA's
    own solver calls LAPACK once a matrix, and on busy CPUs such calls have been seen to deadlock.
    """
    size = matrix.shape[-1]

    def eliminate(both: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        row, column = both[..., k, :], both[..., :, k]
        pivot = column[..., k]
        column = column - jax.nn.one_hot(k, size, dtype=both.dtype)[None, None]
        return both - column[..., :, None] * (row / pivot[..., None])[..., None, :], pivot

    both, pivots = jax.lax.scan(
        eliminate, jnp.concatenate([matrix, right], axis=-1), jnp.arange(size)
    )
    return both[..., size:], jnp.sum(jnp.log(pivots), axis=0)


def _check_order(order: str) -> None:
    if order not in ORDERS:
        raise UserError(f"order: got {order!r}, {nearest(order, ORDERS)}")


# --- Flows ----------------------------------------------------------------------------------------


def mode_rates(
    p: Array,
    m: Array,
    n: Array,
    *,
    c: Array,
    variance: Array,
    mean: Array,
    alpha_p: Number,
    eta_p: Number,
    eta_s: Number,
    beta: Number | None = None,
    order: str = "exact",
    nodes: int = NODES,
) -> tuple[Array, Array, Array]:
    """Return the flow of aligned modes.

        dp = α_p ∂E cos/∂p - η_p p      dm = ∂E cos/∂m - η_s m  (n held)      dn = β (m - n)

    Args:
        p, m, n: singular values of W_p, W and W_a, (D,).
        c, variance, mean: of the data (module docstring), (D,).
        alpha_p: learning rate of W_p divided by that of W; 0 holds W_p up to its decay.
        eta_p: decay of W_p.
        eta_s: decay of W.
        beta: rate of the target's average. Without it n moves as m does.
        order: "exact", "next" or "leading".
        nodes: number of nodes of either integral.

    Returns:
        dp, dm and dn, (D,) each.
    """
    data = {"c": c, "variance": variance, "mean": mean, "order": order, "nodes": nodes}
    by_p, by_m = jax.grad(expected_cosine, (0, 1))(p, m, n, **data)
    dm = by_m - eta_s * m
    return alpha_p * by_p - eta_p * p, dm, dm if beta is None else beta * (m - n)


def direct_rates(
    m: Array,
    n: Array,
    *,
    c: Array,
    variance: Array,
    mean: Array,
    power: Number,
    eps: Number,
    eta_s: Number,
    beta: Number | None = None,
    norm: str = "max",
    centred: bool = False,
    isotropic: bool = False,
    order: str = "exact",
    nodes: int = NODES,
) -> tuple[Array, Array]:
    """Return the flow of aligned modes whose predictor is written down from F, see `direct_values`.

    Args:
        m, n: singular values of W and W_a, (D,).
        c, variance, mean: of the data (module docstring), (D,).
        power, eps, norm: of the predictor, as `direct_values` takes them.
        eta_s: decay of W.
        beta: rate of the target's average. Without it n moves as m does.
        centred: whether the predictor is that of F less its mean's part, m² variance.
        isotropic: whether the loss is `losses.isotropic`, IsoLoss. The gradient at u = p m x
            reaches m without the factor p: all modes have the rate dm / p.
        order: "exact", "next" or "leading".
        nodes: number of nodes of either integral.

    Returns:
        dm and dn, (D,) each.
    """
    f = m**2 * (variance if centred else variance + mean**2)
    p = direct_values(f, power=power, eps=eps, norm=norm)
    data = {"c": c, "variance": variance, "mean": mean, "order": order, "nodes": nodes}
    if isotropic:  # u has the size a = p m
        by_m = jax.grad(lambda a: expected_cosine(jnp.ones_like(a), a, n, **data))(p * m)
    else:
        by_m = jax.grad(expected_cosine, 1)(p, m, n, **data)
    dm = by_m - eta_s * m
    return dm, dm if beta is None else beta * (m - n)


def direct_values(f: Array, *, power: Number = 0.5, eps: Number = 0.0, norm: str = "max") -> Array:
    """Return the eigenvalues p = (f / ‖f‖)^power + eps of a predictor in closed form, (D,).

    Args:
        f: eigenvalues of F, of noisy views, (D,).
        power: 1/2: DirectPred (Tian et al. 2021). 1: DirectCopy (Wang et al. 2021, arXiv
            2110.04947). Any other: the latter's DirectSet.
        eps: what is added.
        norm: "max", "frobenius" or "trace", the norm of F that it is divided by.

    Returns:
        The eigenvalues of W_p, in the order of f.
    """
    if norm not in NORMS:
        raise UserError(f"norm: got {norm!r}, {nearest(norm, NORMS)}")
    size = {
        "max": jnp.max(f),
        "frobenius": jnp.sqrt(jnp.sum(f**2)),
        "trace": jnp.sum(f),
    }[norm]
    return (f / size) ** power + eps


def matrix_rates(
    w: Array,
    w_p: Array,
    w_a: Array,
    *,
    x: Array,
    x_prime: Array,
    mean: Array,
    alpha_p: Number,
    eta_p: Number,
    eta_s: Number,
    beta: Number | None = None,
    symmetric: bool = False,
    order: str = "exact",
    nodes: int = NODES,
) -> tuple[Array, Array, Array]:
    """Return the flow of the whole matrices of any linear network.

    Args:
        w: W, (D, N).
        w_p: W_p, (D, D).
        w_a: W_a, (D, N).
        x, x_prime, mean: of the data, as `expected_cosine_of_matrices` takes them.
        alpha_p: learning rate of W_p divided by that of W.
        eta_p: decay of W_p.
        eta_s: decay of W.
        beta: rate of the target's average. Without it W_a moves as W does.
        symmetric: project dW_p, as a step does that symmetrises W_p after the update.
        order: "exact", "next" or "leading".
        nodes: number of nodes of either integral.

    Returns:
        dW (D, N), dW_p (D, D) and dW_a (D, N).
    """
    data = {"x": x, "x_prime": x_prime, "mean": mean, "order": order, "nodes": nodes}
    by_w, by_p = jax.grad(expected_cosine_of_matrices, (0, 1))(w, w_p, w_a, **data)
    by_p = (by_p + by_p.T) / 2 if symmetric else by_p
    dw = by_w - eta_s * w
    return dw, alpha_p * by_p - eta_p * w_p, dw if beta is None else beta * (w - w_a)


# --- Integration ----------------------------------------------------------------------------------


class Curves(NamedTuple):
    """Solution of the flow of D modes."""

    time: np.ndarray  # (T,)
    p: np.ndarray  # (..., T, D) eigenvalues of W_p
    m: np.ndarray  # (..., T, D) singular values of W
    n: np.ndarray  # (..., T, D) singular values of W_a

    @property
    def s(self) -> np.ndarray:
        """Return the eigenvalues of W Wᵀ, (..., T, D)."""
        return self.m**2


def simulate(
    *,
    p: Number,
    s: Number,
    c: Number,
    times: np.ndarray | Sequence[float],
    alpha_p: Number,
    eta_p: Number = 0.0,
    eta_s: Number = 0.0,
    beta: Number | None = None,
    variance: Number = 1.0,
    mean: Number = 0.0,
    order: str = "exact",
    nodes: int = NODES,
) -> Curves:
    """Integrate the flow of aligned modes, with the target at W at the start.

    Args:
        p: eigenvalues of W_p at the first of the times, (..., D).
        s: eigenvalues of W Wᵀ there, (..., D).
        c: correlation of the two views in each mode, (..., D).
        times: ascending, (T,).
        alpha_p: learning rate of W_p divided by that of W, (...); 0 holds W_p up to its decay.
        eta_p: decay of W_p, (...).
        eta_s: decay of W, (...).
        beta: rate of the target's average, (...); None for no average.
        variance: of one view in each mode, (..., D).
        mean: of the views in each mode, (..., D).
        order: "exact", "next" or "leading".
        nodes: number of nodes of either integral.

    Returns:
        The curves at the times.

    Raises:
        UserError: a parameter is outside its domain, there is no solution up to the last time, or
            diffrax is not installed.
    """
    start, data = _modes({"p": p, "s": s}, {"c": c, "variance": variance, "mean": mean})
    numbers = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s, "beta": beta}
    _check(**start, **data, **numbers)
    m = np.sqrt(start["s"])
    flags = (("order", order), ("nodes", nodes))
    found = integration.solve(
        mode_rates, (start["p"], m, m), 1, times, numbers, vectors=data, flags=flags
    )
    return Curves(np.asarray(times, np.float64), *found)


def simulate_direct(
    *,
    s: Number,
    c: Number,
    times: np.ndarray | Sequence[float],
    power: Number = 0.5,
    eps: Number = 0.0,
    norm: str = "max",
    eta_s: Number = 0.0,
    beta: Number | None = None,
    variance: Number = 1.0,
    mean: Number = 0.0,
    centred: bool = False,
    isotropic: bool = False,
    order: str = "exact",
    nodes: int = NODES,
) -> Curves:
    """Integrate the flow of aligned modes under a predictor in closed form, computed at each time.

    Args:
        s: eigenvalues of W Wᵀ at the first of the times, (..., D).
        c: correlation of the two views in each mode, (..., D).
        times: ascending, (T,).
        power, eps, norm: of the predictor, as `direct_values` takes them.
        eta_s: decay of W, (...).
        beta: rate of the target's average, (...); None for no average.
        variance: of one view in each mode, (..., D).
        mean: of the views in each mode, (..., D).
        centred, isotropic: as `direct_rates` takes them.
        order: "exact", "next" or "leading".
        nodes: number of nodes of either integral.

    Returns:
        The curves at the times.

    Raises:
        UserError: as `simulate`.
    """
    start, data = _modes({"s": s}, {"c": c, "variance": variance, "mean": mean})
    numbers = {"power": power, "eps": eps, "eta_s": eta_s, "beta": beta}
    _check(**start, **data, **numbers)
    m = np.sqrt(start["s"])
    flags = (("norm", norm), ("order", order), ("nodes", nodes))
    flags += (("centred", centred), ("isotropic", isotropic))
    m, n = integration.solve(direct_rates, (m, m), 1, times, numbers, vectors=data, flags=flags)
    of_view = data["variance"] if centred else data["variance"] + data["mean"] ** 2
    f = m**2 * of_view[..., None, :]
    size = {"max": f.max(-1), "frobenius": np.linalg.norm(f, axis=-1), "trace": f.sum(-1)}[norm]
    power, eps = (np.asarray(x, np.float64)[..., None, None] for x in (power, eps))
    p = (f / size[..., None]) ** power + eps
    return Curves(np.asarray(times, np.float64), p, m, n)


def simulate_matrices(
    w: np.ndarray,
    w_p: np.ndarray,
    w_a: np.ndarray | None = None,
    *,
    times: np.ndarray | Sequence[float],
    x: np.ndarray,
    x_prime: np.ndarray,
    mean: np.ndarray | float = 0.0,
    alpha_p: Number,
    eta_p: Number,
    eta_s: Number,
    beta: Number | None = None,
    symmetric: bool = False,
    order: str = "exact",
    nodes: int = 32,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integrate `matrix_rates`. Leading axes broadcast, those of the numbers too.

    Args:
        w: W at the first of the times, (..., D, N).
        w_p: W_p there, (..., D, D).
        w_a: W_a there, (..., D, N); None starts it as `w`. Without `beta` it stays equal to W.
        times: ascending, (T,).
        x, x_prime: of the data, as `expected_cosine_of_matrices` takes them, (..., N, N).
        mean: of all views, (..., N).
        alpha_p: learning rate of W_p divided by that of W.
        eta_p: decay of W_p.
        eta_s: decay of W.
        beta: rate of the target's average.
        symmetric: whether the flow symmetrises W_p.
        order: "exact", "next" or "leading".
        nodes: number of nodes of either integral; 32 are exact to 1e-6.

    Returns:
        W (..., T, D, N), W_p (..., T, D, D) and W_a (..., T, D, N).

    Raises:
        UserError: as for `simulate`, or a `w_a` without a `beta`.
    """
    numbers = {"alpha_p": alpha_p, "eta_p": eta_p, "eta_s": eta_s, "beta": beta}
    _check(**numbers)
    if beta is None and w_a is not None:
        raise UserError("beta: got None beside a target w_a, takes the rate of its average")
    return integration.solve(
        matrix_rates,
        (w, w_p, w if w_a is None else w_a),
        2,
        times,
        numbers,
        vectors={"mean": np.broadcast_to(mean, (*np.shape(mean)[:-1], np.shape(w)[-1]))},
        matrices={"x": x, "x_prime": x_prime},
        flags=(("symmetric", symmetric), ("order", order), ("nodes", nodes)),
    )


# name: (the values that it takes, their test)
DOMAIN = {
    **dict.fromkeys(
        ("s", "variance", "alpha_p", "eta_p", "eta_s", "eps"),
        ("a number from 0", lambda x: x >= 0),
    ),
    **dict.fromkeys(("beta", "power"), ("a number above 0", lambda x: x > 0)),
    "c": ("a number from 0 to 1", lambda x: (x >= 0) & (x <= 1)),
}


def _check(**values: Number | None) -> None:
    integration.check(DOMAIN, **values)


def _modes(
    start: dict[str, Number], data: dict[str, Number]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return all arrays in float64 with the same last axis, that of the modes."""
    arrays = {name: np.asarray(x, np.float64) for name, x in (start | data).items()}
    size = np.broadcast_shapes(*(x.shape[-1:] for x in arrays.values())) or (1,)
    arrays = {name: np.broadcast_to(x, (*x.shape[:-1], *size)) for name, x in arrays.items()}
    return {name: arrays[name] for name in start}, {name: arrays[name] for name in data}


# --- Decay ----------------------------------------------------------------------------------------


def time_without_decay(t: Number, eta_s: Number) -> np.ndarray:
    """Return T = (e^(2 η_s t) - 1) / (2 η_s), when the flow without decay is where this one is.

    Without an average, W at time t is e^(-η_s t) times the W of the flow without decay at T, and
    W_p e^(-η_p t) times its W_p. That flow's α_p is `alpha_without_decay`: the same under equal
    decays, which are thus a change of time and decide nothing about which modes live.

    Args:
        t: time, (...).
        eta_s: decay of W, (...).

    Returns:
        T, (...).
    """
    t, eta_s = np.asarray(t, np.float64), np.asarray(eta_s, np.float64)
    still = eta_s == 0
    return np.where(still, t, np.expm1(2 * eta_s * t) / np.where(still, 1, 2 * eta_s))


def alpha_without_decay(t: Number, *, alpha_p: Number, eta_p: Number, eta_s: Number) -> np.ndarray:
    """Return α_p e^(2 (η_p - η_s) t), the α_p of the flow without decay at the time of t.

    Decay of the predictor beyond that of W acts as a predictor that learns ever quicker.

    Args:
        t: time, (...).
        alpha_p: learning rate of W_p divided by that of W.
        eta_p: decay of W_p.
        eta_s: decay of W.

    Returns:
        The rate, (...).
    """
    return np.asarray(alpha_p) * np.exp(2 * (np.asarray(eta_p) - eta_s) * np.asarray(t))


# --- Ends -----------------------------------------------------------------------------------------


class Fate(NamedTuple):
    """Where the flow of the leading order ends, see `fate`."""

    alive: np.ndarray  # (..., D) whether s ends above 0
    p: np.ndarray  # (..., D) at the end
    s: np.ndarray  # (..., D) at the end, eigenvalues of W Wᵀ
    q: np.ndarray  # (...) p / c of every living mode


def fate(p: Number, s: Number, c: Number, alpha_p: Number) -> Fate:
    """Return where aligned modes end to leading order, without decay or an average: water filling.

    π_j = p_j² - α_p s_j and P = Σ p_j² stay as they are. A mode rests where p_j = q c_j, or where
    s_j = 0 and p_j² = π_j. So q solves

        Σ max(q² c_j², π_j) = P

    with just π_j of a mode that has p_j < 0 and π_j > 0: its s falls until p_j = -sqrt(π_j). Modes
    with q² c_j² <= π_j die, the others end with s_j = (q² c_j² - π_j) / α_p. The variances of the
    modes do not enter. Equal decays scale the end down and change no mode's fate. E cos must be
    above 0 from the start on.

    Args:
        p: eigenvalues of W_p at the start, (..., D).
        s: eigenvalues of W Wᵀ at the start, (..., D).
        c: correlation of the two views in each mode, (..., D).
        alpha_p: learning rate of W_p divided by that of W, (...), above 0.

    Returns:
        The end.

    Raises:
        UserError: a parameter is outside its domain.
    """
    _check(p=p, s=s, c=c, alpha_p=alpha_p)
    p, s, c = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (p, s, c)))
    alpha = np.asarray(alpha_p, np.float64)[..., None]
    if not np.all(alpha > 0):
        raise UserError(f"alpha_p: got {np.min(alpha)}, takes a number above 0")
    kept = p**2 - alpha * s
    p, c = np.broadcast_to(p, kept.shape), np.broadcast_to(c, kept.shape)
    lost = (s == 0) | ((p < 0) & (kept > 0))
    # Raise q² from 0: mode by mode comes up, at the q² where c² q² reaches what it keeps.
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.where(kept > 0, kept / c**2, 0.0)
    order = np.argsort(np.where(lost, np.inf, level), axis=-1)
    level, dry, wet = (
        np.take_along_axis(x, order, -1) for x in (np.where(lost, np.inf, level), kept, c**2)
    )
    total = np.sum(p**2, -1, keepdims=True)
    rest = np.sum(dry, -1, keepdims=True) - np.cumsum(dry, -1)  # of the modes not yet up
    with np.errstate(divide="ignore", invalid="ignore"):
        filled = (total - rest) / np.cumsum(wet, -1)  # q² were just the modes so far up
    up = np.maximum(1, np.sum((filled > level) & np.isfinite(level), -1, keepdims=True))
    q2 = np.take_along_axis(filled, up - 1, -1)
    alive = ~lost & (q2 * c**2 > kept)
    q = np.sqrt(np.maximum(q2, 0))
    end = np.where(alive, q * c, np.sign(p) * np.sqrt(np.maximum(kept, 0)))
    return Fate(alive, end, np.where(alive, (q2 * c**2 - kept) / alpha, 0.0), q[..., 0])


def level(p: Array, f: Array, c: Array) -> np.ndarray:
    """Return q = Σ p² f / Σ p f c to leading order, at which a mode rests where p = q c.

    Args:
        p: eigenvalues of W_p, (..., D).
        f: eigenvalues of F, of noisy views, (..., D).
        c: correlation of the two views in each mode, (..., D).

    Returns:
        q, (...).
    """
    p, f, c = (np.asarray(x, np.float64) for x in (p, f, c))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sum(p**2 * f, -1) / np.sum(p * f * c, -1)


def revival_level(
    p: Number, s: Number, c: Number, variance: Number = 1.0, mean: Number = 0.0
) -> np.ndarray:
    """Return the q below which an absent mode grows, exactly: it does iff 0 < p_j < q c_j.

    The gradient of cos(u, z) by u is z / (|u||z|) - cos u / |u|². In a mode of vanishing m = n it
    leaves dm = p m A (c E[1 / (|u||z|)] - p E[cos / |u|²]), expectations over the other modes, and
    q is the ratio of the two. To leading order q is `level`. Modes in one direction alone have no
    finite q: there any p > 0 grows.

    Args:
        p: eigenvalues of W_p of the modes that are there, (D,), two at least or a mean.
        s: eigenvalues of W Wᵀ, (D,). The target is at W.
        c: correlation of the two views in each mode, (D,).
        variance: of one view in each mode, (D,).
        mean: of the views in each mode, (D,).

    Returns:
        q, ().
    """
    start, data = _modes({"p": p, "s": s}, {"c": c, "variance": variance, "mean": mean})
    _check(**start, **data)
    p, s, mean = start["p"], start["s"], data["mean"]
    m, a, cov = np.sqrt(s), data["variance"], p * s * data["c"] * data["variance"]
    t, weight = _nodes(2 * NODES, WIDE)
    with jax.enable_x64(True):
        factor, cosine = _integrand(p**2 * s * a, s * a, cov, p * m * mean, m * mean, t)
    factor, cosine = np.asarray(factor), np.asarray(cosine)
    both = weight[:, None] * weight[None, :] * factor
    # |u|^-3 = 2 π^(-1/2) ∫ t^(1/2) exp(-t |u|²) dt; u and z are scaled to size 1 in the integrand.
    sizes = np.sqrt(np.sum(p**2 * s * (a + mean**2)) / np.sum(s * (a + mean**2)))
    return np.asarray(sizes * np.sum(both) / (2 * np.sum(both * t[:, None] * cosine)))


def direct_spectrum(
    c: Number, *, power: Number = 0.5, eps: Number = 0.0, norm: str = "max"
) -> np.ndarray:
    """Return the spectrum f / ‖f‖ of F at which a predictor in closed form ends.

    Living modes rest where p_j = q c_j, and p_j = (f_j / ‖f‖)^power + eps is written down. So

        f_j / ‖f‖ = max(q c_j - eps, 0)^(1/power)

    with the q at which this has norm 1. For "max" that is (1 + eps) / max c: a mode dies where
    c_j / max c <= eps / (1 + eps). It depends on neither start, decay, learning rate nor variances.
    F is of noisy views, uncentred: the mean's direction is a mode with c = 1.

    Args:
        c: correlation of the two views in each mode, (..., D).
        power, eps, norm: of the predictor, as `direct_values` takes them.

    Returns:
        f / ‖f‖, (..., D). By the "max" norm the largest is 1.

    Raises:
        UserError: a parameter is outside its domain, or the norm is unknown.
    """
    _check(c=c, power=power, eps=eps)
    if norm not in NORMS:
        raise UserError(f"norm: got {norm!r}, {nearest(norm, NORMS)}")
    c, power, eps = (np.asarray(x, np.float64) for x in (c, power, eps))
    power, eps = power[..., None], eps[..., None]
    top = np.max(c, -1, keepdims=True)

    def spectrum(q: np.ndarray) -> np.ndarray:
        return np.maximum(q * c - eps, 0) ** (1 / power)

    low, high = eps / top, (1 + eps) / top  # where all modes are dead; where the largest is 1
    for _ in range(0 if norm == "max" else 80):
        middle = (low + high) / 2
        f = spectrum(middle)
        size = np.sum(f**2 if norm == "frobenius" else f, -1, keepdims=True)
        low, high = np.where(size < 1, middle, low), np.where(size < 1, high, middle)
    return spectrum(high)


def eps_of_modes(c: Array, alive: int, *, power: float = 0.5, norm: str = "max") -> float:
    """Return an eps under which just so many modes live by `direct_spectrum`.

    A mode dies where q c_j <= eps. At the edge x between living and dead c, q = eps / x, and the
    norm of f_j = (eps (c_j / x - 1))^(1/power) over the modes above x is 1:

        eps = ‖max(c_j / x - 1, 0)^(1/power)‖^(-power)        "max": x / (max c - x)

    x is the middle between the c of the last mode that lives and of the first that dies.

    Args:
        c: correlation of the two views in each mode, (D,).
        alive: how many are to live, from 1 to D.
        power: of the predictor, as `direct_values` takes it.
        norm: of the predictor. What is above 1 under "max" is less under the others.

    Returns:
        eps; 0 where all modes are to live.

    Raises:
        UserError: a parameter is outside its domain, or two modes that it should part have one c.
    """
    _check(c=c, power=power)
    if norm not in NORMS:
        raise UserError(f"norm: got {norm!r}, {nearest(norm, NORMS)}")
    c = np.sort(np.asarray(c, np.float64))[::-1]
    if not 1 <= alive <= len(c):
        raise UserError(f"alive: got {alive}, takes a whole number from 1 to {len(c)}, the modes")
    if alive == len(c):
        return 0.0
    last, first = c[alive - 1], c[alive]
    if last == first:
        raise UserError(f"alive: got {alive}, but modes {alive} and {alive + 1} both have c {last}")
    edge = (last + first) / 2
    f = (c[:alive] / edge - 1) ** (1 / power)
    size = {"max": f.max(), "frobenius": np.linalg.norm(f), "trace": f.sum()}[norm]
    return float(size**-power)


# --- Finite steps ---------------------------------------------------------------------------------


def resting_norm(
    gradient: Number, *, learning_rate: Number, weight_decay: Number, momentum: Number = 0.0
) -> np.ndarray:
    """Return the norm at which weights that the loss sees no scale of settle under noisy steps.

    The gradient g is orthogonal to the weights and falls as one over their norm. Each step adds
    (rate |g|)² to the squared norm and decay takes 2 rate decay of it away, which with heavy ball
    gives ‖W‖⁴ = rate E|g|² / (2 decay (1 - momentum)), g at norm 1.

    Args:
        gradient: sqrt(E|g|²) at norm 1, (...).
        learning_rate: of the weights.
        weight_decay: coupled.
        momentum: of heavy ball.

    Returns:
        ‖W‖, (...).
    """
    gradient, rest = np.asarray(gradient, np.float64), 1 - np.asarray(momentum, np.float64)
    fourth = learning_rate * gradient**2 / (2 * np.asarray(weight_decay) * rest)
    return np.asarray(fourth**0.25)


def resting_turn(
    *, learning_rate: Number, weight_decay: Number, momentum: Number = 0.0
) -> np.ndarray:
    """Return the angle by which such weights turn in one step at that norm, in radians.

    It is sqrt(2 rate decay / (1 + momentum)), whatever the gradients are. It is what the size of a
    decay means where the loss sees no scale.

    Args:
        learning_rate: of the weights.
        weight_decay: coupled.
        momentum: of heavy ball.

    Returns:
        The angle, (...).
    """
    product = 2 * np.asarray(learning_rate, np.float64) * weight_decay
    return np.sqrt(product / (1 + np.asarray(momentum, np.float64)))


class Equilibrium(NamedTuple):
    """The spectrum that decay and noise leave, see `equilibrium`."""

    s: np.ndarray  # (D,) eigenvalues of W Wᵀ, of sum 1
    p: np.ndarray  # (D,) eigenvalues of W_p, of square sum 1


def equilibrium(
    c: Array, *, decay_ratio: float = 1.0, samples: int = 8192, steps: int = 400
) -> Equilibrium:
    """Return the spectrum at which decay and the noise of batches balance, for small rate x decay.

    Let h = (z/|z| - cos u/|u|) / |u| be the gradient of the cosine by u, and x the view. An example
    moves W by W_pᵀ h xᵀ and W_p by α_p h (W x)ᵀ: as the expected gradient does with E[h xᵀ] in
    place of h xᵀ. So the noise of a batch points where the flow comes back from, and to first order
    nothing of it stays: the weights keep to the states where the flow rests, which hold p for any s
    (q c to leading order). What moves them along is decay and the noise to second order, no more
    random. It is seen in s - p²/α_p, which the gradient changes only by the squares of the steps:

        η_s s_j - η_p p_j²/α_p = rate/(2 batch) (p_j² M_j - α_p L_j)
        M_j = E[h_j² |x|²]      L_j = s_j E[x_j² |h|²]

    The sum over W alone and that over W_p alone vanish as well, for the gradient changes no norm.
    So with Σ s = Σ p² = 1, A = Σ p² M, B = Σ L and γ = sqrt(η_p B / (η_s A))

        s_j = p_j² M_j / A + γ (p_j² - L_j / B)

    Neither rate, decay, batch, α_p, momentum nor start are left, just c and η_p/η_s. M_j and L_j
    fall with s_j in a weak mode, so that none dies: γ p_j² stays. W is square, its rows are as many
    as the inputs, modes have variance 1 and no mean, and all p_j are above 0.

    Args:
        c: correlation of the two views in each mode, (D,), above 0, two modes or more.
        decay_ratio: η_p / η_s, above 0.
        samples: number of examples that expectations are means of.
        steps: number of iterations.

    Returns:
        The spectrum. By sampling, single modes are wrong by up to a tenth.

    Raises:
        UserError: a parameter is outside its domain.
    """
    _check(c=c)
    c = np.asarray(c, np.float64)
    if not (c > 0).all():
        raise UserError(f"c: got {c.min()}, takes a number above 0")
    if not decay_ratio > 0:
        raise UserError(f"decay_ratio: got {decay_ratio}, takes a number above 0")
    noise = np.random.default_rng(0).normal(size=(3, samples, len(c)))
    x, x_2 = (np.sqrt(c) * noise[0] + np.sqrt(1 - c) * noise[i] for i in (1, 2))
    square = x**2
    whole = np.sum(square, 1)
    s, p = np.full(len(c), 1 / len(c)), c / np.linalg.norm(c)
    for _ in range(steps):
        m = np.sqrt(s)
        u, z = p * m * x, m * x_2
        u_size, z_size = np.linalg.norm(u, axis=1), np.linalg.norm(z, axis=1)
        cosines = np.sum(u * z, 1) / (u_size * z_size)
        h = (z / z_size[:, None] - u * (cosines / u_size)[:, None]) / u_size[:, None]
        # W_p goes to its rest for this s: by half of Newton's step to leading order.
        p = p + np.mean(h * x, 0) / m * np.sqrt(np.sum(p**2 * s)) / 2
        p = np.maximum(p, 1e-6) / np.linalg.norm(p)
        by_w = p**2 * (whole @ h**2) / samples
        by_p = s * (np.sum(h**2, 1) @ square) / samples
        a, b = by_w.sum(), by_p.sum()
        goal = by_w / a + np.sqrt(decay_ratio * b / a) * (p**2 - by_p / b)
        s = np.maximum(s + 0.1 * (goal - s), 0.5 * s)
        s = s / s.sum()
    return Equilibrium(s, p)
