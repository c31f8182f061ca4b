"""The classes of pictures: from the folders that they lie in, or from a table of paths and labels.

Names are paths below the data directory, with "/" between their parts. They are compared as bytes.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ssl_jax.errors import UserError, nearest
from ssl_jax.files import local_path, reading
from ssl_jax.text import printable, shortened

KINDS = ("auto", "folders", "none")  # values of data.labels that are not a file
COLUMNS = ("path", "label")  # of a table
SHOWN = 5  # names or classes of a long list that a line has room for


def check_labels(value: str, name: str) -> None:
    """Raise UserError for a value of data.labels that a set without folders cannot take.

    Args:
        value: the field data.labels.
        name: of the set, for the message.
    """
    if value not in ("auto", "none"):
        raise UserError(
            f"data.labels: got {value!r}, {nearest(value, ('auto', 'none'))} for {name}; folders "
            "and a table of labels work with data.name=folder"
        )


class Classes(NamedTuple):
    """The labels of the splits of a set, in their order."""

    labels: list[np.ndarray] | None  # one (N,) int32 for each split; None: unlabelled
    names: tuple[str, ...]
    found: str  # in words: "3 classes from folder names: cat, dog, horse"


def find_classes(kind: str, splits: Mapping[str, Sequence[str]]) -> Classes:
    """Return the classes of pictures by their folders.

    Args:
        kind: "auto": folder names are classes only where every picture lies exactly one folder
            deep and there are at least two folders; "folders": the first folder of every picture is
            its class; "none".
        splits: for each split, training first, its folder ("" or "train") and the paths of its
            pictures below that folder.

    Returns:
        The classes; none of them where `kind` is "none", or "auto" and the folders are no classes.

    Raises:
        UserError: a picture without a class for "folders", or a split with classes of its own.
    """
    if kind == "none":
        return Classes(None, (), "no labels (data.labels=none)")
    train = next(iter(splits.values()))
    if kind == "auto" and (why := _no_classes(train)):
        return Classes(None, (), f"no labels: {why}")
    wanted = "takes classes as folders, or data.labels=none"
    for split, paths in splits.items():
        if loose := [path for path in paths if "/" not in path]:
            raise UserError(
                f"data.labels: got {kind!r}, but {_some(loose, 'picture')} "
                f"{_in_split(split)} in no class folder; {wanted}"
            )
    names = _sorted_names({_first_folder(path) for path in train})
    if len(names) < 2:
        raise UserError(
            f"data.labels: got {kind!r}, but one folder, {listed(names)}; takes at least 2"
        )
    of_splits = [[_first_folder(path) for path in paths] for paths in splits.values()]
    numbers = _numbers(names)
    for split, classes in zip(splits, of_splits, strict=True):
        if unknown := _sorted_names(set(classes) - set(names)):
            raise UserError(
                f"data.labels: got {kind!r}, but the folder {split} has "
                f"{_some(unknown, 'class', 'classes')} that the training folder lacks; takes the "
                "same classes in both, or data.labels=none"
            )
    labels = [_as_array([numbers[name] for name in classes]) for classes in of_splits]
    return Classes(
        labels, names, f"{count(len(names), 'class', 'classes')} from folder names: {listed(names)}"
    )


def read_table(value: str) -> dict[str, str]:
    """Return the label of each path in a CSV or Parquet file with the columns path and label.

    Args:
        value: the field data.labels.

    Raises:
        UserError: no such file, no such columns, or a path that stands there twice.
    """
    file = Path(local_path("data.labels", value))
    if not file.is_file():
        raise UserError(
            f"data.labels: got {value!r}, which is no file; {nearest(value, KINDS)}, or a CSV or "
            "Parquet file with the columns path and label"
        )
    with reading(file, "a CSV or Parquet file with the columns path and label"):
        rows = _parquet_rows(file) if file.suffix == ".parquet" else _csv_rows(file)
    table: dict[str, str] = {}
    twice = []
    for path, label in rows:
        name = str(PurePosixPath(path))
        if name in table:
            twice.append(name)
        table[name] = label
    if twice:
        raise UserError(
            f"data.labels: {file} has {_some(twice, 'path')} twice; takes each path once"
        )
    return table


def classes_of_table(
    value: str, table: Mapping[str, str], splits: Mapping[str, Sequence[str]]
) -> Classes:
    """Return the classes of pictures by a table. -1 stands for a picture that it lacks.

    Args:
        value: the field data.labels, for messages.
        table: as `read_table` returns it.
        splits: for each split, training first, the names of its pictures.

    Returns:
        The classes. Their numbers follow the labels: by value where all are whole numbers, else by
        their bytes.

    Raises:
        UserError: a path that is no picture, or a label of another split that the training
            pictures lack.
    """
    known = {name for names in splits.values() for name in names}
    if unknown := [path for path in table if path not in known]:
        raise UserError(
            f"data.labels: {value} has {_some(unknown, 'path')} that are no pictures of the set; "
            "takes paths below data.data_dir"
        )
    of_splits = [[table.get(name) for name in names] for names in splits.values()]
    names = _sorted_names({label for label in of_splits[0] if label is not None})
    if not names:
        raise UserError(f"data.labels: {value} has no label of a training picture; takes labels")
    numbers: dict[str | None, int] = {None: -1, **_numbers(names)}
    for split, labels in zip(splits, of_splits, strict=True):
        if strange := _sorted_names({y for y in labels if y not in numbers and y is not None}):
            raise UserError(
                f"data.labels: {value} has {_some(strange, 'label')} in the folder {split} that "
                "no training picture has; takes the same classes in both"
            )
    arrays = [_as_array([numbers[label] for label in labels]) for labels in of_splits]
    found = f"{count(len(names), 'class', 'classes')} from {value}: {listed(names)}"
    if missing := [n for n in known if n not in table]:
        found += f"; {_some(sorted(missing, key=os.fsencode), 'picture')} without a label there"
    return Classes(arrays, names, found)


def listed(names: Sequence[str]) -> str:
    """Return the names in a line, the first few where there are many."""
    shown = ", ".join(shortened(printable(name)) for name in names[:SHOWN])
    more = len(names) - SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def count(number: int, one: str, many: str = "") -> str:
    """Return a number of things: "1 picture", "2 pictures"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def _some(names: Sequence[str], one: str, many: str = "") -> str:
    """Return how many there are, and the first few: "2 pictures (a.jpg, b.jpg)"."""
    return f"{count(len(names), one, many)} ({listed(names)})"


