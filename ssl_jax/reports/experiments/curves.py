"""Numbers, curves and heat maps, of which the reports on weight decay are made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.markdown import NUMBER, table

Curve = tuple[Any, Any]  # means (N,), half-widths (N,) or None


def percent(value: dict, digits: int = 2, signed: bool = False) -> str:
    """ "61.20 ± 0.31" of {"mean", "interval"}."""
    if value["mean"] is None:
        return "not finite"
    text = f"{100 * value['mean']:{'+' if signed else ''}.{digits}f}"
    return text if value["interval"] is None else f"{text} ± {100 * value['interval']:.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    return table(header, rows, rest=NUMBER)


def spread(count: int) -> list[int]:
    """First, middle and last place."""
    return sorted({0, count // 2, count - 1})


def numeric(values: Any) -> np.ndarray:
    """Nested lists as an array, with NaN where a number was not finite."""
    return np.array(values, np.float64)


def band(value: dict) -> Curve:
    """The curve of {"mean", "interval"}."""
    return numeric(value["mean"]), None if value["interval"] is None else numeric(value["interval"])


def draw_heat_maps(
    path: Path,
    panels: dict[str, np.ndarray],
    rates: Sequence[float],
    decays: Sequence[float],
    title: str,
    difference: dict[str, np.ndarray] | None = None,
    form: str = ".1f",
    shared: bool = True,
) -> None:
    """(R, D) each, every cell with its number, the largest circled; `difference` beside them, on a scale around zero.

    shared: whether one scale of colours serves all panels but `difference`.
    """
    everything = np.concatenate([values.ravel() for values in panels.values()])
    shown = [(name, v, "viridis", limits(everything if shared else v), True) for name, v in panels.items()]
    for name, values in (difference or {}).items():
        width = max(np.abs(limits(values)))
        shown.append((name, values, "RdBu", (-width, width), False))
    figure, axes = plt.subplots(1, len(shown), figsize=(4.4 * len(shown), 3.4), layout="constrained", squeeze=False)
    for axis, (name, values, colours, (low, high), circled) in zip(axes[0], shown, strict=True):
        label_cells(axis, values, axis.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto"), form)
        axis.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays], fontsize=7)
        axis.set_yticks(range(len(rates)), [f"{rate:.3g}" for rate in rates], fontsize=7)
        axis.set(xlabel="weight decay", ylabel="learning rate")
        axis.set_title(name, fontsize=9)
        if circled and np.isfinite(values).any():
            i, j = np.unravel_index(np.nanargmax(values), values.shape)
            axis.plot(j, i, "o", ms=22, mfc="none", mec="black")
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def limits(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest number, apart from each other."""
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    return float(low), float(max(high, low + 1e-9))


def label_cells(axis, values: np.ndarray, drawn, form: str) -> None:
    """Each cell's number, in black or white, whichever is told from its colour."""
    for (i, j), value in np.ndenumerate(values):
        red, green, blue, _ = drawn.cmap(drawn.norm(value)) if np.isfinite(value) else (1, 1, 1, 1)
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = format(value, form) if np.isfinite(value) else "NaN"
        axis.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")


def draw_curves(
    path: Path,
    panels: dict[str, dict[str, Curve]],
    xlabel: str,
    title: str,
    x: Sequence[float] | None = None,
    log: bool = False,
) -> None:
    """A panel of curves with their bands; x: 1, 2, ... where it is not given."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.4), layout="constrained", squeeze=False)
    for axis, (name, curves) in zip(axes[0], panels.items(), strict=True):
        for label, (mean, width) in curves.items():
            at = np.arange(1, len(mean) + 1) if x is None else np.asarray(x)
            (line,) = axis.plot(at, mean, marker="o" if len(at) < 30 else None, ms=3, label=label)
            if width is not None:
                axis.fill_between(at, mean - width, mean + width, color=line.get_color(), alpha=0.2, lw=0)
        axis.set(xlabel=xlabel, xscale="log" if log else "linear")
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
