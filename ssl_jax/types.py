"""Names for the few types that cross module boundaries."""

from typing import Any

Params = Any  # a nested dict of arrays
PyTree = Any
Config = Any  # an ml_collections.ConfigDict: its fields are not known to a type checker
