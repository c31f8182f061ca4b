"""The task "supervised": train a classifier with pretraining's data, loop and checkpoints.

It reports three test accuracies: of the last epoch; of the epoch with the best accuracy on held-out
training images; and the mean of the ten best epochs *by test accuracy*. The layer-wise
pre-weight-decay paper reports the last one, which chooses by the test set.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ssl_jax import files
from ssl_jax.augment.views import make_normalise
from ssl_jax.builders.checks import WATCHED
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.optimizer import layer_table, schedule_options, warmup_steps
from ssl_jax.builders.program import (
    check_exclude,
    check_memory,
    fresh_key,
)
from ssl_jax.builders.supervised import (
    appends,
    build_step,
    earlier_defaults,
    fixed_fields,
    fresh_state,
    labelled_left,
    make_init,
    prepare,
)
from ssl_jax.builders.weights import find_weights, read_weights
from ssl_jax.data.batches import make_feed
from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.data.splits import hold_out, keep_labelled, redraw
from ssl_jax.errors import UserError
from ssl_jax.losses import LOSSES
from ssl_jax.optim import rescale
from ssl_jax.optim.schedules import cycle_ends
from ssl_jax.optim.stopping import plateau_scale, should_stop
from ssl_jax.probes.features import extract
from ssl_jax.reports import run_figures
from ssl_jax.reports.figure import optional
from ssl_jax.runtime.terminal import is_writer, say
from ssl_jax.tasks import training
from ssl_jax.tasks.printing import print_layers, print_training
from ssl_jax.tasks.training import Session, Training, TrainingJob
from ssl_jax.train.loop import Row
from ssl_jax.train.supervised import SupervisedState
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir import metrics_csv, result_json
from ssl_jax.workdir.directory import check_workdir

VALIDATION = "validation_accuracy"  # the metric that ranks epochs
BEST_EPOCHS = 10  # over which the paper takes its mean


def supervised(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Train a classifier, or resume from the last checkpoint; then report and draw.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: asked after each call of the compiled program; true saves and stops.

    Raises:
        UserError: a field is wrong, or the work directory belongs to another run.
    """
    training.train(make_training(config, directory, interrupted))


def make_training(
    config: Config,
    directory: str,
    interrupted: Interrupted,
    read: Callable[[Config], Dataset] = read_dataset,
    members: int = 1,
) -> Training:
    """Return a run that is ready to train, after all checks.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: asked after each call of the compiled program; true saves and stops.
        read: reads the data set.
        members: runs that train together, this one included.

    Returns:
        The run.

    Raises:
        UserError: a field is wrong, or the work directory belongs to another run.
    """
    source = find_weights(config, Path(directory))
    plan, parts, augment = prepare(config)
    snapshots = snapshot_steps(config, plan.cadence.total, plan.steps_per_epoch)
    grows = partial(appends, config, plan.steps_per_epoch)
    defaults, fixed = earlier_defaults(config), fixed_fields(config)
    out = check_workdir(directory, config.to_dict(), grows, defaults, fixed)
    init = make_init(parts, plan.data)
    check_memory(config, init, plan.devices)
    check_exclude(config, init)
    weights = source and read_weights(source, config, init.trace(fresh_key(config)).out_info)
    dataset = read(config)
    if dataset.damaged:  # there are fewer images than were described
        plan, parts, augment = prepare(config, dataset.description)
        snapshots = snapshot_steps(config, plan.cadence.total, plan.steps_per_epoch)
        init = make_init(parts, plan.data)
    train, validation = hold_out(dataset, config.data.validation_size)
    train = keep_labelled(train, config.data.labelled_share, config.seed)
    train = train._replace(
        label=redraw(train.label, config.data.random_labels, dataset.num_classes, config.seed)
    )
    feed = make_feed(train.image, config.batch_size, config.seed, plan.resident, label=train.label)
    fresh = jax.device_get(fresh_state(config, init))
    session = Session(config, out, plan, parts, dataset, feed, fresh, interrupted, weights, members)
    job = make_job(session, augment, validation, snapshots)
    return Training(session, job, lambda state: finish(session, state, snapshots))


# --- Before training ------------------------------------------------------------------------------


