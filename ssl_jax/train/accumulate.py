"""One optimizer step from several micro-batches, in the memory of one of them.

Averages over examples (the gradient, the loss) are those of the whole batch, and so is whatever is
computed from the rows that come back, such as the correlation F. What is not an average over
examples is that of each micro-batch: BatchNorm's statistics, which are as on so many devices that
do not share them, and VICReg's variance.
"""

# JAX leaves the types of leaves, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ssl_jax.types import Batch, PyTree

Means = TypeVar("Means")  # trees
Rows = TypeVar("Rows")


def in_micro_batches(
    compute: Callable[[Batch, jax.Array | int], tuple[Means, Rows]], batch: Batch, count: int
) -> tuple[Means, Rows]:
    """Call a function on each micro-batch, one after the other.

    Micro-batch n holds the rows n, n + count, n + 2 count, ... A device has a contiguous part of
    the global batch, so over all devices these are the same rows on any number of devices.

    Args:
        compute: compute(micro-batch, n) -> (means, rows). means are averages over its examples,
            floats; rows are arrays (B / count, ...), one row an example.
        batch: arrays (B, ...).
        count: number of micro-batches, which divides B. 1: `compute` has the batch as it is.

    Returns:
        (means, rows): the averages over the whole batch, and all rows (B, ...) in its order.
    """
    if count == 1:
        return compute(batch, 0)
    parts = jax.tree.map(
        lambda x: jnp.swapaxes(jnp.reshape(x, (-1, count, *x.shape[1:])), 0, 1), batch
    )
    numbers = jnp.arange(count)
    first = jax.tree.map(lambda x: x[0], (parts, numbers))
    shapes: Any = jax.eval_shape(compute, *first)[0]

    def add(total: PyTree, part: tuple[Batch, jax.Array]) -> tuple[PyTree, PyTree]:
        means, rows = compute(*part)
        return jax.tree.map(jnp.add, total, means), rows

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, rows = jax.lax.scan(add, zeros, (parts, numbers))
    joined: Any = jax.tree.map(
        lambda x: jnp.reshape(jnp.swapaxes(x, 0, 1), (-1, *x.shape[2:])), rows
    )
    return jax.tree.map(lambda x: x / count, total), joined
