"""Table and figure of the experiment cosine_flow."""

from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports.experiments.parts import numbers_table, panels, paragraphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = ("o", "s", "^", "D", "v", "P")


def report(result: dict) -> str:
    """Return a table with a row for every kind of setting, and where the noise lies."""
    steps = result["config"]["steps"]
    head = ["largest error of", *(f"{count} steps" for count in steps)]
    head += ["ratio of the last two", "theory to next order", "to leading order"]
    lines = []
    for kind, part in result["kinds"].items():
        low, middle, high = part["ratio"]
        others = (part.get(order) for order in ("next", "leading"))
        lines.append(
            [
                kind,
                *(f"{error:.4f}" for error in part["largest"]),
                f"{middle:.2f} ({low:.2f} to {high:.2f})",
                *("–" if error is None else f"{error:.3f}" for error in others),
            ]
        )
    settings, batch = result["config"]["settings"], result["config"]["batch_size"]
    dt, bias, noise = result["step"][-1], result["bias"], result["noise"]
    text = (
        "Errors are shares of the largest p and s (W and W_p) at the start, the largest of "
        f"{settings} settings a row in batches of {batch}; ratios are the median of the settings "
        f"and their range. The last two columns are medians at {steps[-1]} steps. With h the "
        "flow's time of a step, the root mean square error of the first kind is "
        f"{bias:.3g} h from the steps and {noise:.3g} sqrt(h / batch) from the noise "
        "of batches"
    )
    if bias > 0:
        even = noise**2 / bias**2
        text += (
            f". They are equal where h times the batch is {even:.3g}: at h = {dt:g} in batches of "
            f"{even / dt:.0f}"
        )
    text += "."
    return paragraphs(numbers_table(head, lines), text)


def draw(result: dict) -> "dict[str, Figure]":
    """Return the figure cosine_flow: errors by step, of all kinds and by size of the batch."""
    figure, axes = panels(1, 2)
    left, right = axes[0]
    dt = np.array(result["step"])
    for (kind, part), colour, mark in zip(result["kinds"].items(), COLOURS, MARKS, strict=False):
        left.plot(dt, part["largest"], color=colour, marker=mark, ms=5, label=kind)
    left.plot(dt, 0.5 * left.get_ylim()[1] * dt / dt.max(), color="0.5", ls=":", label="∝ step")
    left.set(ylabel="largest error, share of the start", title="network beside the exact flow")
    for (batch, rms), colour, mark in zip(result["rms"].items(), COLOURS, MARKS, strict=False):
        right.plot(dt, rms, color=colour, marker=mark, ms=5, label=f"batch of {batch}")
        floor = result["noise"] * np.sqrt(dt / int(batch))
        right.plot(dt, floor, color=colour, lw=0.8, ls=":")
    right.plot(dt, result["bias"] * dt, color="0.3", lw=0.8, ls="--", label="fit, steps alone")
    right.plot([], [], color="0.5", lw=0.8, ls=":", label="fit, noise alone")
    right.set(
        ylabel="root mean square error", title=f"noise of batches ({next(iter(result['kinds']))})"
    )
    for axis in (left, right):
        axis.set(xscale="log", yscale="log", xlabel="time of the flow in one step")
        axis.set_xticks(dt, [f"{x:g}" for x in dt])
        axis.minorticks_off()
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    return {"cosine_flow": figure}
