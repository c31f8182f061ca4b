"""Report of the linear theory's fit to a recorded run: calibration, forecast of each mode."""

from typing import Any, NamedTuple

import numpy as np

from ssl_jax.dynamics import theory
from ssl_jax.dynamics.theory_fit import (
    ALIGNED,
    ALIVE,
    Calibration,
    Forecast,
    UnfitError,
    calibrate,
    flow_time,
    forecast,
)
from ssl_jax.errors import UserError
from ssl_jax.reports.dynamics.figures import Run
from ssl_jax.reports.markdown import NUMBER, table
from ssl_jax.text import in_markdown

# Optimizers of which the flow is, and whether with momentum.
DESCENT = {"sgd": False, "momentum": True, "nesterov": True}
LOSSES = ("cosine", "euclidean")  # of which it is: `calibrate` says how


class Fit(NamedTuple):
    """The theory's fit to a run."""

    reason: str | None  # why the theory cannot be fitted, a sentence; None where it can
    units: Calibration | None = None
    outcome: Forecast | None = None


def fit_run(run: Run, integrates: bool) -> Fit:
    """Fit the theory to a run and forecast its modes.

    `integrates` says whether diffrax is installed."""
    c, a = run.config, run.arrays
    kind, optimizer = c["predictor"]["kind"], c["optimizer"]
    if run.predictor.closed_form:
        return Fit(f"{kind} writes W_p down from F's eigenvectors: the predictor follows no flow")
    if optimizer["name"] not in DESCENT:
        return Fit(
            "the theory is the flow of gradient descent, and this run's optimizer is "
            f"{optimizer['name']}"
        )
    if c["loss"] not in LOSSES:
        return Fit(
            f"the theory is of the losses {' and '.join(LOSSES)}, and this run's is {c['loss']}"
        )
    if added := [name for name, weight in c["regularisers"].items() if weight]:
        return Fit(
            "the theory's loss is the prediction's alone, and this run adds "
            f"regularisers.{added[0]} to it"
        )
    if optimizer["layerwise"]:
        return Fit(
            "every layer has a decay of its own (optimizer.layerwise), and the theory has one"
        )
    if lost := [
        name
        for name in ("mode_predictor", "corr_eigenvalues", "alignment", "loss")
        if name in run.lost
    ]:
        return Fit(f"dynamics.npz is damaged, without {', '.join(lost)}")
    if not integrates:
        return Fit("diffrax is not installed: pip install -e '.[theory]'")
    scale_free = not run.objective.sees_scale
    try:
        flow, per_step = flow_of(c)
        rate = np.interp(a["step"], *run.rates.T) / optimizer["learning_rate"]
        time = flow_time(a["step"], rate, per_step)
        measured = time, a["mode_predictor"], a["corr_eigenvalues"], a["alignment"]
        units = calibrate(
            *measured, flow, -a["loss"] / (2 * c["loss_scale"]) if scale_free else None
        )
        return Fit(None, units, forecast(*measured, units, scale_free=scale_free))
    except (UnfitError, UserError) as error:
        return Fit(str(error))


def flow_of(config: dict) -> tuple[theory.Flow, float]:
    """Return `theory.mapping` of a run's configuration.

    The run's loss is summed over both directions of the views.
    """
    optimizer, own = config["optimizer"], config["optimizer"]["predictor"]
    return theory.mapping(
        learning_rate=optimizer["learning_rate"],
        predictor_learning_rate=own["learning_rate"],
        weight_decay=optimizer["weight_decay"],
        predictor_weight_decay=own["weight_decay"],
        tau=config["target"]["tau"],
        momentum=optimizer["momentum"] if DESCENT[optimizer["name"]] else 0.0,
        decay="coupled" if optimizer["decay"] == "auto" else optimizer["decay"],
        decay_scale=optimizer["decay_scale"],
        loss_scale=2 * config["loss_scale"],
    )


# --- Words ----------------------------------------------------------------------------------------


def describe_fit(run: Run, fit: Fit) -> str:
    """Return sentences on the run's calibration, and on where theory and run differ."""
    if fit.units is None or fit.outcome is None:
        parts = [
            f"The theory cannot be fitted to this run: {fit.reason}. Drawn is what was measured."
        ]
    else:
        parts = [describe_calibration(run, fit.units, fit.outcome), describe_decays(run, fit.units)]
        if fit.units.fit < 0.5:
            parts.append("The modes follow the flow badly: take the forecast with care.")
    if not run.predictor.linear:
        parts.append(
            "The theory's predictor is one matrix; this one has two layers, of which W_p is the "
            "bare product."
        )
    return " ".join(parts)


