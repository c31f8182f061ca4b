"""Members: trainings of one network that share a compiled program, and the loop that leads them
through their epochs.

Members differ in numbers alone (learning rate, weight decay, seed, ...). Two makers of `Members`
stand beside this
file: `stacked`, a table of small networks whose whole epoch is one loop on the device, and
`dispatched`, networks of any size, one call for each step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ssl_jax.types import PyTree

Recorded = dict[str, np.ndarray]


class Members(NamedTuple):
    """What is trained at once. "axes" are the leading ones that members stand along."""

    seeds: list[int]  # whose order of the data a call takes, one for each row of its index
    axes: int  # how many there are
    init: Callable[[], PyTree]  # () -> states
    # states, index (rows, steps, B) -> states, losses
    call: Callable[[PyTree, np.ndarray], tuple[PyTree, jax.Array]]
    mean: Callable[[list], np.ndarray]  # the losses of an epoch's calls -> their means (axes...)
    steps_per_call: Callable[[int], int] = lambda epoch: 1  # of the steps of an epoch
    # what the states add up: recorded as means over an epoch
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
    """Trains all members to the end.

    Args:
        members: what to train.
        order: (seed, step) -> (B,) indices of the examples that the step takes.
        epochs: how many, E.
        steps_per_epoch: full batches in an epoch.
        record: (states, epoch) -> {name: (axes..., ...)}, asked after every epoch, and as epoch 0
            before the first.
        stop: (steps) -> whether to end now; asked after each call, with the number of its steps.
        keep: steps after which all parameters are kept, K of them; those of calls of one step.

    Returns: None where `stop` came first, else the states and what was recorded: "loss" (axes...,
        E), the mean over each epoch's steps; what `record` gave, stacked along the axis behind the
        members'; what `Members.sums` gave, as means (axes..., E, ...) over each epoch's steps;
        "parameters" (axes..., K, P) float32.
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


def append_rows(rows: dict[str, list], values: Recorded) -> None:
    for name, value in values.items():
        rows.setdefault(name, []).append(np.asarray(value))


def flat_parameters(states: PyTree, axes: int) -> np.ndarray:
    """(axes..., P) float32: all parameters of each member in a row."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(states.params)]
    return np.concatenate([leaf.reshape(*leaf.shape[:axes], -1) for leaf in leaves], axis=axes)
