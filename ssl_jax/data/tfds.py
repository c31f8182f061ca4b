"""Sets of TensorFlow Datasets, prepared as array_record, without TensorFlow."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from ssl_jax.data.cache import Arrays, cache_roots, load_or_build, source_digest
from ssl_jax.data.dataset import Dataset, Description, Split
from ssl_jax.data.pictures import MODES, read_pixels
from ssl_jax.errors import UserError, nearest
from ssl_jax.runtime.terminal import progress_bar

WELL_KNOWN = (
    "cifar10 cifar100 digits fashion_mnist food101 imagenette kmnist mnist stl10 svhn_cropped"
).split()
PRETRAIN_SPLIT = {"stl10": "train+unlabelled"}  # elsewhere "train"

Builder = Any  # tfds.core.DatasetBuilder: TFDS is imported late
READ_AHEAD = 256  # records asked for at once: array_record reads them in parallel


def read_prepared(
    name: str, data_dir: str | None, cache_dir: str | None, image_size: int | None
) -> Dataset:
    """Return the TFDS set `name`, decoded once and read from the cache afterwards.

    Args:
        name, data_dir, cache_dir, image_size: as `sources.load_dataset` takes them.

    Returns:
        The set in memory, as `sources.load_dataset` returns it.

    Raises:
        UserError: no such set, directory, feature or size; files that cannot be read.
    """
    builder = _open_builder(name, data_dir)
    about = _describe(name, builder, image_size)
    keys, (pretrain_split, test_split) = (
        _image_and_label(name, builder.info.features),
        _splits(name, builder),
    )
    roots = cache_roots(data_dir, cache_dir)
    pretrain, test = (
        Split(*_split(builder, split, keys, roots, image_size))
        for split in (pretrain_split, test_split)
    )
    train = Split(pretrain.image[: about.train], pretrain.label[: about.train])
    for split, label in (("train", train.label), (test_split, test.label)):
        if label.min() < 0 or label.max() >= about.num_classes:
            got = f"{label.min()} to {label.max()}"
            raise UserError(
                f"{name}, split {split}: labels {got}, takes 0 to {about.num_classes - 1}"
            )
    return Dataset(name, train, test, pretrain, about.num_classes, about.label_names)


def describe_prepared(name: str, data_dir: str | None, image_size: int | None) -> Description:
    """Return the description of the TFDS set `name` from its metadata.

    A set that is not prepared is prepared only where TFDS does not know the sizes of its splits
    beforehand.

    Args:
        name, data_dir, image_size: as `sources.describe` takes them.

    Returns:
        The description, as `sources.describe` returns it.

    Raises:
        UserError: no such set, directory, feature or size.
    """
    return _describe(name, _open_builder(name, data_dir, described=True), image_size)


def _describe(name: str, builder: Builder, image_size: int | None) -> Description:
    """Return what the builder's metadata say of the set."""
    features: Any = builder.info.features
    image_key, label_key = _image_and_label(name, features)
    pretrain_split, test_split = _splits(name, builder)
    pretrain, height, width, channels = _shape(builder, pretrain_split, image_key, image_size)
    train, test = (builder.info.splits[split].num_examples for split in ("train", test_split))
    image, classes = (height, width, channels), features[label_key]
    return Description(
        name, train, test, pretrain, image, classes.num_classes, tuple(classes.names)
    )


def _splits(name: str, builder: Builder) -> tuple[str, str]:
    """Return the splits for pretraining and for the test; UserError where the set has none."""
    splits = builder.info.splits
    test_split = "test" if "test" in splits else "validation"
    if missing := {"train", test_split} - set(splits):
        raise UserError(
            f"data.name: {name} has no {' or '.join(sorted(missing))} split, "
            f"only {', '.join(splits)}"
        )
    return PRETRAIN_SPLIT.get(builder.name, "train"), test_split


def _open_builder(name: str, data_dir: str | None, described: bool = False) -> Builder:
    """Return the TFDS builder of a set that is prepared as array_record.

    For `described`, a set whose sizes are known already need not be prepared.
    """
    if data_dir is not None:
        _check_data_dir(name, data_dir)
    import tensorflow_datasets as tfds  # here, so that a run on the digits does without it

    try:
        with _quiet_tfds():
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            ready = builder.is_prepared()
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown(name, "which TFDS does not know") from error
    # another version, configuration or file format; unreadable descriptions
    except Exception as error:
        where = f" in {data_dir}" if data_dir else ""
        raise UserError(
            f"data.name: TFDS cannot open {name!r}{where} as array_record: {_line(error)}"
        ) from error
    if not ready:
        if data_dir is not None:
            raise _lacks(name, data_dir)
        if not (described and builder.info.splits):
            _prepare(builder)
    return builder


@contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Silence TFDS's warning of a set that is not prepared: it becomes an error, or is prepared."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_data_dir(name: str, data_dir: str) -> None:
    """Raise UserError where `data_dir` has nothing under this name.

    TFDS would say so, too, but is slow to import and to refuse.
    """
    base = _base(name)
    if not base or not any((Path(data_dir) / base).rglob("dataset_info.json")):
        raise (
            _lacks(name, data_dir)
            if base in WELL_KNOWN
            else _unknown(name, f"which is not in {data_dir}")
        )


def _base(name: str) -> str:
    """Return the set's own name, without `/config` and `:version`."""
    return name.split(":")[0].split("/")[0]


def _unknown(name: str, why: str) -> UserError:
    return UserError(
        f"data.name: got {name!r}, {why}; {nearest(name, WELL_KNOWN)}, or any TFDS image set"
    )


