"""A run's measured modes in the units of the linear theory, and what the theory then says of each. NumPy, float64.

Measured are, for every mode j, s_j of F = E f fᵀ and p_j = v_j . W_p v_j. Let f = W x with E x̄ x̄ᵀ = λ I and view
noise λ σ² I, so that F = λ a W Wᵀ with a = 1 + σ², and k = λ a. Then (Tian et al. 2021, arXiv 2102.06810, Eqs. 12-13)

    dp = α_p h s (1 - p/q) - η_p p        ds = 2 s (k h p (1 - p/q) - η_s)

euclidean: q = τ/a and h = q, constants of the run.
cosine: of a prediction u = W_p f of the target z, the gradient of -cos θ by u is -(ẑ - cos θ û) / |u|. Where norms vary
    little between images this is the Euclidean one with q = Σ s p² / Σ s p and h = cos θ / Σ s p (sums over modes),
    which move with the run. Of the overall scale of W_p and W the cosine sees nothing: it falls by decay alone, and
    what the theory says of absolute sizes is lost.

In units of q for p, S = k q²/α_p for s and 1/(k h q) for time, both are `theory.mode_rates` with α_p = τ = 1, σ² = 0,
and decays η / (k h q). Where q moves with time, p/q and s/S feel each decay less the rate at which q falls (S goes by
q²). That is how a run is laid over the portrait of the theory: three units, none of them fitted to a single mode.
"""

from typing import NamedTuple

import numpy as np

from ssl_jax.dynamics import theory
from ssl_jax.errors import UserError

ALIGNED = 0.95  # cosine above which a mode counts as aligned, as in Höppe et al. 2022
ALIVE = 0.1  # of the unit of p, and of an even share of the sum of s: what lies below both has died
SEEN = 1e-7  # of the largest s: below it there is float32's rounding only
FEWEST = 3  # modes that units are fitted to
WEAK = 1e-6  # a decay so weak in the theory's unit of time counts as none


class UnfitError(ValueError):
    """A run that the theory cannot be laid over; the sentence says why."""


class Calibration(NamedTuple):
    """Units p (T,), s (T,), rate (T,) (1 / time) at each record; `start`, the record that predictions begin at; `eta_p`
    and `eta_s`, the decays that act in these units; `k`, and `fit`, the share of the growth of ln s that it explains.
    """

    start: int
    p: np.ndarray
    s: np.ndarray
    rate: np.ndarray
    eta_p: float
    eta_s: float
    k: float
    fit: float

    def decays(self) -> dict[str, float]:
        """The theory's arguments in these units."""
        return {"alpha_p": 1.0, "eta_p": self.eta_p, "eta_s": self.eta_s}


def alignment_record(alignment: np.ndarray, known: np.ndarray) -> int:
    """The first record by which half as many modes are aligned as ever are: the alignment phase is over.

    alignment (T, D); known (T,), which records to look at.
    """
    count = np.where(known, np.sum(alignment > ALIGNED, axis=1), -1)
    most = max(count.max(initial=0), 0)
    if most < FEWEST:
        raise UnfitError(
            f"at most {most} of {alignment.shape[1]} modes are aligned at once (cosine above {ALIGNED}), "
            f"and the theory is of aligned modes (takes {FEWEST})"
        )
    return int(np.argmax(count >= max(most / 2, FEWEST)))


def flow_time(step: np.ndarray, rate: np.ndarray, per_step: float) -> np.ndarray:
    """Time t of the flow at each record (T,), for steps whose learning rate is `rate` (T,) times the configured one."""
    return per_step * np.concatenate([[0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(step))])


