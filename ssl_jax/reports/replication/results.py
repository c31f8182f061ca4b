"""Results of sweeps, gathered from their files, and what one cell says in numbers."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.intervals import student_interval
from ssl_jax.workdir.directory import spread

NEEDED = ("sweep", "scale", "cell", "seed", "linear_accuracy", "effective_rank", "config")
SCALES = ("full", "mini")
PROTOCOL = {"original_table8": "original_best_test_epoch_accuracy"}  # the accuracy that its paper publishes

Runs = list[dict]  # result files of one cell at one scale, one a seed
Cells = dict[tuple[str, str], Runs]  # by (sweep, cell)


class Gathered(NamedTuple):
    """cells: by scale; left_out: a line for each file that is in no table, and why."""

    cells: dict[str, Cells]
    left_out: list[str]


def gather(folders: Iterable[Path]) -> Gathered:
    """All results below the folders. Left out are damaged files, those that lack a field, seeds that are there twice,
    and runs of another configuration than the first seed of their cell.
    """
    found: dict[str, Cells] = {}
    left_out: list[str] = []
    for path in sorted(path for folder in folders for path in Path(folder).glob("*/*/*/seed-*.json")):
        run = _read(path, left_out)
        if run is None:
            continue
        runs = found.setdefault(run["scale"], {}).setdefault((run["sweep"], run["cell"]), [])
        reason = next((why for other in runs if (why := _conflict(run, other))), None)
        if reason:
            left_out.append(f"{path}: {reason}")
        else:
            runs.append(run | {"path": str(path)})
    return Gathered(found, left_out)


def _read(path: Path, left_out: list[str]) -> dict | None:
    sweep, scale, cell, name = path.parts[-4:]
    place = {"sweep": sweep, "scale": scale, "cell": cell, "seed": name.removeprefix("seed-").removesuffix(".json")}
    try:
        run = json.loads(path.read_text())
        lacking = [field for field in NEEDED if field not in run]
        moved = [f for f, value in place.items() if f in run and str(run[f]) != value]
    except (OSError, ValueError, TypeError) as error:
        left_out.append(f"{path}: damaged ({' '.join(str(error).split())})")
        return None
    if lacking:
        left_out.append(f"{path}: lacks {', '.join(lacking)}")
    elif moved:
        left_out.append(f"{path}: says {moved[0]} {run[moved[0]]!r}, and lies under {place[moved[0]]!r}")
    elif wrong := [name for name in (accuracy_of(sweep), "effective_rank") if not is_number(run.get(name))]:
        left_out.append(f"{path}: {wrong[0]} is {run.get(wrong[0])!r}, no number")
    elif not isinstance(run["config"], dict):
        left_out.append(f"{path}: config is {run['config']!r}, no configuration")
    else:
        return run
    return None


def is_number(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def accuracy_of(sweep: str) -> str:
    """The accuracy that the sweep's paper publishes."""
    return PROTOCOL.get(sweep, "linear_accuracy")


def _conflict(run: dict, other: dict) -> str | None:
    """Why both cannot stand in one cell."""
    if run["seed"] == other["seed"]:
        same = "the same" if run["linear_accuracy"] == other["linear_accuracy"] else "another"
        return f"seed {run['seed']} is there already, with {same} accuracy ({other['path']})"
    ours, theirs = (spread(r["config"]) for r in (run, other))
    apart = sorted(f for f in ours.keys() & theirs.keys() if ours[f] != theirs[f] and f not in OWN)
    return f"{apart[0]} is {ours[apart[0]]}, and {theirs[apart[0]]} in {other['path']}" if apart else None


# In which runs of one cell may differ; a sweep lets them.
OWN = ("seed", "devices", "steps_per_call", "data.resident", "log_every", "eval_every", "checkpoint_every")
OWN += ("dynamics.every", "data.data_dir")


class Estimate(NamedTuple):
    """Mean over `count` seeds, and the half-width of its 95% interval (None: one seed)."""

    mean: float
    width: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.width:.2f}" if self.width is not None else "")


def estimate(values: Iterable[float]) -> Estimate:
    numbers = np.array(list(values), np.float64)
    mean, width = student_interval(numbers)
    return Estimate(float(mean), None if width is None else float(width), len(numbers))


def accuracy(runs: Runs, field: str = "linear_accuracy") -> Estimate:
    """In per cent."""
    return estimate(100 * run[field] for run in runs)


def state(runs: Runs) -> str:
    """What the runs' own diagnoses say, those of several seeds counted."""
    names = [run.get("state", "collapsed" if run.get("collapsed") else "healthy") for run in runs]
    counted = {name: names.count(name) for name in names}
    return ", ".join(
        name if count == len(names) else f"{name} ({count} of {len(names)})" for name, count in counted.items()
    )
