"""The experiments on weight decay: grids of runs, several of which are trained at once.

A run is a kind (what is static: one compiled program) and a member of it (learning rate, decay,
seed). Each run has a cell of its own.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.augment.labelled import Augment
from ssl_jax.augment.views import make_normalise
from ssl_jax.builders.data import describe_dataset, read_dataset
from ssl_jax.builders.supervised import build_augment, images_left
from ssl_jax.data.batches import batch_indices, steps_per_epoch
from ssl_jax.data.dataset import Description, Split
from ssl_jax.data.splits import choose, hold_out, take
from ssl_jax.errors import UserError, nearest
from ssl_jax.experiments.harness.cells import Arrays, Job, Plan, Progress, seeds_of
from ssl_jax.experiments.harness.dispatched import (
    Member,
    Program,
    dispatched,
    make_program,
    stack,
    sum_penalties,
)
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.experiments.harness.members import Recorded, train_members
from ssl_jax.losses import LOSSES
from ssl_jax.models import Classifier, call_order, load_weights, make_classifier, make_encoder
from ssl_jax.optim import Optimizer, make_optimizer
from ssl_jax.optim.decay import check_mask, layer_index
from ssl_jax.train import parallel
from ssl_jax.train.supervised import SupervisedState
from ssl_jax.types import Config, Params, PyTree, Scalar

EVAL_BATCH_SIZE = 500  # images
TOGETHER = 32  # members in one call for `together` = "auto", on anything but a CPU

# name in the paper: (kind of decay, whether deeper layers decay more)
ARMS = {
    "none": ("decoupled", False),  # with a decay of 0
    "L2": ("coupled", False),
    "WD": ("decoupled", False),
    "RWD": ("realtime", False),
    "PWD": ("pre", False),
    "LPWD": ("pre", True),
}

RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1000),
    "seeds": (1, 999),
    "epochs": (1, 10**6),
    "batch_size": (2, 10**6),
    "data.train_size": (0, 10**9),
    "data.image_size": (0, 1024),
    "data.validation_size": (1, 10**9),
    "data.test_size": (0, 10**9),
}


class Kind(NamedTuple):
    """What is static in a run."""

    optimizer: str
    decay: str
    layerwise: str = ""  # rule of layer-wise decay; "": the same decay in all layers
    encoder: tuple[tuple[str, Any], ...] = ()  # fields that differ from the configuration's
    begin: str = "fresh"  # initial weights: a key of INITIAL_WEIGHTS
    penalties: bool = False  # whether opposing penalties are recorded
    ahead: bool = False  # whether to evaluate also at the weights after the next pre-weight decay


class Run(NamedTuple):
    """One training. It is hashable: `member` holds plain numbers."""

    kind: Kind
    member: Member

    @property
    def name(self) -> str:
        """Return the name of its cell."""
        kind, (rate, decay, seed) = self.kind, self.member
        words = [
            kind.optimizer,
            kind.decay,
            kind.layerwise.replace("/", "_"),
            *(f"{k}_{v}" for k, v in kind.encoder),
        ]
        words += [
            kind.begin if kind.begin != "fresh" else "",
            f"rate{rate:.9g}",
            f"decay{decay:.9g}",
            f"seed{seed}",
        ]
        return "-".join(word for word in words if word)


EvalBatch = tuple[jax.Array, jax.Array]  # image (B, H, W, C) uint8, label (B,)


class Laboratory(NamedTuple):
    """What all runs share. The data are on the device, those for evaluation in batches."""

    config: Config
    num_classes: int
    image: jax.Array  # (N, H, W, C) uint8, all training images
    label: jax.Array  # (N,)
    eval_batches: dict[
        str, list[EvalBatch]
    ]  # batches of "validation" and "test", as `in_batches` cuts
    steps_per_epoch: int
    augment: Augment
    normalise: Callable[[jax.Array], jax.Array]  # image uint8 -> float, in evaluation mode


def arm(config: Config, name: str, **fields: Any) -> Kind:
    """Return the kind of an arm.

    Args:
        config: the experiment's configuration.
        name: a key of ARMS; UserError for another.
        **fields: fields of `Kind` that differ from the configuration's.
    """
    if name not in ARMS:
        raise UserError(f"arms: got {name!r}, {nearest(name, ARMS)}")
    decay, layered = ARMS[name]
    return Kind(
        **{"optimizer": config.optimizer.name, "decay": decay}
        | fields
        | {"layerwise": config.layerwise * layered}
    )


def numbers(field: str, values: Sequence[float], most: float = np.inf) -> list[float]:
    """Return the values of a field as floats.

    Args:
        field: its name in the configuration, for the message.
        values: what the configuration gives.
        most: the largest legal value.

    Returns:
        The values, in their order.

    Raises:
        UserError: there is no value, one is no number or outside [0, most], or two are the same.
    """
    legal = [
        isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= most for v in values
    ]
    if not (values and all(legal)) or len(set(values)) < len(values):
        most_words = "" if most == np.inf else f" and at most {most:g}"
        raise UserError(
            f"{field}: got {tuple(values)}, takes different numbers of at least 0{most_words}"
        )
    return [float(v) for v in values]


# --- The experiment -------------------------------------------------------------------------------


# after(program, kind, states) -> {name: (G, ...)}
After = Callable[[Program, Kind, SupervisedState], Recorded]


class Stage(NamedTuple):
    """Runs that are trained before anything is concluded from them."""

    title: str
    # (config, *results of the earlier stages) -> {key: run}
    runs: Callable[..., Mapping[Any, Run]]
    # lab -> numbers of steps after which all parameters are kept
    keep: Callable[[Laboratory], tuple[int, ...]] = lambda lab: ()
    # lab -> after(program, kind, states), which measures trained members
    after: Callable[[Laboratory], After | None] = lambda lab: None


def decay_experiment(*stages: Stage, summarise: Callable[..., dict[str, Any]]) -> Experiment:
    """Return an experiment of such stages.

    Args:
        *stages: the runs of the first one are checked before any data are read.
        summarise: (lab, *results of each stage) -> entries of result.json.
    """

    def check(config: Config) -> None:
        for each in (together, workers):
            each(config)
        data, shapes = describe_dataset(config), {}
        for run in {
            (r.kind, r.member.weight_decay): r for r in stages[0].runs(config).values()
        }.values():
            check_run(config, run, data, shapes)
        steps_per_epoch(images_left(config, data), config.batch_size)
        if config.data.test_size > data.test:
            raise UserError(
                f"data.test_size: got {config.data.test_size}, takes at most {data.test}, "
                "or 0 for all"
            )
        build_augment(config, data)

    def counted(config: Config, lab: Laboratory, *results: Any) -> dict[str, Any]:
        runs = {
            run
            for i, stage in enumerate(stages)
            for run in stage.runs(config, *results[:i]).values()
        }
        return summarise(lab, *results) | {"runs": len(runs), "steps": steps_of(lab)}

    return Experiment(
        stages=[partial(plan_runs, stage) for stage in stages],
        summarise=counted,
        prepare=laboratory,
        check=check,
        ranges=RANGES,
    )


def laboratory(config: Config) -> Laboratory:
    """Read the data, and put them on the device."""
    dataset = read_dataset(config)
    train, validation = hold_out(dataset, config.data.validation_size)
    assert validation is not None
    size = config.data.test_size or len(dataset.test.label)
    steps = steps_per_epoch(len(train.label), config.batch_size)
    augment = build_augment(config, dataset.description)
    test = take(dataset.test, choose(dataset.test.label, size))
    return Laboratory(
        config,
        dataset.num_classes,
        jnp.asarray(train.image),
        jnp.asarray(train.label),
        {"validation": in_batches(validation), "test": in_batches(test)},
        steps,
        augment,
        make_normalise(config.augment.mean, config.augment.std),
    )


# by `Kind.encoder`: the shapes of the parameters, and the modules in the order of their calls
Shapes = dict[tuple[tuple[str, Any], ...], tuple[Params, tuple[str, ...]]]


def steps_of(lab: Laboratory) -> int:
    """Return the number of steps of a whole training."""
    return lab.config.epochs * lab.steps_per_epoch


def check_run(config: Config, run: Run, data: Description, shapes: Shapes) -> None:
    """Check that the network, optimizer and decay of a run can be built.

    Args:
        config: the experiment's configuration.
        run: what to check.
        data: the data set's description.
        shapes: networks that were checked before; this run's is added.

    Raises:
        UserError: one of them cannot.
    """
    key = run.kind.encoder
    if key not in shapes:
        classifier = build_classifier(config, run.kind, data.num_classes)
        image = jnp.zeros((2, *data.image))
        params, stats = jax.eval_shape(classifier.init, jax.random.key(0), image)
        initial_weights(config, run.kind, params, stats)
        shapes[key] = params, call_order(classifier.init, image)
        check_mask(params, config.optimizer.exclude)
    params, order = shapes[key]
    rate, decay, _ = run.member
    jax.eval_shape(build_optimizer(config, run.kind, order)(rate, decay).init, params)


def together(config: Config) -> int:
    """Return the number of members in one call.

    "auto" is 1 on a CPU, where vmapped convolutions are slow (see `dispatched`).
    """
    auto = 1 if jax.default_backend() == "cpu" else TOGETHER
    return parallel.count_or_auto("together", config.together, auto)


def workers(config: Config) -> int:
    """Return the number of calls at once.

    "auto" on a CPU is one for each core, since a small network keeps one core busy; else 1.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return parallel.count_or_auto(
        "workers", config.workers, cores if jax.default_backend() == "cpu" else 1
    )


