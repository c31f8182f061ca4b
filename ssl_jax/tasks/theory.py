"""The task "theory": figures of what the linear theory predicts. Nothing is trained and no data
read.
"""

import importlib.metadata
from importlib.util import find_spec

import numpy as np

from ssl_jax.errors import UserError, nearest
from ssl_jax.reports.theory_figures import FIGURES
from ssl_jax.runtime.terminal import say
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir.directory import open_workdir, write_json

SMALL = 64  # numbers; of a larger array result.json says shape, range and mean


def theory(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Draws figures/NAME.png of the figure that the configuration names, or of all, and writes
    result.json.
    """
    if config.figure not in (*FIGURES, "all"):
        raise UserError(
            f"figure: got {config.figure!r}, {nearest(config.figure, (*FIGURES, 'all'))}"
        )
    out = open_workdir(directory, config.to_dict())
    names = list(FIGURES) if config.figure == "all" else [config.figure]
    numbers = {}
    for name in names:
        path = out / "figures" / f"{name}.png"
        numbers[name] = {key: told(value) for key, value in FIGURES[name](path).items()}
        say(f"wrote {path}")
    # some figures need no diffrax
    found = [name for name in ("jax", "numpy", "diffrax") if find_spec(name)]
    versions = {name: importlib.metadata.version(name) for name in found}
    write_json(out / "result.json", {"task": "theory", "figures": numbers, "versions": versions})


def told(array: np.ndarray):
    """An array as JSON can hold it, whole where it is small; what is not finite is null."""
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
