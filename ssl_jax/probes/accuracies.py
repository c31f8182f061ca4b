"""All probes of one encoder, from its features to a dictionary of accuracies."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.tree_util import Partial

from ssl_jax.augment.geometry import central_crop
from ssl_jax.data.dataset import Dataset
from ssl_jax.data.splits import held_out_rows
from ssl_jax.models import Network
from ssl_jax.probes.features import cached_features, extract
from ssl_jax.probes.knn import knn_accuracy
from ssl_jax.probes.linear import few_label_probe, original_probe, ridge_probe, seed_probe
from ssl_jax.probes.newton import newton_probe
from ssl_jax.types import Params, PyTree

Features = dict[str, np.ndarray]  # train_x (N, F), train_y (N,), test_x (M, F), test_y (M,)
# image (B, H, W, C) uint8 -> float32, see `augment.views.evaluation_view`
Normalise = Callable[[jax.Array], jax.Array]
Encode = Callable[[Params, PyTree, jax.Array], jax.Array]  # params, stats, image -> features (B, F)


def make_encode(network: Network, normalise: Normalise) -> Encode:
    """Return encode(params, stats, image (B, H, W, C) uint8) -> features (B, F).

    The network is in evaluation mode.
    """
    return lambda params, stats, image: network.features(params, stats, normalise(image))


def take_features(
    encode: Encode,
    params: Params,
    stats: PyTree,
    dataset: Dataset,
    path: Path | None,
    fingerprint: dict,
) -> Features:
    """Compute the features of both splits, or read them from disk.

    Args:
        encode: the function of `make_encode`.
        params: its parameters.
        stats: its BatchNorm statistics.
        dataset: images and labels of both splits.
        path: file that keeps the features for the next call. None: nothing is kept.
        fingerprint: all that the features depend on, as JSON values, see `cached_features`.

    Returns:
        Features and labels of both splits, float32 and integers.
    """
    apply = Partial(encode, *jax.device_get((params, stats)))

    def compute() -> Features:
        train_x, count = extract(apply, dataset.train.image), len(dataset.test.label)
        return {
            "train_x": train_x,
            "train_y": np.asarray(dataset.train.label),
            "test_x": extract(apply, dataset.test.image) if count else train_x[:0],
            "test_y": np.asarray(dataset.test.label),
        }

    return cached_features(path, fingerprint, compute) if path else compute()


def raw_pixels(dataset: Dataset, size: int = 0) -> Features:
    """Return the images, or their central crops of `size` pixels, as features in [0, 1]."""

    def flat(image: np.ndarray) -> np.ndarray:
        image = central_crop(image, size) if size else image
        return image.reshape(len(image), -1).astype(np.float32) / 255

    return {
        "train_x": flat(dataset.train.image),
        "train_y": np.asarray(dataset.train.label),
        "test_x": flat(dataset.test.image),
        "test_y": np.asarray(dataset.test.label),
    }


def calibrate(
    network: Network,
    params: Params,
    stats: PyTree,
    normalise: Normalise,
    image: np.ndarray,
    batches: int = 50,
) -> PyTree:
    """Measure the BatchNorm statistics of an untrained network, in batches of 128 images.

    At their initial mean 0 and variance 1 the evaluation mode would not normalise at all. The
    random encoder would look worse than it is.

    Args:
        network: the untrained network.
        params: its parameters.
        stats: its BatchNorm statistics as initialised.
        normalise: the function from bytes to the network's input.
        image: (N, H, W, C) uint8.
        batches: largest number of batches.

    Returns:
        The statistics, a pytree like `stats`.
    """
    record = jax.jit(lambda stats, batch: network.train(params, stats, normalise(batch))[1])
    size = min(128, len(image))
    for i in range(min(batches, len(image) // size)):
        stats = record(stats, image[i * size : (i + 1) * size])
    return stats


def validate(
    encode: Encode,
    params: Params,
    stats: PyTree,
    dataset: Dataset,
    size: int,
    k: int,
    temperature: float,
) -> float:
    """Return the kNN accuracy of `size` training images against the others.

    `splits.held_out_rows` says which ones. No test image is used. Pretraining has seen all of these
    images, without labels: only the labels are new to it.

    Args:
        encode: the function of `make_encode`.
        params: its parameters.
        stats: its BatchNorm statistics.
        dataset: of which the train split is used.
        size: number of images that are classified. The bank has all others.
        k: number of neighbours.
        temperature: of the neighbours' weights, see `knn_accuracy`.

    Returns:
        A fraction in [0, 1].
    """
    apply = Partial(encode, *jax.device_get((params, stats)))
    x, y = extract(apply, dataset.train.image), np.asarray(dataset.train.label)
    rows = held_out_rows(y, size, "probe.validation_size")
    bank = np.delete(np.arange(len(y)), rows)
    return knn_accuracy(
        x[bank],
        y[bank],
        x[rows],
        y[rows],
        num_classes=dataset.num_classes,
        k=k,
        temperature=temperature,
    )


def probe_accuracies(
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
    """Compute the test accuracies of all probes that are asked for.

    `linear_accuracy` is that after the last epoch, by the replication's protocol unless only the
    original one is asked for.

    Args:
        features: features and labels of both splits.
        num_classes: number of classes.
        protocol: of the linear probe. "seed" (the replication's, `seed_probe`), "original"
            (`original_probe`) or "both".
        epochs: of the linear probe. 0: as many as the protocol has.
        loss: of the replication's probe, a key of `losses.LOSSES`.
        ridge: whether to run `ridge_probe`.
        newton_l2: penalty of `newton_probe`. 0: not run.
        newton_steps: number of Newton steps.
        knn_k: number of neighbours.
        knn_temperature: of the neighbours' weights, see `knn_accuracy`.
        seed: of the linear probe's start and shuffles.

    Returns:
        Fractions in [0, 1] by the names of result.json.
    """
    data = (features["train_x"], features["train_y"], features["test_x"], features["test_y"])
    given: dict = {"batch_size": min(128, len(features["train_y"]))}
    if epochs:
        given["epochs"] = epochs
    accuracies = {}
    if protocol in ("original", "both"):
        original = original_probe(*data, num_classes=num_classes, seed=seed, **given)
        accuracies["original_last_accuracy"] = accuracies["linear_accuracy"] = (
            original.last_accuracy
        )
        accuracies["original_best_test_epoch_accuracy"] = original.best_accuracy
    if protocol in ("seed", "both"):
        seeded = seed_probe(*data, num_classes=num_classes, seed=seed, loss=loss, **given)
        accuracies["linear_accuracy"] = seeded.last_accuracy
    if ridge:
        accuracies["ridge_accuracy"] = ridge_probe(*data, num_classes=num_classes).accuracy
    if newton_l2:
        newton = newton_probe(*data, num_classes=num_classes, l2=newton_l2, steps=newton_steps)
        accuracies["newton_accuracy"] = newton.last_accuracy
    accuracies["knn_accuracy"] = knn_accuracy(
        *data, num_classes=num_classes, k=knn_k, temperature=knn_temperature
    )
    return accuracies


def few_labels(
    encoders: dict[str, Features], num_classes: int, per_class: int, draws: int, seed: int
) -> dict:
    """Compute the accuracy from few labels for several encoders on the same label draws.

    Args:
        encoders: the features of each encoder by its name.
        num_classes: number of classes.
        per_class: number of labels per class.
        draws: number of label draws.
        seed: of the draws.

    Returns:
        "labels_per_class" and "draws", and by each encoder's name the "mean" and "std" over the
        draws of the test accuracy in [0, 1]. The std is None for a single draw.
    """
    table: dict = {"labels_per_class": per_class, "draws": draws}
    for name, f in encoders.items():
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
