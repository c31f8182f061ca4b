"""WD against LPWD on networks of several sizes (the layer-wise pre-weight-decay paper's figure 5).

Each arm of each size has the decay that held-out images choose.
"""

from typing import Any

import jax
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.experiments.harness.cells import Arrays
from ssl_jax.experiments.harness.decay_grid import (
    Kind,
    Laboratory,
    Run,
    Stage,
    arm,
    arms_of,
    build_classifier,
    decay_experiment,
    fresh_seeds,
    numbers,
)
from ssl_jax.experiments.harness.dispatched import Member
from ssl_jax.intervals import mean_and_interval, paired
from ssl_jax.types import Config

Tried = dict[tuple[str, str, float], Arrays]  # (size, arm, decay) -> arrays of a run
Results = dict[tuple[str, str, int], Arrays]  # (size, arm, index of the seed) -> arrays of a run


def size_kinds(config: Config) -> dict[tuple[str, str], Kind]:
    """Return the kinds of runs, (size, arm) -> kind.

    A size is NAME, NAME-WIDTH or NAME-WIDTH-DEPTH of an encoder.
    """
    return {
        (size, name): arm(config, name, encoder=encoder_fields(size))
        for size in config.sizes
        for name in arms_of(config)
    }


def encoder_fields(size: str) -> tuple[tuple[str, object], ...]:
    """Return the fields of an encoder of this size; UserError for a size of another form.

    "convnet-16" -> (("name", "convnet"), ("width", 16), ("depth", 0)); 0 is the architecture's own.
    """
    name, *rest = size.split("-")
    if len(rest) > 2 or not all(number.isdecimal() for number in rest):
        raise UserError(
            f"sizes: got {size!r}, takes NAME, NAME-WIDTH or NAME-WIDTH-DEPTH, as convnet-16"
        )
    return (("name", name), *zip(("width", "depth"), [*map(int, rest), 0, 0], strict=False))


def rate_of(config: Config) -> float:
    """Return the learning rate."""
    return numbers("optimizer.learning_rate", [config.optimizer.learning_rate])[0]


def choice_runs(config: Config) -> dict[tuple[str, str, float], Run]:
    """Return the runs of the first seed, which only choose: (size, arm, decay) -> run."""
    return {
        (size, name, decay): Run(kind, Member(rate_of(config), decay, config.seed))
        for (size, name), kind in size_kinds(config).items()
        for decay in numbers("weight_decays", config.weight_decays)
    }


def choose(config: Config, tried: Tried) -> dict[tuple[str, str], float]:
    """Return the decay with the best final accuracy on held-out images: (size, arm) -> decay."""

    def score(size: str, name: str, decay: float) -> float:
        return tried[size, name, decay]["validation_accuracy"][-1]

    pairs = dict.fromkeys((size, name) for size, name, _ in tried)
    return {
        pair: max(config.weight_decays, key=lambda decay: score(*pair, decay)) for pair in pairs
    }


def fresh_runs(config: Config, tried: Tried) -> dict[tuple[str, str, int], Run]:
    """Return runs with the chosen decays: (size, arm, index of the seed) -> run."""
    chosen = choose(config, tried)
    return {
        (size, name, s): Run(kind, Member(rate_of(config), chosen[size, name], seed))
        for (size, name), kind in size_kinds(config).items()
        for s, seed in enumerate(fresh_seeds(config))
    }


def parameters_of(lab: Laboratory, kind: Kind) -> int:
    """Return the number of parameters of a kind's network."""
    classifier = build_classifier(lab.config, kind, lab.num_classes)
    params, _ = jax.eval_shape(classifier.init, jax.random.key(0), lab.image[:2].astype(np.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def scale_result(
    config: Config,
    chosen: dict[tuple[str, str], float],
    results: Results,
    counts: dict[str, int],
) -> dict[str, Any]:
    """Return, for each size, every arm's decay, final test accuracy and lead over WD.

    Args:
        config: the experiment's configuration.
        chosen: (size, arm) -> decay.
        results: (size, arm, index of the seed) -> arrays of a run.
        counts: size -> number of parameters.

    Returns:
        The entries of result.json.
    """

    def last(size: str, name: str) -> np.ndarray:
        return np.array([results[size, name, s]["test_accuracy"][-1] for s in range(config.seeds)])

    def one(size: str, name: str) -> dict[str, Any]:
        ahead = paired(last(size, name), last(size, "WD"))
        return {
            "weight_decay": chosen[size, name],
            "test": mean_and_interval(last(size, name)),
            "ahead_of_WD": ahead,
        }

    sizes = {
        size: {"parameters": counts[size], "arms": {name: one(size, name) for name in config.arms}}
        for size in config.sizes
    }
    return {"learning_rate": rate_of(config), "sizes": sizes}


def summarise(lab: Laboratory, tried: Tried, results: Results) -> dict[str, Any]:
    """Return the results of all sizes, with the number of parameters of each.

    Args:
        lab: what all runs share.
        tried: the runs that chose the decays.
        results: the runs with fresh seeds.

    Returns:
        The entries of result.json.
    """
    counts = {size: parameters_of(lab, kind) for (size, _), kind in size_kinds(lab.config).items()}
    return scale_result(lab.config, choose(lab.config, tried), results, counts)


EXPERIMENT = decay_experiment(
    Stage("choosing the decay", choice_runs),
    Stage("fresh seeds", fresh_runs),
    summarise=summarise,
)
