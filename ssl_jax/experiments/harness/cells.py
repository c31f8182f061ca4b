"""Cells: the finished parts of an experiment, each a file that is computed once and kept."""

import io
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.runtime.terminal import progress_bar, say
from ssl_jax.types import Config, Interrupted

Arrays = dict[str, np.ndarray]
Advance = Callable[[int], object]  # is called with the number of steps finished since the last call


class Progress(NamedTuple):
    """Callbacks through which a running job reports its steps and learns that it must stop."""

    advance: Advance
    stopping: Callable[[], bool]  # whether to end now, unfinished


class Job(NamedTuple):
    """Work that computes one cell or several."""

    names: list[str]  # of the cells, in order
    make: Callable[[Progress], list[Arrays]]  # the arrays of each; [] where it ended unfinished


class Plan(NamedTuple):
    """The cells of one stage of an experiment."""

    names: Mapping[Any, str]  # key -> name of its cell, a file; keys may share one
    steps: Mapping[str, int]  # name -> steps, for the progress bar
    jobs: Callable[[list[str]], list[Job]]  # names of missing cells -> jobs that compute them
    threads: int = 1  # number of jobs that run at once
    title: str = ""  # printed before the jobs; "" prints nothing
    unit: str = "parts"  # what messages call the cells
    # name, arrays -> whether a stored cell has all arrays that this plan asks for
    complete: Callable[[str, Arrays], bool] = lambda name, arrays: True


class Cell(NamedTuple):
    """A cell that is computed by itself. Once started it runs to its end."""

    steps: int
    make: Callable[[Advance], Arrays]  # make(advance) -> arrays by name


def in_turn(plan: Callable[..., dict[str, Cell]]) -> Callable[..., Plan]:
    """Return a stage that computes the cells of `plan` one after the other.

    Args:
        plan: plan(config, parts, *results) -> cells by name.

    Returns:
        stage(config, parts, *results) -> Plan, as `Experiment.stages` takes it. Each cell gets an
        array more, "seconds" ().
    """

    def stage(*parts: Any) -> Plan:
        cells = plan(*parts)

        def make(name: str, progress: Progress) -> list[Arrays]:
            started = time.perf_counter()
            arrays = cells[name].make(progress.advance)
            return [arrays | {"seconds": np.array(time.perf_counter() - started)}]

        def jobs(missing: list[str]) -> list[Job]:
            return [Job([name], partial(make, name)) for name in missing]

        return Plan(
            {name: name for name in cells}, {name: cell.steps for name, cell in cells.items()}, jobs
        )

    return stage


def compute(out: Path, plan: Plan, interrupted: Interrupted) -> dict[Any, Arrays] | None:
    """Compute the cells that the work directory does not hold yet.

    Args:
        out: the work directory. It keeps cells as cells/NAME.npz.
        plan: what to compute.
        interrupted: whether to stop. It is asked before every job, and by jobs that can end
            unfinished.

    Returns:
        {key: arrays}, the same object for keys that share a cell; None after an interruption.

    Raises:
        UserError: a stored cell is damaged.
    """
    files.make_folder(out / "cells")
    names = list(dict.fromkeys(plan.names.values()))
    paths = {name: out / "cells" / f"{name}.npz" for name in names}
    stored = {name: read_cell(path) for name, path in paths.items() if path.exists()}
    done = {name: arrays for name, arrays in stored.items() if plan.complete(name, arrays)}
    jobs = plan.jobs([name for name in names if name not in done])
    if plan.title:
        each = next(iter(plan.steps.values()), 0)
        say(
            f"{plan.title}: {len(names)} {plan.unit} of {each} steps, "
            f"{len(done)} of them done before"
        )

    def work(job: Job, progress: Progress) -> None:
        # a job that was stopped returns no arrays
        for name, arrays in zip(job.names, job.make(progress), strict=False):
            write_cell(paths[name], arrays)
            done[name] = arrays

    with progress_bar(
        sum(plan.steps[name] for name in names), sum(plan.steps[name] for name in done)
    ) as bar:
        run_jobs(work, jobs, plan.threads, bar.update, interrupted)
    if len(done) < len(names):
        say(
            f"stopped after {len(done)} of {len(names)} {plan.unit}, saved; "
            "the same command goes on from here"
        )
        return None
    return {key: done[name] for key, name in plan.names.items()}


def run_jobs(
    work: Callable[[Job, Progress], None],
    jobs: list[Job],
    threads: int,
    advance: Advance,
    interrupted: Interrupted,
) -> None:
    """Run every job, or those before an interruption.

    Args:
        work: work(job, progress) runs a job.
        jobs: in the order in which they begin.
        threads: number of jobs at once. One job at a time runs on the caller's thread, where
            Ctrl-C ends it.
        advance: is called with numbers of finished steps, from one thread at a time.
        interrupted: whether to stop.
    """
    if threads == 1:
        for job in jobs:
            if interrupted():
                return
            work(job, Progress(advance, interrupted))
        return
    halt, lock = threading.Event(), threading.Lock()

    def locked(steps: int) -> None:
        with lock:
            advance(steps)

    def stopping() -> bool:
        return halt.is_set() or interrupted()

    with ThreadPoolExecutor(threads, thread_name_prefix="members") as pool:
        futures = [
            pool.submit(
                lambda job: None if stopping() else work(job, Progress(locked, stopping)), j
            )
            for j in jobs
        ]
        try:
            for future in as_completed(futures):
                future.result()
        finally:  # an error or Ctrl-C in one job ends the others at their next step
            halt.set()
            pool.shutdown(cancel_futures=True)


def read_cell(path: Path) -> Arrays:
    """Return the arrays of a stored cell; UserError where the file is damaged."""
    content = files.read_bytes(path, "a cell of this experiment")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # zipfile, zlib, struct and NumPy each raise their own
        raise UserError(
            f"{path}: damaged ({error}); delete it, and it is computed again"
        ) from error


def write_cell(path: Path, arrays: Arrays) -> None:
    """Write a cell as a whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    files.write_whole(path, content.getvalue())


def seeds_of(config: Config) -> list[int]:
    """Return the seeds of the configuration, `config.seeds` of them from `config.seed` on."""
    return list(range(config.seed, config.seed + config.seeds))
