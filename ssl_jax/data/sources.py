"""Image-classification sets as uint8 arrays: scikit-learn's digits, whatever TFDS has prepared, and
pictures in folders, Parquet files, tar shards and the archives of their authors.

Value contract: images (N, H, W, C) uint8 in 0..255, C = 1 or 3; labels (N,) int32 from 0 to
num_classes - 1, and -1 where there is none: in `pretrain`, and everywhere in a set without labels,
which has 0 classes. The order is the set's official one: by `id` where the examples have one, else
as stored. It depends on no seed.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_jax.data import archives
from ssl_jax.data.cache import cache_roots
from ssl_jax.data.dataset import Dataset, Description, Split
from ssl_jax.data.decode import (
    Damaged,
    decode_records,
    keep_encoded,
    keep_list,
    labels_of,
    lines_of,
    look,
)
from ssl_jax.data.digits import describe_digits, digits_version, read_digits
from ssl_jax.data.labels import check_labels, count
from ssl_jax.data.pictures import read_image
from ssl_jax.data.records import DEFAULTS, Options, RawSet, Records, join, part
from ssl_jax.data.splits import draw_test, reduce_records, reduce_training, take
from ssl_jax.data.tfds import describe_prepared, open_prepared, read_prepared
from ssl_jax.errors import UserError
from ssl_jax.files import local_path
from ssl_jax.runtime.terminal import say


class Source(NamedTuple):
    """A set that TFDS does not prepare; `image_size` is the side in pixels, or None."""

    describe: Callable[[int | None], Description]  # describe(image_size), without an image read
    read: Callable[[str | None, int | None], Dataset]  # read(cache_dir, image_size)
    version: Callable[[], str]  # of the contents


SOURCES = {"digits": Source(describe_digits, read_digits, digits_version)}
# Ways in to undecoded pictures: open(data_dir, options, roots) -> RawSet. A module is imported only
# where its door is named.
DOORS = {
    "folder": ("ssl_jax.data.folder", "open_folder"),
    "parquet": ("ssl_jax.data.parquet", "open_parquet"),
    "tar": ("ssl_jax.data.tar", "open_tar"),
}
TAKES = {"folder": "a directory", "parquet": "a directory or file", "tar": "a directory or file"}
# Sets whose authors' own archives are read: open_archive(name, data_dir, options, roots).
ARCHIVES = ("cifar10", "cifar100", "stl10")
# Sides in pixels that pictures of several sizes are stored at: multiples of 32, as encoders halve.
SIDES = (32, 48, 64, 96, 128, 160, 224, 256)
SHOWN = 3  # damaged pictures that a line has room for


class Opened(NamedTuple):
    """A set of undecoded pictures, its splits drawn and the shape of its images known."""

    name: str
    train: Records
    test: Records | None
    unlabelled: Records | None
    label_names: tuple[str, ...]
    image: tuple[int, int, int]  # height and width in pixels, and channels
    digest: str
    found: str  # what was found, and what was chosen: lines
    roots: Sequence[Path]


def describe(
    name: str,
    data_dir: str | None = None,
    train_size: int | None = None,
    image_size: int | None = None,
    options: Options = DEFAULTS,
) -> Description:
    """Return the description of the set called `name`, without decoding an image.

    Of pictures the headers are read, and what was found is said. Damaged ones are counted here: a
    set that is read without them (`options.damaged`) is smaller.

    Args:
        name, data_dir, train_size, image_size, options: as `load_dataset` takes them.

    Returns:
        The sizes of the splits in images, the shape of an image in pixels and channels, and
        the classes. They equal `load_dataset(...).description` where no picture is damaged.

    Raises:
        UserError: no such set, directory, feature or size.
    """
    data_dir = _check_place(name, data_dir, image_size, options)
    if (opened := _open(name, data_dir, None, image_size, options)) is not None:
        say(opened.found)
        about = _describe(opened)
    elif name in SOURCES:
        about = SOURCES[name].describe(image_size)
        about = about._replace(image=options.image or about.image)
        if options.labels == "none":
            about = about._replace(train=about.pretrain, num_classes=0, label_names=())
    else:
        about = describe_prepared(name, data_dir, image_size, options)
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
        name: a key of `DOORS`, one of `SOURCES`, or a TFDS set, with `/config` and `:version` where
            wanted.
        data_dir: where the pictures are, or the authors' own archive of a set, or a TFDS directory
            that holds it, prepared as array_record. None: TFDS's own default, where a missing set
            is downloaded and prepared.
        train_size: keep so many images in `pretrain`, and as many of them in `train` as have a
            label: `splits.choose`, the first ones.
        cache_dir: where decoded images go.
        image_size: side in pixels that images are stored at. None: as they are; pictures that
            differ in size, are not square or larger than 256 are stored at one of `SIDES`.
        options: further fields of `data`.

    Returns:
        The set in memory, its images and labels as the module's value contract says.

    Raises:
        UserError: no such set, directory, feature or size; files that cannot be read, damaged
            pictures.
    """
    data_dir = _check_place(name, data_dir, image_size, options)
    if (opened := _open(name, data_dir, cache_dir, image_size, options)) is not None:
        dataset = _decode(opened, options)
    elif name in SOURCES:
        dataset = SOURCES[name].read(cache_dir, None if options.image else image_size)
        if options.image:
            dataset = _fitted(dataset, options)
        if options.labels == "none":
            dataset = _without_labels(dataset)
    else:
        dataset = read_prepared(name, data_dir, cache_dir, image_size, options)
    if train_size is None:
        return dataset
    _check_train_size(train_size, len(dataset.pretrain.label), name)
    return reduce_training(dataset, train_size)


