"""The one file that says pmap: a pure step becomes a program for all devices and several steps.

The state is unstacked (`in_axes=None`, `out_axes=None`): it is saved, restored and read with no
device axis, and donated, so that a step needs no second copy of it. Every replica computes the same
state, because gradients, statistics and correlation are averaged inside the step; a test asserts
it.
"""

# JAX leaves the types of leaves, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from ssl_jax.errors import UserError
from ssl_jax.types import Batch, Metrics, PyTree, Step

AXIS = "batch"

Device = Any  # a jax.Device, which a type checker does not know
HostBatches = dict[str, npt.NDArray[Any]]  # arrays (count, B, ...) of `count` steps, by name
# state, data, batches, key -> state, metrics of every step, each (count, ...)
Program = Callable[[Any, PyTree, HostBatches, jax.Array], tuple[Any, Metrics]]


def pick_devices(count: int) -> list[Device]:
    """Return the first `count` local devices, or all for 0. Several processes use all of theirs."""
    devices: list[Device] = jax.local_devices()  # pyright: ignore[reportUnknownVariableType]
    if count < 0 or count > len(devices):
        raise UserError(
            f"devices: got {count}, takes 0 (all) to {len(devices)}, as many as this machine shows"
        )
    if count not in (0, len(devices)) and jax.process_count() > 1:
        raise UserError(
            f"devices: got {count}; several processes each use all their devices, leave it at 0"
        )
    return devices[: count or None]


def per_device(batch_size: int, devices: Sequence[Device]) -> int:
    """Count the examples a device takes of the global batch; UserError if they do not divide."""
    total = len(devices) * jax.process_count()
    if batch_size < 1 or batch_size % total:
        raise UserError(
            f"batch_size: got {batch_size}, must be a positive multiple of the {total} devices"
        )
    return batch_size // total


def axis(devices: Sequence[Device]) -> str | None:
    """Return AXIS to average over, or None where one device has all of the batch.

    There an average changes nothing, but it is a boundary that XLA does not fuse across: a tenth of
    a step on a CPU.
    """
    return AXIS if len(devices) * jax.process_count() > 1 else None


def process_rows(batch_size: int) -> slice:
    """Return the rows of the global batch that this process feeds to its devices."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def parallelise(
    step: Step, load: Callable[[PyTree, Batch], jax.Array], devices: list[Device], size: int = 1
) -> Program:
    """Compile a step into a program for all devices and up to `size` steps.

    The number of steps is an argument of the program. So there is one program, and the bits of a
    step do not depend on how a run is cut into calls.

    Args:
        step: state, batch, key -> state, metrics; pure, and averages over `axis(devices)`.
        load: makes the batch's "image" (B, H, W, C) from `data`, which lives on every device, and
            the batch. The image takes the place of the batch's "index".
        devices: those of this process.
        size: most steps of a call.

    Returns:
        The program run(state, data, batches, key) -> (state, metrics). Its batches are host arrays
        (count, B, ...), `count` <= `size` steps of this process's rows, taken one after the other
        inside the compiled program. Its metrics are those of every step, each (count, ...). It
        donates the state.
    """

    def one(state: Any, data: PyTree, batch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        rest = {name: value for name, value in batch.items() if name != "index"}
        return step(state, rest | {"image": load(data, batch)}, key)

    def many(
        state: Any, data: PyTree, batches: Batch, key: jax.Array, count: jax.Array
    ) -> tuple[Any, Metrics]:
        def at(n: jax.Array | int) -> tuple[Any, PyTree, Batch, jax.Array]:
            return state, data, jax.tree.map(lambda x: x[n], batches), key

        # no loop: on a CPU, XLA's own convolution inside one is some thirty times slower
        if size == 1:
            state, metrics = one(*at(0))
            return state, jax.tree.map(lambda x: x[None], metrics)

        def advance(n: jax.Array, carry: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
            state, rows = carry
            state, metrics = one(state, *at(n)[1:])
            return state, jax.tree.map(lambda row, value: row.at[n].set(value), rows, metrics)

        _, shapes = jax.eval_shape(one, *at(0))
        rows: Metrics = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)
        first: tuple[Any, Metrics] = (state, rows)
        return cast("tuple[Any, Metrics]", jax.lax.fori_loop(0, count, advance, first))

    program = jax.pmap(
        many,
        AXIS,
        in_axes=(None, None, 0, None, None),
        out_axes=None,
        donate_argnums=0,
        devices=_listed(devices),
    )

    def run(state: Any, data: PyTree, batches: HostBatches, key: jax.Array) -> tuple[Any, Metrics]:
        count = len(batches["position"])
        filled = _by_device(_fill(batches, size), len(devices))
        state, metrics = program(state, data, filled, key, np.int32(count))
        return state, jax.tree.map(lambda x: x[:count], metrics) if count < size else metrics

    return run


def replicate(data: PyTree, devices: Sequence[Device]) -> PyTree:
    """Put the arrays on each of this process's devices, so that no call moves them again."""
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.device_put(data, NamedSharding(mesh, PartitionSpec()))


def steps_per_call(value: int | str, devices: Sequence[Device]) -> int:
    """Return how many steps one call takes.

    "auto" is 1 on the CPU, where XLA's own convolutions are slow in a compiled loop, and 10
    elsewhere.
    """
    return count_or_auto("steps_per_call", value, 1 if devices[0].platform == "cpu" else 10)


def count_or_auto(field: str, value: int | str, auto: int) -> int:
    """Read a whole number from a field of text.

    Args:
        field: name of the field, for the error.
        value: "auto", or a number of at least 1, maybe as text.
        auto: what "auto" stands for.

    Returns:
        The number.

    Raises:
        UserError: the value is neither.
    """
    if value == "auto":
        return auto
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f"{field}: got {value!r}, takes 'auto' or a whole number of at least 1")
    return int(value)


def any_process(flag: bool) -> bool:
    """Return True on every process once it is on one, so that all stop at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def _fill(batches: HostBatches, size: int) -> HostBatches:
    """Repeat the last step's batch until there are `size`, which the program does not look at."""
    lacking = size - len(batches["position"])
    if lacking < 0:
        raise ValueError(f"a call of {size - lacking} steps to a program of at most {size}")
    if not lacking:
        return batches
    return {name: np.concatenate([x, *[x[-1:]] * lacking]) for name, x in batches.items()}


def _by_device(batches: HostBatches, devices: int) -> HostBatches:
    """Share the rows out, (count, B, ...) -> (devices, count, B / devices, ...)."""

    def split(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        count, rows = x.shape[:2]
        return np.swapaxes(np.reshape(x, (count, devices, rows // devices, *x.shape[2:])), 0, 1)

    return jax.tree.map(split, batches)


def _listed(devices: list[Device]) -> list[Device] | None:
    """Return the devices for pmap: a list for a single process.

    None lets pmap find the devices of all processes by itself.
    """
    return devices if jax.process_count() == 1 else None
