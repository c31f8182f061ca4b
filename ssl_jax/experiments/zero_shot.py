"""Zero-shot decay: a trained network's weights shrunk towards zero without further training.

Figure 3a of the layer-wise pre-weight-decay paper:

    theta_s = (1 - s / 100) theta_0,  s = 0..100  (equation 12): linear in s, not geometric

What this does differs between networks. A network with a norm of each example after every layer is
invariant to the scale of the layers' weights (up to eps), not to that of the head and its biases.
With ReLU and no norm, only the weight of biases against products changes. BatchNorm in evaluation
mode keeps the statistics of the full-size weights, so its outputs are off by mean and scale in
every layer. With the statistics of the batch itself the network is invariant again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.experiments.harness.cells import Arrays, seeds_of
from ssl_jax.experiments.harness.decay_grid import (
    After,
    Kind,
    Laboratory,
    Run,
    Stage,
    arm,
    build_classifier,
    decay_experiment,
    mean_scores,
    numbers,
)
from ssl_jax.experiments.harness.dispatched import Member, Program, compile_once, sum_scores
from ssl_jax.intervals import mean_and_interval, rounded
from ssl_jax.train.supervised import SupervisedState
from ssl_jax.types import Config, Params

OWN = "own statistics"  # BatchNorm's, of the batch itself


# states, s, image, label -> {"right", "loss"} (G,), sums over the batch
Score = Callable[[SupervisedState, np.float32, jax.Array, jax.Array], dict[str, jax.Array]]


def baseline_runs(config: Config) -> dict[tuple[str, int], Run]:
    """Return the runs, (network, index of the seed) -> run."""
    steps_of(config)
    rates = {
        name: numbers(f"networks.{name}", [fields.learning_rate])[0]
        for name, fields in config.networks.items()
    }
    return {
        (name, s): Run(network_kind(config, name), Member(rate, 0.0, seed))
        for name, rate in rates.items()
        for s, seed in enumerate(seeds_of(config))
    }


def network_kind(config: Config, name: str) -> Kind:
    """Return the kind of a network, which is trained without decay."""
    fields = {k: v for k, v in config.networks[name].items() if k != "learning_rate"}
    return arm(config, "none", encoder=tuple(sorted(fields.items())))


def steps_of(config: Config) -> list[int]:
    """Return the s to evaluate, 0 and 100 among them; UserError where `every` is wrong."""
    if 100 % config.every or config.every < 1:
        raise UserError(f"every: got {config.every}, takes a divisor of 100")
    return list(range(0, 101, config.every))


def shrunk(params: Params, s: float | jax.Array) -> Params:
    """Return (1 - s / 100) theta."""
    return jax.tree.map(lambda theta: (1 - s / 100) * theta, params)


def shrinking(lab: Laboratory) -> After:
    """Return after(program, kind, states), which evaluates shrunk networks on the test images.

    Its arrays are "shrunk_accuracy" and "shrunk_loss" (G, steps); of a network with BatchNorm also
    "own_accuracy" and "own_loss", with the statistics of the batch itself.
    """
    scorers: dict[Kind, tuple[Score, Score]] = {}

    def after(program: Program, kind: Kind, states: SupervisedState) -> Arrays:
        if kind not in scorers:
            scorers[kind] = make_scorers(lab, kind)
        ways = {"shrunk": scorers[kind][0]} | (
            {"own": scorers[kind][1]} if jax.tree.leaves(states.stats) else {}
        )
        curves = {}
        for way, score in ways.items():
            pairs = [
                mean_scores(partial(score, states, np.float32(s)), lab.eval_batches["test"])
                for s in steps_of(lab.config)
            ]
            accuracy, loss = (np.stack(column, axis=1) for column in zip(*pairs, strict=True))
            curves |= {f"{way}_accuracy": accuracy, f"{way}_loss": loss}
        return curves

    return after


def make_scorers(lab: Laboratory, kind: Kind) -> tuple[Score, Score]:
    """Return scores with the statistics of training, and with those of the batch itself."""
    classifier = build_classifier(lab.config, kind, lab.num_classes)

    def kept(
        state: SupervisedState, s: jax.Array, image: jax.Array, label: jax.Array
    ) -> dict[str, jax.Array]:
        return sum_scores(
            classifier.logits(shrunk(state.params, s), state.stats, lab.normalise(image)), label
        )

    def own(
        state: SupervisedState, s: jax.Array, image: jax.Array, label: jax.Array
    ) -> dict[str, jax.Array]:
        key = jax.random.key(0)  # of dropout, which these networks do not have
        return sum_scores(
            classifier.train(shrunk(state.params, s), state.stats, lab.normalise(image), key)[0],
            label,
        )

    def over_members(function: Callable[..., Any]) -> Score:
        return compile_once(jax.jit(jax.vmap(function, (0, None, None, None))))

    return over_members(kept), over_members(own)


def summarise(config: Config, results: dict[tuple[str, int], Arrays]) -> dict[str, Any]:
    """Return curves (steps,) with intervals over the seeds.

    "holds_until" says by how much weights may shrink before a tenth of the accuracy is lost.
    """
    curves = {}
    for name in config.networks:
        arrays = [results[name, s] for s in range(config.seeds)]
        ways = {"shrunk": name} | ({"own": f"{name}, {OWN}"} if "own_accuracy" in arrays[0] else {})
        for way, label in ways.items():
            accuracy, loss = (
                np.stack([a[f"{way}_{values}"] for a in arrays]) for values in ("accuracy", "loss")
            )
            held = [last_within(row, steps_of(config)) for row in accuracy]
            curves[label] = {
                "accuracy": mean_and_interval(accuracy),
                "loss": mean_and_interval(loss),
            }
            curves[label] |= {"holds_until": mean_and_interval(np.array(held, float))}
    trained = {
        name: rounded(
            np.array([results[name, s]["test_accuracy"][-1] for s in range(config.seeds)])
        )
        for name in config.networks
    }
    return {"s": steps_of(config), "networks": curves, "trained": trained}


def last_within(accuracy: np.ndarray, s: list[int], share: float = 0.9) -> int:
    """Return the last s up to which the accuracy holds.

    Args:
        accuracy: (steps,), the first one at s = 0.
        s: (steps,).
        share: of the first accuracy, below which it does not hold.

    Returns:
        One of `s`.
    """
    below = np.flatnonzero(accuracy < share * accuracy[0])
    return s[below[0] - 1] if below.size else s[-1]


EXPERIMENT = decay_experiment(
    Stage("networks without decay", baseline_runs, after=shrinking),
    summarise=lambda lab, results: summarise(lab.config, results),
)
