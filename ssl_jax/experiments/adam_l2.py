"""Weight decay is not L2 under Adam, and is under SGD (Loshchilov & Hutter 2019, arXiv 1711.05101).

The paper's propositions 1 and 2. Each step is compared with the step that the same optimizer would
have taken without decay in this gradient. Their difference, as a share of the weight, is the
shrinkage that the weight really suffered. With decoupled decay, or SGD, it is learning rate times
decay for all weights. Under Adam with L2 it is less where gradients are large, since the decay is
divided by their scale as all else is.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.dataset import Dataset
from ssl_jax.data.splits import hold_out
from ssl_jax.errors import UserError
from ssl_jax.experiments.harness.cells import Advance, Arrays, Cell, in_turn, seeds_of
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.experiments.harness.stacked import Setting, plain, steps_per_epoch, train_table
from ssl_jax.intervals import mean_and_interval, rounded
from ssl_jax.models import make_classifier, make_encoder
from ssl_jax.optim import Optimizer, make_optimizer
from ssl_jax.train.supervised import SupervisedState
from ssl_jax.types import Config, Params, PyTree, Scalar

# name: (optimizer, decay, field with its learning rate)
VARIANTS = {
    "SGD with L2": ("sgd", "coupled", "sgd_rate"),
    "SGD with decoupled decay": ("sgd", "decoupled", "sgd_rate"),
    "Adam with L2": ("adam", "coupled", "adam_rate"),
    "AdamW": ("adam", "decoupled", "adam_rate"),
}
EDGES = np.logspace(-8, 0, 33)  # of the bins by gradient scale
EMA_DECAY = 0.99  # of the moving averages over steps


def plan(config: Config, dataset: Dataset) -> dict[str, Cell]:
    """Return the cells, one for each of VARIANTS; UserError where `measured_decay` is wrong."""
    if config.measured_decay not in config.weight_decays:
        known = ", ".join(f"{decay:g}" for decay in config.weight_decays)
        raise UserError(
            f"measured_decay: got {config.measured_decay:g}, takes one of weight_decays: {known}"
        )
    if config.measured_decay <= 0:
        raise UserError(f"measured_decay: got {config.measured_decay:g}, takes a number above 0")
    train, validation = hold_out(dataset, config.data.validation_size)
    encoder = make_encoder("mlp", width=config.width, depth=config.depth)
    network = make_classifier(encoder, dataset.num_classes)
    augment, normalise = plain(dataset.side)
    eval_splits = {"validation": validation or train, "test": dataset.test}
    sizes = config.epochs, config.batch_size, augment, normalise, (config.epochs,)
    setting = Setting(network, dataset.num_classes, train, eval_splits, *sizes)
    steps = config.epochs * steps_per_epoch(setting)
    return {
        slug(name): Cell(steps, partial(_train, config, setting, variant))
        for name, variant in VARIANTS.items()
    }


def slug(name: str) -> str:
    """Return the name of a variant's cell."""
    return name.lower().replace(" ", "-")


def _train(
    config: Config, setting: Setting, variant: tuple[str, str, str], advance: Advance
) -> Arrays:
    """Train one of VARIANTS with every decay and seed."""
    name, decay, rate = variant

    def build(weight_decay: Scalar) -> Optimizer:
        one = partial(make_optimizer, name, config[rate])
        return measure_shrinkage(one(weight_decay=weight_decay, decay=decay), one())

    knobs = {"weight_decay": config.weight_decays}
    options = {"measure": shares, "measure_epochs": (config.epochs,), "advance": advance}
    return train_table(setting, build, knobs, seeds_of(config), **options)


# --- What decay takes of each weight --------------------------------------------------------------


class ShrinkageState(NamedTuple):
    """Two optimizers' states, and moving averages over steps by parameter."""

    own: PyTree  # state of the optimizer with decay
    plain: PyTree  # state of the optimizer without
    taken: Params  # moving average of (u_plain - u) theta, u a step
    square: Params  # of theta²
    power: Params  # of g²


