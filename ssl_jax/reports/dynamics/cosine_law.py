"""Recorded runs beside the theory of the cosine loss: where modes rest, and on which spectrum."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssl_jax.dynamics import cosine
from ssl_jax.predictors.predictor import LONG_RHO
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.compare.figures import panels
from ssl_jax.reports.dynamics.figures import DPI, PROXY, Run, draw_nothing, ranks
from ssl_jax.reports.figure import label, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAST = 0.25  # share of the records whose mean is compared: c is of single batches
SEEN = 1e-6  # share of F's largest eigenvalue from which on a mode is more than rounding


class Comparison(NamedTuple):
    """The modes at the end of a run, by descending eigenvalue of F; the mean of the last records.

    F is of noisy views, uncentred, as everywhere in a run.
    """

    c: np.ndarray  # (D,) correlation of the two views in each mode
    p: np.ndarray  # (D,) v·W_p v over q = Σ p² f / Σ p f c; the law says that it is c
    f: np.ndarray  # (D,) eigenvalues of F over its norm, that of the law
    law: np.ndarray | None  # (D,) what f should be; None where the start decides that

    @property
    def seen(self) -> np.ndarray:
        """Return which modes are more than rounding, (D,)."""
        return self.f > SEEN * self.f.max()

    def summary(self) -> dict[str, Any]:
        """Return the numbers of result.json: c, and the largest differences over modes seen."""
        found: dict[str, Any] = {
            "view_correlation": [round(float(x), 4) for x in self.c],
            "rest": round(float(np.abs(self.p - self.c)[self.seen].max()), 4),
        }
        if self.law is not None:
            found["spectrum"] = round(float(np.abs(self.f - self.law).max()), 4)
            found["modes_of_the_law"] = int(np.sum(self.law > 0))
        return found


def _direct_pred(c: np.ndarray, f: np.ndarray, predictor: dict) -> tuple[np.ndarray, float] | None:
    """Return the law and the norm of F of `direct_pred`; None where it has none."""
    top, mode = f.max(), predictor["eps_mode"]
    if mode == "clipped" and top < 1:
        return None  # all modes above top² have one eigenvalue
    eps = predictor["eps"] * (np.sqrt(top) if mode == "literal" else 1)
    return cosine.direct_spectrum(c, power=0.5, eps=eps), top


def _direct_copy(c: np.ndarray, f: np.ndarray, predictor: dict) -> tuple[np.ndarray, float]:
    """Return the law and the norm of F of `direct_copy`."""
    law = cosine.direct_spectrum(c, power=1.0, eps=predictor["eps"], norm="frobenius")
    return law, float(np.linalg.norm(f))


def _direct_set(c: np.ndarray, f: np.ndarray, predictor: dict) -> tuple[np.ndarray, float] | None:
    """Return the law and the norm of F of `direct_set`; None where it divides by none."""
    power, eps, norm = (predictor[name] for name in ("power", "eps", "norm"))
    if norm == "none":
        return None
    sizes = {"max": np.max, "frobenius": np.linalg.norm, "trace": np.sum}
    return cosine.direct_spectrum(c, power=power, eps=eps, norm=norm), float(sizes[norm](f))


# Kinds of predictor whose spectrum does not depend on the start: law(c, f, fields) -> (f over its
# norm, that norm).
LAWS: dict[str, Callable[..., tuple[np.ndarray, float] | None]] = {
    "direct_pred": _direct_pred,
    "direct_copy": _direct_copy,
    "direct_set": _direct_set,
}


def compare(run: Run, share: float = LAST) -> Comparison | None:
    """Return a run's modes beside the law; None where another loss, or no record, leaves none.

    The modes are the mean of the last `share` of the records.
    """
    a = run.arrays
    whole = (a["view_correlation"], a["mode_predictor"], a["corr_eigenvalues"])
    known = np.flatnonzero(np.all([np.isfinite(x).all(1) for x in whole], axis=0))
    # IsoLoss has other rates and the same rest
    if run.config["loss"] not in ("cosine", "iso_cosine") or not len(known):
        return None
    last = known[-max(1, round(share * len(known))) :]
    c, p, f = (x[last].mean(0) for x in whole)
    c, f = np.clip(c, 0, 1), np.maximum(f, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = p / cosine.level(p, f, c)
    predictor = run.config["predictor"]
    # a predictor that is centred, or remembers long, is of another F than the recorded one
    other = predictor["centre"] or predictor["rho"] > LONG_RHO
    of_kind = None if other else LAWS.get(predictor["kind"])
    found = of_kind(c, f, predictor) if of_kind else None
    law, size = (None, f.max()) if found is None else found
    return Comparison(c, p, f / size if size > 0 else f, law)


def draw(runs: Sequence[Run], path: Path) -> Path:
    """Draw the modes of every run that `compare` takes: p/q by c, and F's spectrum by the law's.

    Args:
        runs: recorded runs, one of which `compare` takes at least.
        path: the file.

    Returns:
        The file.
    """
    shown = {run.name: found for run in runs if (found := compare(run)) is not None}
    laws = any(found.law is not None for found in shown.values())
    rows, wide = 2 if laws else 1, max(3.3 + 1.2 / len(shown), 5.5 / len(shown))
    figure, axes = panels(rows, len(shown), wide, 3.3 if laws else 3.7, sharey="row")
    for column, (name, found) in enumerate(shown.items()):
        _rest(axes[0, column], found)
        axes[0, column].set_title(label(name), fontsize=10)
        if laws:
            _spectrum(axes[1, column], found)
    axes[0, 0].set_ylabel("$p_j\\,/\\,q$, measured")
    if laws:
        axes[1, 0].set_ylabel("$f_j\\,/\\,‖f‖$ of F, measured")
    most = max(len(found.c) for found in shown.values())
    colours = plt.cm.ScalarMappable(plt.Normalize(1, max(most, 2)), ranks())
    figure.colorbar(colours, ax=axes, pad=0.02, aspect=20 * rows).set_label(
        "rank of the mode", fontsize=9
    )
    title = "Modes at the end beside the theory of the cosine loss (on the line)"
    of_two_layers = any(not run.predictor.linear for run in runs if run.name in shown)
    figure.suptitle(f"{title}\n{PROXY}" if of_two_layers else title, fontsize=11)
    return save(figure, path, DPI)


def _colours(found: Comparison) -> np.ndarray:
    return ranks()(np.arange(len(found.c)) / max(len(found.c) - 1, 1))


def _rest(axis: "Axes", found: Comparison) -> None:
    """Draw p/q by c, hollow where a mode is no more than rounding."""
    axis.plot([0, 1.05], [0, 1.05], color="0.5", lw=0.8)
    colours = _colours(found)
    faces = np.where(found.seen[:, None], colours, 0.0)  # (D, 4): red, green, blue, opacity
    axis.scatter(found.c, found.p, s=22, facecolors=faces.tolist(), edgecolors=colours.tolist())
    axis.set(xlim=(-0.03, 1.05), xlabel="correlation $c_j$ of the two views")
    axis.grid(alpha=0.25)


def _spectrum(axis: "Axes", found: Comparison) -> None:
    """Draw the measured spectrum by the law's, dead modes of the law at the left edge."""
    axis.grid(alpha=0.25)
    if found.law is None:
        draw_nothing(axis, "decided by the start")
        return
    floor = 1e-5
    axis.plot([floor, 1], [floor, 1], color="0.5", lw=0.8)
    axis.axvspan(floor / 2, floor * 2, color="0.93", lw=0)
    axis.scatter(np.maximum(found.law, floor), np.maximum(found.f, floor), s=22, c=_colours(found))
    axis.set(xscale="log", yscale="log", xlabel="$f_j\\,/\\,‖f‖$ of the law (grey: dead)")
    axis.set_xlim(floor / 2, 2)
    axis.set_ylim(floor / 2, 2)
