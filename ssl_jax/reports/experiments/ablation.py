"""Tables and figure of the experiment ablation."""

from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.intervals import Estimate
from ssl_jax.reports.compare.figures import Line, draw_rows
from ssl_jax.reports.experiments.parts import at, numbers_table, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(r: dict) -> str:
    """Return the tables of methods, gaps and deviations."""
    header = ["method", "learning rate", "decay", "d of a step"]
    header += ["last epoch", "best epoch by validation"]
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
    lines = []
    for gap, terms in r["gaps"].items():
        for number, (term, score) in enumerate(terms.items()):
            mean, width = (None if x is None else 100 * x for x in at(score))
            known = Estimate(np.nan if mean is None else mean, width, 0)
            lines.append(Line(f"{gap}: {term}", [], first=not number, ours=known))
    xlabel = "points of test accuracy, paired by seed"
    return {"gaps": draw_rows(lines, xlabel)}
