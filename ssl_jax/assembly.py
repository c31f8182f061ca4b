"""From a configuration to the parts of a run. The configuration goes no further down than here."""

import math
import re
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from ssl_jax.augment.views import Recipe, make_recipe
from ssl_jax.errors import UserError, nearest
from ssl_jax.models import MLPHead, Network, make_encoder, make_network
from ssl_jax.optim import Optimizer, Schedule, assign_groups, by_group, decayed, make_optimizer
from ssl_jax.optim.schedules import make_schedule, target_rate
from ssl_jax.predictors import Predictor, make_predictor
from ssl_jax.train.loop import Cadence
from ssl_jax.types import Params

GROUPS = {"encoder": "encoder/", "projector": "projector/", "predictor": "predictor/"}


class Rule(NamedTuple):
    """What the optimizer does to one parameter group."""

    learning_rate: float
    schedule: Schedule
    weight_decay: float


class Parts(NamedTuple):
    """Everything that a step is made of, built from a configuration and nothing else."""

    network: Network
    predictor: Predictor
    optimizer: Optimizer
    rules: dict[str, Rule]
    tau: Schedule | None
    recipe: Recipe


# Smallest and largest value of the numbers that no part of the run checks itself.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "epochs": (1, math.inf),
    "batch_size": (2, math.inf),
    "log_every": (1, math.inf),
    "eval_every": (0, math.inf),
    "checkpoint_every": (0, math.inf),
    "loss_scale": (1e-12, math.inf),
    "data.train_size": (0, math.inf),
    "data.image_size": (0, 1024),
    "encoder.width": (1, math.inf),
    "projector.hidden": (1, math.inf),
    "predictor.hidden": (1, math.inf),
    "predictor.every": (1, math.inf),
    "predictor.eps": (0, 1),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.predictor.learning_rate": (0, math.inf),
    "optimizer.predictor.weight_decay": (0, math.inf),
    "schedule.warmup_epochs": (0, math.inf),
}
PROBE_RANGES: dict[str, tuple[float, float]] = {
    "probe.epochs": (0, math.inf),
    "probe.knn_k": (1, math.inf),
    "probe.knn_temperature": (1e-12, math.inf),
    "probe.validation_size": (1, math.inf),
    "probe.few_labels": (0, math.inf),
    "probe.few_label_draws": (1, math.inf),
}


def check_counts(config: ConfigDict) -> None:
    """UserError for a number out of range, before anything is loaded."""
    check_ranges(config, RANGES)
    check_probe(config)


def check_probe(config: ConfigDict) -> None:
    """UserError for a probe's field out of range."""
    protocols = ("seed", "original", "both")
    if config.probe.protocol not in protocols:
        raise UserError(f"probe.protocol: got {config.probe.protocol!r}, {nearest(config.probe.protocol, protocols)}")
    check_ranges(config, PROBE_RANGES)


def check_ranges(config: ConfigDict, ranges: dict[str, tuple[float, float]]) -> None:
    """UserError for the first field that lies outside its range; an unset one is not looked at."""
    for field, (least, most) in ranges.items():
        value = _at(config, field)
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            takes = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UserError(f"{field}: got {value}, takes a number {takes}")


def build(config: ConfigDict, total_steps: int, steps_per_epoch: int, axis_name: str | None) -> Parts:
    """The parts of the run that `config` describes; UserError names the first field that is wrong."""
    norm_axis = axis_name if config.sync_batch_norm else None
    warmup = config.schedule.warmup_epochs * steps_per_epoch
    rules = build_rules(config, total_steps, warmup)
    return Parts(
        build_network(config, norm_axis),
        build_predictor(config, norm_axis),
        build_optimizer(config, rules),
        rules,
        build_tau(config, total_steps),
        build_recipe(config),
    )


def build_network(config: ConfigDict, axis_name: str | None) -> Network:
    """Encoder and projector."""
    encoder = make_encoder(
        config.encoder.name,
        width=config.encoder.width,
        stem=config.encoder.stem,
        norm=config.encoder.norm,
        init=config.init,
        precision=config.precision,
        axis_name=axis_name,
    )
    projector = MLPHead(
        config.projector.hidden,
        config.projector.out,
        output_bias=config.projector.output_bias,
        preset=config.init,
        axis_name=axis_name,
    )
    return make_network(encoder, projector)


