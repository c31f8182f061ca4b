"""Features of pictures in a work directory: written in parts, and joined to embeddings.parquet.

A part is the features of `PART` neighbouring records, one file, whole or not at all. So a start
that was killed loses one part at most, and the next one makes the same bits: which records are
computed together does not depend on where it stopped. `embeddings.npz` and `embeddings.csv` are
made of the Parquet file; nothing here has more in memory than `GROUP` parts.
"""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.runtime.terminal import say
from ssl_jax.text import encodable

if TYPE_CHECKING:  # imported late: every start imports this file, and few write these files
    import pyarrow as pa

NAME = "embeddings.parquet"
PART = 500  # records of a part
GROUP = 8  # parts of a row group: 33 MB with 2048 features
TEXTS = ("path", "split", "label")
NOTE = b"ssl_jax"  # key of the metadata that say what the features were computed from

Damaged = list[tuple[int, str]]  # place among the records, and the reason


class Part(NamedTuple):
    """The features of some neighbouring records."""

    row: np.ndarray  # (n,) int64: places among all records, ascending, without the damaged ones
    feature: np.ndarray  # (n, F) float32
    damaged: Damaged


class Parts:
    """The finished parts, kept in a folder as long as they are of the same `identity`."""

    def __init__(self, folder: Path, identity: str, count: int) -> None:
        """Open the folder; parts of something else are deleted.

        Args:
            folder: need not exist.
            identity: names the records and what computes their features.
            count: number of all records.
        """
        self.folder, self.count = folder, -(-count // PART)
        card = folder / "identity.txt"
        try:
            same = card.read_text() == identity
        except (OSError, ValueError):
            same = False
        if not same:
            if any(folder.glob("*.npz")):
                say(f"{folder}: parts of other pictures or of another encoder, computed again")
            if os.path.lexists(folder):  # with what a kill left of the card, too
                with files.writing(folder):
                    shutil.rmtree(folder)
            files.make_folder(folder)
            files.write_whole(card, identity)

    def read(self, number: int) -> Part | None:
        """Return a part; None where it is not there, or damaged."""
        try:
            with np.load(self._path(number), allow_pickle=False) as arrays:
                damaged = [
                    (int(row), str(why)) for row, why in json.loads(arrays["damaged"].item())
                ]
                return Part(arrays["row"], arrays["feature"], damaged)
        except Exception:  # zipfile, zlib and NumPy each raise their own
            return None

    def whole(self, number: int) -> Part:
        """Return a part that was written; UserError where it has been damaged since."""
        if (part := self.read(number)) is None:
            raise UserError(f"{self._path(number)}: damaged; the same command computes it again")
        return part

    def write(self, number: int, part: Part) -> None:
        """Write a part, whole or not at all."""
        content = io.BytesIO()
        damaged = np.array(json.dumps(part.damaged))
        np.savez(content, row=part.row, feature=part.feature, damaged=damaged)
        files.write_whole(self._path(number), content.getvalue())

    def delete(self) -> None:
        """Delete all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.npz"


class Columns(NamedTuple):
    """The records' names, splits and labels, in the order of the rows."""

    names: Sequence[str]  # of all splits, one after the other
    labels: np.ndarray | None  # numbers of the classes, -1 without one; None: the set has none
    splits: Sequence[tuple[str, int]]  # name of each, and number of its records
    label_names: Sequence[str]  # () without labels

    def of(self, rows: np.ndarray) -> dict[str, list[str | None]]:
        """Return the columns `TEXTS` of these rows; the label of a record without one is None."""
        places = self._places(rows)
        numbers = np.full(len(rows), -1) if self.labels is None else self.labels[rows]
        columns: dict[str, list[str | None]] = {name: [] for name in TEXTS}
        for row, place, number in zip(map(int, rows), places, map(int, numbers), strict=True):
            columns["path"].append(encodable(self.names[row]))
            columns["split"].append(self.splits[place][0])
            columns["label"].append(encodable(self.label_names[number]) if number >= 0 else None)
        return columns

    def sizes(self, rows: np.ndarray) -> dict[str, int]:
        """Return how many of these rows each split has."""
        counts = np.bincount(self._places(rows), minlength=len(self.splits))
        return {name: int(n) for (name, _), n in zip(self.splits, counts, strict=True)}

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Return for each row the place of its split among `splits`."""
        return np.searchsorted(np.cumsum([count for _, count in self.splits]), rows, "right")


# --- embeddings.parquet ---------------------------------------------------------------------------


def join(path: Path, parts: Parts, columns: Columns, dim: int, note: dict[str, Any]) -> None:
    """Write embeddings.parquet from all parts.

    Args:
        path: the file.
        parts: all of them finished.
        columns: names, splits and labels.
        dim: features of a picture, F.
        note: what the features were computed from, as JSON, for the metadata.

    Raises:
        UserError: the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    feature = pa.list_(pa.float32(), dim)
    fields = [*((name, pa.string()) for name in TEXTS), ("feature", feature)]
    schema = pa.schema(fields, {NOTE: json.dumps(note).encode()})
    options: dict[str, Any] = {"use_dictionary": ["split", "label"], "write_statistics": False}
    with (
        files.writing(path),
        files.replacing(path) as file,
        parquet.ParquetWriter(file, schema, **options) as writer,
    ):
        for first in range(0, parts.count, GROUP):
            found = [parts.whole(n) for n in range(first, min(first + GROUP, parts.count))]
            row = np.concatenate([part.row for part in found])
            values = np.concatenate([part.feature for part in found]).ravel()
            if not len(row):  # all of them damaged
                continue
            texts = [pa.array(text, pa.string()) for text in columns.of(row).values()]
            stored = pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), dim)
            writer.write_table(pa.table([*texts, stored], schema=schema), row_group_size=len(row))


