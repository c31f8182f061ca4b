"""One short straight function for each task: pretrain, probe, views."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import assembly, checks, checkup, driver, judge, records, workdir
from ssl_jax.augment.views import make_normalise, make_views
from ssl_jax.classify import supervised
from ssl_jax.console import is_writer, print_accuracies, print_layers, print_training, say
from ssl_jax.data.batches import make_feed
from ssl_jax.data.sources import Dataset
from ssl_jax.dynamics.collapse import collapse_signs
from ssl_jax.dynamics.measure import measure_spectra, measure_weights
from ssl_jax.dynamics_figures import dynamics
from ssl_jax.errors import UserError, nearest
from ssl_jax.experiments import run_experiment
from ssl_jax.linalg import symmetric_eigh
from ssl_jax.optim.decay import check_mask
from ssl_jax.predictors import matrix
from ssl_jax.report import report
from ssl_jax.reports import plots
from ssl_jax.sweep import sweep
from ssl_jax.theory_figures import theory
from ssl_jax.train import checkpoint, metrics, parallel
from ssl_jax.train.pretrain import example_keys
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Config

BEST = "knn_validation"


def pretrain(config: Config, directory: str, interrupted: Callable[[], bool] = lambda: False) -> None:
    """Pretrains, or goes on where the work directory stopped; then probes, reports and draws."""
    devices, kept, recipe = driver.check_pretraining(config)
    out = workdir.check_workdir(directory, config.to_dict())
    dataset = assembly.read_dataset(config)
    feed = make_feed(dataset.pretrain.image, config.batch_size, config.seed, kept)
    driver.check_data(config, recipe, dataset)

    cadence = assembly.build_cadence(config, feed.steps_per_epoch, config.dynamics.every)
    parts = assembly.build(config, cadence.total, feed.steps_per_epoch, parallel.axis(devices))
    fresh = jax.device_get(assembly.fresh_state(config, parts, dataset))
    check_mask(fresh.params, config.optimizer.exclude)
    key = jax.random.key(config.seed)
    run = assembly.compile_step(config, parts, feed.data, devices, key, dataset.side)
    encode = judge.make_encode(parts.network, make_normalise(parts.recipe.mean, parts.recipe.std))
    task = make_task(config, parts, dataset, encode, run, fresh, devices, cadence)
    state = driver.train(config, out, task, fresh, feed, cadence, devices, interrupted)
    if state is not None:
        finish(config, parts, state, fresh, dataset, encode, out)


def probe(config: Config, directory: str) -> None:
    """Judges a checkpoint of a finished or running pretraining, from its files alone."""
    checks.check_probe(config)
    if not config.checkpoint:
        raise UserError("checkpoint: got '', takes the work directory of a pretraining run (--config.checkpoint=DIR)")
    source = Path(config.checkpoint)
    trained = checks.read_trained(source)
    steps = checkpoint.steps_in(source / "checkpoints")
    step = steps[-1] if config.step == -1 else config.step
    if step not in steps:
        raise UserError(f"step: got {step}, {source} has {', '.join(map(str, steps))}; -1 takes the newest")
    trained.data.data_dir = config.data_dir or trained.data.data_dir
    trained.probe = config.probe
    out = workdir.check_workdir(directory, config.to_dict())
    dataset = assembly.read_dataset(trained)
    checks.check_sizes(trained.probe, dataset)
    parts = assembly.build(trained, trained.epochs, 1, None)
    fresh = jax.device_get(assembly.fresh_state(trained, parts, dataset))
    like = {"params": {k: fresh.params[k] for k in ("encoder", "projector")}, "stats": fresh.stats}
    state = fresh._replace(step=step, **checkpoint.restore_parts(source / "checkpoints", step, like))
    encode = judge.make_encode(parts.network, make_normalise(parts.recipe.mean, parts.recipe.std))
    records.open_on_one(directory, config)
    say(f"probing {source} at step {step}: {trained.method} on {dataset.name}")
    result, features = judge.judge_all(trained, parts.recipe, state, fresh, dataset, encode, out)
    result = {"task": "probe", "checkpoint": str(source)} | records.describe(trained) | {"steps": step} | result
    result |= records.spent(metrics.read_rows(source / "metrics.csv"), step) | records.provenance()
    workdir.write_json(out / "result.json", result)
    plots.draw_features(features, dataset.label_names, out / "figures" / "features.png")
    print_accuracies(result)


def views(config: Config, directory: str) -> None:
    """Draws a grid of augmented views, so that a person can look at what the network sees."""
    recipe = assembly.build_recipe(config)
    workdir.check_workdir(directory, config.to_dict())
    dataset = assembly.read_dataset(config)
    checks.check_views(recipe, dataset)
    out = records.open_on_one(directory, config)
    draw_views(config, recipe, dataset, out)
    say(f"wrote {out / 'figures' / 'views.png'}")


TASKS = {
    "pretrain": pretrain,
    "supervised": supervised,
    "probe": lambda c, d, _: probe(c, d),
    "views": lambda c, d, _: views(c, d),
    "experiment": run_experiment,
    "sweep": lambda c, d, i: sweep(c, d, i, pretrain),
    "theory": lambda c, d, _: theory(c, d),
    "doctor": lambda c, d, _: checkup.doctor(c, d),
    "dynamics": lambda c, d, _: dynamics(c, d),
    "report": lambda c, d, _: report(c, d),
}
SEVERAL = ("pretrain", "supervised", "probe", "views")  # tasks that may run in several processes
# A section or field that a task's configurations have.
MARKS = {
    "pretrain": "views",
    "views": "views",
    "supervised": "augment",
    "probe": "checkpoint",
    "experiment": "experiment",
    "theory": "figure",
    "doctor": "run",
    "sweep": "sweep",
    "dynamics": "runs",
    "report": "runs",
}


def run_task(config: Config, directory: str, interrupted: Callable[[], bool]) -> None:
    """The task that the configuration names."""
    if config.task not in TASKS:
        raise UserError(f"task: got {config.task!r}, {nearest(config.task, TASKS)}")
    if config.task not in SEVERAL and jax.process_count() > 1:
        raise UserError(f"--processes: got {jax.process_count()}, the task {config.task} runs in one")
    if MARKS[config.task] not in config or ("experiment" in config and config.task != "experiment"):
        several = config.task in ("pretrain", "views", "experiment", "sweep")
        where = "a --config of that task" if several else f"--config configs/{config.task}.py"
        raise UserError(f"task: got {config.task!r} in a configuration of another task; takes {where}")
    TASKS[config.task](config, directory, interrupted)


def make_task(config, parts, dataset, encode, run, fresh, devices, cadence) -> driver.Task:
    """Pretraining, as the driver sees it."""
    signs_of = jax.jit(lambda state: collapse_signs(state.memory["correlation"], matrix(state.params["predictor"])))
    probe = config.probe

    def header(start):
        print_training(config, dataset.name, len(dataset.pretrain.image), devices, cadence, start)
        order = assembly.forward_order(parts.network, parts.predictor)
        print_layers(assembly.layer_table(fresh.params, parts.rules, config, order), config.optimizer)

    def signs(state):
        row = {name: float(value) for name, value in jax.device_get(signs_of(state)).items()}
        return row | {"learning_rate": float(parts.rules["encoder"].schedule(int(state.step)))}

    def evaluate(state, step):
        sizes = probe.validation_size, probe.knn_k, probe.knn_temperature
        accuracy = judge.validate(encode, state.params, state.stats, dataset, *sizes)
        epoch = step * config.epochs / cadence.total
        say(f"epoch {epoch:g}: kNN {accuracy:.4f} on {probe.validation_size} held-out training images")
        return {BEST: accuracy}

    facts = checkup.facts_of(config.to_dict(), cadence.total)

    def news(rows):
        return checkup.news(rows, facts)

    shown = ("loss", "relative_spread", "images_per_second")
    return driver.Task(
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


# --- After training ---------------------------------------------------------------------------------------


def finish(config, parts, state: PretrainState, fresh: PretrainState, dataset, encode, out: Path) -> None:
    """Probes, verdict, result.json and figures of a finished run."""
    result, features = judge.judge_all(config, parts.recipe, state, fresh, dataset, encode, out)
    if not is_writer():
        return
    rows = metrics.read_rows(out / "metrics.csv")
    last, eigenvalues = rows[-1], symmetric_eigh(state.memory["correlation"])[0][::-1]
    judged = checkup.examine(rows, checkup.facts_of(config.to_dict(), int(state.step)), out)
    result = {"task": "pretrain"} | records.describe(config) | {"steps": int(state.step)} | result
    result |= records.spent(rows, int(state.step)) | records.provenance()
    result |= {
        "collapsed": judged.collapsed,
        "state": judged.state,
        "verdict": judged.words,
        "diagnosis": checkup.told(judged),
        "loss": last["loss"],
        "relative_spread": last["relative_spread"],
        "effective_rank": last["effective_rank"],
        "correlation_eigenvalues": np.asarray(eigenvalues).tolist(),
    }
    workdir.write_json(out / "result.json", result)
    plots.draw_run(out)
    plots.draw_features(features, dataset.label_names, out / "figures" / "features.png")
    draw_views(config, parts.recipe, dataset, out)
    print_accuracies(result)
    say(judged.words)
    say(f"results in {out / 'result.json'}, figures in {out / 'figures'}")


def draw_views(config: Config, recipe, dataset: Dataset, out: Path, count: int = 8) -> None:
    """figures/views.png: each of the first images beside two views of it, as training would draw them at step 0."""
    image = dataset.pretrain.image[:count]
    keys = example_keys(jax.random.key(config.seed), jnp.zeros((), jnp.int32), jnp.arange(len(image)))
    pairs = jax.jit(make_views(recipe, dataset.side))(keys, image)
    plots.draw_views(image, pairs, recipe.mean, recipe.std, out / "figures" / "views.png")
