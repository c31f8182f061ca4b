"""Tables, findings and figures of the lectures' experiments, from their result.json alone.

`python -m ssl_jax.reports.lectures RESULT.json [--figures FOLDER]` renders a stored result anew.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ssl_jax.reports import pyplot as plt

ENOUGH = 50  # weights in a bin of gradient scales
TRAINED = 0.9  # training accuracy from which a network counts as trained
SEEN = 1e-2  # gradient norm that counts as one that a layer can learn from
SHOWN_RATES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # of the ADADELTA paper's table 1
SHOWN_OPTIMIZERS = ("sgd", "momentum", "adagrad")


def report(result: dict) -> str:
    """The experiment's tables in Markdown, and what was found, in sentences made of its numbers."""
    tables, found = REPORTS[result["experiment"]](result)
    return "\n\n".join([*tables, found]) + "\n"


def draw(result: dict, folder: Path) -> None:
    """The experiment's figures, NAME.png each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in FIGURES[result["experiment"]](result).items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        plt.close(figure)


# --- Parts of tables and figures -----------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(score: dict, i: int | None = None, digits: int = 1) -> str:
    """Mean, in percent, with its interval; the i-th where `score` holds several."""
    mean, interval = at(score, i)
    spread = "" if interval is None else f" ± {100 * interval:.{digits}f}"
    return f"{100 * mean:.{digits}f}{spread}"


def at(score: dict, i: int | None = None) -> tuple[float, float | None]:
    """(mean, interval)"""
    mean, interval = score["mean"], score["interval"]
    return (mean, interval) if i is None else (mean[i], None if interval is None else interval[i])


def band(axis, x, score: dict, factor: float = 100, **style):
    """A line with its interval."""
    mean = factor * np.array(score["mean"], float)
    (line,) = axis.plot(x, mean, **style)
    if score["interval"] is not None:
        width = factor * np.array(score["interval"], float)
        axis.fill_between(x, mean - width, mean + width, color=line.get_color(), alpha=0.15, lw=0)
    return line


def panels(rows: int, columns: int, width: float = 4.4, height: float = 3.4, **options):
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False, **options
    )
    return figure, axes


def floats(values) -> np.ndarray:
    """Numbers, and NaN for what was not finite."""
    return np.array(values, float)


def either(few: str, many: str, count: int) -> str:
    return f"{count} {few if count == 1 else many}"


# --- signal --------------------------------------------------------------------------------------------------------


def report_signal(result: dict) -> tuple[list[str], str]:
    members = result["members"]
    depths, activations, inits = (list(dict.fromkeys(m[k] for m in members)) for k in ("depth", "activation", "init"))
    cells = {(m["depth"], m["activation"], m["init"]): m for m in members}

    def entry(member) -> str:
        accuracy = f"{100 * member['test']['mean']:.1f} ({smallest(member):.1f}, {ratio(member):+.1f})"
        return f"**{accuracy}**" if trained(member) else accuracy

    tables = []
    for depth in depths:
        rows = [[f"{depth}, {a}", *(entry(cells[depth, a, init]) for init in inits)] for a in activations]
        tables.append(table(["layers, activation", *inits], rows))
    intro = (
        f"Test accuracy in % after {result['config']['epochs']} epochs, mean of {result['config']['seeds']} seeds, "
        f"bold where training accuracy reached {TRAINED:.0%}. In brackets, before training and as powers of ten: the "
        "smallest norm of any layer's gradient, and the first layer's over the last hidden one's."
    )
    return [intro, *tables], found_signal(members)


def ratio(member: dict) -> float:
    """log10 of the first layer's gradient norm over the last hidden layer's, before training."""
    first = member["log10_gradient"][0]
    return first[0] - first[-2]


def smallest(member: dict) -> float:
    """log10 of the smallest gradient norm of any layer, before training."""
    return min(member["log10_gradient"][0])


def seen(member: dict) -> bool:
    return smallest(member) >= math.log10(SEEN)


def level(member: dict) -> bool:
    return abs(ratio(member)) <= 1


def trained(member: dict) -> bool:
    return member["train"]["mean"] >= TRAINED


def found_signal(members: list[dict]) -> str:
    sentences = []
    for depth in sorted({m["depth"] for m in members}):
        here = [m for m in members if m["depth"] == depth]
        sentences.append(f"Of {len(here)} networks of {depth} layers {sum(map(trained, here))} trained.")
    for words, holds in (
        (f"a gradient of at least {SEEN:g} in every layer before training", seen),
        ("a smaller one in some layer, but all alike within a factor of 10", lambda m: level(m) and not seen(m)),
        ("a smaller one in some layer, and not alike", lambda m: not level(m) and not seen(m)),
    ):
        chosen = [m for m in members if holds(m)]
        sentences.append(f"With {words}: {sum(map(trained, chosen))} of {len(chosen)}.")
    return " ".join(sentences)


def draw_signal(result: dict) -> dict:
    members = result["members"]
    depths, activations, inits = (list(dict.fromkeys(m[k] for m in members)) for k in ("depth", "activation", "init"))
    cells = {(m["depth"], m["activation"], m["init"]): m for m in members}

    figure, axes = panels(len(depths), len(activations), 2.6, 2.2, sharex="row", sharey=True)
    for row, depth in zip(axes, depths, strict=True):
        for axis, activation in zip(row, activations, strict=True):
            for init in inits:
                norms = floats(cells[depth, activation, init]["log10_gradient"][0])
                axis.plot(np.arange(1, len(norms) + 1), norms, marker="." if depth < 15 else None, lw=1.2, label=init)
            axis.set(ylim=(-12.5, 2.5), xlim=(1, depth + 1))
            axis.set_yticks(range(-12, 3, 4), [rf"$10^{{{k}}}$" for k in range(-12, 3, 4)])
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"{depth} layers", fontsize=9)
        row[len(row) // 2].set_xlabel("layer (last: head)", fontsize=8)
    for axis, activation in zip(axes[0], activations, strict=True):
        axis.set_title(activation, fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(inits), fontsize=8)
    figure.suptitle(f"norm of the gradient by each layer's weights before training, {result['dataset']}", fontsize=10)
    return {"initialisation": figure} | {
        f"training-{d}": training_maps(result, cells, d, activations, inits) for d in depths
    }


def training_maps(result: dict, cells: dict, depth: int, activations: list, inits: list):
    """Layer x epoch, a map for each activation and initialisation."""
    figure, axes = panels(len(activations), len(inits), 2.0, 1.65, sharex=True, sharey=True)
    epochs, scale = result["epochs_watched"], {"norm": plt.Normalize(-8, 1), "cmap": "viridis"}
    for row, activation in zip(axes, activations, strict=True):
        for axis, init in zip(row, inits, strict=True):
            member = cells[depth, activation, init]
            norms = floats(member["log10_gradient"]).T
            axis.imshow(norms, aspect="auto", interpolation="nearest", **scale)
            axis.set_xticks(range(len(epochs)), epochs, fontsize=6)
            axis.set_yticks([0, depth], ["1", "head"], fontsize=6)
            place = {"x": 0.04, "y": 0.9, "transform": axis.transAxes, "fontsize": 7, "va": "top"}
            box = {"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 1}
            axis.text(s=f"{100 * member['test']['mean']:.0f} %", bbox=box, **place)
        row[0].set_ylabel(activation, fontsize=8)
    for axis, init in zip(axes[0], inits, strict=True):
        axis.set_title(init, fontsize=8)
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("layer", fontsize=8)
    figure.colorbar(plt.cm.ScalarMappable(**scale), ax=axes, label=r"$\log_{10}$ of the gradient's norm", shrink=0.6)
    figure.suptitle(f"gradient norm while training, {depth} layers; test accuracy in the corner", fontsize=9)
    return figure


# --- adam_l2 -------------------------------------------------------------------------------------------------------


def report_adam_l2(result: dict) -> tuple[list[str], str]:
    rows = []
    for name, v in result["variants"].items():
        low, high = ends(v)
        rows.append(
            [name, f"{v['best_decay']:g}", percent(v["test_at_best"]), percent(v["test"], 0)]
            + [f"{v['shrinkage'][low]:.3g}", f"{v['shrinkage'][high]:.3g}", without_gradient(v)]
        )
    head = ["optimizer", "best λ", "test accuracy, %", "at the first λ, %"]
    head += ["shrinkage, small gradients", "large gradients", "no gradient"]
    intro = (
        "The best λ is that of the held-out training images. Shrinkage: what the decay takes of a weight in one step, "
        f"in units of learning rate times λ (λ = {result['measured_decay']:g})."
    )
    return [intro, table(head, rows)], found_adam_l2(result)


def ends(variant: dict) -> tuple[int, int]:
    """First and last bin of the gradient scale with enough weights to speak for it."""
    places = [i for i, count in enumerate(variant["weights_in_bin"]) if count >= ENOUGH]
    places = places or [int(np.argmax(variant["weights_in_bin"]))]
    return places[0], places[-1]


def filled(variant: dict) -> list[float]:
    """The shrinkage in the bins that have enough weights, or in the fullest where none has."""
    enough = min(ENOUGH, max(variant["weights_in_bin"]))
    pairs = zip(variant["shrinkage"], variant["weights_in_bin"], strict=True)
    return [share for share, count in pairs if count >= enough]


def without_gradient(variant: dict) -> str:
    share = variant["shrinkage_without_gradient"]
    return "" if share is None or not variant["weights_without_gradient"] else f"{share:.3g}"


def found_adam_l2(result: dict) -> str:
    variants, scales = result["variants"], result["gradient_scale"]
    adam, others = variants["Adam with L2"], [v for name, v in variants.items() if name != "Adam with L2"]
    low, high = ends(adam)
    times = adam["shrinkage"][low] / adam["shrinkage"][high]
    even = max(1e-4, *(abs(share - 1) for v in others for share in filled(v)))  # the digits that are kept
    apart = {name: np.nanmax(floats(v["mean"])) for name, v in result["distance_between_kinds"].items()}
    return (
        f"Under Adam with L2, weights with gradients of about {scales[low]:.1g} shrink {times:.3g} times as fast as "
        f"those with gradients of about {scales[high]:.1g}. In the three others every weight shrinks by learning rate "
        f"times λ, to within {even:.1g} of it. After training, SGD's weights under the two kinds of decay differ by at "
        f"most {apart['SGD']:.1g} of their norm, whatever λ; Adam's by up to {apart['Adam']:.2g}. "
        + compared(variants["Adam with L2"], variants["AdamW"])
    )


def compared(l2: dict, decoupled: dict) -> str:
    (a, da), (b, db) = at(decoupled["test_at_best"]), at(l2["test_at_best"])
    widths = f" (± {100 * (da or 0):.1f} and {100 * (db or 0):.1f})"
    return (
        f"At the λ that held-out images choose, AdamW reaches {100 * a:.1f} % and Adam with L2 {100 * b:.1f} %{widths}."
    )


def draw_adam_l2(result: dict) -> dict:
    figure, axes = panels(1, 2, 5.0, 3.6)
    left, right = axes[0]
    decays = floats(result["weight_decays"])
    least = decays[decays > 0].min()
    x = np.where(decays > 0, decays, least / 10)  # lambda 0 stands one decade below the smallest
    for (name, v), mark in zip(result["variants"].items(), "os^v", strict=True):
        y = np.where(floats(v["weights_in_bin"]) >= ENOUGH, floats(v["shrinkage"]), np.nan)
        # SGD's two lie on AdamW's: hollow marks of different sizes keep all three in sight.
        left.loglog(result["gradient_scale"], y, mark, ls="-", ms={"o": 9, "s": 6}.get(mark, 4), mfc="none", label=name)
        band(right, x, v["test"], marker=mark, ms=4, label=name)
    left.set(xlabel="root mean square of a weight's gradient", ylabel=r"shrinkage a step / ($\eta\lambda$)")
    left.set_title(f"what decay takes of a weight, λ = {result['measured_decay']:g}", fontsize=9)
    left.legend(fontsize=8)
    right.set(xscale="log", xlabel="λ", ylabel="test accuracy, %")
    ticks = [10.0**k for k in range(math.ceil(math.log10(least)), 1 + math.floor(math.log10(x.max())))]
    right.set_xticks([*([least / 10] if decays.min() == 0 else []), *ticks])
    right.set_xticklabels([*(["0"] if decays.min() == 0 else []), *(f"{tick:g}" for tick in ticks)])
    best = max(max(v["test"]["mean"]) for v in result["variants"].values())
    right.set_ylim(100 * best - 12, 100 * best + 1.5)
    right.set_title(f"after training on {result['dataset']}", fontsize=9)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return {"adam_l2": figure}


# --- optimizers ----------------------------------------------------------------------------------------------------


def report_optimizers(result: dict) -> tuple[list[str], str]:
    rates, optimizers = result["rates"], result["optimizers"]
    config = result["config"]
    tables = [
        f"Test error in % after {config['epochs']} epochs of {result['dataset']}, mean of {config['seeds']} seeds with "
        "95 % intervals. Nothing is decayed, so that AdamW is Adam.",
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
    tables += ["Adadelta, in the manner of table 2:", table(["", *(f"ρ = {rho:g}" for rho in result["rho"])], rows)]
    head = ["optimizer", "best rate", "its test error", *(f"{rate:g}" for rate in rates)]
    tables += [
        "All of them, best first; the best rate is that of held-out training images (* at the edge of the range):",
        table(head, [sweep_row(name, row, len(rates)) for name, row in by_error(optimizers)]),
    ]
    return tables, found_optimizers(result)


def by_error(optimizers: dict) -> list[tuple[str, dict]]:
    """The optimizers by test error at the rate that validation chose."""
    return sorted(optimizers.items(), key=lambda item: item[1]["test_at_best"]["mean"])


def sweep_row(name: str, row: dict, rates: int) -> list[str]:
    best = f"{row['best_rate']:g}{'*' if row['at_the_edge'] else ''}"
    return [name, best, percent(row["test_at_best"]), *(f"{100 * row['test']['mean'][i]:.1f}" for i in range(rates))]


def beside_best(result: dict, by: int) -> float | None:
    """Median test error over the optimizers, `by` places in the list of rates after each one's best."""
    places = [(row, result["rates"].index(row["best_rate"]) + by) for row in result["optimizers"].values()]
    errors = [row["test"]["mean"][i] for row, i in places if 0 <= i < len(result["rates"])]
    return float(np.median(errors)) if errors else None


