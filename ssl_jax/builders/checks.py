"""Check a configuration before any long work."""

import math

import numpy as np

from ssl_jax.augment.views import Recipe, check_channels, make_views
from ssl_jax.builders.defaults import default_config
from ssl_jax.data.dataset import Dataset, Description
from ssl_jax.data.splits import warn_of_empty
from ssl_jax.errors import UserError, nearest
from ssl_jax.losses import LOSSES, OBJECTIVES, REGULARISERS
from ssl_jax.models.encoders import ENCODERS
from ssl_jax.predictors import KINDS, make_predictor, options_of
from ssl_jax.probes.label_free import RANKINGS, Ranking
from ssl_jax.reports import embedding_map
from ssl_jax.runtime.terminal import say
from ssl_jax.types import Config
from ssl_jax.workdir import embeddings, event_file
from ssl_jax.workdir.directory import flatten

# Smallest and largest value of each number that no part of the run checks itself.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "epochs": (1, math.inf),
    "batch_size": (2, math.inf),
    "accumulate": (1, math.inf),
    "log_every": (1, math.inf),
    "dynamics.every": (0, math.inf),
    "eval_every": (0, math.inf),
    "checkpoint_every": (0, math.inf),
    "loss_scale": (1e-12, math.inf),
    "data.train_size": (0, math.inf),
    "data.image_size": (0, 1024),
    "data.test_share": (0, 0.9),
    "encoder.width": (1, math.inf),
    "encoder.depth": (0, 10_000),  # every layer is traced before the memory can be checked
    "projector.hidden": (1, math.inf),
    "predictor.hidden": (1, math.inf),
    "predictor.every": (1, math.inf),
    "predictor.phase": (0, math.inf),
    "predictor.eps": (0, 1),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.clip_value": (0, math.inf),
    "optimizer.clip_norm": (0, math.inf),
    "schedule.every": (1e-12, math.inf),
    "schedule.cycle": (1e-12, math.inf),
    "optimizer.predictor.learning_rate": (0, math.inf),
    "optimizer.predictor.weight_decay": (0, math.inf),
    "schedule.warmup_epochs": (0, math.inf),
}
PROBE_RANGES: dict[str, tuple[float, float]] = {
    "probe.epochs": (0, math.inf),
    "probe.seed": (0, 2**32 - 1),
    "probe.newton_l2": (0, math.inf),
    "probe.newton_steps": (1, math.inf),
    "probe.knn_k": (1, math.inf),
    "probe.knn_temperature": (1e-12, math.inf),
    "probe.validation_size": (1, math.inf),
    "probe.few_labels": (0, math.inf),
    "probe.few_label_draws": (1, math.inf),
}
# Of a set that is not the run's own, and of the map of its pictures.
OTHER_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "data.train_size": (0, math.inf),
    "data.test_share": (0, 0.9),
    "map_images": (2, 20_000),
}
SUPERVISED_RANGES: dict[str, tuple[float, float]] = {
    "data.validation_size": (0, math.inf),
    "data.random_labels": (0, 1),
    "data.labelled_share": (1e-12, 1),
    "augment.consistency": (0, math.inf),
    "plateau.patience": (0, math.inf),
    "plateau.factor": (1e-12, 1 - 1e-12),
    "plateau.threshold": (0, math.inf),
    "plateau.cooldown": (0, math.inf),
    "plateau.smallest": (0, 1),
    "stopping.patience": (0, math.inf),
    "stopping.threshold": (0, math.inf),
}


FORMS = ("parquet", *embeddings.WRITERS)  # what `format` takes
MAPS = (*embedding_map.KINDS, "none")  # what `map` takes
BEST = ("auto", *RANKINGS)  # what `probe.best` takes

# What plateau and early stopping can watch, and which way is better.
WATCHED = {"validation_loss": "lower", "validation_accuracy": "higher", "loss": "lower"}


