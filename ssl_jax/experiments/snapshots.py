"""A snapshot ensemble: the networks at the ends of the learning rate's cycles.

Huang et al. 2017 (arXiv 1704.00109). One run with warm restarts costs what one plain run does.
Compared: the mean of its snapshots' probabilities, each of them alone, a plain run of the same
length (one cosine), and an ensemble of all seeds' plain runs, which costs as many times more as
there are seeds.
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from ssl_jax.data.dataset import Dataset
from ssl_jax.errors import UserError
from ssl_jax.experiments.harness.cells import Advance, Arrays, Cell, in_turn, seeds_of
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.experiments.harness.stacked import Setting, plain, steps_per_epoch, train_table
from ssl_jax.intervals import mean_and_interval, rounded
from ssl_jax.models import make_classifier, make_encoder
from ssl_jax.optim import Optimizer, make_optimizer
from ssl_jax.optim.schedules import make_schedule
from ssl_jax.train.supervised import SupervisedState
from ssl_jax.types import Config, Scalar


def plan(config: Config, dataset: Dataset) -> dict[str, Cell]:
    """Return the cells: the runs with warm restarts, and the plain ones."""
    if config.epochs % config.cycles:
        raise UserError(
            f"cycles: got {config.cycles}, takes a number that divides the {config.epochs} epochs"
        )
    encoder = make_encoder("mlp", width=config.width, depth=config.depth)
    network = make_classifier(encoder, dataset.num_classes)
    augment, normalise = plain(dataset.side)
    sizes = config.epochs, config.batch_size, augment, normalise
    setting = Setting(network, dataset.num_classes, dataset.train, {"test": dataset.test}, *sizes)
    steps = config.epochs * steps_per_epoch(setting)
    cyclic = partial(_train, config, setting, dataset.test.image, config.cycles)
    plain_run = partial(_train, config, setting, dataset.test.image, 1)
    return {"cyclic": Cell(steps, cyclic), "plain": Cell(steps, plain_run)}


def _train(
    config: Config, setting: Setting, image: np.ndarray, cycles: int, advance: Advance
) -> Arrays:
    """Train, and record probabilities (S, 1, cycles, N, K) of `image` at the end of each cycle."""
    length = config.epochs // cycles
    schedule = partial(make_schedule, "sgdr", total_steps=config.epochs * steps_per_epoch(setting))
    cycle = length * steps_per_epoch(setting)

    def build(learning_rate: Scalar) -> Optimizer:
        rate = schedule(learning_rate, cycle=cycle)
        return make_optimizer(config.optimizer, rate, weight_decay=config.weight_decay)

    def probabilities(state: SupervisedState) -> dict[str, jax.Array]:
        logits = setting.classifier.logits(state.params, state.stats, setting.normalise(image))
        return {"probabilities": jax.nn.softmax(logits)}

    ends = [length * (i + 1) for i in range(cycles)]
    options = {"measure": probabilities, "measure_epochs": ends, "advance": advance}
    return train_table(
        setting, build, {"learning_rate": [config.learning_rate]}, seeds_of(config), **options
    )


def evaluate(probabilities: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """Return accuracy and mean negative log-likelihood in nats of (..., N, K) against (N,)."""
    given = np.take_along_axis(
        probabilities, np.broadcast_to(label[:, None], (*probabilities.shape[:-1], 1)), -1
    )
    right = probabilities.argmax(axis=-1) == label
    return {
        "accuracy": right.mean(axis=-1),
        "nll": -np.log(np.maximum(given[..., 0], 1e-30)).mean(axis=-1),
    }


def disagreement(probabilities: np.ndarray) -> np.ndarray:
    """Return how often two different members predict different classes, (S, M, N, K) -> (S,).

    The mean is over all pairs of members.
    """
    named = probabilities.argmax(axis=-1)
    first, second = np.triu_indices(named.shape[1], k=1)
    return (named[:, first] != named[:, second]).mean(axis=(1, 2))


def summarise(config: Config, dataset: Dataset, cells: dict[str, Arrays]) -> dict[str, Any]:
    """Return the scores of ensembles, their members and plain runs.

    Args:
        config: the experiment's configuration.
        dataset: the data set.
        cells: arrays by the names of `plan`.

    Returns:
        The entries of result.json.
    """
    cyclic, plain_run = (
        cells["cyclic"]["probabilities"][:, 0],
        cells["plain"]["probabilities"][:, 0, -1],
    )
    label = dataset.test.label
    one = {
        "snapshot ensemble": evaluate(cyclic.mean(axis=1), label),
        "its last member": evaluate(cyclic[:, -1], label),
        "its members, mean": {k: v.mean(axis=1) for k, v in evaluate(cyclic, label).items()},
        "plain run": evaluate(plain_run, label),
    }
    of_seeds = evaluate(plain_run.mean(axis=0), label)
    sizes = range(1, config.cycles + 1)
    last = [evaluate(cyclic[:, -size:].mean(axis=1), label)["accuracy"] for size in sizes]
    ensemble = one["snapshot ensemble"]["accuracy"]
    return {
        "kinds": {
            name: {k: mean_and_interval(v) for k, v in scores.items()}
            for name, scores in one.items()
        },
        "ensemble_minus": {
            k: mean_and_interval(ensemble - one[k]["accuracy"]) for k in list(one)[1:]
        },
        "ensemble_of_seeds": {k: rounded(v) for k, v in of_seeds.items()},
        "members": {k: mean_and_interval(v) for k, v in evaluate(cyclic, label).items()},
        "last_members": mean_and_interval(np.stack(last, axis=1)),
        "disagreement": mean_and_interval(disagreement(cyclic)),
        "curves": {
            k: mean_and_interval(cells[k]["test_accuracy"][:, 0]) for k in ("cyclic", "plain")
        },
    }


RANGES = {"cycles": (2, 1000), "width": (1, 10**5), "depth": (1, 1000), "weight_decay": (0, 1e6)}
EXPERIMENT = Experiment([in_turn(plan)], summarise, ranges=RANGES)
