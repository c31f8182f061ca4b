"""Image-classification sets as uint8 arrays: scikit-learn's digits, and whatever TFDS has prepared.

Value contract: images (N, H, W, C) uint8 in 0..255, C = 1 or 3; labels (N,) int32 from 0 to
num_classes - 1, and -1 where there is none (only in `pretrain`). The order is the set's official
one: by `id` where the examples have one, else as stored. It depends on no seed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ssl_jax.data.dataset import Dataset, Description
from ssl_jax.data.digits import describe_digits, read_digits
from ssl_jax.data.records import DEFAULTS, Options
from ssl_jax.data.splits import reduce_training
from ssl_jax.data.tfds import describe_prepared, read_prepared
from ssl_jax.errors import UserError
from ssl_jax.files import local_path


class Source(NamedTuple):
    """A set that TFDS does not prepare; `image_size` is the side in pixels, or None."""

    describe: Callable[[int | None], Description]  # describe(image_size), without an image read
    read: Callable[[str | None, int | None], Dataset]  # read(cache_dir, image_size)


SOURCES = {"digits": Source(describe_digits, read_digits)}


def describe(
    name: str,
    data_dir: str | None = None,
    train_size: int | None = None,
    image_size: int | None = None,
    options: Options = DEFAULTS,
) -> Description:
    """Return the description of the set called `name`, without reading an image.

    Args:
        name, data_dir, train_size, image_size, options: as `load_dataset` takes them.

    Returns:
        The sizes of the splits in images, the shape of an image in pixels and channels, and
        the classes. They equal `load_dataset(...).description`.

    Raises:
        UserError: no such set, directory, feature or size.
    """
    data_dir = _check_place(data_dir, image_size)
    about = (
        SOURCES[name].describe(image_size)
        if name in SOURCES
        else describe_prepared(name, data_dir, image_size, options)
    )
    if train_size is None:
        return about
    _check_train_size(train_size, about.pretrain, name)
    return about._replace(train=min(train_size, about.train), pretrain=train_size)


def load_dataset(
    name: str,
    data_dir: str | None = None,
    train_size: int | None = None,
    cache_dir: str | None = None,
    image_size: int | None = None,
    options: Options = DEFAULTS,
) -> Dataset:
    """Return the set called `name`, decoded once and read from the cache afterwards.

    `cache.cache_roots` says where the cache is.

    Args:
        name: one of `SOURCES`, or a TFDS set, with `/config` and `:version` where wanted.
        data_dir: TFDS directory that holds the set, prepared as array_record. None: TFDS's own
            default, where a missing set is downloaded and prepared.
        train_size: keep so many images in `pretrain`, and as many of them in `train` as have a
            label: `splits.choose`, the first ones.
        cache_dir: where decoded images go.
        image_size: side in pixels that images are resized and centre-cropped to. None: as stored.
        options: further fields of `data`.

    Returns:
        The set in memory, its images and labels as the module's value contract says.

    Raises:
        UserError: no such set, directory, feature or size; files that cannot be read.
    """
    data_dir = _check_place(data_dir, image_size)
    dataset = (
        SOURCES[name].read(cache_dir, image_size)
        if name in SOURCES
        else read_prepared(name, data_dir, cache_dir, image_size, options)
    )
    if train_size is None:
        return dataset
    _check_train_size(train_size, len(dataset.pretrain.label), name)
    return reduce_training(dataset, train_size)


def _check_place(data_dir: str | None, image_size: int | None) -> str | None:
    """Return the directory with `~` expanded; UserError for a wrong directory or size."""
    if image_size is not None and image_size < 1:
        raise UserError(f"data.image_size: got {image_size}, takes at least 1 pixel")
    data_dir = local_path("data.data_dir", data_dir) if data_dir else None
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError(
            f"data.data_dir: got {data_dir}, which is not a directory; takes a TFDS directory"
        )
    return data_dir


def _check_train_size(count: int, available: int, name: str) -> None:
    if not 1 <= count <= available:
        raise UserError(f"data.train_size: got {count}, takes 1 to {available} for {name}")
