"""One short straight function for each task: pretrain, probe, views."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import assembly, checks, judge, workdir
from ssl_jax.augment.views import make_normalise, make_views
from ssl_jax.console import is_writer, print_accuracies, print_header, progress_bar, say
from ssl_jax.data.batches import make_feed
from ssl_jax.data.sources import Dataset
from ssl_jax.dynamics.collapse import collapse_signs, verdict
from ssl_jax.errors import UserError, nearest
from ssl_jax.linalg import symmetric_eigh
from ssl_jax.predictors import matrix
from ssl_jax.reports import plots
from ssl_jax.train import checkpoint, metrics, parallel
from ssl_jax.train.loop import Hooks, plan_calls, train_loop
from ssl_jax.train.pretrain import example_keys
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Config

BEST = "knn_validation"


def pretrain(config: Config, directory: str, interrupted: Callable[[], bool] = lambda: False) -> None:
    """Pretrains, or goes on where the work directory stopped; then probes, reports and draws."""
    checks.check_counts(config)
    devices = parallel.pick_devices(config.devices)
    parallel.per_device(config.batch_size, devices)
    call_size = parallel.steps_per_call(config.steps_per_call, devices)
    kept = assembly.resident(config.data.resident)
    recipe = assembly.build(config, config.epochs, 1, None).recipe  # names a wrong field before any data is read
    out = workdir.check_workdir(directory, config.to_dict())
    dataset = assembly.read_dataset(config)
    feed = make_feed(dataset.pretrain.image, config.batch_size, config.seed, kept)
    checks.check_views(recipe, dataset)
    checks.check_sizes(config.probe, dataset, config.probe.validation_size)

    cadence = assembly.build_cadence(config, feed.steps_per_epoch)
    parts = assembly.build(config, cadence.total, feed.steps_per_epoch, parallel.AXIS)
    key = jax.random.key(config.seed)
    fresh = jax.device_get(assembly.fresh_state(config, parts, dataset))
    run = assembly.compile_step(config, parts, feed.data, devices, key, dataset.side)

    with checkpoint.open_manager(out / "checkpoints", BEST) as manager:
        start = manager.latest_step() or 0
        if start > cadence.total:
            raise UserError(f"epochs: got {config.epochs}, {out} has already gone {start // feed.steps_per_epoch}")
        state = parallel.replicate(checkpoint.restore(manager, fresh) if start else fresh, devices)
        open_on_one(directory, config)  # a start that is refused above leaves everything as it was
        groups = assembly.group_table(state.params, parts.rules, config.optimizer.exclude)
        print_header(config, groups, dataset, devices, cadence, start)
        encode = judge.make_encode(parts.network, make_normalise(parts.recipe.mean, parts.recipe.std))
        seconds = begin_log(out, start)
        with progress_bar(cadence.total, start) as bar:
            hooks = make_hooks(config, parts, dataset, encode, manager, out, cadence, interrupted, bar)
            calls = feed.batches(plan_calls(start, cadence, call_size), parallel.process_rows(config.batch_size))
            state, step = train_loop(
                run,
                state,
                calls,
                start=start,
                cadence=cadence,
                batch_size=config.batch_size,
                seconds_before=seconds,
                hooks=hooks,
            )
    if step < cadence.total:
        say(f"stopped at step {step} of {cadence.total}, saved; the same command goes on from here")
        return
    finish(config, parts, jax.device_get(state), fresh, dataset, encode, out)


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
    open_on_one(directory, config)
    say(f"probing {source} at step {step}: {trained.method} on {dataset.name}")
    result, features = judge.judge_all(trained, parts.recipe, state, fresh, dataset, encode, out)
    result = {"task": "probe", "checkpoint": str(source)} | describe(trained) | {"steps": step} | result
    result |= spent(metrics.read_rows(source / "metrics.csv"), step) | provenance()
    workdir.write_json(out / "result.json", result)
    plots.draw_features(features, dataset.label_names, out / "figures" / "features.png")
    print_accuracies(result)


def views(config: Config, directory: str) -> None:
    """Draws a grid of augmented views, so that a person can look at what the network sees."""
    recipe = assembly.build_recipe(config)
    workdir.check_workdir(directory, config.to_dict())
    dataset = assembly.read_dataset(config)
    checks.check_views(recipe, dataset)
    out = open_on_one(directory, config)
    draw_views(config, recipe, dataset, out)
    say(f"wrote {out / 'figures' / 'views.png'}")


TASKS = {"pretrain": pretrain, "probe": lambda c, d, _: probe(c, d), "views": lambda c, d, _: views(c, d)}


def run_task(config: Config, directory: str, interrupted: Callable[[], bool]) -> None:
    """The task that the configuration names."""
    if config.task not in TASKS:
        raise UserError(f"task: got {config.task!r}, {nearest(config.task, TASKS)}")
    if (config.task == "probe") != ("checkpoint" in config):
        kind = "configs/probe.py" if config.task == "probe" else "a configuration with an encoder, not configs/probe.py"
        raise UserError(f"task: got {config.task!r}, takes --config {kind}")
    TASKS[config.task](config, directory, interrupted)


# --- Before training --------------------------------------------------------------------------------------


def open_on_one(directory: str, config: Config) -> Path:
    """The work directory; only process 0 writes into it."""
    return workdir.open_workdir(directory, config.to_dict()) if is_writer() else Path(directory)


def begin_log(out: Path, start: int) -> float:
    """Cuts metrics.csv back to the step that training goes on from; seconds already spent up to there."""
    if not is_writer():
        return 0.0
    rows = metrics.truncate_after(out / "metrics.csv", start)
    return rows[-1]["seconds"] if rows else 0.0


# --- While training ---------------------------------------------------------------------------------------


def make_hooks(config, parts, dataset, encode, manager, out: Path, cadence, interrupted, bar) -> Hooks:
    """What the loop does at its events."""
    signs_of = jax.jit(lambda state: collapse_signs(state.memory["correlation"], matrix(state.params["predictor"])))
    probe = config.probe
    epoch_of = config.epochs / cadence.total

    def signs(state):
        step = int(state.step)
        row = {name: float(value) for name, value in jax.device_get(signs_of(state)).items()}
        return row | {"epoch": step * epoch_of, "learning_rate": float(parts.rules["encoder"].schedule(step))}

    def evaluate(state, step):
        accuracy = judge.validate(
            encode,
            state.params,
            state.stats,
            dataset,
            probe.validation_size,
            probe.knn_k,
            probe.knn_temperature,
        )
        say(f"epoch {step * epoch_of:g}: kNN {accuracy:.4f} on {probe.validation_size} held-out training images")
        return {BEST: accuracy}

    def record(row):
        if is_writer():
            metrics.append_row(out / "metrics.csv", row)

    def save(state, step, row):
        checkpoint.save(manager, state, step, {BEST: row[BEST]} if BEST in row else {})

    def stop(event):
        flag = interrupted()
        if jax.process_count() == 1:
            return flag
        return event and parallel.any_process(flag)

    def progress(step, row):
        bar.update(step - bar.n)
        if row:
            bar.set_postfix(
                loss=f"{row['loss']:.3f}",
                spread=f"{row['relative_spread']:.2f}",
                img_s=f"{row['images_per_second']:.0f}",
            )

    return Hooks(signs, evaluate, record, save, stop, progress)


# --- After training ---------------------------------------------------------------------------------------


def finish(config, parts, state: PretrainState, fresh: PretrainState, dataset, encode, out: Path) -> None:
    """Probes, verdict, result.json and figures of a finished run."""
    result, features = judge.judge_all(config, parts.recipe, state, fresh, dataset, encode, out)
    if not is_writer():
        return
    rows = metrics.read_rows(out / "metrics.csv")
    last, eigenvalues = rows[-1], symmetric_eigh(state.memory["correlation"])[0][::-1]
    judged = verdict(
        last["relative_spread"],
        last["effective_rank"],
        config.projector.out,
        tau=config.target.tau,
        symmetric=config.predictor.symmetric,
        learned=config.predictor.kind in ("mlp", "linear"),
        predictor_decay=parts.rules["predictor"].weight_decay,
    )
    result = {"task": "pretrain"} | describe(config) | {"steps": int(state.step)} | result
    result |= spent(rows, int(state.step)) | provenance()
    result |= {
        "collapsed": judged.collapsed,
        "verdict": judged.words,
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


def describe(config: Config) -> dict:
    return {
        "method": config.method,
        "dataset": config.data.name,
        "seed": config.seed,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
    }


def spent(rows: list[dict[str, float]], step: int) -> dict:
    """Wall time and speed of pretraining up to `step`, from the rows of metrics.csv."""
    rows = [row for row in rows if row["step"] <= step]
    if not rows:
        return {"seconds": None, "images_per_second": None}
    # The first interval of a start compiles, so the middle one speaks for all.
    speed = float(np.median([row["images_per_second"] for row in rows]))
    return {"seconds": rows[-1]["seconds"], "images_per_second": speed}


def processor() -> str:
    """The machine's processor, as well as it can be told."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{os.cpu_count()} cores, {names[0] if names else platform.processor() or platform.machine()}"


def provenance() -> dict:
    """Device and versions that made a result."""
    packages = ("jax", "flax", "optax", "chex", "orbax-checkpoint", "tensorflow-datasets", "numpy")
    kinds = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    return {
        "device": f"{kinds} ({processor()})",
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def draw_views(config: Config, recipe, dataset: Dataset, out: Path, count: int = 8) -> None:
    """figures/views.png: each of the first images beside two views of it, as training would draw them at step 0."""
    image = dataset.pretrain.image[:count]
    keys = example_keys(jax.random.key(config.seed), jnp.zeros((), jnp.int32), jnp.arange(len(image)))
    pairs = jax.jit(make_views(recipe, dataset.side))(keys, image)
    plots.draw_views(image, pairs, recipe.mean, recipe.std, out / "figures" / "views.png")
