"""From a configuration to the parts of a run. The configuration goes no further down than here."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.augment.views import Recipe, make_recipe, make_views
from ssl_jax.data.batches import load
from ssl_jax.data.sources import Dataset, load_dataset
from ssl_jax.errors import UserError, nearest
from ssl_jax.losses import DISTANCES
from ssl_jax.models import Classifier, MLPHead, Network, call_order, make_classifier, make_encoder, make_network, owners
from ssl_jax.optim import Optimizer, Schedule, assign_groups, by_group, clipped, kind_of_decay, make_optimizer
from ssl_jax.optim.decay import compile_mask, decay_rates, decayed, layer_index, natural, path_of
from ssl_jax.optim.schedules import make_schedule, options_of_schedule, target_rate
from ssl_jax.predictors import Predictor, make_predictor
from ssl_jax.train import parallel
from ssl_jax.train.loop import Cadence
from ssl_jax.train.pretrain import Step, make_pretrain_step
from ssl_jax.train.state import PretrainState, init_key, init_state
from ssl_jax.types import Config, Params

GROUPS = ("encoder", "projector", "predictor")
CLASSIFIER_GROUPS = ("encoder", "head")
TRACED_SIDE = 32  # of the image on which the order of a network's layers is traced; the order depends on none


class Rule(NamedTuple):
    """What the optimizer does to one parameter group: both numbers are the peaks of their schedules."""

    learning_rate: float
    schedule: Schedule
    weight_decay: float
    decay_schedule: Schedule


class Parts(NamedTuple):
    """Everything that a step is made of, built from a configuration and nothing else."""

    network: Network
    predictor: Predictor
    optimizer: Optimizer
    rules: dict[str, Rule]
    tau: Schedule | None
    recipe: Recipe


class ClassifierParts(NamedTuple):
    """Everything that a supervised step is made of."""

    classifier: Classifier
    optimizer: Optimizer
    rules: dict[str, Rule]
    order: tuple[str, ...]


def build(config: Config, total_steps: int, steps_per_epoch: int, axis_name: str | None) -> Parts:
    """The parts of the pretraining run that `config` describes; UserError names the first field that is wrong."""
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


def build_classifier(
    config: Config, num_classes: int, channels: int, total_steps: int, steps_per_epoch: int, axis_name: str | None
) -> ClassifierParts:
    """The parts of the supervised run that `config` describes; UserError names the first field that is wrong."""
    encoder = build_encoder(config, axis_name if config.sync_batch_norm else None)
    classifier = make_classifier(encoder, num_classes, dropout=config.head.dropout, init=config.init)
    order = call_order(classifier.init, jnp.zeros((2, TRACED_SIDE, TRACED_SIDE, channels)))
    rules = build_rules(config, CLASSIFIER_GROUPS, total_steps, steps_per_epoch)
    return ClassifierParts(classifier, build_optimizer(config, rules, order), rules, order)


def forward_order(network: Network, predictor: Predictor) -> tuple[str, ...]:
    """The modules of encoder, projector and predictor in the order in which a view passes them."""
    trunk = call_order(network.init, jnp.zeros((2, TRACED_SIDE, TRACED_SIDE, 3)))
    params, _ = jax.eval_shape(predictor.init, jax.random.key(0))
    return trunk + tuple(sorted(owners({"predictor": params}), key=natural))


def build_encoder(config: Config, axis_name: str | None) -> nn.Module:
    return make_encoder(**config.encoder, init=config.init, precision=config.precision, axis_name=axis_name)


def build_network(config: Config, axis_name: str | None) -> Network:
    """Encoder and projector."""
    encoder = build_encoder(config, axis_name)
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


def build_rules(config: Config, groups: tuple[str, ...], total_steps: int, steps_per_epoch: int) -> dict[str, Rule]:
    """Learning rate and decay of each group; the predictor's own where they are given."""
    rules = {}
    for group in groups:
        own = config.optimizer.get(group) or {}
        rate, decay = (
            config.optimizer[field] if own.get(field) is None else own[field]
            for field in ("learning_rate", "weight_decay")
        )
        rate_schedule = build_schedule(config, config.schedule.name, rate, total_steps, steps_per_epoch)
        decay_schedule = build_schedule(config, config.schedule.decay, decay, total_steps, steps_per_epoch)
        rules[group] = Rule(rate, rate_schedule, decay, decay_schedule)
    return rules


def build_schedule(config: Config, name: str, peak: float, total_steps: int, steps_per_epoch: int) -> Schedule:
    """A schedule of the learning rate, or of the decay, which has no warm-up. Its fields count epochs."""
    fields = config.schedule
    warmup = fields.warmup_epochs * steps_per_epoch if name == fields.name else 0
    return make_schedule(name, peak, total_steps, warmup, **schedule_options(config, name, steps_per_epoch))


