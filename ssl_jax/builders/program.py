"""From a step to the program that runs it on all devices."""

from collections.abc import Callable

import jax

from ssl_jax.data.batches import load
from ssl_jax.train import parallel
from ssl_jax.train.pretrain import Step
from ssl_jax.types import Config


def compile_once(function: Callable) -> Callable:
    """jit of what runs a single time: optimising an initialisation's many random draws in full takes two to three times
    as long, for the same bits.
    """
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 1})


def compile_program(step: Step, data: dict, devices: list, key: jax.Array) -> Callable:
    """run(state, batches) -> (state, metrics): a step over `parallel.axis(devices)` on them all, their data on each."""
    program = parallel.parallelise(step, load, devices)
    data = parallel.replicate(data, devices)
    return lambda state, batches: program(state, data, batches, key)


def pick_devices(config: Config) -> list:
    """The devices to train on; UserError where the batch or the steps of a call do not fit them."""
    devices = parallel.pick_devices(config.devices)
    parallel.per_device(config.batch_size, devices)
    parallel.steps_per_call(config.steps_per_call, devices)
    return devices
