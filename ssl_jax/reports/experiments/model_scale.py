"""Table and figure of the experiment model_scale."""

from pathlib import Path

from ssl_jax.reports.experiments.curves import Curve, draw_curves, markdown, numeric, percent


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
