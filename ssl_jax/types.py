"""Names for the few types that cross module boundaries."""

from collections.abc import Callable
from typing import Any

import jax

Params = Any  # a nested dict of arrays
PyTree = Any  # any nesting of dicts, tuples and the like with arrays as leaves
Scalar = jax.Array | float  # one number, traced or static
Mean = Callable[[PyTree], PyTree]  # the mean of a tree of arrays over all devices
Batch = dict[str, jax.Array]  # arrays of B examples each, by name
Metrics = dict[str, jax.Array]  # numbers of one step, by name
# state, batch, key -> state, metrics; the state is a PretrainState or a SupervisedState
Step = Callable[[Any, Batch, jax.Array], tuple[Any, Metrics]]
Interrupted = Callable[[], bool]  # whether somebody asked the program to save and stop
Config = Any  # an ml_collections.ConfigDict, whose fields a type checker does not know