def open_records(
    name: str,
    data_dir: str | None = None,
    train_size: int | None = None,
    options: Options = DEFAULTS,
) -> RawSet:
    """Return the set called `name`, undecoded, its splits those of `load_dataset`.

    Args:
        name, data_dir, train_size, options: as `load_dataset` takes them.

    Returns:
        The records of each split. No image is decoded, and none but those of a set of `SOURCES` is
        in memory.

    Raises:
        UserError: no such set, directory, feature or size; files that cannot be read.
    """
    data_dir, roots = _check_place(name, data_dir, None, options), cache_roots(None)
    if (open_door := _door(name, data_dir)) is not None:
        raw = open_door(data_dir, options, roots)
    elif name in SOURCES:
        raw = _records_of(SOURCES[name].read(None, None), SOURCES[name].version())
    else:
        raw = open_prepared(name, data_dir, options, roots)
    raw = _with_splits(raw, options)
    if train_size is None:
        return raw
    more = 0 if raw.unlabelled is None else len(raw.unlabelled.names)
    _check_train_size(train_size, len(raw.train.names) + more, name)
    return reduce_records(raw, train_size)


# --- Pictures -------------------------------------------------------------------------------------


def _open(
    name: str,
    data_dir: str | None,
    cache_dir: str | None,
    image_size: int | None,
    options: Options,
) -> Opened | None:
    """Return the set of undecoded pictures that `name` is; None where it is none."""
    if (open_door := _door(name, data_dir)) is None:
        return None
    roots = cache_roots(cache_dir)
    raw = open_door(data_dir, options, roots)
    return _prepare(name, raw, image_size, options, roots)


def _door(name: str, data_dir: str | None) -> Callable[..., RawSet] | None:
    """Return open(data_dir, options, roots) of undecoded pictures; None for any other set."""
    if data_dir is None:
        return None
    if name in DOORS:
        return _function(*DOORS[name])
    if name in ARCHIVES and archives.has_archive(name, data_dir):
        return functools.partial(archives.open_archive, name)
    return None


def _function(module: str, name: str) -> Callable:
    return getattr(importlib.import_module(module), name)


