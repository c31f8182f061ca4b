"""The ablation of the layer-wise pre-weight-decay paper (table 3), with the identities beside it.

Beside its four methods run those of the paper's table 1: no decay, and L2.

With d the decay of a step, D = 1 - d and G the gradient step theta -> theta - eta U(theta),
exactly:

    RWD at eta is WD at (1 - d) eta
        both are (1 - d) theta - (1 - d) eta U(theta)
    RWD from D theta_0 is D times PWD from theta_0
        RWD = D G and PWD = G D, so D (G D)^t = (D G)^t D

So the gap between two methods falls into terms that add up to it. Each is measured on its own arms
with the same seeds:

    RWD - WD    the settings chosen for each
                + the learning rate times (1 - d)
                + [an identity: rounding]
    PWD - RWD   the settings chosen for each
                + the first decay, of the initial weights
                + [an identity: rounding]
                + the point of the step at which weights are evaluated (theta, not D theta)
    LPWD - PWD  the settings chosen for each
                + the rest: deeper layers decay more

Each method's setting is chosen on held-out images; all arms are then trained with fresh seeds.
Training amplifies rounding. By how much is measured by a control, WD from weights that are each one
rounding error larger.
"""

from typing import Any

import numpy as np

from ssl_jax.experiments.harness.cells import Arrays
from ssl_jax.experiments.harness.decay_grid import (
    Laboratory,
    Run,
    Stage,
    arm,
    decay_experiment,
    fresh_seeds,
    numbers,
    steps_of,
)
from ssl_jax.experiments.harness.dispatched import Member
from ssl_jax.intervals import mean_and_interval, paired, rounded
from ssl_jax.types import Config

METHODS = ("none", "L2", "WD", "RWD", "PWD", "LPWD")
BEST_EPOCHS = 10  # over which the paper takes its mean

Setting = tuple[float, float]  # (learning rate, weight decay)
Validation = dict[tuple[str, float, float], float]  # (method, rate, decay) -> accuracy
Tried = dict[tuple[str, float, float], Arrays]  # (method, rate, decay) -> arrays of a run


# --- Runs -----------------------------------------------------------------------------------------


def settings(config: Config, name: str) -> list[Setting]:
    """Return every learning rate with every decay of a method; UserError for an illegal one."""
    rates, decays = (
        numbers(f"search.{field}", config.search[field])
        for field in ("learning_rates", "weight_decays")
    )
    return [(rate, decay) for rate in rates for decay in ([0.0] if name == "none" else decays)]


def search_runs(config: Config) -> dict[tuple[str, float, float], Run]:
    """Return the runs of the first seed, which only choose: (method, rate, decay) -> run."""
    return {
        (name, rate, decay): Run(arm(config, name), Member(rate, decay, config.seed))
        for name in METHODS
        for rate, decay in settings(config, name)
    }


def best_setting(config: Config, validation: Validation, name: str) -> Setting:
    """Return the setting of a method with the best accuracy.

    Args:
        config: the experiment's configuration.
        validation: accuracies on held-out images.
        name: of the method.

    Returns:
        (learning rate, weight decay).
    """
    return max(settings(config, name), key=lambda setting: validation[name, *setting])


def choose(config: Config, tried: Tried) -> dict[str, Setting]:
    """Return the setting of each method with the best final accuracy on held-out images."""
    validation = final_validation(tried)
    return {name: best_setting(config, validation, name) for name in METHODS}


def final_validation(tried: Tried) -> Validation:
    """Return the accuracies on held-out images after the last epoch."""
    return {key: float(arrays["validation_accuracy"][-1]) for key, arrays in tried.items()}


def share(config: Config, setting: Setting) -> float:
    """Return d, the share that one step takes of a weight."""
    rate, decay = setting
    return rate * decay if config.optimizer.decay_scale == "lr" else decay


def slowed(config: Config, setting: Setting) -> Setting:
    """Return the setting with the learning rate times 1 - d, and the same d."""
    (rate, decay), d = setting, share(config, setting)
    return (1 - d) * rate, decay / (1 - d) if config.optimizer.decay_scale == "lr" else decay


def arm_runs(config: Config, chosen: dict[str, Setting]) -> dict[tuple[str, int], Run]:
    """Return the runs of all arms, (arm, index of the seed) -> run.

    "WD@RWD" is WD at the setting chosen for RWD.
    """
    arms = {
        "none": ("none", chosen["none"], {}),
        "L2": ("L2", chosen["L2"], {}),
        "WD": ("WD", chosen["WD"], {}),
        "WD, rounded": ("WD", chosen["WD"], {"begin": "rounded"}),
        "WD@RWD": ("WD", chosen["RWD"], {}),
        "WD@RWD, slowed": ("WD", slowed(config, chosen["RWD"]), {}),
        "RWD": ("RWD", chosen["RWD"], {}),
        "RWD@PWD": ("RWD", chosen["PWD"], {}),
        "RWD@PWD, decayed": ("RWD", chosen["PWD"], {"begin": "decayed"}),
        "PWD": ("PWD", chosen["PWD"], {"ahead": True}),
        "PWD@LPWD": ("PWD", chosen["LPWD"], {}),
        "LPWD": ("LPWD", chosen["LPWD"], {}),
    }
    return {
        (label, s): Run(arm(config, name, **fields), Member(rate, decay, seed))
        for label, (name, (rate, decay), fields) in arms.items()
        for s, seed in enumerate(fresh_seeds(config))
    }


