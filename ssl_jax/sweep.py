"""A sweep: the cells of a table, each an ordinary pretraining run in DIR/SCALE/CELL/seed-N.

The same command on the same directory runs what is not finished: first one seed of every cell, then the next of every
one. Any number of processes may run it at once, on machines that share the directory; none takes what another works on
(`ssl_jax.lease`). A cell that breaks stops no other: the command tells it at once and again at the end, and ends with
status 1 (2: the command itself is wrong, and nothing ran). DIR/SCALE/CELL/seed-N.failed.txt says where it broke; the
next start tries it again.

A finished cell is written to STORE/SWEEP/SCALE/CELL/seed-N.json, small enough to be kept with the program. What the
store has is not run again elsewhere.
"""

import contextlib
import gc
import os
import runpy
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ssl_jax import assembly, driver, lease, records, workdir
from ssl_jax.console import say
from ssl_jax.errors import UserError, nearest
from ssl_jax.statistics import rounded
from ssl_jax.train.dynamics_file import read_dynamics
from ssl_jax.types import Config

SCALES = ("mini", "full")
# What may differ from start to start, and from machine to machine, of one sweep.
FREE = (
    "devices",
    "data.data_dir",
    "data.resident",
    "steps_per_call",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "dynamics.every",
)
ROOT = Path(__file__).parent.parent  # where configs/ is
LOOK = 10.0  # seconds between looks at what other processes hold
RECORDS, MODES = 13, 16  # of the spectra's history, kept in the store
DIGITS = 6  # of its numbers
Pretrain = Callable[[Config, str, Callable[[], bool]], None]


class Job(NamedTuple):
    """One seed of one cell. out: its work directory; store: its file there, or None where no store is kept."""

    cell: str
    seed: int
    config: Config
    out: Path
    store: Path | None

    @property
    def name(self) -> str:
        return f"{self.cell} seed {self.seed}"

    @property
    def failure(self) -> Path:
        return self.out.with_name(f"{self.out.name}.failed.txt")


def sweep(config: Config, directory: str, interrupted: Callable[[], bool], pretrain: Pretrain) -> None:
    """Runs by `pretrain` whatever is not finished of the sweep that `config` describes."""
    check_fields(config)
    jobs = plan(config, Path(directory))
    check_all(config, jobs, Path(directory))
    began = lease.time_of(Path(directory))
    workdir.write_json(Path(directory) / "config.json", {"task": "sweep", "sweep": config.sweep})
    workdir.write_json(Path(directory) / config.scale / "config.json", identity(config))
    done = [job for job in jobs if is_done(job, config.again)]
    say(f"{config.sweep} at scale {config.scale}: {len(done)} of {len(jobs)} cells done")
    for job in done:
        if (job.out / "result.json").exists():
            keep(config, job)
        else:
            say(f"{job.name}: done elsewhere, {job.store} has it (--config.again=True runs it here)")
    with asked_to_stop(config.minutes, interrupted) as (stop, pressed):
        failed = run_all(config, jobs, stop, pretrain, began)
    end(config, jobs, failed, pressed())


# --- Before anything runs -----------------------------------------------------------------------------------------


def check_fields(config: Config) -> None:
    """UserError for a field of the sweep's own."""
    if config.scale not in SCALES:
        raise UserError(f"scale: got {config.scale!r}, {nearest(config.scale, SCALES)}")
    seeds = list(config.seeds)
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(s) is int and 0 <= s < 2**32 for s in seeds):
        raise UserError(f"seeds: got {tuple(seeds)}, takes different whole numbers of at least 0, e.g. 0,1,2")
    if not 0 <= config.minutes < float("inf"):
        raise UserError(f"minutes: got {config.minutes}, takes a number of at least 0; 0 for no end")
    known = config.overrides[config.scale]
    for name in chosen(config):
        if name not in known:
            raise UserError(f"cells: got {name!r}, {nearest(name, known)}")


def chosen(config: Config) -> list[str]:
    """The names of the cells to run, in their order."""
    return list(dict.fromkeys(name.strip() for name in config.cells.split(",")))


def plan(config: Config, directory: Path) -> list[Job]:
    """Everything there is to run, in its order."""
    jobs = []
    for seed in config.seeds:
        for cell in chosen(config):
            place = Path(config.scale, cell, f"seed-{seed}")
            store = Path(config.store, config.sweep, f"{place}.json") if config.store else None
            jobs.append(Job(cell, seed, cell_config(config, cell, seed), directory / place, store))
    return jobs


def cell_config(config: Config, cell: str, seed: int) -> Config:
    """The configuration of one pretraining run."""
    run = config[config.scale].copy_and_resolve_references()
    changes = workdir.flatten(config.overrides[config.scale][cell].to_dict())
    run.update_from_flattened_dict(changes | {"seed": seed})
    run.data.data_dir = config.data_dir or run.data.data_dir
    return run


def identity(config: Config) -> dict:
    """What all starts of one sweep have in common."""
    base = {name: value for name, value in workdir.spread(config[config.scale].to_dict()).items() if name not in FREE}
    overrides = config.overrides[config.scale].to_dict()
    return {"task": "sweep", "sweep": config.sweep, "scale": config.scale, config.scale: base, "overrides": overrides}


