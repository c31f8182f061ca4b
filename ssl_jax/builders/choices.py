"""Choose what a configuration leaves to the data: sizes, and what means nothing on its images.

A field at the value that `CHOSEN` gives is chosen from the description of the data set, which is
known before an image is decoded. The same data give the same values, so that the same command goes
on where it stopped. `measure_statistics` does the same for what only the images tell.
"""

import math
from typing import Any, NamedTuple

from ssl_jax.augment.views import RECIPES, Recipe, blur_kernel, make_recipe, measure, sides
from ssl_jax.builders.data import describe_dataset
from ssl_jax.builders.defaults import default_config
from ssl_jax.data.dataset import Dataset, Description
from ssl_jax.errors import UserError
from ssl_jax.models.encoders import ENCODERS
from ssl_jax.types import Config

# field -> its value that leaves the choice to the data
CHOSEN: dict[str, Any] = {
    "batch_size": 0,
    "encoder.stem": "auto",
    "views.size": -1,
    "probe.validation_size": 0,
    "probe.knn_k": 0,
}
COLOURS = ("saturation", "hue", "gray")  # fields of `views` that mean nothing on one channel
# Photographs are stored with sides of 256 pixels and seen with 224, by BYOL and most others since.
STORED, SEEN = 256, 224
CIFAR_STEM = 64  # largest side, in pixels, that the stem for CIFAR is taken for
LARGEST_BATCH = 128
LARGEST_K = 200
LARGEST_VALIDATION = 2000


class Settled(NamedTuple):
    """A configuration with all that its data decide."""

    config: Config
    data: Description
    lines: list[str]  # every choice in words, one a line


def stand_ins(config: Config) -> Config:
    """Return a copy with the defaults in place of what is to be chosen, to check the other fields.

    Nothing is read.
    """
    copy, defaults = config.copy_and_resolve_references(), default_config()
    for field in CHOSEN:
        if is_open(copy, field):
            section, name = _place(copy, field)
            section[name] = _place(defaults, field)[0][name]
    return copy


def is_open(config: Config, field: str) -> bool:
    """Return whether a field of `CHOSEN` is there and left to the data."""
    section, name = _place(config, field)
    return section is not None and name in section and section[name] == CHOSEN[field]


def settle(config: Config, description: Description | None = None) -> Settled:
    """Return a copy of the configuration in which nothing is left open but mean and std.

    Args:
        config: of pretraining, whose other fields were checked, see `stand_ins`.
        description: of its data set; None: what is known before its images are read.

    Returns:
        The copy, the description of its data set, and the choices in words.

    Raises:
        UserError: the set is wrong, or too small for a batch.
    """
    config, lines = config.copy_and_resolve_references(), []
    data = description or describe_dataset(config)
    if is_open(config, "views.size"):
        if not config.data.image_size and (stored := _stored_side(data)):
            height, width, _ = data.image
            _choose(config, lines, "data.image_size", stored, f"the images have {width}x{height}")
            data = describe_dataset(config)
        size = data.side * SEEN // STORED if data.side >= STORED else 0
        why = f"of {data.side} stored" if size else f"views of {data.side} pixels, as stored"
        _choose(config, lines, "views.size", size, why)
    _settle_network(config, data, lines)
    _settle_views(config, data, lines)
    settle_validation(config, data, lines)
    settle_neighbours(config, data, lines, config.probe.validation_size)
    return Settled(config, data, lines)


def _stored_side(data: Description) -> int:
    """Return the side at which large images, or those that are not square, are stored; 0: as is."""
    height, width, _ = data.image
    return min(height, width, STORED) if height != width or height > STORED else 0


def _settle_network(config: Config, data: Description, lines: list[str]) -> None:
    side = config.views.size or data.side
    if is_open(config, "batch_size"):
        if data.pretrain < 2:
            raise UserError(
                f"data.data_dir: got {config.data.data_dir!r}, in which {data.name} has "
                f"{data.pretrain} image(s) for training; takes at least 2, which make a batch"
            )
        size = min(LARGEST_BATCH, 2 ** int(math.log2(data.pretrain)))
        _choose(config, lines, "batch_size", size, f"of {data.pretrain} images for training")
    if is_open(config, "encoder.stem"):
        known = ENCODERS.get(config.encoder.name)
        has_stem = known is not None and "stem" in known.fields
        stem = "imagenet" if has_stem and side > CIFAR_STEM else "cifar"
        _choose(config, lines, "encoder.stem", stem, f"for views of {side} pixels")


