"""Table, conclusion and figure of the experiment random_labels."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_jax.reports.experiments.parts import floats, panels, paragraphs, percent
from ssl_jax.reports.markdown import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(result: dict) -> str:
    """Return the table of all runs and the conclusion."""

    def word(flag: Any) -> str:
        return "yes" if flag else "no"

    rows = [
        [r["labels"], *(word(r[key]) for key in ("augmented", "weight_decay"))]
        + [percent(r[key]) for key in ("train", "test")]
        for r in result["rows"]
    ]
    head = ["labels", "augmentation", "weight decay", "train accuracy, %", "test accuracy, %"]
    config = result["config"]
    intro = (
        f"{config['encoder']['name']} of {result['parameters']:,} parameters on {result['images']} "
        f"images of {result['dataset']}, {config['epochs']} epochs, {config['seeds']} seeds. Train "
        "accuracy is on the images without augmentation and the labels that were trained on."
    )
    return paragraphs(intro, table(head, rows), conclude_random_labels(result))


def conclude_random_labels(result: dict) -> str:
    """Return the conclusion: how far random labels are learnt, and what prevents it."""
    chosen = {(r["labels"], r["augmented"], bool(r["weight_decay"])): r for r in result["rows"]}
    true, random, decayed, crops = (
        chosen[key]
        for key in (
            ("true", False, False),
            ("random", False, False),
            ("random", False, True),
            ("random", True, False),
        )
    )
    both = chosen["random", True, True]
    known = [np.argmax(floats(r["train_curve"]) >= 0.99) + 1 for r in (true, random)]
    learnt = all(max(r["train_curve"]) >= 0.99 for r in (true, random))
    pace = (
        f" (99 % after {known[0]} epochs with true labels, {known[1]} with random ones)"
        if learnt
        else ""
    )
    return (
        f"On random labels the network reaches a training accuracy of {percent(random['train'])} "
        f"%{pace}, and on test images {percent(random['test'])} %, where the largest class makes "
        f"{100 * result['largest_class']:.1f} %; on true labels {percent(true['train'])} and "
        f"{percent(true['test'])} %. Weight decay leaves {percent(decayed['train'])} % of the "
        f"random labels learnt, augmentation {percent(crops['train'])} %, both "
        f"{percent(both['train'])} %."
    )


def draw(result: dict) -> "dict[str, Figure]":
    """Return the figure random_labels: accuracies and loss over the epochs."""
    figure, axes = panels(1, 3, 3.0, 3.1)
    for axis, (name, title) in zip(
        axes[0],
        {
            "train": "train accuracy, %",
            "test": "test accuracy, %",
            "loss": "training loss, nats",
        }.items(),
        strict=True,
    ):
        for row in result["rows"]:
            curve = floats(row[f"{name}_curve"]) * (1 if name == "loss" else 100)
            extras = [
                word
                for word, on in (("augmented", row["augmented"]), ("decayed", row["weight_decay"]))
                if on
            ]
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
                np.arange(1, len(curve) + 1),
                curve,
                label=", ".join([f"{row['labels']} labels", *extras]),
                **style,
            )
        axis.set(xlabel="epoch")
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    axes[0, 1].axhline(100 * result["largest_class"], color="black", lw=0.8, ls=":")
    axes[0, 2].set(yscale="log", ylim=(1e-4, None))
    names = axes[0, 0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=4, fontsize=8)
    return {"random_labels": figure}
