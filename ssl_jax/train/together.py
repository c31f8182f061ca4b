"""One step for several runs at once: programs that differ in numbers alone become one, by vmap.

Which numbers may differ is read from the programs, not from a list of fields. Each run's step is
traced with its own configuration. Two steps are alike if their traces are equal in everything but
the values of constants: a rate, a decay, tau, an epsilon. What is a shape, another function or a
branch that Python took makes another trace. Of steps that are alike, the constants that differ
become arguments, one number a run, and the step is mapped over the runs.
"""

# JAX leaves the types of traces unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeStubs=false

import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from ssl_jax.train.parallel import AXIS
from ssl_jax.types import Batch, Metrics, PyTree, Step

# Where a constant stands in a trace: number of the equation, name of the parameter, ...
Place = tuple[int | str, ...]
Constants = dict[Place, Any]
# Primitives within which a constant may become an argument: calls, by the parameter that is called,
# and branches. Within any other one, a loop for instance, the values count as its form.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
BRANCHES = "cond", "branches"
# Parameters that say how to differentiate, which is over when a step has been traced.
RULES = ("jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "fwd_in_tree", "bwd", "out_trees")


class Traced(NamedTuple):
    """The trace of a step."""

    program: ClosedJaxpr  # of the leaves of state, batch and key
    results: Any  # structure of the step's (state, metrics)
    form: str  # digest of all but the values of constants: steps that are alike have the same
    bytes: int  # at most in use at once, were every operation to write its result


class Joined(NamedTuple):
    """One step of several runs, and what is theirs."""

    # step(states, batch, own) -> states, metrics (M, ...). The batch's arrays are (B, M, ...).
    step: Callable[[Any, Batch, Any], tuple[Any, Metrics]]
    own: PyTree  # keys (M,), and the numbers (M, ...) in which the runs differ


def trace_step(
    step: Step, state: PyTree, image: tuple[int, ...], size: int, *, labelled: bool, devices: int
) -> Traced:
    """Trace a step, which computes nothing.

    Args:
        step: state, batch, key -> state, metrics.
        state: a state, or its shapes.
        image: (H, W, C) of the images.
        size: images of a device's batch.
        labelled: whether the batch has labels.
        devices: over which the step averages; 1: it does not.

    Returns:
        The trace.
    """
    batch = {
        "image": jax.ShapeDtypeStruct((size, *image), np.uint8),
        "position": jax.ShapeDtypeStruct((size,), np.int32),
    }
    if labelled:
        batch["label"] = jax.ShapeDtypeStruct((size,), np.int32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), state)
    axes = [(AXIS, devices)] if devices > 1 else None
    program, results = jax.make_jaxpr(step, axis_env=axes, return_shape=True)(
        shapes, batch, jax.random.key(0)
    )
    digest = hashlib.sha256()
    digest.update(str(jax.tree.structure((shapes, results))).encode())
    for word in _form(program):
        digest.update(word.encode() + b"\n")
    return Traced(
        program, jax.tree.structure(results), digest.hexdigest(), peak_bytes(program.jaxpr)
    )


def join(traces: Sequence[Traced], keys: Sequence[jax.Array], state: PyTree) -> Joined:
    """Return one step for runs whose steps are alike.

    Args:
        traces: of their steps, M, of the same form.
        keys: of the runs.
        state: the state of one, or its shapes.

    Returns:
        The step, and what is each run's own.
    """
    if len({trace.form for trace in traces}) > 1:
        raise ValueError("the steps differ in more than numbers")
    program, results = traces[0].program, traces[0].results
    columns = [dict(_constants(trace.program)) for trace in traces]
    numbers: Constants = {}
    for place, (first, *others) in (
        (place, [column[place] for column in columns]) for place in columns[0]
    ):
        values = [np.asarray(value) for value in (first, *others)]
        if any(value.tobytes() != values[0].tobytes() for value in values[1:]):
            kind = _aval_of(first).dtype
            numbers[place] = np.stack([value.astype(kind) for value in values])
    places, axes = list(numbers), state_axes(state)

    def one(state: Any, batch: Batch, own: tuple[jax.Array, list[jax.Array]]) -> Any:
        key, values = own
        leaves = jax.tree.leaves((state, batch, key))
        found = _evaluate(program, dict(zip(places, values, strict=True)), (), leaves)
        return jax.tree.unflatten(results, found)

    step = jax.vmap(one, in_axes=(axes, 1, 0), out_axes=(axes, 0))
    return Joined(step, (jnp.stack(list(keys)), [jnp.asarray(numbers[p]) for p in places]))


