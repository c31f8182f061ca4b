"""The order in which a network calls its layers, which numbers the layers of layerwise rules."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax

from ssl_jax.types import Params


def call_order(
    init: Callable[[jax.Array, jax.Array], tuple[Any, Any]], image: jax.Array
) -> tuple[str, ...]:
    """Return the paths of the modules that own parameters, in the order of their first calls.

    A module owns parameters if some entry of `params` at its path is an array. `init` is traced,
    and nothing is computed.

    Args:
        init: init(key, image) -> (params, stats) of a network or classifier, not jitted.
        image: (B, H, W, C).

    Returns:
        Paths such as ("encoder/stem_conv", ..., "head").
    """
    called: dict[str, None] = {}

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__":
            called.setdefault("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        # A new function, because JAX caches traces by identity and would not call the old one
        # again.
        params, _ = jax.eval_shape(lambda key, image: init(key, image), jax.random.key(0), image)
    owning = set(parameter_paths(params))
    order = tuple(path for path in called if path in owning)
    assert len(order) == len(owning), (
        f"parameters of modules that are never called: {owning - set(order)}"
    )
    return order


def parameter_paths(params: Params, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the paths of the dicts in `params` that hold an array.

    `path` is the path of `params` itself.
    """
    if any(not isinstance(child, dict) for child in params.values()):
        yield "/".join(path)
    for name, child in params.items():
        if isinstance(child, dict):
            yield from parameter_paths(child, (*path, name))