def check_supervised(config: Config) -> None:
    """Check the fields of a supervised run, and raise a UserError for the first that is wrong.

    It may be out of range, or in conflict with another field. Nothing is loaded.
    """
    check_ranges(config, RANGES | SUPERVISED_RANGES)
    if config.tensorboard:
        event_file.require_package()
    if config.loss not in LOSSES:
        raise UserError(f"loss: got {config.loss!r}, {nearest(config.loss, LOSSES)}")
    for section in ("plateau", "stopping"):
        watch, patience = config[section].watch, config[section].patience
        if watch not in WATCHED:
            raise UserError(f"{section}.watch: got {watch!r}, {nearest(watch, WATCHED)}")
        if patience and watch != "loss" and not config.data.validation_size:
            raise UserError(
                f"{section}.patience: got {patience}, which watches held-out training images: "
                f"set data.validation_size, which is 0, or {section}.watch=loss"
            )


def check_counts(config: Config) -> None:
    """Check the fields of a pretraining run, and raise a UserError for the first that is wrong.

    Nothing is loaded.
    """
    check_ranges(config, RANGES | {f"regularisers.{name}": (0, math.inf) for name in REGULARISERS})
    if config.tensorboard:
        event_file.require_package()
    if config.loss not in OBJECTIVES:
        raise UserError(f"loss: got {config.loss!r}, {nearest(config.loss, OBJECTIVES)}")
    if config.predictor.symmetric and "symmetric" not in options_of(config.predictor.kind):
        takes = [kind for kind in KINDS if "symmetric" in options_of(kind)]
        raise UserError(
            "predictor.symmetric: got True, takes False with predictor.kind "
            f"{config.predictor.kind}: only {', '.join(takes)} can be made symmetric"
        )
    _check_taken(config)
    check_probe(config)


# Fields of `predictor` that mean nothing to most kinds, so that setting them there is a mistake.
OF_FEW_KINDS = ("centre", "power", "norm", "ridge")


def _check_taken(config: Config) -> None:
    """Raise a UserError for a field or a loss that the predictor's kind does not take."""
    kind, defaults = config.predictor.kind, default_config().predictor
    for name in OF_FEW_KINDS:
        value = config.predictor[name]
        if value != defaults[name] and name not in options_of(kind):
            takes = ", ".join(known for known in KINDS if name in options_of(known))
            raise UserError(
                f"predictor.{name}: got {value!r}, takes {defaults[name]!r} with predictor.kind "
                f"{kind}: only {takes} have it"
            )
    trained = not make_predictor(kind, config.projector.out).closed_form
    if config.loss.startswith("iso_") and (trained or config.predictor.every > 1):
        raise UserError(
            f"loss: got {config.loss!r}, which gives a predictor no gradient: takes one that is "
            "written down at every step, such as predictor.kind=direct_pred with predictor.every=1"
        )


def check_probe(config: Config) -> None:
    """Raise a UserError for the first field of the probes that is wrong."""
    protocol, loss, best = config.probe.protocol, config.probe.loss, config.probe.best
    protocols = ("seed", "original", "both")
    if protocol not in protocols:
        raise UserError(f"probe.protocol: got {protocol!r}, {nearest(protocol, protocols)}")
    if loss not in LOSSES:
        raise UserError(f"probe.loss: got {loss!r}, {nearest(loss, LOSSES)}")
    if best not in BEST:
        raise UserError(f"probe.best: got {best!r}, {nearest(best, BEST)}")
    check_ranges(config, PROBE_RANGES)


def check_embed(config: Config) -> tuple[str, ...]:
    """Return the forms that `format` names, "parquet" first; UserError for a field that is wrong.

    Nothing is loaded.
    """
    check_ranges(config, OTHER_RANGES)
    forms = [word.strip() for word in config.format.split(",")]
    for word in forms:
        if word not in FORMS:
            raise UserError(f"format: got {word!r}, {nearest(word, FORMS)}")
    if config.map not in MAPS:
        raise UserError(f"map: got {config.map!r}, {nearest(config.map, MAPS)}")
    embedding_map.check_kind(config.map)
    return tuple(dict.fromkeys(["parquet", *forms]))


def check_ranges(config: Config, ranges: dict[str, tuple[float, float]]) -> None:
    """Raise a UserError for the first field outside its range, or else too large.

    `ranges` gives the smallest and the largest value of each field. Finite is what all numbers
    must be, and whole ones of 64 bits. Absent and unset fields pass.
    """
    fields = flatten(config.to_dict())
    for field, (least, most) in ranges.items():
        value = fields.get(field)
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            takes = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UserError(f"{field}: got {value}, takes a number {takes}")
    for field, value in fields.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{field}: got {value}, takes finite numbers")
            if isinstance(number, int) and abs(number) >= 2**63:
                raise UserError(f"{field}: got {value}, takes whole numbers of 64 bits")


