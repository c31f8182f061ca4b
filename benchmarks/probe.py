"""How fast frozen features are judged: the replication's linear probe, the original's, ridge
regression, and kNN.

    python benchmarks/probe.py [--quick] [--out FILE]

CIFAR-10's numbers: 50 000 features of 512 to train on, 10 000 to test, 10 classes. The features are
made up. Times are those of a caller with NumPy arrays: standardising, transfers to the device and
the tests are in them, compiling is not. --quick takes fewer epochs and fewer queries of kNN, and
extrapolates in a column that says so.
"""

import functools

import numpy as np
from common import alternate, finish, parse

from ssl_jax.probes.knn import knn_accuracy
from ssl_jax.probes.linear import original_probe, ridge_probe, seed_probe

TRAIN, TEST, WIDTH, CLASSES = 50_000, 10_000, 512, 10
EPOCHS = {"seed": 100, "original": 50}  # as published


def main() -> None:
    args = parse(__doc__.splitlines()[0])
    epochs = dict.fromkeys(EPOCHS, 10) if args.quick else EPOCHS
    queries = 1000 if args.quick else TEST
    probes = contenders(synthetic_features(), epochs, queries)
    times = alternate(probes, repeats=3 if args.quick else 5)
    finish(
        args, "probe", [row(name, time, epochs.get(name), queries) for name, time in times.items()]
    )


def contenders(data: tuple[np.ndarray, ...], epochs: dict[str, int], queries: int) -> dict:
    train_x, train_y, test_x, test_y = data
    judged = functools.partial(knn_accuracy, train_x, train_y, test_x[:queries], test_y[:queries])
    return {
        "seed": lambda: seed_probe(*data, num_classes=CLASSES, epochs=epochs["seed"], seed=0),
        "original": lambda: original_probe(
            *data, num_classes=CLASSES, epochs=epochs["original"], seed=0
        ),
        "ridge": lambda: ridge_probe(*data, num_classes=CLASSES),
        "knn": lambda: judged(num_classes=CLASSES),
    }


def synthetic_features() -> tuple[np.ndarray, ...]:
    """(train_x, train_y, test_x, test_y): a mean for each class and noise around it, cut at 0 as
    ReLU does.
    """
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, TRAIN + TEST, dtype=np.int32)
    means = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    x = np.maximum(0.2 * means[label] + rng.standard_normal((len(label), WIDTH), np.float32), 0)
    return x[:TRAIN], label[:TRAIN], x[TRAIN:], label[TRAIN:]


def row(name: str, time: dict, epochs: int | None, queries: int) -> dict:
    """The images are training images of every epoch, for ridge of one pass, and for kNN test
    images.
    """
    seconds = time["median_s"]
    part = epochs / EPOCHS[name] if epochs else queries / TEST if name == "knn" else 1
    return {
        "probe": name,
        "epochs": epochs,
        "test_images": queries if name == "knn" else TEST,
        **time,
        "epochs_per_s": epochs / seconds if epochs else None,
        "images_per_s": (queries if name == "knn" else TRAIN * (epochs or 1)) / seconds,
        "extrapolated_s": seconds / part if part < 1 else None,
    }


if __name__ == "__main__":
    main()
