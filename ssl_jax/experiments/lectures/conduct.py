"""From a configuration to result.json, table.md and figures, in cells that are computed once."""

import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax import assembly, checks, records, workdir
from ssl_jax.console import progress_bar, say
from ssl_jax.data.sources import Dataset
from ssl_jax.errors import UserError
from ssl_jax.reports import lectures
from ssl_jax.types import Config

RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31),
    "seeds": (1, 1000),
    "epochs": (1, 10**6),
    "batch_size": (2, 10**6),
    "learning_rate": (0, 1e6),
    "data.train_size": (0, 10**9),
    "data.image_size": (0, 1024),
}


class Cell(NamedTuple):
    """One file of an experiment: make(advance) -> arrays by name, in `steps` steps of which advance(count) hears."""

    steps: int
    make: Callable[[Callable[[int], object]], dict[str, np.ndarray]]


class Experiment(NamedTuple):
    """plan(config, dataset) -> {name: Cell}, after all fields are found right and before anything is computed;
    summarise(config, dataset, {name: arrays}) -> what result.json holds of them, from which table and figures are
    drawn. ranges: smallest and largest value of fields that no other part checks.
    """

    plan: Callable[[Config, Dataset], dict[str, Cell]]
    summarise: Callable[[Config, Dataset, dict[str, dict[str, np.ndarray]]], dict[str, Any]]
    ranges: dict[str, tuple[float, float]] = {}


def run(experiment: Experiment, config: Config, directory: str, interrupted: Callable[[], bool]) -> None:
    """Computes what the work directory does not hold yet, then reports and draws."""
    fields = workdir.flatten(config.to_dict())
    checks.check_ranges(config, {k: v for k, v in (RANGES | experiment.ranges).items() if k in fields})
    out = workdir.check_workdir(directory, config.to_dict())
    dataset = assembly.read_dataset(config)
    cells = experiment.plan(config, dataset)
    records.open_on_one(directory, config)
    found = compute(out, cells, interrupted)
    if len(found) < len(cells):
        say(f"stopped after {len(found)} of {len(cells)} parts, saved; the same command goes on from here")
        return
    result = {"task": "experiment", "experiment": config.experiment, "dataset": config.data.name}
    result |= experiment.summarise(config, dataset, found)
    result |= {"config": config.to_dict(), "seconds": round(sum(float(c["seconds"]) for c in found.values()), 1)}
    workdir.write_json(out / "result.json", result | records.provenance())
    text = lectures.report(result)
    (out / "table.md").write_text(text)
    lectures.draw(result, out / "figures")
    say(text)
    say(f"results in {out / 'result.json'}, figures in {out / 'figures'}")


def compute(out: Path, cells: dict[str, Cell], interrupted: Callable[[], bool]) -> dict[str, dict]:
    """The arrays of every cell, and its "seconds"; not of all, where it was asked to stop between two of them."""
    (out / "cells").mkdir(exist_ok=True)
    there = {name: out / "cells" / f"{name}.npz" for name in cells}
    done = {name for name, path in there.items() if path.exists()}
    found = {name: read(there[name]) for name in done}
    steps = {name: cell.steps for name, cell in cells.items()}
    with progress_bar(sum(steps.values()), sum(steps[name] for name in done)) as bar:
        for name in (name for name in cells if name not in done):
            if interrupted():
                break
            begun = time.perf_counter()
            arrays = cells[name].make(bar.update)
            found[name] = arrays | {"seconds": np.array(time.perf_counter() - begun)}
            write(there[name], found[name])
    return {name: found[name] for name in cells if name in found}


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a finished cell; UserError where the file is damaged."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and it is computed again") from error


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Written whole or not at all."""
    scratch = path.with_suffix(".tmp.npz")
    np.savez_compressed(scratch, **arrays)  # pyright: ignore[reportArgumentType]
    scratch.replace(path)


# --- What the experiments share ------------------------------------------------------------------------------------


def seeds_of(config: Config) -> list[int]:
    return list(range(config.seed, config.seed + config.seeds))


def mean_and_interval(values: np.ndarray, axis: int = 0) -> dict[str, list | float | None]:
    """{"mean", "interval"}: over the seeds, with the half-width of Student's 95% interval; None for a single seed.

    Rounded to five digits, so that a result stays readable.
    """
    from scipy.stats import t  # half a second of import, at the end of an experiment

    count = values.shape[axis]
    mean = values.mean(axis=axis)
    if count < 2:
        return {"mean": rounded(mean), "interval": None}
    width = t.ppf(0.975, count - 1) * values.std(axis=axis, ddof=1) / count**0.5
    return {"mean": rounded(mean), "interval": rounded(width)}


def rounded(values: Any, digits: int = 5) -> Any:
    """Numbers, in nested lists as the array has them, with so many digits; what is not finite becomes None."""
    if np.ndim(values):
        return [rounded(value, digits) for value in values]
    return float(f"{values:.{digits}g}") if np.isfinite(values) else None
