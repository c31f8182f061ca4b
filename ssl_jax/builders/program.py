"""From a step to the program that runs it on all devices."""

from collections.abc import Callable
from typing import Any

import jax
from jax.stages import Wrapped

from ssl_jax.builders.checks import check_batch_norm
from ssl_jax.data.batches import load
from ssl_jax.optim.decay import check_mask
from ssl_jax.train import parallel
from ssl_jax.train.state import init_key
from ssl_jax.types import Config, Step


def compile_once(function: Callable) -> Wrapped:
    """jit of what runs a single time: optimising an initialisation's many random draws in full
    takes two to three times as long, for the same bits.
    """
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 1})


def fresh_key(config: Config) -> jax.Array:
    """The key from which the state at step 0 is drawn."""
    return init_key(jax.random.key(config.seed))


def check_exclude(config: Config, init: Wrapped) -> None:
    """UserError where optimizer.exclude is found in no parameter's path.

    Traces `init`, the run's initialisation by key, and computes nothing; a later call of it is not
    traced again.
    """
    shapes: Any = init.trace(fresh_key(config)).out_info
    check_mask(shapes.params, config.optimizer.exclude)


def compile_program(step: Step, data: dict, devices: list, key: jax.Array) -> Callable:
    """run(state, batches) -> (state, metrics): a step over `parallel.axis(devices)` on them all,
    their data on each.
    """
    program = parallel.parallelise(step, load, devices)
    data = parallel.replicate(data, devices)
    return lambda state, batches: program(state, data, batches, key)


def pick_devices(config: Config) -> list:
    """The devices to train on; UserError where the batch or the steps of a call do not fit them, or
    where a device has a single example to normalise.
    """
    devices = parallel.pick_devices(config.devices)
    check_batch_norm(config, parallel.per_device(config.batch_size, devices))
    parallel.steps_per_call(config.steps_per_call, devices)
    return devices
