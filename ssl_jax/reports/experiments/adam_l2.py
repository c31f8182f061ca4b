"""Table, conclusion and figure of the experiment adam_l2."""

import math
from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports.experiments.parts import (
    at,
    curve_of,
    draw_curve,
    floats,
    panels,
    paragraphs,
    percent,
)
from ssl_jax.reports.markdown import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENOUGH = 50  # weights in a bin of gradient scales


def report(result: dict) -> str:
    """Return the table of the four optimizers and the conclusion."""
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
        "The best λ is that of the held-out training images. Shrinkage: what the decay takes of a "
        f"weight in one step, in units of learning rate times λ (λ = {result['measured_decay']:g})."
    )
    return paragraphs(intro, table(head, rows), conclude_adam_l2(result))


def ends(variant: dict) -> tuple[int, int]:
    """Return the first and the last bin of the gradient scale with at least `ENOUGH` weights."""
    places = [i for i, count in enumerate(variant["weights_in_bin"]) if count >= ENOUGH]
    places = places or [int(np.argmax(variant["weights_in_bin"]))]
    return places[0], places[-1]


def filled(variant: dict) -> list[float]:
    """Return the shrinkage in the bins with enough weights, or in the fullest if none has."""
    enough = min(ENOUGH, max(variant["weights_in_bin"]))
    pairs = zip(variant["shrinkage"], variant["weights_in_bin"], strict=True)
    return [share for share, count in pairs if count >= enough]


def without_gradient(variant: dict) -> str:
    """Return the shrinkage of weights without a gradient, "" where there are none."""
    share = variant["shrinkage_without_gradient"]
    return "" if share is None or not variant["weights_without_gradient"] else f"{share:.3g}"


def conclude_adam_l2(result: dict) -> str:
    """Return the conclusion: how evenly each optimizer shrinks, and what AdamW gains."""
    variants, scales = result["variants"], result["gradient_scale"]
    adam, others = (
        variants["Adam with L2"],
        [v for name, v in variants.items() if name != "Adam with L2"],
    )
    low, high = ends(adam)
    times = adam["shrinkage"][low] / adam["shrinkage"][high]
    # the digits that are kept
    even = max(1e-4, *(abs(share - 1) for v in others for share in filled(v)))
    apart = {
        name: np.nanmax(floats(v["mean"])) for name, v in result["distance_between_kinds"].items()
    }
    return (
        f"Under Adam with L2, weights with gradients of about {scales[low]:.1g} shrink "
        f"{times:.3g} times as fast as those with gradients of about {scales[high]:.1g}. In "
        f"the three others every weight shrinks by learning rate times λ, to within {even:.1g} "
        "of it. After training, SGD's weights under the two kinds of decay differ by at most "
        f"{apart['SGD']:.1g} of their norm, whatever λ; Adam's by up to {apart['Adam']:.2g}. "
    ) + compared(variants["Adam with L2"], variants["AdamW"])


def compared(l2: dict, decoupled: dict) -> str:
    """Return a sentence with the accuracies of AdamW and of Adam with L2."""
    (a, da), (b, db) = at(decoupled["test_at_best"]), at(l2["test_at_best"])
    widths = f" (± {100 * (da or 0):.1f} and {100 * (db or 0):.1f})"
    return (
        f"At the λ that held-out images choose, AdamW reaches {100 * a:.1f} % and Adam with L2 "
        f"{100 * b:.1f} %{widths}."
    )


def draw(result: dict) -> "dict[str, Figure]":
    """Return the figure adam_l2: shrinkage by gradient scale, and test accuracy by decay."""
    figure, axes = panels(1, 2, 5.0, 3.6)
    left, right = axes[0]
    decays = floats(result["weight_decays"])
    least = decays[decays > 0].min()
    x = np.where(decays > 0, decays, least / 10)  # lambda 0 stands one decade below the smallest
    for (name, v), mark in zip(result["variants"].items(), "os^v", strict=True):
        y = np.where(floats(v["weights_in_bin"]) >= ENOUGH, floats(v["shrinkage"]), np.nan)
        # SGD's two coincide with AdamW's: hollow marks of different sizes keep all three visible.
        left.loglog(
            result["gradient_scale"],
            y,
            mark,
            ls="-",
            ms={"o": 9, "s": 6}.get(mark, 4),
            mfc="none",
            label=name,
        )
        draw_curve(right, x, curve_of(v["test"], 100), marker=mark, ms=4, label=name)
    left.set(
        xlabel="root mean square of a weight's gradient",
        ylabel=r"shrinkage a step / ($\eta\lambda$)",
    )
    left.set_title(f"what decay takes of a weight, λ = {result['measured_decay']:g}", fontsize=9)
    left.legend(fontsize=8)
    right.set(xscale="log", xlabel="λ", ylabel="test accuracy, %")
    ticks = [
        10.0**k for k in range(math.ceil(math.log10(least)), 1 + math.floor(math.log10(x.max())))
    ]
    right.set_xticks([*([least / 10] if decays.min() == 0 else []), *ticks])
    right.set_xticklabels([*(["0"] if decays.min() == 0 else []), *(f"{tick:g}" for tick in ticks)])
    best = max(max(v["test"]["mean"]) for v in result["variants"].values())
    right.set_ylim(100 * best - 12, 100 * best + 1.5)
    right.set_title(f"after training on {result['dataset']}", fontsize=9)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return {"adam_l2": figure}
