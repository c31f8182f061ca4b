"""Figures of compared runs: curves over training, spectra, and a measure against what varies."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ssl_jax import intervals
from ssl_jax.intervals import Estimate
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.compare.runs import (
    MEASURES,
    Group,
    Run,
    common_settings,
    estimate,
    main_measure,
    rank,
    spelled,
    values,
)
from ssl_jax.reports.figure import label
from ssl_jax.workdir.schema import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

# The columns of metrics.csv that are laid over each other, and their titles.
CURVES = {
    "loss": "loss",
    "knn_validation": "kNN accuracy, held-out training images",
    "validation_accuracy": "accuracy, held-out training images",
    "effective_rank": "effective rank of the projections",
    "top_eigenvalue": "largest eigenvalue of F",
    "relative_spread": "relative spread of the projections",
    "rankme": "RankMe of the features",
}
NAMED = 10  # groups that have a colour and a name each
LONGEST = 60  # lines of a figure of rows
MODES = 8  # runs whose eigenvalues are drawn over training
DECADES = 1.5  # an axis is logarithmic where its positive values span more powers of ten
OURS, THEIRS, OTHERS = "#0b5fa5", "#c4560a", "#b4bac3"
LEAST = 30  # points of a curve without marks

# --- Parts ----------------------------------------------------------------------------------------


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


def wrapped(
    count: int, columns: int = 2, width: float = 4.4, height: float = 3.4, **options: Any
) -> "tuple[Figure, list[Axes]]":
    """Return a figure of so many panels, at most `columns` beside each other.

    Args:
        count: number of panels.
        columns: the most in one row.
        width: of each panel, in inches.
        height: of each panel, in inches.
        **options: further arguments of `pyplot.subplots`.

    Returns:
        The figure, and the panels, row by row.
    """
    figure, axes = panels(-(-count // columns), min(count, columns), width, height, **options)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def panel(width: float, height: float) -> "tuple[Figure, Axes]":
    """Return a figure of one panel with a grid, of a size in inches."""
    figure, axes = panels(1, 1, width, height)
    axes[0, 0].grid(alpha=0.3)
    axes[0, 0].spines[["top", "right"]].set_visible(False)
    return figure, axes[0, 0]


def draw_band(
    axis: "Axes",
    x: ArrayLike,
    mean: ArrayLike,
    band: tuple[ArrayLike, ArrayLike] | None,
    **style: Any,
) -> "Line2D":
    """Draw a line, with marks where it has few points, and its band.

    Args:
        axis: to draw on.
        x: (N,).
        mean: (N,).
        band: lower and upper ends (N,) each; None: there is none.
        **style: of the line, as `Axes.plot` takes it.

    Returns:
        The line.
    """
    few = "o" if len(np.ravel(x)) < LEAST else None
    (line,) = axis.plot(x, mean, **{"marker": few, "ms": 3, "lw": 1.4} | style)
    if band is not None:
        axis.fill_between(x, *band, color=line.get_color(), alpha=0.18, lw=0)
    return line


def draw_cells(
    axis: "Axes", shown: np.ndarray, form: str, unknown: str = "", **style: Any
) -> "AxesImage":
    """Draw a map, each cell's number in black or white, whichever contrasts with its colour.

    Args:
        axis: to draw on.
        shown: (R, C).
        form: format specification of the numbers.
        unknown: text of a cell that is not finite.
        **style: as `Axes.imshow` takes it.

    Returns:
        The map.
    """
    image = axis.imshow(shown, aspect="auto", **style)
    for (i, j), value in np.ndenumerate(shown):
        red, green, blue, _ = image.cmap(image.norm(value)) if np.isfinite(value) else (1, 1, 1, 1)
        colour = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
        text = format(value, form) if np.isfinite(value) else unknown
        axis.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    return image


class Line(NamedTuple):
    """A line of a figure of rows."""

    name: str
    values: list[float]  # one for each seed
    published: float | None = None
    first: bool = False  # whether a new table begins
    ours: Estimate | None = None  # where it is not that over `values`


def draw_rows(lines: Sequence[Line], xlabel: str, untrained: float | None = None) -> "Figure":
    """Draw a row for each line: seeds, mean and interval, and the published number.

    Args:
        lines: from above.
        xlabel: of the values.
        untrained: the untrained encoder's value; None: it is not known.

    Returns:
        The figure.
    """
    figure, axis = panel(6.8, 0.29 * len(lines) + 1.1)
    for y, line in enumerate(lines):
        if line.published is not None:
            style = {"ms": 5.5, "mfc": "none", "mec": THEIRS, "mew": 1.4}
            axis.plot(line.published, y, "D", label="published", **style)
        if line.values:
            style = {"alpha": 0.45 if len(line.values) > 1 else 1, "color": OURS}
            axis.scatter(
                line.values, [y] * len(line.values), s=16, lw=0, label="each seed", **style
            )
        ours = line.ours or (intervals.estimate(line.values) if len(line.values) > 1 else None)
        if ours is not None:
            style = {"fmt": "|", "color": OURS, "ms": 11, "mew": 1.8, "lw": 1.4}
            axis.errorbar(ours.mean, y, xerr=ours.width, label="mean, 95%", **style)
        if y and line.first:
            axis.axhline(y - 0.5, color="0.8", lw=0.8)
    if untrained is not None:
        axis.axvline(untrained, color="#777777", ls=":", lw=1.2, label="untrained encoder")
    axis.set_yticks(range(len(lines)), [line.name for line in lines], fontsize=8.5)
    axis.set(xlabel=xlabel, ylim=(len(lines) - 0.5, -0.5))
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    style = {"loc": "outside upper left", "ncols": 4, "frameon": False, "fontsize": 9}
    figure.legend(handles.values(), handles.keys(), **style)
    return figure


# --- Over training --------------------------------------------------------------------------------


def draw_curves(groups: Sequence[Group]) -> "list[Figure]":
    """Draw each curve of more than one point: the seeds' mean, and the band from lowest to highest.

    One figure a curve is returned, those of several groups behind one that names them.
    """
    figures = []
    for name, title in CURVES.items():
        found = [_curve_of(one, name) for one in groups]
        if max(len(curve) for curves in found for curve in [{}, *curves]) < 2:
            continue
        figure, axis = panel(3.6, 2.7)
        for curves, colour in zip(found, colours(groups), strict=True):
            if steps := sorted(set.intersection(*map(set, curves))) if curves else []:
                shown = np.array([[curve[step] for step in steps] for curve in curves])
                band = (shown.min(0), shown.max(0)) if len(shown) > 1 else None
                order = 1 if colour == OTHERS else 2
                draw_band(axis, steps, shown.mean(0), band, color=colour, zorder=order)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="step", yscale="log" if name == "top_eigenvalue" else "linear")
        figures.append(figure)
    if figures and len(groups) > 1:
        figure, axis = plt.subplots(layout="constrained")
        axis.set_axis_off()
        handles = _handles(axis, groups)
        figure.set_size_inches(3.6, 0.22 * len(handles) + 0.2)
        axis.legend(handles=handles, loc="center left", frameon=False, fontsize=9)
        figures.insert(0, figure)
    return figures


def _curve_of(one: Group, name: str) -> list[dict[float, float]]:
    """Return a column of the group's runs that have it, by step."""
    curves = []
    for run in one.runs:
        shown = run.columns.get(name, np.zeros(0))
        known = np.isfinite(shown)
        if known.any():
            curves.append(dict(zip(run.columns["step"][known], shown[known], strict=True)))
    return curves


