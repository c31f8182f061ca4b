"""README.md's figure, from stored results.

`python -m ssl_jax.reports.front_figure` draws docs/figures/front.png.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
QUICKSTART = "quickstart.json"
FULL = "table1/full/byol/seed-0.json"
HEALTHY, COLLAPSING = "table1/mini/byol/seed-0.json", "table1/mini/simsiam_sym/seed-0.json"
PUBLISHED = 0.842  # BYOL's linear accuracy, Höppe et al. 2022, table 1
SHOWN = 12  # eigenvalues, the largest
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
    few = _read(results / QUICKSTART)["few_label"]
    full = _read(results / FULL)
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
        run = _read(results / file)
        step, drawn[name] = spectrum_shares(run["dynamics"]["history"])
        axis.semilogy(step, drawn[name][:, 1:], color="0.6", lw=0.9)
        axis.semilogy(step, drawn[name][:, 0], color=BLUE, lw=2)
        axis.set(ylim=(1e-6, 2), xlabel="step")
        axis.set_title(f"{title}\ndoctor: {run['state']}", fontsize=9)
        axis.grid(alpha=0.3)
    axes[1].set_ylabel(f"{SHOWN} largest eigenvalues of F,\nshare of the trace", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=95)
    plt.close(figure)
    return drawn


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
        "CIFAR-10,\nlinear probe",
        va="top",
        ha="center",
        transform=axis.get_xaxis_transform(),
        fontsize=8,
    )
    axis.set_title("What pretraining without labels is worth", fontsize=9)


def _read(path: Path) -> dict:
    return json.loads(path.read_text())


if __name__ == "__main__":
    draw(ROOT / "results", ROOT / "docs" / "figures" / "front.png")
