"""CIFAR-10, CIFAR-100 and STL-10 from their authors' own files, packed or unpacked.

The order is the files' own, which is that of the ids in TFDS for both CIFAR sets. (TFDS stores
STL-10 without ids, in an order of its own.) The pickled form of the CIFAR sets is read by an
unpickler that builds arrays of numbers, texts, numbers, lists and dicts; it calls nothing else.
"""

import gzip
import io
import pickle
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.data.labels import check_labels
from ssl_jax.data.records import Options, RawSet, Records
from ssl_jax.data.shards import (
    Numbered,
    Reader,
    cached_index,
    class_words,
    digest_of,
    listed,
)
from ssl_jax.data.tar import DAMAGED, members
from ssl_jax.errors import UserError

VERSION = 1  # of the index


class Form(NamedTuple):
    """One of the forms in which the authors hand a set out."""

    folder: str  # of the files, in the archive and unpacked
    archive: str
    # split -> its files and the images in each; a pickled or CIFAR file holds its labels, an
    # STL-10 file may have them in another one
    splits: dict[str, tuple[tuple[str, int], ...]]
    classes: str  # the file of the classes' names
    kind: str  # "cifar" | "pickle" | "stl"
    labels: Any  # "cifar": bytes of labels before a picture; "pickle": their key; "stl": files


class Known(NamedTuple):
    """A set that is read here."""

    title: str
    shape: tuple[int, int, int]  # H, W, C
    forms: tuple[Form, ...]  # first choice first
    names: tuple[str, ...]  # of the classes, where the files do not tell them


class Place(NamedTuple):
    """Where a file of the set lies: all of a file, or a part of an archive's contents."""

    path: str
    packed: bool  # whether `path` is compressed; the offset counts unpacked bytes
    offset: int
    size: int


def _cifar10(end: str) -> dict[str, tuple[tuple[str, int], ...]]:
    train = tuple((f"data_batch_{k}{end}", 10_000) for k in range(1, 6))
    return {"train": train, "test": ((f"test_batch{end}", 10_000),)}


def _cifar100(end: str) -> dict[str, tuple[tuple[str, int], ...]]:
    return {"train": ((f"train{end}", 50_000),), "test": ((f"test{end}", 10_000),)}


SETS = {
    "cifar10": Known(
        "CIFAR-10",
        (32, 32, 3),
        (
            Form(
                "cifar-10-batches-bin",
                "cifar-10-binary.tar.gz",
                _cifar10(".bin"),
                "batches.meta.txt",
                "cifar",
                1,
            ),
            Form(
                "cifar-10-batches-py",
                "cifar-10-python.tar.gz",
                _cifar10(""),
                "batches.meta",
                "pickle",
                "labels",
            ),
        ),
        tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    ),
    "cifar100": Known(
        "CIFAR-100",
        (32, 32, 3),
        (
            Form(
                "cifar-100-binary",
                "cifar-100-binary.tar.gz",
                _cifar100(".bin"),
                "fine_label_names.txt",
                "cifar",
                2,  # coarse, fine
            ),
            Form(
                "cifar-100-python",
                "cifar-100-python.tar.gz",
                _cifar100(""),
                "meta",
                "pickle",
                "fine_labels",
            ),
        ),
        tuple(
            """
            apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
            butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
            couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
            house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
            motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
            pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket
            rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
            sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
            turtle wardrobe whale willow_tree wolf woman worm
            """.split()
        ),
    ),
    "stl10": Known(
        "STL-10",
        (96, 96, 3),
        (
            Form(
                "stl10_binary",
                "stl10_binary.tar.gz",
                {
                    "train": (("train_X.bin", 5_000),),
                    "test": (("test_X.bin", 8_000),),
                    "unlabelled": (("unlabeled_X.bin", 100_000),),
                },
                "class_names.txt",
                "stl",
                {"train": "train_y.bin", "test": "test_y.bin"},
            ),
        ),
        tuple("airplane bird car cat deer dog horse monkey ship truck".split()),
    ),
}


def has_archive(name: str, data_dir: str) -> bool:
    """Return whether the authors' files of the set `name` lie in `data_dir`, or are it."""
    return name in SETS and _find(name, Path(data_dir)) is not None