def draw_modes(runs: Iterable[tuple[str, Run]]) -> "Figure | None":
    """Draw the eigenvalues of F over the epochs, a panel for each run that recorded them.

    Args:
        runs: titles and runs, of which the first `MODES` are drawn.

    Returns:
        The figure; None where no run recorded them.
    """
    shown = [one for one in runs if "corr_eigenvalues" in one[1].dynamics][:MODES]
    if not shown:
        return None
    figure, axes = wrapped(len(shown), 4, 2.3, 2.5, sharey=True)
    for axis, (title, run) in zip(axes, shown, strict=True):
        spectra, epochs = run.dynamics["corr_eigenvalues"], run.dynamics["epoch"]
        scale = plt.get_cmap("viridis")(np.linspace(0, 0.92, spectra.shape[1]))
        for mode, colour in zip(spectra.T, scale, strict=True):
            axis.plot(epochs, np.where(mode > 0, mode, np.nan), color=colour, lw=1)
        axis.set(xlabel="epoch", yscale="log")
        axis.set_title(label(title), fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[::4]:
        axis.set_ylabel("largest eigenvalues of F")
    return figure


def draw_spectra(groups: Sequence[Group]) -> "Figure | None":
    """Draw the final eigenvalues of F, a line for each seed; None: none were kept."""
    spectra = [
        [run.result["correlation_eigenvalues"] for run in g.runs if _has_spectrum(run.result)]
        for g in groups
    ]
    if not any(spectra):
        return None
    figure, axis = panel(6.2, 3.4)
    for found, colour in zip(spectra, colours(groups), strict=True):
        for number, spectrum in enumerate(found):
            style = {"color": colour, "zorder": 1 if colour == OTHERS else 2}
            draw_spectrum(axis, spectrum, lw=1.2, alpha=1 if not number else 0.45, **style)
    if len(groups) > 1:
        style = {"loc": "outside upper left", "ncols": 2, "frameon": False, "fontsize": 8}
        figure.legend(handles=_handles(axis, groups), **style)
    return figure


def draw_spectrum(axis: "Axes", spectrum: ArrayLike, **style: Any) -> None:
    """Draw eigenvalues of F, largest first, on a log scale, without rounding errors at or below 0.

    Args:
        axis: to draw on.
        spectrum: (D,); None or NaN where it is not known.
        **style: of the line, as `Axes.plot` takes it.
    """
    shown = np.array(spectrum, np.float64)
    floor = np.nanmax(shown, initial=0) * 1e-9
    axis.semilogy(np.arange(1, len(shown) + 1), np.where(shown > floor, shown, np.nan), **style)
    axis.set(xlabel="rank", ylabel="eigenvalue of F at the end")


def _has_spectrum(result: dict) -> bool:
    return any(is_number(value) for value in result.get("correlation_eigenvalues") or [])


# --- Against what varies --------------------------------------------------------------------------


def draw_fields(groups: Sequence[Group], measure: str) -> "Figure | None":
    """Draw a measure against what varies: a line for one field, a map for two, rows for more.

    Fields that change together with another count once. None is returned for a single group, and
    where rows would be more than `LONGEST`.
    """
    fields = independent(groups)
    if len(groups) < 2:
        return None
    if len(fields) in (1, 2):
        return (_draw_line if len(fields) == 1 else _draw_map)(groups, measure, *fields)
    if len(groups) > LONGEST:
        return None
    common = common_settings(groups)
    names = [label(one.label(common, last=True), 60) for one in groups]
    found = [list(values(one, measure).values()) for one in groups]
    return draw_rows(list(map(Line, names, found)), MEASURES[measure].title)


def independent(groups: Sequence[Group]) -> list[str]:
    """Return the fields that vary, without those that another one decides."""
    kept: list[str] = []
    patterns: set[tuple[int, ...]] = set()
    for field in groups[0].settings if groups else ():
        texts = [spelled(one.settings[field]) for one in groups]
        pattern = tuple(texts.index(text) for text in texts)
        if pattern not in patterns:
            patterns.add(pattern)
            kept.append(field)
    return kept


def _draw_line(groups: Sequence[Group], measure: str, field: str) -> "Figure":
    """Draw mean and interval for each value of the field; texts are evenly spaced."""
    figure, axis = panel(5.6, 3.4)
    settings = [one.settings[field] for one in groups]
    numbers = all(is_number(value) for value in settings)
    x = np.array(settings, np.float64) if numbers else np.arange(len(groups), dtype=np.float64)
    found = [estimate(one, measure) for one in groups]
    y = np.array([np.nan if e is None else e.mean for e in found])
    width = np.array([np.nan if e is None or e.width is None else e.width for e in found])
    order = np.argsort(x, kind="stable")
    x, y, width = x[order], y[order], width[order]
    known = np.isfinite(width).any()
    band = (y - width, y + width) if known and numbers else None
    line = draw_band(axis, x, y, band, ms=5, marker="o", ls="-" if numbers else "")
    if known and not numbers:
        axis.errorbar(x, y, yerr=width, fmt="none", color=line.get_color(), capsize=3)
    if numbers and (x > 0).all() and np.log10(x.max() / x.min()) > DECADES:
        axis.set_xscale("log")
    if not numbers:
        axis.set_xticks(x, [label(spelled(value), 16) for value in settings])
    axis.set(xlabel=label(field), ylabel=MEASURES[measure].title)
    return figure


def _draw_map(groups: Sequence[Group], measure: str, down: str, across: str) -> "Figure":
    """Draw a heat map of the means with their numbers; cells that were not run stay blank."""
    ordered = sorted(groups, key=lambda one: rank(one.settings[across]))
    rows = list(dict.fromkeys(spelled(one.settings[down]) for one in groups))
    columns = list(dict.fromkeys(spelled(one.settings[across]) for one in ordered))
    shown = np.full((len(rows), len(columns)), np.nan)
    for one in groups:
        place = (
            rows.index(spelled(one.settings[down])),
            columns.index(spelled(one.settings[across])),
        )
        found = estimate(one, measure)
        shown[place] = np.nan if found is None else found.mean
    figure, axes = panels(1, 1, 1.1 * len(columns) + 2.6, 0.55 * len(rows) + 1.6)
    axis = axes[0, 0]
    image = draw_cells(axis, shown, ".4g", cmap="viridis")
    axis.set_xticks(range(len(columns)), [label(text, 16) for text in columns])
    axis.set_yticks(range(len(rows)), [label(text, 16) for text in rows])
    axis.set(xlabel=label(across), ylabel=label(down))
    figure.colorbar(image, label=MEASURES[measure].title)
    return figure


# --- Colours --------------------------------------------------------------------------------------


def colours(groups: Sequence[Group]) -> list[Any]:
    """Return a colour for each group: its own, or that of its place in the order of one field.

    Of many groups that differ in several fields, the first, the best and the worst have their own.
    """
    if len(groups) <= NAMED:
        return list(plt.get_cmap("tab10").colors[: len(groups)])
    if len(independent(groups)) == 1:
        return list(map(tuple, plt.get_cmap("viridis")(np.linspace(0, 0.92, len(groups)))))
    own = dict.fromkeys([0, *_ends(groups)])
    named = dict(zip(own, plt.get_cmap("tab10").colors, strict=False))
    return [named.get(number, OTHERS) for number in range(len(groups))]


def _ends(groups: Sequence[Group]) -> list[int]:
    """Return the places of the groups with the largest and the smallest main measure."""
    main = main_measure(groups)
    found = [np.mean(list(values(one, main).values())) for one in groups] if main else [0]
    return [int(np.argmax(found)), int(np.argmin(found))]


def _handles(axis: "Axes", groups: Sequence[Group]) -> "list[Line2D]":
    """Return lines for a legend: of every group, or of those that many groups have names for."""
    common, shown = common_settings(groups), colours(groups)
    if len(groups) <= NAMED:
        chosen = list(range(len(groups)))
    elif OTHERS in shown:
        chosen = [number for number, colour in enumerate(shown) if colour != OTHERS]
    else:
        chosen = [0, len(groups) // 2, len(groups) - 1]
    names = {number: label(groups[number].label(common, last=True), 44) for number in chosen}
    if OTHERS in shown:
        names[shown.index(OTHERS)] = "the others"
    return [axis.plot([], [], color=shown[k], label=name)[0] for k, name in names.items()]
