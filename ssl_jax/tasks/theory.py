"""The task "theory": draw what the linear theory predicts. It trains nothing and reads no data."""

import importlib.metadata
from importlib.util import find_spec
from typing import Any

import numpy as np

from ssl_jax.errors import UserError, nearest
from ssl_jax.reports.figure import required
from ssl_jax.reports.theory_figures import FIGURES
from ssl_jax.runtime.terminal import say
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import open_workdir

SMALL = 64  # numbers; result.json has only shape, range and mean of a larger array


def theory(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Draw figures/NAME.png of the figure that `config.figure` names, and write result.json.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: not asked, as the task takes seconds.

    Raises:
        UserError: `figure` is neither the name of a figure nor "all".
    """
    if config.figure not in (*FIGURES, "all"):
        raise UserError(
            f"figure: got {config.figure!r}, {nearest(config.figure, (*FIGURES, 'all'))}"
        )
    out = open_workdir(directory, config.to_dict())
    names = list(FIGURES) if config.figure == "all" else [config.figure]
    numbers = {}
    for name in names:
        with required(out / "figures" / f"{name}.png") as path:
            numbers[name] = {key: as_json(value) for key, value in FIGURES[name](path).items()}
        say(f"wrote {path}")
    # some figures need no diffrax
    installed = [name for name in ("jax", "numpy", "diffrax") if find_spec(name)]
    versions = {name: importlib.metadata.version(name) for name in installed}
    result_json.write(out, {"task": "theory", "figures": numbers, "versions": versions})


def as_json(array: np.ndarray) -> Any:
    """Return an array as JSON values: whole, or its summary where it has more than SMALL numbers.

    Numbers that are not finite become None in the one and are left out of the other.
    """
    if array.dtype.kind not in "bif":
        return array.tolist()
    array = array.astype(np.float64)
    known = np.isfinite(array)
    if array.size <= SMALL:
        whole = array.astype(object)
        whole[~known] = None
        return whole.tolist()
    finite = array[known]
    return {
        "shape": list(array.shape),
        "min": float(finite.min()),
        "max": float(finite.max()),
        "mean": float(finite.mean()),
    }
