"""Table, conclusion and figure of the experiment semi_supervised."""

from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports.experiments.parts import (
    draw_curve,
    panels,
    paragraphs,
    percent,
    points,
    stacked,
)
from ssl_jax.reports.markdown import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("linear", "fine-tuned", "from scratch")


def report(result: dict) -> str:
    """Return the table of shares and arms, and the conclusion."""
    rows = [
        [
            f"{100 * row['share']:g}",
            str(row["images"]),
            row["arm"],
            f"{row['chosen']:g}{' *' if row['at_the_edge'] else ''}",
            percent(row["validation"]),
            percent(row["test"]),
            "" if row["arm"] == ARMS[-1] else percent(row["ahead"], signed=True),
        ]
        for row in ordered(result)
    ]
    head = ["labels, %", "images", "network", "chosen", "held-out accuracy, %"]
    head += ["test accuracy, %", "ahead of scratch, points"]
    config = result["config"]
    method, name = config["pretraining"]["method"], config["pretraining"]["encoder"]["name"]
    intro = (
        f"{method} pretrains {name} on {result['images']} images of {result['dataset']} without "
        f"labels; {config['seeds']} seeds, {result['test_images']} test images. Chosen by "
        f"{result['validation_images']} held-out images: the learning rate, or the penalty of the "
        "linear classifier of frozen features (* at the edge of what was tried)."
    )
    return paragraphs(intro, table(head, rows), conclude_semi_supervised(result))


def ordered(result: dict) -> list[dict]:
    """Return the rows by share, and within a share in the order of the paper's table."""
    return sorted(result["rows"], key=lambda row: (row["share"], ARMS.index(row["arm"])))


def conclude_semi_supervised(result: dict) -> str:
    """Return the conclusion: what pretraining gains at each share, and which use of it is best."""
    sentences = []
    for share in sorted({row["share"] for row in result["rows"]}):
        ahead = {row["arm"]: row["ahead"] for row in result["rows"] if row["share"] == share}
        words = [f"{arm} {points(ahead[arm])}" for arm in ARMS[:-1]]
        sentences.append(f"{100 * share:g} % of the labels: {', '.join(words)}.")
    return "Ahead of the same network from scratch, with " + " With ".join(sentences)


def draw(result: dict) -> "dict[str, Figure]":
    """Return the figure semi_supervised: test accuracy by the share of labels."""
    figure, axes = panels(1, 1, 5.0, 3.6)
    axis = axes[0, 0]
    for arm in ARMS:
        rows = [row for row in ordered(result) if row["arm"] == arm]
        shares = np.array([100 * row["share"] for row in rows])
        curve = stacked([row["test"] for row in rows], 100)
        draw_curve(axis, shares, curve, marker="o", ms=4, label=arm)
    ticks = sorted({100 * row["share"] for row in result["rows"]})
    axis.set(xscale="log", xlabel="labels, %", ylabel="test accuracy, %")
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_title(f"{result['dataset']}, {result['config']['seeds']} seeds", fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return {"semi_supervised": figure}
