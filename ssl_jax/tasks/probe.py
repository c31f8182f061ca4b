"""The task "probe": evaluate a checkpoint by all probes, from its files alone."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssl_jax.augment.views import Recipe, evaluation_view, make_views
from ssl_jax.builders import checks, choices, pretraining
from ssl_jax.builders.data import describe_dataset, read_dataset
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.builders.network import build_network
from ssl_jax.builders.program import check_memory, fresh_key
from ssl_jax.builders.trained_run import found_in, open_trained
from ssl_jax.data.batches import steps_per_epoch
from ssl_jax.data.dataset import Dataset
from ssl_jax.digests import tree_digest
from ssl_jax.errors import UserError
from ssl_jax.probes import accuracies, label_free
from ssl_jax.probes.accuracies import (
    Features,
    calibrate,
    few_labels,
    probe_accuracies,
    raw_pixels,
    take_features,
)
from ssl_jax.probes.knn import nearest
from ssl_jax.reports import run_figures
from ssl_jax.reports.figure import optional
from ssl_jax.runtime.terminal import is_writer, say
from ssl_jax.tasks.printing import print_accuracies, print_measures
from ssl_jax.text import printable
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Config, Interrupted, Params, PyTree
from ssl_jax.workdir import checkpoints, metrics_csv, result_json
from ssl_jax.workdir.directory import check_workdir
from ssl_jax.workdir.provenance import parent

QUERIES, NEIGHBOURS = 12, 8  # of neighbours.png


def probe(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Evaluate a checkpoint of a pretraining run, finished or not, and write result.json.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: not asked, as the probes save nothing to go on from.

    Raises:
        UserError: a field is wrong, or `checkpoint` names no pretraining run.
    """
    checks.check_probe(choices.stand_ins(config))
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
    lines: list[str] = []
    with found_in(source / "config.json"):
        data = describe_dataset(trained)
        choices.settle_validation(trained, data, lines)
        choices.settle_neighbours(trained, data, lines)
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
    encode = accuracies.make_encode(parts.network, evaluation_view(parts.recipe))
    parents = [parent(source, step, checkpoints.digest_of(source / "checkpoints", step))]
    result_json.open_on_one(directory, config.to_dict(), parents)
    for line in lines:
        say(line)
    method, name = printable(trained.method), printable(dataset.name)
    say(f"probing {printable(source)} at step {step}: {method} on {name}")
    measure = label_free.make_measure(
        parts.network, make_views(parts.recipe, dataset.side), jax.random.key(trained.seed)
    )
    result, features = run_probes(
        trained,
        parts.recipe,
        trained=state,
        fresh=fresh,
        dataset=dataset,
        encode=encode,
        measure=measure,
        out=out,
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
        | result_json.environment()
    )
    result_json.write(out, result)
    draw_representation(dataset, features, out / "figures")
    print_accuracies(result)
    print_measures(result)


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
    measure: label_free.Measure,
    out: Path,
) -> tuple[dict, Features]:
    """Evaluate a pretrained encoder, and the untrained one and raw pixels where asked for.

    Args:
        config: configuration of the pretraining run.
        recipe: its augmentations, whose size, mean and std give the images for the probes.
        trained: the state with the pretrained encoder.
        fresh: the state at step 0, with the untrained encoder.
        dataset: images and labels of both splits.
        encode: features of the network in evaluation mode, see `accuracies.make_encode`.
        measure: the label-free measures of that network, see `label_free.make_measure`.
        out: work directory, which keeps the features in features/*.npz.

    Returns:
        Accuracies and label-free measures by their names in result.json, without the accuracies
        where the set has no labels; and the features of the pretrained encoder.
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
        "crop": recipe.size,
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
    held_out = label_free.held_out_images(dataset, settings.validation_size)

    def probed(name: str, params: Params, stats: PyTree) -> dict:
        found: dict = {}
        if dataset.num_classes:
            found = probe_accuracies(contenders[name], dataset.num_classes, **chosen)
        measures = measure(params, stats, held_out.image)
        # JSON has no NaN
        return found | {n: v if np.isfinite(v) else None for n, v in measures.items()}

    result = probed("pretrained", trained.params, trained.stats)
    if settings.random_init:
        view, single = evaluation_view(recipe), build_network(config, None)
        fresh_stats = calibrate(single, fresh.params, fresh.stats, view, dataset.train.image)
        contenders["random_init"] = features_of("random-init", fresh.params, fresh_stats)
        baseline = probed("random_init", fresh.params, fresh_stats)
        result |= {f"random_init_{name}": value for name, value in baseline.items()}
    result |= {"label_free_split": held_out.split, "label_free_images": len(held_out.image)}
    if settings.few_labels and dataset.num_classes:
        contenders["raw_pixels"] = raw_pixels(dataset, recipe.size)
        result["few_label"] = few_labels(
            contenders, dataset.num_classes, settings.few_labels, settings.few_label_draws, seed
        )
    return result | {"probe_seconds": time.perf_counter() - begin}, contenders["pretrained"]


def draw_representation(dataset: Dataset, features: Features, folder: Path) -> None:
    """Draw features.png and neighbours.png; one that fails costs a warning.

    They show the test images, or the training images where the set has no test images.

    Args:
        dataset: images and labels of both splits.
        features: of both splits.
        folder: of the figures.
    """
    split = "test" if len(features["test_x"]) else "train"
    x = features[f"{split}_x"]
    with optional(folder / "features.png") as path:
        run_figures.draw_features(features, dataset.label_names, path, split)
    with optional(folder / "neighbours.png") as path:
        queries = label_free.spaced(len(x), QUERIES)
        bank = np.arange(len(features["train_x"]))
        if split == "train":  # the nearest of an image is itself
            bank = np.setdiff1d(bank, queries)
        found = bank[nearest(features["train_x"][bank], x[queries], NEIGHBOURS)]
        images = dataset.test.image if split == "test" else dataset.train.image
        run_figures.draw_neighbours(images[queries], dataset.train.image[found], path)
