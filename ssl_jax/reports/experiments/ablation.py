"""Tables and figure of the experiment ablation."""

from typing import TYPE_CHECKING

from ssl_jax.reports.experiments.parts import numbers_table, panels, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(r: dict) -> str:
    """Return the tables of methods, gaps and deviations."""
    header = [
        "method",
        "learning rate",
        "decay",
        "d of a step",
        "last epoch",
        "best epoch by validation",
    ]
    rows = [
        [name, f"{m['learning_rate']:g}", f"{m['weight_decay']:g}"]
        + [f"{r['share'][name]:.3g}" if name in r["share"] else "-"]
        + [
            percent(m[key], digits=2)
            for key in ("test", "best_validation_epoch", "mean_of_best_10_epochs")
        ]
        for name, m in r["methods"].items()
    ]
    if "none" in r["methods"]:  # older results have no such method
        header.append("ahead of no decay, last epoch")
        for row, m in zip(rows, r["methods"].values(), strict=True):
            row.insert(-1, percent(m["ahead_of_none"], signed=True, digits=2))
    methods = numbers_table([*header, f"mean of the best 10 of {r['epochs']} test epochs"], rows)
    terms = [
        [gap if i == 0 else "", term, percent(value, signed=True, digits=2)]
        for gap, fields in r["gaps"].items()
        for i, (term, value) in enumerate(fields.items())
    ]
    gaps = numbers_table(["gap", "of which", "points of test accuracy, last epoch"], terms)
    steps = [f"after step {step}" for step in r["deviations"]["steps"]]
    exact = [
        [label, *("not finite" if x is None else f"{x:.1e}" for x in values)]
        for label, values in r["deviations"].items()
        if label != "steps"
    ]
    note = "Distance of the trained weights, relative to their norm, the worst of the seeds\n\n"
    return f"Test accuracy, %\n\n{methods}\n{gaps}\n{note}{numbers_table(['pair', *steps], exact)}"


def draw(r: dict) -> "dict[str, Figure]":
    """Return the figure gaps: the terms of the gap between neighbouring methods."""
    figure, axes = panels(1, 1, 7.2, 4.4)
    axis = axes[0, 0]
    labels, places, place = [], [], 0.0
    for gap, terms in r["gaps"].items():
        for term, value in terms.items():
            width = [[100 * (value["interval"] or 0)]] * 2
            colour = (
                "black" if term == "whole" else "tab:blue" if "rounding" in term else "tab:orange"
            )
            axis.errorbar(
                [100 * value["mean"]], [place], xerr=width, fmt="o", ms=4, capsize=2, color=colour
            )
            labels.append(f"{gap}: {term}")
            places.append(place)
            place -= 1
        place -= 0.6
    axis.axvline(0, color="grey", lw=0.8)
    axis.set_yticks(places, labels, fontsize=8)
    axis.set_xlabel("points of test accuracy, 95% interval of paired differences")
    axis.grid(alpha=0.3, axis="x")
    return {"gaps": figure}
