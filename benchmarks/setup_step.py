"""Training on random images, compiled the way a run compiles it, so that its steps can be timed."""

import argparse
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from common import read_config, wait

from ssl_jax.augment.views import make_views
from ssl_jax.builders import pretraining
from ssl_jax.builders.data import resident
from ssl_jax.data.batches import load, make_feed
from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.runtime.threads import lapack_on_one_thread
from ssl_jax.train import parallel

TOTAL_STEPS = 100_000  # what the schedules are told; no benchmark gets there


class Training(NamedTuple):
    """`run()` takes `steps` steps, `images` images in all, and returns when the device is done with
    them.
    """

    run: Callable[[], None]
    steps: int
    images: int
    devices: int


def base_config(args: argparse.Namespace) -> Any:
    """--config, or else ResNet-18 on an accelerator, and small convolutions on a CPU and with
    --quick.
    """
    small = args.quick or jax.default_backend() == "cpu"
    config = read_config(args.config or ("cifar10_small.py:byol" if small else "cifar10.py:byol"))
    if args.quick and not args.config:
        config.encoder.name, config.encoder.width = "convnet_digits", 8  # quick to compile
        config.batch_size = 32
    return config


def changed(config: Any, fields: dict[str, Any]) -> Any:
    """A copy of `config` with the dotted `fields` set."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(fields)
    return copy


def compiled(
    config: Any,
    steps: int,
    *,
    devices: list | None = None,
    size: int = 1000,
    side: int = 32,
    pmap: bool = True,
) -> Training:
    """`steps` steps of `config` on `devices` (default: the first), on `size` random images of
    `side` pixels.

    `steps` is a multiple of config.steps_per_call. pmap=False: the same step under plain jit, on
    one device.
    """
    devices = devices or jax.local_devices()[:1]
    dataset, key = random_dataset(size, side), jax.random.key(config.seed)
    feed = make_feed(
        dataset.pretrain.image, config.batch_size, config.seed, resident(config.data.resident)
    )
    parts = pretraining.build(config, TOTAL_STEPS, feed.steps_per_epoch, parallel.axis(devices))
    program = (pretraining.compile_step if pmap else jitted)(
        config, parts, feed.data, devices, key, side
    )
    init = pretraining.make_init(parts, dataset.description)
    state = parallel.replicate(jax.device_get(pretraining.fresh_state(config, init)), devices)
    count = parallel.steps_per_call(config.steps_per_call, devices)
    batches = feed.batches((first, count) for first in itertools.count(0, count))

    def run():
        nonlocal state  # donated: each call needs the one before
        with lapack_on_one_thread():
            for batch in itertools.islice(batches, steps // count):
                state, _ = program(state, batch)
            wait(state)

    return Training(run, steps, steps * config.batch_size, len(devices))


def jitted(config, parts, data: dict, devices: list, key: jax.Array, side: int) -> Callable:
    """What `builders.pretraining.compile_step` makes, without pmap: one device, one step a call."""
    step = pretraining.build_step(config, parts, make_views(parts.recipe, side), None)
    data = jax.device_put(data, devices[0])

    @functools.partial(jax.jit, donate_argnums=0)
    def program(state, data, batches, key):
        batch = jax.tree.map(lambda x: x[0], batches)
        return step(state, {"image": load(data, batch), "position": batch["position"]}, key)

    return lambda state, batches: program(state, data, batches, key)


def random_dataset(size: int, side: int) -> Dataset:
    """`size` images of noise: how long a step takes does not depend on what is in them."""
    image = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), np.uint8)
    split = Split(image, np.zeros(size, np.int32))
    return Dataset("noise", split, split, split, 1, ("noise",))
