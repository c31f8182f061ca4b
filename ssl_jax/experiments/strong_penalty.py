"""Strong penalties: learning rate and decay both large.

Figure 1 of the layer-wise pre-weight-decay paper.
"""

from typing import Any

import numpy as np

from ssl_jax.experiments.harness.cells import Arrays, seeds_of
from ssl_jax.experiments.harness.decay_grid import (
    Run,
    Stage,
    arm,
    arms_of,
    decay_experiment,
    numbers,
)
from ssl_jax.experiments.harness.dispatched import Member
from ssl_jax.intervals import mean_and_interval, paired
from ssl_jax.types import Config


def penalty_runs(config: Config) -> dict[tuple[str, str, int], Run]:
    """Return the runs, (optimizer, arm, index of the seed) -> run."""
    decay = numbers("strong.weight_decay", [config.strong.weight_decay])[0]
    rates = {
        name: numbers(f"strong.{name}", [rate])[0] for name, rate in config.strong.rates.items()
    }
    return {
        (optimizer, name, s): Run(arm(config, name, optimizer=optimizer), Member(rate, decay, seed))
        for optimizer, rate in rates.items()
        for name in arms_of(config)
        for s, seed in enumerate(seeds_of(config))
    }


def penalty_result(config: Config, results: dict[tuple[str, str, int], Arrays]) -> dict[str, Any]:
    """Return curves (E,), last epoch and lead over WD of each optimizer and arm."""

    def curves(optimizer: str, name: str, values: str) -> np.ndarray:
        return np.stack([results[optimizer, name, s][values] for s in range(config.seeds)])

    def one(optimizer: str, name: str) -> dict[str, Any]:
        test, loss = (curves(optimizer, name, values) for values in ("test_accuracy", "loss"))
        ahead = paired(test[:, -1], curves(optimizer, "WD", "test_accuracy")[:, -1])
        last = {
            "test": mean_and_interval(test[:, -1]),
            "loss": mean_and_interval(loss[:, -1]),
            "ahead_of_WD": ahead,
        }
        return last | {"test_curve": mean_and_interval(test), "loss_curve": mean_and_interval(loss)}

    optimizers = {
        optimizer: {
            "learning_rate": rate,
            "arms": {name: one(optimizer, name) for name in config.arms},
        }
        for optimizer, rate in config.strong.rates.items()
    }
    return {"weight_decay": config.strong.weight_decay, "optimizers": optimizers}


EXPERIMENT = decay_experiment(
    Stage("strong penalty", penalty_runs),
    summarise=lambda lab, results: penalty_result(lab.config, results),
)
