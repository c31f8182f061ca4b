"""The files in which an experiment keeps its finished parts, and the seeds that it repeats them over."""

import zipfile
from pathlib import Path

import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.types import Config


def read_cell(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a finished cell; UserError where the file is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and it is computed again") from error


def write_cell(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Written whole or not at all."""
    scratch = path.with_name(f"{path.name}.tmp")
    with scratch.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    scratch.replace(path)


def seeds_of(config: Config) -> list[int]:
    return list(range(config.seed, config.seed + config.seeds))
