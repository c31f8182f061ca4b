"""Table and figure of the experiment zero_shot."""

from ssl_jax.reports.experiments.parts import curve_of, curves, numbers_table


def report(r: dict) -> str:
    shown = [s for s in r["s"] if s % 10 == 0]
    rows = []
    for name, curve in r["networks"].items():
        means = dict(zip(r["s"], curve["accuracy"]["mean"], strict=True))
        held = curve["holds_until"]
        width = "" if held["interval"] is None else f" ± {held['interval']:.1f}"
        rows.append([name, *(f"{100 * means[s]:.1f}" for s in shown), f"{held['mean']:.1f}{width}"])
    header = ["test accuracy, %, at s =", *map(str, shown), "keeps nine tenths up to s ="]
    return numbers_table(header, rows)


def draw(r: dict) -> dict:
    shown = {
        label: {name: curve_of(curve[key]) for name, curve in r["networks"].items()}
        for label, key in (("test accuracy", "accuracy"), ("test cross-entropy", "loss"))
    }
    return {
        "zero_shot": curves(shown, "s: weights times (1 - s / 100)", "zero-shot decay", x=r["s"])
    }
