"""Table, conclusion and figures of the experiment signal."""

import math
from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.experiments.parts import floats, panels, paragraphs
from ssl_jax.reports.markdown import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINED = 0.9  # training accuracy from which a network counts as trained
SEEN = 1e-2  # gradient norm that counts as one that a layer can learn from


def report(result: dict) -> str:
    """Return a table for each depth and the conclusion."""
    members = result["members"]
    depths, activations, inits = (
        list(dict.fromkeys(m[k] for m in members)) for k in ("depth", "activation", "init")
    )
    cells = {(m["depth"], m["activation"], m["init"]): m for m in members}

    def entry(member: dict) -> str:
        accuracy = (
            f"{100 * member['test']['mean']:.1f} ({smallest(member):.1f}, {ratio(member):+.1f})"
        )
        return f"**{accuracy}**" if trained(member) else accuracy

    tables = []
    for depth in depths:
        rows = [
            [f"{depth}, {a}", *(entry(cells[depth, a, init]) for init in inits)]
            for a in activations
        ]
        tables.append(table(["layers, activation", *inits], rows))
    intro = (
        f"Test accuracy in % after {result['config']['epochs']} epochs, mean of "
        f"{result['config']['seeds']} seeds, bold where training accuracy reached {TRAINED:.0%}. "
        "In brackets, before training and as powers of ten: the smallest norm of any layer's "
        "gradient, and the first layer's over the last hidden one's."
    )
    return paragraphs(intro, *tables, conclude_signal(members))


def ratio(member: dict) -> float:
    """Return log10 of the first layer's initial gradient norm over the last hidden layer's."""
    first = member["log10_gradient"][0]
    return first[0] - first[-2]


def smallest(member: dict) -> float:
    """Return log10 of the smallest gradient norm of any layer, before training."""
    return min(member["log10_gradient"][0])


def seen(member: dict) -> bool:
    """Return whether every layer starts with a gradient norm of at least `SEEN`."""
    return smallest(member) >= math.log10(SEEN)


def level(member: dict) -> bool:
    """Return whether first and last hidden layer start within a factor of 10 of each other."""
    return abs(ratio(member)) <= 1


def trained(member: dict) -> bool:
    """Return whether the training accuracy reached `TRAINED`."""
    return member["train"]["mean"] >= TRAINED


def conclude_signal(members: list[dict]) -> str:
    """Return the conclusion: how many networks trained, by their gradients before training."""
    sentences = []
    for depth in sorted({m["depth"] for m in members}):
        here = [m for m in members if m["depth"] == depth]
        sentences.append(
            f"Of {len(here)} networks of {depth} layers {sum(map(trained, here))} trained."
        )
    for words, holds in (
        (f"a gradient of at least {SEEN:g} in every layer before training", seen),
        (
            "a smaller one in some layer, but all alike within a factor of 10",
            lambda m: level(m) and not seen(m),
        ),
        ("a smaller one in some layer, and not alike", lambda m: not level(m) and not seen(m)),
    ):
        chosen = [m for m in members if holds(m)]
        sentences.append(f"With {words}: {sum(map(trained, chosen))} of {len(chosen)}.")
    return " ".join(sentences)


def draw(result: dict) -> "dict[str, Figure]":
    """Return initialisation, and training-D for each depth D: gradient norms by layer."""
    members = result["members"]
    depths, activations, inits = (
        list(dict.fromkeys(m[k] for m in members)) for k in ("depth", "activation", "init")
    )
    cells = {(m["depth"], m["activation"], m["init"]): m for m in members}

    figure, axes = panels(len(depths), len(activations), 1.8, 1.7, sharex="row", sharey=True)
    for row, depth in zip(axes, depths, strict=True):
        for axis, activation in zip(row, activations, strict=True):
            for init in inits:
                norms = floats(cells[depth, activation, init]["log10_gradient"][0])
                axis.plot(
                    np.arange(1, len(norms) + 1),
                    norms,
                    marker="." if depth < 15 else None,
                    lw=1.2,
                    label=init,
                )
            axis.set(ylim=(-12.5, 2.5), xlim=(1, depth + 1))
            axis.set_yticks(range(-12, 3, 4), [rf"$10^{{{k}}}$" for k in range(-12, 3, 4)])
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"{depth} layers", fontsize=9)
        row[len(row) // 2].set_xlabel("layer (last: head)", fontsize=8)
    for axis, activation in zip(axes[0], activations, strict=True):
        axis.set_title(activation, fontsize=9)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(inits),
        fontsize=8,
    )
    figure.suptitle(
        f"norm of the gradient by each layer's weights before training, {result['dataset']}",
        fontsize=10,
    )
    return {"initialisation": figure} | {
        f"training-{d}": training_maps(result, cells, d, activations, inits) for d in depths
    }


def training_maps(
    result: dict,
    cells: dict[tuple[int, str, str], dict],
    depth: int,
    activations: list[str],
    inits: list[str],
) -> "Figure":
    """Return a figure of gradient norms over layer and epoch.

    Args:
        result: of the experiment.
        cells: (depth, activation, initialisation) -> the member of it.
        depth: of the networks to draw.
        activations: the rows.
        inits: initialisations, the columns.

    Returns:
        The figure, a map for each activation and initialisation.
    """
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
    figure.colorbar(
        plt.cm.ScalarMappable(**scale),
        ax=axes,
        label=r"$\log_{10}$ of the gradient's norm",
        shrink=0.6,
    )
    figure.suptitle(
        f"gradient norm while training, {depth} layers; test accuracy in the corner", fontsize=9
    )
    return figure
