"""Figures of one run, drawn from its result files."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ssl_jax.augment.views import to_display, to_unit
from ssl_jax.data.splits import choose
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.compare.figures import draw_band, draw_spectrum, panel, panels
from ssl_jax.reports.figure import label, save
from ssl_jax.workdir.directory import read_json
from ssl_jax.workdir.metrics_csv import read_rows
from ssl_jax.workdir.schema import REAL, TEXT, WHOLE, require

PROJECTED = 2000  # most points in the projection of features: more hide each other
CLASSES = 20  # most classes drawn, in as many distinct colours
DPI = 120
NAMED = {"method": TEXT, "dataset": TEXT, "seed": WHOLE}  # what titles need of result.json


def draw_run(directory: Path) -> None:
    """Draw training.png, collapse.png and spectrum.png of a pretraining run.

    They come from metrics.csv and result.json of its work directory.
    """
    rows = read_rows(directory / "metrics.csv")
    columns = {name: np.array([row.get(name, np.nan) for row in rows]) for name in rows[0]}
    result = read_result(directory, NAMED | {"correlation_eigenvalues": [REAL]})
    title = title_of(result)
    figures = directory / "figures"
    shown = {
        "loss": "loss",
        "knn_validation": "kNN accuracy, training images",
        "rankme": "RankMe, features of training images",
        "lidar": "LiDAR, features of training images",
    }
    known = {n: words for n, words in shown.items() if n == "loss" or _is_known(columns, n)}
    _curves(columns, known, title, figures / "training.png")
    _curves(
        columns,
        {
            "relative_spread": "relative spread of projections (0: collapsed)",
            "effective_rank": "effective rank of the correlation F",
            "predictor_norm": "norm of the predictor",
            "predictor_asymmetry": "asymmetry of the predictor",
        },
        title,
        figures / "collapse.png",
        from_zero=True,  # collapse is a fall to zero, which an axis that fits the curve would hide
    )
    figure, axis = panel(4.6, 3.4)
    draw_spectrum(axis, result["correlation_eigenvalues"], marker=".", ms=3)
    axis.set_title(title, fontsize=9)
    save(figure, figures / "spectrum.png", DPI)


def _is_known(columns: dict[str, np.ndarray], name: str) -> bool:
    """Return whether the run has a column, with a number in it."""
    return name in columns and bool(np.isfinite(columns[name]).any())


def draw_supervised(directory: Path) -> None:
    """Draw training.png of a supervised run, and opposing.png where its decay is a penalty."""
    rows = read_rows(directory / "metrics.csv")
    columns = {name: np.array([row.get(name, np.nan) for row in rows]) for name in rows[0]}
    title = title_of(read_result(directory, NAMED))
    shown = {"loss": "training loss", "train_accuracy": "accuracy on augmented training images"}
    shown |= {
        "validation_loss": "loss, held-out training images",
        "validation_accuracy": "accuracy, held-out training images",
        "test_accuracy": "accuracy, test images",
    }
    shown |= {"learning_rate": "learning rate"}
    known = {name: words for name, words in shown.items() if _is_known(columns, name)}
    _curves(columns, known, title, directory / "figures" / "training.png")
    if np.isfinite(columns["opposing_ratio"]).any():
        shown = {"opposing_ratio": "opposing penalty A (share of the penalty's size)"}
        shown |= {"opposing_fraction": "share of weights that decay pushes up"}
        of_wd = {f"wd_{name}": f"of WD: {label}" for name, label in shown.items()}
        shown |= {name: label for name, label in of_wd.items() if np.isfinite(columns[name]).any()}
        _curves(columns, shown, title, directory / "figures" / "opposing.png", from_zero=True)


def read_result(directory: Path, fields: dict) -> dict:
    """Return result.json of a work directory; UserError where `fields` are not as figures need."""
    path = directory / "result.json"
    return require(read_json(path), fields, path)


def title_of(result: dict) -> str:
    """Return the title of a run's figures."""
    return f"{label(result['method'])} on {label(result['dataset'])}, seed {result['seed']}"


def _curves(
    columns: dict[str, np.ndarray],
    shown: dict[str, str],
    title: str,
    path: Path,
    from_zero: bool = False,
) -> None:
    """Draw one panel for each column against the epoch."""
    figure, axes = panels(1, len(shown), 4.2, 3.2)
    for axis, (name, words) in zip(axes[0], shown.items(), strict=True):
        known = np.isfinite(columns[name])
        draw_band(axis, columns["epoch"][known], columns[name][known], None)
        axis.set(xlabel="epoch", title=words, xlim=(0, columns["epoch"].max() * 1.02))
        if from_zero:
            axis.set_ylim(0, max(np.nanmax(columns[name], initial=0) * 1.08, 1e-3))
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    save(figure, path, DPI)


