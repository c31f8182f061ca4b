"""Results of sweeps, read from their files into the runs and groups of compared runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.reports.compare import runs
from ssl_jax.reports.compare.runs import Group, Run
from ssl_jax.text import printable, shortened
from ssl_jax.workdir.directory import FREE, is_free, read_json, spread
from ssl_jax.workdir.schema import (
    CURVE,
    NUMBER,
    SECTION,
    SHARE,
    TEXT,
    WHOLE,
    Leaf,
    Shape,
    fault,
    is_array,
    is_number,
)

SCALES = ("full", "midi", "mini")
ACCURACIES = [f"{name}_accuracy" for name in ("linear", "ridge", "knn")]
MODES = Leaf(
    "finite numbers, at least one",
    lambda value: isinstance(value, list) and bool(value) and all(map(is_number, value)),
)
# What tables, claims and page read of a result.
FIELDS: dict[str, Shape] = {
    "sweep": TEXT,
    "scale": Leaf(" or ".join(SCALES), lambda value: value in SCALES),
    "cell": TEXT,
    "seed": WHOLE,
    "linear_accuracy": SHARE,
    "effective_rank": NUMBER,
    "config": SECTION,
    **{f"{name}?": SHARE for name in ACCURACIES[1:]},
    **{f"random_init_{name}?": SHARE for name in ACCURACIES},
    "dynamics?": {
        "first?": {"asymmetry_l1?": NUMBER},
        "last?": {"asymmetry_l1?": NUMBER, "alignment?": MODES},
        "history?": {"step?": [NUMBER], "epoch?": [NUMBER], "corr_eigenvalues?": [CURVE]},
    },
}
FIELDS |= {name: shape for name, shape in runs.FIELDS.items() if name not in FIELDS}
PROTOCOL = {
    "original_table8": "original_best_test_epoch_accuracy"
}  # the accuracy that its paper publishes

Cells = dict[tuple[str, str], Group]  # of one scale, by (sweep, cell)


class Gathered(NamedTuple):
    """Results by scale, and the files that are in no table."""

    cells: dict[str, Cells]  # by scale
    left_out: list[str]  # a line for each file: its path and the reason


def gather(folders: Iterable[Path], defaults: dict[str, Any] | None = None) -> Gathered:
    """Return all results below the folders.

    Four kinds of files are left out: damaged ones, those that lack a field, a seed that is there
    already, and runs of another configuration than the first seed of their cell. A configuration
    that lacks a field of `defaults` has its default.
    """
    by_scale: dict[str, Cells] = {}
    left_out: list[str] = []
    for path in sorted(
        path for folder in folders for path in Path(folder).glob("*/*/*/seed-*.json")
    ):
        run = _read(path, left_out)
        if run is None:
            continue
        names = {name: run.result[name] for name in ("sweep", "cell")}
        cells = by_scale.setdefault(run.result["scale"], {})
        cell = cells.setdefault(tuple(names.values()), Group(names, []))
        others = (_conflict(run, other, spread(defaults or {})) for other in cell.runs)
        if reason := next(filter(None, others), None):
            left_out.append(f"{path}: {reason}")
        else:
            cell.runs.append(run)
    return Gathered(by_scale, left_out)


def _read(path: Path, left_out: list[str]) -> Run | None:
    """Return a result file's run; None, and a line in `left_out`, where it is unusable."""
    sweep, scale, cell, name = path.parts[-4:]
    place = {
        "sweep": sweep,
        "scale": scale,
        "cell": cell,
        "seed": name.removeprefix("seed-").removesuffix(".json"),
    }
    try:
        run = read_json(path)
    except UserError as error:
        left_out.append(f"{error}")
        return None
    wrong = fault(run, FIELDS | {accuracy_of(sweep): SHARE}) or history_fault(run)
    moved = [f for f, value in place.items() if f in run and not same(run[f], value)]
    if wrong:
        left_out.append(f"{path}: {wrong}")
    elif moved:
        said = shortened(repr(run[moved[0]]))
        left_out.append(f"{path}: says {moved[0]} {said}, but is stored under {place[moved[0]]!r}")
    else:
        history = (run.get("dynamics") or {}).get("history") or {}
        names = ("epoch", "corr_eigenvalues") if history.get("corr_eigenvalues") else ()
        dynamics = {name: np.array(history[name], np.float64) for name in names}
        return Run(path, run["seed"], spread(run["config"]), run, {}, dynamics)
    return None


def same(name: object, folder: str) -> bool:
    """Return whether a folder has the name, as far as this locale can read it."""
    return printable(name) == printable(folder)


def history_fault(run: dict) -> str | None:
    """Return what keeps the history of the spectra from being drawn; None where nothing does."""
    history = (run.get("dynamics") or {}).get("history") or {}
    spectra = history.get("corr_eigenvalues") or []
    if not spectra:
        return None
    if len(history.get("epoch") or []) != len(spectra):
        return "dynamics.history: has not one epoch for each of corr_eigenvalues"
    if not is_array(spectra, (2,)):
        return "dynamics.history.corr_eigenvalues: its lists have several lengths"
    return None


def accuracy_of(sweep: str) -> str:
    """Return the name of the accuracy that the sweep's paper publishes."""
    return PROTOCOL.get(sweep, "linear_accuracy")


def _conflict(run: Run, other: Run, defaults: dict[str, Any]) -> str | None:
    """Return why two runs cannot be in one cell; None where they can."""
    if run.seed == other.seed:
        ours, theirs = (one.result["linear_accuracy"] for one in (run, other))
        same = "the same" if ours == theirs else "another"
        return f"seed {run.seed} is there already, with {same} accuracy ({other.path})"
    modes, others = (len(final(one, "alignment") or []) for one in (run, other))
    if modes and others and modes != others:
        return f"dynamics.last.alignment has {modes} modes, and {others} in {other.path}"
    ours, theirs = defaults | run.fields, defaults | other.fields
    apart = sorted(
        field
        for field in ours.keys() & theirs.keys()
        if ours[field] != theirs[field] and not is_free(field, FREE + runs.OWN)
    )
    said = (
        f"{apart[0]} is {ours[apart[0]]}, and {theirs[apart[0]]} in {other.path}" if apart else ""
    )
    return said or None


def final(run: Run, name: str, when: str = "last") -> Any:
    """Return what dynamics.npz held under `name` in its last or "first" record; None: nothing."""
    return ((run.result.get("dynamics") or {}).get(when) or {}).get(name)
