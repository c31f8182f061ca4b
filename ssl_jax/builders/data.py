"""From a configuration to the data, to where the images are kept, and to when things happen."""

from typing import Literal

from ssl_jax.data.dataset import Dataset
from ssl_jax.data.sources import load_dataset
from ssl_jax.errors import UserError, nearest
from ssl_jax.train.loop import Cadence
from ssl_jax.types import Config


def build_cadence(config: Config, steps_per_epoch: int, track: int = 0) -> Cadence:
    """When to log, evaluate, save and track, in steps; 0 epochs means only at the end, 0 steps not at all."""
    total = config.epochs * steps_per_epoch
    evaluate, save = (n * steps_per_epoch or total for n in (config.eval_every, config.checkpoint_every))
    return Cadence(total, config.log_every, evaluate, save, track)


def read_dataset(config: Config) -> Dataset:
    """The data that the configuration names."""
    data = config.data
    return load_dataset(
        data.name,
        data_dir=data.data_dir or None,
        train_size=data.train_size or None,
        image_size=data.image_size or None,
    )


def resident(value: str) -> bool | Literal["auto"]:
    """auto | yes | no, as `make_feed` takes it."""
    known: dict[str, bool | Literal["auto"]] = {"auto": "auto", "yes": True, "no": False}
    if value not in known:
        raise UserError(f"data.resident: got {value!r}, {nearest(value, known)}")
    return known[value]