def in_batches(split: Split) -> list[EvalBatch]:
    """Cut a split into batches of one size.

    The last one is filled up with images whose label is -1.
    """
    size = min(EVAL_BATCH_SIZE, len(split.label))
    short = -len(split.label) % size
    image = np.pad(split.image, [(0, short), (0, 0), (0, 0), (0, 0)], mode="edge")
    label = np.pad(split.label, (0, short), constant_values=-1)
    return [
        (jnp.asarray(image[i : i + size]), jnp.asarray(label[i : i + size]))
        for i in range(0, len(label), size)
    ]


def arms_of(config: Config) -> list[str]:
    """Return the arms to compare; UserError unless WD, the reference, is among them."""
    if "WD" not in config.arms or len(config.arms) < 2:
        raise UserError(
            f"arms: got {tuple(config.arms)}, takes WD and at least one of RWD, PWD, LPWD"
        )
    return list(config.arms)


def fresh_seeds(config: Config) -> list[int]:
    """Return the seeds after the first one, by which settings were chosen."""
    return [seed + 1 for seed in seeds_of(config)]


# --- Programs -------------------------------------------------------------------------------------


def build_classifier(config: Config, kind: Kind, num_classes: int) -> Classifier:
    """Build the network of a kind.

    Args:
        config: the experiment's configuration.
        kind: whose fields of the encoder go before the configuration's.
        num_classes: number K of classes.

    Returns:
        The classifier's functions.
    """
    encoder = make_encoder(
        **dict(config.encoder) | dict(kind.encoder), init=config.init, precision=config.precision
    )
    return make_classifier(encoder, num_classes, init=config.init)


