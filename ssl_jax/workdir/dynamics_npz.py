"""`dynamics.npz`: a run's learning dynamics, one record every `dynamics.every` steps.

T records of D modes, arrays of float32, NaN where a record has no such number (step 0 has seen no
batch):

* step, epoch (T,): taken so far; the first record is of step 0, the last of the end of the run.
* loss, relative_spread (T,): of the step's own batch; loss_NAME (T,) of each term, where the loss
  has several.
* mean_share, online_target_cosine (T,), gradient_norm, update_norm (T, 3):
  `dynamics.measure.measure_step`.
* weight_cosine (T,), parameter_norm (T, 3): `dynamics.measure.measure_weights`.
* corr_eigenvalues, predictor_eigenvalues, alignment, mode_predictor (T, D), asymmetry,
  asymmetry_l1, effective_rank, commutator, commutator_relative (T,):
  `dynamics.measure.measure_spectra`.

The spectra are of F, the running average that the run keeps of its projections' correlation, and of
W_p; a two-layer predictor stands for W_p as the product of its matrices.
"""

import os
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ssl_jax.errors import UserError

NAME = "dynamics.npz"
Record = dict[str, np.ndarray]


def read_dynamics(directory: Path) -> dict[str, np.ndarray]:
    """Return all arrays in float64.

    Arrays that cannot be read are left out, with a line on standard error. UserError where the file
    or its steps cannot be read.
    """
    path = Path(directory) / NAME
    if not path.exists():
        raise UserError(
            f"{path}: not there; record a run's dynamics with --config.dynamics.every=STEPS"
        )
    arrays, lost = _readable(path)
    if "step" not in arrays:
        raise UserError(
            f"{path}: damaged, its steps cannot be read; "
            "train again with --config.dynamics.every=STEPS"
        )
    if lost:
        print(f"{path}: damaged, left out: {', '.join(lost)}", file=sys.stderr)
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def resume_dynamics(directory: Path, step: int) -> list[Record]:
    """Return the records up to `step`, from which a run goes on.

    A damaged file is kept beside, as dynamics.damaged.npz.
    """
    path = Path(directory) / NAME
    if not path.exists():
        return []
    arrays, lost = _readable(path)
    if lost or "step" not in arrays:
        os.replace(path, path.with_name("dynamics.damaged.npz"))
        print(
            f"{path}: damaged, kept as dynamics.damaged.npz; lost: {', '.join(lost) or 'all'}",
            file=sys.stderr,
        )
    steps = arrays.get("step", np.zeros(0))
    return [
        {name: array[i] for name, array in arrays.items()} for i in np.flatnonzero(steps <= step)
    ]


def write_dynamics(directory: Path, records: list[Record]) -> None:
    """Write the whole file; where writing fails, the earlier one stays."""
    shapes = {name: np.shape(value) for record in records for name, value in record.items()}
    arrays = {
        name: np.stack(
            [np.asarray(r.get(name, np.full(shape, np.nan)), np.float32) for r in records]
        )
        for name, shape in shapes.items()
    }
    path = Path(directory) / NAME
    scratch = path.with_name(f"dynamics.{os.getpid()}.tmp")
    with scratch.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            **arrays | {"step": np.array([int(r["step"]) for r in records])},
        )
    os.replace(scratch, path)


def _readable(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the arrays that are whole and as long as `step`, and the names of the others."""
    arrays, lost = {}, []
    try:
        with path.open("rb") as content, np.load(content) as file:
            for name in file.files:
                try:
                    arrays[name] = file[name]
                except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
                    lost.append(name)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        return {}, []
    records = len(arrays.get("step", ()))
    lost += [name for name, array in arrays.items() if np.ndim(array) < 1 or len(array) != records]
    return {name: array for name, array in arrays.items() if name not in lost}, lost