def _prepare(
    name: str, raw: RawSet, image_size: int | None, options: Options, roots: Sequence[Path]
) -> Opened:
    """Draw the test split where there is none, and choose the size of the images."""
    train, test, unlabelled, label_names, found, digest = _with_splits(raw, options)
    seen = look(_joined(train, unlabelled, test), digest, roots)
    if options.image:
        return Opened(
            name, train, test, unlabelled, label_names, options.image, digest, found, roots
        )
    side, why = _side(image_size, seen.size, seen.shorter)
    if why:
        found += f"\n{why}"
    if seen.without_white:
        found += (
            f"\n{count(seen.without_white, 'picture')} of 32-bit integers or floats: scaled from "
            "0..1, 0..255 or 0..65535, whichever holds all values, else from their own range"
        )
    image = side, side, seen.channels
    return Opened(name, train, test, unlabelled, label_names, image, digest, found, roots)


def _with_splits(raw: RawSet, options: Options) -> RawSet:
    """Return the set with a test split, drawn where there is none, or without labels at all."""
    train, test, unlabelled, label_names = raw.train, raw.test, raw.unlabelled, raw.label_names
    found = raw.found
    if options.labels == "none" or train.labels is None or not label_names:
        train = _joined(train, unlabelled)._replace(labels=None)
        test = None if test is None else test._replace(labels=None)
        unlabelled, label_names = None, ()
    elif test is None and options.test_share:
        kept, drawn = draw_test(labels_of(train), options.test_share)
        train, test = part(train, kept), part(train, drawn)
        found += (
            f"\nno test split: {count(len(test.names), 'image')} drawn by class, data.test_share"
        )
    return RawSet(train, test, unlabelled, label_names, found, raw.digest)


def _joined(first: Records, *more: Records | None) -> Records:
    """Return all records in turn; None stands for none."""
    return functools.reduce(join, [records for records in more if records is not None], first)


def _side(asked: int | None, size: tuple[int, int] | None, shorter: int) -> tuple[int, str]:
    """Return the side in pixels that images are stored at, and a line that says why.

    Args:
        asked: `image_size`.
        size: width and height where all pictures have the same.
        shorter: median of the shorter sides.
    """
    if asked:
        return asked, ""
    if size is not None and size[0] == size[1] <= SIDES[-1]:
        return size[0], ""
    side = max((side for side in SIDES if side <= shorter), default=shorter)
    shapes = f"all of {size[0]}x{size[1]} pixels" if size else "of several sizes"
    return side, (
        f"pictures {shapes}, median of the shorter side {shorter} pixels: stored at {side}x{side} "
        "pixels (data.image_size chooses another side)"
    )


def _describe(opened: Opened) -> Description:
    counts = [
        0 if r is None else len(r.names) for r in (opened.train, opened.test, opened.unlabelled)
    ]
    train, test, more = counts
    names = opened.label_names
    return Description(opened.name, train, test, train + more, opened.image, len(names), names)


def _decode(opened: Opened, options: Options) -> Dataset:
    """Return the set in memory; UserError for damaged pictures where they are to be an error."""
    whole = _joined(opened.train, opened.unlabelled)
    splits = {"train": whole} | ({"test": opened.test} if opened.test else {})
    make = keep_encoded if options.encoded else decode_records
    decoded = {
        split: make(
            records, opened.image, options, opened.roots, (opened.name, split, opened.digest)
        )
        for split, records in splits.items()
    }
    damaged = [entry for split in decoded.values() for entry in split.damaged]
    if damaged and options.damaged == "error":
        total = sum(len(records.names) for records in splits.values())
        raise _damage(damaged, total, keep_list(damaged, opened.digest, opened.roots))
    pretrain = Split(decoded["train"].image, decoded["train"].label)
    labelled = len(opened.train.names)
    labelled -= sum(entry.row < labelled for entry in decoded["train"].damaged)
    train = pretrain if labelled == len(pretrain.label) else take(pretrain, np.arange(labelled))
    none = Split(np.zeros((0, *opened.image), np.uint8), np.zeros(0, np.int32))
    return Dataset(
        opened.name,
        train,
        Split(decoded["test"].image, decoded["test"].label) if "test" in decoded else none,
        pretrain,
        len(opened.label_names),
        opened.label_names,
        tuple(lines_of(damaged)),
    )