def initial_weights(
    config: Config, kind: Kind, params: Params, stats: Params
) -> tuple[Params, Params]:
    """Return the parts of a kind's network that come from a file, ({}, {}) where there is none.

    Args:
        config: whose `weights` names a file for each architecture.
        kind: of the network.
        params: its parameters, or their shapes.
        stats: its statistics, or their shapes.

    Returns:
        (parameters, statistics) by part: the encoder, and the head where the file's fits.

    Raises:
        UserError: the file is not there, or does not fit.
    """
    name = (dict(config.encoder) | dict(kind.encoder))["name"]
    path = config.weights.get(name, "")
    if not path:
        return {}, {}
    loaded, recorded, _ = load_weights(path, params, stats, name, f"weights.{name}")
    parts = ("encoder", "head") if loaded["head"] is not params["head"] else ("encoder",)
    return {part: loaded[part] for part in parts}, recorded


def build_optimizer(
    config: Config, kind: Kind, order: Sequence[str]
) -> Callable[[Scalar, Scalar], Optimizer]:
    """Build the optimizer of a kind, as a function of its numbers.

    Args:
        config: the experiment's configuration.
        kind: names the optimizer and its decay.
        order: paths of the modules in the order of their calls, as `call_order` gives them.

    Returns:
        (learning rate, weight decay) -> optimizer.
    """
    fields = config.optimizer
    return lambda rate, decay: make_optimizer(
        kind.optimizer,
        rate,
        momentum=fields.momentum,
        weight_decay=decay,
        decay=kind.decay,
        decay_scale=fields.decay_scale,
        layerwise=kind.layerwise,
        exclude=fields.exclude,
        order=order,
    )