def snapshot_steps(config: Config, total: int, steps_per_epoch: int) -> tuple[int, ...]:
    """Return the steps at which a cycle of the learning rate ends.

    Args:
        config: configuration of the run.
        total: steps of the run.
        steps_per_epoch: steps of an epoch.

    Returns:
        The steps in ascending order; () where no snapshots are wanted.

    Raises:
        UserError: a cycle ends where no evaluation is due.
    """
    if not config.snapshots:
        return ()
    options = schedule_options(config, config.schedule.name, steps_per_epoch)
    ends = cycle_ends(config.schedule.name, total, warmup_steps(config, steps_per_epoch), **options)
    every = config.eval_every * steps_per_epoch
    if not every or any(end % every for end in ends[:-1]):
        raise UserError(
            f"eval_every: got {config.eval_every}, must divide the epochs at which cycles end"
        )
    return ends


# --- While training -------------------------------------------------------------------------------


def make_job(
    session: Session, augment: Callable, validation: Split | None, snapshots: tuple[int, ...]
) -> TrainingJob:
    """Return what `training.train` needs to know of supervised training.

    Args:
        session: the configuration, the plan, and what is built from them.
        augment: augment(keys, images, one-hot labels), as the step takes it.
        validation: training images held out, or None.
        snapshots: steps after which a member of the ensemble is kept.

    Returns:
        The compiled program, and what happens at its events.
    """
    config, plan, parts, dataset = session.config, session.plan, session.parts, session.dataset
    normalise = make_normalise(config.augment.mean, config.augment.std)
    logits = jax.jit(
        lambda params, stats, image: parts.classifier.logits(params, stats, normalise(image))
    )
    rule = parts.rules["encoder"]
    images = labelled_left(config, plan.data)

    def header(start: int) -> None:
        print_training(config, dataset.name, images, plan.devices, plan.cadence, start)
        print_layers(
            layer_table(session.fresh.params, parts.rules, config, parts.order), config.optimizer
        )

    def signs(state: SupervisedState) -> Row:
        scale = rate_scale(state)
        return {"learning_rate": float(rule.schedule(int(state.step))) * scale, "rate_scale": scale}

    def evaluate(state: SupervisedState, step: int) -> Row:
        apply = Partial(logits, *jax.device_get((state.params, state.stats)))
        scores = {"test_accuracy": (extract(apply, dataset.test.image), dataset.test.label)}
        more = {}
        if validation is not None:
            scores[VALIDATION] = (extract(apply, validation.image), validation.label)
            more["validation_loss"] = mean_loss(config.loss, *scores[VALIDATION])
        if step in snapshots and is_writer():
            save_snapshot(session.out, step, scores["test_accuracy"][0])
        accuracies = {
            name: float(np.mean(np.argmax(x, axis=1) == y)) for name, (x, y) in scores.items()
        }
        line = f"epoch {session.epoch(step):g}: test {accuracies['test_accuracy']:.4f}"
        if validation is not None:
            line += f", validation {accuracies[VALIDATION]:.4f}"
        say(line)
        return accuracies | more

    def adjust(state: SupervisedState, rows: list[Row]) -> tuple[SupervisedState, bool]:
        if config.plateau.patience:
            scale = plateau_scale(**watched(rows, **config.plateau))
            if scale != rate_scale(state):
                say(f"no progress in {config.plateau.watch}: learning rate times {scale:g}")
                state = state._replace(opt_state=rescale(state.opt_state, scale))
        stops = config.stopping.patience and should_stop(**watched(rows, **config.stopping))
        return state, bool(stops)

    shown = ("loss", "train_accuracy", "images_per_second")
    step = build_step(config, parts, augment, dataset.num_classes, plan.axis)
    return TrainingJob(step, VALIDATION, header, signs, evaluate, adjust, shown, labelled=True)


def mean_loss(loss: str, logits: np.ndarray, label: np.ndarray) -> float:
    """Return the mean over examples of a loss of logits (N, K) against labels (N,)."""
    target = jax.nn.one_hot(label, logits.shape[1])
    losses = np.asarray(LOSSES[loss](jnp.asarray(logits), target))
    return float(losses.mean(dtype=np.float64))


def watched(rows: list[dict[str, float]], *, watch: str, **options: float) -> dict[str, Any]:
    """Return the arguments of a rule of `optim.stopping`: its options and its history.

    Args:
        rows: of metrics.csv, so far.
        watch: a key of WATCHED. Of the training loss it is the mean since the last evaluation.
        **options: the rule's own.
    """
    history, last, end = [], 0.0, 0.0  # the last evaluation's step, the last row's
    total = 0.0  # of the losses of all steps since
    for row in rows:
        total, end = total + row["loss"] * (row["step"] - end), row["step"]
        if np.isfinite(row.get("test_accuracy", np.nan)):  # an evaluation
            value = total / (end - last) if watch == "loss" else row.get(watch, np.nan)
            history.append(value)
            total, last = 0.0, end
    history = [value for value in history if np.isfinite(value)]
    return {"history": history, "better": WATCHED[watch]} | options


