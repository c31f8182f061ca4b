"""The task "sweep": run the cells of a table, or of any fields that vary.

A cell of a table is a pretraining run in DIR/SCALE/CELL/seed-N, one of varied fields is a run of
any task that trains, in DIR/CELL/seed-N.

The same command on the same directory runs what is not finished: first one seed of every cell, then
the next of every one. Any number of processes may run it at once, on machines that share the
directory; none takes a cell that another works on (`runtime.lease`).

Cells that differ in numbers alone may train together, as one program (`together`). Each is the
ordinary run that it would be by itself, in its own directory.

A cell that fails stops no other. The command prints the failure at once and again at the end;
seed-N.failed.txt beside the run has the traceback, and the next start tries the cell again. The
exit status is then 1; 2: the command itself is wrong, and nothing ran; 75: `minutes` are over, and
the same command goes on.

A table's finished cell is written to STORE/SWEEP/SCALE/CELL/seed-N.json, small enough to be kept
with the program. What the store has is not run again elsewhere.
"""

import contextlib
import gc
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from ssl_jax import files
from ssl_jax.builders.data import read_dataset
from ssl_jax.data.dataset import Dataset
from ssl_jax.errors import UserError
from ssl_jax.runtime import lease, stops
from ssl_jax.runtime.memory import is_out_of_memory, reporting_out_of_memory
from ssl_jax.runtime.terminal import say, spell
from ssl_jax.sweeps.jobs import Grid, Job, check_all, check_fields, is_done, plan
from ssl_jax.sweeps.store import keep
from ssl_jax.sweeps.tables import table_grid
from ssl_jax.sweeps.together import Form, company, wanted
from ssl_jax.sweeps.vary import varied_grid
from ssl_jax.tasks import pretrain, supervised
from ssl_jax.tasks.training import Group, Training, groups_of, train, train_together
from ssl_jax.text import printable
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir.directory import check_workdir, flatten, write_json
from ssl_jax.workdir.lock import DirectoryTaken, locked

LOOK = 10.0  # seconds between two looks at what other processes hold
Run = Callable[[Config, str, Interrupted], None]
# make(configuration, directory, interrupted, reader of its data, cells of its group)
MAKERS: dict[str, Callable[..., Training]] = {
    "pretrain": pretrain.make_training,
    "supervised": supervised.make_training,
}


def run_cell(config: Config, directory: str, interrupted: Interrupted) -> None:
    """Run the task that the cell's configuration names."""
    train(MAKERS[config.task](config, directory, interrupted))


class Ways(NamedTuple):
    """How the cells run."""

    alone: Run  # the task that runs one cell
    together: int | None  # most cells of a program; None: as many as it is worth
    forms: dict[str, Form]  # of cells, as far as they are known
    apart: set[str]  # names of jobs that did not run together with others


def sweep(
    config: Config,
    directory: str,
    interrupted: Interrupted = lambda: False,
    run: Run = run_cell,
) -> None:
    """Run whatever is not finished of the sweep that `config` describes.

    Args:
        config: configuration of the sweep.
        directory: work directory of the sweep, which several processes may share.
        interrupted: whether to save and stop.
        run: the task that runs a cell.

    Raises:
        UserError: a field is wrong, or the directory belongs to another sweep.
    """
    check_fields(config)
    ways = Ways(run, wanted(config.together), {}, set())
    grid = varied_grid(config) if "of" in config else table_grid(config)
    jobs = plan(grid, config.seeds, Path(directory))
    content = {"task": "sweep", "sweep": config.sweep}
    check_workdir(directory, content)
    check_all(grid, jobs, Path(directory))
    began = lease.time_of(Path(directory))
    write_json(Path(directory) / "config.json", content)
    if grid.identity:
        write_json(Path(directory, grid.place) / "config.json", grid.identity)
    done = [job for job in jobs if is_done(job, grid.again)]
    say(f"{grid.title}: {len(done)} of {len(jobs)} cells done")
    for job in done:
        if job.has_result:
            keep(grid, job)
        else:
            say(
                f"{job.name}: done elsewhere, {job.store} has it (--config.again=True runs it here)"
            )
    deadline = time.monotonic() + config.minutes * 60 if config.minutes else float("inf")

    def stop() -> bool:
        return interrupted() or time.monotonic() > deadline

    failed: dict[str, str] = {}
    try:
        run_all(grid, jobs, stop, ways, began, failed, config.wait)
    except KeyboardInterrupt:
        end(grid, jobs, failed)
        raise
    if end(grid, jobs, failed):
        sys.exit(1)
    if time.monotonic() > deadline and not all(is_done(job, grid.again) for job in jobs):
        sys.exit(stops.GO_ON)


