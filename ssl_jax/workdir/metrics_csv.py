"""`metrics.csv`: one row for each logged step, appended while the run goes on."""

import csv
import os
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
    "test_accuracy",
    "rate_scale",
    "opposing_ratio",
    "opposing_fraction",
    "images_per_second",
    "seconds",
)


def read_rows(path: Path) -> list[dict[str, float]]:
    """All rows, blanks as NaN; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    rows = csv.DictReader(whole)
    return [{k: float(v) if v else float("nan") for k, v in row.items() if k in COLUMNS} for row in rows]


def truncate_after(path: Path, step: int) -> list[dict[str, float]]:
    """Drops the rows of steps that a resumed run will take again, and returns those that stay."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    scratch = path.with_suffix(".tmp")
    with scratch.open("w", newline="") as file:
        writer = _writer(file)
        writer.writeheader()
        writer.writerows(_text(row) for row in rows)
    os.replace(scratch, path)
    return rows


def append_row(path: Path, row: dict[str, float]) -> None:
    """One more row; columns that it lacks stay blank."""
    with path.open("a", newline="") as file:
        _writer(file).writerow(_text(row))


def as_written(row: dict[str, float]) -> dict[str, float]:
    """The row as `read_rows` will find it: what is decided on it is decided again alike after a restart."""
    return {name: float(text) if text else float("nan") for name, text in _text(row).items()}


def _writer(file) -> csv.DictWriter:
    return csv.DictWriter(file, COLUMNS, lineterminator="\n")


def _text(row: dict[str, float]) -> dict[str, str]:
    def one(name):
        value = row.get(name)
        if value is None or value != value:
            return ""
        return str(int(value)) if name == "step" else f"{value:.6g}"

    return {name: one(name) for name in COLUMNS}
