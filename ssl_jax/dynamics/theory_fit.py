"""Fit of the linear theory to a run's measured modes, and its forecast of them, in float64.

A run records s_j of F = E f fᵀ and p_j = v_j . W_p v_j of every mode j. Let f = W x with
E x̄ x̄ᵀ = λ I and view noise λ σ² I. Then F = λ a W Wᵀ with a = 1 + σ². With k = λ a the flow of
Tian et al. 2021 (arXiv 2102.06810, Eqs. 12-13) is

    dp = α_p h s (1 - p/q) - η_p p        ds = 2 s (k h p (1 - p/q) - η_s)

euclidean: q = τ/a and h = q, constants of the run.
cosine: for a prediction u = W_p f of the target z, the gradient of -cos θ with respect to u is
    -(ẑ - cos θ û) / |u|. Where norms vary little between images, this is the Euclidean gradient
    with q = Σ s p² / Σ s p and h = cos θ / Σ s p (sums over modes), which change during the run.
    The cosine does not depend on the overall scale of W_p and W. The scale falls by decay alone,
    and the theory's absolute sizes are lost.

Measure p in units of q, s in units of S = k q²/α_p, and time in units of 1/(k h q). Both flows then
become `theory.mode_rates` with α_p = τ = 1, σ² = 0 and decays η / (k h q). Where q changes with
time, each decay of p/q and s/S is reduced by the rate at which q falls (S is proportional to q²).
Three units thus place a run on the theory's phase portrait. None is fitted to a single mode.
"""

from typing import NamedTuple

import numpy as np

from ssl_jax.dynamics import theory
from ssl_jax.errors import UserError

ALIGNED = 0.95  # cosine above which a mode counts as aligned, as in Höppe et al. 2022
ALIVE = (
    0.1  # share of the unit of p, and of an even share of the sum of s; a living mode is above both
)
SEEN = 1e-7  # share of the largest s; below it there is only float32's rounding
FEWEST = 3  # the least number of modes that units are fitted to
WEAK = 1e-6  # a weaker decay in the theory's unit of time counts as none


class UnfitError(ValueError):
    """The theory cannot be fitted to a run; the message says why."""


class Calibration(NamedTuple):
    """Units of a run at each record, and the decays in these units."""

    start: int  # the record at which forecasts begin
    p: np.ndarray  # (T,) unit of p
    s: np.ndarray  # (T,) unit of s
    rate: np.ndarray  # (T,) unit of 1 / time
    eta_p: float  # decay of W_p in these units
    eta_s: float  # decay of W in these units
    k: float  # growth factor of the modes, fitted by least squares
    fit: float  # share of the growth of ln s that k explains

    def decays(self) -> dict[str, float]:
        """Return the arguments of `theory` in these units."""
        return {"alpha_p": 1.0, "eta_p": self.eta_p, "eta_s": self.eta_s}


def alignment_record(alignment: np.ndarray, known: np.ndarray) -> int:
    """Return the first record at which half as many modes are aligned as ever are.

    The alignment phase is over there.

    Args:
        alignment: cosine of each mode at each record, (T, D).
        known: which records to look at, (T,) booleans.

    Returns:
        The index of the record.

    Raises:
        UnfitError: fewer than `FEWEST` modes are ever aligned at once.
    """
    count = np.where(known, np.sum(alignment > ALIGNED, axis=1), -1)
    most = max(count.max(initial=0), 0)
    if most < FEWEST:
        raise UnfitError(
            f"at most {most} of {alignment.shape[1]} modes are aligned at once (cosine above "
            f"{ALIGNED}), and the theory is of aligned modes (takes {FEWEST})"
        )
    return int(np.argmax(count >= max(most / 2, FEWEST)))


def flow_time(step: np.ndarray, rate: np.ndarray, per_step: float) -> np.ndarray:
    """Return the flow's time at each record, (T,), by the trapezoidal rule.

    Args:
        step: training step of each record, (T,).
        rate: learning rate of each record divided by the configured one, (T,).
        per_step: time of one step at the configured learning rate.

    Returns:
        The time from the first record on, (T,).
    """
    return per_step * np.concatenate([[0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(step))])