def check_all(config: Config, jobs: list[Job], directory: Path) -> None:
    """UserError for whatever would break later: every cell as its run will check it, directory, store."""
    datasets = {}
    for job in {job.cell: job for job in jobs}.values():
        try:
            check_cell(job.config, datasets)
        except UserError as error:
            raise UserError(f"cell {job.cell}: {error}") from error
    workdir.check_workdir(str(directory), {"task": "sweep", "sweep": config.sweep})
    refuse_other("--workdir", directory / config.scale / "config.json", [], identity(config))
    writable("--workdir", directory / config.scale)
    if config.store:
        writable("store", Path(config.store, config.sweep, config.scale))
    for job in jobs:
        if job.store is not None and job.store.exists() and not config.again:
            refuse_other("store", job.store, ["config"], records.fields(job.config))
        if not is_done(job, config.again):
            workdir.check_workdir(str(job.out), job.config.to_dict())


def check_cell(config: Config, datasets: dict) -> None:
    """What `runs.pretrain` checks before its first step; `datasets`: those read so far."""
    _, _, recipe = driver.check_pretraining(config)
    wanted = config.data.to_json()
    if wanted not in datasets:
        datasets[wanted] = assembly.read_dataset(config)
    driver.check_data(config, recipe, datasets[wanted])


def refuse_other(field: str, path: Path, inside: list[str], config: dict) -> None:
    """UserError where the file `path` is of another configuration. Fields that only one of the two has are let pass:
    a program grows.
    """
    if not path.exists():
        return
    earlier = workdir.read_json(path)
    for name in inside:
        earlier = earlier.get(name, {})
    old, new = workdir.spread(earlier), workdir.spread(config)
    differing = [
        f"{n} {old[n]!r} -> {new[n]!r}" for n in sorted(old.keys() & new.keys()) if n not in FREE and old[n] != new[n]
    ]
    if differing:
        more = f"; and {len(differing) - workdir.LISTED} more" if len(differing) > workdir.LISTED else ""
        way = (
            "--config.again=True replaces it; or take another folder" if field == "store" else "take another directory"
        )
        listed = "; ".join(differing[: workdir.LISTED])
        raise UserError(f"{field}: {path} is of another configuration ({listed}{more}); {way}")


def writable(field: str, folder: Path) -> None:
    """UserError where the folder cannot be made, or written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lease.time_of(folder)
    except OSError as error:
        raise UserError(
            f"{field}: {error.filename or folder} cannot be written ({error.strerror}); takes a folder that can"
        ) from error


# --- Running ------------------------------------------------------------------------------------------------------


def is_done(job: Job, again: bool) -> bool:
    """Whether it is finished, here or, unless `again`, in the store."""
    stored = job.store is not None and not again and job.store.exists()
    return stored or (job.out / "result.json").exists()


def run_all(
    config: Config, jobs: list[Job], stop: Callable[[], bool], pretrain: Pretrain, began: float
) -> dict[str, str]:
    """Runs the jobs until all are done, or have failed since `began`, or stop(); {name: why} of those that failed."""
    failed: dict[str, str] = {}
    told: set[str] = set()
    before, start = sum(is_done(job, config.again) for job in jobs), time.monotonic()
    while not stop():
        failed |= {job.name: reason(job) for job in jobs if failed_since(job, began)}
        left = [job for job in jobs if job.name not in failed and not is_done(job, config.again)]
        if not left:
            break
        begun = time.monotonic()
        job = next((job for job in left if run_if_free(config, job, stop, pretrain, failed)), None)
        if job is None and not config.wait:
            break
        elif job is None:
            wait(left, told, stop)
        elif is_done(job, config.again):
            done = sum(is_done(job, config.again) for job in jobs)
            now = time.monotonic()
            to_go = (now - start) / (done - before) * (len(jobs) - done - len(failed))
            rest = f"; about {spell(to_go)} to go" if done + len(failed) < len(jobs) else ""
            say(f"{done} of {len(jobs)} cells done; {job.name} took {spell(now - begun)}{rest}")
    return failed


def run_if_free(config: Config, job: Job, stop: Callable[[], bool], pretrain: Pretrain, failed: dict) -> bool:
    """Runs the job, or goes on with it, unless another process is at it; whether it was free. Notes it in `failed`."""
    path = lease.claim(lease_of(job))
    if path is None:
        return False
    with lease.holding(path) as check:
        if is_done(job, config.again):  # another process ended it between our look and our claim
            return True
        say(f"--- {config.sweep}, {config.scale}: {job.name} ---")

        def ask() -> bool:
            check()
            return stop()

        try:
            pretrain(job.config, str(job.out), ask)
            if (job.out / "result.json").exists():
                job.failure.unlink(missing_ok=True)
                keep(config, job)
            elif not stop():
                raise RuntimeError("ended without a result")
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
    return job.out.parent.parent / "leases" / f"{job.cell}.{job.out.name}"


def one_line(error: Exception) -> str:
    """A user's mistake as it is, a defect with its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def write_failure(job: Job, line: str) -> None:
    with contextlib.suppress(OSError):  # a full disk is told as what it is already
        job.failure.parent.mkdir(parents=True, exist_ok=True)
        job.failure.write_text(f"{line}\n\n{traceback.format_exc()}")


