"""Image-classification sets as uint8 arrays: scikit-learn's digits, and whatever TFDS has prepared.

Value contract: images (N, H, W, C) uint8 in 0..255, C = 1 or 3; labels (N,) int32 from 0 to
num_classes - 1, and -1 where there is none: for the unlabelled images of `pretrain`, and for all
images of a set without labels, which has 0 classes. The order is the set's official
one: by `id` where the examples have one, else as stored. It depends on no seed, so that "the first
N" means the same everywhere.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_jax.data.dataset import Dataset, Description, Split
from ssl_jax.data.digits import describe_digits, read_digits
from ssl_jax.data.records import Options
from ssl_jax.data.tfds import describe_prepared, read_prepared
from ssl_jax.errors import UserError, nearest
from ssl_jax.files import local_path


class Source(NamedTuple):
    """A set that TFDS does not prepare; `image_size` is the side in pixels, or None."""

    describe: Callable[[int | None], Description]  # describe(image_size), without an image read
    read: Callable[[str | None, int | None], Dataset]  # read(cache_dir, image_size)


SOURCES = {"digits": Source(describe_digits, read_digits)}
LABELS = ("auto", "none")
NO_OPTIONS = Options()


def describe(
    name: str,
    data_dir: str | None = None,
    train_size: int | None = None,
    image_size: int | None = None,
    options: Options = NO_OPTIONS,
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
    _check_labels(options.labels)
    about = (
        SOURCES[name].describe(image_size)
        if name in SOURCES
        else describe_prepared(name, data_dir, image_size)
    )
    if options.labels == "none":
        about = about._replace(train=about.pretrain, num_classes=0, label_names=())
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
    options: Options = NO_OPTIONS,
) -> Dataset:
    """Return the set called `name`, decoded once and read from the cache afterwards.

    `cache.cache_roots` says where the cache is.

    Args:
        name: one of `SOURCES`, or a TFDS set, with `/config` and `:version` where wanted.
        data_dir: TFDS directory that holds the set, prepared as array_record. None: TFDS's own
            default, where a missing set is downloaded and prepared.
        train_size: keep the first so many images of the official order, in `train` and in
            `pretrain`.
        cache_dir: where decoded images go.
        image_size: side in pixels that images are resized and centre-cropped to. None: as stored.
        options: what else is asked of the set. Labels "none": it is read without its labels.

    Returns:
        The set in memory, its images and labels as the module's value contract says.

    Raises:
        UserError: no such set, directory, feature or size; files that cannot be read.
    """
    data_dir = _check_place(data_dir, image_size)
    _check_labels(options.labels)
    dataset = (
        SOURCES[name].read(cache_dir, image_size)
        if name in SOURCES
        else read_prepared(name, data_dir, cache_dir, image_size)
    )
    if options.labels == "none":
        dataset = without_labels(dataset)
    return dataset if train_size is None else _first(dataset, train_size)


def without_labels(dataset: Dataset) -> Dataset:
    """Return the set without its labels: `train` has all images of `pretrain`, 0 classes."""
    test, pretrain = (
        Split(split.image, np.full(len(split.label), -1, np.int32))
        for split in (dataset.test, dataset.pretrain)
    )
    return Dataset(dataset.name, pretrain, test, pretrain, 0, ())


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


def _check_labels(labels: str) -> None:
    if labels not in LABELS:
        raise UserError(f"data.labels: got {labels!r}, {nearest(labels, LABELS)}")


def _check_train_size(count: int, available: int, name: str) -> None:
    if not 1 <= count <= available:
        raise UserError(f"data.train_size: got {count}, takes 1 to {available} for {name}")


def _first(dataset: Dataset, count: int) -> Dataset:
    """Return `dataset` with the first `count` images of `train` and of `pretrain`."""
    _check_train_size(count, len(dataset.pretrain.label), dataset.name)
    train, pretrain = (
        Split(s.image[:count], s.label[:count]) for s in (dataset.train, dataset.pretrain)
    )
    return dataset._replace(train=train, pretrain=pretrain)
