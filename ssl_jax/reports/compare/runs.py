"""Runs of any task, read from their work directories, and grouped over their seeds."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax import intervals
from ssl_jax.errors import UserError
from ssl_jax.intervals import Estimate
from ssl_jax.text import shown
from ssl_jax.workdir import metrics_csv
from ssl_jax.workdir.directory import FREE, is_free, read_json, spread
from ssl_jax.workdir.dynamics_npz import read_dynamics
from ssl_jax.workdir.schema import (
    CURVE,
    FLAG,
    NUMBER,
    SECTION,
    TEXT,
    WHOLE,
    Shape,
    fault,
    is_number,
)

FEW = 3  # fields that vary and have a column each
# In which runs of one group differ, beside what starts of one run may differ in.
OWN = ("seed", "method")


class Measure(NamedTuple):
    """A number that a run ends with."""

    title: str  # of its column
    digits: int  # behind the point
    scale: float = 1  # units of the column in one of result.json


# By their names in result.json, in the order of the columns.
ACCURACIES = {
    "linear_accuracy": Measure("linear, %", 2, 100),
    "knn_accuracy": Measure("kNN, %", 2, 100),
    "ridge_accuracy": Measure("ridge, %", 2, 100),
    "few_label.pretrained.mean": Measure("few labels, %", 2, 100),
    "test_accuracy": Measure("test, %", 2, 100),
    "best_validation_epoch_test_accuracy": Measure("test, best epoch, %", 2, 100),
    "original_best_test_epoch_accuracy": Measure("linear, best epoch, %", 2, 100),
    "random_init_linear_accuracy": Measure("untrained, %", 2, 100),
}
LABEL_FREE = {
    "rankme": Measure("RankMe", 1),
    "lidar": Measure("LiDAR", 1),
    "alpha_req": Measure("alpha-ReQ", 2),
    "alignment": Measure("alignment", 3),
    "uniformity": Measure("uniformity", 2),
    "effective_rank": Measure("effective rank of projections", 2),
    "relative_spread": Measure("spread of projections", 3),
    "loss": Measure("loss", 3),
}
UNTRAINED = {
    f"random_init_{name}_accuracy": Measure(name, 2, 100) for name in ("ridge", "knn")
}  # of no table of runs
MEASURES = ACCURACIES | LABEL_FREE | UNTRAINED
# What tables and pages read of a result.
FIELDS: dict[str, Shape] = {
    "task?": TEXT,
    "seed?": WHOLE,
    "state?": TEXT,
    "collapsed?": FLAG,
    **{f"{name}?": TEXT for name in ("verdict", "command", "device")},
    "seconds?": NUMBER,
    "images_per_second?": NUMBER,
    "steps?": NUMBER,
    "correlation_eigenvalues?": CURVE,
    "provenance?": SECTION,
    **{f"{name}?": NUMBER for name in MEASURES},
}


class Run(NamedTuple):
    """One work directory."""

    path: Path
    seed: int
    fields: dict[str, Any]  # of the configuration, by their full names
    result: dict[str, Any]  # {} while the run goes on
    columns: dict[str, np.ndarray]  # of metrics.csv
    dynamics: dict[str, np.ndarray]  # of dynamics.npz; {}: none


class Group(NamedTuple):
    """Runs that differ in nothing but their seed."""

    settings: dict[str, Any]  # the fields in which the groups differ
    runs: list[Run]  # by seed

    def label(self, common: dict[str, Any], last: bool = False) -> str:
        """Return the settings that are not the common ones, on one line.

        Args:
            common: settings that go without saying; {}: none do.
            last: give the last words of the fields' names alone.

        Returns:
            "field=value, field=value"; "as most" where all settings are common ones.
        """
        said = {f: v for f, v in self.settings.items() if f not in common or common[f] != v}
        names = {f: short(f).rpartition(".")[2] if last else short(f) for f in said}
        return ", ".join(f"{names[f]}={spelled(v)}" for f, v in said.items()) or "as most"


# --- From the disk --------------------------------------------------------------------------------


def find_runs(patterns: str) -> list[Path]:
    """Return the work directories that patterns name, and those that lie below.

    Args:
        patterns: directories, with * and ? where wanted, and commas between them.

    Returns:
        Directories that hold config.json and metrics.csv or result.json, each once, by name.

    Raises:
        UserError: a pattern leads to no run.
    """
    takes = "takes work directories of runs, e.g. 'runs/tau/*', with commas between them"
    words = [word.strip() for word in patterns.split(",") if word.strip()]
    if not words:
        raise UserError(f"runs: got none, {takes}")
    found: dict[Path, None] = {}
    for word in words:
        below = [run for path in sorted(glob.glob(word)) for run in runs_below(Path(path))]
        if not below:
            raise UserError(f"runs: got {word!r}, where there is no run; {takes}")
        found |= dict.fromkeys(below)
    return list(found)


def runs_below(folder: Path) -> list[Path]:
    """Return the folder where it is a run, else the runs below it; links are not followed."""
    found: list[Path] = []
    for path, inner, names in os.walk(folder):
        inner.sort()
        if "config.json" in names and {"metrics.csv", "result.json"} & set(names):
            found.append(Path(path))
            inner.clear()
    return found


def read_runs(paths: Iterable[Path], defaults: dict[str, Any]) -> tuple[list[Run], list[str]]:
    """Read the runs.

    Args:
        paths: their work directories.
        defaults: task -> defaults of its fields, for configurations that lack some of them.

    Returns:
        Those that can be read, and a line for each of the others.
    """
    runs, left_out = [], []
    for path in paths:
        try:
            runs.append(read_run(path, defaults))
        except UserError as error:
            left_out.append(str(error))
    return runs, left_out


def read_run(path: Path, defaults: dict[str, Any]) -> Run:
    """Read a work directory; UserError where a file of it is damaged, or of no run that trains."""
    config = read_json(path / "config.json")
    task = config.get("task")
    if not isinstance(task, str) or task not in defaults:
        raise UserError(f"{path}: its task is {shown(task)}, which trains nothing")
    fields = spread(defaults[task]) | spread(config)
    if fault(fields, {"seed": WHOLE}):
        raise UserError(f"{path / 'config.json'}: {fault(fields, {'seed': WHOLE})}")
    result = read_json(path / "result.json") if (path / "result.json").is_file() else {}
    if result and (wrong := fault(result, FIELDS)):
        raise UserError(f"{path / 'result.json'}: {wrong}")
    columns = metrics_csv.read_columns(path / metrics_csv.NAME)
    dynamics = read_dynamics(path) if (path / "dynamics.npz").is_file() else {}
    return Run(path, fields["seed"], fields, result, columns, dynamics)


# --- Groups ---------------------------------------------------------------------------------------


def group(runs: Sequence[Run]) -> list[Group]:
    """Return the runs by their settings, in the order of these, that of the common ones first.

    Two runs of the same settings and the same seed are two runs of their group, whose measures
    `values` takes the mean of.
    """
    names = dict.fromkeys(name for run in runs for name in run.fields)
    varying = [
        name
        for name in names
        if not is_free(name, FREE + OWN) and len({repr(run.fields.get(name)) for run in runs}) > 1
    ]
    groups: dict[str, Group] = {}
    for run in runs:
        settings = {name: run.fields.get(name) for name in varying}
        groups.setdefault(repr(settings), Group(settings, [])).runs.append(run)
    found = sorted(groups.values(), key=lambda one: [rank(v) for v in one.settings.values()])
    common = common_settings(found)
    found.sort(key=lambda one: one.settings != common)  # the usual one first, where there is one
    return [one._replace(runs=sorted(one.runs, key=lambda run: run.seed)) for one in found]


def common_settings(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the most frequent value of each field, for groups that vary more than `FEW` of them.

    It is {} for others: their settings have a column each.
    """
    fields = list(groups[0].settings)
    if len(fields) <= FEW:
        return {}
    values = {field: [one.settings[field] for one in groups] for field in fields}
    return {field: max(found, key=found.count) for field, found in values.items()}


