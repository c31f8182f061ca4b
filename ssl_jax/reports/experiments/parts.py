"""Parts of tables and figures, of which the reports on small networks are made."""

from collections.abc import Sequence

import numpy as np

from ssl_jax.reports import pyplot as plt


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(score: dict, i: int | None = None, digits: int = 1) -> str:
    """Mean, in percent, with its interval; the i-th where `score` holds several."""
    mean, interval = at(score, i)
    spread = "" if interval is None else f" ± {100 * interval:.{digits}f}"
    return f"{100 * mean:.{digits}f}{spread}"


def at(score: dict, i: int | None = None) -> tuple[float, float | None]:
    """(mean, interval)"""
    mean, interval = score["mean"], score["interval"]
    return (mean, interval) if i is None else (mean[i], None if interval is None else interval[i])


def band(axis, x, score: dict, factor: float = 100, **style):
    """A line with its interval."""
    mean = factor * np.array(score["mean"], float)
    (line,) = axis.plot(x, mean, **style)
    if score["interval"] is not None:
        width = factor * np.array(score["interval"], float)
        axis.fill_between(x, mean - width, mean + width, color=line.get_color(), alpha=0.15, lw=0)
    return line


def panels(rows: int, columns: int, width: float = 4.4, height: float = 3.4, **options):
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False, **options
    )
    return figure, axes


def floats(values) -> np.ndarray:
    """Numbers, and NaN for what was not finite."""
    return np.array(values, float)


def either(few: str, many: str, count: int) -> str:
    return f"{count} {few if count == 1 else many}"