def describe_calibration(run: Run, units: Calibration, outcome: Forecast) -> str:
    """Return sentences on the units of p and s, and their source.

    Args:
        run: the run.
        units: its calibration.
        outcome: its forecast.

    Returns:
        The sentences, on one line.
    """
    first, last = units.p[units.start], units.p[np.isfinite(units.p)][-1]
    epoch, some = (
        run.arrays["epoch"][units.start],
        f"the {outcome.aligned.sum()} modes aligned then",
    )
    if run.objective.sees_scale:
        q = f"q = τ/a = {last:.3g}, by least squares from the balance of dp of {some}"
    else:
        q = (
            f"q = Σsp²/Σsp at each record ({first:.3g} → {last:.3g}), where the gradient of the "
            "cosine turns"
        )
    k = (
        f"k = {units.k:.3g}, by least squares from the growth of ln s of {some}, of which it "
        f"explains {units.fit:.0%}"
    )
    return (
        f"Forecast from epoch {epoch:.3g}, by which half as many modes are aligned as ever are. "
        f"Units: {q}; S = k q²/α_p with {k}."
    )


def describe_decays(run: Run, units: Calibration) -> str:
    """Return sentences on the decays, and on what the theory leaves out."""
    flow = flow_of(run.config)[0]
    own = (
        f"α_p = {flow.alpha_p:.3g}, η_p = {flow.eta_p:.2g}, η_s = {flow.eta_s:.2g} from config.json"
    )
    apart = (
        "The theory has one k for all modes (isotropic data), a linear network, a target that "
        "keeps up."
    )
    if not run.objective.sees_scale:
        apart = (
            "The cosine loss does not see the scale of W_p and F, which falls by decay alone: q "
            f"moves, and of each decay only what goes beyond the fall of q acts. {apart}"
        )
    return (
        f"{own}; in the flow's units {units.eta_p:.3g} and {units.eta_s:.3g} (critical: 0.25). "
        f"{apart}"
    )


HEADER = ("mode", "alignment", "theory: p/q", "theory", "for ever", "run: p/q", "run", "agree")


def report(run: Run, fit: Fit) -> str:
    """Return calibration, agreement and a row for each mode, in Markdown."""
    title = f"## {in_markdown(run.name)}\n\n{describe_fit(run, fit)}\n"
    if fit.units is None or fit.outcome is None:
        return title
    o, alignment = fit.outcome, run.arrays["alignment"][fit.units.start]
    fates = [
        np.full(len(o.p), "unknown") if fate is None else np.where(fate, "survives", "dies")
        for fate in (o.alive, o.survives, o.lived)
    ]
    rows = [
        [
            f"{j + 1}",
            f"{alignment[j]:.2f}",
            f"{o.p[j]:.3g}",
            fates[0][j],
            fates[1][j],
            f"{o.measured[j]:.3g}",
            fates[2][j],
        ]
        + ["yes" if o.alive[j] == o.lived[j] else "no"]
        for j in range(len(o.p))
    ]
    return f"{title}\n{describe_agreement(o)}\n\n{table(HEADER, rows, NUMBER, NUMBER)}"


def describe_agreement(o: Forecast) -> str:
    """Return sentences on how often the forecast was right, and on what counts as alive."""
    shares = o.agreement()
    return (
        f"Fate at the end of the run as forecast: {shares['aligned']:.0%} of the {o.aligned.sum()} "
        f"modes aligned at the start, {shares['all']:.0%} of all {len(o.p)}; survivors forecast "
        f"{o.alive.sum()}, measured {o.lived.sum()}. A mode is alive where p > {ALIVE} q and s > "
        f"{ALIVE} of an even share of the sum of s. The forecast is the flow up to the run's end, "
        'mode by mode, by rank; "for ever": where it would end if it were left alone.'
    )


def fit_json(fit: Fit) -> dict[str, Any]:
    """Return the fit as JSON can hold it."""
    if fit.units is None or fit.outcome is None:
        return {"reason": fit.reason}
    u, o = fit.units, fit.outcome
    known = u.p[np.isfinite(u.p)]
    units = {
        "record": u.start,
        "p": [float(u.p[u.start]), float(known[-1])],
        "k": u.k,
        "fit": u.fit,
    }
    modes = {name: np.asarray(value).tolist() for name, value in o._asdict().items()}
    threshold = {"aligned": ALIGNED, "alive": ALIVE}
    return {
        "units": units | {"eta_p": u.eta_p, "eta_s": u.eta_s},
        "agreement": o.agreement(),
        "modes": modes,
    } | {"thresholds": threshold}
