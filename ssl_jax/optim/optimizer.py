"""Every optimizer with every kind of weight decay, one for each parameter group.

One step:

    params = pre(params, state)
    updates, state = update(grads_at(params), state, params)
    params = optax.apply_updates(params, updates)

A decay that acts before the gradient is taken acts in `pre`. For every other kind `pre` is the
identity.
"""

# JAX and Optax leave the types of leaves, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

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
    KeyPath,
    compile_mask,
    coupled_decay,
    decay_rates,
    decoupled_decay,
    leaves_with_path,
    path_of,
    pre_decay,
    real_time_decay,
)
from ssl_jax.optim.directions import make_direction
from ssl_jax.types import Params, PyTree

Schedule = Callable[[Any], Any]
Value = float | jax.Array | Schedule  # the array a scalar, possibly traced
Step = Callable[[Params, PyTree, Params], tuple[Params, PyTree]]  # of gradients, state, parameters


class Optimizer(NamedTuple):
    """The functions of an optimizer."""

    init: Callable[[Params], PyTree]  # params -> state
    pre: Callable[[Params, PyTree], Params]  # params, state -> params
    update: Step  # grads, state, params -> updates, state
    # grads, state, params -> -eta U, d: the same step without its decay, and each parameter's decay
    # rate
    apart: Step


class OptimizerState(NamedTuple):
    """The state of `make_optimizer`."""

    # () int32, steps taken. (A tuple has a method of this name, which nothing here calls.)
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    scale: jax.Array  # () float32, factor of the learning rate
    inner: PyTree  # the state of the direction


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
    """Build an optimizer with weight decay on all but the excluded parameters.

    Args:
        name: a key of `directions.DIRECTIONS`.
        learning_rate: a number, a schedule step -> number, or a traced scalar.
        momentum: goes to the optimizers that have one.
        weight_decay: a number, a schedule step -> number, or a traced scalar.
        decay: "coupled" (L2), "decoupled" (WD), "realtime" (RWD) or "pre" (PWD), see `optim.decay`.
            "auto": decoupled for AdamW and Lion, coupled for all others.
        decay_scale: the fraction d of a weight that one step removes. "lr": d = learning_rate *
            weight_decay. "literal": d = weight_decay. The coupled kind adds weight_decay * theta to
            the gradient in both.
        layerwise: the rule of `decay.layer_rates` by which deeper layers decay more. "": none.
        exclude: regular expression. Parameters in whose path ("projector/linear1/bias") it is found
            do not decay. "": none.
        order: paths of the modules in forward order, for `layerwise`.
        **base: options of the optimizer, see its builder in `directions`.

    Returns:
        The optimizer. Its state is an `OptimizerState`.

    Raises:
        UserError: an argument is unknown or out of its range. `init` raises it where a layer's rule
            lifts a literal fraction to 1 or more.
    """
    direction = make_direction(name, base, momentum)
    kind = kind_of_decay(name, decay)
    literal = _is_literal(decay_scale) and kind != "coupled"
    _check_numbers(learning_rate, weight_decay, literal)
    compile_mask(exclude)
    per_parameter = functools.partial(
        decay_rates, layerwise=_checked_rule(layerwise), exclude=exclude, order=order
    )

    def eta(state: OptimizerState) -> jax.Array:
        return jnp.asarray(_value_at(learning_rate, state.count), float) * state.scale

    def rates(state: OptimizerState, params: Params, factor: Any = 1.0) -> PyTree:
        """Return factor * weight_decay of every parameter at this step."""
        now = _value_at(weight_decay, state.count)
        return per_parameter(params, 0.0 if _is_plain(now) and now == 0 else factor * now)

    def fractions(state: OptimizerState, params: Params) -> PyTree:
        """Return d, the fraction that this step removes of every parameter."""
        return rates(state, params) if literal else rates(state, params, eta(state))

    def init(params: Params) -> OptimizerState:
        if literal:
            _check_fractions(per_parameter(params, _value_at(weight_decay, 0)))
        count, scale = jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32)
        return OptimizerState(count, scale, direction.init(params))

    def pre(params: Params, state: OptimizerState) -> Params:
        return pre_decay(params, fractions(state, params)) if kind == "pre" else params

    def move(grads: Params, state: OptimizerState, params: Params) -> tuple[Params, PyTree]:
        """Return -eta U and the new state of the direction."""
        if kind == "coupled":
            grads, _ = coupled_decay(rates(state, params)).update(grads, (), params)
        return direction.update(grads, state.inner, params, rate=eta(state))

    def update(
        grads: Params, state: OptimizerState, params: Params
    ) -> tuple[Params, OptimizerState]:
        updates, inner = move(grads, state, params)
        if kind == "decoupled":
            updates, _ = decoupled_decay(fractions(state, params)).update(updates, (), params)
        if kind == "realtime":
            updates, _ = real_time_decay(fractions(state, params)).update(updates, (), params)
        return updates, OptimizerState(state.count + 1, state.scale, inner)

    def apart(grads: Params, state: OptimizerState, params: Params) -> tuple[Params, PyTree]:
        return move(grads, state, params)[0], fractions(state, params)

    return Optimizer(init, pre, update, apart)