def kept_steps(lab: Laboratory) -> tuple[int, ...]:
    """Return the first step, the last one of the first epoch, and the last of all."""
    return tuple(dict.fromkeys((1, lab.steps_per_epoch, steps_of(lab))))


# --- Results --------------------------------------------------------------------------------------


def summarise(
    config: Config,
    chosen: dict[str, Setting],
    validation: Validation,
    results: dict[tuple[str, int], Arrays],
    steps: tuple[int, ...],
) -> dict[str, Any]:
    """Return the table of methods, the terms of every gap, and how exactly the identities hold.

    Args:
        config: the experiment's configuration.
        chosen: the setting of each method.
        validation: accuracies on held-out images by which settings were chosen.
        results: (arm, index of the seed) -> arrays of a run.
        steps: after which all parameters were kept.

    Returns:
        The entries of result.json.
    """

    def over_seeds(label: str, values: str = "test_accuracy") -> np.ndarray:
        """Return values (S, E, ...) of an arm."""
        return np.stack([results[label, s][values] for s in range(config.seeds)])

    def last(label: str, suffix: str = "") -> np.ndarray:
        return over_seeds(label, f"test_accuracy{suffix}")[:, -1]

    methods = {}
    for name in METHODS:
        methods[name] = dict(zip(("learning_rate", "weight_decay"), chosen[name], strict=True))
        methods[name] |= accuracies(over_seeds(name), over_seeds(name, "validation_accuracy"))
        methods[name] |= {"ahead_of_none": paired(last(name), last("none"))}
    gaps = {
        "RWD - WD": {
            "whole": (last("RWD"), last("WD")),
            "settings": (last("WD@RWD"), last("WD")),
            "learning rate times (1 - d)": (last("WD@RWD, slowed"), last("WD@RWD")),
            "identity: rounding": (last("RWD"), last("WD@RWD, slowed")),
        },
        "PWD - RWD": {
            "whole": (last("PWD"), last("RWD")),
            "settings": (last("RWD@PWD"), last("RWD")),
            "first decay, of the initial weights": (last("RWD@PWD, decayed"), last("RWD@PWD")),
            "identity: rounding": (last("PWD", "_ahead"), last("RWD@PWD, decayed")),
            "point of the step where it is judged": (last("PWD"), last("PWD", "_ahead")),
        },
        "LPWD - PWD": {
            "whole": (last("LPWD"), last("PWD")),
            "settings": (last("PWD@LPWD"), last("PWD")),
            "left: deeper layers decay more": (last("LPWD"), last("PWD@LPWD")),
        },
        "control": {"WD, one rounding error away": (last("WD, rounded"), last("WD"))},
    }
    kept = {label: over_seeds(label, "parameters") for label, _ in results}
    shrink = 1 - share(config, chosen["PWD"])
    deviations = {
        "RWD against WD at (1 - d) eta": deviation(kept["RWD"], kept["WD@RWD, slowed"]),
        "RWD from D theta_0 against D PWD": deviation(
            kept["RWD@PWD, decayed"], shrink * kept["PWD"]
        ),
        "control: WD, one rounding error away": deviation(kept["WD, rounded"], kept["WD"]),
        "for comparison: RWD against WD": deviation(kept["RWD"], kept["WD@RWD"]),
    }
    return {
        "methods": methods,
        # L2 takes no share: what it takes passes through the optimizer.
        "share": {name: share(config, chosen[name]) for name in METHODS if name != "L2"},
        "gaps": {
            gap: {term: paired(*pair) for term, pair in terms.items()}
            for gap, terms in gaps.items()
        },
        "deviations": {"steps": list(steps)}
        | {label: rounded(values) for label, values in deviations.items()},
        "search": [[*key, value] for key, value in validation.items()],
        "epochs": config.epochs,
        "layerwise": config.layerwise,
    }


def accuracies(test: np.ndarray, validation: np.ndarray) -> dict[str, Any]:
    """Return three test accuracies over the seeds; arguments (S, E) each."""
    at_best = test[np.arange(len(test)), validation.argmax(axis=1)]
    return {
        "test": mean_and_interval(test[:, -1]),
        "best_validation_epoch": mean_and_interval(at_best),
        "mean_of_best_10_epochs": mean_and_interval(
            np.sort(test, axis=1)[:, -BEST_EPOCHS:].mean(axis=1)
        ),
    }


def deviation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return |a - b| / |b| over all weights of a network, the worst of the seeds.

    Arguments are (S, K, P), the result is (K,).
    """
    difference = np.linalg.norm(np.subtract(a, b, dtype=np.float64), axis=-1)
    return (difference / np.linalg.norm(b.astype(np.float64), axis=-1)).max(axis=0)


EXPERIMENT = decay_experiment(
    Stage("choosing settings", search_runs),
    Stage(
        "fresh seeds",
        lambda config, tried: arm_runs(config, choose(config, tried)),
        keep=kept_steps,
    ),
    summarise=lambda lab, tried, results: summarise(
        lab.config, choose(lab.config, tried), final_validation(tried), results, kept_steps(lab)
    ),
)
