"""The loop: calls the compiled program, and at every event reads, records, evaluates and saves.

It knows no probe, no file and no configuration: what happens at an event is handed to it as
callables.
"""

# JAX leaves the types of leaves, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.optim.decay import leaves_with_path
from ssl_jax.train.parallel import HostBatches
from ssl_jax.types import Metrics

Row = dict[str, Any]  # numbers by name, a row of metrics.csv

ADVICE = "the last checkpoint before it is kept. Lower optimizer.learning_rate, or run in float32"


class Cadence(NamedTuple):
    """When things happen, in steps."""

    total: int  # last step of the run
    log: int  # between two rows of metrics.csv
    evaluate: int  # between two evaluations
    save: int  # between two checkpoints
    track: int = 0  # between two records of the dynamics; 0: none

    def next_event(self, step: int) -> int:
        """Return the first step after `step` that ends a row of metrics.csv."""
        return min(
            self.total,
            *((step // every + 1) * every for every in (self.log, self.evaluate, self.save)),
        )

    def next_stop(self, step: int) -> int:
        """Return the first step after `step` at which anything happens."""
        return min(
            self.next_event(step),
            (step // self.track + 1) * self.track if self.track else self.total,
        )

    def due(self, step: int, every: int) -> bool:
        """Return whether `step` is a multiple of `every` or the last of the run."""
        return step % every == 0 or step == self.total


class Hooks(NamedTuple):
    """What the loop calls, and when. An event is a step that ends a row of metrics.csv."""

    # signs(state) -> floats by name, at every event.
    signs: Callable[[Any], Row]
    # evaluate(state, step) -> floats by name, every `cadence.evaluate` steps; None where it was
    # given up for a stop.
    evaluate: Callable[[Any, int], Row | None]
    # record(row), at every event.
    record: Callable[[Row], None]
    # save(state, step, row), every `cadence.save` steps and before a stop.
    save: Callable[[Any, int, Row], None]
    # stop(whether it is an event) -> whether to stop here, asked after each call.
    stop: Callable[[bool], bool]
    # progress(step, row), after each call; the row is {} where it is no event.
    progress: Callable[[int, Row], None]
    # postpone(state, step, row): save before a stop where an evaluation is due. The row lacks it,
    # and is handed to the loop of the next start, as `owed`.
    postpone: Callable[[Any, int, Row], None]
    # adjust(state) -> (state, whether to end here), after each evaluation has been recorded.
    adjust: Callable[[Any], tuple[Any, bool]] = lambda state: (state, False)
    # track(state, step, metrics), every `cadence.track` steps, with the metrics of the step itself.
    track: Callable[[Any, int, Metrics], None] = lambda state, step, metrics: None


def plan_calls(first: int, cadence: Cadence, size: int) -> Iterable[tuple[int, int]]:
    """Split the run into calls.

    Args:
        first: steps taken before the first call.
        cadence: what happens when; an event ends a call.
        size: most steps of a call.

    Yields:
        The steps taken before each call, and the steps that it takes.
    """
    while first < cadence.total:
        count = min(size, cadence.next_stop(first) - first)
        yield first, count
        first += count


class Held(NamedTuple):
    """Where the state of a run is: by itself, or one of several in one array."""

    get: Callable[[], Any]  # () -> the state
    put: Callable[[Any], None]  # replaces it


# Yields the batches of each call, takes the metrics of its steps, each (count, ...), and returns
# the step reached. None in place of metrics: there was no call, save and stop here.
Steps = Generator[HostBatches, "Metrics | None", int]


def train_loop(
    held: Held,
    batches: Iterable[HostBatches],
    *,
    start: int,
    cadence: Cadence,
    batch_size: int,
    seconds_before: float,
    hooks: Hooks,
    owed: Row | None = None,
) -> Steps:
    """Go from step `start` to the end, or until a hook stops it; whoever drives it runs the calls.

    Rows hold the mean over the steps since the last event, and the wall time of all starts
    together.

    Args:
        held: where the state is, before the first call that of step `start`.
        batches: for each call, arrays (count, B, ...) of its `count` steps, "position" among them.
        start: steps taken before.
        cadence: what happens when.
        batch_size: examples of a step over all devices.
        seconds_before: wall time of the earlier starts.
        hooks: what to call at an event.
        owed: the row of step `start` where its evaluation was postponed.

    Yields:
        The batches of each call.

    Returns:
        The step reached.

    Raises:
        UserError: a loss or a state is not finite. Nothing is saved after it.
    """
    step = saved = start
    pending: list[Metrics] = []
    row: Row = {}
    begin = mark = time.perf_counter()
    marked = start

    def end_event(known: Row, stopping: bool, save: bool = False) -> bool:
        """End the event of which `known` is known; return whether to stop here."""
        nonlocal row, saved
        before = held.get()
        ended = _end_event(before, known, stopping, cadence, hooks, save)
        if ended.state is not before:
            held.put(ended.state)
        row, saved = ended.row, step if ended.saved else saved
        return ended.stopping

    if owed and end_event(owed, False, save=True):
        return step
    for batch in batches:
        metrics = yield batch
        if metrics is None:  # others that train with this run stop at this event
            if saved < step:
                hooks.save(held.get(), step, row)
            break
        step += len(batch["position"])
        pending.append(metrics)
        if cadence.track and cadence.due(step, cadence.track):
            hooks.track(held.get(), step, jax.tree.map(lambda x: x[-1], metrics))
        event = step == cadence.next_event(step - 1)
        stopping = hooks.stop(event)
        if not (stopping or event):
            hooks.progress(step, {})
            continue
        try:
            means = _mean_of(pending, step)
        except UserError:
            # blank in metrics.csv: where a divergence can be read
            hooks.record({"step": step, "loss": float("nan")})
            raise
        known: Row = {"step": step, **means, **hooks.signs(held.get())}
        now = time.perf_counter()
        known |= {
            "images_per_second": (step - marked) * batch_size / (now - mark),
            "seconds": seconds_before + now - begin,
        }
        stopping = end_event(known, stopping)
        pending, marked, mark = [], step, time.perf_counter()
        if stopping:
            break
    return step


def drive(
    run: Callable[[Any, HostBatches], tuple[Any, Metrics]],
    steps: Generator[HostBatches, "Metrics | None", Any],
    held: Held,
) -> Any:
    """Run the calls of a run that trains by itself; return what `steps` returns.

    Args:
        run: state, batches -> state, metrics of every step, each (count, ...).
        steps: of the run, see `train_loop`.
        held: where its state is.
    """
    try:
        batch = next(steps)
        while True:
            state, metrics = run(held.get(), batch)
            held.put(state)
            batch = steps.send(metrics)
    except StopIteration as end:
        return end.value


def hold(state: Any = None) -> Held:
    """Return a place for the state of one run."""
    kept = [state]

    def put(state: Any) -> None:
        kept[0] = state

    return Held(lambda: kept[0], put)


class _Ended(NamedTuple):
    """What came of an event."""

    state: Any
    row: Row  # with what was evaluated
    stopping: bool  # whether to stop here
    saved: bool  # whether the state is saved


def _end_event(
    state: Any, row: Row, stopping: bool, cadence: Cadence, hooks: Hooks, save: bool
) -> _Ended:
    """Evaluate where that is due, record the row, and save where that is due.

    Args:
        state: the state at the event.
        row: what is known of it so far.
        stopping: whether to stop here.
        cadence: what happens when.
        hooks: what to call.
        save: whether to save in any case.

    Returns:
        What came of it.
    """
    step = int(row["step"])
    evaluates = cadence.due(step, cadence.evaluate)
    if evaluates:
        require_finite(state, step)  # its line helps more than that of the features would
        found = None if stopping else hooks.evaluate(state, step)
        if found is None:
            hooks.postpone(state, step, row)
            return _Ended(state, row, True, True)
        row = row | found
    hooks.record(row)
    if evaluates:
        state, enough = hooks.adjust(state)
        stopping = stopping or enough
    is_saved = save or stopping or cadence.due(step, cadence.save)
    if is_saved:
        require_finite(state, step)
        hooks.save(state, step, row)
    hooks.progress(step, row)
    return _Ended(state, row, stopping, is_saved)


def require_finite(state: Any, step: int) -> None:
    """Raise a UserError that names the first part of the state with a number that is not finite.

    Such a state must not be saved, or every later start would go on from it.
    """
    for path, value in leaves_with_path(jax.device_get(state)):
        if not np.all(np.isfinite(value)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"{name}: not finite at step {step}; {ADVICE}")


def _mean_of(pending: list[Metrics], step: int) -> dict[str, float]:
    """Average over the steps since the last event.

    A UserError names the first step whose loss is not finite.
    """
    host: list[HostBatches] = jax.device_get(pending)
    joined = {name: np.concatenate([m[name] for m in host]) for name in host[0]}
    bad = np.flatnonzero(~np.isfinite(joined["loss"]))
    if bad.size:
        at = step - len(joined["loss"]) + int(bad[0])
        raise UserError(f"loss: became {joined['loss'][bad[0]]} at step {at}; {ADVICE}")
    return {name: float(np.mean(values, dtype=np.float64)) for name, values in joined.items()}
