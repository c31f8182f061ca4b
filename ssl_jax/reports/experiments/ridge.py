"""Table, conclusion and figure of the experiment ridge."""

import math
from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports.experiments.parts import floats, panels, paragraphs
from ssl_jax.reports.markdown import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(result: dict) -> str:
    """Return the table of solvers and the conclusion."""
    steps = result["step"][-1]
    rows = [["closed form", "", "", "0", f"{100 * result['closed_accuracy']:.1f}"]]
    error = result["newton_error"]
    rows.append(
        ["one Newton step", "", "", "too large for it" if error is None else f"{error:.1e}", ""]
    )
    for run in result["runs"]:
        last = run["error"][-1]
        rows.append(
            [
                f"gradient descent, {run['rate_in_units_of_1_over_L']:.4g} / L",
                f"{run['factor']:.5f}",
            ]
            + [
                f"{run['observed_factor']:.5f}",
                "diverged" if last is None or last > 1 else f"{last:.1e}",
            ]
            + [f"{100 * run['test_accuracy']:.1f}"]
        )
    head = ["", "predicted factor a step", "observed", "relative error", "test accuracy, %"]
    largest, smallest = result["curvature"]
    intro = (
        f"Pixels of {result['dataset']}, standardised; λ = {result['l2']:.3g} by leave-one-out; L "
        f"= {largest:.4g}, condition number {largest / smallest:.3g}; gradient descent after "
        f"{steps} steps."
    )
    return paragraphs(intro, table(head, rows), conclude_ridge(result))


def conclude_ridge(result: dict) -> str:
    """Return the conclusion: how well the eigenvalues predict gradient descent."""
    runs = [run for run in result["runs"] if run["factor"] < 1]
    apart = max((run["gap"] for run in runs), default=0.0)
    best = min(result["runs"], key=lambda run: run["factor"])
    tenth = math.ceil(-1 / math.log10(best["factor"]))
    same = [run for run in runs if abs(run["test_accuracy"] - result["closed_accuracy"]) < 1e-9]
    newton = result["newton_error"]
    step = "" if newton is None else f", which one Newton step reaches to {newton:.0e}"
    return (
        f"The error follows the prediction from the eigenvalues to within {apart:.1g} of itself "
        f"wherever it converges. At the best rate, {best['rate_in_units_of_1_over_L']:.3f} / L, a "
        f"tenth of the error takes {tenth} steps in the end{step}. After {result['step'][-1]} "
        f"steps {len(same)} of {len(runs)} converging rates classify the test images as well as "
        "the closed form does."
    )


def draw(result: dict) -> "dict[str, Figure]":
    """Return the figure ridge: error by step beside its prediction, and the eigenvalues."""
    figure, axes = panels(1, 2, 5.0, 3.6, width_ratios=(1.6, 1))
    left, right = axes[0]
    step = floats(result["step"])
    for i, run in enumerate(result["runs"]):
        label = f"{run['rate_in_units_of_1_over_L']:.3g} / L, factor {run['factor']:.4f}"
        left.semilogy(step, floats(run["error"]), ".", ms=4, color=f"C{i}", label=label)
        left.semilogy(step, floats(run["predicted"]), lw=0.9, color=f"C{i}")
    if result["newton_error"] is not None:
        left.semilogy([1], [result["newton_error"]], "k*", ms=9, label="one Newton step")
    left.set(
        xscale="symlog",
        xlabel="step",
        ylabel="distance to the closed form / its norm",
        ylim=(1e-17, 1e3),
    )
    left.set_xlim(0, step[-1])
    left.set_title("dots: gradient descent; lines: predicted from the eigenvalues", fontsize=9)
    left.legend(fontsize=7, loc="lower left")
    values = floats(result["eigenvalues"])
    right.semilogy(
        np.arange(1, len(values) + 1), np.where(values > 1e-12, values, np.nan), ".-", ms=3
    )
    right.axhline(result["l2"], color="C3", lw=1, label="λ")
    right.set(xlabel="rank", ylabel="eigenvalue of the covariance")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return {"ridge": figure}
