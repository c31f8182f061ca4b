"""What the layer-wise pre-weight-decay paper says of decay, tested: robustness (its figures 2 and 4, table 2), strong
penalties (figure 1), model scale (figure 5).

WD: ordinary decoupled decay; RWD: after the update, in real time; PWD: before the gradient; LPWD: the same, more
strongly in deeper layers. All seeds of a setting, and all arms, share initialisation, data order and augmentation.
"""

from collections.abc import Callable

import jax
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.experiments.cells import seeds_of
from ssl_jax.experiments.members import (
    Kind,
    Run,
    arm,
    build_classifier,
    build_program,
    finish,
    numbers,
    prepare,
    train_runs,
)
from ssl_jax.statistics import mean_and_interval, paired, rounded
from ssl_jax.train.grid import Member
from ssl_jax.types import Config

Interrupted = Callable[[], bool]


# --- Robustness -----------------------------------------------------------------------------------------------------


def robustness(config: Config, directory: str, interrupted: Interrupted) -> None:
    """Learning rate x decay, WD against LPWD, with the opposing penalties of WD in every cell."""
    lab = prepare(config, directory, lambda config: grid_runs(config).values())
    runs = grid_runs(config)
    found = train_runs(lab, runs.values(), interrupted, title="learning rate x weight decay")
    if found is not None:
        _, layers = build_program(lab, runs["WD", 0, 0, 0].kind)
        finish(lab, found, grid_result(config, {key: found[run] for key, run in runs.items()}) | {"layers": layers})


def grid_axes(config: Config) -> tuple[list[float], list[float]]:
    """(learning rates, weight decays)."""
    base = numbers("grid.learning_rate", [config.grid.learning_rate])[0]
    rates = [base * factor for factor in numbers("grid.factors", config.grid.factors)]
    literal = config.optimizer.decay_scale == "literal"
    return rates, numbers("grid.weight_decays", config.grid.weight_decays, 1.0 if literal else np.inf)


def grid_runs(config: Config) -> dict[tuple[str, int, int, int], Run]:
    """(arm, place of the rate, of the decay, of the seed) -> run; opposing penalties are WD's alone."""
    rates, decays = grid_axes(config)
    return {
        (name, i, j, s): Run(arm(config, name, watched=name == "WD"), Member(rate, decay, seed))
        for name in ("WD", "LPWD")
        for i, rate in enumerate(rates)
        for j, decay in enumerate(decays)
        for s, seed in enumerate(seeds_of(config))
    }


def grid_result(config: Config, found: dict[tuple, dict[str, np.ndarray]]) -> dict:
    """Figures 1, 2 and 4 in numbers, axes (rates R, decays D, seeds S, epochs E, layers n and the whole network)."""
    rates, decays = grid_axes(config)

    def table(name: str, values: str) -> np.ndarray:
        """(R, D, S, E, ...)"""
        seeds = range(config.seeds)
        return np.array(
            [[[found[name, i, j, s][values] for s in seeds] for j in range(len(decays))] for i in range(len(rates))]
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
            "chosen": {"learning_rate": rates[i], "weight_decay": decays[j]} | mean_and_interval(test[i, j, :, -1]),
        }
    last = {name: table(name, "test_accuracy")[..., -1] for name in arms}
    opposing = {name: table("WD", f"opposing_{name}").mean(axis=2) for name in ("ratio", "fraction")}
    return {
        "learning_rates": rates,
        "weight_decays": decays,
        "seeds": f"{config.seeds} seeds",
        "decay_scale": config.optimizer.decay_scale,
        "layerwise": config.layerwise,
        "arms": arms,
        "difference": mean_and_interval(last["LPWD"] - last["WD"], axis=2),
        "difference_over_grid": mean_and_interval((last["LPWD"] - last["WD"]).mean(axis=(0, 1))),
        "difference_at_own_best": paired(*(best_of(last[name], arms[name]["validation"]) for name in ("LPWD", "WD"))),
        "opposing": {name: rounded(values) for name, values in opposing.items()},
    }


def best_of(values: np.ndarray, by: list) -> np.ndarray:
    """(S,) of values (R, D, S) in the cell where `by` (R, D) is largest."""
    return values[np.unravel_index(np.argmax(np.array(by, float)), values.shape[:2])]


# --- Strong penalty -------------------------------------------------------------------------------------------------


def strong_penalty(config: Config, directory: str, interrupted: Interrupted) -> None:
    """Loss and test accuracy over training where learning rate and decay are both large."""
    lab = prepare(config, directory, lambda config: penalty_runs(config).values())
    runs = penalty_runs(config)
    found = train_runs(lab, runs.values(), interrupted, title="strong penalty")
    if found is not None:
        finish(lab, found, penalty_result(config, {key: found[run] for key, run in runs.items()}))


def penalty_runs(config: Config) -> dict[tuple[str, str, int], Run]:
    """(optimizer, arm, place of the seed) -> run."""
    decay = numbers("strong.weight_decay", [config.strong.weight_decay])[0]
    rates = {name: numbers(f"strong.{name}", [rate])[0] for name, rate in config.strong.rates.items()}
    return {
        (optimizer, name, s): Run(arm(config, name, optimizer=optimizer), Member(rate, decay, seed))
        for optimizer, rate in rates.items()
        for name in arms_of(config)
        for s, seed in enumerate(seeds_of(config))
    }


def arms_of(config: Config) -> list[str]:
    """The arms to compare, WD among them, beside which the others are put."""
    if "WD" not in config.arms or len(config.arms) < 2:
        raise UserError(f"arms: got {tuple(config.arms)}, takes WD and at least one of RWD, PWD, LPWD")
    return list(config.arms)


def penalty_result(config: Config, found: dict[tuple, dict[str, np.ndarray]]) -> dict:
    """Per optimizer and arm: curves (E,), the last epoch, and what it is ahead of WD."""

    def curves(optimizer, name, values):
        return np.stack([found[optimizer, name, s][values] for s in range(config.seeds)])

    def one(optimizer, name):
        test, loss = (curves(optimizer, name, values) for values in ("test_accuracy", "loss"))
        ahead = paired(test[:, -1], curves(optimizer, "WD", "test_accuracy")[:, -1])
        last = {"test": mean_and_interval(test[:, -1]), "loss": mean_and_interval(loss[:, -1]), "ahead_of_WD": ahead}
        return last | {"test_curve": mean_and_interval(test), "loss_curve": mean_and_interval(loss)}

    optimizers = {
        optimizer: {"learning_rate": rate, "arms": {name: one(optimizer, name) for name in config.arms}}
        for optimizer, rate in config.strong.rates.items()
    }
    return {"weight_decay": config.strong.weight_decay, "optimizers": optimizers}


# --- Model scale ----------------------------------------------------------------------------------------------------


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


def fresh_seeds(config: Config) -> list[int]:
    """Those after the first one, by which settings were chosen."""
    return [seed + 1 for seed in seeds_of(config)]


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
