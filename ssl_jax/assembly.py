"""From a configuration to the parts of a run. The configuration goes no further down than here."""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax.augment.views import Recipe, make_recipe, make_views
from ssl_jax.data.batches import load
from ssl_jax.data.sources import Dataset, load_dataset
from ssl_jax.errors import UserError, nearest
from ssl_jax.models import MLPHead, Network, make_encoder, make_network
from ssl_jax.optim import Optimizer, Schedule, assign_groups, by_group, decayed, make_optimizer
from ssl_jax.optim.schedules import make_schedule, target_rate
from ssl_jax.predictors import Predictor, make_predictor
from ssl_jax.train import parallel
from ssl_jax.train.loop import Cadence
from ssl_jax.train.pretrain import Step, make_pretrain_step
from ssl_jax.train.state import PretrainState, init_state
from ssl_jax.types import Config, Params

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


def build(config: Config, total_steps: int, steps_per_epoch: int, axis_name: str | None) -> Parts:
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


def build_network(config: Config, axis_name: str | None) -> Network:
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


def build_predictor(config: Config, axis_name: str | None) -> Predictor:
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


def build_rules(config: Config, total_steps: int, warmup_steps: int) -> dict[str, Rule]:
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


def build_optimizer(config: Config, rules: dict[str, Rule]) -> Optimizer:
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


def build_tau(config: Config, total_steps: int) -> Schedule | None:
    """The target's rate by step, or None where the target is the online network itself."""
    tau = config.target.tau
    if not 0 <= tau <= 1:
        raise UserError(f"target.tau: got {tau}, takes a number in [0, 1]; 0 means no average")
    schedule = target_rate(config.target.schedule, tau, total_steps)
    return schedule if tau > 0 else None


def build_recipe(config: Config) -> Recipe:
    """The augmentations, with the fields that override the recipe's."""
    return make_recipe(**config.views)


def build_cadence(config: Config, steps_per_epoch: int) -> Cadence:
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


def read_dataset(config: Config) -> Dataset:
    """The data that the configuration names."""
    data = config.data
    return load_dataset(
        data.name,
        data_dir=data.data_dir or None,
        train_size=data.train_size or None,
        image_size=data.image_size or None,
    )


def resident(value: str) -> bool | Literal["auto"]:
    """auto | yes | no, as `make_feed` takes it."""
    known: dict[str, bool | Literal["auto"]] = {"auto": "auto", "yes": True, "no": False}
    if value not in known:
        raise UserError(f"data.resident: got {value!r}, {nearest(value, known)}")
    return known[value]


def fresh_state(config: Config, parts: Parts, dataset: Dataset) -> PretrainState:
    """The state at step 0, a function of the seed."""
    image = jnp.zeros((2, dataset.side, dataset.side, dataset.train.image.shape[-1]))
    make = jax.jit(
        lambda key: init_state(key, image, parts.network, parts.predictor, parts.optimizer, parts.tau is not None),
        # It runs once: optimising its many random draws in full takes two to three times as long, for the same bits.
        compiler_options={"xla_backend_optimization_level": 1},
    )
    return make(jax.random.fold_in(jax.random.key(config.seed), 0x1217))


def build_step(config: Config, parts: Parts, views: Callable, axis_name: str | None) -> Step:
    """The pretraining step of these parts; views(keys, images) -> two views."""
    return make_pretrain_step(
        views=views,
        network=parts.network,
        predictor=parts.predictor,
        optimizer=parts.optimizer,
        tau=parts.tau,
        loss_scale=config.loss_scale,
        axis_name=axis_name,
    )


def compile_step(config: Config, parts: Parts, data: dict, devices: list, key: jax.Array, side: int) -> Callable:
    """run(state, batches) -> (state, metrics) on all devices."""
    step = build_step(config, parts, make_views(parts.recipe, side), parallel.AXIS)
    program = parallel.parallelise(step, load, devices)
    data = parallel.replicate(data, devices)
    return lambda state, batches: program(state, data, batches, key)
