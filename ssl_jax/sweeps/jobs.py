"""The jobs of a sweep: which there are, and what is checked before any of them runs."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ssl_jax import files
from ssl_jax.builders import pretraining, supervised
from ssl_jax.builders.checks import check_few_labels
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.builders.weights import find_weights
from ssl_jax.data.dataset import Dataset
from ssl_jax.errors import UserError
from ssl_jax.runtime import lease
from ssl_jax.types import Config
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import (
    LISTED,
    check_workdir,
    complete,
    is_free,
    read_json,
    spread,
)


class Grid(NamedTuple):
    """The cells of a sweep and what it does with them."""

    title: str  # for messages
    cells: dict[str, Config]  # by name, in their order, each of any seed
    file: str  # the configuration that the cells start from, as `--config` takes it
    marks: dict[str, str]  # what a stored result says of the sweep
    place: str = ""  # folder of the cells, below the work directory
    store: Path | None = None  # folder of the stored cells
    again: bool = False  # run, and store anew, what the store has
    # what all starts on the place have in common, kept in its config.json; {}: nothing need be
    identity: dict[str, Any] = {}


class Start(NamedTuple):
    """What a start of a run checks its work directory by, as `check_workdir` takes it."""

    config: Config
    appends: Callable[[int], bool]
    defaults: dict[str, Any]
    fixed: tuple[str, ...]
    later: tuple[str, ...]


class Job(NamedTuple):
    """One seed of one cell."""

    cell: str
    seed: int
    config: Config  # of the run
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
    """Raise UserError for a wrong value in a field that every sweep has."""
    if not config.sweep and "of" not in config:
        raise UserError("sweep: got '', takes the table's name, as in configs/sweeps/")
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


def plan(grid: Grid, seeds: Sequence[int], directory: Path) -> list[Job]:
    """Return all jobs of the sweep in their order: for each seed, every cell."""
    jobs = []
    for seed in seeds:
        for cell, config in grid.cells.items():
            run = config.copy_and_resolve_references()
            run.seed = seed
            out = directory / grid.place / cell / f"seed-{seed}"
            store = grid.store / cell / f"seed-{seed}.json" if grid.store else None
            jobs.append(Job(cell, seed, run, out, store))
    return jobs


def check_all(grid: Grid, jobs: list[Job], directory: Path) -> None:
    """Check every cell as its run will check it, the directory and the store.

    Args:
        grid: whose jobs they are.
        jobs: from `plan`.
        directory: work directory of the sweep.

    Raises:
        UserError: a wrong field, which the message puts after the cell's name; a directory or a
            store that cannot be written, or belongs to another configuration.
    """
    datasets: dict[str, Dataset] = {}
    # no image before all are checked against what is known without any
    started = {cell: _of_cell(cell, start_of, run) for cell, run in grid.cells.items()}
    for job in jobs:
        if not is_done(job, grid.again):
            _of_cell(job.cell, find_weights, job.config, job.out)
    for cell, run in grid.cells.items():
        _of_cell(cell, check_read, run, datasets)
    place = directory / grid.place
    if grid.identity:
        defaults = {grid.place: defaults_of("pretrain")}
        refuse_other("--workdir", place / "config.json", [], grid.identity, defaults)
    writable("--workdir", place)
    if grid.store:
        writable("store", grid.store)
    for job in jobs:
        start = started[job.cell]
        fields = start.config.to_dict() | {"seed": job.seed}
        if job.store is not None and job.is_stored and not grid.again:
            refuse_other("store", job.store, ["config"], result_json.fields(fields), start.defaults)
        if not (grid.identity and is_done(job, grid.again)):  # else its place vouches for it
            check_workdir(
                str(job.out), fields, start.appends, start.defaults, start.fixed, start.later
            )


def start_of(config: Config) -> Start:
    """Return what a start of the configuration checks its work directory by; reads no image."""
    return TRAINERS[config.task](config)


def _start_pretraining(config: Config) -> Start:
    ready = pretraining.prepare(config)
    appends = partial(pretraining.appends, ready.config, ready.plan.steps_per_epoch)
    return Start(ready.config, appends, defaults_of("pretrain"), (), ready.later)


def _start_supervised(config: Config) -> Start:
    plan, *_ = supervised.prepare(config)
    appends = partial(supervised.appends, config, plan.steps_per_epoch)
    fixed = supervised.fixed_fields(config)
    return Start(config, appends, supervised.earlier_defaults(config), fixed, ())


# The tasks that train, and what checks a start of one.
TRAINERS: dict[str, Callable[[Config], Start]] = {
    "pretrain": _start_pretraining,
    "supervised": _start_supervised,
}


def _of_cell(cell: str, check: Callable[..., Any], *arguments: Any) -> Any:
    """Return check(*arguments), with the cell's name before a UserError."""
    try:
        return check(*arguments)
    except UserError as error:
        raise UserError(f"cell {cell}: {error}") from error


def check_read(config: Config, datasets: dict[str, Dataset]) -> None:
    """Check what a cell's task checks on its data; `datasets` keeps the last set by its fields."""
    wanted = config.data.to_json()
    if wanted not in datasets:
        datasets.clear()  # one set in memory, whatever the cells vary
        datasets[wanted] = read_dataset(config)
    if config.task == "pretrain":
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
