"""Sets of TensorFlow Datasets, prepared as array_record, without TensorFlow."""

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from absl import logging

from ssl_jax.data.cache import cache_roots, keep_index, load_or_build, source_digest
from ssl_jax.data.dataset import Dataset, Description, Split
from ssl_jax.data.encoded import Decode, EncodedImages, require_whole
from ssl_jax.data.pictures import MODES, read_image, read_pixels
from ssl_jax.data.records import DEFAULTS, Names, Options, RawSet, Records, join, part
from ssl_jax.data.splits import draw_test, take, test_count
from ssl_jax.errors import UserError, nearest
from ssl_jax.runtime.terminal import progress_bar, say

WELL_KNOWN = (
    "cifar10 cifar100 digits fashion_mnist food101 imagenette kmnist mnist stl10 svhn_cropped"
).split()
TRAIN = "train"
UNLABELLED = ("stl10",)  # sets with a split of images for pretraining alone
PEEK = 256  # records of a split whose labels say whether it has any

Builder = Any  # tfds.core.DatasetBuilder: TFDS is imported late
READ_AHEAD = 64  # records asked for at once: array_record reads them in parallel


class StoredImages:
    """read(i) of `Records`: the encoded image of record `rows[i]`."""

    def __init__(self, source: Any, rows: np.ndarray, key: str) -> None:
        self._source, self._rows, self._key = source, rows, key  # array_record's source pickles
        self._block: tuple[int, list[bytes]] = (0, [])  # records from an index on

    def __call__(self, index: int) -> bytes:
        """Return the bytes of an encoded image."""
        start, block = self._block
        if not 0 <= index - start < len(block):
            # whoever goes on from the record before asks for the next ones, too
            count = READ_AHEAD if index and index == start + len(block) else 1
            rows = self._rows[index : index + count].tolist()
            start, block = self._block = (index, self._source.__getitems__(rows))
        return _parse(block[index - start])[self._key].bytes_list.value[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_block": (0, [])}


class Layout(NamedTuple):
    """Which splits and features of a set are used."""

    train: str
    unlabelled: str | None  # a split for pretraining alone
    test: str | None  # None: drawn from `train`, where there are labels
    image: str  # feature
    label: str | None  # feature; None: the set is used without labels


def open_prepared(
    name: str, data_dir: str | None, options: Options, roots: Sequence[Path]
) -> RawSet:
    """Return the TFDS set `name` with no image decoded.

    The names, labels and order of the records are read once and kept in `sources/` of a root.

    Args:
        name, data_dir: as `sources.load_dataset` takes them.
        options: fields of `data`.
        roots: cache directories, first choice first.

    Returns:
        The set; its names are those of the feature `id` where it has one.

    Raises:
        UserError: no such set, directory, feature or split; files that cannot be read.
    """
    builder = _open_builder(name, data_dir)
    return _open(name, builder, _layout(name, builder, options), options, roots)


def _open(
    name: str, builder: Builder, layout: Layout, options: Options, roots: Sequence[Path]
) -> RawSet:
    folder = Path(builder.data_path)
    try:
        digest = source_digest(folder, roots)
    except OSError as error:
        raise UserError(
            f"data.data_dir: {error.filename or folder} cannot be read ({error.strerror})"
        ) from error
    train, unlabelled, test = (
        None if split is None else _records(builder, split, layout, digest, roots)
        for split in (layout.train, layout.unlabelled, layout.test)
    )
    assert train is not None
    classes = () if layout.label is None else tuple(builder.info.features[layout.label].names)
    for split, records in ((layout.train, train), (layout.test, test)):
        label = None if records is None else records.labels
        if label is not None and len(label) and not 0 <= label.min() <= label.max() < len(classes):
            raise UserError(
                f"{name}, split {split}: labels {label.min()} to {label.max()}, "
                f"takes 0 to {len(classes) - 1}"
            )
    found = f"{name}: {len(classes)} classes" if classes else f"{name}: no labels"
    return RawSet(train, test, unlabelled, classes, found, digest)


def read_prepared(
    name: str,
    data_dir: str | None,
    cache_dir: str | None,
    image_size: int | None,
    options: Options = DEFAULTS,
) -> Dataset:
    """Return the TFDS set `name`, decoded once and read from the cache afterwards.

    Args:
        name, data_dir, cache_dir, image_size, options: as `sources.load_dataset` takes them.

    Returns:
        The set in memory, as `sources.load_dataset` returns it.

    Raises:
        UserError: no such set, directory, feature or size; files that cannot be read.
    """
    builder, roots = _open_builder(name, data_dir), cache_roots(cache_dir)
    layout = _layout(name, builder, options)
    about = _describe(name, builder, layout, image_size, options)
    raw = _open(name, builder, layout, options, roots)
    source = f"{builder.info.full_name} {raw.digest} {about.image[0]}x{about.image[1]}"
    if about.image[2] != _shape(builder, layout.image, about.side)[2]:
        source += f"x{about.image[2]}"
    fitted = {"fit": options.fit, "background": options.background}
    if fitted != {"fit": DEFAULTS.fit, "background": DEFAULTS.background}:
        source += f" {options.fit} {'-'.join(map(str, options.background))}"

    def decoded(records: Records, split: str) -> Split:
        count = len(records.names)
        label = np.full(count, -1, np.int32) if records.labels is None else records.labels
        shape = (count, *about.image)
        if not count:
            return Split(np.zeros(shape, np.uint8), label)
        # without a shape of the run's own, an image of another one than the set declares is damaged
        decode = partial(read_pixels, channels=about.image[2], image_size=image_size, **fitted)
        if options.image:
            decode = partial(read_image, shape=about.image, **fitted)
        if options.encoded:
            images = EncodedImages(records, decode, about.image, source)
            require_whole(images, roots)
            return Split(cast(np.ndarray, images), label)
        stem = f"{source.replace('/', '-').replace(' ', '-')}/{split}"
        title = f"decoding {builder.name} {split}"
        examples = partial(_decode, builder, split, records, label, decode, about.image, title)
        # the labels of the records: those in the cache are of whoever decoded it
        return Split(load_or_build(roots, stem, source, shape, examples)[0], label)

    train, test, split = raw.train, raw.test, layout.train
    if test is None and train.labels is not None:
        rows, tested = draw_test(train.labels, options.test_share)
        split = f"{layout.train}-drawn-{options.test_share:g}"
        test, train = part(train, tested), part(train, rows)
    of_test = Split(np.zeros((0, *about.image), np.uint8), np.zeros(0, np.int32))
    if test is not None:
        of_test = decoded(test, layout.test or f"{split}-test")
    if raw.unlabelled is None:
        pretrain = decoded(train, split)
        return Dataset(name, pretrain, of_test, pretrain, about.num_classes, about.label_names)
    pretrain = decoded(join(train, raw.unlabelled), f"{split}+{layout.unlabelled}")
    labelled = layout.label is not None
    of_train = take(pretrain, np.arange(len(train.names))) if labelled else pretrain
    return Dataset(name, of_train, of_test, pretrain, about.num_classes, about.label_names)


def describe_prepared(
    name: str, data_dir: str | None, image_size: int | None, options: Options = DEFAULTS
) -> Description:
    """Return the description of the TFDS set `name` from its metadata.

    A set that is not prepared is prepared only where TFDS does not know the sizes of its splits
    beforehand, or where the labels say which split is the test.

    Args:
        name, data_dir, image_size, options: as `sources.describe` takes them.

    Returns:
        The description, as `sources.describe` returns it.

    Raises:
        UserError: no such set, directory, feature or size.
    """
    builder = _open_builder(name, data_dir, described=True)
    return _describe(name, builder, _layout(name, builder, options), image_size, options)


def _describe(
    name: str, builder: Builder, layout: Layout, image_size: int | None, options: Options
) -> Description:
    """Return what the builder's metadata say of the set."""
    features, splits = builder.info.features, builder.info.splits
    image = options.image or _shape(builder, layout.image, image_size)
    counts = [
        splits[split].num_examples if split else 0
        for split in (layout.train, layout.test, layout.unlabelled)
    ]
    train, test, more = counts
    if layout.test is None and layout.label is not None:
        test = test_count(train, options.test_share)
        train -= test
    if layout.label is None:
        return Description(name, train + more, test, train + more, image, 0, ())
    classes = features[layout.label]
    return Description(
        name, train, test, train + more, image, classes.num_classes, tuple(classes.names)
    )


def _layout(name: str, builder: Builder, options: Options) -> Layout:
    """Return the splits and features that are used; UserError where the set has none."""
    if options.damaged != "error":
        raise UserError(
            f"data.damaged: got {options.damaged!r}, takes 'error' for a set of TFDS ({name}): its "
            "splits have the sizes that their description says"
        )
    image, label = _image_and_label(name, builder.info.features)
    label = None if options.labels == "none" else label
    splits = list(builder.info.splits)
    if TRAIN not in splits:
        raise UserError(f"data.name: {name} has no {TRAIN} split, only {', '.join(splits)}")
    unlabelled = "unlabelled" if builder.name in UNLABELLED and "unlabelled" in splits else None
    if test := options.test_split:
        others = [split for split in splits if split not in (TRAIN, unlabelled)]
        if test not in others:
            raise UserError(f"data.test_split: got {test!r}, {name} has {', '.join(others) or '-'}")
        return Layout(TRAIN, unlabelled, test, image, label)
    candidates = [split for split in ("test", "validation") if split in splits]
    if label is not None and candidates and builder.is_prepared():
        for split in candidates:
            if _has_labels(builder, split, label):
                if split != candidates[0]:
                    _say_once(f"{name}: {candidates[0]} has no labels, {split} is the test split")
                return Layout(TRAIN, unlabelled, split, image, label)
        _say_once(f"{name}: {' and '.join(candidates)} without labels, a test split is drawn")
        return Layout(TRAIN, unlabelled, None, image, label)
    return Layout(TRAIN, unlabelled, candidates[0] if candidates else None, image, label)


def _has_labels(builder: Builder, split: str, label: str) -> bool:
    """Return whether one of the first records of a split has a label; decodes no image.

    TFDS stores -1 for all of a test split whose labels its authors keep, as ImageNet's.
    """
    source = _source(builder, split)
    rows = range(min(PEEK, len(source)))
    return any(feature[label].int64_list.value[0] >= 0 for feature in _features(source, rows))


@functools.cache
def _say_once(line: str) -> None:
    say(line)


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
        # of two splits for the test the labels decide
        if (
            not described
            or not builder.info.splits
            or {"test", "validation"} <= set(builder.info.splits)
        ):
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


def _image_and_label(name: str, features: Any) -> tuple[str, str | None]:
    """Return the names of the image feature and of the class feature, None where it has none.

    "image" and "label" where they fit, else the first that do.
    """
    import tensorflow_datasets as tfds

    def pick(kind: type, usual: str) -> str | None:
        keys = [key for key, feature in features.items() if isinstance(feature, kind)]
        return usual if usual in keys else next(iter(keys), None)

    image_key = pick(tfds.features.Image, "image")
    if image_key is None:
        have = ", ".join(features)
        raise UserError(f"data.name: {name} has no image feature (Image), only {have}")
    label_key = pick(tfds.features.ClassLabel, "label")
    image = features[image_key]
    if np.dtype(image.np_dtype) != np.uint8 or image.shape[-1] not in (None, *MODES):
        got = f"{image.shape[-1]} channels of {np.dtype(image.np_dtype)}"
        raise UserError(
            f"data.name: the images of {name} have {got}, takes 1 or 3 channels of uint8"
        )
    return image_key, label_key


def _shape(builder: Builder, key: str, image_size: int | None) -> tuple[int, int, int]:
    """Return the (H, W, C) of an image once it is decoded."""
    height, width, channels = builder.info.features[key].shape
    if image_size is not None:
        height = width = image_size
    if height is None or width is None:
        raise UserError(
            f"data.image_size: got None, takes pixels: the images of {builder.name} differ in size"
        )
    return height, width, channels or 3


def _source(builder: Builder, split: str) -> Any:
    """Return array_record's source of a split: `source[row]` is a serialised example."""
    from tensorflow_datasets.core.decode import DeserializeMethod

    try:
        return builder.as_data_source(
            split=split, deserialize_method=DeserializeMethod.RAW_BYTES
        ).data_source
    except Exception as error:  # array_record has its own
        raise _unreadable(builder, split, error) from error


def _records(
    builder: Builder, split: str, layout: Layout, digest: str, roots: Sequence[Path]
) -> Records:
    """Return a split's records in the official order: by `id` where there is one, else as stored.

    TFDS shuffles when it prepares a set.
    """
    source = _source(builder, split)

    def read() -> dict[str, np.ndarray]:
        names, labels = [], []
        try:
            with progress_bar(len(source), 0, "record", f"reading {builder.name} {split}") as bar:
                for row, feature in enumerate(_features(source, range(len(source)))):
                    identity = feature["id"].bytes_list.value
                    names.append(identity[0] if identity else b"%s#%d" % (split.encode(), row))
                    if layout.label is not None:
                        labels.append(feature[layout.label].int64_list.value[0])
                    bar.update()
        except Exception as error:
            raise _unreadable(builder, split, error) from error
        has_ids = bool(names) and not names[0].startswith(f"{split}#".encode())
        order = sorted(range(len(names)), key=names.__getitem__) if has_ids else range(len(names))
        rows = np.array(order, np.int64)
        return {
            "rows": rows,
            "names": np.array(names)[rows],
            "labels": np.array(labels, np.int32)[rows] if labels else np.zeros(0, np.int32),
        }

    stem = f"index/{digest}-{split}-{layout.label}"
    index = keep_index(roots, stem, read)
    return Records(
        Names(index["names"]),
        StoredImages(source, index["rows"], layout.image),
        index["labels"] if layout.label is not None else None,
    )


def _unreadable(builder: Builder, split: str, error: Exception) -> UserError:
    return UserError(f"{builder.data_path}: split {split} cannot be read: {_line(error)}")


def _decode(
    builder: Builder,
    split: str,
    records: Records,
    labels: np.ndarray,
    decode: Decode,
    shape: tuple[int, int, int],
    title: str,
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (image, label) of a split in the official order, with a progress bar.

    Any failure becomes a UserError.
    """
    try:
        with progress_bar(len(labels), 0, "image", title) as bar:
            for index, label in enumerate(labels.tolist()):
                pixels = decode(records.read(index))
                if pixels.shape != shape:
                    raise ValueError(f"an image of {pixels.shape}, where {shape} is declared")
                yield pixels, label
                bar.update()
    except Exception as error:  # array_record, protobuf and Pillow each have their own
        raise _unreadable(builder, split, error) from error


def _features(source: Any, rows: Sequence[int]) -> Iterator:
    """Yield the undecoded features of these rows."""
    for start in range(0, len(rows), READ_AHEAD):
        for record in source.__getitems__(list(rows[start : start + READ_AHEAD])):
            yield _parse(record)


def _parse(record: bytes) -> Any:
    """Return the features of a serialised example, images encoded.

    Decoding them with Pillow takes a third of the time of TFDS's own decoding.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    # the class is made on import
    example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
    return example.FromString(record).features.feature
