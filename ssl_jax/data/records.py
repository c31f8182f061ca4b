"""The undecoded images of a set: what every way in hands on to the decoder.

A way in (`folder`, `parquet`, `tar`, `archives`) finds images and labels and decodes nothing; one
decoder makes pixels of them all. So identical pictures give identical pixels through every door.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Options(NamedTuple):
    """What a configuration asks of a set beside its name, place and size: fields of `data`."""

    # "auto": the set's own, where it clearly has some; "folders"; "none"; or a CSV or Parquet file
    labels: str = "auto"
    # share of the labelled images that is drawn as the test split where the set has none
    test_share: float = 0.1
    test_split: str = ""  # name of the split for the test; "": "test", else "validation"
    # how a picture that is not square becomes one: "crop" (largest central square) | "pad" |
    # "squash"
    fit: str = "crop"
    background: tuple[int, int, int] = (0, 0, 0)  # red, green, blue, under transparent pixels
    damaged: str = "error"  # what is done about damaged pictures: "error" | "skip"
    encoded: bool = False  # whether images stay encoded and are decoded when they are asked for
    # (H, W, C) that every image is given, whatever the set's own is; None: the set's own
    image: tuple[int, int, int] | None = None


class Records(NamedTuple):
    """The undecoded images of one split, in their official order."""

    # A path below the data directory, or FILE#RECORD; unique, for messages and embeddings.
    names: Sequence[str]
    # read(i) -> the bytes of an encoded picture, or its pixels (H, W, C) uint8. It can be pickled,
    # as it runs in other processes. What it raises is a damaged picture.
    read: Callable[[int], bytes | np.ndarray]
    labels: np.ndarray | None  # (N,) int32; None: the set has none


class RawSet(NamedTuple):
    """A set as a way in finds it, before any image is decoded."""

    train: Records
    test: Records | None  # None: the set has no split for it
    unlabelled: Records | None  # further images for pretraining alone, as STL-10 has
    label_names: tuple[str, ...]  # () without labels
    # What it is, in words, for the one line that says what was found: "3 classes from folder
    # names: cat, dog, horse".
    found: str
    # Of the contents of all files: another one, another cache.
    digest: str


DEFAULTS = Options()


class _Rows:
    """read(i) of some rows of other records."""

    def __init__(self, read: Callable[[int], bytes | np.ndarray], rows: np.ndarray) -> None:
        self._read, self._rows = read, rows

    def __call__(self, index: int) -> bytes | np.ndarray:
        return self._read(int(self._rows[index]))


class _Joined:
    """read(i) of one list of records behind another."""

    def __init__(self, first: Records, second: Records) -> None:
        self._reads, self._count = (first.read, second.read), len(first.names)

    def __call__(self, index: int) -> bytes | np.ndarray:
        behind = int(index >= self._count)
        return self._reads[behind](index - self._count * behind)


class Names(Sequence[str]):
    """Names as an array of UTF-8: a million of them take some 20 MB, and pickle at once."""

    def __init__(self, names: Sequence[str] | np.ndarray) -> None:
        encoded = isinstance(names, np.ndarray)
        self.array: np.ndarray = (
            names
            if encoded
            else np.array([name.encode("utf-8", "surrogateescape") for name in names], "S")
        )

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        found = self.array[index]
        return (
            found.decode("utf-8", "surrogateescape") if isinstance(found, bytes) else Names(found)
        )


def part(records: Records, rows: np.ndarray) -> Records:
    """Return some rows of records, in their order."""
    labels = None if records.labels is None else records.labels[rows]
    names = records.names if isinstance(records.names, Names) else Names(records.names)
    return Records(names[rows], _Rows(records.read, rows), labels)


def join(first: Records, second: Records) -> Records:
    """Return the records of both; the labels are -1 where one of them has none."""
    labels = [
        np.full(len(records.names), -1, np.int32) if records.labels is None else records.labels
        for records in (first, second)
    ]
    names = Names([*first.names, *second.names])
    return Records(names, _Joined(first, second), np.concatenate(labels))
