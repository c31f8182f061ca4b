"""Build the plan of a run that trains from its configuration, before any data is read."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from ssl_jax.builders.data import build_cadence, describe_dataset, resident
from ssl_jax.builders.program import pick_devices
from ssl_jax.data.batches import steps_per_epoch
from ssl_jax.data.dataset import Description
from ssl_jax.train import parallel
from ssl_jax.train.loop import Cadence
from ssl_jax.types import Config


class Plan(NamedTuple):
    """The numbers of a run that trains, from which its parts are built once."""

    devices: list  # to train on
    resident: bool | Literal["auto"]  # whether the images stay on the devices
    data: Description  # of the whole set, held-out images included
    steps_per_epoch: int
    cadence: Cadence  # total steps, and when things happen

    @property
    def axis(self) -> str | None:
        """Return the axis that a step averages over; None where one device has the batch."""
        return parallel.axis(self.devices)


def make_plan(
    config: Config,
    images: Callable[[Description], int],
    track: int = 0,
    description: Description | None = None,
) -> Plan:
    """Check devices, data set and batch size, and count the steps. Reads no image.

    Args:
        config: of a run that trains.
        images: images(description) -> number of images in an epoch.
        track: steps between two records of the dynamics; 0: none.
        description: of the data set; None: what is known before its images are read.

    Returns:
        The plan.

    Raises:
        UserError: names the first field that is wrong.
    """
    devices, kept = pick_devices(config), resident(config.data.resident)
    data = description or describe_dataset(config)
    steps = steps_per_epoch(images(data), config.batch_size)
    return Plan(devices, kept, data, steps, build_cadence(config, steps, track))
