"""The sweep over the cells of a published table, at one of two scales."""

from pathlib import Path

from ssl_jax.errors import UserError, nearest
from ssl_jax.sweeps.jobs import Grid
from ssl_jax.types import Config
from ssl_jax.workdir.directory import flatten, is_free, spread

SCALES = ("mini", "full")


def table_grid(config: Config) -> Grid:
    """Return the sweep over the chosen cells of a table; UserError for a wrong field."""
    if config.scale not in SCALES:
        raise UserError(f"scale: got {config.scale!r}, {nearest(config.scale, SCALES)}")
    known, names = config.overrides[config.scale], chosen(config)
    for name in names:
        if name not in known:
            raise UserError(f"cells: got {name!r}, {nearest(name, known)}")
    store = Path(config.store, config.sweep, config.scale) if config.store else None
    return Grid(
        title=f"{config.sweep} at scale {config.scale}",
        marks={"sweep": config.sweep, "scale": config.scale},
        file=config.files[config.scale],
        cells={name: cell_config(config, name) for name in names},
        place=config.scale,
        store=store,
        again=config.again,
        identity=identity(config),
    )


def chosen(config: Config) -> list[str]:
    """Return the names of the cells to run, in their order."""
    return list(dict.fromkeys(name.strip() for name in config.cells.split(",")))


def cell_config(config: Config, cell: str) -> Config:
    """Return the configuration of one cell: that of the scale with the cell's overrides.

    Args:
        config: of the sweep.
        cell: a name in `config.overrides[config.scale]`.

    Returns:
        The configuration of a pretraining run, of the scale's own seed.
    """
    run = config[config.scale].copy_and_resolve_references()
    run.update_from_flattened_dict(flatten(config.overrides[config.scale][cell].to_dict()))
    run.data.data_dir = config.data_dir or run.data.data_dir
    return run


def identity(config: Config) -> dict:
    """Return what all starts on one directory of the sweep have in common."""
    base = {
        name: value
        for name, value in spread(config[config.scale].to_dict()).items()
        if not is_free(name)
    }
    overrides = config.overrides[config.scale].to_dict()
    return {
        "task": "sweep",
        "sweep": config.sweep,
        "scale": config.scale,
        config.scale: base,
        "overrides": overrides,
    }