def found_optimizers(result: dict) -> str:
    ranked = by_error(result["optimizers"])
    (best, first), (worst, last) = ranked[0], ranked[-1]
    level = [name for name, row in ranked[1:] if overlap(row["test_at_best"], first["test_at_best"])]
    adadelta = result["adadelta"]["test"]["mean"]
    beside = {by: beside_best(result, by) for by in (-1, 0, 1)}
    medians = " / ".join("none" if error is None else f"{100 * error:.1f}" for error in beside.values())
    return (
        f"Each at its own best rate, {best} has the least test error, {percent(first['test_at_best'])} %, and {worst} "
        f"the largest, {percent(last['test_at_best'])} %; of the others, {len(level)} have intervals that overlap "
        f"{best}'s. One rate below their best, at it and one above, the optimizers' median error is {medians} %. Over "
        f"all its ε and ρ, Adadelta's lies between {100 * min(adadelta):.1f} and {100 * max(adadelta):.1f} %."
    )


def overlap(one: dict, other: dict) -> bool:
    (a, da), (b, db) = at(one), at(other)
    return abs(a - b) <= (da or 0) + (db or 0)


def draw_optimizers(result: dict) -> dict:
    ranked, rates = by_error(result["optimizers"]), result["rates"]
    errors = 100 * np.array([row["test"]["mean"] for _, row in ranked])
    figure, axes = panels(1, 1, 1.8 + 0.62 * len(rates), 1.2 + 0.3 * len(ranked))
    axis = axes[0, 0]
    shown = axis.imshow(np.log10(np.maximum(errors, 0.5)), aspect="auto", cmap="viridis_r")
    for i, (_, row) in enumerate(ranked):
        for j, error in enumerate(errors[i]):
            chosen = rates[j] == row["best_rate"]
            dark = np.log10(max(error, 0.5)) > np.mean(shown.get_clim())
            style = {"color": "white" if dark else "black", "weight": "bold" if chosen else "normal"}
            axis.text(j, i, f"{error:.1f}", ha="center", va="center", fontsize=7, **style)
            if chosen:
                axis.add_patch(plt.Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, ec="crimson", lw=1.6))
    axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], fontsize=8)
    axis.set_yticks(range(len(ranked)), [name for name, _ in ranked], fontsize=8)
    axis.set_xlabel("learning rate", fontsize=8)
    epochs = result["config"]["epochs"]
    axis.set_title(f"test error in %, {result['dataset']}, {epochs} epochs (red: best on held-out images)", fontsize=9)
    return {"optimizers": figure}


