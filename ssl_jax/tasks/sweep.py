"""The task "sweep": run the cells of a table, or of any fields that vary.

A cell of a table is a pretraining run in DIR/SCALE/CELL/seed-N, one of varied fields is a run of
any task that trains, in DIR/CELL/seed-N.

The same command on the same directory runs what is not finished: first one seed of every cell, then
the next of every one. Any number of processes may run it at once, on machines that share the
directory; none takes a cell that another works on (`runtime.lease`).

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
from pathlib import Path

import jax

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.runtime import lease, stops
from ssl_jax.runtime.memory import reporting_out_of_memory
from ssl_jax.runtime.terminal import say, spell
from ssl_jax.sweeps.jobs import Grid, Job, check_all, check_fields, is_done, plan
from ssl_jax.sweeps.store import keep
from ssl_jax.sweeps.tables import table_grid
from ssl_jax.sweeps.vary import varied_grid
from ssl_jax.tasks.pretrain import pretrain
from ssl_jax.tasks.supervised import supervised
from ssl_jax.text import printable
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir.directory import check_workdir, flatten, write_json
from ssl_jax.workdir.lock import DirectoryTaken, locked

LOOK = 10.0  # seconds between two looks at what other processes hold
Run = Callable[[Config, str, Interrupted], None]
TASKS: dict[str, Run] = {"pretrain": pretrain, "supervised": supervised}


def run_cell(config: Config, directory: str, interrupted: Interrupted) -> None:
    """Run the task that the cell's configuration names."""
    TASKS[config.task](config, directory, interrupted)


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
        run_all(grid, jobs, stop, run, began, failed, config.wait)
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
    run: Run,
    began: float,
    failed: dict[str, str],
    patient: bool,
) -> None:
    """Run the jobs until each is done or has failed, or until stop().

    Args:
        grid: whose cells they are.
        jobs: the cells in the order in which they run.
        stop: whether to stop.
        run: the task that runs a cell.
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
        job = next((job for job in left if run_if_free(grid, job, stop, run, failed)), None)
        if job is None and not patient:
            break
        elif job is None:
            wait(left, announced, stop)
        elif is_done(job, grid.again):
            done = sum(is_done(job, grid.again) for job in jobs)
            now = time.monotonic()
            to_go = (now - start) / (done - before) * (len(jobs) - done - len(failed))
            rest = f"; about {spell(to_go)} to go" if done + len(failed) < len(jobs) else ""
            say(f"{done} of {len(jobs)} cells done; {job.name} took {spell(now - begun)}{rest}")


def run_if_free(grid: Grid, job: Job, stop: Callable[[], bool], run: Run, failed: dict) -> bool:
    """Run or resume a job, unless another process works on it.

    Args:
        grid: whose cell it is.
        job: the cell to run.
        stop: whether to stop.
        run: the task that runs it.
        failed: takes the reason under the job's name where it fails.

    Returns:
        Whether the job was free.
    """
    path = lease.claim(lease_of(job))
    if path is None:
        return False
    with lease.holding(path) as check:
        if is_done(job, grid.again):  # another process ended it between our look and our claim
            return True
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
            if job.has_result:
                job.failure.unlink(missing_ok=True)
                keep(grid, job)
            elif not stop():
                raise RuntimeError("ended without a result")
        except DirectoryTaken:  # by a start on the cell itself, or by a holder that only slept
            return False
        except lease.LeaseLost as lost:
            say(f"{job.name}: {lost}")
        except Exception as error:  # whatever it is: the other cells can do without this one
            failed[job.name] = one_line(error)
            write_failure(job, failed[job.name])
            say(f"failed: {job.name}: {failed[job.name]}")
    jax.clear_caches()  # else every run leaves some 50 MB of compiled programs behind
    gc.collect()
    return True


def lease_of(job: Job) -> Path:
    """Return the folder of the job's lease."""
    return job.out.parent.parent / "leases" / f"{job.cell}.{job.out.name}"


def one_line(error: Exception) -> str:
    """Return the error on one line, with its type unless it is a UserError."""
    text = printable(" ".join(str(error).split()))
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def write_failure(job: Job, line: str) -> None:
    """Write the line and the traceback to the job's failed.txt."""
    with contextlib.suppress(UserError):  # of a full disk; the line is printed all the same
        files.make_folder(job.failure.parent)
        text = f"{line}\n\n{printable(traceback.format_exc(), lines=True)}"
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
