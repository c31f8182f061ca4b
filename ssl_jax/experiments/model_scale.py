"""WD against LPWD on networks of several sizes (the layer-wise pre-weight-decay paper's figure 5).

Each arm of each size has the decay that held-out images choose.
"""

import jax
import numpy as np

from ssl_jax.errors import UserError
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


def size_kinds(config: Config) -> dict[tuple[str, str], Kind]:
    """(size, arm) -> kind; a size is NAME, NAME-WIDTH or NAME-WIDTH-DEPTH of an encoder."""
    return {
        (size, name): arm(config, name, encoder=encoder_fields(size))
        for size in config.sizes
        for name in arms_of(config)
    }


def encoder_fields(size: str) -> tuple[tuple[str, object], ...]:
    """ "convnet-16" -> (("name", "convnet"), ("width", 16), ("depth", 0)); 0: the architecture's
    own.
    """
    name, *rest = size.split("-")
    if len(rest) > 2 or not all(number.isdecimal() for number in rest):
        raise UserError(
            f"sizes: got {size!r}, takes NAME, NAME-WIDTH or NAME-WIDTH-DEPTH, as convnet-16"
        )
    return (("name", name), *zip(("width", "depth"), [*map(int, rest), 0, 0], strict=False))


def rate_of(config: Config) -> float:
    return numbers("optimizer.learning_rate", [config.optimizer.learning_rate])[0]


def choice_runs(config: Config) -> dict[tuple[str, str, float], Run]:
    """(size, arm, decay) -> run of the first seed, which only chooses."""
    return {
        (size, name, decay): Run(kind, Member(rate_of(config), decay, config.seed))
        for (size, name), kind in size_kinds(config).items()
        for decay in numbers("weight_decays", config.weight_decays)
    }


def choose(
    config: Config, tried: dict[tuple, dict[str, np.ndarray]]
) -> dict[tuple[str, str], float]:
    """(size, arm) -> the decay with the best accuracy on held-out images after the last epoch."""

    def score(size, name, decay):
        return tried[size, name, decay]["validation_accuracy"][-1]

    pairs = dict.fromkeys((size, name) for size, name, _ in tried)
    return {
        pair: max(config.weight_decays, key=lambda decay: score(*pair, decay)) for pair in pairs
    }


def fresh_runs(
    config: Config, tried: dict[tuple, dict[str, np.ndarray]]
) -> dict[tuple[str, str, int], Run]:
    """(size, arm, place of the seed) -> run with the decay that was chosen."""
    chosen = choose(config, tried)
    return {
        (size, name, s): Run(kind, Member(rate_of(config), chosen[size, name], seed))
        for (size, name), kind in size_kinds(config).items()
        for s, seed in enumerate(fresh_seeds(config))
    }


def parameters_of(lab: Laboratory, kind: Kind) -> int:
    classifier = build_classifier(lab.config, kind, lab.num_classes)
    params, _ = jax.eval_shape(classifier.init, jax.random.key(0), lab.image[:2].astype(np.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def scale_result(
    config: Config, chosen: dict, results: dict[tuple, dict], counts: dict[str, int]
) -> dict:
    """Per size: each arm's chosen decay, test accuracy of the last epoch, and what it is ahead of
    WD.
    """

    def last(size, name):
        return np.array([results[size, name, s]["test_accuracy"][-1] for s in range(config.seeds)])

    def one(size, name):
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


def summarise(
    lab: Laboratory, tried: dict[tuple, dict[str, np.ndarray]], results: dict[tuple, dict]
) -> dict:
    counts = {size: parameters_of(lab, kind) for (size, _), kind in size_kinds(lab.config).items()}
    return scale_result(lab.config, choose(lab.config, tried), results, counts)


EXPERIMENT = decay_experiment(
    Stage("choosing the decay", choice_runs),
    Stage("fresh seeds", fresh_runs),
    summarise=summarise,
)
