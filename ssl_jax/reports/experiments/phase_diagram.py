"""Table and figures of the experiment phase_diagram."""

from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.markdown import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = {"none": "no average of the target", "average": "target averaged"}
NAMES = {
    "twin": "linear network",
    "cosine": "digits, cosine loss",
    "euclidean": "digits, squared distance",
}


def named(measurement: str) -> str:
    """Return a measurement in words: "twin", or a loss on digits."""
    return NAMES.get(measurement, f"digits, {measurement}")


def measured(result: dict) -> list[str]:
    """Return "twin" and the digits' losses, in the order in which they ran."""
    return ["twin", *result["config"]["digits"]["losses"]]


def report(result: dict) -> str:
    """Return a table with a row for every measurement."""
    head = [
        "network",
        "target",
        "cells that agree",
        "mean difference of shares",
        "predicted alive",
        "measured alive",
    ]
    lines = []
    for name in measured(result):
        for target in ROWS:
            part = result[f"{name}-{target}"]
            shares = (f"{100 * np.mean(part[side]):.0f}%" for side in ("predicted", "measured"))
            agree, differ = f"{100 * part['agreement']:.0f}%", f"{part['difference']:.3f}"
            lines.append(
                [named(name), "averaged" if target == "average" else "none", agree, differ, *shares]
            )
    return table(head, lines)


def draw(result: dict) -> "dict[str, Figure]":
    """Return the figures phase_diagram and control.

    phase_diagram has the prediction, the linear network and the digits. control has the digits
    beside the prediction from their own start, under both losses where there are two.
    """
    twin, *losses = measured(result)
    first = [
        ("theory", twin, "predicted"),
        (named(twin), twin, "measured"),
        (named(losses[0]), losses[0], "measured"),
    ]
    own = [("theory, from the digits' start", losses[0], "predicted")]
    own += [(named(loss), loss, "measured") for loss in reversed(losses)]
    return {"phase_diagram": maps(result, first), "control": maps(result, own)}


def maps(result: dict, columns: list[tuple[str, str, str]]) -> "Figure":
    """Return a figure of maps, a row for each kind of target.

    A column is (title, measurement, "predicted" or "measured").
    """
    eta_p, alpha_p = np.array(result["eta_p"]), np.array(result["alpha_p"])
    size = 2.75 * len(columns) + 0.75, 5.6
    options = {"layout": "constrained", "sharex": True, "sharey": True, "dpi": 100}
    figure, axes = plt.subplots(2, len(columns), figsize=size, **options)
    images = []
    for row, (target, name) in zip(axes, ROWS.items(), strict=True):
        for axis, (title, measurement, side) in zip(row, columns, strict=True):
            part = result[f"{measurement}-{target}"]
            share = np.array(part[side], float)
            images.append(
                axis.pcolormesh(
                    eta_p, alpha_p, share, cmap="cividis", vmin=0, vmax=1, shading="nearest"
                )
            )
            axis.contour(eta_p, alpha_p, part["predicted"], levels=[0.5], colors=LINE, linewidths=2)
            axis.set(xscale="log", yscale="log")
            axis.tick_params(labelsize=8)
            for side_axis in (axis.xaxis, axis.yaxis):
                side_axis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
                side_axis.set_minor_locator(plt.NullLocator())
                side_axis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
            if target == "none":
                axis.set_title(title, fontsize=10)
            if side == "measured":
                label = f"{100 * part['agreement']:.0f}% of cells agree"
                axis.text(
                    0.03, 0.97, label, transform=axis.transAxes, va="top", fontsize=8, bbox=BOX
                )
        row[0].set_ylabel(f"{name}\n$α_p$: rate of $W_p$ over rate of W", fontsize=9)
    for axis in axes[1]:
        axis.set_xlabel("$η_p$: decay of $W_p$", fontsize=9)
    bar = figure.colorbar(images[0], ax=axes, shrink=0.6, aspect=30, pad=0.01)
    bar.set_label("share of modes that live (line: half of them, predicted)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


LINE = "#D55E00"
BOX = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
