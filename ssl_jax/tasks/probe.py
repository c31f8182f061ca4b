"""The task "probe": evaluate a checkpoint by all probes, from its files alone."""

import time
from pathlib import Path
from typing import Any

import jax

from ssl_jax.augment.views import Recipe, make_normalise
from ssl_jax.builders import checks, pretraining
from ssl_jax.builders.data import describe_dataset, read_dataset
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.builders.network import build_network
from ssl_jax.builders.program import check_memory, fresh_key
from ssl_jax.builders.trained_run import found_in, open_trained
from ssl_jax.data.batches import steps_per_epoch
from ssl_jax.data.dataset import Dataset
from ssl_jax.digests import tree_digest
from ssl_jax.errors import UserError
from ssl_jax.probes import accuracies
from ssl_jax.probes.accuracies import (
    Features,
    calibrate,
    few_labels,
    probe_accuracies,
    raw_pixels,
    take_features,
)
from ssl_jax.reports import run_figures
from ssl_jax.reports.figure import optional
from ssl_jax.runtime.terminal import is_writer, say
from ssl_jax.tasks.printing import print_accuracies
from ssl_jax.text import printable
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Config, Interrupted, Params, PyTree
from ssl_jax.workdir import checkpoints, metrics_csv, result_json
from ssl_jax.workdir.directory import check_workdir, write_json


def probe(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Evaluate a checkpoint of a pretraining run, finished or not, and write result.json.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: not asked, as the probes save nothing to go on from.

    Raises:
        UserError: a field is wrong, or `checkpoint` names no pretraining run.
    """
    checks.check_probe(config)
    if not config.checkpoint:
        raise UserError(
            "checkpoint: got '', takes the work directory of a pretraining run "
            "(--config.checkpoint=DIR)"
        )
    source = Path(config.checkpoint)
    _, trained, step = open_trained(source, config.step)
    trained.data.data_dir = config.data_dir or trained.data.data_dir
    trained.probe = config.probe
    out = check_workdir(directory, config.to_dict(), defaults=defaults_of("probe"))
    with found_in(source / "config.json"):
        data = describe_dataset(trained)
        steps_an_epoch = steps_per_epoch(data.pretrain, trained.batch_size)
        parts = pretraining.build(trained, trained.epochs * steps_an_epoch, steps_an_epoch, None)
        init = pretraining.make_init(parts, data)
        shapes: Any = init.trace(fresh_key(trained)).out_info
        check_memory(trained, init, jax.local_devices()[:1])
    checks.check_sizes(trained.probe, data)
    checkpoints.check_shapes(source / "checkpoints", step, encoder_of(shapes))
    dataset = read_dataset(trained)
    checks.check_few_labels(trained.probe, dataset)
    fresh = jax.device_get(pretraining.fresh_state(trained, init))
    state = fresh._replace(
        step=step,
        **checkpoints.restore_parts(source / "checkpoints", step, encoder_of(fresh)),
    )
    encode = accuracies.make_encode(
        parts.network, make_normalise(parts.recipe.mean, parts.recipe.std)
    )
    result_json.open_on_one(directory, config.to_dict())
    method, name = printable(trained.method), printable(dataset.name)
    say(f"probing {printable(source)} at step {step}: {method} on {name}")
    result, features = run_probes(
        trained, parts.recipe, trained=state, fresh=fresh, dataset=dataset, encode=encode, out=out
    )
    if not is_writer():
        return
    result = (
        {"task": "probe", "checkpoint": str(source)}
        | result_json.describe(trained.to_dict())
        | {"steps": step}
        | result
    )
    result |= (
        result_json.spent(metrics_csv.read_rows(source / "metrics.csv"), step)
        | result_json.provenance()
    )
    write_json(out / "result.json", result)
    with optional(out / "figures" / "features.png") as path:
        run_figures.draw_features(features, dataset.label_names, path)
    print_accuracies(result)


def encoder_of(state: PretrainState) -> dict[str, PyTree]:
    """Return the parts of a state, or of its shapes, that the probes need."""
    params = {name: state.params[name] for name in ("encoder", "projector")}
    return {"params": params, "stats": state.stats}


def run_probes(
    config: Config,
    recipe: Recipe,
    *,
    trained: PretrainState,
    fresh: PretrainState,
    dataset: Dataset,
    encode: accuracies.Encode,
    out: Path,
) -> tuple[dict, Features]:
    """Evaluate a pretrained encoder, and the untrained one and raw pixels where asked for.

    Args:
        config: configuration of the pretraining run.
        recipe: its augmentations, whose mean and std normalise the images.
        trained: the state with the pretrained encoder.
        fresh: the state at step 0, with the untrained encoder.
        dataset: images and labels of both splits.
        encode: features of the network in evaluation mode, see `accuracies.make_encode`.
        out: work directory, which keeps the features in features/*.npz.

    Returns:
        The accuracies by their names in result.json, and the features of the pretrained encoder.
    """
    begin = time.perf_counter()
    settings = config.probe
    seed = config.seed if settings.seed is None else settings.seed
    chosen = {
        "protocol": settings.protocol,
        "epochs": settings.epochs,
        "loss": settings.loss,
        "ridge": settings.ridge,
        "newton_l2": settings.newton_l2,
        "newton_steps": settings.newton_steps,
        "knn_k": settings.knn_k,
        "knn_temperature": settings.knn_temperature,
        "seed": seed,
    }
    # all that the features depend on beside the weights
    base = {
        "dataset": dataset.name,
        "data": tree_digest((dataset.train, dataset.test)),
        "normalised by": [recipe.mean, recipe.std],
        "network": config.encoder.to_dict() | {"precision": config.precision},
    }

    def features_of(name: str, params: Params, stats: PyTree) -> Features:
        path = out / "features" / f"{name}.npz" if is_writer() else None
        weights = tree_digest((params["encoder"], stats))
        fingerprint = base | {"encoder": name, "weights": weights}
        return take_features(encode, params, stats, dataset, path, fingerprint)

    contenders = {
        "pretrained": features_of(f"step-{int(trained.step)}", trained.params, trained.stats)
    }
    result: dict = probe_accuracies(contenders["pretrained"], dataset.num_classes, **chosen)
    if settings.random_init:
        normalise = make_normalise(recipe.mean, recipe.std)
        single = build_network(config, None)
        fresh_stats = calibrate(single, fresh.params, fresh.stats, normalise, dataset.train.image)
        contenders["random_init"] = features_of("random-init", fresh.params, fresh_stats)
        baseline = probe_accuracies(contenders["random_init"], dataset.num_classes, **chosen)
        result |= {f"random_init_{name}": value for name, value in baseline.items()}
    if settings.few_labels:
        contenders["raw_pixels"] = raw_pixels(dataset)
        result["few_label"] = few_labels(
            contenders, dataset.num_classes, settings.few_labels, settings.few_label_draws, seed
        )
    return result | {"probe_seconds": time.perf_counter() - begin}, contenders["pretrained"]
