"""The loop: calls the compiled program, and at every event reads, records, evaluates and saves.

It knows no probe, no file and no configuration: what happens at an event is handed to it as
callables.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr

from ssl_jax.errors import UserError

ADVICE = "the last checkpoint before it is kept. Lower optimizer.learning_rate, or run in float32"


class Cadence(NamedTuple):
    """When things happen, in steps."""

    total: int  # last step of the run
    log: int  # between two rows of metrics.csv
    evaluate: int  # between two evaluations
    save: int  # between two checkpoints
    track: int = 0  # between two records of the dynamics; 0: none

    def next_event(self, step: int) -> int:
        """The first step after `step` that ends a row of metrics.csv."""
        return min(
            self.total,
            *((step // every + 1) * every for every in (self.log, self.evaluate, self.save)),
        )

    def next_stop(self, step: int) -> int:
        """The first step after `step` at which anything happens."""
        return min(
            self.next_event(step),
            (step // self.track + 1) * self.track if self.track else self.total,
        )

    def due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.total


class Hooks(NamedTuple):
    """What the loop calls, and when. An event is a step that ends a row of metrics.csv."""

    # signs(state) -> floats by name, at every event.
    signs: Callable[[Any], dict]
    # evaluate(state, step) -> floats by name, every `cadence.evaluate` steps.
    evaluate: Callable[[Any, int], dict]
    # record(row), at every event.
    record: Callable[[dict], None]
    # save(state, step, row), every `cadence.save` steps and before a stop.
    save: Callable[[Any, int, dict], None]
    # stop(whether it is an event) -> whether to stop here, asked after each call.
    stop: Callable[[bool], bool]
    # progress(step, row), after each call; the row is {} where it is no event.
    progress: Callable[[int, dict], None]
    # adjust(state) -> (state, whether to end here), after each evaluation has been recorded.
    adjust: Callable[[Any], tuple[Any, bool]] = lambda state: (state, False)
    # track(state, step, metrics), every `cadence.track` steps, with the metrics of the step itself.
    track: Callable[[Any, int, dict], None] = lambda state, step, metrics: None


def plan_calls(first: int, cadence: Cadence, size: int) -> Iterable[tuple[int, int]]:
    """(first step, count) of each call: `size` steps where no event lies inside, single steps
    otherwise.

    So at most two programs are ever compiled.
    """
    while first < cadence.total:
        count = size if cadence.next_stop(first) - first >= size else 1
        yield first, count
        first += count


def train_loop(
    run: Callable,
    state: Any,
    batches: Iterable[dict],
    *,
    start: int,
    cadence: Cadence,
    batch_size: int,
    seconds_before: float,
    hooks: Hooks,
) -> tuple[Any, int]:
    """Runs from step `start` to the end, or until `hooks.stop(...)`; returns the state and the step
    reached.

    run(state, batches) -> (state, metrics, each (count,)). A loss or a state that is not finite
    raises UserError and nothing is saved after it. Rows hold the mean over the steps since the last
    event, and the wall time of all starts together (`seconds_before`: of the earlier ones).
    """
    step, pending = start, []
    begin = mark = time.perf_counter()
    marked = start
    for batch in batches:
        state, metrics = run(state, batch)
        step += len(batch["position"])
        pending.append(metrics)
        if cadence.track and cadence.due(step, cadence.track):
            hooks.track(state, step, jax.tree.map(lambda x: x[-1], metrics))
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
        row = {"step": step, **means, **hooks.signs(state)}
        now = time.perf_counter()
        row |= {
            "images_per_second": (step - marked) * batch_size / (now - mark),
            "seconds": seconds_before + now - begin,
        }
        if cadence.due(step, cadence.evaluate):
            row |= hooks.evaluate(state, step)
        hooks.record(row)
        if cadence.due(step, cadence.evaluate):
            state, enough = hooks.adjust(state)
            stopping = stopping or enough
        if stopping or cadence.due(step, cadence.save):
            require_finite(state, step)
            hooks.save(state, step, row)
        hooks.progress(step, row)
        pending, marked, mark = [], step, time.perf_counter()
        if stopping:
            break
    return state, step


def require_finite(state: Any, step: int) -> None:
    """UserError that names the first part of the state with a number that is not finite: it must
    not be saved, or every later start would go on from it.
    """
    for path, value in jax.tree.leaves_with_path(jax.device_get(state)):
        if not np.all(np.isfinite(value)):
            raise UserError(
                f"{keystr(path, simple=True, separator='/')}: not finite at step {step}; {ADVICE}"
            )


def _mean_of(pending: list[dict], step: int) -> dict[str, float]:
    """Means over the steps since the last event; UserError that names the first step with a loss
    not finite.
    """
    host = jax.device_get(pending)
    joined = {name: np.concatenate([m[name] for m in host]) for name in host[0]}
    bad = np.flatnonzero(~np.isfinite(joined["loss"]))
    if bad.size:
        at = step - len(joined["loss"]) + int(bad[0])
        raise UserError(f"loss: became {joined['loss'][bad[0]]} at step {at}; {ADVICE}")
    return {name: float(np.mean(values, dtype=np.float64)) for name, values in joined.items()}
