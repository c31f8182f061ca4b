"""Tables, conclusion and figure of the experiment optimizers."""

from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.compare.figures import draw_cells
from ssl_jax.reports.experiments.parts import at, panels, paragraphs, percent
from ssl_jax.reports.markdown import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_RATES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # of the ADADELTA paper's table 1
SHOWN_OPTIMIZERS = ("sgd", "momentum", "adagrad")


def report(result: dict) -> str:
    """Return the tables of test errors and the conclusion."""
    rates, optimizers = result["rates"], result["optimizers"]
    config = result["config"]
    tables = [
        (
            f"Test error in % after {config['epochs']} epochs of {result['dataset']}, mean of "
            f"{config['seeds']} seeds with 95 % intervals. Nothing is decayed, so that AdamW is "
            "Adam."
        ),
    ]
    shown = [name for name in SHOWN_OPTIMIZERS if name in optimizers]
    if shown:
        rows = [
            [f"{rate:g}", *(percent(optimizers[name]["test"], rates.index(rate)) for name in shown)]
            for rate in SHOWN_RATES
            if rate in rates
        ]
        tables += ["In the manner of table 1:", table(["learning rate", *shown], rows)]
    errors = iter(range(len(result["eps"]) * len(result["rho"])))
    rows = [
        [f"ε = {e:g}", *(percent(result["adadelta"]["test"], next(errors)) for _ in result["rho"])]
        for e in result["eps"]
    ]
    tables += [
        "Adadelta, in the manner of table 2:",
        table(["", *(f"ρ = {rho:g}" for rho in result["rho"])], rows),
    ]
    head = ["optimizer", "best rate", "its test error", *(f"{rate:g}" for rate in rates)]
    tables += [
        (
            "All of them, best first; the best rate is that of held-out training images (* at the "
            "edge of the range):"
        ),
        table(head, [sweep_row(name, row, len(rates)) for name, row in by_error(optimizers)]),
    ]
    return paragraphs(*tables, conclude_optimizers(result))


def by_error(optimizers: dict) -> list[tuple[str, dict]]:
    """Return the optimizers ordered by test error at the rate that validation chose."""
    return sorted(optimizers.items(), key=lambda item: item[1]["test_at_best"]["mean"])


def sweep_row(name: str, row: dict, rates: int) -> list[str]:
    """Return a row of the table of all optimizers.

    Args:
        name: of the optimizer.
        row: its entry in result.json.
        rates: number of learning rates.

    Returns:
        Name, best rate, test error at it, and the test errors at all rates.
    """
    best = f"{row['best_rate']:g}{'*' if row['at_the_edge'] else ''}"
    return [
        name,
        best,
        percent(row["test_at_best"]),
        *(f"{100 * row['test']['mean'][i]:.1f}" for i in range(rates)),
    ]


def beside_best(result: dict, by: int) -> float | None:
    """Return the median test error over the optimizers, `by` rates after each one's best rate.

    None where no optimizer has such a rate.
    """
    places = [
        (row, result["rates"].index(row["best_rate"]) + by) for row in result["optimizers"].values()
    ]
    errors = [row["test"]["mean"][i] for row, i in places if 0 <= i < len(result["rates"])]
    return float(np.median(errors)) if errors else None


def conclude_optimizers(result: dict) -> str:
    """Return the conclusion: best and worst optimizer, and how much the rate matters."""
    ranked = by_error(result["optimizers"])
    (best, first), (worst, last) = ranked[0], ranked[-1]
    level = [
        name for name, row in ranked[1:] if overlap(row["test_at_best"], first["test_at_best"])
    ]
    adadelta = result["adadelta"]["test"]["mean"]
    beside = {by: beside_best(result, by) for by in (-1, 0, 1)}
    medians = " / ".join(
        "none" if error is None else f"{100 * error:.1f}" for error in beside.values()
    )
    return (
        f"Each at its own best rate, {best} has the least test error, "
        f"{percent(first['test_at_best'])} %, and {worst} the largest, "
        f"{percent(last['test_at_best'])} %; of the others, {len(level)} have intervals that "
        f"overlap {best}'s. One rate below their best, at it and one above, the optimizers' median "
        f"error is {medians} %. Over all its ε and ρ, Adadelta's lies between "
        f"{100 * min(adadelta):.1f} and {100 * max(adadelta):.1f} %."
    )


def overlap(one: dict, other: dict) -> bool:
    """Return whether the intervals of two scores overlap."""
    (a, da), (b, db) = at(one), at(other)
    return abs(a - b) <= (da or 0) + (db or 0)


def draw(result: dict) -> "dict[str, Figure]":
    """Return the figure optimizers: a map of test errors over optimizers and rates."""
    ranked, rates = by_error(result["optimizers"]), result["rates"]
    errors = 100 * np.array([row["test"]["mean"] for _, row in ranked])
    figure, axes = panels(1, 1, 1.8 + 0.62 * len(rates), 1.2 + 0.3 * len(ranked))
    axis = axes[0, 0]
    scale = plt.matplotlib.colors.LogNorm(0.5, 100, clip=True)
    draw_cells(axis, errors, ".1f", cmap="viridis_r", norm=scale)
    for i, (_, row) in enumerate(ranked):
        box = {"width": 0.92, "height": 0.88, "fill": False, "ec": "crimson", "lw": 1.6}
        axis.add_patch(plt.Rectangle((rates.index(row["best_rate"]) - 0.46, i - 0.44), **box))
    axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], fontsize=8)
    axis.set_yticks(range(len(ranked)), [name for name, _ in ranked], fontsize=8)
    axis.set_xlabel("learning rate", fontsize=8)
    epochs = result["config"]["epochs"]
    axis.set_title(
        f"test error in %, {result['dataset']}, {epochs} epochs (red: best on held-out images)",
        fontsize=9,
    )
    return {"optimizers": figure}