def state_axes(state: PyTree) -> PyTree:
    """Return the axis of the runs in each leaf of their states: 0, or None where they share it.

    Whole numbers count steps, which are the same for all. As one number, they keep what is done
    every so many steps a branch; as a number for each run, vmap would take both branches always.
    """

    def axis(leaf: Any) -> int | None:
        return None if not jnp.shape(leaf) and jnp.issubdtype(leaf.dtype, jnp.integer) else 0

    return jax.tree.map(axis, state)


def stack_states(states: Sequence[PyTree]) -> PyTree:
    """Return states on the host as one, with the axis of the runs first where it has one."""
    return jax.tree.map(
        lambda axis, *leaves: leaves[0] if axis is None else np.stack(leaves),
        state_axes(states[0]),
        *states,
        is_leaf=lambda x: x is None,
    )


def take_state(states: PyTree, axes: PyTree, number: jax.Array | int) -> PyTree:
    """Return the state of one run.

    Args:
        states: of all.
        axes: of the runs, see `state_axes`.
        number: which run.

    Returns:
        Its state, without the axis of the runs.
    """
    return jax.tree.map(
        lambda axis, x: x if axis is None else x[number], axes, states, is_leaf=lambda x: x is None
    )


def put_state(states: PyTree, axes: PyTree, number: jax.Array | int, state: PyTree) -> PyTree:
    """Return the states with that of one run replaced, but for what all share.

    Args:
        states: of all.
        axes: of the runs, see `state_axes`.
        number: which run.
        state: its new state.

    Returns:
        The states of all.
    """
    return jax.tree.map(
        lambda axis, x, new: x if axis is None else x.at[number].set(new),
        axes,
        states,
        state,
        is_leaf=lambda x: x is None,
    )


def peak_bytes(program: Any) -> int:
    """Return the most bytes in use at once, were every operation to write its result.

    `program` is a Jaxpr. A compiler fuses operations and needs less; the scratch memory of a
    library is not counted.
    """
    last = {
        atom: number
        for number, equation in enumerate(program.eqns)
        for atom in equation.invars
        if isinstance(atom, Var)
    }
    last |= {atom: len(program.eqns) for atom in program.outvars if isinstance(atom, Var)}
    used = most = sum(_bytes(var) for var in [*program.invars, *program.constvars])
    given = {*program.invars, *program.constvars}
    alive: dict[int, list[Var]] = {}
    for number, equation in enumerate(program.eqns):
        inner = max((_inner_bytes(part) for _, part in _programs(equation)), default=0)
        most = max(most, used + sum(map(_bytes, equation.outvars)) + inner)
        for var in equation.outvars:
            if var in last:
                used += _bytes(var)
                alive.setdefault(last[var], []).append(var)
        used -= sum(_bytes(var) for var in alive.pop(number, []) if var not in given)
    return most


def _inner_bytes(program: ClosedJaxpr | Jaxpr) -> int:
    """Return the bytes in use within a call, besides its arguments and results."""
    inner: Any = getattr(program, "jaxpr", program)
    outside = sum(_bytes(var) for var in [*inner.invars, *inner.outvars])
    return max(0, peak_bytes(inner) - outside)


def _bytes(atom: Any) -> int:
    aval = atom.aval
    return math.prod(getattr(aval, "shape", ())) * getattr(
        getattr(aval, "dtype", None), "itemsize", 0
    )


# --- The constants of a trace ---------------------------------------------------------------------


def _programs(equation: JaxprEqn) -> Iterator[tuple[Place, Any]]:
    """Yield the programs within an equation, each with its place."""
    for name, value in sorted(equation.params.items()):
        if name in RULES:
            continue
        several = isinstance(value, tuple | list)
        for number, part in enumerate(value if several else [value]):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield ((name, number), part)


def _is_open(equation: JaxprEqn, name: int | str) -> bool:
    """Return whether the constants within this parameter of an equation may become arguments."""
    kind = equation.primitive.name
    if kind == "cond" and equation.params.get("branches_platforms") is not None:
        return False
    return CALLS.get(kind) == name or (kind, name) == BRANCHES


def _may_differ(value: Any) -> bool:
    """Return whether a constant may become an argument: keys of random numbers do not."""
    return not jnp.issubdtype(_aval_of(value).dtype, jax.dtypes.extended)


def _aval_of(value: Any) -> Any:
    return jax.typeof(value)


