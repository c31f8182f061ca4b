"""`dynamics.npz`: a run's learning dynamics, one record every `dynamics.every` steps.

T records of D modes, arrays of float32, NaN where a record has no such number (step 0 has seen no
batch):

    step, epoch (T,)                       taken so far; the first record is of step 0, the last
                                           of the end of the run
    loss, relative_spread (T,)             of the step's own batch
    loss_NAME (T,)                         each term of a loss of several
    mean_share, online_target_cosine (T,), gradient_norm, update_norm (T, 3)
                                           `dynamics.measure.measure_step`
    weight_cosine (T,), parameter_norm (T, 3)
                                           `dynamics.measure.measure_weights`
    view_correlation (T, D)                `dynamics.measure.measure_views`, where the step is a
                                           multiple of `dynamics.every`; older files have none
    corr_eigenvalues, predictor_eigenvalues, alignment, mode_predictor (T, D),
    asymmetry, asymmetry_l1, effective_rank, commutator, commutator_relative (T,)
                                           `dynamics.measure.measure_spectra`

The spectra are of F, the running average that the run keeps of its projections' correlation
(`predictors.recent_correlation`), and of W_p; a two-layer predictor stands for W_p as the product
of its matrices.
"""

import io
import os
from pathlib import Path

import numpy as np

from ssl_jax import files
from ssl_jax.digests import tree_digest
from ssl_jax.errors import UserError
from ssl_jax.runtime.terminal import warn

NAME = "dynamics.npz"
Record = dict[str, np.ndarray]
# Shape of what a record has of each array that others read: () one number, (3,) one for
# each part of the network, ("D",) one for each mode.
RECORDED = {
    **dict.fromkeys(
        (
            "corr_eigenvalues",
            "predictor_eigenvalues",
            "alignment",
            "mode_predictor",
            "view_correlation",
        ),
        ("D",),
    ),
    **dict.fromkeys(("parameter_norm", "gradient_norm", "update_norm"), (3,)),
    **dict.fromkeys(
        (
            "epoch",
            "asymmetry",
            "asymmetry_l1",
            "commutator_relative",
            "effective_rank",
            "mean_share",
        ),
        (),
    ),
    **dict.fromkeys(("relative_spread", "online_target_cosine", "weight_cosine", "loss"), ()),
}
# Of these, what files of earlier versions lack without being damaged.
LATER = ("view_correlation",)


def read_dynamics(directory: Path) -> dict[str, np.ndarray]:
    """Return all arrays in float64.

    Arrays that cannot be read are left out, with a line on standard error. UserError where the file
    or its steps cannot be read.
    """
    path = Path(directory) / NAME
    expected = "dynamics recorded with --config.dynamics.every=STEPS"
    arrays, lost = _readable(files.read_bytes(path, expected))
    if "step" not in arrays:
        raise UserError(f"{path}: damaged, its steps cannot be read; expected {expected}")
    if lost:
        warn(f"{path}: damaged, left out: {', '.join(lost)}")
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def resume_dynamics(directory: Path, step: int, kept: str | None = None) -> list[Record]:
    """Return the records up to `step`, from which a run goes on.

    A damaged file is kept beside, as dynamics.damaged.npz, and its whole arrays are used. So is a
    file with other records than the run's, of which nothing is used. Either is one line on standard
    error.

    Args:
        directory: the work directory.
        step: the step of the checkpoint.
        kept: `digest` of the records at that step; None: unknown.

    Returns:
        The records.
    """
    path = Path(directory) / NAME
    if not os.path.lexists(path):
        if kept:
            warn(f"{path}: not found; the records up to step {step} are lost")
        return []
    try:
        arrays, lost = _readable(files.read_bytes(path, "recorded dynamics"))
        problem = "damaged"
    except UserError as error:
        arrays, lost, problem = {}, [], str(error)
    steps = arrays.get("step", np.zeros(0))
    records = [
        {name: array[i] for name, array in arrays.items()} for i in np.flatnonzero(steps <= step)
    ]
    if "step" in arrays and not lost:
        if kept is None or digest(records) == kept:
            return records
        records, problem = [], f"has other records than the checkpoint of step {step}"
    beside = files.keep_beside(path).name
    warn(f"{path}: {problem}; lost: {', '.join(lost) or 'all'}; kept as {beside}")
    return records


def write_dynamics(directory: Path, records: list[Record]) -> None:
    """Write the whole file; where writing fails, the earlier one stays."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **_stack(records))
    files.write_whole(Path(directory) / NAME, content.getvalue())


def digest(records: list[Record]) -> str:
    """Return a digest of all numbers in the records."""
    arrays = _stack(records)
    # a name that only later records have counts for nothing
    return tree_digest({name: a for name, a in arrays.items() if not np.isnan(a).all()})


def _stack(records: list[Record]) -> dict[str, np.ndarray]:
    """Return the records as arrays by name, NaN where a record has no such number."""
    shapes = {name: np.shape(value) for record in records for name, value in record.items()}
    arrays = {
        name: np.stack(
            [np.asarray(r.get(name, np.full(shape, np.nan)), np.float32) for r in records]
        )
        for name, shape in shapes.items()
    }
    return arrays | {"step": np.array([int(r["step"]) for r in records])}


def _are_steps(array: np.ndarray) -> bool:
    """Return whether an array has the steps of records: whole numbers that ascend."""
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        return False
    return bool((array >= 0).all() and (array % 1 == 0).all() and (np.diff(array) > 0).all())


def _readable(content: bytes) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the arrays that are whole and as long as `step`, and the names of the others."""
    arrays, lost = {}, []
    try:
        with np.load(io.BytesIO(content)) as file:
            for name in file.files:
                try:
                    arrays[name] = file[name]
                except Exception:  # zipfile, zlib, struct and NumPy each raise their own
                    lost.append(name)
    except Exception:
        return {}, []
    if not _are_steps(arrays.get("step", np.zeros(0))):
        return {}, []
    records = len(arrays.get("step", ()))
    lost += [
        name
        for name, array in arrays.items()
        if not (_fits(array, RECORDED.get(name)) and len(array) == records)
    ]
    return {name: array for name, array in arrays.items() if name not in lost}, lost


def _fits(array: np.ndarray, shape: tuple | None) -> bool:
    """Return whether an array holds numbers, one record a row, each of `shape`; None: of any."""
    if array.ndim < 1 or array.dtype.kind not in "fiu":
        return False
    sizes = array.shape[1:]
    return shape is None or (
        len(sizes) == len(shape)
        and all(size > 0 if n == "D" else size == n for size, n in zip(sizes, shape, strict=True))
    )