def _lacks(name: str, data_dir: str) -> UserError:
    takes = (
        f"{Path(data_dir) / _base(name)}/VERSION/ with dataset_info.json and the array_record files"
    )
    return UserError(
        f"data.data_dir: got {data_dir}, which lacks {name}; takes {takes} (unset it to download)"
    )


def _prepare(builder: Builder) -> None:
    """Download and encode the set; only this needs TensorFlow, so check for it beforehand."""
    needs = [
        m for m in ("tensorflow", "importlib_resources") if importlib.util.find_spec(m) is None
    ]
    if needs:
        raise UserError(
            f"data.name: {builder.name} is not prepared in {builder.data_path}, "
            f"and preparing it takes {' and '.join(needs)}: "
            "pip install 'ssl-jax[prepare]', or set data.data_dir to a prepared copy"
        )
    try:
        builder.download_and_prepare(file_format="array_record")
    # the network, the host's answer, the disk, or a set to be fetched by hand
    except Exception as error:
        raise UserError(
            f"data.name: {builder.name} could not be downloaded and prepared: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300] if text else 'no reason given'}"


def _image_and_label(name: str, features: Any) -> tuple[str, str]:
    """Return the names of the image feature and of the class feature.

    "image" and "label" where they fit, else the first that do.
    """
    import tensorflow_datasets as tfds

    def pick(kind: type, usual: str) -> str:
        keys = [key for key, feature in features.items() if isinstance(feature, kind)]
        if not keys:
            have = ", ".join(features)
            raise UserError(
                f"data.name: {name} has no {usual} feature ({kind.__name__}), only {have}"
            )
        return usual if usual in keys else keys[0]

    image_key, label_key = (
        pick(tfds.features.Image, "image"),
        pick(tfds.features.ClassLabel, "label"),
    )
    image = features[image_key]
    if np.dtype(image.np_dtype) != np.uint8 or image.shape[-1] not in (None, *MODES):
        got = f"{image.shape[-1]} channels of {np.dtype(image.np_dtype)}"
        raise UserError(
            f"data.name: the images of {name} have {got}, takes 1 or 3 channels of uint8"
        )
    return image_key, label_key


def _split(
    builder: Builder,
    split: str,
    keys: tuple[str, str],
    roots: Sequence[Path],
    image_size: int | None,
) -> Arrays:
    """Return image and label of one split, through the cache."""
    shape = _shape(builder, split, keys[0], image_size)
    folder = Path(builder.data_path)
    try:
        digest = source_digest(folder, roots)
    except OSError as error:
        raise UserError(
            f"data.data_dir: {error.filename or folder} cannot be read ({error.strerror})"
        ) from error
    source = f"{builder.info.full_name} {digest} {shape[1]}x{shape[2]}"
    stem = f"{source.replace('/', '-').replace(' ', '-')}/{split}"
    return load_or_build(
        roots, stem, source, shape, lambda: _decode(builder, split, keys, shape, image_size)
    )


def _shape(
    builder: Builder, split: str, image_key: str, image_size: int | None
) -> tuple[int, int, int, int]:
    """Return (N, H, W, C) of a split once it is decoded."""
    height, width, channels = builder.info.features[image_key].shape
    if image_size is not None:
        height = width = image_size
    if height is None or width is None:
        raise UserError(
            f"data.image_size: got None, takes pixels: the images of {builder.name} differ in size"
        )
    count = sum(builder.info.splits[part].num_examples for part in split.split("+"))
    return count, height, width, channels or 3


def _decode(
    builder: Builder,
    split: str,
    keys: tuple[str, str],
    shape: tuple[int, ...],
    image_size: int | None,
) -> Iterator[tuple]:
    """Yield (image, label) of a split in the official order, with a progress bar.

    Any failure becomes a UserError.
    """
    from tensorflow_datasets.core.decode import DeserializeMethod

    try:
        source = builder.as_data_source(split=split, deserialize_method=DeserializeMethod.RAW_BYTES)
        rows = _official_order(source)
        title = f"decoding {builder.name} {split}"
        with progress_bar(len(rows), 0, "image", title) as bar:
            for feature in _features(source, rows):
                image, label = (feature[key] for key in keys)
                pixels = read_pixels(image.bytes_list.value[0], shape[-1], image_size)
                if pixels.shape != shape[1:]:
                    raise ValueError(f"an image of {pixels.shape}, where {shape[1:]} is declared")
                yield pixels, label.int64_list.value[0]
                bar.update()
    except Exception as error:  # array_record, protobuf and Pillow each have their own
        raise UserError(
            f"{builder.data_path}: split {split} cannot be read: {_line(error)}"
        ) from error


def _features(source: Any, rows: Sequence[int]) -> Iterator:
    """Yield the undecoded features of these rows.

    Decoding them with Pillow takes a third of the time of TFDS's own decoding.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    for start in range(0, len(rows), READ_AHEAD):
        for record in source.__getitems__(rows[start : start + READ_AHEAD]):
            # the class is made on import
            example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
            yield example.FromString(record).features.feature


def _official_order(source: Any) -> list[int]:
    """Return the rows ordered by `id` where the examples have one, else as stored.

    TFDS shuffles when it prepares a set.
    """
    rows = list(range(len(source)))
    if not next(_features(source, rows[:1]))["id"].bytes_list.value:
        return rows
    names = [feature["id"].bytes_list.value[0] for feature in _features(source, rows)]
    return sorted(rows, key=names.__getitem__)