def build_program(lab: Laboratory, kind: Kind) -> tuple[Program, list[str]]:
    """Return the program of a kind, and the first module of each layer, its name in figures."""
    classifier = build_classifier(lab.config, kind, lab.num_classes)
    image = jnp.zeros((2, *lab.image.shape[1:]))
    order = call_order(classifier.init, image)
    params, stats = jax.eval_shape(classifier.init, jax.random.key(0), image)
    index = layer_index(params, order)
    plain = build_optimizer(lab.config, kind, order)

    def begin(params: Params, member: Member) -> Params:
        shrink = build_optimizer(lab.config, kind._replace(decay="pre"), order)(
            member.learning_rate, member.weight_decay
        )
        return INITIAL_WEIGHTS[kind.begin](params, shrink)

    program = make_program(
        classifier=classifier,
        optimizer=(lambda rate, decay: sum_penalties(plain(rate, decay), index))
        if kind.penalties
        else plain,
        augment=lab.augment,
        normalise=lab.normalise,
        loss=LOSSES["softmax"],
        num_classes=lab.num_classes,
        begin=begin,
        weights=initial_weights(lab.config, kind, params, stats),
    )
    return program, layer_names(params, index, order)


def rounded_up(params: Params) -> Params:
    """Return the next larger float of each weight: the smallest change there is."""
    return jax.tree.map(lambda x: jnp.nextafter(x, jnp.full_like(x, jnp.inf)), params)


# (fresh weights, optimizer with this member's pre-weight decay) -> the weights that it begins with
INITIAL_WEIGHTS: dict[str, Callable[[Params, Optimizer], Params]] = {
    "fresh": lambda params, shrink: params,
    "decayed": lambda params, shrink: shrink.pre(params, shrink.init(params)),
    "rounded": lambda params, shrink: rounded_up(params),
}


def layer_names(params: Params, index: tuple[PyTree, int], order: Sequence[str]) -> list[str]:
    """Return the first module of each layer.

    Args:
        params: of the network.
        index: the layer of each parameter, from 1 on, and the number of layers, as `layer_index`
            gives them.
        order: paths of the modules in the order of their calls.

    Returns:
        A path for each layer, from the input to the output.
    """
    layers: dict[int, set[str]] = {i: set() for i in range(1, index[1] + 1)}
    for (path, _), i in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(index[0]), strict=True
    ):
        layers[i].add(jax.tree_util.keystr(path[:-1], simple=True, separator="/"))
    return [min(modules, key=order.index) for modules in layers.values()]


def evaluate(
    lab: Laboratory, program: Program, kind: Kind, states: SupervisedState, members: Member
) -> Recorded:
    """Measure accuracy and cross-entropy of G members on the held-out and the test images.

    Args:
        lab: holds the batches.
        program: of the members.
        kind: says whether to evaluate also where the next pre-weight decay will put the weights.
        states: of the members.
        members: their numbers, arrays (G,).

    Returns:
        "validation_accuracy", "validation_loss", "test_accuracy" and "test_loss" (G,), the losses
        in nats; with `kind.ahead`, the same names with "_ahead" as well.
    """
    points = {"": states} | ({"_ahead": program.ahead(states, members)} if kind.ahead else {})
    scores = {}
    for suffix, at in points.items():
        for name, batches in lab.eval_batches.items():
            right, loss = mean_scores(partial(program.score, at), batches)
            scores |= {f"{name}_accuracy{suffix}": right, f"{name}_loss{suffix}": loss}
    return scores


