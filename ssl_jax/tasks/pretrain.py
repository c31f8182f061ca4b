"""The task "pretrain": pretrains, then probes, reports and draws."""

from collections.abc import Callable

import jax
import numpy as np

from ssl_jax.augment.views import make_normalise
from ssl_jax.builders import pretraining
from ssl_jax.builders.checks import check_few_labels
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.network import forward_order
from ssl_jax.builders.optimizer import layer_table
from ssl_jax.builders.program import check_exclude
from ssl_jax.data.batches import make_feed
from ssl_jax.diagnosis import history
from ssl_jax.diagnosis.history import facts_of
from ssl_jax.dynamics.collapse import collapse_signs
from ssl_jax.dynamics.measure import measure_spectra, measure_weights
from ssl_jax.linalg import symmetric_eigh
from ssl_jax.probes import accuracies
from ssl_jax.reports import run_figures
from ssl_jax.runtime.terminal import is_writer, say
from ssl_jax.tasks.printing import print_accuracies, print_layers, print_training
from ssl_jax.tasks.probe import judge_all
from ssl_jax.tasks.training import Session, TrainingJob, train
from ssl_jax.tasks.views import draw_views
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir import metrics_csv, result_json
from ssl_jax.workdir.directory import check_workdir, write_json

BEST = "knn_validation"


def pretrain(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Pretrains, or goes on where the work directory stopped; then probes, reports and draws."""
    plan, parts = pretraining.prepare(config)
    out = check_workdir(directory, config.to_dict())
    init = pretraining.make_init(parts, plan.data)
    check_exclude(config, init)
    dataset = read_dataset(config)
    check_few_labels(config.probe, dataset)

    feed = make_feed(dataset.pretrain.image, config.batch_size, config.seed, plan.resident)
    fresh = jax.device_get(pretraining.fresh_state(config, init))
    session = Session(config, out, plan, parts, dataset, feed, fresh, interrupted)
    encode = accuracies.make_encode(
        parts.network, make_normalise(parts.recipe.mean, parts.recipe.std)
    )
    state = train(session, make_job(session, encode))
    if state is not None:
        finish(session, state, encode)


def make_job(session: Session, encode: Callable) -> TrainingJob:
    """Pretraining, as `train` sees it; encode(params, stats, image) -> features, as the probes take
    them.
    """
    config, plan, parts, dataset = session.config, session.plan, session.parts, session.dataset
    key, matrix = jax.random.key(config.seed), parts.predictor.matrix
    run = pretraining.compile_step(
        config, parts, session.feed.data, plan.devices, key, dataset.side
    )
    signs_of = jax.jit(
        lambda state: collapse_signs(state.memory["correlation"], matrix(state.params["predictor"]))
    )
    probe = config.probe

    def header(start):
        print_training(
            config, dataset.name, len(dataset.pretrain.image), plan.devices, plan.cadence, start
        )
        order = forward_order(parts.network, parts.predictor)
        print_layers(
            layer_table(session.fresh.params, parts.rules, config, order), config.optimizer
        )

    def signs(state):
        row = {name: float(value) for name, value in jax.device_get(signs_of(state)).items()}
        return row | {"learning_rate": float(parts.rules["encoder"].schedule(int(state.step)))}

    def evaluate(state, step):
        sizes = probe.validation_size, probe.knn_k, probe.knn_temperature
        accuracy = accuracies.validate(encode, state.params, state.stats, dataset, *sizes)
        say(
            f"epoch {session.epoch(step):g}: kNN {accuracy:.4f} on the last {probe.validation_size} training images"
        )
        return {BEST: accuracy}

    def adjust(state, rows):
        return state, False

    watch = history.Watch(facts_of(config.to_dict(), plan.cadence.total))
    shown = ("loss", "relative_spread", "images_per_second")
    return TrainingJob(
        run, BEST, header, signs, evaluate, adjust, shown, make_track(matrix), watch.change
    )


def make_track(matrix: Callable) -> Callable[[PretrainState], dict]:
    """track(state) -> what dynamics.npz holds of it, NaN for the spectra before F has seen a batch;
    `matrix`: the predictor's.
    """
    weights = jax.jit(measure_weights)
    spectra = jax.jit(measure_spectra)

    def track(state):
        # The spectra on one device, from the host: eigenvalues of a matrix that is not symmetric
        # are taken there.
        corr, w = jax.device_get((state.memory["correlation"], matrix(state.params["predictor"])))
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


def finish(session: Session, state: PretrainState, encode: Callable) -> None:
    """Probes, verdict, result.json and figures of a finished run."""
    config, recipe, dataset, out = (
        session.config,
        session.parts.recipe,
        session.dataset,
        session.out,
    )
    result, features = judge_all(config, recipe, state, session.fresh, dataset, encode, out)
    if not is_writer():
        return
    rows = metrics_csv.read_rows(out / "metrics.csv")
    last, eigenvalues = rows[-1], symmetric_eigh(state.memory["correlation"])[0][::-1]
    judged = history.examine(rows, facts_of(config.to_dict(), int(state.step)), out)
    result = (
        {"task": "pretrain"}
        | result_json.describe(config.to_dict())
        | {"steps": int(state.step)}
        | result
    )
    result |= result_json.spent(rows, int(state.step)) | result_json.provenance()
    result |= {
        "collapsed": judged.collapsed,
        "state": judged.state,
        "verdict": judged.words,
        "diagnosis": history.diagnosis_json(judged),
        "loss": last["loss"],
        "relative_spread": last["relative_spread"],
        "effective_rank": last["effective_rank"],
        "correlation_eigenvalues": np.asarray(eigenvalues).tolist(),
    }
    write_json(out / "result.json", result)
    run_figures.draw_run(out)
    run_figures.draw_features(features, dataset.label_names, out / "figures" / "features.png")
    draw_views(config, recipe, dataset, out)
    print_accuracies(result)
    say(judged.words)
    say(f"results in {out / 'result.json'}, figures in {out / 'figures'}")