def schedule_options(config: Config, name: str, steps_per_epoch: int) -> dict[str, float]:
    """The options that are set and that the schedule `name` knows, in steps; UserError for one that no schedule of
    this run knows.
    """
    fields = config.schedule
    plain = ("name", "warmup_epochs", "decay")
    given = {option: value for option, value in fields.items() if option not in plain and value is not None}
    known = {option for used in (fields.name, fields.decay) for option in options_of_schedule(used)}
    if strange := [option for option in given if option not in known]:
        takes = f"takes {', '.join(sorted(known))}" if known else "takes none"
        raise UserError(f"schedule.{strange[0]}: got {given[strange[0]]}, but {fields.name} {takes}")
    in_steps = {"every", "cycle"}
    return {
        option: round(value * steps_per_epoch) if option in in_steps else value
        for option, value in given.items()
        if option in options_of_schedule(name)
    }


def build_optimizer(config: Config, rules: dict[str, Rule], order: tuple[str, ...] | None) -> Optimizer:
    """One optimizer a group, joined; the gradient is clipped before them all."""
    fields = config.optimizer
    compile_mask(fields.exclude)
    if fields.decay_scale == "literal" and (most := max(rule.weight_decay for rule in rules.values())) >= 1:
        raise UserError(f"optimizer.weight_decay: got {most}, takes a number in [0, 1) as a literal share")
    options = {name: value for name, value in fields.options.items() if value is not None}
    optimizers = {
        group: make_optimizer(
            fields.name,
            rule.schedule,
            momentum=fields.momentum,
            weight_decay=rule.weight_decay if config.schedule.decay == "constant" else rule.decay_schedule,
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


def build_cadence(config: Config, steps_per_epoch: int, track: int = 0) -> Cadence:
    """When to log, evaluate, save and track, in steps; 0 epochs means only at the end, 0 steps not at all."""
    total = config.epochs * steps_per_epoch
    evaluate, save = (n * steps_per_epoch or total for n in (config.eval_every, config.checkpoint_every))
    return Cadence(total, config.log_every, evaluate, save, track)


class Layer(NamedTuple):
    """A row of the table of layers: what the optimizer does to its parameters, at the peak of both schedules."""

    index: int
    modules: str
    size: int
    decayed: int
    factor: float
    weight_decay: float
    learning_rate: float


def layer_table(params: Params, rules: dict[str, Rule], config: Config, order: tuple[str, ...]) -> list[Layer]:
    """One row for each layer, in forward order."""
    fields = config.optimizer
    index, count = layer_index(params, order)
    factors = decay_rates(params, 1.0, layerwise=fields.layerwise, order=order)
    leaves = jax.tree.leaves_with_path(params)
    columns = (jax.tree.leaves(tree) for tree in (index, factors, decayed(params, fields.exclude)))
    entries: list[tuple] = [(path_of(path), leaf, *rest) for (path, leaf), *rest in zip(leaves, *columns, strict=True)]
    rows = []
    for i in range(1, count + 1):
        mine = [entry for entry in entries if entry[2] == i]
        rule, factor = rules[mine[0][0].split("/")[0]], mine[0][3]
        size, kept = (sum(leaf.size for _, leaf, *_, mask in mine if mask or not only) for only in (False, True))
        first = next(path for path in order if any(name.startswith(f"{path}/") for name, *_ in mine))
        rows.append(Layer(i, first, size, kept, factor, rule.weight_decay * factor, rule.learning_rate))
    return rows


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
    make = compile_once(
        lambda key: init_state(key, image, parts.network, parts.predictor, parts.optimizer, parts.tau is not None)
    )
    return make(init_key(jax.random.key(config.seed)))


def compile_once(function: Callable) -> Callable:
    """jit of what runs a single time: optimising an initialisation's many random draws in full takes two to three times
    as long, for the same bits.
    """
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 1})


def build_step(config: Config, parts: Parts, views: Callable, axis_name: str | None) -> Step:
    """The pretraining step of these parts; views(keys, images) -> two views."""
    return make_pretrain_step(
        views=views,
        network=parts.network,
        predictor=parts.predictor,
        optimizer=parts.optimizer,
        tau=parts.tau,
        distance=DISTANCES[config.loss],
        loss_scale=config.loss_scale,
        tracked=config.dynamics.every > 0,
        opposing=has_penalty(config),
        axis_name=axis_name,
    )


def has_penalty(config: Config) -> bool:
    """Whether weight decay has a penalty of its own, which can oppose: not L2, which is part of the gradient."""
    fields = config.optimizer
    return fields.weight_decay > 0 and kind_of_decay(fields.name, fields.decay) != "coupled"


def compile_step(config: Config, parts: Parts, data: dict, devices: list, key: jax.Array, side: int) -> Callable:
    """run(state, batches) -> (state, metrics) on all devices."""
    step = build_step(config, parts, make_views(parts.recipe, side), parallel.axis(devices))
    return compile_program(step, data, devices, key)


def compile_program(step: Step, data: dict, devices: list, key: jax.Array) -> Callable:
    """run(state, batches) -> (state, metrics): a step over `parallel.axis(devices)` on them all, their data on each."""
    program = parallel.parallelise(step, load, devices)
    data = parallel.replicate(data, devices)
    return lambda state, batches: program(state, data, batches, key)
