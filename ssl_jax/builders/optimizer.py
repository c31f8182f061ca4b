"""From a configuration to the optimizer: a rule for each parameter group, schedules, the table of
layers.
"""

from typing import NamedTuple

import jax

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
    """What the optimizer does to one parameter group: both numbers are the peaks of their
    schedules.
    """

    learning_rate: float
    schedule: Schedule
    weight_decay: float
    decay_schedule: Schedule


def build_rules(
    config: Config, groups: tuple[str, ...], total_steps: int, steps_per_epoch: int
) -> dict[str, Rule]:
    """Learning rate and decay of each group; the predictor's own where they are given."""
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
    """A schedule of the learning rate, or of the decay, which has no warm-up. Its fields count
    epochs.
    """
    fields = config.schedule
    warmup = fields.warmup_epochs * steps_per_epoch if name == fields.name else 0
    return make_schedule(
        name, peak, total_steps, warmup, **schedule_options(config, name, steps_per_epoch)
    )


def schedule_options(config: Config, name: str, steps_per_epoch: int) -> dict[str, float]:
    """The options that are set and that the schedule `name` knows, in steps; UserError for one that
    no schedule of this run knows.
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
    for option, value in given.items():
        if option in in_steps and round(value * steps_per_epoch) < 1:
            raise UserError(
                f"schedule.{option}: got {value} epochs, which round to 0 of an epoch's "
                f"{steps_per_epoch} steps, takes at least {1 / steps_per_epoch:.3g}"
            )
    return {
        option: round(value * steps_per_epoch) if option in in_steps else value
        for option, value in given.items()
        if option in options_of_schedule(name)
    }


def build_optimizer(
    config: Config, rules: dict[str, Rule], order: tuple[str, ...] | None
) -> Optimizer:
    """One optimizer a group, joined; the gradient is clipped before them all."""
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
    """A row of the table of layers: what the optimizer does to its parameters, at the peak of both
    schedules.
    """

    index: int
    modules: str
    size: int
    decayed: int
    factor: float
    weight_decay: float
    learning_rate: float


def layer_table(
    params: Params, rules: dict[str, Rule], config: Config, order: tuple[str, ...]
) -> list[Layer]:
    """One row for each layer, in forward order."""
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


def has_penalty(config: Config) -> bool:
    """Whether weight decay has a penalty of its own, which can oppose: not L2, which is part of the
    gradient.
    """
    fields = config.optimizer
    return fields.weight_decay > 0 and kind_of_decay(fields.name, fields.decay) != "coupled"
