"""A sweep: the cells of a table, each an ordinary pretraining run in DIR/SCALE/CELL/seed-N.

The same command on the same directory runs what is not finished: first one seed of every cell, then
the next of every one. Any number of processes may run it at once, on machines that share the
directory; none takes what another works on (`sweeps.lease`). A cell that breaks stops no other: the
command tells it at once and again at the end, and ends with status 1 (2: the command itself is
wrong, and nothing ran). DIR/SCALE/CELL/seed-N.failed.txt says where it broke; the next start tries
it again.

A finished cell is written to STORE/SWEEP/SCALE/CELL/seed-N.json, small enough to be kept with the
program. What the store has is not run again elsewhere.
"""

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from ssl_jax.errors import UserError
from ssl_jax.runtime.terminal import say
from ssl_jax.sweeps import lease
from ssl_jax.sweeps.jobs import Job, check_all, check_fields, identity, is_done, plan
from ssl_jax.sweeps.store import keep
from ssl_jax.tasks.pretrain import pretrain
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir.directory import write_json

LOOK = 10.0  # seconds between looks at what other processes hold
Pretrain = Callable[[Config, str, Interrupted], None]


def sweep(
    config: Config,
    directory: str,
    interrupted: Interrupted = lambda: False,
    pretrain: Pretrain = pretrain,
) -> None:
    """Runs by `pretrain` whatever is not finished of the sweep that `config` describes."""
    check_fields(config)
    jobs = plan(config, Path(directory))
    check_all(config, jobs, Path(directory))
    began = lease.time_of(Path(directory))
    write_json(Path(directory) / "config.json", {"task": "sweep", "sweep": config.sweep})
    write_json(Path(directory) / config.scale / "config.json", identity(config))
    done = [job for job in jobs if is_done(job, config.again)]
    say(f"{config.sweep} at scale {config.scale}: {len(done)} of {len(jobs)} cells done")
    for job in done:
        if (job.out / "result.json").exists():
            keep(config, job)
        else:
            say(
                f"{job.name}: done elsewhere, {job.store} has it (--config.again=True runs it here)"
            )
    with asked_to_stop(config.minutes, interrupted) as (stop, pressed):
        failed = run_all(config, jobs, stop, pretrain, began)
    end(config, jobs, failed, pressed())


def run_all(
    config: Config, jobs: list[Job], stop: Callable[[], bool], pretrain: Pretrain, began: float
) -> dict[str, str]:
    """Runs the jobs until all are done, or have failed since `began`, or stop(); {name: why} of
    those that failed.
    """
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


def run_if_free(
    config: Config, job: Job, stop: Callable[[], bool], pretrain: Pretrain, failed: dict
) -> bool:
    """Runs the job, or goes on with it, unless another process is at it; whether it was free. Notes
    it in `failed`.
    """
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
    # what failed here another may have ended
    names = {job.name for job in jobs if not is_done(job, config.again)}
    failed = {name: line for name, line in failed.items() if name in names}
    for name, line in failed.items():
        say(f"failed: {name}: {line}")
    if done + len(failed) < len(jobs):
        say(f"stopped with {done} of {len(jobs)} cells done; the same command goes on from here")
    else:
        say(
            f"{config.sweep} at scale {config.scale}: {done} of {len(jobs)} cells done, {len(failed)} failed"
        )
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
