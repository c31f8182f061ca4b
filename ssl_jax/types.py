"""Names for the few types that cross module boundaries."""

from collections.abc import Callable
from typing import Any

Params = Any  # a nested dict of arrays
PyTree = Any
Interrupted = Callable[[], bool]  # whether somebody asked the program to save and stop
Config = Any  # an ml_collections.ConfigDict: its fields are not known to a type checker
