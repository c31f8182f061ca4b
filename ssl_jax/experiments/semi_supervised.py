"""What few labels are worth with and without pretraining: table 2 of BYOL's paper.

Grill et al. 2020 (arXiv 2006.07733, section 4): with 1 %, 10 % and all of the labels, a linear
classifier of the frozen features, the whole network fine-tuned, and the same network from scratch.
All arms of a share and a seed have the same labelled images, and fine-tuning and scratch the same
head, order and augmentation. Whatever is chosen (the learning rate, the classifier's penalty) is
chosen by training images that are held out, over all seeds; no arm looks at the test set before.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ssl_jax.augment.labelled import make_augment
from ssl_jax.augment.views import Recipe, evaluation_view, make_normalise
from ssl_jax.builders import pretraining
from ssl_jax.builders.checks import check_counts
from ssl_jax.builders.defaults import default_config
from ssl_jax.builders.network import build_encoder
from ssl_jax.builders.program import compile_once, steps_per_call
from ssl_jax.data.batches import batch_indices, make_feed, steps_per_epoch
from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.data.splits import hold_out, keep_labelled, labelled_count
from ssl_jax.errors import UserError
from ssl_jax.experiments.harness.cells import Advance, Arrays, Cell, in_turn, seeds_of
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.intervals import mean_and_interval, paired
from ssl_jax.losses import LOSSES
from ssl_jax.models import make_classifier
from ssl_jax.optim import Optimizer, make_optimizer
from ssl_jax.optim.schedules import make_schedule
from ssl_jax.probes.features import extract
from ssl_jax.probes.linear import standardise
from ssl_jax.train import parallel
from ssl_jax.train.state import init_key
from ssl_jax.train.supervised import SupervisedState, make_supervised_step
from ssl_jax.types import Config, Params, Scalar
from ssl_jax.workdir.directory import flatten

ARMS = ("linear", "fine-tuned", "from scratch")
ITERATIONS = 1000  # of L-BFGS, at most


def pretraining_of(config: Config, seed: int) -> Config:
    """Return the whole configuration of a seed's pretraining."""
    whole = default_config()
    fields = flatten(config.pretraining.to_dict())
    whole.update_from_flattened_dict(
        {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    )
    whole.data.update({name: config.data[name] for name in ("name", "data_dir", "image_size")})
    whole.seed = seed
    return whole


def check(config: Config) -> None:
    """Raise a UserError for the first field that is wrong."""
    check_counts(pretraining_of(config, config.seed))
    make_optimizer(config.optimizer, 0.1)  # its name
    for field, most in (("shares", 1.0), ("rates", 1e6), ("penalties", 1e6)):
        values = config[field]
        if not values or any(not 0 < value <= most for value in values):
            raise UserError(f"{field}: got {values}, takes numbers above 0, at most {most:g}")


# --- Pretraining ----------------------------------------------------------------------------------


def pretrain_cells(config: Config, dataset: Dataset) -> dict[str, Cell]:
    """Return the cells of the first stage, one for each seed: its encoder."""
    train, _ = hold_out(dataset, config.data.validation_size)
    for share in config.shares:  # refused before anything is trained
        for seed in seeds_of(config):
            keep_labelled(train, share, seed, "shares")
    whole = pretraining_of(config, config.seed)
    steps = whole.epochs * steps_per_epoch(len(train.label), whole.batch_size)
    return {
        f"pretrained-{seed}": Cell(steps, partial(_pretrain, config, dataset, train, seed))
        for seed in seeds_of(config)
    }


def _pretrain(
    config: Config, dataset: Dataset, train: Split, seed: int, advance: Advance
) -> Arrays:
    """Return the arrays of an encoder, pretrained on `train` without its labels."""
    whole = pretraining_of(config, seed)
    each = steps_per_epoch(len(train.label), whole.batch_size)
    devices = jax.local_devices()[:1]
    parts = pretraining.build(whole, whole.epochs * each, each, None)
    state = pretraining.fresh_state(whole, pretraining.make_init(parts, dataset.description))
    feed = make_feed(train.image, whole.batch_size, seed)
    key = jax.random.key(seed)
    run = pretraining.compile_step(whole, parts, feed.data, devices, key, dataset.side)
    size, total = steps_per_call(whole, devices), whole.epochs * each
    calls = [(first, min(size, total - first)) for first in range(0, total, size)]
    state = parallel.replicate(jax.device_get(state), devices)
    losses = []
    for (_, count), batches in zip(calls, feed.batches(calls), strict=True):
        state, metrics = run(state, batches)
        losses.append(metrics["loss"])
        jax.block_until_ready(losses[-2:][0])
        advance(count)
    state = jax.device_get(state)
    encoder = {"params": state.params["encoder"], "stats": state.stats.get("encoder", {})}
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(encoder, sep="/")
    return flat | {"loss": np.concatenate([np.atleast_1d(loss) for loss in losses])}


def encoder_in(cell: Arrays) -> tuple[Params, Params]:
    """Return parameters and statistics of the encoder in a cell of `_pretrain`."""
    flat = {name: a for name, a in cell.items() if name.startswith(("params/", "stats/"))}
    tree: Any = flax.traverse_util.unflatten_dict(flat, sep="/")
    return tree["params"], tree.get("stats", {})


# --- With labels ----------------------------------------------------------------------------------


class Trainer(NamedTuple):
    """Functions that all trainings with labels share, so that each is compiled once."""

    # init(key) -> params, stats of a fresh classifier
    init: Callable[[jax.Array], tuple[Params, Params]]
    # begin(params, stats) -> the state at step 0
    begin: Callable[[Params, Params], SupervisedState]
    # step(state, learning rate, key, image (B, H, W, C) uint8, label (B,)) -> state, loss ()
    step: Callable[..., tuple[SupervisedState, jax.Array]]
    # logits(params, stats, image (B, H, W, C) uint8) -> (B, K)
    logits: Callable[[Params, Params, jax.Array], jax.Array]


def labelled_cells(
    config: Config, dataset: Dataset, encoders: dict[str, Arrays]
) -> dict[str, Cell]:
    """Return the cells of the second stage, one for each share, arm and seed."""
    train, validation = hold_out(dataset, config.data.validation_size)
    splits = {"validation": validation, "test": dataset.test}
    whole = pretraining_of(config, config.seed)
    encoder, recipe = build_encoder(whole, None), pretraining.build_recipe(whole)
    trainer = make_trainer(config, dataset, encoder, recipe)
    features = make_features(encoder, recipe)
    cells = {}
    for share in config.shares:
        for seed in seeds_of(config):
            labelled = keep_labelled(train, share, seed)
            pretrained = encoder_in(encoders[f"pretrained-{seed}"])
            frozen = Partial(features, *pretrained)
            probe = partial(_linear, config, labelled, splits, frozen)
            cells[name_of("linear", share, seed)] = Cell(len(config.penalties), probe)
            for arm, begin in (("fine-tuned", pretrained), ("from scratch", None)):
                make = partial(_train, config, trainer, labelled, splits, begin, seed)
                cells[name_of(arm, share, seed)] = Cell(config.steps * len(config.rates), make)
    return cells


def name_of(arm: str, share: float, seed: int) -> str:
    """Return the name of a cell."""
    return f"{arm.replace(' ', '-')}-{share:g}-{seed}"


def make_features(encoder: nn.Module, recipe: Recipe) -> Callable[..., jax.Array]:
    """Return features(params, stats, image (B, H, W, C) uint8) -> (B, F), in evaluation mode."""
    view = evaluation_view(recipe)

    def features(params: Params, stats: Params, image: jax.Array) -> jax.Array:
        variables = {"params": params, "batch_stats": stats}
        return jnp.asarray(encoder.apply(variables, view(image), train=False))

    return features


def _linear(
    config: Config,
    labelled: Split,
    splits: dict[str, Split],
    features: Partial,
    advance: Advance,
) -> Arrays:
    """Return accuracies (penalties,) of logistic regression of the frozen features."""
    from sklearn.linear_model import LogisticRegression

    x, *others = standardise(*(extract(features, s.image) for s in (labelled, *splits.values())))
    found: dict[str, list[float]] = {}
    for l2 in config.penalties:
        # the minimum of mean loss + l2 / 2 |kernel|^2; the bias is not penalised
        classifier = LogisticRegression(C=1 / (l2 * len(x)), max_iter=ITERATIONS)
        classifier.fit(x, labelled.label)
        for (name, split), other in zip(splits.items(), others, strict=True):
            right = classifier.predict(other) == split.label
            found.setdefault(f"{name}_accuracy", []).append(float(np.mean(right)))
        advance(1)
    return {name: np.array(values) for name, values in found.items()}


def make_trainer(config: Config, dataset: Dataset, encoder: nn.Module, recipe: Recipe) -> Trainer:
    """Return the functions of training with labels.

    Args:
        config: the experiment's configuration.
        dataset: the data set.
        encoder: the network below the head.
        recipe: of pretraining, whose normalisation the encoder knows.

    Returns:
        The functions.
    """
    assert recipe.mean is not None and recipe.std is not None
    normalise = make_normalise(recipe.mean, recipe.std)
    fields = {"flip": config.flip, "crop_padding": config.crop_padding}
    augment = make_augment(image_size=dataset.side, mean=recipe.mean, std=recipe.std, **fields)
    network = make_classifier(encoder, dataset.num_classes)
    zeros = jnp.zeros((2, *dataset.train.image.shape[1:]))

    def optimizer(learning_rate: Scalar) -> Optimizer:
        rate = make_schedule("cosine", learning_rate, total_steps=config.steps)
        return make_optimizer(config.optimizer, rate)

    def begin(params: Params, stats: Params) -> SupervisedState:
        opt_state = optimizer(0.0).init(params)
        return SupervisedState(jnp.zeros((), jnp.int32), params, stats, opt_state)

    def step(
        state: SupervisedState, rate: jax.Array, key: jax.Array, image: jax.Array, label: jax.Array
    ) -> tuple[SupervisedState, jax.Array]:
        take = make_supervised_step(
            augment=augment,
            classifier=network,
            optimizer=optimizer(rate),
            loss=LOSSES["softmax"],
            num_classes=dataset.num_classes,
        )
        position = jnp.arange(len(label), dtype=jnp.int32)
        state, metrics = take(state, {"image": image, "label": label, "position": position}, key)
        return state, metrics["loss"]

    return Trainer(
        compile_once(lambda key: network.init(key, zeros)),
        jax.jit(begin),
        jax.jit(step, donate_argnums=0),
        lambda params, stats, image: network.logits(params, stats, normalise(image)),
    )


def _train(
    config: Config,
    trainer: Trainer,
    labelled: Split,
    splits: dict[str, Split],
    pretrained: tuple[Params, Params] | None,
    seed: int,
    advance: Advance,
) -> Arrays:
    """Return accuracies (rates,) after training from the encoder, or from scratch where None."""
    key, count = jax.random.key(seed), len(labelled.label)
    params, stats = trainer.init(init_key(key))
    if pretrained is not None:
        params = params | {"encoder": pretrained[0]}
        stats = stats | ({"encoder": pretrained[1]} if pretrained[1] else {})
    size = min(config.batch_size, count)
    order = [batch_indices(seed, step, count, size) for step in range(config.steps)]
    found: dict[str, list[float]] = {}
    for rate in config.rates:
        state, loss = trainer.begin(params, stats), jnp.nan
        for number, rows in enumerate(order):
            batch = labelled.image[rows], labelled.label[rows]
            state, loss = trainer.step(state, jnp.float32(rate), key, *batch)
            if number % 10 == 9:  # not all steps ahead of the device
                jax.block_until_ready(loss)
        apply = Partial(trainer.logits, state.params, state.stats)
        found.setdefault("loss", []).append(float(loss))
        for name, split in splits.items():
            right = np.argmax(extract(apply, split.image), axis=1) == split.label
            found.setdefault(f"{name}_accuracy", []).append(float(np.mean(right)))
        advance(config.steps)
    return {name: np.array(values) for name, values in found.items()}


# --- The table ------------------------------------------------------------------------------------


def summarise(
    config: Config, dataset: Dataset, encoders: dict[str, Arrays], cells: dict[str, Arrays]
) -> dict[str, Any]:
    """Return the accuracies of every share and arm, at what held-out images chose.

    Args:
        config: the experiment's configuration.
        dataset: the data set.
        encoders: arrays by the names of `pretrain_cells`.
        cells: arrays by the names of `labelled_cells`.

    Returns:
        The entries of result.json. "ahead" are differences to the arm from scratch, paired by seed.
    """
    seeds, count = seeds_of(config), len(dataset.train.label) - config.data.validation_size
    rows = []
    for share in config.shares:
        tests: dict[str, np.ndarray] = {}
        for arm in reversed(ARMS):
            found = [cells[name_of(arm, share, seed)] for seed in seeds]
            validation = np.stack([cell["validation_accuracy"] for cell in found])
            best = int(np.argmax(validation.mean(axis=0)))
            tests[arm] = np.stack([cell["test_accuracy"] for cell in found])[:, best]
            grid = config.penalties if arm == "linear" else config.rates
            rows.append(
                {
                    "share": share,
                    "images": labelled_count(count, share),
                    "arm": arm,
                    "chosen": grid[best],
                    "at_the_edge": best in (0, len(grid) - 1),
                    "validation": mean_and_interval(validation[:, best]),
                    "test": mean_and_interval(tests[arm]),
                    "ahead": paired(tests[arm], tests["from scratch"]),
                }
            )
    final = [cell["loss"][-1] for cell in encoders.values()]
    return {
        "images": count,
        "validation_images": config.data.validation_size,
        "test_images": len(dataset.test.label),
        "rows": rows,
        "pretraining_loss": mean_and_interval(np.asarray(final)),
    }


RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 10**7),
    "flip": (0, 1),
    "crop_padding": (0, 64),
    "data.validation_size": (1, 10**7),
}
EXPERIMENT = Experiment(
    [in_turn(pretrain_cells), in_turn(labelled_cells)], summarise, check=check, ranges=RANGES
)
