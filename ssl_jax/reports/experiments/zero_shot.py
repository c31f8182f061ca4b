"""Table and figure of the experiment zero_shot."""

from pathlib import Path

from ssl_jax.reports.experiments.curves import band, draw_curves, markdown


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


def draw_zero_shot(r: dict, folder: Path) -> None:
    panels = {
        label: {name: band(curve[key]) for name, curve in r["networks"].items()}
        for label, key in (("test accuracy", "accuracy"), ("test cross-entropy", "loss"))
    }
    draw_curves(folder / "zero_shot.png", panels, "s: weights times (1 - s / 100)", "zero-shot decay", x=r["s"])
