"""README.md's figure, from stored results.

`python -m ssl_jax.reports.front_figure` draws docs/figures/front.png.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.figure import label, required, save
from ssl_jax.text import printable
from ssl_jax.workdir.directory import read_json
from ssl_jax.workdir.schema import CURVE, NUMBER, TEXT, Shape, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
QUICKSTART = "quickstart.json"
FULL = "table1/full/byol/seed-0.json"
HEALTHY, COLLAPSING = "table1/midi/byol/seed-0.json", "table1/midi/simsiam_sym/seed-0.json"
PUBLISHED = 0.842  # BYOL's linear accuracy, Höppe et al. 2022, table 1
SHOWN = 12  # eigenvalues, the largest
HISTORY = {"step": [NUMBER], "corr_eigenvalues": [CURVE]}  # a record without them: [null, ...]
SHAPES: dict[str, Shape] = {
    QUICKSTART: {
        "few_label": {
            name: {"mean": NUMBER} for name in ("raw_pixels", "random_init", "pretrained")
        }
    },
    "run": {
        "random_init_linear_accuracy": NUMBER,
        "linear_accuracy": NUMBER,
        "state": TEXT,
        "dynamics": {"history": HISTORY},
    },
}
GREY, BLUE = "0.72", "#0072B2"


def draw(results: Path, path: Path) -> dict[str, np.ndarray]:
    """Draw the gain by pretraining, and the spectra of a run that learns and of one that collapses.

    Args:
        results: folder of the stored results, as `results/` has them.
        path: PNG to write.

    Returns:
        The numbers drawn: "digits" (3,) accuracies of raw pixels, untrained and pretrained encoder;
        "cifar10" (2,) of untrained and pretrained encoder; "healthy", "collapsing" (T, SHOWN)
        shares of the trace of F.
    """
    few = read(results / QUICKSTART)["few_label"]
    full = read(results / FULL)
    drawn = {
        "digits": np.array(
            [few[name]["mean"] for name in ("raw_pixels", "random_init", "pretrained")]
        ),
        "cifar10": np.array([full["random_init_linear_accuracy"], full["linear_accuracy"]]),
    }
    figure, axes = plt.subplots(
        1, 3, figsize=(10, 3.1), layout="constrained", width_ratios=(1.2, 1, 1)
    )
    _bars(axes[0], drawn)
    titles = {
        "healthy": (HEALTHY, "BYOL"),
        "collapsing": (COLLAPSING, "SimSiam with a symmetric predictor"),
    }
    for axis, (name, (file, title)) in zip(axes[1:], titles.items(), strict=True):
        run = read(results / file)
        step, drawn[name] = spectrum_shares(run["dynamics"]["history"])
        axis.semilogy(step, drawn[name][:, 1:], color="0.6", lw=0.9)
        axis.semilogy(step, drawn[name][:, 0], color=BLUE, lw=2)
        axis.set(ylim=(1e-6, 2), xlabel="step (ResNet-18 of width 16)")
        accuracy = f"{100 * run['linear_accuracy']:.1f} %"
        axis.set_title(f"{title}\n{accuracy}, doctor: {label(run['state'])}", fontsize=9)
        axis.grid(alpha=0.3)
    axes[1].set_ylabel(f"{SHOWN} largest eigenvalues of F,\nshare of the trace", fontsize=8)
    save(figure, path, 92)
    return drawn


def read(path: Path) -> dict:
    """Return a stored result; UserError where it lacks what the figure shows of it."""
    return require(read_json(path), SHAPES[path.name if path.name == QUICKSTART else "run"], path)


def spectrum_shares(history: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return steps (T,), and the SHOWN largest eigenvalues of F as shares of the trace."""
    kept = [
        i
        for i, values in enumerate(history["corr_eigenvalues"])
        if values and values[0] is not None
    ]
    values = np.array([history["corr_eigenvalues"][i] for i in kept], np.float64)
    values = -np.sort(-np.maximum(values, 0), axis=1)
    return np.array(history["step"])[kept], values[:, :SHOWN] / values.sum(axis=1, keepdims=True)


def _bars(axis: "Axes", drawn: dict[str, np.ndarray]) -> None:
    names = ["raw pixels", "untrained", "pretrained", "untrained", "pretrained"]
    values = 100 * np.concatenate([drawn["digits"], drawn["cifar10"]])
    place = np.array([0, 1, 2, 3.6, 4.6])
    axis.bar(place, values, width=0.8, color=[GREY, GREY, BLUE, GREY, BLUE])
    for x, value in zip(place, values, strict=True):
        axis.text(x, value + 1.5, f"{value:.1f}", ha="center", fontsize=8)
    axis.plot([4.1, 5.1], [100 * PUBLISHED] * 2, color="black", ls=":", lw=1.3)
    axis.text(5.12, 100 * PUBLISHED, "published", fontsize=7, va="center")
    axis.set_xticks(place, names, fontsize=7, rotation=20)
    axis.set(ylim=(0, 108), xlim=(-0.6, 6.5))
    axis.set_ylabel("test accuracy, %", fontsize=8)
    axis.text(
        1,
        -0.2,
        "digits,\n10 labels a class",
        va="top",
        ha="center",
        transform=axis.get_xaxis_transform(),
        fontsize=8,
    )
    axis.text(
        4.1,
        -0.2,
        "CIFAR-10, ResNet-18,\nlinear probe",
        va="top",
        ha="center",
        transform=axis.get_xaxis_transform(),
        fontsize=8,
    )
    axis.set_title("What pretraining without labels is worth", fontsize=9)


def main() -> int:
    """Draw the figure; a result that does not fit gives one line."""
    results = ROOT / "results"
    try:
        with required(results):
            draw(results, ROOT / "docs" / "figures" / "front.png")
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
