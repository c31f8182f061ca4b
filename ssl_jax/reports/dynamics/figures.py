"""Figures of recorded dynamics: 2 to 4 of Höppe et al. 2022 (ReScience C), and signs of collapse.

`Run` holds what a run recorded. Every function of FIGURES draws some of it, for all runs, into one
file, and returns its path.
"""

import functools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssl_jax.losses import OBJECTIVES, Objective
from ssl_jax.predictors import Predictor, make_predictor
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.compare.figures import panels
from ssl_jax.reports.figure import label, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct for every kind of colour vision, and a line style for each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
DPI = 150
CHARACTERS_PER_INCH = 11  # of a title
PARTS = {"encoder": "-", "projector": "--", "predictor": ":"}
PROXY = "$W_p$ of a two-layer predictor: product of its matrices, without bias, BatchNorm and ReLU"


class Run(NamedTuple):
    """What a run recorded."""

    name: str  # as the figures and tables name it
    path: Path  # the work directory
    config: dict
    arrays: dict[str, np.ndarray]  # of dynamics.npz, by name; NaN throughout where `lost`
    rates: np.ndarray  # (N, 2): step and learning rate, from metrics.csv
    lost: tuple[str, ...]  # names of damaged arrays

    @property
    def size(self) -> int:
        """Return the number D of modes."""
        return self.config["projector"]["out"]

    @property
    def predictor(self) -> Predictor:
        """The predictor of the run's kind, with default options."""
        return make_predictor(self.config["predictor"]["kind"], self.size)

    @property
    def objective(self) -> Objective:
        """The objective of the run's loss, without regularisers."""
        return OBJECTIVES[self.config["loss"]]


# --- Figures 2 to 4 -------------------------------------------------------------------------------


def figure2(runs: Sequence[Run], path: Path) -> Path:
    """Draw the eigenvalues of F (log) and of W_p over time, one line a rank, one column a run."""
    figure, axes = _columns(runs, "Eigenvalues of F and of the predictor $W_p$")
    for run, (top, bottom) in zip(runs, axes.T, strict=True):
        spectrum = run.arrays["corr_eigenvalues"]
        floor = 1e-9 * np.nanmax(spectrum, initial=0)  # below it there is only rounding
        _lines(top, run, np.where(spectrum > floor, spectrum, np.nan))
        _lines(bottom, run, run.arrays["predictor_eigenvalues"])
        top.set(yscale="log", title=label(run.name))
        bottom.axhline(0, color="0.4", lw=0.7)
        bottom.set_xlabel("epoch")
    _share(axes[0])
    axes[0, 0].set_ylabel("eigenvalue of F")
    axes[1, 0].set_ylabel("eigenvalue of $W_p$ (real part)")
    _ranks(figure, axes, runs)
    return save(figure, path, DPI)


def figure3(runs: Sequence[Run], path: Path) -> Path:
    """Draw the signed alignment of every mode over time, as lines and as a map of mode by time."""
    figure, axes = _columns(
        runs, "Alignment of F's eigenvectors with the predictor: cos($v_j$, $W_p v_j$)"
    )
    for run, (top, bottom) in zip(runs, axes.T, strict=True):
        _lines(top, run, run.arrays["alignment"])
        top.axhline(0, color="0.4", lw=0.7)
        top.set(ylim=(-1.05, 1.05), title=label(run.name))
        known = np.isfinite(run.arrays["alignment"]).all(1)
        colours = {"cmap": "RdBu", "vmin": -1, "vmax": 1, "shading": "nearest", "rasterized": True}
        if known.any():
            values = run.arrays["alignment"][known].T
            bottom.pcolormesh(
                run.arrays["epoch"][known], np.arange(1, run.size + 1), values, **colours
            )
        else:
            draw_nothing(bottom)
        bottom.grid(False)
        bottom.set(xlabel="epoch", ylim=(run.size + 0.5, 0.5))
    cosine = plt.cm.ScalarMappable(plt.Normalize(-1, 1), "RdBu")
    figure.colorbar(cosine, ax=axes[1], pad=0.02, aspect=20).set_label("alignment", fontsize=9)
    axes[0, 0].set_ylabel("alignment")
    axes[1, 0].set_ylabel("mode, by eigenvalue of F")
    _ranks(figure, axes[:1], runs)
    return save(figure, path, DPI)


def figure4(runs: Sequence[Run], path: Path) -> Path:
    """Draw the asymmetry of W_p in both norms, from before training on, all runs in one panel."""
    shown = {
        "asymmetry_l1": "$Σ|W_p - W_p^⊤|\\;/\\;Σ|W_p|$ (as the replication)",
        "asymmetry": "$‖W_p - W_p^⊤‖_F\\;/\\;‖W_p‖_F$",
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.7), layout="constrained", sharey=True)
    for axis, (name, words) in zip(axes, shown.items(), strict=True):
        _each(axis, runs, name)
        axis.axhline(np.sqrt(2), color="0.5", lw=0.8, ls=":")
        axis.set(xlabel="epoch", ylim=(-0.04, 1.55))
        axis.set_title(words, fontsize=10)
    axes[0].set_ylabel("asymmetry of $W_p$")
    axes[0].text(
        0.99,
        np.sqrt(2) + 0.015,
        "random matrix: √2",
        transform=axes[0].get_yaxis_transform(),
        ha="right",
        fontsize=7.5,
    )
    _legend(figure, axes[0])
    _entitle(figure, "Asymmetry of the predictor", runs)
    return save(figure, path, DPI)


