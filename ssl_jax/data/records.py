"""The undecoded images of a set: what every way in hands on to the decoder.

A way in (`folder`, `parquet`, `tar`, `archives`) finds images and labels and decodes nothing; one
decoder makes pixels of them all. So identical pictures give identical pixels through every door.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

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
    # Whether "the last N" of the official order is as good as a draw. Where it is not, splits are
    # drawn.
    mixed: bool


DEFAULTS = Options()


def part(records: Records, rows: np.ndarray) -> Records:
    """Return the records at `rows` (n,), in that order."""
    labels = None if records.labels is None else records.labels[rows]
    names = [records.names[int(row)] for row in rows]
    return Records(names, functools.partial(_read_row, records.read, rows), labels)


def join(first: Records, second: Records) -> Records:
    """Return the records of both in turn; -1 labels those of one that has no labels."""
    labels = [
        np.full(len(records.names), -1, np.int32) if records.labels is None else records.labels
        for records in (first, second)
    ]
    read = functools.partial(_read_either, first.read, second.read, len(first.names))
    return Records([*first.names, *second.names], read, np.concatenate(labels))


def _read_row(read: Callable, rows: np.ndarray, place: int) -> bytes | np.ndarray:
    return read(int(rows[place]))


def _read_either(first: Callable, second: Callable, count: int, place: int) -> bytes | np.ndarray:
    return first(place) if place < count else second(place - count)
