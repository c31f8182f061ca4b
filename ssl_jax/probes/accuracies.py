"""All probes of one encoder, from its features to a dictionary of accuracies."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.tree_util import Partial

from ssl_jax.data.dataset import Dataset
from ssl_jax.models import Network
from ssl_jax.probes.features import cached_features, extract
from ssl_jax.probes.knn import knn_accuracy
from ssl_jax.probes.linear import few_label_probe, original_probe, ridge_probe, seed_probe
from ssl_jax.probes.newton import newton_probe

Features = dict[str, np.ndarray]  # train_x (N, F), train_y (N,), test_x (M, F), test_y (M,)


def make_encode(network: Network, normalise: Callable) -> Callable:
    """encode(params, stats, image (B, H, W, C) uint8) -> features (B, F), in evaluation mode."""
    return lambda params, stats, image: network.features(params, stats, normalise(image))


def take_features(encode: Callable, params, stats, dataset: Dataset, path: Path | None, fingerprint: dict) -> Features:
    """Features of both splits; kept at `path`, where one is given, and read from there the next time."""
    apply = Partial(encode, *jax.device_get((params, stats)))

    def compute() -> Features:
        return {
            "train_x": extract(apply, dataset.train.image),
            "train_y": np.asarray(dataset.train.label),
            "test_x": extract(apply, dataset.test.image),
            "test_y": np.asarray(dataset.test.label),
        }

    return cached_features(path, fingerprint, compute) if path else compute()


def raw_pixels(dataset: Dataset) -> Features:
    """The images themselves as features, in [0, 1]."""

    def flat(image):
        return image.reshape(len(image), -1).astype(np.float32) / 255

    return {
        "train_x": flat(dataset.train.image),
        "train_y": np.asarray(dataset.train.label),
        "test_x": flat(dataset.test.image),
        "test_y": np.asarray(dataset.test.label),
    }


def calibrate(network: Network, params, stats, normalise: Callable, image: np.ndarray, batches: int = 50):
    """BatchNorm statistics of an untrained network, measured on `image` in batches of 128.

    At (0, 1), as they are born, the evaluation mode would not normalise at all, and the random encoder would look
    worse than it is.
    """
    record = jax.jit(lambda stats, batch: network.train(params, stats, normalise(batch))[1])
    size = min(128, len(image))
    for i in range(min(batches, len(image) // size)):
        stats = record(stats, image[i * size : (i + 1) * size])
    return stats


def validate(encode: Callable, params, stats, dataset: Dataset, size: int, k: int, temperature: float) -> float:
    """kNN accuracy of the last `size` training images against the others: no test image is looked at.

    Pretraining has seen all of them, without labels: only their labels are new to it.
    """
    apply = Partial(encode, *jax.device_get((params, stats)))
    x, y = extract(apply, dataset.train.image), np.asarray(dataset.train.label)
    return knn_accuracy(
        x[:-size],
        y[:-size],
        x[-size:],
        y[-size:],
        num_classes=dataset.num_classes,
        k=k,
        temperature=temperature,
    )


def judge(
    features: Features,
    num_classes: int,
    *,
    protocol: str,
    epochs: int,
    loss: str,
    ridge: bool,
    newton_l2: float,
    newton_steps: int,
    knn_k: int,
    knn_temperature: float,
    seed: int,
) -> dict[str, float]:
    """Test accuracies in [0, 1] of the probes asked for. `linear_accuracy` is that of the last epoch, by the
    replication's protocol unless only the original's is asked for; epochs 0: as the protocol has it.
    """
    data = (features["train_x"], features["train_y"], features["test_x"], features["test_y"])
    given: dict = {"batch_size": min(128, len(features["train_y"]))} | ({"epochs": epochs} if epochs else {})
    accuracies = {}
    if protocol in ("original", "both"):
        original = original_probe(*data, num_classes=num_classes, seed=seed, **given)
        accuracies["original_last_accuracy"] = accuracies["linear_accuracy"] = original.last_accuracy
        accuracies["original_best_test_epoch_accuracy"] = original.best_accuracy
    if protocol in ("seed", "both"):
        seeded = seed_probe(*data, num_classes=num_classes, seed=seed, loss=loss, **given)
        accuracies["linear_accuracy"] = seeded.last_accuracy
    if ridge:
        accuracies["ridge_accuracy"] = ridge_probe(*data, num_classes=num_classes).accuracy
    if newton_l2:
        newton = newton_probe(*data, num_classes=num_classes, l2=newton_l2, steps=newton_steps)
        accuracies["newton_accuracy"] = newton.last_accuracy
    accuracies["knn_accuracy"] = knn_accuracy(*data, num_classes=num_classes, k=knn_k, temperature=knn_temperature)
    return accuracies


def few_labels(contenders: dict[str, Features], num_classes: int, per_class: int, draws: int, seed: int) -> dict:
    """Mean and standard deviation over the same label draws for every contender."""
    table: dict = {"labels_per_class": per_class, "draws": draws}
    for name, f in contenders.items():
        accuracy = few_label_probe(
            f["train_x"],
            f["train_y"],
            f["test_x"],
            f["test_y"],
            num_classes=num_classes,
            labels_per_class=per_class,
            draws=draws,
            seed=seed,
        )
        table[name] = {
            "mean": float(accuracy.mean()),
            "std": float(accuracy.std(ddof=1)) if draws > 1 else None,
        }
    return table
