"""Compile a step to the program that runs it on all devices."""

from collections.abc import Callable
from typing import Any

import jax
from jax.stages import Wrapped

from ssl_jax.data.batches import load
from ssl_jax.optim.decay import check_mask
from ssl_jax.train import parallel
from ssl_jax.train.state import init_key
from ssl_jax.types import Config, Step


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


def compile_program(step: Step, data: dict, devices: list, key: jax.Array) -> Callable:
    """Compile a step for all devices, with a copy of the data on each.

    Args:
        step: step(state, batch, key), which averages over `parallel.axis(devices)`.
        data: arrays that a step gathers its images from, see `data.batches.Feed`.
        devices: devices to train on.
        key: key of the run.

    Returns:
        run(state, batches) -> (state, metrics of every step).
    """
    program = parallel.parallelise(step, load, devices)
    data = parallel.replicate(data, devices)
    return lambda state, batches: program(state, data, batches, key)


def pick_devices(config: Config) -> list:
    """Return the devices to train on; UserError where batch or steps of a call do not fit them."""
    devices = parallel.pick_devices(config.devices)
    parallel.per_device(config.batch_size, devices)
    parallel.steps_per_call(config.steps_per_call, devices)
    return devices