# --- random_labels -------------------------------------------------------------------------------------------------


def report_random_labels(result: dict) -> tuple[list[str], str]:
    def word(flag) -> str:
        return "yes" if flag else "no"

    rows = [
        [r["labels"], word(r["augmented"]), word(r["weight_decay"]), percent(r["train"]), percent(r["test"])]
        for r in result["rows"]
    ]
    head = ["labels", "augmentation", "weight decay", "train accuracy, %", "test accuracy, %"]
    config = result["config"]
    intro = (
        f"{config['encoder']['name']} of {result['parameters']:,} parameters on {result['images']} images of "
        f"{result['dataset']}, {config['epochs']} epochs, {config['seeds']} seeds. Train accuracy is on the images "
        "without augmentation and the labels that were trained on."
    )
    return [intro, table(head, rows)], found_random_labels(result)


def found_random_labels(result: dict) -> str:
    chosen = {(r["labels"], r["augmented"], bool(r["weight_decay"])): r for r in result["rows"]}
    true, random, decayed, crops = (
        chosen[key]
        for key in (("true", False, False), ("random", False, False), ("random", False, True), ("random", True, False))
    )
    both = chosen["random", True, True]
    known = [np.argmax(floats(r["train_curve"]) >= 0.99) + 1 for r in (true, random)]
    learnt = all(max(r["train_curve"]) >= 0.99 for r in (true, random))
    pace = f" (99 % after {known[0]} epochs with true labels, {known[1]} with random ones)" if learnt else ""
    return (
        f"On random labels the network reaches a training accuracy of {percent(random['train'])} %{pace}, and on test "
        f"images {percent(random['test'])} %, where the largest class makes {100 * result['largest_class']:.1f} %; on "
        f"true labels {percent(true['train'])} and {percent(true['test'])} %. Weight decay leaves "
        f"{percent(decayed['train'])} % of the random labels learnt, augmentation {percent(crops['train'])} %, both "
        f"{percent(both['train'])} %."
    )


