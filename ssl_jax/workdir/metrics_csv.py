"""`metrics.csv`: one row for each logged step, appended while the run goes on."""

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.runtime.terminal import warn
from ssl_jax.workdir.recorder import Recorder, Row

NAME = "metrics.csv"
COLUMNS: tuple[str, ...] = (
    "step",
    "epoch",
    "loss",
    "relative_spread",
    "effective_rank",
    "top_eigenvalue",
    "predictor_norm",
    "predictor_asymmetry",
    "learning_rate",
    "knn_validation",
    "rankme",  # of the features of validation images, as the next four
    "alpha_req",
    "lidar",
    "alignment",
    "uniformity",
    "projection_rankme",
    "projection_lidar",
    "projection_alignment",
    "projection_uniformity",
    "train_accuracy",
    "validation_accuracy",
    "validation_loss",
    "test_accuracy",
    "rate_scale",
    "opposing_ratio",
    "opposing_fraction",
    "wd_opposing_ratio",
    "wd_opposing_fraction",
    "images_per_second",
    "seconds",
)
# Before the name of a loss's term: a column of its own, after the others, in runs with several.
TERM = "loss_"


def read_rows(path: Path) -> list[Row]:
    """Read all rows; a last line that a crash cut off is left out.

    Args:
        path: the file; if there is none, there are no rows.

    Returns:
        The rows by ascending step, blanks as NaN.

    Raises:
        UserError: the file cannot be read, or is not what training writes.
    """
    if not os.path.lexists(path):
        return []
    text = files.read_text(path, "the table that training writes")
    try:
        return parse(text)
    except ValueError as error:
        raise UserError(f"{path}: damaged, {error}; take another run") from error


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Return the file's columns by name, blanks as NaN; {} without rows. Errors as `read_rows`."""
    rows = read_rows(path)
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def parse(text: str) -> list[Row]:
    """Return the rows of the table in `text`; a ValueError says where it is damaged."""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    if not lines:
        return []
    if "\0" in text:
        raise ValueError("holds NUL bytes, as after a power cut")
    names = lines[0].rstrip("\n").split(",")
    if "step" not in names:
        raise ValueError(f"its first line lacks step, got {lines[0][:40]!r}")
    known = set(_columns(names))
    rows: list[Row] = []
    for number, line in enumerate(lines[1:], start=2):
        values = line.rstrip("\n").split(",")
        if len(values) != len(names):
            raise ValueError(f"line {number} has {len(values)} columns, the first {len(names)}")
        try:
            row = {
                name: float(value) if value else float("nan")
                for name, value in zip(names, values, strict=True)
                if name in known
            }
        except ValueError as error:
            raise ValueError(f"line {number} holds no number ({error})") from error
        if not (row["step"] >= 0 and row["step"] % 1 == 0):
            raise ValueError(f"line {number} has step {row['step']:g}")
        if rows and row["step"] <= rows[-1]["step"]:
            raise ValueError(
                f"line {number} goes from step {rows[-1]['step']:.0f} to {row['step']:.0f}"
            )
        rows.append(row)
    return rows


def truncate_after(path: Path, step: int) -> list[Row]:
    """Drop the rows after `step`, which a resumed run takes again; return those that stay."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    files.write_whole(path, table(rows, _columns_of(path)))
    return rows


def restore(path: Path, step: int, kept: str) -> list[Row]:
    """Cut the file back to `step`, the checkpoint that a run goes on from.

    A file without the rows that the checkpoint has (deleted, cut, edited, damaged) is kept beside
    and written again from the checkpoint, with one line on standard error.

    Args:
        path: the file.
        step: the step of the checkpoint.
        kept: the table as it was then.

    Returns:
        The rows up to `step`.
    """
    wanted = parse(kept)
    try:
        found = [row for row in read_rows(path) if row["step"] <= step]
        whole = table(found) == table(wanted)
        problem = f"{path}: has not the {len(wanted)} rows of the checkpoint of step {step}"
    except UserError as error:
        whole, problem = False, str(error)
    if not whole:
        line = f"{problem}; written again from the checkpoint"
        if os.path.lexists(path):
            line += f", the old one is kept as {files.keep_beside(path).name}"
        warn(line)
    files.write_whole(path, table(wanted))
    return wanted


def recorder(out: Path, rows: list[Row]) -> Recorder:
    """Return the recorder that appends to metrics.csv of the work directory `out`.

    `restore` has cut the file back to `rows` by then: they come from it.
    """

    def write(step: int, row: Row) -> None:
        append_row(out / NAME, row)

    return Recorder(open=lambda _: None, write=write, close=lambda: None)


def append_row(path: Path, row: Row) -> None:
    """Append a row; columns that it lacks stay blank.

    The first row with terms of the loss gives them their columns.
    """
    columns = _columns_of(path)
    if more := [name for name in _columns(row) if name not in columns]:
        columns += tuple(more)
        files.write_whole(path, table(read_rows(path), columns))
    files.append(path, _lines([row], columns))


def table(rows: list[Row], columns: tuple[str, ...] | None = None) -> str:
    """Return the file that holds `rows`.

    Args:
        rows: of one run.
        columns: of the file; None: those that its rows need.
    """
    columns = columns or _columns(dict.fromkeys(name for row in rows for name in row))
    return ",".join(columns) + "\n" + _lines(rows, columns)


def as_written(row: Row) -> Row:
    """Return the row as `read_rows` will return it, rounded to the digits of the file.

    A decision taken on it is taken again after a restart.
    """
    return {
        name: float(text) if text else float("nan")
        for name, text in _text(row, _columns(row)).items()
    }


def _columns(names: Iterable[str]) -> tuple[str, ...]:
    """Return COLUMNS, and the terms of the loss among `names`."""
    return COLUMNS + tuple(name for name in names if name.startswith(TERM))


def _columns_of(path: Path) -> tuple[str, ...]:
    """Return the columns of the file, which need not be there yet."""
    if not path.exists():
        return COLUMNS
    with files.writing(path), path.open(encoding="utf-8") as file:
        first = file.readline()
    return _columns(first.strip().split(",") if first.endswith("\n") else ())


def _lines(rows: list[Row], columns: tuple[str, ...]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(
        _text(row, columns) for row in rows
    )
    return text.getvalue()


def _text(row: Row, columns: tuple[str, ...]) -> dict[str, str]:
    def one(name: str) -> str:
        value = row.get(name)
        if value is None or value != value:
            return ""
        return str(int(value)) if name == "step" else f"{value:.6g}"

    return {name: one(name) for name in columns}