def calibrate(
    time: np.ndarray,
    p: np.ndarray,
    s: np.ndarray,
    alignment: np.ndarray,
    flow: theory.Flow,
    cosine: np.ndarray | None = None,
) -> Calibration:
    """Compute the units of a run from what it measured.

    Euclidean loss: q is the least-squares solution of Δp + ∫ η_p p + α_p s p dt = q ∫ α_p s dt over
    the modes that are aligned at the start.
    Both losses: k is the least-squares solution of Δ ln s / 2 + η_s t = k ∫ h p (1 - p/q) dt over
    the same modes, from start to end.
    Sums over modes leave out modes with p <= 0: BatchNorm in a predictor hides the mean direction,
    which is one of them.

    Args:
        time: the flow's time at each record, (T,).
        p: eigenvalues of W_p, (T, D).
        s: eigenvalues of F, (T, D).
        alignment: cosines, (T, D).
        flow: the flow that the configuration maps to.
        cosine: mean cos θ between prediction and target, (T,), where the loss is the cosine; None
            for the Euclidean loss.

    Returns:
        The units at each record.

    Raises:
        UnfitError: too few modes are aligned, too few records follow, or the modes do not grow.
    """
    known = np.isfinite(p).all(1) & np.isfinite(s).all(1) & np.isfinite(time)
    if cosine is not None:
        known &= np.isfinite(cosine)
    start = alignment_record(alignment, known)
    window = known & (np.arange(len(time)) >= start)
    if window.sum() < 3:
        raise UnfitError(
            f"{window.sum()} records after the modes aligned, of which the theory needs 3"
        )
    modes = alignment[start] > ALIGNED
    t, some_p, some_s = time[window], p[window][:, modes], s[window][:, modes]
    if cosine is None:
        q = np.full(len(time), _fit(*_predictor_balance(t, some_p, some_s, flow))[0])
        h = q
    else:
        q, h = _cosine_units(p, s, cosine)
    x, y = _growth(t, some_p, some_s, q[window], h[window], flow)
    k, fit = _fit(x, y)
    if not (k > 0 and (q[window] > 0).all() and (h[window] > 0).all()):
        raise UnfitError(
            f"modes do not grow where the flow says that they do (fitted k = {k:.3g}, takes one "
            "above 0)"
        )
    rate = k * h * q
    drift = np.log(q[window][-1] / q[window][0]) / (t[-1] - t[0])
    mean_rate = _integral(t, rate[window]) / (t[-1] - t[0])
    eta_p, eta_s = (max(eta + drift, 0) / mean_rate for eta in (flow.eta_p, flow.eta_s))
    eta_p, eta_s = (eta if eta > WEAK else 0.0 for eta in (eta_p, eta_s))
    if cosine is not None and eta_p == 0:
        eta_s = 0.0  # all modes shrink together, and the cosine does not depend on the scale
    return Calibration(
        start, q, k * q**2 / flow.alpha_p, rate, float(eta_p), float(eta_s), float(k), float(fit)
    )


