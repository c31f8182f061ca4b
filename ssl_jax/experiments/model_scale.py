"""WD against LPWD on networks of several sizes (the layer-wise pre-weight-decay paper's figure 5)."""

import jax
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.experiments.harness.decay_grid import (
    Kind,
    Run,
    arm,
    arms_of,
    build_classifier,
    finish,
    fresh_seeds,
    numbers,
    prepare,
    train_runs,
)
from ssl_jax.experiments.harness.member_programs import Member
from ssl_jax.experiments.robustness import Interrupted
from ssl_jax.intervals import mean_and_interval, paired
from ssl_jax.types import Config


def model_scale(config: Config, directory: str, interrupted: Interrupted) -> None:
    """WD against LPWD on networks of several sizes, each arm of each with the decay that held-out images choose."""
    sizes = size_kinds(config)
    lab = prepare(config, directory, lambda config: choice_runs(config).values())
    choice = choice_runs(config)
    tried = train_runs(lab, choice.values(), interrupted, title="choosing the decay")
    if tried is None:
        return
    chosen = choose(config, {key: tried[run] for key, run in choice.items()})
    runs = {
        (size, name, s): Run(kind, Member(rate_of(config), chosen[size, name], seed))
        for (size, name), kind in sizes.items()
        for s, seed in enumerate(fresh_seeds(config))
    }
    found = train_runs(lab, runs.values(), interrupted, title="fresh seeds")
    if found is not None:
        counts = {size: parameters_of(config, kind, lab) for (size, _), kind in sizes.items()}
        result = scale_result(config, chosen, {key: found[run] for key, run in runs.items()}, counts)
        finish(lab, tried | found, result)


def size_kinds(config: Config) -> dict[tuple[str, str], Kind]:
    """(size, arm) -> kind; a size is NAME, NAME-WIDTH or NAME-WIDTH-DEPTH of an encoder."""
    return {
        (size, name): arm(config, name, encoder=encoder_fields(size))
        for size in config.sizes
        for name in arms_of(config)
    }


def encoder_fields(size: str) -> tuple[tuple[str, object], ...]:
    """ "convnet-16" -> (("name", "convnet"), ("width", 16), ("depth", 0)); 0: the architecture's own."""
    name, *rest = size.split("-")
    if len(rest) > 2 or not all(number.isdecimal() for number in rest):
        raise UserError(f"sizes: got {size!r}, takes NAME, NAME-WIDTH or NAME-WIDTH-DEPTH, as convnet-16")
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


def choose(config: Config, tried: dict[tuple, dict[str, np.ndarray]]) -> dict[tuple[str, str], float]:
    """(size, arm) -> the decay with the best accuracy on held-out images after the last epoch."""

    def score(size, name, decay):
        return tried[size, name, decay]["validation_accuracy"][-1]

    pairs = dict.fromkeys((size, name) for size, name, _ in tried)
    return {pair: max(config.weight_decays, key=lambda decay: score(*pair, decay)) for pair in pairs}


def parameters_of(config: Config, kind: Kind, lab) -> int:
    params, _ = jax.eval_shape(
        build_classifier(config, kind, lab.num_classes).init, jax.random.key(0), lab.image[:2].astype(np.float32)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def scale_result(config: Config, chosen: dict, found: dict[tuple, dict], counts: dict[str, int]) -> dict:
    """Per size: each arm's chosen decay, test accuracy of the last epoch, and what it is ahead of WD."""

    def last(size, name):
        return np.array([found[size, name, s]["test_accuracy"][-1] for s in range(config.seeds)])

    def one(size, name):
        ahead = paired(last(size, name), last(size, "WD"))
        return {"weight_decay": chosen[size, name], "test": mean_and_interval(last(size, name)), "ahead_of_WD": ahead}

    sizes = {
        size: {"parameters": counts[size], "arms": {name: one(size, name) for name in config.arms}}
        for size in config.sizes
    }
    return {"learning_rate": rate_of(config), "sizes": sizes}