def by_group(optimizers: dict[str, Optimizer], labels: Callable[[Params], PyTree]) -> Optimizer:
    """Return the optimizer that gives each parameter to the one that its label names.

    `labels(params)` is a pytree like `params` of keys of `optimizers`. A group's optimizer works on
    a dict {path: parameter}. The state is a dict {group: state}.
    """

    def split(params: Params, tree: PyTree) -> dict[str, dict[str, Any]]:
        """Return {group: {path: leaf of tree}}."""
        paths = [path_of(path) for path, _ in leaves_with_path(params)]
        groups, leaves = jax.tree.leaves(labels(params)), jax.tree.leaves(tree)
        parts: dict[str, dict[str, Any]] = {group: {} for group in optimizers}
        for path, group, leaf in zip(paths, groups, leaves, strict=True):
            parts[group][path] = leaf
        return parts

    def join(parts: dict[str, Any], like: PyTree) -> PyTree:
        leaves = {path: leaf for part in parts.values() for path, leaf in part.items()}

        def leaf_at(key_path: KeyPath, _: Any) -> Any:
            return leaves[path_of(key_path)]

        return jax.tree.map_with_path(leaf_at, like)

    def init(params: Params) -> PyTree:
        parts = split(params, params)
        return {group: optimizer.init(parts[group]) for group, optimizer in optimizers.items()}

    def pre(params: Params, state: PyTree) -> Params:
        parts = split(params, params)
        shrunk = {group: o.pre(parts[group], state[group]) for group, o in optimizers.items()}
        return join(shrunk, params)

    def step_by_group(
        steps: dict[str, Step], grads: Params, state: PyTree, params: Params
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the first and the second result of each group's step."""
        g, p = split(params, grads), split(params, params)
        results = {group: step(g[group], state[group], p[group]) for group, step in steps.items()}
        first = {group: result[0] for group, result in results.items()}
        return first, {group: result[1] for group, result in results.items()}

    def update(grads: Params, state: PyTree, params: Params) -> tuple[Params, PyTree]:
        steps = {group: o.update for group, o in optimizers.items()}
        updates, state = step_by_group(steps, grads, state, params)
        return join(updates, params), state

    def apart(grads: Params, state: PyTree, params: Params) -> tuple[Params, PyTree]:
        steps = {group: o.apart for group, o in optimizers.items()}
        updates, rates = step_by_group(steps, grads, state, params)
        return join(updates, params), join(rates, params)

    return Optimizer(init, pre, update, apart)


def clipped(optimizer: Optimizer, by_value: float = 0.0, by_norm: float = 0.0) -> Optimizer:
    """Return an optimizer that clips its gradients first, before it adds any decay.

    Args:
        optimizer: what the clipped gradients go to.
        by_value: largest absolute value of an entry. 0: not clipped.
        by_norm: largest norm over all parameters together, after the entries are clipped. 0: not
            clipped.

    Returns:
        The optimizer, with the state of `optimizer`.

    Raises:
        UserError: a bound is negative.
    """
    for field, bound in (("clip_value", by_value), ("clip_norm", by_norm)):
        if not bound >= 0:
            raise UserError(
                f"optimizer.{field}: got {bound}, takes a number of at least 0; 0: not clipped"
            )
    clips = [optax.clip(by_value)] * (by_value > 0)
    clips += [optax.clip_by_global_norm(by_norm)] * (by_norm > 0)
    if not clips:
        return optimizer
    clip = optax.chain(*clips)

    def with_clipping(step: Step) -> Step:
        def clip_and_step(grads: Params, state: PyTree, params: Params) -> tuple[Params, PyTree]:
            return step(clip.update(grads, clip.init(grads))[0], state, params)

        return clip_and_step

    return optimizer._replace(
        update=with_clipping(optimizer.update), apart=with_clipping(optimizer.apart)
    )


def rescale(state: PyTree, scale: float | jax.Array) -> PyTree:
    """Return the state with the learning rate multiplied by `scale` in all steps that follow.

    The state is that of one optimizer or of several groups.
    """

    def is_state(part: PyTree) -> bool:
        return isinstance(part, OptimizerState)

    def set_scale(part: PyTree) -> PyTree:
        return part._replace(scale=jnp.full_like(part.scale, scale)) if is_state(part) else part

    return jax.tree.map(set_scale, state, is_leaf=is_state)


def assign_groups(params: Params, patterns: dict[str, str]) -> PyTree:
    """Return for every parameter the group whose pattern matches the start of its path.

    Raise UserError where no pattern or several match: every parameter has exactly one learning rate
    and decay.
    """

    def group(key_path: KeyPath, _: jax.Array) -> str:
        path = path_of(key_path)
        names = [name for name, pattern in patterns.items() if re.match(pattern, path)]
        if len(names) != 1:
            raise UserError(
                f"optimizer groups: {path} falls under {names or 'no group'}, "
                "must fall under exactly one"
            )
        return names[0]

    return jax.tree.map_with_path(group, params)


def kind_of_decay(name: str, decay: str) -> str:
    """Return one of DECAYS. "auto" is the optimizer's usual kind.

    Raise UserError where there is no such kind.
    """
    if decay not in ("auto", *DECAYS):
        raise UserError(f"optimizer.decay: got {decay!r}, {nearest(decay, ['auto', *DECAYS])}")
    if decay == "auto":
        return "decoupled" if name in DECOUPLED_BY_DEFAULT else "coupled"
    return decay


def _value_at(value: Value, count: int | jax.Array) -> Any:
    """Return a schedule's value at this step, or the value itself."""
    return value(count) if callable(value) else value


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, not an array or a traced one."""
    return isinstance(value, int | float | np.number)


def _is_literal(decay_scale: str) -> bool:
    """Return whether weight_decay is a fraction itself. Raise UserError for an unknown scale."""
    known = ["lr", "literal"]
    if decay_scale not in known:
        raise UserError(
            f"optimizer.decay_scale: got {decay_scale!r}, {nearest(decay_scale, known)}"
        )
    return decay_scale == "literal"


def _checked_rule(layerwise: str) -> str:
    """Return the rule. Raise UserError for an unknown one."""
    if layerwise and layerwise not in RULES:
        raise UserError(
            f"optimizer.layerwise: got {layerwise!r}, {nearest(layerwise, RULES)}, or '' for none"
        )
    return layerwise


def _check_numbers(learning_rate: Value, weight_decay: Value, literal: bool) -> None:
    """Raise UserError where a plain number is out of range.

    Of a decay's schedule the first value is checked. Traced values pass.
    """
    plain: dict[str, Any] = {
        "learning_rate": learning_rate,
        "weight_decay": _value_at(weight_decay, 0),
    }
    for field, value in plain.items():
        if _is_plain(value) and not value >= 0:
            raise UserError(f"optimizer.{field}: got {value}, takes a number of at least 0")
        if field == "weight_decay" and literal and _is_plain(value) and value >= 1:
            raise UserError(
                f"optimizer.{field}: got {value}, takes a number in [0, 1) as a literal share"
            )


def _check_fractions(fractions: PyTree) -> None:
    """Raise UserError where a layer's rule lifts a literal fraction to 1 or more."""
    largest = max((d for d in jax.tree.leaves(fractions) if _is_plain(d)), default=0.0)
    if largest >= 1:
        raise UserError(
            f"optimizer.weight_decay: makes a literal share of {largest:g} in the deepest layer "
            "under optimizer.layerwise, takes a number that keeps it under 1"
        )