def _damage(damaged: Sequence[Damaged], total: int, kept: Path | None) -> UserError:
    shown = "; ".join(lines_of(damaged[:SHOWN]))
    more = f"; and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
    where = f", all of them listed in {kept}" if kept else ""
    return UserError(
        f"data.damaged: {len(damaged)} of {count(total, 'picture')} cannot be decoded ({shown}"
        f"{more}){where}; mend or delete them, or set data.damaged=skip to train without them"
    )


def _records_of(dataset: Dataset, digest: str) -> RawSet:
    """Return a set in memory, without unlabelled images, as records "train#0", "train#1", ..."""

    def records(name: str, split: Split) -> Records:
        names = [f"{name}#{row}" for row in range(len(split.label))]
        return Records(names, functools.partial(_image, split.image), split.label)

    train, test = records("train", dataset.train), records("test", dataset.test)
    words = f"{dataset.name}: {dataset.num_classes} classes"
    return RawSet(train, test, None, dataset.label_names, words, digest)


def _image(images: np.ndarray, row: int) -> np.ndarray:
    return images[row]


def _fitted(dataset: Dataset, options: Options) -> Dataset:
    """Return a set in memory, whose images for training all have labels, in another shape."""
    shape = options.image or dataset.description.image

    def fitted(split: Split) -> Split:
        image = np.empty((len(split.label), *shape), np.uint8)
        for row, own in enumerate(split.image):
            image[row] = read_image(own, shape, options.fit, options.background)
        return Split(image, split.label)

    train = fitted(dataset.train)
    return dataset._replace(train=train, pretrain=train, test=fitted(dataset.test))


def _without_labels(dataset: Dataset) -> Dataset:
    """Return the set with -1 for all labels; `train` has all images for pretraining."""
    pretrain, test = (
        Split(split.image, np.full_like(split.label, -1))
        for split in (dataset.pretrain, dataset.test)
    )
    return dataset._replace(
        train=pretrain, pretrain=pretrain, test=test, num_classes=0, label_names=()
    )


# --- Checks ---------------------------------------------------------------------------------------


def _check_place(
    name: str, data_dir: str | None, image_size: int | None, options: Options
) -> str | None:
    """Return the directory with `~` expanded; UserError for a wrong place, size or option."""
    if image_size is not None and image_size < 1:
        raise UserError(f"data.image_size: got {image_size}, takes at least 1 pixel")
    data_dir = local_path("data.data_dir", data_dir) if data_dir else None
    takes = TAKES.get(name, "a TFDS directory")
    pictures = " of pictures" if name in DOORS else ""
    if data_dir is None and name in DOORS:
        raise UserError(f"data.data_dir: got none, data.name={name} takes {takes}{pictures}")
    if data_dir is not None:
        path, file = Path(data_dir), "file" in takes or name in ARCHIVES
        if not (path.exists() if file else path.is_dir()):
            what = "is not there" if "file" in takes else "is not a directory"
            raise UserError(f"data.data_dir: got {data_dir}, which {what}; takes {takes}{pictures}")
    if name not in DOORS:
        check_labels(options.labels, name)
    if name in SOURCES and options.test_split not in ("", "test"):
        raise UserError(f"data.test_split: got {options.test_split!r}, takes test for {name}")
    return data_dir


def _check_train_size(count: int, available: int, name: str) -> None:
    if not 1 <= count <= available:
        raise UserError(f"data.train_size: got {count}, takes 1 to {available} for {name}")
