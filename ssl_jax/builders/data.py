"""Build the data set, the place of its images, and the cadence from a configuration."""

from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from ssl_jax.builders.defaults import add_other_data
from ssl_jax.data.dataset import Dataset, Description
from ssl_jax.data.pictures import FITS
from ssl_jax.data.records import Options, RawSet
from ssl_jax.data.sources import SOURCES, describe, load_dataset, open_records
from ssl_jax.errors import UserError, nearest
from ssl_jax.train.loop import Cadence
from ssl_jax.types import Config

Image = tuple[int, int, int]  # height and width in pixels, and channels
ENCODED = "encoded"  # value of data.resident: images are decoded while training
MOST_STEPS = 2**31 - 1  # that a step's number, int32, can count


def build_cadence(config: Config, steps_per_epoch: int, track: int = 0) -> Cadence:
    """Return when to log, evaluate, save and track, in steps.

    Args:
        config: of a run that trains. eval_every and checkpoint_every are in epochs; 0 means only at
            the end.
        steps_per_epoch: steps of an epoch.
        track: steps between two records of the dynamics; 0: none.

    Returns:
        The total steps, and the steps between two events of each kind.
    """
    total = config.epochs * steps_per_epoch
    if total > MOST_STEPS:
        raise UserError(
            f"epochs: got {config.epochs}, which are {total} steps, takes at most "
            f"{MOST_STEPS // steps_per_epoch} of {steps_per_epoch} steps each"
        )
    evaluate, save = (
        n * steps_per_epoch or total for n in (config.eval_every, config.checkpoint_every)
    )
    return Cadence(total, config.log_every, evaluate, save, track)


def describe_dataset(config: Config, image: Image | None = None) -> Description:
    """Return sizes, shape and classes of the set that the configuration names. Reads no image.

    `image` is the shape that every image is given; None: the set's own.
    """
    return describe(**_source(config, image))


def read_dataset(config: Config, image: Image | None = None) -> Dataset:
    """Return the data set that the configuration names, its images in the shape `image`."""
    return load_dataset(**_source(config, image))


def open_dataset(config: Config) -> RawSet:
    """Return the data set that the configuration names, no image of it decoded."""
    source = _source(config)
    return open_records(**{name: value for name, value in source.items() if name != "image_size"})


def with_data(run: Config, data: Config) -> Config:
    """Return a run's configuration with the set that `data` names in place of its own.

    How pictures become the run's images, `data.fit` and `data.background`, stays the run's.

    Args:
        run: its configuration, with all fields.
        data: fields as `defaults.add_other_data` has them. Without a name the set is the run's
            own, and only `data_dir` is looked at.

    Returns:
        A copy.

    Raises:
        UserError: another field is set, and no name.
    """
    run = run.copy_and_resolve_references()
    usual: Config = ConfigDict()
    if data.name:
        run.data.update(data)
        run.data.image_size = 0
        return run
    add_other_data(usual)
    defaults = usual.to_dict()["data"]
    for field, value in data.items():
        if field not in ("name", "data_dir") and value != defaults[field]:
            raise UserError(
                f"data.{field}: got {value!r} for the run's own set, which is taken as the run "
                "took it; takes data.name, too"
            )
    if data.data_dir and run.data.name in SOURCES:
        raise UserError(
            f"data.data_dir: got {data.data_dir!r} for the run's own set {run.data.name}, which "
            "lies in no directory; takes data.name, such as folder, too"
        )
    run.data.data_dir = data.data_dir or run.data.data_dir
    return run


def _source(config: Config, image: Image | None = None) -> dict[str, Any]:
    """Return the arguments of `describe` and of `load_dataset`.

    The configuration of an experiment need not have the fields of `Options`.
    """
    data = config.data
    optional = {field: data[field] or None for field in ("data_dir", "train_size", "image_size")}
    options = {field: data[field] for field in Options._fields if field in data}
    check_options(options)
    encoded = "resident" in data and data.resident == ENCODED
    wanted = Options(**options, encoded=encoded, image=image)
    if image:
        optional["image_size"] = None
    return {"name": data.name} | optional | {"options": wanted}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise a UserError for the first field of `Options` that is wrong, of those that are given."""
    for field, known in (("fit", FITS), ("damaged", ("error", "skip"))):
        if (value := options.get(field, known[0])) not in known:
            raise UserError(f"data.{field}: got {value!r}, {nearest(value, known)}")
    colour = options.get("background", (0, 0, 0))
    if len(colour) != 3 or any(type(c) is not int or not 0 <= c <= 255 for c in colour):
        raise UserError(
            f"data.background: got {colour}, takes red, green and blue, whole numbers from 0 to 255"
        )


def resident(value: str) -> bool | Literal["auto"]:
    """Return data.resident as `make_feed` takes it; encoded images are streamed."""
    known: dict[str, bool | Literal["auto"]] = {
        "auto": "auto",
        "yes": True,
        "no": False,
        ENCODED: False,
    }
    if value not in known:
        raise UserError(f"data.resident: got {value!r}, {nearest(value, known)}")
    return known[value]
