"""One short straight function for each task: pretrain, probe, views."""

import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_jax import assembly, judge, workdir
from ssl_jax.augment.views import Recipe, make_normalise, make_views
from ssl_jax.data.batches import load, make_feed
from ssl_jax.data.sources import Dataset, load_dataset
from ssl_jax.dynamics.collapse import collapse_signs, verdict
from ssl_jax.errors import UserError, nearest
from ssl_jax.linalg import symmetric_eigh
from ssl_jax.predictors import matrix
from ssl_jax.reports import plots
from ssl_jax.train import checkpoint, metrics, parallel
from ssl_jax.train.loop import Cadence, Hooks, plan_calls, train_loop
from ssl_jax.train.pretrain import example_keys, make_pretrain_step
from ssl_jax.train.state import PretrainState, init_state

BEST = "knn_validation"


def pretrain(config: ConfigDict, directory: str, interrupted: Callable[[], bool] = lambda: False) -> None:
    """Pretrains, or goes on where the work directory stopped; then probes, reports and draws."""
    assembly.check_counts(config)
    devices = parallel.pick_devices(config.devices)
    parallel.per_device(config.batch_size, devices)
    call_size = parallel.steps_per_call(config.steps_per_call, devices)
    kept = resident(config.data.resident)
    recipe = assembly.build(config, config.epochs, 1, None).recipe  # names a wrong field before any data is read
    out = workdir.check_workdir(directory, config.to_dict())
    dataset = read_dataset(config)
    feed = make_feed(dataset.pretrain.image, config.batch_size, config.seed, kept)
    check_views(config, recipe, dataset)
    check_sizes(config, dataset)

    cadence = assembly.build_cadence(config, feed.steps_per_epoch)
    parts = assembly.build(config, cadence.total, feed.steps_per_epoch, parallel.AXIS)
    key = jax.random.key(config.seed)
    state = fresh_state(config, parts, dataset)
    run = compile_step(config, parts, feed.data, devices, key, image_side(config, dataset))

    with checkpoint.open_manager(out / "checkpoints", BEST) as manager:
        start = manager.latest_step() or 0
        if start > cadence.total:
            raise UserError(f"epochs: got {config.epochs}, {out} has already gone {start // feed.steps_per_epoch}")
        state = parallel.replicate(checkpoint.restore(manager, state) if start else state, devices)
        open_on_one(directory, config)  # a start that is refused above leaves everything as it was
        print_header(config, parts, state, dataset, devices, cadence, start)
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
    finish(config, parts, jax.device_get(state), dataset, encode, out, cadence)


def probe(config: ConfigDict, directory: str) -> None:
    """Judges a checkpoint of a finished or running pretraining, from its files alone."""
    assembly.check_probe(config)
    if not config.checkpoint:
        raise UserError("checkpoint: got '', takes the work directory of a pretraining run (--config.checkpoint=DIR)")
    source = Path(config.checkpoint)
    trained = read_trained(source)
    steps = checkpoint.steps_in(source / "checkpoints")
    step = steps[-1] if config.step == -1 else config.step
    if step not in steps:
        raise UserError(f"step: got {step}, {source} has {', '.join(map(str, steps))}; -1 takes the newest")
    trained.data.data_dir = config.data_dir or trained.data.data_dir
    trained.probe, trained.seed = config.probe, config.seed
    out = workdir.check_workdir(directory, config.to_dict())
    dataset = read_dataset(trained)
    check_sizes(trained, dataset)
    parts = assembly.build(trained, trained.epochs, 1, None)
    state = fresh_state(trained, parts, dataset)
    like = {"params": {k: state.params[k] for k in ("encoder", "projector")}, "stats": state.stats}
    restored = checkpoint.restore_parts(source / "checkpoints", step, like)
    encode = judge.make_encode(parts.network, make_normalise(parts.recipe.mean, parts.recipe.std))
    open_on_one(directory, config)
    say(f"probing {source} at step {step}: {trained.method} on {dataset.name}")
    result, features = judge_all(trained, parts, restored["params"], restored["stats"], dataset, encode, out, step)
    result = {"task": "probe", "checkpoint": str(source)} | describe(trained) | {"steps": step} | result
    result |= spent(metrics.read_rows(source / "metrics.csv"), step) | provenance()
    workdir.write_json(out / "result.json", result)
    plots.draw_features(features, dataset.label_names, out / "figures" / "features.png")
    print_accuracies(result)


def views(config: ConfigDict, directory: str) -> None:
    """Draws a grid of augmented views, so that a person can look at what the network sees."""
    recipe = assembly.build_recipe(config)
    workdir.check_workdir(directory, config.to_dict())
    dataset = read_dataset(config)
    check_views(config, recipe, dataset)
    out = open_on_one(directory, config)
    draw_views(config, recipe, dataset, out)
    say(f"wrote {out / 'figures' / 'views.png'}")


TASKS = {"pretrain": pretrain, "probe": lambda c, d, _: probe(c, d), "views": lambda c, d, _: views(c, d)}