def calibrate(
    time: np.ndarray,
    p: np.ndarray,
    s: np.ndarray,
    alignment: np.ndarray,
    flow: theory.Flow,
    cosine: np.ndarray | None = None,
) -> Calibration:
    """Units from what was measured: time (T,) of the flow, p, s, alignment (T, D); `cosine` (T,) the mean cosθ between
    prediction and target where the loss is that, None for the Euclidean loss.

    euclidean: q by least squares from Δp + ∫ η_p p + α_p s p dt = q ∫ α_p s dt, over the modes aligned at the start.
    Both: k by least squares from Δ ln s / 2 + η_s t = k ∫ h p (1 - p/q) dt over the same modes, start to end.
    Modes with p <= 0 do not enter the sums over modes: BatchNorm in a predictor hides the mean direction, which is one.
    """
    known = np.isfinite(p).all(1) & np.isfinite(s).all(1) & np.isfinite(time)
    if cosine is not None:
        known &= np.isfinite(cosine)
    start = alignment_record(alignment, known)
    window = known & (np.arange(len(time)) >= start)
    if window.sum() < 3:
        raise UnfitError(f"{window.sum()} records after the modes aligned, of which the theory needs 3")
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
        raise UnfitError(f"modes do not grow where the flow says that they do (fitted k = {k:.3g}, takes one above 0)")
    rate = k * h * q
    drift = np.log(q[window][-1] / q[window][0]) / (t[-1] - t[0])
    mean_rate = _integral(t, rate[window]) / (t[-1] - t[0])
    eta_p, eta_s = (max(eta + drift, 0) / mean_rate for eta in (flow.eta_p, flow.eta_s))
    eta_p, eta_s = (eta if eta > WEAK else 0.0 for eta in (eta_p, eta_s))
    if cosine is not None and eta_p == 0:
        eta_s = 0.0  # all modes shrink together, which the cosine does not see
    return Calibration(start, q, k * q**2 / flow.alpha_p, rate, float(eta_p), float(eta_s), float(k), float(fit))


def _cosine_units(p, s, cosine):
    """(q, h) of the cosine loss at each record, (T,)."""
    kept = np.where((p > 0) & (s > 0), p, 0)
    first, second = np.sum(s * kept, axis=1), np.sum(s * kept**2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return second / first, cosine / first


def _predictor_balance(t, p, s, flow):
    x = flow.alpha_p * _integral(t, s)
    return x, p[-1] - p[0] + flow.eta_p * _integral(t, p) + flow.alpha_p * _integral(t, s * p)


def _growth(t, p, s, q, h, flow):
    """(∫ h p (1 - p/q) dt, Δ ln s / 2 + η_s t) of each mode, up to where its s is lost in rounding."""
    seen = np.logical_and.accumulate(s > SEEN * s.max(), axis=0)
    p, s, seen = (array[:, seen[0]] for array in (p, s, seen))
    last = seen.sum(axis=0) - 1
    pull = h[:, None] * p * (1 - p / q[:, None])
    x = np.sum(np.diff(t)[:, None] * seen[1:] * (pull[1:] + pull[:-1]) / 2, axis=0)
    return x, np.log(s[last, np.arange(len(last))] / s[0]) / 2 + flow.eta_s * (t[last] - t[0])


def _integral(t, curves):
    return np.trapezoid(curves, t, axis=0)


def _fit(x, y) -> tuple[float, float]:
    """(slope of y = slope * x by least squares, share of Σ y² that it explains)."""
    slope = np.sum(x * y) / max(np.sum(x * x), np.finfo(float).tiny)
    return slope, 1 - np.sum((y - slope * x) ** 2) / max(np.sum(y * y), np.finfo(float).tiny)


class Forecast(NamedTuple):
    """Of every mode (D,): `p`, in its unit, and `alive` at the run's end by the flow from the calibration's `start`;
    `survives` where it would be left alone for ever, None where that cannot be told; what was `measured` at the end in
    the unit of p, and `lived`.
    """

    p: np.ndarray
    alive: np.ndarray
    survives: np.ndarray | None
    measured: np.ndarray
    lived: np.ndarray
    aligned: np.ndarray

    def agreement(self) -> dict[str, float]:
        """Shares of modes whose predicted fate at the end is the measured one: of those aligned at the start, of all;
        and, where it can be told, the same for their fate for ever.
        """
        right = self.alive == self.lived
        shares = {"aligned": right[self.aligned], "all": right}
        if self.survives is not None:
            ever = self.survives == self.lived
            shares |= {"aligned_for_ever": ever[self.aligned], "all_for_ever": ever}
        return {name: float(np.mean(share)) for name, share in shares.items()}


def forecast(time, p, s, alignment, units: Calibration, scale_free: bool) -> Forecast:
    """What the theory says at the record `units.start` of each mode, beside what became of it.

    A mode is alive where p > 0.1 of the unit and s > 0.1 of an even share of Σ s. `scale_free`: whether the share is of
    the end's own sum (the loss does not see the scale), or of the larger of the start's and the end's.
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
    """(D,): whether the flow ends at the learned point; None where some modes take too long to tell."""
    try:
        return ~theory.collapses(p=p, s=s, **units.decays())
    except UserError:  # large s beside a decay close to the critical one: quick and slow at once
        return None


def alive(p: np.ndarray, s: np.ndarray, level: float) -> np.ndarray:
    """(D,): p above 0.1 of its unit, and s above 0.1 of its mean over the modes (of `level`, where that is larger)."""
    return (p > ALIVE) & (s > ALIVE * max(s.mean(), level))
