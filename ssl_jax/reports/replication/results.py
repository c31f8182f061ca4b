"""Results of sweeps, read from their files, and the statistics of one cell."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ssl_jax.errors import UserError
from ssl_jax.intervals import Estimate, estimate
from ssl_jax.text import printable, shortened
from ssl_jax.workdir.directory import FREE, is_free, read_json, spread
from ssl_jax.workdir.schema import (
    CURVE,
    FLAG,
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

SCALES = ("full", "mini")
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
    "collapsed?": FLAG,
    **{f"{name}?": TEXT for name in ("state", "verdict", "command", "device")},
    "seconds?": NUMBER,
    "dynamics?": {
        "first?": {"asymmetry_l1?": NUMBER},
        "last?": {"asymmetry_l1?": NUMBER, "alignment?": MODES},
        "history?": {"step?": [NUMBER], "epoch?": [NUMBER], "corr_eigenvalues?": [CURVE]},
    },
}
PROTOCOL = {
    "original_table8": "original_best_test_epoch_accuracy"
}  # the accuracy that its paper publishes

Runs = list[dict]  # result files of one cell at one scale, one a seed
Cells = dict[tuple[str, str], Runs]  # by (sweep, cell)


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
        runs = by_scale.setdefault(run["scale"], {}).setdefault((run["sweep"], run["cell"]), [])
        reason = next(
            (why for other in runs if (why := _conflict(run, other, defaults or {}))), None
        )
        if reason:
            left_out.append(f"{path}: {reason}")
        else:
            runs.append(run | {"path": str(path)})
    return Gathered(by_scale, left_out)


def _read(path: Path, left_out: list[str]) -> dict | None:
    """Return a result file's content; None, and a line in `left_out`, where it is unusable."""
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
        return run
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


def _conflict(run: dict, other: dict, defaults: dict[str, Any]) -> str | None:
    """Return why two runs cannot be in one cell; None where they can."""
    if run["seed"] == other["seed"]:
        same = "the same" if run["linear_accuracy"] == other["linear_accuracy"] else "another"
        return f"seed {run['seed']} is there already, with {same} accuracy ({other['path']})"
    modes, others = (len(final(r, "alignment") or []) for r in (run, other))
    if modes and others and modes != others:
        return f"dynamics.last.alignment has {modes} modes, and {others} in {other['path']}"
    ours, theirs = (spread(defaults) | spread(r["config"]) for r in (run, other))
    apart = sorted(
        field
        for field in ours.keys() & theirs.keys()
        if ours[field] != theirs[field] and not is_free(field, FREE + OWN)
    )
    return (
        f"{apart[0]} is {ours[apart[0]]}, and {theirs[apart[0]]} in {other['path']}"
        if apart
        else None
    )


def final(run: dict, name: str, when: str = "last") -> Any:
    """Return what dynamics.npz held under `name` in its last or "first" record; None: nothing."""
    return ((run.get("dynamics") or {}).get(when) or {}).get(name)


OWN = ("seed",)  # in which runs of one cell differ, beside what starts of one run may differ in


def accuracy(runs: Runs, field: str = "linear_accuracy") -> Estimate:
    """Return the estimate of an accuracy over the runs, in per cent."""
    return estimate(100 * run[field] for run in runs)


def state(runs: Runs) -> str:
    """Return the states of the runs' own diagnoses, counted where they differ."""
    names = [run.get("state", "collapsed" if run.get("collapsed") else "healthy") for run in runs]
    counted = {name: names.count(name) for name in names}
    return ", ".join(
        name if count == len(names) else f"{name} ({count} of {len(names)})"
        for name, count in counted.items()
    )