def run_task(config: ConfigDict, directory: str, interrupted: Callable[[], bool]) -> None:
    """The task that the configuration names."""
    if config.task not in TASKS:
        raise UserError(f"task: got {config.task!r}, {nearest(config.task, TASKS)}")
    if (config.task == "probe") != ("checkpoint" in config):
        kind = "configs/probe.py" if config.task == "probe" else "a configuration with an encoder, not configs/probe.py"
        raise UserError(f"task: got {config.task!r}, takes --config {kind}")
    TASKS[config.task](config, directory, interrupted)


# --- Before training --------------------------------------------------------------------------------------


def open_on_one(directory: str, config: ConfigDict) -> Path:
    """The work directory; only process 0 writes into it."""
    return workdir.open_workdir(directory, config.to_dict()) if is_writer() else Path(directory)


def is_writer() -> bool:
    return jax.process_index() == 0


def say(line: str) -> None:
    """A line for the person at the terminal, beside the progress bar, once for all processes."""
    if is_writer():
        tqdm.write(line)


def read_dataset(config: ConfigDict) -> Dataset:
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


SECTIONS = ("data", "views", "encoder", "projector", "predictor", "target", "optimizer", "schedule", "probe")


def read_trained(source: Path) -> ConfigDict:
    """The configuration of the pretraining run in `source`; UserError where there is none."""
    trained = workdir.read_json(source / "config.json")
    if trained.get("task") != "pretrain":
        raise UserError(f"checkpoint: {source} holds a {trained.get('task')!r} task, takes a pretraining run")
    if lacking := [name for name in SECTIONS if not isinstance(trained.get(name), dict)]:
        raise UserError(f"{source / 'config.json'}: damaged, lacks {', '.join(lacking)}")
    return ConfigDict(trained)


def check_views(config: ConfigDict, recipe: Recipe, dataset: Dataset) -> None:
    """UserError where the augmentations do not fit the images, in size or in channels."""
    key = jax.random.split(jax.random.key(0), 1)
    jax.eval_shape(make_views(recipe, image_side(config, dataset)), key, dataset.pretrain.image[:1])


def check_sizes(config: ConfigDict, dataset: Dataset) -> None:
    """UserError where the probes ask for more training images than there are."""
    probe, size = config.probe, len(dataset.train.label)
    if probe.validation_size >= size:
        raise UserError(f"probe.validation_size: got {probe.validation_size}, takes less than the {size} images")
    bank = size - probe.validation_size
    if probe.knn_k > bank:
        raise UserError(
            f"probe.knn_k: got {probe.knn_k}, takes at most {bank}: {size} training images less "
            f"probe.validation_size {probe.validation_size}"
        )
    fewest = np.bincount(dataset.train.label, minlength=dataset.num_classes).min()
    if probe.few_labels > fewest:
        raise UserError(f"probe.few_labels: got {probe.few_labels}, takes at most {fewest}, as the rarest class has")


def image_side(config: ConfigDict, dataset: Dataset) -> int:
    """Pixels of a view's side."""
    return config.data.image_size or dataset.train.image.shape[1]


def fresh_state(config: ConfigDict, parts: assembly.Parts, dataset: Dataset) -> PretrainState:
    """The state at step 0, a function of the seed."""
    side, channels = image_side(config, dataset), dataset.train.image.shape[-1]
    image = jnp.zeros((2, side, side, channels))
    make = jax.jit(
        lambda key: init_state(key, image, parts.network, parts.predictor, parts.optimizer, parts.tau is not None)
    )
    return make(jax.random.fold_in(jax.random.key(config.seed), 0x1217))


def compile_step(config, parts: assembly.Parts, data: dict, devices: list, key: jax.Array, side: int) -> Callable:
    """run(state, batches) -> (state, metrics) on all devices."""
    step = make_pretrain_step(
        views=make_views(parts.recipe, side),
        network=parts.network,
        predictor=parts.predictor,
        optimizer=parts.optimizer,
        tau=parts.tau,
        loss_scale=config.loss_scale,
        axis_name=parallel.AXIS,
    )
    program = parallel.parallelise(step, load, devices)
    data = parallel.replicate(data, devices)
    return lambda state, batches: program(state, data, batches, key)


def begin_log(out: Path, start: int) -> float:
    """Cuts metrics.csv back to the step that training goes on from; seconds already spent up to there."""
    if not is_writer():
        return 0.0
    rows = metrics.truncate_after(out / "metrics.csv", start)
    return rows[-1]["seconds"] if rows else 0.0