def _settle_views(config: Config, data: Description, lines: list[str]) -> None:
    views = config.views
    if data.channels == 1:
        # what the user set himself stays, and is refused by `check_channels`
        recipe = make_recipe(**views)
        out = [name for name in COLOURS if views[name] is None and getattr(recipe, name) > 0]
        for name in out:
            views[name] = 0.0
        if out:
            names = ", ".join(f"views.{name}" for name in out)
            lines.append(f"{names}: left out, which mean nothing on images of one channel")
    recipe = make_recipe(**views)
    if not recipe.blur_kernel and max(side.blur for side in sides(recipe)) > 0:
        side = recipe.size or data.side
        _choose(config, lines, "views.blur_kernel", blur_kernel(side), f"a tenth of {side} pixels")


def settle_validation(config: Config, data: Description, lines: list[str]) -> None:
    """Choose `config.probe.validation_size` in place, where it is left open.

    Args:
        config: with the section `probe`.
        data: description of the data set.
        lines: the choice in words is added to it.
    """
    if is_open(config, "probe.validation_size"):
        size = max(1, min(LARGEST_VALIDATION, data.train // 10))
        _choose(config, lines, "probe.validation_size", size, f"of {data.train} training images")


def settle_neighbours(
    config: Config, data: Description, lines: list[str], held_out: int = 0
) -> None:
    """Choose `config.probe.knn_k` in place, where it is left open.

    Args:
        config: with the section `probe`.
        data: description of the data set.
        lines: the choice in words is added to it.
        held_out: training images that are not among the neighbours.
    """
    if is_open(config, "probe.knn_k"):
        # the root of the bank is a rule of thumb: 200 of CIFAR-10's 50 000, and 6 of 36
        bank = max(1, data.train - held_out)
        k = min(LARGEST_K, math.isqrt(bank))
        _choose(config, lines, "probe.knn_k", k, f"neighbours among {bank} training images")


def _choose(config: Config, lines: list[str], field: str, value: Any, why: str) -> None:
    section, name = _place(config, field)
    section[name] = value
    text = ",".join(map(str, value)) if isinstance(value, tuple) else value
    lines.append(f"{field}={text}: {why}")


def _place(config: Config, field: str) -> tuple[Any, str]:
    """Return the section of a field, None where it is not there, and the field's own name."""
    section, _, name = field.rpartition(".")
    return (config.get(section) if section else config), name


# --- Mean and standard deviation ------------------------------------------------------------------


def unmeasured(config: Config, channels: int) -> tuple[str, ...]:
    """Return those of views.mean and views.std that the images themselves have to give.

    They are unset, and the recipe has none of its own for so many channels.
    """
    own = RECIPES[config.views.recipe]
    return tuple(
        f"views.{name}"
        for name, values in (("mean", own.mean), ("std", own.std))
        if config.views[name] is None and (values is None or len(values) not in (1, channels))
    )


def build_recipe(config: Config, channels: int) -> Recipe:
    """Return the augmentations; what is `unmeasured` is None in them."""
    fields = [field.removeprefix("views.") for field in unmeasured(config, channels)]
    return make_recipe(**config.views)._replace(**dict.fromkeys(fields))


def measure_statistics(config: Config, dataset: Dataset) -> tuple[Config, list[str]]:
    """Return a copy in which mean and std of the views are set where they are `unmeasured`.

    Args:
        config: settled.
        dataset: whose images for pretraining are measured, see `augment.views.measure`.

    Returns:
        The copy, and a line for each field.
    """
    fields = unmeasured(config, dataset.description.channels)
    if not fields:
        return config, []
    config, lines = config.copy_and_resolve_references(), []
    mean, std = measure(dataset.pretrain.image)
    for field in fields:
        value = mean if field == "views.mean" else std
        _choose(config, lines, field, value, "measured on the images for training")
    return config, lines
