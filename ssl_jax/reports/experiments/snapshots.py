"""Table, conclusion and figure of the experiment snapshots."""

from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports.experiments.parts import (
    curve_of,
    draw_curve,
    panels,
    paragraphs,
    percent,
    points,
)
from ssl_jax.reports.markdown import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(result: dict) -> str:
    """Return the table of ensembles and single networks, and the conclusion."""
    differences = {"snapshot ensemble": ""} | {
        k: percent(v, digits=2) for k, v in result["ensemble_minus"].items()
    }
    rows = [
        [name, percent(v["accuracy"], digits=2), f"{v['nll']['mean']:.3f}", differences[name]]
        for name, v in result["kinds"].items()
    ]
    seeds, config = result["ensemble_of_seeds"], result["config"]
    several = f"ensemble of {config['seeds']} plain runs"
    rows.append([several, f"{100 * seeds['accuracy']:.2f}", f"{seeds['nll']:.3f}", ""])
    head = ["", "test accuracy, %", "negative log-likelihood, nats"]
    head += ["snapshot ensemble minus it, points"]
    intro = (
        f"{config['cycles']} cycles in {config['epochs']} epochs on {result['dataset']}, "
        f"{config['seeds']} seeds; differences are paired by seed, with 95 % intervals."
    )
    return paragraphs(intro, table(head, rows), conclude_snapshots(result))


def conclude_snapshots(result: dict) -> str:
    """Return the conclusion: what the ensemble gains over its last member and a plain run."""
    members = result["members"]["accuracy"]["mean"]
    last, plain = (points(result["ensemble_minus"][k], 2) for k in ("its last member", "plain run"))
    return (
        f"The ensemble against its last member: {last}; against the plain "
        f"run of the same cost: {plain}. Two members name different classes for "
        f"{100 * result['disagreement']['mean']:.1f} % of the test images; the first one alone has "
        f"{100 * members[0]:.1f} %, the last {100 * members[-1]:.1f} %."
    )


def draw(result: dict) -> "dict[str, Figure]":
    """Return the figure snapshots: accuracy over the epochs, and by size of the ensemble."""
    figure, axes = panels(1, 2, 4.8, 3.5)
    left, right = axes[0]
    for name, label in (("plain", "plain run, one cosine"), ("cyclic", "warm restarts")):
        curve = result["curves"][name]
        epochs = np.arange(1, len(curve["mean"]) + 1)
        draw_curve(left, epochs, curve_of(curve, 100), marker=None, label=label)
    left.set(xlabel="epoch", ylabel="test accuracy, %")
    mean = result["curves"]["plain"]["mean"]
    left.set_ylim(100 * np.quantile(mean, 0.05) - 2, 100 * max(mean) + 2)
    cycles = np.arange(1, len(result["members"]["accuracy"]["mean"]) + 1)
    for score, mark, colour, label in (
        (result["members"]["accuracy"], "o", "C1", "snapshot of cycle m alone"),
        (result["last_members"], "s", "C2", "ensemble of the last m"),
    ):
        style = {"marker": mark, "ms": 4, "color": colour, "label": label}
        draw_curve(right, cycles, curve_of(score, 100), **style)
    right.axhline(
        100 * result["kinds"]["plain run"]["accuracy"]["mean"],
        color="C0",
        lw=1.2,
        label="plain run",
    )
    several = f"ensemble of {result['config']['seeds']} plain runs"
    right.axhline(
        100 * result["ensemble_of_seeds"]["accuracy"], color="black", lw=1, ls="--", label=several
    )
    right.set(xlabel="m", xticks=cycles, ylabel="test accuracy, %")
    for axis in (left, right):
        axis.legend(fontsize=8, loc="lower right" if axis is left else "best")
        axis.grid(alpha=0.3)
    return {"snapshots": figure}
