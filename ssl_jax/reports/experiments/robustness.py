"""Tables and figures of the experiments on weight decay, from what result.json holds of them.

`report(result)` is Markdown; `draw(result, folder)` writes the figures. Accuracies are fractions in a result and per
cent in a table; ± is the half-width of Student's 95% interval over the seeds, and of their differences where two arms
share seeds.
"""

from pathlib import Path

import numpy as np

from ssl_jax.reports.experiments import phase_diagram
from ssl_jax.reports.experiments.ablation import draw_ablation, report_ablation
from ssl_jax.reports.experiments.curves import draw_curves, draw_heat_maps, markdown, numeric, percent, spread
from ssl_jax.reports.experiments.model_scale import draw_model_scale, report_model_scale
from ssl_jax.reports.experiments.strong_penalty import draw_strong_penalty, report_strong_penalty
from ssl_jax.reports.experiments.zero_shot import draw_zero_shot, report_zero_shot

# --- Tables ---------------------------------------------------------------------------------------------------------


def report(result: dict) -> str:
    """The Markdown of any of these experiments."""
    return REPORTS[result["experiment"]](result)


def report_robustness(r: dict) -> str:
    """Test accuracy in every cell, arm by arm; then what the grid says as a whole."""
    parts = []
    header = ["learning rate \\ decay", *(f"{decay:g}" for decay in r["weight_decays"])]
    tables = {name: (arm["test"], ".1f") for name, arm in r["arms"].items()} | {"LPWD - WD": (r["difference"], "+.1f")}
    for name, (values, form) in tables.items():
        rows = [
            [f"{rate:g}", *("not finite" if x is None else f"{100 * x:{form}}" for x in row)]
            for rate, row in zip(r["learning_rates"], values["mean"], strict=True)
        ]
        parts.append(f"{name}, test accuracy after the last epoch, %, mean of {r['seeds']}\n\n{markdown(header, rows)}")
    parts.append(report_opposing(r))
    chosen = [
        [name, f"{arm['chosen']['learning_rate']:g}", f"{arm['chosen']['weight_decay']:g}", percent(arm["chosen"])]
        for name, arm in r["arms"].items()
    ]
    best = markdown(["best cell by held-out images", "learning rate", "decay", "test accuracy, %"], chosen)
    over, best_cells = (percent(r[f"difference_{of}"], signed=True) for of in ("over_grid", "at_own_best"))
    differences = numeric(r["difference"]["mean"])
    counted = f"ahead in {np.sum(differences > 0)} and behind in {np.sum(differences < 0)} of {differences.size} cells"
    words = f"LPWD - WD: {over} points over all cells, {counted}, {best_cells} between the best cells.\n"
    return "\n".join([*parts, best, words])


def report_opposing(r: dict) -> str:
    """How much of WD's penalty opposes it, in every cell and, at its largest, by layer."""
    shares = numeric(r["opposing"]["ratio"])  # (R, D, E, n + 1), the whole network last
    over_training = np.nanmean(shares, axis=2)
    header = ["learning rate \\ decay", *(f"{decay:g}" for decay in r["weight_decays"])]
    rows = [
        [f"{rate:g}", *(f"{1000 * cell[-1]:.2f}" for cell in row)]
        for rate, row in zip(r["learning_rates"], over_training, strict=True)
    ]
    table = markdown(header, rows)
    most = over_training[np.unravel_index(np.nanargmax(over_training[..., -1]), over_training.shape[:2])]
    layers = ", ".join(f"{name} {1000 * x:.2f}" for name, x in zip(r["layers"], most[:-1], strict=True))
    words = f"By layer, where it is largest: {layers}."
    return f"WD, opposing penalty A in thousandths of the whole penalty, mean over training\n\n{table}\n{words}\n"


REPORTS = {
    "robustness": report_robustness,
    "strong_penalty": report_strong_penalty,
    "model_scale": report_model_scale,
    "ablation": report_ablation,
    "zero_shot": report_zero_shot,
    "phase_diagram": phase_diagram.report,
}


# --- Figures --------------------------------------------------------------------------------------------------------


def draw(result: dict, folder: Path) -> None:
    """The figures of any of these experiments."""
    FIGURES[result["experiment"]](result, folder)


def draw_robustness(r: dict, folder: Path) -> None:
    """robustness.png (the paper's figure 4), opposing.png (2a), opposing_grid.png (2b), opposing_layers.png and
    strong_penalty.png (1).
    """
    rates, decays = r["learning_rates"], r["weight_decays"]
    panels = {name: 100 * numeric(arm["test"]["mean"]) for name, arm in r["arms"].items()}
    title = "test accuracy after the last epoch, %; circle: the best"
    difference = {"LPWD - WD": 100 * numeric(r["difference"]["mean"])}
    draw_heat_maps(folder / "robustness.png", panels, rates, decays, title, difference=difference)
    opposing = {name: numeric(values) for name, values in r["opposing"].items()}
    draw_opposing(r, opposing, folder)
    i, j = int(np.argmax(rates)), int(np.argmax(decays))
    curves = {
        label: {name: (numeric(arm[key])[i, j], None) for name, arm in r["arms"].items()}
        for label, key in (("training loss", "loss_curves"), ("test accuracy", "test_curves"))
    }
    title = f"the strongest penalty of the grid: learning rate {rates[i]:g}, decay {decays[j]:g}"
    draw_curves(folder / "strong_penalty.png", curves, "epoch", title)


def draw_opposing(r: dict, opposing: dict[str, np.ndarray], folder: Path) -> None:
    """Opposing penalties of WD; arrays (R, D, E, n + 1), the whole network last."""
    rates, decays, ratio = r["learning_rates"], r["weight_decays"], opposing["ratio"]
    ends = [(i, j) for i in spread(len(rates)) for j in spread(len(decays))]
    whole = {f"rate {rates[i]:g}, decay {decays[j]:g}": (ratio[i, j, :, -1], None) for i, j in ends}
    draw_curves(folder / "opposing.png", {"opposing penalty A of WD": whole}, "epoch", "")
    mean = {name: values[..., -1].mean(axis=2) for name, values in opposing.items()}
    panels = {
        "A": mean["ratio"],
        "A / (1 + A)": mean["ratio"] / (1 + mean["ratio"]),
        "share of weights": mean["fraction"],
    }
    title = "opposing penalties of WD, mean over training, %; circle: the largest"
    panels = {name: 100 * values for name, values in panels.items()}
    draw_heat_maps(folder / "opposing_grid.png", panels, rates, decays, title, form=".2g", shared=False)
    layers = {
        f"rate {rates[i]:g}, decay {decays[j]:g}": {
            name: (ratio[i, j, :, k], None) for k, name in enumerate(r["layers"])
        }
        for i, j in ((int(np.argmax(rates)), int(np.argmax(decays))), (len(rates) // 2, len(decays) // 2))
    }
    draw_curves(folder / "opposing_layers.png", layers, "epoch", "opposing penalty A of WD by layer")


FIGURES = {
    "robustness": draw_robustness,
    "strong_penalty": draw_strong_penalty,
    "model_scale": draw_model_scale,
    "ablation": draw_ablation,
    "zero_shot": draw_zero_shot,
    "phase_diagram": phase_diagram.draw,
}
