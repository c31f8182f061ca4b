"""Tables and figures of the experiments on weight decay, from what result.json holds of them.

`report(result)` is Markdown; `draw(result, folder)` writes the figures. Accuracies are fractions in a result and per
cent in a table; ± is the half-width of Student's 95% interval over the seeds, and of their differences where two arms
share seeds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax.reports import phase_diagram
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.markdown import NUMBER, table

Curve = tuple[Any, Any]  # means (N,), half-widths (N,) or None


# --- Numbers --------------------------------------------------------------------------------------------------------


def percent(value: dict, digits: int = 2, signed: bool = False) -> str:
    """ "61.20 ± 0.31" of {"mean", "interval"}."""
    if value["mean"] is None:
        return "not finite"
    text = f"{100 * value['mean']:{'+' if signed else ''}.{digits}f}"
    return text if value["interval"] is None else f"{text} ± {100 * value['interval']:.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    return table(header, rows, rest=NUMBER)


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


def report_strong_penalty(r: dict) -> str:
    rows = [
        [f"{optimizer}, {fields['learning_rate']:g}", name, loss(arm), percent(arm["test"]), ahead(name, arm)]
        for optimizer, fields in r["optimizers"].items()
        for name, arm in fields["arms"].items()
    ]
    header = ["optimizer, learning rate", "arm", "training loss", "test accuracy, %", "ahead of WD"]
    return f"Decay {r['weight_decay']:g}, last epoch\n\n{markdown(header, rows)}"


def loss(arm: dict) -> str:
    mean, interval = arm["loss"]["mean"], arm["loss"]["interval"]
    return "not finite" if mean is None else f"{mean:.3f}" + (f" ± {interval:.3f}" if interval is not None else "")


def ahead(name: str, arm: dict) -> str:
    return "" if name == "WD" else percent(arm["ahead_of_WD"], signed=True)


def report_model_scale(r: dict) -> str:
    rows = [
        [size, f"{fields['parameters']:,}", name, f"{arm['weight_decay']:g}", percent(arm["test"]), ahead(name, arm)]
        for size, fields in r["sizes"].items()
        for name, arm in fields["arms"].items()
    ]
    header = ["network", "parameters", "arm", "decay", "test accuracy, %", "ahead of WD"]
    return f"Learning rate {r['learning_rate']:g}, last epoch\n\n{markdown(header, rows)}"


def report_ablation(r: dict) -> str:
    header = ["method", "learning rate", "decay", "d of a step", "last epoch", "best epoch by validation"]
    rows = [
        [name, f"{m['learning_rate']:g}", f"{m['weight_decay']:g}", f"{r['share'][name]:.3g}"]
        + [percent(m[key]) for key in ("test", "best_validation_epoch", "mean_of_best_10_epochs")]
        for name, m in r["methods"].items()
    ]
    methods = markdown([*header, f"mean of the best 10 of {r['epochs']} test epochs"], rows)
    terms = [
        [gap if i == 0 else "", term, percent(value, signed=True)]
        for gap, fields in r["gaps"].items()
        for i, (term, value) in enumerate(fields.items())
    ]
    gaps = markdown(["gap", "of which", "points of test accuracy, last epoch"], terms)
    steps = [f"after step {step}" for step in r["deviations"]["steps"]]
    exact = [
        [label, *("not finite" if x is None else f"{x:.1e}" for x in values)]
        for label, values in r["deviations"].items()
        if label != "steps"
    ]
    note = "Distance of the trained weights, relative to their norm, the worst of the seeds\n\n"
    return f"Test accuracy, %\n\n{methods}\n{gaps}\n{note}{markdown(['pair', *steps], exact)}"


def report_zero_shot(r: dict) -> str:
    shown = [s for s in r["s"] if s % 10 == 0]
    rows = []
    for name, curve in r["networks"].items():
        means = dict(zip(r["s"], curve["accuracy"]["mean"], strict=True))
        held = curve["holds_until"]
        width = "" if held["interval"] is None else f" ± {held['interval']:.1f}"
        rows.append([name, *(f"{100 * means[s]:.1f}" for s in shown), f"{held['mean']:.1f}{width}"])
    header = ["test accuracy, %, at s =", *map(str, shown), "keeps nine tenths up to s ="]
    return markdown(header, rows)


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


def spread(count: int) -> list[int]:
    """First, middle and last place."""
    return sorted({0, count // 2, count - 1})


def draw_strong_penalty(r: dict, folder: Path) -> None:
    panels = {
        f"{optimizer}, {label}": {name: band(arm[key]) for name, arm in fields["arms"].items()}
        for optimizer, fields in r["optimizers"].items()
        for label, key in (("training loss", "loss_curve"), ("test accuracy", "test_curve"))
    }
    draw_curves(folder / "strong_penalty.png", panels, "epoch", f"strong penalty: decay {r['weight_decay']:g}")


def draw_model_scale(r: dict, folder: Path) -> None:
    sizes, names = list(r["sizes"].values()), list(next(iter(r["sizes"].values()))["arms"])

    def line(name: str, key: str) -> Curve:
        values = [size["arms"][name][key] for size in sizes]
        widths = [v["interval"] for v in values]
        return numeric([v["mean"] for v in values]), None if None in widths else numeric(widths)

    panels = {
        "test accuracy": {name: line(name, "test") for name in names},
        "ahead of WD": {name: line(name, "ahead_of_WD") for name in names if name != "WD"},
    }
    x = [size["parameters"] for size in sizes]
    draw_curves(folder / "model_scale.png", panels, "parameters", "model scale", x=x, log=True)


def draw_ablation(r: dict, folder: Path) -> None:
    """gaps.png: what the gap between neighbouring methods is made of."""
    gaps = {name: terms for name, terms in r["gaps"].items()}
    figure, axis = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    labels, places, place = [], [], 0.0
    for gap, terms in gaps.items():
        for term, value in terms.items():
            width = [[100 * (value["interval"] or 0)]] * 2
            colour = "black" if term == "whole" else "tab:blue" if "rounding" in term else "tab:orange"
            axis.errorbar([100 * value["mean"]], [place], xerr=width, fmt="o", ms=4, capsize=2, color=colour)
            labels.append(f"{gap}: {term}")
            places.append(place)
            place -= 1
        place -= 0.6
    axis.axvline(0, color="grey", lw=0.8)
    axis.set_yticks(places, labels, fontsize=8)
    axis.set_xlabel("points of test accuracy, 95% interval of paired differences")
    axis.grid(alpha=0.3, axis="x")
    save(figure, folder / "gaps.png")


def draw_zero_shot(r: dict, folder: Path) -> None:
    panels = {
        label: {name: band(curve[key]) for name, curve in r["networks"].items()}
        for label, key in (("test accuracy", "accuracy"), ("test cross-entropy", "loss"))
    }
    draw_curves(folder / "zero_shot.png", panels, "s: weights times (1 - s / 100)", "zero-shot decay", x=r["s"])


def numeric(values: Any) -> np.ndarray:
    """Nested lists as an array, with NaN where a number was not finite."""
    return np.array(values, np.float64)


def band(value: dict) -> Curve:
    """The curve of {"mean", "interval"}."""
    return numeric(value["mean"]), None if value["interval"] is None else numeric(value["interval"])


def draw_heat_maps(
    path: Path,
    panels: dict[str, np.ndarray],
    rates: Sequence[float],
    decays: Sequence[float],
    title: str,
    difference: dict[str, np.ndarray] | None = None,
    form: str = ".1f",
    shared: bool = True,
) -> None:
    """(R, D) each, every cell with its number, the largest circled; `difference` beside them, on a scale around zero.

    shared: whether one scale of colours serves all panels but `difference`.
    """
    everything = np.concatenate([values.ravel() for values in panels.values()])
    shown = [(name, v, "viridis", limits(everything if shared else v), True) for name, v in panels.items()]
    for name, values in (difference or {}).items():
        width = max(np.abs(limits(values)))
        shown.append((name, values, "RdBu", (-width, width), False))
    figure, axes = plt.subplots(1, len(shown), figsize=(4.4 * len(shown), 3.4), layout="constrained", squeeze=False)
    for axis, (name, values, colours, (low, high), circled) in zip(axes[0], shown, strict=True):
        label_cells(axis, values, axis.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto"), form)
        axis.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays], fontsize=7)
        axis.set_yticks(range(len(rates)), [f"{rate:.3g}" for rate in rates], fontsize=7)
        axis.set(xlabel="weight decay", ylabel="learning rate")
        axis.set_title(name, fontsize=9)
        if circled and np.isfinite(values).any():
            i, j = np.unravel_index(np.nanargmax(values), values.shape)
            axis.plot(j, i, "o", ms=22, mfc="none", mec="black")
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def limits(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest number, apart from each other."""
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    return float(low), float(max(high, low + 1e-9))