def print_header(config, parts, state, dataset, devices, cadence: Cadence, start: int) -> None:
    """What is about to run, and by which rules every parameter is updated."""
    total = len(devices) * jax.process_count()
    norm = "over all devices" if config.sync_batch_norm else "each device its own"
    say(f"{config.method} on {dataset.name}: {len(dataset.pretrain.image)} images, batch {config.batch_size}")
    say(f"{cadence.total} steps ({config.epochs} epochs), seed {config.seed}, {config.precision}")
    say(f"{total} x {devices[0].device_kind}; BatchNorm statistics: {norm}, one view at a time")
    say(f"{'group':10} {'parameters':>12} {'decayed':>12} {'learning rate':>14} {'weight decay':>13}")
    for group, size, decayed, rule in assembly.group_table(state.params, parts.rules, config.optimizer.exclude):
        say(f"{group:10} {size:12,} {decayed:12,} {rule.learning_rate:14g} {rule.weight_decay:13g}")
    if start:
        say(f"going on from step {start}")


def progress_bar(total: int, start: int):
    return tqdm(total=total, initial=start, unit="step", disable=not is_writer(), dynamic_ncols=True, smoothing=0.1)


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


def finish(config, parts, state: PretrainState, dataset, encode, out: Path, cadence: Cadence) -> None:
    """Probes, verdict, result.json and figures of a finished run."""
    result, features = judge_all(config, parts, state.params, state.stats, dataset, encode, out, cadence.total)
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
        predictor_decay=parts.rules["predictor"].weight_decay,
    )
    result = {"task": "pretrain"} | describe(config) | {"steps": cadence.total} | result
    result |= spent(rows, cadence.total) | provenance()
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


def judge_all(config, parts, params, stats, dataset, encode, out: Path, step: int):
    """(accuracies, features): the trained encoder's, and the untrained one's and raw pixels' where asked for."""
    begin = time.perf_counter()
    settings = config.probe
    chosen = {
        "protocol": settings.protocol,
        "epochs": settings.epochs,
        "ridge": settings.ridge,
        "knn_k": settings.knn_k,
        "knn_temperature": settings.knn_temperature,
        "seed": config.seed,
    }
    base = {
        "dataset": dataset.name,
        "train_size": len(dataset.train.label),
        "side": dataset.train.image.shape[1],
    }

    def features_of(name, params, stats):
        path = out / "features" / f"{name}.npz" if is_writer() else None
        fingerprint = base | {"encoder": name, "parameters": fingerprint_of(params["encoder"])}
        return judge.take_features(encode, params, stats, dataset, path, fingerprint)

    contenders = {"pretrained": features_of(f"step-{step}", params, stats)}
    result: dict = judge.judge(contenders["pretrained"], dataset.num_classes, **chosen)
    if settings.random_init:
        fresh = fresh_state(config, parts, dataset)
        normalise = make_normalise(parts.recipe.mean, parts.recipe.std)
        single = assembly.build_network(config, None)
        fresh_stats = judge.calibrate(single, fresh.params, fresh.stats, normalise, dataset.train.image)
        contenders["random_init"] = features_of("random-init", fresh.params, fresh_stats)
        baseline = judge.judge(contenders["random_init"], dataset.num_classes, **chosen)
        result |= {f"random_init_{name}": value for name, value in baseline.items()}
    if settings.few_labels:
        contenders["raw_pixels"] = judge.raw_pixels(dataset)
        result["few_label"] = judge.few_labels(
            contenders, dataset.num_classes, settings.few_labels, settings.few_label_draws, config.seed
        )
    return result | {"probe_seconds": time.perf_counter() - begin}, contenders["pretrained"]


def fingerprint_of(params) -> float:
    """A number that another set of weights would not share."""
    return float(sum(np.sum(np.abs(np.asarray(p, np.float64))) for p in jax.tree.leaves(params)))


def describe(config: ConfigDict) -> dict:
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


def provenance() -> dict:
    """Device and versions that made a result."""
    packages = ("jax", "flax", "optax", "chex", "orbax-checkpoint", "tensorflow-datasets", "numpy")
    device = jax.devices()[0]
    return {
        "device": f"{len(jax.devices())} x {device.device_kind} ({device.platform})",
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def print_accuracies(result: dict) -> None:
    """The accuracies on the test set, last epoch, one a line, the untrained encoder's beside them."""
    for name in (n for n in result if n.endswith("_accuracy") and not n.startswith("random_init_")):
        baseline = result.get(f"random_init_{name}")
        beside = "" if baseline is None else f"   untrained encoder {baseline:.4f}"
        say(f"{name:34} {result[name]:.4f}{beside}")
    few = result.get("few_label", {})
    for name in (n for n in few if isinstance(few[n], dict)):
        mean, std = few[name]["mean"], few[name]["std"]
        say(f"{few['labels_per_class']} labels a class, {name:12} {mean:.4f} ± {std:.4f} over {few['draws']} draws")


def draw_views(config: ConfigDict, recipe, dataset: Dataset, out: Path, count: int = 8) -> None:
    """figures/views.png: each of the first images beside two views of it, as training would draw them at step 0."""
    image = dataset.pretrain.image[:count]
    keys = example_keys(jax.random.key(config.seed), jnp.zeros((), jnp.int32), jnp.arange(len(image)))
    pairs = jax.jit(make_views(recipe, image_side(config, dataset)))(keys, image)
    plots.draw_views(image, pairs, recipe.mean, recipe.std, out / "figures" / "views.png")
