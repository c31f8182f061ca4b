"""Table and figure of the experiment zero_shot."""

from typing import TYPE_CHECKING

from ssl_jax.reports.experiments.parts import curve_of, curves, numbers_table, spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(r: dict) -> str:
    """Return the table of networks by strength of decay."""
    shown = [s for s in r["s"] if s % 10 == 0]
    rows = []
    for name, curve in r["networks"].items():
        means = dict(zip(r["s"], curve["accuracy"]["mean"], strict=True))
        held = spelled(curve["holds_until"])
        rows.append([name, *(f"{100 * means[s]:.1f}" for s in shown), held])
    header = ["test accuracy, %, at s =", *map(str, shown), "keeps nine tenths up to s ="]
    return numbers_table(header, rows)


def draw(r: dict) -> "dict[str, Figure]":
    """Return the figure zero_shot: accuracy and cross-entropy by strength of decay."""
    shown = {
        label: {name: curve_of(curve[key], scale) for name, curve in r["networks"].items()}
        for label, key, scale in (
            ("test accuracy, %", "accuracy", 100),
            ("test cross-entropy, nats", "loss", 1),
        )
    }
    return {
        "zero_shot": curves(shown, "s: weights times (1 - s / 100)", "zero-shot decay", x=r["s"])
    }