def failed_since(job: Job, began: float) -> bool:
    """Whether it broke since `began`, here or in another process, which may just be ending it."""
    with contextlib.suppress(OSError):
        return job.failure.stat().st_mtime >= began
    return False


def reason(job: Job) -> str:
    with contextlib.suppress(OSError):
        return job.failure.read_text().partition("\n")[0]
    return "broken in another process"


def wait(left: list[Job], told: set[str], stop: Callable[[], bool]) -> None:
    """Some seconds, for the other processes; each of their jobs is told once."""
    for job in left:
        if job.name not in told:
            say(f"waiting for {job.name}, at which {lease.holder(lease_of(job))} is")
            told.add(job.name)
    end = time.monotonic() + LOOK
    while time.monotonic() < end and not stop():
        time.sleep(0.2)


@contextlib.contextmanager
def asked_to_stop(
    minutes: float, interrupted: Callable[[], bool]
) -> Iterator[tuple[Callable[[], bool], Callable[[], bool]]]:
    """(whether to stop: time is over, or somebody asked for it; whether that was Ctrl-C).

    The first Ctrl-C lets the step end and be saved, the second is an ordinary one.
    """
    deadline = time.monotonic() + minutes * 60 if minutes else float("inf")
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def press(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        os.write(2, b"\nstopping as soon as this step is saved; Ctrl-C again stops at once\n")

    def stop() -> bool:
        return bool(pressed) or interrupted() or time.monotonic() > deadline

    # A job in the background has SIGINT ignored, and only the main thread may handle signals.
    heeds = callable(before) and threading.current_thread() is threading.main_thread()
    if heeds:
        signal.signal(signal.SIGINT, press)
    try:
        yield stop, lambda: bool(pressed)
    finally:
        if heeds:
            signal.signal(signal.SIGINT, before)


def end(config: Config, jobs: list[Job], failed: dict[str, str], pressed: bool) -> None:
    """The last lines; status 1 if any cell failed, 130 after Ctrl-C."""
    done = sum(is_done(job, config.again) for job in jobs)
    names = {job.name for job in jobs if not is_done(job, config.again)}  # what failed here another may have ended
    failed = {name: line for name, line in failed.items() if name in names}
    for name, line in failed.items():
        say(f"failed: {name}: {line}")
    if done + len(failed) < len(jobs):
        say(f"stopped with {done} of {len(jobs)} cells done; the same command goes on from here")
    else:
        say(f"{config.sweep} at scale {config.scale}: {done} of {len(jobs)} cells done, {len(failed)} failed")
    if pressed:
        raise KeyboardInterrupt
    if failed:
        sys.exit(1)


def spell(seconds: float) -> str:
    """75 -> "1 min", 4000 -> "1 h 07 min"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


# --- The store ----------------------------------------------------------------------------------------------------


def keep(config: Config, job: Job) -> None:
    """Writes the store's file of a finished job, unless it is there."""
    if job.store is None or (job.store.exists() and not config.again):
        return
    content = workdir.read_json(job.out / "result.json")
    content |= {"sweep": config.sweep, "scale": config.scale, "cell": job.cell, "seed": job.seed}
    content |= {"command": command(config.files[config.scale], job), "config": records.fields(job.config)}
    content |= {"dynamics": thinned(job.out)}
    job.store.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(job.store, content)


def command(file: str, job: Job) -> str:
    """The command that trains this cell by itself: every field in which it differs from the configuration `file`."""
    plain = workdir.flatten(records.fields(runpy.run_path(str(ROOT / file))["get_config"]()))
    fields = workdir.flatten(records.fields(job.config))
    words = [f"--config.{name}={spelled(fields[name])}" for name in fields if fields[name] != plain.get(name)]
    start = ["python", "launch.py", "--config", file, "--workdir", f"runs/{job.cell}-{job.seed}"]
    return shlex.join(start + words)


def spelled(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def thinned(directory: Path) -> dict | None:
    """First and last record of dynamics.npz, and some in between of the largest modes; None if none was kept."""
    try:
        arrays = read_dynamics(directory)
    except UserError:  # none was made, or it cannot be read
        return None
    spectra = [name for name in ("corr_eigenvalues", "predictor_eigenvalues", "alignment") if name in arrays]
    few = np.unique(np.linspace(0, len(arrays["step"]) - 1, RECORDS).round().astype(int))
    return {
        "first": {name: rounded(array[0], DIGITS) for name, array in arrays.items() if array.ndim == 1},
        "last": {name: rounded(array[-1], DIGITS) for name, array in arrays.items()},
        "history": {name: rounded(arrays[name][few], DIGITS) for name in ("step", "epoch") if name in arrays}
        | {name: rounded(arrays[name][few, :MODES], DIGITS) for name in spectra},
    }
