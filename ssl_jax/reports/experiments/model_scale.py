"""Table and figure of the experiment model_scale."""

from typing import TYPE_CHECKING

from ssl_jax.reports.experiments.parts import Curve, curves, numbers_table, percent, stacked

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ahead(name: str, arm: dict) -> str:
    """Return by how many points an arm is ahead of WD; "" for WD itself."""
    return "" if name == "WD" else percent(arm["ahead_of_WD"], signed=True, digits=2)


def report(r: dict) -> str:
    """Return the table of networks and arms."""
    rows = [
        [
            size,
            f"{fields['parameters']:,}",
            name,
            f"{arm['weight_decay']:g}",
            percent(arm["test"], digits=2),
            ahead(name, arm),
        ]
        for size, fields in r["sizes"].items()
        for name, arm in fields["arms"].items()
    ]
    header = ["network", "parameters", "arm", "decay", "test accuracy, %", "ahead of WD"]
    return f"Learning rate {r['learning_rate']:g}, last epoch\n\n{numbers_table(header, rows)}"


def draw(r: dict) -> "dict[str, Figure]":
    """Return the figure model_scale: accuracy, and lead over WD, by number of parameters."""
    sizes, names = list(r["sizes"].values()), list(next(iter(r["sizes"].values()))["arms"])

    def line(name: str, key: str) -> Curve:
        return stacked([size["arms"][name][key] for size in sizes], 100)

    shown = {
        "test accuracy, %": {name: line(name, "test") for name in names},
        "ahead of WD, points": {name: line(name, "ahead_of_WD") for name in names if name != "WD"},
    }
    x = [size["parameters"] for size in sizes]
    return {"model_scale": curves(shown, "parameters", "model scale", x=x, log=True)}