def draw_random_labels(result: dict) -> dict:
    figure, axes = panels(1, 3, 4.0, 3.4)
    for axis, (name, title) in zip(
        axes[0],
        {"train": "train accuracy, %", "test": "test accuracy, %", "loss": "training loss, nats"}.items(),
        strict=True,
    ):
        for row in result["rows"]:
            curve = floats(row[f"{name}_curve"]) * (1 if name == "loss" else 100)
            extras = [word for word, on in (("augmented", row["augmented"]), ("decayed", row["weight_decay"])) if on]
            style = {"color": "C0" if row["labels"] == "true" else "C3", "lw": 1.3}
            style |= {
                "ls": (
                    0,
                    {0: (), 1: (1, 1), 2: (5, 2), 3: (5, 1, 1, 1)}[
                        bool(row["augmented"]) + 2 * bool(row["weight_decay"])
                    ],
                )
            }
            axis.plot(
                np.arange(1, len(curve) + 1), curve, label=", ".join([f"{row['labels']} labels", *extras]), **style
            )
        axis.set(xlabel="epoch")
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    axes[0, 1].axhline(100 * result["largest_class"], color="black", lw=0.8, ls=":")
    axes[0, 2].set(yscale="log", ylim=(1e-4, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return {"random_labels": figure}


# --- snapshots -----------------------------------------------------------------------------------------------------


def report_snapshots(result: dict) -> tuple[list[str], str]:
    differences = {"snapshot ensemble": ""} | {k: percent(v, digits=2) for k, v in result["ensemble_minus"].items()}
    rows = [
        [name, percent(v["accuracy"], digits=2), f"{v['nll']['mean']:.3f}", differences[name]]
        for name, v in result["kinds"].items()
    ]
    seeds, config = result["ensemble_of_seeds"], result["config"]
    rows.append(
        [f"ensemble of {config['seeds']} plain runs", f"{100 * seeds['accuracy']:.2f}", f"{seeds['nll']:.3f}", ""]
    )
    head = ["", "test accuracy, %", "negative log-likelihood, nats", "snapshot ensemble minus it, points"]
    intro = (
        f"{config['cycles']} cycles in {config['epochs']} epochs on {result['dataset']}, {config['seeds']} seeds; "
        "differences are paired by seed, with 95 % intervals."
    )
    return [intro, table(head, rows)], found_snapshots(result)


def found_snapshots(result: dict) -> str:
    def against(name: str) -> str:
        mean, width = at(result["ensemble_minus"][name])
        if width is None:
            return f"{100 * mean:+.2f} points"
        sure = "" if abs(mean) > width else ", an interval that holds zero"
        return f"{100 * mean:+.2f} ± {100 * width:.2f} points{sure}"

    members = result["members"]["accuracy"]["mean"]
    return (
        f"The ensemble against its last member: {against('its last member')}; against the plain run of the same cost: "
        f"{against('plain run')}. Two members name different classes for {100 * result['disagreement']['mean']:.1f} % "
        f"of the test images; the first one alone has {100 * members[0]:.1f} %, the last {100 * members[-1]:.1f} %."
    )


def draw_snapshots(result: dict) -> dict:
    figure, axes = panels(1, 2, 4.8, 3.5)
    left, right = axes[0]
    for name, label in (("plain", "plain run, one cosine"), ("cyclic", "warm restarts")):
        curve = result["curves"][name]
        band(left, np.arange(1, len(curve["mean"]) + 1), curve, label=label, lw=1.2)
    left.set(xlabel="epoch", ylabel="test accuracy, %")
    mean = result["curves"]["plain"]["mean"]
    left.set_ylim(100 * np.quantile(mean, 0.05) - 2, 100 * max(mean) + 2)
    cycles = np.arange(1, len(result["members"]["accuracy"]["mean"]) + 1)
    band(right, cycles, result["members"]["accuracy"], marker="o", ms=4, color="C1", label="snapshot of cycle m alone")
    band(right, cycles, result["last_members"], marker="s", ms=4, color="C2", label="ensemble of the last m")
    right.axhline(100 * result["kinds"]["plain run"]["accuracy"]["mean"], color="C0", lw=1.2, label="plain run")
    several = f"ensemble of {result['config']['seeds']} plain runs"
    right.axhline(100 * result["ensemble_of_seeds"]["accuracy"], color="black", lw=1, ls="--", label=several)
    right.set(xlabel="m", xticks=cycles, ylabel="test accuracy, %")
    for axis in (left, right):
        axis.legend(fontsize=8, loc="lower right" if axis is left else "best")
        axis.grid(alpha=0.3)
    return {"snapshots": figure}


# --- ridge ---------------------------------------------------------------------------------------------------------


def report_ridge(result: dict) -> tuple[list[str], str]:
    steps = result["step"][-1]
    rows = [["closed form", "", "", "0", f"{100 * result['closed_accuracy']:.1f}"]]
    error = result["newton_error"]
    rows.append(["one Newton step", "", "", "too large for it" if error is None else f"{error:.1e}", ""])
    for run in result["runs"]:
        last = run["error"][-1]
        rows.append(
            [f"gradient descent, {run['rate_in_units_of_1_over_L']:.4g} / L", f"{run['factor']:.5f}"]
            + [f"{run['observed_factor']:.5f}", "diverged" if last is None or last > 1 else f"{last:.1e}"]
            + [f"{100 * run['test_accuracy']:.1f}"]
        )
    head = ["", "predicted factor a step", "observed", "relative error", "test accuracy, %"]
    largest, smallest = result["curvature"]
    intro = (
        f"Pixels of {result['dataset']}, standardised; λ = {result['l2']:.3g} by leave-one-out; L = {largest:.4g}, "
        f"condition number {largest / smallest:.3g}; gradient descent after {steps} steps."
    )
    return [intro, table(head, rows)], found_ridge(result)


def found_ridge(result: dict) -> str:
    runs = [run for run in result["runs"] if run["factor"] < 1]
    apart = max((run["gap"] for run in runs), default=0.0)
    best = min(result["runs"], key=lambda run: run["factor"])
    tenth = math.ceil(-1 / math.log10(best["factor"]))
    same = [run for run in runs if abs(run["test_accuracy"] - result["closed_accuracy"]) < 1e-9]
    newton = result["newton_error"]
    step = "" if newton is None else f", which one Newton step reaches to {newton:.0e}"
    return (
        f"The error follows the prediction from the eigenvalues to within {apart:.1g} of itself wherever it "
        f"converges. At the best rate, {best['rate_in_units_of_1_over_L']:.3f} / L, a tenth of the error takes {tenth} "
        f"steps in the end{step}. After {result['step'][-1]} steps {len(same)} of {len(runs)} converging rates "
        "classify the test images as well as the closed form does."
    )


def draw_ridge(result: dict) -> dict:
    figure, axes = panels(1, 2, 5.0, 3.6, width_ratios=(1.6, 1))
    left, right = axes[0]
    step = floats(result["step"])
    for i, run in enumerate(result["runs"]):
        label = f"{run['rate_in_units_of_1_over_L']:.3g} / L, factor {run['factor']:.4f}"
        left.semilogy(step, floats(run["error"]), ".", ms=4, color=f"C{i}", label=label)
        left.semilogy(step, floats(run["predicted"]), lw=0.9, color=f"C{i}")
    if result["newton_error"] is not None:
        left.semilogy([1], [result["newton_error"]], "k*", ms=9, label="one Newton step")
    left.set(xscale="symlog", xlabel="step", ylabel="distance to the closed form / its norm", ylim=(1e-17, 1e3))
    left.set_xlim(0, step[-1])
    left.set_title("dots: gradient descent; lines: predicted from the eigenvalues", fontsize=9)
    left.legend(fontsize=7, loc="lower left")
    values = floats(result["eigenvalues"])
    right.semilogy(np.arange(1, len(values) + 1), np.where(values > 1e-12, values, np.nan), ".-", ms=3)
    right.axhline(result["l2"], color="C3", lw=1, label="λ")
    right.set(xlabel="rank", ylabel="eigenvalue of the covariance")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return {"ridge": figure}


REPORTS: dict[str, Callable[[dict], tuple[list[str], str]]] = {
    "signal": report_signal,
    "adam_l2": report_adam_l2,
    "optimizers": report_optimizers,
    "random_labels": report_random_labels,
    "snapshots": report_snapshots,
    "ridge": report_ridge,
}
FIGURES: dict[str, Callable[[dict], dict]] = {
    "signal": draw_signal,
    "adam_l2": draw_adam_l2,
    "optimizers": draw_optimizers,
    "random_labels": draw_random_labels,
    "snapshots": draw_snapshots,
    "ridge": draw_ridge,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="result.json of one of these experiments")
    parser.add_argument("--figures", type=Path, help="folder to draw the figures into")
    given = parser.parse_args()
    result = json.loads(given.result.read_text())
    print(report(result), end="")
    if given.figures:
        draw(result, given.figures)


if __name__ == "__main__":
    main()