def open_archive(name: str, data_dir: str, options: Options, roots: Sequence[Path]) -> RawSet:
    """Return the images of one of `SETS`.

    Unpacked files are preferred to an archive, and binary ones to pickled ones.

    Args:
        name: "cifar10", "cifar100" or "stl10".
        data_dir: the directory with the archive or the unpacked folder, or one of these itself.
        options: what the configuration asks for.
        roots: cache directories, for digests and labels.

    Returns:
        The set, its images in the files' order; CIFAR-100 has its fine labels.

    Raises:
        UserError: there are no such files; they are damaged, or not the whole set.
    """
    known = SETS[name]
    check_labels(options.labels, name)
    if options.test_split not in ("", "test"):
        raise UserError(f"data.test_split: got {options.test_split}, takes test for {name}")
    if (found := _find(name, Path(data_dir))) is None:
        takes = listed([f"{form.archive} or {form.folder}/" for form in known.forms])
        raise UserError(f"data.data_dir: got {data_dir}, which has no files of {name}; has {takes}")
    form, path = found
    digest = digest_of(_files(form, path), roots)
    index = cached_index(roots, f"{name}-{VERSION}-{digest}", lambda: _index(known, form, path))
    splits: dict[str, Records] = {}
    for split, files in form.splits.items():
        counts = [count for _, count in files]
        parts = [Place(str(_host(path, file)), *index["places"][file]) for file, _ in files]
        read = ReadPickles if form.kind == "pickle" else ReadRaw
        labels = index["labels"].get(split) if options.labels == "auto" else None
        splits[split] = Records(
            Numbered([f"{path.name}/{file}" for file, _ in files], counts),
            read(parts, counts, form, known.shape),
            None if labels is None else np.array(labels, np.int32),
        )
    classes = tuple(index["names"]) if options.labels == "auto" else ()
    sizes = [
        f"{len(part.names)} {split.replace('train', 'training')}" for split, part in splits.items()
    ]
    found = f"{known.title} from {path.name}: {listed(sizes)} images, "
    found += class_words(classes) if classes else "no labels"
    rest = splits.get("unlabelled")
    return RawSet(splits["train"], splits["test"], rest, classes, found, digest)


# --- Where the files lie --------------------------------------------------------------------------


def _find(name: str, place: Path) -> tuple[Form, Path] | None:
    """Return the form of the set that lies at a place, and its folder or archive.

    UserError where that cannot be looked at.
    """
    try:
        return _look(name, place)
    except OSError as error:
        raise UserError(f"data.data_dir: {place} cannot be read ({error.strerror})") from error


def _look(name: str, place: Path) -> tuple[Form, Path] | None:
    for attribute in ("folder", "archive"):
        for form in SETS[name].forms:
            own = getattr(form, attribute)
            names = (own, own.removesuffix(".gz"))  # some browsers unpack half
            for path in [place / own for own in names] + [place] * (place.name in names):
                if path.is_dir() if attribute == "folder" else path.is_file():
                    return form, path
    return None


def _needed(form: Form) -> list[str]:
    """Return the names of all files without which the set is not whole."""
    files = [file for part in form.splits.values() for file, _ in part]
    return files + (list(form.labels.values()) if form.kind == "stl" else [])


def _host(path: Path, file: str) -> Path:
    """Return the file on disk that holds `file` of a folder or archive."""
    return path / file if path.is_dir() else path


def _files(form: Form, path: Path) -> list[Path]:
    """Return the files on disk that the set is read from; UserError where one is missing."""
    if path.is_file():
        return [path]
    for file in _needed(form):
        if not (path / file).is_file():
            raise _missing(path, file)
    return [path / file for file in (*_needed(form), form.classes) if (path / file).is_file()]


def _missing(path: Path, file: str) -> UserError:
    return UserError(
        f"{path}: lacks {file}; takes the authors' whole set: download or unpack it again"
    )


def _walk(form: Form, path: Path) -> Iterator[tuple[str, Place, Callable[[], bytes]]]:
    """Yield each file of a folder or archive: its name, its place and what reads its content.

    An archive is gone through once, where a content is read before the next is asked for.
    """
    wanted = (*_needed(form), form.classes)
    if path.is_dir():
        for file in (path / name for name in wanted):
            if file.is_file():
                yield file.name, Place(str(file), False, 0, file.stat().st_size), file.read_bytes
        return
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with _opened(path, packed) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for name, offset, size in members(archive):
            if (own := name.rpartition("/")[2]) in wanted:
                place = Place(str(path), packed, offset, size)
                yield own, place, partial(_content, place, 0, size, file)
        while packed and file.read(1 << 20):
            pass  # to the checksum at the end


def _opened(path: str | Path, packed: bool) -> Any:
    return gzip.open(path, "rb") if packed else open(path, "rb")


def _content(place: Place, offset: int, size: int, file: Any) -> bytes:
    """Return `size` bytes of a file of the set, from an offset on; `file` is its `path`, opened."""
    file.seek(place.offset + offset)
    content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{place.path} is shorter than it was")
    return content


# --- The index: where the files lie, labels and classes -------------------------------------------


