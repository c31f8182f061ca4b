"""Learning rate x decay, WD against LPWD.

Figures 2, 3b and 4 and table 2 of the layer-wise pre-weight-decay paper. WD: decoupled
decay; RWD: after the update, in real time; PWD: before the gradient; LPWD: the same, more strongly
in deeper layers. All seeds of a setting, and all arms, share initialisation, data order and
augmentation.
"""

from typing import Any

import numpy as np

from ssl_jax.experiments.harness.cells import Arrays, seeds_of
from ssl_jax.experiments.harness.decay_grid import (
    Laboratory,
    Run,
    Stage,
    arm,
    build_program,
    decay_experiment,
    numbers,
)
from ssl_jax.experiments.harness.dispatched import Member
from ssl_jax.intervals import mean_and_interval, paired, rounded
from ssl_jax.types import Config

BEST_EPOCHS = 10  # over which the paper takes its mean

# (arm, index of the rate, of the decay, of the seed) -> arrays of a run
Results = dict[tuple[str, int, int, int], Arrays]
# (arm, index of the decay, of the seed) -> arrays of a run
PairResults = dict[tuple[str, int, int], Arrays]


def grid_axes(config: Config) -> tuple[list[float], list[float]]:
    """Return the learning rates and the weight decays of the grid."""
    base = numbers("grid.learning_rate", [config.grid.learning_rate])[0]
    rates = [base * factor for factor in numbers("grid.factors", config.grid.factors)]
    literal = config.optimizer.decay_scale == "literal"
    return rates, numbers(
        "grid.weight_decays", config.grid.weight_decays, 1.0 if literal else np.inf
    )


def grid_runs(config: Config) -> dict[tuple[str, int, int, int], Run]:
    """Return the runs, (arm, index of the rate, of the decay, of the seed) -> run.

    Only WD records opposing penalties.
    """
    rates, decays = grid_axes(config)
    return {
        (name, i, j, s): Run(arm(config, name, penalties=name == "WD"), Member(rate, decay, seed))
        for name in ("WD", "LPWD")
        for i, rate in enumerate(rates)
        for j, decay in enumerate(decays)
        for s, seed in enumerate(seeds_of(config))
    }


def pair_runs(config: Config, results: Results) -> dict[tuple[str, int, int], Run]:
    """Return the runs of figure 3b, (arm, index of the decay, of the seed) -> run.

    PWD and RWD at the largest learning rate of the grid, as in the paper: ten times the base rate.
    """
    rates, decays = grid_axes(config)
    return {
        (name, j, s): Run(arm(config, name), Member(max(rates), decay, seed))
        for name in ("PWD", "RWD")
        for j, decay in enumerate(decays)
        for s, seed in enumerate(seeds_of(config))
    }


def pair_result(config: Config, results: PairResults) -> dict[str, Any]:
    """Return figure 3b in numbers: PWD - RWD by decay, paired over the seeds, (D,) each.

    "best_10_epochs" is of the mean of the best ten test epochs, as in the paper, which looks at the
    test set to choose them.
    """
    rates, decays = grid_axes(config)

    def table(name: str) -> np.ndarray:
        """Return test accuracies (D, S, E) of an arm."""
        seeds, places = range(config.seeds), range(len(decays))
        return np.array([[results[name, j, s]["test_accuracy"] for s in seeds] for j in places])

    pwd, rwd = table("PWD"), table("RWD")
    best = np.sort(pwd)[..., -BEST_EPOCHS:].mean(-1) - np.sort(rwd)[..., -BEST_EPOCHS:].mean(-1)
    return {
        "learning_rate": max(rates),
        "last_epoch": mean_and_interval((pwd - rwd)[..., -1], axis=1),
        "best_10_epochs": mean_and_interval(best, axis=1),
    }


def grid_result(config: Config, results: Results) -> dict[str, Any]:
    """Return figures 1, 2 and 4 in numbers.

    Their axes are rates R, decays D, seeds S, epochs E, and n layers with the whole network.
    """
    rates, decays = grid_axes(config)

    def table(name: str, values: str) -> np.ndarray:
        """Return values (R, D, S, E, ...) of an arm."""
        seeds = range(config.seeds)
        return np.array(
            [
                [[results[name, i, j, s][values] for s in seeds] for j in range(len(decays))]
                for i in range(len(rates))
            ]
        )

    arms = {}
    for name in ("WD", "LPWD"):
        test, validation = table(name, "test_accuracy"), table(name, "validation_accuracy")
        mean = validation[..., -1].mean(axis=2)
        i, j = (int(k) for k in np.unravel_index(np.argmax(mean), mean.shape))
        arms[name] = {
            "test": mean_and_interval(test[..., -1], axis=2),
            "validation": rounded(mean),
            "test_curves": rounded(test.mean(axis=2)),
            "loss_curves": rounded(table(name, "loss").mean(axis=2)),
            "chosen": {"learning_rate": rates[i], "weight_decay": decays[j]}
            | mean_and_interval(test[i, j, :, -1]),
        }
    last = {name: table(name, "test_accuracy")[..., -1] for name in arms}
    opposing = {
        name: table("WD", f"opposing_{name}").mean(axis=2) for name in ("ratio", "fraction")
    }
    return {
        "learning_rates": rates,
        "weight_decays": decays,
        "seeds": f"{config.seeds} seeds",
        "decay_scale": config.optimizer.decay_scale,
        "layerwise": config.layerwise,
        "arms": arms,
        "difference": mean_and_interval(last["LPWD"] - last["WD"], axis=2),
        "difference_over_grid": mean_and_interval((last["LPWD"] - last["WD"]).mean(axis=(0, 1))),
        "difference_at_own_best": paired(
            *(best_of(last[name], arms[name]["validation"]) for name in ("LPWD", "WD"))
        ),
        "opposing": {name: rounded(values) for name, values in opposing.items()},
    }


def best_of(values: np.ndarray, by: list[list[float]]) -> np.ndarray:
    """Return values (R, D, S) in the cell where `by` (R, D) is largest, (S,)."""
    return values[np.unravel_index(np.argmax(np.array(by, float)), values.shape[:2])]


def summarise(lab: Laboratory, results: Results, pairs: PairResults) -> dict[str, Any]:
    """Return penalties, accuracies, PWD against RWD, and the first module of each layer."""
    _, layers = build_program(lab, grid_runs(lab.config)["WD", 0, 0, 0].kind)
    pwd_rwd = {"pwd_rwd": pair_result(lab.config, pairs)}
    return grid_result(lab.config, results) | pwd_rwd | {"layers": layers}


EXPERIMENT = decay_experiment(
    Stage("learning rate x weight decay", grid_runs),
    Stage("PWD against RWD", pair_runs),
    summarise=summarise,
)
