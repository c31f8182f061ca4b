"""The store of finished cells, small enough to be kept with the program."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax import files
from ssl_jax.builders.defaults import defaults_in
from ssl_jax.errors import UserError
from ssl_jax.intervals import rounded
from ssl_jax.sweeps.jobs import Grid, Job
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import flatten, read_json, write_json
from ssl_jax.workdir.dynamics_npz import read_dynamics

RECORDS, MODES = 13, 16  # of the spectra's history, kept in the store
DIGITS = 6  # of its numbers


def keep(grid: Grid, job: Job) -> None:
    """Write the store's file of a finished job, unless it is there."""
    if job.store is None or (job.is_stored and not grid.again):
        return
    content = read_json(job.out / "result.json")
    content |= grid.marks | {"cell": job.cell, "seed": job.seed}
    content |= {
        "command": command(grid.file, job),
        "config": result_json.fields(job.config.to_dict()),
    }
    content |= {"dynamics": thinned(job.out)}
    if own := content.get("provenance"):  # without what names places on this machine
        content["provenance"] = {name: own[name] for name in ("commit", "changed", "version")}
    files.make_folder(job.store.parent)
    write_json(job.store, content)


def command(file: str, job: Job) -> str:
    """Return the command that trains this cell by itself.

    It sets every field in which the cell differs from the configuration `file`.
    """
    plain = flatten(result_json.fields(defaults_in(file)))
    fields = flatten(result_json.fields(job.config.to_dict()))
    words = [
        f"--config.{name}={spelled(fields[name])}"
        for name in fields
        if fields[name] != plain.get(name)
    ]
    start = ["python", "launch.py", "--config", file, "--workdir", f"runs/{job.cell}-{job.seed}"]
    return shlex.join(start + words)


def spelled(value: Any) -> str:
    """Return a field's value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def thinned(directory: Path) -> dict | None:
    """Return some records of dynamics.npz, as lists of rounded numbers.

    A dict of the first record, the last one, and a history of `RECORDS` records of the `MODES`
    largest modes. None where no dynamics can be read.
    """
    try:
        arrays = read_dynamics(directory)
    except UserError:  # none was made, or it cannot be read
        return None
    spectra = [
        name
        for name in ("corr_eigenvalues", "predictor_eigenvalues", "alignment")
        if name in arrays
    ]
    few = np.unique(np.linspace(0, len(arrays["step"]) - 1, RECORDS).round().astype(int))
    return {
        "first": {
            name: rounded(array[0], DIGITS) for name, array in arrays.items() if array.ndim == 1
        },
        "last": {name: rounded(array[-1], DIGITS) for name, array in arrays.items()},
        "history": {
            name: rounded(arrays[name][few], DIGITS) for name in ("step", "epoch") if name in arrays
        }
        | {name: rounded(arrays[name][few, :MODES], DIGITS) for name in spectra},
    }
