"""The jobs of a sweep: which there are, and what is checked before any of them runs."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ssl_jax import files
from ssl_jax.builders import pretraining
from ssl_jax.builders.checks import check_few_labels
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.data.dataset import Dataset
from ssl_jax.errors import UserError, nearest
from ssl_jax.runtime import lease
from ssl_jax.types import Config
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import (
    LISTED,
    check_workdir,
    complete,
    flatten,
    is_free,
    read_json,
    spread,
)

SCALES = ("mini", "full")


class Job(NamedTuple):
    """One seed of one cell."""

    cell: str
    seed: int
    config: Config  # of the pretraining run
    out: Path  # its work directory
    store: Path | None  # its file in the store; None where no store is kept

    @property
    def name(self) -> str:
        """Cell and seed, for messages."""
        return f"{self.cell} seed {self.seed}"

    @property
    def has_result(self) -> bool:
        """Whether the run has written its result."""
        return os.path.exists(self.out / "result.json")

    @property
    def is_stored(self) -> bool:
        """Whether the store has something in its place, sound or not."""
        return self.store is not None and os.path.lexists(self.store)

    @property
    def failure(self) -> Path:
        """The file beside `out` that says why the run failed."""
        return self.out.with_name(f"{self.out.name}.failed.txt")


def check_fields(config: Config) -> None:
    """Raise UserError for a wrong value in a field of the sweep itself."""
    if config.scale not in SCALES:
        raise UserError(f"scale: got {config.scale!r}, {nearest(config.scale, SCALES)}")
    seeds = list(config.seeds)
    if (
        not seeds
        or len(set(seeds)) < len(seeds)
        or not all(type(s) is int and 0 <= s < 2**32 for s in seeds)
    ):
        raise UserError(
            f"seeds: got {tuple(seeds)}, takes different whole numbers of at least 0, e.g. 0,1,2"
        )
    if not 0 <= config.minutes < float("inf"):
        raise UserError(
            f"minutes: got {config.minutes}, takes a number of at least 0; 0 for no end"
        )
    known = config.overrides[config.scale]
    for name in chosen(config):
        if name not in known:
            raise UserError(f"cells: got {name!r}, {nearest(name, known)}")


def chosen(config: Config) -> list[str]:
    """Return the names of the cells to run, in their order."""
    return list(dict.fromkeys(name.strip() for name in config.cells.split(",")))


def plan(config: Config, directory: Path) -> list[Job]:
    """Return all jobs of the sweep in their order: for each seed, every chosen cell."""
    jobs = []
    for seed in config.seeds:
        for cell in chosen(config):
            place = Path(config.scale, cell, f"seed-{seed}")
            store = Path(config.store, config.sweep, f"{place}.json") if config.store else None
            jobs.append(Job(cell, seed, cell_config(config, cell, seed), directory / place, store))
    return jobs


def cell_config(config: Config, cell: str, seed: int) -> Config:
    """Return the configuration of one pretraining run.

    Args:
        config: of the sweep.
        cell: a name in `config.overrides[config.scale]`.
        seed: of the run.

    Returns:
        The configuration of the scale with the cell's overrides and the seed.
    """
    run = config[config.scale].copy_and_resolve_references()
    changes = flatten(config.overrides[config.scale][cell].to_dict())
    run.update_from_flattened_dict(changes | {"seed": seed})
    run.data.data_dir = config.data_dir or run.data.data_dir
    return run


def identity(config: Config) -> dict:
    """Return what all starts of one sweep have in common."""
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


def check_all(config: Config, jobs: list[Job], directory: Path) -> None:
    """Check every cell as its run will check it, the directory and the store.

    Args:
        config: of the sweep.
        jobs: from `plan`.
        directory: work directory of the sweep.

    Raises:
        UserError: a wrong field, which the message puts after the cell's name; a directory or a
            store that cannot be written, or belongs to another configuration.
    """
    cells: dict[str, Config] = {job.cell: job.config for job in jobs}
    datasets: dict[str, Dataset] = {}
    # no image before all are prepared
    prepared = {cell: _of_cell(cell, pretraining.prepare, run) for cell, run in cells.items()}
    for cell, run in cells.items():
        _of_cell(cell, check_read, run, datasets)
    check_workdir(str(directory), {"task": "sweep", "sweep": config.sweep})
    defaults = defaults_of("pretrain")
    stored = directory / config.scale / "config.json"
    refuse_other("--workdir", stored, [], identity(config), {config.scale: defaults})
    writable("--workdir", directory / config.scale)
    if config.store:
        writable("store", Path(config.store, config.sweep, config.scale))
    for job in jobs:
        if job.store is not None and job.is_stored and not config.again:
            settled = prepared[job.cell].config.to_dict() | {"seed": job.seed}
            fields = result_json.fields(settled)
            refuse_other("store", job.store, ["config"], fields, defaults)
        if not is_done(job, config.again):
            ready = prepared[job.cell]
            appends = partial(pretraining.appends, ready.config, ready.plan.steps_per_epoch)
            fields = ready.config.to_dict() | {"seed": job.seed}
            check_workdir(str(job.out), fields, appends, defaults, later=ready.later)


def _of_cell(cell: str, check: Callable[..., Any], *arguments: Any) -> Any:
    """Return check(*arguments), with the cell's name before a UserError."""
    try:
        return check(*arguments)
    except UserError as error:
        raise UserError(f"cell {cell}: {error}") from error


def check_read(config: Config, datasets: dict[str, Dataset]) -> None:
    """Check what the task pretrain checks on its data; `datasets` caches the sets by settings."""
    wanted = config.data.to_json()
    if wanted not in datasets:
        datasets[wanted] = read_dataset(config)
    check_few_labels(config.probe, datasets[wanted])


def refuse_other(
    field: str, path: Path, inside: list[str], config: dict, defaults: dict[str, Any]
) -> None:
    """Refuse a file of another configuration.

    Fields that only one of the two configurations has, and that have no default, are ignored.

    Args:
        field: name of the setting that leads to the file, for the message.
        path: a JSON file, which need not exist.
        inside: keys under which the file holds its configuration, outermost first.
        config: the configuration of this start.
        defaults: of the fields of `config`: a file that lacks one of them has its default.

    Raises:
        UserError: the file is damaged, or fields outside `FREE` differ, which it lists.
    """
    if not os.path.lexists(path):
        return
    earlier = read_json(path)
    for name in inside:
        earlier = earlier.get(name, {})
    if not isinstance(earlier, dict):
        raise UserError(f"{path}: damaged, its {inside[-1]} is no configuration; delete the file")
    old, new = complete(earlier, defaults, config), spread(config)
    differing = [
        f"{n} {old[n]!r} -> {new[n]!r}"
        for n in sorted(old.keys() & new.keys())
        if not is_free(n) and old[n] != new[n]
    ]
    if differing:
        more = f"; and {len(differing) - LISTED} more" if len(differing) > LISTED else ""
        way = (
            "--config.again=True replaces it; or take another folder"
            if field == "store"
            else "take another directory"
        )
        listed = "; ".join(differing[:LISTED])
        raise UserError(f"{field}: {path} is of another configuration ({listed}{more}); {way}")


def writable(field: str, folder: Path) -> None:
    """Make the folder; UserError where it cannot be made, or written into, or is a link."""
    try:
        files.make_folder(folder)
        with files.writing(folder):
            lease.time_of(folder)
    except UserError as error:
        raise UserError(f"{field}: {error}; takes a folder that can be written") from error


def is_done(job: Job, again: bool) -> bool:
    """Return whether the job is finished, here or, unless `again`, in the store."""
    return (job.is_stored and not again) or job.has_result