def label_cells(axis, values: np.ndarray, drawn, form: str) -> None:
    """Each cell's number, in black or white, whichever is told from its colour."""
    for (i, j), value in np.ndenumerate(values):
        red, green, blue, _ = drawn.cmap(drawn.norm(value)) if np.isfinite(value) else (1, 1, 1, 1)
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = format(value, form) if np.isfinite(value) else "NaN"
        axis.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")


def draw_curves(
    path: Path,
    panels: dict[str, dict[str, Curve]],
    xlabel: str,
    title: str,
    x: Sequence[float] | None = None,
    log: bool = False,
) -> None:
    """A panel of curves with their bands; x: 1, 2, ... where it is not given."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.4), layout="constrained", squeeze=False)
    for axis, (name, curves) in zip(axes[0], panels.items(), strict=True):
        for label, (mean, width) in curves.items():
            at = np.arange(1, len(mean) + 1) if x is None else np.asarray(x)
            (line,) = axis.plot(at, mean, marker="o" if len(at) < 30 else None, ms=3, label=label)
            if width is not None:
                axis.fill_between(at, mean - width, mean + width, color=line.get_color(), alpha=0.2, lw=0)
        axis.set(xlabel=xlabel, xscale="log" if log else "linear")
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


FIGURES = {
    "robustness": draw_robustness,
    "strong_penalty": draw_strong_penalty,
    "model_scale": draw_model_scale,
    "ablation": draw_ablation,
    "zero_shot": draw_zero_shot,
    "phase_diagram": phase_diagram.draw,
}
