"""The task "pretrain": pretrain an encoder, then probe it, report and draw."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from ssl_jax.augment.views import evaluation_view, make_views
from ssl_jax.builders import choices, pretraining
from ssl_jax.builders.checks import check_few_labels, ranking_of
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.builders.network import forward_order
from ssl_jax.builders.optimizer import layer_table
from ssl_jax.builders.program import check_exclude, check_memory, fresh_key
from ssl_jax.builders.weights import find_weights, read_weights
from ssl_jax.data.batches import make_feed
from ssl_jax.data.dataset import Dataset
from ssl_jax.diagnosis import history
from ssl_jax.diagnosis.history import facts_of
from ssl_jax.dynamics.collapse import collapse_signs
from ssl_jax.dynamics.measure import measure_spectra, measure_weights
from ssl_jax.linalg import symmetric_eigh
from ssl_jax.predictors import recent_correlation
from ssl_jax.probes import accuracies, label_free
from ssl_jax.reports import run_figures
from ssl_jax.reports.figure import optional
from ssl_jax.runtime.terminal import is_writer, say
from ssl_jax.tasks.printing import (
    print_accuracies,
    print_layers,
    print_measures,
    print_training,
)
from ssl_jax.tasks.probe import draw_representation, run_probes
from ssl_jax.tasks.training import Session, Training, TrainingJob, train
from ssl_jax.tasks.views import draw_views
from ssl_jax.train.loop import Row
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Config, Interrupted, Params
from ssl_jax.workdir import metrics_csv, result_json
from ssl_jax.workdir.directory import check_workdir
from ssl_jax.workdir.dynamics_npz import Record

KNN = label_free.RANKINGS["knn"].column


def pretrain(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Pretrain, or resume from the last checkpoint; then probe, report and draw.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: asked after each call of the compiled program; true saves and stops.

    Raises:
        UserError: a field is wrong, or the work directory belongs to another run.
    """
    train(make_training(config, directory, interrupted))


