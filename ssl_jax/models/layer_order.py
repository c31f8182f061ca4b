"""The order in which a network calls its layers: what "the i-th layer" means to whatever treats layers unequally."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


def call_order(init: Callable[[jax.Array, jax.Array], tuple[Any, Any]], image: jax.Array) -> tuple[str, ...]:
    """Paths of the modules that own parameters, in the order of their first calls: "encoder/stem_conv", ..., "head".

    init(key, image) -> (params, stats) as a network or classifier gives it, not jitted: it is traced, nothing is
    computed. A module owns parameters if some entry of `params` at its path is an array.
    """
    called: dict[str, None] = {}

    def record(call, args, kwargs, context):
        if context.method_name == "__call__":
            called.setdefault("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        # A function of its own: JAX remembers by identity what it has traced, and would call nothing again.
        params, _ = jax.eval_shape(lambda key, image: init(key, image), jax.random.key(0), image)
    owning = set(owners(params))
    order = tuple(path for path in called if path in owning)
    assert len(order) == len(owning), f"parameters of modules that are never called: {owning - set(order)}"
    return order


def owners(params, path=()):
    """Paths of the dicts in `params` that hold an array."""
    if any(not isinstance(child, dict) for child in params.values()):
        yield "/".join(path)
    for name, child in params.items():
        if isinstance(child, dict):
            yield from owners(child, (*path, name))
