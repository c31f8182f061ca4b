"""Optimizers composed of Optax transformations, one for each parameter group.

One step: `params = pre(params, state)`; `updates, state = update(grads_at(params), state, params)`;
`params = optax.apply_updates(params, updates)`. `pre` is where a decay that acts before the gradient is taken has
its place; for coupled decay it is the identity.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from ssl_jax.errors import UserError, nearest
from ssl_jax.types import Params, PyTree

Schedule = Callable[[Any], Any]


class Optimizer(NamedTuple):
    """init(params) -> state; pre(params, state) -> params; update(grads, state, params) -> (updates, state)."""

    init: Callable[[Params], PyTree]
    pre: Callable[[Params, PyTree], Params]
    update: Callable[[Params, PyTree, Params], tuple[Params, PyTree]]


# Heavy ball keeps the learning rate outside its buffer (m <- mu m + g; theta <- theta - eta m), as PyTorch does.
DIRECTIONS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": lambda momentum: optax.identity(),
    "momentum": lambda momentum: optax.trace(momentum),
    "nesterov": lambda momentum: optax.trace(momentum, nesterov=True),
}
DECAYS = ("coupled",)


def make_optimizer(
    name: str,
    learning_rate: float | Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decay: str = "coupled",
    exclude: str = "",
) -> Optimizer:
    """The optimizer `name` ("sgd", "momentum", "nesterov") with weight decay on all but the excluded parameters.

    `decay` "coupled" is L2: weight_decay * theta joins the gradient before the momentum buffer. `exclude` is a
    regular expression searched for in a parameter's path ("projector/linear1/bias"); "" excludes nothing.
    """
    if name not in DIRECTIONS:
        raise UserError(f"optimizer.name: got {name!r}, {nearest(name, DIRECTIONS)}")
    if decay not in DECAYS:
        raise UserError(f"optimizer.decay: got {decay!r}, {nearest(decay, DECAYS)}")
    if weight_decay < 0:
        raise UserError(f"optimizer.weight_decay: got {weight_decay}, takes a number of at least 0")
    if not 0 <= momentum < 1:
        raise UserError(f"optimizer.momentum: got {momentum}, takes a number in [0, 1)")
    transformation = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=lambda params: decayed(params, exclude)),
        DIRECTIONS[name](momentum),
        optax.scale_by_learning_rate(learning_rate),
    )
    return from_optax(transformation)


def from_optax(transformation: optax.GradientTransformation) -> Optimizer:
    """An Optax transformation as an `Optimizer` that leaves the parameters alone before the gradient."""
    return Optimizer(transformation.init, lambda params, state: params, transformation.update)


def by_group(optimizers: dict[str, Optimizer], labels: Callable[[Params], PyTree]) -> Optimizer:
    """Each parameter goes to the optimizer its label names; `labels(params)` is a tree of keys of `optimizers`."""
    parts = {
        name: optax.GradientTransformation(o.init, o.update)  # pyright: ignore[reportArgumentType]
        for name, o in optimizers.items()
    }
    return from_optax(optax.partition(parts, labels))  # pyright: ignore[reportArgumentType]


def path_of(key_path) -> str:
    """A key path as text: "encoder/stem_conv/kernel"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def decayed(params: Params, exclude: str) -> PyTree:
    """True for every parameter whose path does not match the regular expression `exclude`."""
    return jax.tree.map_with_path(lambda p, _: not (exclude and re.search(exclude, path_of(p))), params)


def assign_groups(params: Params, patterns: dict[str, str]) -> PyTree:
    """The one group whose pattern matches the start of a parameter's path, for every parameter.

    Raises UserError where none or several do: every parameter has exactly one learning rate and decay.
    """

    def group(key_path, _):
        path = path_of(key_path)
        names = [name for name, pattern in patterns.items() if re.match(pattern, path)]
        if len(names) != 1:
            raise UserError(f"optimizer groups: {path} falls under {names or 'no group'}, must fall under exactly one")
        return names[0]

    return jax.tree.map_with_path(group, params)