def _cosine_units(
    p: np.ndarray, s: np.ndarray, cosine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return q and h of the cosine loss at each record, (T,) each."""
    kept = np.where((p > 0) & (s > 0), p, 0)
    first, second = np.sum(s * kept, axis=1), np.sum(s * kept**2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return second / first, cosine / first


def _predictor_balance(
    t: np.ndarray, p: np.ndarray, s: np.ndarray, flow: theory.Flow
) -> tuple[np.ndarray, np.ndarray]:
    """Return both sides of the equation that determines q, (D,) each."""
    x = flow.alpha_p * _integral(t, s)
    return x, p[-1] - p[0] + flow.eta_p * _integral(t, p) + flow.alpha_p * _integral(t, s * p)


def _growth(
    t: np.ndarray, p: np.ndarray, s: np.ndarray, q: np.ndarray, h: np.ndarray, flow: theory.Flow
) -> tuple[np.ndarray, np.ndarray]:
    """Return ∫ h p (1 - p/q) dt and Δ ln s / 2 + η_s t of each mode.

    A mode's integral ends where its s is lost in rounding.
    """
    seen = np.logical_and.accumulate(s > SEEN * s.max(), axis=0)
    p, s, seen = (array[:, seen[0]] for array in (p, s, seen))
    last = seen.sum(axis=0) - 1
    pull = h[:, None] * p * (1 - p / q[:, None])
    x = np.sum(np.diff(t)[:, None] * seen[1:] * (pull[1:] + pull[:-1]) / 2, axis=0)
    return x, np.log(s[last, np.arange(len(last))] / s[0]) / 2 + flow.eta_s * (t[last] - t[0])


def _integral(t: np.ndarray, curves: np.ndarray) -> np.ndarray:
    return np.trapezoid(curves, t, axis=0)


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the slope of y = slope * x by least squares, and the share of Σ y² it explains."""
    slope = np.sum(x * y) / max(np.sum(x * x), np.finfo(float).tiny)
    return slope, 1 - np.sum((y - slope * x) ** 2) / max(np.sum(y * y), np.finfo(float).tiny)


class Forecast(NamedTuple):
    """Forecast and measured fate of every mode, arrays (D,)."""

    p: np.ndarray  # forecast at the run's end, in the unit of p
    alive: np.ndarray  # forecast at the run's end, from the calibration's start
    survives: np.ndarray | None  # forecast for infinite time; None where that cannot be decided
    measured: np.ndarray  # p at the run's end, in its unit
    lived: np.ndarray  # whether the mode was alive at the run's end
    aligned: np.ndarray  # whether the mode was aligned at the calibration's start

    def agreement(self) -> dict[str, float]:
        """Return the shares of modes whose forecast fate is the measured one.

        "aligned" is over the modes aligned at the start, "all" over all modes. Names that end in
        "_for_ever" compare the forecast for infinite time, where there is one.
        """
        right = self.alive == self.lived
        shares = {"aligned": right[self.aligned], "all": right}
        if self.survives is not None:
            ever = self.survives == self.lived
            shares |= {"aligned_for_ever": ever[self.aligned], "all_for_ever": ever}
        return {name: float(np.mean(share)) for name, share in shares.items()}


def forecast(
    time: np.ndarray,
    p: np.ndarray,
    s: np.ndarray,
    alignment: np.ndarray,
    units: Calibration,
    scale_free: bool,
) -> Forecast:
    """Forecast each mode from the record `units.start` on, and compare with what was measured.

    A mode is alive where p > 0.1 of its unit and s > 0.1 of an even share of Σ s.

    Args:
        time: the flow's time at each record, (T,).
        p: eigenvalues of W_p, (T, D).
        s: eigenvalues of F, (T, D).
        alignment: cosines, (T, D).
        units: the run's calibration.
        scale_free: whether the even share is of the sum at the end alone, because the loss does not
            depend on the scale. Otherwise the larger sum of start and end counts.

    Returns:
        Forecast and measured fate of every mode.
    """
    known = np.flatnonzero(np.isfinite(p).all(1) & np.isfinite(s).all(1) & np.isfinite(units.rate))
    known = known[known >= units.start]
    i, last = known[0], known[-1]
    start_p, start_s = p[i] / units.p[i], np.maximum(s[i], 0) / units.s[i]
    span = _integral(time[known], units.rate[known])
    curves = theory.simulate(p=start_p, s=start_s, times=np.linspace(0, span, 3), **units.decays())
    end_p, end_s = p[last] / units.p[last], s[last] / units.s[last]
    level = 0.0 if scale_free else start_s.mean()
    return Forecast(
        p=curves.p[:, -1],
        alive=alive(curves.p[:, -1], curves.s[:, -1], level),
        survives=survivors(start_p, start_s, units),
        measured=end_p,
        lived=alive(end_p, end_s, level),
        aligned=alignment[i] > ALIGNED,
    )


def survivors(p: np.ndarray, s: np.ndarray, units: Calibration) -> np.ndarray | None:
    """Return whether the flow takes each mode to the learned point, (D,).

    Args:
        p: starting values in the unit of p, (D,).
        s: starting values in the unit of s, (D,).
        units: the run's calibration.

    Returns:
        Booleans (D,), or None where the integration of some mode takes too many steps.
    """
    try:
        return ~theory.collapses(p=p, s=s, **units.decays())
    except UserError:  # large s beside a decay close to the critical one: quick and slow at once
        return None


def alive(p: np.ndarray, s: np.ndarray, level: float) -> np.ndarray:
    """Return whether each mode is alive, (D,).

    Args:
        p: in its unit, (D,).
        s: in its unit, (D,).
        level: least value that counts as the mean of s over the modes.

    Returns:
        True where p is above 0.1 and s above 0.1 of its mean over the modes, or of `level` where
        that is larger.
    """
    return (p > ALIVE) & (s > ALIVE * max(s.mean(), level))
