"""Optimizer x learning rate, as in the ADADELTA paper (Zeiler 2012, arXiv 1212.5701, tables 1, 2).

Its network: two hidden layers of 500 and 300 tanh units, batches of 100. All rates and seeds of one
optimizer are one program. The best rate is the one with the least error on held-out training
images; test error stands beside it.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ssl_jax.data.dataset import Dataset
from ssl_jax.data.splits import hold_out
from ssl_jax.errors import UserError, nearest
from ssl_jax.experiments.harness.cells import Advance, Arrays, Cell, in_turn, seeds_of
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.experiments.harness.stacked import Setting, plain, steps_per_epoch, train_table
from ssl_jax.intervals import mean_and_interval
from ssl_jax.models import make_classifier
from ssl_jax.models.layers import ACTIVATIONS, linear
from ssl_jax.optim import make_optimizer
from ssl_jax.optim.directions import DIRECTIONS
from ssl_jax.types import Config

ADADELTA = "adadelta-options"


class Tapered(nn.Module):
    """A multi-layer perceptron of such widths: linear -> activation for each."""

    widths: tuple[int, ...]
    activation: str  # a key of ACTIVATIONS
    preset: str  # of the initialisation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(len(x), -1)
        for i, width in enumerate(self.widths, start=1):
            x = ACTIVATIONS[self.activation](
                linear(width, x.shape[-1], self.preset, name=f"linear{i}")(x)
            )
        return x


def plan(config: Config, dataset: Dataset) -> dict[str, Cell]:
    """Return the cells, one for each optimizer and one for Adadelta's options."""
    for name in config.optimizers:
        if name not in DIRECTIONS:
            raise UserError(f"optimizers: got {name!r}, {nearest(name, DIRECTIONS)}")
    train, validation = hold_out(dataset, config.data.validation_size)
    network = make_classifier(
        Tapered(tuple(config.widths), config.activation, config.init), dataset.num_classes
    )
    augment, normalise = plain(dataset.side)
    eval_splits = {"validation": validation or train, "test": dataset.test}
    sizes = config.epochs, config.batch_size, augment, normalise, (config.epochs,)
    setting = Setting(network, dataset.num_classes, train, eval_splits, *sizes)
    steps = config.epochs * steps_per_epoch(setting)
    cells = {
        name: Cell(steps, partial(_train, config, setting, name)) for name in config.optimizers
    }
    return cells | {ADADELTA: Cell(steps, partial(_train_adadelta, config, setting))}


def _train(config: Config, setting: Setting, name: str, advance: Advance) -> Arrays:
    """Train all rates of one optimizer, its other options at their defaults."""
    knobs = {"learning_rate": config.rates}
    return train_table(
        setting, partial(make_optimizer, name), knobs, seeds_of(config), advance=advance
    )


def _train_adadelta(config: Config, setting: Setting, advance: Advance) -> Arrays:
    """Train the paper's Adadelta, which has no learning rate: every eps with every rho."""
    eps, rho = (grid.ravel() for grid in np.meshgrid(config.eps, config.rho, indexing="ij"))
    build = partial(make_optimizer, "adadelta", 1.0)
    return train_table(setting, build, {"eps": eps, "rho": rho}, seeds_of(config), advance=advance)


def summarise(config: Config, dataset: Dataset, cells: dict[str, Arrays]) -> dict[str, Any]:
    """Return validation and test errors of each optimizer, and its best rate.

    Args:
        config: the experiment's configuration.
        dataset: the data set.
        cells: arrays by the names of `plan`.

    Returns:
        The entries of result.json. Errors are fractions. A network that diverged has the error of
        the class for which its NaN are taken.
    """

    def errors(cell: Arrays) -> dict[str, np.ndarray]:
        return {name: 1 - cell[f"{name}_accuracy"][:, :, -1] for name in ("validation", "test")}

    table = {}
    for name in config.optimizers:
        error = errors(cells[name])
        best = int(np.argmin(error["validation"].mean(axis=0)))
        table[name] = {k: mean_and_interval(v) for k, v in error.items()} | {
            "best_rate": config.rates[best],
            "at_the_edge": best in (0, len(config.rates) - 1),
            "test_at_best": mean_and_interval(error["test"][:, best]),
        }
    options = {k: mean_and_interval(v) for k, v in errors(cells[ADADELTA]).items()}
    return {"rates": list(config.rates), "eps": list(config.eps), "rho": list(config.rho)} | {
        "optimizers": table,
        "adadelta": options,
    }


EXPERIMENT = Experiment([in_turn(plan)], summarise)
