"""A recorded run's modes on the linear theory's phase portrait, and forecast against run."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_jax.dynamics import theory
from ssl_jax.dynamics.theory_fit import ALIVE, Calibration, Forecast
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.dynamics.figures import COLOURS, DPI, Run, draw_nothing, ranks
from ssl_jax.reports.dynamics.theory_fit import Fit, describe_fit
from ssl_jax.reports.figure import label, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIES = "#F3D9C6"
LOWEST = 1e-6  # of the unit of s: the figure's floor


def draw(run: Run, fit: Fit, path: Path) -> Path:
    """Draw the modes' trajectories on the theory's portrait and, at right, their forecast.

    The forecast is drawn against what was measured at the end.

    Args:
        run: the run.
        fit: its fit; without one the measured trajectories are drawn alone.
        path: the file; its folder is created.

    Returns:
        The path.
    """
    panels = 1 if fit.units is None else 2
    lines = textwrap.wrap(describe_fit(run, fit), 165 if panels == 2 else 95)
    size = (10.6 if panels == 2 else 6.4), 4.4 + 0.17 * len(lines)
    figure = plt.figure(figsize=size, layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(4.4, size[1] - 4.4))[:, 0]
    axes = above.subplots(1, panels, squeeze=False, width_ratios=(1.35, 1)[:panels])[0]
    trajectories(axes[0], run, fit)
    if fit.outcome is not None:
        outcomes(axes[1], fit.outcome)
    below.text(0.02, 0.98, "\n".join(lines), va="top", fontsize=8)
    above.suptitle(f"Modes of {label(run.name)} and the linear theory", fontsize=11)
    return save(figure, path, DPI)


def trajectories(axis: "Axes", run: Run, fit: Fit) -> None:
    """Draw (p, s) of every mode over time, coloured by rank.

    Args:
        axis: the panel. A mode starts at an open circle and ends at a full one.
        run: the run.
        fit: its fit.
    """
    x, y, known = plane(run, fit)
    if not len(known):
        draw_nothing(axis)
        return
    x, y = x[known], np.maximum(y[known], LOWEST)
    left, right = span(x, (-0.25, 1.25) if fit.units else (0, 0))
    axis.set(yscale="log", xlim=(left, right), ylim=(max(LOWEST, y.min() / 5), 3 * max(y.max(), 1)))
    if fit.units is not None:
        portrait(axis, fit.units)
    elif run.predictor.closed_form:
        closed_form(axis, run.config["predictor"])
    for j in reversed(range(run.size)):
        colour = ranks()(j / max(run.size - 1, 1))
        axis.plot(x[:, j], y[:, j], color=colour, lw=0.9, alpha=0.75, zorder=3)
        axis.plot(x[0, j], y[0, j], "o", ms=4, mec=colour, mfc="white", mew=0.9, zorder=4)
        axis.plot(x[-1, j], y[-1, j], "o", ms=4, color=colour, zorder=5)
    start = "start of the forecast" if fit.units else "start"
    axis.plot([], [], "o", ms=4, mec="0.3", mfc="white", ls="none", label=start)
    axis.plot([], [], "o", ms=4, color="0.3", ls="none", label="end of the run")
    axis.legend(fontsize=7, loc="lower right").set_zorder(9)
    axis.grid(alpha=0.2)
    colours = plt.cm.ScalarMappable(plt.Normalize(1, run.size), ranks())
    axis.figure.colorbar(colours, ax=axis, pad=0.01, aspect=40).set_label(
        "rank of the mode", fontsize=8
    )
    names = (
        ("p / q", "s / S") if fit.units else ("p, eigenvalue of $W_p$ in F's mode", "s / largest s")
    )
    axis.set(xlabel=names[0], ylabel=names[1])


def plane(run: Run, fit: Fit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x and y (T, D) of the modes, and the indices of the records to draw.

    With a fit they are in the theory's units, from the start of the forecast on. Without one they
    are as measured.
    """
    p, s = run.arrays["mode_predictor"], run.arrays["corr_eigenvalues"]
    if fit.units is not None:
        x, y = p / fit.units.p[:, None], s / fit.units.s[:, None]
    else:
        x, y = (
            p,
            s / np.maximum(np.nanmax(s, axis=1, keepdims=True, initial=0), np.finfo(float).tiny),
        )
    known = np.flatnonzero(np.isfinite(x).all(1) & np.isfinite(y).all(1))
    return x, y, known[known >= (fit.units.start if fit.units else 0)]