def rank(value: Any) -> tuple[int, float, str]:
    """Return by what values of a field are sorted: numbers by size, unset ones, then texts."""
    if is_number(value):
        return 0, float(value), ""
    return 1, 0.0, spelled(value) if value else ""


def spelled(value: Any) -> str:
    """Return a field's value in few characters."""
    if value is None or value == "":
        return "unset"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(spelled, value)) if isinstance(value, list | tuple) else str(value)


def short(field: str) -> str:
    """Return a field's name without the word "optimizer", which most of them begin with."""
    return field.removeprefix("optimizer.")


# --- Numbers --------------------------------------------------------------------------------------


def measures_of(groups: Sequence[Group]) -> list[str]:
    """Return the measures that some run has."""
    return [name for name in MEASURES if any(values(one, name) for one in groups)]


def main_measure(groups: Sequence[Group]) -> str | None:
    """Return the measure that figures show: the first that all groups have; None: there is none."""
    shared = [name for name in MEASURES if all(values(one, name) for one in groups)]
    return shared[0] if shared else None


def values(one: Group, name: str) -> dict[int, float]:
    """Return a measure by seed, in the units of its column: the mean over runs of one seed."""
    scale = MEASURES[name].scale
    found: dict[int, list[float]] = {}
    for run in one.runs:
        value: Any = run.result
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if is_number(value):
            found.setdefault(run.seed, []).append(scale * value)
    return {seed: float(np.mean(several)) for seed, several in found.items()}


def estimate(one: Group, name: str) -> Estimate | None:
    """Return the mean of a measure over the group's seeds; None where no run has it."""
    found = values(one, name).values()
    return intervals.estimate(found, MEASURES[name].digits) if found else None


def difference(one: Group, other: Group, name: str) -> Estimate | None:
    """Return the mean of `one` minus `other` over their shared seeds; None: there are none."""
    ours, theirs = values(one, name), values(other, name)
    found = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
    return intervals.estimate(found, MEASURES[name].digits, signed=True) if found else None


def states(one: Group) -> str:
    """Return the doctor's states of the runs, counted where they differ."""

    def state(result: dict) -> str:
        if not result:
            return "unfinished"
        known = {True: "collapsed", False: "healthy"}  # results of earlier versions have no state
        return result.get("state") or known.get(result.get("collapsed", ""), "-")

    found = [state(run.result) for run in one.runs]
    counted = {state: found.count(state) for state in found}
    if len(counted) == 1:
        return found[0]
    return ", ".join(f"{count} {state}" for state, count in counted.items())
