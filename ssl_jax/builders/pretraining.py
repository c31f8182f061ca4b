"""Build the parts of a pretraining run from a configuration."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.stages import Wrapped

from ssl_jax.augment.views import Recipe, make_recipe, make_views
from ssl_jax.builders import choices
from ssl_jax.builders.checks import check_counts, check_sizes, check_views
from ssl_jax.builders.network import build_network, forward_order
from ssl_jax.builders.optimizer import (
    Rule,
    build_optimizer,
    build_rules,
    penalty_kind,
    schedules_append,
    schedules_of,
)
from ssl_jax.builders.plan import Plan, make_plan
from ssl_jax.builders.program import compile_once, compile_program, fresh_key, steps_per_call
from ssl_jax.data.dataset import Description
from ssl_jax.errors import UserError
from ssl_jax.losses import OBJECTIVES, regularised
from ssl_jax.models import Network
from ssl_jax.optim import Optimizer, Schedule
from ssl_jax.optim.schedules import target_rate
from ssl_jax.predictors import Predictor, make_predictor, options_of
from ssl_jax.train import parallel
from ssl_jax.train.pretrain import make_pretrain_step
from ssl_jax.train.state import PretrainState, init_state
from ssl_jax.types import Config, Step

GROUPS = ("encoder", "projector", "predictor")


class Parts(NamedTuple):
    """Everything that a pretraining step is made of, built from a configuration alone."""

    network: Network  # encoder and projector
    predictor: Predictor
    optimizer: Optimizer  # of all parameter groups
    rules: dict[str, Rule]  # of each parameter group
    tau: Schedule | None  # the target's rate by step; None: the target is the online network
    recipe: Recipe  # the augmentations


class Prepared(NamedTuple):
    """A pretraining run before its images are known."""

    config: Config  # settled, see `choices.settle`
    plan: Plan
    parts: Parts  # mean and std of the recipe are None where the images have to give them
    lines: list[str]  # what was chosen from the data, in words

    @property
    def later(self) -> tuple[str, ...]:
        """The fields that the images themselves have to give, and that are unset until then."""
        return choices.unmeasured(self.config, self.plan.data.channels)


def prepare(config: Config, description: Description | None = None) -> Prepared:
    """Return configuration, plan and parts of a pretraining run. Reads no image.

    All is checked against the description of the data set: the one given, or what is known before
    its images are read. A UserError names the first field that is wrong.
    """
    check_counts(choices.stand_ins(config))
    config, data, lines = choices.settle(config, description)
    plan = make_plan(config, lambda data: data.pretrain, config.dynamics.every, data)
    parts = build(config, plan.cadence.total, plan.steps_per_epoch, plan.axis)
    parts = parts._replace(recipe=choices.build_recipe(config, data.channels))
    check_views(parts.recipe, plan.data)
    check_sizes(config.probe, plan.data, config.probe.validation_size)
    return Prepared(config, plan, parts, lines)


def build(config: Config, total_steps: int, steps_per_epoch: int, axis_name: str | None) -> Parts:
    """Build the parts of a pretraining run.

    Args:
        config: configuration of the run.
        total_steps: steps of the run.
        steps_per_epoch: steps of an epoch.
        axis_name: axis that a step averages over, or None.

    Returns:
        The parts.

    Raises:
        UserError: names the first field that is wrong.
    """
    norm_axis = axis_name if config.sync_batch_norm else None
    rules = build_rules(config, GROUPS, total_steps, steps_per_epoch)
    network, predictor = build_network(config, norm_axis), build_predictor(config, norm_axis)
    order = forward_order(network, predictor) if config.optimizer.layerwise else None
    return Parts(
        network,
        predictor,
        build_optimizer(config, rules, order),
        rules,
        build_tau(config, total_steps),
        build_recipe(config),
    )


def appends(config: Config, steps_per_epoch: int, before: int) -> bool:
    """Return whether a run of `before` epochs is the beginning of the run of `config.epochs`.

    It is where no schedule depends on which of the two numbers there are.

    Args:
        config: of a run that trains.
        steps_per_epoch: of both.
        before: the other number of epochs.

    Returns:
        Whether it is.
    """

    def schedules(total: int) -> list[Schedule]:
        tau = build_tau(config, total)
        rules = build_rules(config, GROUPS, total, steps_per_epoch)
        return [*schedules_of(rules), *([tau] if tau else [])]

    return schedules_append(schedules, before, config.epochs, steps_per_epoch)


def build_predictor(config: Config, axis_name: str | None) -> Predictor:
    """Return the predictor, built with those fields that the function of its kind takes.

    An unset field has that function's default.
    """
    kind = config.predictor.kind
    fields = {name: value for name, value in config.predictor.items() if value is not None}
    fields |= {
        "init": config.init,
        "output_bias": config.projector.output_bias,
        "axis_name": axis_name,
        "head_norm": config.projector.norm,
        "standardise": config.projector.standardise,
    }
    taken = options_of(kind)
    return make_predictor(
        kind, config.projector.out, **{k: v for k, v in fields.items() if k in taken}
    )


def build_tau(config: Config, total_steps: int) -> Schedule | None:
    """Return the target's rate by step, or None where the target is the online network itself."""
    tau = config.target.tau
    if not 0 <= tau <= 1:
        raise UserError(f"target.tau: got {tau}, takes a number in [0, 1]; 0 means no average")
    schedule = target_rate(config.target.schedule, tau, total_steps)
    return schedule if tau > 0 else None


def build_recipe(config: Config) -> Recipe:
    """Return the augmentations, with the fields that override the recipe's."""
    return make_recipe(**config.views)


def make_init(parts: Parts, data: Description) -> Wrapped:
    """Return init(key) -> the state at step 0, compiled for views of the images of `data`."""
    side = parts.recipe.size or data.side
    image = jnp.zeros((2, side, side, data.channels))
    return compile_once(
        lambda key: init_state(
            key, image, parts.network, parts.predictor, parts.optimizer, parts.tau is not None
        )
    )


def fresh_state(config: Config, init: Wrapped) -> PretrainState:
    """Return the state at step 0, a function of the seed."""
    return init(fresh_key(config))


def build_step(config: Config, parts: Parts, views: Callable, axis_name: str | None) -> Step:
    """Return the pretraining step of these parts.

    Args:
        config: configuration of the run.
        parts: its parts.
        views: views(keys (B,), images (B, H, W, C) uint8) -> two arrays (B, S, S, C) float32.
        axis_name: axis that the step averages over, or None.

    Returns:
        step(state, batch, key) -> (state, metrics).
    """
    return make_pretrain_step(
        views=views,
        network=parts.network,
        predictor=parts.predictor,
        optimizer=parts.optimizer,
        tau=parts.tau,
        objective=regularised(OBJECTIVES[config.loss], config.regularisers),
        loss_scale=config.loss_scale,
        tracked=config.dynamics.every,
        penalty=penalty_kind(config, parts.rules),
        accumulate=config.accumulate,
        axis_name=axis_name,
    )


def compile_step(
    config: Config, parts: Parts, data: dict, devices: list, key: jax.Array, side: int
) -> Callable:
    """Compile the pretraining step for all devices.

    Args:
        config: configuration of the run.
        parts: its parts.
        data: arrays that a step gathers its images from, see `data.batches.Feed`.
        devices: devices to train on.
        key: key of the run.
        side: of a view where the recipe says none, in pixels: that of the images.

    Returns:
        run(state, batches) -> (state, metrics of every step).
    """
    step = build_step(config, parts, make_views(parts.recipe, side), parallel.axis(devices))
    return compile_program(step, data, devices, key, steps_per_call(config, devices))
