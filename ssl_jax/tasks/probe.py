"""The task "probe": evaluate a checkpoint by all probes, from its files alone."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.stages import Wrapped

from ssl_jax.augment.views import Recipe, evaluation_view, make_views
from ssl_jax.builders import checks, choices, pretraining
from ssl_jax.builders.data import describe_dataset, read_dataset, with_data
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.builders.network import build_network
from ssl_jax.builders.program import check_memory, fresh_key
from ssl_jax.builders.trained_run import (
    Trained,
    checkpoint_of,
    found_in,
    image_of,
    open_trained,
    parents_of,
    step_of,
)
from ssl_jax.data.batches import steps_per_epoch
from ssl_jax.data.dataset import Dataset, Description
from ssl_jax.digests import tree_digest
from ssl_jax.errors import UserError
from ssl_jax.files import local_path, write_whole
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
from ssl_jax.tasks.printing import (
    print_accuracies,
    print_measures,
    print_transfer,
    transfer_table,
)
from ssl_jax.tasks.training import keep_damaged
from ssl_jax.text import in_file_name, printable
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Config, Interrupted, Params, PyTree
from ssl_jax.workdir import checkpoints, metrics_csv, result_json
from ssl_jax.workdir.directory import check_workdir

QUERIES, NEIGHBOURS = 12, 8  # of neighbours.png
LATER = ("data.damaged",)  # fields in which a later start may differ


class Prepared(NamedTuple):
    """A set that a checkpoint is probed on, checked."""

    config: Config  # of the run, with this set's fields and the task's own probes
    data: Description
    lines: list[str]  # what was chosen, in words, one a line
    image: tuple[int, int, int] | None  # shape that its images are given; None: its own


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
    checks.check_ranges(config, checks.OTHER_RANGES)
    chosen = step_of(config.step)
    source, sets = checkpoint_of(config), sets_of(config)
    trained = open_trained(source, chosen)
    settings = config.to_dict() | {"step": chosen}
    out = check_workdir(directory, settings, defaults=defaults_of("probe"), later=LATER)
    prepared = [prepare(trained, config, data) for data in sets]
    parts, shapes, init = build_run(trained, prepared[0])
    checkpoints.check_shapes(trained.folder, trained.step, encoder_of(shapes))
    fresh = jax.device_get(pretraining.fresh_state(trained.config, init))
    state = fresh._replace(
        step=trained.step,
        **checkpoints.restore_parts(trained.folder, trained.step, encoder_of(fresh)),
    )
    if len(prepared) == 1:  # what was chosen is kept, as pretraining keeps it
        settings["probe"] = prepared[0].config.probe.to_dict()
    results, parents = [], parents_of(trained)

    def begin() -> None:  # after all that may be refused of the first set
        result_json.open_on_one(directory, settings, parents)

    for number, one in enumerate(prepared, 1):
        place = out
        if len(prepared) > 1:
            place = out / "sets" / f"{number}-{in_file_name(one.data.name)}"
        results.append(probe_set(one, parts, state, fresh, place, begin))
    if not is_writer():
        return
    common = {"task": "probe", "checkpoint": str(source)}
    spent = result_json.spent(metrics_csv.read_rows(source / "metrics.csv"), trained.step)
    about = result_json.describe(trained.config.to_dict())
    trained_on = {"trained_on": about.pop("dataset"), "steps": trained.step}
    if len(results) == 1:
        result = common | about | trained_on | results[0]
    else:
        names = ",".join(one.data.name for one in prepared)
        result = common | about | {"dataset": names} | trained_on | {"sets": results}
    result_json.write(out, result | spent | result_json.environment())
    if len(results) > 1:
        write_whole(out / "table.md", transfer_table(results))
        with optional(out / "figures" / "transfer.png") as path:
            run_figures.draw_transfer(results, trained_on["trained_on"], path)
        print_transfer(results)


def sets_of(config: Config) -> list[Config]:
    """Return the fields `data` of each set that the task names, one for the run's own set.

    Raises:
        UserError: places and names do not go together.
    """
    data = config.data.copy_and_resolve_references()
    if config.data_dir and data.name:
        raise UserError(
            f"data_dir: got {config.data_dir!r}, where the run's own set is, and data.name "
            f"{data.name!r}, which is another one; takes data.data_dir for it"
        )
    data.data_dir = data.data_dir or config.data_dir
    names = [name.strip() for name in data.name.split(",")]
    if len(names) == 1:
        return [data]
    places = [local_path("data.data_dir", p.strip()) for p in data.data_dir.split(",")]
    if "" in names:
        raise UserError(f"data.name: got {data.name!r}, takes sets with commas between them")
    if len(places) not in (1, len(names)):
        raise UserError(
            f"data.data_dir: got {len(places)} places for the {len(names)} sets of data.name; "
            "takes one for all, or one for each, with commas between them"
        )
    found = []
    for name, place in zip(names, places * (len(names) // len(places)), strict=True):
        one = data.copy_and_resolve_references()
        one.name, one.data_dir = name, place
        found.append(one)
    return found


def prepare(trained: Trained, config: Config, data: Config) -> Prepared:
    """Return a set that a checkpoint is to be probed on. Reads no image.

    Args:
        trained: the checkpoint.
        config: of the task.
        data: the fields that name the set.

    Raises:
        UserError: the set is wrong, or has less than the probes ask for.
    """
    lines: list[str] = []
    run = with_data(trained.config, data)
    run.probe = config.probe.copy_and_resolve_references()
    image = image_of(trained) if data.name else None
    with contextlib.nullcontext() if data.name else found_in(trained.source / "config.json"):
        about = describe_dataset(run, image)
        choices.settle_validation(run, about, lines)
        choices.settle_neighbours(run, about, lines)
    checks.check_sizes(run.probe, about)
    return Prepared(run, about, lines, image)


def build_run(trained: Trained, prepared: Prepared) -> tuple[pretraining.Parts, Any, Wrapped]:
    """Return the run's parts, the shapes of its state, and its initialisation.

    Args:
        trained: the checkpoint.
        prepared: a set whose images have the shape of the run's.

    Raises:
        UserError: a field of the run is wrong, or memory is too small.
    """
    config = trained.config
    # of another set the number of images says nothing about the run's steps, and a step's rate and
    # decay decide nothing about its features
    count = prepared.data.pretrain if prepared.image is None else config.batch_size
    with found_in(trained.source / "config.json"):
        steps_an_epoch = steps_per_epoch(count, config.batch_size)
        parts = pretraining.build(config, config.epochs * steps_an_epoch, steps_an_epoch, None)
        init = pretraining.make_init(parts, prepared.data)
        shapes: Any = init.trace(fresh_key(config)).out_info
        check_memory(config, init, jax.local_devices()[:1])
    return parts, shapes, init


def probe_set(
    prepared: Prepared,
    parts: pretraining.Parts,
    state: PretrainState,
    fresh: PretrainState,
    out: Path,
    begin: Callable[[], None],
) -> dict:
    """Return what result.json says of a set; draw its figures and print its accuracies.

    Args:
        prepared: the set.
        parts: of the run.
        state: with the pretrained encoder.
        fresh: the state at step 0.
        out: directory of this set's features and figures.
        begin: called when nothing more is refused.

    Returns:
        The set's name, its accuracies and label-free measures.
    """
    config = prepared.config
    dataset = read_dataset(config, prepared.image)
    checks.check_few_labels(config.probe, dataset)
    begin()
    for line in prepared.lines:
        say(line)
    method, name = printable(config.method), printable(dataset.name)
    say(f"probing step {int(state.step)} of {method} on {name}")
    keep_damaged(out, dataset)
    recipe = parts.recipe
    result, features = run_probes(
        config,
        recipe,
        trained=state,
        fresh=fresh,
        dataset=dataset,
        encode=accuracies.make_encode(parts.network, evaluation_view(recipe)),
        measure=label_free.make_measure(
            parts.network, make_views(recipe, dataset.side), jax.random.key(config.seed)
        ),
        out=out,
    )
    if is_writer():
        draw_representation(dataset, features, out / "figures")
        print_accuracies(result)
        print_measures(result)
    return {"dataset": dataset.name, "damaged": len(dataset.damaged)} | result


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