class Embeddings:
    """A finished embeddings.parquet, read in pieces."""

    def __init__(self, path: Path) -> None:
        """Open the file, of which nothing but the metadata is read."""
        from pyarrow import parquet

        self.path = path
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            self.count = file.metadata.num_rows
            self.groups = file.metadata.num_row_groups
        self.dim: int = schema.field("feature").type.list_size  # F
        self.note: dict[str, Any] = json.loads((schema.metadata or {})[NOTE])

    def features(self) -> Iterator[np.ndarray]:
        """Yield the features, (n, F) float32 at a time."""
        for table in self.pieces(["feature"]):
            yield _features(table, self.dim)

    def texts(self, name: str) -> Iterator[list[str | None]]:
        """Yield a column of `TEXTS`, a list at a time."""
        for table in self.pieces([name]):
            yield table.column(0).to_pylist()

    def take(self, rows: np.ndarray) -> tuple[dict[str, list[str | None]], np.ndarray]:
        """Return the texts by column and the features (n, F) of some rows, in ascending order."""
        texts: dict[str, list[str | None]] = {name: [] for name in TEXTS}
        features, start = [np.zeros((0, self.dim), np.float32)], 0
        for table in self.pieces([*TEXTS, "feature"]):
            inside = rows[(rows >= start) & (rows < start + table.num_rows)] - start
            some = table.take(inside)
            for name in TEXTS:
                texts[name] += some.column(name).to_pylist()
            features.append(_features(some, self.dim))
            start += table.num_rows
        return texts, np.concatenate(features)

    def pieces(self, names: list[str]) -> "Iterator[pa.Table]":
        """Yield a row group at a time, of some columns."""
        from pyarrow import parquet

        with parquet.ParquetFile(self.path) as file:
            for group in range(self.groups):
                yield file.read_row_group(group, columns=names, use_threads=False)


def open_finished(path: Path, identity: str) -> Embeddings | None:
    """Return embeddings.parquet where it is whole and of this `identity`; None else."""
    try:
        found = Embeddings(path)
        return found if found.note["identity"] == identity else None
    except Exception:  # absent, damaged, or another program's: it is made anew
        return None


def _features(table: "pa.Table", dim: int) -> np.ndarray:
    column = table.column("feature").combine_chunks()
    return np.asarray(column.flatten(), np.float32).reshape(-1, dim)


# --- Other forms ----------------------------------------------------------------------------------


def write_npz(embeddings: Embeddings, path: Path) -> None:
    """Write the arrays path, split, label (N,) text and feature (N, F) float32 for `np.load`.

    The label of a picture without one is "".
    """
    with (
        files.writing(path),
        files.replacing(path) as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        for name in TEXTS:
            widths = (len(text or "") for piece in embeddings.texts(name) for text in piece)
            kind = np.dtype(f"<U{max(widths, default=0) or 1}")
            pieces = (np.array([t or "" for t in p], kind) for p in embeddings.texts(name))
            _write_array(archive, name, kind, (embeddings.count,), pieces)
        shape = embeddings.count, embeddings.dim
        _write_array(archive, "feature", np.dtype("<f4"), shape, embeddings.features())


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    kind: np.dtype,
    shape: tuple[int, ...],
    pieces: Iterator[np.ndarray],
) -> None:
    info = zipfile.ZipInfo(f"{name}.npy")  # of 1980: the same features, the same bytes
    info.compress_type = zipfile.ZIP_DEFLATED if kind.kind == "U" else zipfile.ZIP_STORED
    with archive.open(info, "w", force_zip64=True) as file:
        header = {"descr": kind.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, kind).tobytes())


def write_csv(embeddings: Embeddings, path: Path) -> None:
    """Write the columns path, split, label, feature_0, feature_1, ...; a lacking label is blank."""
    import pyarrow as pa
    from pyarrow import csv

    names = [f"feature_{i}" for i in range(embeddings.dim)]
    fields = [*((name, pa.string()) for name in TEXTS), *((n, pa.float32()) for n in names)]
    schema = pa.schema(fields)
    with files.writing(path), files.replacing(path) as file:
        with csv.CSVWriter(file, schema) as writer:
            for piece in embeddings.pieces([*TEXTS, "feature"]):
                columns = _features(piece, embeddings.dim).T
                arrays = [*(piece.column(name) for name in TEXTS), *map(pa.array, columns)]
                writer.write_table(pa.table(arrays, schema=schema))


WRITERS: dict[str, Callable[[Embeddings, Path], None]] = {"npz": write_npz, "csv": write_csv}
