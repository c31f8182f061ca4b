"""Build the optimizer from a configuration: parameter groups, schedules, table of layers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError
from ssl_jax.optim import (
    Optimizer,
    Schedule,
    assign_groups,
    by_group,
    clipped,
    decayed,
    kind_of_decay,
    make_optimizer,
    path_of,
)
from ssl_jax.optim.decay import compile_mask, decay_rates, layer_index
from ssl_jax.optim.schedules import make_schedule, options_of_schedule
from ssl_jax.types import Config, Params


class Rule(NamedTuple):
    """What the optimizer does to one parameter group."""

    learning_rate: float  # peak of `schedule`
    schedule: Schedule  # step -> learning rate
    weight_decay: float  # peak of `decay_schedule`
    decay_schedule: Schedule  # step -> weight decay


def build_rules(
    config: Config, groups: tuple[str, ...], total_steps: int, steps_per_epoch: int
) -> dict[str, Rule]:
    """Return learning rate and weight decay of each group, its own where they are given.

    Args:
        config: configuration of the run.
        groups: names of the parameter groups.
        total_steps: steps of the run.
        steps_per_epoch: steps of an epoch.

    Returns:
        The rule of each group, by its name.
    """
    rules = {}
    for group in groups:
        own = config.optimizer.get(group) or {}
        rate, decay = (
            config.optimizer[field] if own.get(field) is None else own[field]
            for field in ("learning_rate", "weight_decay")
        )
        rate_schedule = build_schedule(
            config, config.schedule.name, rate, total_steps, steps_per_epoch
        )
        decay_schedule = build_schedule(
            config, config.schedule.decay, decay, total_steps, steps_per_epoch
        )
        rules[group] = Rule(rate, rate_schedule, decay, decay_schedule)
    return rules


def build_schedule(
    config: Config, name: str, peak: float, total_steps: int, steps_per_epoch: int
) -> Schedule:
    """Return a schedule of the learning rate, or of the weight decay, which has no warm-up.

    Args:
        config: configuration of the run, whose section `schedule` counts in epochs.
        name: name of the schedule.
        peak: largest value.
        total_steps: steps of the run.
        steps_per_epoch: steps of an epoch.

    Returns:
        A function from the step to the value.
    """
    warmup = warmup_steps(config, steps_per_epoch) if name == config.schedule.name else 0
    return make_schedule(
        name, peak, total_steps, warmup, **schedule_options(config, name, steps_per_epoch)
    )


def warmup_steps(config: Config, steps_per_epoch: int) -> int:
    """Return the number of steps of the warm-up."""
    return _in_steps("warmup_epochs", config.schedule.warmup_epochs, steps_per_epoch)


def _in_steps(field: str, epochs: float, steps_per_epoch: int) -> int:
    """Return the nearest number of steps; UserError where a length above 0 would be none."""
    steps = round(epochs * steps_per_epoch)
    if epochs > 0 and not steps:
        raise UserError(
            f"schedule.{field}: got {epochs:g} epochs, which round to 0 of an epoch's "
            f"{steps_per_epoch} steps, takes at least {1 / steps_per_epoch:.3g}"
        )
    return steps


def schedules_append(
    schedules: Callable[[int], list[Schedule]], before: int, now: int, steps_per_epoch: int
) -> bool:
    """Return whether schedules do not depend on which of two numbers of epochs there are.

    Args:
        schedules: schedules(total steps) -> those of the run.
        before: a number of epochs.
        now: another.
        steps_per_epoch: of both.

    Returns:
        Whether each has the same values at all steps that both runs have.
    """
    at = jnp.arange(min(before, now) * steps_per_epoch)
    ones, others = (schedules(epochs * steps_per_epoch) for epochs in (before, now))
    return all(
        bool(jnp.array_equal(jax.vmap(one)(at), jax.vmap(other)(at)))
        for one, other in zip(ones, others, strict=True)
    )


def schedules_of(rules: dict[str, Rule]) -> list[Schedule]:
    """Return the schedules of all groups, of the learning rate and of the decay."""
    return [f for rule in rules.values() for f in (rule.schedule, rule.decay_schedule)]


def schedule_options(config: Config, name: str, steps_per_epoch: int) -> dict[str, float]:
    """Return the options that are set and that the schedule `name` takes.

    Args:
        config: configuration of the run, whose section `schedule` counts in epochs.
        name: name of the schedule.
        steps_per_epoch: steps of an epoch.

    Returns:
        The options by name. Those that are durations are in steps.

    Raises:
        UserError: an option is set that no schedule of this run takes, or a duration rounds to no
            step.
    """
    fields = config.schedule
    plain = ("name", "warmup_epochs", "decay")
    given = {
        option: value
        for option, value in fields.items()
        if option not in plain and value is not None
    }
    known = {option for used in (fields.name, fields.decay) for option in options_of_schedule(used)}
    if strange := [option for option in given if option not in known]:
        takes = f"takes {', '.join(sorted(known))}" if known else "takes none"
        raise UserError(
            f"schedule.{strange[0]}: got {given[strange[0]]}, but {fields.name} {takes}"
        )
    in_steps = {"every", "cycle"}
    return {
        option: _in_steps(option, value, steps_per_epoch) if option in in_steps else value
        for option, value in given.items()
        if option in options_of_schedule(name)
    }


def build_optimizer(
    config: Config, rules: dict[str, Rule], order: tuple[str, ...] | None
) -> Optimizer:
    """Return one optimizer for all groups, which clips the gradient first.

    Args:
        config: configuration of the run.
        rules: the rule of each parameter group.
        order: modules in the order of the forward pass, for layer-wise decay; None: not needed.

    Returns:
        The optimizer.

    Raises:
        UserError: a literal weight decay of 1 or more, or a field that the optimizer does not take.
    """
    fields = config.optimizer
    compile_mask(fields.exclude)
    if (
        fields.decay_scale == "literal"
        and (most := max(rule.weight_decay for rule in rules.values())) >= 1
    ):
        raise UserError(
            f"optimizer.weight_decay: got {most}, takes a number in [0, 1) as a literal share"
        )
    options = {name: value for name, value in fields.options.items() if value is not None}
    optimizers = {
        group: make_optimizer(
            fields.name,
            rule.schedule,
            momentum=fields.momentum,
            weight_decay=rule.weight_decay
            if config.schedule.decay == "constant"
            else rule.decay_schedule,
            decay=fields.decay,
            decay_scale=fields.decay_scale,
            layerwise=fields.layerwise,
            exclude=fields.exclude,
            order=order,
            **options,
        )
        for group, rule in rules.items()
    }
    patterns = {group: f"{group}/" for group in rules}
    joined = by_group(optimizers, lambda params: assign_groups(params, patterns))
    return clipped(joined, by_value=fields.clip_value, by_norm=fields.clip_norm)


class Layer(NamedTuple):
    """A row of the table of layers: what the optimizer does to one layer."""

    index: int  # from 1, in the order of the forward pass
    modules: str  # path of the layer's first module
    size: int  # number of parameters
    decayed: int  # number of those that decay
    factor: float  # layer-wise factor of the weight decay
    weight_decay: float  # at the peak of its schedule, with the factor
    learning_rate: float  # at the peak of its schedule


def layer_table(
    params: Params, rules: dict[str, Rule], config: Config, order: tuple[str, ...]
) -> list[Layer]:
    """Return one row for each layer.

    Args:
        params: parameters of all groups.
        rules: the rule of each parameter group.
        config: configuration of the run.
        order: modules in the order of the forward pass.

    Returns:
        The rows in the order of the forward pass.
    """
    fields = config.optimizer
    index, count = layer_index(params, order)
    factors = decay_rates(params, 1.0, layerwise=fields.layerwise, order=order)
    leaves = jax.tree.leaves_with_path(params)
    columns = (jax.tree.leaves(tree) for tree in (index, factors, decayed(params, fields.exclude)))
    entries: list[tuple] = [
        (path_of(path), leaf, *rest) for (path, leaf), *rest in zip(leaves, *columns, strict=True)
    ]
    rows = []
    for i in range(1, count + 1):
        mine = [entry for entry in entries if entry[2] == i]
        rule, factor = rules[mine[0][0].split("/")[0]], mine[0][3]
        size, kept = (
            sum(leaf.size for _, leaf, *_, mask in mine if mask or not only)
            for only in (False, True)
        )
        first = next(
            path for path in order if any(name.startswith(f"{path}/") for name, *_ in mine)
        )
        rows.append(
            Layer(i, first, size, kept, factor, rule.weight_decay * factor, rule.learning_rate)
        )
    return rows


def penalty_kind(config: Config, rules: dict[str, Rule]) -> str:
    """Return the kind of the weight decay where a group has a penalty, which can oppose the update.

    It is "" where nothing decays, and for coupled decay (L2): that is part of the gradient.
    """
    kind = kind_of_decay(config.optimizer.name, config.optimizer.decay)
    decays = any(rule.weight_decay > 0 for rule in rules.values())
    return kind if decays and kind != "coupled" else ""
