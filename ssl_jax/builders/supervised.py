"""Build the parts of a supervised run from a configuration."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Wrapped

from ssl_jax.augment.labelled import make_augment
from ssl_jax.builders.checks import check_supervised
from ssl_jax.builders.data import describe_dataset
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.builders.network import TRACED_SIDE, build_encoder
from ssl_jax.builders.optimizer import (
    Rule,
    build_optimizer,
    build_rules,
    penalty_kind,
    schedules_append,
    schedules_of,
)
from ssl_jax.builders.plan import Plan, make_plan
from ssl_jax.builders.program import compile_once, fresh_key
from ssl_jax.data.dataset import Description
from ssl_jax.data.splits import check_held_out, labelled_count
from ssl_jax.errors import UserError
from ssl_jax.losses import LOSSES
from ssl_jax.models import Classifier, call_order, make_classifier
from ssl_jax.optim import Optimizer, Schedule
from ssl_jax.train.supervised import SupervisedState, init_supervised, make_supervised_step
from ssl_jax.types import Config, Step

CLASSIFIER_GROUPS = ("encoder", "head")


class ClassifierParts(NamedTuple):
    """Everything that a supervised step is made of."""

    classifier: Classifier  # encoder and head
    optimizer: Optimizer  # of all parameter groups
    rules: dict[str, Rule]  # of each parameter group
    order: tuple[str, ...]  # modules in the order of the forward pass


def prepare(
    config: Config, description: Description | None = None
) -> tuple[Plan, ClassifierParts, Callable]:
    """Return the plan, the parts and the augmentation of a supervised run. Reads no image.

    All is checked against the description of the data set: the one given, or what is known before
    its images are read. A UserError names the first field that is wrong.
    """
    check_supervised(config)
    data = description or describe_dataset(config)
    if not data.num_classes:
        raise UserError(
            f"data.labels: {data.name} has no labels (got {config.data.labels!r}); "
            "task 'supervised' takes a set with labels"
        )
    plan = make_plan(config, lambda data: labelled_left(config, data), data=data)
    sizes = plan.data.num_classes, plan.data.channels, plan.cadence.total, plan.steps_per_epoch
    parts = build_classifier(config, *sizes, plan.axis)
    return plan, parts, build_augment(config, plan.data)


def images_left(config: Config, data: Description) -> int:
    """Return the number of training images that are not held out; UserError where none is left."""
    check_held_out(config.data.validation_size, data.train)
    return data.train - config.data.validation_size


def labelled_left(config: Config, data: Description) -> int:
    """Return how many of the images that are left are trained on: the share of labels in use."""
    left, share = images_left(config, data), config.data.labelled_share
    count = labelled_count(left, share)
    if share < 1 and count < data.num_classes:
        raise UserError(
            f"data.labelled_share: got {share:g}, {count} of {left} training images, takes at "
            f"least {data.num_classes / left:.3g}, one example of each of the {data.num_classes} "
            "classes"
        )
    return count


def build_classifier(
    config: Config,
    num_classes: int,
    channels: int,
    total_steps: int,
    steps_per_epoch: int,
    axis_name: str | None,
) -> ClassifierParts:
    """Build the parts of a supervised run.

    Args:
        config: configuration of the run.
        num_classes: number of classes.
        channels: channels of an image.
        total_steps: steps of the run.
        steps_per_epoch: steps of an epoch.
        axis_name: axis that a step averages over, or None.

    Returns:
        The parts.

    Raises:
        UserError: names the first field that is wrong.
    """
    encoder = build_encoder(config, axis_name if config.sync_batch_norm else None)
    classifier = make_classifier(
        encoder, num_classes, dropout=config.head.dropout, init=config.init
    )
    order = call_order(classifier.init, jnp.zeros((2, TRACED_SIDE, TRACED_SIDE, channels)))
    rules = build_rules(config, CLASSIFIER_GROUPS, total_steps, steps_per_epoch)
    return ClassifierParts(classifier, build_optimizer(config, rules, order), rules, order)


def appends(config: Config, steps_per_epoch: int, before: int) -> bool:
    """Return whether a run of `before` epochs is the beginning of the run of `config.epochs`.

    It is where no schedule depends on which of the two numbers there are, and where what plateau
    and early stopping count, evaluations, is the same: the last epoch has one.

    Args:
        config: of a run that trains.
        steps_per_epoch: of both.
        before: the other number of epochs.

    Returns:
        Whether it is.
    """
    every = config.eval_every
    if counts_evaluations(config) and (not every or before % every or config.epochs % every):
        return False

    def schedules(total: int) -> list[Schedule]:
        return schedules_of(build_rules(config, CLASSIFIER_GROUPS, total, steps_per_epoch))

    return schedules_append(schedules, before, config.epochs, steps_per_epoch)


def counts_evaluations(config: Config) -> bool:
    """Return whether plateau or early stopping decides on the evaluations so far."""
    return bool(config.plateau.patience or config.stopping.patience)


def fixed_fields(config: Config) -> tuple[str, ...]:
    """Return the fields that decide what this run trains, though not what others do."""
    return ("eval_every", "log_every") if counts_evaluations(config) else ()


def earlier_defaults(config: Config) -> dict[str, Any]:
    """Return what an earlier start did whose configuration lacks a field: its default, but for one.

    Before there was `watch`, plateau and early stopping watched the accuracy on held-out images.
    """
    fields = defaults_of("supervised")
    for section in ("plateau", "stopping"):
        if config[section].patience:
            fields[section]["watch"] = "validation_accuracy"
    return fields


def build_augment(config: Config, data: Description) -> Callable:
    """Return augment(keys, images, one-hot labels); UserError where it does not fit the images."""
    augment = make_augment(image_size=data.side, **config.augment)
    key = jax.random.split(jax.random.key(0), 2)
    image = jax.ShapeDtypeStruct((2, *data.image), np.uint8)
    jax.eval_shape(augment, key, image, jnp.zeros((2, data.num_classes)))
    return augment


def make_init(parts: ClassifierParts, data: Description) -> Wrapped:
    """Return init(key) -> the state at step 0, compiled for the images of `data`."""
    image = jnp.zeros((2, data.side, data.side, data.channels))
    return compile_once(lambda key: init_supervised(key, image, parts.classifier, parts.optimizer))


def fresh_state(config: Config, init: Wrapped) -> SupervisedState:
    """Return the state at step 0, a function of the seed."""
    return init(fresh_key(config))


def build_step(
    config: Config,
    parts: ClassifierParts,
    augment: Callable,
    num_classes: int,
    axis_name: str | None,
) -> Step:
    """Return the supervised step of these parts.

    Args:
        config: configuration of the run.
        parts: its parts.
        augment: augment(keys, images, one-hot labels), see `build_augment`.
        num_classes: number of classes.
        axis_name: axis that the step averages over, or None.

    Returns:
        step(state, batch, key) -> (state, metrics).
    """
    return make_supervised_step(
        augment=augment,
        classifier=parts.classifier,
        optimizer=parts.optimizer,
        loss=LOSSES[config.loss],
        num_classes=num_classes,
        consistency=config.augment.consistency,
        penalty=penalty_kind(config, parts.rules),
        accumulate=config.accumulate,
        axis_name=axis_name,
    )