def draw_features(
    features: dict[str, np.ndarray], names: tuple[str, ...], path: Path, split: str = "test"
) -> None:
    """Draw features on their first two principal components, coloured by label where there is one.

    Args:
        features: "test_x" (N, F) and "test_y" (N,) integer labels, or those of `split`.
        names: name of each class; () for a set without labels.
        path: the file; its folder is created.
        split: whose features are drawn.
    """
    x, y = (features[f"{split}_{name}"] for name in "xy")
    rows = choose(y, min(PROJECTED, len(y)))
    x, y = x[rows], y[rows]
    drawn = y < CLASSES
    colours = plt.get_cmap("tab10" if len(names) <= 10 else "tab20")
    figure, axis = plt.subplots(figsize=(6, 4.6), layout="constrained")
    # All in one call, in the order of the set, so that no class lies on top of the others.
    axis.scatter(
        *principal(x)[drawn].T,
        s=6,
        alpha=0.7,
        lw=0,
        color=colours(y[drawn]) if names else "tab:blue",
    )
    present = set(y.tolist())
    for number, name in enumerate(names[:CLASSES]):
        if number not in present:  # a class without test images, as in EMNIST's letters
            continue
        axis.scatter([], [], s=6, color=colours(number), label=label(name))
    if names:
        axis.legend(fontsize=7, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    some = f", first {CLASSES} of {len(names)} classes" if len(names) > CLASSES else ""
    axis.set(title=f"{split} features, first two principal components{some}", xticks=[], yticks=[])
    axis.title.set_fontsize(9)
    save(figure, path, DPI)


def draw_neighbours(query: np.ndarray, neighbours: np.ndarray, path: Path) -> None:
    """Draw a row for each query image: the image, and its nearest neighbours by cosine.

    Args:
        query: images (Q, H, W, C) uint8.
        neighbours: images (Q, K, H, W, C) uint8, the nearest first.
        path: the file; its folder is created.
    """
    count = neighbours.shape[1]
    figure, axes = panels(len(query), 1 + count, 0.85, 0.83)
    for row, own, others in zip(axes, query, neighbours, strict=True):
        for axis, picture in zip(row, (own, *others), strict=True):
            axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        for spine in row[0].spines.values():
            spine.set(color="tab:red", linewidth=2)
    axes[0][0].set_title("image", fontsize=8)
    if count:
        axes[0][1].set_title("nearest", fontsize=8)
    save(figure, path, DPI)


def draw_transfer(results: Sequence[dict], trained_on: str, path: Path) -> None:
    """Draw the linear and the kNN accuracy of a checkpoint on several sets.

    Args:
        results: "dataset" of each, and its accuracies, of the untrained encoder, too; those that it
            lacks are left out.
        trained_on: name of the set of the run.
        path: the file; its folder is created.
    """
    figure, axis = panel(6.4, 0.55 * len(results) + 1.5)
    for name, words, colour in (("linear", "linear", "tab:blue"), ("knn", "kNN", "tab:orange")):
        for prefix, of, filled in (("", "", colour), ("random_init_", ", untrained", "none")):
            known = [
                (100 * result[f"{prefix}{name}_accuracy"], row)
                for row, result in enumerate(results)
                if f"{prefix}{name}_accuracy" in result
            ]
            if known:
                x, y = zip(*known, strict=True)
                axis.plot(x, y, "o", ms=7, mec=colour, mfc=filled, label=f"{words}{of}")
    axis.set(
        xlim=(0, 100),
        ylim=(len(results) - 0.5, -0.5),
        xlabel="test accuracy, %",
        yticks=range(len(results)),
        yticklabels=[label(result["dataset"]) for result in results],
        title=f"pretrained on {label(trained_on)}",
    )
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path, DPI)


def principal(x: np.ndarray) -> np.ndarray:
    """Return the rows of x (N, F) on their first two principal components, (N, 2).

    All are zero where all rows are equal, as after a collapse.
    """
    centred = x - x.mean(0, dtype=np.float64)[None, :]
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T


def draw_views(
    image: np.ndarray,
    pairs: Sequence[jax.Array],
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
) -> None:
    """Draw a row of images over two rows of their views.

    Args:
        image: originals, (B, H, W, C) uint8.
        pairs: both views, normalised, (B, H, W, C) float each.
        mean: mean of each channel, which normalisation subtracted.
        std: standard deviation of each channel, by which it divided.
        path: the file; its folder is created.
    """
    rows = [
        np.asarray(to_unit(image)),
        *(np.asarray(to_display(view, mean, std)) for view in pairs),
    ]
    figure, axes = panels(3, len(image), 1.2, 1.3)
    for row, pictures, words in zip(axes, rows, ("image", "view 1", "view 2"), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(words, fontsize=9)
    save(figure, path, DPI)
