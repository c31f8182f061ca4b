"""Parts of the experiments' reports: numbers with intervals, tables, curves and heat maps.

A score is {"mean", "interval"} as `intervals.mean_and_interval` returns it: numbers or lists of
them, fractions for accuracies, None for what was not finite; the interval is None for a single
seed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.markdown import NUMBER, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
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
    mean, interval = at(score, i)
    if mean is None:
        return "not finite"
    text = f"{100 * mean:{'+' if signed else ''}.{digits}f}"
    return text if interval is None else f"{text} ± {100 * interval:.{digits}f}"


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


def panels(
    rows: int, columns: int, width: float = 4.4, height: float = 3.4, **options: Any
) -> "tuple[Figure, np.ndarray]":
    """Return a figure of empty panels.

    Args:
        rows: number of rows.
        columns: number of columns.
        width: of each panel, in inches.
        height: of each panel, in inches.
        **options: further arguments of `pyplot.subplots`.

    Returns:
        The figure, and its axes (rows, columns).
    """
    size = width * columns, height * rows
    return plt.subplots(
        rows, columns, figsize=size, dpi=120, layout="constrained", squeeze=False, **options
    )


def curve_of(score: dict) -> Curve:
    """Return a score of N numbers as a curve."""
    return floats(score["mean"]), None if score["interval"] is None else floats(score["interval"])


def draw_curve(
    axis: "Axes", x: ArrayLike, curve: Curve, alpha: float = 0.15, **style: Any
) -> "Line2D":
    """Draw a line with its band.

    Args:
        axis: to draw on.
        x: (N,).
        curve: N means, and half-widths or None.
        alpha: opacity of the band, 0..1.
        **style: of the line, as `Axes.plot` takes it.

    Returns:
        The line.
    """
    mean, width = curve
    (line,) = axis.plot(x, mean, **style)
    if width is not None:
        axis.fill_between(x, mean - width, mean + width, color=line.get_color(), alpha=alpha, lw=0)
    return line


def draw_percent(axis: "Axes", x: ArrayLike, score: dict, **style: Any) -> "Line2D":
    """Draw the curve of a score in percent, with its band.

    Args:
        axis: to draw on.
        x: (N,).
        score: of N fractions.
        **style: as `draw_curve` takes it.

    Returns:
        The line.
    """
    mean, width = curve_of(score)
    return draw_curve(axis, x, (100 * mean, None if width is None else 100 * width), **style)


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
        The figure, one row of panels.
    """
    figure, axes = panels(1, len(shown), 4.6)
    for axis, (name, lines) in zip(axes[0], shown.items(), strict=True):
        for label, curve in lines.items():
            places = np.arange(1, len(curve[0]) + 1) if x is None else np.asarray(x)
            draw_curve(
                axis,
                places,
                curve,
                0.2,
                marker="o" if len(places) < 30 else None,
                ms=3,
                label=label,
            )
        axis.set(xlabel=xlabel, xscale="log" if log else "linear")
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
        The figure, one row of panels.
    """
    everything = np.concatenate([values.ravel() for values in shown.values()])
    maps = [
        (name, v, "viridis", limits(everything if shared else v), True) for name, v in shown.items()
    ]
    for name, values in (difference or {}).items():
        width = max(np.abs(limits(values)))
        maps.append((name, values, "RdBu", (-width, width), False))
    figure, axes = panels(1, len(maps))
    for axis, (name, values, colours, (low, high), circled) in zip(axes[0], maps, strict=True):
        label_cells(
            axis,
            values,
            axis.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto"),
            form,
        )
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


def label_cells(axis: "Axes", values: np.ndarray, drawn: "AxesImage", form: str) -> None:
    """Write each cell's number in black or white, whichever contrasts with its colour.

    Args:
        axis: of the map.
        values: (R, D).
        drawn: the map.
        form: format specification of the numbers.
    """
    for (i, j), value in np.ndenumerate(values):
        red, green, blue, _ = drawn.cmap(drawn.norm(value)) if np.isfinite(value) else (1, 1, 1, 1)
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = format(value, form) if np.isfinite(value) else "NaN"
        axis.text(
            j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black"
        )
