"""Tables and figures of the experiment robustness."""

from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports.experiments.parts import (
    curve_of,
    curves,
    floats,
    heat_maps,
    numbers_table,
    percent,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(r: dict) -> str:
    """Return test accuracy in every cell, arm by arm, then opposing penalties and a summary."""
    parts = []
    tables = {name: (arm["test"], ".1f") for name, arm in r["arms"].items()} | {
        "LPWD - WD": (r["difference"], "+.1f")
    }
    for name, (values, form) in tables.items():
        grid = grid_table(r, 100 * floats(values["mean"]), form)
        parts.append(
            f"{name}, test accuracy after the last epoch, %, mean of {r['seeds']}\n\n{grid}"
        )
    parts.append(report_opposing(r))
    if "pwd_rwd" in r:  # older results have none
        parts.append(report_pair(r))
    chosen = [
        [
            name,
            f"{arm['chosen']['learning_rate']:g}",
            f"{arm['chosen']['weight_decay']:g}",
            percent(arm["chosen"], digits=2),
        ]
        for name, arm in r["arms"].items()
    ]
    best = numbers_table(
        ["best cell by held-out images", "learning rate", "decay", "test accuracy, %"], chosen
    )
    over, best_cells = (
        percent(r[f"difference_{of}"], signed=True, digits=2) for of in ("over_grid", "at_own_best")
    )
    differences = floats(r["difference"]["mean"])
    counted = (
        f"ahead in {np.sum(differences > 0)} and behind in {np.sum(differences < 0)} of "
        f"{differences.size} cells"
    )
    words = (
        f"LPWD - WD: {over} points over all cells, {counted}, {best_cells} between the best "
        "cells.\n"
    )
    return "\n".join([*parts, best, words])


def grid_table(r: dict, values: np.ndarray, form: str) -> str:
    """Return values (R, D) in a table of learning rates by decays, as `form` spells them."""
    header = ["learning rate \\ decay", *(f"{decay:g}" for decay in r["weight_decays"])]
    rows = [
        [f"{rate:g}", *(format(x, form) if np.isfinite(x) else "not finite" for x in row)]
        for rate, row in zip(r["learning_rates"], values, strict=True)
    ]
    return numbers_table(header, rows)


def report_pair(r: dict) -> str:
    """Return PWD - RWD by decay, the paper's figure 3b."""
    pair, places = r["pwd_rwd"], range(len(r["weight_decays"]))
    header = ["PWD - RWD, points \\ decay", *(f"{decay:g}" for decay in r["weight_decays"])]
    rows = [
        [label, *(percent(pair[key], j, signed=True, digits=2) for j in places)]
        for label, key in (("last epoch", "last_epoch"), ("best 10 epochs", "best_10_epochs"))
    ]
    return (
        f"PWD against RWD at learning rate {pair['learning_rate']:g}, {r['seeds']}\n\n"
        f"{numbers_table(header, rows)}"
    )


def draw_pair(r: dict) -> "Figure":
    """Return the paper's figure 3b, with the intervals over the seeds."""
    keys = {"last epoch": "last_epoch", "best 10 epochs": "best_10_epochs"}
    lines = {label: curve_of(r["pwd_rwd"][key], 100) for label, key in keys.items()}
    shown = {"PWD - RWD, points of test accuracy": lines}
    return curves(shown, "weight decay", "", x=r["weight_decays"], log=True)


def report_opposing(r: dict) -> str:
    """Return WD's opposing penalty in every cell and, where it is largest, by layer."""
    shares = floats(r["opposing"]["ratio"])  # (R, D, E, n + 1), the whole network last
    over_training = np.nanmean(shares, axis=2)
    table = grid_table(r, 1000 * over_training[..., -1], ".2f")
    most = over_training[
        np.unravel_index(np.nanargmax(over_training[..., -1]), over_training.shape[:2])
    ]
    layers = ", ".join(
        f"{name} {1000 * x:.2f}" for name, x in zip(r["layers"], most[:-1], strict=True)
    )
    words = f"By layer, where it is largest: {layers}."
    return (
        "WD, opposing penalty A in thousandths of the whole penalty, mean over "
        f"training\n\n{table}\n{words}\n"
    )


def draw(r: dict) -> "dict[str, Figure]":
    """Return the figures, with the paper's number of each in brackets.

    robustness (4), opposing (2a), opposing_grid (2b), opposing_layers, strong_penalty (1) and
    pwd_rwd (3b).
    """
    rates, decays = r["learning_rates"], r["weight_decays"]
    shown_arms = {name: 100 * floats(arm["test"]["mean"]) for name, arm in r["arms"].items()}
    title = "test accuracy after the last epoch, %; circle: the best"
    difference = {"LPWD - WD": 100 * floats(r["difference"]["mean"])}
    figures = {"robustness": heat_maps(shown_arms, rates, decays, title, difference=difference)}
    figures |= draw_opposing(r, {name: floats(values) for name, values in r["opposing"].items()})
    i, j = int(np.argmax(rates)), int(np.argmax(decays))
    shown = {
        label: {name: (scale * floats(arm[key])[i, j], None) for name, arm in r["arms"].items()}
        for label, key, scale in (
            ("training loss", "loss_curves", 1),
            ("test accuracy, %", "test_curves", 100),
        )
    }
    title = f"the strongest penalty of the grid: learning rate {rates[i]:g}, decay {decays[j]:g}"
    figures |= {"strong_penalty": curves(shown, "epoch", title)}
    return figures | ({"pwd_rwd": draw_pair(r)} if "pwd_rwd" in r else {})


def draw_opposing(r: dict, opposing: dict[str, np.ndarray]) -> "dict[str, Figure]":
    """Return figures of WD's opposing penalties (R, D, E, n + 1), the whole network last."""
    rates, decays, ratio = r["learning_rates"], r["weight_decays"], opposing["ratio"]
    ends = [(i, j) for i in spread(len(rates)) for j in spread(len(decays))]
    whole = {f"rate {rates[i]:g}, decay {decays[j]:g}": (ratio[i, j, :, -1], None) for i, j in ends}
    figures = {"opposing": curves({"opposing penalty A of WD": whole}, "epoch", "")}
    mean = {name: values[..., -1].mean(axis=2) for name, values in opposing.items()}
    measures = {
        "A": mean["ratio"],
        "A / (1 + A)": mean["ratio"] / (1 + mean["ratio"]),
        "share of weights": mean["fraction"],
    }
    title = "opposing penalties of WD, mean over training, %; circle: the largest"
    measures = {name: 100 * values for name, values in measures.items()}
    figures["opposing_grid"] = heat_maps(measures, rates, decays, title, form=".2g", shared=False)
    layers = {
        f"rate {rates[i]:g}, decay {decays[j]:g}": {
            name: (ratio[i, j, :, k], None) for k, name in enumerate(r["layers"])
        }
        for i, j in (
            (int(np.argmax(rates)), int(np.argmax(decays))),
            (len(rates) // 2, len(decays) // 2),
        )
    }
    return figures | {
        "opposing_layers": curves(layers, "epoch", "opposing penalty A of WD by layer")
    }
