"""Compile a step to the program that runs it on all devices."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.stages import Wrapped

from ssl_jax.builders.checks import check_micro_batches
from ssl_jax.data.batches import load
from ssl_jax.errors import UserError
from ssl_jax.files import size
from ssl_jax.optim.decay import check_mask
from ssl_jax.runtime.memory import host_memory
from ssl_jax.train import parallel
from ssl_jax.train.state import init_key
from ssl_jax.types import Config, PyTree
from ssl_jax.workdir.directory import flatten

# The fields that decide how large each part of the parameters is.
SIZES = {
    "encoder": ("encoder.width", "encoder.depth"),
    "projector": ("projector.hidden", "projector.out"),
    "predictor": ("predictor.hidden", "projector.out"),
    "head": ("encoder.width",),
}


def compile_once(function: Callable) -> Wrapped:
    """Return `jax.jit` of a function that runs a single time, with little optimisation.

    To optimise an initialisation's many random draws in full takes two to three times as long, for
    the same bits.
    """
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 1})


def fresh_key(config: Config) -> jax.Array:
    """Return the key from which the state at step 0 is drawn."""
    return init_key(jax.random.key(config.seed))


def check_exclude(config: Config, init: Wrapped) -> None:
    """Raise a UserError where optimizer.exclude matches no parameter's path.

    Traces `init`, the run's initialisation by key, and computes nothing; a later call of it is not
    traced again.
    """
    shapes: Any = init.trace(fresh_key(config)).out_info
    check_mask(shapes.params, config.optimizer.exclude)


def check_memory(config: Config, init: Wrapped, devices: list) -> None:
    """Raise a UserError where parameters and optimizer alone exceed the memory of a device.

    Traces `init`, and allocates nothing, as `check_exclude`.

    Args:
        config: of a run that trains; the message names the fields of its largest part.
        init: the run's initialisation by key.
        devices: devices to train on, each of which has a whole state.
    """
    shapes: Any = init.trace(fresh_key(config)).out_info
    parts = {name: count_bytes(part) for name, part in shapes.params.items()}
    # the state, and once more the parameters as their gradient
    needed = count_bytes(shapes) + sum(parts.values())
    if devices[0].platform == "cpu":
        needed, memory, place = needed * len(devices), host_memory(), "this machine has"
    else:
        stats = devices[0].memory_stats() or {}
        memory, place = stats.get("bytes_limit"), f"a device ({devices[0].device_kind}) has"
    if memory is None or needed <= memory:
        return
    largest = max(parts, key=lambda name: parts[name])
    fields = {
        field: value
        for field, value in flatten(config.to_dict()).items()
        if field in SIZES.get(largest, ())
    }
    got = ", ".join(f"{field} (got {value})" for field, value in fields.items())
    raise UserError(
        f"{got or largest}: parameters, gradients and optimizer need {size(needed)}, "
        f"{size(parts[largest])} of it the parameters of the {largest}, and {place} "
        f"{size(memory)}; takes smaller numbers"
    )


def count_bytes(tree: PyTree) -> int:
    """Return the bytes of all arrays of a pytree, or of their shapes."""
    return sum(
        math.prod(leaf.shape) * getattr(leaf.dtype, "itemsize", 0) for leaf in jax.tree.leaves(tree)
    )


def compile_program(
    step: Callable, data: dict, devices: list, key: jax.Array | PyTree, size: int
) -> Callable:
    """Compile a step for all devices, with a copy of the data on each.

    Args:
        step: step(state, batch, key), which averages over `parallel.axis(devices)`.
        data: arrays that a step gathers its images from, see `data.batches.Feed`.
        devices: devices to train on.
        key: what the step takes beside state and batch: the run's key.
        size: most steps of a call.

    Returns:
        run(state, batches) -> (state, metrics of every step).
    """
    program = parallel.parallelise(step, load, devices, size)
    data = parallel.replicate(data, devices)
    return lambda state, batches: program(state, data, batches, key)


def pick_devices(config: Config) -> list:
    """Return the devices to train on.

    UserError where batch, micro-batches or steps of a call do not fit them, or where BatchNorm
    would have a single example.
    """
    devices = parallel.pick_devices(config.devices)
    examples = parallel.per_device(config.batch_size, devices)
    check_micro_batches(config, examples, config.batch_size // examples)
    steps_per_call(config, devices)
    return devices


def steps_per_call(config: Config, devices: list) -> int:
    """Return how many steps a call of the compiled program takes at most."""
    return parallel.steps_per_call(config.steps_per_call, devices)