def mean_scores(
    score: Callable[[jax.Array, jax.Array], dict[str, jax.Array]], batches: Sequence[EvalBatch]
) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracy and mean cross-entropy in nats over batches, (G,) each.

    Args:
        score: score(image, label) -> {"right", "loss"}, sums over the labels not negative.
        batches: as `in_batches` cuts them.
    """
    sums = [score(image, label) for image, label in batches]
    size = sum(int(np.sum(np.asarray(label) >= 0)) for _, label in batches)
    return tuple(
        np.sum([np.asarray(s[name], np.float64) for s in sums], axis=0) / size
        for name in ("right", "loss")
    )


# --- Training -------------------------------------------------------------------------------------


def plan_runs(stage: Stage, config: Config, lab: Laboratory, *results: Any) -> Plan:
    """Plan the cells of a stage, one for each run.

    Args:
        stage: the stage.
        config: the experiment's configuration.
        lab: what all runs share.
        *results: of each earlier stage, arrays by the keys of its runs.

    Returns:
        The plan. The arrays of a run are those of `train_chunk`.
    """
    runs = stage.runs(config, *results)
    # Of two runs that differ in `ahead` alone, and so share a cell, the one that records more is
    # trained.
    by_name = {run.name: run for run in sorted(runs.values(), key=lambda run: run.kind.ahead)}
    size = together(config)
    keep, after = stage.keep(lab), stage.after(lab)

    def make(program: Program, chunk: list[Run], progress: Progress) -> list[Arrays]:
        def stop(steps: int) -> bool:
            progress.advance(steps)
            return progress.stopping()

        return train_chunk(lab, program, chunk, size, stop=stop, keep=keep, after=after)

    def jobs(missing: list[str]) -> list[Job]:
        left = [by_name[name] for name in missing]
        programs = {
            kind: build_program(lab, kind)[0] for kind in dict.fromkeys(run.kind for run in left)
        }
        chunks = [
            chunk
            for kind in programs
            for chunk in split_runs([run for run in left if run.kind == kind], size)
        ]
        return [
            Job([run.name for run in chunk], partial(make, programs[chunk[0].kind], chunk))
            for chunk in chunks
        ]

    def complete(name: str, arrays: dict[str, np.ndarray]) -> bool:
        # the cell may come from the run that does not record the weights ahead
        return not by_name[name].kind.ahead or "test_accuracy_ahead" in arrays

    names = {key: run.name for key, run in runs.items()}
    steps = dict.fromkeys(by_name, steps_of(lab))
    return Plan(names, steps, jobs, workers(config), stage.title, "runs", complete)


def split_runs(runs: list[Run], size: int) -> list[list[Run]]:
    """Split runs into chunks of at most `size`."""
    return [runs[i : i + size] for i in range(0, len(runs), size)]


def train_chunk(
    lab: Laboratory,
    program: Program,
    chunk: list[Run],
    size: int,
    *,
    stop: Callable[[int], bool],
    keep: tuple[int, ...],
    after: After | None,
) -> list[Arrays]:
    """Train runs of one kind at once.

    A short chunk is filled up to `size` members, so that one program serves all.

    Args:
        lab: what all runs share.
        program: of their kind.
        chunk: the runs.
        size: number of members in a call.
        stop: (steps) -> whether to end now. It is called with numbers of finished steps, those of
            all runs together.
        keep: numbers of steps after which all parameters are kept.
        after: what to measure of trained members, or None.

    Returns:
        The arrays of each run, with "seconds" () among them; [] where `stop` ended the training.
    """
    started, kind, epochs = time.perf_counter(), chunk[0].kind, lab.config.epochs
    members = [run.member for run in chunk] + [chunk[-1].member] * (size - len(chunk))
    examples, columns = len(lab.label), stack(members)
    trained = train_members(
        dispatched(program, members, lab.image, lab.label),
        lambda seed, step: batch_indices(seed, step, examples, lab.config.batch_size),
        epochs=epochs,
        steps_per_epoch=lab.steps_per_epoch,
        record=lambda states, epoch: evaluate(lab, program, kind, states, columns) if epoch else {},
        stop=lambda steps: stop(steps * len(chunk)),
        keep=keep,
    )
    if trained is None:
        return []
    states, recorded = trained
    recorded |= after(program, kind, states) if after else {}
    seconds = np.array((time.perf_counter() - started) / len(chunk))
    return [
        {name: value[i] for name, value in recorded.items()} | {"seconds": seconds}
        for i in range(len(chunk))
    ]
