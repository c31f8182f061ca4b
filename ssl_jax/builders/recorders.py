"""The table of recorders, and those that a configuration asks for."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ssl_jax.types import Config
from ssl_jax.workdir import event_file, metrics_csv
from ssl_jax.workdir.recorder import MakeRecorder, Recorder, Row


class Choice(NamedTuple):
    """A row of the table of recorders."""

    make: MakeRecorder  # make(work directory, rows that the start goes on from) -> Recorder
    wanted: Callable[[Config], bool] = lambda config: True  # whether a run has it


RECORDERS = {
    "metrics.csv": Choice(metrics_csv.recorder),
    "tensorboard": Choice(event_file.recorder, lambda config: config.tensorboard),
}


def make_recorders(config: Config, out: Path, rows: list[Row]) -> list[Recorder]:
    """Return the recorders of a start of a run that trains.

    Args:
        config: configuration of the run.
        out: its work directory.
        rows: that the start goes on from.

    Returns:
        The recorders, not yet open.
    """
    return [choice.make(out, rows) for choice in RECORDERS.values() if choice.wanted(config)]