def measure_shrinkage(optimizer: Optimizer, plain: Optimizer) -> Optimizer:
    """Return `optimizer`, with a record of what its decay does.

    Args:
        optimizer: with decay.
        plain: the same without decay. It sees the gradients of `optimizer`.
    """

    def init(params: Params) -> ShrinkageState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return ShrinkageState(optimizer.init(params), plain.init(params), zeros, zeros, zeros)

    def update(
        grads: Params, state: ShrinkageState, params: Params
    ) -> tuple[Params, ShrinkageState]:
        updates, own = optimizer.update(grads, state.own, params)
        without, memory = plain.update(grads, state.plain, params)
        taken = jax.tree.map(lambda a, b, theta: (a - b) * theta, without, updates, params)
        square, power = (jax.tree.map(jnp.square, tree) for tree in (params, grads))
        past = (state.taken, state.square, state.power)
        averages = jax.tree.map(
            lambda old, new: EMA_DECAY * old + (1 - EMA_DECAY) * new, past, (taken, square, power)
        )
        return updates, ShrinkageState(own, memory, *averages)

    return optimizer._replace(init=init, pre=lambda params, state: params, update=update)


def shares(state: SupervisedState) -> dict[str, jax.Array]:
    """Sum up the averages of a network's kernels by bins of the gradient's root mean square.

    Bins are below `EDGES`, between them, above, and no gradient at all. Biases are left out.

    Returns:
        Sums "taken" and "square" over each bin, whose ratio is the least-squares share of a weight
        that a step takes; "count", the weights in each bin; "weights" (n,), all kernels.
    """
    memory: ShrinkageState = state.opt_state

    def kernels(tree: Params) -> jax.Array:
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree) if leaf.ndim > 1])

    taken, square, power = (kernels(tree) for tree in (memory.taken, memory.square, memory.power))
    place = jnp.searchsorted(jnp.asarray(EDGES), jnp.sqrt(power))  # 0: below the first edge
    place = jnp.where(power == 0, len(EDGES) + 1, place)
    add = partial(jax.ops.segment_sum, segment_ids=place, num_segments=len(EDGES) + 2)
    sums = add(taken), add(square), add(jnp.ones_like(power))
    return {"taken": sums[0], "square": sums[1], "count": sums[2], "weights": kernels(state.params)}


# --- Results --------------------------------------------------------------------------------------


def summarise(config: Config, dataset: Dataset, cells: dict[str, Arrays]) -> dict[str, Any]:
    """Return accuracies by decay, and shrinkage by gradient scale, of each variant.

    Args:
        config: the experiment's configuration.
        dataset: the data set.
        cells: arrays by the names of `plan`.

    Returns:
        The entries of result.json. Shrinkage is relative to learning rate times decay.
    """
    decays, chosen = (
        list(config.weight_decays),
        list(config.weight_decays).index(config.measured_decay),
    )
    variants = {}
    for name, (_, _, rate) in VARIANTS.items():
        cell = cells[slug(name)]
        scores = {k: cell[f"{k}_accuracy"][:, :, -1] for k in ("validation", "test")}
        best = int(np.argmax(scores["validation"].mean(axis=0)))
        bins = {k: cell[k][:, chosen, 0].sum(axis=0) for k in ("taken", "square", "count")}
        nominal = config[rate] * decays[chosen]
        with np.errstate(invalid="ignore"):
            relative = bins["taken"] / bins["square"] / nominal
        variants[name] = {
            "learning_rate": config[rate],
            **{k: mean_and_interval(v) for k, v in scores.items()},
            "best_decay": decays[best],
            "test_at_best": mean_and_interval(scores["test"][:, best]),
            "shrinkage": rounded(relative[1:-2]),
            "weights_in_bin": bins["count"][1:-2].astype(int).tolist(),
            "shrinkage_without_gradient": rounded(relative[-1]),
            "weights_without_gradient": int(bins["count"][-1]),
        }
    pairs = {"SGD": ("SGD with L2", "SGD with decoupled decay"), "Adam": ("Adam with L2", "AdamW")}
    apart = {
        name: distances(*(cells[slug(member)]["weights"][:, :, 0] for member in pair))
        for name, pair in pairs.items()
    }
    centres = np.sqrt(EDGES[1:] * EDGES[:-1])
    return {
        "weight_decays": decays,
        "measured_decay": config.measured_decay,
        "gradient_scale": rounded(centres),
        "variants": variants,
        "distance_between_kinds": apart,
    }


def distances(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Return |a - b| / |b| of trained weights (S, R, n), with its interval over the seeds.

    It is NaN where decay has left nothing of b.
    """
    size = np.linalg.norm(b, axis=-1)
    return mean_and_interval(np.linalg.norm(a - b, axis=-1) / np.where(size > 1e-3, size, np.nan))


RANGES = {"width": (1, 10**5), "depth": (1, 1000), "sgd_rate": (0, 1e6), "adam_rate": (0, 1e6)}
EXPERIMENT = Experiment([in_turn(plan)], summarise, ranges=RANGES)