def run_all(
    grid: Grid,
    jobs: list[Job],
    stop: Callable[[], bool],
    ways: Ways,
    began: float,
    failed: dict[str, str],
    patient: bool,
) -> None:
    """Run the jobs until each is done or has failed, or until stop().

    Args:
        grid: whose cells they are.
        jobs: the cells in the order in which they run.
        stop: whether to stop.
        ways: how they run.
        began: time of the directory's file system, in seconds; older failures do not count.
        failed: takes the reason of each failure, by name of the job.
        patient: whether to wait for cells at which other processes are.
    """
    announced: set[str] = set()
    before, start = sum(is_done(job, grid.again) for job in jobs), time.monotonic()
    while not stop():
        failed.update({job.name: reason(job) for job in jobs if failed_since(job, began)})
        left = [job for job in jobs if job.name not in failed and not is_done(job, grid.again)]
        if not left:
            break
        begun = time.monotonic()
        tries = (run_if_free(grid, job, left, stop, ways, failed) for job in left)
        worked = next(filter(None, tries), [])
        if not worked and not patient:
            break
        elif not worked:
            wait(left, announced, stop)
        elif ended := [job for job in worked if is_done(job, grid.again)]:
            done = sum(is_done(job, grid.again) for job in jobs)
            now = time.monotonic()
            to_go = (now - start) / (done - before) * (len(jobs) - done - len(failed))
            rest = f"; about {spell(to_go)} to go" if done + len(failed) < len(jobs) else ""
            names = ended[0].name if len(worked) == 1 else f"{len(ended)} together"
            say(f"{done} of {len(jobs)} cells done; {names} took {spell(now - begun)}{rest}")


def run_if_free(
    grid: Grid,
    job: Job,
    left: list[Job],
    stop: Callable[[], bool],
    ways: Ways,
    failed: dict[str, str],
) -> list[Job]:
    """Run or resume a job, and others together with it, unless another process works on it.

    Args:
        grid: whose cell it is.
        job: the cell to run.
        left: all jobs that are left, in their order.
        stop: whether to stop.
        ways: how they run.
        failed: takes the reason under the job's name where it fails.

    Returns:
        The jobs that were worked on; [] where the first was not free.
    """
    with contextlib.ExitStack() as held:
        checks: dict[str, Callable[[], None]] = {}
        taken: list[Job] = []

        def take(one: Job) -> bool:
            """Take a job's lease; return whether it was free."""
            path = lease.claim(lease_of(one))
            if path is None:
                return False
            checks[one.name] = held.enter_context(lease.holding(path))
            taken.append(one)
            return True

        if not take(job):
            return []
        if is_done(job, grid.again):  # another process ended it between our look and our claim
            return taken
        if job.name not in ways.apart:
            others = [other for other in left if other.name not in ways.apart]
            for other in company(job, others, ways.together, ways.forms)[1:]:
                if take(other) and is_done(other, grid.again):
                    taken.pop()
        if len(taken) > 1:
            run_together(grid, taken, checks, stop, ways, failed)
        elif not run_alone(grid, job, checks[job.name], stop, ways.alone, failed):
            return []
    jax.clear_caches()  # else every run leaves some 50 MB of compiled programs behind
    gc.collect()
    return taken


def run_alone(
    grid: Grid,
    job: Job,
    check: Callable[[], None],
    stop: Callable[[], bool],
    run: Run,
    failed: dict[str, str],
) -> bool:
    """Run a job whose lease is held.

    Args:
        grid: whose cell it is.
        job: the cell to run.
        check: raises LeaseLost where another process has taken the lease.
        stop: whether to stop.
        run: the task that runs it.
        failed: takes the reason under the job's name where it fails.

    Returns:
        Whether its directory was free.
    """
    say(f"--- {grid.title}: {job.name} ---")

    def ask() -> bool:
        check()
        return stop()

    try:
        with (
            locked(job.out),  # against a start on the cell by itself
            reporting_out_of_memory(flatten(job.config.to_dict())),
        ):
            run(job.config, str(job.out), ask)
        settle(grid, job, stop)
    except DirectoryTaken:  # by a start on the cell itself, or by a holder that only slept
        return False
    except Exception as error:  # whatever it is: the other cells can do without this one
        fail(job, error, failed)
    return True


def run_together(
    grid: Grid,
    jobs: list[Job],
    checks: dict[str, Callable[[], None]],
    stop: Callable[[], bool],
    ways: Ways,
    failed: dict[str, str],
) -> None:
    """Run jobs whose leases are held, by one program as far as their steps are alike.

    Cells that do not fit the memory together, or whose program breaks, are left for the next look,
    each by itself.

    Args:
        grid: whose cells they are.
        jobs: the cells to run.
        checks: by name, what raises LeaseLost where another process has taken the lease.
        stop: whether to stop.
        ways: how they run; takes the names of those that have to run apart.
        failed: takes the reason under the job's name where one fails.
    """
    say(f"--- {grid.title}: {len(jobs)} together: {', '.join(job.name for job in jobs)} ---")
    stopping = [False]  # asked once a step: all stop at the same one

    def look() -> None:
        stopping[0] = stopping[0] or stop()

    def ask(check: Callable[[], None]) -> bool:
        check()
        return stopping[0]

    by_name = {job.name: job for job in jobs}
    errors: dict[str, Exception] = {}
    with contextlib.ExitStack() as locks:
        trainings: dict[str, Training] = {}
        read = one_at_a_time(read_dataset)
        for name, job in by_name.items():
            try:
                locks.enter_context(locked(job.out))
                make, asked = MAKERS[job.config.task], partial(ask, checks[name])
                trainings[name] = make(job.config, str(job.out), asked, read, len(jobs))
            except Exception as error:
                errors[name] = error
        try:
            for group in groups_of(trainings):
                if not stop():
                    errors |= run_group(group, look)
        except Exception as error:  # of the program itself, which all share
            say(f"together: {one_line(error)}; the {len(jobs)} cells go on by themselves")
            ways.apart.update(by_name)
        for name in trainings.keys() - errors.keys() - ways.apart:
            try:
                settle(grid, by_name[name], stop)
            except Exception as error:
                errors[name] = error
    for name, error in errors.items():
        if isinstance(error, DirectoryTaken):
            continue
        if is_out_of_memory(error):
            say(f"{name}: out of memory beside {len(jobs) - 1} others, goes on by itself")
            ways.apart.add(name)
        else:
            fail(by_name[name], error, failed)


