"""Parts of the experiments' reports: numbers with intervals, tables, curves and heat maps.

A score is {"mean", "interval"} as `intervals.mean_and_interval` returns it: numbers or lists of
them, fractions for accuracies, None for what was not finite; the interval is None for a single
seed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ssl_jax.intervals import Estimate
from ssl_jax.reports.compare.figures import draw_band, draw_cells, wrapped
from ssl_jax.reports.compare.figures import panels as panels
from ssl_jax.reports.markdown import NUMBER, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Curve = tuple[Any, Any]  # means (N,), half-widths (N,) or None

# --- Numbers and tables ---------------------------------------------------------------------------


def paragraphs(*parts: str) -> str:
    """Return tables and sentences as one text, an empty line between each two."""
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def numbers_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown whose first column is text and whose others are numbers."""
    return table(header, rows, rest=NUMBER)


def percent(score: dict, i: int | None = None, digits: int = 1, signed: bool = False) -> str:
    """Return mean and interval of a score in percent, as "61.2 ± 0.3".

    Args:
        score: of one number, or of several.
        i: index of one of several.
        digits: behind the point.
        signed: whether a positive mean has a plus.

    Returns:
        The text; "not finite" where the mean is not, and no interval for a single seed.
    """
    return spelled(score, i, digits, signed, scale=100)


def spelled(
    score: dict, i: int | None = None, digits: int = 1, signed: bool = False, scale: float = 1
) -> str:
    """Return mean and interval of a score, `scale` times; arguments as of `percent`."""
    mean, width = at(score, i)
    if mean is None:
        return "not finite"
    half = None if width is None else scale * width
    return str(Estimate(scale * mean, half, 0, digits, signed))


def points(score: dict, digits: int = 1) -> str:
    """Return a paired difference in words: points, and whether its interval holds zero."""
    mean, width = at(score)
    if mean is None:
        return percent(score)
    sure = "" if width is None or abs(mean) > width else ", an interval that holds zero"
    return f"{percent(score, digits=digits, signed=True)} points{sure}"


def at(score: dict, i: int | None = None) -> tuple[Any, Any]:
    """Return (mean, interval) of a score, or of its i-th number."""
    mean, interval = score["mean"], score["interval"]
    return (mean, interval) if i is None else (mean[i], None if interval is None else interval[i])


def floats(values: Any) -> np.ndarray:
    """Return nested lists as an array, with NaN where a number was not finite."""
    return np.array(values, float)


def spread(count: int) -> list[int]:
    """Return the first, middle and last index of `count` places, without repetition."""
    return sorted({0, count // 2, count - 1})


# --- Figures --------------------------------------------------------------------------------------


def curve_of(score: dict, scale: float = 1) -> Curve:
    """Return a score of N numbers, `scale` times, as a curve."""
    width = score["interval"]
    return scale * floats(score["mean"]), None if width is None else scale * floats(width)


def stacked(scores: Sequence[dict], scale: float = 1) -> Curve:
    """Return scores of one number each, `scale` times, as a curve."""
    means, widths = zip(*map(at, scores), strict=True)
    return curve_of({"mean": means, "interval": None if None in widths else widths}, scale)


def draw_curve(axis: "Axes", x: ArrayLike, curve: Curve, **style: Any) -> "Line2D":
    """Draw a curve, with its band.

    Args:
        axis: to draw on.
        x: (N,).
        curve: N means, and half-widths or None.
        **style: of the line, as `Axes.plot` takes it.

    Returns:
        The line.
    """
    mean, width = curve
    return draw_band(
        axis, x, mean, None if width is None else (mean - width, mean + width), **style
    )


def curves(
    shown: dict[str, dict[str, Curve]],
    xlabel: str,
    title: str,
    x: Sequence[float] | None = None,
    log: bool = False,
) -> "Figure":
    """Return a figure of panels with curves and their bands.

    Args:
        shown: panel -> {label: curve}.
        xlabel: of every panel.
        title: of the figure.
        x: (N,); 1, 2, ... where it is not given.
        log: whether x has a logarithmic scale.

    Returns:
        The figure, two panels a row.
    """
    figure, axes = wrapped(len(shown))
    for axis, (name, lines) in zip(axes, shown.items(), strict=True):
        for label, curve in lines.items():
            places = np.arange(1, len(curve[0]) + 1) if x is None else np.asarray(x)
            draw_curve(axis, places, curve, label=label)
        axis.set(xlabel=xlabel, xscale="log" if log else "linear")
        if log and x is not None:
            axis.set_xticks(x, [f"{place:,}" for place in x], fontsize=7)
            axis.minorticks_off()
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def heat_maps(
    shown: dict[str, np.ndarray],
    rates: Sequence[float],
    decays: Sequence[float],
    title: str,
    *,
    difference: dict[str, np.ndarray] | None = None,
    form: str = ".1f",
    shared: bool = True,
) -> "Figure":
    """Return a figure of maps, every cell with its number, the largest circled.

    Args:
        shown: panel -> (R, D).
        rates: R learning rates, the rows.
        decays: D weight decays, the columns.
        title: of the figure.
        difference: panel -> (R, D), beside the others, on a scale around zero and without a circle.
        form: format specification of the numbers.
        shared: whether all panels but `difference` have one scale of colours.

    Returns:
        The figure, two panels a row.
    """
    everything = np.concatenate([values.ravel() for values in shown.values()])
    maps = [
        (name, v, "viridis", limits(everything if shared else v), True) for name, v in shown.items()
    ]
    for name, values in (difference or {}).items():
        width = max(np.abs(limits(values)))
        maps.append((name, values, "RdBu", (-width, width), False))
    figure, axes = wrapped(len(maps), height=2.9)
    for axis, (name, values, colours, (low, high), circled) in zip(axes, maps, strict=True):
        draw_cells(axis, values, form, "NaN", cmap=colours, vmin=low, vmax=high)
        axis.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays], fontsize=7)
        axis.set_yticks(range(len(rates)), [f"{rate:.3g}" for rate in rates], fontsize=7)
        axis.set(xlabel="weight decay", ylabel="learning rate")
        axis.set_title(name, fontsize=9)
        if circled and np.isfinite(values).any():
            i, j = np.unravel_index(np.nanargmax(values), values.shape)
            axis.plot(j, i, "o", ms=22, mfc="none", mec="black")
    figure.suptitle(title, fontsize=10)
    return figure


def limits(values: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest finite number, at least 1e-9 apart."""
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    return float(low), float(max(high, low + 1e-9))