def make_training(
    config: Config,
    directory: str,
    interrupted: Interrupted,
    read: Callable[[Config], Dataset] = read_dataset,
    members: int = 1,
) -> Training:
    """Return a run that is ready to pretrain, after all checks.

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
    prepared, dataset = pretraining.prepare(config), None
    if config.data.damaged == "skip":  # how many images there are is known when they are decoded
        dataset = read(prepared.config)
        prepared = pretraining.prepare(config, dataset.description)
    config, plan, parts, lines = prepared
    appends = partial(pretraining.appends, config, plan.steps_per_epoch)
    check = partial(check_workdir, directory, appends=appends, defaults=defaults_of("pretrain"))
    out = check(config.to_dict(), later=prepared.later)
    init = pretraining.make_init(parts, plan.data)
    check_memory(config, init, plan.devices)
    check_exclude(config, init)
    weights = source and read_weights(source, config, init.trace(fresh_key(config)).out_info)
    for line in lines:
        say(line)
    dataset = dataset or read(config)
    check_few_labels(config.probe, dataset)
    config, lines = choices.measure_statistics(config, dataset)
    parts = parts._replace(recipe=pretraining.build_recipe(config))
    if lines:
        check(config.to_dict())
    for line in lines:
        say(line)

    feed = make_feed(dataset.pretrain.image, config.batch_size, config.seed, plan.resident)
    fresh = jax.device_get(pretraining.fresh_state(config, init))
    session = Session(config, out, plan, parts, dataset, feed, fresh, interrupted, weights, members)
    encode = accuracies.make_encode(parts.network, evaluation_view(parts.recipe))
    measure = label_free.make_measure(
        parts.network, make_views(parts.recipe, dataset.side), jax.random.key(config.seed)
    )
    job = make_job(session, encode, measure)
    return Training(session, job, lambda state: finish(session, state, encode, measure))


def make_job(
    session: Session, encode: accuracies.Encode, measure: label_free.Measure
) -> TrainingJob:
    """Return what `train` needs to know of pretraining.

    Args:
        session: this start.
        encode: features of the network in evaluation mode, for the kNN.
        measure: the label-free measures of the network in evaluation mode.

    Returns:
        The job.
    """
    config, plan, parts, dataset = session.config, session.plan, session.parts, session.dataset
    matrix = parts.predictor.matrix
    views = make_views(parts.recipe, dataset.side)
    signs_of = jax.jit(
        lambda state: collapse_signs(
            recent_correlation(state.memory), matrix(state.params["predictor"])
        )
    )
    probe = config.probe

    def header(start: int) -> None:
        print_training(
            config, dataset.name, len(dataset.pretrain.image), plan.devices, plan.cadence, start
        )
        order = forward_order(parts.network, parts.predictor)
        print_layers(
            layer_table(session.fresh.params, parts.rules, config, order), config.optimizer
        )

    def signs(state: PretrainState) -> Row:
        row = {name: float(value) for name, value in jax.device_get(signs_of(state)).items()}
        return row | {"learning_rate": float(parts.rules["encoder"].schedule(int(state.step)))}

    ranking = ranking_of(probe, dataset.num_classes)
    held_out = label_free.validation_images(dataset, probe.validation_size).image

    def evaluate(state: PretrainState, step: int) -> Row:
        row = measure(state.params, state.stats, held_out)
        words = f"RankMe {row['rankme']:.4g}, LiDAR {row['lidar']:.4g} on {len(held_out)}"
        if dataset.num_classes:
            sizes = probe.validation_size, probe.knn_k, probe.knn_temperature
            accuracy = accuracies.validate(encode, state.params, state.stats, dataset, *sizes)
            row |= {KNN: accuracy}
            words = f"kNN {accuracy:.4f} on {probe.validation_size}, {words}"
        say(f"epoch {session.epoch(step):g}: {words} training images")
        return row

    def adjust(state: PretrainState, rows: list[Row]) -> tuple[PretrainState, bool]:
        return state, False

    watch = history.Watch(facts_of(config.to_dict(), plan.cadence.total))
    shown = ("loss", "relative_spread", "images_per_second")
    track = make_track(matrix)
    return TrainingJob(
        step=pretraining.build_step(config, parts, views, plan.axis),
        best=ranking.column,
        header=header,
        signs=signs,
        evaluate=evaluate,
        adjust=adjust,
        shown=shown,
        track=track,
        score=ranking.score,
        others=tuple(other.column for other in label_free.RANKINGS.values()),
        message=watch.change,
    )


def make_track(matrix: Callable[[Params], jax.Array]) -> Callable[[PretrainState], Record]:
    """Return track(state) -> its record in dynamics.npz; matrix(predictor's parameters) -> W_p.

    The record lacks the spectra of F as long as F has seen no batch.
    """
    weights = jax.jit(measure_weights)
    spectra = jax.jit(measure_spectra)

    def track(state: PretrainState) -> Record:
        # The spectra on one device, from the host: eigenvalues of a matrix that is not symmetric
        # are taken there.
        corr, w = jax.device_get(
            (recent_correlation(state.memory), matrix(state.params["predictor"]))
        )
        record = jax.device_get(spectra(corr, w) | weights(state.params, state.target))
        own = (
            "predictor_eigenvalues",
            "asymmetry",
            "asymmetry_l1",
            "parameter_norm",
            "weight_cosine",
        )
        return record if corr.any() else {name: record[name] for name in own}

    return track


def finish(
    session: Session,
    state: PretrainState,
    encode: accuracies.Encode,
    measure: label_free.Measure,
) -> None:
    """Probe and diagnose a finished run, and write result.json and the figures.

    Args:
        session: the session that ended.
        state: the state at the end, on the host.
        encode: features of the network in evaluation mode, see `accuracies.make_encode`.
        measure: the label-free measures of that network, see `label_free.make_measure`.
    """
    config, dataset, out = session.config, session.dataset, session.out
    recipe = session.parts.recipe
    result, features = run_probes(
        config,
        recipe,
        trained=state,
        fresh=session.fresh,
        dataset=dataset,
        encode=encode,
        measure=measure,
        out=out,
    )
    if not is_writer():
        return
    rows = metrics_csv.read_rows(out / "metrics.csv")
    last, eigenvalues = rows[-1], symmetric_eigh(recent_correlation(state.memory))[0][::-1]
    diagnosis = history.examine(rows, facts_of(config.to_dict(), int(state.step)), out)
    result = (
        {"task": "pretrain"}
        | result_json.describe(config.to_dict())
        | {"steps": int(state.step)}
        | result
    )
    result |= result_json.spent(rows, int(state.step), session.members)
    result |= result_json.environment()
    result |= {
        "collapsed": diagnosis.collapsed,
        "state": diagnosis.state,
        "verdict": diagnosis.words,
        "diagnosis": history.diagnosis_json(diagnosis),
        "loss": last["loss"],
        "relative_spread": last["relative_spread"],
        "effective_rank": last["effective_rank"],
        "correlation_eigenvalues": np.asarray(eigenvalues).tolist(),
    }
    result_json.write(out, result)
    draw_all(session, features)
    print_accuracies(result)
    print_measures(result)
    say(diagnosis.words)
    say(f"results in {out / 'result.json'}, figures in {out / 'figures'}")


def draw_all(session: Session, features: accuracies.Features) -> None:
    """Draw the figures of a finished run; one that fails costs a warning.

    Args:
        session: the session that ended.
        features: of both splits.
    """
    folder = session.out / "figures"
    with optional(folder):
        run_figures.draw_run(session.out)
    draw_representation(session.dataset, features, folder)
    with optional(folder / "views.png"):
        draw_views(session.config, session.parts.recipe, session.dataset, session.out)
