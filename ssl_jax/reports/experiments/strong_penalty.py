"""Table and figure of the experiment strong_penalty."""

from pathlib import Path

from ssl_jax.reports.experiments.curves import band, draw_curves, markdown, percent
from ssl_jax.reports.experiments.model_scale import ahead


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


def draw_strong_penalty(r: dict, folder: Path) -> None:
    panels = {
        f"{optimizer}, {label}": {name: band(arm[key]) for name, arm in fields["arms"].items()}
        for optimizer, fields in r["optimizers"].items()
        for label, key in (("training loss", "loss_curve"), ("test accuracy", "test_curve"))
    }
    draw_curves(folder / "strong_penalty.png", panels, "epoch", f"strong penalty: decay {r['weight_decay']:g}")
