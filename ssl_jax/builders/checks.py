"""What can be wrong with a configuration, told before any long work."""

import math
from pathlib import Path

import numpy as np

from ssl_jax.augment.views import Recipe, check_channels, make_views
from ssl_jax.data.dataset import Dataset, Description
from ssl_jax.errors import UserError, nearest
from ssl_jax.losses import LOSSES, OBJECTIVES, REGULARISERS
from ssl_jax.models.encoders import ENCODERS
from ssl_jax.predictors import KINDS, options_of
from ssl_jax.types import Config
from ssl_jax.workdir.directory import flatten

# Smallest and largest value of the numbers that no part of the run checks itself.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "epochs": (1, math.inf),
    "batch_size": (2, math.inf),
    "log_every": (1, math.inf),
    "dynamics.every": (0, math.inf),
    "eval_every": (0, math.inf),
    "checkpoint_every": (0, math.inf),
    "loss_scale": (1e-12, math.inf),
    "data.train_size": (0, math.inf),
    "data.image_size": (0, 1024),
    "encoder.width": (1, math.inf),
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


SUPERVISED_RANGES: dict[str, tuple[float, float]] = {
    "data.validation_size": (0, math.inf),
    "data.random_labels": (0, 1),
    "augment.consistency": (0, math.inf),
    "plateau.patience": (0, math.inf),
    "plateau.factor": (1e-12, 1 - 1e-12),
    "plateau.threshold": (0, math.inf),
    "plateau.cooldown": (0, math.inf),
    "plateau.smallest": (0, 1),
    "stopping.patience": (0, math.inf),
    "stopping.threshold": (0, math.inf),
}


def check_supervised(config: Config) -> None:
    """UserError for a field of a supervised run out of range, or at odds with another, before
    anything is loaded.
    """
    check_ranges(config, RANGES | SUPERVISED_RANGES)
    if config.loss not in LOSSES:
        raise UserError(f"loss: got {config.loss!r}, {nearest(config.loss, LOSSES)}")
    for section in ("plateau", "stopping"):
        if config[section].patience and not config.data.validation_size:
            raise UserError(
                f"{section}.patience: got {config[section].patience}, which watches held-out training images: "
                "set data.validation_size, which is 0"
            )
    if config.weights and not Path(config.weights).is_file():
        raise UserError(
            f"weights: got {config.weights}, which is no file; takes a file of timm's weights"
        )


def check_counts(config: Config) -> None:
    """UserError for a number out of range, or a loss that is not there, before anything is loaded."""
    check_ranges(config, RANGES | {f"regularisers.{name}": (0, math.inf) for name in REGULARISERS})
    if config.loss not in OBJECTIVES:
        raise UserError(f"loss: got {config.loss!r}, {nearest(config.loss, OBJECTIVES)}")
    if config.predictor.symmetric and "symmetric" not in options_of(config.predictor.kind):
        takes = [kind for kind in KINDS if "symmetric" in options_of(kind)]
        raise UserError(
            f"predictor.symmetric: got True, takes False with predictor.kind {config.predictor.kind}: only "
            f"{', '.join(takes)} can be made symmetric"
        )
    check_probe(config)


def check_probe(config: Config) -> None:
    """UserError for a probe's field out of range."""
    protocols = ("seed", "original", "both")
    if config.probe.protocol not in protocols:
        raise UserError(
            f"probe.protocol: got {config.probe.protocol!r}, {nearest(config.probe.protocol, protocols)}"
        )
    if config.probe.loss not in LOSSES:
        raise UserError(
            f"probe.loss: got {config.probe.loss!r}, {nearest(config.probe.loss, LOSSES)}"
        )
    check_ranges(config, PROBE_RANGES)


def check_ranges(config: Config, ranges: dict[str, tuple[float, float]]) -> None:
    """UserError for the first field that lies outside its range, or else for the first of all
    fields whose number is not finite; an absent or unset one is not looked at.
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


def check_batch_norm(config: Config, examples: int) -> None:
    """UserError where BatchNorm's statistics would be those of one example: it has no variance.

    `examples` of a batch are on each device. The heads of a pretraining run always have BatchNorm.
    """
    name, norm = config.encoder.name, config.encoder.norm
    own = ENCODERS[name].norm if norm == "auto" and name in ENCODERS else norm
    if not config.sync_batch_norm and examples == 1 and ("projector" in config or own == "batch"):
        raise UserError(
            f"batch_size: got {config.batch_size}, one example a device, takes at least 2 a device "
            "without shared statistics: set sync_batch_norm=True, or a larger batch"
        )


def check_views(recipe: Recipe, data: Description) -> None:
    """UserError where the augmentations do not fit the images, in size or in channels."""
    make_views(recipe, data.side)
    check_channels(recipe, data.channels)


def check_sizes(probe: Config, data: Description, held_out: int = 0) -> None:
    """UserError where the probes ask for more training images than there are; `held_out`: those not
    in the kNN bank.
    """
    size = data.train
    if held_out >= size:
        raise UserError(f"probe.validation_size: got {held_out}, takes less than the {size} images")
    if probe.knn_k > size - held_out:
        less = f" less probe.validation_size {held_out}" if held_out else ""
        raise UserError(
            f"probe.knn_k: got {probe.knn_k}, takes at most {size - held_out}: {size} training images{less}"
        )


def check_few_labels(probe: Config, dataset: Dataset) -> None:
    """UserError where the few-label probe asks for more images of a class than it has: no metadata
    says how many.
    """
    fewest = np.bincount(dataset.train.label, minlength=dataset.num_classes).min()
    if probe.few_labels > fewest:
        raise UserError(
            f"probe.few_labels: got {probe.few_labels}, takes at most {fewest}, as the rarest class has"
        )