def span(x: np.ndarray, least: tuple[float, float]) -> tuple[float, float]:
    """Return limits that hold all of x and `least`, with a margin."""
    low, high = min(least[0], x.min()), max(least[1], x.max())
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def portrait(axis: "Axes", units: Calibration) -> None:
    """Draw parabola, separatrix, basin of collapse and fixed points, in the theory's units."""
    decays, floor = units.decays(), axis.get_ylim()[0]
    line = np.linspace(axis.get_xlim()[0], axis.get_xlim()[1], 400)
    axis.plot(
        line, np.maximum(line**2, floor / 10), color=COLOURS[0], lw=1.6, label="invariant parabola"
    )
    points, border = theory.fixed_points(**decays), theory.separatrix(**decays, points=200)
    if border is not None:
        p, s = border[0], np.maximum(border[1], floor / 10)
        axis.plot(p, s, color=COLOURS[1], lw=1.6, ls="--", label="separatrix")
        axis.fill_between(p, floor / 10, s, color=DIES, label="theory: collapses")
    elif units.eta_s > 0:
        axis.axhspan(floor / 10, axis.get_ylim()[1], color=DIES, label="theory: collapses")
    for point in (point for point in points if np.isfinite([point.p, point.s]).all()):
        look = {
            "mec": "black",
            "mfc": "black" if point.stable else "white",
            "ms": 7,
            "ls": "none",
            "zorder": 6,
        }
        shape = "v" if point.name == "collapsed" else "D"
        axis.plot(point.p, max(point.s, floor), shape, clip_on=False, label=point.name, **look)
    if units.eta_s == 0:
        rests = "line of rest p = q" if units.eta_p == 0 else "p = q, where s grows for ever"
        axis.axvline(1, color="black", lw=1.4, label=rests)


def closed_form(axis: "Axes", predictor: dict) -> None:
    """Draw p as direct_pred computes it from s relative to the largest.

    direct_copy has no such curve: it divides by the norm of F.
    """
    s = np.geomspace(LOWEST, 1, 200)
    if predictor["kind"] == "direct_pred" and predictor["eps_mode"] == "relative":
        look = {"color": COLOURS[1], "lw": 1.6, "ls": "--", "label": "$p = \\sqrt{s/s_1} + ε$"}
        axis.plot(np.sqrt(s) + predictor["eps"], s, **look)


def outcomes(axis: "Axes", outcome: Forecast) -> None:
    """Draw forecast against measured p at the end, for every mode."""
    right = outcome.alive == outcome.lived
    limits = span(np.concatenate([outcome.p, outcome.measured]), (0, 1.2))
    axis.plot(limits, limits, color="0.6", lw=0.8)
    for value in (axis.axhline, axis.axvline):
        value(ALIVE, color="0.6", lw=0.8, ls=":")
    groups = {
        "aligned at the start, fate as predicted": (right & outcome.aligned, "o", COLOURS[0], True),
        "aligned, fate not as predicted": (~right & outcome.aligned, "X", COLOURS[1], True),
        "not aligned, as predicted": (right & ~outcome.aligned, "o", COLOURS[0], False),
        "not aligned, not as predicted": (~right & ~outcome.aligned, "X", COLOURS[1], False),
    }
    for words, (which, shape, colour, full) in groups.items():
        look: dict[str, Any] = {"mec": colour, "mfc": colour if full else "white"}
        count = f"{words}: {which.sum()}"
        axis.plot(
            outcome.p[which], outcome.measured[which], shape, ms=5.5, ls="none", label=count, **look
        )
    axis.set(
        xlabel="theory: p / q at the end",
        ylabel="measured p / q at the end",
        xlim=limits,
        ylim=limits,
    )
    axis.legend(fontsize=7, loc="upper left")
    axis.grid(alpha=0.2)