def build_predictor(config: ConfigDict, axis_name: str | None) -> Predictor:
    """The predictor, with those of its fields that its kind knows."""
    fields = config.predictor
    direct = {"eps": fields.eps, "every": fields.every}
    options = {
        "mlp": {
            "hidden": fields.hidden,
            "symmetric": fields.symmetric,
            "output_bias": config.projector.output_bias,
            "axis_name": axis_name,
        },
        "linear": {"symmetric": fields.symmetric},
        "direct_pred": direct | {"eps_mode": fields.eps_mode},
        "direct_copy": direct,
    }.get(fields.kind, {})
    return make_predictor(fields.kind, config.projector.out, rho=fields.rho, init=config.init, **options)


def build_rules(config: ConfigDict, total_steps: int, warmup_steps: int) -> dict[str, Rule]:
    """Learning rate and decay of each group; the predictor's own where they are given."""
    own = config.optimizer.predictor
    rules = {}
    for group in GROUPS:
        rate, decay = config.optimizer.learning_rate, config.optimizer.weight_decay
        if group == "predictor":
            rate = rate if own.learning_rate is None else own.learning_rate
            decay = decay if own.weight_decay is None else own.weight_decay
        schedule = make_schedule(config.schedule.name, rate, total_steps, warmup_steps)
        rules[group] = Rule(rate, schedule, decay)
    return rules


def build_optimizer(config: ConfigDict, rules: dict[str, Rule]) -> Optimizer:
    """One optimizer a group, joined."""
    try:
        re.compile(config.optimizer.exclude)
    except re.error as error:
        raise UserError(
            f"optimizer.exclude: got {config.optimizer.exclude!r}, takes a regular expression ({error})"
        ) from error
    optimizers = {
        group: make_optimizer(
            config.optimizer.name,
            rule.schedule,
            momentum=config.optimizer.momentum,
            weight_decay=rule.weight_decay,
            decay=config.optimizer.decay,
            exclude=config.optimizer.exclude,
        )
        for group, rule in rules.items()
    }
    return by_group(optimizers, lambda params: assign_groups(params, GROUPS))


def build_tau(config: ConfigDict, total_steps: int) -> Schedule | None:
    """The target's rate by step, or None where the target is the online network itself."""
    tau = config.target.tau
    if not 0 <= tau <= 1:
        raise UserError(f"target.tau: got {tau}, takes a number in [0, 1]; 0 means no average")
    schedule = target_rate(config.target.schedule, tau, total_steps)
    return schedule if tau > 0 else None


def build_recipe(config: ConfigDict) -> Recipe:
    """The augmentations, with the fields that override the recipe's."""
    return make_recipe(**config.views)


def build_cadence(config: ConfigDict, steps_per_epoch: int) -> Cadence:
    """When to log, evaluate and save, in steps; 0 epochs means only at the end."""
    total = config.epochs * steps_per_epoch
    evaluate, save = (n * steps_per_epoch or total for n in (config.eval_every, config.checkpoint_every))
    return Cadence(total, config.log_every, evaluate, save)


def group_table(params: Params, rules: dict[str, Rule], exclude: str) -> list[tuple[str, int, int, Rule]]:
    """(group, parameters, decayed parameters, rule) of each group."""
    labels, masks = assign_groups(params, GROUPS), decayed(params, exclude)
    leaves = list(zip(jax.tree.leaves(params), jax.tree.leaves(labels), jax.tree.leaves(masks), strict=True))
    return [
        (
            group,
            sum(p.size for p, label, _ in leaves if label == group),
            sum(p.size for p, label, mask in leaves if label == group and mask),
            rule,
        )
        for group, rule in rules.items()
    ]


def _at(config: ConfigDict, field: str):
    for name in field.split("."):
        config = config[name]
    return config
