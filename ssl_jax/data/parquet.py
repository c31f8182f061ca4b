"""Parquet files of images, as Hugging Face lays them out; nothing is decoded here.

A column holds the encoded pictures, as binary or as a struct of {bytes, path}; a column of integers
or strings may hold labels. The pictures must lie in the file: one that is only named by a path is
not fetched.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.data.labels import check_labels
from ssl_jax.data.records import Options, RawSet
from ssl_jax.data.shards import (
    LABELS,
    Label,
    Numbered,
    Part,
    Reader,
    by_split,
    digest_of,
    find_files,
    raw_set,
)
from ssl_jax.errors import UserError

TAKES = "a .parquet file, or a directory of them"
IMAGES = ("image", "img")  # usual names of the column of pictures, first choice first
AT_ONCE = 32 << 20  # bytes of pictures in memory: a whole row group where it is no larger


class Columns(NamedTuple):
    """What the schema of a file says."""

    image: str
    nested: bool  # whether the pictures are structs of {bytes, path}
    label: str | None
    names: tuple[str, ...]  # of the classes, where Hugging Face's metadata tell them
    other: str  # a column that is called like a label and is none, or ""


class Rows(NamedTuple):
    """The rows of one file."""

    path: str
    starts: np.ndarray  # (G + 1,) int64: first row of each row group, and the number of rows
    batch: np.ndarray  # (G,) int64: rows of a group that are read at once


def open_parquet(data_dir: str, options: Options, roots: Sequence[Path]) -> RawSet:
    """Return the images of Parquet files, undecoded.

    A file's name, or the directories above it, tell its split. A label of -1, null or "" is none.

    Args:
        data_dir: a directory with the files at any depth, or one file.
        options: what the configuration asks for.
        roots: cache directories, where digests are remembered.

    Returns:
        The set, in the order of the files' names and of the rows.

    Raises:
        UserError: no files, damaged ones, or ones of another schema.
    """
    check_labels(options.labels, "parquet")
    place, names = find_files(data_dir, (".parquet",), TAKES)
    splits = by_split(names)
    first = names[0]
    columns = _columns(place, first)
    parts: dict[str, Part] = {}
    for split, files in splits.items():
        rows, labels = [], []
        for name in files:
            found, stored = _rows(place, name, columns, first, options.labels == "auto")
            rows.append(found)
            labels += stored
        counts = [int(part.starts[-1]) for part in rows]
        named = Numbered(files, counts)
        parts[split] = Part(named, ReadParquet(rows, columns), labels if columns.label else None)
    what = f"{len(names)} Parquet file{'s' if len(names) > 1 else ''}, column {columns.image}"
    if columns.other and options.labels == "auto":
        what += f" ({columns.other} is no class)"
    origin = f"the column {columns.label}"
    digest = digest_of([place / name for name in names], roots)
    return raw_set(parts, options, what, origin, columns.names, digest)


class ReadParquet(Reader):
    """Read the picture of a row; those that follow in the same row group cost little."""

    def __init__(self, files: Sequence[Rows], columns: Columns) -> None:
        super().__init__()
        self.files, self.columns = list(files), columns
        self.starts = np.cumsum([0, *(file.starts[-1] for file in files)])

    def __call__(self, i: int) -> bytes:
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        file, row = self.files[number], i - int(self.starts[number])
        group = int(np.searchsorted(file.starts, row, side="right")) - 1
        with self._open() as held:
            if held.get("group") != (number, group) or row < held["first"]:
                self._start(held, number, group)
            while row >= held["first"] + len(held["column"]):
                held["first"] += len(held["column"])
                held["column"] = self._pictures(next(held["batches"]))
            picture = held["column"][row - held["first"]].as_py()
        if picture is None:
            raise ValueError("the file holds no picture here, at most a path")
        return picture

    def _start(self, held: dict[str, Any], number: int, group: int) -> None:
        """Go to the beginning of a row group."""
        file, columns = self.files[number], self.columns
        if held.get("number") != number:
            self._close()
            held["file"] = _parquet().ParquetFile(file.path)
        batches = held["file"].iter_batches(
            int(file.batch[group]),
            row_groups=[group],
            columns=[f"{columns.image}.bytes" if columns.nested else columns.image],
            use_threads=False,
        )
        first = int(file.starts[group])
        held |= {"number": number, "group": (number, group), "batches": batches}
        held |= {"first": first, "column": ()}

    def _pictures(self, batch: Any) -> Any:
        column = batch.column(0)
        return column.field("bytes") if self.columns.nested else column


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet  # here, so that other sets do without it
    except ImportError as error:
        raise UserError("data.name: parquet takes pyarrow: pip install pyarrow") from error
    return parquet


def _open(place: Path, name: str) -> Any:
    try:
        return _parquet().ParquetFile(place / name)
    except UserError:
        raise
    except Exception as error:  # pyarrow has many: ArrowInvalid, OSError, ...
        raise _damaged(place / name, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return UserError(f"{path}: cannot be read as Parquet ({text}); takes {TAKES}")


def _columns(place: Path, name: str) -> Columns:
    """Return the columns of pictures and of labels; UserError where there is none of pictures."""
    with _open(place, name) as file:
        schema = file.schema_arrow
    import pyarrow.types as kinds

    def is_binary(kind: Any) -> bool:
        return kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind)

    def is_nested(kind: Any) -> bool:
        place = kind.get_field_index("bytes") if kinds.is_struct(kind) else -1
        return place >= 0 and is_binary(kind.field(place).type)

    def is_label(kind: Any) -> bool:
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        texts = (kinds.is_string, kinds.is_large_string, kinds.is_string_view)
        return kinds.is_integer(kind) or any(is_text(kind) for is_text in texts)

    fit = [f.name for f in schema if is_binary(f.type) or is_nested(f.type)]
    if not fit:
        have = ", ".join(f"{f.name}: {_kind(f.type)}" for f in schema)
        raise UserError(
            f"{place / name}: has no column of pictures, which is binary or a struct of "
            f"{{bytes, path}}; its columns are {have or 'none'}"
        )
    image = next((usual for usual in IMAGES if usual in fit), fit[0])
    classes = _class_names(schema)
    usual = [label for label in LABELS if label in schema.names]
    usual += [label for label in classes if label in schema.names]
    label = next((n for n in usual if is_label(schema.field(n).type)), None)
    other = usual[0] if usual and label is None else ""
    nested = is_nested(schema.field(image).type)
    return Columns(image, nested, label, classes.get(label or "", ()), other)


def _kind(kind: Any) -> str:
    return " ".join(str(kind).split())[:80]


def _class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes by column, from Hugging Face's metadata in the schema."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):  # others' metadata, or none
        return {}


def _rows(
    place: Path, name: str, columns: Columns, first: str, with_labels: bool
) -> tuple[Rows, list[Label]]:
    """Return the row groups and the labels of a file; UserError where it is not as the first."""
    path = place / name
    if (own := _columns(place, name)) != columns:
        raise UserError(f"{path}: {_words(own)}; takes what {first} has: {_words(columns)}")
    labels: list[Label] = []
    with _open(place, name) as file:
        groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
        counts = [group.num_rows for group in groups]
        leaf = f"{columns.image}.bytes" if columns.nested else columns.image
        chunks = [_chunk(group, leaf) for group in groups]
        _check_pictures(path, columns, chunks, sum(counts))
        if columns.label and with_labels:
            try:
                labels = file.read(columns=[columns.label]).column(0).to_pylist()
            except Exception as error:
                raise _damaged(path, error) from error
    sizes = [max(chunk.total_uncompressed_size, 1) for chunk in chunks]
    batch = [max(1, min(n, n * AT_ONCE // size)) for n, size in zip(counts, sizes, strict=True)]
    return Rows(str(path), np.cumsum([0, *counts]), np.array(batch, np.int64)), labels


def _chunk(group: Any, leaf: str) -> Any:
    """Return the metadata of the column that holds the bytes, in a row group."""
    columns = (group.column(c) for c in range(group.num_columns))
    return next(column for column in columns if column.path_in_schema == leaf)


def _check_pictures(path: Path, columns: Columns, chunks: Sequence[Any], count: int) -> None:
    """Raise UserError where the file holds paths of pictures alone."""
    known = [chunk.statistics for chunk in chunks]
    if count and all(s is not None and s.has_null_count for s in known):
        if sum(s.null_count for s in known) == count:
            raise UserError(
                f"{path}: the column {columns.image} holds no picture, at most paths; takes the "
                "bytes in the file (for pictures beside it: data.name=folder)"
            )


def _words(columns: Columns) -> str:
    image = f"pictures in {columns.image} ({'struct' if columns.nested else 'binary'})"
    label = f"labels in {columns.label}" if columns.label else "no labels"
    return f"{image}, {label}{f' of {len(columns.names)} classes' if columns.names else ''}"
