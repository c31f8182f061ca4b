"""Members: trainings of one network that share a compiled program, and their training loop.

Members differ in numbers alone (learning rate, weight decay, seed, ...). Two modules make
`Members`: `stacked`, a table of small networks whose whole epoch is one loop on the device, and
`dispatched`, networks of any size, one call for each step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ssl_jax.types import PyTree

Recorded = dict[str, np.ndarray]


class Members(NamedTuple):
    """Networks that are trained at once. Arrays lead with the axes of the members, "axes..."."""

    seeds: list[int]  # of the order of the data, one for each row of the index of a call
    axes: int  # number of leading axes: 1 or 2
    init: Callable[[], PyTree]  # () -> states at step 0
    # states, index (rows, steps, B) of examples -> states, losses
    call: Callable[[PyTree, np.ndarray], tuple[PyTree, jax.Array]]
    mean: Callable[[list], np.ndarray]  # the losses of an epoch's calls -> their means (axes...)
    steps_per_call: Callable[[int], int] = lambda epoch: 1  # steps of an epoch -> steps of a call
    # states -> sums since step 0 by name, (axes..., ...); recorded as means over each epoch
    sums: Callable[[PyTree], Recorded] = lambda states: {}


def train_members(
    members: Members,
    order: Callable[[int, int], np.ndarray],
    *,
    epochs: int,
    steps_per_epoch: int,
    record: Callable[[PyTree, int], Recorded],
    stop: Callable[[int], bool] = lambda steps: False,
    keep: tuple[int, ...] = (),
) -> tuple[PyTree, Recorded] | None:
    """Train all members to the end.

    Args:
        members: what to train.
        order: (seed, step) -> (B,) indices of the examples that the step takes.
        epochs: number of epochs, E.
        steps_per_epoch: full batches in an epoch.
        record: (states, epoch) -> {name: (axes..., ...)}. It is asked after every epoch, and as
            epoch 0 before the first.
        stop: (steps) -> whether to end now. It is asked after each call, with the number of its
            steps.
        keep: K numbers of steps. After each, all parameters are kept; a call has to end there.

    Returns:
        The states and the records, or None where `stop` ended the training. The records are "loss"
        (axes..., E), the mean over each epoch's steps; what `record` gave, stacked along the axis
        behind the members'; what `Members.sums` gave, as means (axes..., E, ...) over each epoch's
        steps; and "parameters" (axes..., K, P) float32.
    """
    states, rows, kept = members.init(), {}, []
    before, size = members.sums(states), members.steps_per_call(steps_per_epoch)
    append_rows(rows, record(states, 0))
    for epoch in range(epochs):
        losses = []
        for first in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch, size):
            index = np.stack(
                [
                    [order(seed, step) for step in range(first, first + size)]
                    for seed in members.seeds
                ]
            )
            states, loss = members.call(states, index)
            losses.append(loss)
            jax.block_until_ready(losses[-2:][0])  # one call ahead of the device, not an epoch
            if first + size in keep:
                kept.append(flat_parameters(states, members.axes))
            if stop(size):
                return None
        sums = members.sums(states)
        means = {name: (sums[name] - before[name]) / steps_per_epoch for name in sums}
        append_rows(rows, {"loss": members.mean(losses), **means, **record(states, epoch + 1)})
        before = sums
    rows |= {"parameters": kept} if keep else {}
    return states, {name: np.stack(values, axis=members.axes) for name, values in rows.items()}


def append_rows(rows: dict[str, list[np.ndarray]], values: Recorded) -> None:
    """Append each value to the list of its name."""
    for name, value in values.items():
        rows.setdefault(name, []).append(np.asarray(value))


def flat_parameters(states: PyTree, axes: int) -> np.ndarray:
    """Return all parameters of each member in a row, (axes..., P) float32."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(states.params)]
    return np.concatenate([leaf.reshape(*leaf.shape[:axes], -1) for leaf in leaves], axis=axes)
