"""Table and figure of the experiment strong_penalty."""

from typing import TYPE_CHECKING

from ssl_jax.reports.experiments.model_scale import ahead
from ssl_jax.reports.experiments.parts import curve_of, curves, numbers_table, percent, spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(r: dict) -> str:
    """Return the table of optimizers and arms."""
    rows = [
        [
            f"{optimizer}, {fields['learning_rate']:g}",
            name,
            spelled(arm["loss"], digits=3),
            percent(arm["test"], digits=2),
            ahead(name, arm),
        ]
        for optimizer, fields in r["optimizers"].items()
        for name, arm in fields["arms"].items()
    ]
    header = ["optimizer, learning rate", "arm", "training loss", "test accuracy, %", "ahead of WD"]
    return f"Decay {r['weight_decay']:g}, last epoch\n\n{numbers_table(header, rows)}"


def draw(r: dict) -> "dict[str, Figure]":
    """Return the figure strong_penalty: loss and accuracy over the epochs."""
    shown = {
        f"{optimizer}, {label}": {
            name: curve_of(arm[key], scale) for name, arm in fields["arms"].items()
        }
        for optimizer, fields in r["optimizers"].items()
        for label, key, scale in (
            ("training loss", "loss_curve", 1),
            ("test accuracy, %", "test_curve", 100),
        )
    }
    return {
        "strong_penalty": curves(shown, "epoch", f"strong penalty: decay {r['weight_decay']:g}")
    }