def run_group(group: Group, look: Callable[[], None]) -> dict[str, Exception]:
    """Train and finish the runs of a group; return the errors of those that broke, by name.

    Args:
        group: runs that are alike.
        look: called after each call of the program.
    """
    if len(group.trainings) > 1:
        return train_together(group, look)
    ((name, training),) = group.trainings.items()
    try:
        train(training)
    except Exception as error:
        return {name: error}
    return {}


def one_at_a_time(read: Callable[[Config], Dataset]) -> Callable[[Config], Dataset]:
    """Return the reader, which keeps the last set: cells of the same data share its images."""
    kept: dict[str, Dataset] = {}

    def keeping(config: Config) -> Dataset:
        asked = config.data.to_json()
        if asked not in kept:
            kept.clear()
            kept[asked] = read(config)
        return kept[asked]

    return keeping


def settle(grid: Grid, job: Job, stop: Callable[[], bool]) -> None:
    """Store a job that ended; RuntimeError where it has no result though nobody stopped it."""
    if job.has_result:
        job.failure.unlink(missing_ok=True)
        keep(grid, job)
    elif not stop():
        raise RuntimeError("ended without a result")


def fail(job: Job, error: Exception, failed: dict[str, str]) -> None:
    """Print why a job failed, and write it beside the job.

    Args:
        job: that failed.
        error: why.
        failed: takes the reason under the job's name.
    """
    if isinstance(error, lease.LeaseLost):
        say(f"{job.name}: {error}")
        return
    failed[job.name] = one_line(error)
    write_failure(job, error)
    say(f"failed: {job.name}: {failed[job.name]}")


def lease_of(job: Job) -> Path:
    """Return the folder of the job's lease."""
    return job.out.parent.parent / "leases" / f"{job.cell}.{job.out.name}"


def one_line(error: Exception) -> str:
    """Return the error on one line, with its type unless it is a UserError."""
    text = printable(" ".join(str(error).split()))
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def write_failure(job: Job, error: Exception) -> None:
    """Write the error's line and its traceback to the job's failed.txt."""
    with contextlib.suppress(UserError):  # of a full disk; the line is printed all the same
        files.make_folder(job.failure.parent)
        whole = "".join(traceback.format_exception(error))
        text = f"{one_line(error)}\n\n{printable(whole, lines=True)}"
        files.write_whole(job.failure, text)


def failed_since(job: Job, began: float) -> bool:
    """Return whether the job failed since `began`, in this process or another."""
    with contextlib.suppress(OSError):
        return job.failure.stat().st_mtime >= began
    return False


def reason(job: Job) -> str:
    """Return the first line of the job's failed.txt."""
    with contextlib.suppress(UserError):
        return files.read_text(job.failure, "the failure of a cell").partition("\n")[0]
    return "broken in another process"


def wait(left: list[Job], announced: set[str], stop: Callable[[], bool]) -> None:
    """Wait LOOK seconds for the other processes.

    Args:
        left: jobs that other processes work on.
        announced: names of those whose line is printed; takes the new ones.
        stop: whether to stop waiting.
    """
    for job in left:
        if job.name not in announced:
            say(f"waiting for {job.name}, at which {lease.holder(lease_of(job))} is")
            announced.add(job.name)
    end = time.monotonic() + LOOK
    while time.monotonic() < end and not stop():
        time.sleep(0.2)


def end(grid: Grid, jobs: list[Job], failed: dict[str, str]) -> dict[str, str]:
    """Print the last lines.

    Args:
        grid: whose cells they are.
        jobs: all cells.
        failed: the reason of each failure, by name of the job.

    Returns:
        The failures that no other process has made good.
    """
    done = sum(is_done(job, grid.again) for job in jobs)
    # another process may have finished what failed in this one
    names = {job.name for job in jobs if not is_done(job, grid.again)}
    failed = {name: line for name, line in failed.items() if name in names}
    for name, line in failed.items():
        say(f"failed: {name}: {line}")
    if done + len(failed) < len(jobs):
        say(f"stopped with {done} of {len(jobs)} cells done; the same command goes on from here")
    else:
        cells = f"{done} of {len(jobs)} cells done, {len(failed)} failed"
        say(f"{grid.title}: {cells}")
    return failed
