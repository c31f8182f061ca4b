"""What the numbers of a run are handed to while it trains.

A recorder is made for each start of a run, from its work directory and from the rows of metrics.csv
that the start goes on from. `ssl_jax/builders/recorders.py` has the table of all.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, float]  # numbers by column of metrics.csv, rounded as there; NaN: a blank


class Recorder(NamedTuple):
    """Where the rows of a run go, of one start."""

    # open(configuration as nested dicts): before the first step.
    open: Callable[[dict[str, Any]], None]
    # write(step, row): at every event, in ascending steps.
    write: Callable[[int, Row], None]
    # close(): at the end of the start, also after an error. A run that has finished has its figures
    # by then.
    close: Callable[[], None]


MakeRecorder = Callable[[Path, list[Row]], Recorder]
