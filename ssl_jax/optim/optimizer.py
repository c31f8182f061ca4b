"""Every optimizer with every kind of weight decay, one for each parameter group.

One step: `params = pre(params, state)`; `updates, state = update(grads_at(params), state, params)`;
`params = optax.apply_updates(params, updates)`. `pre` is where a decay that acts before the gradient is taken has
its place; for every other kind it is the identity.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax.errors import UserError, nearest
from ssl_jax.optim.decay import (
    RULES,
    compile_mask,
    coupled_decay,
    decay_rates,
    decoupled_decay,
    path_of,
    pre_decay,
    real_time_decay,
)
from ssl_jax.optim.directions import make_direction
from ssl_jax.types import Params, PyTree

Schedule = Callable[[Any], Any]
Value = float | jax.Array | Schedule  # the array a scalar, possibly traced


class Optimizer(NamedTuple):
    """init(params) -> state; pre(params, state) -> params; update(grads, state, params) -> (updates, state);
    apart(grads, state, params) -> (-eta U, d): the same step with its decay kept aside, one rate a parameter.
    """

    init: Callable[[Params], PyTree]
    pre: Callable[[Params, PyTree], Params]
    update: Callable[[Params, PyTree, Params], tuple[Params, PyTree]]
    apart: Callable[[Params, PyTree, Params], tuple[Params, PyTree]]


class OptimizerState(NamedTuple):
    """count () int32, steps taken; scale () float32, which multiplies the learning rate; inner, the direction's own."""

    count: jax.Array
    scale: jax.Array
    inner: PyTree


DECAYS = ("coupled", "decoupled", "realtime", "pre")
DECOUPLED_BY_DEFAULT = ("adamw", "lion")


def make_optimizer(
    name: str,
    learning_rate: Value,
    *,
    momentum: float = 0.9,
    weight_decay: Value = 0.0,
    decay: str = "auto",
    decay_scale: str = "lr",
    layerwise: str = "",
    exclude: str = "",
    order: Sequence[str] | None = None,
    **base: Any,
) -> Optimizer:
    """The optimizer `name` with weight decay of the kind `decay` on all but the excluded parameters.

    name: a key of `directions.DIRECTIONS`, whose builders say which options (`base`) it takes; `momentum` goes to
    those that have one. learning_rate, weight_decay: a number, a schedule step -> number, or a traced scalar.
    decay: "coupled" (L2), "decoupled" (WD), "realtime" (RWD), "pre" (PWD), as `optim.decay` has them; "auto":
    decoupled for AdamW and Lion, coupled for all others. decay_scale: a step takes d = learning_rate * weight_decay of
    a weight ("lr") or d = weight_decay ("literal"); the coupled kind adds weight_decay * theta to the gradient in
    both. layerwise: "", or the rule of `decay.layer_rates` by which deeper layers decay more; order: their modules in
    forward order. exclude: a regular expression searched for in a parameter's path ("projector/linear1/bias").
    """
    direction = make_direction(name, base, momentum)
    kind = kind_of_decay(name, decay)
    literal = _is_literal(decay_scale) and kind != "coupled"
    _check_numbers(learning_rate, weight_decay, literal)
    compile_mask(exclude)
    per_parameter = functools.partial(decay_rates, layerwise=_known(layerwise), exclude=exclude, order=order)

    def eta(state):
        return jnp.asarray(_at(learning_rate, state.count), float) * state.scale

    def strength(state, params, factor=1.0):
        """factor * lambda of every parameter at this step."""
        now = _at(weight_decay, state.count)
        return per_parameter(params, 0.0 if _is_plain(now) and now == 0 else factor * now)

    def share(state, params):
        """d, what this step takes of every parameter."""
        return strength(state, params) if literal else strength(state, params, eta(state))

    def init(params):
        if literal:
            _check_shares(per_parameter(params, _at(weight_decay, 0)))
        return OptimizerState(jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32), direction.init(params))

    def pre(params, state):
        return pre_decay(params, share(state, params)) if kind == "pre" else params

    def move(grads, state, params):
        if kind == "coupled":
            grads, _ = coupled_decay(strength(state, params)).update(grads, (), params)
        return direction.update(grads, state.inner, params, rate=eta(state))

    def update(grads, state, params):
        updates, inner = move(grads, state, params)
        if kind == "decoupled":
            updates, _ = decoupled_decay(share(state, params)).update(updates, (), params)
        if kind == "realtime":
            updates, _ = real_time_decay(share(state, params)).update(updates, (), params)
        return updates, OptimizerState(state.count + 1, state.scale, inner)

    def apart(grads, state, params):
        return move(grads, state, params)[0], share(state, params)

    return Optimizer(init, pre, update, apart)


