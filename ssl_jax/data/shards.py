"""Sets that lie in several files: the split of each file, classes from labels, cached indexes."""

import functools
import json
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax import files
from ssl_jax.data.cache import files_digest
from ssl_jax.data.records import Options, RawSet, Records, join, part
from ssl_jax.errors import UserError
from ssl_jax.runtime.cache_directory import make_private

# Usual names of a label, first choice first.
LABELS = ("label", "labels", "fine_label", "class", "cls", "class_id", "target", "category")
# Words in names of files and directories -> the split that they stand for.
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("unlabelled", "unlabeled", "unsupervised"), "unlabelled"),
}
SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")  # the name of a file of Hugging Face's
SHOWN = 10  # names of classes in a line

Label = int | str | None  # None: the example has none


class Part(NamedTuple):
    """The undecoded images of one split, their labels as they are stored."""

    names: Sequence[str]
    read: Callable[[int], bytes | np.ndarray]
    labels: Sequence[Label] | None  # None: the split has none


class Reader:
    """A `read` that keeps files open, in each process its own.

    Names that begin with an underscore are neither pickled nor used after a fork.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = 0
        self._held: dict[str, Any] = {}  # "file": what is open

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Reader.__init__(self)
        self.__dict__.update(state)

    def __del__(self) -> None:
        self._close()

    @contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        """Yield the dict of what this process keeps open, to one thread at a time.

        It is closed where reading fails.
        """
        with self._lock:
            if self._process != os.getpid():  # a file of the parent would share its position
                self._close()
                self._process = os.getpid()
            try:
                yield self._held
            except BaseException:
                self._close()
                raise

    def _close(self) -> None:
        if file := self._held.get("file"):
            file.close()
        self._held.clear()


class Numbered(Sequence[str]):
    """The names FILE#0, FILE#1 and so on of the records of several files."""

    def __init__(self, names: Sequence[str], counts: Sequence[int]) -> None:
        self.files, self.starts = list(names), np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        file = int(np.searchsorted(self.starts, i, side="right")) - 1
        return f"{self.files[file]}#{i - int(self.starts[file])}"


# --- Files ----------------------------------------------------------------------------------------


