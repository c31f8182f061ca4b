"""Figures of compared runs: curves over training, spectra, and a measure against what varies."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.compare.runs import (
    MEASURES,
    Group,
    common_settings,
    estimate,
    rank,
    spelled,
)
from ssl_jax.reports.figure import label
from ssl_jax.workdir.schema import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
COLUMNS = 3  # panels beside each other
NAMED = 12  # groups that a legend has room for
DECADES = 1.5  # an axis is logarithmic where its positive values span more powers of ten


def draw_curves(groups: Sequence[Group]) -> "Figure | None":
    """Draw each curve that some run has: the seeds' mean, and the band from lowest to highest."""
    panels = [
        name
        for name in CURVES
        if any(np.isfinite(run.columns.get(name, np.nan)).any() for g in groups for run in g.runs)
    ]
    if not panels:
        return None
    rows = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(
        rows,
        min(COLUMNS, len(panels)),
        figsize=(3.6 * min(COLUMNS, len(panels)), 2.7 * rows + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for axis, name in zip(axes.flat, panels, strict=False):
        for one, colour in zip(groups, colours(len(groups)), strict=True):
            _draw_curve(axis, one, name, colour)
        axis.set_title(CURVES[name], fontsize=9)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if name == "top_eigenvalue":
            axis.set_yscale("log")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    _legend(figure, axes.flat[0], groups)
    return figure


def _draw_curve(axis: "Axes", one: Group, name: str, colour: tuple) -> None:
    """Draw a column of the group's runs that have it, at the steps that all of these have."""
    curves = []
    for run in one.runs:
        values = run.columns.get(name, np.zeros(0))
        known = np.isfinite(values)
        if known.any():
            curves.append(dict(zip(run.columns["step"][known], values[known], strict=True)))
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    if not steps:
        return
    values = np.array([[curve[step] for step in steps] for curve in curves])
    marker = "o" if len(steps) < 30 else None
    axis.plot(steps, values.mean(0), color=colour, lw=1.4, marker=marker, ms=3)
    if len(values) > 1:
        axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.18, lw=0)


def draw_spectra(groups: Sequence[Group]) -> "Figure | None":
    """Draw the final eigenvalues of F, a line for each seed; None: none were kept."""
    spectra = [
        [run.result["correlation_eigenvalues"] for run in g.runs if _has_spectrum(run.result)]
        for g in groups
    ]
    if not any(spectra):
        return None
    figure, axis = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
    for found, colour in zip(spectra, colours(len(groups)), strict=True):
        for number, spectrum in enumerate(found):
            values = np.array([np.nan if v is None else v for v in spectrum], np.float64)
            values = np.where(values > np.nanmax(values) * 1e-9, values, np.nan)
            rank = np.arange(1, len(values) + 1)
            axis.semilogy(rank, values, color=colour, lw=1.2, alpha=1 if not number else 0.45)
    axis.set(xlabel="rank", ylabel="eigenvalue of F at the end")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    _legend(figure, axis, groups)
    return figure


def _has_spectrum(result: dict) -> bool:
    return any(is_number(value) for value in result.get("correlation_eigenvalues") or [])


def draw_fields(groups: Sequence[Group], measure: str) -> "Figure | None":
    """Draw a measure against what varies: a line for one field, a map for two.

    Fields that change together with another count once. None is returned for none or more, and
    where a single group is left.
    """
    fields = independent(groups)
    if len(groups) < 2 or len(fields) not in (1, 2):
        return None
    return (_draw_line if len(fields) == 1 else _draw_map)(groups, measure, *fields)


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
    figure, axis = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
    settings = [one.settings[field] for one in groups]
    numbers = all(is_number(value) for value in settings)
    x = np.array(settings, np.float64) if numbers else np.arange(len(groups), dtype=np.float64)
    found = [estimate(one, measure) for one in groups]
    y = np.array([np.nan if e is None else e.mean for e in found])
    width = np.array([np.nan if e is None or e.width is None else e.width for e in found])
    (line,) = axis.plot(x, y, "o-" if numbers else "o", ms=5, lw=1.4)
    if np.isfinite(width).any():
        if numbers:
            low, high = y - width, y + width
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.18, lw=0)
        else:
            axis.errorbar(x, y, yerr=width, fmt="none", color=line.get_color(), capsize=3)
    if numbers and (x > 0).all() and np.log10(x.max() / x.min()) > DECADES:
        axis.set_xscale("log")
    if not numbers:
        axis.set_xticks(x, [label(spelled(value), 16) for value in settings])
    axis.set(xlabel=label(field), ylabel=MEASURES[measure].title)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_map(groups: Sequence[Group], measure: str, down: str, across: str) -> "Figure":
    """Draw a heat map of the means with their numbers; cells that were not run stay blank."""
    ordered = sorted(groups, key=lambda one: rank(one.settings[across]))
    rows = list(dict.fromkeys(spelled(one.settings[down]) for one in groups))
    columns = list(dict.fromkeys(spelled(one.settings[across]) for one in ordered))
    values = np.full((len(rows), len(columns)), np.nan)
    for one in groups:
        place = (
            rows.index(spelled(one.settings[down])),
            columns.index(spelled(one.settings[across])),
        )
        found = estimate(one, measure)
        values[place] = np.nan if found is None else found.mean
    figure, axis = plt.subplots(
        figsize=(1.1 * len(columns) + 2.6, 0.55 * len(rows) + 1.6), layout="constrained"
    )
    shown = axis.imshow(values, cmap="viridis", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2 if np.isfinite(values).any() else 0
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "black" if value > middle else "white"
            axis.text(j, i, f"{value:.4g}", ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(len(columns)), [label(text, 16) for text in columns])
    axis.set_yticks(range(len(rows)), [label(text, 16) for text in rows])
    axis.set(xlabel=label(across), ylabel=label(down))
    figure.colorbar(shown, label=MEASURES[measure].title)
    return figure


def colours(count: int) -> list[tuple]:
    """Return a colour for each group: of their own for ten, else in the order of a scale."""
    if count <= 10:
        return list(plt.get_cmap("tab10").colors[:count])
    return list(plt.get_cmap("viridis")(np.linspace(0, 0.92, count)))


def _legend(figure: "Figure", axis: "Axes", groups: Sequence[Group]) -> None:
    """Name the groups above the figure; of many, the first and the last."""
    common = common_settings(groups)
    chosen = list(zip(groups, colours(len(groups)), strict=True))
    if len(groups) > NAMED:
        chosen = [chosen[0], chosen[-1]]
    lines = [
        axis.plot([], [], color=colour, label=label(one.label(common, last=True), 60))[0]
        for one, colour in chosen
    ]
    if len(groups) > 1:
        figure.legend(handles=lines, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