def check_micro_batches(config: Config, examples: int, devices: int) -> None:
    """Raise a UserError where the batch of a device does not divide into micro-batches.

    Also where BatchNorm's statistics would be those of one example: it has no variance.

    Args:
        config: of a run that trains.
        examples: of a batch on each device.
        devices: of all processes.
    """
    if examples % config.accumulate:
        raise UserError(
            f"accumulate: got {config.accumulate}, takes a divisor of {examples}, the examples a "
            f"device: batch_size (got {config.batch_size}) by {devices} device(s)"
        )
    examples //= config.accumulate
    name, norm = config.encoder.name, config.encoder.norm
    own = ENCODERS[name].norm if norm == "auto" and name in ENCODERS else norm
    norms = [own, config.projector.norm] if "projector" in config else [own]
    if "batch" not in norms or examples > 1:
        return
    if config.accumulate > 1 and (devices == 1 or not config.sync_batch_norm):
        raise UserError(
            f"accumulate: got {config.accumulate}, which leaves BatchNorm one example, takes at "
            f"most {config.accumulate // 2}, two a micro-batch"
        )
    if not config.sync_batch_norm:
        raise UserError(
            f"batch_size: got {config.batch_size}, one example a device, takes at least 2 a device "
            "without shared statistics: set sync_batch_norm=True, or a larger batch"
        )


def check_views(recipe: Recipe, data: Description) -> None:
    """Raise a UserError where the augmentations do not fit the images, in size or in channels."""
    height, width, _ = data.image
    if recipe.size > min(height, width):
        raise UserError(
            f"views.size: got {recipe.size}, takes at most {min(height, width)}, the side that is "
            "stored (data.image_size)"
        )
    make_views(recipe, data.side)
    check_channels(recipe, data.channels)


def check_sizes(probe: Config, data: Description, held_out: int = 0) -> None:
    """Check that the set has what the probes ask for: training images, and labels.

    Args:
        probe: the section `probe` of a configuration.
        data: the data set.
        held_out: training images that are not in the kNN bank.

    Raises:
        UserError: there are too few images, or no labels for `probe.best`.
    """
    if not data.num_classes:
        ranking_of(probe, data.num_classes)
        return
    if not data.test:
        raise UserError(
            f"data.test_share: leaves no test image of {data.name}, on which the probes measure "
            "accuracies; takes a share above 0, or data.labels=none for a run without labels"
        )
    size = data.train
    if held_out >= size:
        raise UserError(f"probe.validation_size: got {held_out}, takes less than the {size} images")
    if probe.knn_k > size - held_out:
        less = f" less probe.validation_size {held_out}" if held_out else ""
        images = f"{size} training images{less}"
        raise UserError(
            f"probe.knn_k: got {probe.knn_k}, takes at most {size - held_out}: {images}"
        )


def ranking_of(probe: Config, num_classes: int) -> Ranking:
    """Return what chooses the best checkpoint; UserError for kNN on a set without labels."""
    if probe.best == "knn" and not num_classes:
        others = ", ".join(name for name in BEST if name != "knn")
        raise UserError(f"probe.best: got 'knn', which needs labels; takes {others}")
    auto = "knn" if num_classes else "rankme"
    return RANKINGS[auto if probe.best == "auto" else probe.best]


def check_few_labels(probe: Config, dataset: Dataset) -> None:
    """Raise a UserError where the few-label probe asks for more images of a class than it has.

    Classes without an image are left out, with one line. It needs the data set itself: no
    description says how many images a class has. On a set without labels the probe is left out,
    with one line.
    """
    if not dataset.num_classes:
        if probe.few_labels:
            say(f"probe.few_labels: {probe.few_labels} is left out, {dataset.name} has no labels")
        return
    if probe.few_labels:
        warn_of_empty(dataset)
    fewest = np.unique(dataset.train.label, return_counts=True)[1].min()
    if probe.few_labels > fewest:
        raise UserError(
            f"probe.few_labels: got {probe.few_labels}, takes at most {fewest}, "
            "as the rarest class has"
        )