def _in_split(split: str) -> str:
    return f"of the folder {split} lie" if split else "lie"


def _no_classes(paths: Sequence[str]) -> str:
    """Return why the folders of these pictures are no classes; "" where they are."""
    depths = {path.count("/") for path in paths}
    if depths == {0}:
        return "all pictures lie in one folder"
    if depths != {1}:
        return (
            "pictures lie at different depths, or several folders deep (data.labels=folders takes "
            "the first folder of each as its class)"
        )
    folders = {_first_folder(path) for path in paths}
    return f"all pictures lie in one folder, {listed(list(folders))}" if len(folders) < 2 else ""


def _first_folder(path: str) -> str:
    return path.split("/", 1)[0]


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    if all(name.isdecimal() and name.isascii() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names, key=os.fsencode))


def _numbers(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _as_array(labels: list[int]) -> np.ndarray:
    return np.array(labels, np.int32)


def _csv_rows(file: Path) -> list[tuple[str, str]]:
    try:
        # as file names are: bytes that are not UTF-8 name a file all the same
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            reader = csv.DictReader(text)
            _check_columns(file, reader.fieldnames or [])
            rows = [(row["path"], row["label"]) for row in reader]
    except csv.Error as error:
        raise UserError(f"data.labels: {file} is no CSV file ({error})") from error
    for number, row in enumerate(rows, 2):
        if not all(row):
            raise UserError(f"data.labels: {file}, row {number}: takes a path and a label")
    return rows


def _parquet_rows(file: Path) -> list[tuple[str, str]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(
            f"data.labels: {file} takes pyarrow: pip install pyarrow, or save it as CSV"
        ) from error
    try:
        columns = parquet.read_table(file)
    except Exception as error:  # pyarrow has many
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"data.labels: {file} is no Parquet file ({reason})") from error
    _check_columns(file, columns.column_names)
    paths, labels = (columns.column(name).to_pylist() for name in COLUMNS)
    if None in paths or None in labels:
        raise UserError(f"data.labels: {file}: a row lacks its path or its label; takes both")
    return [(str(path), str(label)) for path, label in zip(paths, labels, strict=True)]


def _check_columns(file: Path, names: Sequence[str]) -> None:
    if lacking := [name for name in COLUMNS if name not in names]:
        raise UserError(
            f"data.labels: {file} has the columns {listed(names)}, not {' and '.join(lacking)}; "
            "takes a table whose first row names the columns path and label"
        )
