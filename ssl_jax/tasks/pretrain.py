"""The task "pretrain": pretrains, then probes, reports and draws."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ssl_jax.augment.views import make_normalise
from ssl_jax.builders import pretraining
from ssl_jax.builders.checks import check_data, check_pretraining
from ssl_jax.builders.data import build_cadence, read_dataset
from ssl_jax.builders.network import forward_order
from ssl_jax.builders.optimizer import layer_table
from ssl_jax.data.batches import make_feed
from ssl_jax.diagnosis import history
from ssl_jax.diagnosis.history import facts_of
from ssl_jax.dynamics.collapse import collapse_signs
from ssl_jax.dynamics.measure import measure_spectra, measure_weights
from ssl_jax.linalg import symmetric_eigh
from ssl_jax.optim.decay import check_mask
from ssl_jax.predictors import matrix
from ssl_jax.probes import accuracies
from ssl_jax.reports import run_figures
from ssl_jax.runtime.terminal import is_writer, say
from ssl_jax.tasks import training
from ssl_jax.tasks.printing import print_accuracies, print_layers, print_training
from ssl_jax.tasks.probe import judge_all
from ssl_jax.tasks.views import draw_views
from ssl_jax.train import parallel
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Config
from ssl_jax.workdir import metrics_csv, result_json
from ssl_jax.workdir.directory import check_workdir, write_json

BEST = "knn_validation"


def pretrain(config: Config, directory: str, interrupted: Callable[[], bool] = lambda: False) -> None:
    """Pretrains, or goes on where the work directory stopped; then probes, reports and draws."""
    devices, kept, recipe = check_pretraining(config)
    out = check_workdir(directory, config.to_dict())
    dataset = read_dataset(config)
    feed = make_feed(dataset.pretrain.image, config.batch_size, config.seed, kept)
    check_data(config, recipe, dataset)

    cadence = build_cadence(config, feed.steps_per_epoch, config.dynamics.every)
    parts = pretraining.build(config, cadence.total, feed.steps_per_epoch, parallel.axis(devices))
    fresh = jax.device_get(pretraining.fresh_state(config, parts, dataset))
    check_mask(fresh.params, config.optimizer.exclude)
    key = jax.random.key(config.seed)
    run = pretraining.compile_step(config, parts, feed.data, devices, key, dataset.side)
    encode = accuracies.make_encode(parts.network, make_normalise(parts.recipe.mean, parts.recipe.std))
    task = make_task(config, parts, dataset, encode, run, fresh, devices, cadence)
    state = training.train(config, out, task, fresh, feed, cadence, devices, interrupted)
    if state is not None:
        finish(config, parts, state, fresh, dataset, encode, out)


def make_task(config, parts, dataset, encode, run, fresh, devices, cadence) -> training.Task:
    """Pretraining, as `training.train` sees it."""
    signs_of = jax.jit(lambda state: collapse_signs(state.memory["correlation"], matrix(state.params["predictor"])))
    probe = config.probe

    def header(start):
        print_training(config, dataset.name, len(dataset.pretrain.image), devices, cadence, start)
        order = forward_order(parts.network, parts.predictor)
        print_layers(layer_table(fresh.params, parts.rules, config, order), config.optimizer)

    def signs(state):
        row = {name: float(value) for name, value in jax.device_get(signs_of(state)).items()}
        return row | {"learning_rate": float(parts.rules["encoder"].schedule(int(state.step)))}

    def evaluate(state, step):
        sizes = probe.validation_size, probe.knn_k, probe.knn_temperature
        accuracy = accuracies.validate(encode, state.params, state.stats, dataset, *sizes)
        epoch = step * config.epochs / cadence.total
        say(f"epoch {epoch:g}: kNN {accuracy:.4f} on the last {probe.validation_size} training images")
        return {BEST: accuracy}

    facts = facts_of(config.to_dict(), cadence.total)

    def news(rows):
        return history.news(rows, facts)

    shown = ("loss", "relative_spread", "images_per_second")
    return training.Task(
        run, BEST, header, signs, evaluate, lambda state, rows: (state, False), shown, make_track(), news
    )


def make_track() -> Callable[[PretrainState], dict]:
    """track(state) -> what dynamics.npz holds of it; NaN for the spectra before F has seen a batch."""
    weights = jax.jit(measure_weights)
    spectra = jax.jit(measure_spectra)

    def track(state):
        # The spectra on one device, from the host: eigenvalues of a matrix that is not symmetric are taken there.
        corr, w = jax.device_get((state.memory["correlation"], matrix(state.params["predictor"])))
        record = jax.device_get(spectra(corr, w) | weights(state.params, state.target))
        own = ("predictor_eigenvalues", "asymmetry", "asymmetry_l1", "parameter_norm", "weight_cosine")
        return record if corr.any() else {name: record[name] for name in own}

    return track


def finish(config, parts, state: PretrainState, fresh: PretrainState, dataset, encode, out: Path) -> None:
    """Probes, verdict, result.json and figures of a finished run."""
    result, features = judge_all(config, parts.recipe, state, fresh, dataset, encode, out)
    if not is_writer():
        return
    rows = metrics_csv.read_rows(out / "metrics.csv")
    last, eigenvalues = rows[-1], symmetric_eigh(state.memory["correlation"])[0][::-1]
    judged = history.examine(rows, facts_of(config.to_dict(), int(state.step)), out)
    result = {"task": "pretrain"} | result_json.describe(config) | {"steps": int(state.step)} | result
    result |= result_json.spent(rows, int(state.step)) | result_json.provenance()
    result |= {
        "collapsed": judged.collapsed,
        "state": judged.state,
        "verdict": judged.words,
        "diagnosis": history.told(judged),
        "loss": last["loss"],
        "relative_spread": last["relative_spread"],
        "effective_rank": last["effective_rank"],
        "correlation_eigenvalues": np.asarray(eigenvalues).tolist(),
    }
    write_json(out / "result.json", result)
    run_figures.draw_run(out)
    run_figures.draw_features(features, dataset.label_names, out / "figures" / "features.png")
    draw_views(config, parts.recipe, dataset, out)
    print_accuracies(result)
    say(judged.words)
    say(f"results in {out / 'result.json'}, figures in {out / 'figures'}")
