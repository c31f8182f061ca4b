"""From a fresh state to the end of training, or from the last checkpoint to it: the same for every task that trains."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ssl_jax.data.batches import Feed
from ssl_jax.errors import UserError
from ssl_jax.runtime.terminal import is_writer, progress_bar, say
from ssl_jax.runtime.threads import lapack_on_one_thread
from ssl_jax.train import parallel
from ssl_jax.train.loop import Cadence, Hooks, plan_calls, train_loop
from ssl_jax.types import Config, PyTree
from ssl_jax.workdir import checkpoints, metrics_csv, result_json
from ssl_jax.workdir.dynamics_npz import Record, resume_dynamics, write_dynamics

WRITE_EVERY = 30  # seconds between two writes of dynamics.npz where no checkpoint is due: it is written whole


class Task(NamedTuple):
    """What differs between the tasks that train.

    run(state, batches) -> (state, metrics), compiled; best: the metric that ranks checkpoints; header(start), printed
    before the first step; signs(state) -> what a row of metrics.csv holds of it; evaluate(state, step) -> more of it;
    adjust(state, rows) -> (state, whether to end here), after an evaluation and at a restart: `rows` are all so far.
    shown: columns beside the progress bar. track(state) -> what a record of dynamics.npz holds of it; news(rows) -> a
    line to say after a row, or None.
    """

    run: Callable
    best: str
    header: Callable[[int], None]
    signs: Callable[[Any], dict]
    evaluate: Callable[[Any, int], dict]
    adjust: Callable[[Any, list[dict]], tuple[Any, bool]]
    shown: tuple[str, ...]
    track: Callable[[Any], Record] = lambda state: {}
    news: Callable[[list[dict]], str | None] = lambda rows: None


def train(
    config: Config,
    out: Path,
    task: Task,
    fresh: PyTree,
    feed: Feed,
    cadence: Cadence,
    devices: list,
    interrupted: Callable[[], bool],
) -> PyTree | None:
    """The state at the end, on the host; None where training was interrupted, after saving."""
    with checkpoints.open_manager(out / "checkpoints", task.best) as manager:
        start = manager.latest_step() or 0
        if start > cadence.total:
            raise UserError(f"epochs: got {config.epochs}, {out} has already gone {start // feed.steps_per_epoch}")
        state = checkpoints.restore(manager, fresh) if start else fresh
        result_json.open_on_one(str(out), config)  # a start that is refused above leaves everything as it was
        rows = result_json.begin_log(out, start)
        dynamics = begin_dynamics(out, task, state, start) if cadence.track else []
        state, enough = task.adjust(state, rows)
        if not enough:
            task.header(start)
            state, step = _loop(
                config, out, task, manager, state, rows, dynamics, start, feed, cadence, devices, interrupted
            )
            if step < cadence.total and not task.adjust(state, rows)[1]:
                say(f"stopped at step {step} of {cadence.total}, saved; the same command goes on from here")
                return None
    return jax.device_get(state)


def begin_dynamics(out: Path, task: Task, state: PyTree, start: int) -> list[Record]:
    """The records up to the step that training goes on from; the first is of the fresh state."""
    found = resume_dynamics(out, start) if is_writer() else []
    return found if start else [task.track(state) | {"step": np.int64(0), "epoch": np.float32(0)}]


def _loop(config, out, task: Task, manager, state, rows, dynamics, start, feed, cadence, devices, interrupted):
    """(state, step reached)."""
    size = parallel.steps_per_call(config.steps_per_call, devices)
    calls = feed.batches(plan_calls(start, cadence, size), parallel.process_rows(config.batch_size))
    with progress_bar(cadence.total, start) as bar, lapack_on_one_thread():
        return train_loop(
            task.run,
            parallel.replicate(state, devices),
            calls,
            start=start,
            cadence=cadence,
            batch_size=config.batch_size,
            seconds_before=rows[-1]["seconds"] if rows else 0.0,
            hooks=_hooks(config, out, task, manager, rows, dynamics, cadence, interrupted, bar),
        )


def _hooks(config, out, task: Task, manager, rows, dynamics, cadence: Cadence, interrupted, bar) -> Hooks:
    """What the loop does at its events."""

    def signs(state):
        return {"epoch": int(state.step) * config.epochs / cadence.total} | task.signs(state)

    def record(row):
        rows.append(metrics_csv.as_written(row))
        if is_writer():
            metrics_csv.append_row(out / "metrics.csv", row)
        if line := task.news(rows):
            say(line)

    written = [time.monotonic()]

    def write():
        if dynamics and is_writer():
            write_dynamics(out, dynamics)
            written[0] = time.monotonic()

    def track(state, step, metrics):
        epoch = np.float32(step * config.epochs / cadence.total)
        dynamics.append(task.track(state) | jax.device_get(metrics) | {"step": np.int64(step), "epoch": epoch})
        if time.monotonic() - written[0] > WRITE_EVERY:
            write()

    def save(state, step, row):
        write()  # first: a record that is missing after a restart would never be made again
        checkpoints.save(manager, state, step, {task.best: row[task.best]} if task.best in row else {})

    def stop(event):
        flag = interrupted()
        if jax.process_count() == 1:
            return flag
        return event and parallel.any_process(flag)

    def progress(step, row):
        bar.update(step - bar.n)
        if row:
            shown = {name: row[name] for name in task.shown if name in row}
            texts = {name: f"{value:.0f}" if value >= 100 else f"{value:.3g}" for name, value in shown.items()}
            bar.set_postfix(texts)

    return Hooks(signs, task.evaluate, record, save, stop, progress, lambda state: task.adjust(state, rows), track)