def signs(runs: Sequence[Run], path: Path) -> Path:
    """Draw the numbers that separate learning from collapse over time, all runs in one panel."""
    shown = {
        "effective_rank": "effective rank of F",
        "relative_spread": "relative spread of projections",
        "mean_share": "share of the mean direction",
        "commutator_relative": "‖[F, $W_p$]‖ / ‖F‖ ‖$W_p$‖",
        "online_target_cosine": "cosine of online and target projections",
        "weight_cosine": "cosine of online and target weights",
    }
    norms = {
        "parameter_norm": "norm of parameters",
        "gradient_norm": "norm of gradient",
        "update_norm": "norm of update",
    }
    figure, axes = plt.subplots(3, 3, figsize=(11, 8), layout="constrained", sharex=True)
    for axis, (name, words) in zip(axes.flat, (shown | norms).items(), strict=True):
        if name in norms:
            for part, style in enumerate(PARTS.values()):
                _each(axis, runs, name, part, style)
            axis.set(yscale="log", xlabel="epoch")
        else:
            _each(axis, runs, name)
        axis.set_title(words, fontsize=10)
        if not axis.lines:
            draw_nothing(axis)
    parts = [plt.Line2D([], [], color="0.3", ls=style, label=word) for word, style in PARTS.items()]
    axes[2, 0].legend(handles=parts, fontsize=7.5)
    _legend(figure, *axes.flat[:6])
    _entitle(figure, "Signs of learning and of collapse", runs)
    return save(figure, path, DPI)


FIGURES = {"figure2": figure2, "figure3": figure3, "figure4": figure4, "signs": signs}


def _columns(runs: Sequence[Run], title: str) -> tuple["Figure", np.ndarray]:
    """Return a figure and its axes (2, R), one column a run."""
    wide = max(3.3 * len(runs) + 1.2, 5.5)
    figure, axes = panels(2, len(runs), wide / len(runs), 3.1, sharex="col")
    _entitle(figure, title, runs)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.title.set_fontsize(10)
    return figure, axes


def _entitle(figure: "Figure", title: str, runs: Sequence[Run]) -> None:
    """Set the title over all panels, and under it what W_p stands for, in lines that fit."""
    lines = [title]
    if not all(run.predictor.linear for run in runs):
        lines += textwrap.wrap(PROXY, int(CHARACTERS_PER_INCH * figure.get_figwidth()))
    figure.suptitle("\n".join(lines), fontsize=11)


def _lines(axis: "Axes", run: Run, curves: np.ndarray) -> None:
    """Draw one line for each mode of curves (T, D), the first ranks on top of the others."""
    known = np.isfinite(curves).any(1)
    for rank in reversed(range(run.size)):
        colour = ranks()(rank / max(run.size - 1, 1))
        axis.plot(run.arrays["epoch"][known], curves[known, rank], color=colour, lw=1.0, alpha=0.9)
    if not known.any():
        draw_nothing(axis)


def draw_nothing(axis: "Axes", words: str = "none recorded") -> None:
    """Write why a panel is empty."""
    axis.text(0.5, 0.5, words, transform=axis.transAxes, ha="center", color="0.4", fontsize=8)


def _share(axes: np.ndarray) -> None:
    """Set one range for all panels of a row."""
    limits = np.array([axis.get_ylim() for axis in axes if axis.lines])
    for axis in axes if len(limits) else ():
        axis.set_ylim(limits[:, 0].min(), limits[:, 1].max())


@functools.cache
def ranks() -> "ListedColormap":
    """Return Matplotlib's colours of the modes by rank: viridis without its palest end."""
    return plt.matplotlib.colors.ListedColormap(
        plt.get_cmap("viridis")(np.linspace(0, 0.92, 256)), "ranks"
    )


def _ranks(figure: "Figure", axes: np.ndarray, runs: Sequence[Run]) -> None:
    colours = plt.cm.ScalarMappable(plt.Normalize(1, runs[0].size), ranks())
    bar = figure.colorbar(colours, ax=axes, pad=0.02, aspect=20 * len(axes))
    bar.set_label("rank of the mode", fontsize=9)


def _each(
    axis: "Axes", runs: Sequence[Run], name: str, part: int | None = None, style: Any = None
) -> None:
    """Draw one line for each run."""
    for i, run in enumerate(runs):
        curve = run.arrays[name] if part is None else run.arrays[name][:, part]
        known = np.isfinite(curve)
        if known.any():
            look = {
                "color": COLOURS[i % len(COLOURS)],
                "ls": style or STYLES[i % len(STYLES)],
                "lw": 1.5,
            }
            axis.plot(run.arrays["epoch"][known], curve[known], label=label(run.name), **look)
    axis.grid(alpha=0.25)


def _legend(figure: "Figure", *axes: "Axes") -> None:
    """Name every run once, below the panels."""
    found: list[tuple[Any, str]] = [
        pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)
    ]
    # by colour, too: two long names may be shortened to the same words
    entries = {(words, line.get_color(), line.get_linestyle()): line for line, words in found}
    if entries:
        figure.legend(
            entries.values(),
            [words for words, *_ in entries],
            loc="outside lower center",
            ncols=min(len(entries), 4),
            fontsize=8.5,
        )