def by_group(optimizers: dict[str, Optimizer], labels: Callable[[Params], PyTree]) -> Optimizer:
    """Each parameter goes to the optimizer its label names; `labels(params)` is a tree of keys of `optimizers`.

    A group's optimizer works on a dict {path: parameter}; the state is one of {group: state}.
    """

    def split(params, tree):
        """{group: {path: leaf of tree}}"""
        paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
        found = {group: {} for group in optimizers}
        for path, group, leaf in zip(paths, jax.tree.leaves(labels(params)), jax.tree.leaves(tree), strict=True):
            found[group][path] = leaf
        return found

    def join(parts, like):
        leaves = {path: leaf for part in parts.values() for path, leaf in part.items()}
        return jax.tree.map_with_path(lambda path, _: leaves[path_of(path)], like)

    def init(params):
        parts = split(params, params)
        return {group: optimizer.init(parts[group]) for group, optimizer in optimizers.items()}

    def pre(params, state):
        parts = split(params, params)
        return join({group: o.pre(parts[group], state[group]) for group, o in optimizers.items()}, params)

    def both(method, grads, state, params):
        g, p = split(params, grads), split(params, params)
        pairs = {group: getattr(o, method)(g[group], state[group], p[group]) for group, o in optimizers.items()}
        return tuple({group: pair[i] for group, pair in pairs.items()} for i in (0, 1))

    def update(grads, state, params):
        updates, state = both("update", grads, state, params)
        return join(updates, params), state

    def apart(grads, state, params):
        updates, shares = both("apart", grads, state, params)
        return join(updates, params), join(shares, params)

    return Optimizer(init, pre, update, apart)


def clipped(optimizer: Optimizer, by_value: float = 0.0, by_norm: float = 0.0) -> Optimizer:
    """`optimizer` on gradients whose entries lie in ±by_value, and whose norm over all parameters together is at most
    `by_norm`; first the one, then the other, before decay or anything else sees them. 0: not clipped.
    """
    for field, bound in (("clip_value", by_value), ("clip_norm", by_norm)):
        if not bound >= 0:
            raise UserError(f"optimizer.{field}: got {bound}, takes a number of at least 0; 0: not clipped")
    clips = [optax.clip(by_value)] * (by_value > 0) + [optax.clip_by_global_norm(by_norm)] * (by_norm > 0)
    if not clips:
        return optimizer
    clip = optax.chain(*clips)

    def clipping(method):
        return lambda grads, state, params: method(clip.update(grads, clip.init(grads))[0], state, params)

    return optimizer._replace(update=clipping(optimizer.update), apart=clipping(optimizer.apart))


def rescale(state: PyTree, scale: float | jax.Array) -> PyTree:
    """The state, of one optimizer or of several groups, with the learning rate multiplied by `scale` from now on."""

    def one(part):
        return part._replace(scale=jnp.full_like(part.scale, scale)) if isinstance(part, OptimizerState) else part

    return jax.tree.map(one, state, is_leaf=lambda part: isinstance(part, OptimizerState))


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


def kind_of_decay(name: str, decay: str) -> str:
    """One of DECAYS, where "auto" is what is usual with the optimizer; UserError where it is none."""
    if decay not in ("auto", *DECAYS):
        raise UserError(f"optimizer.decay: got {decay!r}, {nearest(decay, ['auto', *DECAYS])}")
    if decay == "auto":
        return "decoupled" if name in DECOUPLED_BY_DEFAULT else "coupled"
    return decay


def _at(value, count) -> Any:
    """A schedule's value at this step, or the value itself."""
    return value(count) if callable(value) else value


def _is_plain(value) -> bool:
    return isinstance(value, int | float | np.number)


def _is_literal(decay_scale: str) -> bool:
    if decay_scale not in ("lr", "literal"):
        raise UserError(f"optimizer.decay_scale: got {decay_scale!r}, {nearest(decay_scale, ['lr', 'literal'])}")
    return decay_scale == "literal"


def _known(layerwise: str) -> str:
    if layerwise and layerwise not in RULES:
        raise UserError(f"optimizer.layerwise: got {layerwise!r}, {nearest(layerwise, RULES)}, or '' for none")
    return layerwise


def _check_numbers(learning_rate, weight_decay, literal: bool) -> None:
    """UserError where a plain number, or the first of the decay's schedule, is out of range; traced values pass."""
    for field, value in (("learning_rate", learning_rate), ("weight_decay", _at(weight_decay, 0))):
        if _is_plain(value) and not value >= 0:
            raise UserError(f"optimizer.{field}: got {value}, takes a number of at least 0")
        if field == "weight_decay" and literal and _is_plain(value) and value >= 1:
            raise UserError(f"optimizer.{field}: got {value}, takes a number in [0, 1) as a literal share")


def _check_shares(shares: PyTree) -> None:
    """UserError where a layer's rule lifts a literal share to 1 or more."""
    largest = max((share for share in jax.tree.leaves(shares) if _is_plain(share)), default=0.0)
    if largest >= 1:
        raise UserError(
            f"optimizer.weight_decay: makes a literal share of {largest:g} in the deepest layer under "
            "optimizer.layerwise, takes a number that keeps it under 1"
        )
