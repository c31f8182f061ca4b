"""`metrics.csv`: one row for each logged step, appended while the run goes on."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

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
# before the name of a loss's term: a column of its own, after the others, in runs that have several
TERM = "loss_"


def read_rows(path: Path) -> list[dict[str, float]]:
    """All rows, blanks as NaN; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    rows = csv.DictReader(whole)
    known = _columns(rows.fieldnames or ())
    return [
        {k: float(v) if v else float("nan") for k, v in row.items() if k in known} for row in rows
    ]


def truncate_after(path: Path, step: int) -> list[dict[str, float]]:
    """Drops the rows of steps that a resumed run will take again, and returns those that stay."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    _write(path, rows, _columns_of(path))
    return rows


def append_row(path: Path, row: dict[str, float]) -> None:
    """One more row; columns that it lacks stay blank. The first row with terms of the loss gives
    them their columns.
    """
    columns = _columns_of(path)
    if more := [name for name in _columns(row) if name not in columns]:
        columns += tuple(more)
        _write(path, read_rows(path), columns)
    with path.open("a", newline="") as file:
        _writer(file, columns).writerow(_text(row, columns))


def as_written(row: dict[str, float]) -> dict[str, float]:
    """The row as `read_rows` will find it: what is decided on it is decided again alike after a
    restart.
    """
    return {
        name: float(text) if text else float("nan")
        for name, text in _text(row, _columns(row)).items()
    }


def _columns(names: Iterable[str]) -> tuple[str, ...]:
    """COLUMNS, and the terms of the loss among `names`."""
    return COLUMNS + tuple(name for name in names if name.startswith(TERM))


def _columns_of(path: Path) -> tuple[str, ...]:
    """The columns of the file, which need not be there yet."""
    if not path.exists():
        return COLUMNS
    with path.open() as file:
        first = file.readline()
    return _columns(first.strip().split(",") if first.endswith("\n") else ())


def _write(path: Path, rows: list[dict[str, float]], columns: tuple[str, ...]) -> None:
    """The whole file, or, where writing fails, the one before."""
    scratch = path.with_suffix(".tmp")
    with scratch.open("w", newline="") as file:
        writer = _writer(file, columns)
        writer.writeheader()
        writer.writerows(_text(row, columns) for row in rows)
    os.replace(scratch, path)


def _writer(file, columns: tuple[str, ...]) -> csv.DictWriter:
    return csv.DictWriter(file, columns, lineterminator="\n")


def _text(row: dict[str, float], columns: tuple[str, ...]) -> dict[str, str]:
    def one(name):
        value = row.get(name)
        if value is None or value != value:
            return ""
        return str(int(value)) if name == "step" else f"{value:.6g}"

    return {name: one(name) for name in columns}