def _index(known: Known, form: Form, path: Path) -> dict[str, Any]:
    """Return places of the files, labels of the splits and names of the classes.

    Every size is checked.
    """
    counts = {file: count for part in form.splits.values() for file, count in part}
    places: dict[str, Place] = {}
    labels: dict[str, list[int]] = {}  # of a file
    names = list(known.names)
    try:
        for file, place, read in _walk(form, path):
            places[file] = place
            if file == form.classes:
                names = _names(known, form, place, read)
            elif file in counts:
                labels[file] = _labels(known, form, file, counts[file], place, read)
            else:
                split = next(split for split, own in form.labels.items() if own == file)
                count = counts[form.splits[split][0][0]]
                _check_size(place, file, count, f"{count} labels")
                labels[file] = (np.frombuffer(read(), np.uint8).astype(int) - 1).tolist()
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(
            f"{path}: truncated or damaged ({error}); download or unpack it again"
        ) from error
    for file in _needed(form):
        if file not in places:
            raise _missing(path, file)
    by_split: dict[str, list[int]] = {}
    for split, part in form.splits.items():
        files = [file for file, _ in part]
        if form.kind == "stl":
            files = [form.labels[split]] if split in form.labels else []
        if stored := [label for file in files for label in labels[file]]:
            _check_labels(path, split, stored, len(names))
            by_split[split] = stored
    return {
        "places": {file: place[1:] for file, place in places.items()},
        "labels": by_split,
        "names": names,
    }


def _labels(
    known: Known, form: Form, file: str, count: int, place: Place, read: Callable[[], bytes]
) -> list[int]:
    """Return the labels in a file of pictures, whose size is checked; none for STL-10."""
    pixels = int(np.prod(known.shape))
    if form.kind == "pickle":
        _check_limit(place, file, count, pixels)
        return _batch(read(), f"{place.path}: {file}", count, form.labels, pixels)[1]
    before = form.labels if form.kind == "cifar" else 0
    _check_size(place, file, count * (before + pixels), f"{count} images")
    if form.kind == "stl":
        return []
    rows = np.frombuffer(read(), np.uint8).reshape(count, before + pixels)
    return rows[:, before - 1].tolist()


def _check_limit(place: Place, file: str, count: int, pixels: int) -> None:
    if place.size > count * (2 * pixels + 2048) + (1 << 20):
        raise UserError(
            f"{place.path}: {file} has {place.size:,} bytes, more than {count} images take: "
            "download or unpack it again"
        )


def _check_size(place: Place, file: str, size: int, what: str) -> None:
    if place.size != size:
        raise UserError(
            f"{place.path}: {file} has {place.size:,} bytes, takes {size:,} for {what}: "
            "download or unpack it again"
        )


def _check_labels(path: Path, split: str, labels: Sequence[int], classes: int) -> None:
    if wrong := [label for label in labels if not 0 <= label < classes]:
        raise UserError(
            f"{path}: a label of the split {split} is class {wrong[0]} of {classes}, counted from "
            "0: not the authors' file; download it again"
        )


def _names(known: Known, form: Form, place: Place, read: Callable[[], bytes]) -> list[str]:
    """Return the names of the classes from their file; where it has others, the known ones."""
    if place.size > 1 << 20:
        raise UserError(f"{place.path}: {form.classes} is larger than names of classes")
    content = read()
    if form.kind == "pickle":
        key = form.labels.replace("labels", "label_names")
        names = load_arrays(content, f"{place.path}: {form.classes}").get(key)
        names = [_text(name) for name in names] if isinstance(names, list) else []
    else:
        names = [line.strip() for line in content.decode(errors="replace").split("\n")]
    names = [name for name in names if name]
    return names if len(set(names)) == len(known.names) == len(names) else list(known.names)


# --- Reading --------------------------------------------------------------------------------------