def find_files(data_dir: str, ends: tuple[str, ...], takes: str) -> tuple[Path, list[str]]:
    """Return the directory of a set, and its files below it whose names end so.

    Hidden files and directories are passed over; links to directories are not followed.

    Args:
        data_dir: a directory, or one of the files.
        ends: lower-case endings of names.
        takes: what should be there, for the message.

    Returns:
        The directory, and names below it in sorted order, with "/" between their parts.

    Raises:
        UserError: there is nothing, or a directory cannot be read.
    """
    place = Path(data_dir)
    if place.is_file():
        return place.parent, [place.name]

    def refuse(error: OSError) -> None:
        why = f"{error.filename or place} cannot be read ({error.strerror})"
        raise UserError(f"data.data_dir: {why}; takes {takes}") from error

    found: list[str] = []
    for folder, below, names in os.walk(place, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [
            (Path(folder) / name).relative_to(place).as_posix()
            for name in names
            if name.lower().endswith(ends) and not name.startswith(".")
        ]
    if not found:
        raise UserError(f"data.data_dir: got {data_dir}, where there is none; takes {takes}")
    return place, sorted(found)


def split_of(name: str) -> str:
    """Return the split that a file's name or the directories above it tell, or "".

    >>> [split_of(n) for n in ("data/extra-00000-of-00002.parquet", "set/val/a.tar", "a.tar")]
    ['extra', 'validation', '']
    """
    *folders, file = name.split("/")
    shard = SHARD.match(file)
    if shard and shard[1].lower() in WORDS:
        return WORDS[shard[1].lower()]
    for piece in [*([] if shard else [file]), *reversed(folders)]:
        for word in re.split(r"[^a-z]+", piece.lower()):
            if word in WORDS:
                return WORDS[word]
    return shard[1] if shard else ""


def by_split(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split. Files of one split alone, or of none, are for training.

    Raises:
        UserError: several sets lie there, or there is no split for training.
    """
    splits: dict[str, list[str]] = {}
    sets: dict[str, set[str]] = {}  # of a split that is named: the directories, without its name
    for name in names:
        split = split_of(name)
        splits.setdefault(split or "train", []).append(name)
        if split:
            parts = name.split("/")[:-1]
            kept = [part for part in parts if WORDS.get(part.lower()) != split]
            sets.setdefault(split, set()).add("/".join(kept))
    for split, folders in sets.items():
        if len(folders) > 1:
            have = ", ".join(sorted(folder or "." for folder in folders)[:SHOWN])
            raise UserError(
                f"data.data_dir: several sets have a split {split}, in the directories {have}; "
                "takes the directory of one of them"
            )
    if len(splits) == 1:
        return {"train": next(iter(splits.values()))}
    if "train" not in splits:
        raise UserError(
            f"data.data_dir: has the splits {', '.join(sorted(splits))}, and none of them is for "
            "training; takes files with `train` in their names"
        )
    return splits


def digest_of(paths: Sequence[Path], roots: Sequence[Path]) -> str:
    """Return `files_digest`; UserError where a file cannot be read."""
    try:
        return files_digest(paths, roots)
    except OSError as error:
        raise UserError(
            f"data.data_dir: {error.filename or paths[0]} cannot be read ({error.strerror})"
        ) from error


def cached_index(roots: Sequence[Path], name: str, build: Callable[[], Any]) -> Any:
    """Return what `build` returns, kept in `index/` of the first root that can be written.

    Args:
        roots: cache directories, first choice first.
        name: of the index. It has the digest of all that the index is made from.
        build: returns lists, dicts, strings and numbers.

    Returns:
        The index; one that is damaged is built again.
    """
    places = [root / "index" / f"{name}.json" for root in roots]
    for place in places:
        try:
            crc, _, text = place.read_bytes().partition(b"\n")
            if int(crc) == zlib.crc32(text):
                return json.loads(text)
        except (OSError, ValueError):
            continue
    index = build()
    text = json.dumps(index).encode()
    for place in places:
        try:
            make_private(place.parent)
            with files.replacing(place) as file:
                file.write(b"%d\n%b" % (zlib.crc32(text), text))
            break
        except OSError:
            continue
    return index


# --- Labels and splits ----------------------------------------------------------------------------


def raw_set(
    parts: dict[str, Part],
    options: Options,
    what: str,
    origin: str,
    names: Sequence[str],
    digest: str,
) -> RawSet:
    """Return the set of these splits, its labels as classes.

    Training images without a label join the unlabelled ones where others have a label; such test
    images are left out. Where the test split has no label at all, the validation split is the test.

    Args:
        parts: name of the split -> its images; there is a "train".
        options: what the configuration asks for.
        what: the kind of the set, for `found`.
        origin: where the labels come from, for `found` and messages.
        names: of the classes, where integer labels count them; () where the labels name them.
        digest: of the contents.

    Returns:
        The set.

    Raises:
        UserError: no images, no such split, labels that are no classes.
    """
    if options.labels != "auto":
        parts = {split: part._replace(labels=None) for split, part in parts.items()}
    parts = {split: _without_empty(part) for split, part in parts.items()}
    if not len(parts["train"].names):
        raise UserError(f"data.data_dir: {what}, and no training image in it")
    labelled = parts["train"].labels is not None
    test, notes = _test_split(parts, options, labelled)
    used = [parts[split] for split in ("train", test) if split and labelled]
    classes, numbers = _classes(used, names, origin)
    notes += _passed_over(parts, test)

    train, rest = _divide(parts["train"], numbers)
    unlabelled = [rest] if rest and len(rest.names) else []
    if "unlabelled" in parts:
        unlabelled.append(_unlabelled(parts["unlabelled"]))
    tested, left = _divide(parts[test], numbers) if test else (None, None)
    if left and len(left.names):
        notes.append(f"{len(left.names)} images of the split {test} have no label: left out")
    counts = [f"{len(train.names)} training"]
    counts += [f"{len(tested.names)} test"] if tested else []
    extra = sum(len(part.names) for part in unlabelled)
    counts += [f"{extra} unlabelled"] if extra else []
    found = f"{what}: {listed(counts)} images, {_about(classes, origin)}"
    return RawSet(
        train,
        tested,
        functools.reduce(join, unlabelled) if extra else None,
        classes,
        "; ".join([found, *notes]),
        digest,
    )


def listed(words: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def class_words(classes: Sequence[str]) -> str:
    """Return "3 classes: cat, dog, horse", of many only the first."""
    more = ", …" if len(classes) > SHOWN else ""
    return f"{len(classes)} classes: {', '.join(classes[:SHOWN])}{more}"


def _about(classes: Sequence[str], origin: str) -> str:
    return class_words(classes).replace(":", f" from {origin}:", 1) if classes else "no labels"


def _without_empty(part: Part) -> Part:
    """Return the part; its labels are None where no image has one."""
    if part.labels is None or any(label not in (None, "", -1) for label in part.labels):
        return part
    return part._replace(labels=None)


def _test_split(
    parts: dict[str, Part], options: Options, labelled: bool
) -> tuple[str | None, list[str]]:
    """Return the name of the split for the test, and what is to be said about it."""
    others = [split for split in parts if split not in ("train", "unlabelled")]
    if asked := options.test_split:
        asked = WORDS.get(asked.lower(), asked)
        if asked not in others:
            have = f"has {', '.join(sorted(others))} beside train" if others else "has train alone"
            raise UserError(f"data.test_split: got {options.test_split}, and the set {have}")
        if labelled and parts[asked].labels is None:
            raise UserError(
                f"data.test_split: got {options.test_split}, a split without labels; "
                "takes one with labels, or data.labels=none"
            )
        return asked, []
    usual = [split for split in ("test", "validation") if split in parts]
    fit = [split for split in usual if not labelled or parts[split].labels is not None]
    notes = [
        f"the split {split} has no labels"
        for split in usual[: usual.index(fit[0]) if fit else len(usual)]
    ]
    if fit[:1] == ["validation"]:
        notes.append("the split validation is the test")
    return (fit[0] if fit else None), notes


def _passed_over(parts: dict[str, Part], test: str | None) -> list[str]:
    others = sorted(set(parts) - {"train", "unlabelled", test})
    return [f"not used: the split {listed(others)}"] if others else []


def _classes(
    parts: Sequence[Part], names: Sequence[str], origin: str
) -> tuple[tuple[str, ...], dict[Label, int]]:
    """Return the names of the classes, and the number of each label that is stored."""
    values = {label for part in parts for label in part.labels or ()} - {None, "", -1}
    integers = sorted(value for value in values if isinstance(value, int))
    texts = sorted(value for value in values if isinstance(value, str))
    if not values:
        return (), {}
    if not texts:
        wrong = [k for k in integers if k < 0 or (names and k >= len(names))]
        if wrong:
            takes = f"0 to {len(names) - 1} for its {len(names)} classes" if names else "0 and more"
            raise UserError(f"{origin}: got the label {wrong[0]}, takes {takes}, and -1 for none")
        if names:
            return tuple(names), {value: int(value) for value in integers}
    number = {name: k for k, name in enumerate(dict.fromkeys(map(str, [*integers, *texts])))}
    return tuple(number), {value: number[str(value)] for value in (*integers, *texts)}


def _divide(stored: Part, numbers: dict[Label, int]) -> tuple[Records, Records | None]:
    """Return the images with a label, and those without; all of them where none has one."""
    bare = _unlabelled(stored)
    if stored.labels is None or not numbers:
        return bare, None
    label = np.array([numbers.get(value, -1) for value in stored.labels], np.int32)
    whole = bare._replace(labels=label)
    if (label >= 0).all():
        return whole, None
    return part(whole, np.flatnonzero(label >= 0)), part(bare, np.flatnonzero(label < 0))


def _unlabelled(stored: Part) -> Records:
    return Records(stored.names, stored.read, None)