def _constants(program: ClosedJaxpr | Jaxpr, here: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield the constants that may become arguments, each with its place, in a fixed order."""
    inner = getattr(program, "jaxpr", program)
    for number, value in enumerate(getattr(program, "consts", ())):
        if _may_differ(value):
            yield (*here, "const", number), value
    for number, equation in enumerate(inner.eqns):
        for position, atom in enumerate(equation.invars):
            if isinstance(atom, Literal):
                yield (*here, number, position), _value(atom)
        for place, part in _programs(equation):
            if _is_open(equation, place[0]):
                yield from _constants(part, (*here, number, *place))
    for position, atom in enumerate(inner.outvars):
        if isinstance(atom, Literal):
            yield (*here, "out", position), _value(atom)


def _value(literal: Literal) -> Any:
    """Return a constant in the type that it has in the trace."""
    aval: Any = literal.aval
    return np.asarray(literal.val, aval.dtype)


def _form(program: ClosedJaxpr | Jaxpr, values: bool = False) -> Iterator[str]:
    """Yield the words of a trace: everything but the values of constants that may differ.

    Args:
        program: the trace, or a part.
        values: whether all values count.
    """
    inner = getattr(program, "jaxpr", program)
    names: dict[Any, int] = {}

    def word(atom: Any) -> str:
        if isinstance(atom, Literal):
            value = f" {atom.val!r}" if values else ""
            return f"{atom.aval.str_short()}{value}"
        return f"{names.setdefault(atom, len(names))}:{atom.aval.str_short()}"

    for value in getattr(program, "consts", ()):
        if values or not _may_differ(value):
            keyed = jnp.issubdtype(_aval_of(value).dtype, jax.dtypes.extended)
            array = np.asarray(jax.random.key_data(value) if keyed else value)
            yield hashlib.sha256(array.tobytes()).hexdigest()
    yield " ".join(map(word, [*inner.constvars, *inner.invars]))
    for equation in inner.eqns:
        yield equation.primitive.name
        yield " ".join(map(word, [*equation.invars, *equation.outvars]))
        parts = dict(_programs(equation))
        inside = {place[0] for place in parts}
        for name, value in sorted(equation.params.items()):
            if name not in RULES and name not in inside:
                yield f"{name} {re.sub(r' at 0x[0-9a-f]+', '', repr(value))}"
        for place, part in parts.items():
            yield f"{place}"
            yield from _form(part, values or not _is_open(equation, place[0]))
    yield " ".join(map(word, inner.outvars))


def _evaluate(
    program: ClosedJaxpr | Jaxpr, numbers: Constants, here: Place, arguments: Sequence[Any]
) -> list[Any]:
    """Return the results of a trace, with arguments in place of some constants.

    Args:
        program: the trace, or the part of it at `here`.
        numbers: what takes the place of the constants, by their places in the whole trace.
        here: the place of `program`.
        arguments: of `program`.

    Returns:
        The results.
    """
    inner = getattr(program, "jaxpr", program)
    known: dict[Any, Any] = dict(zip(inner.invars, arguments, strict=True))
    for number, (var, value) in enumerate(
        zip(inner.constvars, getattr(program, "consts", ()), strict=True)
    ):
        known[var] = numbers.get((*here, "const", number), value)

    def read(atom: Any, place: Place) -> Any:
        return numbers.get(place, atom.val) if isinstance(atom, Literal) else known[atom]

    for number, equation in enumerate(inner.eqns):
        at = (*here, number)
        values = [read(atom, (*at, i)) for i, atom in enumerate(equation.invars)]
        with equation.ctx.manager:
            if any(_within(place, at) for place in numbers):
                found = _evaluate_inner(equation, numbers, at, values)
            else:
                found = _bind(equation, values)
        results = found if equation.primitive.multiple_results else [found]
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom, (*here, "out", i)) for i, atom in enumerate(inner.outvars)]


def _bind(equation: JaxprEqn, values: list[Any]) -> Any:
    """Return what the operation of an equation makes of other arguments."""
    found = equation.primitive.get_bind_params(equation.params)
    # before jax 0.10 and after it: functions and options, or options alone
    functions, options = found if isinstance(found, tuple) else ((), found)
    return equation.primitive.bind(*functions, *values, **options)


def _within(place: Place, equation: Place) -> bool:
    """Return whether a constant stands inside an equation, not among its own arguments."""
    depth = len(equation)
    return place[:depth] == equation and len(place) > depth + 1


def _evaluate_inner(
    equation: JaxprEqn, numbers: Constants, at: Place, values: list[Any]
) -> list[Any]:
    """Return the results of a call, or of a branch, with arguments in place of constants."""
    options = equation.params

    def part(name: str, number: int = 0) -> Any:
        value = options[name]
        body = value[number] if isinstance(value, tuple | list) else value
        return functools.partial(_evaluate, body, numbers, (*at, name, number))

    kind = equation.primitive.name
    if kind == "cond":
        branches = [part("branches", n) for n in range(len(options["branches"]))]
        return jax.lax.switch(
            values[0], [lambda *xs, own=own: own(xs) for own in branches], *values[1:]
        )
    return part(CALLS[kind])(values)