def rate_scale(state: SupervisedState) -> float:
    """Return the factor of reduce-on-plateau on the learning rate, the same for all groups."""
    return float(next(iter(state.opt_state.values())).scale)


def save_snapshot(out: Path, step: int, logits: np.ndarray) -> None:
    """Keep the probabilities of one member of a snapshot ensemble.

    Args:
        out: work directory.
        step: step of the snapshot.
        logits: logits (M, K) on the test set.
    """
    folder = out / "snapshots"
    files.make_folder(folder)
    content = io.BytesIO()
    np.save(content, jax.nn.softmax(logits))
    files.write_whole(folder / f"step-{step}.npy", content.getvalue())


# --- After training -------------------------------------------------------------------------------


def finish(session: Session, state: SupervisedState, snapshots: tuple[int, ...]) -> None:
    """Write result.json and the figures of a finished run.

    Args:
        session: the session that ended.
        state: the state at the end, on the host.
        snapshots: steps after which a member of the ensemble was kept.
    """
    if not is_writer():
        return
    config, out = session.config, session.out
    rows = metrics_csv.read_rows(out / "metrics.csv")
    result = (
        {"task": "supervised"} | result_json.describe(config.to_dict()) | {"steps": int(state.step)}
    )
    result |= {
        "stopped_early": int(state.step) < session.plan.cadence.total,
        "loss": rows[-1]["loss"],
    }
    result |= {"train_accuracy": rows[-1]["train_accuracy"]} | summary(rows)
    result |= {
        name: mean_of_known([row.get(name, np.nan) for row in rows])
        for name in ("opposing_ratio", "wd_opposing_ratio")
    }
    if snapshots:
        result["snapshot_ensemble"] = ensemble(
            out, [step for step in snapshots if step <= state.step], session.dataset
        )
    result |= result_json.spent(rows, int(state.step), session.members)
    result |= result_json.environment()
    result_json.write(out, {k: None if v != v else v for k, v in result.items()})
    with optional(out / "figures"):
        run_figures.draw_supervised(out)
    for name in (name for name in result if name.endswith("_accuracy")):
        say(f"{name:40} {'' if result[name] is None else format(result[name], '.4f')}")
    say(f"results in {out / 'result.json'}, figures in {out / 'figures'}")


def mean_of_known(values: list[float]) -> float:
    """Return the mean of the values that are no NaN; NaN where there are none."""
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


def summary(rows: list[dict[str, float]]) -> dict:
    """Return the test accuracies by their names in result.json, from the rows of metrics.csv."""
    evaluated = [row for row in rows if row["test_accuracy"] == row["test_accuracy"]]
    test = np.array([row["test_accuracy"] for row in evaluated])
    best = np.sort(test)[-BEST_EPOCHS:]
    result = {
        "test_accuracy": test[-1],
        "mean_of_best_10_epochs_test_accuracy": best.mean(),
        "std_of_best_10_epochs": best.std(ddof=1) if len(best) > 1 else None,
    }
    validation = np.array([row[VALIDATION] for row in evaluated])
    if np.isfinite(validation).all():
        chosen = int(np.argmax(validation))
        result |= {
            "best_validation_accuracy": validation[chosen],
            "best_validation_epoch": evaluated[chosen]["epoch"],
            "best_validation_epoch_test_accuracy": test[chosen],
        }
    return {name: value if value is None else float(value) for name, value in result.items()}


def read_snapshot(path: Path) -> np.ndarray:
    """Return the probabilities (M, K) of a snapshot; UserError where they cannot be read."""
    content = files.read_bytes(path, "a snapshot, which training keeps at the end of a cycle")
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged ({error}); train again in another directory") from error


def ensemble(out: Path, steps: list[int], dataset: Dataset) -> dict:
    """Evaluate a snapshot ensemble (Huang et al. 2017, arXiv 1704.00109).

    Args:
        out: work directory, with the probabilities of each snapshot.
        steps: steps of the snapshots.
        dataset: its test labels.

    Returns:
        The steps, the test accuracy of each snapshot, and that of their mean probabilities.
    """
    members = [read_snapshot(out / "snapshots" / f"step-{step}.npy") for step in steps]
    right = [
        float(np.mean(np.argmax(p, axis=1) == dataset.test.label))
        for p in [*members, np.mean(members, axis=0)]
    ]
    return {
        "steps": steps,
        "member_test_accuracies": right[:-1],
        "ensemble_test_accuracy": right[-1],
    }
