"""Networks memorise random labels: Zhang et al. 2017 (arXiv 1611.03530, table 1).

True or random labels, with and without augmentation (a crop of the padded image) and weight decay.
A network that reaches training accuracy 1 on random labels shows that its size alone cannot be why
it generalises.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.dataset import Dataset
from ssl_jax.data.splits import redraw
from ssl_jax.experiments.harness.cells import Advance, Arrays, Cell, in_turn, seeds_of
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.experiments.harness.stacked import Setting, plain, steps_per_epoch, train_table
from ssl_jax.intervals import mean_and_interval, rounded
from ssl_jax.models import make_classifier, make_encoder
from ssl_jax.optim import make_optimizer
from ssl_jax.types import Config

LABELS = {"true": 0.0, "random": 1.0}  # share of the labels that is drawn anew


def plan(config: Config, dataset: Dataset) -> dict[str, Cell]:
    """Return the cells: true and random labels, each with and without augmentation."""
    encoder = make_encoder(
        config.encoder.name, width=config.encoder.width, depth=config.encoder.depth
    )
    network = make_classifier(encoder, dataset.num_classes)
    # XLA's convolutions are slow inside a loop on a CPU.
    loops = config.encoder.name == "mlp" or jax.default_backend() != "cpu"
    cells = {}
    for labels, share in LABELS.items():
        drawn = [
            redraw(dataset.train.label, share, dataset.num_classes, seed)
            for seed in seeds_of(config)
        ]
        train = dataset.train._replace(label=np.stack(drawn))
        for augmented in (False, True):
            fields = {"crop_padding": config.crop_padding, "flip": config.flip} if augmented else {}
            augment, normalise = plain(dataset.side, **fields)
            eval_splits = {"train": train, "test": dataset.test}
            sizes = config.epochs, config.batch_size, augment, normalise, None, loops
            setting = Setting(network, dataset.num_classes, train, eval_splits, *sizes)
            steps = config.epochs * steps_per_epoch(setting)
            cells[name_of(labels, augmented)] = Cell(steps, partial(_train, config, setting))
    return cells


def name_of(labels: str, augmented: bool) -> str:
    """Return the name of a cell."""
    return f"{labels}-{'augmented' if augmented else 'plain'}"


def _train(config: Config, setting: Setting, advance: Advance) -> Arrays:
    """Train every seed without and with weight decay."""
    build = partial(make_optimizer, config.optimizer, config.learning_rate, decay="decoupled")
    knobs = {"weight_decay": [0.0, config.weight_decay]}
    return train_table(setting, build, knobs, seeds_of(config), advance=advance)


def parameters(config: Config, dataset: Dataset) -> int:
    """Return the number of the network's parameters."""
    encoder = make_encoder(
        config.encoder.name, width=config.encoder.width, depth=config.encoder.depth
    )
    image = jnp.zeros((2, *dataset.train.image.shape[1:]))
    shapes, _ = jax.eval_shape(
        make_classifier(encoder, dataset.num_classes).init, jax.random.key(0), image
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def summarise(config: Config, dataset: Dataset, cells: dict[str, Arrays]) -> dict[str, Any]:
    """Return training and test accuracy by labels, augmentation and weight decay.

    Args:
        config: the experiment's configuration.
        dataset: the data set.
        cells: arrays by the names of `plan`.

    Returns:
        The entries of result.json. Training accuracy is on the images without augmentation and the
        labels of training.
    """
    rows = []
    for labels in LABELS:
        for augmented in (False, True):
            cell = cells[name_of(labels, augmented)]
            for i, weight_decay in enumerate((0.0, config.weight_decay)):
                curves = {k: cell[f"{k}_accuracy"][:, i] for k in ("train", "test")}
                rows.append(
                    {"labels": labels, "augmented": augmented, "weight_decay": weight_decay}
                    | {k: mean_and_interval(v[:, -1]) for k, v in curves.items()}
                    | {f"{k}_curve": rounded(v.mean(axis=0), 4) for k, v in curves.items()}
                    | {"loss_curve": rounded(cell["loss"][:, i].mean(axis=0), 4)}
                )
    chance = float(np.bincount(dataset.test.label).max() / len(dataset.test.label))
    return {
        "parameters": parameters(config, dataset),
        "images": len(dataset.train.label),
        "rows": rows,
    } | {"largest_class": rounded(chance)}


RANGES = {"weight_decay": (1e-12, 1e6), "encoder.width": (0, 10**5), "encoder.depth": (0, 1000)}
EXPERIMENT = Experiment([in_turn(plan)], summarise, ranges=RANGES)