class ReadRaw(Reader):
    """Read a picture from files of pictures of equal size.

    In a compressed archive what comes later is found by unpacking all before it: cheap in order,
    slow out of it.
    """

    def __init__(
        self, parts: Sequence[Place], counts: Sequence[int], form: Form, shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.parts, self.shape = list(parts), shape
        self.starts = np.cumsum([0, *counts])
        self.before = form.labels if form.kind == "cifar" else 0  # bytes of labels
        self.by_columns = form.kind == "stl"

    def __call__(self, i: int) -> np.ndarray:
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        part, row = self.parts[number], i - int(self.starts[number])
        size = int(np.prod(self.shape))
        with self._open() as held:
            if held.get("path") != part.path:
                self._close()
                held |= {"path": part.path, "file": _opened(part.path, part.packed)}
            start = row * (self.before + size) + self.before
            pixels = np.frombuffer(_content(part, start, size, held["file"]), np.uint8)
        return _picture(pixels, self.shape, self.by_columns)


class ReadPickles(Reader):
    """Read a picture from pickled batches, the last of which is kept."""

    def __init__(
        self, parts: Sequence[Place], counts: Sequence[int], form: Form, shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.parts, self.counts, self.shape, self.key = list(parts), counts, shape, form.labels
        self.starts = np.cumsum([0, *counts])

    def __call__(self, i: int) -> np.ndarray:
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        part, count = self.parts[number], self.counts[number]
        with self._open() as held:
            if held.get("number") != number:
                size = int(np.prod(self.shape))
                with _opened(part.path, part.packed) as file:
                    content = _content(part, 0, part.size, file)
                pixels, _ = _batch(content, part.path, count, self.key, size)
                held |= {"number": number, "pixels": pixels}
            pixels = held["pixels"][i - int(self.starts[number])]
        return _picture(pixels, self.shape, False)


def _picture(pixels: np.ndarray, shape: tuple[int, int, int], by_columns: bool) -> np.ndarray:
    """Return (H, W, C) of the stored (C, H, W), or (C, W, H) where columns are stored."""
    height, width, channels = shape
    if by_columns:
        turned = pixels.reshape(channels, width, height).transpose(2, 1, 0)
    else:
        turned = pixels.reshape(channels, height, width).transpose(1, 2, 0)
    return np.ascontiguousarray(turned)


# --- Pickles --------------------------------------------------------------------------------------


def _batch(
    content: bytes, where: str, count: int, key: str, pixels: int
) -> tuple[np.ndarray, list[int]]:
    """Return pixels (count, pixels) uint8 and labels of a pickled batch."""
    batch = load_arrays(content, where)
    data, labels = batch.get("data"), batch.get(key)
    takes = f"takes {count} images of {pixels} bytes, and {key}: download it again"
    if not isinstance(data, np.ndarray) or data.shape != (count, pixels) or data.dtype != np.uint8:
        got = f"{data.shape} {data.dtype}" if isinstance(data, np.ndarray) else "no array"
        raise UserError(f"{where} has {got} as its data, {takes}")
    if not isinstance(labels, list) or len(labels) != count or {type(k) for k in labels} != {int}:
        raise UserError(f"{where} has not one integer an image as its {key}, {takes}")
    return data, labels


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def load_arrays(content: bytes, where: str) -> dict[str, Any]:
    """Return the dict of arrays of numbers, texts, numbers and lists that a pickle holds.

    What it names is never imported: what NumPy writes into a pickle is read by the classes below.

    Args:
        content: the pickle; Python 2's texts become str by Latin-1.
        where: the file, for messages.

    Returns:
        The dict, its keys as texts.

    Raises:
        UserError: the pickle is damaged, or asks for anything else.
    """
    try:
        found = _Arrays(io.BytesIO(content), encoding="latin-1").load()
        return {_text(k): v.array if isinstance(v, _Stored) else v for k, v in found.items()}
    except UserError as error:
        raise UserError(f"{where} is a pickle {error}") from None
    except Exception as error:  # a damaged pickle may raise anything
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{where} is damaged ({text}); download it again") from error


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): _TypeOf(),
            ("_codecs", "encode"): _Encode(),
            ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
            ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
        }
        if (module, name) not in known:
            raise UserError(
                f"that asks for {module}.{name}, takes arrays, texts, numbers, lists and dicts "
                "alone; nothing of it was executed: not the authors' file, download it again"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise UserError("that refers to other files, takes arrays alone")


# Their instances have no dict and take no attribute, so that a pickle can change none of them.


class _Encode:
    """`_codecs.encode` of what Python 3 writes for bytes in old protocols."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise ValueError("an encoded text that NumPy does not write")
        return text.encode("latin-1")


class _TypeOf:
    """`numpy.dtype` of numbers."""

    __slots__ = ()

    def __call__(self, name: str | bytes, align: Any = False, copy: Any = False) -> "_Type":
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", _text(name)):
            raise ValueError(f"an array of {_text(name)[:20]}, takes numbers")
        return _Type(_text(name))


class _Type:
    """A dtype; its state gives the order of the bytes."""

    __slots__ = ("name", "order")

    def __init__(self, name: str) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple) -> None:
        order = _text(state[1])
        if order not in ("<", ">", "|", "="):
            raise ValueError("an unknown order of bytes")
        self.order = order


class _Reconstruct:
    """`numpy.core.multiarray._reconstruct`: an empty array, whose state comes next."""

    __slots__ = ()

    def __call__(self, kind: Any, shape: Any, code: Any) -> "_Stored":
        return _Stored()


class _Stored:
    """An array; its state gives shape, type, order and bytes."""

    __slots__ = ("array",)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_columns, content = state
        content = content.encode("latin-1") if isinstance(content, str) else content
        stored = np.frombuffer(content, np.dtype(kind.name).newbyteorder(kind.order))
        self.array = stored.reshape(shape, order="F" if by_columns else "C")
