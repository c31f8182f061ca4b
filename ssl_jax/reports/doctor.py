"""Report of a diagnosis: lines of text, and a figure."""

from pathlib import Path

import numpy as np

from ssl_jax.diagnosis.facts import MEANING, Diagnosis, Facts
from ssl_jax.diagnosis.rows import LINE, POINT
from ssl_jax.diagnosis.signs import NEEDED, read_signs
from ssl_jax.reports.compare.figures import panels
from ssl_jax.reports.figure import label, save
from ssl_jax.text import MOST, printable


def report(diagnosis: Diagnosis, method: str, step: int, steps: int) -> list[str]:
    """Return a diagnosis as lines of text, for a reader who has read no paper.

    Args:
        diagnosis: the run's diagnosis.
        method: the run's method.
        step: the last step that the run logged.
        steps: the steps of the whole run.

    Returns:
        The lines: state, meaning, certainty, signs and advice.
    """
    since = "" if diagnosis.since is None else f", since step {diagnosis.since}"
    lines = [f"{printable(method)} at step {step} of {steps}: {diagnosis.state.upper()}{since}"]
    lines += [
        f"  what it means   {MEANING[diagnosis.state]}",
        f"  how sure        {diagnosis.certainty}",
    ]
    lines += [f"  settled         {diagnosis.settles}"] if diagnosis.settles else []
    lines += [
        f"  {'measured' if i == 0 else '':15} {sign}" for i, sign in enumerate(diagnosis.signs)
    ]
    return lines + [
        f"  {'remedy' if i == 0 else '':15} {i + 1}. {line}"
        for i, line in enumerate(diagnosis.advice)
    ]


def draw(history: dict, diagnosis: Diagnosis, facts: Facts, title: str, path: Path) -> None:
    """Draw the signs over the steps into a file.

    Dotted lines are the thresholds of alarms. A red line is the step at which the state began.

    Args:
        history: that of `diagnosis.signs.read_signs`.
        diagnosis: the run's diagnosis.
        facts: the run's configuration.
        title: title of the figure.
        path: the file; its folder is created.
    """
    finite = np.isfinite([history[name] for name in NEEDED]).all(axis=0)
    known = {name: history[name][finite] for name in (*NEEDED, "predictor_norm")}
    signs = read_signs(known | {"dynamics": history.get("dynamics", {})}, facts.dim)
    shown = {
        "effective rank": (known["effective_rank"], signs.rank, None),
        "rank beside the mean direction": (None, signs.content, LINE[0]),
        "mean cosine of different images": (
            1 - known["relative_spread"] ** 2,
            signs.mean,
            POINT[0],
        ),
        "largest eigenvalue": (known["top_eigenvalue"], None, None),
        "loss": (known["loss"], signs.loss, None),
    }
    figure, axes = panels(1, len(shown), 3.4, 3.1)
    for axis, (name, (raw, smooth, alarm)) in zip(axes[0], shown.items(), strict=True):
        for values, style in (
            (raw, {"alpha": 0.35, "marker": ".", "ms": 3}),
            (smooth, {"lw": 1.6}),
        ):
            if values is not None:
                axis.plot(signs.step, values, color="tab:blue", **style)
        if alarm is not None:
            axis.axhline(alarm, color="black", ls=":", lw=1)
        if diagnosis.since is not None:
            axis.axvline(diagnosis.since, color="tab:red", lw=1.2)
        if name == "largest eigenvalue":
            axis.set_yscale("log")
        elif name != "loss":
            axis.set_ylim(bottom=0)
        axis.set(xlabel="step")
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    figure.suptitle(label(title, 2 * MOST), fontsize=10)
    save(figure, path, 120)
