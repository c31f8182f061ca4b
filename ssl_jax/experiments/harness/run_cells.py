"""From a configuration to result.json, table.md and figures, in cells that are computed once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.builders import checks
from ssl_jax.builders.data import read_dataset
from ssl_jax.data.dataset import Dataset
from ssl_jax.experiments.harness.cell_files import read_cell, write_cell
from ssl_jax.reports.experiments import registry
from ssl_jax.runtime.terminal import progress_bar, say
from ssl_jax.types import Config
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import check_workdir, write_json

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
    checks.check_ranges(config, RANGES | experiment.ranges)
    out = check_workdir(directory, config.to_dict())
    dataset = read_dataset(config)
    cells = experiment.plan(config, dataset)
    result_json.open_on_one(directory, config.to_dict())
    found = compute(out, cells, interrupted)
    if len(found) < len(cells):
        say(f"stopped after {len(found)} of {len(cells)} parts, saved; the same command goes on from here")
        return
    result = {"task": "experiment", "experiment": config.experiment, "dataset": config.data.name}
    result |= experiment.summarise(config, dataset, found)
    result |= {
        "config": result_json.fields(config.to_dict()),
        "seconds": round(sum(float(c["seconds"]) for c in found.values()), 1),
    }
    write_json(out / "result.json", result | result_json.provenance())
    text = registry.report(result)
    (out / "table.md").write_text(text)
    registry.draw(result, out / "figures")
    say(text)
    say(f"results in {out / 'result.json'}, figures in {out / 'figures'}")


def compute(out: Path, cells: dict[str, Cell], interrupted: Callable[[], bool]) -> dict[str, dict]:
    """The arrays of every cell, and its "seconds"; not of all, where it was asked to stop between two of them."""
    (out / "cells").mkdir(exist_ok=True)
    there = {name: out / "cells" / f"{name}.npz" for name in cells}
    done = {name for name, path in there.items() if path.exists()}
    found = {name: read_cell(there[name]) for name in done}
    steps = {name: cell.steps for name, cell in cells.items()}
    with progress_bar(sum(steps.values()), sum(steps[name] for name in done)) as bar:
        for name in (name for name in cells if name not in done):
            if interrupted():
                break
            begun = time.perf_counter()
            arrays = cells[name].make(bar.update)
            found[name] = arrays | {"seconds": np.array(time.perf_counter() - begun)}
            write_cell(there[name], found[name])
    return {name: found[name] for name in cells if name in found}
