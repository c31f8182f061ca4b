"""Names for the few types that cross module boundaries."""

from typing import Any

Params = Any  # a nested dict of arrays
PyTree = Any
